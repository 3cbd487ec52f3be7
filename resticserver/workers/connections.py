"""
A worker's connections: the parent accepts them and passes their descriptors.
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

from ..threads.reactor import IReactor
from ..web.http1.site import RepositorySite
from .ipc import IpcConnection
from .messages import ConnectionsEnded


class Connections(Service):
    """
    The connections that the parent has passed.

    @param factories: for each of the parent's sockets, the factory for its connections.
    @param shutdown_timeout_s: how long transfers may continue after the stop began.
    """

    def __init__(
        self,
        reactor: IReactor,
        site: RepositorySite,
        factories: list[IProtocolFactory],
        ipc: IpcConnection,
        shutdown_timeout_s: float,
    ) -> None:
        self._reactor = reactor
        self._site = site
        self._factories: Any = [CountingFactory(factory, self._one_ended) for factory in factories]
        self._ipc = ipc
        self._shutdown_timeout_s = shutdown_timeout_s
        self._ended = 0
        self.setName("connections")

    def startService(self) -> None:
        """Start the factories."""
        super().startService()
        for factory in self._factories:
            factory.doStart()

    def serve(self, fd: int, listener: int) -> None:
        """
        Serve a connection.

        @param fd: its descriptor; -1 if the kernel has closed it because this process has too many.
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
                # The client has disconnected already. Twisted notices this before it builds a protocol.
                self._one_ended()

    def _one_ended(self) -> None:
        self._ended += 1
        if self._ended == 1:
            self._reactor.callLater(0, self._report)

    def _report(self) -> None:
        ended, self._ended = self._ended, 0
        self._ipc.tell(ConnectionsEnded(ended))

    def retire(self) -> Deferred[None]:
        """Close each connection after its next response. Fires when none is left."""
        return self._site.retire()

    def abort(self) -> None:
        """Close all connections now."""
        self._site.abort_all()

    def stopService(self) -> Deferred[None]:
        """Let transfers finish within their time limit, then close all connections."""
        super().stopService()
        late = self._reactor.callLater(self._shutdown_timeout_s, self.abort)
        return self._site.drain().addCallback(lambda _: late.cancel() if late.active() else None)


class CountingFactory:
    """A protocol factory that calls C{ended} at the end of each connection."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, ended: Callable[[], None]) -> None:
        self._factory = factory
        self._ended = ended

    def doStart(self) -> None:
        """See C{twisted.internet.interfaces.IProtocolFactory}."""
        self._factory.doStart()

    def doStop(self) -> None:
        """See C{twisted.internet.interfaces.IProtocolFactory}."""
        self._factory.doStop()

    def buildProtocol(self, address: Any) -> Any:
        """
        See C{twisted.internet.interfaces.IProtocolFactory}. The protocol may be of any class, so its C{connectionLost}
        is replaced on the object.
        """
        protocol: Any = self._factory.buildProtocol(address)

        def connection_lost(reason: Failure = connectionDone) -> None:
            del protocol.connectionLost
            self._ended()
            protocol.connectionLost(reason)

        protocol.connectionLost = connection_lost
        return protocol
