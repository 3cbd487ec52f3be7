"""
Looking at files without waiting for a disk: what the kernel has in its caches is had at once, and everything else is
C{BlockingIOError}, as on a socket that has nothing to read.

That is what the reactor's own thread may do: an answer takes a few microseconds then, where a pool job takes fifty. Linux
can be asked for it since 5.12 (C{openat2} with C{RESOLVE_CACHED}, C{preadv2} with C{RWF_NOWAIT}).
Network file systems and FUSE may wait all the same, so it is for the local ones alone (L{FileSystemTraits}).

The calls keep the interpreter's lock: giving it up and getting it back costs more than they take.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Any, NamedTuple

from .filesystem import type_of

#: Local file systems that keep the promise.
_TRUSTED = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "ramfs", "tmpfs", "xfs"))
#: Those without a disk: they do not know RWF_NOWAIT, because nothing there waits.
_IN_MEMORY = frozenset(("ramfs", "tmpfs"))

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
    """The C library's C{syscall(2)}, called without giving up the interpreter's lock."""
    # The numbers are the same on all machines that Python runs on, but for Alpha.
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
    The kernel's answers without waiting.

    @ivar available: whether this kernel can be asked at all.
    """

    def __init__(self) -> None:
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
            return False  # an older kernel, or a sandbox that has never heard of it
        return True

    def _open(self, path: str, how: Any) -> int:
        assert self._syscall is not None
        fd = self._syscall(_SYS_OPENAT2, _AT_FDCWD, path.encode("utf-8", "surrogateescape"), how, _OPEN_HOW_BYTES)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return fd  # type: ignore[no-any-return]

    def open(self, path: str) -> int:
        """
        A descriptor for reading.

        @raise BlockingIOError: it would have to wait.
        @raise OSError: as C{open(2)}; also a permission error for a file that is another user's.
        """
        return self._open(path, self._read_how)

    def look(self, path: str) -> os.stat_result:
        """
        What C{stat(2)} says.

        @raise BlockingIOError: it would have to wait.
        @raise OSError: as C{stat(2)}.
        """
        fd = self._open(path, self._look_how)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)


class FileSystemTraits(NamedTuple):
    """
    What a file system can be asked for without waiting.

    @ivar names: to look for files and open them.
    @ivar in_memory: it has no disk.
    """

    names: bool
    in_memory: bool

    @classmethod
    def of(cls, fd: int) -> FileSystemTraits:
        """That of the file system on which an open file lies."""
        kind = type_of(fd)
        return cls(kind in _TRUSTED, kind in _IN_MEMORY)

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
