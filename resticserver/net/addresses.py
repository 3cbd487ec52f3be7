"""
The forms of C{--listen}: which of them C{--tls} wraps, and where a client on the same machine reaches the server. Nothing is
opened here, and Twisted is not needed; L{resticserver.net.endpoints} makes endpoints of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: C{:8000}, C{host:8000}, C{[::1]:8000}.
HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]+)\Z")
#: The suffix that excludes an address from C{--tls}.
PLAIN_SUFFIX = ":plain=yes"

#: Endpoints that have TLS of their own.
_OWN_TLS = ("ssl:", "tls:", "haproxy:ssl:", "haproxy:tls:")
#: The position of the port in an endpoint string; the interface may follow it for some.
_PORT_POSITION = {"tcp": 0, "tcp4": 0, "tcp6": 0, "ssl": 0, "tls": 1}
_INTERFACE_POSITION = {"tcp": 1, "tcp4": 1, "tls": 3}
_SEPARATOR = re.compile(r"(?<!\\):")
#: A socket that is bound to all addresses is reached at these.
_LOOPBACK = ("127.0.0.1", "::1")
_EVERYWHERE = ("", "::", "0.0.0.0")


def wants_tls(address: str) -> bool:
    """Whether C{--tls} wraps this listener."""
    return not (address.startswith(_OWN_TLS) or address.endswith(PLAIN_SUFFIX))


@dataclass(frozen=True)
class Place:
    """
    Where a client on the server's machine reaches a listener.

    @ivar hosts: names or addresses to try in turn; none for a Unix socket.
    @ivar port: the TCP port.
    @ivar path: the path of the Unix socket, or empty.
    @ivar tls: whether the listener serves TLS.
    @ivar proxied: whether each connection has to begin with a header of the PROXY protocol.
    """

    hosts: tuple[str, ...] = ()
    port: int = 0
    path: str = ""
    tls: bool = False
    proxied: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = self.hosts[0]
        return f"http{'s' if self.tls else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"


def place_of(address: str, tls: bool) -> Place:
    """
    Where a client on the server's machine reaches the listener of a C{--listen} value.

    @param tls: whether the server has C{--tls}.
    @raise ValueError: this cannot be known from the value; the message says why.
    """
    with_tls = address.removeprefix("haproxy:").startswith(_OWN_TLS) or (tls and wants_tls(address))
    address = address.removesuffix(PLAIN_SUFFIX)
    proxied = address.startswith("haproxy:")
    address = address.removeprefix("haproxy:")
    match = HOST_PORT.match(address)
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return Place(path=_SEPARATOR.split(rest)[0].replace("\\:", ":"), tls=with_tls, proxied=proxied)
    if kind in _PORT_POSITION:
        host, port = _of_endpoint(kind, rest)
    elif kind in ("systemd", "fd"):
        raise ValueError("it is a socket that was passed to the server")
    elif match is not None:
        host, port = match["v6"] or match["host"], match["port"]
    else:
        raise ValueError("neither host:port nor unix:/path nor an endpoint string")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError("the port must be from 0 to 65535")
    if int(port) == 0:
        raise ValueError("the system chose the port")
    return Place(_LOOPBACK if host in _EVERYWHERE else (host,), int(port), tls=with_tls, proxied=proxied)


def _of_endpoint(kind: str, rest: str) -> tuple[str, str]:
    """Host and port of the endpoint string C{kind:rest}."""
    parts = [part.replace("\\:", ":") for part in _SEPARATOR.split(rest)]
    named: dict[str, str] = dict(part.split("=", 1) for part in parts if "=" in part)
    places = [part for part in parts if "=" not in part]

    def value(name: str, position: int | None, default: str) -> str:
        if position is not None and position < len(places):
            return named.get(name, places[position])
        return named.get(name, default)

    port = value("port", _PORT_POSITION[kind], "443" if kind == "tls" else "")
    return value("interface", _INTERFACE_POSITION.get(kind), ""), port
