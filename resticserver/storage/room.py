"""
What must stay free of a file system: C{--min-free}.
"""

from __future__ import annotations

import os
import threading

from ..errors import InsufficientStorage
from ..sizes import FreeSpace, format_size
from .ledger import reserve_bytes


class Room:
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

    def check(self, fd: int, above: bool) -> None:
        """
        See whether enough stays free.

        @param fd: a file on that file system.
        @param above: whether the reserve may be used: as for quotas, without it a full repository could not be pruned.
        @raise InsufficientStorage: it does not.
        """
        status = os.fstatvfs(fd)
        total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
        needed = self._min_free.of(total)
        least = max(0, needed - reserve_bytes(total)) if above else needed
        if free - self._coming_bytes < least:
            raise InsufficientStorage(
                f"{format_size(needed)} of the server's disk must stay free ({format_size(free)} are)"
            )
