"""
Metrics and status with workers: a worker sends its counts to the parent, and asks it for the figures of the whole
server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from ..errors import Unavailable
from ..service.monitoring import Monitoring
from ..telemetry.metrics import CONTENT_TYPE, Tally
from ..telemetry.status import ServerStatus
from ..threads.interface import Pool
from ..threads.single_flight import CachedFlight
from ..web.page import Page
from .ipc import Failed, Handlers, IpcConnection, IpcConnectionLost
from .messages import Counts, GetMetrics, GetStatus

#: The interval at which a worker sends its counts.
SEND_S = 1.0


class WorkerMonitoring(Service):
    """
    The worker's side.

    @param pages: the pool in which pages are made.
    @param requests_in_flight: returns how many requests this worker is serving.
    """

    def __init__(
        self, reactor: IReactorTime, ipc: IpcConnection, pages: Pool, requests_in_flight: Callable[[], int]
    ) -> None:
        self._ipc = ipc
        self._pages = pages
        self._status = CachedFlight(reactor, self._ask_for_status)
        self._sending = LoopingCall(self.send)
        self._sending.clock = reactor
        self.setName("monitoring")
        self._requests_in_flight = requests_in_flight
        self.tally = Tally()

    def startService(self) -> None:
        """Send the counts at intervals, because a worker that is killed cannot send its last ones."""
        super().startService()
        self._sending.start(SEND_S, now=False)

    def stopService(self) -> None:
        """Send the last counts."""
        super().stopService()
        self._sending.stop()
        self.send()

    def send(self) -> None:
        """Send the counts to the parent. Also called when the parent asks for them."""
        self._ipc.tell(Counts(self.tally.take(), self._requests_in_flight()))

    async def metrics(self) -> Page:
        """All metrics of the server as text."""
        try:
            text = await self._ipc.ask(GetMetrics())
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable("the state of the server is not known now, try again later") from error
        return Page(200, CONTENT_TYPE, text.encode("utf-8"))

    async def status(self) -> ServerStatus:
        """The content of the status page, which may be a moment old."""
        return await self._status.get()

    async def _ask_for_status(self) -> ServerStatus:
        try:
            text = await self._ipc.ask(GetStatus())
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable("the state of the server is not known now, try again later") from error
        return await self._pages.run(lambda: ServerStatus.from_json(json.loads(text)))


class MonitoringRequests:
    """
    The parent's side of L{WorkerMonitoring}.

    @param pages: the pool in which pages are made.
    """

    def __init__(self, reactor: IReactorTime, monitoring: Monitoring, pages: Pool) -> None:
        self._monitoring = monitoring
        self._pages = pages
        self._status_text = CachedFlight(reactor, self._as_text)

    def handlers(self, worker: object) -> Handlers:
        """The handlers of a worker's messages."""
        return {
            Counts: partial(self._counted, worker),
            GetMetrics: lambda: Deferred.fromCoroutine(self._metrics()),
            GetStatus: lambda: Deferred.fromCoroutine(self._status_text.get()),
        }

    def _counted(self, worker: object, taken: dict[str, Any], in_flight: int) -> None:
        self._monitoring.tally.add(taken)
        self._monitoring.count_in_flight(worker, in_flight)

    async def _metrics(self) -> str:
        return (await self._monitoring.metrics()).body.decode("utf-8")

    async def _as_text(self) -> str:
        status = await self._monitoring.status()
        return await self._pages.run(lambda: json.dumps(status.as_json(), separators=(",", ":")))
