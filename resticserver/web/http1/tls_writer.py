"""
Answers over TLS: encrypted record by record without a copy of each, and sent like those of plain sockets.
"""

from __future__ import annotations

from typing import Any, Protocol

from OpenSSL.SSL import Connection, Error, WantReadError

from .socket_writer import SocketWriter

#: A TLS record holds so much at most (RFC 8446 section 5.1).
RECORD_BYTES = 16 << 10
#: What OpenSSL may have to send beside them.
BIO_BYTES = 4 << 10
#: What a record has beside its bytes is less than so large a part of them.
_RECORDS_OVERHEAD = 100


def waiting_bytes(connection: Connection, most_bytes: int = BIO_BYTES) -> bytes:
    """
    What OpenSSL wants to be sent.

    @param most_bytes: more than that is not expected.
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
    What is needed of the TLS connection.

    @ivar written: set where an answer was written, and with it all that OpenSSL had to send.
    """

    transport: Any
    written: bool

    def getHandle(self) -> Any:
        """OpenSSL's connection."""

    def read_on(self) -> None:
        """Others may have left something in OpenSSL's connection."""

    def abortConnection(self) -> None:
        """End it at once."""


class TlsWriter(SocketWriter):
    """
    A TLS connection over a socket. By the time that there is an answer, its handshake is done.

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
        """What others left in OpenSSL's connection comes next."""
        self._tls.read_on()


def encrypt(connection: Connection, *pieces: bytes) -> bytes:
    """
    What is to be sent for some bytes.

    @raise OpenSSL.SSL.Error: the connection is broken; some of them may have been encrypted.
    """
    size_bytes = 0
    for piece in pieces:
        if not piece:
            continue
        size_bytes += len(piece)
        sent = connection.send(piece)
        if sent < len(piece):
            # A pyOpenSSL that cannot be kept from partial writes: a record at a time.
            view = memoryview(piece)[sent:]
            while view:
                view = view[connection.send(view[:RECORD_BYTES]) :]
    return waiting_bytes(connection, size_bytes + size_bytes // _RECORDS_OVERHEAD + BIO_BYTES)
