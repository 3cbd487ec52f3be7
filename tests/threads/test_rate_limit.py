"""
L{resticserver.threads.rate_limit}: bytes a second, with a clock that is advanced by waiting.
"""

from __future__ import annotations

import threading

from twisted.trial.unittest import SynchronousTestCase

from resticserver.threads.rate_limit import LEAST_STEP_BYTES, MOST_STEP_BYTES, RateLimit, Stopped


class RateLimitTests(SynchronousTestCase):
    """L{RateLimit}."""

    def setUp(self) -> None:
        self.now_s = 0.0
        self.limit = RateLimit(1000, lambda: self.now_s, self.wait)

    def wait(self, stop: threading.Event, seconds: float) -> None:
        """Time passes."""
        self.assertGreater(seconds, 0)
        self.now_s += seconds

    def take(self, size_bytes: int, seconds: float) -> int:
        """Take for so long; how much was taken."""
        taken, until_s = 0, self.now_s + seconds
        while self.now_s < until_s:
            self.limit.take(size_bytes)
            taken += size_bytes
        return taken

    def test_rate(self) -> None:
        """What is taken is the rate, whatever the pieces."""
        for size_bytes in (1, 100, 1000, 5000):
            taken = self.take(size_bytes, 100)
            self.assertLess(abs(taken - 100_000), 6000, size_bytes)

    def test_after_a_rest(self) -> None:
        """What was not taken is not made up for."""
        self.take(100, 10)
        self.now_s += 1000
        self.assertLess(self.take(100, 10), 11_000)

    def test_change(self) -> None:
        """Another rate has an effect on what waits already, within a moment."""
        self.limit.take(1_000_000)
        self.limit.rate = 1e9
        self.limit.take(1)
        self.assertLess(self.now_s, 1)
        self.limit.rate = None
        before = self.now_s
        for _ in range(1000):
            self.limit.take(1 << 30)
        self.assertEqual(before, self.now_s)
        self.limit.rate = 1000
        self.assertLess(abs(self.take(100, 100) - 100_000), 6000)

    def test_stop(self) -> None:
        """Nothing is taken any more, and nothing waits."""
        self.limit.stop()
        self.assertTrue(self.limit.stopped)
        self.assertRaises(Stopped, self.limit.take, 1)
        self.assertRaises(Stopped, self.limit.pause, 1)

    def test_stop_while_waiting(self) -> None:
        """A wait ends with the work."""
        limit = RateLimit(1.0)
        limit.take(1000)
        timer = threading.Timer(0.01, limit.stop)
        timer.start()
        self.assertRaises(Stopped, limit.take, 1)
        timer.join()

    def test_steps(self) -> None:
        """A step is a part of a second, within bounds."""
        for rate, step_bytes in ((1, LEAST_STEP_BYTES), (4 << 20, 512 << 10), (1 << 30, MOST_STEP_BYTES)):
            self.assertEqual(step_bytes, RateLimit(rate).step_bytes)
        self.assertEqual(MOST_STEP_BYTES, RateLimit().step_bytes)
