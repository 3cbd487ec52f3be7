"""
Every stored object is read and hashed again: one run over the object directories.

Blocking and without a reactor: a run is made in one thread (L{ScrubRun.survey}), worked off by as many as there are cores
(L{ScrubRun.work}), and ended in one (L{ScrubRun.finish}). The server and C{rest-server scrub} do that.

What has been done is kept every few seconds, so that a run which is killed goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..threads.rate_limit import RateLimit, Stopped
from .layout import cell_directory
from .object_check import Check, Finding
from .object_directory import Contents
from .scrub_state import DirectoryRow, Problem, ScrubState
from .scrub_survey import DUE_PART, Plan, Survey, Surveyed, Task

#: How often it is kept how far a directory is checked. A run that is killed repeats no more than this time and the objects
#: that were being read.
SAVE_S = 2.0


@dataclass(frozen=True)
class Progress:
    """
    How far a run is.

    @ivar total_bytes: of the pass, or of the run without one; C{done_bytes}: how many of these are checked.
    @ivar read_bytes: how much this run has read; C{objects}: how many objects it has checked.
    """

    total_bytes: int = 0
    done_bytes: int = 0
    read_bytes: int = 0
    objects: int = 0

    @property
    def part(self) -> float:
        """How much of it is done, from 0 to 1."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


class Ended(NamedTuple):
    """
    How a run has ended.

    @ivar complete: whether all that it was to do is done.
    @ivar next_s: when there is more to do, in seconds since 1970; C{None} if that is now, or nothing is stored.
    """

    complete: bool
    next_s: float | None


@dataclass
class _Directory:
    """A directory that is being checked."""

    task: Task
    began_s: float
    contents: Contents
    names: list[str]
    problems: dict[str, Problem]
    #: The place of the next name, and the places of those that are being checked.
    next: int = 0
    open: set[int] = field(default_factory=set)
    #: Names that were handed out and are not known to be there.
    unknown: set[str] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        return self.next == len(self.names) and not self.open

    @property
    def upto(self) -> str:
        """The last name before which all are checked; empty for none."""
        place = min(self.open, default=self.next)
        return self.names[place - 1] if place else ""


class ScrubRun:
    """
    One run. C{survey} comes first; C{work} may run in several threads at a time; C{finish} comes last.

    @param survey: looks at the directories.
    @param plan: what to do.
    @param limit: of the bytes to read. C{limit.stop} ends the run early.
    @param clock_s: a monotonic clock.
    @ivar surveyed: what the survey has found.
    """

    def __init__(
        self, survey: Survey, plan: Plan, limit: RateLimit, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._survey = survey
        self._state: ScrubState = survey.state
        self._plan = plan
        self._limit = limit
        self._clock_s = clock_s
        self._ends_s = float("inf")
        self._lock = threading.Lock()
        self.surveyed = Surveyed()
        self._tasks = iter(self.surveyed.tasks)
        self._current: _Directory | None = None
        self._open: list[_Directory] = []
        self._saved_s = clock_s()
        self._failed = False
        self._all_given = False
        self.progress = Progress()

    def survey(self) -> None:
        """
        Look at all directories. Raises what L{Survey.make} does.
        """
        self.surveyed = self._survey.make(self._plan, self._limit)
        self._tasks = iter(self.surveyed.tasks)
        self.progress = Progress(self.surveyed.total_bytes, self.surveyed.done_bytes)
        self._saved_s = self._clock_s()
        self._ends_s = self._saved_s + self._plan.lasts_s  # a survey that takes long leaves time for work

    def work(self) -> None:
        """
        Check objects until none is left, the time is over or the run is stopped.

        @raise Unavailable: the place of the objects is gone, or does not answer.
        @raise OSError: this process cannot read now.
        @raise ScrubUnavailable: the database cannot be used now.
        """
        try:
            while (given := self._next()) is not None:
                directory, place = given
                name = directory.names[place]
                try:
                    check = self._survey.place.check(directory.task.key, name, self._limit)
                except Stopped:
                    return  # the place stays open, so it is checked again
                self._checked(directory, place, check)
        except BaseException:
            self._failed = True
            raise

    def finish(self) -> Ended:
        """Keep what was done, and say whether that was all."""
        with self._lock:
            self._save()
        surveyed = self.surveyed
        complete = (self._all_given or not surveyed.tasks) and not self._open and not self._failed
        if surveyed.oldest_s is None and not surveyed.skipped_keys:
            return Ended(complete, None)  # nothing is stored, so nothing is kept
        if complete and surveyed.pass_began_s is not None and self._plan.repositories is None:
            # What cannot be read does not hold up the next pass, but this one is not complete.
            ended = {} if surveyed.skipped_keys else {"pass_ended": self._survey.now_s()}
            self._state.put_facts(pass_began=None, **ended)
        checked_s = [
            row.checked_s
            for key, row in self._state.directories().items()
            if self._plan.covers(key[0]) and key not in surveyed.skipped_keys
        ]
        next_s = min(checked_s) + DUE_PART * self._plan.interval_s if complete and checked_s else None
        return Ended(complete, next_s)

    # --- handing out

    def _next(self) -> tuple[_Directory, int] | None:
        with self._lock:
            if self._limit.stopped or self._failed or self._clock_s() >= self._ends_s:
                return None
            while self._current is None or self._current.next == len(self._current.names):
                task = next(self._tasks, None)
                if task is None:
                    self._all_given = True
                    return None
                self._current = self._begin(task)
            place = self._current.next
            self._current.next += 1
            self._current.open.add(place)
            return self._current, place

    def _begin(self, task: Task) -> _Directory | None:
        """Begin to check a directory; C{None} if there is nothing to do."""
        survey, key = self._survey, task.key
        row = self._state.directory(key)
        if row is None:
            return None  # it was removed by another run
        try:
            contents = survey.place.contents(key)
        except OSError as error:
            survey.skip(key, error, self.surveyed)
            return None
        known = survey.known_after(key, row, contents, self._plan.accept_missing)
        began_s, upto = survey.now_s(), ""
        if task.new is None:
            if row.began_s is not None and self._may_resume(row.began_s):
                began_s, upto = row.began_s, row.upto
            names = sorted(contents.sizes)
            self._keep_progress(sum(contents.sizes[name] for name in names if name <= upto))
            names = [name for name in names if name > upto]
            row = row._replace(began_s=began_s, upto=upto)
        else:
            names = sorted(task.new & contents.sizes.keys())
        if known != row.names:
            self._state.put_directories([(key, row._replace(names=known))])
        object_type, _ = cell_directory(key[1])
        problems = {one.name: one for one in self._state.problems(key[0], object_type)}
        directory = _Directory(task, began_s, contents, names, problems)
        if not names:
            self._end(directory)
            return None
        self._open.append(directory)
        return directory

    def _may_resume(self, began_s: float) -> bool:
        now_s = self._survey.now_s()
        oldest_s = self._plan.began_s if self._plan.began_s is not None else now_s - self._plan.interval_s
        return oldest_s <= began_s <= now_s

    # --- results

    def _checked(self, directory: _Directory, place: int, check: Check) -> None:
        name = directory.names[place]
        key = directory.task.key
        self._survey.judge(key, name, check, directory.problems.get(name))
        with self._lock:
            directory.open.discard(place)
            if check.finding in (Finding.GONE, Finding.FOREIGN, Finding.CHANGING):
                directory.unknown.add(name)
            self.progress = replace(
                self.progress, read_bytes=self.progress.read_bytes + check.read_bytes, objects=self.progress.objects + 1
            )
            if directory.task.new is None:
                self._keep_progress(directory.contents.sizes[name])
            if directory.is_done:
                self._open.remove(directory)
                self._end(directory)
            elif self._clock_s() - self._saved_s >= SAVE_S:
                self._save()

    def _keep_progress(self, size_bytes: int) -> None:
        self.progress = replace(self.progress, done_bytes=self.progress.done_bytes + size_bytes)

    def _save(self) -> None:
        """Keep how far the directories are that are being checked."""
        self._saved_s = self._clock_s()
        rows = []
        for directory in self._open:
            row = self._state.directory(directory.task.key)
            if row is None:
                continue
            if directory.task.new is not None:
                done = {*directory.names[: min(directory.open, default=directory.next)]} - directory.unknown
                assert row.names is not None
                rows.append((directory.task.key, row._replace(names=row.names | self._known(directory, done))))
            elif directory.upto:
                rows.append(
                    (directory.task.key, row._replace(began_s=directory.began_s, upto=directory.upto, names=None))
                )
        if rows:
            self._state.put_directories(rows)

    def _end(self, directory: _Directory) -> None:
        """A directory is checked."""
        key, contents = directory.task.key, directory.contents
        row = self._state.directory(key)
        if row is None:
            return
        assert row.names is not None
        vanished = [name for name in directory.unknown if name in row.names and not contents.links & {name}]
        gone = self._survey.vanished(key, vanished, self._plan.accept_missing) if vanished else frozenset()
        checked = set(contents.sizes if directory.task.new is None else directory.names) - directory.unknown
        names = (row.names - gone) | self._known(directory, checked)
        row = row._replace(names=names, size_bytes=contents.size_bytes, objects=len(contents.sizes))
        if directory.task.new is None:
            row = DirectoryRow(directory.began_s, None, "", contents.stamp if not directory.unknown else None, *row[4:])
        self._state.put_directories([(key, row)])

    @staticmethod
    def _known(directory: _Directory, names: set[str]) -> frozenset[str]:
        """Locks come and go: none of them can be missing."""
        object_type, _ = cell_directory(directory.task.key[1])
        return frozenset() if object_type == "locks" else frozenset(names)
