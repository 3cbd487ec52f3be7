"""
Saves refused uploads for the next start, so that a restart does not lose the reason why backups fail.
"""

from __future__ import annotations

import time

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..storage.state import StateFile
from ..telemetry.refusals import Refusals, Refused, within_a_day
from ..threads.interface import Pool

#: Refusals are saved at most this often. A crash loses no more than this time.
KEEP_S = 60.0

_log = Logger()


class KeptRefusals(Service):
    """
    Loads the refusals from before the start, and saves new ones.

    @param refusals: the refusals to save.
    @param state: the file to save them in.
    @param pool: for the state file.
    """

    def __init__(self, reactor: IReactorTime, refusals: Refusals, state: StateFile, pool: Pool) -> None:
        self._refusals = refusals
        self._state = state
        self._pool = pool
        self._loaded = False
        self._written = refusals.changes
        self._call = LoopingCall(self._keep)
        self._call.clock = reactor
        self.setName("refusals")

    def startService(self) -> None:
        """Load the saved refusals, then save at intervals."""
        super().startService()
        self._pool.run(self._state.refusals).addCallback(self._load).addErrback(_log_failure)
        self._call.start(KEEP_S, now=False)

    def stopService(self) -> Deferred[None]:
        """Save what was not saved yet."""
        super().stopService()
        self._call.stop()
        return self._keep()

    def _load(self, rows: list[tuple[str | None, str, str, int, float, str]]) -> None:
        self._refusals.load((Refused(*row) for row in rows), time.time())
        self._loaded = True

    def _keep(self) -> Deferred[None]:
        """Save, but never before the refusals from before the start were loaded: that would overwrite them."""
        return Deferred.fromCoroutine(self._write()).addErrback(_log_failure)

    async def _write(self) -> None:
        changes = self._refusals.changes
        if not self._loaded or changes == self._written:
            return
        found, now_s = self._refusals.entries(), time.time()
        await self._pool.run(lambda: self._state.put_refusals(within_a_day(found, now_s)))
        self._written = changes


def _log_failure(failure: Failure) -> None:
    _log.failure("could not save the refused uploads", failure)
