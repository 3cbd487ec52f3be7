"""
A volume that is missing when the server starts, which C{--state-dir} on another disk lets it notice; and a marker that goes
while everything else stays.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Client, object_id, random_bytes
from ..support.htpasswd import sha_line
from ..support.scratch import files_below, scratch_directory
from ..support.server import ServerProcess, installed, start_server
from ..support.waiting import wait_until
from .test_volume_gone import _namespaces

TWO = ("--workers", "2")
GONE = "the volume with the repositories is missing"
BODY = random_bytes(seed=6, length=5000)
NAME = object_id(BODY)

#: Every kind of request that names something.
REQUESTS = (
    ("HEAD", "/alice/config", None),
    ("GET", "/alice/config", None),
    ("GET", "/alice/data/", None),
    ("GET", "/alice/locks/", None),
    ("GET", f"/alice/data/{NAME}", None),
    ("HEAD", f"/alice/data/{NAME}", None),
    ("DELETE", f"/alice/data/{NAME}", None),
    ("DELETE", f"/alice/locks/{NAME}", None),
    ("POST", f"/alice/data/{NAME}", BODY),
    ("POST", f"/new/data/{NAME}", BODY),
    ("POST", f"/alice/locks/{NAME}", BODY),
    ("POST", "/alice/config", b"x"),
    ("POST", "/alice/?create=true", b""),
    ("POST", "/new/?create=true", b""),
    ("GET", "/nobody/data/", None),
)


class VolumeCase(SynchronousTestCase):
    """A server whose data directory is a mount point, in a namespace of its own."""

    skip = _namespaces()
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.volume, self.mount_point = self.scratch / "volume", self.scratch / "mounted"
        self.volume.mkdir()
        self.mount_point.mkdir()
        self.state = self.scratch / "state"

    def start(self, *flags: str, mount: Path | None = None, data: Path | None = None, user: str = "") -> ServerProcess:
        """Start a server with its state elsewhere, with a volume or without one."""
        script = 'exec "$@"' if mount is None else f'mount --bind "{mount}" "{self.mount_point}" && exec "$@"'
        wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        auth = ("--htpasswd-file", f"{self.mount_point}/.htpasswd") if user else ("--no-auth", "--auto-create")
        flags = (*auth, "--state-dir", str(self.state), *self.every_server, *flags)
        return start_server(self, data or self.mount_point, *flags, wrapper=wrapper)

    def first_run(self, *flags: str, mount: Path | None = None, data: Path | None = None) -> None:
        """Something is stored, and the server stopped."""
        server = self.start(*flags, mount=mount or self.volume, data=data)
        with server.client() as client:
            client.create_repository("/alice/")
            self.assertEqual(200, client.post("/alice/config", b"x").status)
            client.save("data", BODY, "/alice/")
        wait_until((self.state / "volume-id").exists)
        self.assertEqual(0, server.stop())

    def inside(self, server: ServerProcess, *command: str) -> None:
        """Run something where the server is."""
        subprocess.run(["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", *command], check=True)

    def assert_gone(self, client: Client) -> None:
        """Every request is refused, but for those about the process."""
        for method, path, sent in REQUESTS:
            reply = client.request(method, path, sent)
            self.assertEqual((503, GONE), (reply.status, reply.reason), f"{method} {path}")
        self.assertEqual(200, client.get("/-/health").status)
        ready = client.get("/-/ready")
        self.assertEqual((503, GONE + "\n"), (ready.status, ready.body.decode()))

    def assert_serves(self, client: Client) -> None:
        """All is there."""
        self.assertEqual(BODY, client.get(f"/alice/data/{NAME}").body)
        self.assertEqual({NAME: len(BODY)}, client.list("data", "/alice/"))
        client.save("keys", b"new", "/alice/")


class AtStartTests(VolumeCase):
    """The server starts without its volume."""

    def test_empty_mount_point(self) -> None:
        """503 until the volume is back, and nothing is made in the mount point; then service without a restart."""
        for flags in ((), ("--max-size", "1GiB", "--prometheus")):
            self.first_run(*flags)
            server = self.start(*flags)
            with server.client() as client:
                self.assert_gone(client)
                self.assertEqual([], os.listdir(self.mount_point))
                self.inside(server, "mount", "--bind", str(self.volume), str(self.mount_point))
                self.assert_serves(client)
                wait_until(lambda: client.get("/-/ready").status == 200)
            lines = [line for line in server.err if "no volume is at" in line]
            self.assertEqual(1, len(lines), server.err)
            self.assertIn(f"stop the server, remove {self.state}/volume-id and start it again", lines[0])
            self.assertTrue(server.said(f"the volume at {self.mount_point} is back"))
            self.assertEqual(0, server.stop())

    def test_users_on_the_volume(self) -> None:
        """The file with the users is missing as well: logins are 503 and not 401, and work when the volume is back."""
        (self.volume / ".htpasswd").write_text(sha_line("alice", "secret"))
        self.first_run()
        server = self.start("--private-repos", user="alice")
        with server.client("alice", "secret") as client, server.client("alice", "wrong") as guesser:
            self.assert_gone(client)
            self.assertEqual(503, guesser.get("/alice/config").status)
            self.assertEqual([], os.listdir(self.mount_point))
            self.inside(server, "mount", "--bind", str(self.volume), str(self.mount_point))
            wait_until(lambda: client.get("/alice/config").status == 200)
            self.assert_serves(client)
            self.assertEqual(401, guesser.get("/alice/config").status)
        self.assertEqual(0, server.stop())


class SharedAtStartTests(AtStartTests):
    """The same with workers."""

    every_server = TWO


class OtherStartTests(VolumeCase):
    """What else there may be in the place of the volume, and who else looks for it."""

    def test_no_data_directory(self) -> None:
        """The data directory lies below the mount point, so it is missing as well, and is not made."""
        data = self.mount_point / "restic"
        self.first_run(data=data)
        server = self.start(data=data)
        with server.client() as client:
            self.assert_gone(client)
            self.assertEqual([], os.listdir(self.mount_point))
            self.inside(server, "mount", "--bind", str(self.volume), str(self.mount_point))
            self.assert_serves(client)

    def test_another_volume(self) -> None:
        """A disk with other repositories, of this or of another server, and one with files of somebody's."""
        self.first_run()
        before = files_below(self.volume)
        foreign = self.scratch / "foreign"
        foreign.mkdir()
        (foreign / "photo.jpg").write_bytes(b"x")
        marker = self.volume / ".rest-server" / "id"
        other = self.scratch / "other"
        (other / ".rest-server").mkdir(parents=True)
        (other / ".rest-server" / "id").write_bytes(b"f" * 32 + b"\n")
        (other / "alice" / "data").mkdir(parents=True)
        unmarked = self.scratch / "unmarked"
        subprocess.run(["cp", "-a", str(self.volume), str(unmarked)], check=True)
        (unmarked / ".rest-server" / "id").unlink()
        for mount, words in (
            (foreign, "no volume is at"),
            (other, "another volume is at"),
            (unmarked, "no volume is at"),
        ):
            kept = files_below(mount)
            server = self.start(mount=mount)
            with server.client() as client:
                self.assert_gone(client)
            self.assertEqual(kept, files_below(mount))
            self.assertTrue(server.said(words))
            self.assertEqual(0, server.stop())
        self.assertTrue(marker.exists())
        self.assertEqual(before, files_below(self.volume))

    def test_accepted(self) -> None:
        """What the log says does it: the new disk is served, and it is the one that is missed from then on."""
        self.first_run()
        new = self.scratch / "new"
        new.mkdir()
        (self.state / "volume-id").unlink()
        self.first_run(mount=new)
        server = self.start(mount=self.volume)
        with server.client() as client:
            self.assert_gone(client)
        self.assertEqual(0, server.stop())
        server = self.start(mount=new)
        with server.client() as client:
            self.assert_serves(client)

    def test_moved(self) -> None:
        """The same volume at another place is the same volume."""
        self.first_run()
        server = self.start(data=self.volume)
        with server.client() as client:
            self.assert_serves(client)

    def test_users_elsewhere(self) -> None:
        """A file with users that is missing without a reason still ends the start."""
        self.first_run()
        server = start_server(
            self, self.volume, "--htpasswd-file", f"{self.volume}/none", "--state-dir", str(self.state), wait=False
        )
        self.assertEqual(1, server.wait())
        self.assertTrue(server.said("cannot load .*/none"))

    def test_usage(self) -> None:
        """The command does not take an empty mount point for a server without repositories either."""
        self.first_run()
        command = [installed("rest-server"), "usage", "--path", str(self.mount_point), "--state-dir", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((1, ""), (done.returncode, done.stdout))
        self.assertEqual(f"rest-server usage: cannot count {self.mount_point}: {GONE}\n", done.stderr)

    def test_state_on_the_volume(self) -> None:
        """Nothing is remembered on the volume itself."""
        server = start_server(self, self.volume, "--no-auth", "--auto-create")
        with server.client() as client:
            client.create_repository("/alice/")
        self.assertEqual(0, server.stop())
        self.assertEqual({"id"}, set(os.listdir(self.volume / ".rest-server")) - {"state.sqlite3"})

    def test_cannot_be_remembered(self) -> None:
        """That is a line in the log and no more."""
        self.state.mkdir()
        (self.state / "volume-id").mkdir()
        server = start_server(
            self, self.volume, "--no-auth", "--state-dir", str(self.state), *self.every_server, wait=False
        )
        self.assertEqual(1, server.wait())
        self.assertTrue(server.said(f"cannot read {self.state}/volume-id: "), server.err)


class MarkerTests(VolumeCase):
    """Everything is there but the marker, or with another one: as on another disk with a copy of the repositories."""

    def test_marker_goes(self) -> None:
        """Also objects that were read a moment ago are refused, a second later at most."""
        self.first_run()
        server = self.start(mount=self.volume)
        marker = self.volume / ".rest-server" / "id"
        right = marker.read_bytes()
        with server.client() as client:
            for content in (None, b"f" * 32 + b"\n"):
                self.assert_serves(client)
                if content is None:
                    marker.unlink()
                else:
                    marker.write_bytes(content)
                for method in ("GET", "HEAD"):
                    for path in ("/alice/config", f"/alice/data/{NAME}"):
                        wait_until(lambda: client.request(method, path).status == 503)
                self.assert_gone(client)
                marker.write_bytes(right)
                self.assert_serves(client)


class SharedMarkerTests(MarkerTests):
    """The same with workers."""

    every_server = TWO
