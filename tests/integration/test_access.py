"""
Who may do what, at a running server: answers to strangers and to those who may not, files that change, guessing.
"""

from __future__ import annotations

import os
import signal
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Reply, object_id
from ..support.htpasswd import bcrypt_line, sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import files_below, scratch_directory
from ..support.server import ServerProcess, installed, server_environment, start_server
from ..support.skipping import skipped
from ..support.waiting import PATIENCE_S, wait_until

#: A file that is read every ten seconds, with some patience for a busy machine.
RELOADED_S = PATIENCE_S

POLICY = """
[groups]
admins = ["root"]

[[rule]]
users = ["@admins"]
repositories = ["**"]
rights = "full"
create = true
delete-repository = true

[[rule]]
users = ["auditor"]
repositories = ["**"]
rights = "read"

[[rule]]
users = ["*"]
repositories = ["{user}", "{user}/*"]
rights = "append"
create = true
"""


class AccessCase(SynchronousTestCase):
    """A server with users root, alice, bob and auditor, whose passwords are their names."""

    def setUp(self) -> None:
        self.directory = scratch_directory(self, 100 << 20)
        self.data = self.directory / "data"
        self.users = self.directory / "users"
        self.users.write_text("".join(sha_line(user, user) for user in ("root", "alice", "bob", "auditor")))

    def start(self, *flags: str) -> ServerProcess:
        """Start it."""
        return start_server(self, self.data, "--htpasswd-file", str(self.users), *flags)

    def ask(
        self,
        server: ServerProcess,
        user: str | None,
        method: str,
        path: str,
        body: bytes | None = None,
        /,
        password: str | None = None,
        **headers: str,
    ) -> Reply:
        """One request on a connection of its own; underscores in header names stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with server.client(user, user if password is None and user else password or "") as client:
            return client.request(method, path, body, named)


class StrangersTests(AccessCase):
    """PROTOCOL: 401 with a challenge for those who are not known, 403 for those who may not."""

    def test_strangers(self) -> None:
        """Every method and path, there or not, answers the same to a stranger: nothing can be learnt."""
        server = self.start("--private-repos")
        self.assertEqual(200, self.ask(server, "alice", "POST", "/alice/?create=true", b"").status)
        name = object_id(b"x")
        answers = set()
        for user, password in ((None, ""), ("alice", "wrong"), ("nobody", "x"), ("", ""), ("a b", "x")):
            for method, path in (
                ("GET", "/"),
                ("GET", "/alice/config"),
                ("HEAD", "/bob/config"),
                ("GET", "/alice/data/"),
                ("GET", f"/alice/data/{name}"),
                ("POST", f"/alice/data/{name}"),
                ("POST", "/alice/?create=true"),
                ("DELETE", f"/alice/data/{name}"),
                ("DELETE", "/alice/"),
                ("PUT", "/alice/config"),
                ("GET", "/alice/../bob/config"),
                ("GET", "/no/such/path/at/all"),
            ):
                reply = self.ask(server, user, method, path, b"" if method == "POST" else None, password)
                challenge = reply.headers["WWW-Authenticate"]
                body = reply.body if method != "HEAD" else f"{reply.reason}\n".encode()
                answers.add((reply.status, reply.reason, challenge, body))
                # Without a name nobody tries to log in: that says so. Otherwise nothing tells which of both is wrong.
                self.assertEqual("wrong user or password" if user else "authentication required", reply.reason)
        ((status, challenge),) = {(status, challenge) for status, _, challenge, _ in answers}
        self.assertEqual((401, 2), (status, len(answers)))
        self.assertRegex(challenge, r'^Basic realm="[^"]+", charset="UTF-8"$')

    def test_known_and_not_allowed(self) -> None:
        """403 with a reason, never 404 or 401: also where there is nothing."""
        server = self.start("--private-repos", "--append-only")
        self.ask(server, "alice", "POST", "/alice/?create=true", b"")
        for method, path, status in (
            ("GET", "/bob/config", 403),
            ("GET", "/bob/data/", 403),
            ("HEAD", "/bob/config", 403),
            ("POST", "/bob/?create=true", 403),
            ("POST", f"/bob/data/{object_id(b'')}", 403),
            ("DELETE", f"/bob/locks/{object_id(b'')}", 403),
            ("DELETE", f"/alice/data/{object_id(b'')}", 403),
            ("DELETE", "/alice/", 405),
            ("GET", "/alice/config", 404),
            ("GET", "/config", 403),
            ("DELETE", f"/alice/locks/{object_id(b'')}", 200),
            ("GET", "/ALICE/config", 403),
            ("GET", "/alice%2fconfig", 404),
            ("GET", "/alice%00/config", 404),
            ("GET", "/%2e%2e/alice/config", 404),
        ):
            reply = self.ask(server, "alice", method, path, b"" if method == "POST" else None)
            self.assertEqual(status, reply.status, f"{method} {path}")
            self.assertNotEqual("", reply.reason)


class PolicyTests(AccessCase):
    """C{--policy}."""

    def setUp(self) -> None:
        super().setUp()
        self.policy = self.directory / "policy.toml"
        self.policy.write_text(POLICY)

    def status(self, server: ServerProcess, user: str, method: str, path: str) -> int:
        """The status of one request."""
        return self.ask(server, user, method, path, b"" if method == "POST" else None).status

    def test_rules(self) -> None:
        """Rights for users and groups; deleting a repository needs a right of its own and takes all of it."""
        server = self.start("--policy", str(self.policy))
        for user, method, path, status in (
            ("alice", "POST", "/alice/?create=true", 200),
            ("alice", "POST", "/alice/pc/?create=true", 200),
            ("alice", "POST", "/bob/?create=true", 403),
            ("auditor", "POST", "/auditor/?create=true", 403),
            ("auditor", "GET", "/alice/data/", 200),
            ("auditor", "POST", f"/alice/data/{object_id(b'')}", 403),
            ("auditor", "POST", f"/alice/locks/{object_id(b'')}", 200),
            ("auditor", "DELETE", f"/alice/locks/{object_id(b'')}", 200),
            ("alice", "POST", f"/alice/data/{object_id(b'')}", 200),
            ("alice", "DELETE", f"/alice/data/{object_id(b'')}", 403),
            ("alice", "DELETE", "/alice/", 403),
            ("bob", "GET", "/alice/data/", 403),
            ("root", "DELETE", "/alice/pc/", 200),
            ("root", "DELETE", "/alice/pc/", 404),
            ("root", "DELETE", "/alice/", 200),
            ("root", "GET", "/alice/data/", 404),
        ):
            self.assertEqual(status, self.status(server, user, method, path), f"{user} {method} {path}")
        self.assertEqual(set(), files_below(self.data))
        self.assertEqual([".rest-server"], os.listdir(self.data))

    def test_reloaded(self) -> None:
        """A change holds within seconds, or at once by SIGHUP; a broken file is named and changes nothing."""
        server = self.start("--policy", str(self.policy))
        self.assertEqual(403, self.status(server, "bob", "POST", "/shared/?create=true"))
        self.policy.write_text(
            POLICY + '\n[[rule]]\nusers = ["bob"]\nrepositories = ["shared"]\nrights = "full"\ncreate = true\n'
        )
        wait_until(
            lambda: self.status(server, "bob", "POST", "/shared/?create=true") == 200, RELOADED_S, "the changed policy"
        )
        self.policy.write_text(POLICY.replace('"read"', '"all"'))
        server.signal(signal.SIGHUP)
        line = server.wait_for_line("could not reload the policy .*rule 2: rights").string
        self.assertIn(str(self.policy), line)
        self.assertEqual(200, self.status(server, "bob", "GET", "/shared/data/"))
        self.policy.write_text(POLICY)
        server.signal(signal.SIGHUP)
        wait_until(lambda: self.status(server, "bob", "GET", "/shared/data/") == 403, what="the old policy")

    def test_broken_at_the_start(self) -> None:
        """One line with file and key, and no server."""
        self.policy.write_text('[[rule]]\nusers = ["*"]\nrepositories = ["**"]\nrights = "all"\n')
        server = start_server(
            self, self.data, "--htpasswd-file", str(self.users), "--policy", str(self.policy), wait=False
        )
        self.assertNotEqual(0, server.wait())
        (line,) = server.err
        self.assertIn(str(self.policy), line)
        self.assertIn("rights", line)

    def test_stricter_wins(self) -> None:
        """What a flag forbids no policy allows, and the other way round."""
        server = self.start("--policy", str(self.policy), "--append-only")
        self.assertEqual(200, self.status(server, "root", "POST", "/x/?create=true"))
        self.assertEqual(403, self.status(server, "root", "DELETE", "/x/"))
        self.assertEqual(403, self.status(server, "root", "DELETE", f"/x/data/{object_id(b'')}"))
        self.assertEqual(403, self.status(server, "bob", "GET", "/x/data/"))

    def test_check_says_what_the_server_does(self) -> None:
        """C{rest-server policy check} decides as the server with the same flags."""
        server = self.start("--policy", str(self.policy), "--append-only")
        self.status(server, "alice", "POST", "/alice/?create=true")
        checked = 0
        for user in ("root", "alice", "bob", "auditor"):
            for method, path in (
                ("GET", "/alice/config"),
                ("POST", f"/alice/data/{object_id(b'y')}"),
                ("DELETE", f"/alice/data/{object_id(b'z')}"),
                ("DELETE", f"/alice/locks/{object_id(b'z')}"),
                ("GET", "/shared/data/"),
            ):
                command = [installed("rest-server"), "policy", "check", "--policy", str(self.policy), "--append-only"]
                done = subprocess.run([*command, user, method, path], capture_output=True, text=True, timeout=60)
                allowed = self.ask(server, user, method, path, b"y" if method == "POST" else None).status != 403
                self.assertEqual(allowed, done.stdout.startswith("allowed"), (user, method, path, done))
                checked += 1
        self.assertEqual(20, checked)

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic_reads_only(self) -> None:
        """Real restic as a user who may only read: restore and check work, backup is refused at once."""
        server = self.start("--policy", str(self.policy))
        make_tree(self.directory / "tree", seed=2, size_bytes=1 << 20)

        def restic(user: str) -> Restic:
            home = self.directory / user
            home.mkdir(exist_ok=True)
            return Restic(self, f"http://{user}:{user}@127.0.0.1:{server.port}/alice/", home)

        restic("alice").create()
        restic("alice").succeed("backup", str(self.directory / "tree"))
        auditor = restic("auditor")
        auditor.succeed("check", "--read-data")
        auditor.succeed("restore", "latest", "--target", str(self.directory / "back"))
        self.assertEqual(1, len(auditor.snapshots()))


class ReadOnlyTests(AccessCase):
    """C{--read-only}."""

    def test_read_only(self) -> None:
        """Nothing changes but locks."""
        with self.start().client("alice", "alice") as client:
            client.create_repository()
            name = client.save("data", b"a pack")
        server = self.start("--read-only")
        with server.client("alice", "alice") as client:
            self.assertEqual(b"a pack", client.get(f"/data/{name}").body)
            for reply in (
                client.post(f"/data/{object_id(b'b')}", b"b"),
                client.post("/config", b"c"),
                client.delete(f"/data/{name}"),
                client.delete("/config"),
                client.post("/other/?create=true"),
            ):
                self.assertEqual(403, reply.status)
            self.assertEqual(405, client.delete("/").status)
            lock = client.save("locks", b"a lock")
            self.assertEqual(200, client.delete(f"/locks/{lock}").status)
        self.assertTrue(server.said("Read only mode enabled"))


class PrefixTests(AccessCase):
    """C{--proxy-prefix} and C{--max-depth}."""

    def test_prefix(self) -> None:
        """Only what is below the prefix is there."""
        server = start_server(self, self.data, "--proxy-prefix", "/backup", "--max-depth", "1")
        with server.client() as client:
            client.create_repository("/backup/alice/")
            self.assertEqual(404, client.post("/alice/?create=true").status)
            self.assertEqual(404, client.post("/backup/alice/pc/?create=true").status)
            client.save("keys", b"a key", "/backup/alice/")
        self.assertTrue((self.data / "alice" / "keys").is_dir())
        self.assertFalse((self.data / "backup").exists())


class GuessingTests(AccessCase):
    """C{--auth-failures}."""

    def test_address_is_shut_out_and_known_users_are_not(self) -> None:
        """From one address behind a trusted proxy: 401, slowly 401, then 403; who was in before stays in."""
        server = self.start("--auth-failures", "2/minute", "--log", str(self.directory / "log"))
        here = {"X_Forwarded_For": "203.0.113.9"}
        self.assertEqual(404, self.ask(server, "alice", "GET", "/config", **here).status)
        statuses: list[int] = []
        # Two a minute are forgotten, so where this takes long there are some more.
        while statuses[-2:] != [403, 403] and len(statuses) < 40:
            password = f"wrong{len(statuses)}"
            statuses.append(self.ask(server, "bob", "GET", "/config", password=password, **here).status)
        self.assertEqual(([401] * 4, [403] * 2), (statuses[:4], statuses[-2:]), statuses)
        self.assertEqual(403, self.ask(server, "bob", "GET", "/config", **here).status)
        self.assertEqual(404, self.ask(server, "alice", "GET", "/config", **here).status)
        self.assertEqual(404, self.ask(server, "bob", "GET", "/config", X_Forwarded_For="203.0.113.10").status)
        self.assertEqual(404, self.ask(server, "auditor", "GET", "/config").status)
        server.wait_for_line("too many auth failures from 203.0.113.9: refused for a while")

        def failures() -> int:
            return sum("auth failure from 203.0.113.9 for user bob" in line for line in server.err)

        wait_until(lambda: failures() >= statuses.count(401), what="a line for each")
        self.assertEqual(statuses.count(401), failures())


class UserCommandTests(AccessCase):
    """C{rest-server user} beside a running server."""

    def run_user(self, *arguments: str, password: str = "") -> None:
        """Run it with a password on standard input."""
        done = subprocess.run(
            [installed("rest-server"), "user", *arguments, "--htpasswd-file", str(self.users)],
            input=password.encode(),
            capture_output=True,
            env=server_environment(),
            timeout=60,
        )
        self.assertEqual(0, done.returncode, done)

    def test_life(self) -> None:
        """A user who is added comes in, with a new password only by that, and when removed not at all."""
        server = self.start()

        def status(password: str) -> int:
            return self.ask(server, "carol", "GET", "/config", password=password).status

        self.assertEqual(401, status("first"))
        self.run_user("add", "carol", "--cost", "5", password="first\n")
        wait_until(lambda: status("first") == 404, RELOADED_S, "the new user")
        self.run_user("passwd", "carol", "--cost", "5", password="second\n")
        server.signal(signal.SIGHUP)
        wait_until(lambda: status("second") == 404, what="the new password")
        self.assertEqual(401, status("first"))
        self.run_user("delete", "carol")
        server.signal(signal.SIGHUP)
        wait_until(lambda: status("second") == 401, what="the removal")
        self.assertEqual(404, self.ask(server, "alice", "GET", "/config").status)

    def test_kinds_of_hashes(self) -> None:
        """The kinds that Apache's and OpenSSL's tools make; a bad line is named and breaks nobody."""
        lines = [bcrypt_line("bc", "secret"), "broken:$1$abc\n", "no colon\n"]
        for user, flag in (("apr", "-apr1"), ("five", "-5"), ("six", "-6")):
            made = subprocess.run(["openssl", "passwd", flag, "secret"], capture_output=True, text=True, check=True)
            lines.append(f"{user}:{made.stdout}")
        self.users.write_text("".join(lines))
        server = self.start()
        for user in ("bc", "apr", "five", "six"):
            self.assertEqual(404, self.ask(server, user, "GET", "/config", password="secret").status, user)
            self.assertEqual(401, self.ask(server, user, "GET", "/config", password="wrong").status, user)
        self.assertEqual(401, self.ask(server, "broken", "GET", "/config", password="secret").status)
        server.wait_for_line(r"Invalid htpasswd entry for broken\. \(\S+, line 2: ")
        server.wait_for_line(r"Invalid htpasswd entry in \S+, line 3, ignored: ")
