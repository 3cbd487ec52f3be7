"""
What the scrub knows: for each object directory when it was checked and what was in it, and the problems that were found. One
SQLite database, C{scrub.sqlite3} beside the state file. The server and C{rest-server scrub} share it.

Deleting it begins the scrub anew: then nothing is known that could be missing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from ..files import Stamp
from .database import DatabaseFile, Statement, write
from .layout import Repository
from .object_check import KINDS, FileVersion
from .volume import FOLDER

FILE = "scrub.sqlite3"

#: The bytes of an object's name in the database; a config has those of zeros.
ID_BYTES = 32
_CONFIG = bytes(ID_BYTES)

#: So many problems of a repository are named on the status page.
MOST_NAMED = 100
#: So many are looked at again at a time.
MOST_LOOKED_AT = 1000

T = TypeVar("T")


class ScrubUnavailable(Exception):
    """The database cannot be used now."""


class DirectoryRow(NamedTuple):
    """
    What is known of an object directory.

    @ivar checked_s: when the last complete check of it began, in seconds since 1970; 0.0 if there was none.
    @ivar began_s: when the check that is under way began; C{None} if none is.
    @ivar upto: the last name in order that this check has come to, all before it included; empty for none.
    @ivar stamp: of the directory when it was read last; C{None} if it may have changed since without another stamp.
    @ivar size_bytes: of the objects in it.
    @ivar objects: how many there were.
    @ivar names: the objects that are known to be in it, so that they are missing if they vanish; C{None} if they were not
        asked for.
    """

    checked_s: float
    began_s: float | None
    upto: str
    stamp: Stamp | None
    size_bytes: int
    objects: int
    names: frozenset[str] | None = None


#: A repository and one of its cells (L{resticserver.storage.layout}).
Key = tuple[Repository, int]


class Problem(NamedTuple):
    """
    A stored object with a problem.

    @ivar kind: one of L{KINDS}.
    @ivar since_s: when that was found, in seconds since 1970.
    @ivar version: of the file when it was checked; C{None} if there was none.
    """

    repository: Repository
    type: str
    name: str
    kind: str
    since_s: float
    reason: str
    version: FileVersion | None = None


class ProblemCount(NamedTuple):
    """How many problems of a kind a repository has."""

    repository: Repository
    kind: str
    number: int


class ScrubState(DatabaseFile):
    """
    The database of one data directory.

    @param path: the data directory.
    @param directory: where the file lies; C{None} for the data directory's own folder.
    @param file_mode: of the file; the others as for L{DatabaseFile}.
    @ivar lasts: whether the results are kept: false once the file could not be used at the first attempt, as on a read-only or
        a network file system. Then they are in memory.
    """

    version = 1
    consequence = "a restart begins the scrub anew"
    tables = """
CREATE TABLE directory (
    repository BLOB NOT NULL, cell INTEGER NOT NULL,
    checked_s REAL NOT NULL, began_s REAL, upto TEXT NOT NULL,
    stamp TEXT NOT NULL, size_bytes INTEGER NOT NULL, objects INTEGER NOT NULL, names BLOB NOT NULL,
    PRIMARY KEY (repository, cell)
);
CREATE TABLE problem (
    repository BLOB NOT NULL, type TEXT NOT NULL, name TEXT NOT NULL,
    kind TEXT NOT NULL, since_s REAL NOT NULL, reason TEXT NOT NULL, version TEXT NOT NULL,
    PRIMARY KEY (repository, type, name)
) WITHOUT ROWID;
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

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
        self._memory: sqlite3.Connection | None = None
        self._tried = False

    @property
    def path(self) -> str:
        """The path of the file."""
        return self._file

    @property
    def lasts(self) -> bool:
        """Whether the results are kept for the next start."""
        return self._memory is None

    def stamp(self) -> object:
        """Differs after another process has written to the file."""
        found = []
        for path in (self._file, self._file + "-wal"):
            try:
                status = os.stat(path)
            except OSError:
                continue
            if status.st_size:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found

    def _write(self, *statements: Statement) -> None:
        """
        @raise ScrubUnavailable: nothing was written.
        """

        def work(connection: sqlite3.Connection) -> bool:
            write(connection, *statements)
            return True

        self._do(work)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Do something with the file, which is made if it is missing; or with what is in memory.

        @raise ScrubUnavailable: the file cannot be used now.
        """
        if self._memory is None:
            found = self._run(work, make=True)
            if found is not None:
                self._tried = True
                return found
            if self._tried:
                raise ScrubUnavailable(f"cannot use {self._file}")
            with self._lock:
                self._tried = True
                self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                self._memory.executescript(self.tables)
        with self._lock:
            return work(self._memory)

    def _all(self, statement: str, *values: object) -> list[Any]:
        return self._do(lambda connection: connection.execute(statement, values).fetchall())

    # --- directories

    def directories(self) -> dict[Key, DirectoryRow]:
        """All directories, without the names."""
        statement = "SELECT repository, cell, checked_s, began_s, upto, stamp, size_bytes, objects FROM directory"
        return {
            (_repository(repository), cell): DirectoryRow(
                checked_s, began_s, upto, _numbers_of(stamp, 4), size_bytes, objects
            )
            for repository, cell, checked_s, began_s, upto, stamp, size_bytes, objects in self._all(statement)
        }

    def repositories(self) -> list[Repository]:
        """The repositories with directories that are known."""
        return [_repository(name) for (name,) in self._all("SELECT DISTINCT repository FROM directory")]

    def directory(self, key: Key) -> DirectoryRow | None:
        """One directory, with the names."""
        statement = (
            "SELECT checked_s, began_s, upto, stamp, size_bytes, objects, names FROM directory "
            "WHERE repository = ? AND cell = ?"
        )
        for checked_s, began_s, upto, stamp, size_bytes, objects, names in self._all(statement, _name(key[0]), key[1]):
            return DirectoryRow(
                checked_s, began_s, upto, _numbers_of(stamp, 4), size_bytes, objects, _unpacked(bytes(names))
            )
        return None

    def put_directories(self, rows: Iterable[tuple[Key, DirectoryRow]]) -> None:
        """Store directories; those without names keep the names that are stored."""
        whole, positions = [], []
        for (repository, cell), row in rows:
            stamp = "" if row.stamp is None else " ".join(map(str, row.stamp))
            values = (row.checked_s, row.began_s, row.upto, stamp, row.size_bytes, row.objects)
            if row.names is None:
                positions.append((*values, _name(repository), cell))
            else:
                whole.append((_name(repository), cell, *values, _packed(row.names)))
        update = (
            "UPDATE directory SET checked_s = ?, began_s = ?, upto = ?, stamp = ?, size_bytes = ?, objects = ? "
            "WHERE repository = ? AND cell = ?"
        )
        self._write(("INSERT OR REPLACE INTO directory VALUES (?,?,?,?,?,?,?,?,?)", whole), (update, positions))

    def forget_directories(self, keys: Iterable[Key]) -> None:
        """Remove what is known of directories."""
        rows = [(_name(repository), cell) for repository, cell in keys]
        self._write(("DELETE FROM directory WHERE repository = ? AND cell = ?", rows))

    # --- problems

    def put_problems(self, problems: Iterable[Problem]) -> None:
        """Store problems; one that an object had before is replaced."""
        rows = [
            (
                *(_name(one.repository), one.type, one.name, one.kind, one.since_s, one.reason),
                "" if one.version is None else " ".join(map(str, one.version)),
            )
            for one in problems
        ]
        self._write(("INSERT OR REPLACE INTO problem VALUES (?,?,?,?,?,?,?)", rows))

    def remove_problems(self, problems: Iterable[Problem]) -> None:
        """Remove problems."""
        rows = [(_name(one.repository), one.type, one.name) for one in problems]
        self._write(("DELETE FROM problem WHERE repository = ? AND type = ? AND name = ?", rows))

    def problems(
        self, repository: Repository | None = None, object_type: str = "", name: str = "", most: int = -1
    ) -> list[Problem]:
        """
        Problems, the oldest first.

        @param repository: only of this one; C{object_type} and C{name} likewise, if they are not empty.
        @param most: how many; -1 for all.
        """
        where: list[tuple[str, object]] = [] if repository is None else [("repository = ?", _name(repository))]
        where += [("type = ?", object_type)] if object_type else []
        where += [("name = ?", name)] if name else []
        statement = "SELECT repository, type, name, kind, since_s, reason, version FROM problem "
        statement += f"WHERE {' AND '.join(one for one, _ in where)} " if where else ""
        statement += "ORDER BY since_s, repository, type, name LIMIT ?"
        values = [value for _, value in where]
        return [
            Problem(_repository(blob), type_, id_, kind, since_s, reason, _numbers_of(version, 4))
            for blob, type_, id_, kind, since_s, reason, version in self._all(statement, *values, most)
        ]

    def problem_counts(self) -> list[ProblemCount]:
        """How many problems each repository has, by kind."""
        statement = "SELECT repository, kind, COUNT(*) FROM problem GROUP BY repository, kind ORDER BY repository, kind"
        return [
            ProblemCount(_repository(repository), kind, number)
            for repository, kind, number in self._all(statement)
            if kind in KINDS
        ]

    # --- facts

    def facts(self) -> dict[str, str]:
        """What else is stored, by keys of L{resticserver.storage.scrub}."""
        return dict(self._all("SELECT key, value FROM fact"))

    def put_facts(self, **facts: object) -> None:
        """Store facts; C{None} removes one."""
        set_ = [(key, str(value)) for key, value in facts.items() if value is not None]
        unset = [(key,) for key, value in facts.items() if value is None]
        self._write(("INSERT OR REPLACE INTO fact VALUES (?,?)", set_), ("DELETE FROM fact WHERE key = ?", unset))


def _name(repository: Repository) -> bytes:
    return os.fsencode("/".join(repository))


def _repository(name: bytes) -> Repository:
    return tuple(os.fsdecode(bytes(name)).split("/")) if name else ()


def _numbers_of(text: str, number: int) -> Any:
    """Numbers of a text with so many of them; C{None} for another text."""
    found = tuple(map(int, text.split()))
    return found if len(found) == number else None


def _packed(names: Iterable[str]) -> bytes:
    return b"".join(bytes.fromhex(name) if len(name) == 2 * ID_BYTES else _CONFIG for name in sorted(names))


def _unpacked(ids: bytes) -> frozenset[str]:
    found = (ids[first : first + ID_BYTES] for first in range(0, len(ids), ID_BYTES))
    return frozenset("config" if one == _CONFIG else one.hex() for one in found)
