"""
The resources that the server's processes use, under the names that every Prometheus client uses: C{process_*}, C{python_info}
and C{python_gc_*}. Other programs' dashboards and alerts look for them, rest-server's own among them.

Where the server has workers, CPU, memory and descriptors are those of the parent and all workers together; the start is the
parent's, and so is the collection of garbage. Reading C{/proc} never blocks on a disk, but takes too long for the reactor's
thread. Where there is no C{/proc} only the start and the CPU are known.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .metrics import Family, MetricType, Sample

#: Positions in C{/proc/PID/stat} behind the name, which may hold anything (proc(5)).
_UTIME, _STIME, _STARTTIME, _VSIZE, _RSS = 11, 12, 19, 20, 21


class Figures(NamedTuple):
    """
    One process.

    @ivar started_s: when it was started, in seconds since the machine was.
    @ivar max_fds: how many descriptors it may have open.
    """

    cpu_s: float
    started_s: float
    virtual_bytes: int
    resident_bytes: int
    open_fds: int
    max_fds: float


def figures_of(pid: int) -> Figures | None:
    """The figures of a process; C{None} if it has ended, or where there is no C{/proc}."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        open_fds = len(os.listdir(f"/proc/{pid}/fd"))
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except (OSError, AttributeError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return Figures(
        (int(fields[_UTIME]) + int(fields[_STIME])) / ticks,
        int(fields[_STARTTIME]) / ticks,
        int(fields[_VSIZE]),
        int(fields[_RSS]) * resource.getpagesize(),
        open_fds,
        float("inf") if soft == resource.RLIM_INFINITY else soft,
    )


class Processes:
    """The figures of a server. For one thread at a time."""

    def __init__(self) -> None:
        self._started_s: float | None = None
        self._cpu_s = 0.0

    def families(self, workers: Sequence[int] | None) -> Iterator[Family]:
        """
        All of them.

        @param workers: their processes; C{None} for a server without.
        """
        own = figures_of(os.getpid())
        if self._started_s is None:
            # Once: the clock may be set, and the start would move with it. Not before: twistd forks.
            age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - own.started_s if own is not None else 0.0
            self._started_s = time.time() - age_s
        all_of_them = [own, *map(figures_of, workers or ())]
        found = [figures for figures in all_of_them if figures is not None]
        cpu_s = sum(figures.cpu_s for figures in found) if own is not None else time.process_time()
        if workers is not None:
            # Workers that have ended: otherwise the counter would decrease with each, and Prometheus take that for a restart.
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s += ended.ru_utime + ended.ru_stime
        # A worker that ends at this moment is in neither.
        self._cpu_s = max(self._cpu_s, cpu_s)
        yield _counter("process_cpu_seconds", "User and system CPU time in seconds", self._cpu_s)
        yield _gauge(
            "process_start_time_seconds", "When the process was started, in seconds since 1970", self._started_s
        )
        if own is not None:
            yield _gauge("process_open_fds", "Open file descriptors", sum(each.open_fds for each in found))
            yield _gauge("process_max_fds", "How many descriptors may be open", sum(each.max_fds for each in found))
            resident_bytes = sum(each.resident_bytes for each in found)
            yield _gauge("process_resident_memory_bytes", "Memory that is resident", resident_bytes)
            yield _gauge("process_virtual_memory_bytes", "Address space", sum(each.virtual_bytes for each in found))
        yield _python_info()
        yield from _garbage()


def _python_info() -> Family:
    version = platform.python_version_tuple()
    labels = {
        "implementation": platform.python_implementation(),
        "major": version[0],
        "minor": version[1],
        "patchlevel": version[2],
        "version": platform.python_version(),
    }
    return Family(
        MetricType.GAUGE, "python_info", "Which Python this is", tuple(labels), [Sample(tuple(labels.values()), 1)]
    )


def _garbage() -> Iterator[Family]:
    """Python's garbage collections in this process."""
    generations = gc.get_stats()
    for name, help_, key in (
        ("python_gc_objects_collected", "Objects that were collected", "collected"),
        ("python_gc_objects_uncollectable", "Objects that could not be collected", "uncollectable"),
        ("python_gc_collections", "How often each generation was collected", "collections"),
    ):
        samples = [Sample((str(number),), stats[key]) for number, stats in enumerate(generations)]
        yield Family(MetricType.COUNTER, name, help_, ("generation",), samples)


def _gauge(name: str, help_: str, value: float) -> Family:
    return Family(MetricType.GAUGE, name, help_, (), [Sample((), value)])


def _counter(name: str, help_: str, value: float) -> Family:
    return Family(MetricType.COUNTER, name, help_, (), [Sample((), value)])
