"""
What the parts of a connection need of each other. They import these protocols and not one another, so that each can be read,
and tested, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.web.resource import IResource

from ...access.proxies import TrustedProxies
from ...errors import ServerError
from ...telemetry.record import Record
from .body import Body, Source
from .head import HeaderFields, RequestLine
from .socket_writer import SocketWriter
from .turns import Turns


@dataclass(frozen=True, slots=True)
class Origin:
    """
    Where a connection comes from.

    @ivar peers: the addresses at the other end, nearest first: the socket's, and behind it what the PROXY protocol claims.
    @ivar address: the client's, as far as the connection knows.
    @ivar trusted: whether what its requests say of their client is believed.
    """

    peers: tuple[str, ...]
    address: str
    trusted: bool


class Request(Protocol):
    """What a channel needs of a request that it has begun."""

    body: Body
    authenticated: bool
    awaits_continue: bool

    def begin(self) -> None:
        """Find the route and give it the request."""

    def connectionLost(self, reason: Any) -> None:
        """The connection is gone."""

    def refuse(self, error: ServerError) -> None:
        """Answer with an error, without any route."""


class Owner(Protocol):
    """
    What a connection needs of the server that accepted it. L{resticserver.web.http1.site.RepositorySite} says what each of
    these is.
    """

    reactor: Any
    timeOut: float
    resource: IResource
    proxies: TrustedProxies
    max_depth: int
    prefix: tuple[str, ...]
    turns: Turns
    pool_turns: Turns
    crowded_from: int
    full_from: int

    @property
    def request_factory(self) -> Callable[[Any, RequestLine | None, HeaderFields | None], Any]:
        """Makes a L{Request} of a channel, a request line and its header fields; without a line it can only be refused."""

    def record(self, record: Record) -> None:
        """A request came to its end."""

    def handshake_failed(self, address: str, why: str) -> None:
        """A connection that should have become a TLS connection did not."""

    def out_of_descriptors(self, what: str) -> None:
        """Something was refused because there are too many descriptors already."""

    def connection_made(self, channel: Any) -> None:
        """A channel has its connection."""

    def connection_lost(self, channel: Any) -> None:
        """A channel lost its connection."""


class SocketHolder(Protocol):
    """What has a connection's socket instead of the channel, to move a body (L{resticserver.web.transfer})."""

    def interrupt(self, then: Callable[[], None]) -> bool:
        """End the running job, and call this when it has ended; whether there is one."""


class Channel(Source, Protocol):
    """What a request, and what moves its body, needs of its connection."""

    transport: Any
    site: Owner
    writer: SocketWriter | None
    secure: bool
    credentials: tuple[str, bytes] | None

    def origin(self) -> Origin:
        """Where the connection comes from."""

    def getPeer(self) -> IAddress:
        """The other end."""

    def getHost(self) -> IAddress:
        """Our end."""

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Send bytes of an answer."""

    def send_continue(self) -> None:
        """Tell the client to send the body."""

    def last_answer(self, request: Any) -> bool:
        """Whether this request's answer is the last of its connection."""

    def abort(self) -> None:
        """End the connection at once."""

    def read_in_bulk(self) -> None:
        """Read large pieces until the body's end."""

    def may_read_directly(self) -> bool:
        """Whether the rest of the body can be taken from the socket by others."""

    def may_write_directly(self) -> bool:
        """Whether an answer can be given to the socket by others."""

    def begin_direct_read(self, transfer: SocketHolder) -> None:
        """Leave the socket to others."""

    def end_direct_read(self, taken_bytes: int) -> None:
        """Read on."""

    def while_written_directly(self, transfer: SocketHolder, written: Deferred[None]) -> Deferred[None]:
        """Leave the socket to others until C{written} fires."""
