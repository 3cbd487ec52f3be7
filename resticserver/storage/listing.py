"""
Lists of objects. Names come from a snapshot where the directory's times prove that it is current, otherwise from the
directory. Sizes are looked up for every list: restic compares them with its index, which is how C{restic check} and
C{restic prune} find a truncated pack, and a directory's times say nothing about the sizes of its files.

restic takes a 404 on a list for an empty directory, and may then prune what a lock it missed was protecting. So a list never
fails because an entry vanished while it was read: the entry is skipped. Any other error is raised.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Callable, Generator, Iterator
from itertools import product

from ..errors import NotFound
from ..files import is_directory, stamp_of
from ..names import is_object_id
from .directories import DataDirectory
from .directory_snapshots import Snapshot, SnapshotBuilder, Snapshots
from .interface import Objects, SizeChange
from .layout import Repository, repository_path
from .volume import Volume

#: A part of a list has this many objects at most, and is given out after this long.
PART_OBJECTS = 4096
PART_S = 0.01

#: The directories of C{data}: objects lie in the one that their ids begin with.
_PREFIXES = frozenset(map("".join, product("0123456789abcdef", repeat=2)))

#: Called with an object whose size has changed: its name, its known size and its present size in bytes.
SizeChanged = Callable[[str, int, int], object]


class DirectoryReader:
    """
    Reads the objects of single directories, from snapshots where these are current.

    @param volume: checked whenever something is missing: a volume that goes away must not look like a shorter list.
    @param snapshots: where snapshots are found and kept.
    @param size_changed: called in the thread that reads, for each object whose size differs from the known one.
    @param with_sizes: whether sizes are wanted; without them no file is looked at.
    @param present_sizes: whether the sizes of a current snapshot are looked up again: yes for a list, no for the quota ledger.
    @param turn: of the list (L{Snapshots.begin}); 0 where what is read must not drive other snapshots out.
    """

    def __init__(
        self,
        volume: Volume,
        snapshots: Snapshots,
        size_changed: SizeChanged,
        with_sizes: bool = True,
        present_sizes: bool = False,
        turn: int = 0,
    ) -> None:
        self._volume = volume
        self._snapshots = snapshots
        self._size_changed = size_changed
        self._with_sizes = with_sizes
        self._present_sizes = present_sizes
        self._turn = turn

    def parts(self, path: str, fd: int, prefix: str) -> Generator[Objects, None, None]:
        """
        The objects of one directory.

        @param fd: the directory. It is closed before the last part is given out: a slow client keeps no directory open whose
            objects fit into one part.
        @param prefix: what the ids begin with.
        """
        last = snapshot = None
        try:
            snapshot = self._snapshots.find(path, fd, self._with_sizes)
            if snapshot is None:
                with self._snapshots.builder(path, fd, self._with_sizes, self._turn) as builder:
                    with os.scandir(fd) as entries:
                        last = yield from self._read(path, entries, prefix, builder)
                    builder.complete()
            elif self._with_sizes and self._present_sizes:
                for part in snapshot.parts:
                    if last is not None:
                        yield last
                    last = self._with_present_sizes(path, fd, snapshot, part)
        except FileNotFoundError:  # the directory was removed while it was read
            self._volume.check()
        finally:
            os.close(fd)
        if last is not None:
            yield last
        elif snapshot is not None:
            yield from snapshot.parts

    def _with_present_sizes(self, path: str, fd: int, snapshot: Snapshot, part: Objects) -> Objects:
        """A part of a current snapshot with the sizes that its files have now; the same part if no size has changed."""
        names = part.names()
        try:
            # 1.5 us each if the kernel has them in its caches; each call releases the interpreter's lock.
            look = os.stat
            sizes = array("Q", [look(name, dir_fd=fd).st_size for name in names])
        except FileNotFoundError:
            found = {name: size for name in names if (size := self._size(name, fd)) is not None}
            names, sizes = list(found), array("Q", found.values())
        if sizes == part.sizes:
            return part
        # A size that differs means a changed file only if no name means another file by now.
        if stamp_of(os.fstat(fd)) == snapshot.stamp:
            known = dict(part)
            present = zip(names, sizes, strict=True)
            self._report(path, [(name, known[name], size) for name, size in present if known[name] != size])
        return Objects(bytes.fromhex("".join(names)), sizes)

    def _size(self, name: str, fd: int) -> int | None:
        try:
            return os.stat(name, dir_fd=fd).st_size
        except FileNotFoundError:
            self._volume.check()
            return None

    def _report(self, path: str, changed: list[tuple[str, int, int]]) -> None:
        """Report objects whose sizes have changed, each by its name, its known and its present size."""
        if changed:
            self._snapshots.forget(path)
        for name, known_bytes, found_bytes in changed:
            self._size_changed(name, known_bytes, found_bytes)

    def _read(
        self, path: str, entries: Iterator[os.DirEntry[str]], prefix: str, builder: SnapshotBuilder
    ) -> Generator[Objects, None, Objects | None]:
        """Gives out all parts but the last, and returns that one."""
        names: list[str] = []
        sizes: array[int] | None = array("Q") if self._with_sizes else None
        known = builder.known_sizes()
        changed: list[tuple[str, int, int]] = []
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
                    if status.st_mtime_ns > builder.quiet_ns:
                        builder.doubt(status.st_mtime_ns)
                    sizes.append(status.st_size)
                    if known and known.get(name, status.st_size) != status.st_size:
                        changed.append((name, known[name], status.st_size))
                elif not entry.is_file():
                    continue
            except FileNotFoundError:
                self._volume.check()
                continue
            names.append(name)
            if entry.is_symlink():
                builder.give_up()  # its target may be removed or changed elsewhere
            if len(names) % 64 == 0 and (len(names) == PART_OBJECTS or time.monotonic() > part_ends):
                yield builder.part(bytes.fromhex("".join(names)), sizes)
                names = []
                sizes = array("Q") if self._with_sizes else None
                part_ends = time.monotonic() + PART_S
        self._report(path, changed)
        return builder.part(bytes.fromhex("".join(names)), sizes) if names else None


class LocalListing:
    """
    The objects of one type.

    @param snapshots: where snapshots are found and kept.
    """

    def __init__(
        self,
        directories: DataDirectory,
        snapshots: Snapshots,
        repository: Repository,
        object_type: str,
        with_sizes: bool,
    ) -> None:
        self._directories = directories
        self._volume = directories.volume
        self._snapshots = snapshots
        self._repository = repository
        self._object_type = object_type
        self._with_sizes = with_sizes
        self._path = f"{repository_path(directories.path, repository)}/{object_type}"
        #: The descriptor of the one directory of a type other than C{data}, until its first part is asked for.
        self._fd = -1
        self._parts: Generator[Objects, None, None] | None = None

    def open(self) -> None:
        """
        Open the directory.

        @raise NotFound: nothing has its name.
        @raise OSError: what has its name is no directory, or cannot be looked at.
        """
        self._volume.check()
        self._directories.find_repository(self._repository)
        reader = DirectoryReader(
            self._volume, self._snapshots, self._size_changed, self._with_sizes, True, self._snapshots.begin()
        )
        try:
            if self._object_type == "data":
                with os.scandir(self._path) as entries:
                    prefixes = [entry.name for entry in entries if entry.name in _PREFIXES]
                self._parts = self._all_parts(self._two_level_parts(reader, prefixes))
            else:
                self._fd = _open_directory(self._path)
                self._parts = self._all_parts(self._one_level_parts(reader))
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            self._directories.reach(self._repository, self._object_type)
            raise NotFound() from None

    def __iter__(self) -> Iterator[Objects]:
        assert self._parts is not None
        return self._parts

    def _size_changed(self, name: str, known_bytes: int, found_bytes: int) -> None:
        change = SizeChange(self._repository, self._object_type, name, known_bytes, found_bytes)
        self._directories.on_size_change(change)

    def _all_parts(self, parts: Iterator[Objects]) -> Generator[Objects, None, None]:
        yield from parts
        # What is mounted in the volume's place may have directories of the same names.
        self._volume.check()

    def _one_level_parts(self, reader: DirectoryReader) -> Iterator[Objects]:
        fd, self._fd = self._fd, -1
        yield from reader.parts(self._path, fd, "")

    def _two_level_parts(self, reader: DirectoryReader, prefixes: list[str]) -> Iterator[Objects]:
        # What another list is reading comes last: its snapshot will be there, and both lists share the work.
        later = []
        for prefix in prefixes:
            path = f"{self._path}/{prefix}"
            if self._snapshots.is_drafted(path):
                later.append(prefix)
            else:
                yield from self._inner_parts(reader, path, prefix)
        for prefix in later:
            yield from self._inner_parts(reader, f"{self._path}/{prefix}", prefix)

    def _inner_parts(self, reader: DirectoryReader, path: str, prefix: str) -> Iterator[Objects]:
        try:
            fd = _open_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            is_directory(path)  # raises if something else has its name
            return
        yield from reader.parts(path, fd, prefix)

    def close(self) -> None:
        """Close what is open; idempotent."""
        if self._parts is not None:
            self._parts.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)  # no part was asked for


def open_and_read(reader: DirectoryReader, path: str, prefix: str) -> Iterator[Objects]:
    """
    The objects of one directory.

    @raise FileNotFoundError: it is missing, or (C{NotADirectoryError}) something else has its name.
    """
    return reader.parts(path, _open_directory(path), prefix)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
