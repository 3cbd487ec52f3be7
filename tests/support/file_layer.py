"""
The calls of the file layer in this process, counted; and one of them fails, is short, or reports an error after its work.

For processes that run there is L{tests.support.faults}.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self
from unittest import mock

from resticserver import files
from resticserver.storage import publish, trash_moves
from resticserver.storage.nowait import Nowait

#: The functions of C{os} that are counted, by the names that the table has for them.
_OF_OS = {
    "open": "open",
    "close": "close",
    "write": "write",
    "writev": "write",
    "pwrite": "write",
    "read": "read",
    "readv": "read",
    "pread": "read",
    "preadv": "read",
    "fsync": "fsync",
    "link": "link",
    "rename": "rename",
    "replace": "rename",
    "unlink": "unlink",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "stat": "stat",
    "lstat": "stat",
    "fstat": "fstat",
    "statvfs": "statvfs",
    "fstatvfs": "statvfs",
    "scandir": "opendir",
    "listdir": "readdir",
    "ftruncate": "truncate",
    "utime": "utime",
    "chmod": "chmod",
    "fchmod": "chmod",
    "posix_fadvise": "fadvise",
}
#: Calls that change something: these fail on a file system that became read-only.
_CHANGES = frozenset("write link rename renameat2 unlink mkdir rmdir truncate utime chmod".split())
#: Calls that may report an error after they have done their work.
_MAY_BE_LATE = _CHANGES | {"fsync", "close"}
_CREATES = os.O_CREAT | os.O_WRONLY | os.O_RDWR


class Fault(NamedTuple):
    """
    What becomes of a call.

    @ivar name: in the table.
    @ivar code: its error; 0 for a short read or write.
    @ivar late: it does its work, and reports the error all the same.
    @ivar stays: all later calls fail as well; with EROFS those that change something.
    """

    name: str
    code: int = 0
    late: bool = False
    stays: bool = False

    def applies_to(self, call: str) -> bool:
        """Whether this can become of a call."""
        if not self.code:
            return call in ("read", "write")
        if self.late:
            return call in _MAY_BE_LATE
        return call != "close"


#: All that the fault suite tries.
FAULTS = (
    *(Fault(name, getattr(errno, name)) for name in ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "EROFS", "EINTR")),
    Fault("short"),
    Fault("EIO after it was done", errno.EIO, late=True),
    Fault("EIO from then on", errno.EIO, stays=True),
    Fault("EROFS from then on", errno.EROFS, stays=True),
)


class FileLayer:
    """
    A context in which the calls are counted that have to do with files below a directory.

    @param top: the directory.
    @param at: the number of the call that fails, from 0; -1 for none.
    @ivar seen: the names of the calls so far.
    @ivar failed: the name of the call that failed; empty if none did.
    """

    def __init__(self, top: Path, at: int = -1, fault: Fault | None = None) -> None:
        self._top = str(top)
        self._at = at
        self._fault = fault
        self._patches = ExitStack()
        self._readlink, self._fstat = os.readlink, os.fstat
        self.seen: list[str] = []
        self.failed = ""

    def __enter__(self) -> Self:
        with ExitStack() as patches:
            for function, name in _OF_OS.items():
                patches.enter_context(mock.patch.object(os, function, self._counting(name, getattr(os, function))))
            flock = self._counting("flock", fcntl.flock)
            patches.enter_context(mock.patch.object(fcntl, "flock", flock))
            rename = self._counting("renameat2", publish.rename_noreplace)
            for module in (publish, trash_moves):
                patches.enter_context(mock.patch.object(module, "rename_noreplace", rename))
            patches.enter_context(mock.patch.object(files, "open", self._open_file, create=True))
            opens = Nowait._open
            look = self._counting("openat2", lambda path, nowait, how: opens(nowait, path, how))
            patches.enter_context(mock.patch.object(Nowait, "_open", lambda nowait, path, how: look(path, nowait, how)))
            self._patches = patches.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.close()

    # --- which calls

    def _concerns(self, values: tuple[object, ...]) -> bool:
        """Whether a call has to do with files below the directory."""
        for value in values:
            if isinstance(value, str) and value.startswith(self._top):
                return True
            if isinstance(value, int) and not isinstance(value, bool):
                try:
                    if self._readlink(f"/proc/self/fd/{value}").startswith(self._top):
                        return True
                except OSError:
                    continue
        return False

    def fate(self, name: str, changes: bool = False) -> Fault | None:
        """Count a call; what becomes of it."""
        number = len(self.seen)
        self.seen.append(name)
        fault = self._fault
        if fault is None or number < self._at:
            return None
        if number > self._at:
            if not fault.stays or name == "close":
                return None
            return fault if fault.code != errno.EROFS or changes else None
        if not fault.applies_to(name):
            return None
        self.failed = name
        return fault

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if not self._concerns((*args[:2], *named.values()) if name != "close" else args[:1]):
                return real(*args, **named)
            if name == "close" and not stat.S_ISREG(self._fstat(args[0]).st_mode):
                return real(*args, **named)  # it has nothing to write
            changes = name in _CHANGES or (name == "open" and bool(args[1] & _CREATES))
            fault = self.fate(name, changes)
            if fault is None:
                return self._wrapped(name, real(*args, **named))
            if fault.code == 0:
                return _short(name, real, args, named)
            if fault.late:
                real(*args, **named)
            raise OSError(fault.code, os.strerror(fault.code), args[0] if isinstance(args[0], str) else None)

        return call

    def _wrapped(self, name: str, result: Any) -> Any:
        return _Scan(self, result) if name == "opendir" else result

    def _open_file(self, path: str, mode: str, **named: Any) -> Any:
        """What L{resticserver.files} opens by C{open}."""
        file = builtins.open(path, mode, **named)
        return _File(self, file) if path.startswith(self._top) else file

    def step(self, name: str) -> None:
        """
        Count a call that has no function of its own.

        @raise OSError: it fails.
        """
        fault = self.fate(name)
        if fault is not None and fault.code:
            raise OSError(fault.code, os.strerror(fault.code))


def _short(name: str, real: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Read or write about half of what was asked for."""
    if name == "write":
        fd, content, *rest = args
        joined = content if isinstance(content, bytes | memoryview) else b"".join(content)
        half = joined[: max(1, len(joined) // 2)]
        return os.pwrite(fd, half, *rest) if rest else _write(fd, half)
    found = real(*args, **named)
    if isinstance(found, int):  # into the caller's buffers
        return max(min(found, 1), found // 2)
    return found[: max(1, len(found) // 2)]


_write = os.write


class _File:
    """A file object whose reading is counted."""

    def __init__(self, layer: FileLayer, file: IO[bytes]) -> None:
        self._layer = layer
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def read(self) -> bytes:
        """All of it: Python's own file objects go on after a short read."""
        self._layer.step("read")
        return self._file.read()


class _Scan:
    """What C{os.scandir} returns."""

    def __init__(self, layer: FileLayer, entries: Any) -> None:
        self._layer = layer
        self._entries = entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entries.close()

    def __iter__(self) -> Iterator[_Entry]:
        return self

    def __next__(self) -> _Entry:
        self._layer.step("readdir")
        return _Entry(self._layer, next(self._entries))

    def close(self) -> None:
        """Close it."""
        self._entries.close()


class _Entry:
    """An entry of a directory. Its type is known without a look at it, as on most file systems."""

    def __init__(self, layer: FileLayer, entry: os.DirEntry[str]) -> None:
        self._layer = layer
        self._entry = entry
        self.name = entry.name
        self.path = entry.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Its status."""
        self._layer.step("stat")
        return self._entry.stat(follow_symlinks=follow_symlinks)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory."""
        return self._entry.is_dir(follow_symlinks=follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a file."""
        return self._entry.is_file(follow_symlinks=follow_symlinks)

    def is_symlink(self) -> bool:
        """Whether it is a link."""
        return self._entry.is_symlink()
