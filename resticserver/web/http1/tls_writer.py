"""
Sends answers over TLS: encrypts them without a copy of each record, and sends them as on plain sockets.
"""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL.SSL import Connection, Error, WantReadError

from .socket_writer import SocketWriter

#: A TLS record holds so much at most (RFC 8446 section 5.1).
RECORD_BYTES = 16 << 10
#: How much OpenSSL may have to send besides the records.
BIO_BYTES = 4 << 10
#: A record's overhead is less than its bytes divided by this.
_RECORDS_OVERHEAD = 100


def waiting_bytes(connection: Connection, most_bytes: int = BIO_BYTES) -> bytes:
    """
    The bytes that OpenSSL has to send.

    @param most_bytes: usually there are no more than these.
    """
    try:
        piece = connection.bio_read(most_bytes)
    except WantReadError:
        return b""
    if len(piece) < most_bytes:
        return piece
    return piece + waiting_bytes(connection, most_bytes)


class Tls(Protocol):
    """
    A TLS connection, as far as its writer needs it.

    @ivar written: set when an answer was written, and with it all that OpenSSL had to send.
    """

    transport: Any
    written: bool

    def getHandle(self) -> Any:
        """OpenSSL's connection."""

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
        self.openssl: Connection = tls.getHandle()

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Encrypt and send, now as far as possible."""
        try:
            encrypted = encrypt(self.openssl, data, body)
        except Error:
            self._tls.abortConnection()
        else:
            self._tls.written = True
            super().write(encrypted)

    def read_on(self) -> None:
        """Read first what a transfer left in OpenSSL's connection."""
        self._tls.read_on()


def encrypt(connection: Connection, *pieces: bytes | memoryview) -> bytes:
    """
    Encrypt some bytes.

    @return: the bytes to send.
    @raise OpenSSL.SSL.Error: the connection is broken. Some of the bytes may have been encrypted.
    """
    size_bytes = 0
    for piece in pieces:
        if not piece:
            continue
        size_bytes += len(piece)
        sent = connection.send(piece)
        if sent < len(piece):
            # This pyOpenSSL makes partial writes: send a record at a time.
            view = memoryview(piece)[sent:]
            while view:
                view = view[connection.send(view[:RECORD_BYTES]) :]
    return waiting_bytes(connection, size_bytes + size_bytes // _RECORDS_OVERHEAD + BIO_BYTES)
