"""
Which front ends of a bucket are alive. Each one has an object C{HOLDER.alive}, which it writes again and again; its holder is
new with each start. One that stops doing so is declared dead by the others, by an object C{HOLDER.dead}, for good.

A front end that finds itself declared dead goes on under a new holder. One may use what it has leased for C{usable_s} after it
has looked, and what it has sent by then is stored or refused within C{grace_s}; the others wait for both.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twisted.logger import Logger

from ..errors import Unavailable
from .engine import Engine, EngineError, Exists

ALIVE = "alive"
DEAD = "dead"

_log = Logger()


@dataclass(frozen=True)
class Times:
    """
    Waiting times in seconds.

    @ivar usable_s: for how long leases may be used without another look.
    @ivar suspect_s: a front end that has written nothing for so long is declared dead.
    @ivar grace_s: within this time an upload ends whose sending has begun. Engines take a signature within 15 minutes of its
        time, before or after, by their clock, and a request takes four minutes at most.
    @ivar keep_dead_s: for how long it is kept that a front end is dead.
    """

    usable_s: float = 90.0
    suspect_s: float = 300.0
    grace_s: float = 2100.0
    keep_dead_s: float = 86_400.0

    @property
    def dead_s(self) -> float:
        """After this time a front end that was declared dead stores nothing more."""
        return self.usable_s + self.grace_s


class Moment(NamedTuple):
    """
    A time by two clocks of this machine.

    @ivar running_s: by one that is never set, and goes on while the machine sleeps.
    @ivar wall_s: in seconds since 1970. It is what requests are signed with.
    """

    running_s: float
    wall_s: float

    def since(self, earlier: Moment) -> float:
        """How many seconds have passed: the more, if the clocks differ. A paused virtual machine shows in one of them at most."""
        return max(self.running_s - earlier.running_s, self.wall_s - earlier.wall_s)


class Clock(Protocol):
    """Says the time."""

    def now(self) -> Moment:
        """The time."""


class LocalClock:
    """The clocks of this machine."""

    def now(self) -> Moment:
        """See L{Clock.now}."""
        return Moment(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class LeaseEnded(Unavailable):
    """This front end may not use its leases now. Clients are told 503, and try again."""

    default = "the object store was out of reach for too long, try again"


class Fence:
    """
    Until when an upload may be sent to the engine.

    @param until: see L{FrontEnds.usable_until}.
    """

    def __init__(self, until: Moment, clock: Clock | None = None) -> None:
        self._until = until
        self._clock = clock if clock is not None else LocalClock()

    def check(self) -> None:
        """
        To be called right before each request that stores something, in its thread.

        @raise LeaseEnded: not any more.
        """
        now = self._clock.now()
        if now.running_s >= self._until.running_s or now.wall_s >= self._until.wall_s:
            raise LeaseEnded()


class FrontEnds:
    """
    The front ends of a bucket, as one of them sees them. Safe from several threads.

    @param prefix: of the keys, with a slash at its end.
    @ivar holder: what this front end is called in its leases.
    """

    def __init__(self, engine: Engine, prefix: str, times: Times, clock: Clock) -> None:
        self._engine = engine
        self._prefix = prefix
        self._times = times
        self._clock = clock
        self._lock = threading.Lock()
        self.holder = _new_holder()
        #: When a look last found no C{HOLDER.dead} of this front end.
        self._looked: Moment | None = None
        #: The holders with an object C{.alive}, each with the time by the engine's clock and since when here that is the same.
        self._alive: dict[str, tuple[float, Moment]] = {}
        #: Since when the holders were known here to be dead.
        self._dead_since: dict[str, Moment] = {}
        #: Those that are dead for so long that they store nothing more.
        self._gone: set[str] = set()

    def may_store(self, holder: str) -> bool:
        """Whether leases of this holder may be used now."""
        looked = self._looked
        return holder == self.holder and looked is not None and self._clock.now().since(looked) < self._times.usable_s

    def usable_until(self, holder: str) -> Moment:
        """
        Until when leases of this holder may be used, as far as is known now.

        @raise LeaseEnded: they may not be used any more.
        """
        looked = self._looked
        if looked is None or not self.may_store(holder):
            raise LeaseEnded()
        return Moment(looked.running_s + self._times.usable_s, looked.wall_s + self._times.usable_s)

    def end(self, holder: str) -> None:
        """This front end was declared dead: go on under another name."""
        with self._lock:
            self._end(holder)

    def _end(self, holder: str) -> None:
        if holder == self.holder:
            # Its object stays: what it has sent may be stored yet, so the others must wait for it.
            _log.warn("the object store was out of reach for too long: all quota leases of this server are given up")
            self._looked = None
            self.holder = _new_holder()

    def renew(self) -> None:
        """
        Say that this front end is alive, and look at the others.

        @raise EngineError: the engine does not answer.
        @raise LeaseEnded: it was declared dead meanwhile, or could have been. It has another holder now.
        """
        with self._lock:
            holder = self.holder
            # Not declared dead, perhaps, and nothing else is wrong then; but after a day it could have been forgotten.
            if self._looked is not None and self._clock.now().since(self._looked) >= self._times.usable_s:
                self._end(holder)
                raise LeaseEnded()
            asked = self._clock.now()
            self._engine.put(f"{self._prefix}{holder}.{ALIVE}", b"")
            alive, dead = self._look()
            if holder in dead:
                self._end(holder)
                raise LeaseEnded()
            if holder not in alive:
                raise EngineError("", f"{self._prefix}{holder}.{ALIVE}: stored and not listed")
            self._looked = asked
            self._judge(alive, dead)

    def _look(self) -> tuple[dict[str, float], dict[str, float]]:
        """The holders that are alive and those that are dead, each with the time of the object by the engine's clock."""
        found: dict[str, dict[str, float]] = {ALIVE: {}, DEAD: {}}
        for page in self._engine.list_pages(self._prefix):
            for one in page:
                holder, _, state = one.key.rpartition(".")
                if state in found:
                    found[state][holder] = one.modified_s
        return found[ALIVE], found[DEAD]

    def _judge(self, alive: dict[str, float], dead: dict[str, float]) -> None:
        now, engine_now_s = self._clock.now(), alive[self.holder]
        before, self._alive = self._alive, {}
        for holder, modified_s in alive.items():
            known = before.get(holder)
            since = known[1] if known is not None and known[0] == modified_s else now
            self._alive[holder] = modified_s, since
            # Both clocks must say so. A wrong suspicion harms nothing but the other's speed.
            is_late = min(now.running_s - since.running_s, engine_now_s - modified_s) >= self._times.suspect_s
            if is_late and holder not in dead and holder != self.holder:
                _log.warn("the front end {holder} has stopped: its quota leases are taken back", holder=holder)
                with suppress(EngineError, Exists):
                    self._engine.put_new(f"{self._prefix}{holder}.{DEAD}", b"")
        self._dead_since = {holder: self._dead_since.get(holder, now) for holder in dead}
        for holder, modified_s in dead.items():
            here_s = now.running_s - self._dead_since[holder].running_s
            # The engine may have several clocks, and this machine may have been asleep. The later one is right.
            dead_s = min(here_s, engine_now_s - modified_s)
            if dead_s >= self._times.dead_s:
                self._gone.add(holder)
                if holder in self._alive:
                    self._remove(holder, ALIVE)
            if dead_s >= self._times.keep_dead_s:
                self._remove(holder, DEAD)

    def _remove(self, holder: str, state: str) -> None:
        with suppress(EngineError):
            self._engine.remove(f"{self._prefix}{holder}.{state}")

    def gone(self, holders: Collection[str]) -> set[str]:
        """
        Which of these holders store nothing more.

        @param holders: those of shares that have been read, so that each has had an object C{.alive} before this is called. It
            is removed only when it has been dead for long enough, or has ended in order.
        @raise EngineError: the engine does not say.
        @raise LeaseEnded: this front end was declared dead meanwhile.
        """
        if not self._known(holders):
            self.renew()
        with self._lock:
            return {one for one in holders if one in self._gone or one not in self._alive} - {self.holder}

    def _known(self, holders: Iterable[str]) -> bool:
        with self._lock:
            return all(one == self.holder or one in self._gone or one in self._alive for one in holders)

    def leave(self) -> None:
        """
        This front end has closed all of its shares, and stores nothing more.

        @raise EngineError: the engine does not answer.
        """
        with self._lock:
            holder, self.holder, self._looked = self.holder, _new_holder(), None
            self._engine.remove(f"{self._prefix}{holder}.{ALIVE}")


def _new_holder() -> str:
    return uuid.uuid4().hex
