"""
What needs attention, and from which value on. Pure rules, which L{resticserver.telemetry.status} applies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ..errors import RIGHTS
from .refusals import Refused

DAY_S = 86_400.0


class Level(IntEnum):
    """The severity of a concern."""

    GOOD = 0
    NOTICE = 1
    WARNING = 2
    BAD = 3


class Concern(NamedTuple):
    """Something that needs attention, in a few words."""

    level: Level
    words: str


@dataclass(frozen=True, slots=True)
class Thresholds:
    """
    From which value on something needs attention: the C{--warn-...} flags. 0 turns a rule off.

    @ivar snapshot_age_s: of the newest snapshot.
    @ivar first_snapshot_s: how long a new repository may have no snapshot.
    @ivar lock_age_s: of the oldest lock. restic refreshes a lock every five minutes, and calls one stale after half an
        hour.
    @ivar quota: the used part of a quota, from 0 to 1. C{disk}: of the disk.
    @ivar certificate_s: how long before its end a certificate should be renewed.
    @ivar scrub: the age of the oldest check in intervals of the scrub; one day is added.
    """

    snapshot_age_s: float = 7 * DAY_S
    first_snapshot_s: float = DAY_S
    lock_age_s: float = 1800.0
    quota: float = 0.9
    disk: float = 0.9
    certificate_s: float = 14 * DAY_S
    scrub: float = 1.5

    def of_quota(self, used: int, most: int | None, what: str) -> list[Concern]:
        """The concern about a quota that is used up, which no threshold turns off, or nearly."""
        if most is None or (used < most and not self.quota) or used < self.quota * most:
            return []
        return [Concern(Level.BAD if used >= most else Level.WARNING, f"{what} {per_cent(used, most)} used")]

    def of_disk(self, free: int | None, size: int | None) -> bool:
        """Whether a disk is nearly full."""
        return bool(self.disk and free is not None and size and free <= (1 - self.disk) * size)

    def of_certificate(self, left_s: float) -> list[Concern]:
        """
        The concern about a certificate that has expired, which no threshold turns off, or will soon.

        @param left_s: how long it is valid.
        """
        if left_s <= 0:
            return [Concern(Level.BAD, f"certificate expired {age(-left_s)} ago")]
        return [Concern(Level.WARNING, f"certificate expires in {age(left_s)}")] if left_s < self.certificate_s else []

    def of_last_snapshot(self, age_s: float) -> list[Concern]:
        """The concern about a newest snapshot that is old."""
        if not self.snapshot_age_s or age_s <= self.snapshot_age_s:
            return []
        return [Concern(Level.WARNING, f"last snapshot {age(age_s)} ago")]

    def of_no_snapshot(self, age_s: float | None) -> list[Concern]:
        """
        The concern about a repository without a snapshot.

        @param age_s: of the repository; C{None} if that is not known.
        """
        if age_s is None or not self.first_snapshot_s or age_s <= self.first_snapshot_s:
            return [Concern(Level.NOTICE, "no snapshot yet")]
        return [Concern(Level.WARNING, f"no snapshot yet, created {age(age_s)} ago")]

    def of_lock(self, age_s: float) -> list[Concern]:
        """The concern about a lock that is too old."""
        if not self.lock_age_s or age_s <= self.lock_age_s:
            return []
        return [Concern(Level.WARNING, f"stale lock, {age(age_s)} old")]

    def of_scrub(self, interval_s: float, oldest_s: float) -> list[Concern]:
        """
        The concern about a scrub that does not keep its interval.

        @param oldest_s: the age of the oldest check.
        """
        if not (self.scrub and interval_s) or oldest_s <= self.scrub * interval_s + DAY_S:
            return []
        return [Concern(Level.WARNING, f"the scrub is too slow: the oldest check is {age(oldest_s)} old")]


#: The thresholds without any flag.
DEFAULT = Thresholds()


def of_refusals(refusals: Iterable[Refused], now_s: float) -> list[Concern]:
    """
    Concerns about refused uploads. Uploads without the right to do so were refused as intended, so they need no
    action.
    """
    found = []
    for level, its in (
        (Level.WARNING, [one for one in refusals if one.reason != RIGHTS]),
        (Level.NOTICE, [one for one in refusals if one.reason == RIGHTS]),
    ):
        if its:
            number, last = sum(one.number for one in its), max(its, key=lambda one: one.last_s)
            uploads = f"{number} upload{'s' if number > 1 else ''} refused within a day"
            found.append(Concern(level, f"{uploads}, the last {age(now_s - last.last_s)} ago: {last.message}"))
    return found


def per_cent(used: int, most: int) -> str:
    """The used part of a limit for people, rounded down."""
    return f"{used * 100 // most if most else 100} %"


def age(seconds: float) -> str:
    """A duration in its largest unit, such as C{3 days}."""
    for unit_s, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit_s:
            number = int(seconds // unit_s)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return "a moment"
