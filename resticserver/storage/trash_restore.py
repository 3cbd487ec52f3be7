"""
Out of the trash: back to where an object lay, or removed when its time is over.

Blocking, for a pool; safe from several threads and processes.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from ..errors import NotFound
from ..files import is_directory, is_there
from ..names import CONFIG, TYPES
from ..sizes import Amount
from .layout import Repository, object_directory, repository_path
from .publish import TEMPORARY_FOLDER
from .reading import hash_of, opened
from .trash import (
    DAY_S,
    TrashDay,
    Trashed,
    is_keep_name,
    live_name,
    trash_days,
    trash_path,
    trashed_objects,
    type_directories,
)
from .trash_keep import TrashKeeper
from .trash_moves import UNSUPPORTED, directory_lock


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


class Trash(TrashKeeper):
    """
    The trash of all repositories of a store.

    @param path: the data directory.
    @param publisher: makes directories and copies, and fsyncs.
    """

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
        if not is_directory(directory):
            for path in dict.fromkeys((os.path.dirname(directory), directory)):
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
                    if error.errno not in UNSUPPORTED:
                        raise
            # A client may upload the same object now: only a link, or the lock of uploads, keeps it.
            try:
                os.link(trashed.path, target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
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

    def _rename_back(self, trashed: Trashed, target: str) -> None:
        folder = f"{repository_path(self.path, trashed.day.repository)}/{TEMPORARY_FOLDER}"
        self._publisher.make_directory(folder)
        with directory_lock(folder):
            if is_there(target):
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
        for trashed in objects:
            # One at a time: deletions wait for the lock, and to unlink a large file may take milliseconds.
            with suppress(FileNotFoundError), self._locked(repository):
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


def _is_same(first: str, second: str) -> bool:
    with suppress(FileNotFoundError):
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
