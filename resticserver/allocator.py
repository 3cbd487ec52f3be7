"""
glibc's allocator, told to keep large blocks: without this every receive buffer of an upload is mapped and unmapped anew,
and the kernel zeroes its pages each time (some 20 % of an upload's time).

Source: mallopt(3). Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

#: Blocks up to this size come from the heap; glibc allows 32 MiB at most on 64 bit.
_KEPT_BLOCK_BYTES = 4 << 20
#: This much free memory at the heap's end stays with the process.
_KEPT_FREE_BYTES = 32 << 20


def keep_large_blocks() -> bool:
    """Set the thresholds for this process; whether that worked."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False  # musl
    return all(
        mallopt(option, value) == 1
        for option, value in (
            (_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES),
            (_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES),
            (_M_ARENA_MAX, 2),
        )
    )
