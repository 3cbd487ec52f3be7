"""
Signals before the server is there. From then on they are the server's and Twisted's.
"""

from __future__ import annotations

import signal
import threading

_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)

#: Whether the start was told to end. The exception may have come where exceptions are swallowed.
_told: list[int] = []


def end_the_start() -> None:
    """
    From now on SIGTERM and SIGINT end the start with status 0. (Not by the signals' defaults: SIGINT's is a traceback, and
    process 1, which the server is in a container, has none.) SIGHUP and SIGUSR2 do nothing: all is read soon anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in (
        (signal.SIGTERM, _end),
        (signal.SIGINT, _end),
        (signal.SIGHUP, _ignore),
        (signal.SIGUSR2, _ignore),
    ):
        if signal.getsignal(number) in _DEFAULTS:
            signal.signal(number, handler)


def told_to_end() -> bool:
    """Whether one of them came."""
    return bool(_told)


def _end(number: int, frame: object) -> None:
    _told.append(number)
    raise SystemExit(0)


def _ignore(number: int, frame: object) -> None:
    """Not SIG_IGN, which programs that are started from here would inherit."""
