"""
What signals mean for a server that has begun to listen.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """
    The process's signals. In another thread than the main one (tests) there are none.

    @param abort: called for the second signal to stop: end now.
    @ivar asked_to_stop: whether a stop has begun; a signal then aborts it.
    """

    def __init__(self, reactor: Any, abort: Callable[[], object]) -> None:
        self._reactor = reactor
        self._abort = abort
        self.asked_to_stop = False

    def on(self, number: int, call: Callable[[], object]) -> None:
        """Call something in the reactor's thread for a signal."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, lambda *_: self._reactor.callFromThread(call))

    def keep_stop(self) -> None:
        """
        From the first line that says that the server is there SIGTERM and SIGINT stop it as they should, though the reactor,
        which takes care of them, does not run yet. (Later as well: a second signal, which to Twisted is a fault.)
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # a shell's background job
            signal.signal(number, self._stop)
            # When it begins to run Twisted puts its own there.
            self._reactor.callWhenRunning(signal.signal, number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        if self.asked_to_stop:
            self._reactor.callFromThread(self._abort)
            return
        self.asked_to_stop = True
        # Twisted's own, which notes the signal: twistd ends by it.
        stop = self._reactor.sigInt if number == signal.SIGINT else self._reactor.sigTerm
        if self._reactor.running:
            stop(number)
        else:
            self._reactor.callWhenRunning(stop, number)
