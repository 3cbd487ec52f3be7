"""
A small SQLite database that may be deleted at any time. Nothing here fails a request: where the file cannot be read or
written that is logged once, and the server goes on as if it were empty.

Safe from several threads, and from several processes on one file system: SQLite's write-ahead log is made for that, and needs
a local file system.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar
from urllib.parse import quote

from twisted.logger import Logger

from .filesystem_types import is_local

#: How long to wait for another process that has the file locked.
_BUSY_S = 5.0
_LOG_ATTEMPTS = 500
#: How long the file is not used after an error.
_PAUSE_S = 60.0
#: The file is closed when it was not used for so long.
_IDLE_S = 5.0

#: SQL, and the rows that it is executed for; C{None} for a statement without values.
Statement = tuple[str, Sequence[tuple[object, ...]] | None]

T = TypeVar("T")

_log = Logger()


class DatabaseFile:
    """
    One database file. It is opened when it is needed, and made when something is first written to it.

    @param path: of the file. Its directory is not made.
    @param file_mode: of the file.
    @param may_be_frozen: whether a read-only file system is expected: then the file is read and never written.
    @param read_only: for a look from outside: the file is neither made nor changed, not even by being opened, because it
        belongs to the server's user.
    @cvar tables: the statements that make the tables, separated by semicolons.
    @cvar version: of the tables; a file with another version is made anew.
    @cvar consequence: of a file that cannot be used, for the log.
    """

    tables: str
    version: int
    consequence = "the next start will take longer"

    def __init__(self, path: str, file_mode: int, read_only: bool, may_be_frozen: bool) -> None:
        self._folder = os.path.dirname(path)
        self._file = path
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
        self._complained: str | None = None

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close_if_idle(self) -> None:
        """Close the file if it was not used for a while: a volume with an open file cannot be unmounted."""
        with self._lock:
            if time.monotonic() - self._used_s > _IDLE_S:
                self._close()

    def _rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """What a query finds; nothing where the file cannot be read."""
        return self._run(lambda connection: connection.execute(statement, values).fetchall()) or []

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
                return None  # larger than SQLite's integers: sparse files of absurd sizes
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
            self._close()  # the file was deleted, or there is another volume or none
        if self._read_only or self._frozen:
            return self._open_read_only() if status is not None else None
        if (status is None and not make) or not self._may_be_here():
            return None
        if status is None:
            self._make()
        connection = self._connect(self._file)
        _use_log(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        # Otherwise SQLite sorts and undoes with a file in a temporary directory, and there may be none.
        connection.execute("PRAGMA temp_store = MEMORY")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:  # no other process was faster
                for table in filter(str.strip, self.tables.split(";")):
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {self.version}")
            connection.execute("COMMIT")
        elif version != self.version:
            raise sqlite3.DatabaseError(f"schema version {version} is not supported")
        return connection

    def _open_read_only(self) -> sqlite3.Connection | None:
        """Open the file as it is; C{None} where reading it would change something."""
        log, index = (os.path.exists(self._file + suffix) for suffix in ("-wal", "-shm"))
        if log and not index:
            return None
        mode = "mode=ro" if log else "immutable=1"
        connection = self._connect(f"file:{quote(os.fsencode(self._file))}?{mode}", uri=True)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != self.version:
            raise sqlite3.DatabaseError("its schema version is not supported")
        return connection

    def _connect(self, name: str, uri: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(name, uri=uri, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        status = os.stat(self._file)
        self._identity = (status.st_dev, status.st_ino)
        return connection

    def _is_frozen(self) -> bool:
        """Whether the folder lies on a file system that is mounted read-only."""
        try:
            return bool(os.statvfs(self._folder).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def _may_be_here(self) -> bool:
        """Whether the folder is there, on a file system that SQLite's log works on."""
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False  # no repository yet, or the volume is gone
        try:
            if sys.platform == "linux" and not is_local(fd):
                self._complain("it is not on a local file system; set --state-dir to a directory that is")
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
        """Remove a broken file; the next write makes a new one."""
        _log.warn("recreating {path}: {error}", path=self._file, error=error)
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(self._file + suffix)

    def _complain(self, reason: str) -> None:
        """Log once why the file cannot be used."""
        if reason != self._complained:
            self._complained = reason
            words = "cannot use {path}: {reason}; {consequence}"
            _log.warn(words, path=self._file, reason=reason, consequence=self.consequence)


def _use_log(connection: sqlite3.Connection) -> None:
    """
    Turn the write-ahead log on. When two connections do this to a new file at the same time, SQLite does not wait but fails
    at once, because two that waited for each other would wait forever.
    """
    # Where it does wait (another program has the whole file locked) it must not do so at each attempt.
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


def write(connection: sqlite3.Connection, *statements: Statement) -> None:
    """Execute statements in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, rows in statements:
            if rows is None:
                connection.execute(statement)
            else:
                connection.executemany(statement, rows)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
