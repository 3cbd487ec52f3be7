"""
The server with C{--workers}: this process is the parent, which has the sockets, the users and the quotas. Its workers
serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred

from .. import __version__
from ..service.core import Core
from ..service.factories import closes_idle_state_file
from ..service.frontend import make_connection_limits
from ..service.integrity import SizeChanges
from ..service.readiness import Readiness
from ..service.reloading import Reloads
from ..service.topology import families_of
from ..telemetry.limited import Limited
from ..telemetry.metrics import Family, gauge
from ..threads.pools import JobPool
from ..threads.single_flight import ended_within
from .bandwidth import BandwidthRequests, Tells
from .ipc import Handlers
from .logins import LoginRequests
from .messages import (
    Begin,
    EnableQuota,
    EventHappened,
    MarkerFound,
    PolicyChanged,
    ReadCertificates,
    ReopenLog,
    SendCounts,
    UsersChanged,
)
from .monitoring import MonitoringRequests
from .parent import LAST_WORDS_S, Workers, WorkersOwner
from .quota import QuotaRequests, WorkerDirectoryLocks

#: The parent only reloads its own files, one after the other, and maintains the state file.
FILE_THREADS = 4
#: How long to wait for the workers' counts.
COUNT_TIMEOUT_S = 2.0


class MultiProcess(WorkersOwner):
    """
    L{resticserver.service.topology.Topology}: this process and its workers.

    @param announcing: called before the first log line that announces the server.
    """

    stop_s = LAST_WORDS_S

    def __init__(self, core: Core, announcing: Callable[[], object]) -> None:
        self._core = core
        self._announcing = announcing
        settings, reactor = core.settings, core.reactor
        self.front = self._workers = Workers(
            reactor,
            settings.listen,
            settings.workers,
            settings.shutdown_timeout_s,
            self,
            make_connection_limits(settings, Limited(reactor, core.tally.limited)),
        )
        self._directory_locks = WorkerDirectoryLocks(self._workers)
        self.quota_keeper = core.make_quota_keeper(self._directory_locks)
        self.trash_expiry = core.make_trash_expiry(self.quota_keeper)
        self.disk = JobPool(reactor, "files", FILE_THREADS)
        core.store.observe_size_changes(SizeChanges(reactor, self.disk, core.store, core.events.tell).take)
        self.readiness = Readiness(reactor, core.store, self.disk)
        self.scrub = core.make_scrub(self.requests_in_flight)
        self.monitoring = core.make_monitoring(
            self.quota_keeper,
            self.readiness,
            self.disk,
            self.scrub,
            self.gather,
            self._workers.pids,
            self._families,
            *families_of(self.scrub, self.trash_expiry),
        )
        self._quota_requests = QuotaRequests(self.quota_keeper)
        self._bandwidth_requests = BandwidthRequests()
        self._monitoring_requests = MonitoringRequests(reactor, self.monitoring, core.pages)
        self._login_requests = LoginRequests(core.password_checker) if core.password_checker is not None else None
        self.services = [self.disk, core.pages, closes_idle_state_file(core.state, self.disk, reactor)]

    # --- one worker

    def begin(self, listeners: list[str | None]) -> Begin:
        """See L{WorkersOwner.begin}."""
        core, volume = self._core, self._core.store.volume
        return Begin(
            __version__,
            core.settings.as_json(),
            listeners,
            None if core.policy_file is None else core.policy_file.text,
            0 if core.htpasswd is None else core.htpasswd.reading,
            volume.gone,
            self.quota_keeper.active,
            volume.known,
            self._directory_locks.closed,
        )

    def handlers(self, worker: Tells) -> Handlers:
        """L{WorkersOwner.handlers}: messages about the whole server."""
        return {
            MarkerFound: self._marker_found,
            EventHappened: self._core.events.tell,
            **(self._login_requests.handlers() if self._login_requests is not None else {}),
            **self._quota_requests.handlers(worker),
            **self._monitoring_requests.handlers(worker),
            **self._bandwidth_requests.handlers(worker),
        }

    def worker_gone(self, worker: object) -> None:
        """L{WorkersOwner.worker_gone}: recount what it had reserved, and drop its requests in flight."""
        self.quota_keeper.holder_gone(worker)
        self.monitoring.process_gone(worker)
        self._bandwidth_requests.worker_gone(worker)

    def _marker_found(self, marker: bytes) -> None:
        volume, state = self._core.store.volume, self._core.state
        if volume.known is None:
            volume.expect(marker)
            self._workers.tell_all(MarkerFound(marker))
            self.disk.run(state.remember_marker, marker)

    def announce(self) -> None:
        """See L{WorkersOwner.announce}."""
        self._announcing()

    # --- all workers

    async def gather(self) -> None:
        """Wait until all workers have sent their counts, but not for long."""
        # A worker that hangs must not block the metrics, which would show the problem.
        asked = Deferred.fromCoroutine(self._workers.ask_all(SendCounts()))
        await ended_within(COUNT_TIMEOUT_S, self._core.reactor, asked)

    def _families(self) -> Iterator[Family]:
        yield gauge("workers", "Number of worker processes that are ready", self._workers.number_ready())

    def requests_in_flight(self) -> int:
        """How many requests the workers are serving, as of their last counts."""
        return self.monitoring.requests_in_flight

    def reopen_log(self) -> None:
        """Tell each worker to reopen the access log by its name."""
        self._workers.tell_all(ReopenLog())

    def replace(self) -> bool:
        """Replace the workers one after the other."""
        self._workers.replace_all()
        return True

    async def spread(self, file: Reloads) -> None:
        """Pass a reloaded file to the workers."""
        core = self._core
        if core.htpasswd is not None and file is core.htpasswd:
            await self._workers.ask_all(UsersChanged(core.htpasswd.reading))
        elif core.policy_file is not None and file is core.policy_file:
            await self._workers.ask_all(PolicyChanged(core.policy_file.text))
        elif core.certificates is not None and not await self._workers.ask_all(ReadCertificates()):
            core.certificates.look_again()

    async def refresh_quota(self) -> None:
        """The limits may have changed. If there were none before, the workers report from now on what is stored."""
        if not self.quota_keeper.active and self.quota_keeper.wanted:
            await self._workers.ask_all(EnableQuota())
        self.quota_keeper.refresh()
