"""
Shares the reactor's thread among connections that have sent more than should be looked at in one go.

A read from a socket brings up to 512 KiB. That is a handful of chunks of a client that means well, and tens of thousands of one
that sends a byte in each: half a second of work, in which no other client is served. So whoever decodes counts what it does
in units. When the units of a slice are used up, what is left waits here, with reading paused, for the connection's next
slice. A turn of the reactor has a few slices for all connections that wait together, and behind it the thread is free for
others. A connection with nothing waiting does not come here: its first slice is at once.

What one unit is: a chunk, a line or a TLS record, about a microsecond; a request is L{REQUEST_UNITS}.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: What a connection may do in one go: a third of a millisecond. A client that sends chunks of 2 KiB never needs more.
SLICE_UNITS = 256
#: What the request line and the route of a small request cost; each of its lines is one unit more.
REQUEST_UNITS = 64
#: So many bytes of a line or of a head cost one unit more.
BYTES_PER_UNIT = 64
#: How many slices one turn of the reactor has, for all who wait.
SLICES = 4
#: How long others have the thread between two such turns. The slices of one take half of that, so those who wait get a third of
#: the thread's time at most, all together.
REST_S = 0.002

_log = Logger()


class Waits(Protocol):
    """A connection that waits for its next slice."""

    def go_on(self) -> None:
        """Do what one slice allows; wait again if there is more."""

    def abort(self) -> None:
        """End the connection."""


class Turns:
    """
    Who waits for a slice, in the order in which they came.

    @param slices: how many a turn has.
    @param rest_s: how long others have the thread between two turns.
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
                # The others must not wait for ever because of it.
                _log.failure("a connection failed and is ended")
                one.abort()
        self._running = False
        if self._waiting:
            self._call = self._reactor.callLater(self._rest_s, self._run)
