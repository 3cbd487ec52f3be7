"""
L{resticserver.workers.child}: the parts of a worker process that need no process. (Real ones: integration/test_workers.)
"""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from typing import Any

from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from resticserver import __version__
from resticserver.config.settings import Settings
from resticserver.errors import StartError
from resticserver.workers import log
from resticserver.workers.child import WorkerProcess
from resticserver.workers.connections import Connections
from resticserver.workers.ipc import Handlers, IpcConnection
from resticserver.workers.log import RemoteLog
from resticserver.workers.messages import Begin, ConnectionsEnded, LogLine

from ..support.memory import Bench
from ..support.wires import StepReactor, as_reactor


class FullReactor(StepReactor):
    """With what a worker wants besides."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = False
        self.from_threads: list[Any] = []

    def callFromThread(self, call: Any, *args: Any, **named: Any) -> None:
        """Twisted's call; made by the next C{advance}."""
        self.from_threads.append(threading.get_ident())
        self.callLater(0, call, *args, **named)

    def stop(self) -> None:
        """Twisted's call."""
        self.stopped = True


class RemoteLogTests(SynchronousTestCase):
    """L{RemoteLog}."""

    def setUp(self) -> None:
        self.reactor = FullReactor()
        ours, parents = socket.socketpair()
        self.lines: list[tuple[str, str, str]] = []
        self.ipc = IpcConnection(self.reactor, ours, "the parent", {}, lambda: None)
        handlers: Handlers = {LogLine: lambda level, namespace, text: self.lines.append((level, namespace, text))}
        self.parent = IpcConnection(self.reactor, parents, "a worker", handlers, lambda: None)
        for ipc in (self.ipc, self.parent):
            ipc.start()
            self.addCleanup(ipc.close)
        self.log = RemoteLog(as_reactor(self.reactor), self.ipc)
        self.publisher = LogPublisher(self.log)  # type: ignore[arg-type]

    def logger(self, namespace: str = "resticserver.storage.local") -> Logger:
        """A logger that the observer hears."""
        return Logger(namespace=namespace, observer=self.publisher)

    def test_levels(self) -> None:
        """What the parent would log itself, and no more: ours from info on, others' from warnings on."""
        for debug in (False, True):
            if debug:
                self.log.include_debug()
            for namespace in ("resticserver.x", "twisted.internet"):
                for level in LogLevel.iterconstants():
                    self.logger(namespace).emit(level, "{what}", what=f"{debug} text {{}}")
        self.reactor.pump()
        ours = ["info", "warn", "error", "critical"]
        wanted = [(level, "resticserver.x", "False text {}") for level in ours]
        wanted += [(level, "twisted.internet", "False text {}") for level in ours[1:]]
        wanted += [(level, "resticserver.x", "True text {}") for level in ["debug", *ours]]
        wanted += [(level, "twisted.internet", "True text {}") for level in ours[1:]]
        self.assertEqual(wanted, self.lines)

    def test_traceback(self) -> None:
        """A traceback comes whole."""
        try:
            raise KeyError("odd")
        except KeyError:
            self.logger().failure("could not do it")
        self.reactor.pump()
        ((level, _, text),) = self.lines
        self.assertEqual("critical", level)
        self.assertTrue(text.startswith("could not do it\nTraceback"), text)
        self.assertIn("KeyError: 'odd'", text)

    def test_from_a_thread(self) -> None:
        """What is logged in the pool is sent by the reactor's thread."""
        thread = threading.Thread(target=lambda: self.logger().info("from the pool"))
        thread.start()
        thread.join()
        self.assertEqual(1, len(self.reactor.from_threads))
        self.reactor.pump()
        self.assertEqual("from the pool", self.lines[0][2])

    def test_flood(self) -> None:
        """While the parent is busy only so much waits; how many lines were lost is said later."""
        self.patch(log, "MOST_LOG_BYTES", 10_000)
        for _ in range(2000):
            self.logger().info("x" * 1000)
        self.assertLess(self.ipc.waiting_bytes, 20_000)
        self.reactor.pump()
        self.logger().info("again")
        self.reactor.pump()
        lost = 2000 - (len(self.lines) - 2)
        self.assertEqual([f"{lost} lines of a worker were lost", "again"], [text for _, _, text in self.lines[-2:]])

    def test_without_a_parent(self) -> None:
        """It goes to stderr."""
        self.ipc.close()
        err = io.StringIO()
        self.patch(sys, "stderr", err)
        self.logger().info("to whom it may concern")
        self.assertEqual("to whom it may concern\n", err.getvalue())


class ConnectionsTests(SynchronousTestCase):
    """L{Connections}."""

    def setUp(self) -> None:
        self.reactor = FullReactor()
        ours, parents = socket.socketpair()
        self.ended: list[list[int]] = []
        self.ipc = IpcConnection(self.reactor, ours, "the parent", {}, lambda: None)
        handlers: Handlers = {ConnectionsEnded: lambda numbers: self.ended.append(numbers)}
        self.parent = IpcConnection(self.reactor, parents, "a worker", handlers, lambda: None)
        for ipc in (self.ipc, self.parent):
            ipc.start()
            self.addCleanup(ipc.close)
        self.site = Bench(self.mktemp()).site
        self.connections = Connections(as_reactor(self.reactor), self.site, [self.site], self.ipc, 30.0)
        self.connections.startService()

    def test_gone_already(self) -> None:
        """A client that is gone before its connection is served has ended; those of one moment are one message."""

        def gone(*_: Any) -> None:
            raise OSError(107, "not connected")

        self.reactor.adoptStreamConnection = gone  # type: ignore[attr-defined]
        for number in range(3):
            one, other = socket.socketpair()
            other.close()
            fd = one.detach()
            self.connections.serve(fd, 0, number)
            self.assertRaises(OSError, os.fstat, fd)
        self.reactor.pump()
        self.assertEqual([[0, 1, 2]], self.ended)

    def test_stop(self) -> None:
        """Without connections it is over at once, and nothing is left to be called."""
        self.successResultOf(self.connections.stopService())
        self.assertEqual([], self.reactor.getDelayedCalls())


class WorkerProcessTests(SynchronousTestCase):
    """L{WorkerProcess}: how it begins, where that does not go well."""

    def setUp(self) -> None:
        self.reactor = FullReactor()
        ours, parents = socket.socketpair()
        self.process = WorkerProcess(as_reactor(self.reactor), ours, 1)
        self.parent = IpcConnection(self.reactor, parents, "a worker", {}, lambda: None)
        for ipc in (self.process.ipc, self.parent):
            ipc.start()
            self.addCleanup(ipc.close)

    def begin(self, version: str = __version__, **changed: Any) -> str:
        """Tell it to begin; why it cannot."""
        settings = Settings(path=self.mktemp(), no_auth=True, **changed).as_json()
        answer = self.parent.ask(Begin(version, settings, [], None, 0, False, False, None, []))
        self.reactor.pump()
        return str(self.failureResultOf(answer, StartError).value)

    def test_another_version(self) -> None:
        """A package that was updated under a running server is no surprise later."""
        reason = self.begin("0.0.1")
        self.assertEqual(
            f"the running version is 0.0.1, the installed one is {__version__}: restart the server", reason
        )
        self.assertEqual((1, True), (self.process.status, self.reactor.stopped))

    def test_cannot_start(self) -> None:
        """What cannot be used is the reason, in one line."""
        missing = os.path.join(self.mktemp(), "missing", "log")
        self.assertEqual(f"--log: cannot open {missing}: No such file or directory", self.begin(log=missing))
        self.assertEqual((1, True), (self.process.status, self.reactor.stopped))

    def test_no_certificate(self) -> None:
        """So is a certificate that is gone."""
        self.assertIn("cannot read the TLS certificate", self.begin(tls=True))

    def test_parent_gone(self) -> None:
        """Without a parent it ends, also before it began."""
        self.parent.close()
        self.reactor.pump()
        self.assertEqual((0, True), (self.process.status, self.reactor.stopped))
