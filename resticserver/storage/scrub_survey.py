"""
A look at all object directories: what is new, what is missing, and which directories are to be checked. No object is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from ..threads.rate_limit import RateLimit
from .deletions import Deletion, Deletions
from .layout import Repository, cell_directory, cell_of
from .object_check import DAMAGED, MISSING, UNREADABLE, Check, Finding
from .object_directory import Contents
from .scrub_state import DirectoryRow, Key, Problem, ScrubState
from .scrubbed import Scrubbed

#: A new pass begins when the oldest check is so old, as a part of the interval: a pass takes its time too.
DUE_PART = 0.9
#: The rows of directories with so many objects are stored together: a repository may have millions.
MOST_HELD = 100_000
#: A check that began so long in the future was made before the clock was set back.
_FUTURE_S = 86_400.0


class Observer(Protocol):
    """Learns what the scrub finds. Called in the scrub's threads."""

    def found(self, problem: Problem) -> None:
        """An object has a problem that it did not have before."""

    def over(self, problem: Problem) -> None:
        """A problem has ended."""


@dataclass(frozen=True)
class Plan:
    """
    What a run is to do.

    @ivar began_s: check every directory whose last check began before this time; C{None}: as the interval says.
    @ivar interval_s: after so long each directory is checked again.
    @ivar repositories: only these; C{None} for all.
    @ivar accept_missing: what is missing was removed on purpose.
    @ivar lasts_s: the run hands out no more work so many seconds after its survey.
    @ivar look_s: a look at everything is not repeated within so many seconds, as when a run was interrupted.
    """

    began_s: float | None = None
    interval_s: float = float("inf")
    repositories: frozenset[Repository] | None = None
    accept_missing: bool = False
    lasts_s: float = float("inf")
    look_s: float = 0.0

    def covers(self, repository: Repository) -> bool:
        """Whether the run has to do with a repository."""
        return self.repositories is None or repository in self.repositories


@dataclass
class Task:
    """
    A directory to be checked.

    @ivar new: the names of new objects, if only these are to be checked; C{None} for all.
    @ivar checked_s: when its last check began.
    """

    key: Key
    new: frozenset[str] | None
    checked_s: float


@dataclass
class Surveyed:
    """
    What a survey has found.

    @ivar tasks: in the order in which they are to be done.
    @ivar total_bytes: of all objects of the present pass; C{done_bytes}: of those that it has checked already.
    @ivar new_bytes: of new objects.
    @ivar oldest_s: when the oldest check of a directory began; C{None} without directories.
    @ivar pass_began_s: when the present pass began; C{None} if all is checked lately enough.
    @ivar skipped: directories that could not be read, with the reasons; C{skipped_keys} those of objects among them and below.
    """

    tasks: list[Task] = field(default_factory=list)
    total_bytes: int = 0
    done_bytes: int = 0
    new_bytes: int = 0
    oldest_s: float | None = None
    pass_began_s: float | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    skipped_keys: set[Key] = field(default_factory=set)


class Survey:
    """
    Looks at directories, and keeps what is known of them.

    @param place: where the objects lie.
    @param deletions: what was deleted through the server; C{None} where that is not known, so that nothing is called missing.
    @param now_s: seconds since 1970.
    """

    def __init__(
        self,
        place: Scrubbed,
        state: ScrubState,
        deletions: Deletions | None,
        observer: Observer,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.place = place
        self.state = state
        self._deletions = deletions
        self.observer = observer
        self.now_s = now_s
        #: Whether deletions through the server are not known, so that nothing is called missing.
        self._blind = False
        #: When everything was looked at last, and what was new then.
        self._looked_s = float("-inf")
        self._fresh: dict[Key, frozenset[str]] = {}

    def make(self, plan: Plan, limit: RateLimit) -> Surveyed:
        """
        Look at all directories of the plan.

        @raise Stopped: by the limit.
        @raise Unavailable: the volume is gone.
        @raise OSError: the data directory cannot be read.
        @raise ScrubUnavailable: the database cannot be used now.
        """
        present = self.place.repositories()
        facts = self.state.facts() if present or present is None or os.path.exists(self.state.path) else {}
        if present == [] and not facts:
            return Surveyed()  # nothing is made in an empty directory
        self._prepare_deletions(facts)
        seen = self._deletions.all() if self._deletions is not None else set()
        rows = self.state.directories()
        is_first = "known_since" not in facts
        if is_first:
            self.state.put_facts(known_since=self.now_s())
        if plan.accept_missing:
            for problem in self.state.problems():
                if problem.kind == MISSING and plan.covers(problem.repository):
                    self.end_problem(problem)
        surveyed = Surveyed()
        fresh: dict[Key, frozenset[str]] = {}
        wanted: Iterable[Repository] | None = plan.repositories
        if present is not None:
            wanted = filter(plan.covers, sorted({*present, *(repository for repository, _ in rows)}))
        began_s = self.now_s()
        if 0 <= began_s - self._looked_s < plan.look_s:
            self._take_again(rows, fresh)
        else:
            for _, looked_at in groupby(self.place.look(wanted, rows, limit), lambda one: one[0][0]):
                self._take(looked_at, rows, fresh, surveyed, plan, is_first)
            if self.place.is_remote:
                self._try_again(plan, rows, fresh)
            self._looked_s, self._fresh = began_s, fresh
        if plan.repositories is None and self._deletions is not None:
            self._forget_deletions(self._deletions, seen, surveyed)
        self._choose(plan, facts, {key: row for key, row in rows.items() if plan.covers(key[0])}, fresh, surveyed)
        return surveyed

    def _prepare_deletions(self, facts: dict[str, str]) -> None:
        if self._deletions is None:
            return
        token = self._deletions.prepare()
        known = facts.get("deletions")
        self._blind = not token or (known is not None and known != token)
        if token and known != token:
            self.state.put_facts(deletions=token)

    def _take(
        self,
        looked_at: Iterable[tuple[Key, Contents | OSError]],
        rows: dict[Key, DirectoryRow],
        fresh: dict[Key, frozenset[str]],
        surveyed: Surveyed,
        plan: Plan,
        is_first: bool,
    ) -> None:
        """Directories of one repository: their rows, their new objects, what is skipped."""
        changed: dict[Key, DirectoryRow] = {}
        gone = []
        held = 0
        for key, contents in looked_at:
            if isinstance(contents, OSError):
                self.skip(key, contents, surveyed)
                continue
            new_row, new = self._compare(key, contents, is_first, plan)
            if self._deletions is None:
                self._end_vanished(key, contents)
            if new:
                fresh[key] = new
                surveyed.new_bytes += sum(contents.sizes[name] for name in new)
            if not contents.there and not new_row.names:
                gone.append(key)
                rows.pop(key, None)
            else:
                changed[key] = new_row
                rows[key] = new_row._replace(names=None)
                held += new_row.objects
                if held >= MOST_HELD:
                    self.state.put_directories(changed.items())
                    changed, held = {}, 0
        if changed:
            self.state.put_directories(changed.items())
        if gone:
            self.state.forget_directories(gone)

    def _take_again(self, rows: dict[Key, DirectoryRow], fresh: dict[Key, frozenset[str]]) -> None:
        """Take what the last look has found to be new, and was not checked since."""
        for key, names in self._fresh.items():
            row = self.state.directory(key)
            if key in rows and row is not None and row.names is not None and (left := names - row.names):
                fresh[key] = left

    def _try_again(self, plan: Plan, rows: dict[Key, DirectoryRow], fresh: dict[Key, frozenset[str]]) -> None:
        """Have what could not be read checked with the new objects: another machine may return it now."""
        for problem in self.state.problems():
            key = (problem.repository, cell_of(problem.type, problem.name))
            if problem.kind == UNREADABLE and plan.covers(problem.repository) and key in rows:
                fresh[key] = fresh.get(key, frozenset()) | {problem.name}

    def _end_vanished(self, key: Key, contents: Contents) -> None:
        """End the problems of objects that were deleted."""
        object_type, _ = cell_directory(key[1])
        for problem in self.state.problems(key[0], object_type):
            if cell_of(object_type, problem.name) == key[1] and not contents.has(problem.name):
                self.end_problem(problem)

    def skip(self, key: Key, error: OSError, surveyed: Surveyed) -> None:
        """
        A directory cannot be read.

        @raise OSError: the error is not the directory's, but this process's.
        """
        path = self.place.cannot_read(key, error)
        surveyed.skipped[path] = error.strerror or str(error)
        surveyed.skipped_keys.add(key)

    def _compare(self, key: Key, contents: Contents, is_first: bool, plan: Plan) -> tuple[DirectoryRow, frozenset[str]]:
        """What is known of a directory from now on, and which of its objects are new."""
        row = self.state.directory(key)
        object_type, _ = cell_directory(key[1])
        if row is None:
            # What is there at the very first survey is checked in its turn; a directory that comes later holds new objects.
            is_baseline = is_first and object_type != "locks"
            names = frozenset(contents.sizes) if is_baseline else frozenset()
            checked_s = self.now_s() if not is_first and plan.began_s is None else 0.0
            row = DirectoryRow(checked_s, None, "", None, 0, 0, names)
        known = self.known_after(key, row, contents, plan.accept_missing)
        new = frozenset(contents.sizes) - known
        stamp = contents.stamp if not new else None
        row = row._replace(stamp=stamp, size_bytes=contents.size_bytes, objects=len(contents.sizes), names=known)
        return row, new

    def known_after(
        self, key: Key, row: DirectoryRow, contents: Contents, accept_missing: bool = False
    ) -> frozenset[str]:
        """The known objects of a directory without those that vanished. The missing ones are reported."""
        assert row.names is not None
        vanished = [name for name in row.names if not contents.has(name)]
        if not vanished:
            return row.names
        gone = self.vanished(key, vanished, accept_missing)
        return row.names - gone

    def vanished(self, key: Key, names: Iterable[str], accept_missing: bool = False) -> frozenset[str]:
        """
        Known objects are not there any more: report those that are missing.

        @return: those that are certainly not there.
        @raise Unavailable: the volume is gone.
        """
        repository, cell = key
        object_type, _ = cell_directory(cell)
        gone, missing = set(), []
        for name in names:
            if self.place.may_be_there(key, name):
                continue  # it is there again
            gone.add(name)
            if not accept_missing and not self._blind and not self.is_deleted(repository, object_type, name):
                missing.append(name)
        self.place.check_there()
        for name in missing:
            reason = "it was there when it was looked at before, and was not deleted through this server"
            self.add_problem(Problem(repository, object_type, name, MISSING, self.now_s(), reason))
        return frozenset(gone)

    def is_deleted(self, repository: Repository, object_type: str, name: str) -> bool:
        """Whether an object that is not there was deleted through the server."""
        if self._deletions is not None and self._deletions.has(repository, object_type, name):
            return True
        return self.place.was_deleted(repository, object_type, name)

    def add_problem(self, problem: Problem) -> None:
        """Keep a problem, and report it if it is another one than before."""
        before = self.state.problems(problem.repository, problem.type, problem.name)
        if before and before[0].kind == problem.kind:
            problem = problem._replace(since_s=before[0].since_s)
            if before[0] == problem:
                return
        self.state.put_problems([problem])
        if not before or before[0].kind != problem.kind:
            self.observer.found(problem)

    def end_problem(self, problem: Problem) -> None:
        """A problem has ended."""
        self.state.remove_problems([problem])
        self.observer.over(problem)

    def judge(self, key: Key, name: str, check: Check, before: Problem | None) -> None:
        """
        Apply the check of an object.

        @param before: the problem that it had before.
        """
        if check.finding in (Finding.DAMAGED, Finding.UNREADABLE):
            object_type, _ = cell_directory(key[1])
            kind = DAMAGED if check.finding is Finding.DAMAGED else UNREADABLE
            problem = Problem(key[0], object_type, name, kind, self.now_s(), check.reason, check.version)
            self.add_problem(problem)
        elif check.finding is Finding.GOOD and before is not None:
            self.end_problem(before)

    def look_again(self, problems: Iterable[Problem], limit: RateLimit) -> None:
        """
        Look whether problems have ended: the object was replaced, restored or deleted. Only what has changed is read.

        @raise Stopped: by the limit.
        @raise Unavailable: the volume is gone.
        @raise ScrubUnavailable: the database cannot be used now.
        """
        for problem in problems:
            key = (problem.repository, cell_of(problem.type, problem.name))
            try:
                version = self.place.version(key, problem.name)
            except OSError:
                continue
            if version is None:
                if self.is_deleted(problem.repository, problem.type, problem.name):
                    self.end_problem(problem)
                elif problem.kind != MISSING:
                    self.vanished(key, [problem.name])
            elif version != problem.version:
                self.judge(key, problem.name, self.place.check(key, problem.name, limit), problem)

    def _forget_deletions(self, deletions: Deletions, seen: set[Deletion], surveyed: Surveyed) -> None:
        """Lines about directories that were looked at are not needed any more, as long as no problem depends on them."""
        skipped = surveyed.skipped_keys

        def is_over(deletion: Deletion) -> bool:
            repository, object_type, name = deletion
            return not skipped or (bool(object_type) and (repository, cell_of(object_type, name)) not in skipped)

        if not seen:
            return
        for problem in self.state.problems():
            deleted = (problem.repository, problem.type, problem.name) in seen or (problem.repository, "", "") in seen
            key = (problem.repository, cell_of(problem.type, problem.name))
            if deleted and not self.place.may_be_there(key, problem.name):
                self.end_problem(problem)
        deletions.forget(is_over, seen)

    def _choose(
        self,
        plan: Plan,
        facts: dict[str, str],
        rows: dict[Key, DirectoryRow],
        fresh: dict[Key, frozenset[str]],
        surveyed: Surveyed,
    ) -> None:
        """What is to be done, in which order."""
        now_s = self.now_s()
        rows = {
            key: row if row.checked_s <= now_s + _FUTURE_S else row._replace(checked_s=0.0) for key, row in rows.items()
        }
        readable = [row.checked_s for key, row in rows.items() if key not in surveyed.skipped_keys]
        surveyed.oldest_s = min(readable, default=None)
        began_s = plan.began_s
        if began_s is None:
            began_s = float(facts["pass_began"]) if "pass_began" in facts else None
            if began_s is not None and began_s > now_s + _FUTURE_S:
                began_s = now_s
            if began_s is None and surveyed.oldest_s is not None:
                if surveyed.oldest_s + DUE_PART * plan.interval_s <= now_s:
                    began_s = now_s
                    self.state.put_facts(pass_began=began_s)
            for key in sorted(fresh):
                surveyed.tasks.append(Task(key, fresh[key], rows[key].checked_s))
        surveyed.pass_began_s = began_s
        if began_s is None:
            return
        surveyed.total_bytes = sum(row.size_bytes for row in rows.values())
        due = {key: row for key, row in rows.items() if row.checked_s < began_s}
        due = {key: row for key, row in due.items() if key not in surveyed.skipped_keys}
        surveyed.done_bytes = surveyed.total_bytes - sum(row.size_bytes for row in due.values())
        order = sorted(due, key=lambda key: (due[key].checked_s, key))
        surveyed.tasks += [Task(key, None, due[key].checked_s) for key in order]
