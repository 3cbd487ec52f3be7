"""
The C{Range} header: what is sent of an object.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import RangeNotSatisfiable
from resticserver.web.http1.ranges import Part, choose_part

by_chance = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))

WHOLE = "whole"
PAST = "past the end"

#: header, size of the object -> (start, length), WHOLE or PAST
RANGES: tuple[tuple[bytes | None, int, tuple[int, int] | str], ...] = (
    (None, 10, WHOLE),
    (None, 0, WHOLE),
    # what restic sends
    (b"bytes=0-", 10, (0, 10)),
    (b"bytes=3-", 10, (3, 7)),
    (b"bytes=9-", 10, (9, 1)),
    (b"bytes=0-0", 10, (0, 1)),
    (b"bytes=0-9", 10, (0, 10)),
    (b"bytes=2-5", 10, (2, 4)),
    (b"bytes=9-9", 10, (9, 1)),
    # the end is cut to the object's
    (b"bytes=0-10", 10, (0, 10)),
    (b"bytes=5-1000", 10, (5, 5)),
    (b"bytes=0-999999999999999999", 10, (0, 10)),
    # the last n bytes
    (b"bytes=-1", 10, (9, 1)),
    (b"bytes=-10", 10, (0, 10)),
    (b"bytes=-11", 10, (0, 10)),
    (b"bytes=-0", 10, PAST),
    # a start at or past the end
    (b"bytes=10-", 10, PAST),
    (b"bytes=10-10", 10, PAST),
    (b"bytes=11-20", 10, PAST),
    (b"bytes=999999999999999999-", 10, PAST),
    # an empty object is always sent whole
    (b"bytes=0-", 0, WHOLE),
    (b"bytes=0-5", 0, WHOLE),
    (b"bytes=-5", 0, WHOLE),
    (b"bytes=-0", 0, WHOLE),
    (b"bytes=7-", 0, WHOLE),
    # spelling
    (b"Bytes=2-5", 10, (2, 4)),
    (b" bytes=2-5 ", 10, (2, 4)),
    (b"bytes=002-005", 10, (2, 4)),
    # several, or nothing that can be parsed: the whole object
    (b"bytes=0-1,3-4", 10, WHOLE),
    (b"bytes=0-1,", 10, WHOLE),
    (b"bytes=5-2", 10, WHOLE),
    (b"bytes=20-15", 10, WHOLE),
    (b"bytes=-", 10, WHOLE),
    (b"bytes=", 10, WHOLE),
    (b"bytes", 10, WHOLE),
    (b"", 10, WHOLE),
    (b"0-5", 10, WHOLE),
    (b"lines=0-5", 10, WHOLE),
    (b"bytes=a-b", 10, WHOLE),
    (b"bytes=0x1-5", 10, WHOLE),
    (b"bytes=+1-5", 10, WHOLE),
    (b"bytes=--5", 10, WHOLE),
    (b"bytes=1-2-3", 10, WHOLE),
    (b"bytes=1-5\n", 10, (1, 5)),
    (b"bytes=1-\x00", 10, WHOLE),
    (b"bytes=1.5-", 10, WHOLE),
    (b"bytes=1 - 5", 10, WHOLE),
    ("bytes=\N{FULLWIDTH DIGIT ONE}-".encode(), 10, WHOLE),
    # any number of digits: the largest that programs send (2**63 - 1, 2**64 - 1), more than any integer type has, and more
    # than Python's int() takes (4,300)
    (b"bytes=5-9223372036854775807", 10, (5, 5)),
    (b"bytes=5-9223372036854775808", 10, (5, 5)),
    (b"bytes=5-18446744073709551615", 10, (5, 5)),
    (b"bytes=0-99999999999999999999999999999999", 10, (0, 10)),
    (b"bytes=1-" + b"9" * 30_000, 10, (1, 9)),
    (b"bytes=9223372036854775807-", 10, PAST),
    (b"bytes=99999999999999999999-", 10, PAST),
    (b"bytes=" + b"9" * 30_000 + b"-", 10, PAST),
    (b"bytes=9223372036854775807-9223372036854775807", 10, PAST),
    (b"bytes=99999999999999999999-100000000000000000000", 10, PAST),
    # an end before its start is no range, however long both are
    (b"bytes=100000000000000000000-99999999999999999999", 10, WHOLE),
    (b"bytes=99999999999999999999-99999999999999999998", 10, WHOLE),
    (b"bytes=99999999999999999999-5", 10, WHOLE),
    (b"bytes=-9223372036854775808", 10, (0, 10)),
    (b"bytes=-99999999999999999999", 10, (0, 10)),
    (b"bytes=-" + b"9" * 30_000, 10, (0, 10)),
    # zeros before a number
    (b"bytes=" + b"0" * 15_000 + b"2-" + b"0" * 15_000 + b"5", 10, (2, 4)),
    (b"bytes=-" + b"0" * 30_000 + b"3", 10, (7, 3)),
    (b"bytes=-" + b"0" * 30_000, 10, PAST),
    (b"bytes=" + b"0" * 30_000 + b"-", 10, (0, 10)),
    # of an empty object
    (b"bytes=0-99999999999999999999999999999999", 0, WHOLE),
    (b"bytes=99999999999999999999-", 0, WHOLE),
)


class RangeTests(SynchronousTestCase):
    """L{choose_part}."""

    def test_table(self) -> None:
        """Each header of the table asks for what stands beside it."""
        for header, size, wanted in RANGES:
            if wanted == PAST:
                error = self.assertRaises(RangeNotSatisfiable, choose_part, header, size)
                self.assertEqual(size, error.size_bytes)
            else:
                part = Part(0, size, True) if isinstance(wanted, str) else Part(wanted[0], wanted[1], False)
                self.assertEqual(part, choose_part(header, size), header)

    @by_chance
    @given(
        header=st.binary(max_size=12) | st.from_regex(rb"\Abytes=[0-9]{0,3}-[0-9]{0,3}(,[0-9]{0,2}-)?\Z"),
        size=st.integers(0, 200),
    )
    def test_never_past_the_end(self, header: bytes, size: int) -> None:
        """Whatever the header, a part lies inside the object; one that is not the whole has at least a byte."""
        try:
            part = choose_part(header, size)
        except RangeNotSatisfiable:
            self.assertGreater(size, 0)
            return
        self.assertGreaterEqual(part.start, 0)
        self.assertLessEqual(part.start + part.length, size)
        if part.whole:
            self.assertEqual((0, size), (part.start, part.length))
        else:
            self.assertGreater(part.length, 0)

    @by_chance
    @given(start=st.integers(0, 60), end=st.none() | st.integers(0, 60), size=st.integers(1, 50))
    def test_as_a_slice(self, start: int, end: int | None, size: int) -> None:
        """C{a-b} is C{content[a:b+1]}, and C{-n} is C{content[-n:]}."""
        content = bytes(range(size))
        if end is None or start <= end:
            header = b"bytes=%d-%s" % (start, b"" if end is None else b"%d" % end)
            wanted = content[start : None if end is None else end + 1]
        else:
            header = b"bytes=-%d" % end
            wanted = content[-end:] if end else b""
        try:
            part = choose_part(header, size)
            self.assertEqual(wanted, content[part.start : part.start + part.length])
        except RangeNotSatisfiable:
            self.assertEqual(b"", wanted)
