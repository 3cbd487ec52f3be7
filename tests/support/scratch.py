"""
Directories for one test, removed after it, and what lies in them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

_MEMORY = Path("/dev/shm")
#: What a test needs that says nothing else.
_USUAL_BYTES = 64 << 20


class Cleans(Protocol):
    """The part of a test case that the helpers here need: Twisted's and the standard library's both have it."""

    def addCleanup(self, f: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call C{f} after the test."""


def scratch_directory(test: Cleans, needed_bytes: int = _USUAL_BYTES) -> Path:
    """
    A new directory with a short path (unix sockets want that), in memory where there is room: fsync is quick there.

    @param needed_bytes: how much the test is going to write.
    """
    in_memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * needed_bytes
    path = Path(tempfile.mkdtemp(prefix="restic-test-", dir=_MEMORY if in_memory else None))
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    return path


def files_below(directory: Path) -> set[str]:
    """Everything below a directory that is not a directory itself, as relative paths, but for what is the server's own."""
    found = {
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, _, names in os.walk(directory)
        for name in names
    }
    return {name for name in found if not name.startswith(".rest-server/")}


def contents_below(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file below a directory, by relative path."""
    return {name: hash_of_file(directory / name) for name in sorted(files_below(directory))}


def hash_of_file(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def object_path(repository: Path, kind: str, name: str) -> Path:
    """Where the server keeps an object (restic's local layout)."""
    return repository / kind / name[:2] / name if kind == "data" else repository / kind / name
