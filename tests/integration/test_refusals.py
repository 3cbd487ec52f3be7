"""
Refused uploads on real servers: who is refused, why, what the client is told, and that nobody has to search for it: a line, an
event, the metrics, the page, C{status.json} and C{rest-server status} all say so.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Client, Reply, object_id, random_bytes
from ..support.htpasswd import sha_line
from ..support.quota import start_on_tmpfs, why_no_tmpfs
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, installed, server_environment, start_server
from ..support.waiting import wait_until
from ..telemetry.test_metrics import parsed, series

MIB = 1 << 20
POLICY = """
[[rule]]
users = ["reader"]
repositories = ["alice"]
rights = "read"

[[rule]]
users = ["*"]
repositories = ["{user}", "{user}/*"]
rights = "full"
create = true

[users.alice]
quota = "4MiB"

[users.carol]
max-objects = 2
"""
SIZE = r"[0-9][0-9.]* (?:bytes?|KiB|MiB|GiB)"


def in_chunks(body: bytes) -> Iterator[bytes]:
    """A body whose length nobody knows before."""
    for offset in range(0, len(body), 256 << 10):
        yield body[offset : offset + (256 << 10)]


def fill(data: Path) -> None:
    """Take all that is left of the disk on which a data directory lies."""
    with open(data.parent / "others", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


class RefusalCase(SynchronousTestCase):
    """A server that says what it refuses in every way there is."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 200 * MIB)
        self.data = self.scratch / "data"
        self.output = self.scratch / "events"
        self.htpasswd = self.scratch / "htpasswd"
        users = ("alice", "bob", "carol", "reader", "metrics")
        self.htpasswd.write_text("".join(sha_line(user, user) for user in users))
        self.policy = self.scratch / "policy.toml"
        self.policy.write_text(POLICY)

    def flags(self, *more: str) -> tuple[str, ...]:
        """What every server here has."""
        on_event = shlex.join(("/bin/sh", "-c", f"cat >> {shlex.quote(str(self.output))}"))
        files = ("--htpasswd-file", str(self.htpasswd), "--policy", str(self.policy))
        return (*files, "--prometheus", "--on-event", on_event, *more)

    def start(self, *more: str) -> ServerProcess:
        """Start it."""
        return start_server(self, self.data, *self.flags(*more))

    def client(self, server: ServerProcess, user: str) -> Client:
        """A connection of a user whose password is the name."""
        client = Client(("127.0.0.1", server.port), user, user)
        self.addCleanup(client.close)
        return client

    def told(self) -> list[dict[str, Any]]:
        """The events so far."""
        return [json.loads(line) for line in self.output.read_text().splitlines()] if self.output.exists() else []

    def refusals_told(self) -> list[dict[str, Any]]:
        """Those of refused uploads."""
        return [event for event in self.told() if event["event"] in ("quota-reached", "disk-full", "upload-refused")]

    def status(self, server: ServerProcess, user: str = "metrics") -> dict[str, Any]:
        """What C{status.json} says."""
        reply = self.client(server, user).get("/-/status.json")
        self.assertEqual(200, reply.status, reply)
        return dict(json.loads(reply.body))

    def page(self, server: ServerProcess, user: str = "metrics") -> str:
        """The page."""
        return self.client(server, user).get("/-/status").body.decode()

    def metric(self, server: ServerProcess, name: str, **labels: str) -> float:
        """A sample."""
        return parsed(self.client(server, "metrics").get("/metrics").body)[series(name, **labels)]

    def command(self, server: ServerProcess, user: str = "metrics") -> tuple[int, str]:
        """What C{rest-server status} says."""
        done = subprocess.run(
            [installed("rest-server"), "status", server.url, "--user", user],
            input=f"{user}\n",
            capture_output=True,
            text=True,
            cwd=self.scratch,
            env=server_environment(),
        )
        self.assertEqual("", done.stderr)
        return done.returncode, done.stdout

    def wait_until_counted(self, server: ServerProcess) -> None:
        """What is stored is known."""
        wait_until(lambda: self.status(server)["counted"], what="all is counted")

    def refused(self, reply: Reply, pattern: str) -> None:
        """It is 507, with a reason like this that every client can print."""
        self.assertEqual(507, reply.status, reply)
        self.assertRegex(reply.reason, f"^{pattern}$")
        self.assertTrue(
            reply.reason.isascii() and reply.reason.isprintable() and len(reply.reason) <= 200, reply.reason
        )

    def assert_seen(
        self, server: ServerProcess, kind: str, reason: str, repository: str, user: str, words: str, number: float
    ) -> None:
        """A refusal is in the log, the events, the metrics, the JSON, the page and the command's table."""
        line = server.wait_for_line(rf"refused an upload to repository {re.escape(repository)}: {words}")
        same = [one for one in server.err if one == line[0] or one == line.string]
        self.assertEqual(1, len(same), server.err)
        (event,) = wait_until(
            lambda: [one for one in self.refusals_told() if (one["repository"], one["reason"]) == (repository, reason)],
            what=f"an event, {self.told()}",
        )
        self.assertEqual(
            (kind, user, repository, reason), tuple(event[key] for key in ("event", "user", "repository", "reason"))
        )
        self.assertRegex(event["message"], words)
        self.assertEqual(number, self.metric(server, "rest_server_uploads_refused_total", reason=reason))

        def of_this() -> list[Any]:
            """In the status, which may be a moment old."""
            found.update(self.status(server))
            refused = [
                each for each in found["refusals"] if (each["repository"], each["reason"]) == (repository, reason)
            ]
            return [each for each in refused if each["number"] == number]

        found: dict[str, Any] = {}
        (one,) = wait_until(of_this, what=f"{reason} in the status")
        self.assertEqual((user, number), (one["user"], one["number"]))
        self.assertRegex(one["message"], words)
        said = f"{number:.0f} upload{'s' if number > 1 else ''} refused"
        (of_user,) = [each for each in found["users"] if each["user"] == user]
        self.assertIn(said, "; ".join(of_user["concerns"]))
        page = self.page(server)
        self.assertNotIn("all is well", page)
        self.assertIn(said, page)
        code, text = self.command(server)
        self.assertEqual(1, code, text)
        self.assertIn(said, text)


class QuotaTests(RefusalCase):
    """Quotas."""

    def test_refused(self) -> None:
        """
        Of a user's quota: with a length, in chunks, and as often as a client likes. The line and the event come once, the
        number counts all.
        """
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/laptop/")
        self.wait_until_counted(server)
        self.assertEqual(0, self.metric(server, "rest_server_uploads_refused_total", reason="quota"))
        stored = random_bytes(1, 3 * MIB)
        alice.save("data", stored, "/alice/laptop/")
        body = random_bytes(2, 2 * MIB)
        path = f"/alice/laptop/data/{object_id(body)}"
        self.refused(alice.post(path, body), "quota of 4 MiB for alice exceeded: upload of 2 MiB, 1 MiB left")
        for _ in range(5):
            reply = self.client(server, "alice").post(path, in_chunks(body))
            self.refused(reply, rf"quota of 4 MiB for alice exceeded: upload of {SIZE} so far, 1 MiB left")
        self.assert_seen(
            server, "quota-reached", "quota", "alice/laptop", "alice", "quota of 4 MiB for alice exceeded: ", 6
        )
        lines = [line for line in server.err if "refused an upload" in line]
        self.assertEqual(1, len(lines), lines)
        self.assertEqual(1, len(self.refusals_told()), self.told())
        self.assertIsNone(server.said("Traceback"))

    def test_config(self) -> None:
        """C{config} is an upload like others, and so is a first object of a repository that is not there yet."""
        self.policy.write_text(POLICY.replace("4MiB", "100"))
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/laptop/")
        self.wait_until_counted(server)
        reply = alice.post("/alice/laptop/config", bytes(155))
        self.refused(reply, "quota of 100 bytes for alice exceeded: upload of 155 bytes, 100 bytes left")
        self.assert_seen(server, "quota-reached", "quota", "alice/laptop", "alice", "quota of 100 bytes for alice", 1)

    def test_objects(self) -> None:
        """A limit of objects says how many are left, and not of bytes."""
        server = self.start()
        carol = self.client(server, "carol")
        carol.create_repository("/carol/")
        self.wait_until_counted(server)
        for number in range(2):
            carol.save("data", b"%d" % number, "/carol/")
        reply = carol.post(f"/carol/data/{object_id(b'x')}", b"x")
        self.refused(reply, "quota of 2 objects for carol exceeded: upload of 1 object, 0 left")
        self.assert_seen(server, "quota-reached", "quota", "carol", "carol", "quota of 2 objects for carol exceeded", 1)

    def test_max_size(self) -> None:
        """C{--max-size}."""
        server = self.start("--max-size", "2MiB")
        bob = self.client(server, "bob")
        bob.create_repository("/bob/")
        self.wait_until_counted(server)
        body = random_bytes(1, 3 * MIB)
        reply = bob.post(f"/bob/data/{object_id(body)}", body)
        self.refused(reply, "quota of 2 MiB for this server exceeded: upload of 3 MiB, 2 MiB left")
        self.assert_seen(server, "quota-reached", "quota", "bob", "bob", "quota of 2 MiB for this server exceeded", 1)

    def test_above_without_an_upload(self) -> None:
        """
        A user above the quota needs attention, though nobody has tried to upload anything: the issue's user at 211 % of it.
        """
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/laptop/")
        alice.create_repository("/alice/desktop/")
        self.wait_until_counted(server)
        alice.save("data", random_bytes(1, 2 * MIB), "/alice/laptop/")
        alice.save("data", random_bytes(2, 3 * MIB // 2), "/alice/desktop/")
        self.policy.write_text(POLICY.replace("4MiB", "1736704"))
        server.signal(signal.SIGHUP)
        server.wait_for_line("Reloaded policy")

        def concerns() -> list[str]:
            """What the status says of her, which may be a moment old."""
            return [
                words for each in self.status(server)["users"] if each["user"] == "alice" for words in each["concerns"]
            ]

        wait_until(lambda: concerns() == ["quota 211 % used"], what=concerns)
        page = self.page(server)
        self.assertNotIn("all is well", page)
        self.assertIn("1 user needs attention", page)
        self.assertIn("quota 211 % used", page)
        code, text = self.command(server)
        self.assertEqual(1, code, text)
        self.assertRegex(text, r"(?m)^USER +SIZE +QUOTA")
        self.assertRegex(text, r"(?m)^alice +3\.50? MiB +211 % +quota 211 % used$")
        self.assertEqual([], self.told()[2:], "no upload, no event")
        # She sees it too.
        code, text = self.command(server, "alice")
        self.assertEqual(1, code, text)

    def test_after_a_restart(self) -> None:
        """What was refused is known after a restart."""
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/laptop/")
        alice.post("/alice/laptop/config", bytes(155))
        self.wait_until_counted(server)
        body = random_bytes(2, 5 * MIB)
        self.assertEqual(507, alice.post(f"/alice/laptop/data/{object_id(body)}", body).status)
        # With workers another one may be asked, a moment before it can know.
        before = wait_until(lambda: self.status(server)["refusals"], what="what was refused")
        self.assertEqual(1, len(before))
        alice.close()
        self.assertEqual(0, server.stop())
        server = self.start()
        (one,) = wait_until(lambda: self.status(server)["refusals"], what="what was refused")
        keys = ("number", "user", "repository", "reason")
        self.assertEqual((1, "alice", "alice/laptop", "quota"), tuple(one[key] for key in keys))
        self.assertLess(abs(before[0]["last_s"] - one["last_s"]), 5)
        code, text = self.command(server)
        self.assertEqual(1, code, text)
        self.assertIn("1 upload refused", text)

    def test_others(self) -> None:
        """Who may read a repository of another's learns nothing of that one's refusals."""
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/")
        alice.post("/alice/config", b"x")
        self.wait_until_counted(server)
        body = random_bytes(2, 5 * MIB)
        self.assertEqual(507, alice.post(f"/alice/data/{object_id(body)}", body).status)
        wait_until(lambda: len(self.status(server, "alice")["refusals"]) == 1, what="what was refused")
        reader = self.status(server, "reader")
        self.assertEqual(["alice"], [each["repository"] for each in reader["repositories"]])
        self.assertNotIn("4 MiB", json.dumps(reader))
        self.assertEqual([], reader["refusals"])

    def test_rights(self) -> None:
        """
        An upload that the rules refuse is visible too. It needs nobody's attention: the rules did what they are for.
        """
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/")
        alice.post("/alice/config", b"x")
        self.wait_until_counted(server)
        reader = self.client(server, "reader")
        for _ in range(3):
            self.assertEqual(403, reader.post(f"/alice/data/{object_id(b'x')}", b"x").status)
        server.wait_for_line("refused an upload to repository alice: you may only read this repository")
        self.assertEqual(1, len([line for line in server.err if "refused an upload" in line]), server.err)
        self.assertEqual(3, self.metric(server, "rest_server_uploads_refused_total", reason="rights"))
        self.assertEqual(1, len(wait_until(self.refusals_told)))
        self.assertEqual(0, self.command(server)[0])
        self.assertIn("3 uploads refused", self.command(server)[1])

    def test_content(self) -> None:
        """Bytes that are not what their name says: damaged on the way, or somebody who tries to replace what is there."""
        server = self.start()
        alice = self.client(server, "alice")
        alice.create_repository("/alice/")
        self.wait_until_counted(server)
        self.assertEqual(400, alice.post(f"/alice/data/{object_id(b'x')}", b"y").status)
        alice.save("data", b"x", "/alice/")
        self.assertEqual(403, alice.post(f"/alice/data/{object_id(b'x')}", b"y").status)
        self.assert_seen(
            server, "upload-refused", "content", "alice", "alice", "the hash of the content does not match", 2
        )


class SharedQuotaTests(QuotaTests):
    """The same with workers."""

    every_server = ("--workers", "2")


class DiskTests(RefusalCase):
    """A disk that is full, and what must stay free of one."""

    skip = why_no_tmpfs()

    def begin(self, *more: str) -> tuple[ServerProcess, Path]:
        """A server on a small disk, with a repository of bob's."""
        server, data = start_on_tmpfs(self, "16m", *self.flags(*more))
        bob = self.client(server, "bob")
        bob.create_repository("/bob/")
        self.assertEqual(200, bob.post("/bob/config", b"x").status)
        self.wait_until_counted(server)
        return server, data

    def test_full(self) -> None:
        """ENOSPC: before the first byte of a body and in the middle of it."""
        server, data = self.begin()
        bob = self.client(server, "bob")
        body = random_bytes(1, 20 * MIB)
        path = f"/bob/data/{object_id(body)}"
        self.refused(bob.post(path, body), rf"no space left on the server's disk: upload of 20 MiB, {SIZE} left")
        reply = self.client(server, "bob").post(path, in_chunks(body))
        self.refused(reply, rf"no space left on the server's disk: upload of {SIZE} so far, {SIZE} left")
        # All of it, as df has it.

        def small_one() -> Reply | None:
            # Those before may still have something of the disk, for a moment.
            fill(data)
            reply = self.client(server, "bob").post(f"/bob/locks/{object_id(b'x' * 9000)}", b"x" * 9000)
            return reply if reply.status != 200 else None

        small = wait_until(small_one, what="a full disk")
        assert small is not None
        self.refused(small, r"no space left on the server's disk: upload of 8\.78 KiB, 0 bytes left")
        self.assert_seen(server, "disk-full", "disk", "bob", "bob", "no space left on the server's disk", 3)

    def test_create(self) -> None:
        """C{restic init} on a full disk."""
        server, data = self.begin()
        fill(data)
        # A directory of tmpfs takes no block of its own, so this is for its inodes.
        reply = self.client(server, "carol").post("/carol/?create=true")
        if reply.status == 507:
            server.wait_for_line("refused to create repository carol: no space left")

    def test_min_free(self) -> None:
        """C{--min-free}: the reason says what must stay free, what was sent and what is left above that."""
        server, _ = self.begin("--min-free", "8MiB")
        bob = self.client(server, "bob")
        body = random_bytes(1, 10 * MIB)
        path = f"/bob/data/{object_id(body)}"
        words = r"8 MiB of the server's disk must stay free: upload of"
        self.refused(bob.post(path, body), rf"{words} 10 MiB, 7\.[0-9]+ MiB left")
        reply = self.client(server, "bob").post(path, in_chunks(body))
        self.refused(reply, rf"{words} {SIZE} so far, 7\.[0-9]+ MiB left")
        self.assert_seen(server, "disk-full", "min-free", "bob", "bob", words, 2)


class SharedDiskTests(DiskTests):
    """The same with workers."""

    every_server = ("--workers", "2")
