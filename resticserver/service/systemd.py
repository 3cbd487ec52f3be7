"""
Notifies a service manager: the server is ready, reloads its files, stops, is alive (watchdog), and what it does now.

This is systemd's protocol, which other service managers support as well: datagrams to the socket named by
C{NOTIFY_SOCKET}. Source: sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..threads.reactor import IReactor
from .summary import Summary

#: How often the line for C{systemctl status} is made; it is sent if it has changed.
STATUS_S = 5.0

_log = Logger()


class ServiceManager(Service):
    """
    Notifies the service manager, if there is one. Must be started last and stopped first.

    @param environment: the environment variables, which say whether the manager wants notifications.
    @param summary: makes the line that the manager shows.
    """

    def __init__(self, reactor: IReactor, environment: Mapping[str, str], summary: Summary) -> None:
        self._reactor = reactor
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._interval_s = _watchdog_s(environment) / 2
        self._watchdog = LoopingCall(self._tell, "WATCHDOG=1")
        self._watchdog.clock = reactor
        self._summary = summary
        self._status = ""
        self._statuses = LoopingCall(self._find_status)
        self._statuses.clock = reactor
        self._reloads = 0
        self.setName("service manager")

    def startService(self) -> None:
        """Report that the server is ready, once the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._ready)

    def _ready(self) -> None:
        if not self.running:
            return
        if not self._address:
            return
        self._tell(f"READY=1\nMAINPID={os.getpid()}")
        self._show(self._summary.at_the_start())
        self._statuses.start(STATUS_S, now=False).addErrback(
            lambda why: _log.failure("could not tell the service manager what the server does", why)
        )
        if self._interval_s:
            self._watchdog.start(self._interval_s)

    def stopService(self) -> None:
        """Report that the server stops."""
        super().stopService()
        self._tell("STOPPING=1")
        if self._address:
            self._show(self._summary.at_the_end())
        # The watchdog continues: a stop that hangs is covered by the manager's own stop timeout, not by the watchdog.
        # So does the status, which says what the stop waits for.

    def reloading(self) -> None:
        """Report that the server begins to reload its files."""
        self._reloads += 1
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """A reload has ended. The last of concurrent reloads is reported."""
        self._reloads -= 1
        if not self._reloads and self.running:
            self._tell("READY=1")

    async def _find_status(self) -> None:
        if self.running:
            line = await self._summary.running()
            # The stop may have begun meanwhile.
            self._show(line if self.running else self._summary.at_the_end())
        else:
            self._show(await self._summary.stopping())

    def _show(self, line: str) -> None:
        if line != self._status:
            self._status = line
            # A socket's path may contain anything, but a line feed would begin another variable.
            self._tell("STATUS=" + line.replace("\n", "?"))

    def _tell(self, words: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the NUL byte of an abstract socket address (Linux).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.setblocking(False)
                telling.sendto(os.fsencode(words), address)
        except OSError as error:
            _log.debug("cannot notify the service manager: {error}", error=error)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """The watchdog timeout in seconds; 0 if the manager has none, or has one for another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() else 0.0
