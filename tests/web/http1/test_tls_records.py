"""
TLS records, by pyOpenSSL's methods and by OpenSSL's functions: both with the same tests, and with a client in memory.
"""

from __future__ import annotations

import os
from pathlib import Path

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from resticserver.net.tls import server_context
from resticserver.web.http1 import tls_records
from resticserver.web.http1.tls_records import (
    RECORD_BYTES,
    DirectRecords,
    Space,
    TlsRecords,
    encrypted_bytes,
    records_of,
)

from ...support.certificates import make_certificate

#: SSL_MODE_ENABLE_PARTIAL_WRITE of OpenSSL's ssl.h.
PARTIAL_WRITE = 1


class TlsRecordsTests(SynchronousTestCase):
    """By pyOpenSSL's methods."""

    kind: type[TlsRecords] = TlsRecords

    def setUp(self) -> None:
        """Connect a client."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.connect()

    def connect(self, mode: int = 0) -> None:
        """
        Connect a client, until both have said all they have to say.

        @param mode: of OpenSSL, for the server's side.
        """
        made = make_certificate(self.directory)
        context = server_context(str(made.certificate), str(made.key), "1.2")
        context.set_mode(mode)
        self.client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.server = SSL.Connection(context, None)
        self.client.set_connect_state()
        self.server.set_accept_state()
        for _ in range(4):
            for one, other in ((self.client, self.server), (self.server, self.client)):
                try:
                    one.do_handshake()
                except SSL.WantReadError:
                    pass
                try:
                    other.bio_write(one.bio_read(1 << 16))
                except SSL.WantReadError:
                    pass
        self.assertRaises(SSL.WantReadError, self.client.recv, 1)
        self.records = self.kind(self.server)
        self.space = Space(encrypted_bytes(RECORD_BYTES))

    def sent(self, data: bytes) -> bytes:
        """What the client sends for some bytes."""
        self.client.sendall(data)
        return self.client.bio_read(2 * len(data) + 1000)

    def decrypted(self) -> bytes:
        """All that can be decrypted now."""
        found = b""
        while length := self.records.decrypt(self.space, 7, RECORD_BYTES):
            found += self.space.view[7 : 7 + length]
        return found

    def received(self) -> bytes:
        """All that the client can decrypt now."""
        found = b""
        try:
            while True:
                found += self.client.recv(RECORD_BYTES)
        except SSL.WantReadError:
            return found

    def test_decrypt(self) -> None:
        """Records come out as they were put in, also when they came in pieces; a byte is missing: nothing comes out."""
        data = os.urandom(3 * RECORD_BYTES + 5)
        encrypted = self.sent(data)
        found = b""
        for start in range(0, len(encrypted) - 1, 5000):
            self.records.feed(memoryview(encrypted)[start : min(start + 5000, len(encrypted) - 1)])
            found += self.decrypted()
        self.assertEqual(data[: 3 * RECORD_BYTES], found)
        self.records.feed(encrypted[-1:])
        self.assertEqual(data[-5:], self.decrypted())
        self.assertEqual(0, self.records.decrypt(self.space, 0, RECORD_BYTES))

    def test_decrypt_part(self) -> None:
        """A record may be decrypted in parts, and nothing is written beyond them."""
        self.records.feed(self.sent(b"abcdef"))
        self.assertEqual(4, self.records.decrypt(self.space, 10, 4))
        self.assertFalse(self.records.is_drained())
        self.assertEqual(b"abcd\0\0", self.space.view[10:16])
        self.assertEqual(2, self.records.decrypt(self.space, 0, 4))
        self.assertEqual(b"ef\0", self.space.view[:3])

    def test_drained(self) -> None:
        """While a record or a part of one is left, L{TlsRecords.is_drained} is false."""
        self.records.feed(self.sent(b"abc") + self.sent(b"def"))
        self.assertFalse(self.records.is_drained())
        self.assertEqual(3, self.records.decrypt(self.space, 0, RECORD_BYTES))
        self.assertFalse(self.records.is_drained())
        self.assertEqual(3, self.records.decrypt(self.space, 0, RECORD_BYTES))
        self.assertEqual(self.kind is DirectRecords, self.records.is_drained())

    def test_closed(self) -> None:
        """The client's close is told after all that it sent, and again."""
        data = self.sent(b"abc")
        self.client.shutdown()
        self.records.feed(data + self.client.bio_read(1000))
        self.assertEqual(3, self.records.decrypt(self.space, 0, RECORD_BYTES))
        self.assertFalse(self.records.is_drained())
        for _ in range(2):
            self.assertRaises(SSL.ZeroReturnError, self.records.decrypt, self.space, 0, RECORD_BYTES)

    def test_broken(self) -> None:
        """A record with one bit changed is an error, and OpenSSL's reason is given."""
        encrypted = bytearray(self.sent(b"abc"))
        encrypted[-1] ^= 1
        self.records.feed(bytes(encrypted))
        error = self.assertRaises(SSL.Error, self.records.decrypt, self.space, 0, RECORD_BYTES)
        self.assertIn("mac", str(error))

    def test_gone(self) -> None:
        """A connection that ended without the client's close is an error."""
        self.server.bio_shutdown()
        self.assertRaises(SSL.SysCallError, self.records.decrypt, self.space, 0, RECORD_BYTES)

    def test_encrypt(self) -> None:
        """What is encrypted reaches the client whole, and there is room for it."""
        for size_bytes in (1, 100, RECORD_BYTES, RECORD_BYTES + 1, 128 << 10):
            data = os.urandom(size_bytes)
            space = Space(encrypted_bytes(size_bytes))
            for piece in (data[:10], memoryview(data)[10:]):
                if piece:
                    self.records.encrypt(piece)
            piece = self.records.take(space)
            self.assertTrue(size_bytes < len(piece) < len(space.view))
            self.client.bio_write(bytes(piece))
            self.assertEqual(data, self.received())
        self.assertEqual(b"", bytes(self.records.take(self.space)))

    def test_partial_writes(self) -> None:
        """All is encrypted where pyOpenSSL asks for partial writes, as it did before 25.3."""
        data = os.urandom(5 * RECORD_BYTES + 1)
        self.connect(PARTIAL_WRITE)
        self.assertEqual(RECORD_BYTES, self.server.send(data))
        self.client.bio_write(self.server.bio_read(2 * RECORD_BYTES))
        self.assertEqual(data[:RECORD_BYTES], self.received())
        self.records.encrypt(data)
        self.client.bio_write(bytes(self.records.take(Space(encrypted_bytes(len(data))))))
        self.assertEqual(data, self.received())

    def test_encrypt_after_break(self) -> None:
        """After a broken record nothing is encrypted."""
        encrypted = bytearray(self.sent(b"abc"))
        encrypted[-1] ^= 1
        self.records.feed(bytes(encrypted))
        self.assertRaises(SSL.Error, self.records.decrypt, self.space, 0, RECORD_BYTES)
        self.assertRaises(SSL.Error, self.records.encrypt, b"abc")


class DirectRecordsTests(TlsRecordsTests):
    """By OpenSSL's functions."""

    kind = DirectRecords

    def test_chosen(self) -> None:
        """This pyOpenSSL has them. With one that has not, its methods are used."""
        self.assertIs(DirectRecords, type(records_of(self.server)))
        self.patch(tls_records, "_HAS_FUNCTIONS", False)
        self.assertIs(TlsRecords, type(records_of(self.server)))
        self.assertIsNone(Space(1).pointer)
