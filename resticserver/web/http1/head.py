"""
Parses the head of a request, strictly; no I/O.

The request line is parsed here, the field lines by llhttp (through C{httptools}). llhttp refuses folded lines, a bare LF,
control characters, white space before a colon, C{Content-Length} beside C{Transfer-Encoding} and either of them twice. It
gets only the field lines, of one request at a time: it would take the next request for a part of this one's body.

Source: RFC 9112 sections 2 to 6.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from ...errors import BadRequest

#: No client that is not hostile sends more field lines.
MOST_FIELDS = 500

# Eighteen digits are enough for any body, and fit every integer type in use.
_MOST_LENGTH_DIGITS = 18

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~\x80-\xff]+) (HTTP/1\.[01])\Z")
_TOKEN_SEPARATOR = re.compile(rb"[ \t]*,[ \t]*")


class RequestLine(NamedTuple):
    """C{method}, C{uri} as it was sent, C{version}: C{HTTP/1.0} or C{HTTP/1.1}."""

    method: bytes
    uri: bytes
    version: bytes


def parse_request_line(line: bytes) -> RequestLine:
    """
    The first line of a request, without its end.

    @raise BadRequest: it is no request line, or of another version.
    """
    match = _REQUEST_LINE.match(line)
    if match is None:
        raise BadRequest()
    return RequestLine._make(match.groups())


class HeaderFields:
    """
    The header fields of a request, and what they say about its framing.

    @param lines: the field lines, each with its CRLF, and the empty line.
    @ivar values: the values of each name (in lower case), in their order.
    @ivar length: how long the body is; C{None} if it comes in chunks.
    @ivar closes: whether the client wants the connection closed after the answer.
    @ivar expects_continue: whether it waits for C{100 Continue}.
    @ivar fits_1_1: whether there is exactly one C{Host}, as HTTP/1.1 needs.
    @ivar referer: the last C{Referer}, for the log; C{user_agent} likewise.
    @raise BadRequest: they cannot be parsed, or could be read in two ways.
    """

    __slots__ = ("closes", "expects_continue", "fits_1_1", "length", "referer", "user_agent", "values")

    def __init__(self, lines: bytes) -> None:
        self.values: dict[bytes, list[bytes]] = {}
        if lines.count(b"\n") > MOST_FIELDS + 1:
            # Before they are parsed: eight thousand of them fit into a head.
            raise BadRequest()
        collector = _Collector()
        try:
            # Any request line would do. With this method llhttp does nothing special (as it does for CONNECT).
            HttpRequestParser(collector).feed_data(b"PUT / HTTP/1.1\r\n" + lines)
        except HttpParserUpgrade:
            pass  # an offer, which a server may ignore (RFC 9110 section 7.8)
        except HttpParserError as error:
            raise BadRequest() from error
        if not collector.complete:
            raise BadRequest()
        for name, value in collector.fields:
            self.values.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
        self.length = self._body_length()
        self.closes = any(
            b"close" in _TOKEN_SEPARATOR.split(value.lower()) for value in self.values.get(b"connection", ())
        )
        self.fits_1_1 = len(self.all(b"host")) == 1
        self.referer = self.last(b"referer")
        self.user_agent = self.last(b"user-agent")
        self.expects_continue = self.length != 0 and (self.last(b"expect") or b"").lower() == b"100-continue"

    @classmethod
    def none(cls) -> HeaderFields:
        """For a request without fields, or with fields that cannot be parsed."""
        return cls(b"\r\n")

    def last(self, name: bytes) -> bytes | None:
        """The last value of a field, by its name in lower case."""
        values = self.values.get(name)
        return values[-1] if values else None

    def all(self, name: bytes) -> list[bytes]:
        """All values of a field, by its name in lower case."""
        return self.values.get(name, [])

    def _body_length(self) -> int | None:
        codings = self.all(b"transfer-encoding")
        lengths = self.all(b"content-length")
        if codings:
            if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
                raise BadRequest("unsupported Transfer-Encoding")
            return None
        if not lengths:
            return 0
        length = lengths[0]
        if len(lengths) > 1 or not length.isdigit() or len(length) > _MOST_LENGTH_DIGITS:
            raise BadRequest("Content-Length out of bounds")
        return int(length)

    def check(self, version: bytes) -> None:
        """
        Check that they are valid in a version (RFC 9112 sections 3.2 and 6.1).

        @raise BadRequest: the host, or the end of the body, is ambiguous.
        """
        if version == b"HTTP/1.1":
            if not self.fits_1_1:
                raise BadRequest("exactly one Host header is required")
        elif self.length is None:  # HTTP/1.0
            raise BadRequest("unsupported Transfer-Encoding")


class _Collector:
    """Collects what llhttp finds."""

    __slots__ = ("complete", "fields")

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field."""
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The empty line."""
        self.complete = True
