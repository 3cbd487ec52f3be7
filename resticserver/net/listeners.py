"""
The service that listens: all sockets of C{--listen} or from systemd, and the connections that came from them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import StartError
from ..threads.reactor import IReactor
from .addresses import wants_tls
from .counted import LimitedFactory
from .endpoints import parse_address, tls_factory
from .ports import SocketEndpoint, UnixPort
from .sockets import bound_address, inherited_sockets, process_environment

if TYPE_CHECKING:
    from ..web.http1.site import RepositorySite

_log = Logger()


class Purpose(NamedTuple):
    """
    What addresses are for.

    @ivar flag: the option that has them.
    @ivar words: what is logged before each of them; if it is set, sockets of systemd do not replace them.
    """

    flag: str
    words: str | None = None


REQUESTS = Purpose("--listen")
METRICS = Purpose("--metrics-listen", "metrics on")


class Listeners(Service):
    """
    All sockets that the server listens on, and the connections that came from them.

    @param addresses: the values of C{--listen}; inherited sockets replace them.
    @param make_site: makes the HTTP factory when the service starts.
    @param connection_creator: for TLS, or C{None}.
    @param shutdown_timeout_s: how long transfers may go on after the stop began.
    @param purpose: what the addresses are for.
    """

    def __init__(
        self,
        reactor: IReactor,
        addresses: tuple[str, ...],
        make_site: Callable[[], RepositorySite],
        connection_creator: Any,
        shutdown_timeout_s: float,
        purpose: Purpose = REQUESTS,
    ) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._words = purpose.words
        self._flag = purpose.flag
        self._make_site = make_site
        self._connection_creator = connection_creator
        self._shutdown_timeout_s = shutdown_timeout_s
        self._ports: list[IListeningPort] = []
        self._activated = False
        self._site: RepositorySite | None = None
        self._announcing: Callable[[], object] = lambda: None
        self.setName(purpose.words or "listeners")

    @property
    def bound_addresses(self) -> list[str]:
        """Where it listens."""
        return [bound_address(port) for port in self._ports]

    def before_announcing(self, call: Callable[[], object]) -> None:
        """Call something before it is logged where the server listens."""
        self._announcing = call

    def open(self) -> None:
        """
        Listen everywhere.

        @raise StartError: an address is not valid, or not available; then it listens nowhere.
        """
        try:
            self._open()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Remove the files of unix sockets after a start that failed."""
        for port in self._ports:
            if isinstance(port, UnixPort):
                port.remove_file()

    def _open(self) -> None:
        inherited = inherited_sockets(process_environment(), os.getpid()) if self._words is None else []
        endpoints = [(address, parse_address(self._reactor, address, self._flag)) for address in self._addresses]
        site = self._site = self._make_site()
        self._activated = bool(inherited)
        if inherited:
            for listening in inherited:
                self._listen(SocketEndpoint(self._reactor, partial(_identity, listening)), site, tls=True)
            return
        for address, endpoint in endpoints:
            self._listen(endpoint, site, tls=wants_tls(address))

    def startService(self) -> None:
        """
        Listen everywhere, if that was not done yet, and log where.

        @raise StartError: an address is not valid, or not available.
        """
        super().startService()
        if not self._ports:
            self.open()
        self._announcing()
        if self._activated:
            _log.info("systemd socket activation mode")
            return
        for address in self.bound_addresses:
            _log.info("{words} {address}", words=self._words or "start server on", address=address)

    def _listen(self, endpoint: Any, factory: Any, tls: bool) -> IListeningPort:
        if tls:
            factory = tls_factory(factory, self._connection_creator)
        assert self._site is not None
        if (limits := self._site.options.connections) is not None:
            factory = LimitedFactory(factory, limits)
        outcome: list[Any] = []
        endpoint.listen(factory).addBoth(outcome.append)
        # Every endpoint that parse_address returns listens or fails at once.
        if isinstance(outcome[0], Failure):
            error: BaseException | None = outcome[0].value
            assert error is not None
            if not isinstance(error, Exception):
                raise error  # a signal that ends the start
            raise StartError(f"{self._flag}: {error if isinstance(error, StartError) else f'cannot listen: {error}'}")
        port: IListeningPort = outcome[0]
        self._ports.append(port)
        return port

    def stopService(self) -> Deferred[None]:
        """Accept no more, give transfers their time, then end them."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._site is not None:
            late = self._reactor.callLater(self._shutdown_timeout_s, self.abort)
            await self._site.drain()
            if late.active():
                late.cancel()

    def abort(self) -> None:
        """End all connections now."""
        if self._site is not None:
            self._site.abort_all()


def _identity(listening: socket.socket) -> socket.socket:
    return listening
