"""
Whether the volume with the repositories is there.

A disk that is not mounted leaves an empty directory behind, which must look neither like a server without repositories
(restic takes a list that is 404 for an empty one, and scripts run C{init}) nor be filled. So the first repository puts a
marker beside it, C{.rest-server/id}, and a server that has seen the marker serves nothing while it is missing. With
C{--state-dir} it is also remembered for the next start (L{resticserver.storage.state.StateFile.remember_marker}).
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from twisted.logger import Logger

from ..errors import Unavailable
from ..files import read_file
from .publish import Publisher

FOLDER = ".rest-server"
MARKER = "id"
MOST_MARKER_BYTES = 100

#: What a client is told while it is missing.
GONE = "the volume with the repositories is not there"

#: For so long after it was seen it is not looked for again before an object is read.
LATELY_S = 1.0

#: Errors of a marker that is there; something else is wrong then.
_THERE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)

_log = Logger()


class Volume:
    """
    The marker of one data directory. Safe from several threads.

    @ivar known: the marker that must be there; C{None} as long as none was ever seen.
    @ivar learnt: called with the marker when it is seen for the first time, in any thread.
    @ivar gone: whether it was missing at the last look, which was logged.
    @ivar remembered_in: the file that tells the next start which marker must be there, if there is one.
    """

    def __init__(self, path: str, publisher: Publisher) -> None:
        self._path = path
        self._folder = os.path.join(path, FOLDER)
        self._marker = os.path.join(self._folder, MARKER)
        self._publisher = publisher
        self.known: bytes | None = None
        self.learnt: Callable[[bytes], object] = lambda marker: None
        self._stamp: tuple[int, ...] = ()
        self.gone = False
        self._seen_s = float("-inf")
        self.remembered_in: str | None = None

    def seen_lately(self) -> bool:
        """Whether the volume was found to be there within the last second; quick, and in any thread."""
        return time.monotonic() - self._seen_s < LATELY_S

    def check_now_and_then(self) -> None:
        """
        For whoever reads one object, and would notice by itself that it is gone, but not that only the marker is: L{check},
        at most once a second. A marker that is there and cannot be read is no reason to refuse an object that can.

        @raise Unavailable: as L{check}.
        """
        if not self.seen_lately():
            with suppress(OSError):
                self.check()

    def is_missing(self) -> bool:
        """Whether a volume is known and is not there, without an exception."""
        if self.known is None:
            return False
        try:
            self.check()
        except Unavailable:
            return True
        return False

    def check(self) -> None:
        """
        See whether the marker is there; it is learnt when it is seen for the first time.

        @raise Unavailable: it was there before and is not, or another one is.
        @raise OSError: it cannot be looked at.
        """
        # As of before the look: what another thread learns meanwhile was not there yet for this one.
        known = self.known
        try:
            status = os.stat(self._marker)
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            if stamp == self._stamp and not self.gone:
                self._seen_s = time.monotonic()
                return
            found = self._read()
        except OSError as error:
            if known is None:
                self._seen_s = time.monotonic()
                return
            if error.errno in _THERE:
                raise
            found = b""
        if self.known is None:
            self.known = found
            self.learnt(found)
        if found != self.known:
            if not self.gone:
                self.gone = True
                what = "another volume is" if found else "no volume is"
                accept = "restart the server"
                if self.remembered_in is not None:
                    accept = f"stop the server, remove {self.remembered_in} and start it again"
                _log.error(
                    "{what} at {path}: every request is answered 503 until the right one is back. "
                    "If {path} is to be used as it is now, {accept}",
                    what=what,
                    path=self._path,
                    accept=accept,
                )
            self._seen_s = float("-inf")
            raise Unavailable(GONE)
        self._stamp = stamp
        self._seen_s = time.monotonic()
        if self.gone:
            self.gone = False
            _log.info("the volume at {path} is back", path=self._path)

    def mark(self) -> None:
        """
        Write the marker if there is none. That it cannot be written is no reason to refuse what was asked for: a warning.
        """
        self.check()
        if self.known is not None:
            return
        try:
            self._publisher.make_directory(self._folder)
            self._write(secrets.token_hex(16).encode("ascii"))
        except OSError as error:
            _log.warn(
                "cannot write {path} ({error}): an unmounted volume will not be noticed",
                path=self._marker,
                error=error.strerror,
            )
        self.check()

    def _read(self) -> bytes:
        return read_file(self._marker)[0][:MOST_MARKER_BYTES].strip() or b"-"

    def _write(self, marker: bytes) -> None:
        directory_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = self._publisher.temporary(self._folder, directory_fd, self._folder)
            try:
                os.write(file.fd, marker + b"\n")
                self._publisher.fsync(file.fd)
                with suppress(FileExistsError):  # another server on this directory was first
                    self._publisher.publish(file, MARKER)
                self._publisher.fsync(directory_fd)
            finally:
                file.discard()
        finally:
            os.close(directory_fd)
        self._publisher.settle(self._folder, self._path)
