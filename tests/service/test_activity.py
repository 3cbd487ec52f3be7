"""
L{resticserver.service.activity}: what is counted of the last day, and how it is kept for the next start; and
L{resticserver.service.certificate_expiry}.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.service.activity import KEEP_S, LOOK_S, Activity
from resticserver.service.certificate_expiry import expiry_watch
from resticserver.storage.state import StateFile
from resticserver.telemetry.last_day import Counters, Written
from resticserver.telemetry.metrics import Tally

from ..support.memory import HeldPool, InlinePool
from ..telemetry.test_metrics import PLAIN

DAY_S = 86_400


class ActivityTests(SynchronousTestCase):
    """L{Activity} with a real state file."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        os.makedirs(f"{self.path}/state")
        self.clock = Clock()
        self.pool: Any = InlinePool()
        self.failed = 0

    def run_one(self) -> tuple[Tally, Activity]:
        """A run of the server."""
        tally = Tally()
        state = StateFile(self.path, f"{self.path}/state")
        activity = Activity(self.clock, tally, lambda: self.failed, state, self.pool)
        activity.startService()
        return tally, activity

    def test_counted(self) -> None:
        """Traffic, failed logins and limits, as they are now; the last day is kept also without requests for it."""
        tally, activity = self.run_one()
        self.addCleanup(activity.stopService)
        tally(PLAIN)
        tally.limited("max-uploads")
        self.failed = 3
        self.assertEqual((0.0, Counters(70, 5, 3, 1)), activity.counted())
        self.clock.pump([LOOK_S] * (DAY_S // int(LOOK_S)))
        tally(PLAIN)
        self.clock.pump([LOOK_S] * (DAY_S // int(LOOK_S) - 30))
        self.assertEqual((float(DAY_S), Counters(70, 5, 0, 0)), activity.counted())

    def test_kept(self) -> None:
        """What was counted is in the file after five minutes and after the stop; the next run has it and adds its own."""
        tally, activity = self.run_one()
        self.clock.advance(KEEP_S)
        self.assertEqual([], os.listdir(f"{self.path}/state"), "nothing to keep is no reason for a file")
        tally(PLAIN)
        self.clock.advance(KEEP_S)
        self.assertNotEqual([], os.listdir(f"{self.path}/state"))
        self.failed = 2
        tally(PLAIN._replace(user="bob", started=50.0))
        self.successResultOf(activity.stopService())
        self.assertEqual([], self.clock.getDelayedCalls())
        self.failed = 0
        again, activity = self.run_one()
        self.addCleanup(activity.stopService)
        again(PLAIN._replace(user="carol", started=2.0))
        self.assertEqual(Counters(210, 15, 2, 0), activity.counted()[1])
        self.assertEqual({"alice/laptop": Written("bob", 50.004)}, again.writes.by_repository)

    def test_not_before_it_was_read(self) -> None:
        """A stop before the file was read does not take from it what is in it."""
        tally, activity = self.run_one()
        tally(PLAIN)
        self.successResultOf(activity.stopService())
        self.pool = HeldPool()
        tally, activity = self.run_one()
        tally(PLAIN)
        self.clock.advance(KEEP_S)
        activity.stopService()
        self.pool = InlinePool()
        _, activity = self.run_one()
        self.addCleanup(activity.stopService)
        self.assertEqual(70, activity.counted()[1].received_bytes)


class CertificateTests(SynchronousTestCase):
    """L{expiry_watch}."""

    def test_threshold(self) -> None:
        """An event a day from the threshold on; without one when it has expired."""
        for left_days, ahead_days, told in ((20, 14, 0), (13, 14, 1), (20, 21, 1), (1, 0, 0), (-1, 0, 1)):
            found: list[Any] = []

            class Certificates:
                """A certificate that expires."""

                not_after = datetime.now(UTC) + timedelta(days=left_days)

            class Told:
                """Receives events."""

                @staticmethod
                def tell_now_and_then(event: Any, key: str, found: list[Any] = found) -> None:
                    """See L{resticserver.service.hooks.Events}."""
                    found.append(event)

            certificates: Any = Certificates()
            events: Any = Told()
            watch = expiry_watch(Clock(), certificates, events, ahead_days * float(DAY_S))  # type: ignore[arg-type]
            watch.startService()
            self.assertEqual(told, len(found), (left_days, ahead_days))
            watch.stopService()
