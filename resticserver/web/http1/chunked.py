"""
Decodes the chunked transfer coding; no I/O. (restic before 0.9 sends its bodies so.)

Source: RFC 9112 section 7.1. Extensions and trailer fields are skipped, within bounds.
"""

from __future__ import annotations

import re
import sys

from ...errors import BadRequest
from .turns import BYTES_PER_UNIT

#: The longest line: a size with its extensions, or a trailer field.
MOST_LINE_BYTES = 4096
#: All trailer fields together.
MOST_TRAILER_BYTES = 32 * 1024

# Fifteen hex digits are more than any chunk has.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?\Z")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\Z")


class ChunkedDecoder:
    """
    One body.

    @ivar ended: whether its end has come.
    @ivar rest: what was not decoded: what came after the end, or what was left when the units were used up.
    @ivar units: how many of the units given to L{feed} are left.
    """

    def __init__(self) -> None:
        self.ended = False
        self.rest = b""
        self.units = 0
        self._line = b""
        self._left_bytes = 0
        self._expects_line_end = False
        self._in_trailer = False
        self._trailer_bytes = 0

    def feed(self, data: bytes, units: int = sys.maxsize) -> list[bytes]:
        """
        Decode the next bytes of the connection, as far as the units reach.

        @param units: how much work this may be: a chunk or a line costs one, a long line more
            (L{resticserver.web.http1.turns}). Less than one does nothing.
        @return: the pieces of the body in the decoded bytes. The other bytes are in C{rest}; give them again.
        @raise BadRequest: this is no chunk.
        """
        pieces: list[bytes] = []
        data = self._line + data if self._line else data
        start = 0
        while units > 0 and not self.ended:
            if self._left_bytes:
                piece = data[start : start + self._left_bytes]
                if not piece:
                    break
                pieces.append(piece)
                start += len(piece)
                self._left_bytes -= len(piece)
                if self._left_bytes:
                    break
                if data.startswith(b"\r\n", start):
                    start += 2
                else:
                    self._expects_line_end = True
            end = data.find(b"\r\n", start)
            if end < 0 or end - start > MOST_LINE_BYTES:
                if len(data) - start > MOST_LINE_BYTES or b"\n" in data[start:] or b"\r" in data[start:-1]:
                    raise BadRequest("bad chunk")
                break
            self._take_line(data[start:end])
            units -= 1 + (end - start) // BYTES_PER_UNIT
            start = end + 2
        self.units = units
        if self.ended or units <= 0:
            self._line, self.rest = b"", data[start:]
        else:
            self._line, self.rest = data[start:], b""
        return pieces

    def _take_line(self, line: bytes) -> None:
        if self._expects_line_end:
            if line:
                raise BadRequest("bad chunk")
            self._expects_line_end = False
        elif self._in_trailer:
            self._trailer_bytes += len(line)
            if not line:
                self.ended = True
            elif self._trailer_bytes > MOST_TRAILER_BYTES or not _TRAILER.match(line):
                raise BadRequest("bad trailer")
        else:
            size = _SIZE.match(line)
            if size is None:
                raise BadRequest("bad chunk")
            self._left_bytes = int(size[1], 16)
            self._in_trailer = not self._left_bytes
