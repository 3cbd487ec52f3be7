"""
What must stay free of a file system: C{--min-free}.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from ..errors import MIN_FREE, InsufficientStorage
from ..sizes import FreeSpace, format_size, reserve_bytes


class Sent(NamedTuple):
    """
    An upload, as far as it has come.

    @ivar size_bytes: how long it is; where nobody knows that, how much of it has come.
    @ivar known: whether somebody knows.
    @ivar coming_bytes: what of it is counted as coming (L{FreeSpaceGuard.coming}).
    @ivar stored_bytes: what it has of the disk already.
    """

    size_bytes: int
    known: bool
    coming_bytes: int = 0
    stored_bytes: int = 0

    def __str__(self) -> str:
        return f"upload of {format_size(self.size_bytes)}{'' if self.known else ' so far'}"


class FreeSpaceGuard:
    """
    What must stay free of a file system, C{--min-free}. Safe from several threads.

    Uploads on their way are counted with what they have still to write, as far as that is known.
    """

    def __init__(self, min_free: FreeSpace) -> None:
        self._min_free = min_free
        self._coming_bytes = 0
        self._guard = threading.Lock()

    def coming(self, size_bytes: int) -> None:
        """So many bytes are going to be written, or (negative) have been or never will be."""
        with self._guard:
            self._coming_bytes += size_bytes

    def check(self, fd: int, above: bool, sent: Sent | None = None) -> None:
        """
        See whether enough stays free.

        @param fd: a file on that file system.
        @param above: whether the reserve may be used: as for quotas, without it a full repository could not be pruned.
        @param sent: for which upload, to be named in the refusal.
        @raise InsufficientStorage: it does not.
        """
        status = os.fstatvfs(fd)
        total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
        needed = self._min_free.of(total)
        least = max(0, needed - reserve_bytes(total)) if above else needed
        if free - self._coming_bytes < least:
            words = f"{format_size(needed)} of the server's disk must stay free"
            if sent is None:
                raise InsufficientStorage(f"{words} ({format_size(free)} are)", MIN_FREE)
            left_bytes = free + sent.stored_bytes - (self._coming_bytes - sent.coming_bytes) - least
            raise InsufficientStorage(f"{words}: {sent}, {format_size(max(0, left_bytes))} left", MIN_FREE)
