"""
Into the trash, and out of it: one rename inside the file system, never over another file, made durable in both directories.

Deletions hold the lock of C{.trash} (flock) together, a restored object and a step of the expiry alone. Where the file system
has no locks, the threads of one process are still kept apart.

Blocking, for a pool; safe from several threads and processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from ..names import CONFIG
from ..sizes import Amount
from .free_space import space_errors
from .layout import Repository, object_directory, repository_path
from .publish import TEMPORARY_FOLDER, Publisher, rename_noreplace
from .reading import hash_of, opened
from .trash import (
    TrashDay,
    Trashed,
    day_name,
    is_keep_name,
    keep_name,
    live_name,
    trash_days,
    trash_path,
    trashed_objects,
    type_directories,
)

#: How many directories are tried for one name on one day.
_MOST_TWINS = 100
#: How often a directory is made again that was removed in between.
_ATTEMPTS = 8
#: How many days' directories are remembered as made.
_MOST_KNOWN = 10_000

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EMLINK)
_COPY_BYTES = 1 << 20


class Damaged(ValueError):
    """The content of an object in the trash is not what its name says."""


class Expired(NamedTuple):
    """
    One step of the expiry.

    @ivar removed: what was removed.
    @ivar more: whether there is more to remove now.
    @ivar next_s: when something ends next, in seconds since 1970; C{None} if nothing is left that ends by itself.
    """

    removed: Amount
    more: bool
    next_s: float | None


class Trash:
    """
    The trash of all repositories of a store.

    @param path: the data directory.
    @param publisher: makes directories and copies, and fsyncs.
    """

    def __init__(self, path: str, publisher: Publisher) -> None:
        self.path = path
        self._publisher = publisher
        #: Days whose directory, with the file that keeps it for so long, was made durable: by that file's path, its inode.
        self._known: dict[str, int] = {}
        self._moving = threading.Lock()

    # --- into the trash

    def keep(self, repository: Repository, object_type: str, source: str, delay_s: float) -> str | None:
        """
        Move an object to the trash. That is not durable yet: fsync the returned directory, then the object's own. Whatever
        fails, the object stays where it was.

        @param source: its path.
        @param delay_s: how long it is to be kept at least.
        @return: the directory in the trash; C{None} if there was no such object.
        @raise InsufficientStorage: there is no room for a directory.
        """
        name = os.path.basename(source)
        try:
            if object_type == CONFIG:
                with opened(source) as fd:
                    name = hash_of(fd)
            with space_errors():
                for _ in range(_ATTEMPTS):
                    try:
                        day = self._make_day(repository, delay_s)
                        with self._lock(repository, exclusive=False):
                            return self._move_to_day(source, day, object_type, name)
                    except FileNotFoundError:
                        if not os.path.lexists(source):
                            return None  # else the trash was emptied in between
        except (FileNotFoundError, NotADirectoryError):
            return None
        raise OSError(errno.EIO, "cannot be moved to the trash", source)

    def fsync_missing(self, repository: Repository, object_type: str) -> None:
        """
        Make durable what an earlier deletion has moved: of an object that is gone already the deletion may have been killed,
        or have failed, before its fsync.
        """
        for at_s in (time.time(), time.time() - 60):
            with suppress(FileNotFoundError, NotADirectoryError):
                self._publisher.fsync_directory(f"{trash_path(self.path, repository)}/{day_name(at_s)}/{object_type}")

    def _make_day(self, repository: Repository, delay_s: float) -> str:
        """The directory of today, which is kept for so long at least."""
        top = trash_path(self.path, repository)
        day = f"{top}/{day_name(time.time())}"
        file = f"{day}/{keep_name(delay_s)}"
        known = self._known.get(file)
        if known is not None:
            with suppress(FileNotFoundError):
                if os.stat(file).st_ino == known:
                    return day
        self._publisher.make_directory(top)
        with self._lock(repository, exclusive=False):
            self._publisher.make_directory(day)
            fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, self._publisher.file_mode)
            try:
                self._publisher.fsync(fd)
                inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)
            self._publisher.fsync_directory(day)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[file] = inode
        return day

    def _move_to_day(self, source: str, day: str, object_type: str, name: str) -> str:
        """Move a file into a day's directory; the directory that it is in then."""
        for twin in range(1, _MOST_TWINS):
            directory = f"{day}/{object_type}" if twin == 1 else f"{day}/{object_type}.{twin}"
            target = f"{directory}/{name}"
            with suppress(FileExistsError):
                try:
                    self._move(source, target)
                except FileNotFoundError:
                    if not os.path.lexists(source):
                        raise
                    self._publisher.make_directory(directory)
                    self._move(source, target)
                return directory
            if _renewed(source, target, name):
                return directory
        raise OSError(errno.EEXIST, "was deleted too often on one day", source)

    # --- moving

    @contextmanager
    def _lock(self, repository: Repository, exclusive: bool) -> Iterator[None]:
        """
        Hold the lock of a repository's trash.

        @raise FileNotFoundError: it has none.
        """
        path = trash_path(self.path, repository)
        with ExitStack() as held:
            if exclusive:
                held.enter_context(self._moving)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            held.callback(os.close, fd)
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            yield

    def _move(self, source: str, target: str) -> None:
        """
        Move a file, never over another one. It is not durable yet.

        @raise FileExistsError: the target's name is taken; the file is where it was.
        @raise FileNotFoundError: the file, or the target's directory, is missing.
        """
        before = os.lstat(source)
        try:
            self._move_file(source, target)
        except OSError:
            # A call may fail and have succeeded: network file systems may lose the answer and repeat the call.
            if not _is_moved(source, target, before):
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
                if error.errno not in _UNSUPPORTED:
                    raise
        # Names in the trash are given only under this lock or that of its directory.
        with self._moving, _directory_lock(os.path.dirname(target)):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            try:
                os.rename(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(source, target)

    def _copy(self, source: str, target: str) -> None:
        """Move a file to another file system: a durable copy first, with the same modification time."""
        directory = os.path.dirname(target)
        repository = directory.rpartition("/.trash/")[0] or directory
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
                finally:
                    file.discard()
        finally:
            os.close(directory_fd)
        self._publisher.fsync_directory(directory)
        try:
            os.unlink(source)
        except FileNotFoundError:  # another deletion was first
            os.unlink(target)
            raise

    # --- out of the trash

    def restore(self, trashed: Trashed) -> bool:
        """
        Move an object back to where it lay, durably, if its content is what its name says and nothing has that name now.

        @return: whether it was moved; false if the same object is there already.
        @raise FileExistsError: a file with other content is there; it stays, and so does the object in the trash.
        @raise Damaged: its own content is damaged.
        @raise FileNotFoundError: it is gone.
        """
        repository, publisher = trashed.day.repository, self._publisher
        directory = object_directory(self.path, repository, trashed.object_type, live_name(trashed))
        target = f"{directory}/{live_name(trashed)}"
        with opened(trashed.path) as fd:
            verified = os.fstat(fd)
            if hash_of(fd) != trashed.name:
                raise Damaged("its content is not what its name says")
        top = repository_path(self.path, repository)
        if not os.path.isdir(directory):
            for path in dict.fromkeys((f"{top}/{trashed.object_type}", directory)):
                publisher.make_directory(path)
        with self._lock(repository, exclusive=True):
            if not os.path.samestat(os.lstat(trashed.path), verified):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), trashed.path)
            moved = self._move_back(trashed, target)
        publisher.fsync_directory(directory)
        publisher.fsync_directory(os.path.dirname(trashed.path))
        return moved

    def _move_back(self, trashed: Trashed, target: str) -> bool:
        try:
            if self._publisher.mechanisms.rename_noreplace:
                try:
                    self._move_noreplace(trashed.path, target)
                    return True
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
            # A client may upload the same object now: only a link, or the lock of uploads, keeps it.
            try:
                os.link(trashed.path, target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            else:
                self._publisher.fsync_directory(os.path.dirname(target))
                os.unlink(trashed.path)
                return True
            self._rename_back(trashed, target)
            return True
        except FileExistsError:
            if _is_same(trashed.path, target):
                os.unlink(trashed.path)  # an earlier run was killed between the two steps
                return True
            with opened(target) as fd:
                if hash_of(fd) != trashed.name:
                    raise
            return False

    def _move_noreplace(self, source: str, target: str) -> None:
        try:
            rename_noreplace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(source, target)

    def _rename_back(self, trashed: Trashed, target: str) -> None:
        folder = f"{repository_path(self.path, trashed.day.repository)}/{TEMPORARY_FOLDER}"
        self._publisher.make_directory(folder)
        with _directory_lock(folder):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            os.rename(trashed.path, target)
        with suppress(OSError):
            os.rmdir(folder)

    # --- the end

    def expire(self, repository: Repository, now_s: float, delay_s: float, most: int) -> Expired:
        """
        Remove what has ended.

        @param now_s: the time, in seconds since 1970.
        @param delay_s: the delay that is in force now.
        @param most: remove at most so many objects.
        @raise OSError: something cannot be read or removed.
        """
        size_bytes = objects = 0
        next_s: list[float] = []
        for day in trash_days(self.path, repository):
            first_s = day.first_end_s(delay_s)
            if first_s is None:
                continue
            if first_s > now_s:
                next_s.append(first_s)
                continue
            ended: list[Trashed] = []
            left = False
            for trashed in trashed_objects(day):
                ends_s = day.ends_s(trashed.deleted_s, delay_s)
                assert ends_s is not None
                if ends_s > now_s:
                    left = True
                    next_s.append(ends_s)
                elif objects + len(ended) < most:
                    ended.append(trashed)
                else:
                    removed = self.remove(repository, ended)
                    return Expired(Amount(size_bytes + removed.size_bytes, objects + removed.objects), True, now_s)
            removed = self.remove(repository, ended)
            size_bytes, objects = size_bytes + removed.size_bytes, objects + removed.objects
            if not left:
                self.remove_if_empty(day)
        return Expired(Amount(size_bytes, objects), False, min(next_s, default=None))

    def remove(self, repository: Repository, objects: list[Trashed]) -> Amount:
        """
        Remove objects from a repository's trash for good, as far as they are as they were when they were listed.

        @return: what was removed.
        """
        removed = Amount()
        if not objects:
            return removed
        with suppress(FileNotFoundError), self._lock(repository, exclusive=True):
            for trashed in objects:
                with suppress(FileNotFoundError):
                    status = os.lstat(trashed.path)
                    if stat.S_ISREG(status.st_mode) and status.st_ctime_ns == trashed.changed_ns:
                        os.unlink(trashed.path)
                        removed = Amount(removed.size_bytes + status.st_size, removed.objects + 1)
        return removed

    def remove_if_empty(self, day: TrashDay) -> None:
        """Remove the directories of a day if nothing is in them, then the trash's; and the repository's if that was all."""
        with suppress(FileNotFoundError), self._lock(day.repository, exclusive=True):
            for _, directory in list(type_directories(day)):
                if not _remove_directory(directory):
                    return
            names = os.listdir(day.path)
            if not all(map(is_keep_name, names)):
                return  # something that is not the server's
            for name in names:
                self._known.pop(f"{day.path}/{name}", None)
                os.unlink(f"{day.path}/{name}")
            _remove_directory(day.path)
            if _remove_directory(trash_path(self.path, day.repository)) and day.repository:
                # Of a repository that was deleted nothing else is left.
                _remove_directory(repository_path(self.path, day.repository))


def _renewed(source: str, target: str, name: str) -> bool:
    """
    Delete an object that was deleted on the same day before, if both are the same: one copy stays, as if it was deleted now.
    Whether that was done.
    """
    with suppress(OSError):
        with opened(target) as kept, opened(source) as again:
            if not hash_of(kept) == hash_of(again) == name:
                return False
            os.fchmod(kept, stat.S_IMODE(os.fstat(kept).st_mode))
        os.unlink(source)
        return True
    return False


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_moved(source: str, target: str, before: os.stat_result) -> bool:
    with suppress(OSError):
        return not os.path.lexists(source) and os.path.samestat(os.lstat(target), before)
    return False


def _is_same(first: str, second: str) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.lstat(first), os.lstat(second))
    return False


def _remove_directory(path: str) -> bool:
    """Remove a directory if it is empty; whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
