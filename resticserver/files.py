"""
Files that are read whole, and again when they change: users, rules, certificates; and whether a directory is there.

A file that is replaced by rename is always whole. One that is written in place is not, for a moment: C{rest-server user}
holds a lock meanwhile (flock(2)), and for all other programs it is read until it stays the same.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from contextlib import suppress

#: How many seconds a lock of another process is waited for before this attempt to read is given up.
_LOCKED_S = 2.0
#: The pause between two looks at a file that changed, and how many looks at most.
_SETTLE_S = 0.1
_MOST_LOOKS = 50
#: How many pauses it must have stayed the same; more where the last line has no end, as in the middle of writing.
_PAUSES, _PAUSES_TORN = 1, 10

#: Differs when a file has changed, been replaced or gone.
Stamp = tuple[int, ...]


def read_file(path: str, locked: bool = False) -> tuple[bytes, os.stat_result]:
    """
    All of a regular file, and its status. A FIFO or a device does not hold up who reads it.

    @param locked: not while another program has it locked in order to change it.
    @raise OSError: it cannot be read, or is still locked after two seconds.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", path)
        if locked:
            deadline = time.monotonic() + _LOCKED_S
            while not _lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "another program has locked it to change it", path)
                _pause(_SETTLE_S)
            status = os.fstat(file.fileno())
        return file.read(), status


def is_directory(path: str) -> bool:
    """
    Whether a directory is there; false only where nothing has the name.

    (C{os.path.isdir} is false also for what cannot be looked at, and then what is in it would count as missing.)

    @raise NotADirectoryError: something else has the name, or a name above it.
    @raise OSError: it cannot be looked at, or is a link to what is not there (ENOLINK).
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if is_link(path):
            raise OSError(errno.ENOLINK, "a link to what is not there", path) from None
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return True


def is_link(path: str) -> bool:
    """
    Whether a symbolic link is there.

    @raise OSError: that cannot be told.
    """
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _pause(seconds: float) -> None:
    """A pause in the pool. Not C{time.sleep}: under libfaketime, by which steps of the clock are tested, that fails (EINVAL)."""
    threading.Event().wait(seconds)


def _lock(fd: int) -> bool:
    """Take a shared lock, held until the file is closed. False if another process holds an exclusive one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks on this file system, so nobody else has one
    return True


def _is_being_changed(path: str) -> bool:
    """Whether another process holds an exclusive lock on a file."""
    with suppress(OSError), open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return not _lock(file.fileno())
    return False


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
        self._was_read = False

    def changed(self) -> bool:
        """Whether reading it would give something else than the last time; not yet, while another program changes it."""
        return stamp_at(self.path) != self._stamp and not _is_being_changed(self.path)

    def read(self) -> bytes:
        """
        All of it. Blocks; again and again until it stays the same, but for the first time.

        @raise OSError: it cannot be read, or does not stay the same.
        """
        # First, so that what changes meanwhile is seen by the next look, and one complaint about a broken file is enough.
        self._stamp = stamp_at(self.path)
        try:
            content, status = self._read_settled() if self._was_read else read_file(self.path, locked=True)
        except OSError as error:
            if error.errno == errno.EBUSY:
                self._stamp = ()  # the next look is to try again
            raise
        self._was_read = True
        self._stamp = stamp_of(status)
        return content

    def _read_settled(self) -> tuple[bytes, os.stat_result]:
        content, status = read_file(self.path, locked=True)
        same = 0
        for _ in range(_MOST_LOOKS):
            _pause(_SETTLE_S)
            again, now = read_file(self.path, locked=True)
            same = same + 1 if (again, stamp_of(now)) == (content, stamp_of(status)) else 0
            content, status = again, now
            if same >= (_PAUSES if content.endswith(b"\n") else _PAUSES_TORN):
                return content, status
        raise OSError(errno.EBUSY, "it is being written all the time", self.path)


def runnable(command: tuple[str, ...]) -> bool:
    """Whether there is such a program."""
    program = command[0]
    if os.sep in program:
        return os.access(program, os.X_OK) and not os.path.isdir(program)
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())
