"""
Counts what is stored in a repository, a few directories at a time, while nothing changes in them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..errors import Unavailable
from ..quota.admission import NOTHING
from ..quota.directory_locks import Key
from ..quota.ledger import Ledger
from ..sizes import Amount
from ..storage.interface import Counts
from ..storage.layout import CELLS, TRASH_CELL, Repository
from ..threads.interface import Pool

#: How many directories are locked and counted together at first. Later batches are sized to take COUNT_S seconds.
FIRST_BATCH = 16
COUNT_S = 0.02

_log = Logger()


class ClosesDirectories(Protocol):
    """The L{DirectoryLocks} of this process, or of all workers."""

    async def close(self, keys: list[Key]) -> None:
        """Lock directories against changes. When this returns, all earlier changes were settled."""

    def open(self, keys: list[Key]) -> None:
        """Unlock directories."""


class RepositoryCounter:
    """
    Counts into the ledger.

    @param pool: where directories are read.
    @param is_running: whether the server still counts.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        ledger: Ledger,
        counting: Counts,
        pool: Pool,
        directory_locks: ClosesDirectories,
        is_running: Callable[[], bool],
    ) -> None:
        self._reactor = reactor
        self._ledger = ledger
        self._counting = counting
        self._pool = pool
        self._directory_locks = directory_locks
        self._is_running = is_running

    async def count(self, repository: Repository, was_known: bool) -> Amount:
        """
        Count a repository.

        @return: what the lists have said, of the trash only if it counts.

        @param was_known: whether a difference means that something else has changed the repository, which is logged.
        @raise Unavailable: the server stops, or the volume is missing.
        """
        account = self._ledger.repositories.get(repository)
        snapshot_before_s = account.last_snapshot_s if account is not None else None
        # The trash first: what is restored meanwhile counts twice, and not nowhere.
        cells = [TRASH_CELL, *range(TRASH_CELL)]
        known = await self._count_locked(repository, cells, lambda: self._counting.known(repository), was_known)
        found = dict(known)
        left = [cell for cell in cells if cell not in known]
        batch = FIRST_BATCH
        while left:
            cells, left = left[:batch], left[batch:]
            began = self._reactor.seconds()
            look = partial(self._counting.count, repository, cells)
            found.update(await self._count_locked(repository, cells, look, was_known))
            took = max(self._reactor.seconds() - began, 0.001)
            batch = max(1, min(CELLS, int(batch * COUNT_S / took)))
        lock_before_s = account.oldest_lock_s if account is not None else None
        last_snapshot_s = await self._pool.run(self._counting.last_snapshot_s, repository, snapshot_before_s)
        oldest_lock_s = await self._pool.run(self._counting.oldest_lock_s, repository, lock_before_s)
        created_before_s = account.created_s if account is not None else None
        created_s = await self._pool.run(self._counting.created_s, repository, created_before_s)
        trash_ends_s = await self._pool.run(self._counting.trash_ends_s, repository, 0.0)
        if repository in self._ledger.repositories:
            account = self._ledger.account(repository)
            account.oldest_lock_s = oldest_lock_s
            account.trash_ends_s = trash_ends_s
            if account.created_s == created_before_s:  # else it was created meanwhile
                account.created_s = created_s
            if account.last_snapshot_s == snapshot_before_s:  # else a snapshot was stored meanwhile
                account.last_snapshot_s = last_snapshot_s
        trash_counts = self._ledger.account(repository).trash_counts
        self._ledger.all_counted(repository)
        if not trash_counts:
            found.pop(TRASH_CELL, None)
        return Amount(sum(one.size_bytes for one in found.values()), sum(one.objects for one in found.values()))

    async def _count_locked(
        self, repository: Repository, cells: list[int], look: Callable[[], dict[int, Amount]], was_known: bool
    ) -> dict[int, Amount]:
        """Lock cells, count them, and enter the result in the ledger."""
        if not self._is_running():
            raise Unavailable("the server is stopping")
        keys = [(repository, cell) for cell in cells]
        try:
            await self._directory_locks.close(keys)
            found = await self._pool.run(look)
            drift = self._ledger.count(repository, found)
        finally:
            self._directory_locks.open(keys)
        if drift != NOTHING and was_known:
            _log.debug("{repository} was changed by another program: {drift}", repository=repository, drift=drift)
        return found
