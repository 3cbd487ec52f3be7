"""
Which processes serve: the interface, and its single-process implementation. The one with workers is
L{resticserver.workers.topology.MultiProcess}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from twisted.application.service import IService

from ..net.listeners import Listeners
from ..quota.directory_locks import DirectoryLocks
from ..telemetry.metrics import Family
from ..threads.pools import JobPool
from .core import Core
from .cpu_profile import CpuProfile
from .frontend import Frontend, FrontendParts
from .monitoring import Monitoring
from .quota_keeper import QuotaKeeper
from .readiness import Readiness
from .reloading import Reloads
from .scrub import Scrub
from .trash_expiry import TrashExpiry


class Front(Protocol):
    """The service that listens on the addresses of C{--listen}."""

    @property
    def bound_addresses(self) -> list[str]:
        """Where it listens, while it does."""

    def open(self) -> None:
        """
        Open the sockets.

        @raise StartError: an address cannot be used.
        """

    def setServiceParent(self, parent: Any) -> Any:
        """See C{twisted.application.service.IService}."""

    def give_up(self) -> None:
        """Close the sockets after a failed start."""

    def abort(self) -> None:
        """Close all connections now."""


class Topology(Protocol):
    """
    The processes of a server, as the composition root sees them.

    @ivar stop_s: how long a stop takes at most, besides transfers in flight.
    """

    stop_s: float

    @property
    def front(self) -> Front:
        """The service that accepts connections."""

    @property
    def services(self) -> Sequence[IService]:
        """The services to start before the front, in order."""

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
    def scrub(self) -> Scrub:
        """The scrub of the whole server."""

    @property
    def trash_expiry(self) -> TrashExpiry | None:
        """What removes from the trash of the whole server, if its store has one."""

    @property
    def monitoring(self) -> Monitoring:
        """The metrics and the status of the whole server."""

    async def gather(self) -> None:
        """Wait until all processes have sent their counts, but not for long."""

    def requests_in_flight(self) -> int:
        """How many requests all processes are serving, as of their last counts."""

    def reopen_log(self) -> None:
        """Reopen the access log by its name."""

    def replace(self) -> bool:
        """
        Replace the worker processes.

        @return: false if there are none.
        """

    async def spread(self, file: Reloads) -> None:
        """Pass a reloaded file to every process. When this returns, the new content is in effect everywhere."""

    async def refresh_quota(self) -> None:
        """The limits may have changed."""


class HasFamilies(Protocol):
    """Has metrics of its own."""

    def families(self) -> Iterator[Family]:
        """The metrics."""


def families_of(*parts: HasFamilies | None) -> Iterator[Callable[[], Iterator[Family]]]:
    """The metrics of those parts that there are."""
    return (part.families for part in parts if part is not None)


class SingleProcess:
    """
    L{Topology}: this process serves.

    @param announcing: called before the first log line that announces the server.
    """

    stop_s = 0.0

    def __init__(self, core: Core, announcing: Callable[[], object]) -> None:
        settings = core.settings
        directory_locks = DirectoryLocks()
        self.quota_keeper = core.make_quota_keeper(directory_locks)
        self.trash_expiry = core.make_trash_expiry(self.quota_keeper)
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
        self.scrub = core.make_scrub(self.requests_in_flight)
        self.monitoring = core.make_monitoring(
            self.quota_keeper,
            self.readiness,
            self.disk,
            self.scrub,
            self.gather,
            None,
            *families_of(self.scrub, self.trash_expiry),
        )
        self.front = Listeners(
            core.reactor,
            settings.listen,
            lambda: self._frontend.make_site(self.monitoring),
            core.connection_creator,
            settings.shutdown_timeout_s,
        )
        self.front.before_announcing(announcing)
        profile = [CpuProfile(settings.cpu_profile)] if settings.cpu_profile else []
        self.services = [*profile, *self._frontend.services]

    async def gather(self) -> None:
        """Count the requests for the metrics."""
        self.monitoring.count_in_flight(self, self.requests_in_flight())

    def requests_in_flight(self) -> int:
        """How many requests this process is serving."""
        return self._frontend.requests_in_flight()

    def reopen_log(self) -> None:
        """Reopen the access log by its name."""
        self._frontend.reopen_log()

    def replace(self) -> bool:
        """There are no workers to replace."""
        return False

    async def spread(self, file: Reloads) -> None:
        """There are no other processes."""

    async def refresh_quota(self) -> None:
        """The limits may have changed."""
        self.quota_keeper.refresh()
