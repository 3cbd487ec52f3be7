"""
The leases of one front end of one account: what it has taken, and the changes of the shared state by which it gets more, gives
back, and enters counts.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .engine import EngineError
from .front_ends import FrontEnds, LeaseEnded
from .lease_use import Held, LeaseUse
from .quota_register import Register, Version
from .quota_state import AccountState, lease_size

#: How often a change is tried anew because another front end was faster, and the pauses before, in seconds.
_ATTEMPTS = 40
_PAUSE_S = 0.05
_MOST_PAUSE_S = 1.0


class NoRoom(Exception):
    """
    A limit would be exceeded.

    @ivar left: how much would still fit.
    """

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


class NotCounted(Exception):
    """What is stored was never counted, so nothing can be leased yet."""


@dataclass(frozen=True, slots=True)
class CountBegun:
    """
    A count in progress.

    @ivar state: as it was before the first list.
    """

    account: str
    state: AccountState


class LeasedAccount:
    """
    One account of one holder. Safe from several threads.

    @param register: the shared state.
    @param most: the largest lease.
    @param now_s: says the time by a clock that is never set.
    @param sleep: waits for so many seconds.
    """

    def __init__(
        self,
        account: str,
        register: Register,
        front_ends: FrontEnds,
        holder: str,
        most: int,
        now_s: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._name = account
        self._register = register
        self._front_ends = front_ends
        self.holder = holder
        self._most = most
        self._now_s = now_s
        self._sleep = sleep
        #: Of the numbers; never held during a request.
        self._lock = threading.Lock()
        self._use = LeaseUse()
        #: Whether something was taken or has ended since L{tidy}.
        self._touched = False
        #: Held from the look at the state until its change.
        self._changing = threading.Lock()
        self._version: Version | None = None
        self._serial = 0
        #: What the last state by this front end says it was granted, and is done; C{None} before the first.
        self._published: tuple[int, int] | None = None
        #: Whether a state may have been made of which this front end does not know.
        self._unsure = False

    # --- without a request

    def take(self, size: int) -> Held | None:
        """See L{Leases.take}."""
        with self._lock:
            self._touched = True
            return Held(self._name, self.holder, size) if self._use.take(size) else None

    def ended(self, held: Held, stored: int, late_s: float | None) -> None:
        """
        See L{Leases.ended}.

        @param late_s: for how long the upload may still be in progress, if it is not certain how it has ended.
        """
        with self._lock:
            if held.ended:
                return
            held.ended = self._touched = True
            if late_s is None:
                self._use.end(held, stored)
            else:
                self._use.end_late(held, self._now_s() + late_s)

    # --- leases

    def acquire(self, limit: int, size: int, above: bool) -> Held:
        """See L{Leases.acquire}."""
        with self._changing:
            version, is_fresh = self._version, False
            for attempt in range(_ATTEMPTS):
                held = None if above else self.take(size)
                if held is not None:
                    return held
                if version is None:
                    version, is_fresh = self._register.read(), True
                state = self._own(version.state)
                own = state.shares[self.holder]
                with self._lock:
                    unused = 0 if above else self._use.unused
                need, left = size - unused, limit - state.bound
                if state.counted is None or left < need:
                    if is_fresh:
                        raise NotCounted() if state.counted is None else NoRoom(max(0, left + unused))
                    version = None
                    continue
                more = need if above else max(need, min(left, lease_size(left, len(state.shares), self._most)))
                state = state.with_share(self.holder, own.granted + more, own.done, own.serial)
                if self._change(version, state, attempt):
                    with self._lock:
                        if above:
                            self._touched = True
                            self._use.grant_above(size)
                            return Held(self._name, self.holder, size, above=True)
                        self._use.granted += more
                version, is_fresh = self._version, True
        raise self._contended()

    def tidy(self) -> None:
        """See L{Leases.tidy}."""
        with self._lock:
            touched, self._touched = self._touched, False
            if touched or not self._is_written():
                return
            self._use.at(self._now_s())
            # First here, and then for the others.
            self._use.give_back()
            if not self._is_news():
                return
        self._publish(closing=False)

    def close(self) -> bool:
        """
        Give back everything.

        @return: whether all uploads have ended for certain. Else the others take back the rest, later.
        """
        with self._lock:
            self._use.at(self._now_s())
            self._use.give_back()
            is_closed = self._use.used == self._use.done
        if self._is_written():
            self._publish(is_closed)
        return is_closed

    # --- counts

    def begin_count(self) -> CountBegun:
        """See L{Leases.begin_count}."""
        with self._changing:
            for attempt in range(_ATTEMPTS):
                version = self._register.read()
                state = self._own(version.state)
                gone = self._front_ends.gone({holder for holder, share in state.shares.items() if not share.closed})
                with self._lock:
                    is_news = self._is_news()
                if not is_news and not gone:
                    return CountBegun(self._name, version.state)
                state = state.closing(gone)
                if self._change(version, state, attempt):
                    return CountBegun(self._name, state)
        raise self._contended()

    def counted(self, begun: CountBegun, counted: int) -> bool:
        """See L{Leases.counted}."""
        with self._changing:
            version = self._version
            for attempt in range(_ATTEMPTS):
                if version is None:
                    version = self._register.read()
                state = self._own(version.state).with_count(begun.state, counted)
                if state is None:
                    return False
                if self._change(version, state, attempt):
                    return True
                version = self._version
        raise self._contended()

    # --- changes

    def _is_written(self) -> bool:
        """Whether there may be a share of this front end."""
        return self._published is not None or self._unsure

    def _is_news(self) -> bool:
        """Whether the share says something else than what is so."""
        return self._unsure or self._published not in (None, (self._use.granted, self._use.done))

    def _own(self, state: AccountState) -> AccountState:
        """
        A state with the share of this front end as it is now, and with a new serial.

        @raise LeaseEnded: the others have closed the share.
        """
        share = state.shares.get(self.holder)
        if (share is None and self._published is not None) or (share is not None and share.closed):
            self._front_ends.end(self.holder)
            raise LeaseEnded()
        self._serial += 1
        with self._lock:
            self._use.at(self._now_s())
            return state.with_share(self.holder, self._use.granted, self._use.done, self._serial)

    def _change(self, version: Version, state: AccountState, attempt: int) -> bool:
        """
        Make a change.

        @return: C{False} if another one came before.
        @raise EngineError: it is not known.
        """
        share = state.shares[self.holder]
        self._version, self._unsure = None, True
        self._version = newest = self._register.change(version, state, self.holder, share.serial)
        if newest.is_by(self.holder, share.serial):
            self._published, self._unsure = (share.granted, share.done), False
            return True
        # A race with the same front end again would end as this one has.
        self._sleep(random.uniform(0, min(_MOST_PAUSE_S, _PAUSE_S * (attempt + 1))))
        return False

    def _publish(self, closing: bool) -> None:
        """Write the share as it is now, if the others have not closed it."""
        with self._changing:
            version = self._version
            for attempt in range(_ATTEMPTS):
                if version is None:
                    version = self._register.read()
                try:
                    state = self._own(version.state)
                except LeaseEnded:
                    return
                if closing:
                    state = state.closing((self.holder,))
                if self._change(version, state, attempt):
                    return
                version = self._version

    def _contended(self) -> EngineError:
        return EngineError("", f"{self._name}: other front ends change the quota all the time")
