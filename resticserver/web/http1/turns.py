"""
Shares the reactor's thread among connections that have sent more than one slice of work.

A read from a socket brings up to 512 KiB. That is a handful of chunks from a usual client, and tens of thousands if each has one
byte: half a second of work, in which no other client is served. So decoders count their work in units. When the units of a slice
are used up, the rest waits for the connection's next slice, with reading paused. A turn of the reactor has a few slices for all
waiting connections together; after it the thread is free for the others. A connection with nothing waiting gets its first slice
at once.

One unit is a chunk, a line or a TLS record: about a microsecond. A request is L{REQUEST_UNITS}.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: The units of one slice: a third of a millisecond. A client that sends chunks of 2 KiB never needs more.
SLICE_UNITS = 256
#: The cost of a small request's line and route. Each of its header lines costs one unit more.
REQUEST_UNITS = 64
#: This many bytes of a line or of a head cost one unit more.
BYTES_PER_UNIT = 64
#: How many slices one turn of the reactor has, for all waiting connections.
SLICES = 4
#: How long the thread is free for others between two such turns. The slices of one turn take half of that, so waiting connections
#: get at most a third of the thread's time, all together.
REST_S = 0.002

_log = Logger()


class Waits(Protocol):
    """A connection that waits for its next slice."""

    def go_on(self) -> None:
        """Do one slice of work. Wait again if there is more."""

    def abort(self) -> None:
        """Abort the connection."""


class Turns:
    """
    The connections that wait for a slice, in order.

    @param slices: how many a turn has.
    @param rest_s: how long the thread is free for others between two turns.
    """

    def __init__(self, reactor: IReactorTime, slices: int = SLICES, rest_s: float = REST_S) -> None:
        self._reactor = reactor
        self._slices = slices
        self._rest_s = rest_s
        self._waiting: deque[Waits] = deque()
        self._call: IDelayedCall | None = None
        self._running = False

    def wait(self, one: Waits) -> None:
        """Call its C{go_on} in a later turn of the reactor. It must not be waiting already."""
        self._waiting.append(one)
        if self._call is None and not self._running:
            self._call = self._reactor.callLater(0, self._run)

    def _run(self) -> None:
        self._call = None
        self._running = True
        for _ in range(min(self._slices, len(self._waiting))):
            one = self._waiting.popleft()
            try:
                one.go_on()
            except Exception:
                # The other connections must not wait for ever because of it.
                _log.failure("a connection failed and was closed")
                one.abort()
        self._running = False
        if self._waiting:
            self._call = self._reactor.callLater(self._rest_s, self._run)
