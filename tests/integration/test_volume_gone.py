"""
A volume that is really unmounted under a running server, in a mount namespace of the test's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id, random_bytes
from ..support.scratch import files_below, scratch_directory
from ..support.server import start_server


def _namespaces() -> str | None:
    """Why there are no mount namespaces here, or C{None}."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare or nsenter is not installed"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return None if tried.returncode == 0 else "mount namespaces need more rights than the tests have"


class VolumeGoneTests(SynchronousTestCase):
    """One volume that goes and comes back."""

    skip = _namespaces()

    def test_lazily_unmounted(self) -> None:
        """Gone: 503 for every request, and nothing is written below. Back: service without a restart."""
        directory = scratch_directory(self, 100 << 20)
        volume, mount_point = directory / "volume", directory / "mounted"
        volume.mkdir()
        mount_point.mkdir()
        script = f'mount --bind "{volume}" "{mount_point}" && exec "$@"'
        wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        server = start_server(self, mount_point / "data", "--no-auth", "--auto-create", wrapper=wrapper)
        body = random_bytes(seed=5, length=400_000)
        name = object_id(body)

        def inside(*command: str) -> None:
            subprocess.run(["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", *command], check=True)

        with server.client() as client:
            client.create_repository("/alice/")
            client.save("data", body, "/alice/")
            before = files_below(volume)
            inside("umount", "--lazy", str(mount_point))
            inside("mkdir", str(mount_point / "data"))
            for method, path, sent in (
                ("HEAD", "/alice/config", None),
                ("GET", "/alice/config", None),
                ("GET", "/alice/data/", None),
                ("GET", "/alice/locks/", None),
                ("GET", f"/alice/data/{name}", None),
                ("HEAD", f"/alice/data/{name}", None),
                ("DELETE", f"/alice/data/{name}", None),
                ("DELETE", f"/alice/locks/{name}", None),
                ("POST", f"/alice/data/{name}", body),
                ("POST", f"/new/data/{name}", body),
                ("POST", "/alice/config", b"x"),
                ("POST", "/alice/?create=true", b""),
                ("POST", "/new/?create=true", b""),
                ("GET", "/nobody/data/", None),
            ):
                reply = client.request(method, path, sent)
                self.assertEqual(503, reply.status, f"{method} {path}")
                self.assertEqual("the volume with the repositories is missing", reply.reason)
            self.assertEqual([], os.listdir(mount_point / "data"))
            inside("rmdir", str(mount_point / "data"))
            inside("mount", "--bind", str(volume), str(mount_point))
            self.assertEqual(body, client.get(f"/alice/data/{name}").body)
            self.assertEqual({name: len(body)}, client.list("data", "/alice/"))
            client.save("data", body[::-1], "/alice/")
            self.assertEqual(
                before | {f"data/alice/data/{object_id(body[::-1])[:2]}/{object_id(body[::-1])}"}, files_below(volume)
            )
        server.wait_for_line("no volume is at")
        server.wait_for_line("the volume at .* is back")
