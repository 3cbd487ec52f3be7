"""
Everything behind the connections of one process, be it a single-process server or a worker: its pools, its services, its
routes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, Logger

from ..access.policy import Decides
from ..access.proxies import TrustedProxies
from ..config.settings import Settings
from ..limits.bandwidth import Bandwidth, BothDirections
from ..limits.connections import ConnectionLimits
from ..limits.uploads import UploadGate
from ..process.cores import usable_cores
from ..process.descriptors import bounds
from ..storage import parallel_fsync
from ..storage.interface import ServedStore
from ..storage.state import StateFile
from ..telemetry.accesslog import FORMATS, AccessLog, AccessLogService
from ..telemetry.events import Tells
from ..telemetry.limited import Limited, count_nothing
from ..telemetry.metrics import Tally
from ..telemetry.status import ServerStatus
from ..threads.pools import JobPool, Pools, QuickPool
from ..threads.reactor import IReactor
from .factories import closes_idle_state_file
from .integrity import SizeChanges
from .readiness import Readiness

if TYPE_CHECKING:
    from ..quota.admission import QuotaBackend
    from ..quota.directory_locks import DirectoryLocks
    from ..web.authentication import Authentication, ChecksPasswords
    from ..web.http1.options import SiteOptions
    from ..web.http1.site import RepositorySite
    from ..web.page import Page
    from ..web.status_pages import ServerPages

#: Concurrent disk jobs in a single process, and in each of several processes. Most of them wait for the disk.
DISK_THREADS, SHARED_DISK_THREADS = 16, 8
#: The same for an object store, whose answers take longer than a disk's.
OBJECT_THREADS, SHARED_OBJECT_THREADS = 32, 16
#: Uploads that are hashed and written concurrently. Each keeps a core busy: with more uploads than cores, the reactor
#: waits longer for the interpreter's lock, and total throughput drops by a tenth. Workers share the cores. One thread
#: per worker gains nothing on two cores, and is slower if all large uploads are at one worker.
WRITER_THREADS, LEAST_WRITER_THREADS = usable_cores(), 2

#: Metrics and status pages that are made concurrently. This touches no files, so pages work even if a disk hangs.
PAGE_THREADS = 1

_log = Logger()


class ShowsServer(Protocol):
    """Provides the metrics and the status of the whole server."""

    async def metrics(self) -> Page:
        """The response for C{/metrics}."""

    async def status(self) -> ServerStatus:
        """The status for C{/-/status}."""


@dataclass(frozen=True)
class FrontendParts:
    """
    The parts that a L{Frontend} works with.

    @ivar password_checker: C{None} without passwords.
    @ivar quota: admits uploads, and learns what is stored and removed.
    @ivar directory_locks: the directories that are being changed or counted.
    @ivar pages: the pool in which pages are made.
    @ivar tell: receives events.
    @ivar tally: counts requests and measures the disk; C{None} without metrics.
    @ivar number: of the process, from 1: limits are divided among the processes that serve.
    """

    store: ServedStore
    state: StateFile
    policy: Decides
    password_checker: ChecksPasswords | None
    quota: QuotaBackend
    directory_locks: DirectoryLocks
    pages: JobPool
    tell: Tells
    tally: Tally | None
    number: int = 1


@dataclass(frozen=True)
class PagesOfSite:
    """
    What L{make_pages_site} serves.

    @ivar tally: counts what is refused.
    """

    policy: Decides
    pages: ServerPages
    tally: Tally


class Frontend:
    """
    Everything behind the connections of one process, be it a single-process server or a worker.

    @ivar disk: the pool for files.
    @ivar readiness: whether the data directory can be used.
    @ivar bandwidth: the limits of transfers; C{None} if there can be none.
    @ivar services: to be started in order before the first connection, and stopped in reverse order after the last
        one.
    """

    def __init__(self, settings: Settings, reactor: IReactor, parts: FrontendParts) -> None:
        self._settings = settings
        self._reactor = reactor
        self._parts = parts
        self._site: RepositorySite | None = None
        workers = settings.workers
        alone, shared = (DISK_THREADS, SHARED_DISK_THREADS)
        if settings.location is not None:
            alone, shared = (OBJECT_THREADS, SHARED_OBJECT_THREADS)
        disk_threads = alone if workers == 1 else shared
        self.disk = JobPool(reactor, "disk", disk_threads)
        self._quick = QuickPool(reactor, "quick", disk_threads, together=parallel_fsync.is_available())
        self._writers = JobPool(reactor, "writers", max(LEAST_WRITER_THREADS, math.ceil(WRITER_THREADS / workers)))
        self._access_log = AccessLog()
        self.services: list[IService] = []
        self._log_file: AccessLogService | None = None
        if settings.log:
            # A separate thread, so that a hanging log file delays nothing else.
            lines = JobPool(reactor, "log lines", 1)
            self._log_file = AccessLogService(settings.log, self._access_log, lines.run, FORMATS[settings.log_format])
            self.services += [lines, self._log_file]
        if settings.debug:
            self._access_log.add(_debug_line)
        tally, store = parts.tally, parts.store
        if tally is not None:
            self._access_log.add(lambda event: tally(event["record"]))
            store.observe_fsyncs(tally.synced)
        store.observe_size_changes(SizeChanges(reactor, self.disk, store, parts.tell).take)
        self.readiness = Readiness(reactor, store, self.disk)
        self._limited = Limited(reactor, tally.limited if tally is not None else count_nothing)
        self.bandwidth = make_bandwidth(settings, reactor, parts.policy)
        idle = closes_idle_state_file(parts.state, self.disk, reactor)
        self.services += [self.disk, self._quick, self._writers, parts.pages, idle]

    def reopen_log(self) -> None:
        """Reopen the access log by its name."""
        if self._log_file is not None:
            self._log_file.reopen()

    def requests_in_flight(self) -> int:
        """The number of requests being served."""
        return sum(channel.is_busy() for channel in self._site.channels) if self._site is not None else 0

    def make_site(self, shows: ShowsServer) -> RepositorySite:
        """Make the HTTP server factory."""
        from ..quota.admission import Admission
        from ..web.http1.site import RepositorySite
        from ..web.routes import Api, Repositories  # Klein installs the reactor when it is imported

        settings, parts = self._settings, self._parts
        most_uploads = part_of(settings.max_uploads, settings.workers, parts.number)
        gate = UploadGate(self._limited, settings.max_object_size_bytes, most_uploads)
        admission = Admission(parts.quota, parts.directory_locks, gate)
        pools = Pools(self.disk, self._writers, self._quick)
        repositories = Repositories(parts.store, pools, admission, settings.auto_create, parts.tell, self.bandwidth)
        pages = make_pages(settings, self.readiness, shows if settings.prometheus else None, parts.policy, parts.pages)
        authentication = make_authentication(settings, parts.password_checker)
        api = Api(authentication, parts.policy, repositories, pages)
        options = make_options(settings, self._limited, parts.tally)
        if settings.workers == 1:
            # With workers, the parent accepts the connections.
            options = replace(options, connections=make_connection_limits(settings, self._limited))
        self._site = RepositorySite(api.resource(), self._reactor, self._access_log, options)
        return self._site


def make_pages(
    settings: Settings, readiness: Readiness, shows: ShowsServer | None, policy: Decides, pool: JobPool
) -> ServerPages:
    """
    Make the pages about the server itself.

    @param shows: for metrics and status pages; C{None} for a site without them.
    """
    from ..web.status_pages import ServerPages, StatusPages

    if shows is None:
        return ServerPages(readiness.look)
    status = StatusPages(shows.status, policy, pool)
    return ServerPages(readiness.look, shows.metrics, settings.prometheus_no_auth, status)


def make_pages_site(
    settings: Settings, reactor: IReactor, password_checker: ChecksPasswords | None, pages: PagesOfSite
) -> RepositorySite:
    """
    The HTTP server factory of C{--metrics-listen}. Its requests are not counted, nor in the access log, and its connections are
    not limited: whoever looks after the server needs them when there are too many.
    """
    from ..web.http1.site import RepositorySite
    from ..web.routes import Api

    api = Api(make_authentication(settings, password_checker), pages.policy, None, pages.pages)
    options = make_options(settings, Limited(reactor, pages.tally.limited), pages.tally)
    return RepositorySite(api.resource(), reactor, lambda record: None, options)


def make_options(settings: Settings, limited: Limited, tally: Tally | None) -> SiteOptions:
    """
    Make the options of a site.

    @param limited: receives what limits refuse.
    @param tally: counts what is refused; C{None} without metrics.
    """
    from ..web.http1.options import SiteOptions

    crowded_from, full_from = bounds()
    options = SiteOptions(
        settings.max_depth,
        settings.proxy_prefix,
        TrustedProxies.parse(settings.trusted_proxies or ()),
        settings.header_timeout_s,
        settings.stall_timeout_s,
        crowded_from,
        full_from,
        limited=limited,
    )
    return options if tally is None else replace(options, count_handshake_failure=tally.handshake_failed)


def make_connection_limits(settings: Settings, limited: Limited) -> ConnectionLimits | None:
    """Make the limits of the process that accepts connections; C{None} without any."""
    most, most_per_address = settings.max_connections, settings.max_connections_per_address
    if not most and not most_per_address:
        return None
    proxies = TrustedProxies.parse(settings.trusted_proxies or ())
    return ConnectionLimits(most, most_per_address, proxies, limited)


def make_bandwidth(settings: Settings, reactor: IReactor, policy: Decides) -> BothDirections | None:
    """Make the limits of transfers; C{None} if neither a flag nor a rule can set one."""
    if not settings.bandwidth_up and not settings.bandwidth_down and settings.policy is None:
        return None
    part = 1 / settings.workers
    up, down = (Bandwidth(reactor, rate, part) for rate in (settings.bandwidth_up, settings.bandwidth_down))
    return BothDirections(up, down, policy.bandwidth_of)


def part_of(limit: int, processes: int, number: int) -> int:
    """The part of a limit (0 for none) that one of several processes has, by its number from 1. All parts are the limit."""
    whole, rest = divmod(limit, processes)
    return whole + (number <= rest)


def make_authentication(settings: Settings, password_checker: ChecksPasswords | None) -> Authentication:
    """Make the authentication that the settings ask for."""
    from ..web.authentication import (
        CertificateAuthentication,
        NoAuthentication,
        PasswordAuthentication,
        ProxyAuthentication,
    )

    if settings.no_auth:
        return NoAuthentication()
    passwords = None if password_checker is None else PasswordAuthentication(password_checker)
    authentication: Authentication | None = passwords
    if settings.tls_client_ca is not None and settings.tls_client_user != "none":
        authentication = CertificateAuthentication(settings.tls_client_user, passwords)
    if settings.proxy_auth_username is not None:
        authentication = ProxyAuthentication(settings.proxy_auth_username, passwords, authentication)
    assert authentication is not None
    return authentication


class SequentialServices(MultiService):
    """
    Services that start in order and stop one after the other, the last started first.

    @ivar stopping: the service that is being stopped.
    """

    stopping: IService | None = None

    def stopService(self) -> Deferred[None]:
        """Stop the services one after the other. (C{MultiService} stops them concurrently.)"""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        Service.stopService(self)
        for child in reversed(list(self)):
            self.stopping = child
            stopping = child.stopService()
            if stopping is not None:
                await stopping


def _debug_line(event: LogEvent) -> None:
    """Log a line for each request (C{--debug})."""
    record = event["record"]
    _log.debug(
        "{method} {uri} from {address}: {status} {ending}, {received} bytes in, {sent} bytes out, {ms:.1f} ms",
        method=ascii(record.method.decode("latin-1"))[1:-1],
        uri=ascii(record.uri.decode("latin-1"))[1:-1],
        address=record.address,
        status=record.status,
        ending=record.ending.value,
        received=record.received_bytes,
        sent=record.sent_bytes,
        ms=record.duration_s * 1000,
    )
