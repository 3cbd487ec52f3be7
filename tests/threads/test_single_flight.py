"""One run for all callers: sharing, waiting for the next run, cancelling, keeping, and limited waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.threads.interface import Pool
from resticserver.threads.single_flight import CachedFlight, SingleFlight, TimedFlight, ended_within


class SingleFlightTests(SynchronousTestCase):
    """L{SingleFlight}."""

    def setUp(self) -> None:
        self.flight: SingleFlight[int] = SingleFlight()
        self.runs: list[Deferred[int]] = []

    def start(self) -> Deferred[int]:
        """A run that ends when the test says so."""
        self.runs.append(Deferred())
        return self.runs[-1]

    def test_shared(self) -> None:
        """Callers that come while a run goes on share its result; one that comes later starts another."""
        waits = [self.flight.run("key", self.start) for _ in range(3)]
        self.assertEqual(1, len(self.runs))
        self.runs[0].callback(7)
        self.assertEqual([7, 7, 7], [self.successResultOf(wait) for wait in waits])
        again = self.flight.run("key", self.start)
        self.runs[1].callback(8)
        self.assertEqual(8, self.successResultOf(again))

    def test_keys(self) -> None:
        """Another key is another run."""
        first, second = self.flight.run("one", self.start), self.flight.run(("two", 2), self.start)
        self.runs[1].callback(2)
        self.assertNoResult(first)
        self.assertEqual(2, self.successResultOf(second))

    def test_not_joined(self) -> None:
        """A caller that does not join gets the next run, which begins when the current one has ended, once for all."""
        first = self.flight.run("key", self.start)
        later = [self.flight.run("key", self.start, join=False) for _ in range(2)]
        joined = self.flight.run("key", self.start)
        self.assertEqual(1, len(self.runs))
        self.runs[0].callback(1)
        self.assertEqual([1, 1], [self.successResultOf(first), self.successResultOf(joined)])
        self.assertEqual(2, len(self.runs))
        for wait in later:
            self.assertNoResult(wait)
        self.runs[1].callback(2)
        self.assertEqual([2, 2], [self.successResultOf(wait) for wait in later])

    def test_failed(self) -> None:
        """All callers get the failure, and the next one starts again."""
        waits = [self.flight.run("key", self.start) for _ in range(2)]
        self.runs[0].errback(OSError(5))
        for wait in waits:
            self.failureResultOf(wait, OSError)
        self.assertEqual(3, self.successResultOf(self.flight.run("key", lambda: succeed(3))))

    def test_cancelled(self) -> None:
        """Cancelling ends one wait; the run and the others go on."""
        waits = [self.flight.run("key", self.start) for _ in range(3)]
        waits[1].cancel()
        self.failureResultOf(waits[1], CancelledError)
        self.runs[0].callback(1)
        self.assertEqual([1, 1], [self.successResultOf(waits[number]) for number in (0, 2)])

    def test_cancelled_before_the_next_run(self) -> None:
        """A next run that is not waited for any more does not begin."""
        self.flight.run("key", self.start)
        later = self.flight.run("key", self.start, join=False)
        later.cancel()
        self.failureResultOf(later, CancelledError)
        self.runs[0].callback(1)
        self.assertEqual(1, len(self.runs))

    def test_cancelled_by_another(self) -> None:
        """One result may lead to the cancellation of another wait, and to a new run."""
        waits: list[Deferred[Any]] = [self.flight.run("key", self.start)]
        waits[0].addCallback(lambda _: waits[1].cancel()).addCallback(lambda _: self.flight.run("key", self.start))
        waits.append(self.flight.run("key", self.start))
        self.runs[0].callback(1)
        self.failureResultOf(waits[1], CancelledError)
        self.runs[1].callback(2)
        self.assertEqual(2, self.successResultOf(waits[0]))


class CachedFlightTests(SynchronousTestCase):
    """L{CachedFlight}."""

    def test_kept(self) -> None:
        """The result is kept for four times as long as it took."""
        clock = Clock()
        runs: list[Deferred[int]] = []

        async def find() -> int:
            runs.append(Deferred())
            return await runs[-1]

        flight = CachedFlight(clock, find)
        waits = [Deferred.fromCoroutine(flight.get()) for _ in range(2)]
        clock.advance(2)
        runs[0].callback(1)
        self.assertEqual([1, 1], [self.successResultOf(wait) for wait in waits])
        clock.advance(7.9)
        self.assertEqual(1, self.successResultOf(Deferred.fromCoroutine(flight.get())))
        clock.advance(0.2)
        self.assertNoResult(Deferred.fromCoroutine(flight.get()))
        self.assertEqual(2, len(runs))


class HeldPool(Pool):
    """A pool whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., Any], Deferred[Any]]] = []

    def run(self, job: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Keep a job."""
        ended: Deferred[Any] = Deferred()
        self.jobs.append((lambda: job(*args), ended))
        return ended

    def finish(self) -> None:
        """Run the oldest job."""
        job, ended = self.jobs.pop(0)
        ended.callback(job())


class TimedFlightTests(SynchronousTestCase):
    """L{TimedFlight}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pool = HeldPool()
        self.flight: TimedFlight[str] = TimedFlight(self.clock, self.pool, lambda: "found", 3.0)

    def test_found(self) -> None:
        """What is found in time is given out, and nothing stays scheduled."""
        found = Deferred.fromCoroutine(self.flight.find())
        self.pool.finish()
        self.assertEqual("found", self.successResultOf(found))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_hangs(self) -> None:
        """A disk that hangs takes one job, however many ask, and each of them waits for the limit only."""
        waits = [Deferred.fromCoroutine(self.flight.find()) for _ in range(3)]
        self.clock.advance(3)
        self.assertEqual([None] * 3, [self.successResultOf(wait) for wait in waits])
        late = Deferred.fromCoroutine(self.flight.find())
        self.assertEqual(1, len(self.pool.jobs))
        self.pool.finish()
        self.assertEqual("found", self.successResultOf(late))

    def test_cancelled(self) -> None:
        """A caller that is cancelled hears that, and not that the time is up."""
        found = Deferred.fromCoroutine(self.flight.find())
        found.cancel()
        self.failureResultOf(found, CancelledError)


class EndedWithinTests(SynchronousTestCase):
    """L{ended_within}."""

    def test_in_time_and_late(self) -> None:
        """Whether something ended in time; it goes on in any case, and its failure is raised."""
        clock = Clock()
        first: Deferred[None] = Deferred()
        second: Deferred[None] = Deferred()
        in_time = Deferred.fromCoroutine(ended_within(5, clock, first))
        late = Deferred.fromCoroutine(ended_within(5, clock, second))
        first.callback(None)
        self.assertTrue(self.successResultOf(in_time))
        clock.advance(5)
        self.assertFalse(self.successResultOf(late))
        second.callback(None)
        third: Deferred[None] = Deferred()
        failing = Deferred.fromCoroutine(ended_within(5, clock, third))
        third.errback(OSError(5))
        self.failureResultOf(failing, OSError)
        self.assertEqual([], clock.getDelayedCalls())
