"""
Objects whose size has changed: whether they are damaged, and what is reported.

Objects are immutable, so a changed size means damage. The exception is a file that another program was still writing
when its size was first seen: a copy in progress, or a restored file. So the object's hash decides, once for each
change.
"""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from ..storage.interface import ServedStore, SizeChange
from ..telemetry.events import Event, EventKind, Tells
from ..threads.interface import Pool

#: The most changes that wait, and the most that are remembered as checked. A later listing finds a forgotten change
#: again.
MOST_WAITING = 100_000
MOST_REMEMBERED = 10_000

_log = Logger()


class SizeChanges:
    """
    Checks the size changes that one process sees, one at a time.

    @param pool: reads the objects.
    @param tell: receives a C{corruption} event, once for each damaged object.
    """

    def __init__(self, reactor: IReactorFromThreads, pool: Pool, store: ServedStore, tell: Tells) -> None:
        self._reactor = reactor
        self._pool = pool
        self._store = store
        self._tell = tell
        self._waiting: OrderedDict[SizeChange, None] = OrderedDict()
        self._judged: OrderedDict[SizeChange, None] = OrderedDict()
        self._running = False

    def take(self, change: SizeChange) -> None:
        """Add a change to check. May be called in any thread."""
        self._reactor.callFromThread(self._add, change)

    def _add(self, change: SizeChange) -> None:
        # Every listing reports the change until the snapshot with the former size is dropped.
        if change in self._judged or len(self._waiting) >= MOST_WAITING:
            return
        self._judged[change] = None
        if len(self._judged) > MOST_REMEMBERED:
            self._judged.popitem(last=False)
        self._waiting[change] = None
        if not self._running:
            self._running = True
            self._next()

    def _next(self) -> None:
        if not self._waiting:
            self._running = False
            return
        change, _ = self._waiting.popitem(last=False)
        judging = self._pool.run(self._judge, change)
        judging.addCallback(self._ended, change)
        judging.addErrback(lambda failure: _log.failure("could not check an object whose size has changed", failure))
        judging.addBoth(lambda _: self._next())

    def _judge(self, change: SizeChange) -> str:
        """
        Check an object. Called in the pool.

        @return: what is wrong with it; empty if nothing is.
        """
        try:
            return "its content does not match its name" if self._store.is_damaged(change) else ""
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    def _ended(self, wrong: str, change: SizeChange) -> None:
        if wrong:
            self._tell(damage_event(change, wrong))
        else:
            self._judged.pop(change, None)  # it may be damaged in the same way later


def damage_event(change: SizeChange, wrong: str) -> Event:
    """Make the event for a damaged object."""
    repository = "/".join(change.repository)
    message = (
        f"a file of repository {ascii(repository or '/')[1:-1]} is damaged: {change.object_type} {change.name} "
        f"had {change.known_bytes} bytes and has {change.found_bytes}; {wrong}"
    )
    details = {
        "type": change.object_type,
        "name": change.name,
        "known_bytes": change.known_bytes,
        "found_bytes": change.found_bytes,
    }
    return Event(EventKind.CORRUPTION, message, repository, details=details)
