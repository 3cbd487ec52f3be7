"""
Reading files without displacing other data from the kernel's page cache: what was not cached before is dropped again.

C{mincore(2)} says which pages of a file are cached. It does so only for files that the caller owns or may write; of others it
says that all pages are cached.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_PAGE_BYTES = mmap.PAGESIZE
#: Of larger files all pages count as not cached: to look at more of them would hold up other threads.
_MOST_BYTES = 1 << 30
_RESIDENT = bytes(number & 1 for number in range(256))
_FAILED = ctypes.c_void_p(-1).value


def _library() -> Any:
    """The C library with the types of what is used of it; C{None} where it is not known."""
    if sys.platform != "linux":
        return None
    try:
        # These calls take microseconds: to give up the interpreter's lock for them and to get it back would take longer.
        library = ctypes.PyDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    except (OSError, AttributeError):
        return None
    return library


_LIBRARY = _library()


class CachedPages:
    """
    Which pages of a file are cached now, before it is read.

    @param fd: the file, open for reading.
    @param status: of the file.
    """

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self._fd = fd
        self._size_bytes = status.st_size
        #: One byte for each page, 1 if it is cached; C{None} if that is not known, and then all are dropped.
        self._cached = _cached_pages(fd, status)
        self._all = self._cached is not None and b"\0" not in self._cached
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def drop(self, offset: int, size_bytes: int) -> None:
        """
        A part of the file was read: drop those of its pages that were not cached.

        @param offset: the beginning of a page.
        """
        if self._all or not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError):
            for first, length in self._uncached(offset, size_bytes):
                os.posix_fadvise(self._fd, first, length, os.POSIX_FADV_DONTNEED)

    def drop_all(self) -> None:
        """The file was read: drop what the kernel has read ahead, and pages that reach over the parts."""
        self.drop(0, self._size_bytes)

    def _uncached(self, offset: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        first, end = offset // _PAGE_BYTES, -(-(offset + size_bytes) // _PAGE_BYTES)
        if self._cached is None:
            yield first * _PAGE_BYTES, (end - first) * _PAGE_BYTES
            return
        end = min(end, len(self._cached))
        while first < end and (first := self._cached.find(b"\0", first, end)) >= 0:
            after = self._cached.find(b"\1", first, end)
            after = end if after < 0 else after
            yield first * _PAGE_BYTES, (after - first) * _PAGE_BYTES
            first = after


def _cached_pages(fd: int, status: os.stat_result) -> bytes | None:
    size_bytes = status.st_size
    if _LIBRARY is None or size_bytes > _MOST_BYTES or not _may_ask(fd, status):
        return None
    if not size_bytes:
        return b""
    address = _LIBRARY.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address is None or address == _FAILED:
        return None
    try:
        pages = ctypes.create_string_buffer(-(-size_bytes // _PAGE_BYTES))
        if _LIBRARY.mincore(address, size_bytes, pages) != 0:
            return None
        return pages.raw.translate(_RESIDENT)
    finally:
        _LIBRARY.munmap(address, size_bytes)


def _may_ask(fd: int, status: os.stat_result) -> bool:
    user = os.geteuid()
    return user in (0, status.st_uid) or os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
