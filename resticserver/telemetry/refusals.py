"""
Uploads that were refused within the last day: who, where, why and how often, and which of them to log.

A refused client retries again and again. So for each user, repository and reason, a refusal is reported once an hour,
but all refusals are counted. Pure rules without I/O: all calls must come from one thread, but the result of
L{Refusals.entries} may be read in another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import CONTENT, DISK, MIN_FREE, QUOTA, RIGHTS

#: All reasons for refusing an upload; those for lack of space come first.
REASONS = (QUOTA, MIN_FREE, DISK, CONTENT, RIGHTS)
#: How long a refusal is remembered, in seconds.
DAY_S = 86_400.0
#: The same refusal is reported again after this time.
AGAIN_S = 3600.0
#: Refusals within this time are counted together.
_HOUR_S = 3600.0
#: The most keys that are remembered. The oldest one is dropped for a new one.
MOST_KEPT = 10_000
#: The most keys of one user that are reported per hour: a client that invents repository names must not fill the log.
MOST_TOLD = 100

#: User, repository and reason.
Key = tuple[str | None, str, str]


class Refused(NamedTuple):
    """
    The refusals of one user in one repository for one reason, within the last day.

    @ivar user: C{None} without authentication.
    @ivar repository: its path; empty for the one at the root. It need not exist.
    @ivar reason: one of L{REASONS}.
    @ivar number: how many there were.
    @ivar last_s: the time of the last one, in seconds since 1970.
    @ivar message: the message that the client got with the last one.
    """

    user: str | None
    repository: str
    reason: str
    number: int
    last_s: float
    message: str


class RefusalHistory(NamedTuple):
    """
    What is remembered for one key. All times are from the monotonic clock.

    @ivar hours: for each hour, the oldest first, the times of the first and the last refusal, and their number.
    @ivar told_s: when it was last reported.
    """

    hours: tuple[tuple[float, float, int], ...]
    told_s: float
    message: str

    @property
    def last_s(self) -> float:
        """The time of the last refusal."""
        return self.hours[-1][1]

    def within_a_day(self, now_s: float) -> tuple[tuple[float, float, int], ...]:
        """The hours whose last refusal is less than a day old."""
        return tuple(hour for hour in self.hours if hour[1] > now_s - DAY_S)


class Refusals:
    """
    The refusals of one server.

    @param clock: seconds of a monotonic clock.
    @ivar totals: the number of refusals since the start, by reason.
    @ivar changes: how many refusals were added.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By key; the key that was updated last is at the end.
        self._entries: dict[Key, RefusalHistory] = {}
        #: For each user, when the current hour began, and how many keys were reported in it.
        self._told: dict[str | None, tuple[float, int]] = {}
        self.totals: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.changes = 0

    def add(self, user: str | None, repository: str, reason: str, message: str) -> bool:
        """
        Add a refused upload.

        @return: whether to report it.
        """
        now_s = self._clock()
        self.totals[reason] += 1
        self.changes += 1
        before = self._entries.pop((user, repository, reason), None)
        hours = before.within_a_day(now_s) if before is not None else ()
        if hours and now_s - hours[-1][0] < _HOUR_S:
            first_s, _, number = hours[-1]
            hours = (*hours[:-1], (first_s, now_s, number + 1))
        else:
            hours = (*hours, (now_s, now_s, 1))
        told_s = before.told_s if before is not None else -AGAIN_S
        tell = (before is None or now_s - told_s >= AGAIN_S) and self._may_tell(user, now_s)
        self._entries[user, repository, reason] = RefusalHistory(hours, now_s if tell else told_s, message)
        self._forget_oldest()
        return tell

    def _may_tell(self, user: str | None, now_s: float) -> bool:
        began_s, number = self._told.get(user, (now_s, 0))
        if now_s - began_s >= AGAIN_S:
            began_s, number = now_s, 0
        if number >= MOST_TOLD:
            return False
        if user not in self._told and len(self._told) >= MOST_KEPT:
            self._told.clear()
        self._told[user] = (began_s, number + 1)
        return True

    def _forget_oldest(self) -> None:
        while len(self._entries) > MOST_KEPT:
            del self._entries[next(iter(self._entries))]

    def entries(self) -> tuple[float, list[tuple[Key, RefusalHistory]]]:
        """The current time of the monotonic clock, and all entries, as input for L{within_a_day}."""
        return self._clock(), list(self._entries.items())

    def load(self, known: Iterable[Refused], time_s: float) -> None:
        """
        Load what was saved at the end of the last run. It does not count in the totals.

        @param time_s: the current time, in seconds since 1970. If the clock was set back since, old refusals count as
            recent ones, which is harmless.
        """
        now_s = self._clock()
        entries: dict[Key, RefusalHistory] = {}
        for one in sorted(known, key=lambda one: one.last_s):
            ago_s = max(0.0, time_s - one.last_s)
            if ago_s < DAY_S and one.reason in REASONS:
                hour = (now_s - ago_s, now_s - ago_s, one.number)
                entries[one.user, one.repository, one.reason] = RefusalHistory((hour,), -AGAIN_S, one.message)
        for key, entry in self._entries.items():
            before = entries.pop(key, None)
            if before is not None:
                entry = entry._replace(hours=(*before.hours, *entry.hours))
            entries[key] = entry
        self._entries = entries
        self._forget_oldest()


def within_a_day(found: tuple[float, list[tuple[Key, RefusalHistory]]], time_s: float) -> tuple[Refused, ...]:
    """
    The refusals of the last day, the newest first.

    @param found: the result of L{Refusals.entries}.
    @param time_s: the time of that call, in seconds since 1970.
    """
    now_s, entries = found
    refused = []
    for (user, repository, reason), entry in reversed(entries):
        hours = entry.within_a_day(now_s)
        if hours:
            number = sum(hour[2] for hour in hours)
            refused.append(Refused(user, repository, reason, number, time_s - (now_s - entry.last_s), entry.message))
    return tuple(refused)
