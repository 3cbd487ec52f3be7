"""
Into the trash: a deletion that keeps the object for a while.

Blocking, for a pool; safe from several threads and processes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from functools import lru_cache

from ..errors import NotFound
from ..files import is_link, is_there
from ..names import CONFIG
from ..threads.steps import Steps
from .filesystem_types import renames_at_once
from .free_space import space_errors
from .layout import Repository
from .reading import hash_of, opened
from .trash import (
    DAY_S,
    day_name,
    keep_name,
    trash_path,
)
from .trash_moves import TrashMoves, is_missing

#: How many directories are tried for one name on one day.
_MOST_TWINS = 100
#: How often a directory is made again that was removed in between.
_ATTEMPTS = 8
#: How many days' directories are remembered as made.
_MOST_KNOWN = 10_000


class TrashKeeper(TrashMoves):
    """Takes deleted objects of all repositories of a store."""

    def keep(self, repository: Repository, object_type: str, source: str, delay_s: float) -> str | None:
        """
        Move an object to the trash. That is not durable yet (L{steps_of_move}). Whatever fails, the object stays where it was.

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
                    try:
                        if file not in self._known:
                            _refuse_link(day)
                            self._make_day(repository, day, delay_s)
                        fd = self._shared_lock(repository)
                        try:
                            # As long as this is locked, the directory stays, and what says how long it is kept.
                            if os.stat(file).st_ino == self._known.get(file):
                                return self._move_to_day(source, day, object_type, name)
                        finally:
                            os.close(fd)
                    except FileNotFoundError:
                        if not is_there(source):
                            return None  # else the trash was emptied in between
                    self._known.pop(file, None)
        except (FileNotFoundError, NotADirectoryError):
            if is_there(source):
                raise  # something in the trash is no directory
            return None
        raise OSError(errno.EIO, "cannot be moved to the trash", source)

    def steps_of_move(self, kept: str, source_directory: str) -> Steps[None]:
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
            yield self._publisher, fd
        finally:
            os.close(fd)

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
                    if not is_there(source):
                        raise
                    self._publisher.make_directory(directory)
                    self._move(source, target)
                return directory
            if _renewed(source, target, name):
                return directory
        raise OSError(errno.EEXIST, "was deleted too often on one day", source)


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
        try:
            os.unlink(source)
        except FileNotFoundError:
            return False  # another deletion was first
        except OSError:
            if not is_missing(source):
                raise
        return True
    return False


def _refuse_link(path: str) -> None:
    """
    Nothing is moved out of the trash through a link.

    @raise NotADirectoryError: it is one.
    @raise OSError: it cannot be looked at.
    """
    if is_link(path):
        raise NotADirectoryError(errno.ENOTDIR, "a link, which the trash must not have", path)


_today = lru_cache(maxsize=4)(lambda day: day_name(day * DAY_S))
_keep_name = lru_cache(maxsize=1000)(keep_name)
