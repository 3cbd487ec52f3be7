"""
One worker process: C{python -m resticserver.workers.child NUMBER}, started by the parent
(L{resticserver.workers.parent}).

It has no listening sockets and reads no settings. The parent sends the settings with L{Begin}, hands over connections,
checks passwords, and sends reloaded files. If the parent is gone, the worker stops as if it had been told to. SIGKILL
is the only signal that ends it.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogBeginner

from .. import __version__
from ..config.settings import Settings
from ..errors import StartError
from ..net.endpoints import tls_factory
from ..net.shared_sockets import shared_factory
from ..process import allocator
from ..process.clock import use_monotonic_clock
from ..quota.directory_locks import DirectoryLocks, Key
from ..service.cpu_profile import CpuProfile
from ..service.factories import make_certificates, make_policy, make_state, make_store
from ..service.frontend import PAGE_THREADS, Frontend, FrontendParts, SequentialServices
from ..storage.layout import Repository
from ..threads.pools import JobPool
from ..threads.reactor import IReactor, installed_reactor
from .bandwidth import WorkerBandwidth
from .connections import Connections
from .ipc import Command, Handlers, IpcConnection
from .log import RemoteLog
from .logins import RemotePasswordChecker
from .messages import (
    Abort,
    Begin,
    CloseDirectories,
    EnableQuota,
    EventHappened,
    MarkerFound,
    OpenDirectories,
    Ping,
    PolicyChanged,
    ReadCertificates,
    ReopenLog,
    Retire,
    SendCounts,
    Serve,
    Stop,
    UsersChanged,
)
from .monitoring import WorkerMonitoring
from .parent import LAST_WORDS_S
from .quota import RemoteQuota
from .worker import IPC_FD, PARENTS_SIGNALS

#: How long sending the last messages may take if the parent is busy.
_FLUSH_S = 5.0

# When run as a program, the module is called __main__.
_log = Logger(namespace="resticserver.workers.child")


def main(number: str) -> int:
    """
    Run a worker.

    @return: the exit status.
    """
    for ignored in PARENTS_SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
    allocator.keep_large_blocks()

    reactor = installed_reactor()
    use_monotonic_clock(reactor)
    process = WorkerProcess(reactor, socket.socket(fileno=IPC_FD), int(number))
    observer: Any = process.log
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    reactor.callWhenRunning(process.ipc.start)
    reactor.run(installSignalHandlers=False)  # type: ignore[call-arg]
    return process.status


class WorkerProcess:
    """
    Starts and stops the worker.

    @ivar ipc: the connection to the parent.
    @ivar log: a log observer that sends to the parent.
    @ivar status: the exit status.
    """

    def __init__(self, reactor: IReactor, connection: socket.socket, number: int) -> None:
        self._reactor = reactor
        self._number = number
        self._ending = self._ended = False
        self.status = 0
        handlers: Handlers = {Begin: self.begin, Ping: lambda: None, Stop: self.stop, Abort: lambda: None}
        self.ipc = IpcConnection(reactor, connection, "the parent", handlers, self.stop)
        self.log = RemoteLog(reactor, self.ipc)
        self._server: WorkerServer | None = None

    def begin(self, version: str, settings: dict[str, Any], **known: Any) -> None:
        """
        Start to serve.

        @param version: the parent's.
        @param known: the further fields of L{Begin}.
        @raise StartError: the worker cannot start; the process ends then.
        """
        try:
            if version != __version__:
                raise StartError(
                    f"the running version is {version}, the installed one is {__version__}: restart the server"
                )
            made = Settings.from_json(settings)
            if made.debug:
                self.log.include_debug()
            begin = Begin(version, settings, **known)
            self._server = WorkerServer(self._reactor, made, self.ipc, self._number, begin)
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
        self.ipc.handle({**self._server.handlers(), Retire: self.retire})
        allocator.leave_out_what_stays()

    def retire(self) -> None:
        """Another worker has taken over: continue until no connection is left."""
        assert self._server is not None
        self._server.connections.retire().addCallback(lambda _: self.stop())

    def stop(self) -> None:
        """Let transfers finish within their time limit, then end. Called when the parent says so, or is gone."""
        if self._ending:
            return
        self._ending = True
        stopped = self._server.stopService() if self._server is not None else Deferred.fromCoroutine(_nothing())
        stopped.addErrback(lambda failure: _log.failure("could not stop", failure)).addCallback(lambda _: self._end())
        if self._server is not None:
            # The parent would kill a worker that hangs, but the parent may be gone.
            self._reactor.callLater(self._server.shutdown_timeout_s + LAST_WORDS_S, self._end)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.ipc.flush(_FLUSH_S)
        self._reactor.stop()


async def _nothing() -> None:
    """Nothing to stop."""


class WorkerServer(SequentialServices):
    """
    The services of one worker.

    @param number: its number among the workers.
    @ivar shutdown_timeout_s: how long transfers may continue after the stop began.
    @raise StartError: a file cannot be used.
    """

    def __init__(self, reactor: IReactor, settings: Settings, ipc: IpcConnection, number: int, known: Begin) -> None:
        super().__init__()
        self._ipc = ipc
        self.shutdown_timeout_s = settings.shutdown_timeout_s
        self._state = make_state(settings)
        store = make_store(settings, self._state)
        self._volume = store.volume
        self._volume.expect(known.marker, is_missed=known.volume_gone)
        self._volume.observe_marker(lambda found: reactor.callFromThread(ipc.tell, MarkerFound(found)))
        flags, self._policy_file = make_policy(settings)
        if self._policy_file is not None and known.policy is not None:
            self._policy_file.take(known.policy)
        self._password_checker = (
            RemotePasswordChecker(ipc, known.reading, reactor.seconds) if settings.passwords else None
        )
        self._certificates = make_certificates(settings)
        self._quota = RemoteQuota(ipc, known.quota_active, is_shared=settings.location is not None)
        self._directory_locks = DirectoryLocks(known.locked)
        pages = JobPool(reactor, "pages", PAGE_THREADS)
        self._monitoring = WorkerMonitoring(reactor, ipc, pages, lambda: self._frontend.requests_in_flight())
        parts = FrontendParts(
            store,
            self._state,
            self._policy_file or flags,
            self._password_checker,
            self._quota,
            self._directory_locks,
            pages,
            lambda event: ipc.tell(EventHappened(event)),
            self._monitoring.tally if settings.metrics else None,
            number,
        )
        self._frontend = Frontend(settings, reactor, parts)
        site = self._frontend.make_site(self._monitoring)
        creator = self._certificates.creator if self._certificates is not None else None
        factories = [
            tls_factory(site, creator) if address is None else shared_factory(address, site, creator)
            for address in known.listeners
        ]
        self.connections = Connections(reactor, site, factories, ipc, settings.shutdown_timeout_s)
        if settings.cpu_profile:
            CpuProfile(f"{settings.cpu_profile}.{number}").setServiceParent(self)
        if settings.metrics or settings.scrub_interval_s:  # the scrub gives way to requests in flight
            self._monitoring.setServiceParent(self)
        bandwidth = self._frontend.bandwidth
        self._bandwidth = WorkerBandwidth(reactor, ipc, bandwidth) if bandwidth is not None else None
        if self._bandwidth is not None:
            self._bandwidth.setServiceParent(self)
        for child in (*self._frontend.services, self.connections):
            child.setServiceParent(self)

    def handlers(self) -> Handlers:
        """The handlers of the parent's messages."""
        locks = self._directory_locks
        handlers: dict[type[Command], Callable[..., Any]] = {
            Serve: self.connections.serve,
            Abort: self.connections.abort,
            MarkerFound: self._marker_found,
            CloseDirectories: lambda repository, cells: Deferred.fromCoroutine(locks.close(_keys(repository, cells))),
            OpenDirectories: lambda repository, cells: locks.open(_keys(repository, cells)),
            EnableQuota: self._quota.enable,
            SendCounts: self._monitoring.send,
            ReopenLog: self._frontend.reopen_log,
        }
        if self._password_checker is not None:
            handlers[UsersChanged] = self._password_checker.users_changed
        if self._policy_file is not None:
            handlers[PolicyChanged] = self._policy_file.take
        if self._bandwidth is not None:
            handlers.update(self._bandwidth.handlers())
        if self._certificates is not None:
            handlers[ReadCertificates] = partial(self._frontend.disk.run, self._certificates.read)
        return handlers

    def stopService(self) -> Deferred[None]:
        """Stop everything, then close the state file."""
        if not self._ipc.open:
            # The parent is gone, and its directory locks with it. The next server may not learn of what is stored from
            # now on.
            if self._quota.active:
                self._directory_locks.refuse("the server is stopping")
            else:
                self._directory_locks.open_all()
        return super().stopService().addCallback(lambda _: self._state.close())

    def _marker_found(self, marker: bytes) -> None:
        """Another worker has seen the volume's marker for the first time."""
        if self._volume.known is None:
            self._volume.expect(marker)


def _keys(repository: Repository, cells: list[int]) -> list[Key]:
    return [(repository, cell) for cell in cells]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
