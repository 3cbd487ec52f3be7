"""
C{rest-server user}: adds, changes, removes and lists the users of an htpasswd file.

Only the lines of the given user change. All others stay the same, byte for byte: comments, entries that the server
rejects, even bytes that are not text. A running server notices the new file by itself, so this command does not
contact it.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import getpass
import io
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import bcrypt

from ..access.htpasswd import entry_of, parse_htpasswd
from ..config.console import OneLineParser, write_line
from ..config.server_flags import add_server_flags, server_settings
from ..files import read_file
from ..names import is_user_name
from ..process.utf8 import as_text

#: bcrypt ignores the bytes of a password after these.
_BCRYPT_BYTES = 72

#: The range of htpasswd(1). 17 already takes some ten seconds per login.
_COSTS = range(4, 18)

#: Errors when replacing a file that may still be writable in place: it is a mount point, or its directory belongs to
#: another user.
_IN_PLACE = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS)

#: Changes the lines of a file: lines, user, hash -> lines.
_Change = Callable[[list[bytes], str, bytes], list[bytes]]


class _Refused(Exception):
    """The request cannot be carried out; the message is the line that the operator sees in the terminal."""


def main(arguments: Sequence[str]) -> int:
    """
    Run C{rest-server user}.

    @param arguments: the arguments after C{user}.
    @return: the exit status: 0; 1 if the command failed; 2 for invalid arguments.
    """
    try:
        given = _parser().parse_args(list(arguments))
        path = server_settings(given, "rest-server user").htpasswd_path
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    if "user" in given:
        given.user = as_text(given.user)
    try:
        if given.command == "list":
            _list(path)
        else:
            _change(path, given)
    except _Refused as refused:
        return _complain(str(refused))
    except OSError as error:
        return _complain(f"{path}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _complain("interrupted", after_prompt=True)
    except EOFError:
        return _complain("no password was given", after_prompt=True)
    return 0


def _complain(line: str, after_prompt: bool = False) -> int:
    """
    Print a message on a line of its own.

    @return: the exit status for an error.
    """
    begin = "\n" if after_prompt and sys.stderr.isatty() else ""
    print(f"{begin}rest-server user: {line}", file=sys.stderr, flush=True)
    return 1


# --- the command line


def _parser() -> argparse.ArgumentParser:
    where = OneLineParser(add_help=False)
    add_server_flags(where, "path", "htpasswd-file")
    user = OneLineParser(add_help=False)
    user.add_argument("user", metavar="USER")
    # There is no option for the password itself, because every user of the machine can read command lines.
    password = OneLineParser(add_help=False)
    password.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password, one line, from standard input (the default if that is not a terminal)",
    )
    password.add_argument(
        "--cost",
        type=_cost,
        default=12,
        metavar="N",
        help="bcrypt cost, 4 to 17 (default 12); each step doubles the time",
    )
    parser = OneLineParser(
        prog="rest-server user",
        description="Manage the users in the server's htpasswd file.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, parents, text in (
        ("add", [where, user, password], "add a user; the file is created if it does not exist"),
        ("passwd", [where, user, password], "change the password of a user"),
        ("delete", [where, user], "remove a user"),
        ("list", [where], "print the names of the users, one per line"),
    ):
        commands.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
    return parser


def _cost(text: str) -> int:
    if not text.isdecimal() or int(text) not in _COSTS:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from {_COSTS[0]} to {_COSTS[-1]}")
    return int(text)


# --- passwords


def _new_hash(given: argparse.Namespace) -> bytes:
    """Read a password and hash it, in the form that Apache's htpasswd writes."""
    password = _password(given.user, given.password_stdin)
    if not password:
        raise _Refused("the password is empty")
    if b"\0" in password:
        raise _Refused("the password contains a NUL byte, which no client can send")
    if len(password) > _BCRYPT_BYTES:
        _complain(f"warning: only the first {_BCRYPT_BYTES} bytes of the password are used")
    hashed = bcrypt.hashpw(password[:_BCRYPT_BYTES], bcrypt.gensalt(given.cost))
    return b"$2y$" + hashed[4:]


def _password(user: str, from_stdin: bool) -> bytes:
    """Read a password: one line of standard input, or typed twice at a terminal."""
    if sys.stdin is None:  # closed before the start
        raise _Refused("no password was given: standard input is closed")
    try:
        if from_stdin or not sys.stdin.isatty():
            return sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
        password = getpass.getpass(f"Password for {user}: ")
        if password and getpass.getpass("Repeat the password: ") != password:
            raise _Refused("the passwords do not match")
        return password.encode("utf-8", "surrogateescape")
    except OSError as error:
        raise _Refused(f"cannot read the password: {error.strerror or error}") from error
    except UnicodeError as error:
        raise _Refused("the password is not valid in the terminal's encoding") from error


# --- the file


def _list(path: str) -> None:
    lines, _ = _read(path)
    users, warnings = parse_htpasswd(b"".join(lines), path)
    for warning in warnings:
        _complain("warning: " + ascii(warning)[1:-1])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may not be able to display every name
    if users and not write_line("\n".join(users)):
        raise SystemExit(1)


def _change(path: str, given: argparse.Namespace) -> None:
    """
    Change one user. A dry run comes first, so that the operator does not type a password in vain. The change itself is
    made under a lock.

    @raise _Refused: the change is not possible.
    """
    if not is_user_name(given.user):
        raise _Refused(f"{given.user!a} is not a user name")
    change = _CHANGES[given.command]
    missing_is_empty = given.command == "add"
    target = os.path.realpath(path)  # keep a symlink and replace its target
    with ExitStack() as opened:
        directory = _open_directory(target, opened)
        lines, status = _read(target, missing_is_empty)
        if status is None and directory is None:
            raise _Refused(f"cannot open the directory {os.path.dirname(target)}: {os.strerror(errno.EACCES)}")
        others = status is not None and os.geteuid() not in (0, status.st_uid)
        if others and not os.access(target, os.W_OK, effective_ids=True):
            # A new file would belong to this user, while the server may run as the other one.
            raise _Refused(f"{path} belongs to another user: run this as that user, or as root")
        change(lines, given.user, b"")
        hashed = b"" if given.command == "delete" else _new_hash(given)
        # The directory is locked, because the file is replaced, and a separate lock file would be left behind.
        if directory is not None:
            fcntl.flock(directory, fcntl.LOCK_EX)
        file = None if status is None else _locked(target, opened)
        lines, status = _read(target, missing_is_empty)
        data = b"".join(change(lines, given.user, hashed))
        mode = _mode_like(status)
        if others or directory is None:
            _rewrite(target, file, data)
            return
        try:
            _replace(target, directory, data, status or os.fstat(directory), mode)
        except OSError as error:
            if status is None or error.errno not in _IN_PLACE:
                raise
            _rewrite(target, file, data)
            return
        if status is not None and status.st_mode & 0o077 & ~mode:
            _complain(f"note: other users could read or write {path}; its mode was changed to {mode:04o}")


def _open_directory(target: str, opened: ExitStack) -> int | None:
    """
    Open the directory of a file.

    @return: the descriptor; C{None} if the directory may not be read.
    @raise _Refused: it does not exist.
    """
    folder = os.path.dirname(target)
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    except OSError as error:
        raise _Refused(f"cannot open the directory {folder}: {error.strerror}") from error
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


def _read(path: str, missing_is_empty: bool = False) -> tuple[list[bytes], os.stat_result | None]:
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
                raise _Refused(
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
    @raise _Refused: it cannot be saved.
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
    raise _Refused(f"{target} must be changed in place, and no backup copy can be written: {reason}")


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


def _is_of(line: bytes, user: str) -> bool:
    """Whether a line is an entry of this user, as L{parse_htpasswd} reads it."""
    text = line.decode("utf-8", "surrogateescape")
    entry = entry_of(text)
    return entry is not None and ":" in text and entry[0] == user


def _added(lines: list[bytes], user: str, hashed: bytes) -> list[bytes]:
    if any(_is_of(line, user) for line in lines):
        raise _Refused(f"user {user} already exists ('passwd' changes the password)")
    ended = [line for line in lines if line.endswith(b"\n")]
    end = b"\r\n" if ended and ended[-1].endswith(b"\r\n") else b"\n"
    missing = [end] if len(ended) < len(lines) else []
    return [*lines, *missing, user.encode() + b":" + hashed + end]


def _changed(lines: list[bytes], user: str, hashed: bytes) -> list[bytes]:
    _deleted(lines, user, hashed)

    def with_hash(line: bytes) -> bytes:
        name, colon, old = line.partition(b":")
        # What follows a second colon, and the end of the line, stay as they are.
        _, more, rest = old.partition(b":")
        return name + colon + hashed + (more + rest or old[len(old.rstrip()) :])

    return [with_hash(line) if _is_of(line, user) else line for line in lines]


def _deleted(lines: list[bytes], user: str, hashed: bytes) -> list[bytes]:
    left = [line for line in lines if not _is_of(line, user)]
    if len(left) == len(lines):
        raise _Refused(f"no such user: {user}")
    return left


_CHANGES: dict[str, _Change] = {"add": _added, "passwd": _changed, "delete": _deleted}
