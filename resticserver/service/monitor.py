"""
What can be seen of the server from outside: its metrics, put together where the accounts are kept.

L{Monitoring} is in the process that keeps account. With workers that is the parent: they send what they have counted
(L{resticserver.workers.monitoring.WorkerMonitoring}), and when one of them is asked for the metrics, it asks the parent.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime

from .. import __version__
from ..errors import Unavailable
from ..quota.ledger import RepositoryAccount, owner_of
from ..sizes import Amount, Limit
from ..storage.layout import Repository, cell_of
from ..telemetry.metrics import CONTENT_TYPE, Exposition, Family, MetricType, RequestCounts, Sample, Tally
from ..telemetry.process import Processes
from ..telemetry.refusals import REASONS, Key, RefusalHistory, Refusals, within_a_day
from ..telemetry.status import RepositoryStatus, ServerStatus, UserStatus
from ..threads.serial_jobs import Fresh, Look, Pool
from ..web.pages import Answer
from .quota_keeper import QuotaKeeper, Quotas

#: For how long a page waits for a disk; what is not known then is not in it.
PATIENCE_S = 2.0
#: A repository that is not in the books for so long is gone; they are counted anew every ten minutes.
MISSING_S = 900.0
#: So many points of a curve are enough for every page.
MOST_POINTS = 100
#: What the parent asks its workers, and they it.
COUNTED, METRICS, STATUS = "counted", "metrics", "status"

DAY_S = 86_400
LOCKS = cell_of("locks", "")


class Monitoring:
    """
    The metrics of the whole server.

    @param data_path: whose file system is looked at.
    @param limit: of the whole server.
    @param pool: for files; C{pages} for all else that takes long.
    @param gather: waits until all other processes have sent what they counted.
    @ivar tally: counts this process's requests, and is told of the others'.
    @ivar in_flight: requests that are being answered, by process.
    @ivar damaged: damaged files that were found, by repository.
    @ivar certificate_ends: when the TLS certificate ends.
    @ivar check_volume: raises L{Unavailable} where the data directory's volume is gone.
    @ivar not_ready: why the server is not ready; empty if it is.
    @ivar refusals: uploads that were refused.
    @ivar worker_pids: the processes of all workers; C{None} for a server without.
    @ivar more: families that others know of, asked for each time.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        data_path: str,
        limit: Limit,
        quotas: Quotas,
        accounts: QuotaKeeper,
        pool: Pool,
        pages: Pool,
        gather: Callable[[], Coroutine[Deferred[Any], Any, object]] | None = None,
    ) -> None:
        self._data_path = data_path
        self._limit = limit
        self._quotas = quotas
        self._quota_keeper = accounts
        self._pages = pages
        self._disk = Look(reactor, pool, self._look_at_disk, PATIENCE_S)
        self._history = Look(reactor, pool, accounts.history, PATIENCE_S)
        self._status = Fresh(reactor, self._find_status)
        self._status_text = Fresh(reactor, self._as_text)
        self._gather = gather
        self._exposition = Exposition()
        self._started = time.time()
        self.tally = Tally()
        self.in_flight: dict[object, int] = {}
        self._reactor = reactor
        #: Repositories that were in the books the last time, and since when others are not.
        self._known: set[str] = set()
        self._missing: dict[str, float] = {}
        self.check_volume: Callable[[], object] = lambda: None
        self.damaged: Counter[str] = Counter()
        #: Those of them that were not replaced yet, by repository, type and name.
        self._unrepaired: set[tuple[str, str, str]] = set()
        self.refusals = Refusals()
        self.worker_pids: Callable[[], list[int]] | None = None
        self._processes = Processes()
        self.certificate_ends: Callable[[], datetime | None] = lambda: None
        self.not_ready: Callable[[], Coroutine[Deferred[Any], Any, str]] = _ready
        self.more: list[Callable[[], Iterator[Family]]] = []

    async def metrics(self) -> Answer:
        """All metrics as text."""
        if self._gather is not None:
            await self._gather()
        if self._quota_keeper.complete:
            self._forget_gone()
        counted = self.tally.counted.copy()
        accounts = list(self._quota_keeper.ledger.repositories.values())
        in_flight = sum(self.in_flight.values())
        counted_all = gauge(
            "counted", "Whether all repositories were counted since the start", self._quota_keeper.complete
        )
        known = [counted_all, gauge("http_requests_in_flight", "Requests that are being answered", in_flight)]
        known.append(
            Family(
                MetricType.COUNTER,
                "rest_server_uploads_refused",
                "Uploads that were refused, by reason",
                ("reason",),
                [Sample((reason,), self.refusals.totals[reason]) for reason in REASONS],
            )
        )
        for more in self.more:
            known += more()
        found, not_ready = await self._at_once(self._disk.find(), self.not_ready())
        known.append(gauge("ready", "Whether the data directory takes what is written to it", not not_ready))
        if found is not None:
            known.append(gauge("disk_free_bytes", "Free space of the data directory's file system", found[0]))
            known.append(gauge("disk_size_bytes", "Size of the data directory's file system", found[1]))
        damaged = dict(self.damaged)
        workers = self.worker_pids() if self.worker_pids is not None else None
        text = await self._pages.run(self._text, counted, accounts, damaged, known, workers)
        return Answer(200, CONTENT_TYPE, text)

    def _forget_gone(self) -> None:
        """
        Repositories that are not there any more have no series, or whoever makes and deletes them makes more and more. One
        that was made beside the server the books do not know yet; it has the time until the next count.
        """
        now_s = self._reactor.seconds()
        known = {"/".join(repository) for repository in self._quota_keeper.ledger.repositories}
        counted = {key[2] for key in self.tally.counted.blobs} | self.damaged.keys()
        self._missing = {repository: self._missing.get(repository, now_s) for repository in counted - known}
        self._forget(
            {
                repository
                for repository, since_s in self._missing.items()
                if repository in self._known or now_s - since_s >= MISSING_S
            }
        )
        # Its series may come once more from a worker that has not said all.
        self._known = known | (self._known & self._missing.keys())

    def damage(self, repository: str, object_type: str, name: str, replaced: bool) -> None:
        """A damaged object was found, or was replaced; one that is found and then replaced is one."""
        key = (repository, object_type, name)
        if key not in self._unrepaired:
            self.damaged[repository] += 1
        if replaced:
            self._unrepaired.discard(key)
        else:
            self._unrepaired.add(key)

    def deleted(self, repository: str) -> None:
        """A repository was deleted through this server."""
        self._known.add(repository)
        self._forget({repository})

    def _forget(self, repositories: set[str]) -> None:
        if repositories:
            self.tally.forget(repositories)
            for repository in repositories:
                self.damaged.pop(repository, None)
            self._unrepaired = {key for key in self._unrepaired if key[0] not in repositories}

    @staticmethod
    async def _at_once(*asked: Coroutine[Deferred[Any], Any, Any]) -> Any:
        """What several that wait for a disk find: where it hangs each takes its time."""
        return await gatherResults([Deferred.fromCoroutine(each) for each in asked], consumeErrors=True)

    def _text(
        self,
        counted: RequestCounts,
        accounts: list[RepositoryAccount],
        damaged: dict[str, int],
        known: list[Family],
        workers: list[int] | None,
    ) -> bytes:
        """In the pool for pages."""
        of_processes = self._processes.families(workers)
        return self._exposition.text(counted, (*self._own(), *self._stored(accounts, damaged), *known, *of_processes))

    def _own(self) -> Iterator[Family]:
        info = (__version__, platform.python_version(), twisted.__version__)
        yield Family(
            MetricType.GAUGE,
            "rest_server_build_info",
            "Versions, in the labels",
            ("version", "python", "twisted"),
            [Sample(info, 1)],
        )
        yield gauge("start_time_seconds", "When the server was started, in seconds since 1970", self._started)

    def _stored(self, accounts: list[RepositoryAccount], damaged: dict[str, int]) -> Iterator[Family]:
        sizes, objects, quotas, free, snapshots, damages = [], [], [], [], [], []
        users: dict[str, int] = {}
        for account in sorted(accounts, key=lambda account: account.repository):
            stored = account.stored
            if not (stored.objects or account.counted):
                continue  # a name that somebody asked for
            owner = owner_of(account.repository)
            labels = (owner or "", "/".join(account.repository))
            sizes.append(Sample(labels, stored.size_bytes))
            objects.append(Sample(labels, stored.objects))
            damages.append(Sample(labels, damaged.get(labels[1], 0)))
            limit = self._quotas.limit_of_repository(owner, account.repository).size_bytes
            if limit is not None:
                quotas.append(Sample(labels, limit))
                free.append(Sample(labels, max(0, limit - stored.size_bytes)))
            if account.last_snapshot_s is not None:
                snapshots.append(Sample(labels, account.last_snapshot_s))
            if owner is not None:
                users[owner] = users.get(owner, 0) + stored.size_bytes
        labels_ = ("user", "repo")
        for name, help_, samples in (
            ("size_bytes", "What is stored in a repository", sizes),
            ("objects", "How many objects a repository has", objects),
            ("quota_bytes", "What may be stored in a repository", quotas),
            ("quota_free_bytes", "How much more may be stored in a repository, by its own quota", free),
            ("last_snapshot_timestamp_seconds", "When a repository got its youngest snapshot", snapshots),
        ):
            yield Family(MetricType.GAUGE, f"rest_server_repository_{name}", help_, labels_, samples)
        yield Family(
            MetricType.COUNTER,
            "rest_server_repository_damaged",
            "Damaged files that were found in a repository",
            labels_,
            damages,
        )
        limits = {user: self._quotas.limit_of_user(user).size_bytes for user in sorted(users)}
        yield Family(
            MetricType.GAUGE,
            "rest_server_user_size_bytes",
            "What is stored below the folder of a user's name",
            ("user",),
            [Sample((user,), size) for user, size in sorted(users.items())],
        )
        yield Family(
            MetricType.GAUGE,
            "rest_server_user_quota_bytes",
            "What may be stored there",
            ("user",),
            [Sample((user,), limit) for user, limit in limits.items() if limit is not None],
        )
        yield gauge("size_bytes", "What is stored in all repositories", sum(sample.value for sample in sizes))
        if self._limit.size_bytes is not None:
            yield gauge("quota_bytes", "What may be stored in all repositories", self._limit.size_bytes)

    async def status(self) -> ServerStatus:
        """What a status page says, as of a moment ago."""
        return await self._status.get()

    async def _find_status(self) -> ServerStatus:
        """Look at everything."""
        found, disk, not_ready = await self._at_once(self._history.find(), self._disk.find(), self.not_ready())
        certificate = self.certificate_ends()
        free, size = disk or (None, None)
        server = ServerStatus(
            __version__,
            time.time(),
            self._started,
            not_ready,
            self._quota_keeper.complete,
            self._limit.size_bytes,
            free,
            size,
            None if certificate is None else certificate.timestamp(),
        )
        accounts = list(self._quota_keeper.ledger.repositories.values())
        refused = self.refusals.entries()
        return await self._pages.run(
            self._with_repositories, server, accounts, dict(self.damaged), found or {}, refused
        )

    def _with_repositories(
        self,
        server: ServerStatus,
        accounts: list[RepositoryAccount],
        damaged: dict[str, int],
        history: dict[Repository, list[tuple[int, int]]],
        refused: tuple[float, list[tuple[Key, RefusalHistory]]],
    ) -> ServerStatus:
        """In the pool for pages."""
        today = int(server.time_s // DAY_S)
        repositories: list[RepositoryStatus] = []
        users: dict[str, Amount] = {}
        for account in accounts:
            stored = account.stored
            if not (stored.objects or account.counted):
                continue
            owner = owner_of(account.repository)
            name = "/".join(account.repository)
            limit = self._quotas.limit_of_repository(owner, account.repository)
            locks = account.objects[LOCKS]
            days = [day for day in history.get(account.repository, ()) if day[0] < today]
            repositories.append(
                RepositoryStatus(
                    name,
                    owner,
                    stored.size_bytes,
                    stored.objects,
                    limit.size_bytes,
                    limit.objects,
                    account.last_snapshot_s,
                    locks,
                    account.oldest_lock_s if locks else None,
                    damaged.get(name, 0),
                    (*some(days), (today, stored.size_bytes)),
                    # One that came after all had been counted came through this server.
                    account.counted or server.counted,
                )
            )
            if owner is not None:
                before = users.get(owner, Amount())
                users[owner] = Amount(before.size_bytes + stored.size_bytes, before.objects + stored.objects)
        refusals = within_a_day(refused, server.time_s)
        for one in refusals:
            if one.user is not None:
                users.setdefault(one.user, Amount())
        return replace(
            server,
            repositories=tuple(repositories),
            users=tuple(self._user(user, used) for user, used in users.items()),
        ).with_refusals(refusals)

    def _user(self, user: str, used: Amount) -> UserStatus:
        limit = self._quotas.limit_of_user(user)
        return UserStatus(user, used.size_bytes, limit.size_bytes, used.objects, limit.objects)

    def _look_at_disk(self) -> tuple[int, int] | None:
        """In the pool: free space and size of the data directory's file system, if that is there and not another."""
        try:
            self.check_volume()
            status = os.statvfs(self._data_path)
        except (OSError, Unavailable):
            return None
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    # --- workers

    def commands(self, worker: object) -> dict[str, Callable[..., Any]]:
        """What a worker may ask and tell."""
        return {
            COUNTED: partial(self._counted, worker),
            METRICS: lambda: Deferred.fromCoroutine(self._answer()),
            STATUS: lambda: Deferred.fromCoroutine(self._status_text.get()),
        }

    def _counted(self, worker: object, taken: dict[str, Any], in_flight: int) -> None:
        self.tally.add(taken)
        self.in_flight[worker] = in_flight

    async def _as_text(self) -> str:
        status = await self.status()
        return await self._pages.run(lambda: json.dumps(status.as_json(), separators=(",", ":")))

    async def _answer(self) -> str:
        return (await self.metrics()).body.decode("utf-8")


def some(days: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A curve of at most L{MOST_POINTS}: its ends, and of what is between them every so many."""
    step = -(-len(days) // MOST_POINTS)
    return days if step <= 1 else [*days[:-1:step], days[-1]]


async def _ready() -> str:
    return ""


def gauge(name: str, help_: str, value: float) -> Family:
    """A value without labels."""
    return Family(MetricType.GAUGE, f"rest_server_{name}", help_, (), [Sample((), value)])
