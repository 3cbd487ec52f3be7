"""
Waiting for something that happens in another process or thread, without guessing how long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")

#: Generous, so that a busy machine fails no test; nothing waits longer than it must.
PATIENCE_S = 60.0

#: Between two questions, as long as it does not take long; later so much of what was waited so far, up to some
#: maximum: what is asked of a server costs it time too.
_PAUSE_S = 0.01
_PAUSE_SHARE = 0.05
_LONGEST_PAUSE_S = 0.1


def wait_until(
    predicate: Callable[[], T | Literal[False] | None], timeout_s: float = PATIENCE_S, what: object = ""
) -> T:
    """
    Ask again and again until the answer is true.

    @param what: what was waited for; the message shows it as it is then, or what it returns if it can be called.
    @return: the first true answer.
    @raise AssertionError: there was none in time.
    """
    begun = time.monotonic()
    while True:
        answer = predicate()
        if answer:
            return answer
        waited_s = time.monotonic() - begun
        if waited_s > timeout_s:
            shown = what() if callable(what) else what
            raise AssertionError(f"waited {timeout_s:g} s in vain for {shown or predicate}")
        time.sleep(max(_PAUSE_S, min(waited_s * _PAUSE_SHARE, _LONGEST_PAUSE_S)))
