"""
What a process does with memory and disk while bytes go through it.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

#: Programs and libraries are smaller files, or not written to.
_LARGE_FILE_BYTES = 1 << 20
_PAUSE_S = 0.02


class Watch:
    """
    Looks at some processes all the time while it is entered (Linux).

    @ivar memory_bytes: the most memory of their own that all of them had together.
    @ivar file_bytes: the most that all files together had that they had open for writing, unnamed ones included.
    @ivar files: those of more than a megabyte.
    """

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._before: dict[int, int] = {}
        self._after: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.memory_bytes = 0
        self.file_bytes = 0
        self.files: set[str] = set()

    def __enter__(self) -> Watch:
        self._before = {pid: _written_bytes(pid) for pid in self._pids()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def written_bytes(self) -> int:
        """What they have written to disks, those that have ended included."""
        return sum(written - self._before.get(pid, 0) for pid, written in self._after.items())

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            self._look()

    def _look(self) -> None:
        memory_bytes = file_bytes = 0
        for pid in self._pids():
            self._after[pid] = _written_bytes(pid)
            memory_bytes += _own_memory_bytes(pid)
            for target, size_bytes in _written_files(pid):
                file_bytes += size_bytes
                if size_bytes > _LARGE_FILE_BYTES:
                    self.files.add(target)
        self.memory_bytes = max(self.memory_bytes, memory_bytes)
        self.file_bytes = max(self.file_bytes, file_bytes)


def _written_bytes(pid: int) -> int:
    """What a process has sent towards a disk; see proc(5)."""
    return _number(Path(f"/proc/{pid}/io"), "write_bytes")


def _own_memory_bytes(pid: int) -> int:
    """Resident memory that is no file's."""
    status = Path(f"/proc/{pid}/status")
    return (_number(status, "RssAnon") + _number(status, "RssShmem")) << 10


def _number(path: Path, name: str) -> int:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1])
    return 0


def _written_files(pid: int) -> list[tuple[str, int]]:
    """Regular files that a process has open for writing, with their sizes."""
    found = []
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            with suppress(OSError):
                target = os.stat(path)
                if stat.S_ISREG(target.st_mode) and os.lstat(path).st_mode & stat.S_IWUSR:
                    found.append((os.readlink(path), target.st_size))
    return found
