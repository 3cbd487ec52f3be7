"""
Which processes serve: one interface, and the server that is a single process. The one with workers is
L{resticserver.workers.topology.MultiProcess}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import IService

from ..net.listeners import Listeners
from ..quota.admission import DirectoryLocks
from ..threads.pools import JobPool
from .core import Core
from .frontend import CpuProfile, Frontend, FrontendParts
from .monitor import Monitoring
from .quota_keeper import QuotaKeeper
from .readiness import Readiness
from .reloading import Reloads


class Front(Protocol):
    """The service that has the addresses of C{--listen}."""

    def open(self) -> None:
        """
        Open them.

        @raise StartError: one cannot be had.
        """

    def setServiceParent(self, parent: Any) -> Any:
        """Twisted's call."""

    def give_up(self) -> None:
        """Close them after a start that failed."""

    def abort(self) -> None:
        """End all connections now."""


class Topology(Protocol):
    """
    The processes of a server, as the composition root needs them.

    @ivar stop_s: how long it takes at most to stop, besides transfers in flight.
    """

    stop_s: float

    @property
    def front(self) -> Front:
        """Accepts connections."""

    @property
    def services(self) -> Sequence[IService]:
        """To be started before the front, in order."""

    @property
    def disk(self) -> JobPool:
        """This process's pool for files."""

    @property
    def readiness(self) -> Readiness:
        """Whether the data directory can be used."""

    @property
    def quota_keeper(self) -> QuotaKeeper:
        """The quotas of the whole server."""

    @property
    def monitoring(self) -> Monitoring:
        """The metrics and the status of the whole server."""

    def reopen_log(self) -> None:
        """Open the access log by its name again."""

    def replace(self) -> bool:
        """Replace the processes that serve; false where this process serves itself."""

    async def spread(self, file: Reloads) -> None:
        """Give every process what was read again; when this is done it holds everywhere."""

    async def refresh_quota(self) -> None:
        """The limits may have changed."""


class SingleProcess:
    """
    L{Topology}: this process serves.

    @param announcing: called before the first line that says that the server is there.
    """

    stop_s = 0.0

    def __init__(self, core: Core, announcing: Callable[[], object]) -> None:
        settings = core.settings
        directory_locks = DirectoryLocks()
        self.quota_keeper = core.make_quota_keeper(directory_locks)
        parts = FrontendParts(
            core.store,
            core.state,
            core.policy,
            core.password_checker,
            self.quota_keeper,
            directory_locks,
            core.pages,
            core.events.tell,
            core.tally if settings.metrics else None,
        )
        self._frontend = Frontend(settings, core.reactor, parts)
        self.disk = self._frontend.disk
        self.readiness = self._frontend.readiness
        self.monitoring = core.make_monitoring(self.quota_keeper, self.readiness, self.disk, self._count_in_flight)
        self.front = Listeners(
            core.reactor,
            settings.listen,
            lambda: self._frontend.make_site(self.monitoring),
            core.connection_creator,
            settings.shutdown_timeout_s,
        )
        self.front.announcing = announcing
        profile = [CpuProfile(settings.cpu_profile)] if settings.cpu_profile else []
        self.services = [*profile, *self._frontend.services]

    async def _count_in_flight(self) -> None:
        self.monitoring.count_in_flight(self, self._frontend.requests_in_flight())

    def reopen_log(self) -> None:
        """Open the access log by its name again."""
        self._frontend.reopen_log()

    def replace(self) -> bool:
        """There is nothing to replace."""
        return False

    async def spread(self, file: Reloads) -> None:
        """This process has read it."""

    async def refresh_quota(self) -> None:
        """The limits may have changed."""
        self.quota_keeper.refresh()
