"""
Tells of events: to the log, to the metrics, and to the command of C{--on-event}.

No request ever waits for that: the command is started and looked after in a thread of its own, one at a time, with a time
limit, and what comes too quickly for it waits in a bounded queue.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import CONTENT
from ..process.orphans import child_of_ours
from ..storage.snapshots import LASTS_NS
from ..telemetry.events import REFUSALS, Event, EventKind, Tells
from ..telemetry.metrics import Family, MetricType, Sample
from ..telemetry.refusals import Refusals
from ..threads.pools import JobPool

#: So many events wait for the command; the oldest is given up for one more.
MOST_WAITING = 1000
#: How long the command may run for one event.
TIME_LIMIT_S = 60.0
#: When the server stops: how long all that waits has together, before it is given up.
STOP_S = 3.0
#: What is to end gets SIGTERM, and SIGKILL so much later.
GRACE_S = 2.0
#: The same again (a quota that is reached, an address) is told of once in so long.
AGAIN_S = 3600.0
#: Damage that several processes find: each of them may know the object's former size for a day (L{LASTS_NS}).
DAMAGE_AGAIN_S = LASTS_NS / 1e9
#: What a worker tells.
EVENT = "event"

_MOST_TOLD = 10_000
_MOST_OUTPUT_BYTES = 2000
_LONGEST_WORDS = 200
#: How often it is looked whether the command has ended, where its output does not say so.
_LOOK_S = 0.05

#: Corruption is none of them unless it is still there: of what was replaced the store has said which file it was.
_BAD = REFUSALS | {EventKind.CERTIFICATE}
#: Variables that are between the server and whoever started it.
_OUR_VARIABLES = ("REST_SERVER_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")

_log = Logger()


class Events(Service):
    """
    One server's events, in the process that keeps account.

    @param command: the command and its arguments, or empty.
    @ivar observers: who is told as well.
    @ivar refusals: the uploads that were refused.
    @ivar limits: of the command's descriptors, soft and hard; C{None} for the server's own.
    """

    def __init__(self, reactor: Any, command: tuple[str, ...]) -> None:
        self._reactor = reactor
        self._command = command
        self._pool = JobPool(reactor, "events", 1)
        self.observers: list[Tells] = []
        self.refusals = Refusals()
        self.limits: tuple[int, int] | None = None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._told: dict[tuple[EventKind, str], float] = {}
        self._waiting: deque[Event] = deque()
        self._run: HookProcess | None = None
        self._soon: IDelayedCall | None = None
        self._until = float("inf")
        self._stopped: Deferred[None] | None = None
        self.setName("events")

    def startService(self) -> None:
        """Be ready for the first event."""
        super().startService()
        if self._command:
            self._pool.startService()

    def tell(self, event: Event) -> None:
        """Something happened."""
        if not event.in_place:
            self._tell(event)
        elif self._is_news(event.kind, event.message, DAMAGE_AGAIN_S):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer(event)
        if event.kind in REFUSALS:
            reason, why = event.details.get("reason", CONTENT), event.details.get("why", event.message)
            if not self.refusals.add(event.user, event.repository or "", reason, why):
                self._counts[event.kind.value, "repeated"] += 1
                return
        self._counts[event.kind.value, "told"] += 1
        if event.kind in _BAD or event.in_place:
            _log.warn("{text}", text=event.message)
        elif event.kind is EventKind.SNAPSHOT:
            _log.info("{text}", text=event.message)
        else:
            _log.debug("{text}", text=event.message)
        if self._command and self.running:
            if len(self._waiting) == MOST_WAITING:
                self._counts[self._waiting.popleft().kind.value, "dropped"] += 1
            self._waiting.append(event)
            self._next_soon()

    def tell_now_and_then(self, event: Event, key: str) -> None:
        """Something happened that may happen again and again: it is told of once an hour, for each C{key}."""
        if self._is_news(event.kind, key, AGAIN_S):
            self._tell(event)

    def _is_news(self, kind: EventKind, key: str, again_s: float) -> bool:
        """Whether something was not told of lately; it counts as told for so many seconds from now on."""
        now = self._reactor.seconds()
        if now < self._told.get((kind, key), 0.0):
            return False
        if len(self._told) >= _MOST_TOLD:
            self._told = {key: until for key, until in self._told.items() if until > now}
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
        self._told[kind, key] = now + again_s
        return True

    def take(self, **values: Any) -> None:
        """A worker tells of an event."""
        self.tell(Event.from_wire(**values))

    def _next_soon(self) -> None:
        """Never at once: whoever tells of an event is in the middle of a request."""
        if self._soon is None and self._run is None:
            self._soon = self._reactor.callLater(0, self._next)

    def _next(self) -> None:
        self._soon = None
        if not self._waiting or time.monotonic() >= self._until:
            self._all_told()
            return
        event = self._waiting.popleft()
        until_s = min(time.monotonic() + TIME_LIMIT_S, self._until)
        self._run = run = HookProcess(self._command, event.as_json(), until_s, self.limits)
        self._pool.run(run).addErrback(_fault).addCallback(self._ended, event)

    def _ended(self, failure: str, event: Event) -> None:
        self._run = None
        self._counts[event.kind.value, "failed" if failure else "delivered"] += 1
        if failure:
            _log.warn("--on-event {command} {failure}", command=self._command[0], failure=failure)
        self._next_soon()

    def _all_told(self) -> None:
        if self._stopped is None:
            return
        for event in self._waiting:
            self._counts[event.kind.value, "dropped"] += 1
        if self._waiting:
            _log.warn("{number} events were not told to --on-event: the server stops", number=len(self._waiting))
            self._waiting.clear()
        stopped, self._stopped = self._stopped, None
        stopped.callback(None)

    def stopService(self) -> Deferred[None]:
        """Tell what is left, for a few seconds at most."""
        super().stopService()
        if not self._command:
            return succeed(None)
        self._end_by(time.monotonic() + STOP_S)
        stopped = self._stopped = Deferred()
        self._next_soon()
        return stopped.addCallback(lambda _: self._pool.stopService())

    def abort(self) -> None:
        """End the command that runs, and begin no more."""
        self._end_by(0.0)

    def _end_by(self, when_s: float) -> None:
        self._until = min(self._until, when_s)
        if self._run is not None:
            self._run.end_by(self._until)

    def families(self) -> Iterator[Family]:
        """What was counted."""
        samples = [Sample(labels, number) for labels, number in sorted(self._counts.items())]
        yield Family(
            MetricType.COUNTER,
            "rest_server_events",
            "Events that were told, and what became of them at --on-event",
            ("event", "outcome"),
            samples,
        )


class HookProcess:
    """
    The command, for one event; called in a thread. It is the head of a process group, so that what it starts ends with it
    when its time is up.

    @param event: what it gets on its standard input.
    @param until_s: when it must have ended, on the monotonic clock.
    @param limits: of its descriptors, soft and hard; C{None} for the server's own.
    """

    def __init__(
        self, command: tuple[str, ...], event: bytes, until_s: float, limits: tuple[int, int] | None = None
    ) -> None:
        self._command = command
        self._event = memoryview(event)
        self._began_s = time.monotonic()
        self._until_s = until_s
        self._limits = limits
        self._output = b""

    def end_by(self, when_s: float) -> None:
        """It must have ended then, if not earlier. Any thread's to call."""
        self._until_s = min(self._until_s, when_s)

    def __call__(self) -> str:
        """Run it; why it failed, or nothing."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OUR_VARIABLES)}
        with ExitStack() as stack:
            try:
                process = stack.enter_context(
                    child_of_ours(
                        self._command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                        # Between fork and exec, where other threads' locks are held for ever: it is one call of the system,
                        # and no code of Python's runs.
                        preexec_fn=self._limits and partial(resource.setrlimit, resource.RLIMIT_NOFILE, self._limits),
                    )
                )
            except OSError as error:
                return f"cannot be run: {error.strerror}"
            assert process.stdin is not None and process.stdout is not None
            try:
                in_time = self._look_after(process, process.stdin.fileno(), process.stdout.fileno())
            finally:
                # What it has started may hold the other ends for ever.
                process.stdout.close()
                with suppress(BrokenPipeError):
                    process.stdin.close()
        if not in_time:
            return f"was ended after {time.monotonic() - self._began_s:.0f} s"
        status = process.returncode
        if not status:
            return ""
        how = f"exit code {status}" if status > 0 else f"signal {-status}"
        said = self._output.decode("utf-8", "replace").strip().splitlines()
        last = f": {ascii(said[-1][-_LONGEST_WORDS:])[1:-1]}" if said else ""
        return f"failed ({how}){last}"

    def _look_after(self, process: subprocess.Popen[bytes], event_fd: int, output_fd: int) -> bool:
        """Give it the event, take what it says, and wait for its end; whether that came in time."""
        os.set_blocking(event_fd, False)
        os.set_blocking(output_fd, False)
        poll = select.poll()
        poll.register(event_fd, select.POLLOUT)
        poll.register(output_fd, select.POLLIN)
        while process.poll() is None:
            left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                _end(process)
                return False
            for fd, _ in poll.poll(min(left_s, _LOOK_S) * 1000):
                if not (self._give(event_fd) if fd == event_fd else self._take(output_fd)):
                    poll.unregister(fd)
                    if fd == event_fd:
                        # It sees the end of its input.
                        assert process.stdin is not None
                        process.stdin.close()
        self._take(output_fd)
        return True

    def _give(self, fd: int) -> bool:
        """Write more of the event; whether there is still more."""
        try:
            self._event = self._event[os.write(fd, self._event) :]
        except BlockingIOError:
            return True
        except OSError:
            return False  # it does not want to know
        return bool(self._event)

    def _take(self, fd: int) -> bool:
        """Read what it says; whether it may say more."""
        try:
            said = os.read(fd, 65536)
        except BlockingIOError:
            return True
        self._output = (self._output + said)[-_MOST_OUTPUT_BYTES:]
        return bool(said)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    # Also when it has ended: what it has started may not have.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # Where a disk hangs not even that ends it.
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _fault(failure: Failure) -> str:
    _log.failure("could not run the command of --on-event", failure)
    return "failed: a fault of the server"
