"""
L{resticserver.service.summary}, and how L{resticserver.service.systemd} passes it on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.service.summary import PATIENCE_S, Summary
from resticserver.service.systemd import STATUS_S, ServiceManager
from resticserver.storage.local import LocalStore

from ..support.memory import HeldPool, InlinePool
from ..support.scratch import scratch_directory

SERVES = "listening on [::]:8000, /run/rest.sock; requests in flight: 3"


class FakeTopology:
    """A server whose processes answer when they are asked for their counts."""

    def __init__(self, pool: Any) -> None:
        self.disk = pool
        self.bound_addresses = ["[::]:8000", "/run/rest.sock"]
        self.asked = self.counted = 3

    @property
    def front(self) -> FakeTopology:
        """What listens."""
        return self

    async def gather(self) -> None:
        """Ask for the counts."""
        self.counted = self.asked

    def requests_in_flight(self) -> int:
        """What was counted at last."""
        return self.counted


class SummaryCase(SynchronousTestCase):
    """A store with one repository."""

    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.path = scratch_directory(self) / "data"
        self.store = LocalStore(str(self.path))
        self.store.prepare()
        self.store.create_repository(("alice",))
        self.store.volume.mark()

    def summary(self, pool: Any) -> Summary:
        """The summary of a server on that store."""
        self.served = FakeTopology(pool)
        return Summary(self.clock, self.store.volume, self.served)


class SummaryTests(SummaryCase):
    """The lines."""

    def test_running(self) -> None:
        """Where the server listens, and what it does; first of all why it cannot."""
        summary = self.summary(InlinePool())
        self.assertEqual(SERVES, summary.at_the_start())
        self.assertEqual(SERVES, self.successResultOf(running(summary)))
        shutil.rmtree(self.path / ".rest-server")
        gone = f"not ready: the volume with the repositories is missing; {SERVES}"
        self.assertEqual(gone, self.successResultOf(running(summary)))
        self.assertEqual("stopping; requests in flight: 3", summary.at_the_end())

    def test_unreadable(self) -> None:
        """The disk fails."""
        summary = self.summary(InlinePool())

        def fail() -> None:
            raise OSError(5, os.strerror(5))

        self.patch(self.store.volume, "check", fail)
        failed = f"not ready: the data directory cannot be read: Input/output error; {SERVES}"
        self.assertEqual(failed, self.successResultOf(running(summary)))

    def test_hangs(self) -> None:
        """The disk does not respond: the line does not wait for it, and one look at a time is made."""
        pool = HeldPool()
        summary = self.summary(pool)
        for _ in range(3):
            line = running(summary)
            self.assertNoResult(line)
            self.clock.advance(PATIENCE_S)
            late = f"not ready: the data directory does not respond; {SERVES}"
            self.assertEqual(late, self.successResultOf(line))


class StatusTests(SummaryCase):
    """What the service manager is told."""

    def setUp(self) -> None:
        super().setUp()
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.told.close)
        self.told.setblocking(False)
        address = str(scratch_directory(self) / "notify")
        self.told.bind(address)
        self.pool = HeldPool()
        reactor: Any = MemoryReactorClock()
        self.reactor = reactor
        self.clock = self.reactor
        self.manager = ServiceManager(self.reactor, {"NOTIFY_SOCKET": address}, self.summary(self.pool))

    def start(self) -> None:
        """Start it as the reactor does; what that tells is not of interest here."""
        self.manager.startService()
        for call, arguments, keywords in self.reactor.whenRunningHooks:
            call(*arguments, **keywords)
        self.assertIn(f"STATUS={SERVES}", self.lines())

    def lines(self) -> list[str]:
        """What was told since the last call."""
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told += self.told.recv(4096).decode().split("\n")
        return told

    def pass_time(self) -> None:
        """The time of one line, and its look at the disk."""
        self.clock.advance(STATUS_S)
        self.pool.release()

    def test_changes(self) -> None:
        """A line that is as before is not sent again."""
        self.start()
        self.pass_time()
        self.assertEqual([], self.lines())
        self.served.asked = 4
        self.pass_time()
        self.assertEqual([f"STATUS={SERVES[:-1]}4"], self.lines())
        self.pass_time()
        self.assertEqual([], self.lines())

    def test_stop(self) -> None:
        """While the server stops the line says what for; a look that ends then changes nothing. Nor does the server listen."""
        self.start()
        self.clock.advance(STATUS_S)
        self.manager.stopService()
        self.assertEqual(["STOPPING=1", "STATUS=stopping; requests in flight: 3"], self.lines())
        self.served.asked = 0
        self.pool.release()
        self.clock.advance(STATUS_S)
        self.assertEqual(["STATUS=stopping; requests in flight: 0"], self.lines())
        self.served.bound_addresses = []
        self.pass_time()
        self.assertEqual([], self.lines())
        self.assertEqual([], self.pool.jobs)

    def test_one_line(self) -> None:
        """The name of a socket cannot tell the manager anything else."""
        self.start()
        self.served.bound_addresses = ["/run/a\nSTOPPING=1", "/run/gr\udcfcn"]
        self.clock.advance(STATUS_S)
        self.pool.release()
        told = self.told.recv(4096)
        self.assertEqual(b"STATUS=listening on /run/a?STOPPING=1, /run/gr\xfcn; requests in flight: 3", told)

    def test_nobody_asks(self) -> None:
        """Without a manager no line is made."""
        manager = ServiceManager(self.reactor, {}, self.summary(self.pool))
        manager.startService()
        for call, arguments, keywords in self.reactor.whenRunningHooks:
            call(*arguments, **keywords)
        self.clock.advance(STATUS_S)
        manager.stopService()
        self.assertEqual(([], []), (self.pool.jobs, self.lines()))


def running(summary: Summary) -> Deferred[str]:
    """L{Summary.running} as a Deferred."""
    return Deferred.fromCoroutine(summary.running())
