"""
Sizes as people write them: plain bytes, C{KB MB GB TB} in powers of 1000, C{K KiB M MiB G GiB T TiB} in powers of
1024. Also amounts and limits of stored data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

_UNITS: dict[str, int] = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", 1):
    _UNITS[_letter] = _UNITS[f"{_letter}IB"] = 1 << 10 * _power
    _UNITS[f"{_letter}B"] = 10 ** (3 * _power)

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[A-Za-z]*)\Z", re.ASCII)


def parse_size(text: str) -> int:
    """
    Parse a size into bytes.

    @raise ValueError: the text is not a size.
    """
    match = _SIZE.match(text.strip())
    factor = _UNITS.get(match["unit"].upper()) if match else None
    if match is None or factor is None or len(match["number"]) > 20:
        raise ValueError(f"{text!r} is not a size, such as 500GiB")
    whole, _, fraction = match["number"].partition(".")
    if not fraction:
        return int(whole) * factor
    if factor == 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(whole) * factor + int(fraction) * factor // int(10 ** len(fraction))


def parse_bytes_per_second(text: str) -> int:
    """
    Parse a number of bytes a second, such as C{20M} or C{20MiB/s}.

    @raise ValueError: the text is no rate.
    """
    return parse_size(text.strip().removesuffix("/s"))


#: The lowest bandwidth, in bytes a second. With less, a few transfers would make each other wait for minutes, and restic cuts
#: off what does not move for five.
LEAST_BANDWIDTH = 64 << 10


def parse_bandwidth(text: str) -> int:
    """
    Parse a limit of bytes a second.

    @raise ValueError: the text is not a size, or too low.
    """
    rate = parse_size(text)
    if rate < LEAST_BANDWIDTH:
        raise ValueError(f"{text}: must be at least 64K (bytes a second)")
    return rate


def format_size(size_bytes: int) -> str:
    """Format a size for people, such as C{9.98 GiB}: three digits, rounded down."""
    if size_bytes < 1024:
        return f"{size_bytes} bytes" if size_bytes != 1 else "1 byte"
    power = min((size_bytes.bit_length() - 1) // 10, 5)
    unit = " KMGTP"[power]
    hundredths = size_bytes * 100 >> 10 * power
    whole, rest = divmod(hundredths, 100)
    if rest == 0 or whole >= 1000:
        return f"{whole} {unit}iB"
    if whole >= 100:
        return f"{whole}.{rest // 10} {unit}iB".replace(".0 ", " ")
    return f"{whole}.{rest:02d} {unit}iB"


class Amount(NamedTuple):
    """An amount of stored data, or a change of it: bytes and objects."""

    size_bytes: int = 0
    objects: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A limit for stored data; C{None} means no limit.

    @ivar size_bytes: for all objects together.
    @ivar objects: for the number of objects.
    """

    size_bytes: int | None = None
    objects: int | None = None


UNLIMITED = Limit()


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """
    How much of a file system must stay free.

    @ivar size_bytes: this many bytes, and
    @ivar percent: this percentage of the file system's size.
    """

    size_bytes: int = 0
    percent: float = 0.0

    def of(self, total_bytes: int) -> int:
        """The bytes that must stay free in a file system of this size."""
        return max(self.size_bytes, int(total_bytes * self.percent / 100))

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else format_size(self.size_bytes)


def parse_free_space(text: str) -> FreeSpace:
    """
    Parse a size or a percentage of the file system.

    @raise ValueError: the text is neither.
    """
    number = text.strip().removesuffix("%").strip()
    if number == text.strip():
        return FreeSpace(size_bytes=parse_size(text))
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", number) or float(number) >= 100:
        raise ValueError(f"{text!r} must be from 0% to 99%")
    return FreeSpace(percent=float(number))


#: Locks and indexes may exceed a limit by 1/RESERVE_PART of it, but at most by MOST_RESERVE_BYTES. The reserve for the
#: number of objects is never below LEAST_RESERVE_OBJECTS.
RESERVE_PART = 100
MOST_RESERVE_BYTES = 1 << 30
LEAST_RESERVE_OBJECTS = 32


def reserve_bytes(limit_bytes: int) -> int:
    """By how many bytes locks and indexes may exceed a limit."""
    return min(limit_bytes // RESERVE_PART, MOST_RESERVE_BYTES)
