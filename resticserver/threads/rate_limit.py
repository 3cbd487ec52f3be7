"""
A limit of bytes a second for blocking work in several threads together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: What may be saved up while nobody works, as a part of a second.
_BURST_S = 0.1
#: Work goes in steps of at most this part of a second, and of these sizes.
_STEP_S = 0.125
LEAST_STEP_BYTES, MOST_STEP_BYTES = 64 << 10, 1 << 20


class Stopped(Exception):
    """The work is to end."""


class RateLimit:
    """
    Shares bytes a second among threads (a token bucket). Waiting ends at once when the rate changes or the work is stopped.

    @param rate: bytes a second; C{None} for no limit.
    @param now_s: a monotonic clock.
    """

    def __init__(self, rate: float | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._now_s = now_s
        self._tokens = 0.0
        self._at_s = now_s()
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def step_bytes(self) -> int:
        """How much to take at a time."""
        rate = self._rate
        return MOST_STEP_BYTES if rate is None else max(LEAST_STEP_BYTES, min(MOST_STEP_BYTES, int(rate * _STEP_S)))

    def set_rate(self, rate: float | None) -> None:
        """Change the rate. May be called in any thread, and waits for no work."""
        if rate == self._rate:
            return
        with self._changed:
            self._refill()
            self._rate = rate
            self._changed.notify_all()

    def stop(self) -> None:
        """End all waits, and all work that takes more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def start(self) -> None:
        """Allow work again after L{stop}."""
        with self._changed:
            self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether the work is to end."""
        return self._stopped

    def take(self, size_bytes: int) -> None:
        """
        Wait until so many bytes may be worked on.

        @raise Stopped: the work is to end.
        """
        with self._changed:
            while True:
                if self._stopped:
                    raise Stopped()
                if self._rate is None:
                    return
                self._refill()
                if self._tokens >= 0:
                    # What is taken may be more than there is: the next one waits for it.
                    self._tokens -= size_bytes
                    return
                self._wait(-self._tokens / self._rate)

    def pause(self, seconds: float) -> None:
        """
        Wait.

        @raise Stopped: the work is to end.
        """
        until_s = self._now_s() + seconds
        with self._changed:
            while (left_s := until_s - self._now_s()) > 0:
                if self._stopped:
                    raise Stopped()
                self._wait(left_s)

    def _wait(self, seconds: float) -> None:
        self._changed.wait(seconds)

    def _refill(self) -> None:
        now_s = self._now_s()
        if self._rate is not None:
            self._tokens = min(self._tokens + (now_s - self._at_s) * self._rate, _BURST_S * self._rate)
        else:
            self._tokens = 0.0
        self._at_s = now_s
