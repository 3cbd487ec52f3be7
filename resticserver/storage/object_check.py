"""
Whether one stored object is what its name says: its file is read and hashed.

Blocking, for a thread of its own. The file is not changed, not even its time of access, and nothing is displaced from the
kernel's page cache (L{resticserver.storage.page_cache}).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from dataclasses import dataclass
from enum import Enum

from ..names import CONFIG
from ..threads.rate_limit import MOST_STEP_BYTES, RateLimit
from .page_cache import CachedPages

#: Errors of this process and not of the file: the check is made again later.
OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: A file with wrong bytes that was written to so lately may be a copy in progress. It is read once more after this time.
RECENT_S = 3.0
_MOST_READINGS = 3

#: O_NONBLOCK: opening a FIFO must not wait for a writer.
_FLAGS: int = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_NO_TIME_OF_ACCESS: int = getattr(os, "O_NOATIME", 0)


class Finding(Enum):
    """What the check of an object has found."""

    GOOD = "good"
    #: Its bytes are not those that its name promises.
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    #: There is no file of that name.
    GONE = "gone"
    #: Something else has the name: a link, a directory. It is no object of this server's.
    FOREIGN = "foreign"
    #: It is being written: it will be checked later.
    CHANGING = "changing"


#: A file of this size that is cached is read by one call: with small files the calls take longer than the hashing.
_SMALL_BYTES = 256 << 10

#: The kinds of problems, as they are called everywhere.
DAMAGED, MISSING, UNREADABLE = KINDS = ("damaged", "missing", "unreadable")

#: Inode, size, modification and change time in nanoseconds since 1970: as long as it is the same, so is the content.
FileVersion = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Check:
    """
    The result of a check.

    @ivar reason: why the file cannot be read, or what is wrong with it; empty if nothing is.
    @ivar version: of the file that was read; C{None} if none was.
    @ivar read_bytes: how much was read.
    """

    finding: Finding
    reason: str = ""
    version: FileVersion | None = None
    read_bytes: int = 0


class _Buffers(threading.local):
    """One buffer for each thread."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(MOST_STEP_BYTES))


_buffers = _Buffers()


def check_object(path: str, name: str, limit: RateLimit) -> Check:
    """
    Check one object.

    @param path: of its file.
    @param name: of the object. A config has no hash: it is good if it can be read.
    @param limit: of the bytes to read.
    @raise Stopped: by the limit.
    @raise OSError: this process cannot open or read files now.
    """
    read_bytes = 0
    before: FileVersion | None = None
    for reading in range(_MOST_READINGS):
        found = _read(path, name, limit)
        read_bytes += found.read_bytes
        if found.finding is not Finding.DAMAGED:
            break
        assert found.version is not None
        # The name may mean another file by now, and the file may still be written.
        is_same = version_of(path) == found.version
        is_recent = 0 <= time.time() - found.version[2] / 1e9 < RECENT_S
        if is_same and (not is_recent or found.version == before):
            break
        if reading == _MOST_READINGS - 1:
            found = Check(Finding.CHANGING)
        elif is_same or reading:
            limit.pause(RECENT_S)
        before = found.version
    return Check(found.finding, found.reason, found.version, read_bytes)


def version_at(path: str) -> FileVersion:
    """
    The version of a file.

    @raise OSError: it cannot be looked at.
    """
    return _version(os.lstat(path))


def version_of(path: str) -> FileVersion | None:
    """The version of a file; C{None} if it cannot be looked at."""
    try:
        return version_at(path)
    except OSError:
        return None


def _version(status: os.stat_result) -> FileVersion:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: str, name: str, limit: RateLimit) -> Check:
    """Read and hash a file once."""
    try:
        fd = _open(path)
    except (FileNotFoundError, NotADirectoryError):
        return Check(Finding.GONE)
    except OSError as error:
        if error.errno in OF_THE_PROCESS:
            raise
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return Check(Finding.FOREIGN)
        return Check(Finding.UNREADABLE, error.strerror or str(error), version_of(path))
    try:
        status = os.fstat(fd)
        version = _version(status)
        if not stat.S_ISREG(status.st_mode):
            return Check(Finding.FOREIGN)
        try:
            digest, size_bytes = _hash(fd, status, limit)
        except OSError as error:
            if error.errno in OF_THE_PROCESS:
                raise
            return Check(Finding.UNREADABLE, error.strerror or str(error), version)
    finally:
        os.close(fd)
    if name in (digest, CONFIG):
        return Check(Finding.GOOD, "", version, size_bytes)
    return Check(Finding.DAMAGED, f"its {size_bytes} bytes have the SHA-256 {digest}", version, size_bytes)


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS | _NO_TIME_OF_ACCESS)
    except PermissionError:
        return os.open(path, _FLAGS)  # another user's file: its time of access is written


def _hash(fd: int, status: os.stat_result, limit: RateLimit) -> tuple[str, int]:
    """The SHA-256 of a file in hex, and how many bytes it has."""
    view = _buffers.view
    taken_bytes = 0
    if status.st_size <= _SMALL_BYTES:
        limit.take(status.st_size)
        taken_bytes = status.st_size
        whole = _read_cached(fd, view, status.st_size)
        if whole is not None:
            return hashlib.sha256(whole).hexdigest(), len(whole)
    digest = hashlib.sha256()
    pages = CachedPages(fd, status)
    offset = 0
    try:
        while True:
            step_bytes = limit.step_bytes
            left_bytes = status.st_size - max(offset, taken_bytes)
            # At the end of the file nothing is left to be read, which costs nothing.
            limit.take(max(0, min(step_bytes, left_bytes)))
            got = os.preadv(fd, [view[:step_bytes]], offset)
            if not got:
                break
            digest.update(view[:got])
            pages.drop(offset, got)
            offset += got
            if offset == status.st_size and got < step_bytes:
                break  # a short reading at the known end
    finally:
        pages.drop_all()
    return digest.hexdigest(), offset


def _read_cached(fd: int, view: memoryview, size_bytes: int) -> memoryview | None:
    """A whole file, if all of it is in the kernel's cache and nothing was appended; C{None} if not, or if that is not known."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        got = os.preadv(fd, [view[: size_bytes + 1]], 0, os.RWF_NOWAIT)
    except OSError:
        return None
    return view[:got] if got == size_bytes else None
