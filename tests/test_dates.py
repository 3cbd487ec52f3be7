"""
Durations as people write them, and times as the server writes them.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.dates import date_text, format_duration, http_seconds, http_text, minute_text, parse_duration

DURATIONS = (
    ("60", 60.0),
    ("60s", 60.0),
    ("0.5s", 0.5),
    ("5m", 300.0),
    ("1.5h", 5400.0),
    ("30d", 2_592_000.0),
    ("2w", 1_209_600.0),
    (" 7 d ", 604_800.0),
    ("0", 0.0),
)
WRONG = ("", "s", "-1", "1y", "1 minute", "5M", "1e3", "nan", "1h30m", "٣", "9" * 5000)


class DurationTests(SynchronousTestCase):
    """L{parse_duration}."""

    def test_good(self) -> None:
        """Units and fractions; a plain number is seconds."""
        for text, seconds in DURATIONS:
            self.assertEqual(seconds, parse_duration(text), text)

    def test_bad(self) -> None:
        """What is none is refused."""
        for text in WRONG:
            self.assertRaises(ValueError, parse_duration, text)


class DateTests(SynchronousTestCase):
    """L{date_text}."""

    def test_dates(self) -> None:
        """In UTC; also what no calendar has."""
        self.assertEqual("1970-01-01T00:00:07Z", date_text(7))
        self.assertEqual("at a time that no calendar has", date_text(1e300))


class MinuteTests(SynchronousTestCase):
    """L{minute_text}."""

    def test_minutes(self) -> None:
        """Rounded down, in UTC; what no calendar has is said as it is elsewhere."""
        for seconds, text in (
            (1_800_000_000.0, "2027-01-15 08:00 UTC"),
            (1_800_000_059.9, "2027-01-15 08:00 UTC"),
            (-1, "1969-12-31 23:59 UTC"),
            (1e14, date_text(1e14)),
        ):
            self.assertEqual(text, minute_text(seconds))


class FormatTests(SynchronousTestCase):
    """Durations for people."""

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


class HttpTests(SynchronousTestCase):
    """L{http_seconds} and L{http_text}."""

    def test_both_ways(self) -> None:
        """As RFC 9110 has it."""
        text = "Fri, 27 Nov 2026 18:41:30 GMT"
        self.assertEqual(1795804890.0, http_seconds(text))
        self.assertEqual(text, http_text(1795804890.0))

    def test_bad(self) -> None:
        """What is none is refused."""
        for text in ("", "yesterday", "2026-11-27T18:41:30Z", "Fri, 27 Nov 2026 18:41:30"):
            self.assertRaises(ValueError, http_seconds, text)
