"""
Twisted's HTTPChannel, made to hand a request on at the end of its header instead of its body.

This is the one place that uses HTTPChannel's private names; C{tests/test_channel.py} names them, so that a Twisted
that changes them is noticed. What differs from the parent:

 - a request begins after its header; its body flows into the request's L{resticserver.web.body.Body};
 - C{100 Continue} is sent when the route starts to read, not before (Twisted sends it at the header's end);
 - an answer before the end of the body swallows the rest up to a bound, then closes its half and lingers, so that the
   client reads the answer and the rest of the body is never parsed as a request (RFC 9112 section 9.6);
 - stricter parsing: exactly one Host, no obsolete folding, no transfer coding but C{chunked}, no C{Content-Length} of
   more than 18 digits, a deadline for the header, and after a bad header nothing is looked at any more (the parent
   goes on with the next header line).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, _MalformedChunkedDataError

from ..errors import BadRequest, HeaderTooLarge, ServerError
from .request import address_text

if TYPE_CHECKING:
    from .body import Body
    from .request import StreamingRequest
    from .site import RepositorySite

#: A body that comes through the reactor's thread is read in pieces of this size.
BULK_BYTES = 512 << 10

_TOKEN_SEPARATOR = re.compile(rb"[ \t]*,[ \t]*")


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


class ReadGate:
    """
    Reading from the socket, paused as long as anyone has a reason.

    It stands where HTTPChannel keeps its C{_networkProducer}; the channel's own wish is the reason C{"channel"}.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._reasons: set[str] = set()

    def hold(self, reason: str) -> None:
        """Pause for this reason."""
        if not self._reasons:
            self._transport.pauseProducing()
        self._reasons.add(reason)

    def release(self, reason: str) -> None:
        """This reason holds no more; reading goes on when none does."""
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons:
                self._transport.resumeProducing()

    def open(self) -> None:
        """Forget all reasons."""
        for reason in tuple(self._reasons):
            self.release(reason)

    def pauseProducing(self) -> None:
        """HTTPChannel's call."""
        self.hold("channel")

    def resumeProducing(self) -> None:
        """HTTPChannel's call."""
        self.release("channel")

    def unregisterProducer(self) -> None:
        """HTTPChannel's call before it closes."""
        self._transport.unregisterProducer()


class StreamingChannel(HTTPChannel):
    """
    One connection.

    @cvar header_timeout_s: how long a header may take from its first byte.
    @cvar held_timeout_s: how long reading may stay paused by a slow disk before the connection is given up.
    @cvar swallow_timeout_s: how long the rest of a body is read after an early answer.
    @cvar swallow_bytes: how much of it, from a client that is authenticated; C{swallow_stranger_bytes} else.
    @cvar close_timeout_s: how long an idle connection may take to close when the server stops.
    @cvar linger_s: how long a half-closed connection waits for its client to read the answer.
    """

    totalHeadersSize = 32 * 1024

    header_timeout_s = 60.0
    held_timeout_s = 600.0
    swallow_timeout_s = 30.0
    swallow_bytes = 160 << 20
    swallow_stranger_bytes = 16 << 20
    linger_s = 10.0
    close_timeout_s = 2.0

    site: RepositorySite
    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self._beginning: StreamingRequest | None = None
        self._deaf = False
        self._swallowing: StreamingRequest | None = None
        self._header_deadline: IDelayedCall | None = None
        self._closing_call: IDelayedCall | None = None
        self._captured: list[bytes] | None = None
        self.peer: IAddress | None = None
        self._origin: Origin | None = None
        #: User and password that were right in the last request.
        self.credentials: tuple[str, bytes] | None = None

    def origin(self) -> Origin:
        """Where the connection comes from; asked by its requests, so after the PROXY protocol has said what it knows."""
        if self._origin is None:
            claimed = address_text(self.transport.getPeer())
            nearest = address_text(self.peer) if self.peer is not None else claimed
            peers = (nearest,) if claimed == nearest else (nearest, claimed)
            proxies = self.site.proxies
            self._origin = Origin(peers, proxies.client_address(peers, (), ()), all(map(proxies.trusts, peers)))
        return self._origin

    # --- the connection's life

    def connectionMade(self) -> None:
        """Twisted's call: the connection is there."""
        super().connectionMade()
        self.gate = ReadGate(self._networkProducer)
        self._networkProducer = cast(Any, self.gate)
        self.site.connection_made(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted's call: the connection is gone."""
        self._deaf = True
        for name in ("_header_deadline", "_closing_call"):
            self._cancel(name)
        super().connectionLost(reason)
        self.site.connection_lost(self)

    def _cancel(self, name: str) -> None:
        call = getattr(self, name)
        setattr(self, name, None)
        if call is not None and call.active():
            call.cancel()

    def finish_and_close(self) -> None:
        """Take no further request: close now if none is there, else after the answer."""
        self.persistent = False
        if not self.requests:
            self.loseConnection()
            # Over TLS that waits for the client's part of the closing.
            self._closing_call = self.callLater(self.close_timeout_s, self.abort)

    def abort(self) -> None:
        """End the connection now, whatever is on the way."""
        if self.transport is not None:
            self.transport.abortConnection()

    # --- parsing

    def dataReceived(self, data: bytes) -> None:
        """Twisted's call: bytes came in."""
        if self._deaf:
            return
        super().dataReceived(data)
        # _command is there from the request line to the end of the body; line mode ends with the header.
        in_header = self.line_mode and not self._deaf and (self._buffer or hasattr(self, "_command"))
        if not in_header:
            self._cancel("_header_deadline")
        elif self._header_deadline is None:
            self._header_deadline = self.callLater(self.header_timeout_s, self.timeoutConnection)

    def lineReceived(self, line: bytes) -> None:
        """Twisted's call: one line of a header; at its end the request begins."""
        if self._deaf:
            return
        if line[:1] in (b" ", b"\t"):
            self._refuse(BadRequest("folded or misplaced header line"))
            return
        super().lineReceived(line)
        request, self._beginning = self._beginning, None
        if request is not None:
            request.begin()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Twisted's call: a line is longer than any that is meant well."""
        self._refuse(HeaderTooLarge())

    def headerReceived(self, line: bytes) -> bool:
        """Twisted's call: one header field; whether it is good."""
        if self._deaf:
            return False
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and len(value.strip(b" \t")) > 18:
            self._refuse(BadRequest("Content-Length out of bounds"))
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """Twisted's call: the header is whole. The parent's is not called: it would send C{100 Continue} by itself."""
        if self._deaf:
            return
        request: StreamingRequest = self.requests[-1]
        self.persistent = self.persistent and self.checkPersistence(request, self._version)
        request.header_received(self._command, self._path, self._version, self.length)
        try:
            self._check_framing(request)
        except BadRequest as error:
            self._refuse(error)
            return
        self._beginning = request

    def read_in_bulk(self) -> None:
        """A body is taken now that comes through the reactor's thread: read more of it at a time."""
        if self._transferDecoder is not None:
            self._read_at_once(BULK_BYTES)

    def begin_direct_read(self) -> bool:
        """
        Leave the socket to others until L{end_direct_read}: nothing is read here, and no timer runs.

        @return: whether that is possible now (not while bytes are being parsed: the body's next ones may be among them).
        """
        if self._busyReceiving or self._deaf:
            return False
        self.gate.hold("direct")
        self.setTimeout(None)
        return True

    def end_direct_read(self, taken_bytes: int) -> None:
        """Go on behind the bytes of the body that were read by others."""
        self.setTimeout(self.site.timeOut)
        request: StreamingRequest = self.requests[-1]
        request.body.taken(taken_bytes)
        decoder: Any = self._transferDecoder
        decoder.contentLength -= taken_bytes
        if decoder.contentLength == 0:
            self.rawDataReceived(b"")  # no byte follows that would end the body
        self.gate.release("direct")

    def _read_at_once(self, size_bytes: int) -> None:
        """
        How much one look at the socket may bring: with Twisted's 64 KiB a pack costs the reactor 256 rounds, with 512 KiB
        32. Under TLS it is the socket's attribute that counts, not the wrapper's.
        """
        transport = self.transport
        socket_transport = getattr(transport, "transport", transport)
        if hasattr(socket_transport, "bufferSize"):
            socket_transport.bufferSize = size_bytes

    def _check_framing(self, request: StreamingRequest) -> None:
        """
        What the parent lets through and a strict server must not (RFC 9112 sections 3.2 and 6.1).

        @raise BadRequest: the request's end or its addressee cannot be told for sure.
        """
        headers = request.requestHeaders
        if self._version == b"HTTP/1.1" and len(headers.getRawHeaders(b"Host", [])) != 1:
            raise BadRequest("exactly one Host header is needed")
        codings = headers.getRawHeaders(b"Transfer-Encoding")
        if codings is not None:
            if self._version != b"HTTP/1.1" or [coding.lower() for coding in codings] != [b"chunked"]:
                raise BadRequest("unsupported Transfer-Encoding")
            if headers.hasHeader(b"Content-Length"):
                raise BadRequest("both Content-Length and Transfer-Encoding")

    def checkPersistence(self, request: StreamingRequest, version: bytes) -> bool:
        """Whether the connection may take another request; unlike the parent's, by every element of C{Connection}."""
        if version != b"HTTP/1.1":
            return False
        for value in request.requestHeaders.getRawHeaders(b"Connection", []):
            if b"close" in _TOKEN_SEPARATOR.split(value.strip().lower()):
                return False
        return True

    def rawDataReceived(self, data: bytes) -> None:
        """Twisted's call: bytes of a body, or of a next request while one is answered."""
        if self._deaf:
            return
        try:
            super().rawDataReceived(data)
        except _MalformedChunkedDataError:  # pragma: no cover - the parent catches it
            self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """The parent's way out for whatever it cannot parse."""
        self._refuse(BadRequest())

    def _refuse(self, error: ServerError) -> None:
        """Something cannot be parsed, so nothing after it can be: answer, or let the request answer, and close."""
        if self._deaf:
            return
        self._deaf = True
        self._cancel("_header_deadline")
        self.persistent = False
        self.gate.open()
        if not self.requests:
            self.requests.append(self.requestFactory(self, 0))
        request: StreamingRequest = self.requests[-1]
        if request is self._swallowing:
            self._linger()
        elif request.begun:
            request.body.fail(error)
        else:
            request.refuse(error)

    # --- answering

    def writeHeaders(self, version: Any, code: Any, reason: Any, headers: Any) -> None:
        """Twisted's call: the head of an answer; kept instead of written where L{take_head} asked for it."""
        if self._cannot_go_on(self.requests[0]):
            self.persistent = False
        if not self.persistent:
            headers.setRawHeaders(b"Connection", [b"close"])
        if self._captured is None:
            super().writeHeaders(version, code, reason, headers)
            return
        self._captured.extend((version, b" ", code, b" ", reason, b"\r\n"))
        for name, values in headers.getAllRawHeaders():
            for value in values:
                self._captured.extend((name, b": ", value, b"\r\n"))
        self._captured.append(b"\r\n")

    def take_head(self, request: StreamingRequest) -> bytes:
        """The head of a request's answer, to be sent by other means; the request counts as answered from now on."""
        self._captured = []
        try:
            request.write(b"")
            return b"".join(self._captured)
        finally:
            self._captured = None

    def send_continue(self) -> None:
        """Tell the client to go on with its body."""
        self._send100Continue()

    def hold_body(self) -> None:
        """Read no more for now: the body's taker is behind. The idle timer rests; a longer one watches."""
        self.gate.hold("body")
        self.setTimeout(self.held_timeout_s)

    def release_body(self) -> None:
        """Read on."""
        self.gate.release("body")
        self.setTimeout(None if self._handlingRequest else self.site.timeOut)

    def requestDone(self, request: StreamingRequest) -> None:
        """Twisted's call: a request is answered."""
        self._read_at_once(FileDescriptor.bufferSize)
        # The parent restores what it saved at the body's end, which may have been the timer of a held body.
        self._savedTimeOut = self.site.timeOut
        if self._deaf or self._cannot_go_on(request):
            self._linger()
        elif request.body.ended:
            super().requestDone(request)
        else:
            self._swallow(request)

    def _swallow_limit(self, request: StreamingRequest) -> int:
        return self.swallow_bytes if request.authenticated else self.swallow_stranger_bytes

    def _cannot_go_on(self, request: StreamingRequest) -> bool:
        """
        Whether no further request can be read once this one is answered: its body is not here and is too much to
        swallow, or the client waits for a C{100 Continue} and may send the body or may not.
        """
        body = request.body
        if body.ended:
            return False
        rest = body.expected_bytes
        return request.awaits_continue or (rest is not None and rest > self._swallow_limit(request))

    def _swallow(self, request: StreamingRequest) -> None:
        """Read the rest of a body that nobody wants, within bounds, so that the client comes to read its answer."""
        self._swallowing = request
        self.release_body()
        self._closing_call = self.callLater(self.swallow_timeout_s, self._linger)
        request.body.discard(self._swallow_limit(request), self._linger)

    def body_ended(self, body: Body) -> None:
        """The end of a body came: if its request was answered before, the connection is free for the next."""
        request = self._swallowing
        if request is not None and request.body is body and not self._deaf:
            self._swallowing = None
            self._cancel("_closing_call")
            super().requestDone(request)

    def _linger(self) -> None:
        """Close our half; drop what still comes, unparsed, until the client has closed its half or the time is up."""
        self._deaf = True
        self._cancel("_closing_call")
        self.setTimeout(None)
        self.gate.open()
        transport = self.transport
        transport.unregisterProducer()
        transport.loseWriteConnection()
        self._closing_call = self.callLater(self.linger_s, self.abort)

    def may_write_directly(self) -> bool:
        """Whether nothing waits to be written, so that others may write to the socket without overtaking."""
        transport = self.transport
        return not transport.dataBuffer and not transport._tempDataBuffer and not transport.disconnecting
