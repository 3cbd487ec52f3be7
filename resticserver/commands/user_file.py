"""
Changes the users of an htpasswd file: under a lock, all at once or not at all.

Only the lines of the given users change. All others stay the same, byte for byte: comments, entries that the server
rejects, even bytes that are not text. This module knows nothing of command lines, prompts and hashes.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from ..access.htpasswd import entry_of
from ..files import read_file

#: Errors when replacing a file that may still be writable in place: it is a mount point, or its directory belongs to
#: another user.
_IN_PLACE = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS)

#: Changes the lines of a file: lines, hashes by user -> lines. It raises L{Refused} if a user may not be changed so.
Change = Callable[[list[bytes], Mapping[str, bytes]], list[bytes]]


class Refused(Exception):
    """The request cannot be carried out; the message is the line that the operator sees in the terminal."""


# --- the file


def change_users(
    path: str,
    users: Iterable[str],
    change: Change,
    make_hashes: Callable[[], Mapping[str, bytes]],
    missing_is_empty: bool = False,
) -> str | None:
    """
    Change the lines of some users in one step. A dry run comes first, so that the operator does not type a password,
    or wait for hashes, in vain. The change itself is made under a lock.

    @param users: who is changed.
    @param make_hashes: called once after the dry run; returns the new hashes by user.
    @param missing_is_empty: create the file if it does not exist.
    @return: a note for the operator, if there is one.
    @raise Refused: the change is not possible.
    @raise OSError: the file cannot be read or written; it is unchanged.
    """
    target = os.path.realpath(path)  # keep a symlink and replace its target
    with ExitStack() as opened:
        directory = _open_directory(target, opened)
        lines, status = read_lines(target, missing_is_empty)
        if status is None and directory is None:
            raise Refused(f"cannot open the directory {os.path.dirname(target)}: {os.strerror(errno.EACCES)}")
        others = status is not None and os.geteuid() not in (0, status.st_uid)
        if others and not os.access(target, os.W_OK, effective_ids=True):
            # A new file would belong to this user, while the server may run as the other one.
            raise Refused(f"{path} belongs to another user: run this as that user, or as root")
        change(lines, dict.fromkeys(users, b""))
        hashes = make_hashes()
        # The directory is locked, because the file is replaced, and a separate lock file would be left behind.
        if directory is not None:
            fcntl.flock(directory, fcntl.LOCK_EX)
        file = None if status is None else _locked(target, opened)
        lines, status = read_lines(target, missing_is_empty)
        data = b"".join(change(lines, hashes))
        mode = _mode_like(status)
        if others or directory is None:
            _rewrite(target, file, data)
            return None
        try:
            _replace(target, directory, data, status or os.fstat(directory), mode)
        except OSError as error:
            if status is None or error.errno not in _IN_PLACE:
                raise
            _rewrite(target, file, data)
            return None
        if status is not None and status.st_mode & 0o077 & ~mode:
            return f"note: other users could read or write {path}; its mode was changed to {mode:04o}"
        return None


def _open_directory(target: str, opened: ExitStack) -> int | None:
    """
    Open the directory of a file.

    @return: the descriptor; C{None} if the directory may not be read.
    @raise Refused: it does not exist.
    """
    folder = os.path.dirname(target)
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    except OSError as error:
        raise Refused(f"cannot open the directory {folder}: {error.strerror}") from error
    opened.callback(os.close, directory)
    return directory


def _locked(target: str, opened: ExitStack) -> int:
    """
    Open a file and lock it for a change. The server reads it before or after the change, but not during it.

    @return: the descriptor.
    @raise OSError: the file does not exist, or may not be read.
    """
    while True:
        try:
            fd = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in _IN_PLACE:
                raise
            fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # can only be replaced
        opened.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(fd), os.stat(target)):
            return fd
        # Another process replaced the file in the meantime, so the lock is on the old one: try again.


def _mode_like(status: os.stat_result | None) -> int:
    """
    The mode of the new file: 0600. If the old file belongs to root and its group may read it, 0640: then the server
    runs in that group, and not as root.
    """
    of_a_group = status is not None and status.st_uid == 0 != status.st_gid and status.st_mode & stat.S_IRGRP
    return 0o640 if of_a_group else 0o600


def read_lines(path: str, missing_is_empty: bool = False) -> tuple[list[bytes], os.stat_result | None]:
    """
    Read a file.

    @return: its lines with their ends, and its status, C{None} if the file is missing.
    """
    try:
        data, status = read_file(path)
        return io.BytesIO(data).readlines(), status
    except FileNotFoundError:
        if missing_is_empty:
            return [], None
        raise


def _replace(target: str, directory: int, data: bytes, like: os.stat_result, mode: int) -> None:
    """
    Replace a file atomically.

    @param directory: the descriptor of the target's directory.
    @param like: supplies the owner and the group of the new file, if this process may set them: the old file's, or the
        directory's, so that the server can read a file created by root.
    """
    fd, temporary = tempfile.mkstemp(prefix=".htpasswd-", dir=os.path.dirname(target))
    try:
        with open(fd, "wb") as file:
            if os.geteuid() == 0:
                os.fchown(fd, like.st_uid, like.st_gid)
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    os.fsync(directory)


def _rewrite(target: str, file: int | None, data: bytes) -> None:
    """
    Overwrite a file in place, which keeps its owner and mode. A copy of the old content exists until this is done, and
    is restored if it fails.

    @param file: its descriptor, locked.
    @raise OSError: the file cannot be written and is unchanged.
    """
    # The descriptor of the lock may be read-only. Opening the file again reports why it cannot be written.
    fd = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        assert file is not None and os.path.samestat(os.fstat(fd), os.fstat(file))
        old = _all_of(fd)
        copy = _copy(target, old)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        try:
            _overwrite(fd, data)
        except BaseException:
            try:
                _overwrite(fd, old)
            except OSError as error:
                raise Refused(
                    f"cannot restore {target} ({error.strerror}): its previous content is in {copy}"
                ) from error
            os.unlink(copy)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.unlink(copy)
    finally:
        os.close(fd)


def _copy(target: str, content: bytes) -> str:
    """
    Save the content of a file, in its directory or a temporary one.

    @return: the path of the copy.
    @raise Refused: it cannot be saved.
    """
    problem: OSError | None = None
    for folder in (os.path.dirname(target), os.environ.get("TMPDIR") or "/tmp", "/var/tmp", "/dev/shm"):
        try:
            fd, path = tempfile.mkstemp(prefix=".htpasswd-", dir=folder)
        except OSError as error:
            problem = problem or error
            continue
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
        except OSError as error:
            os.unlink(path)
            problem = problem or error
            continue
        return path
    reason = problem.strerror if problem is not None else "no directory"
    raise Refused(f"{target} must be changed in place, and no backup copy can be written: {reason}")


def _all_of(fd: int) -> bytes:
    content = b""
    while part := os.pread(fd, 1 << 20, len(content)):
        content += part
    return content


def _overwrite(fd: int, content: bytes) -> None:
    """Overwrite an open file, without ever truncating it to zero."""
    written = 0
    while written < len(content):
        written += os.pwrite(fd, content[written:], written)
    os.ftruncate(fd, len(content))
    os.fsync(fd)


# --- lines


def users_of(lines: list[bytes]) -> set[str]:
    """The users that have a line, valid or not, as L{parse_htpasswd<resticserver.access.htpasswd.parse_htpasswd>} reads
    them."""
    return {user for user in map(_user_of, lines) if user is not None}


def added(lines: list[bytes], hashes: Mapping[str, bytes]) -> list[bytes]:
    """
    Add users; see L{Change}.

    @raise Refused: one of them exists.
    """
    there = users_of(lines)
    for user in hashes:
        if user in there:
            raise Refused(f"user {user} already exists ('passwd' changes the password)")
    ended = [line for line in lines if line.endswith(b"\n")]
    end = b"\r\n" if ended and ended[-1].endswith(b"\r\n") else b"\n"
    missing = [end] if len(ended) < len(lines) else []
    return [*lines, *missing, *(user.encode() + b":" + hashed + end for user, hashed in hashes.items())]


def changed(lines: list[bytes], hashes: Mapping[str, bytes]) -> list[bytes]:
    """
    Change passwords; see L{Change}.

    @raise Refused: there is no such user.
    """
    _all_exist(lines, hashes)

    def with_hash(line: bytes) -> bytes:
        user = _user_of(line)
        if user is None or user not in hashes:
            return line
        name, colon, old = line.partition(b":")
        # What follows a second colon, and the end of the line, stay as they are.
        _, more, rest = old.partition(b":")
        return name + colon + hashes[user] + (more + rest or old[len(old.rstrip()) :])

    return [with_hash(line) for line in lines]


def deleted(lines: list[bytes], hashes: Mapping[str, bytes]) -> list[bytes]:
    """
    Remove users; see L{Change}.

    @raise Refused: there is no such user.
    """
    _all_exist(lines, hashes)
    return [line for line in lines if _user_of(line) not in hashes]


def _all_exist(lines: list[bytes], users: Iterable[str]) -> None:
    there = users_of(lines)
    for user in users:
        if user not in there:
            raise Refused(f"no such user: {user}")


def _user_of(line: bytes) -> str | None:
    """The user of an entry, as L{parse_htpasswd<resticserver.access.htpasswd.parse_htpasswd>} reads it."""
    text = line.decode("utf-8", "surrogateescape")
    entry = entry_of(text)
    return entry[0] if entry is not None and ":" in text else None
