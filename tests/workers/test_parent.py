"""
L{resticserver.workers.parent}: what the parent does, with processes that a test plays. (Real ones: integration/test_workers.)
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.net import listeners
from resticserver.workers import parent
from resticserver.workers.ipc import Handlers, IpcConnection
from resticserver.workers.messages import (
    Abort,
    Begin,
    ConnectionsEnded,
    LogLine,
    Ping,
    ReadCertificates,
    Recount,
    ReopenLog,
    Retire,
    Serve,
    Stop,
    UsersChanged,
)
from resticserver.workers.parent import Workers
from resticserver.workers.worker import IPC_FD

from ..support.wires import StepReactor, as_reactor


class FakeProcess:
    """A worker's process: its end of the wire, and what it was told."""

    def __init__(self, reactor: FakeProcesses, protocol: Any, fd: int, number: str) -> None:
        self.pid = 1000 + len(reactor.processes)
        self.number = int(number)
        self.protocol = protocol
        self.told: list[str] = []
        self.connections: list[int] = []
        self.numbers: list[int] = []
        self.kills: list[str] = []
        self.mute = False
        self.began: Deferred[None] | None = None
        handlers: Handlers = {
            Begin: self.begin,
            Ping: lambda: Deferred() if self.mute else None,
            Serve: self.serve,
            UsersChanged: lambda reading: self.told.append(f"users {reading}"),
            ReadCertificates: lambda: 1 // 0,
            **{
                command: partial(self.told.append, command.__name__.lower())
                for command in (Stop, Abort, Retire, ReopenLog)
            },
        }
        self.ipc = IpcConnection(reactor, socket.socket(fileno=os.dup(fd)), "the parent", handlers, lambda: None)
        self.ipc.start()

    def begin(self, **known: Any) -> Deferred[None] | None:
        """Be ready, or when the test says so."""
        self.known = known
        return self.began

    def serve(self, fd: int, listener: int, number: int) -> None:
        """Count a connection, and close it."""
        os.close(fd)
        self.connections.append(listener)
        self.numbers.append(number)

    def signalProcess(self, name: str) -> None:
        """Twisted's."""
        if self.protocol.ended_already:
            raise ProcessExitedAlready
        self.kills.append(name)
        self.end(signal=9)

    def end(self, status: int | None = None, signal: int | None = None) -> None:
        """The process ends."""
        self.ipc.close()
        self.protocol.ended_already = True
        reason = ProcessDone(0) if status == 0 else ProcessTerminated(status, signal)
        self.protocol.processEnded(Failure(reason))


class FakeProcesses(StepReactor):
    """A reactor whose processes are the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.slowly = False

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], env: Any, childFDs: dict[int, Any]) -> None:
        """Twisted's call."""
        protocol.ended_already = False
        process = FakeProcess(self, protocol, childFDs[IPC_FD], args[-1])
        if self.slowly:
            process.began = Deferred()
        self.processes.append(process)
        protocol.makeConnection(process)


class WorkersTests(SynchronousTestCase):
    """L{Workers}, two of them."""

    def setUp(self) -> None:
        self.reactor = FakeProcesses()
        self.patch(listeners, "process_environment", lambda: {})
        self.patch(parent, "process_environment", lambda: {})
        self.patch(Workers, "_wait_until_ready", lambda service: self.reactor.pump())
        self.heard: list[Any] = []
        self.state = 1
        self.workers = Workers(as_reactor(self.reactor), ("127.0.0.1:0",), 2, 30.0, self)
        self.workers.startService()
        self.reactor.pump()
        self.one, self.two = self.reactor.processes
        self.addCleanup(self.clean_up)

    def begin(self, listeners: list[str | None]) -> Begin:
        """The first message; C{reading} counts the test's states."""
        return Begin("1", {}, listeners, None, self.state, False, False, None, [])

    def handlers(self, worker: object) -> Handlers:
        """The server's."""
        return {Recount: self.hear}

    def worker_gone(self, worker: object) -> None:
        """A worker has ended."""

    def announce(self) -> None:
        """All are ready."""

    def hear(self, **arguments: Any) -> None:
        """A command of the server's."""
        self.heard.append(arguments)

    def clean_up(self) -> None:
        """Close what is open."""
        self.workers._stopping = True
        self.workers._close_sockets()
        for worker in tuple(self.workers._workers):
            worker.ipc.close()
        for process in self.reactor.processes:
            process.ipc.close()

    def connect(self, count: int = 1) -> None:
        """Clients."""
        host, _, port = self.workers._acceptors[0].address.rpartition(":")
        for _ in range(count):
            self.addCleanup(socket.create_connection((host, int(port))).close)
        self.reactor.pump()

    def shares(self) -> list[int]:
        """How many connections each process got."""
        return [len(process.connections) for process in self.reactor.processes]

    def said(self, events: Any) -> list[str]:
        """What was logged."""
        return [formatEvent(event) for event in events]

    # --- the start

    def test_beginning(self) -> None:
        """Each worker is told what holds when it begins, a later one what holds then."""
        self.assertEqual([1, 1], [process.known["reading"] for process in self.reactor.processes])
        self.assertEqual(["127.0.0.1:0"], self.one.known["listeners"])
        self.state = 2
        with capturedLogs():
            self.one.end(signal=9)
            self.reactor.pump()
        self.assertEqual((2, 1), (self.reactor.processes[2].known["reading"], self.reactor.processes[2].number))

    def test_commands(self) -> None:
        """What the server takes from its workers is taken from each."""
        for process in self.reactor.processes:
            process.ipc.tell(Recount((str(process.number),)))
        self.reactor.pump()
        self.assertCountEqual([{"repository": ("1",)}, {"repository": ("2",)}], self.heard)

    # --- connections

    def test_even(self) -> None:
        """In turn; and where connections have ended, there the next ones go."""
        self.connect(5)
        self.assertEqual([3, 2], self.shares())
        self.two.ipc.tell(ConnectionsEnded(self.two.numbers[:2]))
        self.reactor.pump()
        self.connect(3)
        self.assertEqual([3, 5], self.shares())

    def fill(self, number: int) -> None:
        """Send to a worker until its socket is full."""
        worker = self.workers._places[number]
        assert worker is not None
        while worker.ipc.hand_over(0, Serve(0, 0)):
            pass

    def test_one_that_is_behind(self) -> None:
        """Who does not take what it is sent gets nothing; if nobody does, a connection waits, and others in the backlog."""
        self.reactor.removeReader(self.one.ipc)
        self.fill(1)
        self.connect(4)
        self.assertEqual(4, self.shares()[1])
        self.reactor.removeReader(self.two.ipc)
        self.fill(2)
        self.connect(3)
        self.assertEqual(1, len(self.workers._offers))
        self.reactor.addReader(self.two.ipc)
        self.reactor.pump()
        before = self.shares()[1]
        self.reactor.advance(parent.OFFER_AGAIN_S)
        self.reactor.pump()
        self.assertEqual((3, 0), (self.shares()[1] - before, len(self.workers._offers)))

    def test_nobody_there(self) -> None:
        """While no worker is ready connections wait in the backlog."""
        self.reactor.slowly = True
        with capturedLogs():
            self.one.end(signal=9)
            self.two.end(signal=9)
            self.reactor.pump()
        self.connect(2)
        self.assertEqual([0, 0, 0, 0], self.shares())
        began = self.reactor.processes[2].began
        assert began is not None
        began.callback(None)
        self.reactor.pump()
        self.assertEqual([0, 0, 2, 0], self.shares())

    def test_one_that_does_not_answer(self) -> None:
        """It gets no connections but if it is the only one, and after a minute it is killed and so replaced."""
        self.one.mute = True
        for _ in range(2):
            self.reactor.advance(parent.PING_S)
            self.reactor.pump()
        self.connect(3)
        self.assertEqual([0, 3], self.shares())
        with capturedLogs() as events:
            for _ in range(5):
                self.reactor.advance(parent.PING_S)
                self.reactor.pump()
        self.assertEqual((["KILL"], []), (self.one.kills, self.two.kills))
        self.assertEqual(
            [
                "worker 1 (process 1000) has not answered for 60 s; killing it",
                "worker 1 (process 1000) ended by signal 9; starting another one now",
            ],
            self.said(events),
        )

    # --- losses

    def test_patience(self) -> None:
        """At once, after 1, 2, 4 and at most 30 seconds; after a good life at once again."""
        pauses = []
        with capturedLogs():
            for _ in range(8):
                before = len(self.reactor.processes)
                self.reactor.processes[-1].end(signal=9)
                self.reactor.pump()
                waited = 0.0
                while len(self.reactor.processes) == before:
                    self.reactor.advance(0.5)
                    waited += 0.5
                pauses.append(waited)
                self.reactor.pump()
            self.assertEqual([0, 1, 2, 4, 8, 16, 30, 30], pauses)
            self.reactor.advance(parent.GOOD_LIFE_S + 1)
            before = len(self.reactor.processes)
            self.reactor.processes[-1].end(signal=9)
            self.reactor.pump()
        self.assertEqual(before + 1, len(self.reactor.processes))

    def test_cannot_start_again(self) -> None:
        """One that cannot begin says why; the others serve on."""
        self.reactor.slowly = True
        with capturedLogs() as events:
            self.one.end(status=1)
            self.reactor.pump()
            successor = self.reactor.processes[2]
            assert successor.began is not None
            successor.began.errback(StartError("the log is gone"))
            self.reactor.pump()
            successor.end(status=1)
            self.reactor.pump()
        self.assertEqual(
            [
                "worker 1 (process 1000) ended with status 1; starting another one now",
                "worker 1 (process 1002) cannot start: the log is gone",
                "worker 1 (process 1002) ended with status 1; starting another one in 1 s",
            ],
            self.said(events),
        )
        self.connect(2)
        self.assertEqual(2, self.shares()[1])

    def test_no_process(self) -> None:
        """Where the system has none for us, it is tried again later."""

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(11, "no more processes")

        patch = self.patch(self.reactor, "spawnProcess", refuse)
        with capturedLogs():
            self.one.end(signal=9)
            self.reactor.pump()
        patch.restore()
        self.reactor.advance(parent.LONGEST_PAUSE_S)
        self.reactor.pump()
        self.assertEqual(3, len(self.reactor.processes))

    def test_wire_lost(self) -> None:
        """A worker to which nothing can be said must end, in its time or by force."""
        self.one.ipc.close()
        self.reactor.pump()
        self.connect(2)
        self.assertEqual([0, 2], self.shares())
        with capturedLogs():
            self.reactor.advance(parent.LAST_WORDS_S + 30)
            self.reactor.pump()
        self.assertEqual(["KILL"], self.one.kills)

    # --- what workers say

    def test_log(self) -> None:
        """A line keeps its level, its name and its text, whatever that looks like."""
        with capturedLogs() as events:
            self.one.ipc.tell(LogLine("warn", "resticserver.x", "a {brace}\nand a line"))
            self.reactor.pump()
        ((event),) = events
        self.assertEqual(("warn", "resticserver.x"), (event["log_level"].name, event["log_namespace"]))
        self.assertEqual("a {brace}\nand a line", formatEvent(event))

    def test_common_news(self) -> None:
        """What all of them find out by themselves is said once, until there is other news."""
        with capturedLogs() as events:
            for text in ("no volume", "no volume", "back", "back", "no volume"):
                for process in (self.one, self.two):
                    process.ipc.tell(LogLine("info", "resticserver.storage.volume", text))
                self.reactor.pump()
            for process in (self.one, self.two):
                process.ipc.tell(LogLine("info", "resticserver.storage.local", "both"))
            self.reactor.pump()
        self.assertEqual(["no volume", "back", "no volume", "both", "both"], self.said(events))

    # --- all of them

    def test_ask_all(self) -> None:
        """Done when all have done it; who has died meanwhile need not."""
        done = Deferred.fromCoroutine(self.workers.ask_all(UsersChanged(7)))
        self.assertNoResult(done)
        self.reactor.pump()
        self.assertTrue(self.successResultOf(done))
        self.assertEqual((["users 7"], ["users 7"]), (self.one.told, self.two.told))
        with capturedLogs():
            done = Deferred.fromCoroutine(self.workers.ask_all(UsersChanged(8)))
            self.one.end(signal=9)
            self.reactor.pump()
        self.assertTrue(self.successResultOf(done))

    def test_ask_all_fails(self) -> None:
        """Who cannot do it says so, by name."""
        with capturedLogs() as events:
            done = Deferred.fromCoroutine(self.workers.ask_all(ReadCertificates()))
            self.reactor.pump()
        self.assertFalse(self.successResultOf(done))
        self.assertEqual("worker 1 (process 1000): integer division or modulo by zero", sorted(self.said(events))[0])

    def test_replace_all(self) -> None:
        """One after the other; the old one is told to retire when the new one is ready, and gets no more connections."""
        self.reactor.slowly = True
        with capturedLogs() as events:
            self.workers.replace_all()
            self.workers.replace_all()
            self.reactor.pump()
            self.assertEqual((3, []), (len(self.reactor.processes), self.one.told))
            self.connect(2)
            self.assertEqual([1, 1, 0], self.shares())
            for index in (2, 3):
                began = self.reactor.processes[index].began
                assert began is not None
                began.callback(None)
                self.reactor.pump()
        self.assertEqual((["retire"], ["retire"]), (self.one.told, self.two.told))
        self.connect(2)
        self.assertEqual([1, 1, 1, 1], self.shares())
        self.assertEqual(["replacing all workers", "all workers were replaced"], self.said(events))
        with capturedLogs() as events:
            self.one.end(status=0)
            self.two.end(signal=6)
            self.reactor.pump()
        self.assertEqual(["worker 2 (process 1001) ended by signal 6"], self.said(events))
        self.assertEqual(4, len(self.reactor.processes))

    def test_replacing_fails(self) -> None:
        """A new one that cannot begin changes nothing: the old ones serve on."""
        self.reactor.slowly = True
        with capturedLogs() as events:
            self.workers.replace_all()
            self.reactor.pump()
            began = self.reactor.processes[2].began
            assert began is not None
            began.errback(StartError("another version is installed"))
            self.reactor.pump()
            self.reactor.processes[2].end(status=1)
            self.reactor.pump()
        self.assertEqual(([], []), (self.one.told, self.two.told))
        self.assertIn("worker 1 (process 1002) cannot start: another version is installed", self.said(events))
        self.connect(2)
        self.assertEqual([1, 1, 0], self.shares())
        self.assertEqual(3, len(self.reactor.processes))

    def test_old_one_dies_meanwhile(self) -> None:
        """Its successor is there already, and no second one comes."""
        self.reactor.slowly = True
        with capturedLogs():
            self.workers.replace_all()
            self.reactor.pump()
            self.workers._failures[1] = 3
            self.one.end(signal=9)
            self.reactor.pump()
            began = self.reactor.processes[2].began
            assert began is not None
            began.callback(None)
            self.reactor.pump()
            self.reactor.advance(100)
        self.assertEqual([1, 2, 1, 2], [process.number for process in self.reactor.processes])

    # --- the end

    def test_stop(self) -> None:
        """Nobody gets in any more, all are told, and it is over when the last has ended."""
        stopped = self.workers.stopService()
        self.reactor.pump()
        self.assertEqual((["stop"], ["stop"]), (self.one.told, self.two.told))
        self.workers.abort()
        self.reactor.pump()
        self.assertEqual(["stop", "abort"], self.one.told)
        self.one.end(status=0)
        self.reactor.pump()
        self.assertNoResult(stopped)
        self.two.end(status=0)
        self.reactor.pump()
        self.successResultOf(stopped)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_stop_with_force(self) -> None:
        """One that does not end is killed some time after it should have."""
        stopped = self.workers.stopService()
        self.one.end(status=0)
        with capturedLogs() as events:
            self.reactor.advance(30 + parent.LAST_WORDS_S)
            self.reactor.pump()
        self.successResultOf(stopped)
        self.assertEqual(["worker 2 (process 1001) did not stop in time; killing it"], self.said(events))

    def test_stop_while_one_is_to_be_started(self) -> None:
        """A replacement that was to come does not come any more."""
        self.workers._failures[1] = 3
        with capturedLogs():
            self.one.end(signal=9)
            self.reactor.pump()
        stopped = self.workers.stopService()
        self.two.end(status=0)
        self.reactor.pump()
        self.successResultOf(stopped)
        self.reactor.advance(100)
        self.assertEqual(2, len(self.reactor.processes))

    def test_lines_come_before_the_end(self) -> None:
        """What a worker said last is heard."""
        with capturedLogs() as events:
            self.one.ipc.tell(LogLine("error", "resticserver.x", "last words"))
            self.one.end(status=3)
            self.reactor.pump()
        self.assertEqual("last words", self.said(events)[0])
