"""
A worker's connections: the parent accepts them and passes their descriptors.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory

from ..net.counted import CountingFactory
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
        self._factories = factories
        self._ipc = ipc
        self._shutdown_timeout_s = shutdown_timeout_s
        self._ended: list[int] = []
        self.setName("connections")

    def startService(self) -> None:
        """Start the factories."""
        super().startService()
        for factory in self._factories:
            factory.doStart()

    def serve(self, fd: int, listener: int, number: int) -> None:
        """
        Serve a connection.

        @param fd: its descriptor; -1 if the kernel has closed it because this process has too many.
        @param number: by which the parent knows it.
        """
        if fd < 0:
            self._site.out_of_descriptors("a connection was closed")
            self._one_ended(number)
            return
        factory: Any = CountingFactory(self._factories[listener], partial(self._one_ended, number))
        with socket.socket(fileno=fd) as connection:
            connection.setblocking(False)
            try:
                self._reactor.adoptStreamConnection(connection.fileno(), connection.family, factory)
            except OSError:
                # The client has disconnected already. Twisted notices this before it builds a protocol.
                self._one_ended(number)

    def _one_ended(self, number: int) -> None:
        self._ended.append(number)
        if len(self._ended) == 1:
            self._reactor.callLater(0, self._report)

    def _report(self) -> None:
        ended, self._ended = self._ended, []
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
