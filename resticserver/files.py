"""
Files that are read whole, and again when they change: users, rules, certificates.
"""

from __future__ import annotations

import errno
import os
import stat

#: Differs when a file has changed, been replaced or gone.
Stamp = tuple[int, ...]


def read_file(path: str) -> tuple[bytes, os.stat_result]:
    """
    All of a regular file, and its status. A FIFO or a device does not hold up who reads it.

    @raise OSError: it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", path)
        return file.read(), status


def reason_of(error: OSError) -> str:
    """Why a file cannot be read; where rights are missing, also whose: a service's user is not the one who looks at the file."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return reason
    return f"{reason} for user id {os.geteuid()} (look at the rights of the file, and of the directories above it)"


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamp_at(path: str) -> Stamp:
    """The stamp of what is at a path, also behind a symlink; one of its own for each reason that nothing is."""
    try:
        return stamp_of(os.stat(path))
    except OSError as error:
        return (error.errno or 0,)


class WatchedFile:
    """A file, and whether it changed since it was read, or could not be read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp: Stamp = ()

    def changed(self) -> bool:
        """Whether reading it would give something else than the last time."""
        return stamp_at(self.path) != self._stamp

    def read(self) -> bytes:
        """
        All of it.

        @raise OSError: it cannot be read.
        """
        # First, so that what changes meanwhile is seen by the next look, and one complaint about a broken file is enough.
        self._stamp = stamp_at(self.path)
        content, status = read_file(self.path)
        self._stamp = stamp_of(status)
        return content
