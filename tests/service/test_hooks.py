"""
Events: what they look like, when they are told of, and the command that gets them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from resticserver.files import runnable
from resticserver.service import hooks
from resticserver.service.hooks import Events
from resticserver.telemetry.events import Event, EventKind

from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.waiting import PATIENCE_S
from ..support.wires import as_reactor

SNAPSHOT = Event(EventKind.SNAPSHOT, "new snapshot", "alice/laptop", "alice", {"name": "0a"}, time_s=1772366405.75)


class EventTests(SynchronousTestCase):
    """L{Event}."""

    def test_json(self) -> None:
        """One line of ASCII with what is known, and null for what is not."""
        self.assertEqual(
            {
                "event": "snapshot",
                "time": "2026-03-01T12:00:05Z",
                "message": "new snapshot",
                "repository": "alice/laptop",
                "user": "alice",
                "name": "0a",
            },
            json.loads(SNAPSHOT.as_json()),
        )
        odd = Event(EventKind.CORRUPTION, "a\nb", "\u0430/\udc80", None)
        self.assertEqual(1, odd.as_json().count(b"\n"))
        self.assertEqual(
            ("\u0430/\udc80", None), tuple(json.loads(odd.as_json())[key] for key in ("repository", "user"))
        )

    def test_over_the_wire(self) -> None:
        """Another process gets the same."""
        self.assertEqual(SNAPSHOT, Event.from_wire(**json.loads(json.dumps(SNAPSHOT.on_the_wire()))))


class Held(Events):
    """Events whose command never starts."""

    def _next(self) -> None:
        pass


def counts(told: Events) -> dict[tuple[str, ...], float]:
    """What the metrics say."""
    (family,) = told.families()
    return {sample.labels: sample.value for sample in family.samples}


class TellingTests(SynchronousTestCase):
    """L{Events} without its command."""

    def test_now_and_then(self) -> None:
        """The same again is told of once an hour, another one at once."""
        clock = Clock()
        told = Events(as_reactor(clock), ())
        certificate = Event(EventKind.CERTIFICATE, "ends")
        for key, after_s, number in (
            ("alice", 0, 1),
            ("alice", 1, 1),
            ("bob", 0, 2),
            ("alice", hooks.AGAIN_S - 2, 2),
            ("alice", 1, 3),
            ("alice", 0, 3),
        ):
            clock.advance(after_s)
            told.tell_now_and_then(certificate, key)
            self.assertEqual(number, counts(told)["certificate-expiring", "told"], (key, after_s))

    def test_refusals(self) -> None:
        """
        A refused upload is told of once for each user, repository and reason; the others are counted and nothing else. Who
        observes, and the refusals, hear of all.
        """
        told = Events(as_reactor(Clock()), ())
        heard: list[Any] = []
        told.observe(heard.append)
        with capturedLogs() as logged:
            for user, repository, reason in (
                ("alice", "a", "disk"),
                ("alice", "a", "disk"),
                ("alice", "a", "min-free"),
                ("alice", "b", "disk"),
                ("bob", "a", "disk"),
                (None, "a", "disk"),
                (None, "a", "disk"),
            ):
                told.tell(Event(EventKind.DISK_FULL, "refused", repository, user, {"reason": reason, "why": "full"}))
        self.assertEqual(["warn"] * 5, [event["log_level"].name for event in logged])
        self.assertEqual({("disk-full", "told"): 5, ("disk-full", "repeated"): 2}, counts(told))
        self.assertEqual(7, len(heard))
        self.assertEqual((6, 1), (told.refusals.totals["disk"], told.refusals.totals["min-free"]))

    def test_many_keys(self) -> None:
        """However many things are told of, what is remembered of them has a bound."""
        told = Events(as_reactor(Clock()), ())
        for number in range(hooks._MOST_TOLD + 10):
            told.tell_now_and_then(SNAPSHOT, str(number))
        self.assertLessEqual(len(told._told), hooks._MOST_TOLD)

    def test_log(self) -> None:
        """Bad news is a warning, a backup is news, all else is only for those who look for it."""
        told = Events(as_reactor(Clock()), ())
        with capturedLogs() as logged:
            for kind in EventKind:
                told.tell(Event(kind, kind.value, repository=kind.value))
        levels = {formatEvent(event): event["log_level"].name for event in logged}
        self.assertEqual(
            {
                "snapshot": "info",
                "repository-created": "debug",
                "repository-deleted": "debug",
                "quota-reached": "warn",
                "disk-full": "warn",
                "upload-refused": "warn",
                "corruption": "debug",
                "lockout": "debug",
                "certificate-expiring": "warn",
            },
            levels,
        )

    def test_bounded(self) -> None:
        """What comes more quickly than the command takes it: the oldest is given up, and that is counted."""
        told = Held(as_reactor(Clock()), ("true",))
        told.startService()
        for number in range(hooks.MOST_WAITING + 3):
            told.tell(Event(EventKind.SNAPSHOT, str(number)))
        self.assertEqual("3", told._waiting[0].message)
        self.assertEqual(3, counts(told)["snapshot", "dropped"])

    def test_runnable(self) -> None:
        """A program by its path or by PATH; no directory, and nothing that may not be run."""
        file = Path(self.mktemp())
        file.touch(0o600)
        for command, there in (
            ("cat", True),
            (sys.executable, True),
            ("no-such-program", False),
            ("/", False),
            (str(file.absolute()), False),
        ):
            self.assertEqual(there, runnable((command,)), command)


class Ahead:
    """The monotonic clock, and how many seconds it is ahead."""

    def __init__(self) -> None:
        self.by_s = 0.0

    def monotonic(self) -> float:
        """Its time."""
        return time.monotonic() + self.by_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


async def gone(pid: int) -> bool:
    """Whether a process ends soon; one that nobody has waited for counts."""
    for _ in range(int(PATIENCE_S / 0.01)):
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        await deferLater(reactor, 0.01, lambda: None)
    return False


@process_test
class CommandTests(TestCase):
    """L{Events} with real commands."""

    timeout = 2 * PATIENCE_S

    def setUp(self) -> None:
        self.output = scratch_directory(self) / "output"

    async def written(self, lines: int) -> None:
        """Wait until the script has written so many lines."""
        while not self.output.exists() or self.output.read_text().count("\n") < lines:
            await deferLater(reactor, 0.01, lambda: None)

    def started(self, script: str) -> Events:
        """Events that are told to a shell script, which finds C{$output}."""
        told = Events(as_reactor(reactor), ("/bin/sh", "-c", f"output={shlex.quote(str(self.output))}; {script}"))
        told.startService()
        self.addCleanup(lambda: told.stopService() if told.running else None)
        return told

    async def until(self, told: Events, outcome: str, number: int = 1) -> None:
        """Wait until so many have come to this end."""
        while sum(value for (_, how), value in counts(told).items() if how == outcome) < number:
            await deferLater(reactor, 0.01, lambda: None)

    def test_delivered(self) -> Deferred[None]:
        """Each event is a line on the command's input, one command after the other, in order."""

        async def test() -> None:
            told = self.started("cat >> $output")
            for number in range(5):
                told.tell(Event(EventKind.SNAPSHOT, str(number)))
            await self.until(told, "delivered", 5)
            lines = [json.loads(line)["message"] for line in self.output.read_text().splitlines()]
            self.assertEqual(list("01234"), lines)

        return Deferred.fromCoroutine(test())

    def test_fails(self) -> Deferred[None]:
        """A command that fails is named with its last words, escaped, and the next event comes to its own."""

        async def test() -> None:
            told = self.started("cat >/dev/null; printf 'first\\n\\033[31mlast\\n' >&2; exit 3")
            with capturedLogs() as logged:
                told.tell(SNAPSHOT)
                told.tell(SNAPSHOT)
                await self.until(told, "failed", 2)
            warnings = [formatEvent(event) for event in logged if event["log_level"].name == "warn"]
            self.assertEqual(2, len(warnings))
            self.assertIn("exit code 3", warnings[0])
            self.assertTrue(warnings[0].endswith(": \\x1b[31mlast"), warnings[0])

        return Deferred.fromCoroutine(test())

    def test_hangs(self) -> Deferred[None]:
        """A command that hangs is ended when its time is up, and with it what it has started."""
        ahead = Ahead()
        self.patch(hooks, "time", ahead)

        async def test() -> None:
            told = self.started("echo $$ > $output; sleep 600 & echo $! >> $output; wait")
            told.tell(SNAPSHOT)
            await self.written(2)
            ahead.by_s += hooks.TIME_LIMIT_S
            await self.until(told, "failed")
            for pid in self.output.read_text().split():
                self.assertTrue(await gone(int(pid)), pid)

        return Deferred.fromCoroutine(test())

    def test_ignores_its_end(self) -> Deferred[None]:
        """One that ignores SIGTERM gets SIGKILL."""
        ahead = Ahead()
        self.patch(hooks, "time", ahead)
        self.patch(hooks, "GRACE_S", 0.3)

        async def test() -> None:
            told = self.started("trap '' TERM; echo $$ > $output; while :; do sleep 0.1; done")
            told.tell(SNAPSHOT)
            await self.written(1)
            ahead.by_s += hooks.TIME_LIMIT_S
            await self.until(told, "failed")
            self.assertTrue(await gone(int(self.output.read_text())))

        return Deferred.fromCoroutine(test())

    def test_many_fail(self) -> Deferred[None]:
        """
        A long queue whose command is gone meanwhile: each fails, one after the other, and whoever tells of the next event
        does not notice.
        """
        command = self.output.with_name("command")
        self.output = command.with_name("command.output")
        command.write_text("#!/bin/sh\necho > $0.output; while [ -e $0 ]; do sleep 0.05; done\n")
        command.chmod(0o700)

        async def test() -> None:
            told = Events(as_reactor(reactor), (str(command),))
            told.startService()
            self.addCleanup(told.stopService)
            for _ in range(700):
                told.tell(SNAPSHOT)
            await self.written(1)
            command.unlink()
            with capturedLogs():
                await self.until(told, "failed", 699)
            self.assertEqual(1, counts(told)["snapshot", "delivered"])

        return Deferred.fromCoroutine(test())

    def test_told_at_the_end(self) -> Deferred[None]:
        """What waits when the server stops is told, as long as that is quick."""
        self.patch(hooks, "STOP_S", PATIENCE_S)

        async def test() -> None:
            told = self.started("cat >> $output")
            for _ in range(20):
                told.tell(SNAPSHOT)
            await told.stopService()
            self.assertEqual(20, len(self.output.read_text().splitlines()))
            self.assertEqual(20, counts(told)["snapshot", "delivered"])

        return Deferred.fromCoroutine(test())

    def test_environment(self) -> Deferred[None]:
        """The command has the server's environment, without what is between the server and whoever started it."""
        for name in ("REST_SERVER_LOG", "NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "OF_THE_TEST"):
            self.patch(os, "environ", os.environ | {name: "x"})

        async def test() -> None:
            told = self.started("env > $output")
            told.tell(SNAPSHOT)
            await self.until(told, "delivered")
            lines = self.output.read_text().splitlines()
            self.assertIn("OF_THE_TEST=x", lines)
            for name in ("REST_SERVER_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_"):
                self.assertEqual([], [line for line in lines if line.startswith(name)])

        return Deferred.fromCoroutine(test())

    def test_takes_no_input(self) -> Deferred[None]:
        """A command that does not read what it gets, or not all of it, is none that fails."""

        async def test() -> None:
            told = self.started("exec <&-; exit 0")
            big: dict[str, Any] = {"filling": "x" * 1_000_000}
            told.tell(Event(EventKind.SNAPSHOT, "big", details=big))
            await self.until(told, "delivered")

        return Deferred.fromCoroutine(test())

    def test_not_there(self) -> Deferred[None]:
        """A program that is gone since the start is one that fails."""

        async def test() -> None:
            told = Events(as_reactor(reactor), (str(self.output),))
            told.startService()
            told.tell(SNAPSHOT)
            await self.until(told, "failed")

        return Deferred.fromCoroutine(test())

    def test_stop(self) -> Deferred[None]:
        """At the server's end the running command has a little time, is ended then, and no other begins; that is said."""
        self.patch(hooks, "STOP_S", 0.5)

        async def test() -> None:
            told = self.started("echo $$ > $output; sleep 600")
            for _ in range(3):
                told.tell(SNAPSHOT)
            await self.written(1)
            with capturedLogs() as logged:
                await told.stopService()
            self.assertTrue(await gone(int(self.output.read_text())))
            self.assertEqual((1, 2), tuple(counts(told)["snapshot", outcome] for outcome in ("failed", "dropped")))
            self.assertIn("2 events were not passed", formatEvent(logged[-1]))

        return Deferred.fromCoroutine(test())
