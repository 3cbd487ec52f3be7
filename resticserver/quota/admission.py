"""
Admission of uploads, as the routes use it. Each upload and each removal gets an L{Admitted}, which ends with the
change.

A L{QuotaBackend} keeps the quotas: in this process, or in the parent of several workers. Whether an upload fits is decided by
L{resticserver.quota.ledger.Ledger}, after L{resticserver.service.quota_keeper.QuotaKeeper} has counted again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import InsufficientStorage
from ..limits.uploads import UploadGate
from ..sizes import Amount
from ..storage.layout import TRASH_CELL, Repository, cell_of
from ..targets import Target
from .directory_locks import DirectoryLocks, Key

#: An upload of unknown length reserves quota in steps of this size, as long as the quota allows.
STEP_BYTES = 4 << 20


#: An empty change.
NOTHING = Amount()


class QuotaBackend(Protocol):
    """Keeps track of what is stored."""

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """
        Reserve quota for an upload.

        @param size_bytes: the part of its length that is known.
        @return: the reservation's number; 0 if quotas are not tracked.
        @raise InsufficientStorage: a quota would be exceeded.
        @raise Unavailable: the stored amount is not known yet.
        """

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota would be exceeded; the existing reservation remains.
        """

    @property
    def is_shared(self) -> bool:
        """Whether other servers store in the same place, and limits are theirs as well."""

    async def fence(self, number: int) -> Callable[[], object] | None:
        """
        What to call right before an upload is stored, in any thread; C{None} for nothing. It raises
        L{resticserver.errors.Unavailable} if the reservation may have lost its effect.

        @raise Unavailable: it has lost it.
        """

    def settle(self, number: int, repository: Repository, cell: int, change: Amount, certain: bool = True) -> None:
        """
        An upload or a removal (whose number is 0) has ended.

        @param change: by how much it changed what is stored.
        @param certain: whether it is known by how much.
        """

    async def settled(self) -> None:
        """Wait until all that was settled before is booked, so that the next reservation can use it."""

    def recount(self, repository: Repository) -> None:
        """Ask for a recount of a repository, because much of it has changed."""


class NoQuota:
    """A L{QuotaBackend} that tracks nothing."""

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """Always succeeds."""
        return 0

    is_shared = False

    async def grow(self, number: int, size_bytes: int) -> None:
        """Always succeeds."""

    async def fence(self, number: int) -> Callable[[], object] | None:
        """Nothing to call."""
        return None

    def settle(self, number: int, repository: Repository, cell: int, change: Amount, certain: bool = True) -> None:
        """Does nothing."""

    async def settled(self) -> None:
        """Nothing to wait for."""

    def recount(self, repository: Repository) -> None:
        """Does nothing."""


class Admitted:
    """
    A quota reservation for one upload, or the permission to remove one object. Call C{end} in any case, after the
    change is done.

    @param number: of the reservation; 0 for none.
    @param size_bytes: the reserved size.
    @param gate: the limits for uploads, which it has entered.
    """

    __slots__ = (
        "_cell",
        "_directory_locks",
        "_ended",
        "_gate",
        "_inside",
        "_keys",
        "_number",
        "_quota",
        "_repository",
        "_size_bytes",
        "_type",
    )

    def __init__(
        self,
        quota: QuotaBackend,
        directory_locks: DirectoryLocks,
        target: Target,
        number: int = 0,
        size_bytes: int = 0,
        gate: UploadGate | None = None,
    ) -> None:
        self._gate = gate
        self._type = target.type
        self._quota = quota
        self._directory_locks = directory_locks
        self._repository = target.repository
        self._cell = cell_of(target.type, target.name)
        self._keys: tuple[Key, ...] = ((target.repository, self._cell),)
        self._number = number
        self._size_bytes = size_bytes
        self._inside = False
        self._ended = False

    def include_trash(self) -> None:
        """The change is one in the repository's trash, too."""
        self._keys += ((self._repository, TRASH_CELL),)

    async def cover(self, size_bytes: int) -> None:
        """
        Make sure that the reservation covers this many bytes in total.

        @raise InsufficientStorage: a quota would be exceeded.
        @raise TooLarge: the object is larger than one may be.
        """
        if self._gate is not None:
            self._gate.check_size(size_bytes)
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

    async def enter(self) -> None:
        """Wait until the directory may be changed. It must not be changed after C{end}."""
        if not self._inside:
            await self._directory_locks.enter(*self._keys)
            self._inside = True

    async def fence(self) -> Callable[[], object] | None:
        """
        What to call right before the upload is stored (L{QuotaBackend.fence}); C{None} for nothing.

        @raise Unavailable: it may not be stored any more.
        """
        return await self._quota.fence(self._number) if self._number and self._quota.is_shared else None

    def end(self, change: Amount = NOTHING, trash: Amount = NOTHING, certain: bool = True) -> None:
        """
        End the upload or removal; idempotent.

        @param change: by how much it changed what is stored, without the trash.
        @param trash: by how much it changed the trash.
        @param certain: whether it is known by how much.
        """
        if self._ended:
            return
        self._ended = True
        if self._gate is not None:
            self._gate.leave(self._type)
        # The trash first: between the two there must not seem to be less than there is.
        if trash != NOTHING:
            self._quota.settle(0, self._repository, TRASH_CELL, trash)
        if self._number or change != NOTHING:
            self._quota.settle(self._number, self._repository, self._cell, change, certain)
        if self._inside:
            self._directory_locks.leave(*self._keys)

    async def settled(self) -> None:
        """After C{end}: wait until the reservation is given back."""
        if self._number:
            await self._quota.settled()


class Admission:
    """
    Admits uploads and removals for the routes.

    @param gate: the limits for uploads; C{None} for none.
    """

    def __init__(
        self,
        quota: QuotaBackend | None = None,
        directory_locks: DirectoryLocks | None = None,
        gate: UploadGate | None = None,
    ) -> None:
        self._gate = gate
        self.quota: QuotaBackend = quota if quota is not None else NoQuota()
        self.directory_locks = directory_locks if directory_locks is not None else DirectoryLocks()

    async def admit(self, user: str | None, target: Target, length: int | None) -> Admitted:
        """
        Reserve quota for an upload.

        @param length: of the body, in bytes; C{None} if unknown.
        @raise InsufficientStorage: a quota would be exceeded.
        @raise TooLarge: the object is larger than one may be.
        @raise Unavailable: the stored amount is not known yet, or there are too many uploads.
        """
        gate, size_bytes = self._gate, length or 0
        if gate is not None:
            gate.check_size(size_bytes)
            gate.enter(target.type)
        try:
            number = await self.quota.reserve(user, target, size_bytes)
        except BaseException:
            if gate is not None:
                gate.leave(target.type)
            raise
        return Admitted(self.quota, self.directory_locks, target, number, size_bytes, gate)

    def admit_removal(self, target: Target, to_trash: bool = False) -> Admitted:
        """
        Admit a removal, which never needs quota.

        @param to_trash: whether the object is kept in the trash.
        """
        admitted = Admitted(self.quota, self.directory_locks, target)
        if to_trash:
            admitted.include_trash()
        return admitted
