"""
The content of a status page: the state of the server and its repositories, and what needs attention.

Pure rules and records. L{resticserver.service.monitoring} collects them, and L{resticserver.web.status_pages} makes pages
of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..errors import DISK, MIN_FREE
from ..sizes import format_size
from .concerns import DEFAULT, Concern, Level, Thresholds, of_refusals
from .refusals import Refused

#: The version of the JSON document. It is raised when a key changes its meaning or is removed.
SCHEMA = 1


class ObjectProblem(NamedTuple):
    """
    A stored object that the scrub has found to be damaged, missing or unreadable.

    @ivar kind: C{"damaged"}, C{"missing"} or C{"unreadable"}.
    @ivar since_s: when that was found, in seconds since 1970.
    """

    type: str
    name: str
    kind: str
    since_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class RepositoryStatus:
    """
    The status of one repository.

    @ivar repository: its path; empty for the one at the root.
    @ivar owner: the user whose quota it counts against.
    @ivar last_snapshot_s: when its newest snapshot was stored, in seconds since 1970; C{None} without snapshots.
    @ivar locks: the number of locks.
    @ivar oldest_lock_s: when the oldest lock was created, in seconds since 1970, as far as is known.
    @ivar damaged: the number of damaged files found since the start.
    @ivar history: its size by days since 1970, the oldest first.
    @ivar counted: whether it was counted since the start. Before that, its size is the last known one, and its
        snapshots and locks are unknown.
    @ivar refusals: of uploads to it, within the last day.
    @ivar problem_counts: how many objects the scrub has found to be damaged, missing or unreadable, by these words.
    @ivar problems: the first of these objects.
    @ivar trash_counts: whether its trash counts towards quotas.
    @ivar trash_ends_s: before this time nothing in its trash ends, in seconds since 1970.
    @ivar snapshots: how many there are.
    @ivar created_s: when its config was stored; C{None} if there is none, or as long as it was not counted.
    @ivar last_writer: the user of the last upload that was no lock, as far as is known.
    @ivar last_write_s: when that was. Without authentication there is a time and no user.
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
    refusals: tuple[Refused, ...] = ()
    problem_counts: dict[str, int] = field(default_factory=dict)
    problems: tuple[ObjectProblem, ...] = ()
    trash_bytes: int = 0
    trash_objects: int = 0
    trash_counts: bool = True
    trash_ends_s: float | None = None
    snapshots: int = 0
    created_s: float | None = None
    last_writer: str | None = None
    last_write_s: float | None = None

    @property
    def name(self) -> str:
        """The name to display."""
        return printable(self.repository) or "/"

    @property
    def used_bytes(self) -> int:
        """What counts towards quotas."""
        return self.size_bytes + (self.trash_bytes if self.trash_counts else 0)

    @property
    def used_objects(self) -> int:
        """How many objects count towards quotas."""
        return self.objects + (self.trash_objects if self.trash_counts else 0)

    def concerns(self, now_s: float, thresholds: Thresholds = DEFAULT) -> list[Concern]:
        """What needs attention, the worst first."""
        found = []
        if self.damaged:
            found.append(Concern(Level.BAD, f"{self.damaged} damaged file{'s' if self.damaged > 1 else ''} found"))
        if self.problem_counts:
            counts = ", ".join(f"{number} {kind}" for kind, number in self.problem_counts.items())
            found.append(Concern(Level.BAD, f"found by the scrub: {counts}"))
        found += thresholds.of_quota(self.used_bytes, self.quota_bytes, "quota")
        found += thresholds.of_quota(self.used_objects, self.quota_objects, "objects")
        found += of_refusals(self.refusals, now_s)
        if self.last_snapshot_s is not None:
            found += thresholds.of_last_snapshot(now_s - self.last_snapshot_s)
        elif self.counted:
            found += thresholds.of_no_snapshot(None if self.created_s is None else now_s - self.created_s)
        else:
            found.append(Concern(Level.NOTICE, "not counted yet"))
        if self.locks and self.oldest_lock_s is not None:
            found += thresholds.of_lock(now_s - self.oldest_lock_s)
        return sorted(found, key=lambda concern: -concern.level)

    def level(self, now_s: float, thresholds: Thresholds = DEFAULT) -> Level:
        """The level of the worst concern."""
        return worst_of(self.concerns(now_s, thresholds))


@dataclass(frozen=True, slots=True)
class UserStatus:
    """
    The status of one user: the sum over the repositories in the folder of that name, and all uploads that were refused
    to the user, in any repository.

    @ivar refusals: within the last day.
    @ivar trash_bytes: what lies in the trash there and counts; C{trash_objects} likewise.
    """

    user: str
    size_bytes: int
    quota_bytes: int | None = None
    objects: int = 0
    quota_objects: int | None = None
    refusals: tuple[Refused, ...] = ()
    trash_bytes: int = 0
    trash_objects: int = 0

    @property
    def name(self) -> str:
        """The name to display."""
        return printable(self.user)

    @property
    def used_bytes(self) -> int:
        """What counts towards the quota."""
        return self.size_bytes + self.trash_bytes

    @property
    def used_objects(self) -> int:
        """How many objects count towards the quota."""
        return self.objects + self.trash_objects

    @property
    def has_quota(self) -> bool:
        """Whether the user has a quota."""
        return self.quota_bytes is not None or self.quota_objects is not None

    def concerns(self, now_s: float, thresholds: Thresholds = DEFAULT) -> list[Concern]:
        """What needs attention, the worst first."""
        found = thresholds.of_quota(self.used_bytes, self.quota_bytes, "quota")
        found += thresholds.of_quota(self.used_objects, self.quota_objects, "objects")
        found += of_refusals(self.refusals, now_s)
        return sorted(found, key=lambda concern: -concern.level)

    def level(self, now_s: float, thresholds: Thresholds = DEFAULT) -> Level:
        """The level of the worst concern."""
        return worst_of(self.concerns(now_s, thresholds))


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """
    The status of the scrub, which reads and verifies every stored object.

    @ivar interval_s: C{--scrub-interval} in seconds; 0 if the server does not scrub by itself.
    @ivar progress: how much of the pass under way is done, from 0 to 1; C{None} if none is.
    @ivar left_s: how many seconds this pass will still take, as far as is known.
    @ivar last_complete_s: when the last complete pass ended, in seconds since 1970; C{None} if there was none.
    @ivar oldest_s: when the oldest check of a directory began; C{None} if that is not known, 0 if there was none.
    @ivar skipped: how many directories could not be read.
    """

    interval_s: float = 0
    progress: float | None = None
    left_s: float | None = None
    last_complete_s: float | None = None
    oldest_s: float | None = None
    skipped: int = 0

    def concerns(self, now_s: float, thresholds: Thresholds = DEFAULT) -> list[Concern]:
        """What needs attention."""
        found = []
        if self.skipped:
            directories = "1 directory" if self.skipped == 1 else f"{self.skipped} directories"
            found.append(Concern(Level.WARNING, f"the scrub cannot read {directories}"))
        if self.oldest_s:
            found += thresholds.of_scrub(self.interval_s, now_s - self.oldest_s)
        return found


class LastDayStatus(NamedTuple):
    """
    What happened within the last day.

    @ivar covered_s: how much of the day is known.
    @ivar uploads_refused: how many uploads were refused.
    @ivar limited: what limits refused.
    """

    covered_s: float
    received_bytes: int
    sent_bytes: int
    uploads_refused: int
    failed_logins: int
    limited: int


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """
    The status of the server.

    @ivar time_s: when the status was determined, in seconds since 1970; C{started_s} likewise.
    @ivar not_ready: why the server is not ready; empty if it is.
    @ivar counted: whether all repositories were counted since the start.
    @ivar certificate_s: when the TLS certificate expires; C{None} without TLS.
    @ivar refusals: of uploads, within the last day, the newest first.
    @ivar scrub: C{None} if it never ran.
    @ivar host: the name of the machine.
    @ivar history: the size of all repositories by days since 1970, the oldest first.
    @ivar growth_bytes_per_day: C{None} as long as too few sizes are known (L{resticserver.telemetry.growth}).
    @ivar disk_full_s: when the disk will be full at this rate; C{None} if that is not in sight.
    @ivar last_day: C{None} for a user who may not see it.
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
    refusals: tuple[Refused, ...] = ()
    scrub: ScrubStatus | None = None
    host: str = ""
    thresholds: Thresholds = DEFAULT
    history: tuple[tuple[int, int], ...] = ()
    growth_bytes_per_day: float | None = None
    disk_full_s: float | None = None
    last_day: LastDayStatus | None = None

    def with_refusals(self, refusals: Iterable[Refused]) -> ServerStatus:
        """Return a copy with these refusals, which are also assigned to their repositories and users."""
        refusals = tuple(refusals)
        of_repositories: dict[str, list[Refused]] = {}
        of_users: dict[str, list[Refused]] = {}
        for one in refusals:
            of_repositories.setdefault(one.repository, []).append(one)
            if one.user is not None:
                of_users.setdefault(one.user, []).append(one)
        repositories = tuple(
            replace(one, refusals=tuple(of_repositories.get(one.repository, ())))
            if one.refusals or one.repository in of_repositories
            else one
            for one in self.repositories
        )
        users = [
            replace(one, refusals=tuple(of_users.pop(one.user, ()))) if one.refusals or one.user in of_users else one
            for one in self.users
        ]
        users += [UserStatus(user, 0, refusals=tuple(theirs)) for user, theirs in of_users.items()]
        return replace(self, repositories=repositories, users=tuple(users), refusals=refusals)

    @property
    def size_bytes(self) -> int:
        """The total size of the repositories in this status."""
        return sum(repository.size_bytes for repository in self.repositories)

    @property
    def used_bytes(self) -> int:
        """What counts towards the server's limit."""
        return sum(repository.used_bytes for repository in self.repositories)

    @property
    def trash_bytes(self) -> int:
        """What lies in the trash of all repositories in this status."""
        return sum(repository.trash_bytes for repository in self.repositories)

    def concerns(self) -> list[Concern]:
        """What needs attention about the server itself, the worst first."""
        found: list[Concern] = []
        thresholds = self.thresholds
        if self.not_ready:
            found.append(Concern(Level.BAD, f"not ready: {self.not_ready}"))
        if self.quota_bytes is not None:
            found += thresholds.of_quota(self.used_bytes, self.quota_bytes, "quota")
        listed = {one.repository for one in self.repositories}
        # A full disk concerns the server. So do refusals that are shown neither with a user nor with a repository.
        found += of_refusals(
            [
                one
                for one in self.refusals
                if one.reason in (DISK, MIN_FREE) or (one.user is None and one.repository not in listed)
            ],
            self.time_s,
        )
        if self.disk_free_bytes is not None and thresholds.of_disk(self.disk_free_bytes, self.disk_size_bytes):
            found.append(Concern(Level.WARNING, f"only {format_size(self.disk_free_bytes)} of disk space free"))
        if self.certificate_s is not None:
            found += thresholds.of_certificate(self.certificate_s - self.time_s)
        if self.scrub is not None:
            found += self.scrub.concerns(self.time_s, thresholds)
        if not self.counted:
            found.append(Concern(Level.NOTICE, "sizes are still being counted"))
        return sorted(found, key=lambda concern: -concern.level)

    def users_by_need(self) -> list[UserStatus]:
        """The users who have a quota or refused uploads, the worst first, then by name."""
        shown = [user for user in self.users if user.has_quota or user.refusals]
        return sorted(shown, key=lambda user: (-user.level(self.time_s, self.thresholds), user.user))

    def worst(self) -> Level:
        """The worst level of the server, its users and its repositories."""
        found = [concern.level for concern in self.concerns()]
        found += [one.level(self.time_s, self.thresholds) for one in self.repositories]
        found += [one.level(self.time_s, self.thresholds) for one in self.users]
        return max(found, default=Level.GOOD)

    def by_need(self) -> list[RepositoryStatus]:
        """The repositories, the worst first, then by name."""
        return sorted(self.repositories, key=lambda one: (-one.level(self.time_s, self.thresholds), one.repository))

    def only(self, name: str, repositories: Iterable[RepositoryStatus]) -> ServerStatus:
        """
        Return the part of the status that a user may see.

        @param name: the user. The state of the server and of other users is hidden.
        @param repositories: the repositories that the user may access.
        """
        shown = tuple(repositories)
        return replace(
            self,
            quota_bytes=None,
            disk_free_bytes=None,
            disk_size_bytes=None,
            scrub=None,
            history=(),
            growth_bytes_per_day=None,
            disk_full_s=None,
            last_day=None,
            repositories=shown,
            users=tuple(user for user in self.users if user.user == name),
        ).with_refusals(one for one in self.refusals if one.user == name)

    def as_json(self) -> dict[str, Any]:
        """The status as JSON types (docs/monitoring.md)."""
        return {
            "schema": SCHEMA,
            **_shallow(self),
            "scrub": None if self.scrub is None else _shallow(self.scrub),
            "thresholds": _shallow(self.thresholds),
            "last_day": None if self.last_day is None else self.last_day._asdict(),
            "repositories": [
                {
                    **_shallow(one),
                    "problems": [problem._asdict() for problem in one.problems],
                    "concerns": [words for _, words in one.concerns(self.time_s, self.thresholds)],
                }
                for one in self.repositories
            ],
            "users": [
                {**_shallow(user), "concerns": [words for _, words in user.concerns(self.time_s, self.thresholds)]}
                for user in self.users
            ],
            "refusals": [one._asdict() for one in self.refusals],
            "concerns": [words for _, words in self.concerns()],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> ServerStatus:
        """The inverse of L{as_json}."""

        def known(kind: Any, values: dict[str, Any]) -> Any:
            return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})

        repositories = tuple(
            replace(
                known(RepositoryStatus, values),
                history=tuple((day, size) for day, size in values["history"]),
                problems=tuple(
                    ObjectProblem(**{name: one[name] for name in ObjectProblem._fields})
                    for one in values.get("problems", ())
                ),
            )
            for values in document["repositories"]
        )
        users = tuple(known(UserStatus, values) for values in document["users"])
        refusals = [
            Refused(**{name: values[name] for name in Refused._fields}) for values in document.get("refusals", ())
        ]
        made: ServerStatus = known(cls, document)
        scrub, last_day = document.get("scrub"), document.get("last_day")
        made = replace(
            made,
            scrub=None if scrub is None else known(ScrubStatus, scrub),
            thresholds=known(Thresholds, document.get("thresholds", {})),
            last_day=None if last_day is None else LastDayStatus(**{n: last_day[n] for n in LastDayStatus._fields}),
            history=tuple((day, size) for day, size in document.get("history", ())),
        )
        return replace(made, repositories=repositories, users=users).with_refusals(refusals)


def _shallow(record: Any) -> dict[str, Any]:
    """
    The fields of a record without copying them, except for refusals. (C{asdict} would copy every day of every
    history.)
    """
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != "refusals"}


def worst_of(concerns: Iterable[Concern]) -> Level:
    """The level of the worst of some concerns."""
    return max((concern.level for concern in concerns), default=Level.GOOD)


def printable(text: str) -> str:
    """Escape everything that is not printable: control characters, and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
