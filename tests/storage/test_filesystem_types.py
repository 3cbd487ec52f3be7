"""
File systems by name: read from what the kernel writes, and never believed where it does not.
"""

from __future__ import annotations

import builtins
import io
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.storage.filesystem_types import keeps_times, type_of

FDINFO = b"pos:\t0\nflags:\t02100000\nmnt_id:\t27\nino:\t131074\n"
#: As proc(5) has it: any number of optional fields before the hyphen, blanks in paths escaped.
MOUNTS = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / /srv/a\040b rw,relatime%s - %s /dev/vda rw,discard
270 1 254:0 / /x rw,relatime - nfs4 server:/x rw
"""


class FileSystemTests(SynchronousTestCase):
    """L{type_of} and L{keeps_times}."""

    def system_says(self, fdinfo: bytes | None, mounts: bytes | None) -> None:
        """What stands in /proc; C{None} where it has no such file."""

        def fake_open(path: str, *args: Any) -> io.BytesIO:
            content = {"/proc/self/fdinfo/7": fdinfo, "/proc/self/mountinfo": mounts}[path]
            if content is None:
                raise FileNotFoundError(path)
            return io.BytesIO(content)

        self.patch(builtins, "open", fake_open)

    def test_types(self) -> None:
        """The type is found whatever optional fields there are; local ones are believed, all others are not."""
        for optional in (b"", b" shared:1", b" shared:1 master:2 propagate_from:3 unbindable"):
            for name, believed in (
                *((name, True) for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs")),
                *((name, False) for name in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuseblk", "fuse", "9p")),
                *((name, False) for name in ("virtiofs", "ceph", "overlay", "vfat", "exfat", "autofs", "newfs")),
            ):
                self.system_says(FDINFO, MOUNTS % (optional, name.encode()))
                self.assertEqual((name, believed), (type_of(7), keeps_times(7)))

    def test_cannot_be_told(self) -> None:
        """No /proc, a mount that is not listed, lines that cannot be read: no type, and no belief."""
        for fdinfo, mounts in (
            (None, MOUNTS % (b"", b"ext4")),
            (FDINFO, None),
            (b"pos:\t0\n", MOUNTS % (b"", b"ext4")),
            (b"mnt_id:\n", MOUNTS % (b"", b"ext4")),
            (b"mnt_id:\t28\n", MOUNTS % (b"", b"ext4")),
            (FDINFO, b""),
            (FDINFO, b"\n"),
            (FDINFO, b"27 1 254:0 / / rw,relatime\n"),
            (FDINFO, b"27 1 254:0 / / rw,relatime -\n"),
        ):
            self.system_says(fdinfo, mounts)
            self.assertEqual((None, False), (type_of(7), keeps_times(7)))

    def test_real(self) -> None:
        """On Linux this test's directory has a type and /proc is none to believe; elsewhere nothing is."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, fd)
        if not os.path.exists("/proc/self/mountinfo"):
            self.assertFalse(keeps_times(fd))
            return
        self.assertIsNotNone(type_of(fd))
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, proc)
        self.assertEqual(("proc", False), (type_of(proc), keeps_times(proc)))
