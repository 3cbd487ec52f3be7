"""
Threads of the lowest priority: for the processor nice 19, and for the disk the idle class, which gets what other processes
leave (C{ioprio_set(2)}; it has an effect with the kernel's BFQ scheduler).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import suppress

#: The number of the system call C{ioprio_set} by machine.
_NUMBERS = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "armv7l": 314,
    "i686": 289,
    "ppc64le": 273,
    "s390x": 282,
}
_WHO_PROCESS = 1
_CLASS_IDLE = 3 << 13

LOWEST_NICE = 19


def idle_disk() -> bool:
    """Move the calling thread to the idle class of disk access; whether that worked."""
    number = _NUMBERS.get(os.uname().machine)
    if sys.platform != "linux" or number is None:
        return False
    try:
        # 0: the calling thread.
        return int(ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)) == 0
    except (OSError, AttributeError):
        return False


def idle_processor() -> None:
    """Give the calling thread the lowest priority (Linux only, where threads have their own)."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_NICE)
