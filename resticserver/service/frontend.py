"""
What serves requests: everything behind the connections of one process, which is the whole server's or a worker's.
"""

from __future__ import annotations

import cProfile
import math
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, Logger

from ..access.policy import Decides, Policy
from ..access.policyfile import PolicyFile
from ..access.proxies import TrustedProxies
from ..config.settings import Settings
from ..process.descriptors import bounds
from ..storage.local import LocalStore
from ..storage.publish import Publisher
from ..storage.readonly import ReadOnlyStore
from ..storage.snapshots import Snapshots
from ..storage.state import StateFile
from ..telemetry.accesslog import FORMATS, AccessLog, AccessLogService
from ..telemetry.events import Tells
from ..telemetry.metrics import Tally
from ..telemetry.record import Recorder
from ..telemetry.status import ServerStatus
from ..threads.pools import JobPool, QuickPool
from .integrity import SizeChanges
from .readiness import Readiness
from .reloading import Repeated

if TYPE_CHECKING:
    from twisted.web.resource import IResource

    from ..net.tls import ReloadingCertificates
    from ..quota.admission import DirectoryLocks, QuotaBackend
    from ..threads.serial_jobs import Pool
    from ..web.authentication import Authentication, ChecksPasswords
    from ..web.http1.site import RepositorySite
    from ..web.pages import Answer, Page

#: Jobs on the disk at once, in one process and in each of several; most of them wait for it.
DISK_THREADS, SHARED_DISK_THREADS = 16, 8
#: Uploads that are hashed and written at once. Each is a core's full work: with more of them than cores the reactor waits
#: longer for the interpreter's lock, and the whole is slower by a tenth. Workers share the cores; with one thread each
#: they gain nothing on two cores, and lose where the large uploads are all at one worker.
WRITER_THREADS, LEAST_WRITER_THREADS = os.cpu_count() or 1, 2

#: Pages that are put together at once: metrics and status pages. No file is touched there, so that they are there also
#: when a disk hangs.
PAGE_THREADS = 1

#: How often it is looked whether the state file was used.
STATE_INTERVAL_S = 10.0

_log = Logger()


def make_state(settings: Settings) -> StateFile:
    """The state file; nothing is opened."""
    file_mode = 0o660 if settings.group_accessible_repos else 0o600
    return StateFile(settings.path, settings.state_dir, file_mode, may_be_frozen=settings.read_only)


def closes_idle(state: StateFile, pool: Pool, reactor: Any) -> IService:
    """A service that closes the state file when nobody uses it: a volume with an open file cannot be unmounted."""
    return Repeated("state file", reactor, STATE_INTERVAL_S, lambda: pool.run(state.close_if_idle), now=True)


def make_store(settings: Settings, state: StateFile) -> LocalStore:
    """The store of the data directory; nothing is opened."""
    kind = ReadOnlyStore if settings.read_only else LocalStore
    store = kind(
        settings.path,
        verify=not settings.no_verify_upload,
        max_depth=settings.max_depth,
        min_free=settings.min_free,
        publisher=Publisher(0o660, 0o770) if settings.group_accessible_repos else Publisher(),
        snapshots=Snapshots(store=state),
    )
    store.volume.expect(None, remembered_in=state.marker_file)
    return store


def make_policy(settings: Settings) -> tuple[Policy, PolicyFile | None]:
    """What the flags say of who may do what, and the file that says more, not read yet."""
    flags = Policy(settings.append_only, settings.private_repos, settings.read_only)
    return flags, None if settings.policy is None else PolicyFile(settings.policy, flags)


def make_certificates(settings: Settings) -> ReloadingCertificates | None:
    """
    The server's certificates, where it speaks TLS.

    @raise StartError: a file cannot be used.
    """
    if not settings.tls:
        return None
    from ..net.tls import ReloadingCertificates  # OpenSSL takes its time to import

    return ReloadingCertificates(
        settings.certificate_path,
        settings.key_path,
        settings.tls_min_ver,
        settings.tls_client_ca,
        settings.tls_client_required,
    )


class Frontend:
    """
    The parts of one process that serves.

    @param judge: for passwords, or C{None} without.
    @param books: who keeps account of what is stored.
    @param fences: between those who change directories and who counts them.
    @param pages: where pages are put together.
    @param tell: told of events.
    @param tally: counts requests, and what the disk takes; C{None} where nobody wants to know.
    @param metrics: all of the server's, for C{/metrics}; C{status} likewise for C{/-/status}.
    @ivar readiness: whether it can do its work.
    @ivar services: to be started before the first connection, in order; stopped in the other after the last.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        store: LocalStore,
        state: StateFile,
        policy: Decides,
        password_checker: ChecksPasswords | None,
        quota: QuotaBackend,
        directory_locks: DirectoryLocks,
        pages: JobPool,
        tell: Tells,
        tally: Tally | None,
        metrics: Callable[[], Awaitable[Answer]],
        status: Callable[[], Awaitable[ServerStatus]],
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._store = store
        self._policy = policy
        self._password_checker = password_checker
        self._tell = tell
        self._tally = tally
        self._metrics = metrics
        self._status = status
        self._site: RepositorySite | None = None
        self._quota = quota
        self._directory_locks = directory_locks
        self._pages = pages
        workers = settings.workers
        disk_threads = DISK_THREADS if workers == 1 else SHARED_DISK_THREADS
        self.disk = JobPool(reactor, "disk", disk_threads)
        self.quick = QuickPool(reactor, "quick", disk_threads)
        self.writers = JobPool(reactor, "writers", max(LEAST_WRITER_THREADS, math.ceil(WRITER_THREADS / workers)))
        self._access_log = AccessLog()
        self.services: list[IService] = []
        self.log_file = None
        if settings.log:
            # A thread of its own: a log that hangs must hold up nothing else.
            lines = JobPool(reactor, "log lines", 1)
            self.log_file = AccessLogService(settings.log, self._access_log, lines.run, FORMATS[settings.log_format])
            self.services += [lines, self.log_file]
        if settings.debug:
            self._access_log.add(_debug_line)
        if tally is not None:
            self._access_log.add(lambda event: tally(event["record"]))
            store.publisher.observe_fsyncs(tally.synced)
        store.observe_size_changes(SizeChanges(reactor, self.disk, store, tell).take)
        self.readiness = Readiness(reactor, store, self.disk)
        idle = closes_idle(state, self.disk, reactor)
        self.services += [self.disk, self.quick, self.writers, pages, idle]

    def requests_in_flight(self) -> int:
        """How many requests are being answered."""
        return sum(channel.is_busy() for channel in self._site.channels) if self._site is not None else 0

    def make_site(self) -> RepositorySite:
        """The HTTP server factory."""
        from ..quota.admission import Admission
        from ..web.pages import Pages  # a parent of workers does without all that
        from ..web.routes import Api  # Klein installs the reactor when it is imported
        from ..web.status_pages import StatusPages

        settings = self._settings
        admission = Admission(self._quota, self._directory_locks)
        pools = (self.disk, self.writers, self.quick)
        authentication = make_authentication(settings, self._password_checker)
        api = Api(self._store, *pools, authentication, self._policy, settings.auto_create, admission, self._tell)
        metrics = self._metrics if settings.prometheus else None
        pages = make_pages(settings, self.readiness, metrics)
        status = StatusPages(self._status, self._policy, self._pages) if settings.prometheus else None
        resource = Pages(pages, authentication, api.resource(), status)
        self._site = make_site(settings, self._reactor, self._access_log, resource)
        if self._tally is not None:
            self._site.count_handshake_failure = self._tally.handshake_failed
        return self._site


def make_pages(
    settings: Settings, readiness: Readiness, metrics: Callable[[], Awaitable[Answer]] | None
) -> dict[bytes, Page]:
    """What a site says of the server itself."""
    from ..web import pages

    found = {pages.HEALTH: pages.Page(pages.health), pages.READY: pages.ready_page(readiness.look)}
    if metrics is not None:
        found[pages.METRICS] = pages.Page(metrics, None if settings.prometheus_no_auth else pages.METRICS_USER)
    return found


def make_site(settings: Settings, reactor: Any, recorder: Recorder, resource: IResource) -> RepositorySite:
    """The HTTP server factory for a resource."""
    from ..web.http1.site import RepositorySite

    proxies = TrustedProxies.parse(settings.trusted_proxies or ())
    site = RepositorySite(resource, reactor, recorder, settings.max_depth, settings.proxy_prefix, proxies)
    site.crowded_from, site.full_from = bounds()
    return site


def make_authentication(settings: Settings, password_checker: ChecksPasswords | None) -> Authentication:
    """Who says who a user is."""
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

    @ivar stopping: the one that is being stopped.
    """

    stopping: IService | None = None

    def stopService(self) -> Deferred[None]:
        """Twisted's call; the parent's stops all of them at once."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        Service.stopService(self)
        for child in reversed(list(self)):
            self.stopping = child
            stopping = child.stopService()
            if stopping is not None:
                await stopping


class CpuProfile(Service):
    """
    A profile of the reactor's thread, from this service's start to its stop.

    @param path: where it is written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._profile = cProfile.Profile()
        self.setName("profile")

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._profile.enable()

    def stopService(self) -> None:
        """Write it."""
        super().stopService()
        self._profile.disable()
        self._profile.dump_stats(self._path)


def _debug_line(event: LogEvent) -> None:
    """Under C{--debug}: a line for each request among the diagnostics."""
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
