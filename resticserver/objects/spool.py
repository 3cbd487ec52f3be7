"""
Where uploads wait until they are whole: files without names in a local directory, as many bytes as the administrator allows.
What a killed server has left there is gone with it.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading

from ..errors import SpoolFull, StartError

#: How the spool's directory is called in messages.
FLAG = "--spool-dir"


class Spool:
    """
    Safe from several threads.

    @param directory: where the files lie.
    @ivar most_bytes: of all of them; 0 for no limit.
    @ivar used_bytes: that are reserved.
    """

    def __init__(self, directory: str, most_bytes: int) -> None:
        self._directory = directory
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self.used_bytes = 0

    def prepare(self) -> None:
        """
        Make the directory if it is missing, and try it.

        @raise StartError: it cannot be used.
        """
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory):
                pass
        except OSError as error:
            raise StartError(f"{FLAG}: cannot use {self._directory}: {error.strerror}") from error

    def reserve(self, size_bytes: int) -> None:
        """
        Room for bytes that are going to be written.

        @raise SpoolFull: there is none.
        """
        with self._lock:
            if self.most_bytes and self.used_bytes + size_bytes > self.most_bytes:
                raise SpoolFull()
            self.used_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give back room that was reserved."""
        with self._lock:
            self.used_bytes -= size_bytes

    def open(self) -> int:
        """
        A new file without a name.

        @return: its descriptor, for reading and writing.
        @raise SpoolFull: the disk is full.
        """
        try:
            return _open_unnamed(self._directory)
        except OSError as error:
            raise spool_error(error) from error


def _open_unnamed(directory: str) -> int:
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            # The file system, or an old kernel, does not know it.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd


def spool_error(error: OSError) -> Exception:
    """What an error of the spool's disk is for the client: a full one has room again in a moment."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpoolFull()
    return error
