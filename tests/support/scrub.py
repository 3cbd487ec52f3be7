"""
A data directory with objects that can be damaged, and the scrub's parts on it, without threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resticserver.storage.deletions import Deletions
from resticserver.storage.local import LocalStore
from resticserver.storage.scrub import Ended, ScrubRun
from resticserver.storage.scrub_state import Problem, ScrubState
from resticserver.storage.scrub_survey import Plan, Survey
from resticserver.storage.scrubbed_files import ScrubbedFiles
from resticserver.threads.rate_limit import RateLimit

from .client import object_id, random_bytes
from .scratch import Cleans, object_path, scratch_directory

REPOSITORY = ("alice", "laptop")
DAY_S = 86_400.0


class Recording:
    """An L{Observer}: what was found and what has ended, by kind, type and name."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str, str]] = []
        self.ended: list[tuple[str, str, str]] = []

    def found(self, problem: Problem) -> None:
        """See L{Observer.found}."""
        self.problems.append((problem.kind, problem.type, problem.name))

    def over(self, problem: Problem) -> None:
        """See L{Observer.over}."""
        self.ended.append((problem.kind, problem.type, problem.name))


class HastyLimit(RateLimit):
    """
    A limit that does not wait, and stops the work after some takes.

    @ivar pauses: how long it would have waited.
    """

    def __init__(self, takes: int | None = None) -> None:
        super().__init__()
        self._left = takes
        self.taken_bytes: list[int] = []
        self.pauses: list[float] = []

    def take(self, size_bytes: int) -> None:
        """Take without waiting."""
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.stop()
        self.taken_bytes.append(size_bytes)
        super().take(size_bytes)

    def pause(self, seconds: float) -> None:
        """Note the pause."""
        self.pauses.append(seconds)


class ScrubBench:
    """
    A data directory with one repository.

    @ivar now_s: the time since 1970 for the scrub.
    """

    def __init__(self, test: Cleans, path: Path | None = None) -> None:
        self.path = path if path is not None else scratch_directory(test) / "data"
        self.store = LocalStore(str(self.path))
        self.store.prepare()
        self.store.create_repository(REPOSITORY)
        self.repository = self.path.joinpath(*REPOSITORY)
        (self.repository / "config").write_bytes(b"a config")
        self.deletions = Deletions(str(self.path))
        self.store.observe_removals(self.deletions.add)
        self.state = ScrubState(str(self.path))
        test.addCleanup(lambda: self.state.close())
        self.now_s = 1_800_000_000.0
        self.observer = Recording()

    def put(self, *seeds: int, kind: str = "data", length: int = 1000) -> list[str]:
        """Store objects; their names."""
        names = []
        for seed in seeds:
            body = random_bytes(seed, length)
            names.append(object_id(body))
            path = self.file(names[-1], kind)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(body)
            os.utime(path, (1, 1))
        return names

    def file(self, name: str, kind: str = "data") -> Path:
        """The file of an object."""
        return object_path(self.repository, kind, name)

    def flip(self, name: str, kind: str = "data") -> None:
        """Change one bit of an object, and not its times."""
        path = self.file(name, kind)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, (1, 1))

    def survey(self) -> Survey:
        """A survey, as the next process would have it."""
        return Survey(
            ScrubbedFiles(self.store, self.store.counting),
            self.state,
            self.deletions,
            self.observer,
            now_s=lambda: self.now_s,
        )

    def run(self, plan: Plan | None = None, limit: RateLimit | None = None, threads: int = 1) -> Ended:
        """One run to its end; by default all that there is."""
        self.now_s += 1
        run = self.begin(plan, limit)
        if threads == 1:
            run.work()
        else:
            started = [threading.Thread(target=run.work) for _ in range(threads)]
            for thread in started:
                thread.start()
            for thread in started:
                thread.join()
        return run.finish()

    def begin(self, plan: Plan | None = None, limit: RateLimit | None = None) -> ScrubRun:
        """A run after its survey."""
        run = ScrubRun(self.survey(), plan or Plan(began_s=self.now_s), limit or HastyLimit())
        run.survey()
        return run

    def problems(self) -> list[tuple[str, str, str]]:
        """All problems that are known: kind, type and name."""
        return sorted((one.kind, one.type, one.name) for one in self.state.problems())


def failing(function: Any, error: OSError, paths: Iterable[Path]) -> Any:
    """A function of C{os} that fails for some files, given by path or descriptor."""
    names = {os.fspath(path) for path in paths}

    def call(file: Any, *arguments: Any, **named: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)
        if path in names:
            raise error
        return function(file, *arguments, **named)

    return call
