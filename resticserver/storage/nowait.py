"""
Access to files without blocking: what the kernel has in its caches is returned, for everything else C{BlockingIOError} is
raised, as for a socket that has nothing to read.

So the reactor's thread may do it: an answer takes a few microseconds, where a pool job takes fifty. Linux has this since 5.12
(C{openat2} with C{RESOLVE_CACHED}, C{preadv2} with C{RWF_NOWAIT}). Network file systems and FUSE may block all the same, so
it is used for local file systems alone (L{FileSystemTraits}).

The calls keep the interpreter's lock: releasing and taking it costs more than they take.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .filesystem_types import type_of
from .layout import Repository

#: Local file systems that keep the promise.
_TRUSTED = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "ramfs", "tmpfs", "xfs"))
#: Those without a disk: they do not know RWF_NOWAIT, because nothing there blocks.
_IN_MEMORY = frozenset(("ramfs", "tmpfs"))

#: How long a repository's traits are used until they are looked up again, and for how many repositories they are kept.
_TRAITS_S = 60.0
_MOST_REPOSITORIES = 10_000

_SYS_OPENAT2 = 437
_RESOLVE_CACHED = 0x20
_AT_FDCWD = -100

#: Without O_NOATIME a read may have to write the time of access, and wait for the journal.
_READ_FLAGS: int = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOATIME", 0)
_LOOK_FLAGS: int = getattr(os, "O_PATH", 0) | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPEN_HOW_BYTES = ctypes.sizeof(_OpenHow)


def _syscall() -> ctypes._FuncPointer | None:
    """The C library's C{syscall(2)}, called without releasing the interpreter's lock."""
    # The numbers are the same on all machines that Python runs on, except on Alpha.
    if sys.platform != "linux" or os.uname().machine == "alpha":
        return None
    try:
        syscall = ctypes.PyDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None
    syscall.restype = ctypes.c_long
    return syscall


class Nowait:
    """
    Looks at files and opens them without blocking. Which repositories it may be used for is learnt in a pool.

    @ivar available: whether this kernel can do it at all.
    """

    def __init__(self) -> None:
        #: The traits of repositories, and until when they hold on the monotonic clock.
        self._traits: dict[Repository, tuple[FileSystemTraits, float]] = {}
        self._syscall = _syscall()
        self._read_how = ctypes.byref(_OpenHow(_READ_FLAGS, 0, _RESOLVE_CACHED))
        self._look_how = ctypes.byref(_OpenHow(_LOOK_FLAGS, 0, _RESOLVE_CACHED))
        self.available = self._syscall is not None and self._works()

    def _works(self) -> bool:
        try:
            os.close(self._open("/", self._look_how))
        except BlockingIOError:
            pass
        except OSError:
            return False  # an older kernel, or a sandbox without this call
        return True

    def _open(self, path: str, how: Any) -> int:
        assert self._syscall is not None
        fd = self._syscall(_SYS_OPENAT2, _AT_FDCWD, path.encode("utf-8", "surrogateescape"), how, _OPEN_HOW_BYTES)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return fd  # type: ignore[no-any-return]

    def traits(self, repository: Repository) -> FileSystemTraits | None:
        """What may be done without blocking in a repository; C{None} while that is not known."""
        found = self._traits.get(repository)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def learn(self, repository: Repository, fd: int, is_exact: Callable[[Repository], bool]) -> None:
        """
        Look up the traits of a repository unless they are known. Blocks.

        @param fd: an open file of the repository.
        @param is_exact: whether a repository has no other name. Where it may have one each request must look up the name,
            which blocks.
        """
        if not self.available or self.traits(repository) is not None:
            return
        if len(self._traits) >= _MOST_REPOSITORIES:
            self._traits.clear()
        traits = FileSystemTraits.of(fd) if is_exact(repository) else FileSystemTraits(False, False)
        self._traits[repository] = (traits, time.monotonic() + _TRAITS_S)

    def open(self, path: str) -> int:
        """
        A descriptor for reading.

        @raise BlockingIOError: that would block.
        @raise OSError: as C{open(2)}; also a permission error for a file of another user.
        """
        return self._open(path, self._read_how)

    def look(self, path: str) -> os.stat_result:
        """
        The status of a file.

        @raise BlockingIOError: that would block.
        @raise OSError: as C{stat(2)}.
        """
        fd = self._open(path, self._look_how)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)


class FileSystemTraits(NamedTuple):
    """
    What a file system can do without blocking.

    @ivar names: whether it can look up and open files.
    @ivar in_memory: whether it has no disk.
    """

    names: bool
    in_memory: bool

    @classmethod
    def of(cls, fd: int) -> FileSystemTraits:
        """The traits of the file system that an open file lies on."""
        type_name = type_of(fd)
        return cls(type_name in _TRUSTED, type_name in _IN_MEMORY)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """
        All of a part of a file.

        @raise BlockingIOError: some of it is not in the page cache, or it has become shorter.
        """
        if self.in_memory:
            found = os.pread(fd, length, offset)
        else:
            buffer = bytearray(length)
            found = bytes(memoryview(buffer)[: os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)])
        if len(found) != length:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return found
