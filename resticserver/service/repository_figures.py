"""
Metrics (C{rest_server_repository_*}, C{rest_server_user_*}) and status of what is stored, made from the quota ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..quota.ledger import RepositoryAccount, owner_of
from ..sizes import Amount, Limit
from ..storage.layout import Repository, cell_of
from ..telemetry.last_day import Written
from ..telemetry.metrics import Family, MetricType, Sample, gauge
from ..telemetry.status import RepositoryStatus, UserStatus
from .quota_keeper import Quotas
from .scrub import Results

#: Nothing is known of the last uploads.
NO_WRITES: Mapping[str, Written] = {}

LOCKS, SNAPSHOTS = cell_of("locks", ""), cell_of("snapshots", "")


class Stored(NamedTuple):
    """
    The repositories and users with stored data.

    @ivar users: those with stored data in their folder.
    """

    repositories: tuple[RepositoryStatus, ...]
    users: tuple[UserStatus, ...]

    def families(self, limit: Limit) -> Iterator[Family]:
        """
        Make metrics of it.

        @param limit: of the whole server.
        """
        yield from _repository_families(sorted(self.repositories, key=lambda one: one.repository.split("/")))
        users = sorted(self.users, key=lambda user: user.name)
        used = [Sample((user.name,), user.size_bytes) for user in users]
        quotas = [Sample((user.name,), user.quota_bytes) for user in users if user.quota_bytes is not None]
        for name, help_, samples in (
            ("size_bytes", "Size of the objects in a user's repositories in bytes", used),
            ("quota_bytes", "Quota of a user in bytes", quotas),
        ):
            yield Family(MetricType.GAUGE, f"rest_server_user_{name}", help_, ("user",), samples)
        total = sum(repository.size_bytes for repository in self.repositories)
        yield gauge("size_bytes", "Size of the objects in all repositories in bytes", total)
        if limit.size_bytes is not None:
            yield gauge("quota_bytes", "Quota of the server in bytes", limit.size_bytes)


def _repository_families(repositories: Sequence[RepositoryStatus]) -> Iterator[Family]:
    labels = ("user", "repo")
    by_labels = [((one.owner or "", one.repository), one) for one in repositories]
    limited = [(key, one, one.quota_bytes) for key, one in by_labels if one.quota_bytes is not None]
    for name, help_, samples in (
        (
            "size_bytes",
            "Size of the objects in a repository in bytes",
            [Sample(key, one.size_bytes) for key, one in by_labels],
        ),
        ("objects", "Number of objects in a repository", [Sample(key, one.objects) for key, one in by_labels]),
        ("quota_bytes", "Quota of a repository in bytes", [Sample(key, quota) for key, _, quota in limited]),
        (
            "quota_free_bytes",
            "Free space in the quota of a repository in bytes",
            [Sample(key, max(0, quota - one.used_bytes)) for key, one, quota in limited],
        ),
        (
            "trash_bytes",
            "What lies in the trash of a repository, in bytes",
            [Sample(key, one.trash_bytes) for key, one in by_labels],
        ),
        (
            "trash_objects",
            "How many objects lie in the trash of a repository",
            [Sample(key, one.trash_objects) for key, one in by_labels],
        ),
        (
            "last_snapshot_timestamp_seconds",
            "Time of the newest snapshot of a repository in seconds since 1970",
            [Sample(key, one.last_snapshot_s) for key, one in by_labels if one.last_snapshot_s is not None],
        ),
    ):
        yield Family(MetricType.GAUGE, f"rest_server_repository_{name}", help_, labels, samples)
    damaged = [Sample(key, one.damaged) for key, one in by_labels]
    help_ = "Damaged files found in a repository"
    yield Family(MetricType.COUNTER, "rest_server_repository_damaged", help_, labels, damaged)


def find_stored(
    accounts: Iterable[RepositoryAccount],
    quotas: Quotas,
    damaged: Mapping[str, int],
    history: Mapping[Repository, list[tuple[int, int]]],
    today: int,
    all_counted: bool,
    writes: Mapping[str, Written] = NO_WRITES,
) -> Stored:
    """
    Make the status of repositories and users from the ledger's accounts. This takes milliseconds for a thousand
    repositories, so it is called in the pool for pages.

    @param damaged: damaged files by repository.
    @param history: sizes by days since 1970, without C{today}.
    @param all_counted: whether every repository was counted since the start.
    @param writes: the last uploads by repository.
    """
    repositories: list[RepositoryStatus] = []
    users: dict[str, Amount] = {}
    trash: dict[str, Amount] = {}
    for account in accounts:
        stored = account.stored
        if not (stored.objects or account.trash.objects or account.counted):
            continue  # a name from a request, not a repository
        owner = owner_of(account.repository)
        name = "/".join(account.repository)
        limit = quotas.limit_of_repository(owner, account.repository)
        days = [day for day in history.get(account.repository, ()) if day[0] < today]
        # A repository created after the count of all was created through this server.
        counted = account.counted or all_counted
        one = _status_of(account, owner, limit, writes.get(name))
        sizes = (*days, (today, stored.size_bytes))
        repositories.append(replace(one, damaged=damaged.get(name, 0), history=sizes, counted=counted))
        if owner is not None:
            users[owner] = _sum(users.get(owner, Amount()), stored)
            if account.trash_counts:
                trash[owner] = _sum(trash.get(owner, Amount()), account.trash)
    found = (find_user(quotas, user, used, trash.get(user, Amount())) for user, used in users.items())
    return Stored(tuple(repositories), tuple(found))


def _status_of(
    account: RepositoryAccount, owner: str | None, limit: Limit, written: Written | None
) -> RepositoryStatus:
    """What the account of a repository tells."""
    stored, locks = account.stored, account.objects[LOCKS]
    return RepositoryStatus(
        "/".join(account.repository),
        owner,
        stored.size_bytes,
        stored.objects,
        limit.size_bytes,
        limit.objects,
        account.last_snapshot_s,
        locks,
        account.oldest_lock_s if locks else None,
        trash_bytes=account.trash.size_bytes,
        trash_objects=account.trash.objects,
        trash_counts=account.trash_counts,
        trash_ends_s=account.trash_ends_s if account.trash.objects else None,
        snapshots=account.objects[SNAPSHOTS],
        created_s=account.created_s,
        last_writer=written.user or None if written is not None else None,
        last_write_s=written.time_s if written is not None else None,
    )


def with_problems(stored: Stored, results: Results) -> Stored:
    """Add what the scrub has found. A repository that is not there any more is listed as long as something is missing."""
    listed = {one.repository for one in stored.repositories}
    gone = (
        RepositoryStatus(name, owner_of(tuple(filter(None, name.split("/")))), 0, 0)
        for name in sorted(results.counts.keys() - listed)
    )
    repositories = (
        replace(one, problem_counts=results.counts[one.repository], problems=results.named.get(one.repository, ()))
        if one.repository in results.counts
        else one
        for one in (*stored.repositories, *gone)
    )
    return stored._replace(repositories=tuple(repositories))


def find_user(quotas: Quotas, user: str, used: Amount, trash: Amount) -> UserStatus:
    """
    Make the status of a user, with what is stored in the folder of that name.

    @param trash: what lies in the trash there and counts.
    """
    limit = quotas.limit_of_user(user)
    return UserStatus(
        user,
        used.size_bytes,
        limit.size_bytes,
        used.objects,
        limit.objects,
        trash_bytes=trash.size_bytes,
        trash_objects=trash.objects,
    )


def _sum(first: Amount, second: Amount) -> Amount:
    return Amount(first.size_bytes + second.size_bytes, first.objects + second.objects)
