"""
Log lines whose number is up to strangers.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.telemetry.rate_limited_log import MOST_LINES, PERIOD_S, FewLines


class FewLinesTests(SynchronousTestCase):
    """L{FewLines}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        self.few = FewLines(self.clock, self.lines.append, "more failed")

    def test_few(self) -> None:
        """A few are logged as they come, and nothing more."""
        for number in range(MOST_LINES):
            self.few.say(f"line {number}")
        self.clock.advance(PERIOD_S)
        self.assertEqual([f"line {number}" for number in range(MOST_LINES)], self.lines)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_many(self) -> None:
        """Of many the first of each minute, and how many more there were."""
        for _ in range(3):
            for number in range(1000):
                self.few.say(f"line {number}")
            self.clock.advance(PERIOD_S)
        self.assertEqual(3 * (MOST_LINES + 1), len(self.lines))
        self.assertEqual("990 more failed within 60 s; the last: line 999", self.lines[MOST_LINES])
        self.assertEqual("line 0", self.lines[MOST_LINES + 1])

    def test_slowly(self) -> None:
        """One a minute is logged for ever."""
        for number in range(100):
            self.few.say(f"line {number}")
            self.clock.advance(PERIOD_S)
        self.assertEqual(100, len(self.lines))
