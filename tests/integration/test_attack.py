"""
Clients that attack, beside a real server: one that may only append tries every method on every path that there is, and one
with all rights deletes everything. C{ATTACK_TABLE=FILE} writes what was tried and answered.

What one with all rights deletes and C{rest-server trash restore} puts back is in L{tests.integration.test_trash}.
"""

from __future__ import annotations

import http.client
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.names import CONFIG, TYPES

from ..support.client import Client, Reply
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import contents_below, files_below, scratch_directory
from ..support.server import ServerProcess, start_server

MIB = 1 << 20
PASSWORD = "secret"
#: The repository that the attacker backs up to, and one that is not his.
OWN, OTHER = "mallory/laptop", "alice/laptop"
STATE = ".rest-server"
#: Where the table is written. Without one some of the methods are left out for paths that are written in an odd way.
TABLE = os.environ.get("ATTACK_TABLE")

POLICY = """
[[rule]]
users = ["admin"]
repositories = ["**"]
rights = "full"
create = true
delete-delay = "1d"
[[rule]]
users = ["mallory", "alice"]
repositories = ["{user}/*"]
rights = "append"
create = true
"""

METHODS = (
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PURGE"),
    *("COPY", "MOVE", "MKCOL", "LOCK", "UNLOCK", "PROPFIND", "PROPPATCH", "LINK", "UNLINK", "get", "delete"),
)
#: Headers that other servers obey.
TRICKS: tuple[dict[str, str], ...] = (
    {},
    {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE", "X-HTTP-Method": "DELETE"},
    {"Content-Range": "bytes 0-3/4", "If-Match": "*", "Overwrite": "T"},
)


def spelled(path: str) -> Iterator[str]:
    """The ways to write a path that a careless server takes for the same."""
    first, _, rest = path.lstrip("/").partition("/")
    yield path
    yield path.rstrip("/") + "/"
    yield f"/{OWN}/../..{path}"
    yield f"/{OWN}/data/%2e%2e/%2e%2e/%2e%2e{path}"
    yield f"/{OWN}/data/..%2f..%2f..{path.replace('/', '%2f')}"
    yield "/" + "".join(f"%{ord(letter):02x}" if letter in ".-" else letter for letter in path[1:])
    yield f"//{first}//{rest}"
    yield f"/./{first}/./{rest}"
    yield f"{path}?create=true"
    yield f"{path}?delete=true&method=DELETE"
    yield f"{path}%00"
    yield f"{path};/"
    yield path.replace("/", "\\").replace("\\", "/", 1)
    yield f"http://localhost{path}"


class AttackTests(SynchronousTestCase):
    """One client that may append."""

    skip = SKIP_WITHOUT_RESTIC
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 200 * MIB)
        self.data = self.scratch / "data"
        self.answers: Counter[tuple[str, str, int]] = Counter()

    def start(self) -> ServerProcess:
        """A server whose users are in the data directory, as is usual."""
        self.data.mkdir()
        (self.data / ".htpasswd").write_text(
            "".join(sha_line(user, PASSWORD) for user in ("admin", "alice", "mallory"))
        )
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        return start_server(self, self.data, *server_flags(self.scratch))

    def restic(self, server: ServerProcess, user: str, repository: str) -> Restic:
        """A client."""
        directory = self.scratch / f"{user}-{repository.replace('/', '-')}"
        directory.mkdir(exist_ok=True)
        return Restic(self, f"http://{user}:{PASSWORD}@127.0.0.1:{server.port}/{repository}/", directory)

    def fill(self, server: ServerProcess) -> None:
        """Backups in both repositories; each has something in its trash, and a lock of another client."""
        for user, repository in (("mallory", OWN), ("alice", OTHER)):
            tree = self.scratch / user
            make_tree(tree, seed=len(user), size_bytes=3 * MIB)
            restic = self.restic(server, user, repository)
            restic.create()
            restic.succeed("backup", str(tree))
            with server.client("admin", PASSWORD) as client:
                for kind in ("data", "index", "snapshots", "keys"):
                    name = client.save(kind, f"deleted {kind} of {user}".encode(), f"/{repository}/")
                    self.assertEqual(200, client.delete(f"/{repository}/{kind}/{name}").status)

        with server.client("admin", PASSWORD) as client:
            client.save("locks", b"a lock of another client", f"/{OTHER}/")

    def targets(self) -> list[str]:
        """A path for each file and directory below the data directory, and what clients call them."""
        found = {f"/{path.relative_to(self.data)}" for path in self.data.rglob("*")}
        # Of many files that are alike two are enough.
        alike: dict[str, list[str]] = {}
        for path in sorted(found):
            alike.setdefault(path.rpartition("/")[0], []).append(path)
        few = {path for paths in alike.values() for path in paths[:2]}
        few |= {
            f"/{name}" for name in (f"{STATE}/state.sqlite3", f"{STATE}/scrub.sqlite3", ".htpasswd", f"{STATE}/new")
        }
        for repository in (OWN, OTHER):
            few |= {f"/{repository}/{kind}/{path.name}" for kind in TYPES for path in self.some(repository, kind)}
            few |= {f"/{repository}/{kind}/" for kind in TYPES}
            few |= {f"/{repository}", f"/{repository}/{CONFIG}"}
        return sorted({*few, "/", f"/{'0' * 64}", "/-/status", "/-/ready", "/metrics", "/../secret", "/etc/passwd"})

    def some(self, repository: str, kind: str) -> list[Path]:
        """Two objects of a type."""
        return sorted(path for path in (self.data / repository / kind).rglob("*") if path.is_file())[:2]

    def try_one(
        self, client: Client, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Reply | None:
        """One request; C{None} if the server ended the connection instead of an answer."""
        try:
            return client.request(method, path, body, headers)
        except (http.client.HTTPException, ConnectionError):
            client.close()
            return None

    def test_append(self) -> None:
        """Every method on every path: nothing changes but for what such a client may add, and nothing is given away."""
        server = self.start()
        self.fill(server)
        server.stop()
        server = start_server(self, self.data, *server_flags(self.scratch))
        before = contents_below(self.data)
        secrets = self.secrets()
        targets = self.targets()
        bodies = [b"", b"garbage", *((self.data / path[1:]).read_bytes() for path in targets if self.is_small(path))]
        with server.client("mallory", PASSWORD) as client:
            for target in targets:
                right = self.data / target[1:]
                for way, path in enumerate(spelled(target)):
                    for method in METHODS if way == 0 or TABLE else METHODS[way % 3 :: 3]:
                        for trick in TRICKS if way == 0 else TRICKS[:1]:
                            reading = method in ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "get", "delete")
                            body = None if reading else bodies[(way + len(method)) % len(bodies)]
                            reply = self.try_one(client, method, path, body, trick)
                            self.note(method, target, 0 if reply is None else reply.status)
                            if not target.startswith(f"/{OWN}/") or ".trash" in target:
                                self.assert_no_secret(reply, secrets, f"{method} {path}")
                # The bytes that are there already, and others under the same name.
                if right.is_file():
                    for body in (right.read_bytes(), right.read_bytes()[:-1] + b"?", b"x" * 100):
                        reply = self.try_one(client, "POST", target, body, {})
                        self.note("POST", target, 0 if reply is None else reply.status)
            own_lock = client.save("locks", b"my own lock", f"/{OWN}/")
            self.assertEqual(200, client.delete(f"/{OWN}/locks/{own_lock}").status)
            may_add = {f"{OWN}/data/{name[:2]}/{name}" for name in [client.save("data", b"a new object", f"/{OWN}/")]}
        after = contents_below(self.data)
        state = {name for name in {*before, *after} if name.startswith(f"{STATE}/")}
        changed = {name for name in before if name not in state and after.get(name) != before[name]}
        new = {name for name in after if name not in state and name not in before}
        self.assertEqual(set(), changed)
        self.assertEqual(may_add, new)
        self.assert_alive(server)
        self.report(targets, new)

    def secrets(self) -> list[bytes]:
        """What must not be in an answer: what is in the trash, the passwords' file, the state, and another's repository."""
        found = [b"deleted data of alice", b"deleted data of mallory", b"SQLite format 3", b"{SHA}"]
        found += [(self.data / OTHER / CONFIG).read_bytes()[:64]]
        found += [path.read_bytes()[:64] for kind in ("data", "keys", "snapshots") for path in self.some(OTHER, kind)]
        return found

    def is_small(self, path: str) -> bool:
        """Whether a body of that content is not too much for this test."""
        file = self.data / path[1:]
        return file.is_file() and file.stat().st_size < 10_000

    def assert_no_secret(self, reply: Reply | None, secrets: list[bytes], what: str) -> None:
        """Neither in the body nor in a header."""
        if reply is not None:
            text = reply.body + str(reply.headers).encode() + reply.reason.encode()
            for secret in secrets:
                self.assertNotIn(secret, text, what)

    def assert_alive(self, server: ServerProcess) -> None:
        """The server works as before, its databases are whole, and nothing unexpected was logged."""
        for name in ("mallory", "alice"):
            repository = OWN if name == "mallory" else OTHER
            restic = self.restic(server, "admin", repository)
            self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
            self.assertEqual(1, len(restic.snapshots()))
        self.assertIsNone(server.said("Traceback"))
        self.assertEqual(0, server.stop())
        for path in sorted((self.data / STATE).glob("*.sqlite3")):
            with sqlite3.connect(path) as database:
                self.assertEqual([("ok",)], database.execute("PRAGMA integrity_check").fetchall())
        self.assertEqual(set(), {name for name in files_below(self.data) if "/.tmp/" in name})

    def note(self, method: str, target: str, status: int) -> None:
        """Count an answer."""
        self.answers[method, kind_of(target), status] += 1

    def report(self, targets: list[str], new: set[str]) -> None:
        """Write what was tried where C{ATTACK_TABLE} says."""
        if not TABLE:
            return
        kinds = sorted({kind for _, kind, _ in self.answers})
        lines = [f"{self.id()}: {sum(self.answers.values())} requests, {len(targets)} paths, {len(new)} objects added"]
        for kind in kinds:
            statuses: Counter[int] = Counter()
            for (_, its, status), number in self.answers.items():
                statuses[status] += number * (its == kind)
            lines.append(f"  {kind:24} " + ", ".join(f"{status} {n}" for status, n in sorted(statuses.items()) if n))
        with open(TABLE, "a") as file:
            file.write("\n".join(lines) + "\n")


def server_flags(scratch: Path) -> tuple[str, ...]:
    """Of L{AttackTests}' server."""
    files = ("--htpasswd-file", str(scratch / "data/.htpasswd"), "--policy", str(scratch / "policy.toml"))
    return (*files, "--delete-delay", "1h", "--scrub-interval", "1h", "--max-depth", "8")


def kind_of(target: str) -> str:
    """What a path is, for the table."""
    if ".trash" in target:
        return "trash"
    if STATE in target or target == "/.htpasswd":
        return "state and passwords"
    if target.startswith(f"/{OTHER}"):
        return "another's repository"
    if target.startswith(f"/{OWN}"):
        parts = target[len(OWN) + 2 :].strip("/").split("/")
        return f"own {parts[0] or 'repository'}"
    return "other paths"


class SharedAttackTests(AttackTests):
    """The same with two workers."""

    every_server = ("--workers", "2")
