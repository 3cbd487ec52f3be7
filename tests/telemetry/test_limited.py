"""
What limits refuse: counted, and logged in few lines.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.telemetry.limited import HEADER_TIMEOUT, LIMITS, STALL_TIMEOUT, Limited
from resticserver.telemetry.metrics import Tally

from .test_metrics import counted_by, series


class LimitedTests(SynchronousTestCase):
    """L{Limited} and its counter."""

    def test_lines(self) -> None:
        """One line a minute of each limit."""
        clock = Clock()
        limited = Limited(clock)
        with capturedLogs() as events:
            for number in range(3):
                limited.limited(HEADER_TIMEOUT, f"head {number}")
                limited.limited(STALL_TIMEOUT, f"stall {number}")
            clock.advance(60)
            limited.limited(HEADER_TIMEOUT, "head 3")
        self.assertEqual(
            [
                "head 0",
                "stall 0",
                "2 more times the limit header-timeout was reached within 60 s; the last: head 2",
                "2 more times the limit stall-timeout was reached within 60 s; the last: stall 2",
                "head 3",
            ],
            list(map(formatEvent, events)),
        )

    def test_metric(self) -> None:
        """Every limit is there from the start, and counts of other processes are added."""
        tally, other = Tally(), Tally()
        limited = Limited(Clock(), other.limited)
        for _ in range(2):
            limited.limited(STALL_TIMEOUT, "a line")
        limited.count(HEADER_TIMEOUT)
        tally.limited(STALL_TIMEOUT)
        tally.add(other.take())
        found = counted_by(tally)
        expected = {limit: 0.0 for limit in LIMITS} | {STALL_TIMEOUT: 3.0, HEADER_TIMEOUT: 1.0}
        self.assertEqual(expected, {limit: found[series("rest_server_limited_total", limit=limit)] for limit in LIMITS})
