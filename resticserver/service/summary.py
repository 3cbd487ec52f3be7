"""
The state of the server in one line, for service managers. Knows neither who asks nor how the line is passed on.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from ..errors import ServerError
from ..storage.volume import Volume
from ..threads.interface import Pool
from ..threads.single_flight import TimedFlight

#: A disk that does not respond within this time is not ready.
PATIENCE_S = 3.0


class Listens(Protocol):
    """The part of the listening service that is shown."""

    @property
    def bound_addresses(self) -> list[str]:
        """Where it listens, while it does."""


class Served(Protocol):
    """The part of L{resticserver.service.topology.Topology} that is shown."""

    @property
    def front(self) -> Listens:
        """The service that accepts connections."""

    @property
    def disk(self) -> Pool:
        """The pool for files."""

    async def gather(self) -> None:
        """Wait until all processes have sent their counts, but not for long."""

    def requests_in_flight(self) -> int:
        """How many requests all processes are serving, as of their last counts."""


class Summary:
    """
    Makes the line: C{listening on [::]:8000; requests in flight: 2}.

    It checks only that the volume is there, because that neither writes to the disk nor wakes it.

    """

    def __init__(self, reactor: IReactorTime, volume: Volume, served: Served) -> None:
        self._volume = volume
        self._look = TimedFlight(reactor, served.disk, self._check, PATIENCE_S)
        self._served = served

    async def running(self) -> str:
        """The state of a server that serves."""
        await self._served.gather()
        reason = await self._look.find()
        if reason is None:
            reason = f"{self._volume.words} does not respond"
        parts = [f"not ready: {reason}"] if reason else []
        return "; ".join((*parts, self.at_the_start()))

    def at_the_start(self) -> str:
        """The state without a look at the disk."""
        return f"listening on {', '.join(self._served.front.bound_addresses)}; {self._in_flight()}"

    async def stopping(self) -> str:
        """The state of a server that stops."""
        await self._served.gather()
        return self.at_the_end()

    def at_the_end(self) -> str:
        """The same, as of the last counts."""
        return f"stopping; {self._in_flight()}"

    def _in_flight(self) -> str:
        return f"requests in flight: {self._served.requests_in_flight()}"

    def _check(self) -> str:
        """Why the data directory cannot be used; empty if it can. Called in the pool."""
        try:
            self._volume.check()
        except ServerError as error:
            return error.message
        except OSError as error:
            return f"{self._volume.words} cannot be read: {error.strerror}"
        return ""
