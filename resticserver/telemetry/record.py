"""
The one record that is made of every request, however it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from ..targets import Target


class Ending(Enum):
    """How a request ended. Each request ends in exactly one of these ways."""

    #: A success response was sent.
    DONE = "done"
    #: An error response was sent, and the client caused the error (4xx, 507).
    REFUSED = "refused"
    #: An error response was sent for a fault of the server (5xx).
    FAILED = "failed"
    #: The client disconnected before the response began.
    LOST = "lost"
    #: The response began but was not completed.
    TRUNCATED = "truncated"


class Operation(Enum):
    """What a request did to an object, as named in the metrics."""

    WRITE = "write"
    READ = "read"
    DELETE = "delete"


class Effect(NamedTuple):
    """
    The effect of a request on its target.

    @ivar size_bytes: of the object that was written or deleted. For a read, only the record tells how much was sent.
    """

    operation: Operation
    size_bytes: int = 0


#: The status logged for a client that disconnected before the response. HTTP defines none; nginx uses this one.
STATUS_CLIENT_CLOSED = 499


class Record(NamedTuple):
    """
    One request.

    @ivar started: when its header was complete, in seconds since the epoch.
    @ivar duration_s: the time from then to its end.
    @ivar address: the client's address; C{"-"} for a unix socket.
    @ivar user: the authenticated user, or C{None}.
    @ivar method: as sent; C{uri} and C{version} likewise.
    @ivar target: the object, list or repository of the path; C{None} if the path names none.
    @ivar status: of the response; L{STATUS_CLIENT_CLOSED} if there was none.
    @ivar sent_bytes: the size of the response body, as far as it was sent.
    @ivar received_bytes: the size of the request body, as far as it was received.
    @ivar effect: the effect on the target; C{None} if there was none.
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


#: A callable that receives the record of every request.
Recorder = Callable[[Record], None]
