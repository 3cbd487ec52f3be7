"""
What happened within the last day, for the status page: counted at intervals, and stored for the next start.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..storage.state import Count, StateFile, Write
from ..telemetry.last_day import Counters, LastDay, Slot
from ..telemetry.metrics import Tally
from ..threads.interface import Pool

#: How often counters are looked at.
LOOK_S = 60.0
#: How often they are stored. A crash loses no more than this time.
KEEP_S = 300.0

_log = Logger()


class Activity(Service):
    """
    The traffic, failed logins and refusals by limits of the last day, and the last upload to each repository.

    @param tally: has the counters of all processes since the start, and the last uploads.
    @param failed_logins: returns how many there were since the start.
    @param pool: for the state file.
    """

    def __init__(
        self, reactor: IReactorTime, tally: Tally, failed_logins: Callable[[], int], state: StateFile, pool: Pool
    ) -> None:
        self._tally = tally
        self._failed_logins = failed_logins
        self._state = state
        self._pool = pool
        self._last_day = LastDay(reactor.seconds)
        self._loaded = False
        self._written = (0, 0)
        self._looking = LoopingCall(self._look)
        self._keeping = LoopingCall(self._keep)
        self._looking.clock = self._keeping.clock = reactor
        self.setName("activity")

    def startService(self) -> None:
        """Load what is stored, then look and store at intervals."""
        super().startService()
        self._pool.run(self._state.activity).addCallback(self._load).addErrback(_log_failure)
        self._looking.start(LOOK_S, now=False)
        self._keeping.start(KEEP_S, now=False)

    def stopService(self) -> Deferred[None]:
        """Store what was not stored yet."""
        super().stopService()
        self._looking.stop()
        self._keeping.stop()
        return self._keep()

    def counted(self) -> tuple[float, Counters]:
        """For how long counters are known, a day at most, and what they say."""
        self._look()
        return self._last_day.covered_s, self._last_day.counted()

    def _look(self) -> None:
        counted = self._tally.counted
        limited = sum(counted.limited.values())
        self._last_day.look(Counters(counted.received_bytes, counted.sent_bytes, self._failed_logins(), limited))

    def _load(self, found: tuple[list[Count], list[Write]]) -> None:
        slots, writes = found
        self._last_day.load((Slot(began_s, Counters(*counted)) for began_s, *counted in slots), time.time())
        self._tally.writes.load(writes)
        self._loaded = True

    def _keep(self) -> Deferred[None]:
        """Store, but never before what is stored was loaded: that would overwrite it."""
        return Deferred.fromCoroutine(self._write()).addErrback(_log_failure)

    async def _write(self) -> None:
        self._look()
        changes = (self._last_day.changes, self._tally.writes.changes)
        if not self._loaded or changes == self._written:
            return
        slots: list[Count] = [(began_s, *counted) for began_s, counted in self._last_day.slots(time.time())]
        writes = [(repository, *written) for repository, written in self._tally.writes.by_repository.items()]
        await self._pool.run(self._state.put_activity, slots, writes)
        self._written = changes


def _log_failure(failure: Failure) -> None:
    _log.failure("could not store the activity of the last day", failure)
