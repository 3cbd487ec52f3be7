"""
Sends answers over TLS: encrypts them, and sends them as on plain sockets.
"""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL.SSL import Error

from .socket_writer import SocketWriter
from .tls_records import RECORD_BYTES, Space, TlsRecords, encrypted_bytes

#: How much is encrypted before it is sent. OpenSSL keeps memory for so much in each connection.
_PIECE_BYTES = 128 << 10
#: For what the reactor's thread encrypts and decrypts.
REACTOR_SPACE = Space(encrypted_bytes(_PIECE_BYTES))


class Tls(Protocol):
    """
    A TLS connection, as far as its writer needs it.

    @ivar written: set when an answer was written, and with it all that OpenSSL had to send.
    """

    transport: Any
    written: bool

    @property
    def records(self) -> TlsRecords:
        """What encrypts and decrypts."""

    def read_on(self) -> None:
        """A transfer may have left bytes in OpenSSL's connection."""

    def abortConnection(self) -> None:
        """Abort it."""


class TlsWriter(SocketWriter):
    """
    A TLS connection over a socket. Its handshake is done before the first answer.

    @param tls: Twisted's transport of the connection.
    """

    def __init__(self, tls: Tls) -> None:
        super().__init__(tls.transport)
        self._tls = tls
        self.records: TlsRecords = tls.records

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Encrypt and send, now as far as possible."""
        records = self.records
        self._tls.written = True
        try:
            if len(data) + len(body) <= RECORD_BYTES:
                records.encrypt(data + body)
                self._send_encrypted()
                return
            for part in (data, body):
                view = memoryview(part)
                while view:
                    records.encrypt(view[:_PIECE_BYTES])
                    view = view[_PIECE_BYTES:]
                    self._send_encrypted()
        except Error:
            self._tls.abortConnection()

    def _send_encrypted(self) -> None:
        full = True
        while full:
            piece = self.records.take(REACTOR_SPACE)
            self.write_view(piece)
            full = len(piece) == len(REACTOR_SPACE.view)

    def read_on(self) -> None:
        """Read first what a transfer left in OpenSSL's connection."""
        self._tls.read_on()


def taken(records: TlsRecords) -> bytes:
    """All that OpenSSL has to send. In the reactor's thread."""
    piece = bytes(records.take(REACTOR_SPACE))
    return piece + taken(records) if len(piece) == len(REACTOR_SPACE.view) else piece
