"""
The queue of password checks: whose check is next, and whose is given up when too many wait.

Password checks are slow on purpose, so a flood of guesses always has more of them than the server can make. Who gets the
next one is decided when a thread is free, and fairly between addresses:

  1. passwords that were right lately, at the same place;
  2. addresses without failed logins in the last minutes;
  3. the networks, then the addresses, then the users at an address, that have tried least in the last minutes without being
     right; those that tried about as much take turns.

When the queue is full, the longest waiter of the most crowded address is given up, of an address with failures if there is
one. No I/O, no threads: all is called in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from ..names import is_user_name
from .throttle import Login, wider_network_of

T = TypeVar("T")

#: An address with a failed login counts as one for so long.
FAILED_S = 600.0
#: What was tried counts half after so long, a quarter after twice that.
HALF_LIFE_S = 60.0
#: Networks, addresses, and users at addresses that are remembered; the one that was seen the longest ago is forgotten first.
MOST_SOURCES = 30_000


@dataclass(eq=False)
class _Source:
    """
    A network, an address, or a user's name at an address.

    @ivar attempts: attempts that were not right (yet); halved as time goes by.
    @ivar halved_s: when they were halved last.
    @ivar failed_s: when a password was wrong last.
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
        """How much it has tried: the same for 0 to 3, for 4 to 7, for 8 to 15, for 16 to 31, and so on."""
        return (self.attempts >> 2).bit_length()


@dataclass(eq=False)
class Waiting(Generic[T]):
    """
    One check that waits, or has waited.

    @ivar item: the caller's.
    @ivar verified: the password was right lately, at the same place.
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
        """The lower, the sooner it has its turn."""
        return self.address.failed(now_s), self.network.weight, self.address.weight


class LoginQueue(Generic[T]):
    """
    Checks that wait for a thread.

    @param size: how many may wait. Verified ones are not counted: there are no more of them than logins that were right.
    @param clock: seconds that never go backwards.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        #: In the order in which they came.
        self._waiting: dict[Waiting[T], None] = {}
        self._guesses = 0
        self._numbers = count(1)
        self._turns = count(1)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, login: Login, verified: bool, item: T) -> tuple[Waiting[T], Waiting[T] | None]:
        """
        Let a check wait.

        @return: it, and the one that is given up for it, which may be itself.
        """
        place = login.place
        # What can be no user's name is one name, however many there are.
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
        given_up = self._most_crowded()
        self.remove(given_up)
        return waiting, given_up

    def first(self) -> Waiting[T] | None:
        """Whose turn it is; it still waits."""
        now_s = self._clock()
        for waiting in self._waiting:
            for source in waiting.sources:
                source.age(now_s)
        return min(self._waiting, key=lambda waiting: self._rank(waiting, now_s), default=None)

    def take(self, waiting: Waiting[T]) -> None:
        """Its check begins: it waits no longer, and has had its turn."""
        self.remove(waiting)
        turn = next(self._turns)
        for source in waiting.sources:
            source.turn = turn

    def remove(self, waiting: Waiting[T]) -> None:
        """It waits no longer."""
        if waiting not in self._waiting:
            return
        del self._waiting[waiting]
        self._guesses -= not waiting.verified
        for source in waiting.sources:
            source.waiting -= 1

    def was_right(self, waiting: Waiting[T]) -> None:
        """The password was right: that was no guess."""
        for source in waiting.sources:
            source.attempts = max(0, source.attempts - 1)

    def was_wrong(self, waiting: Waiting[T]) -> None:
        """The password was wrong."""
        waiting.address.failed_s = waiting.user.failed_s = self._clock()

    def is_quiet(self, waiting: Waiting[T], most: int) -> bool:
        """
        Whether the first one is no part of a flood, as far as can be told: it was right lately, or its address has tried
        little, and no more than C{most} wait that cannot be told from it.
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
        """The lowest is the first."""
        network, address, user = waiting.sources
        return (
            not waiting.verified,
            waiting.claim(now_s),
            user.failed(now_s),
            user.weight,
            # In turn, by networks, then addresses, then users.
            network.turn,
            address.turn,
            user.turn,
            waiting.number,
        )

    def _most_crowded(self) -> Waiting[T]:
        """Who is given up."""
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
