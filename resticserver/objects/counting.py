"""
What is stored in a bucket, counted by lists: which repositories there are, and how much is in each directory of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from ..names import CONFIG, TYPES, is_folder_name, is_object_id
from ..sizes import Amount
from ..storage.layout import CELLS, TRASH, TRASH_CELL, Repository, cell_directory, cell_of
from ..storage.trash import KEPT_TYPES
from ..storage.volume import FOLDER, Volume
from .engine import Engine, Found
from .layout import Keys, name_in
from .versions import S3Versions, Version

#: A repository with more pages is counted directory by directory: nothing may change in what is being counted, so uploads wait.
_MOST_PAGES = 10


class BucketCounting:
    """
    See L{resticserver.storage.interface.Counts}.

    @param max_depth: how many folders deep repositories may lie.
    @ivar versions: the old versions of deleted objects, to be counted as the trash; C{None} if they are not.
    """

    def __init__(self, engine: Engine, keys: Keys, volume: Volume, max_depth: int) -> None:
        self._engine = engine
        self._keys = keys
        self._volume = volume
        self._max_depth = max_depth
        self.versions: S3Versions | None = None

    # --- repositories

    def repositories(self) -> list[Repository]:
        """See L{resticserver.storage.interface.Counts.repositories}."""
        self._volume.check()
        return list(self._below((), self._max_depth))

    def repositories_of(self, user: str) -> list[Repository]:
        """The repositories in a user's folder."""
        self._volume.check()
        return list(self._below((user,), self._max_depth - 1))

    def _below(self, above: Repository, depth: int) -> Iterator[Repository]:
        prefix = self._keys.repository(above)
        folders, names = self._engine.list_folder(prefix)
        kept = [] if self.versions is None else self.versions.folders(prefix)
        is_there = CONFIG in names or any(name in folders for name in TYPES) or self._has_marker(prefix, folders)
        if is_there or self._has_trash(above, kept):
            yield above
        if depth:
            for folder in sorted({*folders, *kept}):
                if is_folder_name(folder):
                    yield from self._below((*above, folder), depth - 1)

    def _has_marker(self, prefix: str, folders: list[str]) -> bool:
        """Whether a repository is there that has nothing yet. The bucket's own folder is no repository's."""
        if FOLDER not in folders:
            return False
        return self._keys.is_repository_marker(self._engine.list_folder(f"{prefix}{FOLDER}/")[1])

    def _has_trash(self, repository: Repository, kept: list[str]) -> bool:
        """
        Whether a repository that was deleted as a whole has anything left.

        @param kept: the folders in it that have versions, if only of what is deleted.
        """
        possible = [name for name in KEPT_TYPES if name == CONFIG or name in kept]
        return any(True for _ in self._old_versions(repository, possible))

    # --- what is in them

    def begin(self) -> None:
        """See L{resticserver.storage.interface.Counts.begin}."""

    def known(self, repository: Repository) -> dict[int, Amount]:
        """
        See L{resticserver.storage.interface.Counts.known}: all of a small repository, which takes few requests then, and nothing
        of a large one.
        """
        self._volume.check()
        prefix = self._keys.repository(repository)
        found = dict.fromkeys(range(CELLS), Amount())
        pages = 0
        for object_type in (*TYPES, CONFIG):
            of_type = prefix + object_type if object_type == CONFIG else self._keys.objects(repository, object_type)
            for page in self._engine.list_pages(of_type):
                pages += 1
                if pages > _MOST_PAGES:
                    return {}
                for one in page:
                    name = CONFIG if object_type == CONFIG and not one.key else name_in(one.key, object_type)
                    if name == CONFIG or is_object_id(name):
                        cell = cell_of(object_type, name)
                        size_bytes, objects = found[cell]
                        found[cell] = Amount(size_bytes + one.size_bytes, objects + 1)
        found[TRASH_CELL] = self._trash(repository)
        return found

    def count(self, repository: Repository, cells: Iterable[int]) -> dict[int, Amount]:
        """See L{resticserver.storage.interface.Counts.count}."""
        self._volume.check()
        return {cell: self._count(repository, cell) for cell in cells}

    def _count(self, repository: Repository, cell: int) -> Amount:
        object_type, folder = cell_directory(cell)
        size_bytes = objects = 0
        if object_type == CONFIG:
            found = self._config(repository)
            return Amount() if found is None else Amount(found.size_bytes, 1)
        if object_type == TRASH:
            return self._trash(repository)
        prefix = self._keys.objects(repository, object_type) + (f"{folder}/" if folder else "")
        for page in self._engine.list_pages(prefix):
            for found in page:
                if is_object_id(found.key) and found.key.startswith(folder):
                    size_bytes += found.size_bytes
                    objects += 1
        return Amount(size_bytes, objects)

    def _trash(self, repository: Repository) -> Amount:
        size_bytes = objects = 0
        for one in self._old_versions(repository, KEPT_TYPES):
            size_bytes += one.size_bytes
            objects += 1
        return Amount(size_bytes, objects)

    def _old_versions(self, repository: Repository, types: Iterable[str]) -> Iterator[Version]:
        """The old versions of what restic stores. Locks have some too, which are not worth a look."""
        if self.versions is None:
            return
        for object_type in types:
            is_config = object_type == CONFIG
            prefix = self._keys.repository(repository) + (CONFIG if is_config else f"{object_type}/")
            for page in self.versions.pages(prefix):
                for one in page:
                    is_object = not one.key if is_config else is_object_id(name_in(one.key, object_type))
                    if is_object and not one.is_latest and not one.is_marker:
                        yield one

    def _config(self, repository: Repository) -> Found | None:
        """The config; C{None} if there is none."""
        # Keys come in order, so the first one is it.
        for page in islice(self._engine.list_pages(self._keys.repository(repository) + CONFIG), 1):
            for found in page[:1]:
                return found if not found.key else None
        return None

    # --- times

    def trash_ends_s(self, repository: Repository, delay_s: float) -> float | None:
        """See L{resticserver.storage.interface.Counts.trash_ends_s}: there is no trash."""
        return None

    def last_snapshot_s(self, repository: Repository, otherwise: float | None = None) -> float | None:
        """See L{resticserver.storage.interface.Counts.last_snapshot_s}."""
        return max(self._times(repository, "snapshots"), default=None)

    def oldest_lock_s(self, repository: Repository, otherwise: float | None = None) -> float | None:
        """See L{resticserver.storage.interface.Counts.oldest_lock_s}."""
        return min(self._times(repository, "locks"), default=None)

    def created_s(self, repository: Repository, otherwise: float | None = None) -> float | None:
        """See L{resticserver.storage.interface.Counts.created_s}."""
        found = self._config(repository)
        return None if found is None else found.modified_s

    def _times(self, repository: Repository, object_type: str) -> Iterator[float]:
        for page in self._engine.list_pages(self._keys.objects(repository, object_type)):
            for found in page:
                if is_object_id(found.key):
                    yield found.modified_s
