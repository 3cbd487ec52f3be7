"""
The part of the quota ledger that the state file keeps for the next start.

For each repository, the file has its counts and a ceiling. The ceiling is raised in the file before the repository
exceeds it. So after a crash, the stored amount is at most the ceiling until the repository is counted again.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred, DeferredLock

from ..quota.admission import NOTHING
from ..quota.ledger import Ledger, RepositoryAccount
from ..sizes import Amount
from ..storage.layout import Repository
from ..storage.state import RepositoryState, StateFile
from ..threads.interface import Pool
from ..threads.single_flight import SingleFlight

#: How far above the current amount a ceiling is set.
STEP = Amount(256 << 20, 10_000)


class KeptCounts:
    """
    Writes the ledger's counts and ceilings.

    @param pool: for the state file.
    """

    def __init__(self, ledger: Ledger, state: StateFile, pool: Pool) -> None:
        self._ledger = ledger
        self._state = state
        self._pool = pool
        self._ceilings: dict[Repository, Amount] = {}
        #: Serializes writes, so that the last one wins.
        self._writing = DeferredLock()
        self._raising: SingleFlight[None] = SingleFlight()

    def loaded(self, repository: Repository, ceiling: Amount) -> None:
        """Note a ceiling that was read from the state file."""
        self._ceilings[repository] = ceiling

    async def raise_ceiling(self, repository: Repository) -> None:
        """Make sure that the ceiling in the state file is not below the most that a repository may reach."""
        account = self._ledger.account(repository)
        while True:
            ceiling = self._ceilings.get(repository, NOTHING)
            most = account.most
            if most.size_bytes <= ceiling.size_bytes and most.objects <= ceiling.objects:
                return
            raising = self._raising.run(
                repository, lambda: Deferred.fromCoroutine(self.write((account,), STEP)), join=False
            )
            await raising

    async def write(self, accounts: Iterable[RepositoryAccount], above: Amount) -> None:
        """
        Write the counts of repositories.

        @param above: how far above the current amount their ceilings are set.
        """
        await self._writing.run(lambda: Deferred.fromCoroutine(self._write(accounts, above)))

    async def _write(self, accounts: Iterable[RepositoryAccount], above: Amount) -> None:
        states = {}
        for account in accounts:
            most = Amount(account.most.size_bytes + above.size_bytes, account.most.objects + above.objects)
            states[account.repository] = RepositoryState(most, account.sizes[:], account.objects[:])
            account.changed = False
            # A lower ceiling takes effect before it is written, a higher one afterwards.
            before = self._ceilings.get(account.repository, NOTHING)
            self._ceilings[account.repository] = Amount(
                min(before.size_bytes, most.size_bytes), min(before.objects, most.objects)
            )
        if states:
            await self._pool.run(self._state.put_repositories, states)
            # Update the ceilings even if the write failed: uploads continue, and after a crash more must be counted.
            self._ceilings.update({repository: state.at_most for repository, state in states.items()})

    async def forget_gone(self) -> None:
        """Remove repositories from the state file that are no longer in the ledger."""
        await self._writing.run(lambda: Deferred.fromCoroutine(self._write_gone()))

    async def _write_gone(self) -> None:
        gone = [repository for repository in self._ceilings if repository not in self._ledger.repositories]
        for repository in gone:
            del self._ceilings[repository]
        await self._pool.run(self._state.forget_repositories, gone)
