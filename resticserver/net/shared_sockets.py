"""
Listening for several processes: the parent has the sockets, and the workers have the factories of the same addresses.

The parent opens the socket of an address (L{open_shared}) and accepts from it (L{Acceptor}). A worker gets the connections and
makes what the address puts before HTTP (L{shared_factory}): the server's TLS or the endpoint's own, the PROXY protocol.
Twisted's endpoint strings do both in one step, so they get a reactor that only records what they ask for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IProtocolFactory, IReadDescriptor
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import StartError
from ..threads.reactor import IReactor
from .addresses import wants_tls
from .endpoints import parse_address, tls_factory
from .ports import NO_ROOM, REST_S, SocketEndpoint
from .proxy_protocol import ProxyProtocolEndpoint, ProxyProtocolFactory
from .sockets import joined_address, unix_address

#: How many connections are accepted from a socket before the reactor goes on.
_ACCEPTS = 32

_log = Logger()


class RecordingReactor:
    """
    A reactor for Twisted's endpoints that records what they ask for.

    @param opens: whether to open the sockets that are asked for.
    @ivar factory: what would serve.
    @ivar listening: the open socket.
    """

    def __init__(self, opens: bool) -> None:
        self._opens = opens
        self.factory: IProtocolFactory | None = None
        self.listening: socket.socket | None = None

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> None:
        """Twisted's call, with its meaning of C{interface}: an IPv6 address, or else something of IPv4."""
        self.factory = factory
        if not self._opens:
            return
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            flags = socket.AI_PASSIVE
            listening.bind(socket.getaddrinfo(interface or None, port, family, socket.SOCK_STREAM, flags=flags)[0][4])
            listening.listen(backlog)
        except OSError as error:
            listening.close()
            raise StartError(
                f"--listen: cannot listen on {joined_address(interface, port)}: {error.strerror}"
            ) from error
        self.listening = listening


def open_shared(address: str) -> tuple[socket.socket, str | None]:
    """
    The socket of a C{--listen} value, and the path to remove when it closes.

    @raise StartError: it is not valid, not available, or cannot be shared.
    """
    reactor = RecordingReactor(opens=True)
    endpoint, _ = _unwrapped(reactor, address, Factory())
    if isinstance(endpoint, SocketEndpoint):
        try:
            return endpoint.open_socket(), endpoint.unlink
        except StartError as error:
            raise StartError(f"--listen: {error}") from error
    _listen(address, endpoint, Factory())
    if reactor.listening is None:
        raise StartError(f"--listen {address} cannot be shared among workers")
    return reactor.listening, None


def shared_factory(address: str, site: IProtocolFactory, connection_creator: Any) -> IProtocolFactory:
    """
    What serves the connections of a C{--listen} value.

    @param connection_creator: for C{--tls}, or C{None}.
    @raise StartError: it is not valid, or cannot be shared.
    """
    factory = tls_factory(site, connection_creator) if wants_tls(address) else site
    reactor = RecordingReactor(opens=False)
    endpoint, factory = _unwrapped(reactor, address, factory)
    if isinstance(endpoint, SocketEndpoint):
        return factory
    _listen(address, endpoint, factory)
    assert reactor.factory is not None
    return reactor.factory


def _unwrapped(reactor: RecordingReactor, address: str, factory: IProtocolFactory) -> tuple[Any, IProtocolFactory]:
    """The endpoint below those for the PROXY protocol, and the factory with what these put before it."""
    endpoint: Any = parse_address(reactor, address)
    while isinstance(endpoint, ProxyProtocolEndpoint):
        endpoint, factory = endpoint.endpoint, ProxyProtocolFactory(factory)
    return endpoint, factory


def _listen(address: str, endpoint: Any, factory: IProtocolFactory) -> None:
    outcome: list[Any] = []
    try:
        endpoint.listen(factory).addBoth(outcome.append)
    except Exception:
        outcome.append(Failure())
    if outcome and isinstance(outcome[0], Failure):
        error: BaseException | None = outcome[0].value
        assert error is not None
        if isinstance(error, StartError) or not isinstance(error, Exception):
            raise error
        # It asked for something else than listenTCP.
        raise StartError(f"--listen {address} cannot be shared among workers") from error


@implementer(IReadDescriptor)
class Acceptor:
    """
    A listening socket in the reactor.

    @param unlink: the path to remove at the end, or C{None}.
    @param take: called with each connection, which it owns then.
    """

    def __init__(
        self,
        reactor: IReactor,
        listening: socket.socket,
        unlink: str | None,
        take: Callable[[socket.socket], object],
    ) -> None:
        listening.setblocking(False)
        self._reactor = reactor
        self._socket = listening
        self._unlink = unlink
        self._take = take
        self._active = False
        self._resting: Any = None
        #: Whether it was logged that there is no room, and no connection was accepted since.
        self._logged = False

    @property
    def address(self) -> str:
        """Where it listens, as rest-server prints it."""
        name = self._socket.getsockname()
        return unix_address(name) if self._socket.family == socket.AF_UNIX else joined_address(*name[:2])

    def resume(self) -> None:
        """Accept connections."""
        self._active = True
        if self._resting is None:
            self._reactor.addReader(self)

    def pause(self) -> None:
        """Leave connections in the socket's backlog."""
        self._active = False
        self._reactor.removeReader(self)

    def close(self) -> None:
        """Close the socket; other processes that have it can go on."""
        self.pause()
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._socket.close()
        if self._unlink is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._unlink)

    def doRead(self) -> None:
        """Twisted calls this when a client connects."""
        for _ in range(_ACCEPTS):
            if not self._active:
                return
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self._rest(error)
                    return
                continue  # this client has gone again
            self._logged = False
            self._take(connection)

    def _rest(self, error: OSError) -> None:
        if not self._logged:
            _log.error("cannot accept a connection: {error}", error=error.strerror)
            self._logged = True
        self._reactor.removeReader(self)
        self._resting = self._reactor.callLater(REST_S, self._rested)

    def _rested(self) -> None:
        self._resting = None
        if self._active:
            self._reactor.addReader(self)

    def fileno(self) -> int:
        """Twisted's call."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Twisted's call."""
        return "acceptor"

    def connectionLost(self, reason: Failure) -> None:
        """Twisted calls this when the reactor has given up on the socket."""
        _log.failure("lost a listening socket", reason)
        self.pause()
