"""
Admission of uploads, as the routes use it: each upload and each removal gets an L{Admitted}, which ends with the change.

The quotas are kept by a L{QuotaBackend}: in this process, or in the parent of several workers. L{DirectoryLocks} records
which directories have a commit or a removal under way, because a directory must not change while it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from twisted.internet.defer import Deferred

from ..errors import InsufficientStorage, Unavailable
from ..names import Target
from ..sizes import Amount
from ..storage.layout import Repository, cell_of

#: An upload of unknown length takes room in steps of this size, as long as there is so much.
STEP_BYTES = 4 << 20

#: A repository and one of its cells.
Key = tuple[Repository, int]

#: No change.
NOTHING = Amount()


class QuotaBackend(Protocol):
    """Who keeps account of what is stored."""

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """
        Reserve room for an upload.

        @param size_bytes: what is known of its length.
        @return: the reservation's number; 0 where no account is kept.
        @raise InsufficientStorage: a quota leaves no room.
        @raise Unavailable: it is not known yet whether there is any.
        """

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota leaves no room; what was reserved stays so.
        """

    def settle(self, number: int, repository: Repository, cell: int, change: Amount) -> None:
        """An upload or a removal (whose number is 0) has ended, and has changed what is stored by so much."""

    def recount(self, repository: Repository) -> None:
        """So much has changed in a repository that it should be counted."""


class NoQuota:
    """Where nobody wants to know."""

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """There is always room."""
        return 0

    async def grow(self, number: int, size_bytes: int) -> None:
        """There is always room."""

    def settle(self, number: int, repository: Repository, cell: int, change: Amount) -> None:
        """Nobody wants to know."""

    def recount(self, repository: Repository) -> None:
        """Nobody wants to know."""


class DirectoryLocks:
    """
    Which directories are being changed now, and which must not be.

    @param closed: those that are closed from the start.
    """

    def __init__(self, closed: Iterable[Key] = ()) -> None:
        self._inside: Counter[Key] = Counter()
        self._closed: dict[Key, list[Deferred[None]]] = {key: [] for key in closed}
        self._leaving: dict[Key, list[Deferred[None]]] = {}
        self._refusal: str | None = None

    def refuse(self, reason: str) -> None:
        """Nobody enters any more, because what is done there would be in nobody's books."""
        self._refusal = reason
        self.open_all()

    def open_all(self) -> None:
        """Let everyone enter who waits."""
        self.open(list(self._closed))

    async def enter(self, key: Key) -> None:
        """
        Wait until the fence is open; from then on until L{leave} it cannot be closed.

        @raise Unavailable: it never will be.
        """
        while (waiting := self._closed.get(key)) is not None:
            opened: Deferred[None] = Deferred()
            waiting.append(opened)
            await opened
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        self._inside[key] += 1

    def leave(self, key: Key) -> None:
        """What was done there is done."""
        self._inside[key] -= 1
        if not self._inside[key]:
            del self._inside[key]
            for left in self._leaving.pop(key, ()):
                left.callback(None)

    async def close(self, keys: Iterable[Key]) -> None:
        """Let nobody enter any more, and wait until nobody is inside."""
        keys = list(keys)
        for key in keys:
            self._closed.setdefault(key, [])
        for key in keys:
            while self._inside[key]:
                left: Deferred[None] = Deferred()
                self._leaving.setdefault(key, []).append(left)
                await left

    def open(self, keys: Iterable[Key]) -> None:
        """Let those enter who wait."""
        for key in keys:
            for opened in self._closed.pop(key, ()):
                opened.callback(None)


class Admitted:
    """
    Room for one upload, or the leave to remove one object: C{end} it in any case, once what was done is done.

    @param number: of the reservation; 0 for none.
    @param size_bytes: how much is reserved.
    """

    __slots__ = ("_directory_locks", "_ended", "_inside", "_number", "_quota", "_size_bytes", "_target")

    def __init__(
        self, quota: QuotaBackend, directory_locks: DirectoryLocks, target: Target, number: int = 0, size_bytes: int = 0
    ) -> None:
        self._quota = quota
        self._directory_locks = directory_locks
        self._target = target
        self._number = number
        self._size_bytes = size_bytes
        self._inside = False
        self._ended = False

    async def cover(self, size_bytes: int) -> None:
        """
        See that there is room for so many bytes in all.

        @raise InsufficientStorage: a quota leaves none.
        """
        more = size_bytes - self._size_bytes
        if more <= 0 or not self._number:
            return
        try:
            step = max(more, STEP_BYTES)
            await self._quota.grow(self._number, step)
        except InsufficientStorage:
            if step == more:
                raise
            step = more
            await self._quota.grow(self._number, step)
        self._size_bytes += step

    @property
    def _key(self) -> Key:
        return self._target.repository, cell_of(self._target.type, self._target.name)

    async def enter(self) -> None:
        """Wait until the directory may be changed, which it must be no more after C{end}."""
        if not self._inside:
            await self._directory_locks.enter(self._key)
            self._inside = True

    def end(self, change: Amount = NOTHING) -> None:
        """All is done, and has changed what is stored by so much; idempotent."""
        if self._ended:
            return
        self._ended = True
        repository, cell = key = self._key
        if self._number or change != NOTHING:
            self._quota.settle(self._number, repository, cell, change)
        if self._inside:
            self._directory_locks.leave(key)


class Admission:
    """What the routes ask for room."""

    def __init__(self, quota: QuotaBackend | None = None, directory_locks: DirectoryLocks | None = None) -> None:
        self.quota: QuotaBackend = quota if quota is not None else NoQuota()
        self.directory_locks = directory_locks if directory_locks is not None else DirectoryLocks()

    async def admit(self, user: str | None, target: Target, length: int | None) -> Admitted:
        """
        Room for an upload.

        @param length: of the body; C{None} where it is not known.
        @raise InsufficientStorage: a quota leaves none.
        @raise Unavailable: it is not known yet whether there is any.
        """
        number = await self.quota.reserve(user, target, length or 0)
        return Admitted(self.quota, self.directory_locks, target, number, length or 0)

    def admit_removal(self, target: Target) -> Admitted:
        """For a removal, which always may be."""
        return Admitted(self.quota, self.directory_locks, target)
