"""
How bytes become a file: written where nobody sees them, then given their name in one step that never replaces.

The first of these that the file system takes is used; what it refuses once is not tried again:

 1. an unnamed file (O_TMPFILE) in the target's directory, published by C{linkat} through C{/proc/self/fd}: nothing to
    clean up after a crash;
 2. a file in the repository's C{.tmp}, published by C{link} and C{unlink};
 3. the same, published by C{renameat2(RENAME_NOREPLACE)} (file systems without hard links);
 4. the same, by a plain rename while the C{.tmp} is locked (exFAT, some FUSE and SMB): safe among the threads and the
    processes of one machine where that file system has locks, else among the threads of a process.

A file in C{.tmp} is locked (C{flock}) while its upload lives, so that the sweep at the start of another server on the
same directory leaves it alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType

from twisted.logger import Logger

from ..errors import InsufficientStorage
from ..files import Stamp, stamp_of
from ..sizes import format_size
from .room import Sent

#: Where named temporary files live, inside each repository: the same file system as its objects.
TEMPORARY_FOLDER = ".tmp"

_O_TMPFILE: int = getattr(os, "O_TMPFILE", 0)
_RENAME_NOREPLACE = 1
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EISDIR, errno.EMLINK)

#: A directory's times must be older than this before they tell that nothing in it has changed since: two changes in one
#: tick of a file system's clock look like one. The coarsest (FAT's) has 2 s.
_STILL_NS = 3_000_000_000

#: Directories whose names are known to be durable; one that is forgotten is made durable again.
_MOST_SETTLED = 10_000

_log = Logger()


@dataclass(frozen=True)
class Mechanisms:
    """
    Which ways a file system may be asked for; each can be switched off.

    @ivar unnamed: unnamed temporary files.
    @ivar hard_links: C{link}.
    @ivar rename_noreplace: C{renameat2} with RENAME_NOREPLACE.
    """

    unnamed: bool = bool(_O_TMPFILE) and os.path.isdir("/proc/self/fd")
    hard_links: bool = True
    rename_noreplace: bool = sys.platform == "linux"


class Publisher:
    """
    Makes temporary files and gives them their names.

    @ivar mechanisms: what is still believed to work here; shrinks as the file system refuses.
    """

    def __init__(self, file_mode: int, directory_mode: int, mechanisms: Mechanisms | None = None) -> None:
        self.file_mode = file_mode
        self.directory_mode = directory_mode
        self.mechanisms = mechanisms if mechanisms is not None else Mechanisms()
        self._renaming = threading.Lock()
        self._fsync_works = True
        #: Told how many seconds each fsync took; may be set by whoever wants to know.
        self.synced: Callable[[float], object] | None = None
        #: How each directory was when its names were made durable the last time; the oldest first.
        self._settled: dict[str, Stamp] = {}
        self._settled_guard = threading.Lock()

    def temporary(self, directory: str, directory_fd: int, repository_path: str) -> TemporaryFile:
        """
        A new empty file that nobody sees, to be published in C{directory}.

        @raise InsufficientStorage: the disk is full.
        """
        with space_errors():
            if self.mechanisms.unnamed:
                try:
                    fd = os.open(".", _O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
                    self._without(unnamed=False)
                else:
                    return self._adopt(TemporaryFile(self, fd, None, directory, directory_fd, repository_path))
            return self._named(directory, directory_fd, repository_path)

    def _named(self, directory: str, directory_fd: int, repository_path: str) -> TemporaryFile:
        path = self._temporary_name(repository_path)
        while True:
            try:
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                self.make_directory(os.path.dirname(path))
                continue
            file = TemporaryFile(self, fd, path, directory, directory_fd, repository_path)
            _lock(fd)
            if os.fstat(fd).st_nlink:
                return self._adopt(file)
            file.discard()  # a sweep was quicker than our lock

    def _adopt(self, file: TemporaryFile) -> TemporaryFile:
        try:
            os.fchmod(file.fd, self.file_mode)
        except BaseException:
            file.discard()
            raise
        return file

    @staticmethod
    def _temporary_name(repository_path: str) -> str:
        return os.path.join(repository_path, TEMPORARY_FOLDER, f"{secrets.token_hex(16)}.upload")

    def link_name(self, file: TemporaryFile, name: str) -> None:
        """
        Give an unnamed file its name.

        @raise FileExistsError: the name is taken.
        """
        os.link(f"/proc/self/fd/{file.fd}", name, dst_dir_fd=file.directory_fd, follow_symlinks=True)

    def publish(self, file: TemporaryFile, name: str) -> None:
        """
        Give the file its name unless the name is taken. The file's bytes are durable already; its name is not yet.

        @raise FileExistsError: the name is taken; the file is as it was.
        """
        if file.path is None:
            try:
                self.link_name(file, name)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED and error.errno != errno.EXDEV:
                    raise
                self._without(unnamed=False)
                self._become_named(file)
        assert file.path is not None
        target = os.path.join(file.directory, name)
        if self.mechanisms.hard_links:
            try:
                os.link(file.path, target)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._without(hard_links=False)
            else:
                os.unlink(file.path)
                file.path = None
                return
        self._rename(file, target)

    def replace(self, file: TemporaryFile, name: str) -> int:
        """
        Give the file its name and take it from whatever had it, in one step.

        @return: the size in bytes of what had it. Two that replace the same do so one after the other, and the second is told of
            the first's.
        """
        if file.path is None:
            path = self._temporary_name(file.repository_path)
            self.make_directory(os.path.dirname(path))
            _lock(file.fd)  # before a sweep can see it
            try:
                os.link(f"/proc/self/fd/{file.fd}", path, follow_symlinks=True)
            except OSError as error:
                if error.errno not in _UNSUPPORTED and error.errno != errno.EXDEV:
                    raise
                self._become_named(file)
            else:
                file.path = path
        assert file.path is not None
        target = os.path.join(file.directory, name)
        with self._renaming, _locked(os.path.dirname(file.path)):
            try:
                before = os.stat(target).st_size
            except FileNotFoundError:
                before = -1
            os.rename(file.path, target)
            file.path = None
        return before

    def _rename(self, file: TemporaryFile, target: str) -> None:
        assert file.path is not None
        if self.mechanisms.rename_noreplace:
            try:
                _rename_noreplace(file.path, target)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._without(rename_noreplace=False)
            else:
                file.path = None
                return
        # The file is in that folder, so nobody removes the folder meanwhile.
        with self._renaming, _locked(os.path.dirname(file.path)):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            os.rename(file.path, target)
            file.path = None

    def _become_named(self, file: TemporaryFile) -> None:
        """Copy an unnamed file that cannot be linked into one that can be renamed."""
        named = self._named(file.directory, file.directory_fd, file.repository_path)
        try:
            offset = 0
            while chunk := os.pread(file.fd, 1 << 20, offset):
                written = os.write(named.fd, chunk)
                offset += written
            self.fsync(named.fd)
        except BaseException:
            named.discard()
            raise
        os.close(file.fd)
        file.fd, file.path = named.fd, named.path

    def make_directory(self, path: str) -> bool:
        """Make a directory with the server's mode and make it durable in its parent; whether it was missing."""
        with self.new_directory_names(os.path.dirname(path)):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                return False
            self.set_directory_mode(path)
            return True

    @contextmanager
    def new_directory_names(self, parent: str) -> Iterator[None]:
        """While directories are made in C{parent}; at the end their names are durable, also those that others made."""
        yield
        self.fsync_directory(parent)

    def settle(self, directory: str, top: str) -> None:
        """
        Make the names durable that lead from C{top} to a directory below it.

        Else an object could be acknowledged whose directory a power cut takes away: whoever made the directory (another
        thread, another process, a server that was killed) may not have come to the fsync. A directory whose times have
        not changed since its last fsync here has no new names, so all this costs but once is a look at each.
        """
        while len(directory) > len(top):
            directory = directory[: directory.rindex("/")] or "/"
            status = os.stat(directory)
            stamp = stamp_of(status)
            if self._settled.get(directory) == stamp:
                continue
            still = max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - _STILL_NS
            # One that we may not read is none that this server made anything in.
            with suppress(PermissionError):
                self.fsync_directory(directory)
            if still:
                self._remember_settled(directory, stamp)

    def _remember_settled(self, directory: str, stamp: Stamp) -> None:
        with self._settled_guard:
            self._settled.pop(directory, None)
            self._settled[directory] = stamp
            if len(self._settled) > _MOST_SETTLED:
                del self._settled[next(iter(self._settled))]

    def set_directory_mode(self, path: str) -> None:
        """Give a new directory the server's mode, whatever the umask; a setgid bit that it inherited stays."""
        os.chmod(path, self.directory_mode | (os.stat(path).st_mode & stat.S_ISGID))

    def fsync(self, fd: int) -> None:
        """Make a file or directory durable; where the file system cannot, say so once and go on."""
        synced = self.synced
        began = time.perf_counter() if synced is not None else 0.0
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
                raise
            if self._fsync_works:
                self._fsync_works = False
                _log.warn(
                    "this file system does not support fsync ({error}): a power cut may lose what was just stored",
                    error=error,
                )
        if synced is not None:
            synced(time.perf_counter() - began)

    def fsync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def _without(self, **off: bool) -> None:
        self.mechanisms = replace(self.mechanisms, **off)
        _log.info("this file system does not take {off}; going on without", off=", ".join(off))


@dataclass(slots=True)
class TemporaryFile:
    """
    A file that nobody sees yet.

    @ivar fd: open for reading and writing; -1 once discarded.
    @ivar path: its name in C{.tmp}, or C{None} while it has none.
    @ivar directory: where it will be published, and C{directory_fd} the same, open (not owned).
    """

    publisher: Publisher
    fd: int
    path: str | None
    directory: str
    directory_fd: int
    repository_path: str

    def discard(self) -> None:
        """Close it; remove it if it still has a temporary name. Idempotent."""
        fd, self.fd = self.fd, -1
        path, self.path = self.path, None
        if path is not None:
            with suppress(FileNotFoundError):
                os.unlink(path)
        if fd >= 0:
            os.close(fd)


def sweep(repository_path: str) -> int:
    """Remove what uploads of a killed server left in C{.tmp}; how many files that were. Those still in use stay."""
    folder = os.path.join(repository_path, TEMPORARY_FOLDER)
    removed = 0
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for name in names:
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            removed += 1
        except OSError:
            pass
        finally:
            os.close(fd)
    with suppress(OSError):
        os.rmdir(folder)
    return removed


class _SpaceErrors:
    """What L{space_errors} gives: the same for all, without the generator that costs a small upload three microseconds."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage() from error


_SPACE_ERRORS = _SpaceErrors()


def space_errors() -> AbstractContextManager[None]:
    """Turn a full disk or an exceeded disk quota into the domain's word for it."""
    return _SPACE_ERRORS


def no_space(sent: Sent, status: os.statvfs_result, error: OSError) -> InsufficientStorage:
    """
    A full disk, with how much was sent and how much is left.

    @param status: of the file system.
    @param error: what it said.
    """
    words = InsufficientStorage.default
    if error.errno == errno.EDQUOT:
        return InsufficientStorage(f"{words} for the server's user (disk quota): {sent}")
    if status.f_files and not status.f_favail:
        return InsufficientStorage(f"{words} (no free inodes): {sent}")
    left_bytes = status.f_bavail * status.f_frsize + sent.stored_bytes
    return InsufficientStorage(f"{words}: {sent}, {format_size(left_bytes)} left")


def _lock(fd: int) -> None:
    """Lock a temporary file (against the sweep of another server) or a folder, where the file system has locks."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a folder's lock, which other processes want too, where the file system has locks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd)
        yield
    finally:
        os.close(fd)


def _rename_noreplace(source: str, target: str) -> None:
    """Linux's C{renameat2(2)}, which Python's C{os} does not have."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    at_cwd = -100
    if renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)
