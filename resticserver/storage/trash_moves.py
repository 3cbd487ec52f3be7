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
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import NamedTuple

from ..errors import NotFound
from ..names import CONFIG, TYPES
from ..sizes import Amount
from .filesystem_types import is_local, renames_at_once
from .free_space import space_errors
from .layout import Repository, object_directory, repository_path
from .publish import TEMPORARY_FOLDER, Publisher, rename_noreplace
from .reading import hash_of, opened
from .trash import (
    DAY_S,
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
_LOCK_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


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
        #: By device: whether one fsync makes a rename durable in both directories.
        self._at_once: dict[int, bool] = {}
        #: Whether an object had to be copied: the trash of a repository is on another file system then.
        self._copies = False
        self._moving = threading.Lock()
        #: For giving names without C{renameat2}. Not L{_moving}: whoever wants this one has the shared lock already.
        self._naming = threading.Lock()

    # --- into the trash

    def keep(self, repository: Repository, object_type: str, source: str, delay_s: float) -> str | None:
        """
        Move an object to the trash. That is not durable yet: L{fsync} the returned directory, then the object's own. Whatever
        fails, the object stays where it was.

        @param source: its path.
        @param delay_s: how long it is to be kept at least.
        @return: the directory in the trash; C{None} if there was no such object.
        @raise InsufficientStorage: there is no room for a directory.
        @raise OSError: the trash, or a directory in it, is no directory or is a link, or cannot be written.
        """
        name = os.path.basename(source)
        try:
            if object_type == CONFIG:
                with opened(source) as fd:
                    name = hash_of(fd)
            with space_errors():
                for _ in range(_ATTEMPTS):
                    day = f"{trash_path(self.path, repository)}/{_today(int(time.time() // DAY_S))}"
                    file = f"{day}/{_keep_name(delay_s)}"
                    _refuse_link(day)
                    try:
                        if file not in self._known:
                            self._make_day(repository, day, delay_s)
                        fd = self._shared_lock(repository)
                        try:
                            # As long as this is locked, the directory stays, and what says how long it is kept.
                            if os.stat(file).st_ino == self._known.get(file):
                                return self._move_to_day(source, day, object_type, name)
                        finally:
                            os.close(fd)
                    except FileNotFoundError:
                        if not os.path.lexists(source):
                            return None  # else the trash was emptied in between
                    self._known.pop(file, None)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.lexists(source):
                raise  # something in the trash is no directory
            return None
        raise OSError(errno.EIO, "cannot be moved to the trash", source)

    def fsync_moved(self, kept: str, source_directory: str) -> None:
        """
        Make durable that an object was moved to the trash.

        @param kept: the directory that it is in now.
        @param source_directory: the directory that it was in.
        @raise FileNotFoundError: its directory is gone.
        """
        fd = os.open(source_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device = os.fstat(fd).st_dev
            at_once = self._at_once.get(device)
            if at_once is None:
                at_once = self._at_once[device] = renames_at_once(fd)
            if not at_once or self._copies:
                self.fsync(kept)
            self._publisher.fsync(fd)
        finally:
            os.close(fd)

    def fsync(self, directory: str) -> None:
        """Make durable what was moved into a directory of the trash. If it is gone, it was emptied in between."""
        with suppress(FileNotFoundError):
            self._publisher.fsync_directory(directory)

    def fsync_missing(self, repository: Repository, object_type: str) -> None:
        """
        Make durable what an earlier deletion has moved: of an object that is gone already the deletion may have been killed,
        or have failed, before its fsync.
        """
        for at_s in (time.time(), time.time() - 60):
            with suppress(FileNotFoundError, NotADirectoryError):
                self._publisher.fsync_directory(f"{trash_path(self.path, repository)}/{day_name(at_s)}/{object_type}")

    def _make_day(self, repository: Repository, day: str, delay_s: float) -> None:
        """Make the directory of a day, which is kept for so long at least."""
        self._publisher.make_directory(trash_path(self.path, repository))
        fd = self._shared_lock(repository)
        try:
            self._publisher.make_directory(day)
            inode = self._keep_for(day, delay_s)
        finally:
            os.close(fd)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[f"{day}/{_keep_name(delay_s)}"] = inode

    def _keep_for(self, day: str, delay_s: float) -> int:
        """Have a day kept for so many seconds at least, durably; the inode of the file that says so."""
        # Only for reading: it may be another user's of the same group.
        flags = os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(f"{day}/{keep_name(delay_s)}", flags, self._publisher.file_mode)
        try:
            status = os.fstat(fd)
            if status.st_uid == os.geteuid():
                os.fchmod(fd, self._publisher.file_mode)  # whatever the umask
            self._publisher.fsync(fd)
            inode = status.st_ino
        finally:
            os.close(fd)
        self._publisher.fsync_directory(day)
        return inode

    def _move_to_day(self, source: str, day: str, object_type: str, name: str) -> str:
        """Move a file into a day's directory; the directory that it is in then."""
        for twin in range(1, _MOST_TWINS):
            directory = f"{day}/{object_type}" if twin == 1 else f"{day}/{object_type}.{twin}"
            _refuse_link(directory)
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
            if local or not _is_missing(source) or _is_missing(target):
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
        # Names in the trash are given only under these locks.
        with self._naming, _directory_lock(os.path.dirname(target)):
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
        self._copies = True
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
        if trashed.object_type == CONFIG:
            # Of a repository that was deleted: restic cannot lock it without the directory of its locks.
            for object_type in TYPES:
                publisher.make_directory(f"{top}/{object_type}")
        if not os.path.isdir(directory):
            for path in dict.fromkeys((f"{top}/{trashed.object_type}", directory)):
                publisher.make_directory(path)
        with self._locked(repository):
            if not os.path.samestat(os.lstat(trashed.path), verified):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), trashed.path)
            moved = self._move_back(trashed, target)
        publisher.fsync_directory(directory)
        self.fsync(os.path.dirname(trashed.path))
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
            try:
                with opened(target) as fd:
                    if hash_of(fd) == trashed.name:
                        return False
            except NotFound:
                pass  # a directory, or what else is no file
            raise

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

    def prolong(self, repository: Repository, since_s: float, by_s: float) -> None:
        """
        Keep for longer what was deleted since a time, because the clock was behind then.

        @param since_s: in seconds since 1970.
        @param by_s: by how many seconds.
        """
        for day in trash_days(self.path, repository):
            if day.begins_s + DAY_S > since_s and day.delay_s is not None:
                with suppress(FileNotFoundError), self._locked(repository):
                    self._keep_for(day.path, day.delay_s + by_s)

    def remove(self, repository: Repository, objects: list[Trashed]) -> Amount:
        """
        Remove objects from a repository's trash for good, as far as they are as they were when they were listed.

        @return: what was removed.
        """
        removed = Amount()
        if not objects:
            return removed
        with suppress(FileNotFoundError), self._locked(repository):
            for trashed in objects:
                with suppress(FileNotFoundError):
                    status = os.lstat(trashed.path)
                    if stat.S_ISREG(status.st_mode) and status.st_ctime_ns == trashed.changed_ns:
                        os.unlink(trashed.path)
                        removed = Amount(removed.size_bytes + status.st_size, removed.objects + 1)
        return removed

    def remove_if_empty(self, day: TrashDay) -> None:
        """Remove the directories of a day if nothing is in them, then the trash's; and the repository's if that was all."""
        with suppress(FileNotFoundError), self._locked(day.repository):
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
    with suppress(OSError, NotFound):
        with opened(target) as kept, opened(source) as again:
            if not hash_of(kept) == hash_of(again) == name:
                return False
            os.fchmod(kept, stat.S_IMODE(os.fstat(kept).st_mode))
            # Another deletion and an upload may have put another file there.
            if not os.path.samestat(os.fstat(again), os.lstat(source)):
                return False
        os.unlink(source)
        return True
    return False


def _refuse_link(path: str) -> None:
    """
    Nothing is moved out of the trash through a link.

    @raise NotADirectoryError: it is one.
    """
    if os.path.islink(path):
        raise NotADirectoryError(errno.ENOTDIR, "a link, which the trash must not have", path)


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_missing(path: str) -> bool:
    """Whether certainly nothing has this name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


_today = lru_cache(maxsize=4)(lambda day: day_name(day * DAY_S))
_keep_name = lru_cache(maxsize=1000)(keep_name)


def _is_local(directory: str) -> bool:
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return is_local(fd)
        finally:
            os.close(fd)
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
