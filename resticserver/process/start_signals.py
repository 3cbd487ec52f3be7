"""
Signal handling until the server runs. Afterwards the server and Twisted handle signals.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)

#: The signals received so far. The SystemExit itself may have been swallowed where it was raised.
_told: list[int] = []


def end_the_start() -> None:
    """
    From now on, SIGTERM and SIGINT end the start with exit status 0. Their default actions are unsuitable: SIGINT's
    prints a traceback, and process 1, which the server is in a container, has no default actions. SIGHUP and SIGUSR2
    are ignored, since the server is about to read all files anyway.
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
    """Whether SIGTERM or SIGINT was received."""
    return bool(_told)


def _end(number: int, frame: FrameType | None) -> None:
    _told.append(number)
    # Twisted would log the SystemExit with a traceback and go on (registerReapProcessHandler), and so would Python where it
    # forgets the lock of a module that was imported (_get_module_lock); the start ends a moment later.
    where = (frame.f_globals.get("__name__"), frame.f_code.co_name) if frame is not None else ("", "")
    if where[0] != "twisted.internet.process" and where != ("importlib._bootstrap", "cb"):
        raise SystemExit(0)


def _ignore(number: int, frame: object) -> None:
    """Do nothing. SIG_IGN is not used, because child processes would inherit it."""
