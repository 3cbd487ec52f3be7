"""
Quotas: how much is stored in each repository and in each user's folder, and whether an upload fits.

One L{QuotaKeeper} has the ledger of the whole server. A worker process asks it through a L{RemoteQuota}.

Stored data is counted in the background: at start-up, at intervals, and before an upload is refused, since other
programs may have removed files. While a directory is counted, the server changes nothing in it (L{ClosesDirectories}).
So the count plus the bookings made afterwards equal what is on disk, to the byte.

The state file keeps the counts for the next start, and a ceiling for each repository. The ceiling is raised in the
file before the repository exceeds it. So after a crash, the stored amount is at most the ceiling until the repository
is counted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import ServerError, Unavailable
from ..names import CONFIG
from ..objects.front_ends import Fence, Moment
from ..quota.admission import NOTHING
from ..quota.ledger import Ledger, Limits, QuotaExceeded, Reservation, owner_of
from ..sizes import UNLIMITED, Amount, Limit
from ..storage.interface import Counts
from ..storage.layout import PRUNE_NEEDS, TRASH_CELL, Repository, cell_of
from ..storage.state import StateFile
from ..targets import Target
from ..threads.interface import Pool
from ..threads.single_flight import SingleFlight, ended_within
from .kept_counts import STEP, KeptCounts
from .recount import PATIENCE_S, RecountBeforeRefusal
from .repository_counter import ClosesDirectories, RepositoryCounter
from .shared_limits import LeasedUpload, Scope, SharedLimit, SharedLimits

#: The pause between counts: this many seconds, or this many times the duration of the last count, whichever is longer.
COUNT_AGAIN_S = 600.0
COUNT_AGAIN_TIMES = 50
#: A repository is recounted this long after something was removed from it.
SOON_S = 15.0
#: The pause after a failed count.
TRY_AGAIN_S = 10.0

SNAPSHOTS, LOCKS, CONFIG_CELL = (cell_of(kind, "") for kind in ("snapshots", "locks", CONFIG))

#: The key of a count of everything.
ALL = ("all",)

T = TypeVar("T")

_log = Logger()


class Quotas(Protocol):
    """The limits in the rules."""

    def has_limits(self) -> bool:
        """Whether there are any limits."""

    def limit_of_user(self, name: str) -> Limit:
        """The limit for all repositories in the folder of that name."""

    def limit_of_repository(self, user: str | None, repository: Repository) -> Limit:
        """The limit of a repository, for uploads by this user."""

    def trash_counts(self, user: str | None, repository: Repository) -> bool:
        """Whether the trash of a repository of this owner counts."""


@dataclass(frozen=True)
class QuotaRules:
    """
    The limits, and whether to count without them.

    @ivar limit: of the whole server.
    @ivar quotas: the policy's limits.
    @ivar in_any_case: whether stored data is counted even without limits, for the metrics.
    @ivar shared: keeps the limits where other servers store in the same place. The ledger is for the metrics alone then.
    """

    limit: Limit
    quotas: Quotas
    in_any_case: bool = False
    shared: SharedLimits | None = None


class QuotaKeeper(Service):
    """
    The quotas of the whole server. All methods must be called in the reactor's thread.

    @param pool: where directories are counted and the state file is read.
    @ivar active: whether stored data is counted.
    @ivar quotas: the policy's limits.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        rules: QuotaRules,
        counting: Counts,
        state: StateFile,
        pool: Pool,
        directory_locks: ClosesDirectories,
    ) -> None:
        self._reactor = reactor
        self._in_any_case = rules.in_any_case
        self._limit = limit = rules.limit
        self.quotas = rules.quotas
        self._counting = counting
        self._state = state
        self._pool = pool
        self._shared = shared = rules.shared
        self.ledger = Ledger(
            limit if shared is None else UNLIMITED,
            lambda repository: self.quotas.trash_counts(owner_of(repository), repository),
        )
        self._counter = RepositoryCounter(reactor, self.ledger, counting, pool, directory_locks, self._is_running)
        self.active = False
        #: True once all repositories are known: from the state file, or because all were counted.
        self._based = False
        self._complete = False
        self._counts: SingleFlight[None] = SingleFlight()
        self._repository_counts: SingleFlight[Amount] = SingleFlight()
        self._kept = KeptCounts(self.ledger, state, pool)
        self._recount = RecountBeforeRefusal(reactor, self.ledger, self)
        #: Repositories with a scheduled count.
        self._soon: dict[Repository, IDelayedCall] = {}
        self._numbers = count(1)
        self._reservations: dict[int, tuple[Reservation, object]] = {}
        #: What uploads have leased, by the number of their reservation.
        self._leased: dict[int, LeasedUpload] = {}
        #: The holders of reservations that are being made, by number.
        self._asking: dict[int, object] = {}
        self._next_count: IDelayedCall | None = None
        if shared is not None:
            shared.use(self)
        self.setName("quotas")

    def _is_running(self) -> bool:
        return bool(self.running)

    # --- start and stop

    def startService(self) -> None:
        """Begin to count, if there are limits."""
        super().startService()
        if self._shared is not None:
            self._shared.startService()
        self.refresh()

    @property
    def wanted(self) -> bool:
        """Whether stored data should be counted."""
        return self._in_any_case or self._limited

    @property
    def _limited(self) -> bool:
        return self._limit != UNLIMITED or self.quotas.has_limits()

    def refresh(self) -> bool:
        """
        The limits may have changed.

        @return: whether stored data is counted now.
        """
        if self.wanted and not self.active and self.running:
            self.active = True
            if self._limited:
                _log.info("Initializing quota (can take a while)...")
            self._reactor.callLater(0, self._begin)
        self.ledger.refresh()
        if self._shared is not None:
            self._shared.tidy()
        return self.active

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._load()).addErrback(_log_failure).addCallback(lambda _: self._count_all())

    async def _load(self) -> None:
        """Load what was known at the end of the last run."""
        for repository, state in (await self._pool.run(self._state.repositories)).items():
            if repository not in self.ledger.repositories:
                self.ledger.load(repository, state.sizes, state.objects, state.at_most)
                self._kept.loaded(repository, state.at_most)
                self._based = True

    async def stopService(self) -> None:
        """Save what is known for the next start."""
        super().stopService()
        if self._next_count is not None and self._next_count.active():
            self._next_count.cancel()
        for call in self._soon.values():
            call.cancel()
        self._soon.clear()
        if self.active and self._complete:
            await self._kept.write([one for one in self.ledger.repositories.values() if one.known], NOTHING)
            await self._kept.forget_gone()
        await self._pool.run(self._state.close)
        if self._shared is not None:
            await self._shared.stopService()

    @property
    def complete(self) -> bool:
        """Whether every repository was counted since the start."""
        return self._complete

    def history(self) -> dict[Repository, list[tuple[int, int]]]:
        """The size of each repository by days since 1970. Blocks."""
        return self._state.history()

    # --- uploads and removals

    async def reserve(self, user: str | None, target: Target, size_bytes: int, holder: object = None) -> int:
        """
        Reserve quota for an upload.

        @param holder: the owner of the reservation, for L{holder_gone}.
        @return: the reservation's number; 0 while nothing is counted.
        @raise InsufficientStorage: a quota would be exceeded.
        @raise Unavailable: the stored amount is not known yet.
        """
        if not self.active:
            return 0
        number = next(self._numbers)
        self._asking[number] = holder
        try:
            reservation = await self._reserve(number, user, target, size_bytes)
            try:
                raising = self._kept.raise_ceiling(target.repository)
                if self._shared is not None or self._unlimited(reservation.limits):
                    # The ceiling matters only if a later start has limits, so the upload does not wait for it.
                    Deferred.fromCoroutine(raising).addErrback(_log_failure)
                else:
                    await raising
                if number not in self._asking:
                    raise Unavailable("the worker has ended")
            except BaseException:
                self._release(number, reservation)
                raise
        finally:
            self._asking.pop(number, None)
        self._reservations[number] = (reservation, holder)
        return number

    async def _reserve(self, number: int, user: str | None, target: Target, size_bytes: int) -> Reservation:
        repository = target.repository
        owner = owner_of(repository)
        limits = Limits(
            UNLIMITED if owner is None else self.quotas.limit_of_user(owner),
            self.quotas.limit_of_repository(user, repository),
        )
        if self._shared is not None:
            return await self._lease(self._shared, number, target, size_bytes, limits)
        reserve = partial(self.ledger.reserve, repository, target.type, target.name, size_bytes, limits)
        if self._unlimited(limits):
            return reserve()  # only for the limits of others, or for the metrics
        if not self._based:
            await self._counted(self._once(ALL, self._pass, join=True))
        account = self.ledger.repositories.get(repository)
        counted_now = account is None or not account.known
        if counted_now:
            await self._counted(self._count(repository, join=True))
        reservation = await self._recount.with_room(reserve)
        if counted_now:
            # Even if nothing was found, and so no account was kept.
            self.ledger.account(repository).known = True
        return reservation

    async def _lease(
        self, shared: SharedLimits, number: int, target: Target, size_bytes: int, limits: Limits
    ) -> Reservation:
        """Reserve in the ledger, which has no limits here, and lease."""
        repository = target.repository
        reservation = self.ledger.reserve(repository, target.type, target.name, size_bytes, Limits())
        if self._unlimited(limits):
            return reservation
        server, *users, own = self.ledger.accounts(repository)
        # The widest limit comes last, so that a refusal names the limit closest to the user.
        every = (
            SharedLimit(Scope(repository=repository), own, limits.repository),
            *(SharedLimit(Scope(user=owner_of(repository)), user, limits.user) for user in users),
            SharedLimit(Scope(), server, self._limit),
        )
        upload = LeasedUpload([one for one in every if one.limit != UNLIMITED], target.type in PRUNE_NEEDS)
        try:
            with self._trash_words():
                await shared.take(upload, size_bytes, 1)
        except BaseException:
            self.ledger.release(reservation)
            raise
        self._leased[number] = upload
        return reservation

    @contextmanager
    def _trash_words(self) -> Iterator[None]:
        """A refusal says how much is in the trash."""
        try:
            yield
        except QuotaExceeded as error:
            raise error.with_words(self.ledger.trash_words(error.account)) from None

    def _release(self, number: int, reservation: Reservation, change: Amount = NOTHING, certain: bool = True) -> None:
        """An upload has ended: give back what it does not use."""
        self.ledger.release(reservation)
        upload = self._leased.pop(number, None)
        if upload is not None and self._shared is not None:
            self._shared.ended(upload, change, certain)

    def usable_until(self, number: int) -> Moment | None:
        """
        Until when what was leased for an upload may be stored; C{None} if nothing was.

        @raise Unavailable: not any more.
        """
        upload = self._leased.get(number)
        return None if upload is None or self._shared is None else self._shared.usable_until(upload)

    async def fence(self, number: int) -> Callable[[], object] | None:
        """See L{resticserver.quota.admission.QuotaBackend.fence}."""
        until = self.usable_until(number)
        return None if until is None else Fence(until).check

    @property
    def is_shared(self) -> bool:
        """See L{resticserver.quota.admission.QuotaBackend.is_shared}."""
        return self._shared is not None

    def _unlimited(self, limits: Limits) -> bool:
        return self._limit == limits.user == limits.repository == UNLIMITED

    async def _counted(self, count: Deferred[Any]) -> None:
        """
        Wait for a count.

        @raise Unavailable: the count takes too long.
        """
        if not await ended_within(PATIENCE_S, self._reactor, count):
            raise Unavailable("the server is still counting stored data, try again later")

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota would be exceeded.
        """
        held = self._reservations.get(number)
        if held is None:
            return  # the upload has ended meanwhile
        reservation, _ = held

        def grow() -> None:
            if number in self._reservations:
                self.ledger.grow(reservation, size_bytes)

        upload = self._leased.get(number)
        if upload is not None and self._shared is not None:
            with self._trash_words():
                await self._shared.take(upload, size_bytes, 0)
            if number not in self._leased:
                self._shared.ended(upload, NOTHING, certain=True)  # it has ended meanwhile
        await self._recount.with_room(grow)
        if self._shared is None and number in self._reservations and not self._unlimited(reservation.limits):
            await self._kept.raise_ceiling(reservation.repository)

    def settle(self, number: int, repository: Repository, cell: int, change: Amount, certain: bool = True) -> None:
        """
        An upload or a removal (whose number is 0) has ended.

        @param change: by how much it changed what is stored.
        @param certain: whether it is known by how much.
        """
        if not self.active:
            return
        if change != NOTHING:
            self.ledger.change(repository, cell, change)
            if change.objects > 0 and cell == SNAPSHOTS:
                self.ledger.account(repository).last_snapshot_s = time.time()
            if change.objects > 0 and cell == CONFIG_CELL:
                self.ledger.account(repository).created_s = time.time()
            if cell == TRASH_CELL and change.objects > 0 and self.ledger.account(repository).trash_ends_s is None:
                # The next refusal says until when this lies there, so it has to look.
                self._recount.outdated(repository)
            if change.objects < 0 and cell != LOCKS and self._limited:
                self._count_soon(repository)
        held = self._reservations.pop(number, None)
        if held is not None:
            self._release(number, held[0], change, certain)

    async def settled(self) -> None:
        """Everything is booked as it is settled."""

    def count_soon(self, repository: Repository) -> None:
        """Count a repository again within some seconds: something was removed from its trash."""
        if self.active and self.running:
            self._count_soon(repository)

    def _count_soon(self, repository: Repository) -> None:
        """
        Schedule a recount after a removal, such as by C{prune}. Another program may have put the removed object there,
        unknown to the ledger, so its removal cannot be booked correctly.
        """
        if repository not in self._soon:

            def now() -> None:
                del self._soon[repository]
                self.recount(repository)

            self._soon[repository] = self._reactor.callLater(SOON_S, now)

    def recount(self, repository: Repository) -> None:
        """Recount a repository, because much of it has changed."""
        if self.active and self.running:
            self._count(repository).addErrback(_log_failure)

    def holder_gone(self, holder: object) -> None:
        """
        A holder will not settle its reservations. Recount the repositories to find out what became of the uploads.
        Until then the reservations count as stored.
        """
        for number in [number for number, whose in self._asking.items() if whose is holder]:
            del self._asking[number]
        if self.active and self.running:
            Deferred.fromCoroutine(self._count_for(holder)).addErrback(_log_failure)

    async def _count_for(self, holder: object) -> None:
        left = {number: held for number, (held, whose) in self._reservations.items() if whose is holder}
        for repository in {held.repository for held in left.values()}:
            await self._count(repository)
        for number, held in left.items():
            if self._reservations.pop(number, None) is not None:
                self._release(number, held, certain=False)
        # The holder may also have removed something without reporting it.
        await self._once(ALL, self._pass)

    # --- counting

    def _count_all(self) -> None:
        """Count every repository, log the first time, and schedule the next count."""
        if not self.running:
            return
        began = self._reactor.seconds()

        def done(_: object) -> None:
            took = self._reactor.seconds() - began
            self._again(max(COUNT_AGAIN_S, COUNT_AGAIN_TIMES * took))

        def failed(failure: Failure) -> None:
            _log_failure(failure)
            self._again(TRY_AGAIN_S)

        self._once(ALL, self._pass).addCallbacks(done, failed)

    def _again(self, later_s: float) -> None:
        if self.running:
            self._next_count = self._reactor.callLater(later_s, self._count_all)

    async def _pass(self) -> None:
        before = set(self.ledger.repositories)
        found = await self._pool.run(self._counting.repositories)
        await self._pool.run(self._counting.begin)
        for repository in found:
            await self._count(repository)
        for repository in before.difference(found):
            await self._count(repository)  # it may exist by now
        await self._kept.write([one for one in self.ledger.repositories.values() if one.counted and one.changed], STEP)
        await self._kept.forget_gone()
        sizes = {
            name: account.stored.size_bytes for name, account in self.ledger.repositories.items() if account.counted
        }
        await self._pool.run(self._state.put_history, int(time.time() // 86_400), sizes)
        if not self._complete:
            self._based = self._complete = True
            if not self._limited:
                return
            gib = self.ledger.server.used_bytes / (1 << 30)
            _log.info("Quota initialized, currently using {gib:.2f} GiB", gib=gib)

    def total(self, repository: Repository) -> Deferred[Amount]:
        """What a count that begins now finds in a repository."""
        return self._count(repository)

    def count_repository(self, repository: Repository) -> Deferred[Amount]:
        """Count a repository as it is now."""
        return self._count(repository)

    def count_everything(self) -> Deferred[None]:
        """Count all repositories."""
        return self._once(ALL, self._pass)

    def count_once(self, key: Hashable, work: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> Deferred[None]:
        """Run a count, or wait for one in progress."""
        return self._once(key, work)

    def _count(self, repository: Repository, join: bool = False) -> Deferred[Amount]:
        """
        Count a repository.

        @param join: whether the result of a count in progress is good enough. It may miss recent changes by other
            programs.
        """
        count = partial(self._counter.count, repository, self._complete)
        return self._repository_counts.run(repository, lambda: Deferred.fromCoroutine(count()), join)

    def _once(
        self, key: Hashable, work: Callable[[], Coroutine[Deferred[Any], Any, None]], join: bool = False
    ) -> Deferred[None]:
        """Run a count, or wait for one in progress (L{SingleFlight.run})."""
        return self._counts.run(key, lambda: Deferred.fromCoroutine(work()), join)


def _log_failure(failure: Failure) -> None:
    if failure.check(ServerError):
        return  # the volume is missing, which was logged, or the server stops
    _log.failure("could not count stored data", failure)
