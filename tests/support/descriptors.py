"""
The descriptors of this process: which are open, and none to spare for a moment.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress

#: Number, device and inode: a file that is renamed or removed is the same one.
Descriptor = tuple[int, int, int]


def open_descriptors() -> dict[Descriptor, str]:
    """
    What is open, each with its present name.

    Tests of the same process share its descriptors, so their number says little: the garbage of an earlier test may be
    closed at any time. What is asked is therefore always what was opened since, see L{left_open}.
    """
    found = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        # The one that this list needs is closed by now.
        with suppress(OSError):
            status = os.fstat(number)
            found[number, status.st_dev, status.st_ino] = os.readlink(f"/proc/self/fd/{number}")
    return found


def left_open(before: Container[Descriptor]) -> list[str]:
    """
    What was opened since and is still open, also once the garbage was collected.

    @param before: what L{open_descriptors} said.
    @return: their names, sorted.
    """
    if any(each not in before for each in open_descriptors()):
        gc.collect()
    return sorted(name for each, name in open_descriptors().items() if each not in before)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened meanwhile in this process; what is open stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    # The lowest free number is one too many.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
