"""
Tuning of the memory allocator and the garbage collector.

By default glibc maps and unmaps every receive buffer of an upload, and the kernel zeroes its pages each time (some 20
% of an upload's time). L{keep_large_blocks} makes glibc keep large blocks. Source: mallopt(3); without glibc it does
nothing.

Modules and their functions are a quarter of a million objects that live as long as the process. A garbage collection
that traverses them stops the reactor for 30 ms, so L{leave_out_what_stays} excludes them.
"""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

#: Blocks up to this size come from the heap; glibc allows 32 MiB at most on 64-bit systems.
_KEPT_BLOCK_BYTES = 4 << 20
#: The process keeps up to this much free memory at the end of the heap.
_KEPT_FREE_BYTES = 32 << 20


def keep_large_blocks() -> bool:
    """
    Set the thresholds for this process.

    @return: whether that worked.
    """
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


def put_off_collections() -> None:
    """Collect no garbage until L{leave_out_what_stays}: nearly all that a start creates stays."""
    gc.disable()


def leave_out_what_stays() -> None:
    """
    Exclude all existing objects from later garbage collections. Called after everything was imported and created, or
    before the process exits.
    """
    gc.enable()
    # Garbage from the start is in the young generations. Collecting the old one takes 30 ms and finds about twenty
    # objects.
    gc.collect(1)
    gc.freeze()
