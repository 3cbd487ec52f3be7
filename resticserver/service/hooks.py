"""
Reports events: to the log, to the metrics, and to the command of C{--on-event}.

No request ever waits for this. The command runs in a thread of its own, for one event at a time and with a time limit.
Further events wait in a bounded queue.
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

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import CONTENT
from ..process.orphans import child_of_ours
from ..storage.directory_snapshots import LASTS_NS
from ..telemetry.events import REFUSALS, Event, EventKind, Tells
from ..telemetry.metrics import Family, MetricType, Sample
from ..telemetry.refusals import Refusals
from ..threads.pools import JobPool
from ..threads.reactor import IReactor

#: The most events that wait for the command. The oldest one is dropped for a new one.
MOST_WAITING = 1000
#: The time limit of the command for one event.
TIME_LIMIT_S = 60.0
#: When the server stops, the time for all waiting events together. The rest is dropped.
STOP_S = 3.0
#: The time between SIGTERM and SIGKILL.
GRACE_S = 2.0
#: The same event (a quota is reached, an address is locked out) is reported again after this time.
AGAIN_S = 3600.0
#: The same for damage, which several processes may find: each of them may know the object's former size for a day
#: (L{LASTS_NS}).
DAMAGE_AGAIN_S = LASTS_NS / 1e9

_MOST_TOLD = 10_000
_MOST_OUTPUT_BYTES = 2000
_LONGEST_WORDS = 200
#: How often to check whether the command has ended, if its output does not tell.
_LOOK_S = 0.05

#: Corruption is logged as a warning only while the damaged file is still there: the store has already logged which
#: file was replaced.
_BAD = REFUSALS | {EventKind.CERTIFICATE}
#: Variables meant for the server only. The command does not get them.
_OUR_VARIABLES = ("REST_SERVER_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")

_log = Logger()


class Events(Service):
    """
    The events of one server, in the process that has the quota ledger.

    @param command: the command and its arguments, or empty.
    @ivar refusals: the uploads that were refused.
    """

    def __init__(self, reactor: IReactor, command: tuple[str, ...]) -> None:
        self._reactor = reactor
        self._command = command
        self._pool = JobPool(reactor, "events", 1)
        self._observers: list[Tells] = []
        self.refusals = Refusals()
        self._limits: tuple[int, int] | None = None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._told: dict[tuple[EventKind, str], float] = {}
        self._waiting: deque[Event] = deque()
        self._run: HookProcess | None = None
        self._soon: IDelayedCall | None = None
        self._until = float("inf")
        self._stopped: Deferred[None] | None = None
        self.setName("events")

    def startService(self) -> None:
        """Start the thread for the command, if there is one."""
        super().startService()
        if self._command:
            self._pool.startService()

    def observe(self, observer: Tells) -> None:
        """Add an observer of all events."""
        self._observers.append(observer)

    def limit_descriptors(self, limits: tuple[int, int] | None) -> None:
        """Set the command's limits of open descriptors, soft and hard; C{None} for the server's own."""
        self._limits = limits

    def tell(self, event: Event) -> None:
        """Report an event."""
        if not event.in_place:
            self._tell(event)
        elif self._is_news(event.kind, event.message, DAMAGE_AGAIN_S):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)
        if event.kind in REFUSALS:
            reason, why = event.details.get("reason", CONTENT), event.details.get("why", event.message)
            if not self.refusals.add(event.user, event.repository or "", reason, why):
                self._counts[event.kind.value, "repeated"] += 1
                return
        self._counts[event.kind.value, "told"] += 1
        if event.kind in _BAD or event.in_place or event.of_scrub:
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
        """Report an event that may happen often, at most once an hour for each C{key}."""
        if self._is_news(event.kind, key, AGAIN_S):
            self._tell(event)

    def _is_news(self, kind: EventKind, key: str, again_s: float) -> bool:
        """Whether an event was not reported recently. If so, it counts as reported for C{again_s} seconds from now."""
        now = self._reactor.seconds()
        if now < self._told.get((kind, key), 0.0):
            return False
        if len(self._told) >= _MOST_TOLD:
            self._told = {key: until for key, until in self._told.items() if until > now}
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
        self._told[kind, key] = now + again_s
        return True

    def _next_soon(self) -> None:
        """Start the next command in a later reactor iteration: the caller is in the middle of a request."""
        if self._soon is None and self._run is None:
            self._soon = self._reactor.callLater(0, self._next)

    def _next(self) -> None:
        self._soon = None
        if not self._waiting or time.monotonic() >= self._until:
            self._all_told()
            return
        event = self._waiting.popleft()
        until_s = min(time.monotonic() + TIME_LIMIT_S, self._until)
        self._run = run = HookProcess(self._command, event.as_json(), until_s, self._limits)
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
            _log.warn(
                "{number} events were not passed to --on-event: the server is stopping", number=len(self._waiting)
            )
            self._waiting.clear()
        stopped, self._stopped = self._stopped, None
        stopped.callback(None)

    def stopService(self) -> Deferred[None]:
        """Report the remaining events, for a few seconds at most."""
        super().stopService()
        if not self._command:
            return succeed(None)
        self._end_by(time.monotonic() + STOP_S)
        stopped = self._stopped = Deferred()
        self._next_soon()
        return stopped.addCallback(lambda _: self._pool.stopService())

    def abort(self) -> None:
        """End the running command, and start no more."""
        self._end_by(0.0)

    def _end_by(self, when_s: float) -> None:
        self._until = min(self._until, when_s)
        if self._run is not None:
            self._run.end_by(self._until)

    def families(self) -> Iterator[Family]:
        """The counters of events."""
        samples = [Sample(labels, number) for labels, number in sorted(self._counts.items())]
        yield Family(
            MetricType.COUNTER,
            "rest_server_events",
            "Events by type and by outcome of the --on-event command",
            ("event", "outcome"),
            samples,
        )


class HookProcess:
    """
    One run of the command for one event. It is called in a thread. The command leads a process group, so that
    processes it has started end with it when it exceeds the time limit.

    @param event: the command's standard input.
    @param until_s: the deadline, on the monotonic clock.
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
        """Set an earlier deadline; a later one is ignored. May be called in any thread."""
        self._until_s = min(self._until_s, when_s)

    def __call__(self) -> str:
        """
        Run the command.

        @return: why it failed; empty if it succeeded.
        """
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
                        # This runs between fork and exec, where locks of other threads are held forever. It is safe
                        # because it is one system call and runs no Python code.
                        preexec_fn=self._limits and partial(resource.setrlimit, resource.RLIMIT_NOFILE, self._limits),
                    )
                )
            except OSError as error:
                return f"cannot be run: {error.strerror}"
            assert process.stdin is not None and process.stdout is not None
            try:
                in_time = self._look_after(process, process.stdin.fileno(), process.stdout.fileno())
            finally:
                # Processes that it has started may hold the other ends open forever.
                process.stdout.close()
                with suppress(BrokenPipeError):
                    process.stdin.close()
        if not in_time:
            return f"was killed after {time.monotonic() - self._began_s:.0f} s"
        status = process.returncode
        if not status:
            return ""
        how = f"exit code {status}" if status > 0 else f"signal {-status}"
        said = self._output.decode("utf-8", "replace").strip().splitlines()
        last = f": {ascii(said[-1][-_LONGEST_WORDS:])[1:-1]}" if said else ""
        return f"failed ({how}){last}"

    def _look_after(self, process: subprocess.Popen[bytes], event_fd: int, output_fd: int) -> bool:
        """
        Write the event, read the output, and wait for the end of the command.

        @return: whether it ended before the deadline.
        """
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
                        # The command sees the end of its input.
                        assert process.stdin is not None
                        process.stdin.close()
        self._take(output_fd)
        return True

    def _give(self, fd: int) -> bool:
        """
        Write more of the event.

        @return: whether more is left.
        """
        try:
            self._event = self._event[os.write(fd, self._event) :]
        except BlockingIOError:
            return True
        except OSError:
            return False  # the command has closed its input
        return bool(self._event)

    def _take(self, fd: int) -> bool:
        """
        Read more of the output.

        @return: whether there may be more.
        """
        try:
            said = os.read(fd, 65536)
        except BlockingIOError:
            return True
        self._output = (self._output + said)[-_MOST_OUTPUT_BYTES:]
        return bool(said)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group, by SIGTERM and after L{GRACE_S} by SIGKILL."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    # Also if the command has ended: processes that it has started may still run.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # If a disk hangs, not even SIGKILL ends it.
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _fault(failure: Failure) -> str:
    _log.failure("could not run the command of --on-event", failure)
    return "failed: an error in the server"
