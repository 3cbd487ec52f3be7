"""
Sizes as people write them.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.sizes import parse_size

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
