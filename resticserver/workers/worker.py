"""
One worker process, as the parent sees it: start, health checks, end.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..threads.reactor import IReactor
from .ipc import Failed, IpcConnection, IpcConnectionLost
from .messages import Ping

#: The file descriptor of a worker's connection to the parent.
IPC_FD = 3
#: Signals that only the parent handles; it sends commands to the workers instead. A terminal's Ctrl-C and systemd's
#: stop signal all processes.
PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_log = Logger()


class Worker(ProcessProtocol):
    """
    A worker process.

    @param number: its number among the workers; its successor gets the same.
    @param began_s: when it was started, by the reactor's clock.
    @param ended: called when the process has ended, with the worker and a description of how it ended.
    @ivar pid: the process id.
    @ivar ipc: the connection to it.
    @ivar ready: whether it accepts connections.
    @ivar connections: the numbers of its connections.
    @ivar turn: orders the workers by when they got their last connection.
    @ivar unanswered: the number of unanswered pings.
    @ivar retired: True if another worker has replaced it, and it only finishes its connections.
    @ivar begun: fires with true when it is ready. Fires with false if it cannot start; C{why_not} then has the reason.
    """

    ipc: IpcConnection

    def __init__(self, number: int, began_s: float, ended: Callable[[Worker, str], object]) -> None:
        self.number = number
        self.pid = 0
        self.ready = False
        self.connections: set[int] = set()
        self.turn = 0
        self.unanswered = 0
        self.retired = False
        self.begun: Deferred[bool] = Deferred()
        self.why_not = ""
        self.began_s = began_s
        self._ended = ended
        self._kill_later: IDelayedCall | None = None

    def __str__(self) -> str:
        """The name in log lines."""
        return f"worker {self.number} (process {self.pid})"

    def spawn(self, reactor: IReactor) -> socket.socket:
        """
        Start the process.

        @return: the parent's end of the connection, for L{connect}.
        @raise OSError: the process cannot be started now.
        """
        ours, its = socket.socketpair()
        with its, open(os.devnull, "rb") as nothing:
            descriptors = {0: nothing.fileno(), 1: 1, 2: 2, IPC_FD: its.fileno()}
            # utf8: file names are UTF-8 in every locale. -P: do not import from the current directory.
            command = [sys.executable, "-X", "utf8", "-P", "-m", "resticserver.workers.child", str(self.number)]
            # Otherwise these signals could end the process before it ignores them.
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
        """Use this connection to talk to the process."""
        self.ipc = ipc
        ipc.start()

    def connectionMade(self) -> None:
        """See C{twisted.internet.protocol.ProcessProtocol}."""
        self.pid = int(self.transport.pid)  # type: ignore[union-attr]

    def begin(self) -> None:
        """The worker is ready."""
        self.ready = True
        self.begun.callback(True)

    def cannot_begin(self, reason: str) -> None:
        """The worker cannot start."""
        self.why_not = reason
        self.begun.callback(False)

    def give_connection(self, number: int) -> None:
        """The worker was given a connection, with a number that is higher than those before."""
        self.connections.add(number)
        self.turn = number

    def take_connections(self, numbers: Iterable[int]) -> None:
        """These connections have ended."""
        self.connections.difference_update(numbers)

    def lose(self) -> None:
        """Give it no more connections."""
        self.ready = False

    def retire(self) -> None:
        """Another worker has replaced it."""
        self.retired = True

    def kill(self) -> None:
        """Kill the process now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except Exception as error:  # the process has ended already
            _log.debug("{worker} cannot be killed: {error}", worker=self, error=error)

    def kill_after(self, reactor: IReactor, seconds: float) -> None:
        """Kill the process later, unless it has ended by then."""
        self._kill_later = reactor.callLater(seconds, self.kill)

    def close(self) -> None:
        """The process has ended: read its last messages, and close the connection."""
        self.ipc.read_all()
        self.ipc.close()
        if self._kill_later is not None and self._kill_later.active():
            self._kill_later.cancel()
        self.lose()

    def ping(self) -> None:
        """Check whether it responds."""
        self.unanswered += 1
        self.ipc.ask(Ping()).addCallbacks(self._answered, lambda failure: failure.trap(IpcConnectionLost, Failed))

    def _answered(self, _: object) -> None:
        self.unanswered = 0

    def processEnded(self, reason: Failure) -> None:
        """See C{twisted.internet.protocol.ProcessProtocol}."""
        how = "for an unknown reason"
        if isinstance(reason.value, ProcessDone):
            how = "with status 0"
        elif isinstance(reason.value, ProcessTerminated):
            number = reason.value.signal
            how = f"with status {reason.value.exitCode}" if number is None else f"by signal {number}"
        self._ended(self, how)
