"""
Before an upload is refused for want of quota, what the limit covers is counted again: other programs may have removed files.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ..errors import Unavailable
from ..quota.ledger import Account, Ledger, QuotaExceeded, RepositoryAccount
from ..sizes import Amount
from ..storage.layout import Repository
from ..threads.single_flight import ended_within

#: How long an upload waits for a count.
PATIENCE_S = 20.0
#: Before a refusal, the affected repositories are recounted, unless they were counted within this time.
FRESH_S = 3.0

T = TypeVar("T")


class Counts(Protocol):
    """The part of L{resticserver.service.quota_keeper.QuotaKeeper} that counts."""

    @property
    def complete(self) -> bool:
        """Whether every repository was counted since the start."""

    def count_repository(self, repository: Repository) -> Deferred[Amount]:
        """Count a repository as it is now."""

    def count_everything(self) -> Deferred[None]:
        """Count all repositories."""

    def count_once(self, key: Hashable, work: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> Deferred[None]:
        """Run a count, or wait for one in progress."""


class RecountBeforeRefusal:
    """
    Makes reservations, after a recount if there seems to be no room.

    @param counts: counts into the ledger.
    """

    def __init__(self, reactor: IReactorTime, ledger: Ledger, counts: Counts) -> None:
        self._reactor = reactor
        self._ledger = ledger
        self._counts = counts
        self._checked: dict[Any, float] = {}

    def outdated(self, repository: Repository) -> None:
        """Count again before the next refusal that is about this repository, however short ago it was counted."""
        for account in self._ledger.accounts(repository):
            self._checked.pop(self._key_of(account), None)

    async def with_room(self, take: Callable[[], T]) -> T:
        """
        Make a reservation. If a limit would be exceeded, recount what it covers and try again, once for each such
        limit.

        @raise QuotaExceeded: a limit would be exceeded even after the recount.
        @raise Unavailable: the stored amount is not known for sure, and the recount takes too long.
        """
        looked: set[Any] = set()
        while True:
            try:
                return take()
            except QuotaExceeded as error:
                key = self._key_of(error.account)
                if key in looked or not await self._recounted(key):
                    raise
                looked.add(key)

    def _key_of(self, account: Account) -> tuple[Any, ...]:
        if isinstance(account, RepositoryAccount):
            return ("repository", account.repository)
        return ("server",) if account is self._ledger.server else ("user", account.words)

    async def _recounted(self, key: tuple[Any, ...]) -> bool:
        """
        Recount what a refusal is about.

        @return: whether that was done.
        @raise Unavailable: the recount takes too long, and the stored amount is not known for sure.
        """
        complete = self._counts.complete
        if complete and self._reactor.seconds() - self._checked.get(key, -FRESH_S) < FRESH_S:
            return False
        recount = self._counts.count_once(("look", key), partial(self._recount, key))
        if await ended_within(PATIENCE_S, self._reactor, recount):
            return True
        if self._counts.complete:
            return False
        raise Unavailable("the server is still counting stored data, try again later")

    async def _recount(self, key: tuple[Any, ...]) -> None:
        match key:
            case ("repository", repository):
                await self._counts.count_repository(repository)
            case ("user", name) if self._counts.complete:
                for repository in list(self._ledger.of_user(name)):
                    await self._counts.count_repository(repository)
            case _:
                await self._counts.count_everything()
        if len(self._checked) > 1000:
            self._checked.clear()
        self._checked[key] = self._reactor.seconds()
