"""
Any bytes in any pieces on the real channel, plain and behind the PROXY protocol: no exception is logged, each request leaves
exactly one record, and the connection ends, at the latest by a time-out. C{HYPOTHESIS_PROFILE=nightly} tries much more.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.net.proxy_protocol import ProxyProtocolFactory
from resticserver.web.http1.request import StreamingRequest
from tests.support.client import object_id
from tests.support.memory import Bench, Connection, MemoryTransport, request
from tests.support.scratch import scratch_directory

by_chance = settings(
    max_examples=20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 200,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

BODY = b"a body"
LARGE = b"x" * 100_000
PATH = f"/data/{object_id(BODY)}"

#: Complete requests, after each of which the connection is open.
REQUESTS = (
    request("GET", PATH),
    request("GET", PATH, Range="bytes=1-3"),
    request("HEAD", PATH),
    request("GET", "/data/"),
    request("GET", "/nowhere"),
    request("DELETE", PATH),
    request("POST", PATH, BODY),
    request("POST", "/?create=true", b""),
    request("POST", f"/data/{object_id(LARGE)}", LARGE),
    request("POST", "/config", b"wrong", X_Header="a" * 100),
    request("POST", PATH, Transfer_Encoding="chunked") + b"6\r\na body\r\n0\r\n\r\n",
    request("POST", PATH, b"", Expect="100-continue"),
    request("OPTIONS", "*"),
    request("BREW", "/pot"),
)
NOISE = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        (
            *(b"\r\n", b"\r\n\r\n", b"\n", b"\x00", b" ", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
            *(
                b"GET / HTTP/1.1\r\n",
                b"GET / HTTP/1.0\r\n\r\n",
                b"Host: x\r\n",
                b"Expect: 100-continue\r\n",
                b"0\r\n\r\n",
            ),
            *(b"Connection: close\r\n", b"fffffffffffffffffff\r\n", b"-1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            *(
                b"Content-Length: 99999999999\r\n",
                b"x" * 20_000,
                b"A: b\r\n" * 500,
                b"\x16\x03\x01\x02\x00\x01",
                b"Range: bytes=-\r\n",
            ),
        )
    ),
)
PROXY_HEADERS = (
    b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 8000\r\n",
    b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 8000\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1, 18, 103, 31, 64]),
    b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
)


@st.composite
def noisy(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some changes."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, min(len(data), 400)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 20]))
        data = data[:start] + draw(NOISE) + data[end:]
    return data


@st.composite
def conversations(draw: st.DrawFn) -> tuple[int, list[bytes]]:
    """Complete requests, then some that are not; how many complete ones, and all bytes in pieces."""
    good = draw(st.lists(st.sampled_from(REQUESTS), max_size=4))
    bad = draw(st.one_of(st.just(b""), NOISE, st.sampled_from(REQUESTS).flatmap(noisy)))
    return len(good), draw(pieces_of(b"".join(good) + bad))


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Bytes as they may arrive."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    ends = [*places, len(data)]
    return [data[start:end] for start, end in zip([0, *places], ends, strict=True) if start < end]


class ProxiedConnection(Connection):
    """A connection that begins with a PROXY header."""

    def __init__(self, site: Any) -> None:
        peer = IPv4Address("TCP", "127.0.0.1", 9999)
        self.above: Any = ProxyProtocolFactory(site).buildProtocol(peer)
        self.transport = MemoryTransport()
        self.transport.protocol = self.above
        self.above.makeConnection(self.transport)

    def send(self, *pieces: bytes) -> None:
        """Let bytes arrive."""
        for piece in pieces:
            self.above.dataReceived(piece)

    def lose(self) -> None:
        """The client goes away."""
        self.above.connectionLost(Failure(ConnectionDone()))


class FuzzTests(SynchronousTestCase):
    """The channel over a store."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)

    def converse(self, kind: type[Connection], pieces: list[bytes], good: int, leaves: bool) -> None:
        """Send the pieces; then the client goes, or waits until the server has had enough."""
        path = self.scratch / "data"
        bench = Bench(str(path))
        bench.store.create_repository(())
        begun: list[StreamingRequest] = []

        def make(*arguments: Any) -> StreamingRequest:
            begun.append(StreamingRequest(*arguments))
            return begun[-1]

        bench.site.request_factory = make  # type: ignore[assignment]
        with capturedLogs() as events:
            connection = kind(bench.site)
            for piece in pieces:
                if connection.transport.disconnecting or connection.transport.aborted:
                    break
                connection.send(piece)
                bench.clock.advance(0)
            if not leaves:
                for _ in range(100):
                    bench.clock.advance(30)
                self.assertTrue(connection.closed, "the connection waits for ever")
            if not connection.transport.aborted:
                connection.lose()
            bench.clock.advance(1000)
        self.assertEqual(len(begun), len(bench.records))
        self.assertGreaterEqual(len(begun), good)
        answers = [status for status in connection.statuses() if status != 100]
        self.assertLessEqual(len(answers), len(bench.records))
        wrong = [event for event in events if event["log_level"] >= LogLevel.error or "log_failure" in event]
        self.assertEqual([], [formatEvent(event) for event in wrong])
        self.assertEqual(set(), bench.site.channels)
        shutil.rmtree(path)

    @by_chance
    @given(conversations(), st.booleans())
    def test_plain(self, conversation: tuple[int, list[bytes]], leaves: bool) -> None:
        """On a plain connection."""
        good, pieces = conversation
        self.converse(Connection, pieces, good, leaves)

    @by_chance
    @given(st.data(), conversations(), st.booleans())
    def test_proxied(self, data: st.DataObject, conversation: tuple[int, list[bytes]], leaves: bool) -> None:
        """Behind a PROXY header, which may be broken too, and come in pieces."""
        good, pieces = conversation
        header = data.draw(st.sampled_from(PROXY_HEADERS))
        if data.draw(st.integers(0, 3)) == 0:
            header, good = data.draw(noisy(header)), 0
            pieces = data.draw(pieces_of(header + b"".join(pieces)))
        elif header != b"PROXY UNKNOWN\r\n" and data.draw(st.booleans()):
            pieces = data.draw(pieces_of(header + b"".join(pieces)))
        else:
            pieces = [header, *pieces]
        self.converse(ProxiedConnection, pieces, good, leaves)
