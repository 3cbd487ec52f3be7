"""
How bytes become a file: written where nobody sees them, then given their name in one step that never replaces.

The first of these that the file system takes is used. What it refuses, and refuses again for a file of no importance, is
left out for files on that file system (one data directory may hold mounts of several) and tried again after some minutes:

 1. an unnamed file (O_TMPFILE) in the target's directory, published by C{linkat} through C{/proc/self/fd}: nothing to
    clean up after a crash;
 2. a file in the repository's C{.tmp}, published by C{link} and C{unlink};
 3. the same, published by C{renameat2(RENAME_NOREPLACE)} (file systems without hard links);
 4. the same, by a plain rename while the C{.tmp} is locked (exFAT, some FUSE and SMB): safe among the threads and the
    processes of one machine where that file system has locks, else among the threads of a process.

A file in C{.tmp} is locked (C{flock}) while its upload lives, so that the sweep at the start of another server on the
same directory leaves it alone. The sweep takes nothing but what this module may have made: see L{sweep}.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from types import TracebackType

from twisted.logger import Logger

from ..errors import InsufficientStorage
from ..files import Stamp, is_directory, stamp_of
from ..names import CONFIG, TYPES
from ..sizes import format_size
from .free_space import Sent

#: Where named temporary files live, inside each repository: the same file system as its objects.
TEMPORARY_FOLDER = ".tmp"

#: What uploads are called there; nothing else is ever removed from it.
_UPLOAD = re.compile(r"[0-9a-f]{32}\.upload\Z")

_O_TMPFILE: int = getattr(os, "O_TMPFILE", 0)
_RENAME_NOREPLACE = 1
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EISDIR, errno.EMLINK)

#: What a file system has refused is tried again after so many seconds: the refusal may have been a mistake, and its number
#: may be another file system's by then.
_REFUSED_S = 300.0

#: How often a temporary file is tried again whose folder went away meanwhile.
_ATTEMPTS = 16
#: How a place refuses to be written that may be read all the same.
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)

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

    @ivar mechanisms: which ways may be tried; L{mechanisms_on} says what is left of them on one file system.
    """

    def __init__(self, file_mode: int, directory_mode: int, mechanisms: Mechanisms | None = None) -> None:
        self.file_mode = file_mode
        self.directory_mode = directory_mode
        self.mechanisms = mechanisms if mechanisms is not None else Mechanisms()
        #: Until when a way is left out, on the monotonic clock, by the file system's C{st_dev} and the way's name.
        self._refused: dict[tuple[int, str], float] = {}
        self._told: set[tuple[int, str]] = set()
        self._renaming = threading.Lock()
        self._fsync_works = True
        #: Told how many seconds each fsync took; may be set by whoever wants to know.
        self.synced: Callable[[float], object] | None = None
        #: How each directory was when its names were made durable the last time; the oldest first.
        self._settled: dict[str, Stamp] = {}
        self._settled_guard = threading.Lock()

    def mechanisms_on(self, directory_fd: int) -> Mechanisms:
        """Which ways are believed to work on the file system of an open directory."""
        return Mechanisms(**{way.name: self._takes(directory_fd, way.name) for way in fields(Mechanisms)})

    def _takes(self, directory_fd: int, way: str) -> bool:
        """Whether a way is worth a try on the file system of an open directory."""
        if not getattr(self.mechanisms, way):
            return False
        if not self._refused:
            return True  # nothing anywhere, which is the usual case
        until = self._refused.get((os.fstat(directory_fd).st_dev, way))
        return until is None or until <= time.monotonic()

    def _without(self, directory_fd: int, way: str, trial: Callable[[], object]) -> None:
        """
        A way was refused: leave it out for files on that file system, if it is refused for a trial as well.

        One refusal alone says little: the next file may be taken.
        """
        try:
            trial()
        except OSError as error:
            if error.errno not in _UNSUPPORTED and error.errno != errno.EXDEV:
                return
        else:
            return
        key = (os.fstat(directory_fd).st_dev, way)
        self._refused[key] = time.monotonic() + _REFUSED_S
        if key not in self._told:
            self._told.add(key)
            _log.info("this file system does not take {off}; going on without", off=way)

    def temporary(self, directory: str, directory_fd: int, repository_path: str) -> TemporaryFile:
        """
        A new empty file that nobody sees, to be published in C{directory}.

        @raise InsufficientStorage: the disk is full.
        """
        with space_errors():
            if self._takes(directory_fd, "unnamed"):
                try:
                    fd = _open_unnamed(directory_fd)
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
                    self._without(directory_fd, "unnamed", lambda: os.close(_open_unnamed(directory_fd)))
                else:
                    return self._adopt(TemporaryFile(self, fd, None, directory, directory_fd, repository_path))
            return self._named(directory, directory_fd, repository_path)

    def _named(self, directory: str, directory_fd: int, repository_path: str) -> TemporaryFile:
        path = self._temporary_name(repository_path)
        for _ in range(_ATTEMPTS):
            try:
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                self.make_directory(os.path.dirname(path))
                continue
            file = TemporaryFile(self, fd, path, directory, directory_fd, repository_path)
            try:
                _lock(fd)
                swept = os.fstat(fd).st_nlink == 0
            except BaseException:
                file.discard()
                raise
            if not swept:
                return self._adopt(file)
            file.discard()  # a sweep was quicker than our lock
        raise OSError(errno.EIO, "no temporary file can be made", os.path.dirname(path))

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
        _link_unnamed(file.fd, name, file.directory_fd)

    def publish(self, file: TemporaryFile, name: str) -> None:
        """
        Give the file its name unless the name is taken. The file's bytes are durable already; its name is not yet.

        @raise FileExistsError: the name is taken; the file is as it was.
        """
        try:
            self._publish(file, name)
        except OSError:
            # A call may fail and have done its work: on network file systems the answer is lost and the question repeated.
            if not _has_name(file, name):
                raise

    def _publish(self, file: TemporaryFile, name: str) -> None:
        if file.path is None:
            try:
                self.link_name(file, name)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED and error.errno != errno.EXDEV:
                    raise
                self._become_named(file)
                self._without(file.directory_fd, "unnamed", lambda: self._try_unnamed(file))
        assert file.path is not None
        target = os.path.join(file.directory, name)
        if self._takes(file.directory_fd, "hard_links"):
            try:
                os.link(file.path, target)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._without(file.directory_fd, "hard_links", lambda: self._try_link(file))
            else:
                file.forget_name()
                return
        self._rename(file, target)

    def _try_unnamed(self, file: TemporaryFile) -> None:
        """Link an unnamed file where a file's temporary name is."""
        assert file.path is not None
        trial = self._temporary_name(file.repository_path)
        folder_fd = os.open(os.path.dirname(trial), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = _open_unnamed(folder_fd)
            try:
                _lock(fd)
                _link_unnamed(fd, os.path.basename(trial), folder_fd)
                os.unlink(trial)
            finally:
                os.close(fd)
        finally:
            os.close(folder_fd)

    def _try_link(self, file: TemporaryFile) -> None:
        """Give a file a second temporary name."""
        assert file.path is not None
        trial = self._temporary_name(file.repository_path)
        os.link(file.path, trial)
        os.unlink(trial)

    def _try_rename(self, file: TemporaryFile) -> None:
        """Give a file another temporary name."""
        assert file.path is not None
        trial = self._temporary_name(file.repository_path)
        _rename_noreplace(file.path, trial)
        file.path = trial

    def replace(self, file: TemporaryFile, name: str) -> int | None:
        """
        Give the file its name and take it from whatever had it, in one step.

        @return: the size in bytes of what had it, -1 if nothing had, C{None} if that cannot be told. Two that replace the same
            do so one after the other, and the second is told of the first's.
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
            before: int | None
            try:
                before = os.stat(target).st_size
            except FileNotFoundError:
                before = -1
            except OSError:
                before = None  # damaged itself
            try:
                os.rename(file.path, target)
            except OSError:
                if not _has_name(file, name):
                    raise
            file.path = None
        return before

    def _rename(self, file: TemporaryFile, target: str) -> None:
        assert file.path is not None
        if self._takes(file.directory_fd, "rename_noreplace"):
            try:
                _rename_noreplace(file.path, target)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._without(file.directory_fd, "rename_noreplace", lambda: self._try_rename(file))
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
        unnamed_fd, file.fd, file.path = file.fd, named.fd, named.path
        os.close(unnamed_fd)

    def make_directory(self, path: str) -> bool:
        """
        Make a directory with the server's mode and make it durable in its parent; whether it was missing.

        @raise OSError: something else has the name.
        """
        with self.new_directory_names(os.path.dirname(path)):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                is_directory(path)
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

    def forget_name(self) -> None:
        """
        Remove the temporary name of a file that has its own by now. It is stored and stays so: a name that cannot be removed
        is left for the next sweep.
        """
        path, self.path = self.path, None
        if path is not None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                _log.warn(
                    "cannot remove {path} ({error}): the next start of the server will", path=path, error=error.strerror
                )

    def discard(self) -> None:
        """Close it; remove it if it still has a temporary name. Idempotent, and never fails for the name's sake."""
        fd, self.fd = self.fd, -1
        try:
            self.forget_name()
        finally:
            if fd >= 0:
                os.close(fd)


def sweep(data_path: str, repository: tuple[str, ...] = ()) -> int:
    """
    Remove what uploads of a killed server left in a repository's C{.tmp}; how many files that were.

    That are regular files that are called as uploads are, which nobody has locked, in a C{.tmp} that is a directory, in a
    folder where restic's things are. No link below the data directory is followed. All else is not this server's and stays.

    @param data_path: the data directory.
    @param repository: the folders from there to what may be a repository.
    """
    with ExitStack() as opened:
        # Where there is no such folder, where a link leads elsewhere, or where we may not enter, there is nothing of ours.
        with suppress(OSError):
            folder_fd = _open_folder(data_path, None)
            opened.callback(os.close, folder_fd)
            for name in repository:
                folder_fd = _open_folder(name, folder_fd)
                opened.callback(os.close, folder_fd)
            if not _is_repository(folder_fd):
                return 0
            temporary_fd = _open_folder(TEMPORARY_FOLDER, folder_fd)
            opened.callback(os.close, temporary_fd)
            removed = sum(_sweep_file(temporary_fd, name) for name in os.listdir(temporary_fd) if _UPLOAD.match(name))
            with suppress(OSError):
                os.rmdir(TEMPORARY_FOLDER, dir_fd=folder_fd)
            return removed
    return 0


def _open_folder(name: str, parent_fd: int | None) -> int:
    """A directory's descriptor; of one in another directory only if it is there itself, and not a link to it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(name, flags if parent_fd is None else flags | os.O_NOFOLLOW, dir_fd=parent_fd)


def _is_repository(folder_fd: int) -> bool:
    """
    Whether restic's things are in a folder: a config, or every directory that a repository has. A repository whose config has
    not come yet, or was on its way when the server was killed, has those.
    """
    with suppress(OSError):
        if stat.S_ISREG(os.stat(CONFIG, dir_fd=folder_fd).st_mode):
            return True
    with suppress(OSError):
        return all(stat.S_ISDIR(os.stat(kind, dir_fd=folder_fd).st_mode) for kind in TYPES)
    return False


def _sweep_file(folder_fd: int, name: str) -> bool:
    """Remove one file if it is a regular one that nobody has locked; whether it was removed."""
    with suppress(OSError):
        if not stat.S_ISREG(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
            return False
        # For writing: NFS locks no file exclusively that is open for reading alone.
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder_fd)
            return True
        finally:
            os.close(fd)
    return False


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


def _open_unnamed(directory_fd: int) -> int:
    return os.open(".", _O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)


def _link_unnamed(fd: int, name: str, directory_fd: int) -> None:
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)


def _has_name(file: TemporaryFile, name: str) -> bool:
    """Whether a name in its directory means this very file, though the call that was to bring that about has failed."""
    with suppress(OSError):
        if not os.path.samestat(os.fstat(file.fd), os.stat(name, dir_fd=file.directory_fd, follow_symlinks=False)):
            return False
        # Inode numbers of some FUSE file systems are not worth much: the number of names, or a name that is gone, must
        # agree with it.
        links = os.fstat(file.fd).st_nlink
        return links == (1 if file.path is None else 2) or (file.path is not None and not os.path.lexists(file.path))
    return False


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
