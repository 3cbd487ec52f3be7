"""
Uploads that were refused within the last day, by user, repository and reason, and which of them are logged.

A refused client tries again and again, so a refusal is reported once an hour for each user, repository and reason; all are
counted. Pure rules for one thread; what L{Refusals.entries} returns may be read in another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import CONTENT, DISK, MIN_FREE, QUOTA, RIGHTS

#: All reasons; those of missing space come first.
REASONS = (QUOTA, MIN_FREE, DISK, CONTENT, RIGHTS)
#: How long a refusal is remembered.
DAY_S = 86_400.0
#: How long the same refusal is not reported again.
AGAIN_S = 3600.0
#: Refusals of one hour are counted together.
_HOUR_S = 3600.0
#: How many different refusals are remembered; then the oldest is forgotten.
MOST_KEPT = 10_000
#: How many different refusals of a user are reported in an hour: a client that invents repositories must not fill the log.
MOST_TOLD = 100

#: User, repository and reason.
Key = tuple[str | None, str, str]


class Refused(NamedTuple):
    """
    What one user was refused in one repository for one reason, within the last day.

    @ivar user: C{None} without authentication.
    @ivar repository: its path; empty for the one at the root. It need not be there.
    @ivar reason: one of L{REASONS}.
    @ivar number: how often.
    @ivar last_s: when the last time, in seconds since 1970.
    @ivar message: of the last answer.
    """

    user: str | None
    repository: str
    reason: str
    number: int
    last_s: float
    message: str


class RefusalHistory(NamedTuple):
    """
    The refusals of one key; times are the monotonic clock's.

    @ivar hours: for each hour the times of its first and last refusal, and their number; the oldest first.
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
        """The hours that ended within the last day."""
        return tuple(hour for hour in self.hours if hour[1] > now_s - DAY_S)


class Refusals:
    """
    The refusals of one server.

    @param clock: monotonic seconds.
    @ivar totals: how many there were since the start, by reason.
    @ivar changes: how often L{add} was called.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By key, the last changed one at the end.
        self._entries: dict[Key, RefusalHistory] = {}
        #: When each user's hour began, and how many refusals of it were reported.
        self._told: dict[str | None, tuple[float, int]] = {}
        self.totals: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.changes = 0

    def add(self, user: str | None, repository: str, reason: str, message: str) -> bool:
        """Count a refused upload; whether it is to be reported."""
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
        """The time on the monotonic clock, and all histories; for L{within_a_day}."""
        return self._clock(), list(self._entries.items())

    def load(self, known: Iterable[Refused], time_s: float) -> None:
        """
        Load the refusals of the last run. The totals do not count them.

        @param time_s: the time, in seconds since 1970. If the clock was set back, old refusals look new, which does no harm.
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
    What was refused within the last day, the newest first.

    @param found: by L{Refusals.entries}.
    @param time_s: the time then, in seconds since 1970.
    """
    now_s, entries = found
    refused = []
    for (user, repository, reason), entry in reversed(entries):
        hours = entry.within_a_day(now_s)
        if hours:
            number = sum(hour[2] for hour in hours)
            refused.append(Refused(user, repository, reason, number, time_s - (now_s - entry.last_s), entry.message))
    return tuple(refused)
