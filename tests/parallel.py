"""
Runs the tests in several trial processes at once, and adds up their results: C{make test} and C{make unit}.

Every test module of F{tests/integration} has a process of its own, the others share some. A process has its own temporary
directory, its output is printed when it has ended, the failures of all are printed again at the end, and the last line is
the sum in trial's form: C{PASSED (skips=1, successes=2)} or C{FAILED (…)}. A process that ends without a result, or that
ran fewer tests than there are, is an error.

    python -m tests.parallel [--jobs N] [--temp DIRECTORY] [--unit] [NAME ...]
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial.runner import TestLoader

from .support.processes import starts_processes

#: What takes longest is started first, so that no core is idle at the end, and some in several processes, class by class.
#: A module that should be here and is not costs time only.
LONGEST_FIRST = {
    "tests.integration.test_flood": 2,
    "tests.integration.test_quota": 2,
    "tests.integration.test_metrics": 2,
    "tests.integration.test_workers": 2,
    "tests.contract.test_local": 4,
    "tests.integration.test_lifecycle": 1,
    "tests.integration.test_process": 1,
    "tests.integration.test_access": 1,
    "tests.integration.test_packaging": 1,
    "tests.integration.test_status": 1,
    "tests.integration.test_faults": 1,
    "tests.integration.test_kill_points": 1,
    "tests.integration.test_fault_injection": 1,
    "tests.integration.test_events": 1,
}
#: What is only run by its own name: C{make ship-check}.
APART = "tests.shipping"
#: How many modules that are not in that list, and not in F{tests/integration}, share a process.
MODULES_A_PROCESS = 8
#: No part takes nearly as long on a busy machine. Then it hangs: it is told to show where, and is killed.
TIME_LIMIT_S = 3600.0
LAST_WORDS_S = 10.0

RESULT = re.compile(r"^(?:PASSED|FAILED)(?: \((.*)\))?$", re.MULTILINE)
BAD = ("failures", "errors", "unexpectedSuccesses")


@dataclass(frozen=True)
class Part:
    """
    What one process runs.

    @ivar names: for trial's command line.
    @ivar tests: how many tests that are.
    """

    title: str
    names: tuple[str, ...]
    tests: int


@dataclass(frozen=True)
class Outcome:
    """How a part ended; C{results} are trial's counts, by trial's names for them."""

    part: Part
    results: Counter[str]
    output: str
    wall_s: float
    cpu_s: float

    @property
    def is_bad(self) -> bool:
        """Whether anything failed."""
        return any(self.results[name] for name in BAD)


def all_tests(suite: Any) -> Iterator[Any]:
    """The test cases of a suite."""
    try:
        inner = iter(suite)
    except TypeError:
        yield suite
        return
    for each in inner:
        yield from all_tests(each)


def modules_of(name: str) -> list[str]:
    """The test modules of a package; anything else is only itself."""
    try:
        package = importlib.import_module(name)
    except Exception:
        # A class, a path, or a module that cannot be imported: trial will say what is wrong.
        return [name]
    if not hasattr(package, "__path__"):
        return [name]
    found = pkgutil.walk_packages(package.__path__, f"{name}.")
    names = [module.name for module in found if module.name.rpartition(".")[2].startswith("test_")]
    return [each for each in names if name.startswith(APART) or not each.startswith(f"{APART}.")]


def parts_of(names: Iterable[str], unit: bool) -> list[Part]:
    """What there is to do, in the order in which it is to be begun."""
    loader = TestLoader()
    alone: list[Part] = []
    small: list[Part] = []
    for name in (module for given in names for module in modules_of(given)):
        if unit and name.startswith("tests.integration."):
            continue
        tests = list(all_tests(loader.loadByNames([name], recurse=True)))
        chosen = [test for test in tests if not (unit and starts_processes(test))]
        if not chosen:
            continue
        # A module that cannot be imported has no classes: trial will say what is wrong.
        if name in LONGEST_FIRST and all(hasattr(test, "_testMethodName") for test in tests):
            alone += in_classes(name, chosen, LONGEST_FIRST[name])
            continue
        which = (name,) if len(chosen) == len(tests) else tuple(test.id() for test in chosen)
        (alone if name.startswith(("tests.integration.", APART)) else small).append(Part(name, which, len(chosen)))
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    alone.sort(key=lambda part: (order.get(part.title.partition(" ")[0], len(order)), -part.tests))
    processes = -(-len(small) // MODULES_A_PROCESS)
    return alone + [joined(small[number::processes]) for number in range(processes)]


def in_classes(module: str, tests: Iterable[Any], number: int) -> Iterator[Part]:
    """A module's classes in so many parts, of about as many tests each."""
    classes: dict[str, list[str]] = {}
    for test in tests:
        classes.setdefault(f"{type(test).__module__}.{type(test).__qualname__}", []).append(test.id())
    shares: list[list[str]] = [[] for _ in range(number)]
    for methods in sorted(classes.values(), key=len, reverse=True):
        min(shares, key=len).extend(methods)
    for place, share in enumerate(filter(None, shares), 1):
        yield Part(f"{module} ({place})", tuple(share), len(share))


def joined(parts: Sequence[Part]) -> Part:
    """Several parts as one."""
    names = tuple(name for part in parts for name in part.names)
    return Part(" ".join(part.title for part in parts), names, sum(part.tests for part in parts))


class Run:
    """
    The processes.

    @param directory: for their temporary directories.
    @param trial: the command line that runs trial.
    """

    def __init__(self, parts: Iterable[Part], directory: Path, trial: Sequence[str]) -> None:
        self._waiting = deque(enumerate(parts, 1))
        self._directory = directory
        self._trial = trial
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False
        self.outcomes: list[Outcome] = []

    def all(self, jobs: int) -> None:
        """Run everything, so many at once."""
        self._directory.mkdir(parents=True, exist_ok=True)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Begin nothing more, and end what runs: trial in order, if it can soon, so that tests clean up."""
        with self._lock:
            self._stopped = True
            running = set(self._running)
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        until = time.monotonic() + LAST_WORDS_S
        while self._running and time.monotonic() < until:
            time.sleep(0.05)
        for pid in running:
            _signal_group(pid, signal.SIGKILL)

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._stopped or not self._waiting:
                    return
                number, part = self._waiting.popleft()
            outcome = self._run(number, part)
            with self._lock:
                self.outcomes.append(outcome)
                counts = _as_text(outcome.results)
                print(f"\n===== {part.title}: {counts}; {outcome.wall_s:.0f} s, {outcome.cpu_s:.0f} s of CPU")
                print(outcome.output, flush=True)

    def _run(self, number: int, part: Part) -> Outcome:
        began = time.monotonic()
        temporary = self._directory / f"part-{number}"
        # trial would refuse one that an ended run has left half removed, and takes minutes for a hundred thousand directories.
        shutil.rmtree(temporary, ignore_errors=True)
        with tempfile.TemporaryFile() as output:
            with self._lock:
                process = subprocess.Popen(
                    [*self._trial, "--temp-directory", str(temporary), *part.names],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # So that what a test has started can be ended with it.
                    start_new_session=True,
                )
                self._running.add(process.pid)
            # With -X faulthandler: the stack of each thread.
            timers = [
                threading.Timer(TIME_LIMIT_S, process.send_signal, (signal.SIGABRT,)),
                threading.Timer(TIME_LIMIT_S + LAST_WORDS_S, _signal_group, (process.pid, signal.SIGKILL)),
            ]
            for timer in timers:
                timer.daemon = True
                timer.start()
            _, status, usage = os.wait4(process.pid, 0)
            for timer in timers:
                timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            with self._lock:
                self._running.discard(process.pid)
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        results = results_of(text)
        if results is None or (process.returncode != 0 and not any(results[name] for name in BAD)):
            results = results or Counter()
            results["errors"] += 1
            text += f"\n{part.title}: ended with status {process.returncode} and without a result\n"
        elif sum(results.values()) < part.tests:
            text += f"\n{part.title}: {sum(results.values())} tests of {part.tests} were run\n"
            results["errors"] += 1
        return Outcome(part, results, text, time.monotonic() - began, usage.ru_utime + usage.ru_stime)


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def results_of(output: str) -> Counter[str] | None:
    """What trial says at its end, C{None} if it did not."""
    found = list(RESULT.finditer(output))
    if not found:
        return None
    pairs = (pair.split("=") for pair in (found[-1][1] or "").split(", ") if pair)
    return Counter({name: int(number) for name, number in pairs})


def failures_in(outcome: Outcome) -> str:
    """The end of a bad part's output: the failures, and what was logged; all of it, if it has no such part."""
    at = outcome.output.find("\n" + "=" * 79)
    return outcome.output[max(at, 0) :]


def _as_text(results: Counter[str]) -> str:
    return ", ".join(f"{name}={number}" for name, number in sorted(results.items()) if number) or "nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit status whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.parallel", description="Run the tests.")
    # Many tests wait for programs more than they compute.
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1) + 1, help="processes at once")
    parser.add_argument("--temp", type=Path, default=Path(".venv/trial"), help="for temporary directories")
    parser.add_argument("--unit", action="store_true", help="only the tests that start no process")
    parser.add_argument("names", nargs="*", default=["tests"], help="packages, modules, classes, methods")
    options = parser.parse_args(arguments)

    parts = parts_of(options.names or ["tests"], options.unit)
    program = "tests.support.processes" if options.unit else "twisted.trial"
    trial = [sys.executable, "-Wd", "-X", "faulthandler", "-m", program, "--random", "0"]
    if len(parts) == 1 and not options.unit:
        # Nothing to add up: its output as it comes.
        sys.stdout.flush()
        os.execv(trial[0], [*trial, "--temp-directory", str(options.temp / "1"), *parts[0].names])
    run = Run(parts, options.temp.resolve(), trial)

    def interrupted(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    began = time.monotonic()
    try:
        run.all(max(options.jobs, 1))
    except KeyboardInterrupt:
        run.stop()
        print("\ninterrupted", file=sys.stderr)
        return 130
    for outcome in run.outcomes:
        if outcome.is_bad:
            print(f"\n===== again, of {outcome.part.title}:\n{failures_in(outcome)}")
    print()
    for outcome in sorted(run.outcomes, key=lambda outcome: -outcome.wall_s):
        counts = _as_text(outcome.results)
        print(f"{outcome.wall_s:7.1f} s {outcome.cpu_s:7.1f} s of CPU  {outcome.part.title[:80]}: {counts}")
    cpu_s = sum(outcome.cpu_s for outcome in run.outcomes)
    print(f"{time.monotonic() - began:7.1f} s {cpu_s:7.1f} s of CPU")
    total = sum((outcome.results for outcome in run.outcomes), Counter[str]())
    bad = any(outcome.is_bad for outcome in run.outcomes) or not total
    print(f"{'FAILED' if bad else 'PASSED'} ({_as_text(total)})", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
