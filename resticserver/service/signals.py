"""
Signal handling of a server that has begun to listen.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Signals:
    """
    The signal handlers of the process. Outside the main thread (in tests) none are installed.

    @param abort: called when a stop is requested a second time: end now.
    @ivar asked_to_stop: True once a stop has begun; a further signal aborts it.
    """

    def __init__(self, reactor: Any, abort: Callable[[], object]) -> None:
        self._reactor = reactor
        self._abort = abort
        self.asked_to_stop = False

    def on(self, number: int, call: Callable[[], object]) -> None:
        """Call a function in the reactor's thread when a signal arrives."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, lambda *_: self._reactor.callFromThread(call))

    def keep_stop(self) -> None:
        """
        From the first log line that announces the server, SIGTERM and SIGINT must stop it cleanly. Twisted handles
        them only once the reactor runs. The handlers stay afterwards, too, because Twisted treats a second signal as
        an error.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # a background job of a shell
            signal.signal(number, self._stop)
            # Twisted installs its own handlers when the reactor starts, so install ours again afterwards.
            self._reactor.callWhenRunning(signal.signal, number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        if self.asked_to_stop:
            self._reactor.callFromThread(self._abort)
            return
        self.asked_to_stop = True
        # Call Twisted's handler, which records the signal: twistd ends itself by that signal.
        stop = self._reactor.sigInt if number == signal.SIGINT else self._reactor.sigTerm
        if self._reactor.running:
            stop(number)
        else:
            self._reactor.callWhenRunning(stop, number)
