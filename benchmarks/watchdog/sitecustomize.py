"""
Counts how often Twisted's reactor is held up, in a server that knows nothing of it.

Python imports a module of this name when it starts, so this directory on C{PYTHONPATH} is all it takes, also for a
server's child processes. Without C{RESTICSERVER_WATCHDOG} it does nothing. With it, each process that runs an epoll
reactor writes what it found to the file of that name and its pid behind, every second and at its end.

A turn lasts from the return of C{epoll_wait} until it is called again. A turn of more than 20 ms is a stall, unless the
kernel had the thread wait for a processor meanwhile (run delay): that is somebody else's making and is taken off.
Waiting for the interpreter's lock is not: the kernel sees it as sleep, and it stays in.

It must not import Twisted, or anything large: the reactor is not chosen yet.
"""

from __future__ import annotations

import os

VARIABLE = "RESTICSERVER_WATCHDOG"


def _install(name: str) -> None:
    """
    Have the epoll reactor watched when it is imported.

    @param name: of the files, without the pid.
    """
    import atexit
    import gc
    import importlib.abc
    import importlib.machinery
    import json
    import sys
    import threading
    import time
    from types import FrameType, ModuleType
    from typing import Any

    limit_ns = 20_000_000
    #: Stalls that are kept with when and where; more are only counted.
    most = 5000
    every_s = 0.01

    class Watchdog:
        """What one process's reactor did."""

        def __init__(self) -> None:
            self.begin()

        def begin(self) -> None:
            """Nothing seen yet: a new process."""
            self.turns = 0
            self.count = 0
            self.busy_ns = 0
            self.stalls: list[dict[str, Any]] = []
            self.thread = 0
            self.since = 0
            self.sampled: tuple[int, list[str]] = (0, [])
            self.collecting = 0
            self.collected_ns = 0

        def collection(self, phase: str, information: dict[str, int]) -> None:
            """The garbage collector's call; it holds the interpreter's lock, whichever thread it has come upon."""
            if phase == "start":
                self.collecting = time.monotonic_ns()
            else:
                self.collected_ns += time.monotonic_ns() - self.collecting

        def watched(self) -> None:
            """The first turn of this process: find the reactor's thread."""
            self.thread = threading.get_ident()
            self.native = threading.get_native_id()
            self.schedstat = os.open(f"/proc/self/task/{self.native}/schedstat", os.O_RDONLY)
            threading.Thread(target=self.sample, name="watchdog", daemon=True).start()

        def delay_ns(self) -> int:
            """How long the reactor's thread has waited for a processor in its life."""
            return int(os.pread(self.schedstat, 100, 0).split()[1])

        def turn_begins(self) -> None:
            """epoll_wait has returned."""
            self.delayed = self.delay_ns()
            self.cpu = time.thread_time_ns()
            self.collected = self.collected_ns
            self.since = time.monotonic_ns()

        def turn_ends(self) -> None:
            """epoll_wait is about to be called."""
            if not self.thread:
                self.watched()
            if not self.since:
                return
            now = time.monotonic_ns()
            since, self.since = self.since, 0
            self.turns += 1
            took = now - since
            self.busy_ns += took
            if took <= limit_ns:
                return
            delayed = self.delay_ns() - self.delayed
            if took - delayed <= limit_ns:
                return
            self.count += 1
            if len(self.stalls) < most:
                turn, stack = self.sampled
                self.stalls.append(
                    {
                        "at_s": since / 1e9,
                        "took_ms": took / 1e6,
                        "run_delay_ms": delayed / 1e6,
                        "own_ms": (took - delayed) / 1e6,
                        "cpu_ms": (time.thread_time_ns() - self.cpu) / 1e6,
                        "gc_ms": (self.collected_ns - self.collected) / 1e6,
                        "stack": stack if turn == since else [],
                    }
                )

        def sample(self) -> None:
            """Look where the reactor's thread is when its turn has become old; write down now and then what is known."""
            written = time.monotonic()
            mine = os.getpid()
            while os.getpid() == mine:
                time.sleep(every_s)
                since = self.since
                if since and self.sampled[0] != since and time.monotonic_ns() - since > limit_ns:
                    frame = sys._current_frames().get(self.thread)
                    self.sampled = (since, self.where(frame))
                if time.monotonic() - written > 1:
                    written = time.monotonic()
                    self.write()

        def where(self, frame: FrameType | None) -> list[str]:
            """A stack, innermost call first."""
            found: list[str] = []
            while frame is not None and len(found) < 12:
                code = frame.f_code
                short = "/".join(code.co_filename.rsplit("/", 2)[-2:])
                found.append(f"{short}:{frame.f_lineno} {code.co_name}")
                frame = frame.f_back
            return found

        def write(self) -> None:
            """Write what was found."""
            if not self.turns:
                return
            known = {
                "pid": os.getpid(),
                "turns": self.turns,
                "busy_s": self.busy_ns / 1e9,
                "count": self.count,
                "stalls": self.stalls,
            }
            path = f"{name}.{os.getpid()}"
            fresh = f"{path}.{threading.get_native_id()}.new"
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump(known, file)
            os.replace(fresh, path)

    watchdog = Watchdog()
    atexit.register(watchdog.write)
    gc.callbacks.append(watchdog.collection)
    os.register_at_fork(after_in_child=watchdog.begin)

    class Poller:
        """An epoll object whose waits end and begin turns."""

        def __init__(self, epoll: Any) -> None:
            self._epoll = epoll

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._epoll, attribute)

        def poll(self, *arguments: Any) -> Any:
            """Wait."""
            watchdog.turn_ends()
            try:
                return self._epoll.poll(*arguments)
            finally:
                watchdog.turn_begins()

    class Loader(importlib.abc.Loader):
        """The reactor's own loader, and then the patch."""

        def __init__(self, loader: Any) -> None:
            self._loader = loader

        def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
            """Python's call."""
            made: ModuleType | None = self._loader.create_module(spec)
            return made

        def exec_module(self, module: ModuleType) -> None:
            """Python's call."""
            self._loader.exec_module(module)
            reactor: Any = module.EPollReactor
            plain = reactor.__init__

            def initialised(self: Any, *arguments: Any, **named: Any) -> None:
                plain(self, *arguments, **named)
                self._poller = Poller(self._poller)

            reactor.__init__ = initialised

    class Finder(importlib.abc.MetaPathFinder):
        """Finds the reactor's module alone."""

        def find_spec(
            self, fullname: str, path: Any, target: ModuleType | None = None
        ) -> importlib.machinery.ModuleSpec | None:
            """Python's call."""
            if fullname != "twisted.internet.epollreactor":
                return None
            spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = Loader(spec.loader)
            return spec

    sys.meta_path.insert(0, Finder())


if os.environ.get(VARIABLE):
    _install(os.environ[VARIABLE])
