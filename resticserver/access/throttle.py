"""
Failed logins, counted in token buckets: who guesses waits longer and longer, and an address that goes on is refused.

A user is never refused, only slowed: else anyone could stop somebody's backups by failing in that name. Nothing blocks
here and nothing is told in advance: a token is taken before a check and given back after a success, so that guesses that
run at the same time count too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from ..names import is_user_name
from .proxies import plain_address

#: No answer is later than this because of failures.
MOST_DELAY_S = 5.0
#: Each failure beyond the free ones makes the next answer so much later.
DELAY_STEP_S = 0.5
#: Users, and addresses, that are remembered; the one that failed the longest ago is forgotten first.
MOST_BUCKETS = 10_000
#: Passwords a minute that may be looked for in vain among those that were right lately; and, when an address has used these
#: up, in each user's name: its other users need not suffer for one that guesses.
LOOKUPS = 100
LOOKUPS_OF_A_USER = 5

_RATE = re.compile(r"([0-9]{1,9})(?:/(?:minute|min|m))?")


def parse_rate(text: str) -> int:
    """
    Failures a minute: C{20/minute}, or only the number; 0 is off.

    @raise ValueError: it is something else.
    """
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text}: a number of failures a minute is needed, like 20/minute")
    return int(found[1])


class Login(NamedTuple):
    """
    One attempt to log in.

    @ivar address_is_trusted: this is many clients' address (a trusted proxy's own).
    @ivar known: the request before on the same connection had the same credentials, and they were right.
    """

    user: str
    password: bytes
    address: str
    address_is_trusted: bool
    known: bool

    @property
    def place(self) -> str:
        """Where it comes from, as far as that is told apart."""
        return network_of(self.address) or self.address


@dataclass(frozen=True)
class Verdict:
    """
    What becomes of an attempt.

    @ivar delay_s: how long it has to wait before it is looked at.
    @ivar refused: it is not looked at.
    @ivar lockout_began: this is the first that is refused.
    """

    delay_s: float = 0.0
    refused: bool = False
    lockout_began: bool = False


@dataclass
class _Bucket:
    """
    Tokens; below 0 they are a debt.

    @ivar tokens: as they were at C{at_s}.
    @ivar locked: nothing is admitted until the debt is paid.
    """

    tokens: float
    at_s: float
    locked: bool = False

    @property
    def delay_s(self) -> float:
        """For the attempt that took the last token."""
        return round(min(MOST_DELAY_S, max(0.0, -self.tokens) * DELAY_STEP_S), 3)


class _Buckets:
    """
    Buckets by key. A full one is as good as none and is forgotten sooner or later.

    @param capacity: how many tokens each holds, and gets back in a minute.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, key: str) -> _Bucket:
        """The bucket of a key as it is now; it is the last to be forgotten."""
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            bucket = _Bucket(self.capacity, self._clock())
            self._forget()
        self._refill(bucket)
        self._buckets[key] = bucket
        return bucket

    def give_back(self, key: str) -> None:
        """A token that was taken for nothing."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.tokens = min(bucket.tokens + 1, self.capacity)

    def _refill(self, bucket: _Bucket) -> None:
        now = self._clock()
        bucket.tokens = min(bucket.tokens + (now - bucket.at_s) * self.capacity / 60, self.capacity)
        bucket.at_s = now

    def _forget(self) -> None:
        """Make room for one: two of the oldest go if they are full, one in any case if there are too many."""
        for key in list(islice(self._buckets, 2)):
            self._refill(self._buckets[key])
            if self._buckets[key].tokens >= self.capacity or len(self._buckets) >= MOST_BUCKETS:
                del self._buckets[key]


class Throttle:
    """
    The buckets of users and of addresses. Each holds as many tokens as failures are free in a minute, and fills up in one.

    @param failures_per_minute: 0 lets everything through.
    @param clock: seconds that never go backwards.
    """

    def __init__(self, failures_per_minute: int, clock: Callable[[], float]) -> None:
        self._capacity = failures_per_minute
        self._users = _Buckets(failures_per_minute, clock)
        self._addresses = _Buckets(failures_per_minute, clock)
        self._lookups = _Buckets(LOOKUPS, clock)
        self._lookups_by_user = _Buckets(LOOKUPS_OF_A_USER, clock)

    def admit(self, user: str, address: str, exempt_address: bool) -> Verdict:
        """
        Whether a password may be tried, and when. Takes a token of the user's and one of the address's.

        @param user: any text: it may be no user at all.
        @param exempt_address: this is many clients' address (a trusted proxy's own), and not counted.
        """
        if not self._capacity:
            return Verdict()
        delay_s = 0.0
        network = None if exempt_address else network_of(address)
        if network is not None:
            bucket = self._addresses.get(network)
            if bucket.locked and bucket.tokens < 0:
                return Verdict(refused=True)
            bucket.locked = False
            if bucket.tokens - 1 < -self._capacity:
                # From here on the debt takes a minute to be paid.
                bucket.locked = True
                return Verdict(refused=True, lockout_began=True)
            bucket.tokens -= 1
            delay_s = bucket.delay_s
        # What is refused is not the user's failure: it cost no check, and must not slow the user down.
        bucket = self._users.get(_name_of(user))
        bucket.tokens = max(bucket.tokens - 1, -float(self._capacity) - MOST_DELAY_S / DELAY_STEP_S)
        return Verdict(max(delay_s, bucket.delay_s))

    def give_back(self, user: str, address: str) -> None:
        """An admitted attempt was no failure."""
        self._users.give_back(_name_of(user))
        network = network_of(address)
        if network is not None:
            self._addresses.give_back(network)

    def may_look_up(self, user: str, address: str, exempt_address: bool) -> bool:
        """
        Whether a password may be looked for among those that were right lately. That is as good a guess as any, and much
        faster, so there is a bound to the misses of an address (of a user, where the address is not counted).
        """
        return not self._capacity or any(
            bucket.tokens >= 1 for bucket in self._lookup_buckets(user, address, exempt_address)
        )

    def missed(self, user: str, address: str, exempt_address: bool) -> None:
        """It was not among them."""
        for bucket in self._lookup_buckets(user, address, exempt_address):
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return

    def _lookup_buckets(self, user: str, address: str, exempt_address: bool) -> Iterator[_Bucket]:
        """What a look is taken from: the first that has a token."""
        network = None if exempt_address else network_of(address)
        name = _name_of(user)
        # No network has a space in it.
        yield self._lookups.get(f"user {name}" if network is None else network)
        if network is not None:
            yield self._lookups_by_user.get(f"{network} {name}")


def _name_of(user: str) -> str:
    """The key of a user; what can be no user's name is one key, however long and however many it is."""
    return user if is_user_name(user) else ""


@lru_cache(maxsize=10_000)
def wider_network_of(place: str) -> str:
    """
    The network that a place (L{Login.place}) is in: an IPv4 address's /24, a /64's /48, which are often one customer's or
    one hoster's. Other places are their own.
    """
    try:
        network = ipaddress.ip_network(place)
    except ValueError:
        return place
    return str(network.supernet(new_prefix=24 if network.version == 4 else 48))


@lru_cache(maxsize=10_000)
def network_of(address: str) -> str | None:
    """What is counted as one address: for IPv6 the /64, which is what one customer has; C{None} for a unix socket."""
    try:
        parsed = ipaddress.ip_address(plain_address(address))
    except ValueError:
        return None
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
