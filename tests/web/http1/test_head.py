"""
The head of a request: what is understood, what it says of the body, and what is refused because it could mean two things.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import BadRequest
from resticserver.web.http1.head import MOST_FIELDS, HeaderFields, parse_request_line

#: request line -> its parts, or C{None} where it is refused
LINES: tuple[tuple[bytes, tuple[bytes, bytes, bytes] | None], ...] = (
    (b"GET / HTTP/1.1", (b"GET", b"/", b"HTTP/1.1")),
    (b"HEAD /a/data/x?y=%20 HTTP/1.0", (b"HEAD", b"/a/data/x?y=%20", b"HTTP/1.0")),
    (b"BREW /pot HTTP/1.1", (b"BREW", b"/pot", b"HTTP/1.1")),
    (b"get / HTTP/1.1", (b"get", b"/", b"HTTP/1.1")),
    (b"OPTIONS * HTTP/1.1", (b"OPTIONS", b"*", b"HTTP/1.1")),
    (b"GET http://x/ HTTP/1.1", (b"GET", b"http://x/", b"HTTP/1.1")),
    (b"GET /\xc3\xa9 HTTP/1.1", (b"GET", b"/\xc3\xa9", b"HTTP/1.1")),
    (b"", None),
    (b"GET", None),
    (b"GET /", None),
    (b"GET  / HTTP/1.1", None),
    (b" GET / HTTP/1.1", None),
    (b"GET / HTTP/1.1 ", None),
    (b"GET /a b HTTP/1.1", None),
    (b"GET\t/ HTTP/1.1", None),
    (b"GET / HTTP/1.2", None),
    (b"GET / HTTP/2.0", None),
    (b"GET / HTTP/0.9", None),
    (b"GET / http/1.1", None),
    (b"GET / HTTP/1.1\n", None),
    (b"GET /\x00 HTTP/1.1", None),
    (b"GET /\x7f HTTP/1.1", None),
    (b"GE(T / HTTP/1.1", None),
    (b"G\xc3\x89T / HTTP/1.1", None),
    (b"PRI * HTTP/2.0", None),
)

#: field lines -> length of the body (C{None}: in chunks), whether the connection is to be closed
FIELDS: tuple[tuple[bytes, int | None, bool], ...] = (
    (b"", 0, False),
    (b"Content-Length: 7\r\n", 7, False),
    (b"content-length:7 \t\r\n", 7, False),
    (b"Content-Length: 0\r\n", 0, False),
    (b"Content-Length: 000000000000000007\r\n", 7, False),
    (b"Transfer-Encoding: chunked\r\n", None, False),
    (b"TRANSFER-ENCODING: CHUNKED\r\n", None, False),
    (b"Connection: close\r\n", 0, True),
    (b"Connection: te, Close\r\n", 0, True),
    (b"Connection: keep-alive\r\nConnection: close\r\n", 0, True),
    (b"Connection: closed\r\n", 0, False),
    (b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", 3, False),
    (b"Empty:\r\nOdd: \xe9 \"'(),\t;\r\n", 0, False),
)

REFUSED = (
    b"Content-Length: 3\r\nContent-Length: 3\r\n",
    b"Content-Length: 3\r\nContent-Length: 4\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: -3\r\n",
    b"Content-Length: 0x3\r\n",
    b"Content-Length: 3 4\r\n",
    b"Content-Length:\r\n",
    b"Content-Length: 9999999999999999999\r\n",
    b"Content-Length: " + b"9" * 5000 + b"\r\n",
    b"Content-Length : 3\r\n",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"A: b\r\n c\r\n",
    b" A: b\r\n",
    b"A: b\nB: c\r\n",
    b"A: b\rB: c\r\n",
    b"A: \x00\r\n",
    b"A: \x01\r\n",
    b"A: \x7f\r\n",
    b"nonsense\r\n",
    b": b\r\n",
    b"A b: c\r\n",
    b"\xc3\x89: c\r\n",
    b"A: b\r\n" * (MOST_FIELDS + 1),
)


class RequestLineTests(SynchronousTestCase):
    """L{parse_request_line}."""

    def test_table(self) -> None:
        """Each line means what the table says, or nothing."""
        for line, parts in LINES:
            if parts is None:
                self.assertRaises(BadRequest, parse_request_line, line)
            else:
                self.assertEqual(parts, tuple(parse_request_line(line)), line)


class FieldsTests(SynchronousTestCase):
    """L{HeaderFields}."""

    def test_framing(self) -> None:
        """What they say of the body and of the connection."""
        for lines, length, closes in FIELDS:
            fields = HeaderFields(lines + b"\r\n")
            self.assertEqual((length, closes), (fields.length, fields.closes), lines)

    def test_refused(self) -> None:
        """Whatever has no end for sure, or could be read in two ways."""
        for lines in REFUSED:
            self.assertRaises(BadRequest, HeaderFields, lines + b"\r\n")

    def test_no_empty_line(self) -> None:
        """A head without its end is none."""
        self.assertRaises(BadRequest, HeaderFields, b"A: b\r\n")

    def test_values(self) -> None:
        """Values in their order, without the white space around them, whatever the case of the name."""
        fields = HeaderFields(b"A: 1\r\nB:\t 2 \t\r\na: 3\r\nC:\r\n\r\n")
        self.assertEqual([b"1", b"3"], fields.all(b"a"))
        self.assertEqual(b"3", fields.last(b"a"))
        self.assertEqual(b"2", fields.last(b"b"))
        self.assertEqual(b"", fields.last(b"c"))
        self.assertIsNone(fields.last(b"d"))
        self.assertEqual([], fields.all(b"d"))

    def test_continue(self) -> None:
        """Only where there is a body to wait with."""
        for lines, expects in (
            (b"Expect: 100-Continue\r\nContent-Length: 3\r\n", True),
            (b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", True),
            (b"Expect: 100-continue\r\n", False),
            (b"Expect: more\r\nContent-Length: 3\r\n", False),
        ):
            self.assertEqual(expects, HeaderFields(lines + b"\r\n").expects_continue, lines)

    def test_host(self) -> None:
        """Exactly one where the version has it; its value is never looked at."""
        for lines, ok in ((b"", False), (b"Host:\r\n", True), (b"Host: a\r\nHost: a\r\n", False)):
            fields = HeaderFields(lines + b"\r\n")
            fields.check(b"HTTP/1.0")
            if ok:
                fields.check(b"HTTP/1.1")
            else:
                self.assertRaises(BadRequest, fields.check, b"HTTP/1.1")

    def test_chunked_is_not_of_1_0(self) -> None:
        """A coding that the version does not have (RFC 9112 section 6.1)."""
        fields = HeaderFields(b"Transfer-Encoding: chunked\r\nHost: x\r\n\r\n")
        fields.check(b"HTTP/1.1")
        self.assertRaises(BadRequest, fields.check, b"HTTP/1.0")

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.binary(max_size=60))
    def test_any_bytes(self, noise: bytes) -> None:
        """Whatever comes is understood or refused, never a fault; and what is understood has one framing."""
        for lines in (noise + b"\r\n\r\n", b"Content-Length: 5\r\n" + noise + b"\r\n\r\n"):
            lines = lines[: lines.find(b"\r\n\r\n") + 4]
            try:
                fields = HeaderFields(lines)
            except BadRequest:
                continue
            if lines.startswith(b"Content-Length: 5\r\n"):
                self.assertEqual(5, fields.length)
