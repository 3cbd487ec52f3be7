"""
Sizes as people write them: plain bytes, C{KB MB GB TB} in thousands, C{K KiB M MiB G GiB T TiB} in 1024s.
"""

from __future__ import annotations

import re

_UNITS: dict[str, int] = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", 1):
    _UNITS[_letter] = _UNITS[f"{_letter}IB"] = 1 << 10 * _power
    _UNITS[f"{_letter}B"] = 10 ** (3 * _power)

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[A-Za-z]*)\Z", re.ASCII)


def parse_size(text: str) -> int:
    """
    Bytes.

    @raise ValueError: it is no size.
    """
    match = _SIZE.match(text.strip())
    factor = _UNITS.get(match["unit"].upper()) if match else None
    if match is None or factor is None or len(match["number"]) > 20:
        raise ValueError(f"{text!r} is no size, as 500GiB is")
    whole, _, fraction = match["number"].partition(".")
    if not fraction:
        return int(whole) * factor
    if factor == 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(whole) * factor + int(fraction) * factor // int(10 ** len(fraction))
