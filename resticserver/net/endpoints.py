"""
From an address as C{--listen} has it to an endpoint.

rest-server's own forms come first (C{:8000}, C{host:port}, C{[::1]:port}, C{unix:/path}), then Twisted's endpoint strings
with a known prefix.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

from ..errors import StartError
from .addresses import HOST_PORT, PLAIN_SUFFIX
from .ports import SocketEndpoint
from .proxy_protocol import ProxyProtocolEndpoint
from .sockets import UNIX_MODE, short_path, tcp_socket, unix_socket

#: Endpoint strings begin with one of these; Twisted would take any word as the name of a plugin.
ENDPOINT_PREFIXES = ("tcp", "tcp4", "tcp6", "ssl", "tls", "unix", "systemd", "haproxy", "fd")


def parse_address(
    reactor: Any, address: str, flag: str = "--listen"
) -> IStreamServerEndpoint | SocketEndpoint | ProxyProtocolEndpoint:
    """
    The endpoint of an address. Nothing is opened except the certificate of an endpoint that has its own.

    @param reactor: what the endpoint will listen with.
    @param flag: the flag that has the address, for messages.
    @raise StartError: it is not valid.
    """
    address = address.removesuffix(PLAIN_SUFFIX)
    prefix, colon, rest = address.partition(":")
    if colon and prefix == "haproxy":
        # Twisted's would make unix sockets 0666: then every user could claim any address.
        return ProxyProtocolEndpoint(parse_address(reactor, rest, flag))
    if colon and prefix == "unix":
        return _unix_endpoint(reactor, address, rest, flag)
    if colon and prefix in ENDPOINT_PREFIXES:
        try:
            endpoint: IStreamServerEndpoint = serverFromString(reactor, address)
        except Exception as error:
            raise StartError(f"{flag} {address}: {' '.join(str(error).split())}") from error
        return _with_own_tls(reactor, endpoint)
    match = HOST_PORT.match(address)
    if match is None:
        raise StartError(f"{flag} {address}: neither host:port nor unix:/path nor an endpoint string")
    if len(match["port"]) > 5 or int(match["port"]) > 65535:
        raise StartError(f"{flag} {address}: the port must be from 0 to 65535")
    host, port = match["v6"] or match["host"], int(match["port"])
    return SocketEndpoint(reactor, lambda: tcp_socket(host, port))


def _with_own_tls(reactor: Any, endpoint: Any) -> IStreamServerEndpoint:
    """An endpoint of Twisted's C{ssl:} and C{tls:} with the server's own TLS connections; any other one unchanged."""
    if isinstance(endpoint, SSL4ServerEndpoint):
        plain = TCP4ServerEndpoint(reactor, endpoint._port, endpoint._backlog, endpoint._interface)
        return TlsEndpoint(plain, partial(tls_factory, connection_creator=endpoint._sslContextFactory))
    creator = getattr(
        endpoint, "connectionCreator", None
    )  # TLSServerEndpoint, which older versions of Twisted do not have
    if creator is not None:
        return TlsEndpoint(endpoint.endpoint, partial(tls_factory, connection_creator=creator))
    return endpoint  # type: ignore[no-any-return]


@implementer(IStreamServerEndpoint)
class TlsEndpoint:
    """
    An endpoint with TLS of its own.

    @param endpoint: the one below TLS.
    @param wrap: puts its TLS before a factory.
    """

    def __init__(self, endpoint: Any, wrap: Callable[[IProtocolFactory], IProtocolFactory]) -> None:
        self._endpoint = endpoint
        self._wrap = wrap

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen there."""
        listening: Deferred[IListeningPort] = self._endpoint.listen(self._wrap(factory))
        return listening


def _unix_endpoint(reactor: Any, address: str, rest: str, flag: str) -> SocketEndpoint:
    """C{unix:/path}, and the endpoint string's C{unix:/path:mode=660}, without Twisted's mode 0666 and lock file."""
    path, *options = rest.split(":")
    mode = UNIX_MODE
    for option in options:
        key, _, value = option.partition("=")
        if key == "mode" and re.fullmatch("0?[0-7]{3}", value):
            mode = int(value, 8)
        elif (key, value) != ("lockfile", "0"):
            raise StartError(f"{flag} {address}: {option} is not supported, only options such as mode=660 are")
    if not path or path.startswith("@"):
        raise StartError(f"{flag} {address}: a Unix socket needs a path, such as unix:/run/restic.sock")
    path = os.path.abspath(path)
    try:
        short_path(path)
    except StartError as error:
        raise StartError(f"{flag}: {error}") from None
    return SocketEndpoint(reactor, lambda: unix_socket(path, mode), unlink=path)


def tls_factory(factory: IProtocolFactory, connection_creator: Any) -> IProtocolFactory:
    """
    A factory behind TLS.

    @param connection_creator: for C{--tls}; C{None} returns the factory unchanged.
    """
    if connection_creator is None:
        return factory
    from ..web.http1.tls_connection import behind_tls  # OpenSSL is slow to import

    return behind_tls(connection_creator, factory)
