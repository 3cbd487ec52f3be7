"""
The server's books: what is stored, who has how much of it, and whether there is room for more.

L{Accounts} is in the process that has the ledger, one for the whole server. A worker has L{DistantAccounts}, which asks that one.

How much is stored is counted in the background: at the start, every now and then, and before an upload is refused, for somebody
may have made room beside the server. While a directory is counted nothing of ours changes in it (L{Gates}): so the count and
what is booked afterwards add up to what is on disk, to the byte.

The state file keeps what was counted for the next start, and for each repository a ceiling that it never exceeds without
the file being told first. So after a crash what is stored is at most that, until it has been counted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .errors import InsufficientStorage, ServerError, Unavailable
from .messages import Failed, Wire, WireLost
from .names import CONFIG, Kind, Target
from .sizes import UNLIMITED, Amount, Limit
from .storage.counting import Counting
from .storage.ledger import (
    CELLS,
    Ledger,
    Limits,
    QuotaExceeded,
    Repository,
    RepositoryAccount,
    Reservation,
    cell_of,
    owner_of,
)
from .storage.state import RepositoryState, StateFile
from .telemetry.events import Event, EventKind
from .web.jobs import Pool, ended_within, shielded
from .web.space import Fences, Key

#: Repositories are counted again this long after they were, or after so many times as long as that took.
COUNT_AGAIN_S = 600.0
COUNT_AGAIN_TIMES = 50
#: What an upload waits for a count, at most.
PATIENCE_S = 20.0
#: Before a refusal what it is about is counted again, unless it was as lately as this.
FRESH_S = 3.0
#: After a count that failed.
TRY_AGAIN_S = 10.0
#: So many directories are counted behind closed fences at first, and then as many as take so long.
FIRST_BATCH = 16
COUNT_S = 0.02
#: By how much a repository's ceiling is raised above what it has.
STEP = Amount(256 << 20, 10_000)

#: What a worker asks and tells.
RESERVE, GROW, SETTLE, LOOK_AGAIN = "reserve", "grow", "settle", "look again"
#: What the parent tells and asks.
CLOSE, OPEN, KEEP_ACCOUNT = "close fences", "open fences", "keep account"
_REFUSALS = {error.__name__: error for error in (InsufficientStorage, Unavailable)}

SNAPSHOTS = cell_of("snapshots", "")

T = TypeVar("T")

_log = Logger()


class Quotas(Protocol):
    """What the rules say of limits."""

    def has_limits(self) -> bool:
        """Whether there are any."""

    def limit_of_user(self, name: str) -> Limit:
        """That of all repositories below the folder of that name."""

    def limit_of_repository(self, user: str | None, repository: Repository) -> Limit:
        """That of a repository, for what this user adds to it."""


class Gates(Protocol):
    """The fences of all processes that serve."""

    async def close(self, keys: list[Key]) -> None:
        """Let nobody change anything there any more; all that was changed before is booked when this is done."""

    def open(self, keys: list[Key]) -> None:
        """Let everyone go on."""


class LocalGates:
    """Those of this process alone."""

    def __init__(self, fences: Fences) -> None:
        self._fences = fences

    async def close(self, keys: list[Key]) -> None:
        """Let nobody enter."""
        await self._fences.close(keys)

    def open(self, keys: list[Key]) -> None:
        """Let everyone enter."""
        self._fences.open(keys)


class WorkerGates:
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
    """What is needed of L{resticserver.workers.Workers}."""

    def tell_all(self, verb: str, **arguments: Any) -> None:
        """Tell every worker something."""

    async def ask_all(self, verb: str, **arguments: Any) -> bool:
        """Ask every worker something, and wait for the answers."""


class _Together:
    """Work that several ask for while it is under way is done once, and each has its result."""

    def __init__(self) -> None:
        self._waiting: dict[Any, list[Deferred[Any]]] = {}

    def run(self, key: Any, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> Deferred[T]:
        """Do it, or wait for whoever does it already."""
        waiting: Deferred[T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(waiting)
            return waiting
        self._waiting[key] = [waiting]
        Deferred.fromCoroutine(work()).addBoth(self._done, key)
        return waiting

    def _done(self, result: Any, key: Any) -> None:
        for waiting in self._waiting.pop(key):
            waiting.callback(result)


class Accounts(Service):
    """
    The books. All is called in the reactor's thread.

    @param limit: of the whole server.
    @param quotas: the policy's limits.
    @param pool: where directories are counted and the state file is read.
    @param in_any_case: whether account is kept also where there are no limits, because somebody looks at it.
    @param tell: told when a quota is reached, with a key for what is the same again.
    @ivar active: whether account is kept.
    @ivar quotas: the policy's limits.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        limit: Limit,
        quotas: Quotas,
        counting: Counting,
        state: StateFile,
        pool: Pool,
        gates: Gates,
        in_any_case: bool = False,
        tell: Callable[[Event, str], object] = lambda event, key: None,
    ) -> None:
        self._tell = tell
        self._in_any_case = in_any_case
        self._reactor = reactor
        self._limit = limit
        self.quotas = quotas
        self._counting = counting
        self._state = state
        self._pool = pool
        self._gates = gates
        self.ledger = Ledger(limit)
        self.active = False
        #: Whether something is known of all repositories: from the state file, or because all have been counted.
        self._based = False
        self._complete = False
        self._together = _Together()
        self._ceilings: dict[Repository, Amount] = {}
        self._checked: dict[Any, float] = {}
        self._numbers = count(1)
        self._reservations: dict[int, tuple[Reservation, object]] = {}
        self._next_count: IDelayedCall | None = None
        self.setName("accounts")

    # --- its life

    def startService(self) -> None:
        """Begin to count, where there are limits."""
        super().startService()
        self.refresh()

    @property
    def wanted(self) -> bool:
        """Whether account should be kept."""
        return self._in_any_case or self._limited

    @property
    def _limited(self) -> bool:
        return self._limit != UNLIMITED or self.quotas.has_limits()

    def refresh(self) -> bool:
        """The limits may have changed; whether account is kept now."""
        if self.wanted and not self.active and self.running:
            self.active = True
            if self._limited:
                _log.info("Initializing quota (can take a while)...")
            self._reactor.callLater(0, self._begin)
        return self.active

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._load()).addErrback(_log_failure).addCallback(lambda _: self._count_all())

    async def _load(self) -> None:
        """Take over what was known at the end of the last run."""
        for repository, state in (await self._pool.run(self._state.repositories)).items():
            if repository not in self.ledger.repositories:
                self.ledger.load(repository, state.sizes, state.objects, state.at_most)
                self._ceilings[repository] = state.at_most
                self._based = True

    async def stopService(self) -> None:  # type: ignore[override]
        """Keep what is known for the next start."""
        super().stopService()
        if self._next_count is not None and self._next_count.active():
            self._next_count.cancel()
        if self.active and self._complete:
            await self._keep(self.ledger.repositories.values(), Amount())
        await self._pool.run(self._state.close)

    @property
    def complete(self) -> bool:
        """Whether every repository has been counted since the start."""
        return self._complete

    async def history(self) -> dict[Repository, list[tuple[int, int]]]:
        """How large each repository was, by days since 1970."""
        return await self._pool.run(self._state.history)

    # --- uploads and removals

    async def reserve(self, user: str | None, target: Target, size_bytes: int, holder: object = None) -> int:
        """
        Reserve room for an upload.

        @param holder: whose reservation it is, for L{holder_gone}.
        @return: the reservation's number; 0 where no account is kept.
        @raise InsufficientStorage: a quota leaves no room.
        @raise Unavailable: nothing is known yet.
        """
        if not self.active:
            return 0
        repository = target.repository
        if not self._based and not await self._within(self._together.run("all", self._pass)):
            raise Unavailable("the server still counts what is stored")
        if repository not in self.ledger.repositories:
            await self._within(self._count(repository))
        owner = owner_of(repository)
        limits = Limits(
            UNLIMITED if owner is None else self.quotas.limit_of_user(owner),
            self.quotas.limit_of_repository(user, repository),
        )
        try:
            reservation = self.ledger.reserve(repository, target.type, target.name, size_bytes, limits)
        except QuotaExceeded as error:
            with self._told(repository, user):
                await self._look_for_room(error)
                reservation = self.ledger.reserve(repository, target.type, target.name, size_bytes, limits)
        try:
            await self._raise_ceiling(repository)
        except BaseException:
            self.ledger.release(reservation)
            raise
        number = next(self._numbers)
        self._reservations[number] = (reservation, holder)
        return number

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota leaves no room.
        """
        held = self._reservations.get(number)
        if held is None:
            return  # it has ended meanwhile
        reservation, _ = held
        try:
            self.ledger.grow(reservation, size_bytes)
        except QuotaExceeded as error:
            with self._told(reservation.repository, None):
                await self._look_for_room(error)
            if number not in self._reservations:
                return
            with self._told(reservation.repository, None):
                self.ledger.grow(reservation, size_bytes)
        await self._raise_ceiling(reservation.repository)

    def settle(self, number: int, repository: Repository, cell: int, change: Amount) -> None:
        """An upload or a removal (whose number is 0) has ended, and has changed what is stored by so much."""
        if not self.active:
            return
        if change != (0, 0):
            self.ledger.change(repository, cell, change)
            if change.objects > 0 and cell == SNAPSHOTS:
                self.ledger.account(repository).last_snapshot_s = time.time()
        held = self._reservations.pop(number, None)
        if held is not None:
            self.ledger.release(held[0])

    def look_again(self, repository: Repository) -> None:
        """So much has changed in a repository that it should be counted."""
        if self.active:
            self._count(repository).addErrback(_log_failure)

    def holder_gone(self, holder: object) -> None:
        """
        Nobody will settle these reservations: what has become of them is counted, and until then they count as stored.
        """
        if self.active:
            Deferred.fromCoroutine(self._count_for(holder)).addErrback(_log_failure)

    async def _count_for(self, holder: object) -> None:
        left = {number: held for number, (held, whose) in self._reservations.items() if whose is holder}
        for repository in {held.repository for held in left.values()}:
            await self._count(repository)
        for number, held in left.items():
            if self._reservations.pop(number, None) is not None:
                self.ledger.release(held)
        # It may have removed things, too, and not have said so.
        await self._together.run("all", self._pass)

    # --- room

    @contextmanager
    def _told(self, repository: Repository, user: str | None) -> Iterator[None]:
        """What is refused here is told of."""
        try:
            yield
        except QuotaExceeded as error:
            name = "/".join(repository)
            words = f"refused an upload to repository {ascii(name or '/')[1:-1]}: {ascii(error.message)[1:-1]}"
            self._tell(Event(EventKind.QUOTA_REACHED, words, name, user), error.account.words)
            raise

    async def _look_for_room(self, refusal: QuotaExceeded) -> None:
        """
        Somebody may have removed something beside the server: count what the refusal is about, if that was not done just now.

        @raise QuotaExceeded: that was done just now.
        @raise Unavailable: it takes too long, and what is there is not known for sure.
        """
        account = refusal.account
        now = self._reactor.seconds()
        if self._complete and now - self._checked.get(account.words, -FRESH_S) < FRESH_S:
            raise refusal
        if not await self._within(self._together.run(account.words, lambda: self._check(account.words, account))):
            if self._complete:
                raise refusal
            raise Unavailable("the server still counts what is stored")

    async def _check(self, key: str, account: Any) -> None:
        if isinstance(account, RepositoryAccount):
            await self._count(account.repository)
        elif account is self.ledger.server or not self._complete:
            await self._together.run("all", self._pass)
        else:
            for repository in list(self.ledger.of_user(key)):
                await self._count(repository)
        if len(self._checked) > 1000:
            self._checked.clear()
        self._checked[key] = self._reactor.seconds()

    async def _within(self, work: Deferred[Any]) -> bool:
        """Wait for something for as long as an upload may wait; whether it came to its end."""
        return await ended_within(PATIENCE_S, self._reactor, work)

    # --- counting

    def _count_all(self) -> None:
        """Count every repository, say so the first time, and do so again after a while."""
        if not self.running:
            return
        began = self._reactor.seconds()

        def done(_: object) -> None:
            took = self._reactor.seconds() - began
            self._again(max(COUNT_AGAIN_S, COUNT_AGAIN_TIMES * took))

        def failed(failure: Failure) -> None:
            _log_failure(failure)
            self._again(TRY_AGAIN_S)

        self._together.run("all", self._pass).addCallbacks(done, failed)

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
            await self._count(repository)  # it may be there by now
        kept = [account for account in self.ledger.repositories.values() if account.counted and account.changed]
        gone = (before | set(self._ceilings)).difference(self.ledger.repositories)
        for repository in gone:
            self._ceilings.pop(repository, None)
        await self._pool.run(self._state.forget_repositories, gone)
        await self._keep(kept, STEP)
        sizes = {name: account.used_bytes for name, account in self.ledger.repositories.items() if account.counted}
        await self._pool.run(self._state.put_history, int(time.time() // 86_400), sizes)
        if not self._complete:
            self._based = self._complete = True
            if not self._limited:
                return
            gib = self.ledger.server.used_bytes / (1 << 30)
            _log.info("Quota initialized, currently using {gib:.2f} GiB", gib=gib)

    def _count(self, repository: Repository) -> Deferred[None]:
        """Count a repository."""
        return self._together.run(repository, lambda: self._count_cells(repository))

    async def _count_cells(self, repository: Repository) -> None:
        known = await self._closed(repository, list(range(CELLS)), lambda: self._counting.known(repository))
        left = [cell for cell in range(CELLS) if cell not in known]
        batch = FIRST_BATCH
        while left:
            cells, left = left[:batch], left[batch:]
            began = self._reactor.seconds()
            await self._closed(repository, cells, partial(self._counting.count, repository, cells))
            took = max(self._reactor.seconds() - began, 0.001)
            batch = max(1, min(CELLS, int(batch * COUNT_S / took)))
        last_snapshot_s = await self._pool.run(self._counting.last_snapshot_s, repository)
        oldest_lock_s = await self._pool.run(self._counting.oldest_lock_s, repository)
        if repository in self.ledger.repositories:
            account = self.ledger.account(repository)
            account.last_snapshot_s, account.oldest_lock_s = last_snapshot_s, oldest_lock_s
        self.ledger.all_counted(repository)

    async def _closed(
        self, repository: Repository, cells: list[int], look: Callable[[], dict[int, Amount]]
    ) -> dict[int, Amount]:
        """Look at cells while nobody changes anything there, and book what is found."""
        if not self.running:
            raise Unavailable("the server stops")
        keys = [(repository, cell) for cell in cells]
        try:
            await self._gates.close(keys)
            found = await self._pool.run(look)
            drift = self.ledger.count(repository, found)
        finally:
            self._gates.open(keys)
        if drift != (0, 0) and self._complete:
            _log.debug("{repository} has changed beside the server: {drift}", repository=repository, drift=drift)
        return found

    # --- what is kept

    async def _raise_ceiling(self, repository: Repository) -> None:
        """See that the state file does not promise less than a repository may come to have."""
        account = self.ledger.account(repository)
        while True:
            ceiling = self._ceilings.get(repository, Amount())
            most = account.most
            if most.size_bytes <= ceiling.size_bytes and most.objects <= ceiling.objects:
                return
            await self._together.run(("ceiling", repository), lambda: self._keep((account,), STEP))

    async def _keep(self, accounts: Iterable[RepositoryAccount], above: Amount) -> None:
        """Let the state file know what is known of repositories, with a ceiling so far above what they have."""
        states = {}
        for account in accounts:
            most = Amount(account.most.size_bytes + above.size_bytes, account.most.objects + above.objects)
            states[account.repository] = RepositoryState(most, account.sizes[:], account.objects[:])
            account.changed = False
        if states:
            await self._pool.run(self._state.put_repositories, states)
            # Also where it could not be kept: uploads go on, and after a crash more is counted.
            self._ceilings.update({repository: state.at_most for repository, state in states.items()})


class DistantAccounts:
    """
    A worker's books: the parent keeps them.

    @ivar active: whether account is kept; the parent says so.
    """

    def __init__(self, wire: Wire, active: bool) -> None:
        self._wire = wire
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
        asked = self._wire.ask(
            RESERVE,
            user=user,
            repository=list(target.repository),
            kind=target.type,
            name=target.name,
            size_bytes=size_bytes,
        )
        try:
            return _admitted(await shielded(asked))
        except (CancelledError, GeneratorExit):
            # The client is gone, and the parent does not know: nobody else will give back what it reserves.
            asked.addCallbacks(self._give_back, lambda _: None)
            raise
        except (WireLost, Failed) as error:
            raise Unavailable() from error

    def _give_back(self, answer: dict[str, Any]) -> None:
        if "number" in answer:
            self._wire.tell(SETTLE, number=answer["number"], repository=[], cell=0, change=[0, 0])

    async def grow(self, number: int, size_bytes: int) -> None:
        """
        Reserve more for the same upload.

        @raise InsufficientStorage: a quota leaves no room.
        @raise Unavailable: the parent is gone.
        """
        try:
            _admitted(await shielded(self._wire.ask(GROW, number=number, size_bytes=size_bytes)))
        except (WireLost, Failed) as error:
            raise Unavailable() from error

    def settle(self, number: int, repository: Repository, cell: int, change: Amount) -> None:
        """An upload or a removal has ended."""
        if self.active:
            self._wire.tell(SETTLE, number=number, repository=list(repository), cell=cell, change=list(change))

    def look_again(self, repository: Repository) -> None:
        """So much has changed in a repository that it should be counted."""
        self._wire.tell(LOOK_AGAIN, repository=list(repository))


def _admitted(answer: dict[str, Any]) -> int:
    """
    A reservation's number, of the parent's answer.

    @raise InsufficientStorage: it says so; or C{Unavailable}.
    """
    if "number" in answer:
        return int(answer["number"])
    raise _REFUSALS[answer["refused"]](answer["reason"])


class AccountsDesk:
    """
    The parent's side of L{DistantAccounts}.

    @ivar closed: the keys whose fences are closed now.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def verbs(self, holder: object) -> dict[str, Callable[..., Any]]:
        """What a worker may ask and tell."""
        return {
            RESERVE: partial(self._reserve, holder),
            GROW: self._grow,
            SETTLE: self._settle,
            LOOK_AGAIN: lambda repository: self._accounts.look_again(tuple(repository)),
        }

    def _reserve(
        self, holder: object, user: str | None, repository: list[str], kind: str, name: str, size_bytes: int
    ) -> Deferred[dict[str, Any]]:
        target = Target(tuple(repository), Kind.CONFIG if kind == CONFIG else Kind.OBJECT, kind, name)
        return _answered(self._accounts.reserve(user, target, size_bytes, holder))

    def _grow(self, number: int, size_bytes: int) -> Deferred[dict[str, Any]]:
        return _answered(self._accounts.grow(number, size_bytes))

    def _settle(self, number: int, repository: list[str], cell: int, change: list[int]) -> None:
        self._accounts.settle(number, tuple(repository), cell, Amount(*change))


def _answered(work: Coroutine[Deferred[Any], Any, int | None]) -> Deferred[dict[str, Any]]:
    """What becomes of something, as an answer over the wire."""

    async def answer() -> dict[str, Any]:
        try:
            return {"number": await work or 0}
        except ServerError as error:
            name = InsufficientStorage.__name__ if isinstance(error, InsufficientStorage) else Unavailable.__name__
            return {"refused": name, "reason": error.message}

    return Deferred.fromCoroutine(answer())


def _log_failure(failure: Failure) -> None:
    if failure.check(ServerError):
        return  # the volume is gone, which has been said, or the server stops
    _log.failure("could not count what is stored", failure)
