"""
A route that waits.

Twisted's C{Deferred.fromCoroutine} does the same, with a Deferred, a context and generators of its own for each: a twentieth of
a small upload's time. A route has one caller, which is told of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class WaitingRoute:
    """
    A coroutine that has begun, and goes on whenever what it waits for has a result.

    @param waiting: what it waits for now.
    @param ended: called once it has ended; with what it has raised, or C{None}.
    """

    __slots__ = ("_cancelled", "_coroutine", "_ended", "_waiting")

    def __init__(
        self,
        coroutine: Coroutine[Deferred[Any], Any, None],
        waiting: Deferred[Any],
        ended: Callable[[Failure | None], object],
    ) -> None:
        self._coroutine = coroutine
        self._ended = ended
        self._cancelled = False
        self._waiting: Deferred[Any] | None = waiting
        waiting.addBoth(self._go_on)

    def _go_on(self, result: object) -> None:
        self._waiting = None
        try:
            if isinstance(result, Failure):
                # Thrown, as Twisted does it: until all callbacks have run, the Deferred itself cannot raise it.
                waiting = self._coroutine.throw(result.value or RuntimeError())
            else:
                waiting = self._coroutine.send(None)  # the Deferred has the result
        except StopIteration:
            self._ended(None)
        except BaseException:
            self._ended(Failure())
        else:
            self._waiting = waiting
            waiting.addBoth(self._go_on)
            if self._cancelled:
                self.cancel()

    def cancel(self) -> None:
        """Cancel what it waits for. If it is at work, and goes on to wait, cancel that."""
        waiting = self._waiting
        self._cancelled = waiting is None
        if waiting is not None:
            waiting.cancel()
