"""
The access log, in Apache's combined format or as JSON: a log observer and the file that it writes.

Source: the C{LogFormat} "combined" in Apache's mod_log_config documentation.
"""

from __future__ import annotations

import errno
import json
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import RawIOBase
from typing import cast

from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher
from zope.interface import implementer

from ..dates import date_text
from ..errors import StartError
from .record import Record

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_log = Logger()

#: The most lines that wait while the log cannot be written. Further lines are lost, and counted.
MOST_WAITING = 100_000
#: The file descriptor for C{--log -}.
STDOUT = 1

#: Characters that are escaped in a quoted field.
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in (*range(32), *range(127, 256))} | {0x22: '\\"', 0x5C: "\\\\"}


def _quoted(value: bytes | None) -> str:
    return '"-"' if not value else '"' + value.decode("latin-1").translate(_ESCAPES) + '"'


def _user(name: str | None) -> str:
    # User names contain no white space and no quotes (names.is_user_name), so letters of any script need no escaping.
    return name or "-"


def combined_line(record: Record) -> str:
    """One line of the combined format, without the line end."""
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
    """One line of JSON, without the line end. The keys are documented in docs/monitoring.md."""
    target = record.target
    document = {
        "time": date_text(record.started, "milliseconds"),
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


#: The line formats, by the values of C{--log-format}.
FORMATS = {"combined": combined_line, "json": json_line}

#: ILogObserver as a type for type checkers.
Observer = Callable[[LogEvent], None]


class AccessLog:
    """
    Publishes every record as an event with the key C{record}.

    This is separate from Twisted's global log, so that a request costs nothing when there are no observers.
    """

    def __init__(self) -> None:
        self.publisher = LogPublisher()
        self._log = Logger(namespace="resticserver.access", observer=self.publisher)
        self._observers: list[Observer] = []

    def add(self, observer: Observer) -> None:
        """Add an observer."""
        self._observers.append(observer)
        self.publisher.addObserver(observer)  # type: ignore[arg-type]

    def remove(self, observer: Observer) -> None:
        """Remove an observer."""
        self._observers.remove(observer)
        self.publisher.removeObserver(observer)  # type: ignore[arg-type]

    def __call__(self, record: Record) -> None:
        """Publish a record (a L{resticserver.telemetry.record.Recorder})."""
        if self._observers:
            self._log.info("{record}", record=record)


@implementer(ILogObserver)
class AccessLogService(Service):
    """
    A log observer that writes a line for each request to a file. As a service, it keeps the file open while it runs.

    Lines are collected, and written in order in another thread, so that a slow disk or a stalled pipe delays no
    request. Several processes may write to the same file: each batch of lines is written by one system call, so lines
    stay whole.

    @param path: the file, or C{"-"} for stdout.
    @param run: runs a callable in the log's own thread, one call after the other; its result is ignored.
    @param line: formats a record, without the line end.
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
        self._file: RawIOBase | None = None
        #: True if the file must be reopened by its name.
        self._renew = False
        self._renewing_failed = False
        self._failed = False
        self._lost = 0
        #: True if the last line was written only in part.
        self._torn = False
        self.setName("access log")

    def startService(self) -> None:
        """
        Open the file and begin to observe.

        @raise StartError: the file cannot be opened.
        """
        self._file = self._first_open()
        super().startService()
        self._access_log.add(self)

    def stopService(self) -> None:
        """Schedule the last lines to be written and the file to be closed."""
        super().stopService()
        self._access_log.remove(self)
        self._run(self._finish)

    def reopen(self) -> None:
        """Reopen the file by its name, after it was rotated."""
        self._run(self._reopen)

    def __call__(self, event: LogEvent) -> None:
        """Take an event (C{twisted.logger.ILogObserver})."""
        if len(self._lines) >= MOST_WAITING:
            self._lost += 1
            return
        self._lines.append(self._line(event["record"]))
        if not self._scheduled:
            self._scheduled = True
            self._run(self._write)

    # --- in the log's thread

    def _reopen(self) -> None:
        self._renew = True
        self._write()

    def _finish(self) -> None:
        self._write()
        self._close()

    def _write(self) -> None:
        """Write all collected lines."""
        # Reset before the lines are taken, so that a line added later schedules another call.
        self._scheduled = False
        lines = [(self._lines.popleft() + "\n").encode("utf-8") for _ in range(len(self._lines))]
        if self._renew:
            self._open_anew()
        # A file takes everything in one call. For a pipe, only PIPE_BUF bytes are guaranteed not to be interleaved
        # with other processes' lines.
        pieces = [*batches(lines, select.PIPE_BUF)] if self._path == "-" else [b"".join(lines)] if lines else []
        written = 0
        try:
            for piece in pieces:
                self._put(piece)
                written += piece.count(b"\n")
        except OSError as error:
            self._lost += len(lines) - written
            if not self._failed:
                self._failed = True
                _log.error("cannot write the access log {path}: {error}", path=self._path, error=error)
        else:
            if written and self._lost:
                lost, self._lost = self._lost, 0
                _log.warn("{number} lines of the access log {path} were lost", number=lost, path=self._path)
            if written:
                self._failed = False

    def _put(self, piece: bytes) -> None:
        """Write some lines. If the previous line was torn, they begin on a new line."""
        if self._file is None:
            return
        data = b"\n" + piece if self._torn else piece
        written = 0
        try:
            while written < len(data):
                # An unbuffered file may take only a part, and nothing at all if another process has made it
                # non-blocking.
                taken = self._file.write(data[written:])
                if taken is None:
                    select.select((), (self._file,), ())
                written += taken or 0
        finally:
            if written:
                self._torn = data[written - 1 : written] != b"\n"

    def _open_anew(self) -> None:
        """Reopen the file by its name. If that fails, keep the old file and try again with the next lines."""
        try:
            opened = self._open()
        except OSError as error:
            if not self._renewing_failed:
                self._renewing_failed = True
                _log.error(
                    "cannot reopen the access log {path}: {error}; still writing to the old file",
                    path=self._path,
                    error=error,
                )
            return
        self._close()
        self._file, self._torn = opened, False
        self._renew = self._renewing_failed = False

    def _first_open(self) -> RawIOBase:
        try:
            return self._open()
        except OSError as error:
            raise StartError(f"--log: cannot open {self._path}: {error.strerror}") from error

    def try_to_open(self) -> None:
        """
        Check that the file can be opened.

        @raise StartError: it cannot be opened.
        """
        with self._first_open():
            pass

    def check(self) -> None:
        """
        Check whether the file could be opened. Creates nothing, and opens no FIFO, whose reader would notice.

        @raise StartError: it could not be opened.
        """
        if self._path == "-":
            return
        exists = os.path.lexists(self._path)
        wanted = self._path if exists else os.path.dirname(self._path)
        problem = 0
        if not os.path.exists(wanted):
            problem = errno.ENOENT
        elif os.path.isdir(self._path):
            problem = errno.EISDIR
        elif not os.access(wanted, os.W_OK if exists else os.W_OK | os.X_OK, effective_ids=True):
            problem = errno.EACCES
        if problem:
            raise StartError(f"--log: cannot open {self._path}: {os.strerror(problem)}")

    def _open(self) -> RawIOBase:
        # Unbuffered, so that data that could not be written is not written again after later lines. This also avoids
        # the lock of stdout's buffer, for which the interpreter would wait at exit if a pipe has stalled.
        if self._path == "-":
            return cast(RawIOBase, open(STDOUT, "wb", buffering=0, closefd=False))
        # O_NONBLOCK: opening a FIFO without a reader is an error, instead of blocking.
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
        os.set_blocking(fd, True)
        return cast(RawIOBase, open(fd, "ab", buffering=0))

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()


def batches(lines: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    """
    Join lines into as few pieces of at most C{most_bytes} bytes as possible. A line that is longer becomes a piece of
    its own.
    """
    batch = b""
    for line in lines:
        if batch and len(batch) + len(line) > most_bytes:
            yield batch
            batch = b""
        batch += line
    if batch:
        yield batch
