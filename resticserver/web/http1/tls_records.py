"""
Encrypts and decrypts the records of a TLS connection.

pyOpenSSL's methods copy each record once more than OpenSSL does, and raise an exception when there is nothing to decrypt. So
OpenSSL's functions are called directly where this version of pyOpenSSL has them under the names that they have had for years
(L{DirectRecords}), and its methods where not (L{TlsRecords}).
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from OpenSSL.SSL import Connection, WantReadError

#: A record holds so much at most (RFC 8446 section 5.1).
RECORD_BYTES = 16 << 10
#: How much OpenSSL may have to send besides the records.
_BIO_BYTES = 4 << 10
#: A record's overhead is less than its bytes divided by this.
_RECORDS_OVERHEAD = 100

_ffi: Any = getattr(SSL, "_ffi", None)
_lib: Any = getattr(SSL, "_lib", None)
_FUNCTIONS = (
    "BIO_get_mem_data",
    "BIO_read",
    "BIO_write",
    "SSL_ERROR_WANT_READ",
    "SSL_get_error",
    "SSL_pending",
    "SSL_read",
    "SSL_write",
)
_ATTRIBUTES = ("_from_ssl", "_into_ssl", "_raise_ssl_error", "_ssl")
_HAS_FUNCTIONS = hasattr(_ffi, "from_buffer") and all(hasattr(_lib, name) for name in _FUNCTIONS)


class Space:
    """
    Memory for what is encrypted or decrypted.

    @ivar view: its bytes.
    @ivar pointer: its address, for cffi.
    """

    __slots__ = ("pointer", "view")

    def __init__(self, size_bytes: int) -> None:
        self.view = memoryview(bytearray(size_bytes))
        self.pointer: Any = _ffi.from_buffer(self.view) if _HAS_FUNCTIONS else None


def encrypted_bytes(size_bytes: int) -> int:
    """
    The size of so many bytes when they are encrypted, and of what OpenSSL has to send besides. It is more if the client has asked
    for short records (RFC 6066 section 4).
    """
    return size_bytes + size_bytes // _RECORDS_OVERHEAD + _BIO_BYTES


class TlsRecords:
    """
    The records of one connection, whose handshake is done. One thread at a time may use it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def feed(self, data: bytes | memoryview) -> None:
        """Take some of what the client sent; not nothing."""
        self._connection.bio_write(data)

    def decrypt(self, space: Space, start: int, most_bytes: int) -> int:
        """
        Decrypt a record, or as much of it as fits.

        @param start: where to, in C{space}.
        @return: how many bytes; 0 if the rest of the next record has not come.
        @raise OpenSSL.SSL.ZeroReturnError: the client has closed its half.
        @raise OpenSSL.SSL.Error: the connection is broken.
        """
        try:
            return self._connection.recv_into(space.view[start:], most_bytes)
        except WantReadError:
            return 0

    def is_drained(self) -> bool:
        """Whether it is certain that nothing is left to decrypt."""
        return False

    def encrypt(self, data: bytes | memoryview) -> None:
        """
        Encrypt some bytes, which L{take} gives then.

        @raise OpenSSL.SSL.Error: the connection is broken. Some of the bytes may have been encrypted.
        """
        sent = self._connection.send(data)
        if sent < len(data):
            # This pyOpenSSL makes partial writes: send a record at a time.
            view = memoryview(data)[sent:]
            while view:
                view = view[self._connection.send(view[:RECORD_BYTES]) :]

    def take(self, space: Space) -> memoryview:
        """Take what OpenSSL has to send, as much as there is space for. If the space is full there may be more."""
        try:
            piece = self._connection.bio_read(len(space.view))
        except WantReadError:
            return space.view[:0]
        space.view[: len(piece)] = piece
        return space.view[: len(piece)]


class DirectRecords(TlsRecords):
    """The same by OpenSSL's functions."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        inner: Any = connection
        self._ssl, self._into, self._from = inner._ssl, inner._into_ssl, inner._from_ssl
        self._raise_error = inner._raise_ssl_error

    def feed(self, data: bytes | memoryview) -> None:
        """See L{TlsRecords.feed}."""
        if _lib.BIO_write(self._into, _ffi.from_buffer(data), len(data)) != len(data):
            raise MemoryError

    def decrypt(self, space: Space, start: int, most_bytes: int) -> int:
        """See L{TlsRecords.decrypt}."""
        assert start + most_bytes <= len(space.view)  # OpenSSL would write behind it
        length: int = _lib.SSL_read(self._ssl, space.pointer + start, most_bytes)
        if length <= 0:
            if _lib.SSL_get_error(self._ssl, length) != _lib.SSL_ERROR_WANT_READ:
                self._raise_error(self._ssl, length)
            return 0
        return length

    def is_drained(self) -> bool:
        """See L{TlsRecords.is_drained}."""
        return not _lib.SSL_pending(self._ssl) and not _lib.BIO_get_mem_data(self._into, _NO_MATTER)

    def encrypt(self, data: bytes | memoryview) -> None:
        """See L{TlsRecords.encrypt}."""
        size_bytes = len(data)
        length = _lib.SSL_write(self._ssl, _ffi.from_buffer(data), size_bytes)
        if length <= 0:
            self._raise_error(self._ssl, length)
        elif length < size_bytes:
            super().encrypt(memoryview(data)[length:])

    def take(self, space: Space) -> memoryview:
        """See L{TlsRecords.take}."""
        return space.view[: max(0, _lib.BIO_read(self._from, space.pointer, len(space.view)))]


#: Where BIO_get_mem_data may write the address of what waits.
_NO_MATTER: Any = _ffi.new("char **") if _HAS_FUNCTIONS else None


def records_of(connection: Connection) -> TlsRecords:
    """The records of a connection that Twisted has made (with memory BIOs)."""
    direct = _HAS_FUNCTIONS and all(hasattr(connection, name) for name in _ATTRIBUTES)
    return DirectRecords(connection) if direct else TlsRecords(connection)
