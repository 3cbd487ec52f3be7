"""
Chunked bodies, cut at any place, and what is none.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import BadRequest
from resticserver.web.http1.chunked import MOST_LINE_BYTES, MOST_TRAILER_BYTES, ChunkedDecoder

#: body, decoded
GOOD = (
    (b"0\r\n\r\n", b""),
    (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b"a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", b"0123456789x"),
    (b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
    (b"3;name=value\r\nabc\r\n0;x\r\n\r\n", b"abc"),
    (b'3 ; a="b c"\r\nabc\r\n0\r\n\r\n', b"abc"),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    (b"1\r\na\r\n0\r\nDigest: x\r\nOther:\r\n\r\n", b"a"),
)

BAD = (
    b"\r\n",
    b"x\r\n",
    b"-1\r\n",
    b"+1\r\n",
    b"0x1\r\n",
    b" 1\r\na\r\n",
    b"1 2\r\n",
    b"1\na\n",
    b"1\ra\r",
    b"3\r\nabcd\r\n",
    b"3\r\nab\r\n0\r\n\r\n",
    b"1\r\na\n0\r\n\r\n",
    b"1000000000000000\r\n",
    b"1;" + b"x" * MOST_LINE_BYTES + b"\r\n",
    b"1" * (MOST_LINE_BYTES + 1),
    b"1;\x00\r\n",
    b"0\r\nnonsense\r\n\r\n",
    b"0\r\nA : b\r\n\r\n",
    b"0\r\n folded\r\n\r\n",
    b"0\r\nA: b\n\r\n",
    b"0\r\n" + b"A: b\r\n" * (MOST_TRAILER_BYTES // 4 + 1) + b"\r\n",
)


def decode(*pieces: bytes) -> tuple[bytes, ChunkedDecoder]:
    """Feed the pieces."""
    decoder = ChunkedDecoder()
    found = b"".join(piece for data in pieces for piece in decoder.feed(data))
    return found, decoder


class ChunkedTests(SynchronousTestCase):
    """L{ChunkedDecoder}."""

    def test_good(self) -> None:
        """In one piece and byte by byte; what comes behind is left."""
        for coded, body in GOOD:
            found, decoder = decode(coded + b"GET /")
            self.assertEqual((body, True, b"GET /"), (found, decoder.ended, decoder.rest), coded)
            found, decoder = decode(*(coded[i : i + 1] for i in range(len(coded))))
            self.assertEqual((body, True, b""), (found, decoder.ended, decoder.rest), coded)
            found, decoder = decode(coded[:-1])
            self.assertFalse(decoder.ended, coded)

    def test_bad(self) -> None:
        """Refused in one piece and byte by byte."""
        for coded in BAD:
            self.assertRaises(BadRequest, decode, coded + b"." * 10)
            with self.assertRaises(BadRequest):
                decode(*(coded[i : i + 1] for i in range(len(coded))), b".\r\n")

    def test_units(self) -> None:
        """
        No more is done than was allowed, whatever the chunks are like; what is left is decoded by the next calls, to the same
        body.
        """
        for coded, body in (
            (b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n", b"x" * 1000),
            (b"2\r\n\r\n\r\n" * 1000 + b"0\r\n\r\n", b"\r\n" * 1000),
            ((b"1;" + b"e" * 4000 + b"\r\nx\r\n") * 100 + b"0\r\n\r\n", b"x" * 100),
            (b"0\r\n" + b"a:\r\n" * 8000 + b"\r\n", b""),
        ):
            decoder = ChunkedDecoder()
            rest, found, calls = coded + b"next", b"", 0
            while not decoder.ended:
                calls += 1
                pieces = decoder.feed(rest, 100)
                self.assertLessEqual(len(pieces), 100)
                self.assertLess(len(rest) - len(decoder.rest), 100 * (MOST_LINE_BYTES // 50))
                rest = decoder.rest
                found += b"".join(pieces)
            self.assertEqual((body, b"next"), (found, rest))
            self.assertGreater(calls, 8)

    def test_no_units(self) -> None:
        """Nothing is done without any."""
        decoder = ChunkedDecoder()
        self.assertEqual([], decoder.feed(b"1\r\nx", 0))
        self.assertEqual((b"1\r\nx", False), (decoder.rest, decoder.ended))
        self.assertEqual([b"x"], decoder.feed(decoder.rest, 2))

    @settings(max_examples=200, deadline=None, database=None)
    @given(
        st.lists(st.binary(min_size=1, max_size=40), max_size=6),
        st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), max_size=40),
    )
    def test_any_cuts_and_units(self, chunks: list[bytes], steps: list[tuple[int, int]]) -> None:
        """The same body however its bytes come, and however little is done with them at a time."""
        coded = b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nA: b\r\n\r\nrest"
        decoder = ChunkedDecoder()
        found, rest, coming = b"", b"", coded
        for size, units in (*steps, (len(coded), 1000)):
            if decoder.ended:
                break
            found += b"".join(decoder.feed(rest + coming[:size], units))
            rest, coming = decoder.rest, coming[size:]
        self.assertEqual((b"".join(chunks), True), (found, decoder.ended))
        self.assertEqual(b"rest", decoder.rest + coming)

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(1, 30), max_size=20))
    def test_any_cuts(self, chunks: list[bytes], cuts: list[int]) -> None:
        """The same body however its bytes come."""
        coded = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\nrest"
        pieces, start = [], 0
        for cut in cuts:
            pieces.append(coded[start : start + cut])
            start += cut
        decoder = ChunkedDecoder()
        found = b""
        for piece in (*pieces, coded[start:]):
            if decoder.ended:
                break
            found += b"".join(decoder.feed(piece))
        self.assertEqual((b"".join(chunks), True), (found, decoder.ended))
        self.assertTrue(b"rest".startswith(decoder.rest))
