"""
L{resticserver.dates}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.dates import format_duration, parse_duration


class DurationTests(SynchronousTestCase):
    """Durations as people write them."""

    def test_parse(self) -> None:
        """Each unit, and none for nothing."""
        for text, seconds in (
            ("90s", 90),
            ("15m", 900),
            ("12h", 43_200),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
            ("0", 0),
        ):
            self.assertEqual(seconds, parse_duration(text))

    def test_refused(self) -> None:
        """What is no duration."""
        for text in ("", "d", "-1d", "1y", "30 d x", "9999999999w", "١d"):
            self.assertRaises(ValueError, parse_duration, text)

    def test_format(self) -> None:
        """The two largest units."""
        for seconds, text in (
            (0, "0 s"),
            (59.4, "59 s"),
            (60, "1 min"),
            (75, "1 min 15 s"),
            (7500, "2 h 5 min"),
            (90_000, "1 d 1 h"),
        ):
            self.assertEqual(text, format_duration(seconds))
