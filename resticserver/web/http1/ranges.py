"""
The C{Range} header: a pure rule.

Source: RFC 9110 section 14; what restic sends is C{bytes=0-}, C{bytes=a-} and C{bytes=a-b}.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ...errors import RangeNotSatisfiable

# Any number of digits (RFC 9110 section 14.1.1): a request's head bounds them.
_SINGLE = re.compile(rb"bytes=(\d*)-(\d*)\Z")
#: So many digits are more than any file has. What has more counts as this.
_MOST_DIGITS = 18
_BEYOND = 10**_MOST_DIGITS


class Part(NamedTuple):
    """
    What to send of an object.

    @ivar whole: whether no range holds, so that the answer is 200 and not 206.
    """

    start: int
    length: int
    whole: bool


def choose_part(header: bytes | None, size_bytes: int) -> Part:
    """
    What of an object of C{size_bytes} a C{Range} header asks for.

    Several ranges and whatever cannot be parsed mean the whole object, and so does every range of an empty one.

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


def _number(digits: bytes) -> int:
    """What digits mean, where the sizes of files are concerned. (C{int} is slow with many of them, and refuses 4,301.)"""
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _MOST_DIGITS else _BEYOND


def _is_less(digits: bytes, others: bytes) -> bool:
    """Whether one number is less than another, however long they are."""
    digits, others = digits.lstrip(b"0"), others.lstrip(b"0")
    return (len(digits), digits) < (len(others), others)
