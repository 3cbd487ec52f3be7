"""
Tells of events: to the log, to the metrics, and to the command of C{--on-event}.

No request ever waits for that: the command runs beside everything, one at a time, with a time limit, and what comes too
quickly for it waits in a bounded queue.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from .telemetry.events import Event, EventKind, Tells
from .telemetry.metrics import Family, Kind, Sample

#: So many events wait for the command; the oldest is given up for one more.
MOST_WAITING = 1000
#: How long the command may run for one event.
TIME_LIMIT_S = 60.0
#: The same again (a quota that is reached, an address) is told of once in so long.
AGAIN_S = 3600.0
#: What a worker tells.
EVENT = "event"

_MOST_TOLD = 10_000
_MOST_OUTPUT_BYTES = 2000

_BAD = frozenset((EventKind.QUOTA_REACHED, EventKind.CORRUPTION, EventKind.CERTIFICATE))

_log = Logger()


class Events(Service):
    """
    One server's events, in the process that keeps account.

    @param command: the command and its arguments, or empty.
    @ivar observers: who is told as well.
    """

    def __init__(self, reactor: Any, command: tuple[str, ...]) -> None:
        self._reactor = reactor
        self._command = command
        self.observers: list[Tells] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._told: dict[tuple[EventKind, str], float] = {}
        self._waiting: deque[Event] = deque()
        self._running: _Run | None = None
        self._stopped: Deferred[None] | None = None
        self.setName("events")

    def tell(self, event: Event) -> None:
        """Something happened."""
        for observer in self.observers:
            observer(event)
        self._counts[event.kind.value, "told"] += 1
        if event.kind in _BAD:
            _log.warn("{text}", text=event.message)
        elif event.kind is EventKind.SNAPSHOT:
            _log.info("{text}", text=event.message)
        else:
            _log.debug("{text}", text=event.message)
        if self._command and self.running:
            if len(self._waiting) == MOST_WAITING:
                self._counts[self._waiting.popleft().kind.value, "dropped"] += 1
            self._waiting.append(event)
            self._next()

    def tell_now_and_then(self, event: Event, key: str) -> None:
        """Something happened that may happen again and again: it is told of once an hour, for each C{key}."""
        now = self._reactor.seconds()
        if now < self._told.get((event.kind, key), 0.0):
            return
        if len(self._told) >= _MOST_TOLD:
            self._told = {key: until for key, until in self._told.items() if until > now}
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
        self._told[event.kind, key] = now + AGAIN_S
        self.tell(event)

    def take(self, **values: Any) -> None:
        """A worker tells of an event."""
        self.tell(Event.from_wire(**values))

    def _next(self) -> None:
        if self._running is None and self._waiting:
            event = self._waiting.popleft()
            self._running = _Run(self._reactor, self._command, event, self._ended)
            self._running.start()

    def _ended(self, event: Event, failure: str) -> None:
        self._running = None
        self._counts[event.kind.value, "failed" if failure else "delivered"] += 1
        if failure:
            _log.warn("--on-event {command} {failure}", command=self._command[0], failure=failure)
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)
        elif self.running:
            self._next()

    def stopService(self) -> Deferred[None] | None:  # type: ignore[override]
        """Begin no further command, and end the one that runs."""
        super().stopService()
        if self._running is None:
            return None
        self._stopped = Deferred()
        self._running.stop()
        return self._stopped

    def families(self) -> Iterator[Family]:
        """What was counted."""
        samples = [Sample(labels, number) for labels, number in sorted(self._counts.items())]
        yield Family(
            Kind.COUNTER,
            "rest_server_events",
            "Events that were told, and what became of them at --on-event",
            ("event", "outcome"),
            samples,
        )


class _Run(ProcessProtocol):
    """The command, for one event."""

    def __init__(self, reactor: Any, command: tuple[str, ...], event: Event, ended: Any) -> None:
        self._reactor = reactor
        self._command = command
        self._event = event
        self._ended = ended
        self._late: IDelayedCall | None = None
        self._output = b""
        self._why = ""

    def start(self) -> None:
        """Run it."""
        self._late = self._reactor.callLater(TIME_LIMIT_S, self._too_late)
        try:
            self._reactor.spawnProcess(self, self._command[0], self._command, env=None)
        except OSError as error:
            self._end(f"cannot be run: {error.strerror}")

    def connectionMade(self) -> None:
        """Twisted's call: it runs. It gets the event, and then the end of its input."""
        assert self.transport is not None
        self.transport.write(self._event.as_json())
        self.transport.closeStdin()  # type: ignore[attr-defined]

    def outReceived(self, data: bytes) -> None:
        """Twisted's call: it has something to say, which is of use if it fails."""
        self._output = (self._output + data)[-_MOST_OUTPUT_BYTES:]

    errReceived = outReceived

    def _too_late(self) -> None:
        self._why = f"took more than {TIME_LIMIT_S:g} s"
        self.stop()

    def stop(self) -> None:
        """End it now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except Exception as error:  # it has ended
            _log.debug("the command cannot be killed: {error}", error=error)
        # What it has started may hold its output for ever.
        self.transport.loseConnection()  # type: ignore[union-attr]

    def processExited(self, reason: Failure) -> None:
        """Twisted's call: it has ended; what it has started may go on and is not waited for."""
        if not reason.check(ProcessDone) and not self._why:
            said = self._output.decode("utf-8", "replace").strip().splitlines()
            last = f": {ascii(said[-1])[1:-1]}" if said else ""
            self._why = f"failed ({reason.getErrorMessage()}){last}"
        self.transport.loseConnection()  # type: ignore[union-attr]
        self._end(self._why)

    def _end(self, failure: str) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
        self._late = None
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self._event, failure)


def runnable(command: tuple[str, ...]) -> bool:
    """Whether there is such a program."""
    program = command[0]
    if os.sep in program:
        return os.access(program, os.X_OK) and not os.path.isdir(program)
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())
