"""
Evaluates the C{Range} header; no I/O.

Source: RFC 9110 section 14. restic sends C{bytes=0-}, C{bytes=a-} and C{bytes=a-b}.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ...errors import RangeNotSatisfiable
from ...storage.interface import WantedPart

# Any number of digits (RFC 9110 section 14.1.1): a request's head bounds them.
_SINGLE = re.compile(rb"bytes=(\d*)-(\d*)\Z")
#: No file's size has more digits. A number with more counts as L{_BEYOND}.
_MOST_DIGITS = 18
_BEYOND = 10**_MOST_DIGITS


class Part(NamedTuple):
    """
    What to send of an object.

    @ivar whole: whether no range applies, so that the answer is 200 and not 206.
    """

    start: int
    length: int
    whole: bool


def choose_part(header: bytes | None, size_bytes: int) -> Part:
    """
    The part of an object of C{size_bytes} that a C{Range} header asks for.

    Several ranges, a header that cannot be parsed, and every range of an empty object mean the whole object.

    @raise RangeNotSatisfiable: the range starts at or past the end.
    """
    everything = Part(0, size_bytes, True)
    match = _SINGLE.match(header.strip().lower()) if header is not None else None
    if match is None or size_bytes == 0:
        return everything
    first, last = match.groups()
    if not first:
        if not last:
            return everything
        length = min(_number(last), size_bytes)
        if length == 0:
            raise RangeNotSatisfiable(size_bytes)
        return Part(size_bytes - length, length, False)
    if last and _is_less(last, first):
        return everything
    start = _number(first)
    if start >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    end = min(_number(last), size_bytes - 1) if last else size_bytes - 1
    return Part(start, end - start + 1, False)


def wanted_part(header: bytes | None) -> WantedPart | None:
    """
    The part that a C{Range} header asks for, of an object whose size is not known yet.

    @return: C{None} where L{choose_part} gives the whole object, whatever its size.
    """
    match = _SINGLE.match(header.strip().lower()) if header is not None else None
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        # The last 0 bytes are no part of any object: the whole is opened, and refused by its size.
        return WantedPart(suffix=_number(last)) if last and _number(last) else None
    if last and _is_less(last, first):
        return None
    return WantedPart(_number(first), _number(last) + 1 if last else None)


def _number(digits: bytes) -> int:
    """A number, capped above the size of any file. (C{int} is slow with many digits, and refuses 4,301.)"""
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _MOST_DIGITS else _BEYOND


def _is_less(digits: bytes, others: bytes) -> bool:
    """Whether one number is less than another, for any number of digits."""
    digits, others = digits.lstrip(b"0"), others.lstrip(b"0")
    return (len(digits), digits) < (len(others), others)
