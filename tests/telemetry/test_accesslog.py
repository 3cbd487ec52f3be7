"""
The access log: lines of the combined format, and the file that they go to.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.targets import parse_target
from resticserver.telemetry import accesslog
from resticserver.telemetry.accesslog import FORMATS, AccessLog, AccessLogService, combined_line, json_line
from resticserver.telemetry.record import Ending, Record

#: 2026-03-01 12:00:05 UTC
NOON = 1772366405.75

PLAIN = Record(
    started=NOON,
    duration_s=0.25,
    address="192.0.2.7",
    user="alice",
    method=b"GET",
    uri=b"/alice/locks/?x=1",
    version=b"HTTP/1.1",
    target=None,
    status=200,
    sent_bytes=1234,
    received_bytes=0,
    referer=None,
    user_agent=b"Go-http-client/1.1",
    ending=Ending.DONE,
)

_HEAD = "192.0.2.7 - alice [01/Mar/2026:12:00:05 +0000]"
_TAIL = '"-" "Go-http-client/1.1"'

#: what is different from PLAIN -> the line
LINES: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, f'{_HEAD} "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 {_TAIL}'),
    ({"user": None}, f'192.0.2.7 - - [01/Mar/2026:12:00:05 +0000] "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 {_TAIL}'),
    (
        {"user": "müller@example.org"},
        "192.0.2.7 - müller@example.org [01/Mar/2026:12:00:05 +0000]"
        f' "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 {_TAIL}',
    ),
    ({"address": "-"}, f'- - alice [01/Mar/2026:12:00:05 +0000] "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 {_TAIL}'),
    (
        {"address": "2001:db8::1"},
        f'2001:db8::1 - alice [01/Mar/2026:12:00:05 +0000] "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 {_TAIL}',
    ),
    ({"sent_bytes": 0, "status": 404}, f'{_HEAD} "GET /alice/locks/?x=1 HTTP/1.1" 404 - {_TAIL}'),
    (
        {"method": b"POST", "sent_bytes": 0, "status": 499, "ending": Ending.LOST, "received_bytes": 5},
        f'{_HEAD} "POST /alice/locks/?x=1 HTTP/1.1" 499 - {_TAIL}',
    ),
    (
        {"referer": b"http://example.org/", "user_agent": None},
        f'{_HEAD} "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 "http://example.org/" "-"',
    ),
    ({"user_agent": b""}, f'{_HEAD} "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 "-" "-"'),
    (
        {"uri": b'/a"b\\c'},
        f'{_HEAD} "GET /a\\"b\\\\c HTTP/1.1" 200 1234 {_TAIL}',
    ),
    (
        {"uri": b"/\r\n\t\x00\x1b[31m\x7f\xe9\xff"},
        f'{_HEAD} "GET /\\x0d\\x0a\\x09\\x00\\x1b[31m\\x7f\\xe9\\xff HTTP/1.1" 200 1234 {_TAIL}',
    ),
    (
        {"user_agent": b'a" 200 1 "b\n', "referer": b"caf\xc3\xa9"},
        f'{_HEAD} "GET /alice/locks/?x=1 HTTP/1.1" 200 1234 "caf\\xc3\\xa9" "a\\" 200 1 \\"b\\x0a"',
    ),
    ({"method": b"-", "uri": b"-"}, f'{_HEAD} "- - HTTP/1.1" 200 1234 {_TAIL}'),
)

#: a POSIX time zone -> the stamp of NOON
ZONES = (
    ("UTC0", "01/Mar/2026:12:00:05 +0000"),
    ("CET-1", "01/Mar/2026:13:00:05 +0100"),
    ("EST5", "01/Mar/2026:07:00:05 -0500"),
    ("IST-5:30", "01/Mar/2026:17:30:05 +0530"),
    ("NST3:30", "01/Mar/2026:08:30:05 -0330"),
    ("LINT-14", "02/Mar/2026:02:00:05 +1400"),
    ("XXX12:15", "28/Feb/2026:23:45:05 -1215"),
)


def in_zone(test: SynchronousTestCase, zone: str) -> None:
    """Set the time zone of the process until the end of the test."""

    def put(value: str | None) -> None:
        if value is None:
            os.environ.pop("TZ", None)
        else:
            os.environ["TZ"] = value
        time.tzset()

    test.addCleanup(put, os.environ.get("TZ"))
    put(zone)


def at_once(job: Callable[[], None]) -> None:
    """A pool that has done its job when it returns."""
    job()


class LineTests(SynchronousTestCase):
    """L{combined_line}."""

    def test_table(self) -> None:
        """Each record is exactly this line: nothing that a client sends ends it or closes a field."""
        in_zone(self, "UTC0")
        for changes, line in LINES:
            self.assertEqual(line, combined_line(PLAIN._replace(**changes)))

    def test_zones(self) -> None:
        """The time is the local one, with its offset from UTC."""
        for zone, stamp in ZONES:
            in_zone(self, zone)
            self.assertIn(f" [{stamp}] ", combined_line(PLAIN))

    def test_one_printable_line(self) -> None:
        """Whatever bytes a client sends, a line is one line of printable ASCII (but for the name of a known user)."""
        everything = bytes(range(256))
        record = PLAIN._replace(method=everything, uri=everything, referer=everything, user_agent=everything)
        line = combined_line(record)
        self.assertTrue(line.isascii() and line.isprintable())


class JsonTests(SynchronousTestCase):
    """L{json_line}."""

    def test_keys(self) -> None:
        """What is known of a request stands under these keys, and nothing else."""
        record = PLAIN._replace(target=parse_target(b"/alice/laptop/data/" + b"0" * 64), received_bytes=7)
        self.assertEqual(
            {
                "time": "2026-03-01T12:00:05.750Z",
                "address": "192.0.2.7",
                "user": "alice",
                "method": "GET",
                "uri": "/alice/locks/?x=1",
                "version": "HTTP/1.1",
                "repository": "alice/laptop",
                "type": "data",
                "status": 200,
                "ending": "done",
                "received_bytes": 7,
                "sent_bytes": 1234,
                "duration_s": 0.25,
                "referer": None,
                "user_agent": "Go-http-client/1.1",
            },
            json.loads(json_line(record)),
        )

    def test_what_names_nothing(self) -> None:
        """Without a target, a user or headers there is null; the root repository has an empty name."""
        nobody = json.loads(json_line(PLAIN._replace(user=None, user_agent=None)))
        self.assertEqual([None] * 4, [nobody[key] for key in ("user", "repository", "type", "user_agent")])
        root = json.loads(json_line(PLAIN._replace(target=parse_target(b"/"))))
        self.assertEqual(("", None), (root["repository"], root["type"]))

    def test_one_line(self) -> None:
        """Whatever a client sends, it is one line of ASCII that JSON reads, and no byte of it is lost."""
        everything = bytes(range(256))
        line = json_line(PLAIN._replace(method=everything, uri=everything, user_agent=everything, user="алиса"))
        self.assertTrue(line.isascii() and line.isprintable())
        document = json.loads(line)
        self.assertEqual("алиса", document["user"])
        for key in ("method", "uri", "user_agent"):
            self.assertEqual(everything, document[key].encode("latin-1"))

    def test_written(self) -> None:
        """A service with this format writes it."""
        path = Path(self.mktemp())
        log = AccessLog()
        service = AccessLogService(str(path), log, at_once, FORMATS["json"])
        service.startService()
        log(PLAIN)
        service.stopService()
        self.assertEqual(f"{json_line(PLAIN)}\n", path.read_text())


class AccessLogTests(SynchronousTestCase):
    """L{AccessLog}: records to observers."""

    def test_observers(self) -> None:
        """Each observer gets each record while it is there."""
        log = AccessLog()
        seen: list[LogEvent] = []
        log(PLAIN)
        log.add(seen.append)
        log(PLAIN)
        log.remove(seen.append)
        log(PLAIN)
        self.assertEqual([PLAIN], [event["record"] for event in seen])

    def test_apart_from_the_diagnostics(self) -> None:
        """Requests are no diagnostics: the global log does not get them."""
        log = AccessLog()
        log.add(lambda event: None)
        with capturedLogs() as events:
            log(PLAIN)
        self.assertEqual([], list(events))


class AccessLogServiceTests(SynchronousTestCase):
    """L{AccessLogService}: lines to a file."""

    def started(self, path: str, run: Callable[[Callable[[], None]], object] = at_once) -> AccessLog:
        """An access log whose file is open."""
        self.log = AccessLog()
        self.service = AccessLogService(path, self.log, run)
        self.service.startService()
        self.addCleanup(self.stop)
        return self.log

    def stop(self) -> None:
        """Close the file, if that is still to be done."""
        if self.service.running:
            self.service.stopService()

    def test_writes(self) -> None:
        """A line a record, appended to what is there, on disk at once, and all of them at the end."""
        path = Path(self.mktemp())
        path.write_text("from before\n")
        log = self.started(str(path))
        log(PLAIN)
        self.assertEqual(f"from before\n{combined_line(PLAIN)}\n", path.read_text())
        log(PLAIN)
        self.service.stopService()
        log(PLAIN)
        self.assertEqual(f"from before\n{combined_line(PLAIN)}\n{combined_line(PLAIN)}\n", path.read_text())

    def test_user_of_any_script(self) -> None:
        """The file is UTF-8, whatever the locale."""
        path = Path(self.mktemp())
        log = self.started(str(path))
        log(PLAIN._replace(user="алиса"))
        self.service.stopService()
        self.assertIn(" - алиса [", path.read_text(encoding="utf-8"))

    def test_not_for_everyone(self) -> None:
        """Others may not read who does backups from where."""
        path = Path(self.mktemp())
        self.started(str(path))
        self.service.stopService()
        self.assertEqual(0, path.stat().st_mode & 0o007)

    def test_cannot_be_opened(self) -> None:
        """A file that cannot be opened is an error at the start."""
        path = os.path.join(self.mktemp(), "missing", "access.log")
        error = self.assertRaises(StartError, self.started, path)
        self.assertEqual(f"--log: cannot open {path}: No such file or directory", str(error))

    def test_lines_wait_for_the_pool(self) -> None:
        """No request waits for the disk: lines are gathered until the pool comes to them, by one job."""
        path = Path(self.mktemp())
        jobs: list[Callable[[], None]] = []
        log = self.started(str(path), jobs.append)
        for number in range(3):
            log(PLAIN._replace(status=200 + number))
        self.assertEqual((1, ""), (len(jobs), path.read_text()))
        jobs.pop()()
        self.assertEqual(3, path.read_text().count("\n"))
        log(PLAIN)
        self.assertEqual(1, len(jobs))
        self.service.stopService()
        for job in jobs:
            job()
        self.assertEqual(4, path.read_text().count("\n"))

    def test_every_record_once(self) -> None:
        """From a thread too every record is written, once, and in order."""
        path = Path(self.mktemp())
        with ThreadPoolExecutor(1) as pool:
            log = self.started(str(path), pool.submit)
            for number in range(3000):
                log(PLAIN._replace(sent_bytes=number + 1))
            self.service.stopService()
        wanted = [combined_line(PLAIN._replace(sent_bytes=number + 1)) for number in range(3000)]
        self.assertEqual(wanted, path.read_text().splitlines())

    def test_every_record_once_while_rotated(self) -> None:
        """Rotation in the midst of it loses no record and doubles none."""
        path = Path(self.mktemp())
        jobs: list[Future[None]] = []
        with ThreadPoolExecutor(1) as pool:
            log = self.started(str(path), lambda job: jobs.append(pool.submit(job)))
            for number in range(3000):
                log(PLAIN._replace(sent_bytes=number + 1))
                if number % 500 == 250:
                    path.rename(f"{path}.{number:04d}")
                    self.service.reopen()
                    jobs[-1].result()
            self.service.stopService()
        parts = [*sorted(path.parent.glob(f"{path.name}.*")), path]
        lines = "".join(part.read_text() for part in parts).splitlines()
        wanted = [combined_line(PLAIN._replace(sent_bytes=number + 1)) for number in range(3000)]
        self.assertEqual(wanted, lines)

    def test_reopen(self) -> None:
        """After a rotation the old file gets no more lines and a new one of the name does."""
        path = Path(self.mktemp())
        log = self.started(str(path))
        log(PLAIN)
        old = path.rename(f"{path}.1")
        log(PLAIN)
        self.service.reopen()
        log(PLAIN)
        self.service.stopService()
        self.assertEqual((2, 1), (old.read_text().count("\n"), path.read_text().count("\n")))

    def test_cannot_be_reopened(self) -> None:
        """A file that cannot be opened any more is said once; when it can, lines are written again."""
        folder = Path(self.mktemp())
        folder.mkdir()
        path = folder / "access.log"
        log = self.started(str(path))
        moved = folder.rename(f"{folder}.away")
        with capturedLogs() as events:
            self.service.reopen()
            self.service.reopen()
        self.assertEqual(1, len(events))
        log(PLAIN)
        moved.rename(folder)
        self.service.reopen()
        log(PLAIN)
        self.service.stopService()
        self.assertIn(combined_line(PLAIN), path.read_text())

    def test_reopened_when_it_can_be(self) -> None:
        """A file that could not be opened after a rotation is tried again with the next lines, without a signal."""
        folder = Path(self.mktemp())
        folder.mkdir()
        path = folder / "access.log"
        log = self.started(str(path))
        moved = folder.rename(f"{folder}.away")
        with capturedLogs() as events:
            self.service.reopen()
            log(PLAIN)
            log(PLAIN)
        self.assertEqual(1, len(events))
        moved.rename(folder)
        log(PLAIN._replace(status=206))
        self.service.stopService()
        self.assertIn(combined_line(PLAIN._replace(status=206)), path.read_text())

    def full_disk(self) -> str:
        """A path whose disk is full."""
        path: str = self.mktemp()
        os.symlink("/dev/full", path)
        return path

    def test_full_disk(self) -> None:
        """A full disk stops no request: it is said once, and only again after it went well in between."""
        log = self.started(self.full_disk())
        with capturedLogs() as events:
            for _ in range(5):
                log(PLAIN)
        self.assertEqual(1, len(events))
        self.assertIn("No space left", str(events[0]["error"]))

    def test_full_disk_at_the_end(self) -> None:
        """Nor does it stop the server from stopping."""
        log = self.started(self.full_disk())
        with capturedLogs():
            log(PLAIN)
            self.service.stopService()
        self.assertFalse(self.service.running)

    def test_full_disk_then_rotated(self) -> None:
        """A log that was moved from a full disk to a free one (which is when people do it) goes on in the new file."""
        path = self.full_disk()
        log = self.started(path)
        with capturedLogs():
            log(PLAIN)
            os.unlink(path)
            self.service.reopen()
        log(PLAIN._replace(status=206))
        self.service.stopService()
        self.assertIn(combined_line(PLAIN._replace(status=206)), Path(path).read_text())

    def test_short_writes(self) -> None:
        """A disk that takes only a part of what is written loses nothing, and tears no line."""
        written = bytearray()

        class Reluctant(io.RawIOBase):
            """A file of a few bytes at a time."""

            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                written.extend(bytes(data[:7]))
                return len(data[:7])

        self.patch(AccessLogService, "_open", lambda service: Reluctant())
        log = self.started("unused")
        for _ in range(3):
            log(PLAIN)
        self.service.stopService()
        self.assertEqual(f"{combined_line(PLAIN)}\n" * 3, written.decode())

    def stdout(self) -> Path:
        """A file that is the log's stdout."""
        path = Path(self.mktemp())
        file = path.open("wb")
        self.addCleanup(file.close)
        self.patch(accesslog, "STDOUT", file.fileno())
        return path

    def test_stdout(self) -> None:
        """C{-} is stdout, which stays open."""
        path = self.stdout()
        log = self.started("-")
        log(PLAIN)
        self.assertEqual(f"{combined_line(PLAIN)}\n", path.read_text())
        self.service.reopen()
        log(PLAIN)
        self.service.stopService()
        os.write(accesslog.STDOUT, b"still open\n")
        self.assertEqual(f"{combined_line(PLAIN)}\n" * 2 + "still open\n", path.read_text())

    def test_a_pipe_that_others_write_to(self) -> None:
        """No call writes more than a pipe takes in one piece, and none tears a line that fits."""
        path = self.stdout()
        written: list[bytes] = []
        puts = AccessLogService._put

        def put(service: AccessLogService, piece: bytes) -> None:
            written.append(piece)
            puts(service, piece)

        self.patch(AccessLogService, "_put", put)
        jobs: list[Callable[[], None]] = []
        log = self.started("-", jobs.append)
        for number in range(200):
            log(PLAIN._replace(uri=b"/" + b"x" * number))
        log(PLAIN._replace(uri=b"/" + b"x" * 5000))
        log(PLAIN)
        jobs.pop()()
        self.assertEqual(path.read_bytes(), b"".join(written))
        self.assertEqual(202, b"".join(written).count(b"\n"))
        self.assertTrue(all(piece.endswith(b"\n") for piece in written))
        self.assertEqual(1, sum(len(piece) > select.PIPE_BUF for piece in written))
        self.assertLess(len(written), 20)

    def test_stalled_pipe(self) -> None:
        """A pipe that nobody reads, also one that somebody has made non-blocking: nothing waits for it, and nothing is lost."""
        for blocking in (True, False):
            reading, writing = os.pipe()
            os.set_blocking(writing, blocking)
            self.patch(accesslog, "STDOUT", writing)
            received = bytearray()
            with ThreadPoolExecutor(1) as pool:
                log = self.started("-", pool.submit)
                for number in range(2000):
                    log(PLAIN._replace(sent_bytes=number + 1))
                self.service.stopService()
                while received.count(b"\n") < 2000:
                    received += os.read(reading, 65536)
            os.close(reading)
            os.close(writing)
            wanted = [combined_line(PLAIN._replace(sent_bytes=number + 1)) for number in range(2000)]
            self.assertEqual(wanted, received.decode().splitlines())

    def test_bounded(self) -> None:
        """What waits for a log that hangs has a bound; how many lines were lost is said when it goes on."""
        self.patch(accesslog, "MOST_WAITING", 10)
        path = Path(self.mktemp())
        jobs: list[Callable[[], None]] = []
        log = self.started(str(path), jobs.append)
        for _ in range(25):
            log(PLAIN)
        self.assertEqual(1, len(jobs))
        with capturedLogs() as events:
            jobs.pop()()
        self.assertEqual(10, path.read_text().count("\n"))
        self.assertEqual([f"15 lines of the access log {path} were lost"], [formatEvent(event) for event in events])

    def test_fifo_without_a_reader(self) -> None:
        """It is an error at the start, and nothing to wait for."""
        path = self.mktemp()
        os.mkfifo(path)
        self.assertRaises(StartError, self.started, path)

    def test_torn_line(self) -> None:
        """When a disk has become full in the middle of a line, what comes later stands on lines of its own."""
        written = bytearray()

        class Filling(io.RawIOBase):
            """A disk with room for so many bytes."""

            room = 20

            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                taken = min(len(data), self.room)
                if not taken:
                    raise OSError(errno.ENOSPC, "full")
                self.room -= taken
                written.extend(data[:taken])
                return taken

        disk = Filling()
        self.patch(AccessLogService, "_open", lambda service: disk)
        log = self.started("unused")
        with capturedLogs() as events:
            log(PLAIN)
            log(PLAIN)
            disk.room = 10_000
            log(PLAIN._replace(status=206))
            log(PLAIN._replace(status=207))
        self.service.stopService()
        lines = [combined_line(PLAIN)[:20], *(combined_line(PLAIN._replace(status=status)) for status in (206, 207))]
        self.assertEqual(lines, written.decode().splitlines())
        self.assertIn("2 lines of the access log unused were lost", [formatEvent(event) for event in events])

    def test_rotated_to_a_name_that_cannot_be_opened(self) -> None:
        """The old file goes on, which is said once; when the name can be had it is used without a signal."""
        path = Path(self.mktemp())
        log = self.started(str(path))
        old = path.rename(f"{path}.1")
        path.mkdir()
        with capturedLogs() as events:
            self.service.reopen()
            log(PLAIN)
            log(PLAIN)
        self.assertEqual(1, len(events))
        self.assertEqual(2, old.read_text().count("\n"))
        path.rmdir()
        log(PLAIN)
        self.service.stopService()
        self.assertEqual((2, 1), (old.read_text().count("\n"), path.read_text().count("\n")))

    def test_names_of_any_script(self) -> None:
        """stdout gets UTF-8, whatever the locale."""
        path = self.stdout()
        log = self.started("-")
        log(PLAIN._replace(user="алиса"))
        self.assertIn(" - алиса [", path.read_text(encoding="utf-8"))
