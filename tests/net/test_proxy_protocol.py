"""
The PROXY protocol: headers in any pieces, and what is none.
"""

from __future__ import annotations

import struct

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from resticserver.net.proxy_protocol import ProxyProtocolFactory

PROXY = IPv4Address("TCP", "127.0.0.1", 9999)
PREFIX_2 = b"\r\n\r\n\x00\r\nQUIT\n"


class Above(Protocol):
    """What stands above."""

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        """Keep it; "bad" is a fault of its own."""
        self.received += data
        if b"bad" in data:
            raise ValueError("of what stands above")


def version_2(command: int, family: int, addresses: bytes) -> bytes:
    """A binary header."""
    return PREFIX_2 + struct.pack("!BBH", 0x20 | command, family, len(addresses)) + addresses


#: header -> the address that it claims
HEADERS: tuple[tuple[bytes, IAddress], ...] = (
    (b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 8000\r\n", IPv4Address("TCP", "203.0.113.9", 4711)),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 8000\r\n", IPv6Address("TCP", "2001:db8::1", 4711)),
    (b"PROXY UNKNOWN\r\n", PROXY),
    (b"PROXY UNKNOWN 1 2 3 4\r\n", PROXY),
    (
        version_2(1, 0x11, bytes([203, 0, 113, 9, 192, 0, 2, 1]) + struct.pack("!HH", 4711, 8000)),
        IPv4Address("TCP", "203.0.113.9", 4711),
    ),
    (version_2(0, 0x00, b""), PROXY),
)

NO_HEADERS = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 a b\r\n",
    b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 " + b"9" * 5000 + b" 1\r\n",
    b"PROXY TCP4 203.0.113.9\r\n",
    b"PROXY " + b"x" * 200,
    b"PROXIES, all of them\r\n",
    version_2(1, 0x11, b"short"),
    version_2(7, 0x11, bytes(12)),
    PREFIX_2[:5] + b"x" * 20,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 20,
)


class ProxyProtocolTests(SynchronousTestCase):
    """L{ProxyProtocolFactory}."""

    def setUp(self) -> None:
        """A connection from the proxy."""
        self.above = Above()
        factory = Factory.forProtocol(lambda: self.above)
        self.transport = StringTransport(peerAddress=PROXY)
        self.protocol = ProxyProtocolFactory(factory).buildProtocol(PROXY)
        assert self.protocol is not None
        self.protocol.makeConnection(self.transport)

    def test_headers(self) -> None:
        """Whole, byte by byte, or with the request behind it: the address is what the header says, the rest goes up."""
        for header, address in HEADERS:
            whole = header + b"GET /"
            for pieces in ([whole], [bytes([byte]) for byte in whole], [header, b"GET /"], [whole[:7], whole[7:]]):
                if header == b"PROXY UNKNOWN\r\n" and pieces[0] != whole and pieces[0] != header:
                    continue  # taken when it comes at once, as it does
                self.setUp()
                for piece in pieces:
                    self.protocol.dataReceived(piece)
                self.assertEqual(b"GET /", self.above.received, pieces)
                assert self.above.transport is not None
                self.assertEqual(address, self.above.transport.getPeer(), pieces)
                self.assertFalse(self.transport.disconnecting)

    def test_no_headers(self) -> None:
        """Anything else ends the connection, without a traceback, and nothing of it goes up."""
        for data in NO_HEADERS:
            for pieces in ([data], [bytes([byte]) for byte in data]):
                self.setUp()
                for piece in pieces:
                    if not self.transport.disconnecting:
                        self.protocol.dataReceived(piece)
                self.assertTrue(self.transport.disconnecting, data)
                self.assertEqual(b"", self.above.received, data)

    def test_faults_above_are_not_hidden(self) -> None:
        """What fails above fails as it would without a header."""
        self.assertRaises(ValueError, self.protocol.dataReceived, HEADERS[0][0] + b"bad")
        self.assertRaises(ValueError, self.protocol.dataReceived, b"bad")
