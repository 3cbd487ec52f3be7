"""
The books of a server with workers: the parent keeps them (L{resticserver.service.quota_keeper.QuotaKeeper}), and workers ask.

The verbs of the wire, both ends of them, and the fences of all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred

from ..errors import InsufficientStorage, ServerError, Unavailable
from ..names import CONFIG, Kind, Target
from ..quota.admission import Key
from ..service.quota_keeper import QuotaKeeper
from ..sizes import Amount
from ..storage.layout import Repository
from ..threads.serial_jobs import shielded
from .ipc import Failed, IpcConnection, IpcConnectionLost

#: What a worker asks and tells.
RESERVE, GROW, SETTLE, LOOK_AGAIN = "reserve", "grow", "settle", "look again"
#: What the parent tells and asks.
CLOSE, OPEN, KEEP_ACCOUNT = "close fences", "open fences", "keep account"


class RemoteQuota:
    """
    A worker's books: the parent keeps them.

    @ivar active: whether account is kept; the parent says so.
    """

    def __init__(self, ipc: IpcConnection, active: bool) -> None:
        self._ipc = ipc
        self.active = active

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """
        Reserve room for an upload.

        @return: the reservation's number; 0 where no account is kept.
        @raise InsufficientStorage: a quota leaves no room.
        @raise Unavailable: nothing is known yet, or the parent is gone.
        """
        if not self.active:
            return 0
        waits = True

        def answered(answer: dict[str, Any]) -> dict[str, Any]:
            if not waits and "number" in answer:
                # The client is gone, and the parent does not know: nobody else will give back what it has reserved.
                self._ipc.tell(SETTLE, number=answer["number"], repository=[], cell=0, change=[0, 0])
            return answer

        asked = self._ipc.ask(
            RESERVE,
            user=user,
            repository=list(target.repository),
            kind=target.type,
            name=target.name,
            size_bytes=size_bytes,
        ).addCallback(answered)
        try:
            return _admitted(await shielded(asked))
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable() from error
        except (CancelledError, GeneratorExit):
            waits = False
            raise

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota leaves no room.
        @raise Unavailable: the parent is gone.
        """
        try:
            _admitted(await shielded(self._ipc.ask(GROW, number=number, size_bytes=size_bytes)))
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable() from error

    def settle(self, number: int, repository: Repository, cell: int, change: Amount) -> None:
        """An upload or a removal has ended."""
        if self.active:
            self._ipc.tell(SETTLE, number=number, repository=list(repository), cell=cell, change=list(change))

    def recount(self, repository: Repository) -> None:
        """So much has changed in a repository that it should be counted."""
        self._ipc.tell(LOOK_AGAIN, repository=list(repository))


def _admitted(answer: dict[str, Any]) -> int:
    """
    A reservation's number, of the parent's answer.

    @raise InsufficientStorage: it says so; or C{Unavailable}.
    """
    if "number" in answer:
        return int(answer["number"])
    if answer["refused"] == InsufficientStorage.__name__:
        raise InsufficientStorage(answer["reason"], answer["cause"], answer["limit_of"])
    raise Unavailable(answer["reason"])


class QuotaRequests:
    """
    The parent's side of L{RemoteQuota}.

    @ivar closed: the keys whose fences are closed now.
    """

    def __init__(self, quota_keeper: QuotaKeeper) -> None:
        self._quota_keeper = quota_keeper

    def commands(self, holder: object) -> dict[str, Callable[..., Any]]:
        """What a worker may ask and tell."""
        return {
            RESERVE: partial(self._reserve, holder),
            GROW: self._grow,
            SETTLE: self._settle,
            LOOK_AGAIN: lambda repository: self._quota_keeper.recount(tuple(repository)),
        }

    def _reserve(
        self, holder: object, user: str | None, repository: list[str], kind: str, name: str, size_bytes: int
    ) -> Deferred[dict[str, Any]]:
        target = Target(tuple(repository), Kind.CONFIG if kind == CONFIG else Kind.OBJECT, kind, name)
        return _answered(self._quota_keeper.reserve(user, target, size_bytes, holder))

    def _grow(self, number: int, size_bytes: int) -> Deferred[dict[str, Any]]:
        return _answered(self._quota_keeper.grow(number, size_bytes))

    def _settle(self, number: int, repository: list[str], cell: int, change: list[int]) -> None:
        self._quota_keeper.settle(number, tuple(repository), cell, Amount(*change))


def _answered(work: Coroutine[Deferred[Any], Any, int | None]) -> Deferred[dict[str, Any]]:
    """What becomes of something, as an answer over the wire."""

    async def answer() -> dict[str, Any]:
        try:
            return {"number": await work or 0}
        except InsufficientStorage as error:
            name = InsufficientStorage.__name__
            return {"refused": name, "reason": error.message, "cause": error.cause, "limit_of": error.limit_of}
        except ServerError as error:
            return {"refused": Unavailable.__name__, "reason": error.message}

    return Deferred.fromCoroutine(answer())


class WorkerDirectoryLocks:
    """
    Those of all workers.

    @ivar workers: who they are.
    @ivar closed: what is closed now, for workers that begin.
    """

    def __init__(self) -> None:
        self.workers: AsksAll
        self.closed: list[Key] = []

    async def close(self, keys: list[Key]) -> None:
        """Let nobody enter, in no worker; what they have booked before is here when all have answered."""
        self.closed += keys
        for repository, cells in _by_repository(keys).items():
            await self.workers.ask_all(CLOSE, repository=list(repository), cells=cells)

    def open(self, keys: list[Key]) -> None:
        """Let everyone enter."""
        gone = set(keys)
        self.closed = [key for key in self.closed if key not in gone]
        for repository, cells in _by_repository(keys).items():
            self.workers.tell_all(OPEN, repository=list(repository), cells=cells)


def _by_repository(keys: list[Key]) -> dict[Repository, list[int]]:
    found: dict[Repository, list[int]] = {}
    for repository, cell in keys:
        found.setdefault(repository, []).append(cell)
    return found


class AsksAll(Protocol):
    """What is needed of L{resticserver.workers.parent.Workers}."""

    def tell_all(self, command: str, **arguments: Any) -> None:
        """Tell every worker something."""

    async def ask_all(self, command: str, **arguments: Any) -> bool:
        """Ask every worker something, and wait for the answers."""
