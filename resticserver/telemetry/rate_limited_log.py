"""
Rate-limited log lines, for events that unauthenticated clients can cause: a scanner must not fill the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The most lines logged per period. One more line then tells how many were suppressed.
MOST_LINES = 10
PERIOD_S = 60.0


class FewLines:
    """
    Logs the first lines of each period and counts the others.

    @param clock: provides Twisted's C{callLater}.
    @param log: called with each line.
    @param more: what the suppressed lines are called, such as C{"more TLS handshakes failed"}.
    @param most_lines: how many lines are logged in a period.
    """

    def __init__(self, clock: Any, log: Callable[[str], object], more: str, most_lines: int = MOST_LINES) -> None:
        self._clock = clock
        self._most_lines = most_lines
        self._log = log
        self._more = more
        self._lines = 0
        self._last = ""

    def say(self, line: str) -> None:
        """Log a line, or count it."""
        if not self._lines:
            self._clock.callLater(PERIOD_S, self._end_period)
        self._lines += 1
        if self._lines <= self._most_lines:
            self._log(line)
        self._last = line

    def _end_period(self) -> None:
        lines, self._lines = self._lines, 0
        if lines > self._most_lines:
            self._log(f"{lines - self._most_lines} {self._more} within {PERIOD_S:g} s; the last: {self._last}")
