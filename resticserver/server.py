"""
The composition root: from settings to a tree of services.

L{ResticServer} opens nothing when it is made, since twistd forks after that; what can be checked without opening is checked
there, so that the person at the terminal is told. The tree starts in order (access log, pools, listeners) and stops in the
other, one service after the other: listeners and their transfers, pools, access log.

With C{--workers} the place of the listeners is taken by L{Workers}: other processes that serve, while this one has the sockets,
the users and what is read again. What serves is the same in both (L{resticserver.service.frontend}).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .access.htpasswd import Htpasswd
from .access.throttle import Throttle
from .config.settings import Settings
from .dates import date_text
from .errors import StartError
from .net.listeners import METRICS, Listeners
from .process import allocator
from .process.descriptors import raise_limit
from .process.orphans import Orphans
from .process.signals import end_the_start
from .quota.admission import DirectoryLocks
from .service.announcement import announce
from .service.frontend import (
    PAGE_THREADS,
    CpuProfile,
    Frontend,
    SequentialServices,
    closes_idle,
    make_authentication,
    make_certificates,
    make_pages,
    make_policy,
    make_site,
    make_state,
    make_store,
)
from .service.hooks import EVENT, Events
from .service.integrity import SizeChanges
from .service.lifecycle import Signals
from .service.logins import ASK as LOGIN
from .service.logins import WITHDRAW as LOGIN_WITHDRAWN
from .service.logins import PasswordChecker
from .service.monitor import COUNTED, Monitoring, gauge
from .service.quota_keeper import LocalGates, QuotaKeeper
from .service.readiness import Readiness
from .service.refusals import KeptRefusals
from .service.reloading import Reloads, Repeated
from .service.systemd import ServiceManager
from .telemetry.accesslog import AccessLog, AccessLogService
from .telemetry.events import Event, EventKind
from .telemetry.metrics import Family, MetricType, Sample
from .threads.pools import JobPool
from .threads.serial_jobs import ended_within
from .workers.parent import LAST_WORDS_S, Workers
from .workers.quota import KEEP_ACCOUNT, QuotaRequests, WorkerDirectoryLocks

if TYPE_CHECKING:
    from .web.http1.site import RepositorySite

#: Files that are read again are read one after the other; a few more for what is to come.
FILE_THREADS = 4
#: Password checks at once, and as many of guesses besides. Each is a core's full work. Guesses stand back for transfers: a flood
#: of them gets half the cores at most, and of those only what transfers leave.
PASSWORD_THREADS = max(1, (os.cpu_count() or 1) // 2)
GUESSES_NICE = 19
#: Repositories are counted one after the other; some more for the state file, and for what an upload waits for.
COUNTING_THREADS = 4
#: How often it is looked whether the certificate ends soon, and what is soon.
EXPIRY_INTERVAL_S = 86_400.0
EXPIRY_DAYS = 14
#: What workers may take to say what they have counted.
COUNT_TIMEOUT_S = 2.0
#: What may still go on when all transfers have ended or were given up (and all workers have); the same after a second signal.
REST_S = 10.0
ABORT_S = 4.0
#: How often the files of users and rules, and of certificates, are looked at.
RULES_INTERVAL_S = 5.0
CERTIFICATES_INTERVAL_S = 2.0

_log = Logger()


class ResticServer(SequentialServices):
    """
    One server.

    @param reactor: the real one.
    @param where_it_stands: puts what a flag's value came from in the place of the flag that a complaint begins with.
    @raise StartError: a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings, reactor: Any, where_it_stands: Callable[[str], str] = str) -> None:
        super().__init__()
        self.settings = settings
        self._where_it_stands = where_it_stands
        self._signals = Signals(reactor, self._abort)
        self._reactor = reactor
        self.state = make_state(settings)
        self.store = make_store(settings, self.state)
        self.store.volume.expect(self.state.marker())
        self.passwords = JobPool(reactor, "passwords", PASSWORD_THREADS)
        self.guesses = JobPool(reactor, "guesses", PASSWORD_THREADS, GUESSES_NICE)
        self.htpasswd = self._users()
        flags, self.policy_file = make_policy(settings)
        if self.policy_file is not None:
            self.policy_file.load()
        self.certificates = make_certificates(settings)
        self._reloading = DeferredLock()
        self._late: IDelayedCall | None = None
        self.events = Events(reactor, settings.on_event)
        password_checker = None
        if self.htpasswd is not None:
            throttle = Throttle(settings.auth_failures, reactor.seconds)
            tell = self.events.tell_now_and_then
            pools = (self.passwords, self.guesses)
            password_checker = PasswordChecker(self.htpasswd, *pools, throttle, reactor, tell, PASSWORD_THREADS)
        profile = settings.cpu_profile
        if profile and os.path.isdir(profile):
            raise StartError(f"--cpu-profile: cannot write {profile}: it is a directory")
        if profile and not os.access(os.path.dirname(profile), os.W_OK | os.X_OK):
            raise StartError(
                f"--cpu-profile: cannot write {profile}: there is no such directory, or it may not be written"
            )
        self.workers: Workers | None = None
        directory_locks = DirectoryLocks()
        self.counting = JobPool(reactor, "counting", COUNTING_THREADS)
        self.pages = JobPool(reactor, "pages", PAGE_THREADS)
        self._worker_locks = WorkerDirectoryLocks() if settings.workers > 1 else LocalGates(directory_locks)
        self.quota_keeper = QuotaKeeper(
            reactor,
            settings.limit,
            self.policy_file or flags,
            self.store.counting,
            self.state,
            self.counting,
            self._worker_locks,
            in_any_case=settings.metrics,
        )
        self._password_checker = password_checker
        self._frontend: Frontend | None = None
        self.log_file = None
        front: Listeners | Workers
        readiness = None
        services: list[IService] = []
        if settings.workers == 1:
            if profile:
                services.append(CpuProfile(profile))
            self.monitoring = self._monitoring(self._count_here)
            tally = self.monitoring.tally if settings.metrics else None
            frontend = self._frontend = Frontend(
                settings,
                reactor,
                self.store,
                self.state,
                self.policy_file or flags,
                password_checker,
                self.quota_keeper,
                directory_locks,
                self.pages,
                self.events.tell,
                tally,
                self.monitoring.metrics,
                self.monitoring.status,
            )
            self.disk, self.log_file, readiness = frontend.disk, frontend.log_file, frontend.readiness
            services += frontend.services
            front = Listeners(
                reactor,
                settings.listen,
                frontend.make_site,
                self.certificates.creator if self.certificates is not None else None,
                settings.shutdown_timeout_s,
            )
        else:
            self.disk = JobPool(reactor, "files", FILE_THREADS)
            services += [self.disk, self.pages, closes_idle(self.state, self.disk, reactor)]
            self.store.observe_size_changes(SizeChanges(reactor, self.disk, self.store, self.events.tell).take)
            self.monitoring = self._monitoring(self._count_in_workers)
            self.monitoring.worker_pids = lambda: self.workers.pids() if self.workers is not None else []
            requests = QuotaRequests(self.quota_keeper)
            commands: dict[str, Callable[..., Any]] = {"marker": self._marker_learnt, EVENT: self.events.take}
            if password_checker is not None:
                commands |= {LOGIN: password_checker.answer, LOGIN_WITHDRAWN: password_checker.withdraw}
            front = self.workers = Workers(
                reactor,
                settings.listen,
                settings.workers,
                self._beginning,
                lambda worker: {**commands, **requests.commands(worker), **self.monitoring.commands(worker)},
                settings.shutdown_timeout_s,
                self._worker_gone,
            )
            assert isinstance(self._worker_locks, WorkerDirectoryLocks)
            self._worker_locks.workers = front
        self.front = front
        front.announcing = self._signals.keep_stop
        self._flags = flags
        self._readiness = readiness or Readiness(reactor, self.store, self.disk)
        self.monitoring.not_ready = self._readiness.look
        others: list[IService] = []
        self._listeners: list[Listeners | Workers] = [front]
        if settings.metrics_listen is not None:
            creator = self.certificates.creator if self.certificates is not None else None
            self._listeners.append(
                Listeners(
                    reactor,
                    (settings.metrics_listen,),
                    self._metrics_site,
                    creator,
                    settings.shutdown_timeout_s,
                    purpose=METRICS,
                )
            )
            others.append(self._listeners[-1])
        rules = Repeated("rules watch", reactor, RULES_INTERVAL_S, self.reload_rules)
        certificates = Repeated("certificates watch", reactor, CERTIFICATES_INTERVAL_S, self.reload_certificates)
        if self.certificates is not None:
            others.append(Repeated("certificate's end", reactor, EXPIRY_INTERVAL_S, self._look_at_expiry, now=True))
        self.manager = ServiceManager(reactor, os.environ)
        watches = (rules, certificates, *others)
        kept: list[IService] = [self.events, self.passwords, self.guesses, self.counting, self.quota_keeper]
        if settings.metrics:
            kept.append(KeptRefusals(reactor, self.events.refusals, self.state, self.counting))
        orphans = [Orphans(reactor)] if os.getpid() == 1 else []
        for child in (*services, *kept, *watches, *orphans, front, self.manager):
            child.setServiceParent(self)

    # --- what can be seen

    def _monitoring(self, gather: Callable[[], Coroutine[Deferred[Any], Any, object]]) -> Monitoring:
        settings = self.settings
        monitoring = Monitoring(
            self._reactor,
            settings.path,
            settings.limit,
            self.quota_keeper.quotas,
            self.quota_keeper,
            self.counting,
            self.pages,
            gather,
        )
        if self.certificates is not None:
            certificates = self.certificates
            monitoring.certificate_ends = lambda: certificates.not_after
        monitoring.check_volume = self.store.volume.check
        monitoring.refusals = self.events.refusals
        self.events.observers.append(lambda event: self._keep_count(monitoring, event))
        monitoring.more += [self._families, self.events.families]
        return monitoring

    def _families(self) -> Iterator[Family]:
        """Metrics of what is here."""
        if self._password_checker is not None:
            for name, help_, value in (
                (
                    "rest_server_auth_failures",
                    "Logins with a wrong password or an unknown user",
                    self._password_checker.failures,
                ),
                (
                    "rest_server_auth_lockouts",
                    "How often an address was refused from then on",
                    self._password_checker.lockouts,
                ),
            ):
                yield Family(MetricType.COUNTER, name, help_, (), [Sample((), value)])
        if self.certificates is not None:
            yield gauge(
                "certificate_expiry_timestamp_seconds",
                "When the TLS certificate ends, in seconds since 1970",
                self.certificates.not_after.timestamp(),
            )
        if self.workers is not None:
            yield gauge("workers", "Processes that serve", self.workers.number_ready())

    async def _count_here(self) -> None:
        assert self._frontend is not None
        self.monitoring.in_flight[self] = self._frontend.requests_in_flight()

    async def _count_in_workers(self) -> None:
        assert self.workers is not None
        # One that hangs must not make the metrics hang that would tell.
        asked = Deferred.fromCoroutine(self.workers.ask_all(COUNTED))
        await ended_within(COUNT_TIMEOUT_S, self._reactor, asked)

    def _worker_gone(self, worker: object) -> None:
        self.quota_keeper.holder_gone(worker)
        self.monitoring.in_flight.pop(worker, None)

    def _keep_count(self, monitoring: Monitoring, event: Event) -> None:
        if event.repository is None:
            return
        if event.kind is EventKind.CORRUPTION:
            kind, name = event.details["type"], event.details["name"]
            monitoring.damage(event.repository, kind, name, replaced=not event.in_place)
            if event.in_place:
                # A worker may have seen it, whose snapshots are not those that are counted with.
                repository = tuple(filter(None, event.repository.split("/")))
                forgotten = self.disk.run(self.store.forget_directory, repository, kind, name)
                forgotten.addCallback(lambda _: self.quota_keeper.recount(repository)).addErrback(_log_failure)
        elif event.kind is EventKind.REPOSITORY_DELETED:
            monitoring.deleted(event.repository)

    def _look_at_expiry(self) -> Deferred[None]:
        """Whether the certificate ends soon."""
        assert self.certificates is not None
        left = self.certificates.not_after - datetime.now(UTC)
        if left < timedelta(days=EXPIRY_DAYS):
            until = date_text(self.certificates.not_after.timestamp())
            message = f"the TLS certificate {'ends' if left > timedelta() else 'has ended'} on {until}"
            event = Event(EventKind.CERTIFICATE, message, details={"not_after": until})
            self.events.tell_now_and_then(event, until)
        return succeed(None)

    def _metrics_site(self) -> RepositorySite:
        """What is on C{--metrics-listen}. Its requests are not counted, nor in the access log."""
        from .web.pages import Pages
        from .web.status_pages import StatusPages

        settings = self.settings
        pages = make_pages(settings, self._readiness, self.monitoring.metrics)
        status = StatusPages(self.monitoring.status, self.policy_file or self._flags, self.pages)
        resource = Pages(pages, make_authentication(settings, self._password_checker), None, status)
        site = make_site(settings, self._reactor, lambda record: None, resource)
        site.count_handshake_failure = self.monitoring.tally.handshake_failed
        return site

    def _users(self) -> Htpasswd | None:
        if not self.settings.passwords:
            return None
        htpasswd = Htpasswd(self.settings.htpasswd_path, self._reactor.seconds)
        htpasswd.load(self._users_are_missing)
        return htpasswd

    def _users_are_missing(self) -> bool:
        """Whether the users lie on a volume that is not there. They are read when it is back; until then logins are 503."""
        if not os.path.abspath(self.settings.htpasswd_path).startswith(f"{self.store.path}/"):
            return False
        try:
            return self.store.volume.is_missing()
        except OSError:
            return False

    def startService(self) -> None:
        """
        Twisted's call: open everything.

        @raise StartError: something cannot be opened. Under twistd this ends the process with one line on stderr.
        """
        allocator.keep_large_blocks()
        end_the_start()
        self.events.limits = raise_limit()
        # Before anyone is told that the server is there: the signal's default ends the process.
        self._signals.on(signal.SIGHUP, self.reload)
        self._signals.on(signal.SIGUSR2, self.replace_workers)
        try:
            # All that can go wrong comes first: what is wrong is to be the first line, and not the sixth.
            volume = self.store.volume
            self.store.prepare()
            self.state.prepare()
            if volume.known is not None:
                self.state.remember_marker(volume.known)
            volume.observe_marker(self.state.remember_marker)
            if self.settings.log:
                AccessLogService(self.settings.log, AccessLog(), lambda job: None).try_to_open()
            for listeners in self._listeners:
                listeners.open()
            announce(self.settings, self.htpasswd is not None and not self.htpasswd.is_missing)
            super().startService()
        except (StartError, OSError) as error:
            line = str(error)
            if not isinstance(error, StartError):
                line = f"cannot open {error.filename}: {error.strerror}" if error.filename else f"cannot start: {error}"
            line = f"rest-server: {self._where_it_stands(line)}"
            _log.error("{line}", line=line)
            # twistd lets the exception through to the interpreter, which would print a traceback (and has put its log
            # where sys.stderr was).
            sys.excepthook = lambda *_: print(line, file=sys.__stderr__)
            self._give_up_listening()
            raise StartError(line) from None
        except BaseException:
            self._give_up_listening()  # a signal
            raise
        # Not now: it takes a tenth of a second, and until the reactor runs a signal just ends the process.
        self._reactor.callWhenRunning(allocator.leave_out_what_stays)

    def _give_up_listening(self) -> None:
        for listeners in self._listeners:
            listeners.give_up()

    def replace_workers(self) -> None:
        """SIGUSR2: one worker after the other is replaced; without workers there is nothing to do."""
        if self.workers is not None:
            self.workers.replace_all()
        else:
            _log.warn("SIGUSR2 replaces the processes of --workers, and there are none")

    def reload(self) -> None:
        """SIGHUP: read users, rules and certificates again, open the access log by its name again."""
        self.manager.reloading()
        reloaded = [self.reload_rules(True), self.reload_certificates(True)]
        DeferredList(reloaded).addCallback(lambda _: self.manager.reloaded())
        if self.log_file is not None:
            self.log_file.reopen()
        if self.workers is not None:
            self.workers.tell_all("reopen")

    def reload_rules(self, force: bool = False) -> Deferred[None]:
        """Read the htpasswd and the policy file again if they changed, or in any case."""
        return self._reload((self.htpasswd, self.policy_file), force)

    def reload_certificates(self, force: bool = False) -> Deferred[None]:
        """Read certificate, key and authorities again if they changed, or in any case."""
        return self._reload((self.certificates,), force)

    def _reload(self, files: tuple[Reloads | None, ...], force: bool) -> Deferred[None]:
        """Read files again, let all processes have them, then say so; one reload at a time."""

        def read() -> list[Reloads]:
            return [file for file in files if file is not None and file.reload_if_changed(force)]

        async def reload() -> None:
            changed = await self.disk.run(read)
            for file in changed:
                await self._spread(file)
                file.say_reloaded()
            await self._keep_account()

        return self._reloading.run(lambda: Deferred.fromCoroutine(reload())).addErrback(_log_failure)

    # --- with workers

    def _beginning(self) -> dict[str, Any]:
        """What a worker that begins now has to know."""
        marker = self.store.volume.known
        return {
            "settings": self.settings.as_json(),
            "policy": None if self.policy_file is None else self.policy_file.text,
            "reading": 0 if self.htpasswd is None else self.htpasswd.reading,
            "marker": None if marker is None else marker.decode("latin-1"),
            "volume_gone": self.store.volume.gone,
            "keeps_account": self.quota_keeper.active,
            "closed": self._worker_locks.closed if isinstance(self._worker_locks, WorkerDirectoryLocks) else [],
        }

    async def _spread(self, file: Reloads) -> None:
        """Let the workers have what was read again; it holds everywhere when this is done."""
        if self.workers is None:
            return
        if self.htpasswd is not None and file is self.htpasswd:
            await self.workers.ask_all("users", reading=self.htpasswd.reading)
        elif self.policy_file is not None and file is self.policy_file:
            await self.workers.ask_all("policy", text=self.policy_file.text)
        elif self.certificates is not None and not await self.workers.ask_all("certificates"):
            self.certificates.look_again()

    async def _keep_account(self) -> None:
        """There may be limits now where there were none."""
        if self.workers is not None and not self.quota_keeper.active and self.quota_keeper.wanted:
            await self.workers.ask_all(KEEP_ACCOUNT)
        self.quota_keeper.refresh()

    def _marker_learnt(self, marker: str) -> None:
        """A worker has seen the volume's marker for the first time: from now on all miss it when it is gone."""
        assert self.workers is not None
        if self.store.volume.known is None:
            self.store.volume.expect(marker.encode("latin-1"))
            self.workers.tell_all("marker", marker=marker)
            self.disk.run(self.state.remember_marker, marker.encode("latin-1"))

    # --- the end

    def stopService(self) -> Deferred[None]:
        """Twisted's call: stop the services one after the other, the last started first."""
        # A second signal means: now.
        self._signals.asked_to_stop = True
        stopped: Deferred[Any] = Deferred()
        limit_s = self.settings.shutdown_timeout_s + REST_S + (0.0 if self.workers is None else LAST_WORDS_S)
        self._late = self._reactor.callLater(limit_s, self._give_up, stopped)
        stopping = super().stopService().addCallback(lambda _: _log.info("shutdown cleanly"))
        stopping.addBoth(self._stopped, stopped)
        return stopped

    def _stopped(self, result: object, stopped: Deferred[Any]) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
            stopped.callback(result)

    def _give_up(self, stopped: Deferred[Any]) -> None:
        """Something hangs: a disk, or who reads the log. Its thread ends with the process."""
        name = getattr(self.stopping, "name", None) or "something"
        _log.error("shutdown: {name} does not end, which is not waited for any longer", name=name)
        stopped.callback(None)

    def _abort(self) -> None:
        """End all connections now, and the command of C{--on-event}."""
        for listeners in self._listeners:
            listeners.abort()
        self.events.abort()
        if self._late is not None and self._late.active():
            self._late.reset(ABORT_S)


def _log_failure(failure: Failure) -> None:
    _log.failure("could not read a file again", failure)
