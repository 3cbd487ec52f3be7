"""
Free space of a file system: what C{--min-free} requires, and what to tell a client when a disk is full.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NamedTuple

from ..errors import MIN_FREE, InsufficientStorage
from ..sizes import FreeSpace, format_size, reserve_bytes


class Sent(NamedTuple):
    """
    How far an upload has come.

    @ivar size_bytes: its length; where that is not known, how much of it has come.
    @ivar known: whether the length is known.
    @ivar coming_bytes: what it reserves (L{FreeSpaceGuard.coming}).
    @ivar stored_bytes: what it takes of the disk already.
    """

    size_bytes: int
    known: bool
    coming_bytes: int = 0
    stored_bytes: int = 0

    def __str__(self) -> str:
        return f"upload of {format_size(self.size_bytes)}{'' if self.known else ' so far'}"


class FreeSpaceGuard:
    """
    Keeps a part of a file system free, C{--min-free}. Safe from several threads.

    Running uploads count with the bytes that they have still to write, as far as these are known.
    """

    def __init__(self, min_free: FreeSpace) -> None:
        self._min_free = min_free
        self._coming_bytes = 0
        self._guard = threading.Lock()

    def coming(self, size_bytes: int) -> None:
        """Reserve so many bytes; negative when they were written, or never will be."""
        with self._guard:
            self._coming_bytes += size_bytes

    def check(self, fd: int, above: bool, sent: Sent | None = None) -> None:
        """
        Check that enough stays free.

        @param fd: a file on that file system.
        @param above: whether the reserve may be used: as for quotas, without it a full repository could not be pruned.
        @param sent: the upload, to be named in the refusal.
        @raise InsufficientStorage: too little would stay free.
        """
        status = os.fstatvfs(fd)
        total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
        needed = self._min_free.of(total)
        least = max(0, needed - reserve_bytes(total)) if above else needed
        if free - self._coming_bytes < least:
            words = f"{format_size(needed)} of the server's disk must stay free"
            if sent is None:
                raise InsufficientStorage(f"{words} ({format_size(free)} are free)", MIN_FREE)
            left_bytes = free + sent.stored_bytes - (self._coming_bytes - sent.coming_bytes) - least
            raise InsufficientStorage(f"{words}: {sent}, {format_size(max(0, left_bytes))} left", MIN_FREE)


class _SpaceErrors:
    """The context of L{space_errors}; one object for all, because a generator costs a small upload three microseconds."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage() from error


_SPACE_ERRORS = _SpaceErrors()


def space_errors() -> AbstractContextManager[None]:
    """Turn a full disk or an exceeded disk quota into L{InsufficientStorage}."""
    return _SPACE_ERRORS


def no_space(sent: Sent, status: os.statvfs_result, error: OSError) -> InsufficientStorage:
    """
    The error of a full disk, with how much was sent and how much is left.

    @param status: of the file system.
    @param error: what the file system reported.
    """
    words = InsufficientStorage.default
    if error.errno == errno.EDQUOT:
        return InsufficientStorage(f"{words} for the server's user (disk quota): {sent}")
    if status.f_files and not status.f_favail:
        return InsufficientStorage(f"{words} (no free inodes): {sent}")
    left_bytes = status.f_bavail * status.f_frsize + sent.stored_bytes
    return InsufficientStorage(f"{words}: {sent}, {format_size(left_bytes)} left")
