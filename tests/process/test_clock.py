"""
The reactor's clock.
"""

from __future__ import annotations

import time

from twisted.internet.base import ReactorBase
from twisted.python import runtime
from twisted.trial.unittest import SynchronousTestCase

from resticserver.process.clock import use_monotonic_clock


class Idle(ReactorBase):
    """A reactor that watches nothing."""

    def installWaker(self) -> None:
        """It is not woken."""


class MonotonicClockTests(SynchronousTestCase):
    """The reactor measures by C{time.monotonic}, whatever the wall clock does."""

    def setUp(self) -> None:
        self.wall_s = 1_700_000_000.0
        self.monotonic_s = 1000.0
        self.patch(time, "monotonic", lambda: self.monotonic_s)
        self.reactor = Idle()
        self.reactor.seconds = lambda: self.wall_s
        self.fired: list[str] = []

    def test_steps(self) -> None:
        """A step of the wall clock fires nothing and holds nothing up."""
        use_monotonic_clock(self.reactor)
        self.reactor.callLater(10, self.fired.append, "call")
        for step_s in (-86_400, 7200, 86_400):
            self.wall_s += step_s
            self.reactor.runUntilCurrent()
            self.assertEqual([], self.fired)
        self.monotonic_s += 10
        self.reactor.runUntilCurrent()
        self.assertEqual(["call"], self.fired)

    def test_what_was_scheduled_before(self) -> None:
        """It keeps its order and the time that it has left."""
        for delay_s in (30, 10, 20):
            self.reactor.callLater(delay_s, self.fired.append, str(delay_s))
        reset = self.reactor.callLater(5, self.fired.append, "reset")
        self.wall_s += 1
        use_monotonic_clock(self.reactor)
        use_monotonic_clock(self.reactor)  # also where it is done already
        reset.reset(100)
        for expected in ([], ["10"], ["10", "20"], ["10", "20", "30"]):
            self.wall_s += 7200
            self.reactor.runUntilCurrent()
            self.assertEqual(expected, self.fired)
            self.monotonic_s += 10
        self.assertEqual(1000 + 100, reset.getTime())

    def test_twisted_still_measures_by_the_wall_clock(self) -> None:
        """When this fails Twisted has changed, and C{use_monotonic_clock} may go."""
        self.assertIs(time.time, runtime.seconds)
