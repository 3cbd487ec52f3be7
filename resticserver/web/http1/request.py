"""
A request that begins at the end of its head, and leaves exactly one record however it ends.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.python.failure import Failure
from twisted.web.http import parse_qs
from twisted.web.server import Request

from ...errors import NotFound, ServerError
from ...limits.bandwidth import Share
from ...targets import Target, parse_target
from ...telemetry.record import STATUS_CLIENT_CLOSED, Effect, Ending, Record
from . import replies
from .body import Body
from .head import HeaderFields, RequestLine
from .interfaces import Channel, Owner
from .replies import date_now
from .socket_writer import JOINED_BYTES
from .waiting_route import WaitingRoute

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

#: How long the rest of a body may delay a refusal.
DROP_S = 2.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def without_userinfo(uri: bytes) -> bytes:
    """A URI for the log, without the user and password in it, also if it is malformed or names nothing."""
    if b"@" not in uri or (uri.startswith(b"/") and b"//" not in uri):
        return uri  # a path: a folder may be called alice@example.org
    scheme, slashes, address = uri.partition(b"//")
    return scheme.rpartition(b"@")[2] + slashes + address.rpartition(b"@")[2]


class StreamingRequest(Request):
    """
    One request.

    Twisted's own request expects a whole body. Here the body is a L{Body}, and the headers are L{HeaderFields}, which requests
    with the same header block share.

    @param line: C{None} if it cannot be parsed.
    @ivar fields: its header fields.
    @ivar body: its content, as it comes.
    @ivar target: what its path names; C{None} if it names nothing, and then C{why_nothing} says why.
    @ivar user_name: the user, once authenticated; C{None} without authentication.
    @ivar address: the client's, from trusted proxies' headers if there are any; C{-} for a unix socket.
    @ivar address_is_trusted: whether that address is a trusted proxy's own.
    @ivar peer_is_trusted: whether a trusted proxy sent this, so that its headers about the client are used.
    @ivar authenticated: whether it passed the authentication.
    @ivar awaits_continue: whether the client waits for C{100 Continue} before it sends the body.
    @ivar aborted: whether the server aborted its connection; it is never finished then.
    @ivar effect: what it did to the object.
    @ivar upload_share: the bandwidth for its body; C{None} without a limit. C{download_share}: for its answer.
    """

    defaultContentType = None

    # Twisted's Request declares its own HTTPChannel and Site.
    channel: Channel  # type: ignore[assignment]
    site: Owner  # type: ignore[assignment]

    # Initial values. Most requests do not change these, so the constructor does not set them.
    target: Target | None = None
    why_nothing = ""
    user_name: str | None = None
    authenticated = False
    awaits_continue = False
    aborted = False
    _sent_bytes = 0
    effect: Effect | None = None
    upload_share: Share | None = None
    download_share: Share | None = None
    _record: Record | None = None
    _record_held = False
    _head: bytes | None = None
    _running: WaitingRoute | None = None
    _recorded = False

    def __init__(self, channel: Channel, line: RequestLine | None, fields: HeaderFields | None = None) -> None:
        # The parent's constructor is not called: most of what it makes is not used.
        self.channel = channel
        self.site = channel.site
        self.notifications = []
        self.fields = fields if fields is not None else HeaderFields.none()
        self._started = time.time()
        self._started_monotonic = time.monotonic()
        origin = channel.origin()
        self.address = origin.address
        self.peer_is_trusted = self.address_is_trusted = origin.trusted
        if line is not None:
            self.method, uri, self.clientproto = line
            self.path, _, self._query = uri.partition(b"?")
            self.uri = without_userinfo(uri)
        else:
            self.method, self.uri, self.clientproto = b"-", b"-", b"HTTP/1.1"
        self.body = Body(channel.exchange, self.fields.length)

    # --- the channel's calls

    def begin(self) -> None:
        """Find the route and give it the request. Bytes of the body may come any time later."""
        self.awaits_continue = self.fields.expects_continue and self.clientproto == b"HTTP/1.1"
        if self.peer_is_trusted:
            self._find_client()
        try:
            self.target = parse_target(self.path, self.site.max_depth, self.site.prefix)
        except NotFound as error:
            self.why_nothing = error.message
        try:
            self.render(self.site.resource)
        except Exception as error:
            replies.send_error(self, error)
            self.finish()

    def _find_client(self) -> None:
        """Take the client's address from the headers of the trusted proxy that sent this."""
        x_forwarded_for = self.fields.all(b"x-forwarded-for")
        forwarded = self.fields.all(b"forwarded")
        if x_forwarded_for or forwarded:
            proxies = self.site.proxies
            self.address = proxies.client_address(self.channel.origin().peers, x_forwarded_for, forwarded)
            self.address_is_trusted = proxies.trusts(self.address)

    def run(self, coroutine: Coroutine[Deferred[Any], Any, None]) -> None:
        """Run a route, and finish when it has ended. It is cancelled when the client goes away."""
        try:
            waiting = coroutine.send(None)
        except StopIteration:
            self._ran(None)  # as many do
        except Exception:
            self._ran(Failure())
        else:
            self._running = WaitingRoute(coroutine, waiting, self._ran)

    def _ran(self, failure: Failure | None) -> None:
        self._running = None
        if failure is None:
            # An aborted request is never finished: its connection is being closed.
            if not self.aborted:
                self.finish()
        elif not failure.check(CancelledError):
            self.processingFailed(failure)

    def refuse(self, error: ServerError) -> None:
        """Answer a request that cannot be parsed, and so has no route."""
        replies.send_error(self, error)
        self.finish()

    def connectionLost(self, reason: Failure) -> None:
        """Twisted's call: the client is gone."""
        self.record_end(Ending.TRUNCATED if self.startedWriting else Ending.LOST)
        super().connectionLost(reason)
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    # --- the route's calls

    @property
    def args(self) -> dict[bytes, list[bytes]]:  # type: ignore[override]
        """The arguments in the query."""
        return parse_qs(self._query, keep_blank_values=True) if self._query else {}

    def client_certificate(self) -> Certificate | None:
        """The client's verified certificate from the TLS handshake; C{None} without one."""
        transport: Any = ISSLTransport(self.channel.transport, None)
        certificate = transport.getPeerCertificate() if transport is not None else None
        return certificate.to_cryptography() if certificate is not None else None

    def send_continue(self) -> None:
        """If the client waits for C{100 Continue}, send it."""
        if self.awaits_continue:
            self.awaits_continue = False
            self.channel.write(_CONTINUE)

    async def drop_body_of_proxy(self) -> None:
        """
        Before an answer that does not need the body: if a proxy sends it, drop what comes of it for L{DROP_S}.

        A client that gets its answer early reads it. Proxies may lose it, or its words (lighttpd 1.4.69, HAProxy 2.6, and Caddy
        2.6 over HTTP/2), and most have the rest of the body ready.
        """
        if self.peer_is_trusted and not self.body.ended and not self.awaits_continue:
            await self.body.drop().addTimeout(DROP_S, self.site.reactor, lambda *_: None)

    def start_answer(self, status: int, reason: bytes, fields: bytes, length: int | None) -> None:
        """
        Begin the answer. Its head goes out with the first bytes of its body, or at its end.

        @param fields: header fields, each with its CRLF.
        @param length: of the body in bytes; C{None} if it is not known, so that the body goes out in chunks.
        """
        self.code, self.code_message = status, reason
        if length is not None:
            fields += b"Content-Length: %d\r\n" % length
        elif self.clientproto == b"HTTP/1.1" and self.method != b"HEAD":
            fields += b"Transfer-Encoding: chunked\r\n"
            self.chunked = 1
        self._head = b"%s %d %s\r\nDate: %s\r\n%s" % (self.clientproto, status, reason, date_now(), fields)

    def take_head(self) -> bytes:
        """The head of the answer, for a transfer to send. The answer counts as begun from now on."""
        head, self._head = self._head, None
        assert head is not None
        self.startedWriting = 1
        return head + (b"Connection: close\r\n\r\n" if self.channel.exchange.is_last_answer(self) else b"\r\n")

    def write(self, data: bytes) -> None:
        """Send the next bytes of the answer's body. Of an answer to HEAD only the head is sent."""
        if self._disconnected:
            return
        if self._head is None:
            assert self.startedWriting and not self.finished
            if data and self.method != b"HEAD":
                self.sentLength += len(data)
                self.channel.write(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)
            return
        head = self.take_head()
        if self.method == b"HEAD":
            data = b""
        self.sentLength += len(data)
        if data and self.chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        if len(data) > JOINED_BYTES:
            self.channel.write(head, data)
        else:
            self.channel.write(head + data)

    def set_sent(self, sent_bytes: int) -> None:
        """So much of the answer's body was sent past L{write}. Called in any thread, and before a lost client is recorded."""
        self._sent_bytes = sent_bytes

    def unregisterProducer(self) -> None:
        """Leave the producer alone; also where the connection is gone."""
        if self.channel_or_none() is not None:
            super().unregisterProducer()

    def finish(self) -> None:
        """The answer is complete."""
        if self._disconnected or self.finished:
            return
        if not self.startedWriting:
            self.write(b"")
        if self.chunked:
            self.channel.write(b"0\r\n\r\n")
        self.record_end()
        self.finished = 1
        self._cleanup()

    def abort(self) -> None:
        """Abort the connection, so that the client does not take a part of an answer for the whole."""
        self.aborted = True
        channel = self.channel_or_none()
        if channel is not None:
            channel.abort()

    def stall(self) -> None:
        """The client moves no byte of the body or the answer: abort the connection."""
        channel = self.channel_or_none()
        if channel is not None:
            channel.client_stalled()
        self.abort()

    def channel_or_none(self) -> Channel | None:
        """The channel while the request has one (Twisted deletes the attribute)."""
        channel: Channel | None = getattr(self, "channel", None)
        return channel

    def record_end(self, ending: Ending | None = None) -> None:
        """Leave the one record. C{ending} is given if the answer did not come to its end."""
        if self._recorded:
            return
        self._recorded = True
        if ending is None:
            ending = Ending.DONE if self.code < 400 else Ending.FAILED if self.code == 500 else Ending.REFUSED
        record = Record(
            self._started,
            time.monotonic() - self._started_monotonic,
            self.address,
            self.user_name,
            self.method,
            self.uri,
            self.clientproto,
            self.target,
            STATUS_CLIENT_CLOSED if ending is Ending.LOST else self.code,
            self._sent_bytes or self.sentLength,
            self.body.received_bytes,
            None if self.fields.referer is None else without_userinfo(self.fields.referer),
            self.fields.user_agent,
            ending,
            self.effect,
        )
        if self._record_held:
            self._record = record
        else:
            self.site.record(record)

    def hold_record(self) -> None:
        """The request may have an effect from now on, also if its client goes away: leave no record before L{release_record}."""
        self._record_held = True

    def release_record(self, effect: Effect | None) -> None:
        """The request's effect is known: leave the record if the request has ended."""
        self.effect = effect
        self._record_held = False
        record, self._record = self._record, None
        if record is not None:
            self.site.record(record._replace(effect=effect))

    def processingFailed(self, reason: Failure) -> Any:
        """Twisted's call: the route failed without an answer. The client gets a 500."""
        replies.send_error(self, reason.value or RuntimeError())
        if not self.aborted:
            self.finish()
        return reason
