"""
Snapshots of directories in memory, so that the names of a list need not be read from the disk each time.

A snapshot is current as long as its directory has the same identity and times as when it was taken: a name that is added,
is removed or comes to mean another file changes them, whichever program does it. That proves the names and says nothing about
the sizes of the files: those in a snapshot are the sizes that the objects had. A list compares them with the present ones
(L{resticserver.storage.listing}), and the quota ledger counts with them. Two things need care:

 - Times move in steps (some milliseconds, on old file systems a second). A directory that changed within the step in which it
   is read may change once more and show the same times. So a directory that changed just before is read, but not kept.
 - A file that grows in place does not change its directory's times, and its size on the way must not be taken for the
   object's. While a file may be growing its directory is not kept; and for the ledger everything is read anew once a day.

This module must not know the format of lists, nor whose objects they are.
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
from typing import Protocol, Self

from ..files import Stamp, stamp_of
from ..lru import BoundedCache
from ..sizes import Amount
from ..storage import filesystem_types as filesystem
from .interface import ID_BYTES, Objects

#: Memory for snapshots; some 1.6 million objects.
BOUND_BYTES = 64 << 20

#: How long before its reading a directory must have changed last for the snapshot to be kept. Twice the longest step of a
#: file system's times.
SETTLED_NS = 2_000_000_000

#: A file that was written to just now, or later than its directory changed, is being filled in place (cp,
#: C{rsync --inplace}), perhaps by a program that is suspended. After so long without a write it counts as complete.
QUIET_NS = 600_000_000_000

#: How long a snapshot is used at most, for the ledger, which does not look up sizes.
LASTS_NS = 86_400_000_000_000

#: What Python needs for a snapshot, with its place in the cache, and for a part of one, besides their contents (CPython
#: 3.11, 64 bit, measured).
_SNAPSHOT_BYTES = 700
_PART_BYTES = 250

#: Directories with fewer objects are read as quickly as looked up: they are not put into the store.
LEAST_STORED = 64
#: What the store returns is cut into parts of so many objects.
_PART_OBJECTS = 4096


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    The objects that were in one directory.

    @ivar stamp: of the directory, before and after it was read.
    @ivar taken_ns: when reading began, in nanoseconds since 1970.
    @ivar with_sizes: whether its parts have sizes.
    @ivar parts: the objects.
    """

    stamp: Stamp
    taken_ns: int
    with_sizes: bool
    parts: tuple[Objects, ...]

    def is_current(self, stamp: Stamp, now_ns: int) -> bool:
        """Whether the directory, which has this stamp now, still has these objects."""
        return stamp == self.stamp and 0 <= now_ns - self.taken_ns < LASTS_NS

    @property
    def amount(self) -> Amount:
        """How much is in the directory; only for one with sizes."""
        return Amount(sum(sum(part.sizes or ()) for part in self.parts), sum(map(len, self.parts)))

    def size_of(self, name: str) -> int | None:
        """The size in bytes that an object had; C{None} if there was no such object, or its size is not known."""
        wanted = bytes.fromhex(name)
        for part in self.parts:
            place = part.ids.find(wanted)
            while place % ID_BYTES and place >= 0:  # found across two ids
                place = part.ids.find(wanted, place + 1)
            if place >= 0:
                return None if part.sizes is None else part.sizes[place // ID_BYTES]
        return None

    @property
    def memory_bytes(self) -> int:
        """How much memory this takes, approximately."""
        return _SNAPSHOT_BYTES + sum(map(_memory_bytes, self.parts))


def _memory_bytes(part: Objects) -> int:
    return _PART_BYTES + len(part.ids) + (len(part.sizes) * part.sizes.itemsize if part.sizes is not None else 0)


class Summary(Protocol):
    """What a L{SnapshotStore} has of a directory, without the objects."""

    @property
    def stamp(self) -> Stamp:
        """Of the directory when it was read."""

    @property
    def taken_ns(self) -> int:
        """When it was read, in nanoseconds since 1970."""

    @property
    def amount(self) -> Amount:
        """How much was in it."""


class SnapshotStore(Protocol):
    """Keeps snapshots for the next start (L{resticserver.storage.state.StateFile})."""

    def directory(self, path: str) -> Summary | None:
        """What is stored of a directory, without the objects."""

    def objects(self, path: str) -> tuple[Stamp, int, bytes, array[int]] | None:
        """All of it: stamp, time, ids, sizes."""

    def put_directory(self, path: str, stamp: Stamp, taken_ns: int, parts: Iterable[Objects]) -> None:
        """Store a snapshot with sizes."""

    def forget_directory(self, path: str) -> None:
        """Remove what is stored of a directory."""


class Snapshots:
    """
    The snapshots of one server, by the directories' paths. Safe from several threads; no lock is held during disk access.

    @param bound_bytes: memory for them; 0 to keep none.
    @param now_ns: the time since 1970, by the clock that stamps files.
    @param keeps_times: whether the times of an open directory show every change.
    @param store: keeps them too: for the next start, and those that memory has no room for.
    @ivar peek: the snapshot of a directory (by its path) in memory, current or not; never blocks.
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
        self._cache_keys = itertools.count()
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
        """Called when a list begins; returns its turn (L{BoundedCache.begin}), for L{builder}."""
        # Another mount may get the same device number, so each list finds out anew.
        self._believed = {}
        return self._cache.begin()

    def find(self, path: str, fd: int, with_sizes: bool) -> Snapshot | None:
        """
        The current snapshot of a directory.

        @param fd: the directory, open.
        @return: C{None} where there is none, or none with the sizes that are wanted.
        """
        snapshot = self._cache.get(path)
        if self._store is None and (snapshot is None or (with_sizes and not snapshot.with_sizes)):
            return None
        stamp = stamp_of(os.fstat(fd))
        # One that is not current any more is kept until another replaces it, for its known sizes.
        if (
            snapshot is not None
            and snapshot.is_current(stamp, self.now_ns())
            and (snapshot.with_sizes or not with_sizes)
        ):
            return snapshot
        if self._store is None or self._summary(path, stamp) is None:
            return None
        snapshot = self._from_store(path)
        if snapshot is None or snapshot.stamp != stamp:
            return None
        # Only where there is room: a list that does not fit comes from the store each time.
        self._cache.put(path, snapshot, snapshot.memory_bytes + len(path), 0)
        return snapshot

    def _from_store(self, path: str) -> Snapshot | None:
        """The snapshot of a directory in the store, current or not."""
        found = self._store.objects(path) if self._store is not None else None
        if found is None:
            return None
        stamp, taken_ns, ids, sizes = found
        parts = tuple(
            Objects(
                ids[first * ID_BYTES : (first + _PART_OBJECTS) * ID_BYTES],
                sizes[first : first + _PART_OBJECTS],
                self.next_cache_key(),
            )
            for first in range(0, len(sizes), _PART_OBJECTS)
        )
        return Snapshot(stamp, taken_ns, True, parts)

    def last(self, path: str) -> Snapshot | None:
        """The last snapshot of a directory with sizes, current or not."""
        snapshot = self._cache.get(path)
        return snapshot if snapshot is not None and snapshot.with_sizes else self._from_store(path)

    def forget(self, path: str) -> None:
        """Remove the snapshot of a directory: a file in it has changed in place."""
        self._cache.discard(path)
        if self._store is not None:
            self._store.forget_directory(path)

    def _summary(self, path: str, stamp: Stamp) -> Summary | None:
        assert self._store is not None
        found = self._store.directory(path)
        is_current = found is not None and found.stamp == stamp and 0 <= self.now_ns() - found.taken_ns < LASTS_NS
        return found if is_current else None

    def amount(self, path: str) -> Amount | None:
        """How much is in a directory, if there is a current snapshot."""
        snapshot = self._cache.get(path)
        if self._store is None and snapshot is None:
            return None
        try:
            stamp = stamp_of(os.stat(path))
        except OSError:
            return None
        if snapshot is not None and snapshot.with_sizes and snapshot.is_current(stamp, self.now_ns()):
            return snapshot.amount
        found = self._summary(path, stamp) if self._store is not None else None
        return found.amount if found is not None else None

    def builder(self, path: str, fd: int, with_sizes: bool, turn: int) -> SnapshotBuilder:
        """
        Begin a snapshot of a directory; called before the directory is read.

        @param fd: the directory, which stays open as long as the builder is used.
        """
        started_ns = self.now_ns()
        stamp = stamp_of(os.fstat(fd))
        keeps = False
        device, _, modified_ns, changed_ns = stamp
        settled = max(modified_ns, changed_ns) <= started_ns - SETTLED_NS
        if settled and self.bound_bytes and self._are_times_kept(fd, device):
            with self._lock:
                if path not in self._drafts:
                    self._drafts.add(path)
                    keeps = True
        return SnapshotBuilder(self, path, fd, Snapshot(stamp, started_ns, with_sizes, ()), turn, keeps)

    def is_drafted(self, path: str) -> bool:
        """Whether a directory is being read now, so that its snapshot may be there soon."""
        return path in self._drafts

    def _are_times_kept(self, fd: int, device: int) -> bool:
        """Whether the times on an open directory's device show every change."""
        believed = self._believed.get(device)
        if believed is None:
            believed = self._believed[device] = self._keeps_times(fd)
        return believed

    def next_cache_key(self) -> int:
        """A new C{cache_key} for L{Objects}."""
        return next(self._cache_keys)

    def keep(self, path: str, snapshot: Snapshot, turn: int) -> None:
        """Keep a complete snapshot."""
        self._cache.put(path, snapshot, snapshot.memory_bytes + len(path), turn)
        if self._store is not None and snapshot.with_sizes and sum(map(len, snapshot.parts)) >= LEAST_STORED:
            self._store.put_directory(path, snapshot.stamp, snapshot.taken_ns, snapshot.parts)

    def forget_draft(self, path: str) -> None:
        """The builder of a directory's snapshot has ended."""
        with self._lock:
            self._drafts.discard(path)


class SnapshotBuilder:
    """
    A snapshot while its directory is read: a context for as long as that takes.

    @ivar keeps: whether the snapshot may be kept, as far as is known.
    @ivar quiet_ns: a file that was written to later than this may be growing: call L{doubt} for it.
    """

    def __init__(self, snapshots: Snapshots, path: str, fd: int, empty: Snapshot, turn: int, keeps: bool) -> None:
        self.keeps = keeps
        self._is_draft = keeps
        modified_ns = empty.stamp[2]
        self.quiet_ns = min(empty.taken_ns - SETTLED_NS, max(modified_ns + SETTLED_NS, empty.taken_ns - QUIET_NS))
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
        if self._is_draft:
            self._snapshots.forget_draft(self._path)

    def part(self, ids: bytes, sizes: array[int] | None) -> Objects:
        """The next objects that were read, as a part of the list."""
        if not self.keeps:
            return Objects(ids, sizes)
        part = Objects(ids, sizes, self._snapshots.next_cache_key())
        self._parts.append(part)
        self._bytes += _memory_bytes(part)
        if self._bytes > self._snapshots.bound_bytes:
            self.give_up()
        return part

    def known_sizes(self) -> dict[str, int]:
        """The sizes in bytes of the last snapshot, by the objects' names."""
        last = self._snapshots.last(self._path) if self._empty.with_sizes else None
        return {} if last is None else {entry.name: entry.size_bytes for part in last.parts for entry in part}

    def doubt(self, written_ns: int) -> None:
        """A file was written to after C{quiet_ns}. (A time in the future is no write: a program has set it.)"""
        if written_ns < self._snapshots.now_ns() + SETTLED_NS:
            self.give_up()

    def give_up(self) -> None:
        """What is read may change without a change of the directory's times: do not keep the snapshot."""
        self.keeps = False
        self._parts.clear()

    def complete(self) -> None:
        """The directory was read to its end: keep the snapshot if nothing has changed since the reading began."""
        if self.keeps and stamp_of(os.fstat(self._fd)) == self._empty.stamp:
            empty = self._empty
            snapshot = Snapshot(empty.stamp, empty.taken_ns, empty.with_sizes, tuple(self._parts))
            self._snapshots.keep(self._path, snapshot, self._turn)
