"""
The one record of every request, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from ..names import Target


class Ending(Enum):
    """How a request ended."""

    #: Answered with success.
    DONE = "done"
    #: Answered with an error that the client caused (4xx, 507).
    REFUSED = "refused"
    #: Answered with a fault of the server (5xx).
    FAILED = "failed"
    #: The client disconnected before the answer began.
    LOST = "lost"
    #: The answer began and was not completed.
    TRUNCATED = "truncated"


class Operation(Enum):
    """What a request did to an object, as the metrics name it."""

    WRITE = "write"
    READ = "read"
    DELETE = "delete"


class Effect(NamedTuple):
    """
    What a request did to what it named.

    @ivar size_bytes: of the object that was written or deleted; for a read see C{Record.sent_bytes}.
    """

    operation: Operation
    size_bytes: int = 0


#: The status in the log of a client that disconnected before its answer, as in nginx; HTTP has none for that.
STATUS_CLIENT_CLOSED = 499


class Record(NamedTuple):
    """
    One request.

    @ivar started: seconds since the epoch when its header was complete.
    @ivar duration_s: from then to its end.
    @ivar address: the client's address, C{"-"} for a unix socket.
    @ivar user: the authenticated user, or C{None}.
    @ivar method: as sent; C{uri} and C{version} likewise.
    @ivar target: what it named, or C{None} where it named nothing.
    @ivar status: of the answer; L{STATUS_CLIENT_CLOSED} where there was none.
    @ivar sent_bytes: of the answer's body.
    @ivar received_bytes: of the request's body.
    @ivar effect: what it did to the object that it named; C{None} where nothing was done or there was none.
    """

    started: float
    duration_s: float
    address: str
    user: str | None
    method: bytes
    uri: bytes
    version: bytes
    target: Target | None
    status: int
    sent_bytes: int
    received_bytes: int
    referer: bytes | None
    user_agent: bytes | None
    ending: Ending
    effect: Effect | None = None


#: Called with the record of every request.
Recorder = Callable[[Record], None]
