"""
C{--workers}: the listening sockets, and the processes that serve their connections.

The parent accepts connections and passes each one, as a descriptor (L{resticserver.workers.ipc}), to the worker with
the fewest connections. The parent never reads from it. Workers report how many connections have ended, so the counts
are exact. A worker that dies is replaced, at first immediately and then after increasing pauses. Without workers,
connections wait in the sockets' backlog. A worker that does not respond for a minute is killed, and therefore
replaced.

L{resticserver.workers.child} is the worker's side. L{resticserver.workers.topology} has what the workers share.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from functools import partial
from itertools import count
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from ..errors import StartError
from ..limits.connections import ConnectionLimits, NumberedConnections
from ..net.endpoints import parse_address
from ..net.shared_sockets import Acceptor, RecordingReactor, open_shared
from ..net.sockets import inherited_sockets, peer_address, process_environment
from ..threads.reactor import IReactor
from .bandwidth import Tells
from .ipc import Command, Failed, Handlers, IpcConnection, IpcConnectionLost, Question
from .messages import Abort, Begin, ConnectionsEnded, LogLine, Retire, Serve, Stop
from .worker import Worker

#: The time limit for a worker's start, which takes a second.
START_TIMEOUT_S = 60.0
#: The pause before the second replacement of a worker in a row, and the longest pause. Each further pause is twice as
#: long as the last.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
#: If a worker has run for this long, its replacement counts as a first one again.
GOOD_LIFE_S = 60.0
#: The interval of pings. A worker with MOST_UNANSWERED unanswered pings is killed.
PING_S = 10.0
MOST_UNANSWERED = 6
#: The pause before a connection that no worker accepted is offered again.
OFFER_AGAIN_S = 0.05
#: How long a worker may take to end after it has closed its last connection. ABORT_S is the same after a second
#: signal.
LAST_WORDS_S = 10.0
ABORT_S = 2.0

#: Sources of messages that all workers log independently in the same words. Such a message is logged once, until a
#: different one follows.
_COMMON_NEWS = ("resticserver.storage.volume", "resticserver.storage.publish", "resticserver.service.readiness")

_log = Logger()


class WorkersOwner(Protocol):
    """What the workers need from the server, and what they report to it."""

    def begin(self, listeners: list[str | None]) -> Begin:
        """The first message to a worker. Each listener is its C{--listen} address, C{None} for an inherited socket."""

    def handlers(self, worker: Tells) -> Handlers:
        """The handlers of a worker's messages, except those about the worker itself."""

    def worker_gone(self, worker: object) -> None:
        """A worker process has ended."""

    def announce(self) -> None:
        """All workers are ready; the next log line says where the server listens."""


class Workers(Service):
    """
    The listening sockets and the workers.

    @param addresses: the values of C{--listen}; inherited sockets replace them.
    @param shutdown_timeout_s: how long transfers may continue after the stop began.
    @param limits: how many connections there may be; C{None} for no limit.
    """

    def __init__(
        self,
        reactor: IReactor,
        addresses: tuple[str, ...],
        number: int,
        shutdown_timeout_s: float,
        owner: WorkersOwner,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._owner = owner
        self._shutdown_timeout_s = shutdown_timeout_s
        self._acceptors: list[Acceptor] = []
        #: For each socket, its address, which tells workers how to wrap HTTP; None for an inherited one.
        self._listeners: list[str | None] = []
        #: All running workers, and the current worker of each number.
        self._workers: set[Worker] = set()
        self._places: dict[int, Worker | None] = dict.fromkeys(range(1, number + 1))
        self._failures = dict.fromkeys(self._places, 0)
        self._pauses: dict[int, Any] = {}
        self._numbers = count(1)
        self._limits = NumberedConnections(limits) if limits is not None else None
        #: Connections that no worker could take yet: the socket they came from, their number, themselves.
        self._offers: deque[tuple[int, int, socket.socket]] = deque()
        self._replacing = False
        self._starting = True
        self._stopping = False
        self._ended: Deferred[None] = Deferred()
        self._late: IDelayedCall | None = None
        self._news: dict[str, str] = {}
        self._pings = LoopingCall(self._ping)
        self._pings.clock = reactor
        self._activated = False
        self.setName("workers")

    # --- the start

    def startService(self) -> None:
        """
        Open the sockets, start the workers, and block until they are ready. Blocking is fine here: the reactor does
        not run yet, and the caller must learn whether the server starts.

        @raise StartError: an address is invalid or cannot be used, or a worker cannot start.
        """
        super().startService()
        try:
            if not self._acceptors:
                self.open()
            for number in self._places:
                self._places[number] = self._spawn(number)
            self._wait_until_ready()
        except BaseException:
            self.give_up()
            raise
        self._starting = False
        self._owner.announce()
        if self._activated:
            _log.info("systemd socket activation mode")
        else:
            for address in self.bound_addresses:
                _log.info("start server on {address}", address=address)
        self._adjust()
        self._pings.start(PING_S, now=False)

    @property
    def bound_addresses(self) -> list[str]:
        """Where it listens."""
        return [acceptor.address for acceptor in self._acceptors]

    def open(self) -> None:
        """
        Open the sockets.

        @raise StartError: an address is invalid or cannot be used.
        """
        try:
            self._activated = self._open()
        except BaseException:
            self.give_up()
            raise

    def _open(self) -> bool:
        """
        Open the sockets.

        @return: whether they were inherited.
        """
        inherited = inherited_sockets(process_environment(), os.getpid())
        for address in self._addresses:
            parse_address(RecordingReactor(opens=False), address)
        if inherited:
            for listening in inherited:
                self._add(None, listening, None)
            return True
        for address in self._addresses:
            self._add(address, *open_shared(address))
        return False

    def _add(self, address: str | None, listening: socket.socket, unlink: str | None) -> None:
        take = partial(self._take, len(self._listeners))
        self._listeners.append(address)
        self._acceptors.append(Acceptor(self._reactor, listening, unlink, take))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while waiting := {worker.ipc.fileno(): worker for worker in self._workers if not worker.ready}:
            poll = select.poll()
            for fd, worker in waiting.items():
                poll.register(fd, select.POLLIN | (select.POLLOUT if worker.ipc.waiting_bytes else 0))
            events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not events:
                raise StartError(f"{next(iter(waiting.values()))} is not ready after {START_TIMEOUT_S:g} s")
            for fd, event in events:
                worker = waiting[fd]
                if event & select.POLLOUT:
                    worker.ipc.doWrite()
                if event & ~select.POLLOUT:
                    worker.ipc.doRead()
                if worker.why_not:
                    raise StartError(worker.why_not)

    def give_up(self) -> None:
        """Clean up after a failed start."""
        if self._stopping:
            return
        self._stopping = True
        for worker in tuple(self._workers):
            worker.ipc.close()
            worker.kill()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        while self._offers:
            self._offers.popleft()[2].close()

    # --- one worker

    def _spawn(self, number: int) -> Worker:
        """
        Start a worker, and send it L{Begin}.

        @raise OSError: the process cannot be started now.
        """

        def ended(worker: Worker, how: str) -> None:
            # Deferred, because Twisted first checks for the end of the process while it is still being started.
            self._reactor.callLater(0, self._worker_ended, worker, how)

        worker = Worker(number, self._reactor.seconds(), ended)
        ours = worker.spawn(self._reactor)
        handlers: Handlers = {
            LogLine: self._log_line,
            ConnectionsEnded: partial(self._connections_ended, worker),
            **self._owner.handlers(worker),
        }
        worker.connect(IpcConnection(self._reactor, ours, str(worker), handlers, partial(self._ipc_lost, worker)))
        self._workers.add(worker)
        begun = worker.ipc.ask(self._owner.begin(self._listeners))
        begun.addCallbacks(lambda _: worker.begin(), partial(self._not_begun, worker))
        return worker

    def _not_begun(self, worker: Worker, failure: Failure) -> None:
        failure.trap(Failed, StartError, IpcConnectionLost)
        lost = failure.check(IpcConnectionLost)
        reason = f"{worker} ended before it was ready" if lost else str(failure.value)
        if not self._starting and not self._stopping:
            _log.error("{worker} cannot start: {reason}", worker=worker, reason=reason)
        worker.cannot_begin(reason)

    def _ipc_lost(self, worker: Worker) -> None:
        """The connection to a worker is lost. The worker then ends by itself; if it does not, it is killed."""
        worker.lose()
        self._adjust()
        worker.kill_after(self._reactor, LAST_WORDS_S + self._shutdown_timeout_s)

    def _worker_ended(self, worker: Worker, how: str) -> None:
        worker.close()
        self._connections_ended(worker, list(worker.connections))
        self._workers.discard(worker)
        self._owner.worker_gone(worker)
        if self._stopping:
            if not self._workers:
                self._ended.callback(None)
        elif self._places[worker.number] is worker:
            self._places[worker.number] = None
            self._replace_lost(worker, how)
        elif not (worker.retired and how == "with status 0"):
            _log.error("{worker} ended {how}", worker=worker, how=how)
        self._adjust()

    def _replace_lost(self, worker: Worker, how: str) -> None:
        number = worker.number
        if self._reactor.seconds() - worker.began_s > GOOD_LIFE_S:
            self._failures[number] = 0
        failures = self._failures[number]
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1)) if failures else 0.0
        self._failures[number] = min(failures + 1, 20)
        when = f"in {pause_s:g} s" if pause_s else "now"
        _log.error("{worker} ended {how}; starting another one {when}", worker=worker, how=how, when=when)
        self._pauses[number] = self._reactor.callLater(pause_s, self._start_again, number)

    def _start_again(self, number: int) -> None:
        del self._pauses[number]
        try:
            worker = self._places[number] = self._spawn(number)
        except OSError as error:
            _log.error("cannot start worker {number}: {error}", number=number, error=error)
            self._pauses[number] = self._reactor.callLater(LONGEST_PAUSE_S, self._start_again, number)
            return
        worker.begun.addCallback(lambda _: self._adjust())

    def _ping(self) -> None:
        for worker in tuple(self._workers):
            if worker.unanswered >= MOST_UNANSWERED:
                _log.error(
                    "{worker} has not answered for {time:g} s; killing it",
                    worker=worker,
                    time=worker.unanswered * PING_S,
                )
                worker.kill()
            else:
                worker.ping()

    def _log_line(self, level: str, namespace: str, text: str) -> None:
        """Log a line for a worker."""
        if namespace in _COMMON_NEWS:
            if self._news.get(namespace) == text:
                return
            self._news[namespace] = text
        Logger(namespace=namespace).emit(LogLevel.lookupByName(level), "{text}", text=text)

    # --- connections

    def _take(self, listener: int, connection: socket.socket) -> None:
        """Pass a connection to a worker, or keep it until one accepts it."""
        number = next(self._numbers)
        if self._limits is not None and not self._limits.admit(number, peer_address(connection)):
            connection.close()
        elif self._offers or not self._give(listener, number, connection):
            self._offers.append((listener, number, connection))
            if len(self._offers) == 1:
                self._reactor.callLater(OFFER_AGAIN_S, self._offer_again)
            self._adjust()

    def _connections_ended(self, worker: Worker, numbers: list[int]) -> None:
        worker.take_connections(numbers)
        if self._limits is not None:
            self._limits.release(numbers)

    def _give(self, listener: int, number: int, connection: socket.socket) -> bool:
        """
        Pass a connection to the worker with the fewest connections. Among equals, choose the one that has waited the
        longest.

        @return: whether a worker accepted it.
        """
        ready = [worker for worker in self._places.values() if worker is not None and worker.ready]
        for worker in sorted(ready, key=lambda one: (one.unanswered > 1, len(one.connections), one.turn)):
            if worker.ipc.hand_over(connection.fileno(), Serve(listener, number)):
                worker.give_connection(number)
                connection.close()
                return True
        return False

    def _offer_again(self) -> None:
        while self._offers and self._give(*self._offers[0]):
            self._offers.popleft()
        if self._offers:
            self._reactor.callLater(OFFER_AGAIN_S, self._offer_again)
        self._adjust()

    def _adjust(self) -> None:
        """Accept connections only while a worker can take them."""
        ready = any(worker is not None and worker.ready for worker in self._places.values())
        for acceptor in self._acceptors if not self._stopping else ():
            if ready and not self._offers:
                acceptor.resume()
            else:
                acceptor.pause()

    # --- all workers

    def number_ready(self) -> int:
        """The number of workers that serve."""
        return sum(worker is not None and worker.ready for worker in self._places.values())

    def pids(self) -> list[int]:
        """The process ids of all running workers, including retired ones."""
        return [worker.pid for worker in self._workers if worker.pid]

    def tell_all(self, command: Command) -> None:
        """Send a command to every worker."""
        for worker in self._workers:
            worker.ipc.tell(command)

    async def ask_all(self, question: Question[None]) -> bool:
        """
        Send a question to every worker.

        @return: whether all workers that still run answered without an error.
        """
        asked = [(worker, worker.ipc.ask(question)) for worker in self._workers]
        done = True
        for (worker, _), (_, result) in zip(
            asked, await DeferredList([answer for _, answer in asked], consumeErrors=True), strict=True
        ):
            if isinstance(result, Failure) and not result.check(IpcConnectionLost):
                _log.error("{worker}: {reason}", worker=worker, reason=result.getErrorMessage())
                done = False
        return done

    def replace_all(self) -> None:
        """
        Replace the workers one after the other. Each serves until its successor is ready, and ends when its
        connections have ended.
        """
        if self._stopping or self._replacing:
            return
        self._replacing = True
        _log.info("replacing all workers")
        Deferred.fromCoroutine(self._replace_all()).addErrback(
            lambda failure: _log.failure("could not replace all workers", failure)
        ).addBoth(lambda _: setattr(self, "_replacing", False))

    async def _replace_all(self) -> None:
        for number in self._places:
            successor = self._spawn(number)
            begun = await successor.begun
            if self._stopping:
                return
            if not begun:
                _log.error("not all workers were replaced; the others keep running")
                return
            pause = self._pauses.pop(number, None)
            if pause is not None:
                pause.cancel()
            worker, self._places[number] = self._places[number], successor
            self._adjust()
            if worker is not None:
                worker.retire()
                worker.ipc.tell(Retire())
        _log.info("all workers were replaced")

    # --- the end

    def stopService(self) -> Deferred[None]:
        """
        Accept no more connections, let transfers finish within their time limit, then end the workers. Fires when no
        worker is left.
        """
        super().stopService()
        self._stopping = True
        self._close_sockets()
        if self._pings.running:
            self._pings.stop()
        for pause in self._pauses.values():
            pause.cancel()
        self.tell_all(Stop())
        late = self._late = self._reactor.callLater(self._shutdown_timeout_s + LAST_WORDS_S, self._kill_all)
        if not self._workers:
            self._ended.callback(None)
        return self._ended.addCallback(lambda _: late.cancel() if late.active() else None)

    def abort(self) -> None:
        """Close all connections now, and soon kill workers that do not end."""
        self.tell_all(Abort())
        if self._late is not None and self._late.active():
            self._late.reset(ABORT_S)

    def _kill_all(self) -> None:
        for worker in tuple(self._workers):
            _log.error("{worker} did not stop in time; killing it", worker=worker)
            worker.kill()
