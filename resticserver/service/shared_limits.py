"""
The limits of a bucket that several front ends share: what an upload may store is leased (L{resticserver.objects.leases}), and
what is stored is counted into the shared state when a limit seems to be reached, and now and then.

Here are the requests in a pool, one change of an account at a time, and the words of refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import ServerError, Unavailable
from ..objects.front_ends import Moment
from ..objects.lease_use import Held
from ..objects.leased_account import NoRoom, NotCounted
from ..objects.leases import Leases
from ..quota.ledger import Account, QuotaExceeded
from ..sizes import LEAST_RESERVE_OBJECTS, RESERVE_PART, Amount, Limit, format_size, reserve_bytes
from ..storage.layout import Repository
from ..threads.interface import Pool, shielded
from ..threads.single_flight import SingleFlight, ended_within

#: How often this front end says that it is alive, and gives back what it does not use, in seconds.
RENEW_S = 30.0
TIDY_S = 60.0
#: An account in use is counted again after so many seconds, or so many times the duration of its last count.
COUNT_AGAIN_S = 600.0
COUNT_AGAIN_TIMES = 50
#: Before a refusal an account is counted, unless a count has ended less than so many seconds ago, or so many times its duration,
#: up to a minute: a full bucket must not be listed for each upload that is refused.
FRESH_S = 3.0
FRESH_TIMES = 10
MOST_FRESH_S = 60.0
#: How long an upload waits for a count, and the end of the service for its last requests.
PATIENCE_S = 20.0
CLOSE_S = 5.0
#: Requests at once: one for each account that changes.
THREADS = 4

_log = Logger()


class Scope(NamedTuple):
    """
    What a limit is of.

    @ivar user: the folder of a user; C{None} for the whole server or a repository.
    """

    user: str | None = None
    repository: Repository | None = None

    def account(self, of_objects: bool) -> str:
        """The name of its account in the shared state."""
        kind = "objects" if of_objects else "bytes"
        if self.repository is not None:
            return f"repository {'/'.join(self.repository)}: {kind}"
        return f"server: {kind}" if self.user is None else f"user {self.user}: {kind}"


@dataclass(frozen=True)
class SharedLimit:
    """
    One limit of an upload.

    @ivar account: of the ledger, for the words of a refusal.
    """

    scope: Scope
    account: Account
    limit: Limit


@dataclass(eq=False)
class LeasedUpload:
    """
    What one upload has taken.

    @ivar above: whether it may use the reserve above a limit.
    """

    limits: Sequence[SharedLimit]
    above: bool
    size_bytes: int = 0
    bytes_held: list[Held] = field(default_factory=list)
    objects_held: list[Held] = field(default_factory=list)


class FindsRepositories(Protocol):
    """Lists repositories; blocks."""

    def repositories(self) -> list[Repository]:
        """All of them."""

    def repositories_of(self, user: str) -> list[Repository]:
        """Those in a user's folder."""


class OwnPool(Pool, Protocol):
    """A pool that is a service."""

    def startService(self) -> None:
        """Start it."""

    def stopService(self) -> object:
        """End it when its jobs have ended."""


class CountsStored(Protocol):
    """Counts by lists, into the ledger as well."""

    def total(self, repository: Repository) -> Deferred[Amount]:
        """What a count that begins now finds in a repository."""


@dataclass
class _Counted:
    """The last count of a scope here: when it ended, and how long it took, in seconds."""

    ended_s: float
    took_s: float


class SharedLimits(Service):
    """
    The leases of this front end. All methods must be called in the reactor's thread.

    @param leases: asks the engine.
    @param pool: for these requests alone; started and stopped here.
    """

    def __init__(self, reactor: IReactorTime, leases: Leases, finds: FindsRepositories, pool: OwnPool) -> None:
        self._reactor = reactor
        self._leases = leases
        self._finds = finds
        self._pool = pool
        self._counts: CountsStored
        self._changing: dict[str, DeferredLock] = {}
        self._counting: SingleFlight[None] = SingleFlight()
        self._counted: dict[Scope, _Counted] = {}
        #: The accounts in use, by scope.
        self._in_use: dict[Scope, set[bool]] = {}
        self.setName("quota leases")

    def use(self, counts: CountsStored) -> None:
        """Count with this. To be called before the start."""
        self._counts = counts

    # --- start and stop

    def startService(self) -> None:
        """Start the threads. Nothing is sent before something is leased."""
        super().startService()
        self._pool.startService()

    async def stopService(self) -> None:
        """Give back what is leased, if the engine answers. Uploads have ended."""
        super().stopService()
        if self._in_use:
            with suppress(ServerError):
                await ended_within(CLOSE_S, self._reactor, self._pool.run(self._leases.close))
        # Its threads may wait for an engine that does not answer. They do not keep the process.
        self._pool.stopService()

    def _repeat(self, interval_s: float, job: Callable[[], None]) -> None:
        """Call a job in the pool, again and again."""

        def ended(_: object) -> None:
            if self.running:
                self._reactor.callLater(interval_s, run)

        def run() -> None:
            if self.running:
                self._pool.run(job).addErrback(_log_failure).addBoth(ended)

        self._reactor.callLater(interval_s, run)

    def tidy(self) -> None:
        """Give back what is not in use: a limit may be lower now."""
        if self._in_use and self.running:
            # Twice, since what was used since the last time is kept once.
            self._pool.run(self._leases.tidy).addCallback(lambda _: self._pool.run(self._leases.tidy)).addErrback(
                _log_failure
            )

    # --- uploads

    async def take(self, upload: LeasedUpload, size_bytes: int, objects: int) -> None:
        """
        Take what an upload needs, or what it needs more.

        @raise QuotaExceeded: a limit would be exceeded; it has what it had before.
        @raise Unavailable: the engine does not answer, or what is stored is not known yet.
        """
        taken: list[Held] = []
        try:
            for one in upload.limits:
                if one.limit.size_bytes is not None:
                    taken.append(await self._take(upload, one, False, size_bytes))
                if one.limit.objects is not None and objects:
                    taken.append(await self._take(upload, one, True, objects))
        except BaseException:
            for held in taken:
                self._leases.ended(held, 0)
            raise
        for held in taken:
            (upload.objects_held if held.account.endswith(" objects") else upload.bytes_held).append(held)
        upload.size_bytes += size_bytes

    async def _take(self, upload: LeasedUpload, one: SharedLimit, of_objects: bool, size: int) -> Held:
        held = self._leases.take(one.scope.account(of_objects), size)
        if held is None:
            is_gone = False

            def leased(late: Held) -> Held:
                if is_gone:
                    self._leases.ended(late, 0)
                return late

            leasing = Deferred.fromCoroutine(self._lease(upload, one, of_objects, size)).addCallback(leased)
            try:
                held = await shielded(leasing)
            except (CancelledError, GeneratorExit):
                # The client is gone, and the request to the engine goes on.
                is_gone = True
                raise
        self._count_now_and_then(one.scope)
        return held

    async def _lease(self, upload: LeasedUpload, one: SharedLimit, of_objects: bool, size: int) -> Held:
        name = one.scope.account(of_objects)
        lock = self._changing.setdefault(name, DeferredLock())
        await lock.acquire()
        try:
            # Another upload may have leased enough meanwhile.
            return self._leases.take(name, size) or await self._acquire(upload, one, of_objects, size)
        finally:
            lock.release()

    async def _acquire(self, upload: LeasedUpload, one: SharedLimit, of_objects: bool, size: int) -> Held:
        self._begin_to_use(one.scope, of_objects)
        name = one.scope.account(of_objects)
        limit, reserve = _limit_and_reserve(one.limit, of_objects)
        has_counted = False
        while True:
            try:
                try:
                    return await self._pool.run(self._leases.acquire, name, limit, size)
                except NoRoom:
                    if not upload.above:
                        raise
                    return await self._pool.run(self._leases.acquire, name, limit + reserve, size, True)
            except NotCounted:
                if has_counted or not await ended_within(PATIENCE_S, self._reactor, self._count(one.scope)):
                    raise Unavailable("the server is still counting stored data, try again later") from None
            except NoRoom as error:
                if has_counted or not await self._counted_again(one.scope):
                    raise _refusal(upload, one, of_objects, size, error.left) from None
            has_counted = True

    def usable_until(self, upload: LeasedUpload) -> Moment | None:
        """
        Until when an upload may be sent to the engine; C{None} if it has no limits.

        @raise LeaseEnded: not any more.
        """
        until = None
        for held in (*upload.bytes_held, *upload.objects_held):
            until = self._leases.usable_until(held)
        return until

    def ended(self, upload: LeasedUpload, change: Amount, certain: bool) -> None:
        """
        An upload has ended; idempotent.

        @param change: what is stored of it and is visible.
        @param certain: whether no request of it has failed in a way that does not say what the engine has done.
        """
        for helds, stored in ((upload.bytes_held, change.size_bytes), (upload.objects_held, change.objects)):
            left: dict[str, int] = {}
            for held in helds:
                part = min(held.size, left.get(held.account, max(0, stored)))
                left[held.account] = left.get(held.account, max(0, stored)) - part
                self._leases.ended(held, part if certain else held.size, certain)
            helds.clear()

    # --- counts

    def _begin_to_use(self, scope: Scope, of_objects: bool) -> None:
        if not self._in_use:
            self._repeat(RENEW_S, self._leases.renew)
            self._repeat(TIDY_S, self._leases.tidy)
        self._in_use.setdefault(scope, set()).add(of_objects)

    def _count_now_and_then(self, scope: Scope) -> None:
        """Count what was not counted for long, or not by this process: it may have grown past the servers."""
        last = self._counted.get(scope)
        if last is not None:
            pause_s = max(COUNT_AGAIN_S, COUNT_AGAIN_TIMES * last.took_s)
            if self._reactor.seconds() - last.ended_s < pause_s:
                return
        # Not again for each upload while it is counted.
        self._counted[scope] = _Counted(self._reactor.seconds(), 0.0)
        self._count(scope).addErrback(_log_failure)

    async def _counted_again(self, scope: Scope) -> bool:
        """Count before a refusal; whether that was done."""
        last = self._counted.get(scope)
        if last is not None:
            fresh_s = min(max(FRESH_S, FRESH_TIMES * last.took_s), MOST_FRESH_S)
            if last.took_s and self._reactor.seconds() - last.ended_s < fresh_s:
                return False
        return await ended_within(PATIENCE_S, self._reactor, self._count(scope))

    def _count(self, scope: Scope) -> Deferred[None]:
        """Count what a limit is of, by lists that begin after this call."""
        return self._counting.run(scope, lambda: Deferred.fromCoroutine(self._count_once(scope)), join=False)

    async def _count_once(self, scope: Scope) -> None:
        began_s = self._reactor.seconds()
        of_objects = sorted(self._in_use.get(scope, ()))
        begun = [await self._pool.run(self._leases.begin_count, scope.account(each)) for each in of_objects]
        total = await self._total(scope)
        for each, one in zip(of_objects, begun, strict=True):
            await self._pool.run(self._leases.counted, one, total.objects if each else total.size_bytes)
        ended_s = self._reactor.seconds()
        self._counted[scope] = _Counted(ended_s, max(ended_s - began_s, 0.001))

    async def _total(self, scope: Scope) -> Amount:
        if scope.repository is not None:
            return await self._counts.total(scope.repository)
        if scope.user is None:
            found = await self._pool.run(self._finds.repositories)
        else:
            found = await self._pool.run(self._finds.repositories_of, scope.user)
        return _sum([await self._counts.total(repository) for repository in found])


def _sum(amounts: Iterable[Amount]) -> Amount:
    size_bytes = objects = 0
    for amount in amounts:
        size_bytes += amount.size_bytes
        objects += amount.objects
    return Amount(size_bytes, objects)


def _limit_and_reserve(limit: Limit, of_objects: bool) -> tuple[int, int]:
    """A limit, and the reserve above it for what pruning needs."""
    if of_objects:
        assert limit.objects is not None
        return limit.objects, max(limit.objects // RESERVE_PART, LEAST_RESERVE_OBJECTS)
    assert limit.size_bytes is not None
    return limit.size_bytes, reserve_bytes(limit.size_bytes)


def _refusal(upload: LeasedUpload, one: SharedLimit, of_objects: bool, size: int, left: int) -> QuotaExceeded:
    if of_objects:
        number = one.limit.objects or 0
        return QuotaExceeded(one.account, f"{number} object{'s' if number != 1 else ''}", "1 object", str(left))
    words = format_size(upload.size_bytes + size)
    if upload.size_bytes or not size:
        words += " so far"
    return QuotaExceeded(
        one.account, format_size(one.limit.size_bytes or 0), words, format_size(upload.size_bytes + left)
    )


def _log_failure(failure: Failure) -> None:
    if failure.check(ServerError):
        return  # the engine does not answer, or the lease has ended; both were logged
    _log.failure("could not share quotas with other servers", failure)
