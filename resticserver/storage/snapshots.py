"""
Snapshots of directories in memory, so that the names of a list need not be read from the disk each time it is asked for.

A snapshot stands for its directory as long as that has the same identity and times as when the snapshot was taken: a
name that comes, goes or comes to mean another file moves them, whoever did it. That proves the names and nothing about the
sizes of the files: those in a snapshot are the sizes that the objects had, which a list compares with the present ones
(L{resticserver.storage.listing}) and the quota ledger counts with. Two things need care:

 - Times move in steps (some milliseconds, on old file systems a second). A directory that changed within the step in
   which it is read may change once more and show the same times, so what changed just before is read, but not kept.
 - A file that grows where it stands does not move its directory's times, and a size that it had on the way must not be taken
   for the object's. While one may be growing its directory is not kept; and for the ledger everything is read anew once a day.

It must not know what a list is sent as, nor whose objects they are.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from ..lru import BoundedCache
from ..sizes import Amount
from . import filesystem
from .interface import ID_BYTES, Objects

#: Memory for snapshots; some 1.6 million objects.
BOUND_BYTES = 64 << 20

#: How much older than its reading a directory's last change must be for the snapshot to be kept. Twice the longest step
#: of a file system's times.
SETTLED_NS = 2_000_000_000

#: A file that was written to just now, or later than when the last name came to its directory, is being filled in place
#: (cp, C{rsync --inplace}), by somebody who may be held up; after so long without a write it is believed to be whole.
QUIET_NS = 600_000_000_000

#: How long a snapshot stands at most: for the ledger, which does not look up sizes.
LASTS_NS = 86_400_000_000_000

#: What Python takes for a snapshot, with its place in the cache, and for a part of one, beside their contents (CPython
#: 3.11, 64 bit, measured).
_SNAPSHOT_BYTES = 700
_PART_BYTES = 250


#: Directories with fewer objects are read as quickly as looked up: they are not put on the shelf.
LEAST_STORED = 64
#: What comes from the shelf is cut into parts of so many objects.
_PART_OBJECTS = 4096


class Stamp(NamedTuple):
    """A directory's identity and times: the same for a directory in which nothing came, went or was replaced."""

    device: int
    inode: int
    modified_ns: int
    changed_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a directory."""
    return Stamp(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    What was in one directory.

    @ivar stamp: the directory's, before and after it was read.
    @ivar taken_ns: when reading began, in nanoseconds since 1970.
    @ivar with_sizes: whether its parts have sizes.
    @ivar parts: the objects.
    """

    stamp: Stamp
    taken_ns: int
    with_sizes: bool
    parts: tuple[Objects, ...]

    def is_current(self, stamp: Stamp, now_ns: int) -> bool:
        """Whether the directory, which has this stamp now, still holds what is here."""
        return stamp == self.stamp and 0 <= now_ns - self.taken_ns < LASTS_NS

    @property
    def amount(self) -> Amount:
        """How much is in the directory; only with sizes."""
        return Amount(sum(sum(part.sizes or ()) for part in self.parts), sum(map(len, self.parts)))

    def size_of(self, name: str) -> int | None:
        """The size in bytes that an object had; C{None} if there was none of that name, or its size is not known."""
        wanted = bytes.fromhex(name)
        for part in self.parts:
            place = part.ids.find(wanted)
            while place % ID_BYTES and place >= 0:  # by chance across two ids
                place = part.ids.find(wanted, place + 1)
            if place >= 0:
                return None if part.sizes is None else part.sizes[place // ID_BYTES]
        return None

    @property
    def memory_bytes(self) -> int:
        """How much memory this takes, near enough."""
        return _SNAPSHOT_BYTES + sum(map(_memory_bytes, self.parts))


def _memory_bytes(part: Objects) -> int:
    return _PART_BYTES + len(part.ids) + (len(part.sizes) * part.sizes.itemsize if part.sizes is not None else 0)


class Summary(Protocol):
    """What a shelf knows of a directory without its objects."""

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        """Its stamp when it was read."""

    @property
    def taken_ns(self) -> int:
        """When that was."""

    @property
    def amount(self) -> Amount:
        """What was in it."""


class SnapshotStore(Protocol):
    """Where snapshots outlast the process (L{resticserver.storage.state.StateFile})."""

    def directory(self, path: str) -> Summary | None:
        """What is there of a directory."""

    def objects(self, path: str) -> tuple[tuple[int, int, int, int], int, bytes, array[int]] | None:
        """All of it: stamp, time, ids, sizes."""

    def put_directory(
        self, path: str, stamp: tuple[int, int, int, int], taken_ns: int, parts: Iterable[Objects]
    ) -> None:
        """Keep a snapshot with sizes."""

    def forget_directory(self, path: str) -> None:
        """Keep nothing of a directory."""


class Snapshots:
    """
    The snapshots of one server, by the directories' paths. Safe from several threads; nothing waits for a disk here
    while others wait for it.

    @param bound_bytes: memory for them; 0 to keep none.
    @param now_ns: the time since 1970, by the clock that stamps files.
    @param keeps_times: whether an open directory's times can be believed.
    @param shelf: where they are kept as well, and found again after a restart or when there was no more room.
    @ivar peek: what memory has of a directory (by its path), whether that is current or not; waits for nothing.
    """

    def __init__(
        self,
        bound_bytes: int = BOUND_BYTES,
        now_ns: Callable[[], int] = time.time_ns,
        keeps_times: Callable[[int], bool] = filesystem.keeps_times,
        store: SnapshotStore | None = None,
    ) -> None:
        self.now_ns = now_ns
        self._store = store
        self._cache: BoundedCache[str, Snapshot] = BoundedCache(bound_bytes)
        self.peek = self._cache.peek
        self._numbers = itertools.count()
        self._keeps_times = keeps_times
        self._believed: dict[int, bool] = {}
        self._drafts: set[str] = set()
        self._lock = threading.Lock()

    @property
    def bound_bytes(self) -> int:
        """Memory for snapshots."""
        return self._cache.bound_bytes

    @property
    def used_bytes(self) -> int:
        """Memory that they take."""
        return self._cache.used_bytes

    def begin(self) -> int:
        """A list begins; its turn (L{BoundedCache.begin}), for L{builder}."""
        # Device numbers are used again when something else is mounted, so each list finds out anew.
        self._believed = {}
        return self._cache.begin()

    def find(self, path: str, fd: int, with_sizes: bool) -> Snapshot | None:
        """
        The snapshot that stands for a directory.

        @param fd: the directory, open.
        @return: C{None} where there is none, or none with the sizes that are wanted.
        """
        snapshot = self._cache.get(path)
        if self._store is None and (snapshot is None or (with_sizes and not snapshot.with_sizes)):
            return None
        stamp = stamp_of(os.fstat(fd))
        # One that does not stand any more is kept until another takes its place, for the sizes that it knows.
        if (
            snapshot is not None
            and snapshot.is_current(stamp, self.now_ns())
            and (snapshot.with_sizes or not with_sizes)
        ):
            return snapshot
        if self._store is None or not self._is_stored(path, stamp):
            return None
        snapshot = self._from_shelf(path)
        if snapshot is None or snapshot.stamp != stamp:
            return None
        # Only where there is room: a list of more than fits comes from the shelf again.
        self._cache.put(path, snapshot, snapshot.memory_bytes + len(path), 0)
        return snapshot

    def _from_shelf(self, path: str) -> Snapshot | None:
        """What the shelf has of a directory, whether that is current or not."""
        found = self._store.objects(path) if self._store is not None else None
        if found is None:
            return None
        stamp, taken_ns, ids, sizes = found
        parts = tuple(
            Objects(
                ids[first * ID_BYTES : (first + _PART_OBJECTS) * ID_BYTES], sizes[first : first + _PART_OBJECTS], number
            )
            for first, number in zip(range(0, len(sizes), _PART_OBJECTS), self._numbers, strict=False)
        )
        return Snapshot(Stamp(*stamp), taken_ns, True, parts)

    def last(self, path: str) -> Snapshot | None:
        """The last snapshot of a directory that has sizes, whether it still stands or not."""
        snapshot = self._cache.get(path)
        return snapshot if snapshot is not None and snapshot.with_sizes else self._from_shelf(path)

    def forget(self, path: str) -> None:
        """Keep nothing of a directory: a file in it has changed in place."""
        self._cache.discard(path)
        if self._store is not None:
            self._store.forget_directory(path)

    def _is_stored(self, path: str, stamp: Stamp) -> Summary | None:
        assert self._store is not None
        found = self._store.directory(path)
        stands = found is not None and found.stamp == stamp and 0 <= self.now_ns() - found.taken_ns < LASTS_NS
        return found if stands else None

    def amount(self, path: str) -> Amount | None:
        """How much is in a directory, if that is known of it as it is now."""
        snapshot = self._cache.get(path)
        if self._store is None and snapshot is None:
            return None
        try:
            stamp = stamp_of(os.stat(path))
        except OSError:
            return None
        if snapshot is not None and snapshot.with_sizes and snapshot.is_current(stamp, self.now_ns()):
            return snapshot.amount
        found = self._is_stored(path, stamp) if self._store is not None else None
        return found.amount if found is not None else None

    def builder(self, path: str, fd: int, with_sizes: bool, turn: int) -> SnapshotBuilder:
        """
        Begin a snapshot of a directory; called before the directory is read.

        @param fd: the directory, open as long as the draft is.
        """
        started_ns = self.now_ns()
        stamp = stamp_of(os.fstat(fd))
        builder = SnapshotBuilder(self, path, fd, Snapshot(stamp, started_ns, with_sizes, ()), turn)
        settled = max(stamp.modified_ns, stamp.changed_ns) <= started_ns - SETTLED_NS
        if settled and self.bound_bytes and self._believes(fd, stamp.device):
            with self._lock:
                if path not in self._drafts:
                    self._drafts.add(path)
                    builder.keeps = builder.owns_path = True
        return builder

    def is_drafted(self, path: str) -> bool:
        """Whether somebody reads a directory now and its snapshot may be there soon."""
        return path in self._drafts

    def _believes(self, fd: int, device: int) -> bool:
        """Whether the times on an open directory's device can be believed."""
        believed = self._believed.get(device)
        if believed is None:
            believed = self._believed[device] = self._keeps_times(fd)
        return believed

    def next_number(self) -> int:
        """A number for L{Objects} that come again."""
        return next(self._numbers)

    def keep(self, path: str, snapshot: Snapshot, turn: int) -> None:
        """Keep what a draft has become; never names alone in the place of names and sizes."""
        self._cache.put(path, snapshot, snapshot.memory_bytes + len(path), turn)
        if self._store is not None and snapshot.with_sizes and sum(map(len, snapshot.parts)) >= LEAST_STORED:
            self._store.put_directory(path, snapshot.stamp, snapshot.taken_ns, snapshot.parts)

    def forget_draft(self, path: str) -> None:
        """A draft came to its end, whatever that was."""
        with self._lock:
            self._drafts.discard(path)


class SnapshotBuilder:
    """
    A snapshot while its directory is read: a context that ends when the reading does.

    @ivar keeps: whether it may become a snapshot, as far as can be told by now.
    @ivar owns_path: whether it is the one draft that stands for its directory's path.
    @ivar quiet_ns: a file that was written to later than this may be growing: it is shown to L{doubt}.
    """

    def __init__(self, snapshots: Snapshots, path: str, fd: int, empty: Snapshot, turn: int) -> None:
        self.keeps = False
        self.owns_path = False
        self.quiet_ns = min(
            empty.taken_ns - SETTLED_NS, max(empty.stamp.modified_ns + SETTLED_NS, empty.taken_ns - QUIET_NS)
        )
        self._snapshots = snapshots
        self._path = path
        self._fd = fd
        self._empty = empty
        self._turn = turn
        self._parts: list[Objects] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.owns_path:
            self._snapshots.forget_draft(self._path)

    def part(self, ids: bytes, sizes: array[int] | None) -> Objects:
        """The next objects that were read, as a list gives them out."""
        if not self.keeps:
            return Objects(ids, sizes)
        part = Objects(ids, sizes, self._snapshots.next_number())
        self._parts.append(part)
        self._bytes += _memory_bytes(part)
        if self._bytes > self._snapshots.bound_bytes:
            self.give_up()
        return part

    def known_sizes(self) -> dict[str, int]:
        """The sizes in bytes that objects had when the directory was read the last time, by their names."""
        last = self._snapshots.last(self._path) if self._empty.with_sizes else None
        return {} if last is None else {entry.name: entry.size_bytes for part in last.parts for entry in part}

    def doubt(self, written_ns: int) -> None:
        """A file was written to after C{quiet_ns}. (A time to come is no write: somebody set it.)"""
        if written_ns < self._snapshots.now_ns() + SETTLED_NS:
            self.give_up()

    def give_up(self) -> None:
        """What is read here may change without the directory's times telling: keep nothing."""
        self.keeps = False
        self._parts.clear()

    def complete(self) -> None:
        """The directory was read to its end: keep the snapshot if nothing has changed meanwhile."""
        if self.keeps and stamp_of(os.fstat(self._fd)) == self._empty.stamp:
            empty = self._empty
            snapshot = Snapshot(empty.stamp, empty.taken_ns, empty.with_sizes, tuple(self._parts))
            self._snapshots.keep(self._path, snapshot, self._turn)
