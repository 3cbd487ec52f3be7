"""
Durability: fsync, and directories whose names are known to survive a power cut.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from twisted.logger import Logger

from ..files import Stamp, is_directory, stamp_of
from ..threads.steps import Steps
from . import parallel_fsync

#: A directory's times must be older than this before they prove that nothing in it has changed since: two changes in one
#: step of a file system's clock look like one. The coarsest clock (FAT's) has 2 s.
_STILL_NS = 3_000_000_000

#: From this duration of an fsync on, in seconds, several at the same time take less time than one after the other.
_WORTH_PARALLEL_S = 50e-6
#: What the last fsync adds to the mean duration.
_WEIGHT = 0.125

#: How many directories are remembered whose names are durable; a forgotten one is fsynced again.
_MOST_SETTLED = 10_000

_log = Logger()


class DurableDirectories:
    """
    Makes directories, and makes names durable. Safe from several threads.

    @param directory_mode: of new directories, whatever the umask.
    @ivar synced: called with the seconds that each fsync took; see L{observe_fsyncs}.
    """

    def __init__(self, directory_mode: int) -> None:
        self.directory_mode = directory_mode
        self._fsync_works = True
        self.synced: Callable[[float], object] | None = None
        self._mean_fsync_s = 0.0
        #: The stamp of each directory when its names were made durable; the oldest first.
        self._settled: dict[str, Stamp] = {}
        self._settled_guard = threading.Lock()

    def observe_fsyncs(self, synced: Callable[[float], object]) -> None:
        """Call C{synced}, from any thread, with the seconds that each fsync took."""
        self.synced = synced

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
        """A context for making directories in C{parent}. At its end their names are durable, and so are all others there."""
        yield
        self.fsync_directory(parent)

    def settle(self, directory: str, top: str) -> None:
        """
        Make the names durable that lead from C{top} to a directory below it.

        Otherwise an object could be acknowledged and a power cut could remove its directory: another thread, another process
        or a killed server may have made it without an fsync. A directory whose times are as they were at its last fsync here
        has no new names, so this usually costs one C{stat} for each.
        """
        while len(directory) > len(top):
            directory = directory[: directory.rindex("/")] or "/"
            status = os.stat(directory)
            stamp = stamp_of(status)
            if self._settled.get(directory) == stamp:
                continue
            still = max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - _STILL_NS
            # This server has made nothing in a directory that it may not read.
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
        """Make a file or directory durable. Where the file system does not support that, log it once and go on."""
        began_s = time.perf_counter()
        try:
            os.fsync(fd)
        except OSError as error:
            if not self._is_unsupported(error):
                raise
        # As in _note_fsync, without the call: on a disk in memory that would take longer than the fsync.
        took_s = time.perf_counter() - began_s
        self._mean_fsync_s += (took_s - self._mean_fsync_s) * _WEIGHT
        if self.synced is not None:
            self.synced(took_s)

    def fsync_all(self, fds: Sequence[int]) -> list[OSError | None]:
        """
        Do so with several descriptors, at the same time where an fsync takes longer than handing it over.

        @return: the error of each.
        """
        if len(fds) == 1 or self._mean_fsync_s < _WORTH_PARALLEL_S or not parallel_fsync.is_available():
            return list(map(self._error_of_fsync, fds))
        began_s = time.perf_counter()
        errors = parallel_fsync.fsync_all(fds)
        took_s = time.perf_counter() - began_s
        for _ in fds:
            self._note_fsync(took_s)  # each of them has waited for so long
        return [None if error is None or self._is_unsupported(error) else error for error in errors]

    def _error_of_fsync(self, fd: int) -> OSError | None:
        try:
            self.fsync(fd)
        except OSError as error:
            return error
        return None

    def _note_fsync(self, took_s: float) -> None:
        self._mean_fsync_s += (took_s - self._mean_fsync_s) * _WEIGHT
        if self.synced is not None:
            self.synced(took_s)

    def _is_unsupported(self, error: OSError) -> bool:
        """Whether an fsync failed because the file system does not support it; that is logged once."""
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
            return False
        if self._fsync_works:
            self._fsync_works = False
            _log.warn(
                "this file system does not support fsync ({error}): a power failure may lose recent uploads",
                error=error,
            )
        return True

    def fsync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def steps_of_directory(self, path: str) -> Steps[None]:
        """The same in a step."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield self, fd
        finally:
            os.close(fd)
