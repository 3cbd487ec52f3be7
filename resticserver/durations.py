"""
Durations as people write them: C{90s}, C{15m}, C{12h}, C{30d}, C{4w}.
"""

from __future__ import annotations

import re

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])\Z", re.ASCII)
#: A longer one is taken for a typing error.
_MOST_S = 100 * 366 * 86_400


def parse_duration(text: str) -> int:
    """
    Parse a duration.

    @return: seconds; 0 for C{0}, which needs no unit.
    @raise ValueError: the text is not a duration.
    """
    match = _DURATION.match(text.strip())
    if text.strip() == "0":
        return 0
    if match is None or int(match[1]) * _UNITS_S[match[2]] > _MOST_S:
        raise ValueError(f"{text!r} is no duration, as 30d is (s, m, h, d or w)")
    return int(match[1]) * _UNITS_S[match[2]]


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
