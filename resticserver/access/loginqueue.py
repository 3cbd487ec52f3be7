"""
The queue of password checks: which check is next, and which one is dropped when too many wait.

Password checks are slow on purpose, so a flood of guesses always needs more of them than the server can make. Which one is
next is decided when a thread is free, and fairly between addresses:

  1. passwords that were right lately, from the same place;
  2. addresses without failed logins in the last minutes;
  3. the networks, then the addresses, then the users at an address, with the fewest unsuccessful attempts in the last
     minutes; those with about as many take turns.

When the queue is full, the check that waits longest is dropped, of the address with the most checks (one with failures, if
there is any). No I/O and no threads: everything is called in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from ..names import is_user_name
from .throttle import Login, wider_network_of

T = TypeVar("T")

#: How long an address counts as one with a failed login.
FAILED_S = 600.0
#: Attempts count half after so long, and a quarter after twice that.
HALF_LIFE_S = 60.0
#: How many networks, addresses, and users at addresses are remembered; the one seen longest ago is forgotten first.
MOST_SOURCES = 30_000


@dataclass(eq=False)
class _Source:
    """
    A network, an address, or a user's name at an address.

    @ivar attempts: attempts that were not successful (yet); halved as time passes.
    @ivar halved_s: when they were last halved.
    @ivar failed_s: when a password was last wrong.
    @ivar turn: when it had its last turn; 0 for never.
    @ivar waiting: how many of its attempts wait.
    """

    halved_s: float
    attempts: int = 0
    failed_s: float = -FAILED_S
    turn: int = 0
    waiting: int = 0

    def age(self, now_s: float) -> None:
        """Halve the attempts as often as is due."""
        times = int((now_s - self.halved_s) // HALF_LIFE_S)
        if times > 0:
            self.attempts >>= min(times, 64)
            self.halved_s += times * HALF_LIFE_S

    def failed(self, now_s: float) -> bool:
        """Whether a password was wrong lately."""
        return now_s - self.failed_s < FAILED_S

    @property
    def weight(self) -> int:
        """How many attempts it has, in steps: 0 to 3, 4 to 7, 8 to 15, 16 to 31, and so on."""
        return (self.attempts >> 2).bit_length()


@dataclass(eq=False)
class Waiting(Generic[T]):
    """
    One check that waits, or has waited.

    @ivar item: what the caller has added.
    @ivar verified: whether the password was right lately, from the same place.
    """

    item: T
    verified: bool
    number: int
    network: _Source = field(repr=False)
    address: _Source = field(repr=False)
    user: _Source = field(repr=False)

    @property
    def sources(self) -> tuple[_Source, _Source, _Source]:
        """Where it comes from, the widest first."""
        return self.network, self.address, self.user

    def claim(self, now_s: float) -> tuple[bool, int, int]:
        """The lower, the sooner is its turn."""
        return self.address.failed(now_s), self.network.weight, self.address.weight


class LoginQueue(Generic[T]):
    """
    Checks that wait for a thread.

    @param size: how many may wait. Verified ones are not counted: there are no more of them than successful logins.
    @param clock: monotonic seconds.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        #: In the order of their arrival.
        self._waiting: dict[Waiting[T], None] = {}
        self._guesses = 0
        self._numbers = count(1)
        self._turns = count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, login: Login, verified: bool, item: T) -> tuple[Waiting[T], Waiting[T] | None]:
        """
        Add a check.

        @return: the check, and the one that is dropped for it, which may be itself.
        """
        place = login.place
        # All names that no user can have count as one name.
        name = login.user if is_user_name(login.user) else ""
        # No network or address has a space in it.
        keys = f"network {wider_network_of(place)}", place, f"{place} {name}"
        waiting = Waiting(item, verified, next(self._numbers), *(self._source(key) for key in keys))
        self._waiting[waiting] = None
        for source in waiting.sources:
            source.waiting += 1
            source.attempts += 1
        if verified:
            return waiting, None
        self._guesses += 1
        if self._guesses <= self.size:
            return waiting, None
        dropped = self._most_crowded()
        self.remove(dropped)
        return waiting, dropped

    def first(self) -> Waiting[T] | None:
        """The next check; it stays in the queue."""
        now_s = self._clock()
        for waiting in self._waiting:
            for source in waiting.sources:
                source.age(now_s)
        return min(self._waiting, key=lambda waiting: self._rank(waiting, now_s), default=None)

    def take(self, waiting: Waiting[T]) -> None:
        """Remove a check because it begins: this was its turn."""
        self.remove(waiting)
        turn = next(self._turns)
        for source in waiting.sources:
            source.turn = turn

    def remove(self, waiting: Waiting[T]) -> None:
        """Remove a check."""
        if waiting not in self._waiting:
            return
        del self._waiting[waiting]
        self._guesses -= not waiting.verified
        for source in waiting.sources:
            source.waiting -= 1

    def was_right(self, waiting: Waiting[T]) -> None:
        """The password was right."""
        for source in waiting.sources:
            source.attempts = max(0, source.attempts - 1)

    def was_wrong(self, waiting: Waiting[T]) -> None:
        """The password was wrong."""
        waiting.address.failed_s = waiting.user.failed_s = self._clock()

    def is_quiet(self, waiting: Waiting[T], most: int) -> bool:
        """
        Whether a check is probably no part of a flood: its password was right lately, or its address has few attempts and no
        more than C{most} waiting checks have the same claim or a better one.
        """
        if waiting.verified:
            return True
        if waiting.address.weight:
            return False
        now_s = self._clock()
        claim = waiting.claim(now_s)
        return sum(not other.verified and other.claim(now_s) <= claim for other in self._waiting) <= most

    @staticmethod
    def _rank(waiting: Waiting[T], now_s: float) -> tuple[object, ...]:
        """The check with the lowest rank is next."""
        network, address, user = waiting.sources
        return (
            not waiting.verified,
            waiting.claim(now_s),
            user.failed(now_s),
            user.weight,
            # Take turns, by networks, then addresses, then users.
            network.turn,
            address.turn,
            user.turn,
            waiting.number,
        )

    def _most_crowded(self) -> Waiting[T]:
        """The check to drop."""
        now_s = self._clock()
        guesses = [waiting for waiting in self._waiting if not waiting.verified]

        def crowd(waiting: Waiting[T]) -> tuple[object, ...]:
            network, address, user = waiting.sources
            return (
                address.failed(now_s),
                address.waiting,
                network.weight,
                address.weight,
                user.failed(now_s),
                user.weight,
                -waiting.number,
            )

        return max(guesses, key=crowd)

    def _source(self, key: str) -> _Source:
        now_s = self._clock()
        source = self._sources.pop(key, None)
        if source is None:
            source = _Source(now_s)
            if len(self._sources) >= MOST_SOURCES:
                del self._sources[next(iter(self._sources))]
        source.age(now_s)
        self._sources[key] = source
        return source
