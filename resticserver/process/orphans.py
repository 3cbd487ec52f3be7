"""
Reaps orphaned processes when the server is process 1.

In a container the server often is process 1. Processes that an C{--on-event} command leaves running then become its
children. When they end, they remain in the process table until their parent waits for them (waitpid(2)). The server's
own children are left to the code that started them, because the exit status can be read only once.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.application.service import Service
from twisted.internet import process
from twisted.internet.task import LoopingCall

#: The interval between checks.
LOOK_S = 0.5
#: The most orphans reaped in one check.
_MOST = 1000

#: Held while a process is started: until its pid is in _ours, it could be mistaken for an orphan.
_starting = threading.Lock()
_ours: set[int] = set()


@contextmanager
def child_of_ours(*arguments: Any, **named: Any) -> Iterator[subprocess.Popen[bytes]]:
    """
    Start a process that L{reap} ignores until the end of this context. May be called in any thread.

    @raise OSError: the process cannot be started.
    """
    with _starting:
        child: subprocess.Popen[bytes] = subprocess.Popen(*arguments, **named)
        _ours.add(child.pid)
    try:
        yield child
    finally:
        _ours.discard(child.pid)


class Orphans(Service):
    """Reaps orphans at intervals while the service runs."""

    def __init__(self, reactor: Any) -> None:
        self._looking = LoopingCall(reap)
        self._looking.clock = reactor
        self.setName("orphans")

    def startService(self) -> None:
        """Begin to reap."""
        super().startService()
        self._looking.start(LOOK_S, now=False)

    def stopService(self) -> None:
        """Stop reaping."""
        super().stopService()
        self._looking.stop()


def reap() -> None:
    """Reap all ended children that the server did not start."""
    if not _starting.acquire(blocking=False):
        return  # retried at the next check
    try:
        for _ in range(_MOST):
            try:
                # WNOWAIT: the child remains until it is waited for.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in _ours or ended.si_pid in process.reapProcessHandlers:
                return  # its owner reaps it in a moment, and then the children behind it become visible
            os.waitpid(ended.si_pid, os.WNOHANG)
    finally:
        _starting.release()
