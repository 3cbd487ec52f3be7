"""
Files that are read whole, and again when they change: users, rules, certificates. And whether a directory is there.

A file that is replaced by rename is always whole. One that is written in place is incomplete for a moment:
C{rest-server user} holds a lock while it writes (flock(2)); with other programs the file is read until it stays the same.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from contextlib import suppress

from .errors import StartError

#: How many seconds to wait for the lock of another process.
_LOCKED_S = 2.0
#: The pause between two looks at a file that has changed, and the most looks.
_SETTLE_S = 0.1
_MOST_LOOKS = 50
#: For how many pauses it must stay the same; more where the last line has no end, because it may still be written.
_PAUSES, _PAUSES_TORN = 1, 10

#: Device, inode, modification and change time (in nanoseconds since 1970) of a file or directory. Another stamp means that it
#: has changed or was replaced.
Stamp = tuple[int, int, int, int]


def read_file(path: str, locked: bool = False) -> tuple[bytes, os.stat_result]:
    """
    All of a regular file, and its status. Anything else, as a FIFO, is an error at once.

    @param locked: wait while another program has it locked in order to change it.
    @raise OSError: it cannot be read, or is still locked after two seconds.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if locked:
            deadline = time.monotonic() + _LOCKED_S
            while not _lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "it is locked by another program", path)
                _pause(_SETTLE_S)
            status = os.fstat(file.fileno())
        return file.read(), status


def is_directory(path: str) -> bool:
    """
    Whether a directory is there; false only where nothing has the name.

    (C{os.path.isdir} is false also for a directory that cannot be looked at, whose content would then count as missing.)

    @raise NotADirectoryError: something else has the name, or a name above it.
    @raise OSError: it cannot be looked at, or is a dangling symbolic link (ENOLINK).
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if is_link(path):
            raise OSError(errno.ENOLINK, "a dangling symbolic link", path) from None
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return True


def is_link(path: str) -> bool:
    """
    Whether a symbolic link is there.

    @raise OSError: the name cannot be looked at.
    """
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def is_there(path: str) -> bool:
    """
    Whether something has this name, if only a link that leads nowhere.

    (C{os.path.lexists} is false also for what cannot be looked at, which would then be replaced.)

    @raise OSError: it cannot be looked at.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_all(fd: int, content: bytes) -> None:
    """Write all of it: C{write} may take less."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _pause(seconds: float) -> None:
    """Sleep. Not C{time.sleep}: that fails (EINVAL) under libfaketime, with which tests step the clock."""
    threading.Event().wait(seconds)


def _lock(fd: int) -> bool:
    """Take a shared lock, held until the file is closed. False if another process holds an exclusive one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks on this file system, so no other process has one
    return True


def _is_being_changed(path: str) -> bool:
    """Whether another process holds an exclusive lock on a file."""
    with suppress(OSError), open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return not _lock(file.fileno())
    return False


def reason_of(error: OSError) -> str:
    """Why a file cannot be read. Where permissions are missing also for which user: it is often not the one that was expected."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return reason
    return f"{reason} for user id {os.geteuid()} (check the permissions of the file and of the directories above it)"


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file or a directory."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


class WatchedFiles:
    """Files, and whether one of them has changed since L{note} was last called."""

    def __init__(self, *paths: str) -> None:
        self._paths = paths
        self._noted: object = None

    def changed(self) -> bool:
        """Whether a file has changed. Not before a program that holds a lock in order to change it has released that."""
        return self._look() != self._noted and not any(map(_is_being_changed, self._paths))

    def note(self) -> None:
        """Call this before the files are read: the next look finds what changes from now on."""
        self._noted = self._look()

    def forget(self) -> None:
        """The next look finds a change in any case."""
        self._noted = None

    def _look(self) -> object:
        return [_look_at(path) for path in self._paths]


class WatchedFile(WatchedFiles):
    """One file, with what it takes to read it while another program writes it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path
        self._was_read = False

    def read(self) -> bytes:
        """
        All of it. Blocks. Except for the first time, the file is read until it stays the same.

        @raise OSError: it cannot be read, or does not stay the same.
        """
        # Noted before the reading: so a broken file is logged once.
        self.note()
        try:
            content, status = self._read_settled() if self._was_read else read_file(self.path, locked=True)
        except OSError as error:
            if error.errno == errno.EBUSY:
                self.forget()
            raise
        self._was_read = True
        self._noted = [_version_of(status)]
        return content

    def _read_settled(self) -> tuple[bytes, os.stat_result]:
        content, status = read_file(self.path, locked=True)
        same = 0
        for _ in range(_MOST_LOOKS):
            _pause(_SETTLE_S)
            again, now = read_file(self.path, locked=True)
            same = same + 1 if (again, _version_of(now)) == (content, _version_of(status)) else 0
            content, status = again, now
            if same >= (_PAUSES if content.endswith(b"\n") else _PAUSES_TORN):
                return content, status
        raise OSError(errno.EBUSY, "it keeps changing while it is read", self.path)


def _version_of(status: os.stat_result) -> tuple[object, ...]:
    # The size too: a file may be written twice within one step of the file system's clock.
    return (*stamp_of(status), status.st_size)


def _look_at(path: str) -> tuple[object, ...]:
    """The version of what is at a path, also behind a symlink; another one for each reason that it cannot be looked at."""
    try:
        return _version_of(os.stat(path))
    except OSError as error:
        return (error.errno,)


class MadeOfFiles:
    """What is made of files, and made again when these change. If that fails, what was made before stays in use."""

    _watched: WatchedFiles

    def reload_if_changed(self, force: bool = False) -> bool:
        """Read the files again if they have changed, or in any case. Whether what they say is in use now. Blocks."""
        try:
            if not force and not self._watched.changed():
                return False
            self._read_again()
        except (OSError, ValueError, StartError) as error:
            self._log_failure(error)
            return False
        return True

    def _read_again(self) -> None:
        """
        Read the files.

        @raise OSError: one cannot be read; C{ValueError} and L{StartError} where it makes no sense.
        """
        raise NotImplementedError

    def _log_failure(self, error: Exception) -> None:
        """Log why the files cannot be used."""
        raise NotImplementedError


def runnable(command: tuple[str, ...]) -> bool:
    """Whether there is such a program."""
    program = command[0]
    if os.sep in program:
        return os.access(program, os.X_OK) and not os.path.isdir(program)
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())
