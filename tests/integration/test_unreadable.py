"""
Directories that the server cannot read or enter, beside repositories and inside of them: root's C{lost+found}, another user's
folder, a dead FUSE mount. They are skipped and logged once, and nothing else is different.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Client, object_id
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, installed, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until
from .test_metrics import unprivileged
from .test_volume_gone import _namespaces

TWO = ("--workers", "2")
MIB = 1 << 20

#: Mounts a FUSE file system whose program is gone at once, then runs what stands behind.
_DEAD_FUSE = """
import ctypes, os, sys
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"dead", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
os.close(fuse)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def content_below(prefix: str, size_bytes: int = 1000) -> bytes:
    """Bytes that are stored in this directory of C{data}."""
    number = 0
    while True:
        body = number.to_bytes(8, "big") * (size_bytes // 8)
        if object_id(body).startswith(prefix):
            return body
        number += 1


class UnreadableCase(SynchronousTestCase):
    """A data directory with a repository and what cannot be read beside it."""

    skip = None if shutil.which("setpriv") or os.geteuid() else "setpriv is not installed"
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.data.mkdir()

    def lock(self, relative: str, mode: int = 0) -> Path:
        """A directory that the server may not read."""
        path = self.data / relative
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        self.addCleanup(path.chmod, 0o700)
        return path

    def start(self, *flags: str, wrapper: tuple[str, ...] = ()) -> ServerProcess:
        """Start a server without root's privilege to read everything."""
        return start_server(self, self.data, "--no-auth", *flags, wrapper=(*wrapper, *unprivileged()))

    def usage(self, *flags: str) -> tuple[int, dict[str, Any], list[str]]:
        """C{rest-server usage} by the same user: its status, its JSON, the lines of its stderr."""
        done = subprocess.run(
            [*unprivileged(), installed("rest-server"), "usage", "--json", "--path", str(self.data), *flags],
            capture_output=True,
            text=True,
        )
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr.splitlines()

    def assert_said_once(self, server: ServerProcess, path: Path, reason: str = "Permission denied") -> None:
        """One line tells of this directory."""
        lines = [line for line in server.err if f"{path}:" in line]
        self.assertEqual(1, len(lines), server.err)
        self.assertIn(f"cannot read {path}: {reason}; it is skipped", lines[0])

    def assert_serves(self, client: Client, repository: str = "/alice/") -> None:
        """All that clients do works."""
        client.create_repository(repository)
        for number in range(20):
            client.save("data", b"%d" % number, repository)
        self.assertEqual(20, len(client.list("data", repository)))
        name = object_id(b"7")
        self.assertEqual(b"7", client.get(f"{repository}data/{name}").body)
        self.assertEqual(200, client.request("DELETE", f"{repository}data/{name}").status)
        self.assertEqual((200, b"ready\n"), (client.get("/-/ready").status, client.get("/-/ready").body))


class ForeignTests(UnreadableCase):
    """What is no repository of this server."""

    def test_start(self) -> None:
        """
        The server starts and does all its work, with and without a quota, metrics and a state file elsewhere; each
        directory is named in one line, however often it is counted.
        """
        foreign = [self.lock("lost+found"), self.lock("bob/private"), self.lock("listed", 0o444)]
        (self.data / "loop").symlink_to("loop")
        (self.data / "listed").chmod(0o700)
        (self.data / "listed" / "below").mkdir()
        (self.data / "listed").chmod(0o444)
        for flags in (
            (),
            ("--max-size", "1GiB"),
            ("--prometheus", "--state-dir", str(self.scratch / "state")),
            ("--max-size", "1GiB", "--prometheus", "--max-depth", "3", "--min-free", "1"),
        ):
            server = self.start(*flags, *self.every_server)
            with server.client() as client:
                self.assert_serves(client)
                if "--prometheus" in flags:
                    self.assertEqual(200, client.get("/metrics").status)
                    status = client.get("/-/status.json")
                    self.assertEqual(["alice"], [one["repository"] for one in json.loads(status.body)["repositories"]])
            self.assertEqual(0, server.stop(), server.err)
            for path in foreign:
                self.assert_said_once(server, path)
            self.assert_said_once(server, self.data / "loop", os.strerror(40))

    def test_usage(self) -> None:
        """What is skipped is named, and no failure: the repositories are counted as a whole."""
        server = self.start()
        with server.client() as client:
            client.create_repository("/alice/")
            client.save("data", b"stored", "/alice/")
        self.lock("lost+found")
        status, found, lines = self.usage()
        self.assertEqual([f"rest-server usage: skipped {self.data}/lost+found: Permission denied"], lines)
        self.assertEqual(0, status)
        self.assertEqual([{"path": f"{self.data}/lost+found", "reason": "Permission denied"}], found["skipped"])
        self.assertEqual([("alice", 6, True)], self.rows(found))

    def rows(self, found: dict[str, Any]) -> list[tuple[str, int, bool]]:
        """Name, size and whether that is complete, of each repository."""
        lines: list[dict[str, Any]] = found["repositories"]
        return [(str(one["repository"]), one["size_bytes"], one["complete"]) for one in lines]

    @skipped(_namespaces() or (None if os.access("/dev/fuse", os.R_OK | os.W_OK) else "there is no /dev/fuse"))
    def test_dead_fuse_mount(self) -> None:
        """The program behind a FUSE mount has died: every look at it is ENOTCONN."""
        mount_point = self.data / "cloud"
        mount_point.mkdir()
        wrapper = ("unshare", "--mount", "--propagation", "private", sys.executable, "-c", _DEAD_FUSE, str(mount_point))
        server = self.start("--max-size", "1GiB", "--prometheus", *self.every_server, wrapper=wrapper)
        with server.client() as client:
            self.assert_serves(client)
            reply = client.get("/cloud/data/")
            self.assertEqual(500, reply.status)
        self.assertEqual(0, server.stop())
        self.assert_said_once(server, mount_point, "Transport endpoint is not connected")

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """restic notices nothing."""
        self.lock("lost+found")
        server = self.start("--max-size", "1GiB", *self.every_server)
        restic = Restic(self, f"{server.url}/alice/", self.scratch)
        (self.scratch / "file").write_bytes(b"x" * 100_000)
        restic.create()
        restic.succeed("backup", str(self.scratch / "file"))
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))


class SharedForeignTests(ForeignTests):
    """The same with workers."""

    every_server = TWO


class RepositoryTests(UnreadableCase):
    """Directories inside of repositories."""

    LIMIT = 100_000

    def setUp(self) -> None:
        super().setUp()
        server = self.start("--max-size", str(self.LIMIT))
        server.wait_for_line("Quota initialized")
        self.inside = content_below("aa", 40_000)
        with server.client() as client:
            for repository in ("/alice/", "/bob/"):
                client.create_repository(repository)
            client.save("data", self.inside, "/alice/")
            client.save("data", b"bob's", "/bob/")
        self.assertEqual(0, server.stop())

    def assert_last_known(self, server: ServerProcess, locked: Path) -> None:
        """Uploads go on as far as the quota lets them, which counts what cannot be read as it was last known."""
        server.wait_for_line("Quota initialized")
        with server.client() as client:
            for repository in ("/alice/", "/bob/", "/carol/"):
                client.create_repository(repository)
                body = content_below("bb", 8_000) + repository.encode()
                reply = client.post(f"{repository}keys/{object_id(body)}", body)
                self.assertEqual(200, reply.status, f"{repository}: {reply.reason}")
            for _ in range(3):
                body = b"more than fits" * 4_000
                reply = client.post(f"/bob/data/{object_id(body)}", body)
                self.assertEqual(507, reply.status)
            self.assertEqual(200, client.get("/-/ready").status)
        self.assert_said_once(server, locked)

    def test_a_directory_of_data(self) -> None:
        """One of 256."""
        locked = self.lock("alice/data/aa")
        server = self.start("--max-size", str(self.LIMIT), *self.every_server)
        self.assert_last_known(server, locked)
        with server.client() as client:
            self.assertEqual(500, client.get(f"/alice/data/{object_id(self.inside)}").status)
            self.assertEqual(500, client.get("/alice/data/").status)
        self.assertEqual(0, server.stop())
        status, found, lines = self.usage()
        self.assertEqual(
            [
                f"rest-server usage: skipped {locked}: Permission denied",
                "rest-server usage: incomplete size: alice",
            ],
            lines,
        )
        self.assertEqual(1, status)
        rows = {one["repository"]: one for one in found["repositories"]}
        self.assertFalse(rows["alice"]["complete"])
        self.assertTrue(rows["bob"]["complete"])
        self.assertGreater(rows["alice"]["size_bytes"], 40_000)

    def test_a_whole_repository(self) -> None:
        """Its folder cannot be entered: what was known of it counts on, and it is one line and not 261."""
        for mode in (0, 0o444):
            locked = self.lock("alice", mode)
            server = self.start("--max-size", str(self.LIMIT), *self.every_server)
            server.wait_for_line("Quota initialized")
            with server.client() as client:
                body = b"z" * 70_000
                self.assertEqual(507, client.post(f"/bob/data/{object_id(body)}", body).status)
                body = b"fits"
                self.assertEqual(200, client.post(f"/bob/data/{object_id(body)}", body).status)
            self.assert_said_once(server, locked)
            self.assertEqual(0, server.stop())
            self.assertEqual(1, self.usage()[0])

    def test_data(self) -> None:
        """The directory of packs cannot be entered: one line, not 256."""
        locked = self.lock("alice/data", 0o444)
        server = self.start("--max-size", str(self.LIMIT), *self.every_server)
        server.wait_for_line("Quota initialized")
        with server.client() as client:
            body = b"z" * 70_000
            self.assertEqual(507, client.post(f"/bob/data/{object_id(body)}", body).status)
        self.assert_said_once(server, locked)

    def test_readable_again(self) -> None:
        """What is readable again is counted again, and said."""
        locked = self.lock("alice/data/aa")
        server = self.start("--max-size", str(self.LIMIT), *self.every_server)
        self.assert_last_known(server, locked)
        locked.chmod(0o700)
        (locked / object_id(self.inside)).unlink()
        with server.client() as client:
            body = b"z" * 70_000
            # Before a refusal it is counted again, but only every few seconds.
            wait_until(lambda: client.post(f"/bob/data/{object_id(body)}", body).status == 200)
        server.wait_for_line(f"{locked} can be read again")


class SharedRepositoryTests(RepositoryTests):
    """The same with workers."""

    every_server = TWO
