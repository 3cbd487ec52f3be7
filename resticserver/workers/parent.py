"""
The server in several processes, the parent's side: C{--workers}.

The parent has the sockets and accepts; each connection goes to the worker that has the fewest, as a descriptor over the wire
(L{resticserver.workers.ipc}), and the parent never reads from it. Workers say how many connections have ended, so the counts are
exact. One that dies is replaced, at once the first time and then with more and more patience; while none is there connections
wait in the sockets' backlog. A worker that does not answer for a minute is ended, and so replaced.

What a worker does is in L{resticserver.workers.child}. What they must know in common is the server's business
(L{resticserver.server}): it gives a beginning worker what holds then, and tells all of them when that changes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from .. import __version__
from ..errors import StartError
from ..net.addresses import parse_address
from ..net.shared_sockets import Acceptor, RecordingReactor, open_shared
from ..net.sockets import inherited_sockets, process_environment
from .ipc import Commands, Failed, IpcConnection, IpcConnectionLost

#: The descriptor of the wire in a worker.
WIRE_FD = 3
#: What only the parent reacts to; a worker is told. A terminal's Ctrl-C and systemd's stop go to all processes.
PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

#: How long a start may take; it takes a second.
START_TIMEOUT_S = 60.0
#: The second replacement of a worker in a row waits for the first of these, each further one for twice as long, up to the other.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
#: A worker that has lived so long was a good one: its replacement is a first one again.
GOOD_LIFE_S = 60.0
#: Each worker is asked so often whether it is there; one that owes so many answers is ended.
PING_S = 10.0
MOST_UNANSWERED = 6
#: When no worker takes a connection it is offered again so soon.
OFFER_AGAIN_S = 0.05
#: What a worker may take to end after it has cut its last connection; the same after a second signal.
LAST_WORDS_S = 10.0
ABORT_S = 2.0

#: What all workers find out by themselves, and say in the same words: said once until something else is said.
_COMMON_NEWS = ("resticserver.storage.volume", "resticserver.storage.publish", "resticserver.service.readiness")

_log = Logger()


class Worker(ProcessProtocol):
    """
    One worker process, as the parent sees it.

    @ivar number: its place among the workers; its successor has the same.
    @ivar pid: its process.
    @ivar ready: whether connections may be given to it.
    @ivar live: how many connections it has.
    @ivar turn: when it was given the last one.
    @ivar unanswered: how many questions whether it is there it has not answered.
    @ivar retired: whether another has its place, and it only ends what it has begun.
    @ivar deadline: when it is killed, once nothing can be said to it any more.
    @ivar begun: fires when it is ready, with true, or cannot be, and then C{why_not} says why.
    """

    def __init__(self, number: int, began_s: float, ended: Callable[[Worker, str], object]) -> None:
        self.number = number
        self.pid = 0
        self.ipc: IpcConnection
        self.ready = False
        self.live = 0
        self.turn = 0
        self.unanswered = 0
        self.retired = False
        self.begun: Deferred[bool] = Deferred()
        self.why_not = ""
        self.began_s = began_s
        self.deadline: Any = None
        self._ended = ended

    def __str__(self) -> str:
        """For the log."""
        return f"worker {self.number} (process {self.pid})"

    def connectionMade(self) -> None:
        """Twisted's call: the process is there."""
        self.pid = int(self.transport.pid)  # type: ignore[union-attr]

    def begin(self) -> None:
        """It is ready."""
        self.ready = True
        self.begun.callback(True)

    def kill(self) -> None:
        """End it now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except Exception as error:  # it has ended
            _log.debug("{worker} cannot be killed: {error}", worker=self, error=error)

    def ping(self) -> None:
        """Ask whether it is there."""
        self.unanswered += 1
        self.ipc.ask("ping").addCallbacks(self._answered, lambda failure: failure.trap(IpcConnectionLost, Failed))

    def _answered(self, _: object) -> None:
        self.unanswered = 0

    def processEnded(self, reason: Failure) -> None:
        """Twisted's call."""
        how = "in an unknown way"
        if isinstance(reason.value, ProcessDone):
            how = "with status 0"
        elif isinstance(reason.value, ProcessTerminated):
            number = reason.value.signal
            how = f"with status {reason.value.exitCode}" if number is None else f"by signal {number}"
        self._ended(self, how)


class Workers(Service):
    """
    The sockets, and the processes that serve what comes in by them.

    @param addresses: the values of C{--listen}; inherited sockets take their place.
    @param beginning: what a worker that begins must know; asked for each.
    @param verbs: what a worker may ask and tell, besides what is about itself.
    @param shutdown_timeout_s: how long transfers may go on after the stop began.
    @param gone: called when a worker's process has ended.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: tuple[str, ...],
        number: int,
        beginning: Callable[[], dict[str, Any]],
        commands: Callable[[object], Commands],
        shutdown_timeout_s: float,
        gone: Callable[[object], object] = lambda worker: None,
    ) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._beginning = beginning
        self._commands = commands
        self._gone = gone
        self._shutdown_timeout_s = shutdown_timeout_s
        self._acceptors: list[Acceptor] = []
        #: For each socket the address by which workers know what to put before HTTP; None for an inherited one.
        self._listeners: list[str | None] = []
        #: All that live, and of these the one in each place.
        self._workers: set[Worker] = set()
        self._places: dict[int, Worker | None] = dict.fromkeys(range(1, number + 1))
        self._failures = dict.fromkeys(self._places, 0)
        self._pauses: dict[int, Any] = {}
        self._turns = count(1)
        self._offers: deque[tuple[int, socket.socket]] = deque()
        self._replacing = False
        self._starting = True
        self._stopping = False
        self._ended: Deferred[None] = Deferred()
        self._late: IDelayedCall | None = None
        self._news: dict[str, str] = {}
        self._pings = LoopingCall(self._ping)
        self._pings.clock = reactor
        self._activated = False
        #: Called when the next thing is that people are told where the server is.
        self.announcing: Callable[[], object] = lambda: None
        self.setName("workers")

    # --- the start

    def startService(self) -> None:
        """
        Open the sockets, start the workers, and wait until they are ready. (Nothing else goes on yet: the reactor does not
        run, and who starts the server is to know whether it does.)

        @raise StartError: an address is none or cannot be had, or a worker cannot start.
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
        self.announcing()
        if self._activated:
            _log.info("systemd socket activation mode")
        else:
            for acceptor in self._acceptors:
                _log.info("start server on {address}", address=acceptor.address)
        self._adjust()
        self._pings.start(PING_S, now=False)

    def open(self) -> None:
        """
        Open the sockets.

        @raise StartError: an address is none or cannot be had.
        """
        try:
            self._activated = self._open()
        except BaseException:
            self.give_up()
            raise

    def _open(self) -> bool:
        """Open the sockets; whether they were inherited."""
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
        """After a start that failed: nothing stays."""
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
            self._offers.popleft()[1].close()

    # --- one worker

    def _spawn(self, number: int) -> Worker:
        """
        Start a worker, and give it what it has to know.

        @raise OSError: there can be no process now.
        """

        def ended(worker: Worker, how: str) -> None:
            # Not while the process is still being started, which is when Twisted takes the first look.
            self._reactor.callLater(0, self._worker_ended, worker, how)

        worker = Worker(number, self._reactor.seconds(), ended)
        ours, its = socket.socketpair()
        with its, open(os.devnull, "rb") as nothing:
            descriptors = {0: nothing.fileno(), 1: 1, 2: 2, WIRE_FD: its.fileno()}
            # utf8: names of files, in every locale. -P: what lies in the current directory is no module of ours.
            command = [sys.executable, "-X", "utf8", "-P", "-m", "resticserver.workers.child", str(number)]
            # They would end it until it has said that it does not want them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
            try:
                self._reactor.spawnProcess(worker, command[0], command, env=None, childFDs=descriptors)
            except BaseException:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        commands: dict[str, Callable[..., Any]] = {
            "log": self._log_line,
            "ended": partial(self._connections_ended, worker),
            **self._commands(worker),
        }
        worker.ipc = IpcConnection(self._reactor, ours, str(worker), commands, partial(self._wire_lost, worker))
        worker.ipc.start()
        self._workers.add(worker)
        begun = worker.ipc.ask("begin", version=__version__, listeners=self._listeners, **self._beginning())
        begun.addCallbacks(lambda _: worker.begin(), partial(self._not_begun, worker))
        return worker

    def _not_begun(self, worker: Worker, failure: Failure) -> None:
        failure.trap(Failed, IpcConnectionLost)
        worker.why_not = str(failure.value) if failure.check(Failed) else f"{worker} ended before it was ready"
        if not self._starting and not self._stopping:
            _log.error("{worker} cannot start: {reason}", worker=worker, reason=worker.why_not)
        worker.begun.callback(False)

    def _wire_lost(self, worker: Worker) -> None:
        """Nothing can be said to it any more. It ends by itself then; but it must."""
        worker.ready = False
        self._adjust()
        worker.deadline = self._reactor.callLater(LAST_WORDS_S + self._shutdown_timeout_s, worker.kill)

    def _worker_ended(self, worker: Worker, how: str) -> None:
        worker.ipc.read_all()
        worker.ipc.close()
        if worker.deadline is not None and worker.deadline.active():
            worker.deadline.cancel()
        worker.ready = False
        self._workers.discard(worker)
        self._gone(worker)
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
        _log.error("{worker} ended {how}; another is started {when}", worker=worker, how=how, when=when)
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
                    "{worker} has not answered for {time:g} s and is killed",
                    worker=worker,
                    time=worker.unanswered * PING_S,
                )
                worker.kill()
            else:
                worker.ping()

    def _log_line(self, level: str, namespace: str, text: str) -> None:
        """A worker has something to say."""
        if namespace in _COMMON_NEWS:
            if self._news.get(namespace) == text:
                return
            self._news[namespace] = text
        Logger(namespace=namespace).emit(LogLevel.lookupByName(level), "{text}", text=text)

    # --- connections

    def _take(self, listener: int, connection: socket.socket) -> None:
        """Give a connection to a worker, or keep it until one takes it."""
        if self._offers or not self._give(listener, connection):
            self._offers.append((listener, connection))
            if len(self._offers) == 1:
                self._reactor.callLater(OFFER_AGAIN_S, self._offer_again)
            self._adjust()

    def _give(self, listener: int, connection: socket.socket) -> bool:
        """Give it to the worker with the fewest, the one that has waited the longest among equals; whether one took it."""
        ready = [worker for worker in self._places.values() if worker is not None and worker.ready]
        for worker in sorted(ready, key=lambda one: (one.unanswered > 1, one.live, one.turn)):
            if worker.ipc.hand_over(connection.fileno(), "serve", listener=listener):
                worker.live += 1
                worker.turn = next(self._turns)
                connection.close()
                return True
        return False

    def _offer_again(self) -> None:
        while self._offers and self._give(*self._offers[0]):
            self._offers.popleft()
        if self._offers:
            self._reactor.callLater(OFFER_AGAIN_S, self._offer_again)
        self._adjust()

    def _connections_ended(self, worker: Worker, number: int) -> None:
        worker.live -= number

    def _adjust(self) -> None:
        """Accept while there is somebody to give connections to."""
        ready = any(worker is not None and worker.ready for worker in self._places.values())
        for acceptor in self._acceptors if not self._stopping else ():
            if ready and not self._offers:
                acceptor.resume()
            else:
                acceptor.pause()

    # --- all workers

    def number_ready(self) -> int:
        """How many serve."""
        return sum(worker is not None and worker.ready for worker in self._places.values())

    def pids(self) -> list[int]:
        """The processes of all that live, those that end only what they have begun too."""
        return [worker.pid for worker in self._workers if worker.pid]

    def tell_all(self, command: str, **arguments: Any) -> None:
        """Tell every worker something."""
        for worker in self._workers:
            worker.ipc.tell(command, **arguments)

    async def ask_all(self, command: str, **arguments: Any) -> bool:
        """Ask every worker to do something; whether all that are still there have done it."""
        asked = [(worker, worker.ipc.ask(command, **arguments)) for worker in self._workers]
        done = True
        for (worker, _), (_, result) in zip(
            asked, await DeferredList([answer for _, answer in asked], consumeErrors=True), strict=True
        ):
            if isinstance(result, Failure) and not result.check(IpcConnectionLost):
                _log.error("{worker}: {reason}", worker=worker, reason=result.getErrorMessage())
                done = False
        return done

    def replace_all(self) -> None:
        """Replace one worker after the other; each serves until its successor does, and then ends when it has no more to do."""
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
                _log.error("not all workers were replaced; the others serve on")
                return
            pause = self._pauses.pop(number, None)
            if pause is not None:
                pause.cancel()
            worker, self._places[number] = self._places[number], successor
            self._adjust()
            if worker is not None:
                worker.retired = True
                worker.ipc.tell("retire")
        _log.info("all workers were replaced")

    # --- the end

    def stopService(self) -> Deferred[None]:
        """Accept no more, give transfers their time, then end them; fires when no worker is left."""
        super().stopService()
        self._stopping = True
        self._close_sockets()
        if self._pings.running:
            self._pings.stop()
        for pause in self._pauses.values():
            pause.cancel()
        self.tell_all("stop")
        late = self._late = self._reactor.callLater(self._shutdown_timeout_s + LAST_WORDS_S, self._kill_all)
        if not self._workers:
            self._ended.callback(None)
        return self._ended.addCallback(lambda _: late.cancel() if late.active() else None)

    def abort(self) -> None:
        """End all connections now, and soon who does not end for all that."""
        self.tell_all("abort")
        if self._late is not None and self._late.active():
            self._late.reset(ABORT_S)

    def _kill_all(self) -> None:
        for worker in tuple(self._workers):
            _log.error("{worker} does not end and is killed", worker=worker)
            worker.kill()
