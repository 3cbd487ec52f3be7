"""
What a status page says: the state of the server and of its repositories, and what of it needs somebody's attention.

Pure rules and records; how they look is in L{resticserver.web.status}, where they come from in L{resticserver.monitoring}.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NamedTuple

from ..sizes import format_size

#: A repository without a new snapshot for so long is old.
OLD_S = 7 * 86_400.0
#: restic refreshes a lock every five minutes, and calls one stale after half an hour.
STALE_LOCK_S = 1800.0
#: A quota, or the disk, that is used by more than this part is nearly full.
NEARLY_FULL = 0.9
#: A certificate that ends so soon should be renewed.
CERTIFICATE_S = 14 * 86_400.0

#: The form of the JSON; a new number when a key changes its meaning or goes.
SCHEMA = 1


class Level(IntEnum):
    """How bad something is."""

    GOOD = 0
    NOTICE = 1
    WARNING = 2
    BAD = 3


class Concern(NamedTuple):
    """Something that needs attention, in a few words."""

    level: Level
    words: str


@dataclass(frozen=True, slots=True)
class RepositoryStatus:
    """
    One repository.

    @ivar repository: its path; empty for the one at the root.
    @ivar owner: whose quota it counts for.
    @ivar last_snapshot_s: when its youngest snapshot was stored, in seconds since 1970; C{None} without one.
    @ivar locks: how many there are, and C{oldest_lock_s} when the oldest was made, as far as is known.
    @ivar damaged: how many damaged files were found since the start.
    @ivar history: its size by days since 1970, the oldest first.
    @ivar counted: whether it has been counted since the start; before that its size is the last one known, and its snapshots
        and locks are not known.
    """

    repository: str
    owner: str | None
    size_bytes: int
    objects: int
    quota_bytes: int | None = None
    quota_objects: int | None = None
    last_snapshot_s: float | None = None
    locks: int = 0
    oldest_lock_s: float | None = None
    damaged: int = 0
    history: tuple[tuple[int, int], ...] = ()
    counted: bool = True

    @property
    def name(self) -> str:
        """What it is called."""
        return printable(self.repository) or "/"

    def concerns(self, now_s: float) -> list[Concern]:
        """What needs attention, the worst first."""
        found = []
        if self.damaged:
            found.append(Concern(Level.BAD, f"{self.damaged} damaged file{'s' if self.damaged > 1 else ''} found"))
        for used, most, what in ((self.size_bytes, self.quota_bytes, "quota"), (self.objects, self.quota_objects, "objects")):
            if most is not None and used >= NEARLY_FULL * most:
                level = Level.BAD if used >= most else Level.WARNING
                found.append(Concern(level, f"{what} {_per_cent(used, most)} used"))
        if self.last_snapshot_s is None:
            found.append(Concern(Level.NOTICE, "no snapshot yet" if self.counted else "not counted yet"))
        elif now_s - self.last_snapshot_s > OLD_S:
            found.append(Concern(Level.WARNING, f"last snapshot {age(now_s - self.last_snapshot_s)} ago"))
        if self.locks and self.oldest_lock_s is not None and now_s - self.oldest_lock_s > STALE_LOCK_S:
            found.append(Concern(Level.WARNING, f"stale lock, {age(now_s - self.oldest_lock_s)} old"))
        return sorted(found, key=lambda concern: -concern.level)

    def level(self, now_s: float) -> Level:
        """The worst of it."""
        return max((concern.level for concern in self.concerns(now_s)), default=Level.GOOD)


@dataclass(frozen=True, slots=True)
class UserStatus:
    """The repositories below one user's folder together."""

    user: str
    size_bytes: int
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """
    The server.

    @ivar time_s: when this was so, in seconds since 1970; C{started_s} likewise.
    @ivar not_ready: why it is not ready; empty if it is.
    @ivar counted: whether all repositories have been counted since the start.
    @ivar certificate_s: when the TLS certificate ends; C{None} without TLS.
    """

    version: str
    time_s: float
    started_s: float
    not_ready: str = ""
    counted: bool = True
    quota_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_size_bytes: int | None = None
    certificate_s: float | None = None
    repositories: tuple[RepositoryStatus, ...] = ()
    users: tuple[UserStatus, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        """What is stored in the repositories that are here."""
        return sum(repository.size_bytes for repository in self.repositories)

    def concerns(self) -> list[Concern]:
        """What of the server itself needs attention, the worst first."""
        found = []
        if self.not_ready:
            found.append(Concern(Level.BAD, f"not ready: {self.not_ready}"))
        if self.quota_bytes is not None and self.size_bytes >= NEARLY_FULL * self.quota_bytes:
            level = Level.BAD if self.size_bytes >= self.quota_bytes else Level.WARNING
            found.append(Concern(level, f"quota {_per_cent(self.size_bytes, self.quota_bytes)} used"))
        if self.disk_free_bytes is not None and self.disk_size_bytes:
            if self.disk_free_bytes <= (1 - NEARLY_FULL) * self.disk_size_bytes:
                found.append(Concern(Level.WARNING, f"only {format_size(self.disk_free_bytes)} of disk are free"))
        if self.certificate_s is not None and self.certificate_s - self.time_s < CERTIFICATE_S:
            left_s = self.certificate_s - self.time_s
            words = f"certificate ends in {age(left_s)}" if left_s > 0 else f"certificate ended {age(-left_s)} ago"
            found.append(Concern(Level.WARNING if left_s > 0 else Level.BAD, words))
        if not self.counted:
            found.append(Concern(Level.NOTICE, "sizes are still being counted"))
        return sorted(found, key=lambda concern: -concern.level)

    def by_need(self) -> list[RepositoryStatus]:
        """The repositories, those that need attention most first, then by name."""
        return sorted(self.repositories, key=lambda one: (-one.level(self.time_s), one.repository))

    def only(self, name: str, repositories: Iterable[RepositoryStatus]) -> ServerStatus:
        """What a user of this name may see who may see just these; how the server and others stand is not theirs to know."""
        shown = tuple(repositories)
        return replace(
            self,
            quota_bytes=None,
            disk_free_bytes=None,
            disk_size_bytes=None,
            repositories=shown,
            users=tuple(user for user in self.users if user.user == name),
        )

    def as_json(self) -> dict[str, Any]:
        """In what JSON has (docs/operations.md)."""
        return {
            "schema": SCHEMA,
            **_shallow(self),
            "repositories": [
                {**_shallow(one), "concerns": [words for _, words in one.concerns(self.time_s)]}
                for one in self.repositories
            ],
            "users": [_shallow(user) for user in self.users],
            "concerns": [words for _, words in self.concerns()],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ServerStatus:
        """What L{as_json} made."""

        def known(kind: Any, values: dict[str, Any]) -> Any:
            return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})

        repositories = tuple(
            replace(known(RepositoryStatus, values), history=tuple((day, size) for day, size in values["history"]))
            for values in document["repositories"]
        )
        users = tuple(known(UserStatus, values) for values in document["users"])
        made: ServerStatus = known(cls, document)
        return replace(made, repositories=repositories, users=users)


def _shallow(record: Any) -> dict[str, Any]:
    """The fields of a record as they are; C{asdict} copies every day of every history."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _per_cent(used: int, most: int) -> str:
    return f"{used * 100 // most if most else 100} %"


def age(seconds: float) -> str:
    """A span of time in its largest unit, as C{3 days}."""
    for unit_s, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit_s:
            number = int(seconds // unit_s)
            return f"{number} {unit}{'s' if number > 1 else ''}"
    return "a moment"


def date_text(seconds: float) -> str:
    """A point in time, UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "at a time that no calendar has"  # files may have any


def printable(text: str) -> str:
    """Text with everything escaped that is none: control characters, and bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
