"""
Sends answers over TLS: encrypts them, and sends them as on plain sockets.
"""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL.SSL import Error

from .socket_writer import SocketWriter
from .tls_records import RECORD_BYTES, Space, TlsRecords, encrypted_bytes

#: For what the reactor's thread encrypts and decrypts, all but the largest of it.
REACTOR_SPACE = Space(encrypted_bytes(RECORD_BYTES))


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
        size_bytes = len(data) + len(body)
        records = self.records
        try:
            if size_bytes <= RECORD_BYTES:
                records.encrypt(data + body)
                space = REACTOR_SPACE
            else:
                records.encrypt(data)
                if body:
                    records.encrypt(body)
                space = Space(encrypted_bytes(size_bytes))
        except Error:
            self._tls.abortConnection()
        else:
            self._tls.written = True
            super().write(taken(records, space))

    def read_on(self) -> None:
        """Read first what a transfer left in OpenSSL's connection."""
        self._tls.read_on()


def taken(records: TlsRecords, space: Space = REACTOR_SPACE) -> bytes:
    """
    All that OpenSSL has to send. In the reactor's thread.

    @param space: if there is room for all of it, this is quicker.
    """
    piece = records.take(space)
    if len(piece) < len(space.view):
        return bytes(piece)
    return bytes(piece) + taken(records, space)
