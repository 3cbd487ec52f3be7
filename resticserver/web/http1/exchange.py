"""
One request and its answer, as the connection sees them: which of body and answer have ended, and what follows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.python.failure import Failure

from ...errors import ServerError
from .body import Body
from .chunked import ChunkedDecoder
from .closing import Closing
from .gate import ReadGate, SocketHolder

#: A body that comes through the reactor's thread is read in pieces of this size.
BULK_BYTES = 512 << 10


class Request(Protocol):
    """What a connection needs of a request that it has begun."""

    body: Body
    authenticated: bool
    awaits_continue: bool

    def begin(self) -> None:
        """Find the route and give it the request."""

    def connectionLost(self, reason: Any) -> None:
        """The connection is gone."""

    def refuse(self, error: ServerError) -> None:
        """Answer with an error, without any route."""


class ExchangeConnection(Protocol):
    """
    What L{Exchange} needs of its connection.

    @ivar ignores_input: whether nothing that comes is parsed any more.
    """

    ignores_input: bool

    def next_request(self) -> None:
        """The exchange has ended, and another request may follow."""


class Timeouts(NamedTuple):
    """How long a connection may be idle, and how long its client may move no byte, in seconds."""

    idle_s: float
    stall_s: float


class Exchange:
    """
    The request that a connection serves, from the end of its head until its body and its answer have both ended. One object
    serves all requests of a connection, one after the other.

    The answer may end first. Then the rest of the body is read and dropped, within bounds, or the connection lingers.

    @cvar held_timeout_s: how long a slow disk may pause reading before the connection is closed.
    @cvar swallow_timeout_s: how long the rest of a body is read after an early answer.
    @cvar swallow_bytes: how much of it, from an authenticated client; C{swallow_stranger_bytes} else.
    @param timeouts: how long a connection may wait for its next request, and how long a client may send nothing of a body.
    @ivar request: C{None} between requests.
    @ivar decoder: of a chunked body.
    @ivar answered: whether the answer has ended.
    """

    held_timeout_s = 600.0
    swallow_timeout_s = 30.0
    swallow_bytes = 160 << 20
    swallow_stranger_bytes = 16 << 20

    def __init__(self, connection: ExchangeConnection, gate: ReadGate, closing: Closing, timeouts: Timeouts) -> None:
        self._connection = connection
        self._gate = gate
        self._closing = closing
        self._deadline = closing.deadline
        self._idle_timeout_s, self._stall_timeout_s = timeouts
        self._is_last = False
        self._in_bulk = False
        self.request: Request | None = None
        self.decoder: ChunkedDecoder | None = None
        self.answered = False

    # --- the channel's calls

    def begin(self, request: Request, is_chunked: bool, is_last: bool) -> None:
        """
        A request's head has ended.

        @param is_last: no request may follow.
        """
        self.request = request
        self.answered = False
        self.decoder = ChunkedDecoder() if is_chunked else None
        if is_last:
            self._is_last = True

    def set_last(self) -> None:
        """No request may follow this one."""
        self._is_last = True

    def finish(self) -> None:
        """Close the connection: now if it is idle, else after the answer."""
        self._is_last = True
        if self.request is None:
            self._closing.close_idle()

    def client_sends(self) -> None:
        """Bytes of the body came. The silence counts from now, unless the server itself paused reading."""
        request = self.request
        if request is not None and not request.body.ended and not self._gate.is_held_by("body"):
            self._deadline.set(self._stall_timeout_s)

    def end_body(self, request: Request) -> None:
        """All of the request's body came."""
        if not self.answered:
            self._deadline.set(None)
        request.body.end()
        if self.answered and self.request is request and not self._connection.ignores_input:
            self._closing.cancel()
            self._end()

    def fail_body(self, error: ServerError) -> None:
        """The rest of the body cannot be parsed."""
        assert self.request is not None
        if self.answered:
            self._closing.linger()
        else:
            self.request.body.fail(error)

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone, and with it the answer if it has not ended."""
        request, self.request = self.request, None
        if request is not None and not self.answered:
            request.connectionLost(reason)

    # --- the body's calls (L{resticserver.web.http1.body.Source})

    def hold_body(self) -> None:
        """Pause reading: the disk is slower than the client. A longer deadline watches the disk."""
        self._gate.hold("body")
        self._deadline.set(self.held_timeout_s)

    def release_body(self) -> None:
        """Read on."""
        self._gate.release("body")
        request = self.request
        if request is not None and not request.body.ended:
            self._deadline.set(self._stall_timeout_s)
        elif request is not None:
            self._deadline.set(self._idle_timeout_s if self.answered else None)

    # --- the calls of what takes the body (L{resticserver.web.transfer.body})

    def read_in_bulk(self) -> None:
        """The body is taken now, through the reactor's thread: read large pieces until the answer has ended."""
        request = self.request
        if request is not None and not request.body.ended:
            self._in_bulk = True
            self._gate.set_read_size(BULK_BYTES)

    def lend(self, transfer: SocketHolder) -> None:
        """A transfer takes the body from the socket. It has a deadline of its own."""
        self._gate.lend(transfer)
        self._deadline.set(None)

    def take_back(self, taken_bytes: int) -> None:
        """Read again, after a transfer has taken so much of the body."""
        request = self.request
        assert request is not None
        self._gate.take_back()
        self._deadline.set(self._stall_timeout_s)
        request.body.taken(taken_bytes)
        if request.body.expected_bytes == 0:
            self.end_body(request)

    # --- the answer's calls

    def is_last_answer(self, request: Request) -> bool:
        """Whether the connection ends after this answer, so that its head must say so."""
        if not request.body.ended and self._must_close(request):
            self._is_last = True
        return self._is_last

    def end_answer(self, request: Request) -> None:
        """All of the answer is written."""
        self.answered = True
        if self._in_bulk:
            self._in_bulk = False
            self._gate.set_read_size(FileDescriptor.bufferSize)
        body = request.body
        if self._connection.ignores_input:
            self._closing.linger()
        elif body.ended:
            self._end()
        elif self._must_close(request):
            self._closing.linger()
        else:
            # Read the rest, so that the client comes to read its answer.
            self._deadline.set(self._stall_timeout_s)
            self._closing.linger_after(self.swallow_timeout_s)
            body.discard(self._swallow_limit(request), self._closing.linger)

    def _must_close(self, request: Request) -> bool:
        """
        Whether no request can be read after an early answer: the rest of the body is too much to swallow, or the client waits
        for C{100 Continue} and may send the body or not.
        """
        rest = request.body.expected_bytes
        return request.awaits_continue or (rest is not None and rest > self._swallow_limit(request))

    def _swallow_limit(self, request: Request) -> int:
        return self.swallow_bytes if request.authenticated else self.swallow_stranger_bytes

    def _end(self) -> None:
        """Body and answer have ended: close the connection, or take the next request."""
        self.request = None
        # The body may have paused reading before it was dropped.
        self._gate.release("body")
        if self._is_last:
            self._closing.close(self._idle_timeout_s)
        else:
            self._deadline.set(self._idle_timeout_s)
            self._connection.next_request()
