"""
L{resticserver.clock}: reactors whose time is the monotonic clock's.
"""

from __future__ import annotations

import time

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import ReactorBase
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from resticserver.clock import use_monotonic_clock

REACTORS: tuple[type[ReactorBase], ...] = (EPollReactor, PollReactor, SelectReactor)


class MonotonicClockTests(SynchronousTestCase):
    """L{use_monotonic_clock}."""

    def setUp(self) -> None:
        """One reactor of each kind."""
        from asyncio import new_event_loop

        loop = new_event_loop()
        self.addCleanup(loop.close)
        self.reactors = [*(kind() for kind in REACTORS), AsyncioSelectorReactor(loop)]
        for reactor in self.reactors:
            for descriptor in reactor.removeAll():
                self.addCleanup(descriptor.connectionLost, None)

    def test_seconds(self) -> None:
        """The time is the monotonic clock's, and calls are made by it, whatever kind of reactor it is."""
        for reactor in self.reactors:
            use_monotonic_clock(reactor)
            use_monotonic_clock(reactor)
            self.assertIs(time.monotonic, reactor.seconds)
            before = time.monotonic()
            call = reactor.callLater(100, lambda: None)
            self.assertTrue(before + 100 <= call.getTime() <= time.monotonic() + 100)
            call.reset(50)
            self.assertTrue(before + 50 <= call.getTime() <= time.monotonic() + 50)
            timeout = reactor.timeout()
            assert timeout is not None
            self.assertTrue(0 < timeout <= 50)

    def test_scheduled_before(self) -> None:
        """What was scheduled by the wall clock is made when it should be, behind and before what was cancelled."""
        for reactor in self.reactors:
            made: list[int] = []
            cancelled = [reactor.callLater(number, made.append, -1) for number in (0, 1000)]
            later = reactor.callLater(1000, made.append, 1000)
            soon = [reactor.callLater(0, made.append, number) for number in range(3)]
            reactor.timeout()  # sorts them in
            new = reactor.callLater(0, made.append, 3)
            for call in cancelled:
                call.cancel()
            use_monotonic_clock(reactor)
            reactor.runUntilCurrent()
            self.assertEqual({0, 1, 2, 3}, set(made))
            self.assertFalse(any(call.active() for call in (*soon, new)))
            self.assertTrue(990 < later.getTime() - time.monotonic() <= 1000)
            later.cancel()
