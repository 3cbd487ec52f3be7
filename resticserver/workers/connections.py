"""
A worker's connections: the parent accepts them and hands over their descriptors.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ..web.http1.site import RepositorySite
from .commands import ConnectionsEnded
from .ipc import IpcConnection


class Connections(Service):
    """
    The connections that the parent handed over.

    @param factories: for each of the parent's sockets, what serves its connections.
    @param shutdown_timeout_s: how long transfers may go on after the stop began.
    """

    def __init__(
        self,
        reactor: Any,
        site: RepositorySite,
        factories: list[IProtocolFactory],
        ipc: IpcConnection,
        shutdown_timeout_s: float,
    ) -> None:
        self._reactor = reactor
        self._site = site
        self._factories = [CountingFactory(factory, self._one_ended) for factory in factories]
        self._ipc = ipc
        self._shutdown_timeout_s = shutdown_timeout_s
        self._ended = 0
        self.setName("connections")

    def startService(self) -> None:
        """Be ready to serve."""
        super().startService()
        for factory in self._factories:
            factory.doStart()

    def serve(self, fd: int, listener: int) -> None:
        """
        Serve a connection.

        @param fd: its descriptor; -1 for one that the kernel has closed, since this process has too many.
        """
        if fd < 0:
            self._site.out_of_descriptors("a connection was closed")
            self._one_ended()
            return
        with socket.socket(fileno=fd) as connection:
            connection.setblocking(False)
            try:
                self._reactor.adoptStreamConnection(connection.fileno(), connection.family, self._factories[listener])
            except OSError:
                # The client is gone already: Twisted finds that out before it makes a protocol.
                self._one_ended()

    def _one_ended(self) -> None:
        self._ended += 1
        if self._ended == 1:
            self._reactor.callLater(0, self._report)

    def _report(self) -> None:
        ended, self._ended = self._ended, 0
        self._ipc.tell(ConnectionsEnded(ended))

    def retire(self) -> Deferred[None]:
        """Close each connection after its next answer; fires when none is left."""
        return self._site.retire()

    def abort(self) -> None:
        """Close all connections now."""
        self._site.abort_all()

    def stopService(self) -> Deferred[None]:
        """Give transfers their time, then close them."""
        super().stopService()
        late = self._reactor.callLater(self._shutdown_timeout_s, self.abort)
        return self._site.drain().addCallback(lambda _: late.cancel() if late.active() else None)


class CountingFactory:
    """A factory of protocols that calls C{ended} for the end of each connection."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, ended: Callable[[], None]) -> None:
        self._factory = factory
        self._ended = ended

    def doStart(self) -> None:
        """Twisted's call."""
        self._factory.doStart()

    def doStop(self) -> None:
        """Twisted's call."""
        self._factory.doStop()

    def buildProtocol(self, address: Any) -> Any:
        """Twisted's call. The protocol may be of any class, so its C{connectionLost} is replaced on the object."""
        protocol: Any = self._factory.buildProtocol(address)

        def connection_lost(reason: Failure = connectionDone) -> None:
            del protocol.connectionLost
            self._ended()
            protocol.connectionLost(reason)

        protocol.connectionLost = connection_lost
        return protocol
