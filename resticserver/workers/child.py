"""
One worker process: C{python -m resticserver.workers.child NUMBER}, started by the parent (L{resticserver.workers.parent}).

It has no sockets of its own to listen on and reads no settings: the parent says over the wire how to begin, hands over
connections, judges passwords, tells what was read again and when to end. What the worker has to log goes to the parent. When
the parent is gone the worker ends as if it had been told to stop; no signal but SIGKILL ends it.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.logger import LogEvent, Logger, LogLevel, eventAsText, globalLogBeginner
from twisted.python.failure import Failure

from .. import __version__
from ..config.settings import Settings
from ..errors import StartError
from ..net.addresses import tls_factory
from ..net.shared_sockets import shared_factory
from ..process import allocator
from ..process.clock import use_monotonic_clock
from ..quota.admission import DirectoryLocks, Key
from ..service.frontend import (
    PAGE_THREADS,
    CpuProfile,
    Frontend,
    SequentialServices,
    make_certificates,
    make_policy,
    make_state,
    make_store,
)
from ..service.hooks import EVENT
from ..service.monitor import COUNTED
from ..threads.pools import JobPool
from ..web.http1.site import RepositorySite
from .ipc import IpcConnection
from .logins import RemotePasswordChecker
from .monitoring import WorkerMonitoring
from .parent import LAST_WORDS_S, PARENTS_SIGNALS, WIRE_FD
from .quota import CLOSE, KEEP_ACCOUNT, OPEN, RemoteQuota

#: While so much of what was logged waits for the parent, the rest is counted and not sent.
MOST_LOG_BYTES = 4 << 20
#: A line, or a traceback, is not longer.
_LONGEST_TEXT = 64 << 10
#: How long the last words may take on their way to a parent that is busy.
_FLUSH_S = 5.0

# As a program the module has another name.
_log = Logger(namespace="resticserver.workers.child")


def main(number: str) -> int:
    """
    Be a worker.

    @return: the exit status.
    """
    for ignored in PARENTS_SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
    allocator.keep_large_blocks()

    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    process = WorkerProcess(reactor, socket.socket(fileno=WIRE_FD), int(number))
    observer: Any = process.log
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    reactor.callWhenRunning(process.ipc.start)  # type: ignore[attr-defined]
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined, call-arg]
    return process.status


class WorkerProcess:
    """
    The worker's life.

    @ivar wire: to the parent.
    @ivar log: a log observer that sends to the parent.
    @ivar status: the exit status.
    """

    def __init__(self, reactor: Any, connection: socket.socket, number: int) -> None:
        self._reactor = reactor
        self._number = number
        self._ending = self._ended = False
        self.status = 0
        commands: dict[str, Callable[..., Any]] = {
            "begin": self.begin,
            "ping": lambda: None,
            "stop": self.stop,
            "abort": lambda: None,
        }
        self._commands = commands
        self.ipc = IpcConnection(reactor, connection, "the parent", commands, self.stop)
        self.log = RemoteLog(reactor, self.ipc)
        self._server: WorkerServer | None = None

    def begin(self, version: str, settings: dict[str, Any], **known: Any) -> None:
        """
        Become ready to serve.

        @param version: the parent's.
        @param known: what L{WorkerServer} has to know.
        @raise StartError: that is not possible; the process ends then.
        """
        try:
            if version != __version__:
                raise StartError(f"version {version} runs and {__version__} is installed: restart the server")
            made = Settings.from_json(settings)
            self.log.debug = made.debug
            self._server = WorkerServer(self._reactor, made, self.ipc, self._number, **known)
            self._server.startService()
        except Exception as error:
            self.status = 1
            self._server = None
            self._reactor.callLater(0, self.stop)
            if isinstance(error, OSError):
                raise StartError(f"cannot open {error.filename or 'a file'}: {error.strerror or error}") from error
            if not isinstance(error, StartError):
                _log.failure("a worker cannot start")
            raise
        self._commands.update(self._server.commands)
        self._commands["retire"] = self.retire
        allocator.leave_out_what_stays()

    def retire(self) -> None:
        """Another has taken this one's place: go on as long as there are connections."""
        assert self._server is not None
        self._server.connections.retire().addCallback(lambda _: self.stop())

    def stop(self) -> None:
        """Give transfers their time, then end; the parent says so, or is gone."""
        if self._ending:
            return
        self._ending = True
        stopped = self._server.stopService() if self._server is not None else Deferred.fromCoroutine(_nothing())
        stopped.addErrback(lambda failure: _log.failure("could not stop", failure)).addCallback(lambda _: self._end())
        if self._server is not None:
            # The parent would kill one that hangs, if it is still there.
            self._reactor.callLater(self._server.shutdown_timeout_s + LAST_WORDS_S, self._end)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.ipc.flush(_FLUSH_S)
        self._reactor.stop()


async def _nothing() -> None:
    """There is nothing to stop."""


class WorkerServer(SequentialServices):
    """
    What one worker serves with.

    @param listeners: for each of the parent's sockets the address that says what stands before HTTP, or C{None}.
    @param policy: the text of the policy file, if there is one.
    @param reading: which reading of the users the parent has.
    @param marker: of the volume, if it is known; C{volume_gone} whether the parent misses it, and has said so.
    @param keeps_account: whether account is kept of what is stored.
    @param closed: where nothing may be changed at the moment.
    @ivar verbs: what the parent may ask and tell.
    @ivar shutdown_timeout_s: how long transfers may go on after the stop began.
    @raise StartError: something cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        ipc: IpcConnection,
        number: int,
        listeners: list[str | None],
        policy: str | None,
        reading: int,
        marker: str | None,
        volume_gone: bool,
        keeps_account: bool,
        closed: list[tuple[list[str], int]],
    ) -> None:
        super().__init__()
        self._ipc = ipc
        self.shutdown_timeout_s = settings.shutdown_timeout_s
        self._state = make_state(settings)
        self._volume = (store := make_store(settings, self._state)).volume
        self._volume.expect(None if marker is None else marker.encode("latin-1"), is_missed=volume_gone)
        self._volume.observe_marker(
            lambda found: reactor.callFromThread(ipc.tell, "marker", marker=found.decode("latin-1"))
        )
        flags, policy_file = make_policy(settings)
        if policy_file is not None and policy is not None:
            policy_file.take(policy)
        check = RemotePasswordChecker(ipc, reading, reactor.seconds) if settings.passwords else None
        self._certificates = make_certificates(settings)
        quota = RemoteQuota(ipc, keeps_account)
        directory_locks = DirectoryLocks((tuple(repository), cell) for repository, cell in closed)
        pages = JobPool(reactor, "pages", PAGE_THREADS)
        monitoring = WorkerMonitoring(reactor, ipc, pages, lambda: self._frontend.requests_in_flight())
        self._quota, self._directory_locks = quota, directory_locks
        self._frontend = frontend = Frontend(
            settings,
            reactor,
            store,
            self._state,
            policy_file or flags,
            check,
            quota,
            directory_locks,
            pages,
            lambda event: ipc.tell(EVENT, **event.on_the_wire()),
            monitoring.tally if settings.metrics else None,
            monitoring.metrics,
            monitoring.status,
        )
        site = frontend.make_site()
        creator = self._certificates.creator if self._certificates is not None else None
        factories = [
            tls_factory(site, creator) if address is None else shared_factory(address, site, creator)
            for address in listeners
        ]
        self.connections = Connections(reactor, site, factories, ipc, settings.shutdown_timeout_s)
        if settings.cpu_profile:
            CpuProfile(f"{settings.cpu_profile}.{number}").setServiceParent(self)
        if settings.metrics:
            monitoring.setServiceParent(self)
        for child in (*frontend.services, self.connections):
            child.setServiceParent(self)
        self.commands: dict[str, Callable[..., Any]] = {
            "serve": self.connections.serve,
            "abort": self.connections.abort,
            "marker": self._marker_learnt,
            CLOSE: lambda repository, cells: Deferred.fromCoroutine(directory_locks.close(_keys(repository, cells))),
            OPEN: lambda repository, cells: directory_locks.open(_keys(repository, cells)),
            KEEP_ACCOUNT: lambda: setattr(quota, "active", True),
            COUNTED: monitoring.send,
        }
        if check is not None:
            self.commands["users"] = check.users_changed
        if policy_file is not None:
            self.commands["policy"] = policy_file.take
        if self._certificates is not None:
            self.commands["certificates"] = self._reload_certificates
        self.commands["reopen"] = self._reopen

    def stopService(self) -> Deferred[None]:
        """Twisted's call: stop everything, then close the state file."""
        if not self._ipc.open:
            # The parent is gone and its fences with it. What is stored from now on the next server may not know of.
            if self._quota.active:
                self._directory_locks.refuse("the server stops")
            else:
                self._directory_locks.open_all()
        return super().stopService().addCallback(lambda _: self._state.close())

    def _marker_learnt(self, marker: str) -> None:
        """Another worker has seen the volume's marker for the first time."""
        if self._volume.known is None:
            self._volume.expect(marker.encode("latin-1"))

    def _reload_certificates(self) -> Deferred[None]:
        """
        Serve the certificates as they are now.

        It fails with L{StartError} if they cannot be used; those before are served on.
        """
        assert self._certificates is not None
        return self._frontend.disk.run(self._certificates.read)

    def _reopen(self) -> None:
        """Open the access log by its name again."""
        if self._frontend.log_file is not None:
            self._frontend.log_file.reopen()


def _keys(repository: list[str], cells: list[int]) -> list[Key]:
    return [(tuple(repository), cell) for cell in cells]


class Connections(Service):
    """
    The connections that the parent handed over.

    @param factories: what serves those of each listener.
    """

    def __init__(
        self,
        reactor: Any,
        site: RepositorySite,
        factories: list[IProtocolFactory],
        ipc: IpcConnection,
        shutdown_timeout_s: float,
    ) -> None:
        self._reactor = reactor
        self._site = site
        self._factories = [Counted(factory, self._one_ended) for factory in factories]
        self._ipc = ipc
        self._shutdown_timeout_s = shutdown_timeout_s
        self._ended = 0
        self.setName("connections")

    def startService(self) -> None:
        """Be ready to serve."""
        super().startService()
        for factory in self._factories:
            factory.doStart()

    def serve(self, fd: int, listener: int) -> None:
        """
        Serve a connection.

        @param fd: its descriptor; -1 for one that the kernel has closed, since there are too many here.
        """
        if fd < 0:
            self._site.out_of_descriptors("a connection was closed")
            self._one_ended()
            return
        with socket.socket(fileno=fd) as connection:
            connection.setblocking(False)
            try:
                self._reactor.adoptStreamConnection(connection.fileno(), connection.family, self._factories[listener])
            except OSError:
                # The client is gone already, which Twisted finds out before it makes a protocol.
                self._one_ended()

    def _one_ended(self) -> None:
        self._ended += 1
        if self._ended == 1:
            self._reactor.callLater(0, self._report)

    def _report(self) -> None:
        ended, self._ended = self._ended, 0
        self._ipc.tell("ended", number=ended)

    def retire(self) -> Deferred[None]:
        """Let each connection end after its next answer; fires when none is left."""
        return self._site.retire()

    def abort(self) -> None:
        """End all connections now."""
        self._site.abort_all()

    def stopService(self) -> Deferred[None]:
        """Give transfers their time, then end them."""
        super().stopService()
        late = self._reactor.callLater(self._shutdown_timeout_s, self.abort)
        return self._site.drain().addCallback(lambda _: late.cancel() if late.active() else None)


class Counted:
    """A factory of protocols whose ends are counted."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, ended: Callable[[], None]) -> None:
        self._factory = factory
        self._ended = ended

    def doStart(self) -> None:
        """Twisted's call."""
        self._factory.doStart()

    def doStop(self) -> None:
        """Twisted's call."""
        self._factory.doStop()

    def buildProtocol(self, address: Any) -> Any:
        """Twisted's call: a protocol that says when its connection is lost, whatever it is a protocol of."""
        protocol: Any = self._factory.buildProtocol(address)

        def connection_lost(reason: Failure = connectionDone) -> None:
            del protocol.connectionLost
            self._ended()
            protocol.connectionLost(reason)

        protocol.connectionLost = connection_lost
        return protocol


class RemoteLog:
    """
    A log observer that sends to the parent what the parent would log itself: our own diagnostics, and from others what went
    wrong. Without a parent it goes to stderr.

    @ivar debug: also what is only of use for finding faults.
    """

    def __init__(self, reactor: Any, ipc: IpcConnection) -> None:
        self._reactor = reactor
        self._ipc = ipc
        self._thread = threading.get_ident()
        self._lost = 0
        self.debug = False

    def __call__(self, event: LogEvent) -> None:
        """Take an event (L{twisted.logger.ILogObserver})."""
        level = event.get("log_level") or LogLevel.info
        namespace = str(event.get("log_namespace", ""))
        ours = namespace.startswith("resticserver.")
        if level < ((LogLevel.debug if self.debug else LogLevel.info) if ours else LogLevel.warn):
            return
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)[:_LONGEST_TEXT]
        if threading.get_ident() == self._thread:
            self._send(level.name, namespace, text)
        else:
            self._reactor.callFromThread(self._send, level.name, namespace, text)

    def _send(self, level: str, namespace: str, text: str) -> None:
        if not self._ipc.open:
            print(text, file=sys.stderr, flush=True)
        elif self._ipc.waiting_bytes > MOST_LOG_BYTES:
            self._lost += 1
        else:
            if self._lost:
                lost, self._lost = self._lost, 0
                self._ipc.tell("log", level="warn", namespace=namespace, text=f"{lost} lines of a worker were lost")
            self._ipc.tell("log", level=level, namespace=namespace, text=text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
