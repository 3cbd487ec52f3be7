"""
The end of a connection: closed in order, half closed until the client has read its answer, or aborted; and the deadlines
that lead there. The exchange sets them; their lengths stand in L{resticserver.web.http1.site} (idle) and
L{resticserver.web.http1.options} (a client that sends or reads nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .gate import ReadGate
from .socket_writer import SocketWriter


class Deadline:
    """
    A call at a point in time that moves with every request. Moving it is cheap: the timer stays as long as it is early enough.
    """

    def __init__(self, reactor: IReactorTime, call: Callable[[], object]) -> None:
        self._reactor = reactor
        self._call = call
        self._at: float | None = None
        self._timer: IDelayedCall | None = None

    def set(self, seconds: float | None) -> None:
        """Call so many seconds from now, and at no other time; C{None}: never."""
        if seconds is None:
            self._at = None
            return
        self._at = self._reactor.seconds() + seconds
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, self._ring)
        elif self._timer.getTime() > self._at:
            self._timer.reset(seconds)

    def _ring(self) -> None:
        self._timer = None
        if self._at is None:
            return
        left = self._at - self._reactor.seconds()
        if left > 0:
            self._timer = self._reactor.callLater(left, self._ring)
        else:
            self._at = None
            self._call()

    def stop(self) -> None:
        """Never call again."""
        self._at = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class ClosingConnection(Protocol):
    """What L{Closing} needs of its connection."""

    transport: Any
    writer: SocketWriter | None
    secure: bool

    def ignore_input(self) -> None:
        """Parse nothing any more."""

    def unsent_bytes(self) -> int:
        """How much of what was written is not in the kernel yet."""

    def client_stalled(self) -> None:
        """The connection is ended because the client moves no byte."""

    def deadline_passed(self) -> None:
        """What the deadline was for did not come in time: close the connection."""


class Closing:
    """
    Ends one connection.

    @cvar close_timeout_s: how long an idle connection may take to close.
    @cvar linger_s: how long a half-closed connection waits for its client to read the answer.
    @param stall_timeout_s: how long the client may take nothing of what was written.
    @ivar deadline: tells the connection that it is idle, that a head or a body does not come, or that the disk does not take it.
    """

    close_timeout_s = 2.0
    linger_s = 10.0

    def __init__(
        self, connection: ClosingConnection, reactor: IReactorTime, gate: ReadGate, stall_timeout_s: float
    ) -> None:
        self._connection = connection
        self._stall_timeout_s = stall_timeout_s
        self._reactor = reactor
        self._gate = gate
        self._call: IDelayedCall | None = None
        self.deadline = Deadline(reactor, connection.deadline_passed)

    def close_idle(self) -> None:
        """Close a connection whose client waits for nothing."""
        self.close(self.close_timeout_s)

    def close(self, patience_s: float) -> None:
        """Close when all is written. A client that does not play its part is cut off after C{patience_s}."""
        self._begin()
        # Over TLS the closing waits for the client's part of it, on any connection for what is still to be written.
        unsent_bytes = self._connection.unsent_bytes()
        self._call = self._reactor.callLater(patience_s, self._still_open, patience_s, unsent_bytes, 0.0)
        self._connection.transport.unregisterProducer()
        self._connection.transport.loseConnection()

    def _begin(self) -> None:
        self._connection.ignore_input()
        self.deadline.set(None)
        self.cancel()

    def _still_open(self, patience_s: float, unsent_bytes: int, stalled_s: float) -> None:
        """The connection did not close in time. A client that still takes its answer gets all of it."""
        connection = self._connection
        unsent_before, unsent_bytes = unsent_bytes, connection.unsent_bytes()
        if unsent_bytes:
            stalled_s = 0.0 if unsent_bytes < unsent_before else stalled_s + patience_s
            if stalled_s < self._stall_timeout_s:
                patience_s = min(patience_s, self._stall_timeout_s - stalled_s)
                again = (patience_s, unsent_bytes, stalled_s)
                self._call = self._reactor.callLater(patience_s, self._still_open, *again)
                return
            connection.client_stalled()
        elif connection.secure and connection.writer is not None and self._gate.holder is None:
            # All of TLS's bytes are in the kernel, which sends them and then the socket's end. A reset would discard them.
            self._call = self._reactor.callLater(patience_s, self.abort)
            connection.writer.close_socket()
            return
        self.abort()

    def linger_after(self, seconds: float) -> None:
        """L{linger} after so much time, unless L{cancel} comes first."""
        self._call = self._reactor.callLater(seconds, self.linger)

    def linger(self) -> None:
        """
        Close our half and drop what still comes, until the client has closed its half or the time is up. So the client reads
        its answer, and the rest of its body is never parsed as a request (RFC 9112 section 9.6).
        """
        self._begin()
        self._gate.open()
        transport = self._connection.transport
        transport.unregisterProducer()
        if self._connection.secure:
            # TLS has an end of its own for each half, and Twisted closes the socket when the client's has come. (Twisted's TLS
            # cannot use a half-closed socket: the client's end would find it gone in the middle of a call.)
            transport.loseConnection()
        else:
            transport.loseWriteConnection()
        self._call = self._reactor.callLater(self.linger_s, self.abort)

    def cancel(self) -> None:
        """Forget L{linger_after}, and what was to follow a closing that takes too long."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def abort(self) -> None:
        """Close the connection now, whatever is on the way."""
        holder = self._gate.holder
        # OpenSSL's connection is in use by the job, so the job ends first.
        if not (self._connection.secure and holder is not None and holder.interrupt(self._abort)):
            self._abort()

    def _abort(self) -> None:
        if self._connection.transport is not None:
            self._connection.transport.abortConnection()

    def connection_lost(self) -> None:
        """The connection is gone: stop all timers."""
        self.deadline.stop()
        self.cancel()
