"""
Exact quotas for several front ends on one bucket. Each front end leases a part of a limit, by one change of the account's shared
state, and uses it up without a request for each upload. docs/decisions/object-quotas.md has the protocol and its proof.

All methods but L{Leases.take}, L{Leases.check} and L{Leases.ended} ask the engine, so they block and belong in a pool.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

from .engine import Engine
from .front_ends import Clock, FrontEnds, LeaseEnded, LocalClock, Moment, Times
from .lease_use import Held
from .leased_account import CountBegun, LeasedAccount
from .quota_register import Register

#: The largest lease, in bytes. Accounts of objects have the same number, so their leases are always a part of what is left.
MOST_LEASE = 4 << 30


class Leases:
    """
    The leases of one front end. Safe from several threads.

    @param prefix: of all keys of ours, with a slash at its end.
    @param most: the largest lease.
    @param sleep: waits for so many seconds, when another front end was faster.
    """

    def __init__(
        self,
        engine: Engine,
        prefix: str,
        *,
        times: Times | None = None,
        clock: Clock | None = None,
        most: int = MOST_LEASE,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._engine = engine
        self._prefix = prefix
        self._times = times if times is not None else Times()
        self._clock = clock if clock is not None else LocalClock()
        self._most = most
        self._sleep = sleep
        self._lock = threading.Lock()
        self._accounts: dict[str, LeasedAccount] = {}
        self._front_ends = FrontEnds(engine, f"{prefix}front-ends/", self._times, self._clock)

    @property
    def holder(self) -> str:
        """What this front end is called now."""
        return self._front_ends.holder

    # --- without a request

    def take(self, account: str, size: int) -> Held | None:
        """
        Take what an upload needs from the lease, if that has so much.

        @return: C{None} if more must be leased first, by L{acquire}.
        """
        known = self._known(account, self.holder)
        return None if known is None else known.take(size)

    def check(self, held: Held) -> None:
        """
        Check that the lease may be used now. To be called right before each request that stores something, in its thread.

        @raise LeaseEnded: it may not.
        """
        if not self._front_ends.may_store(held.holder):
            raise LeaseEnded()

    def usable_until(self, held: Held) -> Moment:
        """
        Until when a lease may be used; for L{resticserver.objects.front_ends.Fence}, which checks the same as L{check} and can be
        in another process.

        @raise LeaseEnded: it may not be used any more.
        """
        return self._front_ends.usable_until(held.holder)

    def ended(self, held: Held, stored: int, certain: bool = True) -> None:
        """
        An upload has ended; idempotent. It sends nothing more.

        @param stored: how much of what it has taken was stored and is visible.
        @param certain: C{False} if a request of it has failed in a way that does not say what the engine has done, or will do.
            All of it counts as stored then.
        """
        # What was taken under another holder is the others' to take back.
        known = self._known(held.account, held.holder)
        if known is not None:
            known.ended(held, stored, None if certain else self._times.grace_s)

    # --- leases

    def renew(self) -> None:
        """
        Say that this front end is alive. To be called several times within C{usable_s}, else L{check} fails.

        @raise EngineError: the engine does not answer.
        @raise LeaseEnded: it was out of reach for too long; all leases are given up, and new ones can be taken.
        """
        self._front_ends.renew()

    def acquire(self, account: str, limit: int, size: int, above: bool = False) -> Held:
        """
        Take what an upload needs, and lease more if necessary.

        @param above: whether C{limit} includes a reserve that other uploads may not use: exactly so much is leased then.
        @raise NoRoom: it does not fit.
        @raise NotCounted: the account must be counted first.
        @raise EngineError: the engine does not answer.
        @raise LeaseEnded: this front end was declared dead meanwhile; another attempt may succeed.
        """
        return self._account(account).acquire(limit, size, above)

    def tidy(self) -> None:
        """
        Give back what was not used since the last call, and say what is done. To be called every minute or so.

        @raise EngineError: the engine does not answer.
        """
        for known in self._all():
            known.tidy()

    def close(self) -> None:
        """
        Give back everything at the end of this front end; uploads must have ended. What has not ended for certain is left to the
        others.

        @raise EngineError: the engine does not answer.
        """
        if all([known.close() for known in self._all()]):
            self._front_ends.leave()

    # --- counts

    def begin_count(self, account: str) -> CountBegun:
        """
        To be called before the first list of a count. Takes back the leases of front ends that are gone, and says what is done.

        @raise EngineError: the engine does not answer.
        @raise LeaseEnded: this front end was declared dead meanwhile.
        """
        return self._account(account).begin_count()

    def counted(self, begun: CountBegun, counted: int) -> bool:
        """
        Enter a count.

        @return: whether it was entered; not if another front end has entered one meanwhile.
        @raise EngineError: the engine does not answer.
        @raise LeaseEnded: this front end was declared dead meanwhile.
        """
        return self._account(begun.account).counted(begun, counted)

    # --- accounts

    def _known(self, account: str, holder: str) -> LeasedAccount | None:
        with self._lock:
            known = self._accounts.get(account)
        return known if known is not None and known.holder == holder else None

    def _account(self, account: str) -> LeasedAccount:
        """
        An account as this front end uses it.

        @raise EngineError: the engine does not say that this front end is alive.
        """
        # A share must not be seen before its front end is, else it would be taken for one of a front end that is gone.
        while not self._front_ends.may_store(holder := self.holder):
            self._front_ends.renew()
        with self._lock:
            known = self._accounts.get(account)
            if known is None or known.holder != holder:
                known = self._accounts[account] = LeasedAccount(
                    account,
                    Register(self._engine, self._prefix + _folder(account), account),
                    self._front_ends,
                    holder,
                    self._most,
                    self._now_s,
                    self._sleep,
                )
            return known

    def _now_s(self) -> float:
        return self._clock.now().running_s

    def _all(self) -> list[LeasedAccount]:
        with self._lock:
            return [known for known in self._accounts.values() if known.holder == self.holder]


def _folder(account: str) -> str:
    """What the keys of an account begin with. Its name may be longer than keys are, so it is in the objects."""
    return f"accounts/{hashlib.sha256(account.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}/"
