"""
L{resticserver.telemetry.refusals} and L{resticserver.service.kept_refusals}: what was refused within the last day, what of it
is told of, and how it is kept for the next start.
"""

from __future__ import annotations

import os
import time
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import DISK, QUOTA, RIGHTS
from resticserver.service.kept_refusals import KEEP_S, KeptRefusals
from resticserver.storage.state import FILE, StateFile
from resticserver.telemetry import refusals as refusals_module
from resticserver.telemetry.refusals import (
    AGAIN_S,
    DAY_S,
    MOST_KEPT,
    MOST_TOLD,
    REASONS,
    Refusals,
    Refused,
    within_a_day,
)

from ..support.memory import HeldPool, InlinePool

NOW_S = 1_800_000_000.0
HOUR_S = 3600


class RefusalsTests(SynchronousTestCase):
    """L{Refusals}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.refusals = Refusals(self.clock.seconds)

    def add(
        self, user: str | None = "alice", repository: str = "alice", reason: str = QUOTA, message: str = "full"
    ) -> bool:
        """One is refused; whether it is told of."""
        return self.refusals.add(user, repository, reason, message)

    def found(self, time_s: float = NOW_S) -> tuple[Refused, ...]:
        """What was refused within a day."""
        return within_a_day(self.refusals.entries(), time_s)

    def test_once_an_hour(self) -> None:
        """The same again is told of once an hour; another user, repository or reason at once; all are counted."""
        self.assertTrue(self.add())
        for _ in range(100):
            self.assertFalse(self.add())
        self.assertTrue(self.add(user=None))
        self.assertTrue(self.add(repository="alice/x"))
        self.assertTrue(self.add(reason=DISK))
        self.clock.advance(AGAIN_S - 1)
        self.assertFalse(self.add())
        self.clock.advance(1)
        self.assertTrue(self.add())
        self.assertFalse(self.add())
        self.assertEqual(106, self.refusals.totals[QUOTA])
        self.assertEqual(set(REASONS), set(self.refusals.totals))

    def test_many_repositories(self) -> None:
        """One user who invents repositories does not fill the log, and takes nobody else's lines."""
        told = [self.add(repository=str(number), reason=RIGHTS) for number in range(3 * MOST_TOLD)]
        self.assertEqual(MOST_TOLD, sum(told))
        self.assertTrue(self.add(user="bob"))
        self.clock.advance(AGAIN_S)
        self.assertTrue(self.add(repository="another"))
        self.assertEqual(3 * MOST_TOLD, self.refusals.totals[RIGHTS])

    def test_within_a_day(self) -> None:
        """How many of a day, the last of them by its time and its words; what is older is not in it."""
        self.add(message="one")
        self.clock.advance(20 * HOUR_S)
        self.add(message="two")
        self.add(message="three")
        self.assertEqual((Refused("alice", "alice", QUOTA, 3, NOW_S, "three"),), self.found())
        self.clock.advance(4 * HOUR_S)
        self.assertEqual((Refused("alice", "alice", QUOTA, 2, NOW_S - 4 * HOUR_S, "three"),), self.found())
        self.clock.advance(DAY_S - 4 * HOUR_S - 1)
        self.assertEqual(1, len(self.found()))
        self.clock.advance(1)
        self.assertEqual((), self.found())
        self.assertTrue(self.add())

    def test_a_clock_that_is_set(self) -> None:
        """What the calendar says has no effect on what was within a day, nor on what is told of."""
        self.add()
        for time_s in (NOW_S, NOW_S - 10 * DAY_S, NOW_S + 10 * DAY_S):
            (one,) = self.found(time_s)
            self.assertEqual(time_s, one.last_s)

    def test_youngest_first(self) -> None:
        """Who was refused last comes first."""
        for user in ("a", "b", "c", "a"):
            self.clock.advance(1)
            self.add(user)
        self.assertEqual(["a", "c", "b"], [one.user for one in self.found()])

    def test_bounded(self) -> None:
        """However many users and repositories there are, what is remembered has a bound; the oldest go."""
        self.patch(refusals_module, "MOST_KEPT", 10)
        for number in range(50):
            self.add(str(number))
        self.assertEqual([str(number) for number in range(49, 39, -1)], [one.user for one in self.found()])
        self.assertLessEqual(len(self.refusals._told), 11)
        self.assertGreater(MOST_KEPT, 1000)

    def test_many_in_one_hour(self) -> None:
        """A client that tries for ever costs no more than a number for each hour."""
        for _ in range(200):
            for _ in range(50):
                self.add()
            self.clock.advance(HOUR_S / 4)
        ((_, entry),) = self.refusals.entries()[1]
        self.assertLessEqual(len(entry.hours), 26)
        (one,) = self.found()
        self.assertTrue(94 * 50 <= one.number <= 100 * 50, one)

    def test_load(self) -> None:
        """What was known before is there again, is in no total, and what has come meanwhile is added to it."""
        self.clock.advance(5)
        self.add(message="new")
        known = (
            Refused("alice", "alice", QUOTA, 7, NOW_S - HOUR_S, "old"),
            Refused("bob", "", DISK, 3, NOW_S - 2 * HOUR_S, "no space"),
            Refused("carol", "c", DISK, 3, NOW_S - DAY_S, "too old"),
            Refused("dave", "d", "nonsense", 3, NOW_S, "of another version"),
            Refused("eve", "e", DISK, 1, NOW_S + 10 * DAY_S, "the clock was set back"),
        )
        self.refusals.load(known, NOW_S)
        self.assertEqual(
            (
                Refused("alice", "alice", QUOTA, 8, NOW_S, "new"),
                Refused("eve", "e", DISK, 1, NOW_S, "the clock was set back"),
                Refused("bob", "", DISK, 3, NOW_S - 2 * HOUR_S, "no space"),
            ),
            self.found(),
        )
        self.assertEqual((1, 0), (self.refusals.totals[QUOTA], self.refusals.totals[DISK]))
        # In a new run it is news.
        self.assertTrue(self.add("bob", "", DISK))


class KeptTests(SynchronousTestCase):
    """L{KeptRefusals} with a real state file."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        os.makedirs(f"{self.path}/state")
        self.clock = Clock()
        self.pool: Any = InlinePool()

    def state(self) -> StateFile:
        """The state file."""
        return StateFile(self.path, f"{self.path}/state")

    def run_one(self, state: StateFile | None = None) -> tuple[Refusals, KeptRefusals]:
        """A run of the server."""
        refusals = Refusals(self.clock.seconds)
        kept = KeptRefusals(self.clock, refusals, state or self.state(), self.pool)
        kept.startService()
        return refusals, kept

    def found(self) -> list[Any]:
        """What is in the file."""
        return self.state().refusals()

    def test_kept(self) -> None:
        """What was refused is in the file after a minute, and after the stop; the next run knows it."""
        refusals, kept = self.run_one()
        self.clock.advance(KEEP_S)
        self.assertEqual([], os.listdir(f"{self.path}/state"), "nothing to keep is no reason for a file")
        refusals.add("alice", "alice/laptop", QUOTA, "full")
        self.clock.advance(KEEP_S)
        self.assertEqual([("alice", "alice/laptop", QUOTA, 1)], [row[:4] for row in self.found()])
        refusals.add(None, "", DISK, "no space")
        self.successResultOf(kept.stopService())
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(2, len(self.found()))
        again, _ = self.run_one()
        before, after = (within_a_day(one.entries(), time.time()) for one in (refusals, again))
        self.assertEqual({one[:4] for one in before}, {one[:4] for one in after})

    def test_not_before_it_was_read(self) -> None:
        """A stop, or a minute, before the file was read does not take from it what is in it."""
        refusals, kept = self.run_one()
        refusals.add("alice", "a", QUOTA, "full")
        self.successResultOf(kept.stopService())
        self.pool = HeldPool()
        refusals, kept = self.run_one()
        refusals.add("bob", "b", QUOTA, "full")
        self.clock.advance(KEEP_S)
        self.successResultOf(kept.stopService())
        self.assertEqual(["alice"], [row[0] for row in self.found()])

    def test_a_file_of_an_older_version(self) -> None:
        """One without the table is as good as any, and stays what it is."""
        state = self.state()
        state.put_history(20_000, {("alice",): 7})
        self.assertEqual([], state.refusals())
        state.put_refusals([("ä", "ä/\udcff", QUOTA, 1, NOW_S, "full")])
        self.assertEqual([("ä", "ä/\udcff", QUOTA, 1, NOW_S, "full")], self.state().refusals())
        state.put_refusals([])
        self.assertEqual([], self.state().refusals())
        self.assertEqual({("alice",): [(20_000, 7)]}, self.state().history())

    def test_a_broken_file(self) -> None:
        """It costs what was refused, and nothing else."""
        with open(f"{self.path}/state/{FILE}", "wb") as file:
            file.write(b"no database" * 1000)
        refusals, kept = self.run_one()
        refusals.add("bob", "b", QUOTA, "full")
        self.successResultOf(kept.stopService())
        self.assertEqual(["bob"], [row[0] for row in self.found()])
