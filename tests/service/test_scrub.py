"""
L{resticserver.service.scrub}: when it runs, how it gives way, what it reports and shows. Time is a clock, threads are inline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Unavailable
from resticserver.service import scrub as scrub_module
from resticserver.service.scrub import (
    LEAST_PAUSE_S,
    LOOK_S,
    MOST_TOLD,
    START_S,
    SURVEY_S,
    TRY_AGAIN_S,
    YIELD_LOOK_S,
    Scrub,
    ScrubRules,
)
from resticserver.storage.scrub_survey import DUE_PART, Plan, Survey
from resticserver.storage.scrubbed_files import ScrubbedFiles
from resticserver.telemetry.events import Event, EventKind
from resticserver.telemetry.metrics import MetricType

from ..support.memory import HeldPool, InlinePool
from ..support.scrub import DAY_S, REPOSITORY, ScrubBench
from ..support.wires import as_reactor

MONTH_S = int(30 * DAY_S)
RATE = 20 << 20


class SimpleReactor(Clock):
    """A clock; calls from threads come at once, for all threads are inline."""

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it."""
        function(*args)


class ScrubTests(SynchronousTestCase):
    """L{Scrub}."""

    pool: Any

    def setUp(self) -> None:
        self.bench = ScrubBench(self)
        self.start_s = self.bench.now_s
        self.reactor = SimpleReactor()
        self.events: list[Event] = []
        self.in_flight = 0
        self.pool = InlinePool()
        self.runs = 0
        self.patch(scrub_module, "_with_low_priority", lambda job, *args: job(*args))

    def scrub(self, interval_s: int = MONTH_S, rate_bytes: int = 0) -> Scrub:
        """A scrub that has been started."""
        scrub = Scrub(
            as_reactor(self.reactor),
            ScrubRules(interval_s, rate_bytes),
            self.survey,
            self.pool,
            self.events.append,
            lambda: self.in_flight,
        )
        scrub.startService()
        self.addCleanup(self.stop, scrub)
        return scrub

    def survey(self, observer: Any) -> Survey:
        """A survey with the time of the clock, which counts the runs."""
        bench = self.bench
        survey = Survey(
            ScrubbedFiles(bench.store, bench.store.counting),
            bench.state,
            bench.deletions,
            observer,
            lambda: self.start_s + self.reactor.seconds(),
        )
        make = survey.make

        def counted(*arguments: Any) -> Any:
            self.runs += 1
            return make(*arguments)

        self.patch(survey, "make", counted)
        return survey

    def stop(self, scrub: Scrub) -> None:
        """Stop it, if it runs."""
        if not scrub.running:
            return
        stopped = ensureDeferred(scrub.stopService())
        if isinstance(self.pool, HeldPool):
            self.pool.release(10)
        self.successResultOf(stopped)

    def advance(self, seconds: float, step_s: float = SURVEY_S / 2) -> None:
        """Let time pass."""
        while seconds > 0:
            self.reactor.advance(min(seconds, step_s))
            seconds -= step_s

    def told(self) -> list[tuple[str, str]]:
        """The problems that were told, by kind and name."""
        return [(event.details["problem"], event.details["name"]) for event in self.events]

    def test_first_run(self) -> None:
        """Soon after the start; what it finds is told, and shown with its id."""
        names = self.bench.put(*range(20))
        self.bench.flip(names[3])
        scrub = self.scrub()
        self.assertEqual([], self.events)
        self.reactor.advance(START_S)
        (event,) = self.events
        self.assertIs(EventKind.CORRUPTION, event.kind)
        self.assertEqual("alice/laptop", event.repository)
        self.assertTrue(event.of_scrub)
        self.assertIn(f"a file of repository alice/laptop is damaged: data {names[3]}: its 1000 bytes", event.message)
        self.reactor.advance(0)
        self.assertEqual({"alice/laptop": {"damaged": 1}}, scrub.results.counts)
        (problem,) = scrub.results.named["alice/laptop"]
        self.assertEqual(("data", names[3], "damaged"), problem[:3])
        self.assertTrue(scrub.has_problem("alice/laptop", "data", names[3]))
        self.assertFalse(scrub.has_problem("alice/laptop", "data", names[4]))

    def test_again_when_it_is_due(self) -> None:
        """Everything once in the interval, new objects with each survey; a problem is told once."""
        names = self.bench.put(*range(20))
        self.bench.flip(names[3])
        self.scrub()
        self.reactor.advance(START_S)
        (new,) = self.bench.put(100)
        self.bench.flip(new)
        self.advance(SURVEY_S + 1)
        self.assertEqual([("damaged", names[3]), ("damaged", new)], self.told())
        self.bench.flip(names[5])
        self.advance(0.8 * MONTH_S)
        self.assertEqual(2, len(self.events))
        self.advance(DUE_PART * MONTH_S - 0.8 * MONTH_S + SURVEY_S)
        self.assertEqual([("damaged", names[3]), ("damaged", new), ("damaged", names[5])], self.told())

    def test_short_interval(self) -> None:
        """All of it every few seconds."""
        (name,) = self.bench.put(1)
        self.scrub(interval_s=10)
        self.advance(3, 0.5)
        self.bench.flip(name)
        self.advance(10, 0.5)
        self.assertEqual([("damaged", name)], self.told())

    def test_off(self) -> None:
        """Without an interval nothing is scrubbed, but what the command has found is shown."""
        (name,) = self.bench.put(1)
        self.bench.flip(name)
        scrub = self.scrub(interval_s=0)
        self.advance(2 * MONTH_S, 10 * DAY_S)
        self.assertEqual(0, self.runs)
        self.assertIsNone(scrub.status())
        self.assertEqual([], list(scrub.families()))
        self.bench.run()
        self.advance(LOOK_S, LOOK_S)
        self.assertEqual({"alice/laptop": {"damaged": 1}}, scrub.results.counts)
        status = scrub.status()
        assert status is not None
        self.assertEqual(self.bench.now_s, status.last_complete_s)
        self.bench.put(1)
        self.advance(2 * LOOK_S, LOOK_S)
        self.assertEqual({}, scrub.results.counts)

    def test_gives_way(self) -> None:
        """While clients transfer it reads only as much as the interval needs, and a moment later at its rate again."""
        self.bench.put(1, length=10_000_000)
        self.pool = HeldPool()
        scrub = self.scrub(interval_s=100, rate_bytes=RATE)
        self.reactor.advance(START_S)
        self.pool.release()  # the survey, and a look
        self.assertIsNotNone(scrub.progress)
        self.reactor.advance(YIELD_LOOK_S)
        self.assertEqual(RATE, scrub._limit.rate)
        self.in_flight = 1
        self.reactor.advance(YIELD_LOOK_S)
        self.assertEqual(10_000_008 / (DUE_PART * 100), scrub._limit.rate)
        self.in_flight = 0
        self.reactor.advance(YIELD_LOOK_S)
        self.assertLess(scrub._limit.rate or 0, RATE)
        for _ in range(8):
            self.reactor.advance(YIELD_LOOK_S)
        self.assertEqual(RATE, scrub._limit.rate)
        self.pool.release(5)

    def test_unlimited(self) -> None:
        """Without a rate there is none, but for transfers."""
        self.pool = HeldPool()
        scrub = self.scrub()
        self.reactor.advance(START_S)
        self.pool.release()
        self.reactor.advance(YIELD_LOOK_S)
        self.assertIsNone(scrub._limit.rate)
        self.in_flight = 1
        self.reactor.advance(YIELD_LOOK_S)
        self.assertEqual(64 << 10, scrub._limit.rate)
        self.pool.release(5)

    def test_progress(self) -> None:
        """What a status page shows of a pass, before, while and after."""
        self.bench.put(*range(5))
        self.pool = HeldPool()
        scrub = self.scrub()
        status = scrub.status()
        assert status is not None
        self.assertEqual((None, None), (status.progress, status.last_complete_s))
        self.reactor.advance(START_S)
        self.pool.release()
        status = scrub.status()
        assert status is not None
        self.assertEqual(0.0, status.progress)
        for _ in range(5):
            self.pool.release()
            self.reactor.advance(0)
        status = scrub.status()
        assert status is not None
        self.assertIsNone(status.progress)
        self.assertEqual(self.start_s + START_S, status.last_complete_s)

    def test_metrics(self) -> None:
        """Objects, bytes, problems by kind, the end of the last pass."""
        names = self.bench.put(*range(5))
        self.bench.flip(names[0])
        scrub = self.scrub()
        self.reactor.advance(START_S)
        self.reactor.advance(0)
        families = {family.name: family for family in scrub.families()}
        self.assertEqual(5008, families["rest_server_scrub_bytes"].samples[0].value)
        self.assertEqual(6, families["rest_server_scrub_objects"].samples[0].value)
        self.assertIs(MetricType.COUNTER, families["rest_server_scrub_bytes"].type)
        problems = {sample.labels: sample.value for sample in families["rest_server_scrub_problems"].samples}
        self.assertEqual(1, problems["alice", "alice/laptop", "damaged"])
        self.assertEqual(0, problems["alice", "alice/laptop", "missing"])
        ended = families["rest_server_scrub_last_complete_timestamp_seconds"].samples[0].value
        self.assertEqual(self.start_s + START_S, ended)
        self.assertEqual(1, families["rest_server_scrub_progress_ratio"].samples[0].value)
        self.assertEqual(0, families["rest_server_scrub_skipped_directories"].samples[0].value)

    def test_healed(self) -> None:
        """A verified upload that replaces a damaged file ends its problem at once; a restored file does within seconds."""
        names = self.bench.put(1, 2)
        for name in names:
            self.bench.flip(name)
        scrub = self.scrub()
        self.reactor.advance(START_S)
        self.reactor.advance(0)
        self.assertEqual({"damaged": 2}, scrub.results.counts["alice/laptop"])
        self.bench.put(1)
        scrub.take(Event(EventKind.CORRUPTION, "replaced", "alice/laptop", details={"type": "data", "name": names[0]}))
        self.reactor.advance(0)
        self.assertEqual({"damaged": 1}, scrub.results.counts["alice/laptop"])
        self.bench.put(2)
        self.reactor.advance(LOOK_S)
        self.reactor.advance(0)
        self.assertEqual({}, scrub.results.counts)

    def test_many_problems(self) -> None:
        """All are kept, and not all are told one by one."""
        names = self.bench.put(*range(MOST_TOLD + 20))
        for name in names:
            self.bench.flip(name)
        scrub = self.scrub()
        self.reactor.advance(START_S)
        self.reactor.advance(0)
        self.assertEqual(MOST_TOLD, len(self.events))
        self.assertEqual({"damaged": MOST_TOLD + 20}, scrub.results.counts["alice/laptop"])
        self.assertEqual(100, len(scrub.results.named["alice/laptop"]))

    def test_volume_is_gone(self) -> None:
        """It waits, and goes on when the volume is back."""
        (name,) = self.bench.put(1)
        self.bench.flip(name)

        def gone() -> None:
            raise Unavailable()

        patch = self.patch(self.bench.store.volume, "check", gone)
        self.scrub()
        self.advance(START_S + 2 * TRY_AGAIN_S, TRY_AGAIN_S)
        self.assertEqual([], self.events)
        patch.restore()
        self.advance(TRY_AGAIN_S, TRY_AGAIN_S)
        self.assertEqual([("damaged", name)], self.told())

    def test_errors(self) -> None:
        """A fault ends the run, is logged, and does not end the scrub."""
        (name,) = self.bench.put(1)
        self.bench.flip(name)

        def broken() -> None:
            raise OSError(24, "Too many open files")

        patch = self.patch(self.bench.store.counting, "repositories", broken)
        self.scrub()
        self.advance(START_S)
        patch.restore()
        self.advance(TRY_AGAIN_S, TRY_AGAIN_S)
        self.assertEqual([("damaged", name)], self.told())

    def test_nothing_is_stored(self) -> None:
        """An empty server does not look for repositories all the time."""
        self.bench.store.delete_repository(REPOSITORY)
        self.scrub()
        self.advance(START_S)
        runs = self.runs
        self.advance(SURVEY_S - 1, LEAST_PAUSE_S * 1000)
        self.assertEqual(runs, self.runs)
        self.advance(2, 1)
        self.assertEqual(runs + 1, self.runs)

    def test_unreadable_directory(self) -> None:
        """It is shown, and not tried all the time."""
        (name,) = self.bench.put(1)
        self.bench.run(Plan(began_s=self.bench.now_s + 1))
        folder = self.bench.file(name).parent
        folder.rename(folder.with_name("elsewhere"))
        folder.write_bytes(b"")
        scrub = self.scrub(interval_s=1000)
        self.advance(2000, 10)
        self.assertLess(self.runs, 12)
        status = scrub.status()
        assert status is not None
        self.assertEqual(1, status.skipped)
        self.assertEqual(["the scrub cannot read 1 directory"], [words for _, words in status.concerns(self.start_s)])

    def test_stop(self) -> None:
        """The run ends, and its place is kept."""
        self.bench.put(*range(5))
        self.pool = HeldPool()
        scrub = self.scrub()
        self.reactor.advance(START_S)
        self.pool.release()
        stopped = ensureDeferred(scrub.stopService())
        self.assertNoResult(stopped)
        self.pool.release(10)
        self.successResultOf(stopped)
        self.assertEqual([], self.reactor.getDelayedCalls())
        self.assertNotIn("pass_ended", self.bench.state.facts())
