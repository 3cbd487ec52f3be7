"""
The chunked transfer coding, decoded: a pure rule. (restic before 0.9 sends its bodies so.)

Source: RFC 9112 section 7.1. Extensions and trailer fields are read over, within bounds.
"""

from __future__ import annotations

import re

from ..errors import BadRequest

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

    @ivar ended: whether its end has come; C{rest} holds what came behind it.
    """

    def __init__(self) -> None:
        self.ended = False
        self.rest = b""
        self._line = b""
        self._left_bytes = 0
        self._expects_line_end = False
        self._in_trailer = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """
        Take the next bytes of the connection.

        @return: the pieces of the body in them.
        @raise BadRequest: this is no chunk.
        """
        pieces: list[bytes] = []
        data = self._line + data
        start = 0
        while not self.ended:
            if self._left_bytes:
                piece = data[start : start + self._left_bytes]
                if not piece:
                    break
                pieces.append(piece)
                start += len(piece)
                self._left_bytes -= len(piece)
                self._expects_line_end = not self._left_bytes
                continue
            end = data.find(b"\r\n", start)
            if end < 0 or end - start > MOST_LINE_BYTES:
                if len(data) - start > MOST_LINE_BYTES or b"\n" in data[start:] or b"\r" in data[start:-1]:
                    raise BadRequest("bad chunk")
                break
            self._take_line(data[start:end])
            start = end + 2
        if self.ended:
            self._line, self.rest = b"", data[start:]
        else:
            self._line = data[start:]
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
