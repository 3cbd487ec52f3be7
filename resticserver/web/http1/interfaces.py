"""
What requests and connections need of the server, and requests of their connection. They import these protocols and not
one another, so that each can be read, and tested, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource

from ...access.proxies import TrustedProxies
from ...telemetry.limited import Limited
from ...telemetry.record import Record
from .exchange import Exchange
from .gate import ReadGate
from .head import HeaderFields, RequestLine
from .options import SiteOptions
from .socket_writer import SocketWriter
from .turns import Turns


@dataclass(frozen=True, slots=True)
class Origin:
    """
    Where a connection comes from.

    @ivar peers: the addresses of the other end, nearest first: the socket's, then the one in the PROXY protocol's header.
    @ivar address: the client's, as far as the connection knows.
    @ivar trusted: whether a trusted proxy sends the requests, so that their headers about the client are used.
    """

    peers: tuple[str, ...]
    address: str
    trusted: bool


class Owner(Protocol):
    """
    What a connection needs of the server that accepted it. L{resticserver.web.http1.site.RepositorySite} documents them.
    """

    reactor: IReactorTime
    timeOut: float
    resource: IResource
    options: SiteOptions
    limited: Limited
    proxies: TrustedProxies
    max_depth: int
    prefix: tuple[str, ...]
    turns: Turns
    pool_turns: Turns
    retiring: bool

    @property
    def request_factory(self) -> Callable[[Any, RequestLine | None, HeaderFields | None], Any]:
        """Makes a request of a channel, a request line and its header fields; without a line it can only be refused."""

    def record(self, record: Record) -> None:
        """A request came to its end."""

    def head_timed_out(self, address: str) -> None:
        """The head of a request from this address did not end in time."""

    def stalled(self, address: str) -> None:
        """A connection from this address is ended, because no byte moved for too long."""

    def out_of_descriptors(self, what: str) -> None:
        """Something was refused because there are too many descriptors already."""

    def connection_made(self, channel: Any) -> None:
        """A channel has its connection."""

    def connection_lost(self, channel: Any) -> None:
        """A channel lost its connection."""


class Channel(Protocol):
    """
    What a request and its transfers need of their connection. L{resticserver.web.http1.channel.StreamingChannel} documents
    them.
    """

    transport: Any
    exchange: Exchange
    gate: ReadGate
    writer: SocketWriter | None
    credentials: tuple[str, bytes] | None

    @property
    def site(self) -> Owner:
        """The server that accepted the connection."""

    def origin(self) -> Origin:
        """Where the connection comes from."""

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Send bytes of an answer."""

    def may_lend(self) -> bool:
        """Whether a transfer may write to the socket now."""

    def may_lend_input(self) -> bool:
        """Whether a transfer may take the rest of the body from the socket now."""

    def client_stalled(self) -> None:
        """The connection is ended because the client moves no byte."""

    def abort(self) -> None:
        """Close the connection now."""
