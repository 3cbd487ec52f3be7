"""
The trash with real servers, the real restic and C{rest-server trash}: what a client deletes can be put back, ends when its
time has come, counts, and is out of every client's reach; and no kill loses anything.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.names import TYPES

from ..support.client import Client, object_id, random_bytes
from ..support.htpasswd import sha_line
from ..support.quota import start_on_tmpfs, why_no_tmpfs
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, change_tree, make_tree
from ..support.scratch import contents_below, files_below, hash_of_file, scratch_directory
from ..support.server import ServerProcess, installed, is_running, server_environment, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until
from .test_clock import LIBRARY

MIB = 1 << 20
TWO = ("--workers", "2")
#: A part of the trash's paths.
TRASH = ".trash/"
#: What a client may get that asks for something in the trash.
REFUSED = {400, 401, 403, 404, 405}

POLICY = """
[[rule]]
users = ["*"]
repositories = ["{user}", "{user}/*"]
rights = "full"
create = true
delete-repository = true
quota = "4MiB"
delete-delay = "1h"
"""


class TrashCase(SynchronousTestCase):
    """A data directory."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 200 * MIB)
        self.data = self.scratch / "data"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run C{rest-server trash} to its end."""
        return subprocess.run(self.command_line(*arguments), **self.how(), capture_output=True, check=False, timeout=60)

    def command_line(self, *arguments: str) -> list[str]:
        """How to run it."""
        return [installed("rest-server"), "trash", *arguments, "--path", str(self.data)]

    def how(self) -> dict[str, Any]:
        """The other arguments of C{Popen}."""
        return {"cwd": self.scratch, "env": server_environment(), "stdin": subprocess.DEVNULL, "text": True}

    def succeed(self, *arguments: str) -> str:
        """Its output."""
        done = self.command(*arguments)
        self.assertEqual((0, ""), (done.returncode, done.stderr), arguments)
        return done.stdout

    def live(self, below: Path | None = None) -> dict[str, str]:
        """All that is not in a trash, and the hash of each."""
        found = contents_below(self.data if below is None else below)
        return {name: hash_ for name, hash_ in found.items() if TRASH not in name and "/.tmp/" not in name}

    def trashed(self, repository: Path | None = None) -> set[str]:
        """What lies in the trash, without what says until when."""
        names = files_below(self.data if repository is None else repository)
        return {name for name in names if TRASH in name and "/keep-" not in name}


class ResticTests(TrashCase):
    """The real restic."""

    skip = SKIP_WITHOUT_RESTIC

    def back_up(self, restic: Restic) -> None:
        """Three backups of a tree that changes."""
        tree = self.scratch / "tree"
        make_tree(tree, seed=1, size_bytes=6 * MIB)
        restic.create()
        restic.succeed("backup", str(tree))
        change_tree(tree, seed=2)
        restic.succeed("backup", str(tree))
        shutil.rmtree(tree / "text")
        restic.succeed("backup", str(tree))

    def assert_as_before(self, restic: Restic, snapshots: list[dict[str, Any]]) -> None:
        """All snapshots are there, and every byte of them."""
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        self.assertEqual(snapshots, restic.snapshots())

    def test_prune(self) -> None:
        """C{forget --prune}, undone by one command while the server runs."""
        server = start_server(self, self.data, "--delete-delay", "1h")
        restic = Restic(self, f"{server.url}/alice/laptop/", self.scratch)
        self.back_up(restic)
        snapshots = restic.snapshots()
        before = self.live()
        # What was pruned of the tree must not be in restic's cache either.
        restic.succeed("forget", "--keep-last", "1", "--prune")
        shutil.rmtree(self.scratch / "cache")
        self.assertEqual(1, len(restic.snapshots()))
        self.assertTrue(set(before) - set(self.live()))
        self.assertIn("restored ", self.succeed("restore", "alice/laptop", "--since", "1 hour ago"))
        self.assertEqual({}, {name: hash_ for name, hash_ in before.items() if self.live().get(name) != hash_})
        self.assertEqual(set(), self.trashed())
        self.assert_as_before(restic, snapshots)
        # What was restored is repacked and pruned again like anything else.
        restic.succeed("forget", "--keep-last", "1", "--prune")
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        self.assertIsNone(server.said("Traceback"))

    def test_everything_deleted(self) -> None:
        """A client with all rights deletes each object over HTTP, the config included."""
        server = start_server(self, self.data, "--delete-delay", "1h")
        restic = Restic(self, f"{server.url}/alice/laptop/", self.scratch)
        self.back_up(restic)
        snapshots = restic.snapshots()
        before = self.live()
        with server.client() as client:
            self.assertEqual(200, client.delete("/alice/laptop/config").status)
            for kind in TYPES:
                for name in client.list(kind, "/alice/laptop/"):
                    self.assertEqual(200, client.delete(f"/alice/laptop/{kind}/{name}").status)
                self.assertEqual({}, client.list(kind, "/alice/laptop/"))
        self.assertEqual({}, self.live())
        self.assertNotEqual(0, restic.run("snapshots").status)
        self.succeed("restore", "alice/laptop")
        self.assertEqual(before, self.live())
        self.assert_as_before(restic, snapshots)

    def test_repository_deleted(self) -> None:
        """A whole repository that is deleted by right, and restored without the server."""
        users, policy = self.scratch / "users", self.scratch / "policy"
        users.write_text(sha_line("alice", "secret"))
        policy.write_text(POLICY.replace('"4MiB"', '"40MiB"'))
        flags = ("--htpasswd-file", str(users), "--policy", str(policy))
        server = start_server(self, self.data, *flags)
        restic = Restic(self, f"http://alice:secret@127.0.0.1:{server.port}/alice/laptop/", self.scratch)
        self.back_up(restic)
        snapshots = restic.snapshots()
        before = self.live()
        with server.client("alice", "secret") as client:
            self.assertEqual(200, client.delete("/alice/laptop/").status)
            for path in ("", "config", "data/", "keys/"):
                self.assertIn(client.get(f"/alice/laptop/{path}").status, (404, 405), path)
            self.assertEqual(404, client.delete("/alice/laptop/").status)
        self.assertEqual({}, self.live())
        self.assertEqual([".trash"], os.listdir(self.data / "alice/laptop"))
        server.stop()
        self.succeed("restore", "alice/laptop")
        self.assertEqual(before, self.live())
        server = start_server(self, self.data, *flags)
        restic = Restic(self, f"http://alice:secret@127.0.0.1:{server.port}/alice/laptop/", self.scratch)
        self.assert_as_before(restic, snapshots)
        restic.succeed("backup", str(self.scratch / "tree"))


class SharedResticTests(ResticTests):
    """The same with two workers."""

    every_server = TWO


class ClientTests(TrashCase):
    """What clients see of it."""

    def test_deleted_object(self) -> None:
        """It is not found and not listed; it may be uploaded and deleted again, and is in the trash once."""
        server = start_server(self, self.data, "--delete-delay", "1h")
        with server.client() as client:
            client.create_repository("/a/")
            for kind in ("data", "index", "keys", "snapshots"):
                for _ in range(3):
                    name = client.save(kind, b"body", "/a/")
                    self.assertEqual({name: 4}, client.list(kind, "/a/"))
                    self.assertEqual(200, client.delete(f"/a/{kind}/{name}").status)
                    self.assertEqual(404, client.get(f"/a/{kind}/{name}").status)
                    self.assertEqual(404, client.head(f"/a/{kind}/{name}").status)
                    self.assertEqual({}, client.list(kind, "/a/"))
                    self.assertEqual(200, client.delete(f"/a/{kind}/{name}").status)
            self.assertEqual(4, len(self.trashed()))
            name = client.save("locks", b"lock", "/a/")
            self.assertEqual(200, client.delete(f"/a/locks/{name}").status)
            self.assertEqual(4, len(self.trashed()))

    def test_other_content(self) -> None:
        """With --no-verify-upload a client cannot replace what is in the trash by other content of the same name."""
        server = start_server(self, self.data, "--delete-delay", "1h", "--no-verify-upload")
        name = object_id(b"good")
        with server.client() as client:
            client.create_repository("/a/")
            for body in (b"good", b"evil", b"worse", b"good", b"evil"):
                self.assertEqual(200, client.post(f"/a/data/{name}", body).status)
                self.assertEqual(200, client.delete(f"/a/data/{name}").status)
        found = sorted((self.data / path).read_bytes() for path in self.trashed())
        self.assertEqual([b"evil", b"evil", b"good", b"worse"], found)
        self.assertEqual("restored 1 object (4 bytes)\n", self.succeed("restore", "a"))
        self.assertEqual(b"good", (self.data / "a/data" / name[:2] / name).read_bytes())

    def test_out_of_reach(self) -> None:
        """No path and no method leads to the trash, whatever rights a client has."""
        users = self.scratch / "users"
        users.write_text(sha_line("a", "secret"))
        server = start_server(self, self.data, "--delete-delay", "1h")
        with server.client() as client:
            client.create_repository("/a/")
            name = client.save("data", b"body", "/a/")
            client.delete(f"/a/data/{name}")
        server.stop()
        (lies,) = self.trashed()
        before = self.tree()
        inside = lies.removeprefix("a/.trash/")
        ways = [
            f"/a/{trash}/{rest}"
            for trash in (
                ".trash",
                "%2etrash",
                ".%74rash",
                "%2Etrash",
                "./.trash",
                "/.trash",
                "data/../.trash",
                ".trash/",
            )
            for rest in (
                inside,
                inside.rpartition("/")[0] + "/",
                inside.partition("/")[0] + "/",
                "",
                f"data/{name}",
                "config",
            )
        ]
        ways += [
            f"/a/.trash%2f{inside}",
            f"/a%2f.trash/{inside}",
            f"/%2e/a/.trash/{inside}",
            f"/.trash/{inside}",
            "/.trash/",
        ]
        ways += [f"/a/data/..%2f.trash/{inside}", f"/a/data/%2e%2e/.trash/{inside}", f"/a/.trash\\{inside}"]
        ways += [f"/a/.trash%00/{inside}", f"/a/.trash%0a/{inside}", f"/a/.trash%7f/{inside}"]
        ways += [
            f"http://x/a/.trash/{inside}",
            f"/a/.trash/{inside}?create=true",
            "/a/.trash/?create=true",
            "/a/.trash",
        ]
        for flags in (("--append-only",), (), ("--htpasswd-file", str(users)), ("--read-only",)):
            server = start_server(self, self.data, "--delete-delay", "1h", "--max-depth", "16", *flags)
            with server.client("a", "secret") as client:
                for path in ways:
                    for method in ("GET", "HEAD", "POST", "DELETE", "PUT", "MOVE"):
                        body = b"body" if method in ("POST", "PUT") else None
                        reply = client.request(method, path, body)
                        self.assertIn(reply.status, REFUSED, (flags, method, path, reply))
                for path in (f"/a/.TRASH/{inside}", f"/a/.Trash/{inside}", f"/A/.trash/{inside}"):
                    # Another repository, where the file system tells them apart; there a missing object can be deleted.
                    self.assertIn(client.get(path).status, REFUSED)
                    client.delete(path)
                for kind in TYPES:
                    self.assertEqual({}, client.list(kind, "/a/"))
            server.stop()
            self.assertEqual(before, self.tree(), flags)

    def tree(self) -> list[tuple[str, int]]:
        """Everything that is there, directories too, but for the server's own."""
        found = ((path.relative_to(self.data), path) for path in self.data.rglob("*"))
        return sorted(
            (str(name), path.lstat().st_ctime_ns * path.is_file()) for name, path in found if name.parts[0] == "a"
        )

    def test_blocked(self) -> None:
        """Where something is in the way, a deletion fails, the log says why, and nothing is lost."""
        server = start_server(self, self.data, "--delete-delay", "1h")
        with server.client() as client:
            client.create_repository("/a/")
            name = client.save("data", b"body", "/a/")
            (self.data / "a/.trash").write_bytes(b"")
            self.assertEqual(500, client.delete(f"/a/data/{name}").status)
            self.assertEqual(b"body", client.get(f"/a/data/{name}").body)
            server.wait_for_line(r"a/\.trash")
            (self.data / "a/.trash").unlink()
            self.assertEqual(200, client.delete(f"/a/data/{name}").status)
            self.assertEqual(404, client.get(f"/a/data/{name}").status)


class SharedClientTests(ClientTests):
    """The same with two workers."""

    every_server = TWO


class ExpiryTests(TrashCase):
    """The end."""

    def test_expiry(self) -> None:
        """
        An object is gone soon after its time, and never before. What was deleted with a longer delay stays when a shorter one
        is set, and so does what nothing says of when it ends.
        """
        names = {}
        for delay, repository in (("1h", "/long/"), ("3s", "/short/")):
            server = start_server(self, self.data, "--delete-delay", delay, "--max-size", "10MiB")
            server.wait_for_line("Quota initialized")
            with server.client() as client:
                client.create_repository(repository)
                names[repository] = client.save("data", b"body", repository)
                if delay == "3s":
                    client.save("data", b"live", repository)
                self.assertEqual(200, client.delete(f"{repository}data/{names[repository]}").status)
                deleted_s = time.monotonic()
            if delay == "1h":
                server.stop()
                shutil.copytree(self.data / "long", self.data / "unknown")
                next((self.data / "unknown/.trash").glob("*/keep-*")).unlink()
        short = self.data / "short"
        wait_until(lambda: not self.trashed(short), timeout_s=40, what="the expiry")
        took_s = time.monotonic() - deleted_s
        self.assertTrue(2.9 <= took_s <= 27, took_s)
        server.wait_for_line(r"removed 1 objects \(4 bytes\) from the trash of repository short")
        wait_until(lambda: not (short / ".trash").exists())
        self.assertEqual(1, len(self.trashed(self.data / "long")))
        self.assertEqual(1, len(self.trashed(self.data / "unknown")))
        self.assertEqual(1, len(self.live(short)))
        self.assertIsNone(server.said("Traceback"))


class SharedExpiryTests(ExpiryTests):
    """The same with two workers."""

    every_server = TWO


class QuotaTests(TrashCase):
    """What lies in the trash takes space."""

    def setUp(self) -> None:
        super().setUp()
        self.users, self.policy = self.scratch / "users", self.scratch / "policy"
        self.users.write_text(sha_line("alice", "secret") + sha_line("metrics", "secret"))
        self.policy.write_text(POLICY)
        self.seed = 0

    def start(self, *flags: str) -> ServerProcess:
        """A server with the policy."""
        server = start_server(
            self, self.data, "--htpasswd-file", str(self.users), "--policy", str(self.policy), "--prometheus", *flags
        )
        server.wait_for_line("Quota initialized")
        return server

    def upload(self, client: Client, length: int) -> tuple[str, int, str]:
        """A new object: its path, the status and the reason."""
        self.seed += 1
        body = random_bytes(self.seed, length)
        path = f"/alice/laptop/data/{object_id(body)}"
        reply = client.post(path, body)
        return path, reply.status, reply.reason

    def size(self, where: str) -> tuple[int, int]:
        """Bytes and objects on disk, in use or in the trash."""
        laptop = self.data / "alice/laptop"
        names = self.trashed(laptop) if where == "trash" else set(self.live(laptop))
        return sum((laptop / name).stat().st_size for name in names), len(names)

    def figures(self, client: Client) -> list[tuple[int, int, int, int]]:
        """What the status, the metrics and C{rest-server usage} say of the repository."""
        found = []
        status = json.loads(client.get("/-/status.json").body)
        rows = [one for one in status["repositories"] if one["repository"] == "alice/laptop"]
        done = subprocess.run(
            [installed("rest-server"), "usage", "--json", "--path", str(self.data), "--policy", str(self.policy)],
            **self.how(),
            capture_output=True,
            check=True,
        )
        rows += [one for one in json.loads(done.stdout)["repositories"] if one["repository"] == "alice/laptop"]
        for row in rows:
            found.append((row["size_bytes"], row["objects"], row["trash_bytes"], row["trash_objects"]))
        text = client.get("/metrics").body.decode()
        samples = dict(
            re.findall(r'^rest_server_repository_(\w+)\{[^}]*repo="[^"]*laptop"[^}]*\} (\S+)$', text, re.MULTILINE)
        )
        keys = ("size_bytes", "objects", "trash_bytes", "trash_objects")
        if all(key in samples for key in keys):
            size_bytes, objects, trash_bytes, trash_objects = (int(float(samples[key])) for key in keys)
            found.append((size_bytes, objects, trash_bytes, trash_objects))
        return found

    def assert_figures(self, server: ServerProcess) -> None:
        """They agree with the disk, to the byte."""
        expected = (*self.size("live"), *self.size("trash"))
        with server.client("metrics", "secret") as client:
            seen: list[Any] = []

            def agree() -> bool:
                seen[:] = self.figures(client)
                return seen == [expected] * 3

            wait_until(agree, timeout_s=30, what=(expected, seen))

    def test_counts(self) -> None:
        """Deleting gives no room, and the refusal says why and until when; the figures agree, also after a restart."""
        server = self.start()
        with server.client("alice", "secret") as client:
            client.create_repository("/alice/laptop/")
            paths = []
            while (got := self.upload(client, 500_000))[1] == 200:
                paths.append(got[0])
            self.assertEqual((8, 507), (len(paths), got[1]))
            self.assertNotIn("trash", got[2])
            for path in paths[:3]:
                self.assertEqual(200, client.delete(path).status)
            _, status, reason = self.upload(client, 500_000)
            self.assertEqual(507, status)
            tomorrow = rf"{time.strftime('%Y', time.gmtime())}-\d\d-\d\d"
            self.assertRegex(reason, rf"; 1\.43 MiB are in the trash until {tomorrow} or later$")
            left = 4 * MIB - 8 * 500_000
            self.assertEqual(507, self.upload(client, left + 1)[1])
            path, status, _ = self.upload(client, left)
            self.assertEqual(200, status)
            client.delete(path)
            lock = object_id(b"lock")
            self.assertEqual(200, client.post(f"/alice/laptop/locks/{lock}", b"lock").status)
            self.assertEqual(200, client.delete(f"/alice/laptop/locks/{lock}").status)
        self.assert_figures(server)
        server.stop()
        server = self.start()
        self.assert_figures(server)
        with server.client("alice", "secret") as client:
            self.assertEqual(507, self.upload(client, 1)[1])
            self.succeed("empty", "alice/laptop", "--yes")
            wait_until(lambda: self.upload(client, 500_000)[1] == 200, timeout_s=20)
        self.assert_figures(server)
        # A rule that is changed while the server runs counts at once.
        with server.client("alice", "secret") as client:
            while (got := self.upload(client, 500_000))[1] == 200:
                client.delete(got[0])
            self.policy.write_text(f"{POLICY}trash-counts = false\n")
            wait_until(lambda: self.upload(client, 500_000)[1] == 200, timeout_s=30)
            for path in paths[3:]:
                client.delete(path)
            self.assertEqual(200, self.upload(client, 500_000)[1])
        self.assert_figures(server)

    def test_does_not_count(self) -> None:
        """With trash-counts = false a deletion makes room at once."""
        self.policy.write_text(f"{POLICY}trash-counts = false\n")
        for _ in range(2):
            server = self.start()
            with server.client("alice", "secret") as client:
                client.create_repository("/alice/laptop/")
                paths = [self.upload(client, 1_000_000)[0] for _ in range(4)]
                for path in paths:
                    self.assertEqual(200, client.get(path).status)
                self.assertEqual(507, self.upload(client, 1_000_000)[1])
                for path in paths:
                    self.assertEqual(200, client.delete(path).status)
                    path, status, _ = self.upload(client, 1_000_000)
                    self.assertEqual(200, status)
                    client.delete(path)
            self.assert_figures(server)
            server.stop()

    def test_the_same_again(self) -> None:
        """An object that is deleted, uploaded and deleted again is in the trash once, and counts once."""
        server = self.start()
        with server.client("alice", "secret") as client:
            client.create_repository("/alice/laptop/")
            body = random_bytes(1, 700_000)
            path = f"/alice/laptop/data/{object_id(body)}"
            for _ in range(12):
                wait_until(lambda: client.post(path, body).status == 200, timeout_s=20)
                self.assertEqual(200, client.delete(path).status)
        self.assert_figures(server)

    def test_min_free(self) -> None:
        """A disk that is too full for an upload: the reason names the trash."""
        server = self.start()
        with server.client("alice", "secret") as client:
            client.create_repository("/alice/laptop/")
            path, _, _ = self.upload(client, 1 << 19)
            client.delete(path)
        server.stop()
        server = self.start("--min-free", "1000TiB")
        with server.client("alice", "secret") as client:
            _, status, reason = self.upload(client, 100)
            self.assertEqual(507, status)
            self.assertRegex(reason, r"; 512 KiB are in the trash until \d{4}-\d\d-\d\d or later$")
            self.assertTrue(reason.isascii() and reason.isprintable(), reason)


class SharedQuotaTests(QuotaTests):
    """The same with two workers."""

    every_server = TWO


class KillTests(TrashCase):
    """Servers and commands are killed at any moment, and no object is lost."""

    ROUNDS = int(os.environ.get("RESTICSERVER_TRASH_ROUNDS", "4"))

    def setUp(self) -> None:
        super().setUp()
        self.source = random.Random(7)
        #: The objects whose upload was acknowledged.
        self.stored: dict[str, bytes] = {}
        #: Those of them whose last deletion was acknowledged.
        self.deleted: set[str] = set()
        self.guard = threading.Lock()

    def assert_nothing_lost(self) -> None:
        """Each object is live or in the trash, never both, with the right content."""
        repository = self.data / "a"
        places: dict[str, list[str]] = {}
        for path in files_below(repository):
            name = path.rpartition("/")[2]
            if re.fullmatch(r"[0-9a-f]{64}", name):
                places.setdefault(name, []).append(path)
                self.assertEqual(name, hash_of_file(repository / path))
        for name in self.stored:
            self.assertEqual(1, len(places.get(name, [])), (name, places.get(name)))
            if name in self.deleted:
                self.assertIn(".trash/", places[name][0])

    def rage(self, server: ServerProcess, kill_after_s: float) -> None:
        """Upload and delete in three threads until the server is killed."""

        def act(seed: int) -> None:
            source = random.Random(seed)
            try:
                with server.client() as client:
                    while True:
                        body = source.randbytes(source.randrange(1, 3000))
                        name = object_id(body)
                        if client.post(f"/a/data/{name}", body).status != 200:
                            return
                        with self.guard:
                            self.stored[name] = body
                        if source.random() < 0.8 and client.delete(f"/a/data/{name}").status == 200:
                            with self.guard:
                                self.deleted.add(name)
            except Exception:
                return  # the server was killed

        threads = [threading.Thread(target=act, args=(self.source.getrandbits(30),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(kill_after_s)
        workers = server.workers()
        server.kill()
        for thread in threads:
            thread.join()
        wait_until(lambda: not any(map(is_running, workers)), what="the workers' end")

    def test_server(self) -> None:
        """C{kill -9} while objects are uploaded and deleted."""
        for number in range(self.ROUNDS):
            server = start_server(self, self.data, "--delete-delay", "1h")
            if not number:
                with server.client() as client:
                    client.create_repository("/a/")
            self.rage(server, self.source.uniform(0.05, 0.6))
            self.assert_nothing_lost()
        self.assertTrue(self.deleted)

    def test_command(self) -> None:
        """C{kill -9} of a restore, again and again, beside a server from which others delete; the last one does the rest."""
        server = start_server(self, self.data, "--delete-delay", "1h")
        with server.client() as client:
            client.create_repository("/a/")
            bodies = [b"%d" % number for number in range(1500)]
            for body in bodies:
                name = client.save("data", body, "/a/")
                self.stored[name] = body
                self.assertEqual(200, client.delete(f"/a/data/{name}").status)
            for _ in range(self.ROUNDS):
                with subprocess.Popen(
                    self.command_line("restore", "a"), **self.how(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
                ) as command:
                    before = len(self.trashed())
                    wait_until(
                        lambda before=before, command=command: (  # type: ignore[misc]
                            len(self.trashed()) < before or command.poll() is not None
                        )
                    )
                    time.sleep(self.source.uniform(0, 0.02))
                    command.kill()
                self.assert_nothing_lost()
                for name in list(client.list("data", "/a/"))[:20]:
                    self.assertEqual(200, client.delete(f"/a/data/{name}").status)
            self.assertIn("restored ", self.succeed("restore", "a"))
            self.assertEqual(set(self.stored), set(client.list("data", "/a/")))
        self.assert_nothing_lost()
        self.assertEqual(set(), self.trashed())


class SharedKillTests(KillTests):
    """The same with two workers."""

    every_server = TWO


class ReadOnlyTests(TrashCase):
    """C{--read-only} with a trash."""

    def test_locks(self) -> None:
        """Locks are made and removed; nothing else goes to the trash or comes from it."""
        server = start_server(self, self.data, "--delete-delay", "1h")
        with server.client() as client:
            client.create_repository("/a/")
            name = client.save("data", b"body", "/a/")
            client.delete(f"/a/data/{name}")
            live = client.save("data", b"live", "/a/")
        server.stop()
        before = self.trashed()
        day = next((self.data / "a/.trash").glob("*/keep-*")).parent
        next(day.glob("keep-*")).rename(day / "keep-1s")
        time.sleep(1.1)  # its time is over
        server = start_server(self, self.data, "--read-only")
        with server.client() as client:
            lock = client.save("locks", b"lock", "/a/")
            self.assertEqual(200, client.delete(f"/a/locks/{lock}").status)
            self.assertEqual(403, client.delete(f"/a/data/{live}").status)
        time.sleep(2)
        self.assertEqual(before, self.trashed())
        self.assertIsNone(server.said("Traceback"))

    def test_state_is_not_touched(self) -> None:
        """The command reads the server's state and leaves it alone, also as root."""
        server = start_server(self, self.data, "--delete-delay", "1h", "--max-size", "1MiB")
        server.wait_for_line("Quota initialized")
        with server.client() as client:
            client.create_repository("/a/")
            client.delete(f"/a/data/{client.save('data', b'body', '/a/')}")
        server.stop()
        own = self.data / ".rest-server"
        before = {path.name: path.read_bytes() for path in own.iterdir()}
        self.succeed("list")
        self.succeed("restore", "a")
        self.assertEqual(before, {path.name: path.read_bytes() for path in own.iterdir()})


class FullDiskTests(TrashCase):
    """A disk that is full, of what lies in the trash."""

    @skipped(why_no_tmpfs())
    def test_full(self) -> None:
        """What is deleted gives no room, and the refusal names it; emptying gives room at once."""
        server, self.data = start_on_tmpfs(self, str(24 * MIB), "--delete-delay", "1h")
        with server.client() as client:
            client.create_repository("/a/")
            names = []
            for number in range(100):
                body = random_bytes(number, 900_000)
                reply = client.post(f"/a/data/{object_id(body)}", body)
                if reply.status != 200:
                    break
                names.append(object_id(body))
            self.assertEqual(507, reply.status)
            self.assertNotIn("trash", reply.reason)
            for number in range(100, 100_000):
                if client.post("/a/data/" + object_id(b"%d" % number), b"%d" % number).status != 200:
                    break
            for name in names:
                self.assertIn(client.delete(f"/a/data/{name}").status, (200, 507))
            deleted = len(names) - len(set(names) & set(client.list("data", "/a/")))
            self.assertEqual(deleted, len(self.trashed()))
            self.assertGreater(deleted, 0)
            # What a refusal says about the trash is looked up once in ten seconds.
            found = wait_until(lambda: self.refusal(client), timeout_s=20)
            self.assertRegex(found, r"MiB are in the trash until \d{4}-\d\d-\d\d or later$")
            self.assertIn("removed ", self.succeed("empty", "a", "--yes"))
            client.save("data", random_bytes(1, 900_000), "/a/")
        self.assertIsNone(server.said("Traceback"))

    def refusal(self, client: Client) -> str:
        """Why an upload is refused, once that names the trash."""
        body = random_bytes(7, 990_000)
        reply = client.post(f"/a/data/{object_id(body)}", body)
        self.assertEqual(507, reply.status)
        return reply.reason if "trash" in reply.reason else ""


class ClockTests(TrashCase):
    """The system's time is wrong for a while."""

    @skipped(None if LIBRARY else "libfaketime is not installed")
    def test_step(self) -> None:
        """A step of some days ahead removes nothing, and neither does the step back."""
        offset = self.scratch / "offset"
        offset.write_text("+0\n")
        assert LIBRARY is not None
        faketime = {
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        server = start_server(self, self.data, "--delete-delay", "1h", extra=faketime)
        with server.client() as client:
            client.create_repository("/a/")
            name = client.save("data", b"body", "/a/")
            client.delete(f"/a/data/{name}")
            new = self.scratch / "new"
            new.write_text("+3d\n")
            os.replace(new, offset)
            server.wait_for_line(
                "the clock was set ahead by 259[0-9]{3} s: nothing is removed from the trash for a day"
            )
            time.sleep(1)
            self.assertEqual(1, len(self.trashed()))
        server.stop()
        # The retention of what was deleted since the start is longer by the step, also for a server that starts then.
        server = start_server(self, self.data, "--delete-delay", "1h", extra=faketime)
        with server.client() as client:
            # The expiry looks at once, so it has looked when this was answered some times.
            for _ in range(20):
                self.assertEqual(404, client.get(f"/a/data/{name}").status)
        time.sleep(1)
        self.assertEqual(1, len(self.trashed()))
        self.assertIsNone(server.said("Traceback"))
