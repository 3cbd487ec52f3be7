"""
What an event changes in this process: the counts of damaged files, the snapshots, and the quota ledger.
"""

from __future__ import annotations

from twisted.logger import Logger

from ..storage.interface import ServedStore
from ..telemetry.events import Event, EventKind
from ..threads.interface import Pool
from .monitoring import Monitoring
from .quota_keeper import QuotaKeeper

_log = Logger()


class EventEffects:
    """
    Applies the effects of an event on the counts of damaged files, the snapshots, and the quota ledger.

    @param pool: for the store.
    """

    def __init__(self, monitoring: Monitoring, store: ServedStore, quota_keeper: QuotaKeeper, pool: Pool) -> None:
        self._monitoring = monitoring
        self._store = store
        self._quota_keeper = quota_keeper
        self._pool = pool

    def take(self, event: Event) -> None:
        """Apply the effects of an event."""
        if event.repository is None:
            return
        if event.of_scrub:
            # Counted as a problem (L{resticserver.service.scrub}). What is missing takes no space any more.
            self._quota_keeper.recount(tuple(filter(None, event.repository.split("/"))))
        elif event.kind is EventKind.CORRUPTION:
            object_type, name = event.details["type"], event.details["name"]
            self._monitoring.damage(event.repository, object_type, name, replaced=not event.in_place)
            if event.in_place:
                # A worker may have found the damage, and this process counts with its own snapshots.
                repository = tuple(filter(None, event.repository.split("/")))
                forgotten = self._pool.run(self._store.forget_directory, repository, object_type, name)
                forgotten.addCallback(lambda _: self._quota_keeper.recount(repository))
                forgotten.addErrback(lambda failure: _log.failure("could not forget a snapshot", failure))
        elif event.kind is EventKind.REPOSITORY_DELETED:
            self._monitoring.deleted(event.repository)
