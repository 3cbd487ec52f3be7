"""
The scrub of the server: reads and verifies every stored object within C{--scrub-interval}, at C{--scrub-rate} at most, and
reports what it finds. Also shows what C{rest-server scrub} has found, with and without an interval.

Runs in the process that has the quota ledger, in threads of its own of the lowest priority. While clients transfer it reads only
as much as it needs to keep the interval.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import Unavailable
from ..process.cores import usable_cores
from ..process.idle import idle_disk, idle_processor
from ..storage.object_check import KINDS
from ..storage.scrub import Ended, Progress, ScrubRun
from ..storage.scrub_state import MOST_LOOKED_AT, MOST_NAMED, Problem, ScrubUnavailable
from ..storage.scrub_survey import DUE_PART, Plan, Survey
from ..storage.scrubbed import REMOTE_READERS
from ..telemetry.events import Event, EventKind, Tells
from ..telemetry.metrics import Family, MetricType, Sample, gauge
from ..telemetry.status import ObjectProblem, ScrubStatus
from ..threads.interface import Pool
from ..threads.rate_limit import LEAST_STEP_BYTES, RateLimit, Stopped
from ..threads.reactor import IReactor

#: Threads that read and hash: hashing releases the interpreter's lock.
THREADS = usable_cores()

#: The first run begins so long after the start.
START_S = 1.0
#: All directories are looked at anew after this time, for new objects; with short intervals after a part of the interval.
SURVEY_S = 6 * 3600.0
_SURVEY_PART = 0.25
#: With an object store a look is a list of everything, which costs money: it is made once an hour at most, and with long
#: intervals more seldom.
REMOTE_SURVEY_S = 3600.0
_REMOTE_SURVEY_PART = 1 / 30
#: Within so long after a survey new objects are checked, even if clients transfer all the time.
NEW_S = 12 * 3600.0
#: The pause after an error, and the shortest one between two runs.
TRY_AGAIN_S = 60.0
LEAST_PAUSE_S = 0.5
#: How often to look whether problems have ended, or were found by a command.
LOOK_S = 10.0
#: With an object store each problem costs a request then. Those that an upload has replaced are looked at at once all the same.
REMOTE_LOOK_S = 300.0
#: How often to look for transfers; they count as under way for so long after they were seen.
YIELD_LOOK_S = 0.25
_BUSY_S = 1.0

#: The most problems that are reported one by one in a run.
MOST_TOLD = 100

T = TypeVar("T")

_log = Logger()


@dataclass(frozen=True)
class ScrubRules:
    """
    @ivar interval_s: within how many seconds everything is checked again; 0 for never.
    @ivar rate_bytes: bytes a second; 0 for no limit.
    @ivar is_remote: whether the objects lie on another machine, so that each look costs requests.
    """

    interval_s: float = 0
    rate_bytes: int = 0
    is_remote: bool = False

    @property
    def survey_s(self) -> float:
        """How often all directories are looked at."""
        longest_s = max(REMOTE_SURVEY_S, self.interval_s * _REMOTE_SURVEY_PART) if self.is_remote else SURVEY_S
        return max(LEAST_PAUSE_S, min(longest_s, self.interval_s * _SURVEY_PART))

    @property
    def threads(self) -> int:
        """How many threads read and hash."""
        return max(THREADS, REMOTE_READERS) if self.is_remote else THREADS


@dataclass(frozen=True)
class Results:
    """
    What is known of problems and passes.

    @ivar counts: how many problems there are, by repository and kind.
    @ivar named: the first problems of each repository.
    @ivar first: those that are looked at again.
    @ivar repositories: all that the scrub knows.
    """

    counts: dict[str, dict[str, int]]
    named: dict[str, tuple[ObjectProblem, ...]]
    last_complete_s: float | None = None
    first: list[Problem] = field(default_factory=list)
    repositories: frozenset[str] = frozenset()


_NOTHING = Results({}, {})


class Scrub(Service):
    """
    The scrub. All methods must be called in the reactor's thread, except those of L{resticserver.storage.scrub_survey.Observer}.

    @param make_survey: makes the survey, which reports to an observer.
    @param pool: of L{ScrubRules.threads} threads and one more.
    @param tell: receives a C{corruption} event for each problem.
    @param requests_in_flight: how many requests are being served.
    """

    def __init__(
        self,
        reactor: IReactor,
        rules: ScrubRules,
        make_survey: Callable[[Scrub], Survey],
        pool: Pool,
        tell: Tells,
        requests_in_flight: Callable[[], int],
    ) -> None:
        self._reactor = reactor
        self._rules = rules
        self._pool = pool
        self._tell = tell
        self._requests_in_flight = requests_in_flight
        self._survey = make_survey(self)
        self._state = self._survey.state
        self._limit = self._look_limit = RateLimit()
        self._run: ScrubRun | None = None
        self._pause: tuple[IDelayedCall, Deferred[None]] | None = None
        self._ended: Deferred[None] | None = None
        self._looking: Deferred[None] | None = None
        self._look_call = LoopingCall(self.look)
        self._yield_call = LoopingCall(self._give_way)
        self._look_call.clock = self._yield_call.clock = reactor
        self._busy_until_s = float("-inf")
        #: Whether the results are to be loaded whatever the file's times say.
        self._look_wanted = False
        #: When all problems were looked at last, and which objects were replaced since.
        self._all_looked_at_s = float("-inf")
        self._replaced: set[tuple[str, str, str]] = set()
        self._told = 0
        self._untold = 0
        #: The file as it was when the results were loaded.
        self._stamp: object = None
        self._results = _NOTHING
        self._oldest_s: float | None = None
        self._skipped = 0
        self._read_bytes = self._objects = 0
        self._run_began_s = 0.0
        self._run_began_bytes = 0
        self.setName("scrub")

    # --- start and stop

    def startService(self) -> None:
        """Begin to look at the results, and with an interval to scrub."""
        super().startService()
        self._limit, self._look_limit = RateLimit(self._rate()), RateLimit()
        self._look_call.start(LOOK_S, now=True)
        if self._rules.interval_s:
            self._yield_call.start(YIELD_LOOK_S, now=False)
            self._ended = Deferred.fromCoroutine(self._loop())
            self._ended.addErrback(lambda failure: _log.failure("the scrub has ended", failure))

    async def stopService(self) -> None:
        """End the run under way; what it has done is kept."""
        super().stopService()
        self._limit.stop()
        self._look_limit.stop()
        self._look_call.stop()
        if self._yield_call.running:
            self._yield_call.stop()
        if self._pause is not None:
            call, waiting = self._pause
            call.cancel()
            self._pause = None
            waiting.callback(None)
        if self._ended is not None:
            await self._ended
        if self._looking is not None:
            await self._looking
        await self._pool.run(self._state.close)

    # --- runs

    async def _loop(self) -> None:
        pause_s = START_S
        while True:
            await self._sleep(pause_s)
            if not self.running:
                return
            try:
                pause_s = self._pause_after(await self._run_once())
            except Stopped:
                return
            except (Unavailable, ScrubUnavailable) as error:
                _log.debug("the scrub waits: {error}", error=error)
                pause_s = TRY_AGAIN_S
            except Exception as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                _log.error("the scrub was interrupted and will be resumed: {error}", error=reason)
                pause_s = TRY_AGAIN_S

    async def _run_once(self) -> Ended:
        rules = self._rules
        look_s = rules.survey_s if rules.is_remote else 0.0
        plan = Plan(interval_s=rules.interval_s, lasts_s=rules.survey_s, look_s=look_s)
        run = ScrubRun(self._survey, plan, self._limit)
        self._told = self._untold = 0
        await self._pool.run(_with_low_priority, run.survey)
        surveyed = run.surveyed
        self._oldest_s, self._skipped = surveyed.oldest_s, len(surveyed.skipped)
        self._run_began_s, self._run_began_bytes = self._reactor_s(), surveyed.done_bytes
        self._run = run
        try:
            if surveyed.tasks:
                # All of them end before the run does: a thread may still read.
                threads = [self._pool.run(_with_low_priority, run.work) for _ in range(rules.threads)]
                for success, result in await DeferredList(threads, consumeErrors=True):
                    if not success and isinstance(result, Failure):
                        result.raiseException()
            return await self._pool.run(run.finish)
        finally:
            self._run = None
            self._skipped = len(surveyed.skipped)
            self._read_bytes += run.progress.read_bytes
            self._objects += run.progress.objects
            if self._untold:
                words = "{number} more stored objects have problems; rest-server scrub and the status page show them"
                _log.warn(words, number=self._untold)
            self._look_soon()

    def _pause_after(self, ended: Ended) -> float:
        if not ended.complete:
            return LEAST_PAUSE_S
        pause_s = self._rules.survey_s
        if ended.next_s is not None:
            pause_s = min(pause_s, ended.next_s - self._survey.now_s())
        # A pass that cannot be completed is tried again with the next survey.
        return max(LEAST_PAUSE_S if not self._skipped else self._rules.survey_s, pause_s)

    async def _sleep(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()

        def wake() -> None:
            self._pause = None
            waiting.callback(None)

        if self.running:
            self._pause = (self._reactor.callLater(seconds, wake), waiting)
            await waiting

    # --- rate

    def _rate(self) -> float | None:
        return float(self._rules.rate_bytes) or None

    def _give_way(self) -> None:
        """While clients transfer, read only as much as is needed to keep the interval."""
        run = self._run
        if run is None:
            return
        now_s = self._reactor_s()
        if self._requests_in_flight():
            self._busy_until_s = now_s + _BUSY_S
        rate = self._rate()
        if now_s < self._busy_until_s:
            needed = run.progress.total_bytes / (DUE_PART * self._rules.interval_s)
            needed = max(needed, run.surveyed.new_bytes / NEW_S, float(LEAST_STEP_BYTES))
            rate = needed if rate is None else min(rate, needed)
        self._limit.rate = rate

    def _reactor_s(self) -> float:
        return float(self._reactor.seconds())

    # --- what is found

    def found(self, problem: Problem) -> None:
        """An object has a problem. Called in a thread of the pool."""
        self._reactor.callFromThread(self._found, problem)

    def over(self, problem: Problem) -> None:
        """A problem has ended. Called in a thread of the pool."""
        self._reactor.callFromThread(self._over, problem)

    def _found(self, problem: Problem) -> None:
        self._look_soon()
        if self._told >= MOST_TOLD:
            self._untold += 1
            return
        self._told += 1
        self._tell(problem_event(problem))

    def _over(self, problem: Problem) -> None:
        self._look_soon()
        _log.info(
            "a file of repository {repository} is not {kind} any more: {type} {name}",
            repository=_shown(problem),
            kind=problem.kind,
            type=problem.type,
            name=problem.name,
        )

    def take(self, event: Event) -> None:
        """An event: a verified upload has replaced a damaged file, which ends its problem."""
        if event.kind is EventKind.CORRUPTION and not event.in_place and not event.of_scrub:
            if self._rules.is_remote and self.running:
                self._replaced.add((event.repository or "", event.details["type"], event.details["name"]))
            self._look_soon()

    def has_problem(self, repository: str, object_type: str, name: str) -> bool:
        """Whether an object is among the problems that are shown."""
        return any((one.type, one.name) == (object_type, name) for one in self._results.named.get(repository, ()))

    # --- results

    def _look_soon(self) -> None:
        """Load the results anew, after what is being done now."""
        if not self._look_wanted and self.running:
            self._look_wanted = True
            self._reactor.callLater(0, self._look_now)

    def _look_now(self) -> None:
        if self.running and self._looking is None:
            self.look()

    def look(self) -> Deferred[None] | None:
        """Look whether problems have ended, and what is stored. Called at intervals."""
        if self._looking is not None:
            return None
        before = None if self._look_wanted else self._stamp
        self._look_wanted = False
        looking = self._looking = Deferred()
        due = self._due()
        self._pool.run(_with_low_priority, self._look, before, due).addCallbacks(self._looked, self._not_looked)
        return looking

    def _due(self) -> list[Problem]:
        """The problems that are to be looked at now."""
        first, now_s = self._results.first, self._reactor_s()
        replaced, self._replaced = self._replaced, set()
        if not self._rules.is_remote:
            return first
        if now_s - self._all_looked_at_s >= REMOTE_LOOK_S:
            self._all_looked_at_s = now_s
            return first
        return [one for one in first if ("/".join(one.repository), one.type, one.name) in replaced]

    def _look(self, before: object, due: list[Problem]) -> tuple[object, Results] | None:
        """In the pool: the results, if they have changed."""
        state = self._state
        try:
            if state.lasts and not os.path.exists(state.path):
                return None if before == () else ((), _NOTHING)
            if due:
                self._survey.look_again(due, self._look_limit)
            stamp = state.stamp()
            if stamp == before and state.lasts:
                return None
            facts = state.facts()
            ended = facts.get("pass_ended")
            counts: dict[str, dict[str, int]] = {}
            for one in state.problem_counts():
                counts.setdefault("/".join(one.repository), {})[one.kind] = one.number
            named = {}
            for repository in {one.repository for one in state.problem_counts()}:
                named["/".join(repository)] = tuple(
                    ObjectProblem(one.type, one.name, one.kind, one.since_s, one.reason)
                    for one in state.problems(repository, most=MOST_NAMED)
                )
            first = state.problems(most=MOST_LOOKED_AT)
            known = frozenset(map("/".join, state.repositories()))
            results = Results(counts, named, None if ended is None else float(ended), first, known)
            return stamp, results
        finally:
            state.close_if_idle()

    def _looked(self, found: tuple[object, Results] | None) -> None:
        if found is not None:
            self._stamp, self._results = found
        self._look_ended()

    def _not_looked(self, failure: Failure) -> None:
        if not failure.check(Stopped, Unavailable, ScrubUnavailable):
            _log.failure("could not look at the problems that the scrub has found", failure)
        self._look_ended()

    def _look_ended(self) -> None:
        looking, self._looking = self._looking, None
        if self._look_wanted:
            self._reactor.callLater(0, self._look_now)
        if looking is not None:
            looking.callback(None)

    # --- what is shown

    @property
    def progress(self) -> Progress | None:
        """How far the run under way is; C{None} if there is none."""
        return self._run.progress if self._run is not None else None

    @property
    def results(self) -> Results:
        """The problems, as of the last look."""
        return self._results

    def status(self) -> ScrubStatus | None:
        """The scrub on the status page; C{None} if there never was one."""
        rules, results, run = self._rules, self._results, self._run
        if not rules.interval_s and results == _NOTHING:
            return None
        part = left_s = None
        if run is not None and run.surveyed.pass_began_s is not None:
            progress = run.progress
            part = progress.part
            took_s = self._reactor_s() - self._run_began_s
            done = progress.done_bytes - self._run_began_bytes
            if done and took_s:
                left_s = round((progress.total_bytes - progress.done_bytes) / done * took_s)
        return ScrubStatus(rules.interval_s, part, left_s, results.last_complete_s, self._oldest_s, self._skipped)

    def families(self) -> Iterator[Family]:
        """The metrics."""
        status, results, progress = self.status(), self._results, self.progress
        if status is None:
            return
        for name, help_, number in (
            ("objects", "Objects that the scrub of this server has checked", self._objects),
            ("bytes", "Bytes that the scrub of this server has read", self._read_bytes),
        ):
            more = 0 if progress is None else progress.objects if name == "objects" else progress.read_bytes
            yield Family(MetricType.COUNTER, f"rest_server_scrub_{name}", help_, (), [Sample((), number + more)])
        if requests := self._survey.place.requests:
            help_ = "Requests of this server's scrub to the object store: a page of a list, an object"
            kinds = [Sample((kind,), number) for kind, number in requests.items()]
            yield Family(MetricType.COUNTER, "rest_server_scrub_requests", help_, ("kind",), kinds)
        samples = [
            Sample((repository.partition("/")[0], repository, kind), results.counts.get(repository, {}).get(kind, 0))
            for repository in sorted(results.repositories | results.counts.keys())
            for kind in KINDS
        ]
        help_ = "Stored objects that the scrub has found to be damaged, missing or unreadable"
        yield Family(MetricType.GAUGE, "rest_server_scrub_problems", help_, ("user", "repo", "kind"), samples)
        if status.last_complete_s is not None:
            help_ = "When the scrub has last checked everything, in seconds since 1970"
            yield gauge("scrub_last_complete_timestamp_seconds", help_, status.last_complete_s)
        part = 1.0 if status.progress is None else status.progress
        yield gauge("scrub_progress_ratio", "How much of the present pass of the scrub is done; 1 between passes", part)
        yield gauge("scrub_skipped_directories", "Directories that the scrub could not read", status.skipped)


def _with_low_priority(job: Callable[..., T], *args: Any) -> T:
    """Run a job in a thread that only gets what other threads leave."""
    idle_disk()
    idle_processor()
    return job(*args)


def _shown(problem: Problem) -> str:
    return ascii("/".join(problem.repository) or "/")[1:-1]


def problem_event(problem: Problem) -> Event:
    """Make the event for a problem that was found."""
    repository, object_type, name, reason = _shown(problem), problem.type, problem.name, problem.reason
    details = {"type": object_type, "name": name, "problem": problem.kind, "reason": reason}
    message = f"a file of repository {repository} is {problem.kind}: {object_type} {name}: {reason}"
    return Event(EventKind.CORRUPTION, message, "/".join(problem.repository), details=details)
