"""
The server in the tree of another Twisted application: the examples of F{docs/embedding.md}, run as they stand there.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.server import ResticServer
from resticserver.tap import Options, makeService

from ..support.client import Client
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import installed, server_environment
from ..support.waiting import PATIENCE_S, wait_until

PAGE = Path(__file__).parent.parent.parent / "docs" / "embedding.md"


def examples(data: Path) -> list[str]:
    """
    The programs of the page, with another directory and address.

    @param data: the data directory; the address is the Unix socket with this name and C{.socket}.
    """
    page = PAGE.read_text(encoding="utf-8")
    for words, replacement in (("/srv/restic", str(data)), ("127.0.0.1:8000", f"unix:{data}.socket")):
        assert page.count(words) == 2, words
        page = page.replace(words, replacement)
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@process_test
class ExampleTests(SynchronousTestCase):
    """The examples, as processes."""

    def setUp(self) -> None:
        self.directory = scratch_directory(self)
        self.data = self.directory / "data"
        self.socket = f"{self.data}.socket"
        self.log = self.directory / "log"

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program, and wait until its server answers."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.directory, env=server_environment(), stdout=log, stderr=subprocess.STDOUT
            )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        wait_until(lambda: self.answers(process), PATIENCE_S, "the server")
        return process

    def answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether a repository can be created."""
        assert process.poll() is None, self.log.read_text()
        try:
            with Client(self.socket) as client:
                return client.request("POST", "/laptop/?create=true").status == 200
        except OSError:
            return False

    def assert_stopped(self, process: subprocess.Popen[bytes], by: signal.Signals) -> None:
        """It serves up to the signal, and stops in order, without a traceback."""
        process.send_signal(by)
        process.wait(PATIENCE_S)
        said = self.log.read_text()
        self.assertIn("shutdown cleanly", said)
        self.assertNotIn("Traceback", said)
        self.assertTrue((self.data / "laptop" / "keys").is_dir())

    def test_application(self) -> None:
        """The .tac file under twistd: the server and another service in one tree."""
        tac = self.directory / "embedded.tac"
        tac.write_text(examples(self.data)[0].replace("TimerService(60", "TimerService(0.1"))
        process = self.start(installed("twistd"), "--nodaemon", "--pidfile=", "--python", str(tac))
        wait_until(lambda: "still here" in self.log.read_text(), PATIENCE_S, "the other service")
        self.assert_stopped(process, signal.SIGTERM)

    def test_running_reactor(self) -> None:
        """The server is started and stopped while the reactor runs, and the program goes on after it."""
        program = self.directory / "program.py"
        example = examples(self.data)[1]
        # Ended by a file instead of by the time.
        waiting = "await deferLater(reactor, 3600, lambda: None)"
        self.assertIn(waiting, example)
        ended = f"while not __import__('os').path.exists({str(self.directory / 'end')!r}):\n            "
        example = example.replace(waiting, ended + waiting.replace("3600", "0.05"))
        logged = "import sys\nfrom twisted.logger import globalLogBeginner, textFileLogObserver\n"
        logged += "globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)])\n"
        program.write_text(logged + example.replace("stopService()", "stopService()\n        print('stopped')"))
        process = self.start(sys.executable, str(program))
        (self.directory / "end").touch()
        self.assertEqual(0, process.wait(PATIENCE_S), self.log.read_text())
        said = self.log.read_text()
        self.assertIn("shutdown cleanly", said)
        self.assertIn("stopped", said)
        self.assertNotIn("Traceback", said)


class InterfaceTests(SynchronousTestCase):
    """The names that the page promises."""

    def test_opens_nothing(self) -> None:
        """The service is made without a directory, a port or a signal handler."""
        directory = scratch_directory(self) / "data"
        before = signal.getsignal(signal.SIGHUP)
        options = Options()
        options.parseOptions(["--path", str(directory), "--no-auth", "--listen", "127.0.0.1:0"])
        self.assertIsInstance(makeService(options), ResticServer)
        self.assertFalse(directory.exists())
        self.assertEqual(before, signal.getsignal(signal.SIGHUP))

    def test_wrong_value(self) -> None:
        """A wrong value is one line."""
        error = self.assertRaises(SystemExit, Options().parseOptions, ["--max-size", "much"])
        self.assertIn("--max-size", str(error.code))
