"""
The state file: what the server knows of its directories and repositories, kept for the next start. One SQLite database,
C{.rest-server/state.sqlite3} in the data directory unless C{--state-dir} names another place.

Deleting it costs time and never data: all that is in it can be read from the repositories. So nothing here fails a
request: where it cannot be read or written that is said once, and the server goes on as if it were empty.

Safe from several threads, and from several processes on one file system: SQLite's write-ahead log is for that, and needs a
local one.

Beside it in C{--state-dir}, which then is on another disk than the repositories, lies C{volume-id}: which volume the server
has seen, so that it is missed also at a start. It is a file of its own, because deleting it does mean something: that another
volume may be served from now on.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from twisted.logger import Logger

from ..errors import StartError
from ..files import read_file
from ..sizes import Amount
from .filesystem import is_local
from .interface import ID_BYTES, Objects
from .layout import CELLS, Repository
from .volume import FOLDER, MOST_MARKER_BYTES

FILE = "state.sqlite3"
VOLUME_FILE = "volume-id"

#: The form of the tables; a file of another form is made anew.
_VERSION = 1
_TABLES = """
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
_REFUSALS = """
CREATE TABLE IF NOT EXISTS refusal (
    user BLOB, repository BLOB NOT NULL, reason TEXT NOT NULL,
    number INTEGER NOT NULL, last_s REAL NOT NULL, message TEXT NOT NULL
)
"""
#: How long sizes are kept.
HISTORY_DAYS = 400
#: How long another process may hold the file.
_BUSY_S = 5.0
_LOG_ATTEMPTS = 500
#: After an error the file is left alone for so long.
_PAUSE_S = 60.0
#: It is closed when it was not used for so long.
_IDLE_S = 5.0

T = TypeVar("T")

_log = Logger()


class DirectoryState(NamedTuple):
    """
    What was known of a directory.

    @ivar stamp: device, inode, modification and change time.
    @ivar taken_ns: when it was read, since 1970.
    @ivar amount: what is in it.
    """

    stamp: tuple[int, int, int, int]
    taken_ns: int
    amount: Amount


class RepositoryState(NamedTuple):
    """
    What was known of a repository.

    @ivar at_most: it never had more.
    @ivar sizes: bytes of each cell (L{resticserver.quota.ledger}); C{objects} likewise.
    """

    at_most: Amount
    sizes: array[int]
    objects: array[int]


class StateFile:
    """
    The state of one data directory.

    @param path: the data directory; what is kept of its directories is kept by their paths below it.
    @param directory: where the file lies; C{None} for the data directory's own folder, and only once that is there.
    @param file_mode: of the file.
    @param may_be_frozen: whether a read-only file system is what is to be expected: what is there is read then, and nothing kept.
    @param read_only: for a look from outside: the file is neither made nor changed, not even by being looked at, because it
        belongs to the server's user.
    """

    def __init__(
        self,
        path: str,
        directory: str | None = None,
        file_mode: int = 0o600,
        read_only: bool = False,
        may_be_frozen: bool = False,
    ) -> None:
        self._data = os.fsencode(path)
        self._folder = directory if directory is not None else os.path.join(path, FOLDER)
        self._named = directory is not None
        self._file = os.path.join(self._folder, FILE)
        self._file_mode = file_mode
        self._read_only = read_only
        self._may_be_frozen = may_be_frozen
        #: Whether the open file may not be written.
        self._frozen = False
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._not_before = 0.0
        self._used_s = 0.0
        self._said: str | None = None

    def prepare(self) -> None:
        """
        Make the directory for it that was named, where that is missing.

        @raise StartError: it cannot be used.
        """
        if self._named:
            try:
                os.makedirs(self._folder, 0o700, exist_ok=True)
                os.close(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))
            except OSError as error:
                raise StartError(
                    f"--state-dir: cannot use the state directory {self._folder}: {error.strerror}"
                ) from error

    # --- the volume

    @property
    def marker_file(self) -> str | None:
        """The file that the volume's marker is remembered in; C{None} where the state lies on the volume itself."""
        return os.path.join(self._folder, VOLUME_FILE) if self._named else None

    def marker(self) -> bytes | None:
        """
        The marker of the volume that was there in an earlier run; C{None} if none is remembered.

        @raise StartError: that cannot be told.
        """
        if self.marker_file is None:
            return None
        try:
            return read_file(self.marker_file)[0][:MOST_MARKER_BYTES].strip() or None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StartError(f"cannot read {self.marker_file}: {error.strerror}") from error

    def remember_marker(self, marker: bytes) -> None:
        """Remember the volume's marker for the next start. Blocks. Where that is not possible it is said."""
        path = self.marker_file
        if path is None:
            return
        temporary = f"{path}.{secrets.token_hex(8)}"
        try:
            if self.marker() == marker:
                return
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, self._file_mode)
                os.write(fd, marker + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except (OSError, StartError) as error:
            with suppress(OSError):
                os.unlink(temporary)
            reason = error.strerror if isinstance(error, OSError) else error
            words = "cannot write {path} ({error}): a volume that is missing at the next start will not be noticed"
            _log.warn(words, path=path, error=reason)

    # --- directories

    def directory(self, path: str) -> DirectoryState | None:
        """What was known of a directory, without its objects."""
        row = self._run(
            lambda connection: connection.execute(
                "SELECT device, inode, modified_ns, changed_ns, taken_ns, size_bytes, objects "
                "FROM directory WHERE path = ?",
                (self._key(path),),
            ).fetchone()
        )
        if row is None:
            return None
        device, inode, *rest = row
        modified_ns, changed_ns, taken_ns, size_bytes, objects = rest
        stamp = (_unsigned(device), _unsigned(inode), modified_ns, changed_ns)
        return DirectoryState(stamp, taken_ns, Amount(size_bytes, objects))

    def objects(self, path: str) -> tuple[tuple[int, int, int, int], int, bytes, array[int]] | None:
        """The objects of a directory: its stamp, when it was read, their ids and their sizes."""
        row = self._run(
            lambda connection: connection.execute(
                "SELECT device, inode, modified_ns, changed_ns, taken_ns, ids, sizes FROM directory WHERE path = ?",
                (self._key(path),),
            ).fetchone()
        )
        if row is None:
            return None
        device, inode, modified_ns, changed_ns, taken_ns, ids, sizes = row
        if len(ids) // ID_BYTES * 8 != len(sizes) or len(ids) % ID_BYTES:
            return None  # somebody's hand was in it
        return (_unsigned(device), _unsigned(inode), modified_ns, changed_ns), taken_ns, ids, _numbers("Q", sizes)

    def put_directory(
        self, path: str, stamp: tuple[int, int, int, int], taken_ns: int, parts: Iterable[Objects]
    ) -> None:
        """Keep what is in a directory; all parts have sizes."""
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
        self._run(lambda connection: _write(connection, statement, [row]), make=True)

    def forget_directory(self, path: str) -> None:
        """A directory is not there any more, or is not to be kept."""
        statement = "DELETE FROM directory WHERE path = ?"
        self._run(lambda connection: _write(connection, statement, [(self._key(path),)]), writes=True)

    # --- repositories

    def repositories(self) -> dict[Repository, RepositoryState]:
        """All that is known of repositories."""
        rows = self._run(
            lambda connection: connection.execute(
                "SELECT name, most_bytes, most_objects, sizes, objects FROM repository"
            ).fetchall()
        )
        found = {}
        for name, most_bytes, most_objects, sizes, objects in rows or ():
            if len(sizes) == len(objects) == 8 * CELLS:
                at_most = Amount(most_bytes, most_objects)
                found[_repository(name)] = RepositoryState(at_most, _numbers("q", sizes), _numbers("q", objects))
        return found

    def put_repositories(self, states: dict[Repository, RepositoryState], durable: bool = True) -> bool:
        """Keep what is known of repositories; whether it is kept. All of them, or none."""
        rows = [
            (_name(repository), *state.at_most, _bytes(state.sizes), _bytes(state.objects))
            for repository, state in states.items()
        ]

        def put(connection: sqlite3.Connection) -> bool:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            try:
                _write(connection, "INSERT OR REPLACE INTO repository VALUES (?,?,?,?,?)", rows)
            finally:
                connection.execute("PRAGMA synchronous = NORMAL")
            return True

        return self._run(put, make=True) is True

    def forget_repositories(self, gone: Iterable[Repository]) -> None:
        """Repositories are not there any more, nor are their directories."""
        names = [_name(repository) for repository in gone]

        def forget(connection: sqlite3.Connection) -> None:
            _write(connection, "DELETE FROM repository WHERE name = ?", [(name,) for name in names])
            _write(connection, "DELETE FROM history WHERE name = ?", [(name,) for name in names])
            for name in names:
                below = name + b"/" if name else b""
                for kind in (b"data", b"index", b"keys", b"snapshots"):
                    first = below + kind
                    _write(connection, "DELETE FROM directory WHERE path = ?", [(first,)])
                    _write(
                        connection, "DELETE FROM directory WHERE path > ? AND path < ?", [(first + b"/", first + b"0")]
                    )

        if names:
            self._run(forget, writes=True)

    # --- sizes over time

    def put_history(self, day: int, sizes: dict[Repository, int]) -> None:
        """
        Keep how large repositories are on a day; what was kept of the same day is replaced, and of long ago is forgotten.

        @param day: days since 1970.
        """
        rows = [(_name(repository), day, size_bytes) for repository, size_bytes in sizes.items()]

        def put(connection: sqlite3.Connection) -> None:
            _write(connection, "INSERT OR REPLACE INTO history VALUES (?,?,?)", rows)
            _write(connection, "DELETE FROM history WHERE day < ?", [(day - HISTORY_DAYS,)])

        self._run(put, make=True)

    def history(self) -> dict[Repository, list[tuple[int, int]]]:
        """How large each repository was, by days since 1970, the oldest first."""
        rows = self._run(
            lambda connection: connection.execute(
                "SELECT name, day, size_bytes FROM history "
                "WHERE typeof(day) = 'integer' AND typeof(size_bytes) = 'integer' ORDER BY day"
            ).fetchall()
        )
        found: dict[Repository, list[tuple[int, int]]] = {}
        for name, day, size_bytes in rows or ():
            found.setdefault(_repository(name), []).append((day, size_bytes))
        return found

    # --- refused uploads

    def put_refusals(self, rows: Sequence[tuple[str | None, str, str, int, float, str]]) -> None:
        """
        Keep what was refused, in the place of what was kept of that before.

        @param rows: user, repository, reason, how often, when the last time in seconds since 1970, what was said.
        """
        encoded = [
            (None if user is None else os.fsencode(user), os.fsencode(repository), reason, number, last_s, message)
            for user, repository, reason, number, last_s, message in rows
        ]

        def put(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                # Not among the tables of the file's form: a file that an older version made is as good.
                connection.execute(_REFUSALS)
                connection.execute("DELETE FROM refusal")
                connection.executemany("INSERT INTO refusal VALUES (?,?,?,?,?,?)", encoded)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

        self._run(put, make=True)

    def refusals(self) -> list[tuple[str | None, str, str, int, float, str]]:
        """What was kept of refused uploads."""

        def find(connection: sqlite3.Connection) -> list[tuple[bytes | None, bytes, str, int, float, str]]:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'refusal'").fetchone() is None:
                return []
            return connection.execute(
                "SELECT user, repository, reason, number, last_s, message FROM refusal "
                "WHERE typeof(number) = 'integer' AND typeof(last_s) = 'real' AND typeof(repository) = 'blob'"
            ).fetchall()

        return [
            (
                None if user is None else os.fsdecode(user),
                os.fsdecode(repository),
                str(reason),
                number,
                last_s,
                str(message),
            )
            for user, repository, reason, number, last_s, message in self._run(find) or ()
        ]

    # --- the file

    def close(self) -> None:
        """Close the file; it is opened again when somebody asks for something."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close_if_idle(self) -> None:
        """Close the file if nobody has asked for anything for a while: a volume with an open file cannot be unmounted."""
        with self._lock:
            if time.monotonic() - self._used_s > _IDLE_S:
                self._close()

    def _run(self, work: Callable[[sqlite3.Connection], T], make: bool = False, writes: bool = False) -> T | None:
        """
        Do something with the file; C{None} where that is not possible.

        @param make: whether the file is made if there is none, to be written.
        @param writes: whether it is written if there is one.
        """
        with self._lock:
            frozen = self._may_be_frozen and self._is_frozen()
            if frozen != self._frozen:
                self._frozen = frozen
                self._close()
            if frozen and (make or writes):
                return None
            now = self._used_s = time.monotonic()
            if now < self._not_before:
                return None
            try:
                connection = self._open(make)
                return work(connection) if connection is not None else None
            except OverflowError:
                return None  # larger than SQLite's numbers: sparse files of absurd sizes
            except (sqlite3.Error, OSError, ValueError) as error:
                self._close()
                if self._read_only:
                    self._not_before = float("inf")
                elif self._frozen:
                    self._not_before = time.monotonic() + _PAUSE_S
                elif isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                    self._remove(error)
                else:
                    self._complain(str(error))
                    self._not_before = time.monotonic() + _PAUSE_S
                return None

    def _open(self, make: bool) -> sqlite3.Connection | None:
        try:
            status = os.stat(self._file)
        except FileNotFoundError:
            status = None
        if self._connection is not None:
            if status is not None and (status.st_dev, status.st_ino) == self._identity:
                return self._connection
            self._close()  # another volume is there now, or none, or somebody has deleted it
        if self._read_only or self._frozen:
            return self._open_read_only() if status is not None else None
        if (status is None and not make) or not self._may_be_here():
            return None
        if status is None:
            self._make()
        connection = sqlite3.connect(self._file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        status = os.stat(self._file)
        self._identity = (status.st_dev, status.st_ino)
        _use_log(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        # What SQLite sorts or has to undo would else be a file in a temporary directory, where there may be none.
        connection.execute("PRAGMA temp_store = MEMORY")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:  # nobody was quicker
                for table in filter(str.strip, _TABLES.split(";")):
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it has the form of another version ({version})")
        return connection

    def _open_read_only(self) -> sqlite3.Connection | None:
        """The file as it is; C{None} where to read it would change something."""
        log, index = (os.path.exists(self._file + suffix) for suffix in ("-wal", "-shm"))
        if log and not index:
            return None
        mode = "mode=ro" if log else "immutable=1"
        name = f"file:{quote(os.fsencode(self._file))}?{mode}"
        connection = sqlite3.connect(name, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        status = os.stat(self._file)
        self._identity = (status.st_dev, status.st_ino)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            raise sqlite3.DatabaseError("it has the form of another version")
        return connection

    def _is_frozen(self) -> bool:
        """Whether the folder lies on a file system that is mounted read-only."""
        try:
            return bool(os.statvfs(self._folder).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def _may_be_here(self) -> bool:
        """Whether the folder is there, and on a file system that is good for this."""
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False  # no repository yet, or the volume is gone
        try:
            if sys.platform == "linux" and not is_local(fd):
                self._complain(
                    "its file system is none of this machine's own; --state-dir may name a directory on one that is"
                )
                self._not_before = float("inf")
                return False
        finally:
            os.close(fd)
        return True

    def _make(self) -> None:
        """Make an empty file with the server's mode."""
        fd = os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, self._file_mode)
        finally:
            os.close(fd)

    def _remove(self, error: sqlite3.Error) -> None:
        """The file is broken: begin with a new one."""
        _log.warn("{path} is made anew: {error}", path=self._file, error=error)
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(self._file + suffix)

    def _complain(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            _log.warn("cannot use {path}: {reason}; the next start will take longer", path=self._file, reason=reason)

    def _key(self, path: str) -> bytes:
        return os.fsencode(path)[len(self._data) + 1 :]


def _use_log(connection: sqlite3.Connection) -> None:
    """
    Turn the write-ahead log on. SQLite does not wait here when another connection does the same to a new file: it says at
    once that the file is locked, because two that waited for each other would wait for ever.
    """
    # Where it does wait (another program has the file for itself) it is not to do so each time.
    connection.execute("PRAGMA busy_timeout = 0")
    for attempts_left in reversed(range(_LOG_ATTEMPTS)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not attempts_left:
                raise
            # Not time.sleep, which fails under libfaketime (EINVAL).
            threading.Event().wait(_BUSY_S / _LOG_ATTEMPTS)
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")


def _write(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(statement, rows)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


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
