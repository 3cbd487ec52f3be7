"""
The store of a server with C{--read-only}, which may lie on a file system that is read-only as well: a mount, an image, a
snapshot of a volume, another user's directory. Then nothing is written at the start, lists and objects are read as usual,
and locks, which are all that such a server would write, are refused with a reason that says what to do.
"""

from __future__ import annotations

import errno
import os

from twisted.logger import Logger

from ..errors import Forbidden
from ..sizes import Amount
from .interface import Outcome, Upload
from .layout import Repository
from .local import LocalStore
from .publish import UNWRITABLE
from .upload import LocalUpload

_log = Logger()


class ReadOnlyStore(LocalStore):
    """A L{LocalStore} that need not be able to write."""

    read_only = True

    def _try_to_write(self) -> bool:
        try:
            return super()._try_to_write()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            reason = error.strerror
        with os.scandir(self.path) as entries:
            next(entries, None)  # raises if it cannot be read
        _log.info(
            "{path} is not writable ({reason}): lists and reads are served, locks are refused, so clients need --no-lock",
            path=self.path,
            reason=reason,
        )
        return False

    def cannot_write(self, error: OSError) -> str:
        """See L{LocalStore.cannot_write}: where writing is not possible, reading is enough."""
        if error.errno not in UNWRITABLE:
            return super().cannot_write(error)
        try:
            with os.scandir(self.path) as entries:
                next(entries, None)
        except OSError as unreadable:
            return f"the data directory cannot be read: {unreadable.strerror}"
        return ""

    def upload(self, repository: Repository, object_type: str, name: str, length: int | None = None) -> Upload:
        """A new upload, of a lock; does no I/O yet."""
        return _LockUpload(self, repository, object_type, name, length)

    def remove_object(self, repository: Repository, object_type: str, name: str, keep_s: float = 0) -> Amount:
        """
        Remove an object, as L{LocalStore.remove_object}.

        @raise Forbidden: it is there and cannot be removed, because nothing can be written.
        """
        try:
            return super().remove_object(repository, object_type, name, keep_s)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            # The file system reports that also for a name that is missing, and a client that was refused tries to remove it.
            if not os.path.lexists(self.object_path(repository, object_type, name)):
                return Amount()
            raise _refusal(error, "removed") from error


class _LockUpload(LocalUpload):
    """An upload that is refused where nothing can be written."""

    def open(self) -> None:
        """
        As L{LocalUpload.open}.

        @raise Forbidden: nothing can be written.
        """
        try:
            super().open()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise _refusal(error, "created") from error

    def commit(self) -> Outcome:
        """
        As L{LocalUpload.commit}.

        @raise Forbidden: nothing can be written any more.
        """
        try:
            return super().commit()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise _refusal(error, "created") from error


def _refusal(error: OSError, verb: str) -> Forbidden:
    """403, because restic (from 0.17 on) reports that at once; after a 5xx it would try again for a long time."""
    why = (
        "the server's disk is read-only"
        if error.errno == errno.EROFS
        else "the server has no write permission on its disk"
    )
    return Forbidden(f"{why}, so no lock can be {verb}: use restic's --no-lock")
