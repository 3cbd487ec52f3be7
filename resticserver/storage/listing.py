"""
Lists of a directory's objects. Names come from a snapshot where the directory's times prove that it is current, otherwise
from the directory. Sizes are looked up for every list: restic compares them with its index, which is how C{restic check} and
C{restic prune} find a truncated pack, and a directory's times say nothing about the sizes of its files.

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
from ..files import is_directory
from ..names import is_object_id
from .interface import Objects
from .snapshots import Snapshot, SnapshotBuilder, Snapshots, stamp_of
from .volume import Volume

#: A part of a list has this many objects at most, and is given out after this long.
PART_OBJECTS = 4096
PART_S = 0.01

#: The directories of C{data}: objects lie in the one that their ids begin with.
_PREFIXES = frozenset(map("".join, product("0123456789abcdef", repeat=2)))

#: Told of an object whose size is not the one that it had: its name, that size and the size that was found, in bytes.
SizeChanged = Callable[[str, int, int], object]


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
    @param present_sizes: whether the sizes of a current snapshot are looked up again: yes for a list, no for the quota ledger.
    @param size_changed: called in the thread that reads, for each object whose size is seen to differ from the known one.
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
        present_sizes: bool = True,
        size_changed: SizeChanged = lambda name, known_bytes, found_bytes: None,
        find: Callable[[], object] | None = None,
    ) -> None:
        self._path = path
        self._volume = volume
        self._snapshots = snapshots
        self._two_levels = two_levels
        self._with_sizes = with_sizes
        self._prefix = prefix
        self._makes_room = makes_room
        self._present_sizes = present_sizes
        self._size_changed = size_changed
        self._find = find
        self._turn = 0
        self._prefixes: list[str] = []
        #: The descriptor of the one directory of a type other than C{data}, until the first part is asked for.
        self._fd = -1
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
                self._fd = _open_directory(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            raise NotFound() from None
        self._parts = self._all_parts()

    def __iter__(self) -> Iterator[Objects]:
        assert self._parts is not None
        return self._parts

    def _all_parts(self) -> Generator[Objects, None, None]:
        fd, self._fd = self._fd, -1
        if fd < 0:
            yield from self._two_level_parts()
        else:
            yield from self._directory_parts(self._path, fd, self._prefix)
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
            fd = _open_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            is_directory(path)  # else what has the name would hide all that should be in there
            return
        yield from self._directory_parts(path, fd, prefix)

    def _directory_parts(self, path: str, fd: int, prefix: str) -> Iterator[Objects]:
        """
        The objects of one directory.

        @param fd: the directory; it is closed here, before the last part is given out: a client that takes its time leaves no
            directory open whose objects make but one part.
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
        except FileNotFoundError:  # a directory that is removed while it is read
            self._volume.check()
        finally:
            os.close(fd)
        if last is not None:
            yield last
        elif snapshot is not None:
            yield from snapshot.parts

    def _with_present_sizes(self, path: str, fd: int, snapshot: Snapshot, part: Objects) -> Objects:
        """A part of a current snapshot with the sizes that its files have now; the same part if those are the known ones."""
        names = part.names()
        try:
            # 1.5 us each with what the kernel has in its caches; gives the interpreter's lock away each time.
            look = os.stat
            sizes = array("Q", [look(name, dir_fd=fd).st_size for name in names])
        except FileNotFoundError:
            found = {name: size for name in names if (size := self._size(name, fd)) is not None}
            names, sizes = list(found), array("Q", found.values())
        if sizes == part.sizes:
            return part
        # Only if no name has come to mean another file meanwhile is a size that differs a file that has changed.
        if stamp_of(os.fstat(fd)) == snapshot.stamp:
            known = dict(part)
            present = zip(names, sizes, strict=True)
            self._tell(path, [(name, known[name], size) for name, size in present if known[name] != size])
        return Objects(bytes.fromhex("".join(names)), sizes)

    def _size(self, name: str, fd: int) -> int | None:
        try:
            return os.stat(name, dir_fd=fd).st_size
        except FileNotFoundError:
            self._volume.check()
            return None

    def _tell(self, path: str, changed: list[tuple[str, int, int]]) -> None:
        """Tell of objects whose sizes differ from the known ones, each by its name, its known and its present size."""
        if changed:
            self._snapshots.forget(path)
        for name, known_bytes, found_bytes in changed:
            self._size_changed(name, known_bytes, found_bytes)

    def _read(
        self, path: str, entries: Iterator[os.DirEntry[str]], prefix: str, builder: SnapshotBuilder
    ) -> Generator[Objects, None, Objects | None]:
        """All parts but the last, which is returned."""
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
                builder.give_up()  # its target may go and change elsewhere
            if len(names) % 64 == 0 and (len(names) == PART_OBJECTS or time.monotonic() > part_ends):
                yield builder.part(bytes.fromhex("".join(names)), sizes)
                names = []
                sizes = array("Q") if self._with_sizes else None
                part_ends = time.monotonic() + PART_S
        self._tell(path, changed)
        return builder.part(bytes.fromhex("".join(names)), sizes) if names else None

    def close(self) -> None:
        """Close what is open; idempotent."""
        if self._parts is not None:
            self._parts.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)  # nobody began to read


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
