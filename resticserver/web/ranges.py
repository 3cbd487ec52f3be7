"""
The C{Range} header: a pure rule.

Source: RFC 9110 section 14; what restic sends is C{bytes=0-}, C{bytes=a-} and C{bytes=a-b}.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import RangeNotSatisfiable

# 18 digits are more than any file has and fit every integer on the way.
_SINGLE = re.compile(rb"bytes=(\d{0,18})-(\d{0,18})\Z")


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
        length = min(int(last), size_bytes)
        if length == 0:
            raise RangeNotSatisfiable(size_bytes)
        return Part(size_bytes - length, length, False)
    start = int(first)
    end = min(int(last), size_bytes - 1) if last else size_bytes - 1
    if last and int(last) < start:
        return everything
    if start >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    return Part(start, end - start + 1, False)
