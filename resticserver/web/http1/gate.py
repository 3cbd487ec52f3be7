"""
When a connection reads from its socket. The channel, the exchange and the transfers each have reasons to pause it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from .socket_writer import SocketWriter

#: Why reading pauses: the body's taker is behind; enough requests wait; a transfer has the socket; received bytes wait for the
#: connection's turn; the client takes no answers.
Reason = Literal["body", "pipeline", "transfer", "turn", "write"]


class SocketHolder(Protocol):
    """A transfer that has a connection's socket (L{resticserver.web.transfer})."""

    def interrupt(self, then: Callable[[], None]) -> bool:
        """
        End the running job.

        @param then: called when the job has ended.
        @return: False if no job runs; C{then} is not called.
        """


class ReadGate:
    """
    Reading from one socket. It pauses as long as there is a reason.

    @param transport: the connection's.
    @param writer: sends over it; C{None} where its socket cannot be had.
    @ivar holder: the transfer that has the socket.
    """

    def __init__(self, transport: Any, writer: SocketWriter | None) -> None:
        self._transport = transport
        self._writer = writer
        self._reasons: set[Reason] = set()
        self.holder: SocketHolder | None = None

    def hold(self, reason: Reason) -> None:
        """Pause for this reason."""
        if not self._reasons:
            self._transport.pauseProducing()
        self._reasons.add(reason)

    def release(self, reason: Reason) -> None:
        """Drop this reason. Reading resumes when it was the last."""
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons:
                self._transport.resumeProducing()

    def is_held_by(self, reason: Reason) -> bool:
        """Whether this is a reason now."""
        return reason in self._reasons

    def open(self) -> None:
        """Drop all reasons."""
        for reason in tuple(self._reasons):
            self.release(reason)

    def lend(self, holder: SocketHolder) -> None:
        """Read nothing until L{take_back}: a transfer has the socket."""
        self.holder = holder
        self.hold("transfer")

    def take_back(self) -> None:
        """Read again after a transfer, first the bytes that it left in the TLS connection."""
        self.holder = None
        if self._writer is not None:
            self._writer.read_on()
        self.release("transfer")

    def set_read_size(self, size_bytes: int) -> None:
        """
        Set how many bytes one read may bring. With Twisted's 64 KiB a pack takes the reactor 256 rounds, with 512 KiB 32.
        """
        # Under TLS the socket's attribute counts, not the wrapper's.
        socket_transport = getattr(self._transport, "transport", self._transport)
        if hasattr(socket_transport, "bufferSize"):
            socket_transport.bufferSize = size_bytes
