"""
A bucket, as the scrub sees it: L{resticserver.storage.scrubbed.Scrubbed}. Requests cost money, so there are few of them.

 - A look at everything is one flat list, a page for each 1,000 objects. Directories have no stamp of the engine's, so theirs is
   made from their lists: what has not changed is not compared again.
 - In a pass, the folders of C{data} come from a list that goes on from one folder to the next.
 - An object is read by one request, at the engine's speed: a body that is read slowly would be cut off by the engine. Whoever
   reads next waits until the rate allows for it.
 - A damaged or unreadable object is read twice, and its version is looked at by a list, which unlike a HEAD tells the time.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from ..files import Stamp
from ..names import CONFIG, TYPES, is_folder_name, is_object_id
from ..storage.layout import Repository, cell_directory, cell_of
from ..storage.object_check import Check, FileVersion, Finding
from ..storage.object_directory import Contents
from ..storage.scrub_state import DirectoryRow, Key
from ..storage.volume import Volume
from ..threads.rate_limit import RateLimit, Stopped
from .engine import Absent, BucketMissing, Engine, EngineError, Found
from .layout import Keys

#: The kinds of requests, as they are counted.
LIST, GET = "list", "get"

#: The pause before an object that could not be read is tried once more, in seconds.
AGAIN_S = 1.0
_MOST_READINGS = 3
#: A list is not continued after so long, in seconds, but begun again after its last key: what it is continued with may expire.
_TOKEN_S = 60.0

_CONFIG_CELL = cell_of(CONFIG, CONFIG)


class BucketScrubbed:
    """
    See L{resticserver.storage.scrubbed.Scrubbed}.

    @param max_depth: how many folders deep repositories may lie.
    """

    is_remote = True

    def __init__(self, engine: Engine, keys: Keys, volume: Volume, max_depth: int) -> None:
        self._engine = engine
        self._keys = keys
        self._volume = volume
        self._max_depth = max_depth
        self._lock = threading.Lock()
        self._requests = Counter({LIST: 0, GET: 0})
        self._ahead: tuple[Repository, _Ahead] | None = None

    @property
    def requests(self) -> Mapping[str, int]:
        """See L{Scrubbed.requests}."""
        return self._requests

    def _count(self, kind: str) -> None:
        with self._lock:
            self._requests[kind] += 1

    def check_there(self) -> None:
        """See L{Scrubbed.check_there}."""
        self._count(GET)
        self._volume.check()

    # --- lists

    def repositories(self) -> None:
        """See L{Scrubbed.repositories}: the list of everything finds them, and a look before it would cost as much."""

    def look(
        self, repositories: Iterable[Repository] | None, known: Mapping[Key, DirectoryRow], limit: RateLimit
    ) -> Iterator[tuple[Key, Contents | OSError]]:
        """See L{Scrubbed.look}."""
        self.check_there()
        self._ahead = None
        wanted = None if repositories is None else sorted(repositories)
        seen: set[Key] = set()
        for above in wanted or [()]:
            for key, contents in self._directories(above, limit):
                if wanted is not None and key[0] != above:
                    continue  # another repository below this one
                seen.add(key)
                row = known.get(key)
                if row is None or row.stamp != contents.stamp:
                    yield key, contents
        # An empty list of another bucket must not look as if all were deleted.
        self.check_there()
        for key in sorted(key for key in known if key not in seen and (wanted is None or key[0] in wanted)):
            yield key, Contents(there=False)

    def contents(self, key: Key) -> Contents:
        """See L{Scrubbed.contents}."""
        repository, cell = key
        object_type, folder = cell_directory(cell)
        if object_type == CONFIG:
            found = self._found(key, CONFIG)
            items = [] if found is None else [_Item(key, CONFIG, found)]
        elif object_type == "data":
            items = [
                _Item(key, one.key[3:], one)
                for one in self._data(repository).folder(folder)
                if is_object_id(one.key[3:]) and one.key[3:5] == folder
            ]
        else:
            pages = self._pages(self._keys.objects(repository, object_type))
            items = [_Item(key, one.key, one) for page in pages for one in page if is_object_id(one.key)]
        if not items:
            self.check_there()
        return _contents(items)

    def _data(self, repository: Repository) -> _Ahead:
        """The folders of C{data}."""
        if self._ahead is None or self._ahead[0] != repository:
            prefix = self._keys.objects(repository, "data")
            self._ahead = (repository, _Ahead(lambda after: self._pages(prefix, after)))
        return self._ahead[1]

    def _pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """The pages of a list, counted."""
        pages = iter(self._engine.list_pages(prefix, after))
        is_first = True
        while True:
            try:
                page = next(pages, None)
            except EngineError:
                self._count(LIST)
                raise
            if page is not None or is_first:
                self._count(LIST)
            if page is None:
                return
            is_first = False
            yield page

    def _directories(self, above: Repository, limit: RateLimit) -> Iterator[tuple[Key, Contents]]:
        """
        All object directories that have objects, one after the other: their keys are together in a list.

        @param above: of repositories at or below this folder.
        """
        for key, items in groupby(self._items(above, limit), lambda item: item.directory):
            yield key, _contents(items)

    def _items(self, above: Repository, limit: RateLimit) -> Iterator[_Item]:
        folder: str | None = None
        key: Key | None = None
        for page in self._pages(self._keys.repository(above)):
            if limit.stopped:
                raise Stopped()
            for found in page:
                directory, _, name = found.key.rpartition("/")
                if directory != folder:
                    folder, key = directory, self._directory(above, directory)
                if name == CONFIG:
                    if (repository := self._repository((*above, *_folders(directory)))) is not None:
                        yield _Item((repository, _CONFIG_CELL), CONFIG, found)
                elif key is not None and is_object_id(name) and (key[1] > 255 or int(name[:2], 16) == key[1]):
                    yield _Item(key, name, found)

    def _directory(self, above: Repository, directory: str) -> Key | None:
        """The object directory that a folder is; C{None} for another folder."""
        folders = (*above, *_folders(directory))
        if len(folders) >= 2 and folders[-2] == "data" and is_object_id(folders[-1] + "0" * 62):
            repository, cell = self._repository(folders[:-2]), int(folders[-1], 16)
        elif folders and folders[-1] in TYPES and folders[-1] != "data":
            repository, cell = self._repository(folders[:-1]), cell_of(folders[-1], "")
        else:
            return None
        return None if repository is None else (repository, cell)

    def _repository(self, folders: Repository) -> Repository | None:
        """The folders, if a repository may lie there."""
        return folders if len(folders) <= self._max_depth and all(map(is_folder_name, folders)) else None

    # --- single objects

    def cannot_read(self, key: Key, error: OSError) -> str:
        """See L{Scrubbed.cannot_read}: that is no error of a directory."""
        raise error

    def check(self, key: Key, name: str, limit: RateLimit) -> Check:
        """See L{Scrubbed.check}."""
        read_bytes = 0
        before: FileVersion | None = None
        found = Check(Finding.CHANGING)
        for _ in range(_MOST_READINGS):
            found = self._read(key, name, limit)
            read_bytes += found.read_bytes
            if found.finding not in (Finding.DAMAGED, Finding.UNREADABLE):
                break
            # This also fails if the engine is down, which is nothing about the object.
            version = self.version(key, name)
            if version is None:
                found = Check(Finding.GONE)
                break
            if version == before:
                if found.finding is Finding.UNREADABLE:
                    self.check_there()  # reads another object
                found = Check(found.finding, found.reason, version)
                break
            before = version
            if found.finding is Finding.UNREADABLE:
                limit.pause(AGAIN_S)
        else:
            found = Check(Finding.CHANGING)
        return Check(found.finding, found.reason, found.version, read_bytes)

    def _read(self, key: Key, name: str, limit: RateLimit) -> Check:
        """Read and hash an object once."""
        limit.take(0)  # waits for what was read before
        digest, size_bytes = hashlib.sha256(), 0
        self._count(GET)
        try:
            body = self._engine.get(self._keys.object(key[0], cell_directory(key[1])[0], name))
            try:
                while piece := body.read():
                    digest.update(piece)
                    size_bytes += len(piece)
                    if limit.stopped:
                        raise Stopped()
            finally:
                body.close()
        except Absent:
            self.check_there()
            return Check(Finding.GONE)
        except BucketMissing:
            raise
        except EngineError as error:
            return Check(Finding.UNREADABLE, error.detail or error.message, None, size_bytes)
        limit.take(size_bytes)
        if name in (digest.hexdigest(), CONFIG):
            return Check(Finding.GOOD, "", None, size_bytes)
        reason = f"its {size_bytes} bytes have the SHA-256 {digest.hexdigest()}"
        return Check(Finding.DAMAGED, reason, None, size_bytes)

    def version(self, key: Key, name: str) -> FileVersion | None:
        """See L{Scrubbed.version}."""
        found = self._found(key, name)
        if found is None:
            self.check_there()
            return None
        return 0, found.size_bytes, int(found.modified_s * 1e9), 0

    def _found(self, key: Key, name: str) -> Found | None:
        """An object as a list has it; C{None} if it is not there."""
        # Keys come in order, so the first one is it.
        for page in self._pages(self._keys.object(key[0], cell_directory(key[1])[0], name)):
            return page[0] if not page[0].key else None
        return None

    def may_be_there(self, key: Key, name: str) -> bool:
        """See L{Scrubbed.may_be_there}: a list is whole, and nothing is called missing because of it."""
        return False

    def was_deleted(self, repository: Repository, object_type: str, name: str) -> bool:
        """See L{Scrubbed.was_deleted}: another front end may have deleted it, or restic itself."""
        return True


class _Item(NamedTuple):
    """An object of an object directory."""

    directory: Key
    name: str
    found: Found


class _Ahead:
    """
    The folders of one repository's C{data}, asked for in ascending order: what a page of the list has beyond a folder is kept for
    the next one. That may be older than the question, and what vanished since is noticed when it is read.

    @param pages: lists the objects after a key.
    """

    def __init__(self, pages: Callable[[str], Iterator[list[Found]]]) -> None:
        self._list = pages
        self._pages: Iterator[list[Found]] = iter(())
        self._page: list[Found] = []
        self._asked_s = float("-inf")
        self._last = ""

    def folder(self, folder: str) -> list[Found]:
        """What is in a folder."""
        if folder <= self._last:
            self._page = []
        self._last = folder
        self._page = [one for one in self._page if one.key[:2] >= folder]
        if not self._page:
            # A key below the folder that comes before all of its objects.
            self._begin(f"{folder}/-")
        found: list[Found] = []
        while self._page:
            here = [one for one in self._page if one.key.startswith(f"{folder}/")]
            found += here
            rest = [one for one in self._page if one.key[:3] > f"{folder}/"]
            if rest:
                self._page = rest
                return found
            if time.monotonic() - self._asked_s > _TOKEN_S:
                self._begin(self._page[-1].key)
            else:
                self._next()
        return found

    def _begin(self, after: str) -> None:
        self._pages = self._list(after)
        self._next()

    def _next(self) -> None:
        self._asked_s = time.monotonic()
        self._page = next(self._pages, [])


def _folders(directory: str) -> Repository:
    return tuple(directory.split("/")) if directory else ()


def _contents(items: Iterable[_Item]) -> Contents:
    """What is in an object directory, with a stamp that differs if an object is added, removed or stored again."""
    sizes: dict[str, int] = {}
    digest = hashlib.sha256()
    for _, name, found in items:
        sizes[name] = found.size_bytes
        digest.update(f"{name} {found.size_bytes} {found.modified_s}\n".encode("ascii"))
    stamp: Stamp = struct.unpack("<4Q", digest.digest())
    return Contents(sizes, stamp=stamp if sizes else None, there=bool(sizes))
