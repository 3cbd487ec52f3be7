"""
The sizes of repositories on earlier days, read from the state file about once an hour: they do not change, and
hundreds of repositories have a hundred thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime

from ..storage.layout import Repository
from ..telemetry.growth import thinned, total
from ..threads.interface import Pool
from ..threads.single_flight import TimedFlight

#: The most points in the history of a repository's size, and of the total.
MOST_POINTS = 100
#: How long what was read is kept. The last count of a day may be written after midnight.
KEEP_S = 3600.0


class Sizes(NamedTuple):
    """
    Sizes by days since 1970, without the present day.

    @ivar by_repository: at most about L{MOST_POINTS} days of each.
    @ivar total: the size of all repositories on every day.
    """

    by_repository: dict[Repository, list[tuple[int, int]]]
    total: list[tuple[int, int]]


class SizeHistory:
    """
    Reads the sizes.

    @param read: reads all sizes, in the pool.
    @param patience_s: how long to wait for the disk.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        pool: Pool,
        read: Callable[[], dict[Repository, list[tuple[int, int]]]],
        patience_s: float,
    ) -> None:
        self._reactor = reactor
        self._read = read
        self._flight = TimedFlight(reactor, pool, self._look, patience_s)
        self._today = 0
        self._kept: tuple[int, float, Sizes] | None = None

    async def find(self, today: int) -> Sizes:
        """
        The sizes. Nothing if the disk takes too long.

        @param today: days since 1970.
        """
        if self._kept is not None and self._kept[0] == today and self._reactor.seconds() < self._kept[1]:
            return self._kept[2]
        self._today = today
        found = await self._flight.find()
        if found is None:
            return Sizes({}, [])
        if found[0] == today:
            self._kept = (today, self._reactor.seconds() + KEEP_S, found[1])
        return found[1]

    def _look(self) -> tuple[int, Sizes]:
        """In the pool."""
        today = self._today
        before = {repository: [one for one in days if one[0] < today] for repository, days in self._read().items()}
        short = {repository: thinned(days, MOST_POINTS) for repository, days in before.items()}
        return today, Sizes(short, total(before.values()))
