"""
C{--read-only} on file systems that really are: a read-only bind mount, a tmpfs and an ext4 that are mounted read-only, a squashfs
image, and a directory that belongs to somebody else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id, random_bytes
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, ImpatientRestic, Restic, make_tree
from ..support.scratch import contents_below, scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.skipping import skipped
from .test_metrics import unprivileged
from .test_volume_gone import _namespaces

TWO = ("--workers", "2")
BODY = random_bytes(seed=8, length=100_000)
NAME = object_id(BODY)
LOCK = b"the lock of somebody who was there when this was copied"
REFUSED = "the server's disk is read-only, so no lock can be {}: use restic's --no-lock"


def _why_no(*programs: str) -> str | None:
    """Why such a file system cannot be made and mounted here, or C{None}."""
    missing = [program for program in programs if shutil.which(program) is None]
    return f"{missing[0]} is not installed" if missing else _namespaces()


class ReadOnlyCase(SynchronousTestCase):
    """A data directory that was filled by another server, and a mount point."""

    skip = _namespaces()
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 200 << 20)
        self.source, self.mount_point = self.scratch / "source", self.scratch / "mounted"
        self.mount_point.mkdir()

    def fill(self) -> None:
        """Store something, by a server that may."""
        server = start_server(self, self.source, "--no-auth", "--max-size", "1GiB", *self.every_server)
        with server.client() as client:
            client.create_repository("/alice/")
            client.post("/alice/config", b"x")
            client.save("data", BODY, "/alice/")
            client.save("locks", LOCK, "/alice/")
            for number in range(100):
                client.save("index", b"%d" % number, "/alice/")
        self.assertEqual(0, server.stop())

    def mount_script(self, kind: str) -> str:
        """The commands that mount a copy of the data directory read-only."""
        source, mount_point, image = f'"{self.source}"', f'"{self.mount_point}"', f'"{self.scratch / "image"}"'
        if kind == "bind":
            return f"mount --bind {source} {mount_point} && mount -o remount,bind,ro {mount_point}"
        if kind == "tmpfs":
            copy = f"cp -a {source}/. {mount_point}"
            return f"mount -t tmpfs tmpfs {mount_point} && {copy} && mount -o remount,ro {mount_point}"
        if kind == "squashfs":
            return (
                f"mksquashfs {source} {image} -quiet -no-progress >/dev/null && mount -o loop,ro {image} {mount_point}"
            )
        assert kind == "ext4"
        return f"mkfs.ext4 -q -d {source} {image} 100M && mount -o loop,ro {image} {mount_point}"

    def start(self, kind: str, *flags: str, wait: bool = True) -> ServerProcess:
        """A server on such a file system."""
        script = f'{self.mount_script(kind)} && exec "$@"'
        wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        return start_server(self, self.mount_point, *flags, *self.every_server, wrapper=wrapper, wait=wait)

    def inside(self, server: ServerProcess, *command: str) -> None:
        """Run something where the server is."""
        subprocess.run(["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", *command], check=True)

    def assert_serves(self, server: ServerProcess, user: str | None = None) -> None:
        """Lists and reads, twice, since the second time much is remembered; whatever would write is refused with a reason."""
        with server.client(user, "secret") as client:
            for _ in range(2):
                self.assertEqual(BODY, client.get(f"/alice/data/{NAME}").body)
                self.assertEqual("100000", client.head(f"/alice/data/{NAME}").headers["Content-Length"])
                self.assertEqual({NAME: len(BODY)}, client.list("data", "/alice/"))
                self.assertEqual(100, len(client.list("index", "/alice/")))
                self.assertEqual(b"x", client.get("/alice/config").body)
                self.assertEqual((200, b"ready\n"), (client.get("/-/ready").status, client.get("/-/ready").body))
            for chunked in (False, True):
                reply = client.post(f"/alice/locks/{object_id(BODY)}", iter([BODY]) if chunked else BODY)
                self.assertEqual((403, REFUSED.format("created")), (reply.status, reply.reason))
            self.assertEqual(200, client.delete(f"/alice/locks/{object_id(BODY)}").status)
            reply = client.delete(f"/alice/locks/{object_id(LOCK)}")
            self.assertEqual((403, REFUSED.format("removed")), (reply.status, reply.reason))
            self.assertEqual({object_id(LOCK): len(LOCK)}, client.list("locks", "/alice/"))
            for method, path in (
                ("POST", f"/alice/data/{NAME}"),
                ("DELETE", f"/alice/data/{NAME}"),
                ("POST", "/alice/config"),
                ("POST", "/new/?create=true"),
                ("POST", f"/new/data/{NAME}"),
            ):
                reply = client.request(method, path, BODY if method == "POST" else None)
                self.assertEqual((403, "read-only: only locks may be created or deleted"), (reply.status, reply.reason))
        lines = [line for line in server.err if "Read-only file system" in line]
        self.assertEqual(
            [
                f"{self.mount_point} is not writable (Read-only file system): lists and reads are served, locks are refused, "
                "so clients need --no-lock"
            ],
            lines,
        )
        for words in ("cannot use", "cannot write", "failed", "not ready", "does not"):
            self.assertIsNone(server.said(words), server.err)


class FileSystemTests(ReadOnlyCase):
    """Each kind of file system."""

    def check_kind(self, kind: str) -> None:
        """With the state on it, which is read as it is, and elsewhere; with metrics, which count what is there."""
        self.fill()
        before = contents_below(self.source)
        for flags in (("--no-auth",), ("--prometheus", "--state-dir", str(self.scratch / "state"))):
            server = self.start(kind, "--read-only", *flags)
            self.assert_serves(server)
            self.assertEqual(0, server.stop())
        self.assertEqual(before, contents_below(self.source))

    def test_bind(self) -> None:
        """A read-only bind mount of what others may write."""
        self.check_kind("bind")

    def test_tmpfs(self) -> None:
        """A tmpfs."""
        self.check_kind("tmpfs")

    @skipped(_why_no("mkfs.ext4"))
    def test_ext4(self) -> None:
        """An ext4 on a loop device."""
        self.check_kind("ext4")

    @skipped(_why_no("mksquashfs"))
    def test_squashfs(self) -> None:
        """An image that nobody could ever write to."""
        self.check_kind("squashfs")


class FlagsTests(ReadOnlyCase):
    """What the server is asked for beside that."""

    def test_users(self) -> None:
        """The file with the users lies on it."""
        self.source.mkdir()
        (self.source / ".htpasswd").write_text(sha_line("alice", "secret"))
        self.fill()
        server = self.start(
            "bind",
            "--read-only",
            "--prometheus",
            "--htpasswd-file",
            f"{self.mount_point}/.htpasswd",
            "--max-size",
            "1TiB",
        )
        self.assert_serves(server, "alice")

    def test_workers(self) -> None:
        """In several processes."""
        self.fill()
        server = self.start("bind", "--read-only", "--prometheus", *TWO)
        self.assert_serves(server)
        with server.client() as client:
            self.assertIn("\nrest_server_ready 1", client.get("/metrics").body.decode())
        self.assertEqual(0, server.stop())

    def test_without_a_marker(self) -> None:
        """Repositories of another server."""
        self.fill()
        shutil.rmtree(self.source / ".rest-server")
        server = self.start("bind", "--read-only", "--prometheus")
        self.assert_serves(server)

    def test_without_the_flag(self) -> None:
        """One line that says which flag would do."""
        self.fill()
        server = self.start("bind", wait=False)
        self.assertEqual(1, server.wait())
        said = [line for line in server.err if "cannot use" in line]
        words = "Read-only file system; use --read-only to serve it anyway"
        self.assertEqual(
            [f"--path: cannot use the data directory {self.mount_point}: {words}"],
            [line.removeprefix("rest-server: ") for line in said],
        )
        self.assertIsNone(server.said("Traceback"))

    def test_no_directory(self) -> None:
        """Where there is none that could be served the flag is no help."""
        self.fill()
        script = f'{self.mount_script("bind")} && exec "$@"'
        wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        server = start_server(self, self.mount_point / "none", "--read-only", wrapper=wrapper, wait=False)
        self.assertEqual(1, server.wait())
        self.assertTrue(server.said("cannot use the data directory .*/none: Read-only file system$"))

    def test_becomes_writable(self) -> None:
        """Locks are made as soon as they can be, and refused as soon as they cannot."""
        self.fill()
        server = self.start("bind", "--read-only", "--state-dir", str(self.scratch / "state"))
        self.assert_serves(server)
        with server.client() as client:
            for mode, status in (("rw", 200), ("ro", 403)):
                self.inside(server, "mount", "-o", f"remount,bind,{mode}", str(self.mount_point))
                self.assertEqual(status, client.post(f"/alice/locks/{NAME}", BODY).status)
                self.assertEqual(
                    status, client.delete(f"/alice/locks/{NAME if status == 200 else object_id(LOCK)}").status
                )
                self.assertEqual(200, client.get("/-/ready").status)

    @skipped(None if shutil.which("setpriv") or os.geteuid() else "setpriv is not installed")
    def test_somebody_elses(self) -> None:
        """A directory whose rights let the server read it, and not more."""
        self.fill()
        for folder, folders, _ in os.walk(self.source):
            for name in (*(f"{folder}/{one}" for one in folders), folder):
                Path(name).chmod(0o500)
                self.addCleanup(Path(name).chmod, 0o700)
        flags = ("--no-auth", "--read-only", "--prometheus", "--state-dir", str(self.scratch / "state"))
        server = start_server(self, self.source, *flags, wrapper=unprivileged())
        with server.client() as client:
            self.assertEqual(BODY, client.get(f"/alice/data/{NAME}").body)
            self.assertEqual({NAME: len(BODY)}, client.list("data", "/alice/"))
            self.assertEqual(200, client.get("/-/ready").status)
            reply = client.post(f"/alice/locks/{NAME}", BODY)
            reason = "the server has no write permission on its disk, so no lock can be created: use restic's --no-lock"
            self.assertEqual((403, reason), (reply.status, reply.reason))
        server = start_server(self, self.source, "--no-auth", wrapper=unprivileged(), wait=False)
        self.assertEqual(1, server.wait())
        self.assertTrue(server.said("cannot use the data directory .*: Permission denied"))


class ResticTests(ReadOnlyCase):
    """The real restic."""

    skip = SKIP_WITHOUT_RESTIC or _namespaces()

    def test_restic(self) -> None:
        """It reads all with C{--no-lock}, and without it says what is wrong."""
        tree = self.scratch / "tree"
        make_tree(tree, seed=3, size_bytes=2_000_000)
        server = start_server(self, self.source, "--no-auth", "--auto-create")
        restic = Restic(self, f"{server.url}/alice/", self.scratch)
        restic.create()
        restic.succeed("backup", str(tree))
        self.assertEqual(0, server.stop())
        server = self.start("bind", "--read-only", "--prometheus")
        restic = Restic(self, f"{server.url}/alice/", self.scratch, "--no-lock")
        self.assertEqual(1, len(restic.snapshots()))
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        restic.succeed("restore", "latest", "--target", str(self.scratch / "restored"))
        self.assertEqual(contents_below(tree), contents_below(Path(f"{self.scratch}/restored{tree}")))
        locking = ImpatientRestic(self, f"{server.url}/alice/", self.scratch)
        finished = locking.run_until("--no-lock", "snapshots")
        self.assertNotEqual(0, finished.status)
        self.assertIn("403", finished.out)
        self.assertIn(REFUSED.format("created"), finished.out)
