"""
Failed logins, counted in token buckets: who guesses waits longer and longer, and an address that goes on is refused.

A user is never refused, only slowed: else anyone could stop somebody's backups by failing in that name. Nothing blocks
here and nothing is told in advance: a token is taken before a check and given back after a success, so that guesses that
run at the same time count too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

#: No answer is later than this because of failures.
MOST_DELAY_S = 5.0
#: Each failure beyond the free ones makes the next answer so much later.
DELAY_STEP_S = 0.5
#: Users, and addresses, that are remembered; the one that failed the longest ago is forgotten first.
MOST_BUCKETS = 10_000

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


class Throttle:
    """
    The buckets of users and of addresses. Each holds as many tokens as failures are free in a minute, and fills up in one.

    @param failures_per_minute: 0 lets everything through.
    @param clock: seconds that never go backwards.
    """

    def __init__(self, failures_per_minute: int, clock: Callable[[], float]) -> None:
        self._capacity = failures_per_minute
        self._clock = clock
        self._users: dict[str, _Bucket] = {}
        self._addresses: dict[str, _Bucket] = {}

    def admit(self, user: str, address: str, exempt_address: bool) -> Verdict:
        """
        Whether a password may be tried, and when. Takes a token of the user's and one of the address's.

        @param user: any text: it may be no user at all.
        @param exempt_address: this is many clients' address (a trusted proxy's own), and not counted.
        """
        if not self._capacity:
            return Verdict()
        delay_s = 0.0
        key = None if exempt_address else _network_of(address)
        if key is not None:
            bucket = self._bucket(self._addresses, key)
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
        bucket = self._bucket(self._users, user)
        bucket.tokens = max(bucket.tokens - 1, -float(self._capacity) - MOST_DELAY_S / DELAY_STEP_S)
        return Verdict(max(delay_s, bucket.delay_s))

    def give_back(self, user: str, address: str) -> None:
        """An admitted attempt was no failure."""
        for buckets, key in ((self._users, user), (self._addresses, _network_of(address))):
            bucket = buckets.get(key) if key is not None else None
            if bucket is not None:
                bucket.tokens = min(bucket.tokens + 1, self._capacity)

    def _bucket(self, buckets: dict[str, _Bucket], key: str) -> _Bucket:
        """The bucket of a key as it is now; it is the last to be forgotten."""
        now = self._clock()
        bucket = buckets.pop(key, None)
        if bucket is None:
            bucket = _Bucket(self._capacity, now)
            if len(buckets) >= MOST_BUCKETS:
                del buckets[next(iter(buckets))]
        bucket.tokens = min(bucket.tokens + (now - bucket.at_s) * self._capacity / 60, self._capacity)
        bucket.at_s = now
        buckets[key] = bucket
        return bucket


def _network_of(address: str) -> str | None:
    """What is counted as one address: for IPv6 the /64, which is what one customer has; C{None} for a unix socket."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
