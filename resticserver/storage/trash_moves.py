"""
How files move into the trash and out of it: one rename inside the file system, never over another file, under a lock.

Deletions hold the lock of C{.trash} (flock) together, a restored object and a step of the expiry alone. Where the file system
has no locks, the threads of one process are still kept apart.

Blocking, for a pool; safe from several threads and processes. L{resticserver.storage.trash_keep} and
L{resticserver.storage.trash_restore} use it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..files import is_there
from .filesystem_types import is_local
from .layout import Repository
from .publish import Publisher, rename_noreplace
from .reading import opened
from .trash import (
    trash_path,
)

#: Errors of a way that a file system does not support.
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EMLINK)
_COPY_BYTES = 1 << 20
_LOCK_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class TrashMoves:
    """
    Moves files of all repositories of a store.

    @param path: the data directory.
    @param publisher: makes directories and copies, and fsyncs.
    """

    def __init__(self, path: str, publisher: Publisher) -> None:
        self.path = path
        self._publisher = publisher
        #: Days whose directory, with the file that keeps it for so long, was made durable: by that file's path, its inode.
        self._known: dict[str, int] = {}
        #: By device: whether one fsync makes a rename durable in both directories.
        self._at_once: dict[int, bool] = {}
        #: Whether an object had to be copied: the trash of a repository is on another file system then.
        self._copies = False
        self._moving = threading.Lock()
        #: For giving names without C{renameat2}. Not L{_moving}: whoever wants this one has the shared lock already.
        self._naming = threading.Lock()

    def fsync(self, directory: str) -> None:
        """Make durable what was moved into a directory of the trash. If it is gone, it was emptied in between."""
        with suppress(FileNotFoundError):
            self._publisher.fsync_directory(directory)

    def _shared_lock(self, repository: Repository) -> int:
        """
        Take the lock of a repository's trash together with other deletions.

        @return: a descriptor; closing it releases the lock.
        @raise FileNotFoundError: it has no trash.
        """
        fd = os.open(trash_path(self.path, repository), _LOCK_FLAGS)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:
            pass  # this file system has no locks
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextmanager
    def _locked(self, repository: Repository) -> Iterator[None]:
        """
        Hold the lock of a repository's trash alone.

        @raise FileNotFoundError: it has no trash.
        """
        fd = os.open(trash_path(self.path, repository), _LOCK_FLAGS)
        try:
            with self._moving:
                with suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_EX)
                yield
        finally:
            os.close(fd)

    def _move(self, source: str, target: str) -> None:
        """
        Move a file, never over another one. It is not durable yet.

        @raise FileExistsError: the target's name is taken; the file is where it was.
        @raise FileNotFoundError: the file, or the target's directory, is missing.
        """
        try:
            self._move_file(source, target)
        except OSError as error:
            # A call may fail and have succeeded: network file systems may lose the answer and repeat the call. Elsewhere these
            # errors mean that another deletion was first, which must not be counted twice.
            local = error.errno in (errno.ENOENT, errno.EEXIST) and _is_local(os.path.dirname(target))
            if local or not is_missing(source) or is_missing(target):
                raise

    def _move_file(self, source: str, target: str) -> None:
        if self._publisher.mechanisms.rename_noreplace:
            try:
                rename_noreplace(source, target)
                return
            except OSError as error:
                if error.errno == errno.EXDEV:
                    self._copy(source, target)
                    return
                if error.errno not in UNSUPPORTED:
                    raise
        # Names in the trash are given only under these locks.
        with self._naming, directory_lock(os.path.dirname(target)):
            if is_there(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            try:
                os.rename(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(source, target)

    def _move_noreplace(self, source: str, target: str) -> None:
        try:
            rename_noreplace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(source, target)

    def _copy(self, source: str, target: str) -> None:
        """Move a file to another file system: a durable copy first, with the same modification time."""
        self._copies = True
        directory = os.path.dirname(target)
        repository = directory.rpartition("/.trash/")[0] or directory
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        published = False
        try:
            with opened(source) as fd:
                file = self._publisher.temporary(directory, directory_fd, repository)
                try:
                    offset = 0
                    while chunk := os.pread(fd, _COPY_BYTES, offset):
                        offset += len(chunk)
                        while chunk:
                            chunk = chunk[os.write(file.fd, chunk) :]
                    status = os.fstat(fd)
                    os.utime(file.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                    self._publisher.fsync(file.fd)
                    self._publisher.publish(file, os.path.basename(target))
                    published = True
                finally:
                    file.discard()
            self._publisher.fsync(directory_fd)
            os.unlink(source)
        except OSError as error:
            # It stays where it was, or another deletion was first. If the call has done its work, the copy is all there is.
            if published and (isinstance(error, FileNotFoundError) or not is_missing(source)):
                os.unlink(target)
            raise
        finally:
            os.close(directory_fd)


@contextmanager
def directory_lock(path: str) -> Iterator[None]:
    """Hold a directory's lock against other processes, if the file system has locks."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def is_missing(path: str) -> bool:
    """Whether certainly nothing has this name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _is_local(directory: str) -> bool:
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return is_local(fd)
        finally:
            os.close(fd)
    return False
