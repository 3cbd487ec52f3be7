"""
Resource usage of the server's processes, under the names that every Prometheus client uses: C{process_*},
C{python_info} and C{python_gc_*}. Existing dashboards and alerts use these names, including those for rest-server.

With workers, CPU, memory and descriptors are the sums over the parent and all workers. The start time and the garbage
collection figures are the parent's. The figures come from C{/proc}. Reading it never waits for a disk, but takes too
long for the reactor's thread. Without C{/proc}, only the start time and the CPU time are known.
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

#: Positions in C{/proc/PID/stat} after the name, which may contain any characters (proc(5)).
_UTIME, _STIME, _STARTTIME, _VSIZE, _RSS = 11, 12, 19, 20, 21


class Figures(NamedTuple):
    """
    The figures of one process.

    @ivar started_s: when it was started, in seconds since the machine booted.
    @ivar max_fds: the limit on its open descriptors.
    """

    cpu_s: float
    started_s: float
    virtual_bytes: int
    resident_bytes: int
    open_fds: int
    max_fds: float


def figures_of(pid: int) -> Figures | None:
    """The figures of a process; C{None} if it has ended, or without C{/proc}."""
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
    """The figures of a server. Not thread-safe."""

    def __init__(self) -> None:
        self._started_s: float | None = None
        self._cpu_s = 0.0

    def families(self, workers: Sequence[int] | None) -> Iterator[Family]:
        """
        All families.

        @param workers: the process ids of the workers; C{None} for a server without workers.
        """
        own = figures_of(os.getpid())
        if self._started_s is None:
            # Computed once, because the start time would change whenever the clock is set. Not computed earlier,
            # because twistd forks.
            age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - own.started_s if own is not None else 0.0
            self._started_s = time.time() - age_s
        all_of_them = [own, *map(figures_of, workers or ())]
        found = [figures for figures in all_of_them if figures is not None]
        cpu_s = sum(figures.cpu_s for figures in found) if own is not None else time.process_time()
        if workers is not None:
            # Include ended workers. Otherwise the counter would decrease whenever one ends, which Prometheus takes for
            # a restart.
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s += ended.ru_utime + ended.ru_stime
        # A worker that ends at this moment is counted in neither figure, so never go below the last value.
        self._cpu_s = max(self._cpu_s, cpu_s)
        yield _counter("process_cpu_seconds", "Total user and system CPU time spent in seconds", self._cpu_s)
        yield _gauge("process_start_time_seconds", "Start time of the process in seconds since 1970", self._started_s)
        if own is not None:
            yield _gauge("process_open_fds", "Number of open file descriptors", sum(each.open_fds for each in found))
            yield _gauge(
                "process_max_fds", "Maximum number of open file descriptors", sum(each.max_fds for each in found)
            )
            resident_bytes = sum(each.resident_bytes for each in found)
            yield _gauge("process_resident_memory_bytes", "Resident memory size in bytes", resident_bytes)
            yield _gauge(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes",
                sum(each.virtual_bytes for each in found),
            )
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
        MetricType.GAUGE,
        "python_info",
        "Python platform information",
        tuple(labels),
        [Sample(tuple(labels.values()), 1)],
    )


def _garbage() -> Iterator[Family]:
    """The garbage collector's figures for this process."""
    generations = gc.get_stats()
    for name, help_, key in (
        ("python_gc_objects_collected", "Objects collected during garbage collection", "collected"),
        ("python_gc_objects_uncollectable", "Uncollectable objects found during garbage collection", "uncollectable"),
        ("python_gc_collections", "Number of times this generation was collected", "collections"),
    ):
        samples = [Sample((str(number),), stats[key]) for number, stats in enumerate(generations)]
        yield Family(MetricType.COUNTER, name, help_, ("generation",), samples)


def _gauge(name: str, help_: str, value: float) -> Family:
    return Family(MetricType.GAUGE, name, help_, (), [Sample((), value)])


def _counter(name: str, help_: str, value: float) -> Family:
    return Family(MetricType.COUNTER, name, help_, (), [Sample((), value)])
