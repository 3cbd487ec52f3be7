"""
What happened within the last day, and who wrote last to each repository. No I/O; all calls must come from one thread.

The counters of a server only grow. Every look at them adds what is new to the present quarter of an hour, so a day
takes 97 entries, whatever happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

DAY_S = 86_400.0
#: What happened within this time is counted together.
SLOT_S = 900.0
#: The most repositories whose last writers are remembered. The one that was written to the longest ago is dropped.
MOST_WRITTEN = 20_000


class Counters(NamedTuple):
    """
    What is counted, since the start or within a time.

    @ivar failed_logins: wrong passwords and unknown users.
    @ivar limited: what limits refused.
    """

    received_bytes: int = 0
    sent_bytes: int = 0
    failed_logins: int = 0
    limited: int = 0

    def plus(self, other: Counters) -> Counters:
        """The sum."""
        return Counters(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Counters) -> Counters:
        """The difference, which is never negative."""
        return Counters(*(max(0, a - b) for a, b in zip(self, other, strict=True)))


class Slot(NamedTuple):
    """
    A quarter of an hour.

    @ivar began_s: of a monotonic clock, or in seconds since 1970 where it is stored.
    """

    began_s: float
    counted: Counters


class LastDay:
    """
    The counters of the last day.

    @param clock: seconds of a monotonic clock.
    @ivar changes: how often something was added.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._before = Counters()
        self._slots: list[Slot] = []
        self.changes = 0

    def look(self, totals: Counters) -> None:
        """
        Add what is new.

        @param totals: the counters since the start.
        """
        now_s = self._clock()
        new, self._before = totals.minus(self._before), totals
        if new != Counters():
            self.changes += 1
            if not self._slots or now_s - self._slots[-1].began_s >= SLOT_S:
                self._slots.append(Slot(now_s, Counters()))
            began_s, counted = self._slots[-1]
            self._slots[-1] = Slot(began_s, counted.plus(new))
        self._slots = [slot for slot in self._slots if slot.began_s > now_s - DAY_S]

    def counted(self) -> Counters:
        """What was counted within the last day, as of the last look."""
        found = Counters()
        for slot in self._slots:
            found = found.plus(slot.counted)
        return found

    @property
    def covered_s(self) -> float:
        """For how long counters are known, a day at most."""
        first_s = self._slots[0].began_s if self._slots else self._began_s
        return min(DAY_S, self._clock() - min(first_s, self._began_s))

    def slots(self, time_s: float) -> list[Slot]:
        """
        What to store.

        @param time_s: the present time in seconds since 1970.
        """
        ahead_s = time_s - self._clock()
        return [Slot(slot.began_s + ahead_s, slot.counted) for slot in self._slots]

    def load(self, slots: Iterable[Slot], time_s: float) -> None:
        """
        Load what was stored at the end of the last run.

        @param time_s: the present time in seconds since 1970. If the clock was set back since, what is in the future
            counts as of now.
        """
        now_s = self._clock()
        ahead_s = time_s - now_s
        loaded = [Slot(min(now_s, slot.began_s - ahead_s), slot.counted) for slot in slots]
        recent = sorted(slot for slot in loaded if slot.began_s > now_s - DAY_S)
        self._slots = [*recent, *self._slots]


class Written(NamedTuple):
    """
    The last upload to a repository, locks left out.

    @ivar user: empty without authentication.
    @ivar time_s: in seconds since 1970.
    """

    user: str
    time_s: float


class LastWrites:
    """
    The last upload to each repository, as long as there is one.

    @ivar by_repository: by its path.
    @ivar changes: how often something was added or removed.
    """

    def __init__(self) -> None:
        self.by_repository: dict[str, Written] = {}
        self.changes = 0

    def add(self, repository: str, written: Written) -> None:
        """Note an upload, unless a later one is known."""
        before = self.by_repository.pop(repository, written)
        self.by_repository[repository] = max(before, written, key=lambda one: one.time_s)
        self.changes += 1
        while len(self.by_repository) > MOST_WRITTEN:
            del self.by_repository[next(iter(self.by_repository))]

    def take(self) -> list[tuple[str, str, float]]:
        """What a worker tells its parent; it is forgotten here."""
        taken = [(repository, *written) for repository, written in self.by_repository.items()]
        self.by_repository = {}
        return taken

    def load(self, rows: Iterable[tuple[str, str, float]]) -> None:
        """Add what another process has counted, or an earlier run has stored."""
        for repository, user, time_s in rows:
            self.add(repository, Written(user, time_s))

    def forget(self, repositories: Iterable[str]) -> None:
        """Drop repositories that no longer exist."""
        for repository in repositories:
            if self.by_repository.pop(repository, None) is not None:
                self.changes += 1
