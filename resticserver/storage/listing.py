"""
Lists of a directory's objects, read as they are asked for, or taken from snapshots while those stand.

restic takes a 404 on a list for an empty directory and may then prune what a lock it missed was protecting. So a list
never fails because an entry vanished while it was read: the entry is skipped. Any other error is passed on.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Callable, Generator, Iterator
from itertools import product

from ..errors import NotFound
from ..names import is_object_id
from .interface import Objects
from .snapshots import Draft, Snapshot, Snapshots
from .volume import Volume

#: A part of a list has this many objects at most, and is given out after this long.
PART_OBJECTS = 4096
PART_S = 0.01

#: The directories of C{data}: objects lie in the one that their ids begin with.
_PREFIXES = frozenset(map("".join, product("0123456789abcdef", repeat=2)))


class DirectoryListing:
    """
    The objects below one directory.

    @param path: the type's directory.
    @param volume: asked whenever something is missing: a volume that goes away must not look like a shorter list.
    @param snapshots: where snapshots are found and kept.
    @param two_levels: whether objects lie one directory deeper, as those of C{data} do.
    @param with_sizes: whether sizes are wanted; without them no file is looked at.
    @param prefix: what the ids begin with.
    @param makes_room: whether what is read may drive other snapshots out.
    @param find: called first; raises NotFound where there is no such repository.
    """

    def __init__(
        self,
        path: str,
        volume: Volume,
        snapshots: Snapshots,
        *,
        two_levels: bool,
        with_sizes: bool,
        prefix: str = "",
        makes_room: bool = True,
        find: Callable[[], object] | None = None,
    ) -> None:
        self._path = path
        self._volume = volume
        self._snapshots = snapshots
        self._two_levels = two_levels
        self._with_sizes = with_sizes
        self._prefix = prefix
        self._makes_room = makes_room
        self._find = find
        self._turn = 0
        self._prefixes: list[str] = []
        self._source: Snapshot | int | None = None
        self._parts: Generator[Objects, None, None] | None = None

    def open(self) -> None:
        """
        Open the directory.

        @raise NotFound: it is not there.
        """
        self._volume.check()
        if self._find is not None:
            self._find()
        if self._makes_room:
            self._turn = self._snapshots.begin()
        try:
            if self._two_levels:
                with os.scandir(self._path) as entries:
                    self._prefixes = [entry.name for entry in entries if entry.name in _PREFIXES]
            else:
                self._source = self._open_directory(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            raise NotFound() from None
        self._parts = self._all_parts()

    def __iter__(self) -> Iterator[Objects]:
        assert self._parts is not None
        return self._parts

    def _all_parts(self) -> Generator[Objects, None, None]:
        source, self._source = self._source, None
        if source is None:
            yield from self._two_level_parts()
        else:
            yield from self._directory_parts(self._path, source, self._prefix)
        # What is mounted in a volume's place may have directories of the same names.
        self._volume.check()

    def _two_level_parts(self) -> Iterator[Objects]:
        # What another list reads at this moment comes last: its snapshot will be there, and both share the work.
        later = []
        for prefix in self._prefixes:
            path = f"{self._path}/{prefix}"
            if self._snapshots.is_drafted(path):
                later.append(prefix)
            else:
                yield from self._inner_parts(path, prefix)
        for prefix in later:
            yield from self._inner_parts(f"{self._path}/{prefix}", prefix)

    def _inner_parts(self, path: str, prefix: str) -> Iterator[Objects]:
        try:
            source = self._open_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            return
        yield from self._directory_parts(path, source, prefix)

    def _open_directory(self, path: str) -> Snapshot | int:
        """A directory's snapshot, or its descriptor where there is none."""
        snapshot = self._snapshots.find(path, self._with_sizes)
        if snapshot is not None:
            return snapshot
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _directory_parts(self, path: str, source: Snapshot | int, prefix: str) -> Iterator[Objects]:
        if isinstance(source, Snapshot):
            yield from source.parts
            return
        last = None
        try:
            with self._snapshots.draft(path, source, self._with_sizes, self._turn) as draft:
                with os.scandir(source) as entries:
                    last = yield from self._read(entries, prefix, draft)
                draft.complete()
        except FileNotFoundError:  # a directory that is removed while it is read
            self._volume.check()
        finally:
            os.close(source)
        # Only now: a client that takes its time leaves no directory open whose objects make but one part.
        if last is not None:
            yield last

    def _read(
        self, entries: Iterator[os.DirEntry[str]], prefix: str, draft: Draft
    ) -> Generator[Objects, None, Objects | None]:
        """All parts but the last, which is returned."""
        names: list[str] = []
        sizes: array[int] | None = array("Q") if self._with_sizes else None
        part_ends = time.monotonic() + PART_S
        for entry in entries:
            name = entry.name
            if not is_object_id(name) or not name.startswith(prefix):
                continue
            try:
                if sizes is not None:
                    status = entry.stat()
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    if status.st_mtime_ns > draft.quiet_ns:
                        draft.doubt(status.st_mtime_ns)
                    sizes.append(status.st_size)
                elif not entry.is_file():
                    continue
            except FileNotFoundError:
                self._volume.check()
                continue
            names.append(name)
            if entry.is_symlink():
                draft.give_up()  # its target may go and change elsewhere
            if len(names) % 64 == 0 and (len(names) == PART_OBJECTS or time.monotonic() > part_ends):
                yield draft.part(bytes.fromhex("".join(names)), sizes)
                names = []
                sizes = array("Q") if self._with_sizes else None
                part_ends = time.monotonic() + PART_S
        return draft.part(bytes.fromhex("".join(names)), sizes) if names else None

    def close(self) -> None:
        """Close what is open; idempotent."""
        if self._parts is not None:
            self._parts.close()
        source, self._source = self._source, None
        if isinstance(source, int):
            os.close(source)  # nobody began to read
