"""
Uploads that were refused within the last day: who, where, why and how often, and which of them are worth a line in the log.

A client that is refused tries again and again, so a refusal is told of once an hour for each user, repository and reason; all are
counted. Pure rules: whoever has it calls it from one thread, and what L{Refusals.entries} gives may be read in another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import CONTENT, DISK, MIN_FREE, QUOTA, RIGHTS

#: Every reason for which an upload is refused, the ones for which there is no room first.
REASONS = (QUOTA, MIN_FREE, DISK, CONTENT, RIGHTS)
#: How long a refusal is remembered.
DAY_S = 86_400.0
#: The same again is told of once in so long.
AGAIN_S = 3600.0
#: Refusals of one hour are counted together.
_HOUR_S = 3600.0
#: So many different ones are remembered; the oldest is forgotten for one more.
MOST_KEPT = 10_000
#: So many different ones of one user are told of in an hour: who invents repositories must not fill the log.
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
    @ivar message: what the client was told then.
    """

    user: str | None
    repository: str
    reason: str
    number: int
    last_s: float
    message: str


class RefusalHistory(NamedTuple):
    """
    What is remembered for one key; times are the monotonic clock's.

    @ivar hours: when the first and the last one of an hour was, and how many; the oldest first.
    @ivar told_s: when it was told of.
    """

    hours: tuple[tuple[float, float, int], ...]
    told_s: float
    message: str

    @property
    def last_s(self) -> float:
        """When the last one was."""
        return self.hours[-1][1]

    def within_a_day(self, now_s: float) -> tuple[tuple[float, float, int], ...]:
        """Those hours that are not over for more than a day."""
        return tuple(hour for hour in self.hours if hour[1] > now_s - DAY_S)


class Refusals:
    """
    The refusals of one server.

    @param clock: seconds that never go backwards.
    @ivar totals: how many there were since the start, by reason.
    @ivar changes: how often something was added.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By key, the one that was added to last at the end.
        self._entries: dict[Key, RefusalHistory] = {}
        #: When each user's hour began, and how much of it was told of.
        self._told: dict[str | None, tuple[float, int]] = {}
        self.totals: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.changes = 0

    def add(self, user: str | None, repository: str, reason: str, message: str) -> bool:
        """An upload was refused; whether that should be told of."""
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
        """The time on the monotonic clock, and all that is remembered; what is found in it is for L{within_a_day}."""
        return self._clock(), list(self._entries.items())

    def load(self, known: Iterable[Refused], time_s: float) -> None:
        """
        Take over what was known at the end of the last run. It counts for none of the totals.

        @param time_s: the time, in seconds since 1970. One that was set back since makes old refusals new ones and no worse.
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
    What was refused within the last day, the youngest first.

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
