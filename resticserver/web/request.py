"""
A request that begins at the end of its header and leaves exactly one record, whatever its end.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString, parse_qs
from twisted.web.server import Request

from ..access.proxies import plain_address
from ..errors import NotFound, ServerError
from ..names import Target, parse_target
from ..telemetry.record import STATUS_CLIENT_CLOSED, Ending, Record
from . import replies
from .body import Body

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from .channel import StreamingChannel
    from .site import RepositorySite

_log = Logger()

#: A path that no route but the last takes (one segment could make werkzeug redirect to the same with a slash).
_NOWHERE = [b"*", b"*", b"*"]

#: User and password in an absolute URI.
_USERINFO = re.compile(rb"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")


def address_text(address: IAddress | None) -> str:
    """A client's address for logs and rules: IPv4 in its own form also behind an IPv6 socket, C{-} for a unix socket."""
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        return plain_address(address.host)
    return "-" if isinstance(address, UNIXAddress) else "unknown"


def without_userinfo(uri: bytes) -> bytes:
    """A URI as it may stand in a log."""
    return _USERINFO.sub(rb"\1", uri)


class StreamingRequest(Request):
    """
    One request.

    @ivar body: its content, as it comes.
    @ivar target: what its path names; C{None} where it names nothing.
    @ivar user: who sent it, once that is known; C{None} without authentication.
    @ivar address: the client's, as trusted proxies say; C{-} for a unix socket.
    @ivar address_is_trusted: whether that address is a trusted proxy's own.
    @ivar peer_is_trusted: whether a trusted proxy sent this, so that its headers are believed.
    @ivar authenticated: whether it passed the door.
    @ivar awaits_continue: whether the client waits for C{100 Continue} before it sends the body.
    @ivar begun: whether it was given to a route.
    @ivar aborted: whether its connection was ended by us; it is never finished then.
    @ivar sent_bytes: of the answer's body, where that went past C{write}.
    """

    defaultContentType = None

    channel: StreamingChannel
    site: RepositorySite

    def __init__(self, channel: StreamingChannel, queued: object = False) -> None:
        super().__init__(channel, queued)
        self.site = channel.site
        self.body = Body(channel, 0)
        self.target: Target | None = None
        self.user_name: str | None = None
        self.address_is_trusted = False
        self.peer_is_trusted = False
        self.authenticated = False
        self.awaits_continue = False
        self.begun = False
        self.aborted = False
        self.sent_bytes = 0
        self.address = channel.origin().address
        self._started = time.time()
        self._started_monotonic = time.monotonic()
        self._recorded = False

    # --- the channel's calls

    def header_received(self, method: bytes, uri: bytes, version: bytes, length: int | None) -> None:
        """The header is whole; C{length} is C{None} for a chunked body."""
        self.method, self.uri, self.clientproto = method, without_userinfo(uri), version
        self.path, _, query = uri.partition(b"?")
        self.args = parse_qs(query, keep_blank_values=True) if query else {}
        self.body = Body(self.channel, length)
        self.awaits_continue = (
            length != 0 and version == b"HTTP/1.1" and (self.getHeader(b"Expect") or b"").lower() == b"100-continue"
        )
        self._find_client()
        try:
            self.target = parse_target(self.path, self.site.max_depth, self.site.prefix)
        except NotFound:
            pass

    def _find_client(self) -> None:
        """Whose request this is: the connection's, unless that is a trusted proxy's and the proxy says more."""
        origin = self.channel.origin()
        self.address = origin.address
        self.peer_is_trusted = self.address_is_trusted = origin.trusted
        if not origin.trusted:
            return
        x_forwarded_for = self.requestHeaders.getRawHeaders(b"X-Forwarded-For", [])
        forwarded = self.requestHeaders.getRawHeaders(b"Forwarded", [])
        if x_forwarded_for or forwarded:
            proxies = self.site.proxies
            self.address = proxies.client_address(origin.peers, x_forwarded_for, forwarded)
            self.address_is_trusted = proxies.trusts(self.address)

    def client_certificate(self) -> Certificate | None:
        """The certificate that the client showed in the TLS handshake, which has been verified; C{None} without one."""
        transport: Any = ISSLTransport(self.channel.transport, None)
        certificate = transport.getPeerCertificate() if transport is not None else None
        return certificate.to_cryptography() if certificate is not None else None

    def begin(self) -> None:
        """Find the route and give it the request; bytes of the body may come any time after."""
        self.begun = True
        self.prepath = []
        self.postpath = _NOWHERE if self.target is None else self.target.route.encode("ascii").split(b"/")
        self.setHeader(b"Date", datetimeToString())
        try:
            self.render(self.site.resource)
        except Exception as error:
            replies.send_error(self, error)
            self.finish()

    def handleContentChunk(self, data: bytes) -> None:
        """Twisted's call: bytes of the body."""
        self.body.feed(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Twisted's call: the body is whole (the request began long before)."""
        self.body.end()

    def refuse(self, error: ServerError) -> None:
        """Answer a request that cannot be parsed and so has no route."""
        if not self.clientproto.startswith(b"HTTP/"):
            self.method, self.uri, self.clientproto = b"-", b"-", b"HTTP/1.1"
        replies.send_error(self, error)
        self.finish()

    def connectionLost(self, reason: Failure) -> None:
        """Twisted's call: the client is gone."""
        self.record_end(Ending.TRUNCATED if self.startedWriting else Ending.LOST)
        super().connectionLost(reason)

    # --- the route's calls

    def getRequestHostname(self) -> bytes:
        """A constant: the value of C{Host} is never looked at (a client on a unix socket sends anything)."""
        return b"localhost"

    def send_continue(self) -> None:
        """Tell a client that waits for it to send its body."""
        if self.awaits_continue:
            self.awaits_continue = False
            self.channel.send_continue()

    def abort(self) -> None:
        """End the connection: what was sent of an answer must not be taken for the whole."""
        self.aborted = True
        channel = self.channel_or_none()
        if channel is not None:
            channel.abort()

    def channel_or_none(self) -> StreamingChannel | None:
        """The channel while the request has one (Twisted deletes the attribute)."""
        channel: StreamingChannel | None = getattr(self, "channel", None)
        return channel

    def record_end(self, ending: Ending | None = None) -> None:
        """Leave the one record; C{ending} is given where the answer did not come to its end."""
        if self._recorded or not self.clientproto.startswith(b"HTTP/"):
            return
        self._recorded = True
        if ending is None:
            ending = Ending.DONE if self.code < 400 else Ending.FAILED if self.code == 500 else Ending.REFUSED
        self.site.record(
            Record(
                started=self._started,
                duration_s=time.monotonic() - self._started_monotonic,
                address=self.address,
                user=self.user_name,
                method=self.method,
                uri=self.uri,
                version=self.clientproto,
                target=self.target,
                status=STATUS_CLIENT_CLOSED if ending is Ending.LOST else self.code,
                sent_bytes=self.sent_bytes or self.sentLength,
                received_bytes=self.body.received_bytes,
                referer=self.getHeader(b"Referer"),
                user_agent=self.getHeader(b"User-Agent"),
                ending=ending,
            )
        )

    def processingFailed(self, reason: Failure) -> Any:
        """Klein's last resort; ours says no more to the client than 500."""
        replies.send_error(self, reason.value or RuntimeError())
        if not self.finished and not self._disconnected:
            self.finish()
        return reason
