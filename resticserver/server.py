"""
The composition root: builds a tree of services from the settings.

L{ResticServer} opens nothing when it is created, because twistd forks afterwards. It does check what can be checked
without opening anything, so that such errors reach the terminal. The services start in order (access log, pools,
listeners). They stop one after the other in reverse order: listeners and their transfers, pools, access log.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from .config.settings import Settings
from .errors import StartError
from .net.listeners import METRICS, Listeners
from .process import allocator
from .process.descriptors import raise_limit
from .process.orphans import Orphans
from .process.start_signals import end_the_start
from .service.announcement import announce
from .service.certificate_expiry import expiry_watch
from .service.core import Core
from .service.frontend import PagesOfSite, SequentialServices, make_pages, make_pages_site
from .service.kept_refusals import KeptRefusals
from .service.reloading import Reloading
from .service.signals import Signals
from .service.summary import Summary
from .service.systemd import ServiceManager
from .service.topology import Front, SingleProcess, Topology
from .telemetry.accesslog import AccessLog, AccessLogService
from .threads.reactor import IReactor

if TYPE_CHECKING:
    from .web.http1.site import RepositorySite

#: How long everything else may take to stop after all transfers have ended or were given up. ABORT_S is the same after
#: a second signal.
REST_S = 10.0
ABORT_S = 4.0

_log = Logger()


class ResticServer(SequentialServices):
    """
    The whole server.

    @param reactor: the real reactor.
    @param where_it_stands: replaces the flag at the beginning of an error message by the place where its value was
        set.
    @raise StartError: a file named in the settings cannot be used.
    """

    def __init__(self, settings: Settings, reactor: IReactor, where_it_stands: Callable[[str], str] = str) -> None:
        super().__init__()
        self._where_it_stands = where_it_stands
        self._reactor = reactor
        self._signals = Signals(reactor, self._abort)
        self._late: IDelayedCall | None = None
        self.core = core = Core(settings, reactor)
        self.topology = topology = self._make_topology()
        rules = (core.htpasswd, core.policy_file)
        self._reloading = Reloading(topology.disk, rules, core.certificates, topology.spread, topology.refresh_quota)
        self._manager = ServiceManager(reactor, os.environ, Summary(reactor, core.store.volume, topology))
        self._fronts: list[Front] = [topology.front]
        services: list[IService] = [*topology.services, core.events, core.passwords, core.guesses, core.counting]
        services.append(topology.quota_keeper)
        if settings.metrics or settings.scrub_interval_s:
            services += [core.scrubbing, topology.scrub]
        if topology.trash_expiry is not None and not settings.read_only:
            services.append(topology.trash_expiry)
        if settings.metrics:
            services += [KeptRefusals(reactor, core.events.refusals, core.state, core.counting), core.activity]
        services += self._reloading.watches(reactor)
        if settings.metrics_listen is not None:
            metrics = self._metrics_listener(settings.metrics_listen)
            self._fronts.append(metrics)
            services.append(metrics)
        if core.certificates is not None:
            services.append(expiry_watch(reactor, core.certificates, core.events, settings.thresholds.certificate_s))
        if os.getpid() == 1:
            services.append(Orphans(reactor))
        for service in services:
            service.setServiceParent(self)
        topology.front.setServiceParent(self)
        self._manager.setServiceParent(self)

    def _make_topology(self) -> Topology:
        if self.core.settings.workers == 1:
            return SingleProcess(self.core, self._signals.keep_stop)
        from .workers.topology import MultiProcess  # a twentieth of the time that a start takes

        return MultiProcess(self.core, self._signals.keep_stop)

    def _metrics_listener(self, address: str) -> Listeners:
        core = self.core
        return Listeners(
            self._reactor,
            (address,),
            self._metrics_site,
            core.connection_creator,
            core.settings.shutdown_timeout_s,
            purpose=METRICS,
        )

    def _metrics_site(self) -> RepositorySite:
        """The site of C{--metrics-listen}. Its requests are neither counted nor logged in the access log."""
        core, topology = self.core, self.topology
        pages = make_pages(core.settings, topology.readiness, topology.monitoring, core.policy, core.pages)
        served = PagesOfSite(core.policy, pages, topology.monitoring.tally)
        return make_pages_site(core.settings, self._reactor, core.password_checker, served)

    # --- the start

    def startService(self) -> None:
        """
        Open files and sockets and start all services.

        @raise StartError: something cannot be opened. Under twistd this ends the process with one line on stderr.
        """
        allocator.keep_large_blocks()
        end_the_start()
        self.core.events.limit_descriptors(raise_limit())
        # Installed before the first log line that announces the server: the default action of these signals ends the
        # process.
        self._signals.on(signal.SIGHUP, self.reload)
        self._signals.on(signal.SIGUSR2, self._replace)
        try:
            self._open()
            super().startService()
        except (StartError, OSError) as error:
            line = str(error)
            if not isinstance(error, StartError):
                line = f"cannot open {error.filename}: {error.strerror}" if error.filename else f"cannot start: {error}"
            line = f"rest-server: {self._where_it_stands(line)}"
            _log.error("{line}", line=line)
            # twistd lets the exception reach the interpreter, which would print a traceback. By now twistd has also
            # replaced sys.stderr by its log.
            sys.excepthook = lambda *_: print(line, file=sys.__stderr__)
            self._give_up()
            raise StartError(line) from None
        except BaseException:
            self._give_up()  # SystemExit from a signal
            raise
        # Deferred, because it takes a tenth of a second, and until the reactor runs a signal just ends the process.
        self._reactor.callWhenRunning(allocator.leave_out_what_stays)

    def _open(self) -> None:
        """
        Do everything that can fail before anything is logged, so that an error is the first line of the log and not
        the sixth.
        """
        core = self.core
        volume = core.store.volume
        core.store.prepare()
        core.state.prepare()
        if volume.known is not None:
            core.state.remember_marker(volume.known)
        volume.observe_marker(core.state.remember_marker)
        if core.settings.log:
            AccessLogService(core.settings.log, AccessLog(), lambda job: None).try_to_open()
        for front in self._fronts:
            front.open()
        announce(core.settings, core.htpasswd is not None and not core.htpasswd.is_missing)

    def _give_up(self) -> None:
        for front in self._fronts:
            front.give_up()

    # --- signals

    def reload(self) -> None:
        """Handle SIGHUP: read users, rules and certificates again, and reopen the access log by its name."""
        self._manager.reloading()
        reloaded = [self._reloading.reload_rules(True), self._reloading.reload_certificates(True)]
        DeferredList(reloaded).addCallback(lambda _: self._manager.reloaded())
        self.topology.reopen_log()

    def _replace(self) -> None:
        """Handle SIGUSR2."""
        if not self.topology.replace():
            _log.warn("SIGUSR2 ignored: there are no worker processes (--workers)")

    # --- the end

    def stopService(self) -> Deferred[None]:
        """Stop the services one after the other, the last started first."""
        # From now on, a second signal aborts the transfers.
        self._signals.asked_to_stop = True
        stopped: Deferred[Any] = Deferred()
        limit_s = self.core.settings.shutdown_timeout_s + REST_S + self.topology.stop_s
        self._late = self._reactor.callLater(limit_s, self._stop_waiting, stopped)
        stopping = super().stopService().addCallback(lambda _: _log.info("shutdown cleanly"))
        stopping.addBoth(self._stopped, stopped)
        return stopped

    def _stopped(self, result: object, stopped: Deferred[Any]) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
            stopped.callback(result)

    def _stop_waiting(self, stopped: Deferred[Any]) -> None:
        """A service does not stop: a disk hangs, or the reader of the log. Its thread ends with the process."""
        name = getattr(self.stopping, "name", None) or "a service"
        _log.error("shutdown: {name} did not stop in time; exiting without it", name=name)
        stopped.callback(None)

    def _abort(self) -> None:
        """Close all connections now, and end the command of C{--on-event}."""
        for front in self._fronts:
            front.abort()
        self.core.events.abort()
        if self._late is not None and self._late.active():
            self._late.reset(ABORT_S)
