"""
Files that are read again when they have changed, and other things that are done every few seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python import log


class Reloads(Protocol):
    """A file that holds, and is read again when it changed."""

    def reload_if_changed(self, force: bool = False) -> bool:
        """Read it again if it changed, or in any case; whether that was done. Blocks."""

    def say_reloaded(self) -> None:
        """Log that what was read holds."""


class Repeated(Service):
    """
    Calls something every few seconds. It is Twisted's TimerService, whose module takes 30 ms to import in every process.

    @param call: the next call comes when this one has ended.
    @param now: whether the first is at the start.
    """

    def __init__(
        self, name: str, reactor: Any, interval_s: float, call: Callable[[], Awaitable[None]], now: bool = False
    ) -> None:
        self._now = now
        self._call = LoopingCall(call)
        self._call.clock = reactor
        self._interval_s = interval_s
        self._ended: Deferred[Any] | None = None
        self.setName(name)

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._ended = self._call.start(self._interval_s, now=self._now).addErrback(lambda why: log.err(why))

    def stopService(self) -> Deferred[Any] | None:
        """Call no more; fires when a call that goes on has ended."""
        super().stopService()
        if self._call.running:
            self._call.stop()
        return self._ended
