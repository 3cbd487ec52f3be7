"""
Points in time as people and programs read them: ISO 8601, in UTC, as C{2026-11-24T23:10:05Z}. There is no other format but that
of the access log, which is Apache's.
"""

from __future__ import annotations

from datetime import UTC, datetime


def date_text(seconds: float, timespec: str = "seconds") -> str:
    """
    A point in time.

    @param seconds: since 1970; the times of files may be any, also such that no calendar has.
    @param timespec: how exact, as for C{datetime.isoformat}.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "at a time that no calendar has"
