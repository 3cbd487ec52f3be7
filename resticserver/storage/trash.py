"""
The trash of a repository: where deleted objects lie, C{REPOSITORY/.trash/DAY/TYPE/ID}, and until when.

C{DAY} is the day of the deletion in UTC, as C{2026-11-27}. If a name is taken there by something else, the object lies in
C{TYPE.2}, C{TYPE.3} and so on. A repository's config lies under the hash of its content. An empty file
C{DAY/keep-2592000s} says that what was deleted on that day is kept for so many seconds at least; the longest one counts. No
link is followed from C{.trash} on.

Blocking, for a pool. docs/decisions/survival.md says why it is so.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from ..dates import date_text, day_text, parse_time
from ..names import CONFIG, TYPES, is_object_id
from ..sizes import format_size
from .filesystem_types import stamps_renames
from .layout import TRASH, Repository, repository_path

DAY_S = 86_400
#: A deletion is done at most so long after the day whose directory it goes to.
_LATE_S = 3_600

#: What may lie in a trash, in the order in which it is restored: a client that looks meanwhile sees nothing that refers to
#: what is missing. Locks are never kept.
KEPT_TYPES = ("data", "index", "keys", CONFIG, "snapshots")

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_TYPE = re.compile(rf"({'|'.join(KEPT_TYPES)})(?:\.[0-9]+)?\Z")
_KEEP = re.compile(r"keep-([0-9]{1,12})s\Z")


def keep_name(delay_s: float) -> str:
    """The name of the file that keeps what is deleted on a day for so many seconds."""
    return f"keep-{int(-(-delay_s // 1))}s"


def is_keep_name(name: str) -> bool:
    """Whether a file in a day's directory says how long it is kept."""
    return _KEEP.match(name) is not None


class TrashDay(NamedTuple):
    """
    What was deleted in a repository on one day.

    @ivar path: of the directory.
    @ivar begins_s: when the day began, in seconds since 1970.
    @ivar delay_s: how long what was deleted then is kept at least, in seconds; C{None} if nothing says so: it does not end then.
    """

    repository: Repository
    path: str
    begins_s: int
    delay_s: float | None

    def deleted_s(self, status: os.stat_result) -> float:
        """When a file was deleted: a rename sets its change time. Other programs may set it too, but not on another day."""
        return min(max(status.st_ctime, float(self.begins_s)), float(self.begins_s + DAY_S + _LATE_S))

    def ends_s(self, deleted_s: float, delay_s: float) -> float | None:
        """
        When something ends that was deleted on this day, in seconds since 1970; C{None}: not by itself.

        @param delay_s: the delay that is in force now; the longer one applies.
        """
        return None if self.delay_s is None else deleted_s + max(self.delay_s, delay_s)

    def first_end_s(self, delay_s: float) -> float | None:
        """Before this time nothing of the day ends."""
        return self.ends_s(float(self.begins_s), delay_s)


class Trashed(NamedTuple):
    """
    One deleted object.

    @ivar name: its id; for a config the hash of its content.
    @ivar deleted_s: when it was deleted, in seconds since 1970.
    @ivar changed_ns: the change time of its file, in nanoseconds since 1970.
    @ivar path: of its file.
    """

    day: TrashDay
    object_type: str
    name: str
    size_bytes: int
    deleted_s: float
    changed_ns: int
    path: str

    @property
    def repository(self) -> Repository:
        """Where it was deleted."""
        return self.day.repository

    def ends_s(self, delay_s: float) -> float | None:
        """
        When it ends, in seconds since 1970; C{None}: not by itself.

        @param delay_s: the delay that is in force now.
        """
        return self.day.ends_s(self.deleted_s, delay_s)


class Deleted(Protocol):
    """A deleted object, on a disk or in a bucket; see L{Trashed}."""

    @property
    def repository(self) -> Repository:
        """Where it was deleted."""

    @property
    def object_type(self) -> str:
        """What it is."""

    @property
    def name(self) -> str:
        """Its id; for a config the hash of its content."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def deleted_s(self) -> float:
        """When it was deleted, in seconds since 1970."""

    def ends_s(self, delay_s: float) -> float | None:
        """When it ends; see L{Trashed.ends_s}."""


def trash_path(top: str, repository: Repository) -> str:
    """The path of a repository's trash."""
    return f"{repository_path(top, repository)}/{TRASH}"


def day_name(seconds: float) -> str:
    """The name of the directory for what is deleted at a time."""
    return day_text(seconds)


def has_trash(top: str, repository: Repository) -> bool:
    """Whether a repository has a trash with something in it."""
    path = trash_path(top, repository)
    return _is_directory(path) and any(map(_DAY.match, _names(path)))


def trash_days(top: str, repository: Repository) -> list[TrashDay]:
    """
    The days on which something was deleted that is still there, the oldest first.

    @raise OSError: the trash cannot be read.
    """
    path = trash_path(top, repository)
    if not _is_directory(path):
        return []
    days = []
    for name in sorted(_names(path)):
        day = f"{path}/{name}"
        if _DAY.match(name) and _is_directory(day):
            with suppress(ValueError):
                begins_s = int(parse_time(name))
                days.append(TrashDay(repository, day, begins_s, read_delay(day)))
    return days


def type_directories(day: TrashDay) -> Iterator[tuple[str, str]]:
    """The directories of a day: the type of the objects in each, and its path; data before what refers to it."""
    found = []
    for name in _names(day.path):
        match = _TYPE.match(name)
        if match and _is_directory(f"{day.path}/{name}"):
            found.append((KEPT_TYPES.index(match[1]), name, match[1]))
    for _, name, object_type in sorted(found):
        yield object_type, f"{day.path}/{name}"


def trashed_objects(day: TrashDay) -> Iterator[Trashed]:
    """
    What was deleted on a day.

    @raise OSError: a directory cannot be read.
    """
    exact = times_are_exact(day)
    for object_type, directory in type_directories(day):
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not is_object_id(entry.name):
                        continue
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            deleted_s = day.deleted_s(status) if exact else float(day.begins_s + DAY_S)
                            yield Trashed(
                                day, object_type, entry.name, status.st_size, deleted_s, status.st_ctime_ns, entry.path
                            )
        except FileNotFoundError:
            continue  # it was emptied meanwhile


def times_are_exact(day: TrashDay) -> bool:
    """Whether the change times of the files tell when they were deleted. If not, the end of the day is taken for that."""
    try:
        fd = os.open(day.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return stamps_renames(fd)
    finally:
        os.close(fd)


def read_delay(day_path: str) -> float | None:
    """How long a day's objects are kept at least, in seconds; C{None} if nothing says so."""
    return max((float(match[1]) for name in _names(day_path) if (match := _KEEP.match(name))), default=None)


def trash_words(size_bytes: int, ends_s: float | None) -> str:
    """
    What a refusal adds about the trash.

    @param ends_s: before this time nothing there ends, in seconds since 1970; C{None} if that is not known.
    """
    if not size_bytes:
        return ""
    until = f" until {date_text(ends_s)[:10]} or later" if ends_s is not None else ""
    return f"; {format_size(size_bytes)} are in the trash{until}"


def live_name(trashed: Deleted) -> str:
    """The name under which an object lay in its repository."""
    return CONFIG if trashed.object_type == CONFIG else trashed.name


def is_kept(object_type: str) -> bool:
    """Whether a deleted object of a type is kept at all."""
    return object_type != "locks" and (object_type == CONFIG or object_type in TYPES)


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _is_directory(path: str) -> bool:
    """Whether a directory has this name, and no link to one."""
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
