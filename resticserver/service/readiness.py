"""
Readiness (C{/-/ready}): whether the data directory exists and is writable.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..storage.interface import ServedStore
from ..threads.interface import Pool
from ..threads.single_flight import TimedFlight

#: How long a result is cached, however many clients ask.
FRESH_S = 2.0
#: A disk that does not respond within this time is not ready.
PATIENCE_S = 3.0

NOT_LOOKED_AT = "not checked yet"

_log = Logger()


class Readiness:
    """
    Checks the data directory on request, by writing to it.

    @ivar reason: why the server is not ready, as of the last check; empty if it is.
    """

    def __init__(self, reactor: IReactorTime, store: ServedStore, pool: Pool) -> None:
        self._reactor = reactor
        self._store = store
        self._look = TimedFlight(reactor, pool, self._try, PATIENCE_S)
        self._looked_s = -FRESH_S
        self.reason = NOT_LOOKED_AT

    async def look(self) -> str:
        """Return why the server is not ready; empty if it is."""
        if self._reactor.seconds() - self._looked_s < FRESH_S:
            return self.reason
        found = await self._look.find()
        if found is None:
            self._found(f"{self._store.volume.words} does not respond")
        else:
            self._looked_s = self._reactor.seconds()
            self._found(found)
        return self.reason

    def _found(self, reason: str) -> None:
        if reason != self.reason and (reason or self.reason != NOT_LOOKED_AT):
            _log.warn("{state}", state=f"not ready: {reason}" if reason else "ready again")
        self.reason = reason

    def _try(self) -> str:
        """Try the store. Called in the pool."""
        try:
            return self._store.try_out()
        except Exception:
            _log.failure("could not check whether the server is ready")
            return "an error in the server"
