"""
How many cores this process may use.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUP_FILE = "/proc/self/cgroup"
_GROUPS = "/sys/fs/cgroup"


def usable_cores(group_file: str = _GROUP_FILE, groups: str = _GROUPS) -> int:
    """
    The cores that this process may run on (taskset, C{AllowedCPUs=}, C{docker run --cpuset-cpus}), or as many as its control
    groups give it time for (C{CPUQuota=}, C{docker run --cpus}; cgroup v2) if these are fewer. At least 1.

    @param group_file: names this process' group, as proc(5) says.
    @param groups: where control groups are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cores_of_groups(group_file, groups))))


def _cores_of_groups(group_file: str, groups: str) -> float:
    """How many cores its control group and those above it have time for; infinite without a limit."""
    try:
        lines = Path(group_file).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        if line.startswith("0::/"):
            top = Path(groups)
            group = top / line[4:]
            least = min(map(_cores_of, (top, group, *(above for above in group.parents if top in above.parents))))
    return least


def _cores_of(group: Path) -> float:
    try:
        quota_us, period_us = (group / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota_us == "max" else int(quota_us) / int(period_us)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf  # the top has no such file


def default_workers(cores: int) -> int:
    """
    How many processes serve best.

    On two cores it is one: its reactor has one and its pools' threads the other, and small requests cost a third less time than
    with two processes (docs/performance.md has the figures).

    @param cores: that there are.
    """
    return cores if cores > 2 else 1
