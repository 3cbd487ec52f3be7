"""
How fast stored data grows, and when the disk will be full. Pure arithmetic over sizes by days.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..dates import day_text
from ..sizes import format_size
from .concerns import age

DAY_S = 86_400.0
#: The estimate looks at so many days: what was a year ago says little about next month.
RECENT_DAYS = 90
#: The estimate needs sizes of so many days, and as much time between the first and the last of them.
LEAST_DAYS = 7
#: What takes longer than this is too far off to be estimated.
MOST_AHEAD_DAYS = 3650
#: Over how many days growth is shown.
SHOWN_DAYS = 30

#: Sizes in bytes by days since 1970, the oldest first.
History = Sequence[tuple[int, int]]


class Grown(NamedTuple):
    """
    How much something has grown. Less than nothing if it has shrunk.

    @ivar days: between the two sizes.
    """

    size_bytes: int
    days: int


def grown(history: History, days: int = SHOWN_DAYS) -> Grown | None:
    """The growth within the last days, or since the first known size if that is later; C{None} without two days."""
    if len(history) < 2:
        return None
    last_day, last_size = history[-1]
    # Of a thinned history the newest size that is old enough; of a short one the oldest.
    old = [one for one in history if one[0] <= last_day - days]
    first_day, first_size = old[-1] if old else history[0]
    return Grown(last_size - first_size, last_day - first_day) if last_day > first_day else None


def total(histories: Iterable[History]) -> list[tuple[int, int]]:
    """
    The sum of several histories. On a day that is missing in one of them, such as because its directories could not be
    read, its size of the day before counts.
    """
    changes: dict[int, int] = {}
    for history in histories:
        before = 0
        for day, size in history:
            changes[day] = changes.get(day, 0) + size - before
            before = size
    found, size = [], 0
    for day in sorted(changes):
        size += changes[day]
        found.append((day, size))
    return found


def bytes_per_day(history: History) -> float | None:
    """
    The growth as a straight line through the sizes of the last L{RECENT_DAYS} (least squares), so that a C{prune} on
    the last day does not decide.

    @return: C{None} if there are too few sizes.
    """
    if not history:
        return None
    recent = [one for one in history if one[0] > history[-1][0] - RECENT_DAYS]
    if len(recent) < LEAST_DAYS or recent[-1][0] - recent[0][0] < LEAST_DAYS:
        return None
    middle_day = sum(day for day, _ in recent) / len(recent)
    middle_size = sum(size for _, size in recent) / len(recent)
    above = sum((day - middle_day) * (size - middle_size) for day, size in recent)
    return above / sum((day - middle_day) ** 2 for day, _ in recent)


def full_at_s(now_s: float, free_bytes: int, rate_bytes: float) -> float | None:
    """
    When a disk will be full, in seconds since 1970.

    @param rate_bytes: the growth in bytes a day.
    @return: C{None} if that is not in sight.
    """
    if rate_bytes <= 0 or free_bytes > MOST_AHEAD_DAYS * rate_bytes:
        return None
    return now_s + free_bytes / rate_bytes * DAY_S


def thinned(days: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Reduce a history to about so many days: the first, the last, and evenly spaced days between them."""
    step = -(-len(days) // most)
    return days if step <= 1 else [*days[:-1:step], days[-1]]


# --- in words


def growth_text(history: History) -> str:
    """The growth, such as C{+1.20 GiB in 30 days}; empty if it is not known."""
    found = grown(history)
    if found is None:
        return ""
    days = f"in {found.days} day{'s' if found.days != 1 else ''}"
    return f"{signed(found.size_bytes)} {days}" if found.size_bytes else f"unchanged {days}"


def signed(size_bytes: int) -> str:
    """A change of a size."""
    return f"{'+' if size_bytes >= 0 else '-'}{format_size(abs(size_bytes))}"


def full_text(now_s: float, full_s: float | None, rate_bytes: float | None) -> str:
    """
    When a disk will be full.

    @param full_s: the result of L{full_at_s}, and C{rate_bytes} that of L{bytes_per_day}.
    """
    if rate_bytes is None:
        return f"full: not known before {LEAST_DAYS} days of sizes"
    if full_s is None:
        return "full: not within ten years"
    return f"full about {day_text(full_s)}, in {age(full_s - now_s)}"
