"""
File systems in an image file, mounted for one test: those that find a folder in other spellings, and one that does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .scratch import Cleans, scratch_directory

_IMAGE_BYTES = 96 << 20


class Skips(Cleans, Protocol):
    """The part of a test case that L{mounted} needs."""

    def skipTest(self, reason: str) -> object:
        """Leave the test out."""


@dataclass(frozen=True)
class FileSystem:
    """
    A kind of file system.

    @ivar make: the command that makes one in an image file, whose path follows.
    @ivar mount: the command that mounts it; image and directory follow.
    @ivar needs_device: whether a loop device is mounted instead of the image file.
    @ivar image_bytes: how large it is, in a sparse file.
    @ivar read_only: the options of C{mount} that make it read-only.
    """

    make: Sequence[str]
    mount: Sequence[str]
    needs_device: bool = False
    read_only: Sequence[str] = ("-o", "ro")
    image_bytes: int = _IMAGE_BYTES


EXFAT = FileSystem(("mkfs.exfat",), ("mount.exfat-fuse",), needs_device=True)
#: Lists all names in lower case.
NTFS_FOLDING = FileSystem(("mkfs.ntfs", "-F", "-Q", "-q"), ("lowntfs-3g", "-o", "ignore_case"))
NTFS_EXACT = FileSystem(("mkfs.ntfs", "-F", "-Q", "-q"), ("ntfs-3g",))
#: Folds the directories that have the attribute C{F}.
EXT4_FOLDING = FileSystem(("mkfs.ext4", "-q", "-O", "casefold"), ("mount", "-t", "ext4"), needs_device=True)
EXT4 = FileSystem(("mkfs.ext4", "-q"), ("mount", "-t", "ext4"), needs_device=True)
#: It makes none that is smaller.
XFS = FileSystem(("mkfs.xfs", "-q"), ("mount", "-t", "xfs"), needs_device=True, image_bytes=320 << 20)


def mounted(test: Skips, kind: FileSystem) -> Mount:
    """A new file system of this kind, mounted until the test's end; the test is skipped where that is not possible."""
    if os.geteuid() != 0:
        test.skipTest("only root can mount")
    for program in (kind.make[0], kind.mount[0]):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            test.skipTest(f"{program} is not installed")
    directory = scratch_directory(test)
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(kind.image_bytes)
    made = _run([*kind.make, str(image)])
    if made.returncode != 0:
        test.skipTest(f"{kind.make[0]}: {made.stderr.strip()}")
    mount = Mount(kind, image, directory / "mounted")
    mount.path.mkdir()
    test.addCleanup(mount.unmount)
    reason = mount.mount()
    if reason:
        test.skipTest(f"{kind.mount[0]}: {reason}")
    return mount


class Mount:
    """
    One file system.

    @ivar path: where it is mounted.
    """

    def __init__(self, kind: FileSystem, image: Path, path: Path) -> None:
        self._kind = kind
        self._image = image
        self._device = ""
        self.path = path

    def mount(self, read_only: bool = False) -> str:
        """Mount it; why that is not possible."""
        if not _tried(lambda: not self._is_attached()):
            return f"{self._image} is still mounted, in a mount namespace that was made meanwhile"
        source = str(self._image)
        if self._kind.needs_device:
            found = _run(["losetup", "--find", "--show", source])
            if found.returncode != 0:
                return found.stderr.strip()
            source = self._device = found.stdout.strip()
        options = self._kind.read_only if read_only else ()
        done = _run([*self._kind.mount, *options, source, str(self.path)])
        if done.returncode != 0 or not os.path.ismount(self.path):
            reason = done.stderr.strip() or f"status {done.returncode}"
            self.unmount()
            return reason
        return ""

    def _is_attached(self) -> bool:
        """
        Whether a loop device has the image. It does for as long as any mount namespace has the file system, and a second one
        beside it would damage it.
        """
        return bool(_run(["losetup", "--associated", str(self._image)]).stdout.strip())

    def unmount(self) -> None:
        """Unmount it, whatever still uses it; idempotent."""
        if _is_mounted(self.path) and not _tried(lambda: _run(["umount", str(self.path)]).returncode == 0):
            _run(["umount", "--lazy", str(self.path)])
        device, self._device = self._device, ""
        if device:
            _tried(lambda: _run(["losetup", "--detach", device]).returncode == 0)


def _is_mounted(path: Path) -> bool:
    """Whether something is mounted there, even if it cannot be looked at."""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        return any(line.split(" ")[1] == str(path) for line in mounts)


def _tried(attempt: Callable[[], bool]) -> bool:
    """Whether something works within a while: a file may still be open in a process that has just been ended."""
    for _ in range(300):
        if attempt():
            return True
        time.sleep(0.1)
    return False


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
