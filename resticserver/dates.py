"""
Durations as people write them: seconds, or a number with the unit C{s}, C{m}, C{h}, C{d} or C{w}.

Timestamps in the only format the server uses: ISO 8601 in UTC, such as C{2026-11-24T23:10:05Z}. The access log is the
exception and uses Apache's format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?) ?(?P<unit>[smhdw]?)\Z", re.ASCII)


def parse_duration(text: str) -> float:
    """
    Parse a duration into seconds.

    @raise ValueError: the text is not a duration.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration, such as 60s, 5m, 12h or 30d")
    return float(match["number"]) * _UNITS_S[match["unit"]]


def parse_time(text: str) -> float:
    """
    Parse a timestamp, or a day, into seconds since 1970. Without a time zone it is in UTC.

    @raise ValueError: the text is neither.
    """
    at = datetime.fromisoformat(text.strip())
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def zoned_seconds(texts: Iterable[str]) -> list[float]:
    """
    Parse timestamps that name their time zone into seconds since 1970.

    @raise ValueError: one of them is no timestamp, or names no time zone.
    """
    found = [datetime.fromisoformat(text) for text in texts]
    if any(at.tzinfo is None for at in found):
        raise ValueError("no time zone")
    return [at.timestamp() for at in found]


@lru_cache(maxsize=1024)
def http_seconds(text: str) -> float:
    """
    Parse a timestamp of HTTP, such as C{Fri, 27 Nov 2026 18:41:30 GMT}, into seconds since 1970 (RFC 9110 section 5.6.7).

    @raise ValueError: the text is none.
    """
    # Not strptime: the names of days and months must not depend on the locale.
    at = parsedate_to_datetime(text)
    if at.tzinfo is None:
        raise ValueError("no time zone")
    return at.timestamp()


def http_text(seconds: float) -> str:
    """A point in time as HTTP has it; the inverse of L{http_seconds}."""
    return formatdate(seconds, usegmt=True)


def day_text(seconds: float) -> str:
    """The day of a point in time, in UTC, such as C{2026-11-24}; the inverse of L{parse_time}."""
    return date_text(seconds)[:10]


def minute_text(seconds: float) -> str:
    """A point in time to the minute, in UTC, such as C{2026-11-24 23:10 UTC}, for people."""
    text = date_text(seconds)
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("Z") else text


def format_duration(seconds: float) -> str:
    """Format a duration for people by its two largest units, such as C{2 h 5 min}."""
    left = max(0, round(seconds))
    found: list[str] = []
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, unit_s)
        if number or found or unit == "s":
            found.append(f"{number} {unit}" if number or not found else "")
        if len(found) == 2:
            break
    return " ".join(filter(None, found))


def date_text(seconds: float, timespec: str = "seconds") -> str:
    """
    Format a timestamp.

    @param seconds: since 1970. File times can hold any value, including ones that no calendar can represent.
    @param timespec: the precision, as for C{datetime.isoformat}.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "at a time that no calendar has"
