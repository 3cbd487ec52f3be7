"""
The state file: what the server knows of its directories and repositories, kept for the next start. One SQLite database,
C{.rest-server/state.sqlite3} in the data directory unless C{--state-dir} names another place.

Deleting it costs time and never data: all of it can be read from the repositories again.

With C{--state-dir} the marker of the volume lies beside it (L{MarkerFile}).
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import sys
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from twisted.logger import Logger

from ..errors import StartError
from ..files import Stamp, read_file, write_all
from ..sizes import Amount
from .database import DatabaseFile, Statement, write
from .interface import ID_BYTES, Objects
from .layout import CELLS, Repository
from .volume import FOLDER, MOST_MARKER_BYTES

FILE = "state.sqlite3"
VOLUME_FILE = "volume-id"

#: How long sizes are kept.
HISTORY_DAYS = 400

#: User, repository, reason, how often, the last time in seconds since 1970, the message.
Refusal = tuple[str | None, str, str, int, float, str]

#: The beginning of a quarter of an hour in seconds since 1970, and what was counted in it.
Count = tuple[float, int, int, int, int]
#: A repository, the user of the last upload to it, and when it was.
Write = tuple[str, str, float]

_log = Logger()


class DirectoryState(NamedTuple):
    """
    What is stored of a directory.

    @ivar taken_ns: when it was read, in nanoseconds since 1970.
    @ivar amount: how much was in it.
    """

    stamp: Stamp
    taken_ns: int
    amount: Amount


class RepositoryState(NamedTuple):
    """
    What is stored of a repository.

    @ivar at_most: it never had more.
    @ivar sizes: bytes of each cell (L{resticserver.storage.layout}); C{objects} likewise.
    """

    at_most: Amount
    sizes: array[int]
    objects: array[int]


class StateFile(DatabaseFile):
    """
    The state of one data directory.

    @param path: the data directory; what is stored of its directories is stored by their paths below it.
    @param directory: where the file lies; C{None} for the data directory's own folder, and only if that is there.
    @param file_mode: of the file; C{read_only} and C{may_be_frozen} as for L{DatabaseFile}.
    @ivar remembered: the marker of the volume in an earlier run; C{None} where the file lies on the volume itself.
    """

    version = 1
    tables = """
CREATE TABLE directory (
    path BLOB PRIMARY KEY,
    device INTEGER NOT NULL, inode INTEGER NOT NULL, modified_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL,
    taken_ns INTEGER NOT NULL,
    objects INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    ids BLOB NOT NULL, sizes BLOB NOT NULL
);
CREATE TABLE repository (
    name BLOB PRIMARY KEY,
    most_bytes INTEGER NOT NULL, most_objects INTEGER NOT NULL,
    sizes BLOB NOT NULL, objects BLOB NOT NULL
);
CREATE TABLE history (
    name BLOB NOT NULL, day INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    PRIMARY KEY (name, day)
) WITHOUT ROWID;
"""
    #: Not among the tables of the version: files of older versions get it when it is first needed.
    _refusals = """
CREATE TABLE IF NOT EXISTS refusal (
    user BLOB, repository BLOB NOT NULL, reason TEXT NOT NULL,
    number INTEGER NOT NULL, last_s REAL NOT NULL, message TEXT NOT NULL
)
"""

    #: Likewise: what was counted within the last day, and the last uploads.
    _activity = (
        "CREATE TABLE IF NOT EXISTS counted (began_s REAL NOT NULL, received_bytes INTEGER NOT NULL, "
        "sent_bytes INTEGER NOT NULL, failed_logins INTEGER NOT NULL, limited INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS written (name BLOB PRIMARY KEY, user BLOB NOT NULL, time_s REAL NOT NULL)",
    )

    def __init__(
        self,
        path: str,
        directory: str | None = None,
        file_mode: int = 0o600,
        read_only: bool = False,
        may_be_frozen: bool = False,
    ) -> None:
        folder = directory if directory is not None else os.path.join(path, FOLDER)
        super().__init__(os.path.join(folder, FILE), file_mode, read_only, may_be_frozen)
        self._data = os.fsencode(path)
        self.remembered = MarkerFile(os.path.join(folder, VOLUME_FILE), file_mode) if directory is not None else None

    def prepare(self) -> None:
        """
        Make the directory that C{--state-dir} names, if it is missing.

        @raise StartError: it cannot be used.
        """
        if self.remembered is not None:
            try:
                os.makedirs(self._folder, 0o700, exist_ok=True)
                os.close(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))
            except OSError as error:
                # A file of that name is no directory, whatever mkdir says of it.
                reason = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
                raise StartError(f"--state-dir: cannot use the state directory {self._folder}: {reason}") from error

    @property
    def marker_file(self) -> str | None:
        """The file that the volume's marker is remembered in, if there is one."""
        return self.remembered.path if self.remembered is not None else None

    def marker(self) -> bytes | None:
        """
        The volume's marker of an earlier run, if one is remembered.

        @raise StartError: the file cannot be read.
        """
        return self.remembered.read() if self.remembered is not None else None

    def remember_marker(self, marker: bytes) -> None:
        """Remember the volume's marker for the next start. Blocks. A failure is logged."""
        if self.remembered is not None:
            self.remembered.write(marker)

    # --- directories

    def directory(self, path: str) -> DirectoryState | None:
        """What is stored of a directory, without its objects."""
        rows: list[Any] = self._rows(
            "SELECT device, inode, modified_ns, changed_ns, taken_ns, size_bytes, objects FROM directory WHERE path = ?",
            self._key(path),
        )
        for device, inode, modified_ns, changed_ns, taken_ns, size_bytes, objects in rows:
            stamp = (_unsigned(device), _unsigned(inode), modified_ns, changed_ns)
            return DirectoryState(stamp, taken_ns, Amount(size_bytes, objects))
        return None

    def objects(self, path: str) -> tuple[Stamp, int, bytes, array[int]] | None:
        """The objects of a directory: its stamp, when it was read, their ids and their sizes."""
        rows: list[Any] = self._rows(
            "SELECT device, inode, modified_ns, changed_ns, taken_ns, ids, sizes FROM directory WHERE path = ?",
            self._key(path),
        )
        for device, inode, modified_ns, changed_ns, taken_ns, ids, sizes in rows:
            if len(ids) // ID_BYTES * 8 == len(sizes) and len(ids) % ID_BYTES == 0:  # else the file was edited
                stamp = (_unsigned(device), _unsigned(inode), modified_ns, changed_ns)
                return stamp, taken_ns, ids, _numbers("Q", sizes)
        return None

    def put_directory(self, path: str, stamp: Stamp, taken_ns: int, parts: Iterable[Objects]) -> None:
        """Store what is in a directory; all parts have sizes."""
        if self._read_only:
            return
        ids = []
        sizes = array("Q")
        for part in parts:
            assert part.sizes is not None
            ids.append(part.ids)
            sizes.extend(part.sizes)
        device, inode, modified_ns, changed_ns = stamp
        row = (
            *(self._key(path), _signed(device), _signed(inode), modified_ns, changed_ns, taken_ns),
            *(len(sizes), sum(sizes), b"".join(ids), _bytes(sizes)),
        )
        statement = "INSERT OR REPLACE INTO directory VALUES (?,?,?,?,?,?,?,?,?,?)"
        self._run(lambda connection: write(connection, (statement, [row])), make=True)

    def forget_directory(self, path: str) -> None:
        """Remove what is stored of a directory."""
        statement = "DELETE FROM directory WHERE path = ?"
        self._run(lambda connection: write(connection, (statement, [(self._key(path),)])), writes=True)

    def _key(self, path: str) -> bytes:
        return os.fsencode(path)[len(self._data) + 1 :]

    # --- repositories

    def repositories(self) -> dict[Repository, RepositoryState]:
        """All that is stored of repositories."""
        found = {}
        rows: list[Any] = self._rows("SELECT name, most_bytes, most_objects, sizes, objects FROM repository")
        for name, most_bytes, most_objects, sizes, objects in rows:
            if len(sizes) == len(objects) == 8 * (CELLS - 1):
                # Of a version without a trash.
                sizes, objects = sizes + bytes(8), objects + bytes(8)
            if len(sizes) == len(objects) == 8 * CELLS:
                at_most = Amount(most_bytes, most_objects)
                found[_repository(name)] = RepositoryState(at_most, _numbers("q", sizes), _numbers("q", objects))
        return found

    def put_repositories(self, states: dict[Repository, RepositoryState], durable: bool = True) -> bool:
        """Store what is known of repositories, all of them or none; whether they are stored."""
        rows = [
            (_name(repository), *state.at_most, _bytes(state.sizes), _bytes(state.objects))
            for repository, state in states.items()
        ]

        def put(connection: sqlite3.Connection) -> bool:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            try:
                write(connection, ("INSERT OR REPLACE INTO repository VALUES (?,?,?,?,?)", rows))
            finally:
                connection.execute("PRAGMA synchronous = NORMAL")
            return True

        return self._run(put, make=True) is True

    def forget_repositories(self, gone: Iterable[Repository]) -> None:
        """Remove what is stored of repositories and of their directories."""
        names = [_name(repository) for repository in gone]
        directories = [
            (name + b"/" if name else b"") + object_type
            for name in names
            for object_type in (b"data", b"index", b"keys", b"snapshots")
        ]
        statements = (
            ("DELETE FROM repository WHERE name = ?", [(name,) for name in names]),
            ("DELETE FROM history WHERE name = ?", [(name,) for name in names]),
            ("DELETE FROM directory WHERE path = ?", [(path,) for path in directories]),
            ("DELETE FROM directory WHERE path > ? AND path < ?", [(path + b"/", path + b"0") for path in directories]),
        )
        if names:
            self._run(lambda connection: write(connection, *statements), writes=True)

    # --- sizes over time

    def put_history(self, day: int, sizes: dict[Repository, int]) -> None:
        """
        Store how large repositories are on a day, in place of what was stored for that day. Old days are removed.

        @param day: days since 1970.
        """
        rows = [(_name(repository), day, size_bytes) for repository, size_bytes in sizes.items()]
        statements = (
            ("INSERT OR REPLACE INTO history VALUES (?,?,?)", rows),
            ("DELETE FROM history WHERE day < ?", [(day - HISTORY_DAYS,)]),
        )
        self._run(lambda connection: write(connection, *statements), make=True)

    def history(self) -> dict[Repository, list[tuple[int, int]]]:
        """How large each repository was, by days since 1970, the oldest first."""
        rows: list[Any] = self._rows(
            "SELECT name, day, size_bytes FROM history "
            "WHERE typeof(day) = 'integer' AND typeof(size_bytes) = 'integer' ORDER BY day"
        )
        found: dict[Repository, list[tuple[int, int]]] = {}
        for name, day, size_bytes in rows:
            found.setdefault(_repository(name), []).append((day, size_bytes))
        return found

    # --- refused uploads

    def put_refusals(self, rows: Sequence[Refusal]) -> None:
        """Store the refused uploads, in place of those that were stored."""
        encoded = [
            (None if user is None else os.fsencode(user), os.fsencode(repository), *rest)
            for user, repository, *rest in rows
        ]
        statements: tuple[Statement, ...] = (
            (self._refusals, None),
            ("DELETE FROM refusal", None),
            ("INSERT INTO refusal VALUES (?,?,?,?,?,?)", encoded),
        )
        self._run(lambda connection: write(connection, *statements), make=True)

    def refusals(self) -> list[Refusal]:
        """The refused uploads that are stored."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'refusal'"):
            return []
        rows: list[Any] = self._rows(
            "SELECT user, repository, reason, number, last_s, message FROM refusal "
            "WHERE typeof(number) = 'integer' AND typeof(last_s) = 'real' AND typeof(repository) = 'blob'"
        )
        return [
            (
                None if user is None else os.fsdecode(user),
                os.fsdecode(repository),
                str(reason),
                number,
                last_s,
                str(words),
            )
            for user, repository, reason, number, last_s, words in rows
        ]

    # --- the last day

    def put_activity(self, counted: Sequence[Count], written: Sequence[Write]) -> None:
        """Store what was counted within the last day and the last uploads, in place of what was stored."""
        encoded = [(os.fsencode(name), os.fsencode(user), time_s) for name, user, time_s in written]
        statements: tuple[Statement, ...] = (
            *((statement, None) for statement in self._activity),
            ("DELETE FROM counted", None),
            ("DELETE FROM written", None),
            ("INSERT INTO counted VALUES (?,?,?,?,?)", counted),
            ("INSERT OR REPLACE INTO written VALUES (?,?,?)", encoded),
        )
        self._run(lambda connection: write(connection, *statements), make=True)

    def activity(self) -> tuple[list[Count], list[Write]]:
        """What is stored of the last day, and the last uploads."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'written'"):
            return [], []
        columns = ("received_bytes", "sent_bytes", "failed_logins", "limited")
        integers = " AND ".join(f"typeof({column}) = 'integer'" for column in columns)
        counted: list[Any] = self._rows(
            f"SELECT began_s, {', '.join(columns)} FROM counted WHERE typeof(began_s) = 'real' AND {integers}"
        )
        rows: list[Any] = self._rows(
            "SELECT name, user, time_s FROM written "
            "WHERE typeof(name) = 'blob' AND typeof(user) = 'blob' AND typeof(time_s) = 'real' ORDER BY time_s"
        )
        return counted, [(os.fsdecode(name), os.fsdecode(user), time_s) for name, user, time_s in rows]


class MarkerFile:
    """
    The file C{volume-id} in C{--state-dir}, which is on another disk than the repositories: the marker of the volume that the
    server has seen, so that it is missed also at a start. A file of its own, because deleting it has a meaning: another
    volume may be served from then on.

    @ivar path: of the file.
    """

    def __init__(self, path: str, file_mode: int) -> None:
        self.path = path
        self._file_mode = file_mode

    def read(self) -> bytes | None:
        """
        The marker; C{None} if none is remembered.

        @raise StartError: the file cannot be read.
        """
        try:
            return read_file(self.path)[0][:MOST_MARKER_BYTES].strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StartError(f"cannot read {self.path}: {error.strerror}") from error

    def write(self, marker: bytes) -> None:
        """Remember a marker for the next start. Blocks. A failure is logged."""
        temporary = f"{self.path}.{secrets.token_hex(8)}"
        try:
            if self.read() == marker:
                return
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, self._file_mode)
                write_all(fd, marker + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, self.path)
        except (OSError, StartError) as error:
            with suppress(OSError):
                os.unlink(temporary)
            reason = error.strerror if isinstance(error, OSError) else error
            words = "cannot write {path} ({error}): a volume that is missing at the next start will not be detected"
            _log.warn(words, path=self.path, error=reason)


def _name(repository: Repository) -> bytes:
    return os.fsencode("/".join(repository))


def _repository(name: bytes) -> Repository:
    return tuple(os.fsdecode(name).split("/")) if name else ()


def _signed(number: int) -> int:
    """SQLite's integers have a sign; inodes and devices may need all 64 bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def _bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(typecode: str, content: bytes) -> array[int]:
    numbers = array(typecode)
    numbers.frombytes(content)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
