"""
L{resticserver.telemetry.growth}: how fast stored data grows, and when the disk will be full.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.telemetry.growth import (
    LEAST_DAYS,
    MOST_AHEAD_DAYS,
    RECENT_DAYS,
    Grown,
    bytes_per_day,
    full_at_s,
    full_text,
    grown,
    growth_text,
    thinned,
    total,
)

NOW_S = 1_800_000_000.0
DAY_S = 86_400
GIB = 1 << 30


class GrownTests(SynchronousTestCase):
    """L{grown} and L{growth_text}."""

    def test_table(self) -> None:
        """Within thirty days, or since the first size; nothing without two days."""
        table: tuple[tuple[tuple[tuple[int, int], ...], Grown | None, str], ...] = (
            ((), None, ""),
            (((100, 5),), None, ""),
            (((100, 5), (100, 9)), None, ""),
            (((100, 5), (101, 9)), Grown(4, 1), "+4 bytes in 1 day"),
            (((100, 5), (110, 5)), Grown(0, 10), "unchanged in 10 days"),
            (((60, 1), (70, 2), (71, 3), (100, 2 * GIB)), Grown(2 * GIB - 2, 30), "+1.99 GiB in 30 days"),
            (((60, 1), (71, 3), (100, 9)), Grown(8, 40), "+8 bytes in 40 days"),
            (((90, 3 * GIB), (100, GIB)), Grown(-2 * GIB, 10), "-2 GiB in 10 days"),
        )
        for history, expected, text in table:
            self.assertEqual((expected, text), (grown(history), growth_text(history)), history)


class TotalTests(SynchronousTestCase):
    """L{total}."""

    def test_table(self) -> None:
        """What is missing on a day counts as on the day before; what is not there yet counts nothing."""
        self.assertEqual([], total([]))
        self.assertEqual([(1, 5), (2, 7)], total([((1, 5), (2, 7))]))
        self.assertEqual([(1, 5), (2, 105), (3, 109), (4, 59)], total([((1, 5), (3, 9)), ((2, 100), (4, 50))]))

    def test_many(self) -> None:
        """The last of it is the sum of the last sizes."""
        histories = [[(day, day * number) for day in range(number % 7, 400)] for number in range(100)]
        self.assertEqual((399, sum(399 * number for number in range(100))), total(histories)[-1])


class RateTests(SynchronousTestCase):
    """L{bytes_per_day}."""

    def test_too_few(self) -> None:
        """Neither a few days nor a few sizes make a line."""
        for history in (
            [],
            [(100, 5)],
            [(100 + day, day) for day in range(LEAST_DAYS)],
            [(100, 5), (200, 500)],
            [(100 + 15 * number, number) for number in range(LEAST_DAYS - 1)],
        ):
            self.assertIsNone(bytes_per_day(history), history)

    def test_line(self) -> None:
        """On a line it is the line's, with gaps, too; sizes of long ago are of no matter."""
        self.assertEqual(10.0, bytes_per_day([(100 + day, 7 + 10 * day) for day in range(LEAST_DAYS + 1)]))
        self.assertEqual(-10.0, bytes_per_day([(100 + day, 7000 - 10 * day) for day in range(0, 80, 9)]))
        self.assertEqual(0.0, bytes_per_day([(100 + day, 5 * GIB) for day in range(30)]))
        old = [(day, GIB * 1000) for day in range(100)]
        recent = [(100 + day, 3 * day) for day in range(RECENT_DAYS)]
        self.assertAlmostEqual(3.0, bytes_per_day(old + recent) or 0)

    def test_prune(self) -> None:
        """A prune each week, and one on the last day, do not hide that it grows by a gibibyte a day on average."""
        sizes = [(100 + day, day * GIB + (day % 7) * GIB // 2) for day in range(84)]
        rate = bytes_per_day(sizes)
        assert rate is not None
        self.assertTrue(0.98 * GIB < rate < 1.02 * GIB, rate / GIB)


class FullTests(SynchronousTestCase):
    """L{full_at_s} and L{full_text}."""

    def test_table(self) -> None:
        """In free space divided by growth; never, if it does not grow or takes too long."""
        table: tuple[tuple[int, float | None, float | None, str], ...] = (
            (0, None, None, "full: not known before 7 days of sizes"),
            (0, 1.0, NOW_S, "full about 2027-01-15, in a moment"),
            (1000, 100.0, NOW_S + 10 * DAY_S, "full about 2027-01-25, in 10 days"),
            (1000, 0.0, None, "full: not within ten years"),
            (0, -5.0, None, "full: not within ten years"),
            (MOST_AHEAD_DAYS, 1.0, NOW_S + MOST_AHEAD_DAYS * DAY_S, "full about 2037-01-12, in 3650 days"),
            (MOST_AHEAD_DAYS + 1, 1.0, None, "full: not within ten years"),
        )
        for free, rate, expected, text in table:
            full_s = full_at_s(NOW_S, free, rate) if rate is not None else None
            self.assertEqual((expected, text), (full_s, full_text(NOW_S, full_s, rate)))


class ThinnedTests(SynchronousTestCase):
    """L{thinned}."""

    def test_ends(self) -> None:
        """The ends stay."""
        for number in (1, 2, 29, 30, 31, 60, 400):
            days = [(day, day) for day in range(number)]
            found = thinned(days, 30)
            self.assertEqual((days[0], days[-1]), (found[0], found[-1]))
            self.assertLessEqual(len(found), 31)
        self.assertEqual([], thinned([], 30))
