"""
The metrics and the status of the server.

One L{Monitoring} runs in the process that has the quota ledger. With workers this is the parent: workers send it their
counts (L{resticserver.workers.monitoring}), and a worker that is asked for the metrics asks the parent.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime

from .. import __version__
from ..errors import Unavailable
from ..quota.ledger import RepositoryAccount
from ..sizes import Amount, Limit
from ..telemetry.concerns import DEFAULT, Thresholds
from ..telemetry.growth import bytes_per_day, full_at_s, thinned
from ..telemetry.last_day import Counters, Written
from ..telemetry.metrics import CONTENT_TYPE, Exposition, Family, MetricType, RequestCounts, Sample, Tally, gauge
from ..telemetry.process_metrics import Processes
from ..telemetry.refusals import REASONS, Key, RefusalHistory, Refusals, within_a_day
from ..telemetry.status import LastDayStatus, ScrubStatus, ServerStatus
from ..threads.interface import Pool
from ..threads.single_flight import CachedFlight, TimedFlight
from ..web.page import Page
from .quota_keeper import QuotaKeeper, Quotas
from .repository_figures import find_stored, find_user, with_problems
from .scrub import Results
from .size_history import MOST_POINTS, SizeHistory, Sizes

#: How long a page waits for a disk. Values that are not known by then are left out.
PATIENCE_S = 2.0
#: A repository that is missing from the ledger for this long is gone. The ledger is recounted every ten minutes.
MISSING_S = 900.0

DAY_S = 86_400


async def _ready() -> str:
    return ""


async def _nothing_to_gather() -> None:
    """With a single process, there is nothing to gather."""


class ShowsScrub(Protocol):
    """The part of L{resticserver.service.scrub.Scrub} that is shown."""

    @property
    def results(self) -> Results:
        """The problems, as of the last look."""

    def status(self) -> ScrubStatus | None:
        """The scrub on the status page; C{None} if there never was one."""

    def has_problem(self, repository: str, object_type: str, name: str) -> bool:
        """Whether an object is among the problems that are shown."""


@dataclass(frozen=True)
class Sources:
    """
    What L{Monitoring} shows besides the quota ledger.

    @ivar data_path: the data directory, whose file system is shown; C{None} for an object store.
    @ivar limit: of the whole server.
    @ivar quotas: the policy's limits.
    @ivar tally: the counters of this process, to which the counts of other processes are added.
    @ivar refusals: of uploads.
    @ivar check_volume: raises L{Unavailable} if the data directory's volume is missing.
    @ivar not_ready: why the server is not ready; empty if it is.
    @ivar certificate_ends: when the TLS certificate expires.
    @ivar gather: waits until all other processes have sent their counts.
    @ivar worker_pids: the process ids of the workers; C{None} for a server without workers.
    @ivar families: further metrics.
    @ivar scrub: what the scrub has found.
    @ivar host: the name of the machine.
    @ivar thresholds: from which values on something needs attention.
    @ivar counted: for how long counters are known, a day at most, and what they say.
    """

    data_path: str | None
    limit: Limit
    quotas: Quotas
    tally: Tally = field(default_factory=Tally)
    refusals: Refusals = field(default_factory=Refusals)
    check_volume: Callable[[], object] = lambda: None
    not_ready: Callable[[], Coroutine[Deferred[Any], Any, str]] = _ready
    certificate_ends: Callable[[], datetime | None] = lambda: None
    gather: Callable[[], Coroutine[Deferred[Any], Any, object]] = _nothing_to_gather
    worker_pids: Callable[[], list[int]] | None = None
    families: Sequence[Callable[[], Iterable[Family]]] = ()
    scrub: ShowsScrub | None = None
    host: str = ""
    thresholds: Thresholds = DEFAULT
    counted: Callable[[], tuple[float, Counters]] = lambda: (0.0, Counters())


class _Now(NamedTuple):
    """
    What the status is made of besides the server's own values, collected in the reactor's thread.

    @ivar refused: the result of L{Refusals.entries}.
    @ivar covered_s: for how long C{counted} is known.
    """

    accounts: list[RepositoryAccount]
    damaged: dict[str, int]
    sizes: Sizes
    refused: tuple[float, list[tuple[Key, RefusalHistory]]]
    writes: dict[str, Written]
    covered_s: float
    counted: Counters


class Monitoring:
    """
    The metrics and the status of the whole server.

    @param pool: for files.
    @param pages: the pool for all other slow work.
    @ivar tally: the counters of requests.
    @ivar damaged: the number of damaged files found, by repository.
    """

    def __init__(
        self, reactor: IReactorTime, sources: Sources, quota_keeper: QuotaKeeper, pool: Pool, pages: Pool
    ) -> None:
        self._reactor = reactor
        self._sources = sources
        self._limit = sources.limit
        self._quotas = sources.quotas
        self._quota_keeper = quota_keeper
        self._pages = pages
        self._disk = TimedFlight(reactor, pool, self._look_at_disk, PATIENCE_S)
        self._sizes = SizeHistory(reactor, pool, quota_keeper.history, PATIENCE_S)
        self._status = CachedFlight(reactor, self._find_status)
        self._exposition = Exposition()
        self._started = time.time()
        self.tally = sources.tally
        self._in_flight: dict[object, int] = {}
        #: The repositories in the ledger at the last call of metrics(), and since when other counted repositories are
        #: missing from it.
        self._known: set[str] = set()
        self._missing: dict[str, float] = {}
        self.damaged: Counter[str] = Counter()
        #: Damaged objects that were not replaced yet, by repository, type and name.
        self._unrepaired: set[tuple[str, str, str]] = set()
        self._processes = Processes()

    def count_in_flight(self, process: object, requests: int) -> None:
        """Set the number of requests that a process is serving."""
        self._in_flight[process] = requests

    @property
    def requests_in_flight(self) -> int:
        """How many requests all processes are serving, as far as is known."""
        return sum(self._in_flight.values())

    def process_gone(self, process: object) -> None:
        """A process has ended and serves no requests."""
        self._in_flight.pop(process, None)

    async def metrics(self) -> Page:
        """All metrics as text."""
        sources = self._sources
        await sources.gather()
        if self._quota_keeper.complete:
            self._forget_gone()
        counted = self.tally.counted.copy()
        accounts = list(self._quota_keeper.ledger.repositories.values())
        in_flight = sum(self._in_flight.values())
        counted_all = gauge(
            "counted", "Whether all repositories were counted since the start", self._quota_keeper.complete
        )
        known = [counted_all, gauge("http_requests_in_flight", "Requests in progress", in_flight)]
        known.append(
            Family(
                MetricType.COUNTER,
                "rest_server_uploads_refused",
                "Refused uploads by reason",
                ("reason",),
                [Sample((reason,), self._sources.refusals.totals[reason]) for reason in REASONS],
            )
        )
        for families in sources.families:
            known += families()
        found, not_ready = await self._at_once(self._disk.find(), self._sources.not_ready())
        known.append(gauge("ready", "Whether the data directory is usable", not not_ready))
        if found is not None:
            known.append(gauge("disk_free_bytes", "Free space of the data directory's file system", found[0]))
            known.append(gauge("disk_size_bytes", "Size of the data directory's file system", found[1]))
        damaged = dict(self.damaged)
        workers = sources.worker_pids() if sources.worker_pids is not None else None
        text = await self._pages.run(self._text, counted, accounts, damaged, known, workers)
        return Page(200, CONTENT_TYPE, text)

    def _forget_gone(self) -> None:
        """
        Drop the series of repositories that no longer exist. Otherwise a client that creates and deletes repositories
        would create more and more series.

        The ledger does not yet know a repository that another program has created, so a missing one is kept until the
        next count.
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
        # A worker may still send counts for a dropped repository.
        self._known = known | (self._known & self._missing.keys())

    def damage(self, repository: str, object_type: str, name: str, replaced: bool) -> None:
        """
        Count an object that was found damaged, or was replaced. An object that is found and then replaced counts once.
        """
        scrub = self._sources.scrub
        if replaced and scrub is not None and scrub.has_problem(repository, object_type, name):
            return  # it was reported as a problem, which has ended
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
        """Run several disk checks concurrently: if the disk hangs, each of them takes its full timeout."""
        return await gatherResults([Deferred.fromCoroutine(each) for each in asked], consumeErrors=True)

    def _text(
        self,
        counted: RequestCounts,
        accounts: list[RepositoryAccount],
        damaged: dict[str, int],
        known: list[Family],
        workers: list[int] | None,
    ) -> bytes:
        """Make the text. Called in the pool for pages."""
        of_processes = self._processes.families(workers)
        stored = find_stored(accounts, self._quotas, damaged, {}, 0, all_counted=False)
        families = (*self._own(), *stored.families(self._limit), *known, *of_processes)
        return self._exposition.text(counted, families)

    def _own(self) -> Iterator[Family]:
        info = (__version__, platform.python_version(), twisted.__version__)
        yield Family(
            MetricType.GAUGE,
            "rest_server_build_info",
            "Versions of the server, Python and Twisted, as labels",
            ("version", "python", "twisted"),
            [Sample(info, 1)],
        )
        yield gauge("start_time_seconds", "Start time of the server in seconds since 1970", self._started)

    async def status(self) -> ServerStatus:
        """The content of the status page, which may be a moment old."""
        return await self._status.get()

    async def _find_status(self) -> ServerStatus:
        """Determine the status."""
        sources, now_s = self._sources, time.time()
        sizes, disk, not_ready, _ = await self._at_once(
            self._sizes.find(int(now_s // DAY_S)), self._disk.find(), sources.not_ready(), sources.gather()
        )
        certificate, scrub = sources.certificate_ends(), sources.scrub
        free, size = disk or (None, None)
        server = ServerStatus(
            __version__,
            now_s,
            self._started,
            not_ready,
            self._quota_keeper.complete,
            self._limit.size_bytes,
            free,
            size,
            None if certificate is None else certificate.timestamp(),
            scrub=None if scrub is None else scrub.status(),
            host=sources.host,
            thresholds=sources.thresholds,
        )
        now = _Now(
            list(self._quota_keeper.ledger.repositories.values()),
            dict(self.damaged),
            sizes,
            sources.refusals.entries(),
            dict(self.tally.writes.by_repository),
            *sources.counted(),
        )
        return await self._pages.run(self._with_stored, server, now)

    def _with_stored(self, server: ServerStatus, now: _Now) -> ServerStatus:
        """Add repositories, users, refusals and growth. Called in the pool for pages."""
        today = int(server.time_s // DAY_S)
        stored = find_stored(
            now.accounts, self._quotas, now.damaged, now.sizes.by_repository, today, server.counted, now.writes
        )
        if self._sources.scrub is not None:
            stored = with_problems(stored, self._sources.scrub.results)
        refusals = within_a_day(now.refused, server.time_s)
        named = {user.name for user in stored.users}
        others = dict.fromkeys(one.user for one in refusals if one.user is not None and one.user not in named)
        users = (*stored.users, *(find_user(self._quotas, user, Amount(), Amount()) for user in others))
        history = [*now.sizes.total, (today, sum(one.size_bytes for one in stored.repositories))]
        rate, free = bytes_per_day(history), server.disk_free_bytes
        counted = now.counted
        return replace(
            server,
            repositories=stored.repositories,
            users=users,
            history=tuple(thinned(history, MOST_POINTS)),
            growth_bytes_per_day=rate,
            disk_full_s=full_at_s(server.time_s, free, rate) if rate is not None and free is not None else None,
            last_day=LastDayStatus(
                now.covered_s,
                counted.received_bytes,
                counted.sent_bytes,
                sum(one.number for one in refusals),
                counted.failed_logins,
                counted.limited,
            ),
        ).with_refusals(refusals)

    def _look_at_disk(self) -> tuple[int, int] | None:
        """
        The free space and the size of the data directory's file system; C{None} if it is missing or another one, or there is
        none. Called in the pool for files.
        """
        if self._sources.data_path is None:
            return None
        try:
            self._sources.check_volume()
            status = os.statvfs(self._sources.data_path)
        except (OSError, Unavailable):
            return None
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
