"""
The files of a data directory, as the scrub sees them: L{resticserver.storage.scrubbed.Scrubbed}.

A directory whose times have not changed since the last look costs one C{stat}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from ..files import is_there
from ..names import CONFIG
from ..threads.rate_limit import RateLimit, Stopped
from .counting import Counting
from .directories import DataDirectory
from .layout import TRASH_CELL, Repository, cell_directory
from .object_check import Check, FileVersion, check_object, version_at
from .object_directory import Contents, cell_path, is_in_trash, read_directory, stamp_at
from .scrub_state import DirectoryRow, Key


class ScrubbedFiles:
    """
    See L{resticserver.storage.scrubbed.Scrubbed}.

    @param directories: the data directory, and C{counting} what is in it.
    """

    is_remote = False
    requests: Mapping[str, int] = MappingProxyType({})

    def __init__(self, directories: DataDirectory, counting: Counting) -> None:
        self._path = directories.path
        self._volume = directories.volume
        self._counting = counting

    def check_there(self) -> None:
        """See L{Scrubbed.check_there}."""
        self._volume.check()

    def repositories(self) -> list[Repository]:
        """See L{Scrubbed.repositories}."""
        return self._counting.repositories()

    def look(
        self, repositories: Iterable[Repository] | None, known: Mapping[Key, DirectoryRow], limit: RateLimit
    ) -> Iterator[tuple[Key, Contents | OSError]]:
        """See L{Scrubbed.look}."""
        for repository in self.repositories() if repositories is None else repositories:
            for cell in range(TRASH_CELL):
                if limit.stopped:
                    raise Stopped()
                key, path = (repository, cell), cell_path(self._path, repository, cell)
                row = known.get(key)
                try:
                    stamp = stamp_at(path)
                    if row is None and stamp is None and not is_there(path):
                        continue
                    if row is not None and row.stamp is not None and row.stamp == stamp:
                        continue
                    contents = read_directory(self._volume, path, cell)
                except OSError as error:
                    yield key, error
                    continue
                self._counting.skipped.read(path)
                yield key, contents

    def contents(self, key: Key) -> Contents:
        """See L{Scrubbed.contents}."""
        return read_directory(self._volume, cell_path(self._path, *key), key[1])

    def cannot_read(self, key: Key, error: OSError) -> str:
        """See L{Scrubbed.cannot_read}."""
        self._volume.check()
        path = self._counting.cause(key[0], cell_path(self._path, *key))
        self._counting.skipped.add(path, error)
        return path

    def check(self, key: Key, name: str, limit: RateLimit) -> Check:
        """See L{Scrubbed.check}."""
        return check_object(self._object_path(key, name), name, limit)

    def version(self, key: Key, name: str) -> FileVersion | None:
        """See L{Scrubbed.version}."""
        try:
            return version_at(self._object_path(key, name))
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            return None

    def may_be_there(self, key: Key, name: str) -> bool:
        """See L{Scrubbed.may_be_there}: what cannot be looked at is not called missing."""
        try:
            return is_there(self._object_path(key, name))
        except OSError:
            return True

    def was_deleted(self, repository: Repository, object_type: str, name: str) -> bool:
        """See L{Scrubbed.was_deleted}: whether it lies in the trash."""
        return is_in_trash(self._path, repository, object_type, name)

    def _object_path(self, key: Key, name: str) -> str:
        path = cell_path(self._path, *key)
        return path if cell_directory(key[1])[0] == CONFIG else f"{path}/{name}"
