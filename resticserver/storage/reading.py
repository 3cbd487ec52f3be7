"""
Reading a stored object: from a pool, or without blocking where the kernel has all of it in its caches.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .directories import DataDirectory, not_a_file
from .interface import WantedPart
from .layout import Repository, object_directory
from .nowait import FileSystemTraits

_READ_BYTES = 1 << 20


class LocalObject:
    """
    A stored file.

    @ivar size_bytes: its size when it was opened.
    """

    size_bytes = 0
    _fd = -1
    _traits: FileSystemTraits | None = None

    def __init__(self, directories: DataDirectory, repository: Repository, object_type: str, name: str) -> None:
        self._directories = directories
        self._repository = repository
        self._object_type = object_type
        self._name = name
        self._directory = object_directory(directories.path, repository, object_type, name)
        self._path = f"{self._directory}/{name}"

    def open(self, wanted: WantedPart | None = None) -> None:
        """
        Open the file.

        @raise NotFound: there is no file of that name.
        """
        directories = self._directories
        directories.volume.check_now_and_then()
        directories.find_repository(self._repository)
        try:
            self._fd, status = open_file(self._path)
        except OSError as error:
            raise directories.missing(error, self._repository, self._object_type, self._name) from error
        self.size_bytes = status.st_size
        directories.compare_size(self._repository, self._object_type, self._name, status)
        directories.nowait.learn(self._repository, self._fd, directories.spelling.is_exact)

    def open_nowait(self) -> bool:
        """Open the file if that does not block; whether it is open."""
        directories = self._directories
        nowait = directories.nowait
        traits = nowait.traits(self._repository)
        if traits is None or not traits.names or not directories.volume.seen_lately():
            return False
        try:
            fd = nowait.open(self._path)
        except OSError:
            return False
        self._fd = fd  # from here on close() closes it
        try:
            status = os.fstat(fd)
        except OSError:
            self.close()
            return False
        if not stat.S_ISREG(status.st_mode):
            self.close()
            return False
        self.size_bytes, self._traits = status.st_size, traits
        snapshot = directories.snapshots.peek(self._directory)
        if snapshot is not None:
            directories.compare_with(snapshot, self._repository, self._object_type, self._name, status)
        return True

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        """C{length} bytes from C{offset}; fewer only at the file's end."""
        return read_part(self._fd, length, offset)

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        """All of a part, if that does not block; else C{None}."""
        if self._traits is None:
            return None
        try:
            return self._traits.read(self._fd, length, offset)
        except OSError:
            return None

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_file(path: str) -> tuple[int, os.stat_result]:
    """
    Open a regular file for reading.

    @return: its descriptor and its status.
    @raise NotFound: something else has that name.
    """
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise not_a_file(path)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A regular file's descriptor for reading, as a context."""
    fd, _ = open_file(path)
    try:
        yield fd
    finally:
        os.close(fd)


def read_part(fd: int, length: int, offset: int) -> bytes:
    """A part of a file, cut only by the file's end: C{pread} may return less for other reasons, for example on FUSE."""
    chunk = os.pread(fd, length, offset)
    if len(chunk) == length or not chunk:
        return chunk
    chunks = [chunk]
    got = len(chunk)
    while got < length and (chunk := os.pread(fd, length - got, offset + got)):
        chunks.append(chunk)
        got += len(chunk)
    return b"".join(chunks)


def hash_of(fd: int) -> str:
    """The SHA-256 of a whole file, in hex."""
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, _READ_BYTES, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


def same_bytes(one: int, other: int) -> bool:
    """Whether two files have the same content."""
    offset = 0
    while True:
        left, right = read_part(one, _READ_BYTES, offset), read_part(other, _READ_BYTES, offset)
        if left != right:
            return False
        if not left:
            return True
        offset += len(left)
