"""
Timestamps in the only format the server uses: ISO 8601 in UTC, such as C{2026-11-24T23:10:05Z}. The access log is the
exception and uses Apache's format.
"""

from __future__ import annotations

from datetime import UTC, datetime


def date_text(seconds: float, timespec: str = "seconds") -> str:
    """
    Format a timestamp.

    @param seconds: since 1970. File times can hold any value, including ones that no calendar can represent.
    @param timespec: the precision, as for C{datetime.isoformat}.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "invalid date"
