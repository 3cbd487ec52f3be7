"""
Bandwidth with workers: each worker has a part of every limit. Once a second it reports what it used, and the parent divides the
limits anew, by demand. The parts of a limit are never more than the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from ..limits.bandwidth import BothDirections, Usage
from .ipc import Handlers, IpcConnection
from .messages import BandwidthParts, BandwidthUsed

#: How often workers report, and limits are divided.
REPORT_S = 1.0
#: A worker that needs little gets so much more than it used, and all workers together at least this part of a limit, so that
#: one that needs more begins at once.
ROOM = 1.25
LEAST_PART = 0.05


class WorkerBandwidth(Service):
    """The worker's side: reports, and uses the parts that the parent sends."""

    def __init__(self, reactor: IReactorTime, ipc: IpcConnection, bandwidth: BothDirections) -> None:
        self._ipc = ipc
        self._bandwidth = bandwidth
        self._reporting = LoopingCall(self._report)
        self._reporting.clock = reactor
        self.setName("bandwidth")

    def startService(self) -> None:
        """Begin to report."""
        super().startService()
        self._reporting.start(REPORT_S, now=False)

    def stopService(self) -> None:
        """Report no more."""
        super().stopService()
        self._reporting.stop()

    def handlers(self) -> Handlers:
        """The handlers of the parent's messages."""
        return {BandwidthParts: self._take}

    def _report(self) -> None:
        self._ipc.tell(BandwidthUsed(list(self._bandwidth.up.usages()), list(self._bandwidth.down.usages())))

    def _take(self, up: dict[str, float], down: dict[str, float]) -> None:
        self._bandwidth.up.set_parts(up)
        self._bandwidth.down.set_parts(down)


class Tells(Protocol):
    """A worker, as far as it is needed here."""

    @property
    def ipc(self) -> IpcConnection:
        """The connection to it."""


class BandwidthRequests:
    """The parent's side of L{WorkerBandwidth}."""

    def __init__(self) -> None:
        #: The latest report of each worker, up and down; C{None} before its first one.
        self._reports: dict[Tells, tuple[list[Usage], list[Usage]] | None] = {}

    def handlers(self, worker: Tells) -> Handlers:
        """The handlers of a worker's messages. The worker has been started."""
        self._reports[worker] = None
        return {BandwidthUsed: partial(self._used, worker)}

    def worker_gone(self, worker: object) -> None:
        """A worker has ended: the others get its parts with the next report."""
        self._reports = {one: report for one, report in self._reports.items() if one is not worker}

    def _used(self, worker: Tells, up: list[Usage], down: list[Usage]) -> None:
        self._reports[worker] = (up, down)
        if worker is next(iter(self._reports)):
            # One of the workers is the clock for all.
            self._divide()

    def _divide(self) -> None:
        reports = {worker: report for worker, report in self._reports.items() if report is not None}
        if len(reports) < len(self._reports):
            return  # one that has just started uses its part of everything, until it reports
        ups = parts_of({worker: up for worker, (up, _) in reports.items()})
        downs = parts_of({worker: down for worker, (_, down) in reports.items()})
        for worker in reports:
            worker.ipc.tell(BandwidthParts(ups[worker], downs[worker]))


def parts_of(reports: Mapping[Tells, list[Usage]]) -> dict[Tells, dict[str, float]]:
    """
    Divide all limits of one direction.

    @return: for each worker its parts in bytes a second, by the limit's key.
    """
    usages: dict[str, dict[Tells, Usage]] = {}
    for worker, report in reports.items():
        for usage in report:
            usages.setdefault(usage.key, {})[worker] = usage
    parts: dict[Tells, dict[str, float]] = {worker: {} for worker in reports}
    for key, used in usages.items():
        rate = min(usage.rate for usage in used.values())
        # A worker that has not used it may begin to, with the same part as others that used nothing.
        all_used = [used.get(worker) or Usage(key, rate, 0, False, 0) for worker in reports]
        for worker, part in zip(reports, divided(rate, all_used), strict=True):
            parts[worker][key] = part
    return parts


def divided(rate: float, usages: list[Usage]) -> list[float]:
    """
    Divide one limit: who was not short gets a little more than it used, and the others get the rest by their weights.

    @return: the parts, in the order of the usages; together they are the limit.
    """
    least = rate * LEAST_PART / len(usages)
    needs = [0.0 if usage.short else max(least, ROOM * usage.used_bytes / REPORT_S) for usage in usages]
    weights = [float(max(1, usage.weight)) if usage.short else 0.0 for usage in usages]
    if not any(weights):
        weights = [1.0] * len(usages)
    left = rate - sum(needs)
    least_left = least * sum(weight > 0 for weight in weights)
    if left < least_left:
        # More is needed than there is: everyone gets less.
        scale = (rate - least_left) / sum(needs)
        needs = [need * scale for need in needs]
        left = least_left
    return [need + left * weight / sum(weights) for need, weight in zip(needs, weights, strict=True)]
