"""
Limits of bandwidth, divided among workers.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.limits.bandwidth import TOTAL, Bandwidth, BothDirections, Usage
from resticserver.workers.bandwidth import REPORT_S, BandwidthRequests, WorkerBandwidth, divided, parts_of
from resticserver.workers.ipc import IpcConnection

from ..support.wires import StepReactor

MIB = 1 << 20


def usage(used: float, short: bool = False, weight: int = 1, key: str = TOTAL) -> Usage:
    """The usage of a limit of 10 MiB a second; C{used} is in MiB."""
    return Usage(key, 10 * MIB, int(used * MIB), short, weight)


class DividedTests(SynchronousTestCase):
    """L{divided}."""

    def parts(self, *usages: Usage) -> list[float]:
        """The parts in MiB; they are always the whole limit."""
        parts = divided(10.0 * MIB, list(usages))
        self.assertAlmostEqual(10.0 * MIB, sum(parts), delta=1)
        self.assertGreater(min(parts), 0)
        return [part / MIB for part in parts]

    def test_nobody(self) -> None:
        """Who uses nothing gets the same as the others."""
        self.assertEqual([2.5] * 4, self.parts(*[usage(0, weight=0)] * 4))

    def test_one(self) -> None:
        """One that is short gets nearly all, and the others enough to begin with."""
        one, *others = self.parts(usage(2.5, short=True), *[usage(0, weight=0)] * 3)
        self.assertGreater(one, 9.5)
        self.assertGreater(min(others), 0.1)

    def test_weights(self) -> None:
        """Where three users wait, there goes three times as much as where one waits."""
        one, three = self.parts(usage(5, True, 1), usage(5, True, 3))
        self.assertAlmostEqual(2.5, one)
        self.assertAlmostEqual(7.5, three)

    def test_enough(self) -> None:
        """Who was not short keeps what it used and a little more."""
        little, short = self.parts(usage(2), usage(6, True))
        self.assertAlmostEqual(2.5, little)
        self.assertAlmostEqual(7.5, short)

    def test_too_much(self) -> None:
        """Also if that is more than there is."""
        first, second, third = self.parts(usage(8), usage(8), usage(0, True))
        self.assertAlmostEqual(first, second)
        self.assertGreater(third, 0.1)

    def test_keys(self) -> None:
        """Each limit is divided for itself; a worker that does not know it yet gets a part to begin with."""
        one: Any = "one"
        other: Any = "other"
        parts = parts_of({one: [usage(5, True), usage(1, True, key="alice")], other: [usage(5, True)]})
        self.assertEqual({TOTAL, "alice"}, parts[one].keys())
        self.assertEqual({TOTAL, "alice"}, parts[other].keys())
        self.assertGreater(parts[one]["alice"], 9 * MIB)
        self.assertAlmostEqual(5 * MIB, parts[one][TOTAL])


class Worker:
    """One end of a pair of processes."""

    def __init__(self, ipc: IpcConnection) -> None:
        self.ipc = ipc


class WorkersTests(SynchronousTestCase):
    """Two workers and their parent, on a reactor that steps."""

    def setUp(self) -> None:
        self.reactor = StepReactor()
        self.parent = BandwidthRequests()
        self.ends: list[Worker] = []
        self.bandwidths = [self.start() for _ in range(2)]

    def start(self) -> BothDirections:
        """A worker."""
        clock: Clock = self.reactor
        both = BothDirections(Bandwidth(clock, 0, 0.5), Bandwidth(clock, 10 * MIB, 0.5), lambda user, repository: None)
        ours, theirs = socket.socketpair()
        reactor: Any = self.reactor
        ipc = IpcConnection(reactor, theirs, "the parent", {}, lambda: None)
        service = WorkerBandwidth(reactor, ipc, both)
        ipc.handle(service.handlers())
        end = Worker(IpcConnection(reactor, ours, "a worker", {}, lambda: None))
        end.ipc.handle(self.parent.handlers(end))
        self.ends.append(end)
        for each in (ipc, end.ipc):
            each.start()
            self.addCleanup(each.close)
        service.startService()
        self.addCleanup(service.stopService)
        return both

    def test_by_demand(self) -> None:
        """All of the limit goes to the worker that has the transfers; when another has some, it gets its part."""
        moved = [0, 0]

        def ask(number: int) -> None:
            share = self.bandwidths[number].down.share("alice", None)
            assert share is not None

            def granted(size_bytes: int) -> None:
                moved[number] += size_bytes
                self.reactor.callLater(0.001, ask, number)

            share.take(MIB).addCallback(granted)

        def run(seconds: float) -> list[float]:
            before = moved.copy()
            for _ in range(int(seconds / 0.01)):
                self.reactor.advance(0.01)
                self.reactor.pump()
            return [(after - start) / seconds / MIB for after, start in zip(moved, before, strict=True)]

        ask(0)
        run(2.5 * REPORT_S)
        first, _ = run(5)
        self.assertTrue(9 < first < 11, first)
        ask(1)
        run(2.5 * REPORT_S)
        first, second = run(5)
        self.assertTrue(4 < first < 6 and 4 < second < 6, (first, second))
        self.ends[0].ipc.close()
        self.parent.worker_gone(self.ends[0])
        run(2.5 * REPORT_S)
        _, second = run(5)
        self.assertTrue(9 < second < 11, second)
