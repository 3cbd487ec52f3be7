"""
What is in one object directory, as the scrub sees it, and whether something that vanished from it is in the trash.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field

from ..files import Stamp, is_link, is_there, stamp_of
from ..names import CONFIG, is_object_id
from .directory_snapshots import SETTLED_NS
from .layout import Repository, cell_directory, object_directory, repository_path
from .object_check import OF_THE_PROCESS
from .trash import trash_days, type_directories
from .volume import Volume


@dataclass
class Contents:
    """
    What is in an object directory.

    @ivar sizes: the size in bytes of each object, by name.
    @ivar links: names of objects that are symbolic links. They are not followed.
    @ivar stamp: of the directory, if another stamp is certain after the next change; else C{None}.
    @ivar there: whether there is a directory.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    stamp: Stamp | None = None
    there: bool = True

    @property
    def size_bytes(self) -> int:
        """Of all objects together."""
        return sum(self.sizes.values())

    def has(self, name: str) -> bool:
        """Whether something has the name of the object."""
        return name in self.sizes or name in self.links


def cell_path(top: str, repository: Repository, cell: int) -> str:
    """The path of a cell's directory; of the file for the config's."""
    object_type, prefix = cell_directory(cell)
    if object_type == CONFIG:
        return f"{repository_path(top, repository)}/{CONFIG}"
    return object_directory(top, repository, object_type, prefix)


def stamp_at(path: str) -> Stamp | None:
    """
    The stamp of a cell's directory, or of the config; C{None} if there is none.

    @raise OSError: it cannot be looked at.
    """
    try:
        return stamp_of(os.stat(path))
    except FileNotFoundError:
        return None


def read_directory(volume: Volume, path: str, cell: int) -> Contents:
    """
    Read the names of a cell's directory, and look at each file.

    @param path: L{cell_path}.
    @raise Unavailable: the volume is gone.
    @raise OSError: the directory cannot be read, or something else has its name.
    """
    object_type, prefix = cell_directory(cell)
    started_ns = time.time_ns()
    try:
        contents = _config(path) if object_type == CONFIG else _objects(path, prefix)
    except FileNotFoundError:
        volume.check()
        if is_link(path):
            raise
        return Contents(there=False)
    # What is mounted in the volume's place may have a directory of the same name.
    volume.check()
    stamp = contents.stamp
    if stamp is not None and (max(stamp[2:]) > started_ns - SETTLED_NS or stamp_at(path) != stamp):
        contents.stamp = None
    return contents


def _config(path: str) -> Contents:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return Contents(links={CONFIG})
    return Contents({CONFIG: status.st_size} if stat.S_ISREG(status.st_mode) else {}, stamp=stamp_of(status))


def _objects(path: str, prefix: str) -> Contents:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        contents = Contents(stamp=stamp_of(os.fstat(fd)))
        with os.scandir(fd) as entries:
            for entry in entries:
                if is_object_id(entry.name) and entry.name.startswith(prefix):
                    _add(contents, entry)
    finally:
        os.close(fd)
    return contents


def _add(contents: Contents, entry: os.DirEntry[str]) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in OF_THE_PROCESS:
            raise
        contents.sizes[entry.name] = 0  # the check finds out what is wrong with it
        return
    if stat.S_ISREG(status.st_mode):
        contents.sizes[entry.name] = status.st_size
    elif stat.S_ISLNK(status.st_mode):
        contents.links.add(entry.name)


def is_in_trash(top: str, repository: Repository, object_type: str, name: str) -> bool:
    """
    Whether an object lies in its repository's trash, as far as that can be told: a trash that cannot be looked at may have it.
    A config has another name there: any counts.
    """
    try:
        for day in trash_days(top, repository):
            for trashed_type, path in type_directories(day):
                if trashed_type == object_type and (object_type == CONFIG or is_there(f"{path}/{name}")):
                    return True
    except OSError:
        return True
    return False
