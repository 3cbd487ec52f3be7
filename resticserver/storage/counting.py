"""
How much is stored, counted on disk: which repositories there are, and what is in each directory of one.

Blocking, for a pool. A directory that has not changed since it was read costs a look at it
(L{resticserver.storage.snapshots}).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..errors import NotFound
from ..names import CONFIG, TYPES, is_object_id
from ..sizes import Amount
from .folding import Spelling, means_reserved
from .ledger import CELLS, Repository, cell_directory
from .listing import DirectoryListing
from .snapshots import Snapshots
from .volume import Volume


class Counting:
    """
    Counts below one data directory.

    @param volume: asked whenever something is missing: a volume that goes away must not look like an empty one.
    @param max_depth: how many folders deep repositories may lie.
    @param spelling: a repository that was asked for in another spelling than it has on disk is none, and has nothing.
    """

    def __init__(
        self, path: str, volume: Volume, snapshots: Snapshots, max_depth: int, spelling: Spelling | None = None
    ) -> None:
        self._path = path
        self._volume = volume
        self._snapshots = snapshots
        self._no_snapshots = Snapshots(bound_bytes=0)
        self._max_depth = max_depth
        self._spelling = spelling if spelling is not None else Spelling(path)

    def repositories(self) -> list[Repository]:
        """
        All repositories: folders with a config or a directory of restic's.

        @raise Unavailable: the volume is gone.
        """
        self._volume.check()
        possible = possible_repositories(self._path, self._max_depth, strict=True)
        found = [folders for folders in possible if self.is_repository(folders)]
        self._volume.check()
        return found

    def is_repository(self, repository: Repository) -> bool:
        """Whether there is anything that restic has made."""
        path = "/".join((self._path, *repository))
        return self._spelling.has(repository) and any(os.path.lexists(f"{path}/{name}") for name in (CONFIG, *TYPES))

    def begin(self) -> None:
        """A number of counts begins."""
        self._snapshots.begin()

    def known(self, repository: Repository) -> dict[int, Amount]:
        """What can be told of a repository's cells without reading them."""
        self._volume.check()
        path = "/".join((self._path, *repository))
        if not self._spelling.has(repository):
            self._volume.check()
            return dict.fromkeys(range(CELLS), Amount())
        found = {}
        if not _is_there(f"{path}/data"):
            found = dict.fromkeys(range(256), Amount())
        for cell in range(len(found), CELLS):
            kind, prefix = cell_directory(cell)
            if kind == CONFIG:
                found[cell] = self._config(f"{path}/{CONFIG}")
            elif kind != "locks":
                amount = self._snapshots.amount(f"{path}/{kind}/{prefix}" if prefix else f"{path}/{kind}")
                if amount is not None:
                    found[cell] = amount
        self._volume.check()
        return found

    def count(self, repository: Repository, cells: Iterable[int]) -> dict[int, Amount]:
        """Cells, counted as the directories are now."""
        if not self._spelling.has(repository):
            self._volume.check()
            return dict.fromkeys(cells, Amount())
        return {cell: self._count(repository, cell) for cell in cells}

    def _count(self, repository: Repository, cell: int) -> Amount:
        path = "/".join((self._path, *repository))
        kind, prefix = cell_directory(cell)
        if kind == CONFIG:
            return self._config(f"{path}/{CONFIG}")
        listing = DirectoryListing(
            f"{path}/{kind}/{prefix}" if prefix else f"{path}/{kind}",
            self._volume,
            self._no_snapshots if kind == "locks" else self._snapshots,
            two_levels=False,
            with_sizes=True,
            prefix=prefix,
            makes_room=False,
        )
        size_bytes = objects = 0
        try:
            listing.open()
            for part in listing:
                assert part.sizes is not None
                size_bytes += sum(part.sizes)
                objects += len(part)
        except NotFound:
            return Amount()
        finally:
            listing.close()
        return Amount(size_bytes, objects)

    def last_snapshot_s(self, repository: Repository) -> float | None:
        """When the youngest snapshot of a repository was stored, in seconds since 1970."""
        return max(self._times(repository, "snapshots"), default=None)

    def oldest_lock_s(self, repository: Repository) -> float | None:
        """When the oldest lock of a repository was made, in seconds since 1970."""
        return min(self._times(repository, "locks"), default=None)

    def _times(self, repository: Repository, kind: str) -> Iterator[float]:
        if not self._spelling.has(repository):
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            with os.scandir("/".join((self._path, *repository, kind))) as entries:
                for entry in entries:
                    if is_object_id(entry.name):
                        with suppress(FileNotFoundError):
                            yield entry.stat().st_mtime

    def _config(self, path: str) -> Amount:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            return Amount()
        return Amount(status.st_size, 1) if stat.S_ISREG(status.st_mode) else Amount()


def _is_there(path: str) -> bool:
    """
    Whether there is such a directory.

    @raise OSError: that cannot be told.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def possible_repositories(
    path: str, depth: int, above: Repository = (), strict: bool = False
) -> Iterator[Repository]:
    """
    All folders below a directory in which a repository may lie, itself included, as far down as they may.

    @param strict: whether a folder that cannot be read is an error; one that we may not read (C{lost+found}) is none of ours.
    """
    yield above
    if depth == 0:
        return
    try:
        directory = "/".join((path, *above))
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not means_reserved(directory, entry.name)]
    except (PermissionError, FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        if strict:
            raise
        return
    for name in names:
        yield from possible_repositories(path, depth - 1, (*above, name), strict)
