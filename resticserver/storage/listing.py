"""
Lists of a directory's objects, read as they are asked for.

restic takes a 404 on a list for an empty directory and may then prune what a lock it missed was protecting. So a list
never fails because an entry vanished while it was read: the entry is skipped. Any other error is passed on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..errors import NotFound
from ..names import is_object_id
from .interface import Entry
from .volume import Volume


class DirectoryListing:
    """
    The objects below one directory.

    @param path: the type's directory.
    @param volume: asked whenever something is missing: a volume that goes away must not look like a shorter list.
    @param two_levels: whether objects lie one directory deeper, as those of C{data} do.
    @param with_sizes: whether sizes are wanted; without them no file is looked at.
    """

    def __init__(self, path: str, volume: Volume, *, two_levels: bool, with_sizes: bool) -> None:
        self._path = path
        self._volume = volume
        self._entries: os._ScandirIterator[str] | None = None
        self._two_levels = two_levels
        self._with_sizes = with_sizes

    def open(self) -> None:
        """
        Open the directory.

        @raise NotFound: it is not there.
        """
        self._volume.check()
        try:
            self._entries = os.scandir(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._volume.check()
            raise NotFound() from None

    def __iter__(self) -> Iterator[Entry]:
        assert self._entries is not None
        with self._entries as entries:
            if not self._two_levels:
                yield from self._objects(entries)
                return
            for directory in entries:
                if len(directory.name) != 2:
                    continue
                try:
                    inner = os.scandir(directory.path)
                except (FileNotFoundError, NotADirectoryError):
                    self._volume.check()
                    continue
                with inner:
                    yield from self._objects(inner, directory.name)

    def _objects(self, entries: Iterator[os.DirEntry[str]], prefix: str = "") -> Iterator[Entry]:
        for entry in entries:
            name = entry.name
            if not is_object_id(name) or not name.startswith(prefix):
                continue
            try:
                if self._with_sizes:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield Entry(name, status.st_size)
                elif entry.is_file():
                    yield Entry(name, 0)
            except FileNotFoundError:
                self._volume.check()
                continue

    def close(self) -> None:
        """Close the directory; idempotent."""
        if self._entries is not None:
            self._entries.close()
