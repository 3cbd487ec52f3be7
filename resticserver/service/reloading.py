"""
Files that hold while the server runs, and are read again when they have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall


class Reloads(Protocol):
    """A file that holds, and is read again when it changed."""

    def reload_if_changed(self, force: bool = False) -> bool:
        """Read it again if it changed, or in any case; whether that was done. Blocks."""

    def say_reloaded(self) -> None:
        """Log that what was read holds."""


class FileWatch(Service):
    """
    Has files looked at every few seconds, so that a change holds without a signal.

    @param look: a look, which does not fail; the next comes when it has ended.
    @param now: whether the first is at the start.
    """

    def __init__(
        self, name: str, reactor: Any, interval_s: float, look: Callable[[], Deferred[None]], now: bool = False
    ) -> None:
        self._now = now
        self._call = LoopingCall(look)
        self._call.clock = reactor
        self._interval_s = interval_s
        self.setName(name)

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._call.start(self._interval_s, now=self._now)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        self._call.stop()
