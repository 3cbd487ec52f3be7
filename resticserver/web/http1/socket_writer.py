"""
Sends answers to a plain socket at once.

Twisted's transports queue what is written, and send it a turn of the reactor later. The socket is nearly always ready, so it is
tried first here. What it does not take goes to the transport, with its buffer and back-pressure.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.interfaces import ISSLTransport

if TYPE_CHECKING:
    from .tls_records import TlsRecords  # OpenSSL takes its time to import

#: A head and a body up to this size are joined, which costs a copy of both.
JOINED_BYTES = 16 << 10
_DROPPED_BYTES = 64 << 10


class SocketWriter:
    """
    A plain socket.

    @param transport: Twisted's, of the socket itself.
    @ivar records: what encrypts and decrypts; C{None} without TLS.
    """

    records: TlsRecords | None = None

    def __init__(self, transport: Any) -> None:
        self.socket_transport = transport
        self._socket: socket.socket = transport.getHandle()

    def is_empty(self) -> bool:
        """Whether all that was written is in the kernel."""
        transport = self.socket_transport
        return not transport.dataBuffer and not transport._tempDataBuffer

    def unsent_bytes(self) -> int:
        """How much of what was written is not in the kernel yet."""
        transport = self.socket_transport
        return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)

    def close_socket(self) -> None:
        """Close the socket in order, also below TLS."""
        self.socket_transport.loseConnection()

    def drop_received(self) -> None:
        """Read and drop what has come: a socket that is closed with unread bytes is reset."""
        with suppress(OSError):
            self._socket.recv(_DROPPED_BYTES)

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Send C{data}, and C{body} behind it, now as far as possible."""
        transport = self.socket_transport
        if transport.dataBuffer or transport._tempDataBuffer or not transport.connected:
            transport.write(data + body)
            return
        try:
            sent = self._socket.sendmsg((data, body)) if body else self._socket.send(data)
        except OSError:
            # It would block. Or it is broken: then the reactor finds that out when it tries.
            sent = 0
        if sent < len(data) + len(body):
            self._write_more(memoryview(data + body)[sent:])

    def write_view(self, data: memoryview) -> None:
        """Send these bytes, which are good only during the call, now as far as possible."""
        transport = self.socket_transport
        if transport.dataBuffer or transport._tempDataBuffer or not transport.connected:
            transport.write(bytes(data))
        else:
            self._write_more(data)

    def _write_more(self, rest: memoryview) -> None:
        """Send what the socket still takes, and leave the rest to the transport."""
        try:
            while rest:
                rest = rest[self._socket.send(rest) :]
        except OSError:
            self.socket_transport.write(bytes(rest))

    def read_on(self) -> None:
        """A transfer had the socket. Under TLS it may have left bytes to be read first."""


def sender_of(transport: Any) -> SocketWriter | None:
    """The writer for a transport; C{None} if its socket cannot be had (tests in memory, the PROXY protocol)."""
    if isinstance(transport, tcp.Connection):
        # A connection of Twisted's own TLS (in memory, or by an endpoint string) is one too, and has no socket for us.
        return None if ISSLTransport.providedBy(transport) else SocketWriter(transport)
    make_sender = getattr(transport, "make_sender", None)
    return None if make_sender is None else make_sender()
