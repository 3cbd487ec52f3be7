"""
What limits refuse: counted for the metrics, and logged in few lines. Has the names of all limits, which are the values of the
label C{limit} of C{rest_server_limited_total}.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from .rate_limited_log import FewLines

#: Named after their flags. The last two have none: the size of a request's head, and the descriptors that the system allows.
HEADER_TIMEOUT, STALL_TIMEOUT = "header-timeout", "stall-timeout"
MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS = "max-connections", "max-connections-per-address"
MAX_OBJECT_SIZE, MAX_UPLOADS = "max-object-size", "max-uploads"
HEADER_SIZE, DESCRIPTORS = "header-size", "descriptors"

LIMITS = (
    HEADER_TIMEOUT,
    STALL_TIMEOUT,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS,
    MAX_OBJECT_SIZE,
    MAX_UPLOADS,
    HEADER_SIZE,
    DESCRIPTORS,
)

#: A client that meets a limit often meets it again at once, so one line a minute for each limit says all.
MOST_LINES = 1

_log = Logger()


def _warn(line: str) -> None:
    _log.warn("{line}", line=line)


def count_nothing(limit: str) -> None:
    """Without metrics, nothing is counted."""


class Limited:
    """
    Receives what limits refuse, of all connections of a process.

    @param count: called with the limit's name for each refusal.
    """

    def __init__(self, clock: IReactorTime, count: Callable[[str], object] = count_nothing) -> None:
        self._clock = clock
        self.count = count
        self._lines: dict[str, FewLines] = {}

    def limited(self, limit: str, line: str) -> None:
        """
        A limit refused something.

        @param limit: one of L{LIMITS}.
        @param line: what happened, for the log.
        """
        self.count(limit)
        lines = self._lines.get(limit)
        if lines is None:
            more = f"more times the limit {limit} was reached"
            lines = self._lines[limit] = FewLines(self._clock, _warn, more, MOST_LINES)
        lines.say(line)
