"""
A service that calls a function every few seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python import log


class Repeated(Service):
    """
    Calls a function every few seconds. Replaces Twisted's TimerService, whose module takes 30 ms to import in every
    process.

    @param call: the next interval begins after its Deferred has fired.
    @param now: whether to call it at the start, too.
    """

    def __init__(
        self,
        name: str,
        reactor: IReactorTime,
        interval_s: float,
        call: Callable[[], Awaitable[None]],
        now: bool = False,
    ) -> None:
        self._now = now
        self._call = LoopingCall(call)
        self._call.clock = reactor
        self._interval_s = interval_s
        self._ended: Deferred[Any] | None = None
        self.setName(name)

    def startService(self) -> None:
        """Begin to call."""
        super().startService()
        self._ended = self._call.start(self._interval_s, now=self._now).addErrback(lambda why: log.err(why))

    def stopService(self) -> Deferred[Any] | None:
        """Stop calling. The Deferred fires when the current call has ended."""
        super().stopService()
        if self._call.running:
            self._call.stop()
        return self._ended
