"""
C{rest-server scrub}: reads and verifies every stored object now, whether a server runs or not.

What it finds is kept beside the server's state file, so that a running server shows it within seconds, and a scrub that was
interrupted is continued by the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..config.console import OneLineParser, write_line
from ..config.server_flags import add_server_flags, server_settings
from ..config.settings import Settings
from ..dates import date_text, format_duration
from ..errors import NoSuchRepository, ServerError, StartError
from ..files import reason_of
from ..objects.engine import EngineError
from ..process.cores import usable_cores
from ..process.idle import idle_disk
from ..process.owner import act_as_owner_of
from ..sizes import format_size, parse_bytes_per_second
from ..storage.deletions import Deletions
from ..storage.layout import Repository
from ..storage.local import LocalStore
from ..storage.object_check import KINDS
from ..storage.publish import Publisher
from ..storage.scrub import Ended, Progress, ScrubRun
from ..storage.scrub_state import Problem, ScrubState, ScrubUnavailable
from ..storage.scrub_survey import Plan, Survey
from ..storage.scrubbed import REMOTE_READERS, Scrubbed
from ..storage.scrubbed_files import ScrubbedFiles
from ..storage.state import StateFile
from ..telemetry.status import printable
from ..threads.rate_limit import RateLimit, Stopped
from .table import text_table

if TYPE_CHECKING:
    from ..objects.store import ObjectStore

#: The interval between updates of the progress bar, and over how long its rate is measured.
_PROGRESS_S = 0.2
_RATE_S = 10.0
_BAR = 30

#: An interrupted scrub is continued for so long.
_RESUME_S = 7 * 86_400.0
_INTERRUPTED = 130


class _WrongCall(Exception):
    """The arguments make no sense; the message says why in one line."""


class _Found:
    """An L{resticserver.storage.scrub_survey.Observer} of the run. What it finds is read from the database in the end."""

    def __init__(self) -> None:
        self.ended: list[Problem] = []

    def found(self, problem: Problem) -> None:
        """See L{Observer.found}."""

    def over(self, problem: Problem) -> None:
        """See L{Observer.over}."""
        self.ended.append(problem)


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{scrub}.
    @return: 0 if everything is right, 1 if something is damaged, missing or unreadable, 2 if that was not found out.
    """
    parser = _parser()
    try:
        asked = parser.parse_intermixed_args(arguments)
        settings = server_settings(asked, parser.prog)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        return _Command(parser.prog, asked, settings).run()
    except _WrongCall as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
    except (ServerError, StartError, ScrubUnavailable, OSError) as error:
        what = (error.filename if isinstance(error, OSError) else None) or settings.path
        reason: object = reason_of(error) if isinstance(error, OSError) else error
        if isinstance(error, EngineError) and error.detail:
            reason = f"{error.message} ({printable(error.detail)})"
        elif isinstance(error, StartError) and settings.location is not None:
            reason = str(error).removeprefix(f"--path: {settings.location}: ").removeprefix("--path: ")
        print(f"{parser.prog}: cannot scrub {printable(str(what))}: {reason}", file=sys.stderr)
    return 2


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "rest-server scrub",
        description="Read and verify every stored object. Its SHA-256 must be its name. Nothing is changed. The status is 0 if "
        "everything is right, 1 if something is damaged, missing or cannot be read, 2 if that was not found out. A scrub "
        "that was interrupted is continued by the next call.",
    )
    parser.add_argument(
        "repositories", nargs="*", metavar="REPO", help="as alice/laptop; / is the one at the root (default all)"
    )
    parser.add_argument(
        "--rate", metavar="SIZE", help="how many bytes a second to read at most, as 20M (default no limit)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--accept-missing",
        action="store_true",
        help="objects that are missing were removed on purpose, for example by a restic prune on the server itself",
    )
    add_server_flags(parser, "path", "max-depth", "state-dir")
    return parser


class _Command:
    """One call."""

    def __init__(self, program: str, asked: argparse.Namespace, settings: Settings) -> None:
        self._program = program
        self._json: bool = asked.json
        self._accept_missing: bool = asked.accept_missing
        self._rate = None
        if asked.rate is not None:
            try:
                self._rate = float(parse_bytes_per_second(asked.rate)) or None
            except ValueError as error:
                raise _WrongCall(f"--rate {error}") from None
        self._scope = frozenset(map(_repository, asked.repositories)) or None
        self._path = path = settings.path if settings.location is not None else os.path.abspath(settings.path)
        folder = settings.state_dir
        if settings.location is None and not os.path.isdir(path):
            raise _WrongCall(f"{printable(path)}: there is no such directory")
        owned = folder if settings.location is not None else path
        if owned is not None and os.path.exists(owned):
            act_as_owner_of(owned)
        file_mode = 0o660 if settings.group_accessible_repos else 0o600
        server_state = StateFile(path, folder, read_only=True)
        server_state.prepare()
        self._store: LocalStore | ObjectStore
        place: Scrubbed
        if settings.location is not None:
            from ..service.object_store import make_object_store, make_scrubbed_bucket  # needs libraries of an extra

            self._store = make_object_store(settings, settings.location, server_state)
            place = make_scrubbed_bucket(settings, self._store)
        else:
            self._store = LocalStore(
                path,
                max_depth=settings.max_depth,
                publisher=Publisher(0o660, 0o770) if settings.group_accessible_repos else Publisher(),
            )
            place = ScrubbedFiles(self._store, self._store.counting)
        # An empty mount point must not look like a server without repositories.
        self._store.volume.expect(server_state.marker())
        self._store.volume.check()
        if settings.location is None:
            os.listdir(path)
        self._state = ScrubState(path, folder, file_mode)
        self._observer = _Found()
        self._is_remote = place.is_remote
        deletions = None if place.is_remote else Deletions(path, folder, file_mode)
        self._survey = Survey(place, self._state, deletions, self._observer)

    def run(self) -> int:
        """Scrub, and print what was found. The exit status."""
        try:
            return self._run()
        finally:
            self._state.close()

    def _run(self) -> int:
        self._check_scope()
        began_s = time.time()
        key = "command " + json.dumps(sorted(map("/".join, self._scope or ())))
        began_s = self._continued(key, began_s)
        limit = RateLimit(self._rate)
        plan = Plan(began_s=began_s, repositories=self._scope, accept_missing=self._accept_missing)
        run = ScrubRun(self._survey, plan, limit)
        started_s = time.monotonic()
        interrupted = False
        try:
            run.survey()
            if not self._state.lasts and run.surveyed.tasks:
                words = "the results are not kept, because this file cannot be written"
                print(f"{self._program}: {words}: {printable(self._state.path)}", file=sys.stderr)
            _work(run, limit, REMOTE_READERS if self._is_remote else 0)
        except (KeyboardInterrupt, Stopped):
            interrupted = True
        ended = run.finish()
        if ended.complete:
            self._state.put_facts(**{key: None})
        problems = [one for one in self._state.problems() if self._scope is None or one.repository in self._scope]
        took_s = time.monotonic() - started_s
        skipped = dict(sorted(run.surveyed.skipped.items()))
        text = (
            self._document(run, ended, problems, took_s)
            if self._json
            else _text(run.progress, problems, took_s, ended.complete)
        )
        for path, reason in skipped.items():
            print(f"{self._program}: cannot read {printable(path)}: {reason}", file=sys.stderr)
        if interrupted:
            print(f"{self._program}: interrupted; the next call continues", file=sys.stderr)
        written = write_line(text)
        if interrupted:
            return _INTERRUPTED
        if problems or skipped:
            return 1
        return 0 if written and ended.complete else 2

    def _check_scope(self) -> None:
        """
        @raise _WrongCall: there is no such repository, and never was.
        """
        if self._is_remote:
            for repository in sorted(self._scope or ()):
                self._check_remote(repository)
            return
        present = self._store.counting.repositories()
        if present:
            self._store.volume.mark()  # makes the folder of the state, as a server would
        if self._scope is None:
            return
        known = set(present)
        if os.path.exists(self._state.path):
            known |= {repository for repository, _ in self._state.directories()}
        for repository in sorted(self._scope - known):
            raise self._no_such(repository)

    def _check_remote(self, repository: Repository) -> None:
        """
        As L{_check_scope}, without a list of all repositories.

        @raise _WrongCall: there is none, and never was.
        """
        try:
            self._store.find_repository(repository)
        except NoSuchRepository:
            if repository not in self._state.repositories():
                raise self._no_such(repository) from None

    def _no_such(self, repository: Repository) -> _WrongCall:
        return _WrongCall(
            f"{printable('/'.join(repository)) or '/'}: there is no such repository in {printable(self._path)}"
        )

    def _continued(self, key: str, now_s: float) -> float:
        """When the scrub began that is to be continued; now, if none was interrupted."""
        if not os.path.exists(os.path.dirname(self._state.path)):
            return now_s
        before = self._state.facts().get(key)
        if before is not None and now_s - _RESUME_S < float(before) <= now_s:
            words = f"continuing the scrub of {date_text(float(before))}, which was interrupted"
            print(f"{self._program}: {words}", file=sys.stderr)
            return float(before)
        self._state.put_facts(**{key: now_s})
        return now_s

    def _document(self, run: ScrubRun, ended: Ended, problems: Iterable[Problem], took_s: float) -> str:
        document = {
            "complete": ended.complete and not run.surveyed.skipped,
            "objects": run.progress.objects,
            "size_bytes": run.progress.read_bytes,
            "duration_s": round(took_s, 3),
            "problems": [_as_json(one) for one in problems],
            "ended": [_as_json(one) for one in self._observer.ended],
            "skipped": [{"path": path, "reason": reason} for path, reason in sorted(run.surveyed.skipped.items())],
        }
        return json.dumps(document, indent=2)


def _repository(text: str) -> Repository:
    parts = tuple(filter(None, text.split("/")))
    if ".." in parts or "." in parts:
        raise _WrongCall(f"{printable(text)} is no repository")
    return parts


def _work(run: ScrubRun, limit: RateLimit, least: int) -> None:
    """
    Check everything in as many threads as there are cores. Raises what one of them raises.

    @param least: how many threads there are at least.
    @raise KeyboardInterrupt: all threads have ended.
    """
    errors: list[BaseException] = []

    def work() -> None:
        idle_disk()
        try:
            run.work()
        except BaseException as error:
            errors.append(error)

    cores = usable_cores()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(cores, least))]
    progress = _ProgressBar() if sys.stderr.isatty() else None
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(_PROGRESS_S)
                if progress is not None:
                    progress.show(run.progress)
    except BaseException:
        limit.stop()
        for thread in threads:
            thread.join()
        raise
    finally:
        if progress is not None:
            progress.clear()
    if errors:
        raise errors[0]


class _ProgressBar:
    """A progress bar on a terminal, with the present rate and the time that is left."""

    def __init__(self) -> None:
        self._shown = False
        self._seen: deque[tuple[float, int]] = deque()

    def show(self, progress: Progress) -> None:
        """Show the progress."""
        now_s = time.monotonic()
        self._seen.append((now_s, progress.read_bytes))
        while now_s - self._seen[0][0] > _RATE_S:
            self._seen.popleft()
        first_s, first_bytes = self._seen[0]
        rate = (progress.read_bytes - first_bytes) / (now_s - first_s) if now_s > first_s else 0.0
        self._shown = True
        print(f"\r\033[K{bar_text(progress, rate)}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the bar."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def bar_text(progress: Progress, rate: float) -> str:
    """
    The progress bar.

    @param rate: bytes a second.
    """
    full = int(progress.part * _BAR)
    text = f"[{'#' * full}{'.' * (_BAR - full)}] {progress.part * 100:3.0f} %  "
    text += f"{format_size(progress.done_bytes)} of {format_size(progress.total_bytes)}"
    if rate:
        left_s = max(0, progress.total_bytes - progress.done_bytes) / rate
        text += f"  {format_size(int(rate))}/s  {format_duration(left_s)} left"
    return text


def _text(progress: Progress, problems: Sequence[Problem], took_s: float, complete: bool) -> str:
    lines = []
    if problems:
        rows = [("REPOSITORY", "PROBLEM", "OBJECT", "SINCE", "")]
        rows += [
            (
                printable("/".join(one.repository)) or "/",
                one.kind,
                one.name if one.type == one.name else f"{one.type}/{one.name}",
                date_text(one.since_s),
                printable(one.reason),
            )
            for one in problems
        ]
        lines += [*text_table(rows, ()), ""]
    counts = Counter(one.kind for one in problems)
    found = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "no problems"
    found += "" if complete else " so far"
    objects = "1 object" if progress.objects == 1 else f"{progress.objects} objects"
    lines.append(f"checked {objects}, {format_size(progress.read_bytes)}, in {format_duration(took_s)}: {found}")
    return "\n".join(lines)


def _as_json(problem: Problem) -> dict[str, object]:
    return {
        "repository": "/".join(problem.repository),
        "type": problem.type,
        "name": problem.name,
        "problem": problem.kind,
        "since": date_text(problem.since_s),
        "reason": problem.reason,
    }
