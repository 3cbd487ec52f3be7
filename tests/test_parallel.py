"""
L{tests.parallel}: what is added up, and that nothing that went wrong counts as passed.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from . import parallel
from .parallel import Outcome, Part, Run, failures_in, modules_of, parts_of, results_of
from .support.processes import process_test

#: Stands for trial: does what the last of its arguments says.
PROGRAM = """
import os, sys
name = sys.argv[-1]
if name == "passes":
    print("noise\\nPASSED (successes=2)")
elif name == "fails":
    print("=" * 79 + "\\n[FAIL]\\nwhy\\n\\nFAILED (failures=1, successes=1)")
    sys.exit(1)
elif name == "skips":
    print("PASSED (skips=2)")
elif name == "lies":
    print("PASSED (successes=2)")
    sys.exit(3)
elif name == "crashes":
    print("begin", flush=True)
    os.kill(os.getpid(), 9)
elif name == "silent":
    print("bye")
"""


class ResultTests(SynchronousTestCase):
    """Reading what trial says."""

    def test_last_line(self) -> None:
        """The last result counts, with all its numbers; a line that only looks like one does not."""
        for output, wanted in (
            ("Ran 2 tests\n\nPASSED (skips=1, successes=2)\n", {"skips": 1, "successes": 2}),
            ("FAILED (errors=1)\nPASSED (successes=2)\n", {"successes": 2}),
            ("FAILED (failures=1, errors=2, successes=3)\n", {"failures": 1, "errors": 2, "successes": 3}),
            ("PASSED\n", {}),
        ):
            self.assertEqual(Counter(wanted), results_of(output), output)
        for output in ("", "PASSED by\n", " PASSED (successes=2)\n", "Traceback\n"):
            self.assertIsNone(results_of(output), output)

    def test_failures(self) -> None:
        """Of a failed part the failures are shown again, of one that crashed all of it."""
        rule = "=" * 79
        for output, shown in ((f"a [OK]\n{rule}\n[FAIL]\n", f"\n{rule}\n[FAIL]\n"), ("a [OK]\nSegmentation\n",) * 2):
            outcome = Outcome(Part("x", ("x",), 1), Counter(), output, 0.0, 0.0)
            self.assertEqual(shown, failures_in(outcome))


class PartsTests(SynchronousTestCase):
    """What is run."""

    def test_all_of_it(self) -> None:
        """Every test module of the checkout is in a part; what is shipped is only tested by its name."""
        here = Path(__file__).parent
        files = {".".join(path.relative_to(here.parent).with_suffix("").parts) for path in here.rglob("test_*.py")}
        apart = set(modules_of(parallel.APART))
        self.assertEqual(files, set(modules_of("tests")) | apart)
        self.assertEqual(set(), set(modules_of("tests")) & apart)

    def test_classes(self) -> None:
        """A module in several parts is whole."""
        self.patch(parallel, "LONGEST_FIRST", {__name__: 2})
        whole = parts_of([__name__], False)
        self.assertEqual(2, len(whole))
        names = [name for part in whole for name in part.names]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(sum(part.tests for part in whole), len(names))
        self.patch(parallel, "LONGEST_FIRST", {})
        (part,) = parts_of([__name__], False)
        self.assertEqual(((__name__,), len(names)), (part.names, part.tests))

    def test_unit(self) -> None:
        """C{--unit} leaves out what starts a process."""
        (part,) = parts_of([__name__], True)
        self.assertNotIn(f"{__name__}.RunTests.test_sum", part.names)
        self.assertIn(self.id(), part.names)
        self.assertEqual([], parts_of(["tests.integration.test_units"], True))

    def test_not_there(self) -> None:
        """What cannot be imported is a part, so that trial says why."""
        (part,) = parts_of(["tests.test_no_such_module"], False)
        self.assertEqual(("tests.test_no_such_module",), part.names)


@process_test
class RunTests(SynchronousTestCase):
    """L{Run} with something in trial's place."""

    def run_all(self, *names: str, tests: int = 2) -> dict[str, Counter[str]]:
        """The results by title."""
        run = Run((Part(name, (name,), tests) for name in names), Path(self.mktemp()), (sys.executable, "-c", PROGRAM))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run.all(2)
        self.said = said.getvalue()
        return {outcome.part.title: outcome.results for outcome in run.outcomes}

    def test_sum(self) -> None:
        """Results are those of the processes."""
        found = self.run_all("passes", "fails", "skips")
        self.assertEqual(
            {
                "passes": Counter(successes=2),
                "fails": Counter(failures=1, successes=1),
                "skips": Counter(skips=2),
            },
            found,
        )
        self.assertIn("noise", self.said)

    def test_left_over(self) -> None:
        """A temporary directory that a run which was ended has left, as trial would not remove it, is no hindrance."""
        directory = Path(self.mktemp())
        (directory / "part-1" / "deep").mkdir(parents=True)
        run = Run([Part("passes", ("passes",), 2)], directory, (sys.executable, "-c", PROGRAM))
        with contextlib.redirect_stdout(io.StringIO()):
            run.all(1)
        self.assertFalse((directory / "part-1").exists())
        self.assertEqual([Counter(successes=2)], [outcome.results for outcome in run.outcomes])

    def test_no_result(self) -> None:
        """A process that crashes, or ends in silence, or with another status than its result, is an error."""
        for name in ("crashes", "silent", "lies"):
            self.assertEqual(1, self.run_all(name)[name]["errors"], name)

    def test_fewer(self) -> None:
        """So is one that ran fewer tests than there are."""
        self.assertEqual(Counter(successes=2, errors=1), self.run_all("passes", tests=3)["passes"])

    def test_status(self) -> None:
        """The exit status and the last line: failed where anything failed, or nothing was run."""
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        environment = mock.patch.dict(os.environ, PYTHONPATH=str(path))
        environment.start()
        self.addCleanup(environment.stop)
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        for body, status, line in (
            ("self.assertTrue(True)", 0, "PASSED (successes=2)"),
            ("self.assertTrue(name)", 1, "FAILED (failures=1, successes=1)"),
            ("__import__('os')._exit(0)", 1, "FAILED (errors=2)"),
        ):
            modules = []
            for name, value in (("one", "'x'"), ("two", "''")):
                modules.append(f"test_{name}_{status}_{len(body)}")
                (path / f"{modules[-1]}.py").write_text(
                    "from twisted.trial.unittest import SynchronousTestCase\n"
                    f"name = {value}\n"
                    f"class SomeTests(SynchronousTestCase):\n    def test_it(self):\n        {body}\n"
                )
            self.patch(sys, "path", [str(path), *sys.path])
            self.patch(parallel, "MODULES_A_PROCESS", 1)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                self.assertEqual(status, parallel.main(["--temp", str(path / "temp"), "--jobs", "2", *modules]))
            self.assertEqual(line, said.getvalue().splitlines()[-1])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            self.assertEqual(1, parallel.main(["--unit", "--temp", str(path / "temp"), "tests.integration.test_units"]))
        self.assertEqual("FAILED (nothing)", said.getvalue().splitlines()[-1])
