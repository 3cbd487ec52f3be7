"""
The duty of process 1: to take note of the end of processes that others have started and left behind.

In a container the server is often process 1. Whatever a command of C{--on-event} leaves running becomes its child then, and
stays in the system's table when it has ended, until somebody asks how (waitpid(2)). The server's own children are left to
those who have started them, for only one can be told how they ended.
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

#: How often it is looked whether there are any.
LOOK_S = 0.5
#: So many at a time.
_MOST = 1000

#: Held while a process is started: until it is among ours it could be taken for an orphan.
_starting = threading.Lock()
_ours: set[int] = set()


@contextmanager
def child_of_ours(*arguments: Any, **named: Any) -> Iterator[subprocess.Popen[bytes]]:
    """
    Start a process, which is ours until the end of this context. Any thread's to call.

    @raise OSError: it cannot be started.
    """
    with _starting:
        child: subprocess.Popen[bytes] = subprocess.Popen(*arguments, **named)
        _ours.add(child.pid)
    try:
        yield child
    finally:
        _ours.discard(child.pid)


class Orphans(Service):
    """Looks for orphans that have ended, while it runs."""

    def __init__(self, reactor: Any) -> None:
        self._looking = LoopingCall(reap)
        self._looking.clock = reactor
        self.setName("orphans")

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._looking.start(LOOK_S, now=False)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        self._looking.stop()


def reap() -> None:
    """Take note of the end of all children that are not ours."""
    if not _starting.acquire(blocking=False):
        return  # next time
    try:
        for _ in range(_MOST):
            try:
                # Only a look: it stays until it is waited for.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in _ours or ended.si_pid in process.reapProcessHandlers:
                return  # whose it is takes it in a moment, and then others are seen that stand behind it
            os.waitpid(ended.si_pid, os.WNOHANG)
    finally:
        _starting.release()
