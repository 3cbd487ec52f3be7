"""
Memory, told what this process is like.

glibc's allocator keeps large blocks: without this every receive buffer of an upload is mapped and unmapped anew, and the
kernel zeroes its pages each time (some 20 % of an upload's time). Source: mallopt(3); elsewhere than on glibc nothing
happens. Python's collector of garbage leaves out what stays for good: modules and their functions are a quarter of a
million objects, and to look through them all stops the reactor for 30 ms.
"""

from __future__ import annotations

import ctypes
import gc
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


def leave_out_what_stays() -> None:
    """Called when all is imported and made, or before the end: no later collection looks at what is there now."""
    # What became garbage during the start is young. To look through the old ones takes 30 ms, and finds twenty.
    gc.collect(1)
    gc.freeze()
