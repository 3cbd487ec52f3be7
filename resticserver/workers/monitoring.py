"""
A worker's side of the metrics and the status page: it counts, sends what it has counted, and asks the parent for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from ..errors import Unavailable
from ..service.monitor import COUNTED, METRICS, STATUS
from ..telemetry.metrics import CONTENT_TYPE, Tally
from ..telemetry.status import ServerStatus
from ..threads.serial_jobs import Pool
from ..threads.single_flight import CachedFlight
from ..web.pages import Answer
from .ipc import Failed, IpcConnection, IpcConnectionLost

#: How often a worker sends what it has counted.
SEND_S = 1.0


class WorkerMonitoring(Service):
    """
    A worker's part: it counts, and asks the parent for the whole.

    @param pages: where pages are put together.
    @param requests_in_flight: how many requests are being answered here.
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
        """Send what was counted now and then: who is killed says nothing more."""
        super().startService()
        self._sending.start(SEND_S, now=False)

    def stopService(self) -> None:
        """Send the last of it."""
        super().stopService()
        self._sending.stop()
        self.send()

    def send(self) -> None:
        """Send what was counted to the parent, which may have asked for it."""
        self._ipc.tell(COUNTED, taken=self.tally.take(), in_flight=self._requests_in_flight())

    async def metrics(self) -> Answer:
        """All metrics of the server as text."""
        try:
            text = await self._ipc.ask(METRICS)
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable() from error
        return Answer(200, CONTENT_TYPE, text.encode("utf-8"))

    async def status(self) -> ServerStatus:
        """What a status page says, as of a moment ago."""
        return await self._status.get()

    async def _ask_for_status(self) -> ServerStatus:
        try:
            text = await self._ipc.ask(STATUS)
        except (IpcConnectionLost, Failed) as error:
            raise Unavailable() from error
        return await self._pages.run(lambda: ServerStatus.from_json(json.loads(text)))
