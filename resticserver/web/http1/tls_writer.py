"""
Answers over TLS: encrypted record by record without a copy of each, and sent like those of plain sockets.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Connection, Error
from twisted.internet import tcp

from .socket_writer import Sender
from .tls_connection import BIO_BYTES, RECORD_BYTES, TlsConnection, waiting_bytes

#: What a record has beside its bytes is less than so large a part of them.
_RECORDS_OVERHEAD = 100


class TlsSender(Sender):
    """
    A TLS connection over a socket. By the time that there is an answer, its handshake is done.

    @param tls: Twisted's transport of the connection.
    """

    def __init__(self, tls: TlsConnection) -> None:
        super().__init__(tls.transport)
        self._tls = tls
        self.connection: Connection = tls.getHandle()

    @classmethod
    def under(cls, transport: Any) -> TlsSender | None:
        """What sends over a transport; C{None} where its socket cannot be had (the PROXY protocol is between them)."""
        if isinstance(transport, TlsConnection) and isinstance(transport.transport, tcp.Connection):
            return cls(transport)
        return None

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Encrypt and send, now as far as possible."""
        try:
            encrypted = encrypt(self.connection, data, body)
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
