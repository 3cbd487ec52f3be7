"""
Whether the volume with the repositories is mounted.

A disk that is not mounted leaves an empty directory. That must not look like a server without repositories (restic takes a
404 for an empty list, and scripts run C{init}), and must not be written to. So with the first repository the server writes a
marker, C{.rest-server/id}. A server that has seen the marker serves nothing while it is missing. With C{--state-dir} it is
also remembered for the next start (L{resticserver.storage.state.StateFile.remember_marker}).
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

from twisted.logger import Logger

from ..errors import Unavailable
from ..files import Stamp, read_file, stamp_of, write_all
from .publish import Publisher

FOLDER = ".rest-server"
MARKER = "id"
MOST_MARKER_BYTES = 100

#: What clients are told while it is missing.
GONE = "the volume with the repositories is missing"

#: How long after a look no other is needed before an object is read.
LATELY_S = 1.0

#: Errors that do not mean that the marker is missing.
_THERE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)

_log = Logger()


class Volume(ABC):
    """
    The marker of the place where one store keeps repositories. Safe from several threads.

    @cvar words: what the place is called in messages.
    @cvar missing: what clients are told while it is missing.
    @cvar lately_s: how long after a look no other is needed before an object is read.
    @ivar known: the marker that must be there; C{None} while none was ever seen.
    @ivar learnt: see L{observe_marker}.
    @ivar gone: whether it was missing at the last look, which was logged.
    @ivar remembered_in: the file that keeps the marker for the next start, if there is one.
    """

    words = ""
    missing = ""
    lately_s = LATELY_S

    def __init__(self) -> None:
        self.known: bytes | None = None
        self.learnt: Callable[[bytes], object] = lambda marker: None
        self.gone = False
        self._seen_s = float("-inf")
        self.remembered_in: str | None = None

    def expect(self, marker: bytes | None, remembered_in: str | None = None, is_missed: bool = False) -> None:
        """
        Require a marker from now on.

        @param marker: of an earlier run or of another process; C{None} if none was ever seen.
        @param remembered_in: the file that keeps it for the next start, if there is one.
        @param is_missed: whether it is known to be missing, and that was logged.
        """
        self.known = marker
        self.gone = is_missed
        if remembered_in is not None:
            self.remembered_in = remembered_in

    def observe_marker(self, learnt: Callable[[bytes], object]) -> None:
        """Call C{learnt}, from any thread, with the marker when it is seen for the first time."""
        self.learnt = learnt

    def seen_lately(self) -> bool:
        """Whether the volume was there a moment ago; never blocks, and is for any thread."""
        return time.monotonic() - self._seen_s < self.lately_s

    def check_now_and_then(self) -> None:
        """
        As L{check}, but only if there was no look a moment ago: a reader of one object notices by itself if the object is
        gone, though not if only the marker is. A marker that cannot be read is no reason to refuse the object.

        @raise Unavailable: as L{check}.
        """
        if not self.seen_lately():
            with suppress(OSError):
                self.check()

    def is_missing(self) -> bool:
        """Whether a volume is known and missing."""
        if self.known is None:
            return False
        try:
            self.check()
        except Unavailable:
            return True
        return False

    def check(self) -> None:
        """
        Check that the marker is there; it is learnt when it is seen for the first time.

        @raise Unavailable: it is missing and was there before, or there is another one.
        @raise OSError: it cannot be looked at.
        """
        # Taken before the look: a marker that another thread learns after it may not have been there yet.
        known = self.known
        found = self._look()
        if found is None:
            if known is None:
                self._seen_s = time.monotonic()
                return
            found = b""
        if self.known is None:
            self.known = found
            self.learnt(found)
        if found != self.known:
            if not self.gone:
                self.gone = True
                self._log_gone(bool(found))
            self._seen_s = float("-inf")
            raise Unavailable(self.missing)
        self._seen_s = time.monotonic()
        if self.gone:
            self.gone = False
            self._log_back()

    @abstractmethod
    def _log_gone(self, is_another: bool) -> None:
        """
        Log that the marker is missing, and what to do to use the place as it is.

        @param is_another: whether there is another one.
        """

    @abstractmethod
    def _log_back(self) -> None:
        """Log that it is there again."""

    @abstractmethod
    def _look(self) -> bytes | None:
        """
        The marker as it is now; C{None} where there is none.

        @raise OSError: it cannot be looked at, which does not mean that it is missing.
        """

    @abstractmethod
    def mark(self) -> None:
        """
        Write the marker if there is none. If it cannot be written that is logged, and is no reason to fail.
        """


class FileVolume(Volume):
    """The marker of a data directory."""

    words = "the data directory"
    missing = GONE

    def __init__(self, path: str, publisher: Publisher) -> None:
        super().__init__()
        self._path = path
        self._folder = os.path.join(path, FOLDER)
        self._marker = os.path.join(self._folder, MARKER)
        self._publisher = publisher
        #: Of the marker's file when the right marker was read from it.
        self._stamp: Stamp | None = None

    def _look(self) -> bytes | None:
        """See L{Volume}. A file that has not changed is not read again."""
        try:
            stamp = stamp_of(os.stat(self._marker))
            if stamp == self._stamp and not self.gone and self.known is not None:
                return self.known
            found = self._read()
        except OSError as error:
            if self.known is not None and error.errno in _THERE:
                raise
            return None
        self._stamp = stamp if self.known in (None, found) else None
        return found

    def _log_gone(self, is_another: bool) -> None:
        """See L{Volume}."""
        accept = "restart the server"
        if self.remembered_in is not None:
            accept = f"stop the server, remove {self.remembered_in} and start it again"
        what = "another volume is" if is_another else "no volume is"
        _log.error(
            "{what} at {path}: every request is answered 503 until the right one is back. "
            "To use {path} as it is now, {accept}",
            what=what,
            path=self._path,
            accept=accept,
        )

    def _log_back(self) -> None:
        """See L{Volume}."""
        _log.info("the volume at {path} is back", path=self._path)

    def mark(self) -> None:
        """See L{Volume.mark}."""
        self.check()
        if self.known is not None:
            return
        try:
            self._publisher.make_directory(self._folder)
            self._write(secrets.token_hex(16).encode("ascii"))
        except OSError as error:
            _log.warn(
                "cannot write {path} ({error}): an unmounted volume will not be detected",
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
                write_all(file.fd, marker + b"\n")
                self._publisher.fsync(file.fd)
                with suppress(FileExistsError):  # another server on this directory has written one
                    self._publisher.publish(file, MARKER)
                self._publisher.fsync(directory_fd)
            finally:
                file.discard()
        finally:
            os.close(directory_fd)
        self._publisher.settle(self._folder, self._path)
