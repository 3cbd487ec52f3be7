"""
L{resticserver.telemetry.last_day}: the counters of the last day, and who wrote last.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.telemetry import last_day as last_day_module
from resticserver.telemetry.last_day import DAY_S, SLOT_S, Counters, LastDay, LastWrites, Slot, Written

NOW_S = 1_800_000_000.0


class LastDayTests(SynchronousTestCase):
    """L{LastDay}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(5)
        self.last_day = LastDay(self.clock.seconds)
        self.totals = Counters()

    def add(self, received_bytes: int = 0, failed_logins: int = 0) -> None:
        """Something is counted, and looked at."""
        self.totals = self.totals.plus(Counters(received_bytes, 2 * received_bytes, failed_logins, 0))
        self.last_day.look(self.totals)

    def test_within_a_day(self) -> None:
        """What is new counts for a day, and what was counted twice counts once."""
        self.add(100)
        self.last_day.look(self.totals)
        self.clock.advance(DAY_S - SLOT_S)
        self.add(11, 3)
        self.assertEqual(Counters(111, 222, 3, 0), self.last_day.counted())
        self.clock.advance(SLOT_S)
        self.add()
        self.assertEqual(Counters(11, 22, 3, 0), self.last_day.counted())
        self.clock.advance(DAY_S)
        self.add()
        self.assertEqual(Counters(), self.last_day.counted())

    def test_bounded(self) -> None:
        """However often something happens, a day takes a hundred entries."""
        for _ in range(3000):
            self.clock.advance(61)
            self.add(1)
        self.assertLessEqual(len(self.last_day.slots(NOW_S)), DAY_S / SLOT_S + 1)
        found = self.last_day.counted().received_bytes
        self.assertTrue((DAY_S - SLOT_S) / 61 - 1 <= found <= DAY_S / 61 + 1, found)

    def test_covered(self) -> None:
        """For how long counters are known: since the start, since what was loaded, and never more than a day."""
        self.assertEqual(0, self.last_day.covered_s)
        self.clock.advance(7200)
        self.add(5)
        self.assertEqual(7200, self.last_day.covered_s)
        self.last_day.load([Slot(NOW_S - 3 * 3600, Counters(7))], NOW_S)
        self.assertEqual(3 * 3600, self.last_day.covered_s)
        self.clock.advance(2 * DAY_S)
        self.add()
        self.assertEqual(DAY_S, self.last_day.covered_s)

    def test_load(self) -> None:
        """What another run has stored is added, but for what is too old; a clock that was set back makes nothing wrong."""
        self.add(1)
        self.last_day.load(
            [
                Slot(NOW_S - DAY_S, Counters(1000)),
                Slot(NOW_S - DAY_S + 1, Counters(200)),
                Slot(NOW_S + 10 * DAY_S, Counters(30)),
            ],
            NOW_S,
        )
        self.assertEqual(231, self.last_day.counted().received_bytes)
        self.add(5)
        self.assertEqual(236, self.last_day.counted().received_bytes)
        self.clock.advance(DAY_S)
        self.add()
        self.assertEqual(0, self.last_day.counted().received_bytes)

    def test_there_and_back(self) -> None:
        """What is stored is loaded as it was, however long the machine was off in between."""
        self.add(100, 1)
        self.clock.advance(3600)
        self.add(10)
        slots = self.last_day.slots(NOW_S)
        self.assertEqual([NOW_S - 3600, NOW_S], [slot.began_s for slot in slots])
        other = LastDay(Clock().seconds)
        other.load(slots, NOW_S + 7200)
        self.assertEqual(self.last_day.counted(), other.counted())
        late = LastDay(Clock().seconds)
        late.load(slots, NOW_S + DAY_S - 60)
        self.assertEqual(10, late.counted().received_bytes)

    def test_changes(self) -> None:
        """Nothing new is no change."""
        self.add()
        self.assertEqual(0, self.last_day.changes)
        self.add(1)
        self.add()
        self.assertEqual(1, self.last_day.changes)


class LastWritesTests(SynchronousTestCase):
    """L{LastWrites}."""

    def test_latest(self) -> None:
        """The latest holds, whatever comes last: workers tell theirs in any order, and the state file tells old ones."""
        writes = LastWrites()
        writes.add("a", Written("alice", 5.0))
        writes.load([("a", "bob", 4.0), ("b", "bob", 1.0)])
        writes.load([("b", "", 2.0)])
        self.assertEqual({"a": Written("alice", 5.0), "b": Written("", 2.0)}, writes.by_repository)

    def test_take(self) -> None:
        """A worker tells what it has noted once."""
        worker, parent = LastWrites(), LastWrites()
        worker.add("a", Written("alice", 5.0))
        parent.load(worker.take())
        parent.load(worker.take())
        self.assertEqual({"a": Written("alice", 5.0)}, parent.by_repository)

    def test_forget(self) -> None:
        """What was deleted is no change twice."""
        writes = LastWrites()
        writes.add("a", Written("alice", 5.0))
        for _ in range(2):
            writes.forget(["a", "b"])
            self.assertEqual(({}, 2), (writes.by_repository, writes.changes))

    def test_bounded(self) -> None:
        """The one that was written to the longest ago goes."""
        self.patch(last_day_module, "MOST_WRITTEN", 3)
        writes = LastWrites()
        for number, name in enumerate("abcade"):
            writes.add(name, Written("u", float(number)))
        self.assertEqual({"a", "d", "e"}, set(writes.by_repository))
