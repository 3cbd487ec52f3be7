"""
Quotas with workers: the parent keeps them (L{resticserver.service.quota_keeper.QuotaKeeper}), and the workers ask it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred

from ..errors import InsufficientStorage, ServerError, Unavailable
from ..names import CONFIG
from ..objects.front_ends import Fence, Moment
from ..quota.directory_locks import Key
from ..service.quota_keeper import QuotaKeeper
from ..sizes import Amount
from ..storage.layout import Repository
from ..targets import Kind, Target
from ..threads.interface import shielded
from .ipc import Command, Failed, Handlers, IpcConnection, IpcConnectionLost, Question
from .messages import CloseDirectories, Grow, OpenDirectories, Recount, Reserve, Settle, UsableUntil

T = TypeVar("T")


class RemoteQuota:
    """
    A worker's L{resticserver.quota.admission.QuotaBackend}, which asks the parent.

    @param active: whether the parent counts what is stored.
    @param is_shared: whether other servers store in the same place.
    """

    def __init__(self, ipc: IpcConnection, active: bool, is_shared: bool = False) -> None:
        self._ipc = ipc
        self.active = active
        self.is_shared = is_shared

    def enable(self) -> None:
        """The parent counts from now on."""
        self.active = True

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """
        Reserve quota for an upload.

        @return: the reservation's number; 0 while nothing is counted.
        @raise InsufficientStorage: a quota would be exceeded.
        @raise Unavailable: the parent does not know the stored amount yet, or is gone.
        """
        if not self.active:
            return 0
        waits = True

        def answered(number: int) -> int:
            if not waits:
                # The client has disconnected, which the parent does not know. Nothing else would release the
                # reservation.
                self._ipc.tell(Settle(number, 0, (), Amount()))
            return number

        asked = self._ipc.ask(Reserve(user, target.type, target.name, size_bytes, target.repository))
        try:
            return await shielded(asked.addCallback(answered))
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable("quotas cannot be checked now, try again later") from error
        except (CancelledError, GeneratorExit):
            waits = False
            raise

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota would be exceeded.
        @raise Unavailable: the parent is gone.
        """
        try:
            await shielded(self._ipc.ask(Grow(number, size_bytes)))
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable("quotas cannot be checked now, try again later") from error

    async def fence(self, number: int) -> Callable[[], object] | None:
        """See L{resticserver.quota.admission.QuotaBackend.fence}."""
        try:
            until = await shielded(self._ipc.ask(UsableUntil(number)))
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable("quotas cannot be checked now, try again later") from error
        return None if until is None else Fence(Moment(*until)).check

    def settle(self, number: int, repository: Repository, cell: int, change: Amount, certain: bool = True) -> None:
        """See L{resticserver.quota.admission.QuotaBackend.settle}."""
        if self.active:
            self._ipc.tell(Settle(number, cell, repository, change, certain))

    async def settled(self) -> None:
        """See L{resticserver.quota.admission.QuotaBackend.settled}."""
        if self.active:
            # The parent reads messages in order, and it does not know this number: the answer means only that it has read
            # all earlier ones. A parent that is gone books nothing any more.
            with suppress(Unavailable):
                await self.grow(0, 0)

    def recount(self, repository: Repository) -> None:
        """Ask the parent to recount a repository."""
        self._ipc.tell(Recount(repository))


class QuotaRequests:
    """The parent's side of L{RemoteQuota}."""

    def __init__(self, quota_keeper: QuotaKeeper) -> None:
        self._quota_keeper = quota_keeper

    def handlers(self, worker: object) -> Handlers:
        """The handlers of a worker's messages."""
        return {
            Reserve: partial(self._reserve, worker),
            Grow: self._grow,
            Settle: self._quota_keeper.settle,
            Recount: self._quota_keeper.recount,
            UsableUntil: self._quota_keeper.usable_until,
        }

    def _reserve(
        self, worker: object, user: str | None, repository: Repository, object_type: str, name: str, size_bytes: int
    ) -> Deferred[int]:
        target = Target(repository, Kind.CONFIG if object_type == CONFIG else Kind.OBJECT, object_type, name)
        return Deferred.fromCoroutine(_refused_or(self._quota_keeper.reserve(user, target, size_bytes, worker)))

    def _grow(self, number: int, size_bytes: int) -> Deferred[None]:
        return Deferred.fromCoroutine(_refused_or(self._quota_keeper.grow(number, size_bytes)))


async def _refused_or(work: Awaitable[T]) -> T:
    """Turn every domain error except a quota error into L{Unavailable}."""
    try:
        return await work
    except InsufficientStorage:
        raise
    except ServerError as error:
        raise Unavailable(error.message) from error


class SendsToAll(Protocol):
    """The part of L{resticserver.workers.parent.Workers} that L{WorkerDirectoryLocks} needs."""

    def tell_all(self, command: Command) -> None:
        """Send a command to every worker."""

    async def ask_all(self, question: Question[None]) -> bool:
        """
        Send a question to every worker.

        @return: whether all workers that still run answered without an error.
        """


class WorkerDirectoryLocks:
    """
    The L{resticserver.quota.directory_locks.DirectoryLocks} of all workers.

    @ivar closed: the directories that are locked now, for workers that start.
    """

    def __init__(self, workers: SendsToAll) -> None:
        self._workers = workers
        self.closed: list[Key] = []

    async def close(self, keys: list[Key]) -> None:
        """Lock directories in every worker. When this returns, all earlier changes in them were settled."""
        self.closed += keys
        for repository, cells in _by_repository(keys).items():
            await self._workers.ask_all(CloseDirectories(cells, repository))

    def open(self, keys: list[Key]) -> None:
        """Unlock directories in every worker."""
        opened = set(keys)
        self.closed = [key for key in self.closed if key not in opened]
        for repository, cells in _by_repository(keys).items():
            self._workers.tell_all(OpenDirectories(cells, repository))


def _by_repository(keys: list[Key]) -> dict[Repository, list[int]]:
    found: dict[Repository, list[int]] = {}
    for repository, cell in keys:
        found.setdefault(repository, []).append(cell)
    return found
