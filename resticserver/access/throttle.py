"""
Failed logins, counted in token buckets: each failure delays the next login, and an address with too many is refused.

A user is never refused, only delayed: otherwise any client could stop a user's backups by failing in that name. A token is
taken before a check and returned after a success, so that guesses at the same time count too. Nothing blocks here.
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

#: The longest delay.
MOST_DELAY_S = 5.0
#: By how much each failure beyond the free ones delays the next answer.
DELAY_STEP_S = 0.5
#: How many users, and how many addresses, are remembered; the one that failed longest ago is forgotten first.
MOST_BUCKETS = 10_000
#: How many passwords a minute an address may look up in vain among those that were right lately; and, when it has used these
#: up, how many for each user, so that one user who guesses does not block the others there.
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
        raise ValueError(f"{text}: must be a number of failures per minute, such as 20/minute")
    return int(found[1])


class Login(NamedTuple):
    """
    One attempt to log in.

    @ivar address_is_trusted: the address is a trusted proxy's own, which many clients share.
    @ivar known: the request before on the same connection had the same credentials, and they were right.
    """

    user: str
    password: bytes
    address: str
    address_is_trusted: bool
    known: bool

    @property
    def place(self) -> str:
        """Where it comes from: an address, or a network for IPv6."""
        return network_of(self.address) or self.address


@dataclass(frozen=True)
class Verdict:
    """
    The decision about an attempt.

    @ivar delay_s: how long it must wait before the password is checked.
    @ivar refused: the password is not checked.
    @ivar lockout_began: it is the first one that is refused.
    """

    delay_s: float = 0.0
    refused: bool = False
    lockout_began: bool = False


@dataclass
class _Bucket:
    """
    Tokens; fewer than 0 are a debt.

    @ivar tokens: the number at C{at_s}.
    @ivar locked: nothing is admitted until the debt is paid.
    """

    tokens: float
    at_s: float
    locked: bool = False

    @property
    def delay_s(self) -> float:
        """The delay of the attempt that took the last token."""
        return round(min(MOST_DELAY_S, max(0.0, -self.tokens) * DELAY_STEP_S), 3)


class _Buckets:
    """
    Buckets by key. A full one means the same as none, and is forgotten at some time.

    @param capacity: how many tokens each can hold, and gets back in a minute.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, key: str) -> _Bucket:
        """The bucket of a key as it is now; it will be forgotten last."""
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            bucket = _Bucket(self.capacity, self._clock())
            self._forget()
        self._refill(bucket)
        self._buckets[key] = bucket
        return bucket

    def give_back(self, key: str) -> None:
        """Return a token."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.tokens = min(bucket.tokens + 1, self.capacity)

    def _refill(self, bucket: _Bucket) -> None:
        now = self._clock()
        bucket.tokens = min(bucket.tokens + (now - bucket.at_s) * self.capacity / 60, self.capacity)
        bucket.at_s = now

    def _forget(self) -> None:
        """Make room for one: of the two oldest, remove those that are full, and the oldest if there are too many."""
        for key in list(islice(self._buckets, 2)):
            self._refill(self._buckets[key])
            if self._buckets[key].tokens >= self.capacity or len(self._buckets) >= MOST_BUCKETS:
                del self._buckets[key]


class Throttle:
    """
    The buckets of users and of addresses. Each holds as many tokens as failures are free in a minute, and fills up in a minute.

    @param failures_per_minute: 0 admits everything.
    @param clock: monotonic seconds.
    """

    def __init__(self, failures_per_minute: int, clock: Callable[[], float]) -> None:
        self._capacity = failures_per_minute
        self._users = _Buckets(failures_per_minute, clock)
        self._addresses = _Buckets(failures_per_minute, clock)
        self._lookups = _Buckets(LOOKUPS, clock)
        self._lookups_by_user = _Buckets(LOOKUPS_OF_A_USER, clock)

    def admit(self, user: str, address: str, exempt_address: bool) -> Verdict:
        """
        Whether a password may be checked, and when. Takes a token of the user's and one of the address's.

        @param user: any text; there need not be such a user.
        @param exempt_address: do not count the address: it is a trusted proxy's own, which many clients share.
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
                # From now on it takes a minute to pay the debt.
                bucket.locked = True
                return Verdict(refused=True, lockout_began=True)
            bucket.tokens -= 1
            delay_s = bucket.delay_s
        # A refused attempt does not count for the user: it cost no check, and must not delay the user.
        bucket = self._users.get(_name_of(user))
        bucket.tokens = max(bucket.tokens - 1, -float(self._capacity) - MOST_DELAY_S / DELAY_STEP_S)
        return Verdict(max(delay_s, bucket.delay_s))

    def give_back(self, user: str, address: str) -> None:
        """Return the tokens of an attempt that was no failure."""
        self._users.give_back(_name_of(user))
        network = network_of(address)
        if network is not None:
            self._addresses.give_back(network)

    def may_look_up(self, user: str, address: str, exempt_address: bool) -> bool:
        """
        Whether a password may be looked up among those that were right lately. A lookup is a guess too, and a fast one, so an
        address (or a user, where the address is not counted) may have only so many misses.
        """
        return not self._capacity or any(
            bucket.tokens >= 1 for bucket in self._lookup_buckets(user, address, exempt_address)
        )

    def missed(self, user: str, address: str, exempt_address: bool) -> None:
        """Count a lookup that found nothing."""
        for bucket in self._lookup_buckets(user, address, exempt_address):
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return

    def _lookup_buckets(self, user: str, address: str, exempt_address: bool) -> Iterator[_Bucket]:
        """The buckets of a lookup; it uses the first one that has a token."""
        network = None if exempt_address else network_of(address)
        name = _name_of(user)
        # No network has a space in it.
        yield self._lookups.get(f"user {name}" if network is None else network)
        if network is not None:
            yield self._lookups_by_user.get(f"{network} {name}")


def _name_of(user: str) -> str:
    """The key of a user. All texts that are no user's name share one key."""
    return user if is_user_name(user) else ""


@lru_cache(maxsize=10_000)
def wider_network_of(place: str) -> str:
    """
    The network that a place (L{Login.place}) is in: the /24 of an IPv4 address, the /48 of a /64. They often belong to one
    customer or one hoster. Any other place is returned unchanged.
    """
    try:
        network = ipaddress.ip_network(place)
    except ValueError:
        return place
    return str(network.supernet(new_prefix=24 if network.version == 4 else 48))


@lru_cache(maxsize=10_000)
def network_of(address: str) -> str | None:
    """What counts as one address: for IPv6 the /64, which one customer has; C{None} for a unix socket."""
    try:
        parsed = ipaddress.ip_address(plain_address(address))
    except ValueError:
        return None
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
