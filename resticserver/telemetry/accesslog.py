"""
The access log, in Apache's combined format or as JSON: a log observer, and the file that it writes.

Source: the C{LogFormat} "combined" of Apache's mod_log_config documentation.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO

from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher
from zope.interface import implementer

from .record import Record

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_log = Logger()

#: What may not stand in a quoted field as it is.
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in (*range(32), *range(127, 256))} | {0x22: '\\"', 0x5C: "\\\\"}


def _quoted(value: bytes | None) -> str:
    return '"-"' if not value else '"' + value.decode("latin-1").translate(_ESCAPES) + '"'


def _user(name: str | None) -> str:
    # Names hold no white space or quotes (names.is_user_name), so letters of any script may stand as they are.
    return name or "-"


def combined_line(record: Record) -> str:
    """One line of the combined format, without its end."""
    at = time.localtime(record.started)
    offset = at.tm_gmtoff
    sign = "-" if offset < 0 else "+"
    stamp = (
        f"{at.tm_mday:02d}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
        f" {sign}{abs(offset) // 3600:02d}{abs(offset) // 60 % 60:02d}"
    )
    request = b" ".join((record.method, record.uri, record.version))
    return (
        f"{record.address} - {_user(record.user)} [{stamp}] {_quoted(request)} {record.status} "
        f"{record.sent_bytes or '-'} {_quoted(record.referer)} {_quoted(record.user_agent)}"
    )


def json_line(record: Record) -> str:
    """One line of JSON, without its end; its keys are in docs/operations.md."""
    target = record.target
    document = {
        "time": datetime.fromtimestamp(record.started, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "address": record.address,
        "user": record.user,
        "method": record.method.decode("latin-1"),
        "uri": record.uri.decode("latin-1"),
        "version": record.version.decode("latin-1"),
        "repository": "/".join(target.repository) if target is not None else None,
        "type": target.type or None if target is not None else None,
        "status": record.status,
        "ending": record.ending.value,
        "received_bytes": record.received_bytes,
        "sent_bytes": record.sent_bytes,
        "duration_s": round(record.duration_s, 6),
        "referer": None if record.referer is None else record.referer.decode("latin-1"),
        "user_agent": None if record.user_agent is None else record.user_agent.decode("latin-1"),
    }
    return json.dumps(document, separators=(",", ":"))


#: What a line may look like, by the values of C{--log-format}.
FORMATS = {"combined": combined_line, "json": json_line}

#: What ILogObserver is for a type checker.
Observer = Callable[[LogEvent], None]


class AccessLog:
    """
    Publishes every record as an event with the key C{record}, for observers that want it.

    Kept apart from Twisted's global log so that a request costs nothing where nobody looks.
    """

    def __init__(self) -> None:
        self.publisher = LogPublisher()
        self._log = Logger(namespace="resticserver.access", observer=self.publisher)
        self._observers: list[Observer] = []

    def add(self, observer: Observer) -> None:
        """From now on tell this observer."""
        self._observers.append(observer)
        self.publisher.addObserver(observer)  # type: ignore[arg-type]

    def remove(self, observer: Observer) -> None:
        """Tell this observer no more."""
        self._observers.remove(observer)
        self.publisher.removeObserver(observer)  # type: ignore[arg-type]

    def __call__(self, record: Record) -> None:
        """Take a record (a L{resticserver.telemetry.record.Recorder})."""
        if self._observers:
            self._log.info("{record}", record=record)


@implementer(ILogObserver)
class AccessLogService(Service):
    """
    A log observer that writes a line for each request to a file, as a service: the file is open while it runs.

    Lines are gathered and written by a pool, in order, one job at a time, so that a slow disk stops no request. Several
    processes may have the same file: lines stay whole, for what is written at a time is written by one call.

    @param path: the file, or C{"-"} for stdout.
    @param run: runs a callable in the pool; its result is not looked at.
    @param line: makes the line, without its end.
    """

    def __init__(
        self,
        path: str,
        access_log: AccessLog,
        run: Callable[[Callable[[], None]], object],
        line: Callable[[Record], str] = combined_line,
    ) -> None:
        self._path = path
        self._line = line
        self._access_log = access_log
        self._run = run
        self._lines: deque[str] = deque()
        self._scheduled = False
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._complained = False
        self._stopped = True
        self.setName("access log")

    def startService(self) -> None:
        """
        Open the file and listen.

        @raise OSError: the file cannot be opened.
        """
        self._file = self._open()
        self._stopped = False
        super().startService()
        self._access_log.add(self)

    def stopService(self) -> None:
        """Write what is left and close the file."""
        super().stopService()
        self._access_log.remove(self)
        self._write(reopen=False)
        self._stopped = True
        self._close()

    def reopen(self) -> None:
        """Open the file anew by its name, after it was rotated."""
        self._run(lambda: self._write(reopen=True))

    def __call__(self, event: LogEvent) -> None:
        """Take an event (L{ILogObserver})."""
        self._lines.append(self._line(event["record"]))
        if not self._scheduled:
            self._scheduled = True
            self._run(lambda: self._write(reopen=False))

    def _write(self, reopen: bool) -> None:
        """In the pool, or at the end in the reactor's thread: write all that has been gathered."""
        with self._lock:
            # Before the lines are taken: one that comes after asks for a job of its own.
            self._scheduled = False
            lines = [(self._lines.popleft() + "\n").encode("utf-8") for _ in range(len(self._lines))]
            try:
                if reopen:
                    self._close()
                if self._file is None and not self._stopped:
                    self._file = self._open()
                if lines and self._file is not None:
                    # A file takes all at once. A pipe takes no more than this without others' lines in between.
                    for batch in batches(lines, select.PIPE_BUF) if self._path == "-" else (b"".join(lines),):
                        _write_all(self._file, batch)
                    self._complained = False
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    _log.error("cannot write the access log {path}: {error}", path=self._path, error=error)

    def _open(self) -> BinaryIO:
        if self._path == "-":
            return sys.stdout.buffer
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        # Unbuffered: what could not be written is not tried again behind what comes later.
        return open(fd, "ab", buffering=0)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None and self._path != "-":
            with suppress(OSError):
                file.close()


def batches(lines: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    """Lines in as few pieces as there may be; one that is longer than a piece may be is a piece of its own."""
    batch = b""
    for line in lines:
        if batch and len(batch) + len(line) > most_bytes:
            yield batch
            batch = b""
        batch += line
    if batch:
        yield batch


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write it all; an unbuffered file may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.flush()
