"""
Sizes as people write them.
"""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.sizes import UNLIMITED, Amount, FreeSpace, Limit, format_size, parse_free_space, parse_size

SIZES = {
    "0": 0,
    "1": 1,
    "1234567890": 1234567890,
    "1B": 1,
    "1K": 1024,
    "1k": 1024,
    "1KiB": 1024,
    "1KB": 1000,
    "500GiB": 500 << 30,
    "500 GiB": 500 << 30,
    "500gb": 500 * 10**9,
    "2T": 2 << 40,
    "1.5M": 3 << 19,
    "1.5MB": 1_500_000,
    " 7M ": 7 << 20,
}
WRONG = ("", "-1", "+1", "1.5", "K", "1 2", "5X", "1e3", "١", "0x10", "1KK", "1.K", ".5K", "9" * 30, "1\n2")


class SizeTests(SynchronousTestCase):
    """L{parse_size}."""

    def test_sizes(self) -> None:
        """Each is so many bytes."""
        for text, size_bytes in SIZES.items():
            self.assertEqual(size_bytes, parse_size(text), text)

    def test_wrong(self) -> None:
        """None of these is a size."""
        for text in WRONG:
            with self.assertRaises(ValueError, msg=text):
                parse_size(text)


FORMATTED = {
    0: "0 bytes",
    1: "1 byte",
    2: "2 bytes",
    1023: "1023 bytes",
    1024: "1 KiB",
    1025: "1 KiB",
    1536: "1.50 KiB",
    10 << 30: "10 GiB",
    998 * (1 << 30) // 100 + 1: "9.98 GiB",
    (10 << 30) - 1: "9.99 GiB",
    (1 << 30) - 1: "1023 MiB",
    100 << 20: "100 MiB",
    (100 << 20) + (1 << 19): "100.5 MiB",
    (100 << 20) + (1 << 10): "100 MiB",
    999 << 40: "999 TiB",
    5 << 50: "5 PiB",
    5000 << 50: "5000 PiB",
}


class FormatTests(SynchronousTestCase):
    """L{format_size}."""

    def test_table(self) -> None:
        """Each reads like this."""
        for size_bytes, text in FORMATTED.items():
            self.assertEqual(text, format_size(size_bytes))

    @settings(deadline=None, database=None)
    @given(st.integers(1024, 1 << 62))
    @example(1075)
    def test_never_more(self, size_bytes: int) -> None:
        """What is said is a size, never more than there is, and less by one per cent at most."""
        said = parse_size(format_size(size_bytes))
        self.assertLessEqual(said, size_bytes)
        # parse_size takes whole bytes: of the 1064.96 that "1.04 KiB" are, which is said of 1075, it leaves 1064.
        self.assertGreater(said + 1, size_bytes * 0.99)

    @settings(deadline=None, database=None)
    @given(st.integers(0, 1 << 55), st.integers(0, 1 << 40))
    def test_in_order(self, size_bytes: int, more: int) -> None:
        """More is never said to be less."""

        def said(number: int) -> int:
            text = format_size(number)
            return number if "byte" in text else parse_size(text)

        self.assertLessEqual(said(size_bytes), said(size_bytes + more))


FREE = {
    "0": FreeSpace(0),
    "5GiB": FreeSpace(5 << 30),
    "100": FreeSpace(100),
    "5%": FreeSpace(percent=5.0),
    " 5 % ": FreeSpace(percent=5.0),
    "0%": FreeSpace(percent=0.0),
    "0.5%": FreeSpace(percent=0.5),
    "99.9%": FreeSpace(percent=99.9),
}
NOT_FREE = ("", "%", "-1", "-1%", "100%", "101%", "1e1%", "5%%", "%5", "5 GiB%", "x%", "nan%", "1.%", ".5%", "\u0661%")


class FreeSpaceTests(SynchronousTestCase):
    """L{parse_free_space} and L{FreeSpace}."""

    def test_table(self) -> None:
        """What is taken."""
        for text, free in FREE.items():
            self.assertEqual(free, parse_free_space(text), text)

    def test_wrong(self) -> None:
        """And what is not."""
        for text in NOT_FREE:
            with self.assertRaises(ValueError, msg=text):
                parse_free_space(text)

    def test_of(self) -> None:
        """So many bytes of a file system."""
        for free, total, needed in (
            (FreeSpace(5), 100, 5),
            (FreeSpace(500), 100, 500),
            (FreeSpace(percent=5), 1000, 50),
            (FreeSpace(percent=0.5), 1000, 5),
            (FreeSpace(10, 5), 1000, 50),
            (FreeSpace(60, 5), 1000, 60),
            (FreeSpace(), 1000, 0),
            (FreeSpace(percent=50), 0, 0),
        ):
            self.assertEqual(needed, free.of(total))

    def test_words(self) -> None:
        """As it was said."""
        self.assertEqual(("5 GiB", "5%", "0.5%"), tuple(str(parse_free_space(t)) for t in ("5GiB", "5.0%", "0.5%")))


class LimitTests(SynchronousTestCase):
    """L{Limit} and L{Amount}."""

    def test_nothing_said(self) -> None:
        """A limit of nothing is a limit; none at all is none."""
        self.assertEqual(UNLIMITED, Limit())
        self.assertNotEqual(UNLIMITED, Limit(0))
        self.assertNotEqual(UNLIMITED, Limit(objects=0))

    def test_amounts(self) -> None:
        """Bytes come first."""
        self.assertEqual((0, 0), Amount())
        self.assertEqual((5, 1), Amount(size_bytes=5, objects=1))
