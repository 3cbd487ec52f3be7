"""
Log lines of a worker, which the parent writes.
"""

from __future__ import annotations

import sys
import threading

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import LogEvent, LogLevel, eventAsText

from .ipc import IpcConnection
from .messages import LogLine

#: While this much data waits for the parent, further lines are dropped and counted.
MOST_LOG_BYTES = 4 << 20
#: Lines and tracebacks are cut to this length.
_LONGEST_TEXT = 64 << 10


class RemoteLog:
    """
    A log observer that sends to the parent what the parent would log itself: this package's messages, and warnings and
    errors of other packages. If the parent is gone, it writes to stderr.
    """

    def __init__(self, reactor: IReactorFromThreads, ipc: IpcConnection) -> None:
        self._reactor = reactor
        self._ipc = ipc
        self._thread = threading.get_ident()
        self._lost = 0
        self._least = LogLevel.info

    def include_debug(self) -> None:
        """Include this package's debug messages."""
        self._least = LogLevel.debug

    def __call__(self, event: LogEvent) -> None:
        """Take an event (C{twisted.logger.ILogObserver})."""
        level = event.get("log_level") or LogLevel.info
        namespace = str(event.get("log_namespace", ""))
        if level < (self._least if namespace.startswith("resticserver.") else LogLevel.warn):
            return
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)[:_LONGEST_TEXT]
        if threading.get_ident() == self._thread:
            self._send(level.name, namespace, text)
        else:
            self._reactor.callFromThread(self._send, level.name, namespace, text)

    def _send(self, level: str, namespace: str, text: str) -> None:
        if not self._ipc.open:
            print(text, file=sys.stderr, flush=True)
        elif self._ipc.waiting_bytes > MOST_LOG_BYTES:
            self._lost += 1
        else:
            if self._lost:
                lost, self._lost = self._lost, 0
                self._ipc.tell(LogLine("warn", namespace, f"{lost} lines of a worker were lost"))
            self._ipc.tell(LogLine(level, namespace, text))
