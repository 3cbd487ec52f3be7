"""
One worker process, as the parent sees it: how it is started, asked whether it answers, and ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from .commands import Ping
from .ipc import Failed, IpcConnection, IpcConnectionLost

#: The descriptor of a worker's connection to the parent.
IPC_FD = 3
#: Signals that only the parent reacts to; it sends commands to the workers. A terminal's Ctrl-C and systemd's stop go to all
#: processes.
PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_log = Logger()


class Worker(ProcessProtocol):
    """
    A worker process.

    @param number: its place among the workers; its successor has the same.
    @param began_s: when it was started, by the reactor's clock.
    @param ended: called when the process has ended, with the worker and with how, in words.
    @ivar pid: of the process.
    @ivar ipc: the connection to it.
    @ivar ready: whether connections may be given to it.
    @ivar live: how many connections it has.
    @ivar turn: when it was given the last one.
    @ivar unanswered: how many pings it has not answered.
    @ivar retired: whether another worker has its place, and it only finishes what it has begun.
    @ivar begun: fires when it is ready, with true, or cannot be; then C{why_not} is the reason.
    """

    ipc: IpcConnection

    def __init__(self, number: int, began_s: float, ended: Callable[[Worker, str], object]) -> None:
        self.number = number
        self.pid = 0
        self.ready = False
        self.live = 0
        self.turn = 0
        self.unanswered = 0
        self.retired = False
        self.begun: Deferred[bool] = Deferred()
        self.why_not = ""
        self.began_s = began_s
        self._ended = ended
        self._kill_later: IDelayedCall | None = None

    def __str__(self) -> str:
        """For the log."""
        return f"worker {self.number} (process {self.pid})"

    def spawn(self, reactor: Any) -> socket.socket:
        """
        Start the process.

        @return: the parent's end of the connection, for L{connect}.
        @raise OSError: a process cannot be started now.
        """
        ours, its = socket.socketpair()
        with its, open(os.devnull, "rb") as nothing:
            descriptors = {0: nothing.fileno(), 1: 1, 2: 2, IPC_FD: its.fileno()}
            # utf8: names of files, in every locale. -P: the current directory has no modules of ours.
            command = [sys.executable, "-X", "utf8", "-P", "-m", "resticserver.workers.child", str(self.number)]
            # They would end it before it ignores them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
            try:
                reactor.spawnProcess(self, command[0], command, env=None, childFDs=descriptors)
            except BaseException:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return ours

    def connect(self, ipc: IpcConnection) -> None:
        """Talk to it over this connection from now on."""
        self.ipc = ipc
        ipc.start()

    def connectionMade(self) -> None:
        """Twisted's call: the process is there."""
        self.pid = int(self.transport.pid)  # type: ignore[union-attr]

    def begin(self) -> None:
        """It is ready."""
        self.ready = True
        self.begun.callback(True)

    def cannot_begin(self, reason: str) -> None:
        """It will not be ready."""
        self.why_not = reason
        self.begun.callback(False)

    def give_connection(self, turn: int) -> None:
        """It has got a connection."""
        self.live += 1
        self.turn = turn

    def take_connections(self, number: int) -> None:
        """So many of its connections have ended."""
        self.live -= number

    def lose(self) -> None:
        """Give it no more connections."""
        self.ready = False

    def retire(self) -> None:
        """Another worker has its place."""
        self.retired = True

    def kill(self) -> None:
        """End it now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except Exception as error:  # it has ended
            _log.debug("{worker} cannot be killed: {error}", worker=self, error=error)

    def kill_after(self, reactor: Any, seconds: float) -> None:
        """End it then, unless it has ended."""
        self._kill_later = reactor.callLater(seconds, self.kill)

    def close(self) -> None:
        """The process has ended: take what it has sent, and close the connection."""
        self.ipc.read_all()
        self.ipc.close()
        if self._kill_later is not None and self._kill_later.active():
            self._kill_later.cancel()
        self.lose()

    def ping(self) -> None:
        """Ask whether it answers."""
        self.unanswered += 1
        self.ipc.ask(Ping()).addCallbacks(self._answered, lambda failure: failure.trap(IpcConnectionLost, Failed))

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
