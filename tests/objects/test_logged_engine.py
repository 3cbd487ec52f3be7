"""
L{resticserver.objects.logged_engine}.
"""

from __future__ import annotations

import threading

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from resticserver.objects.engine import Absent, AccessRefused, EngineError, EngineFull, Exists
from resticserver.objects.logged_engine import PERIOD_S, READ, REMOVE, STORE, FailureLog, LoggedEngine

from ..support.memory_engine import MemoryEngine


class LoggedEngineCase(SynchronousTestCase):
    """Tests that read the log."""

    def setUp(self) -> None:
        """Collect what is logged."""
        self.lines: list[str] = []
        self.levels: list[LogLevel] = []
        self.now_s = 1000.0

        @provider(ILogObserver)
        def take(event: LogEvent) -> None:
            self.lines.append(formatEvent(event))
            self.levels.append(event["log_level"])

        globalLogPublisher.addObserver(take)
        self.addCleanup(globalLogPublisher.removeObserver, take)
        self.log = FailureLog("s3://bucket", lambda: self.now_s)


class FailureLogTests(LoggedEngineCase):
    """L{FailureLog}."""

    def test_first_failure(self) -> None:
        """The first failure is logged at once, with the engine's words, in one line."""
        self.log.failed(READ, EngineError("", "it said\nno"))
        self.assertEqual(
            ["cannot read from s3://bucket: the object store does not answer as it should (it said\\nno)"], self.lines
        )
        self.assertEqual([LogLevel.error], self.levels)

    def test_many_failures(self) -> None:
        """A thousand failures within a minute are one line; the next one after it has their number."""
        for _ in range(1000):
            self.log.failed(STORE, AccessRefused("", "403"))
        self.assertEqual(1, len(self.lines))
        self.now_s += PERIOD_S
        self.log.failed(STORE, AccessRefused("", "403"))
        self.assertEqual(f"{self.lines[0]}; 999 more such failures since the last line", self.lines[1])

    def test_kinds(self) -> None:
        """Each kind of failure has its own line, for each thing that is done."""
        for action in (READ, STORE, REMOVE):
            self.log.failed(action, EngineError())
            self.log.failed(action, AccessRefused())
        self.log.failed(STORE, EngineFull())
        self.assertEqual(7, len(set(self.lines)))

    def test_again(self) -> None:
        """One line says that requests succeed again, and how many failed."""
        for _ in range(3):
            self.log.failed(READ, EngineError())
        self.log.succeeded(STORE)
        self.assertEqual(1, len(self.lines))
        self.log.succeeded(READ)
        self.log.succeeded(READ)
        self.assertEqual(["can read from s3://bucket again; failed requests: 3"], self.lines[1:])

    def test_now_and_then(self) -> None:
        """Failures between successes are two lines a minute at most."""
        for _ in range(100):
            self.log.failed(READ, EngineError())
            self.log.succeeded(READ)
        self.assertEqual(2, len(self.lines))

    def test_silent(self) -> None:
        """Nothing is logged by who says it himself."""
        with self.log.silent():
            self.log.failed(READ, EngineError())
        self.log.succeeded(READ)
        self.assertEqual([], self.lines)
        self.log.failed(READ, EngineError())
        self.assertEqual(1, len(self.lines))

    def test_long_words(self) -> None:
        """An engine cannot fill the log."""
        self.log.failed(READ, EngineError("", "x" * 100_000))
        self.assertLess(len(self.lines[0]), 600)

    def test_threads(self) -> None:
        """Failures in several threads are counted and are one line."""

        def fail() -> None:
            for _ in range(500):
                self.log.failed(READ, EngineError())

        threads = [threading.Thread(target=fail) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.log.succeeded(READ)
        self.assertEqual("can read from s3://bucket again; failed requests: 4000", self.lines[1])
        self.assertEqual(2, len(self.lines))


class LoggedEngineTests(LoggedEngineCase):
    """L{LoggedEngine}."""

    def setUp(self) -> None:
        """An engine in memory."""
        super().setUp()
        self.memory = MemoryEngine()
        self.engine = LoggedEngine(self.memory)

    def test_each_method(self) -> None:
        """A failure of each method is logged, and raised."""

        def fail() -> None:
            raise EngineError("", "broken")

        self.memory.objects["a"] = b"x"
        self.memory.modified_s["a"] = 0.0
        for name, action, call in (
            ("put_new", STORE, lambda: self.engine.put_new("b", b"")),
            ("put", STORE, lambda: self.engine.put("b", b"")),
            ("size_of", READ, lambda: self.engine.size_of("a")),
            ("get", READ, lambda: self.engine.get("a")),
            ("list_pages", READ, lambda: list(self.engine.list_pages(""))),
            ("list_folder", READ, lambda: self.engine.list_folder("")),
            ("check_bucket", READ, lambda: self.engine.check_bucket()),
            ("remove", REMOVE, lambda: self.engine.remove("a")),
        ):
            self.engine.log = FailureLog("s3://memory")
            self.lines.clear()
            self.memory.before[name] = [fail]
            self.assertRaises(EngineError, call)
            call()
            self.assertEqual(
                [
                    f"cannot {action} s3://memory: the object store does not answer as it should (broken)",
                    f"can {action} s3://memory again; failed requests: 1",
                ],
                self.lines,
                name,
            )

    def test_late_page(self) -> None:
        """The failure of a page that is not the first is logged."""
        for key in "abcdef":
            self.memory.put(key, b"")
        pages = self.engine.list_pages("")
        self.assertEqual(3, len(next(pages)))

        def fail() -> None:
            raise EngineError("", "late")

        self.memory.before["list_pages"] = [fail]
        self.assertRaises(EngineError, next, pages)
        self.assertEqual(1, len(self.lines))

    def test_answers(self) -> None:
        """That an object is missing or there is no failure."""
        self.assertRaises(Absent, self.engine.size_of, "a")
        self.engine.put_new("a", b"x")
        self.assertRaises(Exists, self.engine.put_new, "a", b"x")
        self.assertEqual([], self.lines)

    def test_body(self) -> None:
        """A body that breaks off is logged."""

        class Broken:
            size_bytes, start, end = 3, 0, 3

            def read(self) -> bytes:
                raise EngineError("", "a body ended 3 bytes early")

            def close(self) -> None:
                pass

        self.patch(self.memory, "get", lambda *_: Broken())
        body = self.engine.get("a")
        self.assertRaises(EngineError, body.read)
        self.assertEqual(1, len(self.lines))
