"""
How an upload's bytes become a file: written where nothing sees them, then given their name in one step that never replaces.

Of these ways the first is used that the file system supports. A way that it refuses, and refuses again for a trial file, is
not tried for some minutes on that file system (a data directory may hold several mounts):

 1. an unnamed file (O_TMPFILE) in the target's directory, published by C{linkat} through C{/proc/self/fd}: a crash leaves
    nothing behind;
 2. a file in the repository's C{.tmp}, published by C{link} and C{unlink};
 3. the same, published by C{renameat2(RENAME_NOREPLACE)} (file systems without hard links);
 4. the same, by a plain rename while the C{.tmp} is locked (exFAT, some FUSE and SMB): safe among the threads and the
    processes of one machine where that file system has locks, else among the threads of a process.

A file in C{.tmp} is locked (C{flock}) while its upload lives, so that another server that starts on the same directory does
not remove it (L{resticserver.storage.sweep}).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import lru_cache

from twisted.logger import Logger

from ..files import is_there
from .durable import DurableDirectories
from .free_space import space_errors

#: Where named temporary files live, inside each repository: the same file system as its objects.
TEMPORARY_FOLDER = ".tmp"

_O_TMPFILE: int = getattr(os, "O_TMPFILE", 0)
_RENAME_NOREPLACE = 1
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EISDIR, errno.EMLINK)

#: A way that was refused is tried again after so many seconds: the refusal may have been a mistake, and another file system
#: may have that device number by then.
_REFUSED_S = 300.0

#: How often a temporary file is tried again whose folder was removed in between.
_ATTEMPTS = 16
#: The errors of a directory that can be read and not be written.
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)

_log = Logger()


@dataclass(frozen=True)
class Mechanisms:
    """
    Which ways are tried; each can be switched off.

    @ivar unnamed: unnamed temporary files.
    @ivar hard_links: C{link}.
    @ivar rename_noreplace: C{renameat2} with RENAME_NOREPLACE.
    """

    unnamed: bool = bool(_O_TMPFILE) and os.path.isdir("/proc/self/fd")
    hard_links: bool = True
    rename_noreplace: bool = sys.platform == "linux"


class Publisher(DurableDirectories):
    """
    Makes temporary files and gives them their names. Safe from several threads.

    @param file_mode: of files, whatever the umask; C{directory_mode} of directories likewise.
    @ivar mechanisms: which ways may be tried; L{mechanisms_on} returns those that one file system supports.
    """

    def __init__(
        self, file_mode: int = 0o600, directory_mode: int = 0o700, mechanisms: Mechanisms | None = None
    ) -> None:
        super().__init__(directory_mode)
        self.file_mode = file_mode
        self.mechanisms = mechanisms if mechanisms is not None else Mechanisms()
        #: Until when a way is not tried, on the monotonic clock, by the file system's C{st_dev} and the way's name.
        self._refused: dict[tuple[int, str], float] = {}
        self._told: set[tuple[int, str]] = set()
        self._renaming = threading.Lock()

    def mechanisms_on(self, directory_fd: int) -> Mechanisms:
        """Which ways work on the file system of an open directory, as far as is known."""
        return Mechanisms(**{way.name: self._takes(directory_fd, way.name) for way in fields(Mechanisms)})

    def _takes(self, directory_fd: int, way: str) -> bool:
        """Whether a way is to be tried on the file system of an open directory."""
        if not getattr(self.mechanisms, way):
            return False
        if not self._refused:
            return True  # the usual case: no way was ever refused
        until = self._refused.get((os.fstat(directory_fd).st_dev, way))
        return until is None or until <= time.monotonic()

    def _without(self, directory_fd: int, way: str, trial: Callable[[], object]) -> None:
        """
        A way was refused: if it is refused for a trial as well, do not try it on that file system for some minutes.

        One refusal alone proves nothing: the next file may be accepted.
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
            _log.info("this file system does not support {off}; continuing without it", off=way)

    def temporary(self, directory: str, directory_fd: int, repository_path: str) -> TemporaryFile:
        """
        A new empty file that has no name yet that clients can see, to be published in C{directory}.

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
            file.discard()  # a sweep removed it before it was locked
        raise OSError(errno.EIO, "cannot create a temporary file", os.path.dirname(path))

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
        Give the file its name unless the name is taken. The file's bytes are durable already; its name becomes so later.

        @raise FileExistsError: the name is taken; the file is as it was.
        """
        try:
            self._publish(file, name)
        except OSError:
            # A call may fail and have succeeded: network file systems may lose the answer and repeat the call.
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
        """Link another unnamed file in the folder of a file's temporary name."""
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
        rename_noreplace(file.path, trial)
        file.path = trial

    def replace(self, file: TemporaryFile, name: str) -> int | None:
        """
        Give the file its name in one step, in place of what had that name.

        @return: the size in bytes of what had the name, -1 if nothing had it, C{None} if that cannot be looked at. Of two
            replacements of the same name the second returns the size of the first.
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
                before = None  # its metadata are damaged
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
                rename_noreplace(file.path, target)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._without(file.directory_fd, "rename_noreplace", lambda: self._try_rename(file))
            else:
                file.path = None
                return
        # The folder is not empty, so nothing removes it in between.
        with self._renaming, _locked(os.path.dirname(file.path)):
            if is_there(target):
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


@dataclass(slots=True)
class TemporaryFile:
    """
    A file that is not published yet.

    @ivar fd: open for reading and writing; -1 once discarded.
    @ivar path: of its name in C{.tmp}; C{None} while it has none.
    @ivar directory: where it will be published; C{directory_fd} is the same, open (not owned).
    """

    publisher: Publisher
    fd: int
    path: str | None
    directory: str
    directory_fd: int
    repository_path: str

    def forget_name(self) -> None:
        """
        Remove the temporary name of a published file. If that fails the file stays stored, and the next sweep removes the name.
        """
        path, self.path = self.path, None
        if path is not None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                _log.warn(
                    "cannot remove {path} ({error}): it will be removed at the next start",
                    path=path,
                    error=error.strerror,
                )

    def discard(self) -> None:
        """Close it; remove it if it still has a temporary name. Idempotent; a name that cannot be removed is no error."""
        fd, self.fd = self.fd, -1
        try:
            self.forget_name()
        finally:
            if fd >= 0:
                os.close(fd)


def _open_unnamed(directory_fd: int) -> int:
    return os.open(".", _O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)


def _link_unnamed(fd: int, name: str, directory_fd: int) -> None:
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd, follow_symlinks=True)


def _has_name(file: TemporaryFile, name: str) -> bool:
    """Whether a name in its directory means this file, although the call that was to give it the name has failed."""
    with suppress(OSError):
        if not os.path.samestat(os.fstat(file.fd), os.stat(name, dir_fd=file.directory_fd, follow_symlinks=False)):
            return False
        # Inode numbers are not reliable on some FUSE file systems: the number of names, or the missing temporary name, must
        # agree.
        links = os.fstat(file.fd).st_nlink
        return links == (1 if file.path is None else 2) or (file.path is not None and not os.path.lexists(file.path))
    return False


def _lock(fd: int) -> None:
    """Lock a temporary file (against the sweep of another server) or a folder, if the file system has locks."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a folder's lock against other processes, if the file system has locks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd)
        yield
    finally:
        os.close(fd)


@lru_cache(maxsize=1)
def _renameat2() -> Callable[..., int] | None:
    """The C library's function; C{None} where there is none."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def rename_noreplace(source: str, target: str) -> None:
    """
    Linux's C{renameat2(2)} with RENAME_NOREPLACE, which Python's C{os} does not have.

    @raise FileExistsError: the target's name is taken.
    @raise OSError: this system or the file system does not support it (ENOSYS, EINVAL), or as for C{os.rename}.
    """
    renameat2 = _renameat2()
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_cwd = -100
    if renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)
