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
#: A change of the rate has an effect on threads that wait after this time at the latest.
_LOOK_S = 0.25


class Stopped(Exception):
    """The work is to end."""


class RateLimit:
    """
    Shares bytes a second among threads (a token bucket).

    The rate can be changed in the reactor's thread: that takes no lock, which a thread of low priority might hold for long.

    @param rate: bytes a second; C{None} for no limit.
    @param now_s: a monotonic clock.
    @param wait: waits for so many seconds, or until the event is set.
    @ivar rate: bytes a second; may be set at any time.
    """

    def __init__(
        self,
        rate: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self.rate = rate
        self._now_s = now_s
        self._wait = wait
        self._tokens = 0.0
        self._at_s = now_s()
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @property
    def step_bytes(self) -> int:
        """How much to take at a time."""
        rate = self.rate
        return MOST_STEP_BYTES if rate is None else max(LEAST_STEP_BYTES, min(MOST_STEP_BYTES, int(rate * _STEP_S)))

    def stop(self) -> None:
        """End all waits, and all work that takes more."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether the work is to end."""
        return self._stop.is_set()

    def take(self, size_bytes: int) -> None:
        """
        Wait until so many bytes may be worked on.

        @raise Stopped: the work is to end.
        """
        while (wait_s := self._take(size_bytes)) > 0:
            self.pause(min(wait_s, _LOOK_S))

    def _take(self, size_bytes: int) -> float:
        """Take tokens if there are any; how many seconds to wait before the next attempt if there are none."""
        if self.stopped:
            raise Stopped()
        with self._lock:
            rate, now_s = self.rate, self._now_s()
            if rate is None:
                self._tokens, self._at_s = 0.0, now_s
                return 0.0
            self._tokens = min(self._tokens + (now_s - self._at_s) * rate, _BURST_S * rate)
            self._at_s = now_s
            if self._tokens <= -1:  # what is less than a byte could be too short a wait for the clock
                return -self._tokens / rate
            # More may be taken than there is: the next one waits for it.
            self._tokens -= size_bytes
            return 0.0

    def pause(self, seconds: float) -> None:
        """
        Wait.

        @raise Stopped: the work is to end.
        """
        self._wait(self._stop, seconds)
        if self.stopped:
            raise Stopped()
