"""
Waiting for something that happens in another process or thread, without guessing how long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Generous, so that a busy machine fails no test; nothing waits longer than it must.
PATIENCE_S = 60.0

_PAUSE_S = 0.01


def wait_until(predicate: Callable[[], T], timeout_s: float = PATIENCE_S, what: object = "") -> T:
    """
    Ask again and again until the answer is true.

    @param what: what was waited for; the message shows it as it is then.
    @return: the first true answer.
    @raise AssertionError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what or predicate}")
        time.sleep(_PAUSE_S)
