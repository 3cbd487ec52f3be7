"""
L{resticserver.service.trash_expiry}: what has been in the trash long enough is removed within a minute, and nothing because of
a wrong clock.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from twisted.internet.task import Clock as ReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Policy
from resticserver.access.policyfile import parse_policy
from resticserver.service import trash_expiry
from resticserver.service.trash_expiry import HOLD_S, LOOK_S, Clock, Parts, TrashExpiry, elapsed
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.layout import Repository
from resticserver.storage.local import LocalStore
from resticserver.storage.trash import trash_days, trashed_objects

from ..contract.store import id_of, save
from ..support.memory import InlinePool
from ..support.scratch import scratch_directory

DAY_S = 86_400.0


class ClockTests(SynchronousTestCase):
    """L{Clock}."""

    def setUp(self) -> None:
        self.now_s, self.at_s = 1000.0, 5.0
        self.clock = Clock(lambda: self.now_s, lambda: self.at_s)

    def later(self, seconds: float, set_by_s: float = 0.0) -> tuple[float, float]:
        """Some seconds go by, and the system's clock is set."""
        self.at_s += seconds
        self.now_s += seconds + set_by_s
        return self.clock.look()

    def test_runs(self) -> None:
        """It is the system's, small corrections and steps back included."""
        self.assertEqual((1020.0, 0.0), self.later(20))
        self.assertEqual((1090.0, 0.0), self.later(20, 50))
        self.assertEqual((110.0, 0.0), self.later(20, -1000))
        self.assertEqual((130.0, 0.0), self.later(20))

    def test_step_ahead(self) -> None:
        """A step ahead is taken after a day, and said once."""
        self.assertEqual((1020.0, 1e6), self.later(20, 1e6))
        self.assertEqual((1040.0, 0.0), self.later(20))
        self.assertEqual((1020.0 + HOLD_S - 10, 0.0), self.later(HOLD_S - 30))
        self.assertEqual((1020.0 + HOLD_S + 10 + 1e6, 0.0), self.later(20))
        self.assertEqual((1020.0 + HOLD_S + 30 + 1e6, 0.0), self.later(20))

    def test_set_back_in_time(self) -> None:
        """A wrong step that is corrected within that day has no effect."""
        self.later(20, 1e9)
        self.assertEqual((1040.0, 0.0), self.later(20, -1e9))
        self.assertEqual((1060.0, 0.0), self.later(20))

    def test_elapsed(self) -> None:
        """The clock that does not step goes on."""
        first = elapsed()
        self.assertGreaterEqual(elapsed(), first)


class NotedQuotas:
    """Notes which repositories are to be counted."""

    def __init__(self) -> None:
        self.soon: list[Repository] = []

    def count_soon(self, repository: Repository) -> None:
        """Note it."""
        self.soon.append(repository)


class TrashExpiryTests(SynchronousTestCase):
    """L{TrashExpiry}, over a store, with a time of its own."""

    def setUp(self) -> None:
        self.data = scratch_directory(self) / "data"
        self.store = LocalStore(str(self.data), snapshots=Snapshots(keeps_times=lambda fd: False))
        self.store.prepare()
        for name in ("alice", "bob"):
            self.store.create_repository((name,))
        self.reactor = ReactorClock()
        #: How far the system's clock is ahead of the real one, by which files are stamped.
        self.ahead_s = 0.0
        self.quotas = NotedQuotas()
        self.policy = Policy()
        self.looks = 0

    def start(self) -> None:
        """Begin to look."""
        clock = Clock(self.now, self.reactor.seconds)
        parts = Parts(self.store, self.policy, self.quotas, InlinePool())
        self.expiry = TrashExpiry(self.reactor, parts, clock)
        self.expiry.startService()
        self.addCleanup(self.expiry.stopService)

    def now(self) -> float:
        """The system's time."""
        return time.time() + self.reactor.seconds() + self.ahead_s

    def advance(self, seconds: float) -> None:
        """Time goes by, look by look."""
        self.reactor.pump([LOOK_S] * int(seconds // LOOK_S))
        self.reactor.advance(seconds % LOOK_S)

    def delete(self, user: str, content: bytes, keep_s: float) -> None:
        """A client deletes an object."""
        save(self.store, (user,), "data", content)
        self.store.remove_object((user,), "data", id_of(content), keep_s)

    def left(self, user: str) -> int:
        """How many objects are in a trash."""
        return sum(1 for day in trash_days(str(self.data), (user,)) for _ in trashed_objects(day))

    def test_within_a_minute(self) -> None:
        """Each when its time has come, in all repositories; quotas are told."""
        self.policy = Policy(delete_delay_s=100)
        self.start()
        self.delete("alice", b"1", 100)
        self.delete("bob", b"2", 400)
        self.advance(80)
        self.assertEqual((1, 1, []), (self.left("alice"), self.left("bob"), self.quotas.soon))
        with capturedLogs() as events:
            self.advance(60)
        self.assertEqual((0, 1, [("alice",)]), (self.left("alice"), self.left("bob"), self.quotas.soon))
        words = "removed 1 objects (1 byte) from the trash of repository alice"
        self.assertEqual([words], [formatEvent(event) for event in events])
        self.advance(250)
        self.assertEqual(1, self.left("bob"))
        self.advance(60)
        self.assertEqual(0, self.left("bob"))
        self.assertEqual((2, 2), self.expiry.removed)
        self.assertEqual([2, 2], [family.samples[0].value for family in self.expiry.families()])

    def test_many(self) -> None:
        """More than a step removes."""
        self.patch(trash_expiry, "STEP_OBJECTS", 2)
        for number in range(5):
            self.delete("alice", b"%d" % number, 10)
        self.start()
        self.advance(40)
        self.assertEqual(0, self.left("alice"))

    def test_after_the_flag_is_gone(self) -> None:
        """Without any delay in force what is there ends when it was promised to."""
        self.delete("alice", b"1", 3000)
        self.start()
        self.advance(2900)
        self.assertEqual(1, self.left("alice"))
        self.advance(160)
        self.assertEqual(0, self.left("alice"))

    def test_delay_of_a_rule(self) -> None:
        """A rule's delay holds for what is there already, if it is longer."""
        text = '[[rule]]\nusers = ["alice"]\nrepositories = ["alice"]\nrights = "full"\ndelete-delay = "10m"\n'
        self.policy = Policy(grants=parse_policy(text))
        self.assertEqual((600, 0, 600), (*self.delays(), self.policy.shortest_delete_delay()))
        self.delete("alice", b"1", 100)
        self.delete("bob", b"1", 100)
        self.start()
        self.advance(160)
        self.assertEqual((1, 0), (self.left("alice"), self.left("bob")))
        self.advance(480)
        self.assertEqual(0, self.left("alice"))

    def delays(self) -> tuple[float, float]:
        """Of both users."""
        return self.policy.delete_delay_of("alice", ("alice",)), self.policy.delete_delay_of("bob", ("bob",))

    def test_shorter_delay_while_it_runs(self) -> None:
        """A delay that becomes shorter is noticed, though it was not time to look."""
        policy: Any = Policy(delete_delay_s=3000)
        self.policy = policy
        self.start()
        object.__setattr__(policy, "delete_delay_s", 30.0)
        self.advance(20)
        self.delete("alice", b"1", 30)
        self.advance(80)
        self.assertEqual(0, self.left("alice"))

    def test_clock_set_ahead(self) -> None:
        """A clock that is set ten years ahead removes nothing for a day, and what was deleted before that is kept for longer."""
        self.policy = Policy(delete_delay_s=3 * DAY_S)
        self.start()
        self.delete("alice", b"1", 3 * DAY_S)
        self.advance(20)
        self.ahead_s = 3650 * DAY_S
        with capturedLogs() as events:
            self.advance(800)
        words = [str(formatEvent(event)) for event in events]
        self.assertEqual(1, len(words), words)
        self.assertRegex(
            words[0], r"^the clock was set ahead by 3153\d+ s: nothing is removed from the trash for a day"
        )
        self.assertEqual(1, self.left("alice"))
        self.advance(HOLD_S + DAY_S)
        self.assertEqual(1, self.left("alice"))
        self.advance(DAY_S)
        self.assertEqual(0, self.left("alice"))

    def test_volume_gone(self) -> None:
        """A volume that is not there is looked at again later, and nothing is logged: others do."""
        self.delete("alice", b"1", 10)
        moved = self.data.rename(self.data.parent / "elsewhere")
        self.data.mkdir()
        self.start()
        self.advance(60)
        self.data.rmdir()
        moved.rename(self.data)
        self.assertEqual(1, self.left("alice"))
        self.advance(7200)
        self.assertEqual(0, self.left("alice"))

    def test_cannot_be_emptied(self) -> None:
        """An error is logged once; the other repositories go on."""
        for user in ("alice", "bob"):
            self.delete(user, b"1", 10)
        real = os.unlink

        def fail(path: str, *rest: Any, **named: Any) -> None:
            if "alice/.trash" in str(path):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            real(path, *rest, **named)

        patch = self.patch(os, "unlink", fail)
        with capturedLogs() as events:
            self.start()
            self.advance(7300)
        words = [str(formatEvent(event)) for event in events]
        self.assertEqual(
            1, sum(line.startswith("cannot empty the trash of repository alice: Read-only") for line in words)
        )
        self.assertEqual((1, 0), (self.left("alice"), self.left("bob")))
        patch.restore()
        self.advance(3700)
        self.assertEqual(0, self.left("alice"))

    def test_stop(self) -> None:
        """It ends between two steps."""
        self.patch(trash_expiry, "STEP_OBJECTS", 1)
        for number in range(5):
            self.delete("alice", b"%d" % number, 10)
        self.start()
        real = self.store.trash.expire

        def expire(*arguments: Any) -> Any:
            self.expiry.running = 0
            return real(*arguments)

        self.patch(self.store.trash, "expire", expire)
        self.advance(40)
        self.assertEqual(4, self.left("alice"))
