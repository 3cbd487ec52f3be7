"""
What is stored, counted on disk: which repositories there are, and how much is in each directory of one.

Blocking, for a pool. A directory that has not changed since it was read costs one C{stat}
(L{resticserver.storage.directory_snapshots}).

A directory that cannot be read or entered (C{lost+found}, another user's folder, a dead FUSE mount) is skipped and logged
once (L{Skipped}): it must not stop the server from starting, or from counting and storing elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from twisted.logger import Logger

from ..names import CONFIG, TYPES, is_object_id
from ..sizes import Amount
from .directory_snapshots import Snapshots
from .folding import Spelling, means_reserved
from .interface import SizeChange
from .layout import CELLS, TRASH, Repository, cell_directory, repository_path
from .listing import DirectoryReader, open_and_read
from .trash import has_trash, trash_days, type_directories
from .volume import Volume

#: Errors of this process and not of the directory: the whole count is tried again.
_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: This many directories are named in the log at a time: a broken disk may have thousands.
MOST_NAMED = 50

_log = Logger()


class Skipped:
    """
    Directories that cannot be read. Each is logged once, and once more when it can be read again, as long as they are few
    (L{MOST_NAMED}). Safe from several threads.

    @ivar reasons: the system's error message for each, by path.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, path: str, error: OSError) -> None:
        """
        Note a directory that cannot be read.

        @raise OSError: the error is not the directory's, but this process's.
        """
        if error.errno in _OF_THE_PROCESS:
            raise error
        reason = error.strerror or str(error)
        with self._lock:
            if self.reasons.get(path) == reason:
                return
            self.reasons[path] = reason
            number = len(self.reasons)
        if number <= MOST_NAMED:
            words = "cannot read {path}: {reason}; it is skipped, and if it is part of a repository its last known size counts"
            _log.warn(words, path=ascii(path)[1:-1], reason=reason)
        elif number == MOST_NAMED + 1:
            _log.warn("more than {most} directories cannot be read: further ones are not logged", most=MOST_NAMED)

    def read(self, path: str) -> None:
        """Note a directory that was read: those above it can be entered."""
        if not self.reasons:
            return
        with self._lock:
            again = [one for one in self.reasons if path == one or path.startswith(one + "/")]
            for one in again:
                del self.reasons[one]
        for one in again[:MOST_NAMED]:
            _log.info("{path} can be read again", path=ascii(one)[1:-1])


class Counting:
    """
    Counts below one data directory.

    @param volume: checked whenever something is missing: a volume that goes away must not look like an empty one.
    @param max_depth: how many folders deep repositories may lie.
    @param size_changed: called when a directory is read again and an object has another size than before.
    @param spelling: a path that is spelled otherwise than on disk names no repository, and has nothing.
    @ivar skipped: directories that could not be read.
    """

    def __init__(
        self,
        path: str,
        volume: Volume,
        snapshots: Snapshots,
        max_depth: int,
        size_changed: Callable[[SizeChange], object] = lambda change: None,
        spelling: Spelling | None = None,
    ) -> None:
        self.skipped = Skipped()
        self._size_changed = size_changed
        self._path = path
        self._volume = volume
        self._snapshots = snapshots
        self._no_snapshots = Snapshots(bound_bytes=0)
        self._max_depth = max_depth
        self._spelling = spelling if spelling is not None else Spelling(path)

    # --- repositories

    def repositories(self) -> list[Repository]:
        """
        All repositories: folders with a config or one of restic's directories. Those in folders that cannot be read are missing.

        @raise Unavailable: the volume is gone.
        @raise OSError: the data directory itself cannot be read.
        """
        self._volume.check()
        found = [folders for folders in self.possible_repositories() if self.is_repository(folders)]
        self._volume.check()
        return found

    def is_repository(self, repository: Repository) -> bool:
        """Whether a folder has anything of restic's, if only in its trash."""
        if not self._spelling.has(repository):
            return False
        path = repository_path(self._path, repository)
        if any(os.path.lexists(f"{path}/{name}") for name in (CONFIG, *TYPES)):
            return True
        with suppress(OSError):
            return has_trash(self._path, repository)
        return False

    def possible_repositories(self) -> Iterator[Repository]:
        """
        All folders in which a repository may lie, the data directory included, as far down as repositories may lie and as far
        as folders can be read.

        @raise OSError: the data directory itself cannot be read.
        """
        return self._possible((), self._max_depth)

    def _possible(self, above: Repository, depth: int) -> Iterator[Repository]:
        folder = repository_path(self._path, above)
        try:
            os.stat(f"{folder}/.")  # fails if it may not be entered
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._skip(folder, error, is_top=not above)
            return
        yield above
        if depth == 0:
            return
        names = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self._is_directory(entry) and not means_reserved(folder, entry.name):
                        names.append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._skip(folder, error, is_top=not above)
            return
        self.skipped.read(folder)
        for name in names:
            yield from self._possible((*above, name), depth - 1)

    def _is_directory(self, entry: os.DirEntry[str]) -> bool:
        """Whether a folder's entry leads to a directory. One that cannot be looked at is skipped."""
        try:
            return entry.is_dir()
        except OSError as error:
            # A symlink to itself, or to where this user may not look; any entry on a file system that does not tell types.
            self._skip(entry.path, error)
            return False

    def _skip(self, path: str, error: OSError, is_top: bool = False) -> None:
        """
        Skip a directory that cannot be read.

        @raise Unavailable: because the volume is gone.
        @raise OSError: it is the data directory.
        """
        self._volume.check()
        if is_top:
            raise error
        self.skipped.add(path, error)

    # --- what is in them

    def begin(self) -> None:
        """Called before a number of counts."""
        self._snapshots.begin()

    def known(self, repository: Repository) -> dict[int, Amount]:
        """The cells of a repository that can be told without reading its directories."""
        self._volume.check()
        path = repository_path(self._path, repository)
        if not self._spelling.has(repository):
            self._volume.check()
            return dict.fromkeys(range(CELLS), Amount())
        found = {}
        if self._is_missing(f"{path}/data"):
            found = dict.fromkeys(range(256), Amount())
        for cell in range(len(found), CELLS):
            object_type, prefix = cell_directory(cell)
            if object_type == CONFIG:
                found |= self.count(repository, (cell,))
            elif object_type == TRASH:
                with suppress(OSError):  # the count fails with the reason
                    if not has_trash(self._path, repository):
                        found[cell] = Amount()
            elif object_type != "locks":
                amount = self._snapshots.amount(f"{path}/{object_type}/{prefix}" if prefix else f"{path}/{object_type}")
                if amount is not None:
                    found[cell] = amount
        self._volume.check()
        return found

    def count(self, repository: Repository, cells: Iterable[int]) -> dict[int, Amount]:
        """Cells, counted as the directories are now; those that cannot be read are left out."""
        if not self._spelling.has(repository):
            self._volume.check()
            return dict.fromkeys(cells, Amount())
        found = {}
        for cell in cells:
            path = self._cell_path(repository, cell)
            try:
                found[cell] = self._count(repository, path, cell)
            except OSError as error:
                self._skip(self.cause(repository, path), error)
            else:
                self.skipped.read(path)
        return found

    def _cell_path(self, repository: Repository, cell: int) -> str:
        """The directory of a cell, or the file of the config's."""
        object_type, prefix = cell_directory(cell)
        return repository_path(self._path, (*repository, object_type, *((prefix,) if prefix else ())))

    def cause(self, repository: Repository, path: str) -> str:
        """The topmost directory on the path of a cell that cannot be entered; the cell's own if all can."""
        for length in range(len(repository) + 1):
            folder = repository_path(self._path, repository[:length])
            if not _can_be_entered(folder):
                return folder
        above = os.path.dirname(path)
        return path if _can_be_entered(above) else above

    def _count(self, repository: Repository, path: str, cell: int) -> Amount:
        object_type, prefix = cell_directory(cell)
        if object_type == CONFIG:
            return self._config(path)
        if object_type == TRASH:
            return self._count_trash(repository)
        self._volume.check()
        reader = DirectoryReader(
            self._volume,
            self._no_snapshots if object_type == "locks" else self._snapshots,
            lambda name, known, found: self._size_changed(SizeChange(repository, object_type, name, known, found)),
        )
        size_bytes = objects = 0
        try:
            parts = open_and_read(reader, path, prefix)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            return Amount()
        for part in parts:
            assert part.sizes is not None
            size_bytes += sum(part.sizes)
            objects += len(part)
        # What is mounted in the volume's place may have a directory of the same name.
        self._volume.check()
        return Amount(size_bytes, objects)

    def _count_trash(self, repository: Repository) -> Amount:
        """All that lies in the trash of a repository."""
        self._volume.check()
        reader = DirectoryReader(self._volume, self._snapshots, lambda name, known, found: None)
        size_bytes = objects = 0
        for day in trash_days(self._path, repository):
            for _, path in type_directories(day):
                with suppress(FileNotFoundError):  # it was emptied in between
                    for part in open_and_read(reader, path, ""):
                        assert part.sizes is not None
                        size_bytes += sum(part.sizes)
                        objects += len(part)
        self._volume.check()
        return Amount(size_bytes, objects)

    def trash_ends_s(self, repository: Repository, delay_s: float) -> float | None:
        """
        Before this time nothing in the trash of a repository ends, in seconds since 1970; C{None} if it is empty, cannot be
        read, or does not end by itself.

        @param delay_s: the delay that is in force now.
        """
        try:
            days = trash_days(self._path, repository)
        except OSError:
            return None
        return min((ends_s for day in days if (ends_s := day.first_end_s(delay_s)) is not None), default=None)

    def _config(self, path: str) -> Amount:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            return Amount()
        return Amount(status.st_size, 1) if stat.S_ISREG(status.st_mode) else Amount()

    @staticmethod
    def _is_missing(path: str) -> bool:
        """Whether there certainly is no such directory."""
        try:
            return not stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # the count of what is in it fails with the reason

    # --- times

    def last_snapshot_s(self, repository: Repository, otherwise: float | None = None) -> float | None:
        """
        When the newest snapshot of a repository was stored, in seconds since 1970.

        @param otherwise: returned where the snapshots cannot be read, which a count logs.
        """
        try:
            return max(self._times(repository, "snapshots"), default=None)
        except OSError:
            return otherwise

    def oldest_lock_s(self, repository: Repository, otherwise: float | None = None) -> float | None:
        """When the oldest lock of a repository was made; as L{last_snapshot_s}."""
        try:
            return min(self._times(repository, "locks"), default=None)
        except OSError:
            return otherwise

    def created_s(self, repository: Repository, otherwise: float | None = None) -> float | None:
        """When the config of a repository was stored; C{None} if there is none. Otherwise as L{last_snapshot_s}."""
        if not self._spelling.has(repository):
            return None
        try:
            return os.stat(repository_path(self._path, (*repository, CONFIG))).st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return otherwise

    def _times(self, repository: Repository, object_type: str) -> Iterator[float]:
        if not self._spelling.has(repository):
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir(repository_path(self._path, (*repository, object_type))) as entries:
                for entry in entries:
                    if is_object_id(entry.name):
                        with suppress(FileNotFoundError):
                            yield entry.stat().st_mtime


def _can_be_entered(directory: str) -> bool:
    try:
        os.stat(f"{directory}/.")
    except (FileNotFoundError, NotADirectoryError):
        pass  # a missing directory is not the cause
    except OSError:
        return False
    return True
