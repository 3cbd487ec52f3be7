"""
Removes from the trash what has been there long enough, in small steps, in the process that has the quota ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..access.policy import Policy
from ..access.policyfile import PolicyFile
from ..errors import ServerError
from ..quota.ledger import owner_of
from ..sizes import Amount, format_size
from ..storage.layout import Repository
from ..storage.local import LocalStore
from ..storage.trash import has_trash
from ..storage.trash_restore import Expired
from ..telemetry.metrics import Family, MetricType, Sample
from ..threads.interface import Pool
from .repeated import Repeated

#: How often the time of the next removal is looked at.
LOOK_S = 20.0
#: All repositories are looked at again after this time, whatever was known of them: other programs may have changed them.
AGAIN_S = 3600.0
#: How many objects one step removes at most.
STEP_OBJECTS = 100
#: A clock that runs ahead by more than this has been set.
JUMP_S = 60.0
#: After such a step nothing is removed for so long: a wrong date would empty the trash at once.
HOLD_S = 86_400.0

_log = Logger()


class Clock:
    """
    The time for the expiry. After a step of the system's clock into the future it runs on as before, for a day.

    @param now: the time of the system, in seconds since 1970.
    @param elapsed: seconds that do not step; they should go on while the machine sleeps.
    """

    def __init__(self, now: Callable[[], float], elapsed: Callable[[], float]) -> None:
        self._now = now
        self._elapsed = elapsed
        self._time_s, self._at_s = now(), elapsed()
        self._held_until_s: float | None = None

    def look(self) -> tuple[float, float]:
        """
        Look at both clocks.

        @return: the time to use, in seconds since 1970, and by how much the system's clock has stepped ahead since the last
            look; 0 if it has not.
        """
        now_s, at_s = self._now(), self._elapsed()
        expected_s = self._time_s + (at_s - self._at_s)
        ahead_s = now_s - expected_s
        if ahead_s <= JUMP_S:
            # Also a step back: it ends a wrong step ahead.
            self._held_until_s = None
            self._time_s, self._at_s = now_s, at_s
            return now_s, 0.0
        if self._held_until_s is None:
            self._held_until_s = at_s + HOLD_S
            return expected_s, ahead_s
        if at_s >= self._held_until_s:
            self._held_until_s = None
            self._time_s, self._at_s = now_s, at_s
            return now_s, 0.0
        return expected_s, 0.0


class CountsSoon(Protocol):
    """The part of L{resticserver.service.quota_keeper.QuotaKeeper} that the expiry needs."""

    def count_soon(self, repository: Repository) -> None:
        """Count a repository again within some seconds."""


class Parts(NamedTuple):
    """
    What the expiry works with.

    @ivar pool: for the files.
    """

    store: LocalStore
    policy: Policy | PolicyFile
    quotas: CountsSoon
    pool: Pool


class TrashExpiry(Repeated):
    """
    Looks for what has ended, and removes it.

    @param clock: the time.
    @ivar removed: what was removed since the start.
    """

    def __init__(self, reactor: IReactorTime, parts: Parts, clock: Clock) -> None:
        super().__init__("trash", reactor, LOOK_S, self.look, now=True)
        self._store, self._policy, self._quotas, self._pool = parts
        self._clock = clock
        self._began_s = clock.look()[0]
        self._next_s = 0.0
        self._shortest_s: float | None = None
        self._failed: dict[Repository, str] = {}
        self.removed = Amount()

    async def look(self) -> None:
        """Remove what has ended, if something may have. With C{--read-only} nothing is removed."""
        if self._store.read_only:
            return
        now_s, ahead_s = self._clock.look()
        if ahead_s:
            words = (
                "the clock was set ahead by {seconds} s: nothing is removed from the trash for a day for that reason"
            )
            _log.warn(words, seconds=int(ahead_s))
            await self._prolong(ahead_s)
        shortest_s = self._policy.shortest_delete_delay()
        if now_s < self._next_s and shortest_s == self._shortest_s:
            return
        self._shortest_s = shortest_s
        next_s = now_s + AGAIN_S
        if shortest_s is not None:
            next_s = min(next_s, now_s + shortest_s)
        try:
            for repository in await self._pool.run(self._with_trash):
                if not self.running:
                    return
                ends_s = await self._expire(repository, now_s)
                next_s = next_s if ends_s is None else min(next_s, ends_s)
        except (ServerError, OSError) as error:
            # The volume is missing, or the data directory cannot be read, which others log.
            _log.debug("the trash was not looked at: {error}", error=error)
            return
        self._next_s = next_s

    def _with_trash(self) -> list[Repository]:
        store = self._store
        store.volume.check()
        found = []
        for repository in store.counting.possible_repositories():
            try:
                if has_trash(store.path, repository):
                    found.append(repository)
            except OSError as error:
                self._note(repository, error)
        return found

    async def _expire(self, repository: Repository, now_s: float) -> float | None:
        """
        Remove what has ended in one repository.

        @return: when something ends next, in seconds since 1970; C{None} if nothing does.
        """
        delay_s = self._policy.delete_delay_of(owner_of(repository), repository)
        removed = Amount()
        while True:
            step: Expired | None = await self._pool.run(self._step, repository, now_s, delay_s)
            if step is None:
                return now_s + AGAIN_S
            removed = Amount(removed.size_bytes + step.removed.size_bytes, removed.objects + step.removed.objects)
            if not step.more or not self.running:
                break
        if removed.objects:
            self.removed = Amount(self.removed.size_bytes + removed.size_bytes, self.removed.objects + removed.objects)
            self._quotas.count_soon(repository)
            _log.info(
                "removed {objects} objects ({size}) from the trash of repository {repository}",
                objects=removed.objects,
                size=format_size(removed.size_bytes),
                repository=ascii("/".join(repository) or "/")[1:-1],
            )
        return step.next_s

    def _step(self, repository: Repository, now_s: float, delay_s: float) -> Expired | None:
        self._store.volume.check()
        try:
            step = self._store.trash.expire(repository, now_s, delay_s, STEP_OBJECTS)
        except OSError as error:
            self._note(repository, error)
            return None
        self._failed.pop(repository, None)
        return step

    async def _prolong(self, by_s: float) -> None:
        """Keep for longer what was deleted since the start: the clock was behind then."""

        def prolong() -> None:
            for repository in self._with_trash():
                try:
                    self._store.trash.prolong(repository, self._began_s, by_s)
                except OSError as error:
                    self._note(repository, error)

        try:
            await self._pool.run(prolong)
        except (ServerError, OSError) as error:
            _log.debug("the trash was not looked at: {error}", error=error)

    def _note(self, repository: Repository, error: OSError) -> None:
        """Log an error, once as long as it stays the same."""
        reason = error.strerror or str(error)
        if self._failed.get(repository) != reason:
            self._failed[repository] = reason
            _log.warn(
                "cannot empty the trash of repository {repository}: {reason}",
                repository=ascii("/".join(repository) or "/")[1:-1],
                reason=reason,
            )

    def families(self) -> Iterator[Family]:
        """Metrics of what was removed."""
        for name, help_, value in (
            ("objects", "Objects removed from the trash because their time was over", self.removed.objects),
            ("bytes", "Bytes removed from the trash because their time was over", self.removed.size_bytes),
        ):
            yield Family(MetricType.COUNTER, f"rest_server_trash_expired_{name}", help_, (), [Sample((), value)])


def elapsed() -> float:
    """Seconds since an arbitrary moment, with those in which the machine slept where the system counts them."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
