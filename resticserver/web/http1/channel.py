"""
One connection of a client: HTTP/1.1 from bytes to requests, and the requests' answers back to bytes.

The channel parses heads and bodies. L{resticserver.web.http1.exchange.Exchange} has the state of the request and its answer,
L{resticserver.web.http1.gate.ReadGate} decides when to read, and L{resticserver.web.http1.closing.Closing} ends the connection.

The channel gives Twisted's C{Request} what C{HTTPChannel} would. It is our own because of these differences:

 - a request begins after its head. Its body goes to the request's L{resticserver.web.http1.body.Body} piece by piece, or stays
   in the socket for a transfer (L{resticserver.web.transfer});
 - C{100 Continue} is sent when the route starts to read, not before;
 - after an answer that comes before the end of the body, the rest is read and dropped, or the connection lingers (RFC 9112
   section 9.6);
 - parsing is strict (L{resticserver.web.http1.head}), a head has a deadline, and nothing is parsed after bytes that are no HTTP;
 - speed: an answer goes to the socket at once when nothing waits to be written.

Pipelined requests wait as bytes, few of them. Bytes that take long to decode wait for the connection's turn
(L{resticserver.web.http1.turns}).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ...errors import BadRequest, HeaderTooLarge, RequestTimeout, ServerError, Unavailable
from ...telemetry.limited import HEADER_SIZE
from .addresses import address_text
from .closing import Closing
from .exchange import Exchange, Request, Timeouts
from .gate import ReadGate
from .head import HeaderFields, RequestLine, parse_request_line
from .interfaces import Origin, Owner
from .replies import date_now, reason_phrase
from .socket_writer import SocketWriter, sender_of
from .turns import BYTES_PER_UNIT, REQUEST_UNITS, SLICE_UNITS

#: The longest head of a request.
MOST_HEAD_BYTES = 32 * 1024
#: How much of next requests may wait while one is answered.
MOST_PIPELINED_BYTES = 16 * 1024

TOO_MANY_CONNECTIONS = "the server has too many connections: try again later"


@implementer(IPushProducer, IHalfCloseableProtocol)
class StreamingChannel(Protocol):
    """
    One connection.

    @cvar crowded_timeout_s: how long a connection may wait with its request while there are too many connections.
    @param peer: the socket's other end, whatever the PROXY protocol claims.
    @ivar exchange: the request that is served now.
    @ivar gate: pauses reading.
    @ivar writer: sends answers at once; C{None} where only the transport can send.
    @ivar secure: whether this is TLS.
    @ivar credentials: user and password that were right in the last request.
    @ivar ignores_input: whether nothing that comes is parsed any more.
    """

    crowded_timeout_s = 10.0

    transport: Any
    exchange: Exchange
    gate: ReadGate
    writer: SocketWriter | None = None
    secure = False

    def __init__(self, site: Owner, peer: IAddress | None = None) -> None:
        self.site = site
        self.credentials: tuple[str, bytes] | None = None
        self.ignores_input = False
        self._peer = peer
        self._origin: Origin | None = None
        #: Received bytes that are not parsed yet: the begin of a head, or next requests.
        self._rest = b""
        self._in_head = False
        #: How much of the begin of a head was searched for its end.
        self._seen_bytes = 0
        #: Whether bytes are being parsed, and how many units that may still cost now.
        self._parsing = False
        self._units = 0
        #: Whether C{_rest} waits for this connection's turn.
        self._waiting = False
        #: Whether the client has closed its half.
        self._input_ended = False
        #: Whether the client takes answers more slowly than they are made.
        self._clogged = False
        self._producer: Any = None
        self._last_fields: tuple[bytes, HeaderFields] | None = None
        #: Whether the descriptors that are left are needed for files.
        self._crowded = False

    def origin(self) -> Origin:
        """Where the connection comes from. Requests ask for it, so the PROXY protocol's header has been read by then."""
        if self._origin is None:
            claimed = address_text(self.transport.getPeer())
            nearest = address_text(self._peer) if self._peer is not None else claimed
            peers = (nearest,) if claimed == nearest else (nearest, claimed)
            proxies = self.site.proxies
            self._origin = Origin(peers, proxies.client_address(peers, (), ()), all(map(proxies.trusts, peers)))
        return self._origin

    # --- the connection's life

    def connectionMade(self) -> None:
        """Twisted's call: the connection is there."""
        transport, site = self.transport, self.site
        self.secure = ISSLTransport.providedBy(transport)
        self.writer = sender_of(transport)
        self.gate = ReadGate(transport, self.writer)
        options = site.options
        self._closing = Closing(self, site.reactor, self.gate, options.stall_timeout_s)
        self._deadline = self._closing.deadline
        self.exchange = Exchange(self, self.gate, self._closing, Timeouts(site.timeOut, options.stall_timeout_s))
        descriptor = transport.fileno() if hasattr(transport, "fileno") else -1
        self._crowded = descriptor >= options.crowded_from
        self._deadline.set(self.crowded_timeout_s if self._crowded else site.timeOut)
        transport.registerProducer(self, True)
        with suppress(AttributeError, OSError):  # a unix socket has none of it
            transport.setTcpNoDelay(True)
        site.connection_made(self)
        if descriptor >= options.full_from:
            self._turn_away()

    def _turn_away(self) -> None:
        """
        Close a connection because no descriptor is left for it. In plain HTTP the client is told why. Its request may be on
        its way, and then its system may discard the answer: there is no room to wait for that.
        """
        self.site.out_of_descriptors(f"a connection from {self.origin().address} was closed")
        self.ignore_input()
        if self.writer is not None:
            self.writer.drop_received()
        if not self.secure:
            reason = reason_phrase(TOO_MANY_CONNECTIONS)
            self.transport.write(
                b"HTTP/1.1 503 %s\r\nDate: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (reason, date_now())
            )
        self._closing.close_idle()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted's call: the connection is gone."""
        self.ignore_input()
        self._waiting = False
        self._closing.connection_lost()
        self.exchange.connection_lost(reason)
        self.site.connection_lost(self)

    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.exchange.request is not None and not self.exchange.answered

    def finish_and_close(self) -> None:
        """Take no further request: close now if none is there, else after the answer."""
        self.exchange.finish()

    def loseConnection(self) -> None:
        """Close when everything is written. Nothing more is parsed."""
        self._closing.close(self.site.timeOut)

    def abort(self) -> None:
        """Close the connection now, whatever is on the way."""
        self._closing.abort()

    def readConnectionLost(self) -> None:
        """Twisted's call: the client has closed its half. It may still wait for its answer."""
        self._input_ended = True
        if not self._rest:
            self.exchange.set_last()
        if self.ignores_input or self.exchange.answered:
            # A client that still reads its answer has time for that.
            self.loseConnection()
        else:
            self._close_unless_more()

    def _close_unless_more(self) -> None:
        """The client sends nothing more: close, unless a whole request came or bytes wait to be parsed."""
        request = self.exchange.request
        if not self.ignores_input and not self._waiting and (request is None or not request.body.ended):
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Twisted's call: our half is closed."""

    # --- what the exchange and the closing ask of their connection

    def deadline_passed(self) -> None:
        """The client was silent for too long, or the disk did not take the body: close the connection."""
        request = self.exchange.request
        if request is None and self._in_head and not self._crowded:
            timeout_s = self.site.options.header_timeout_s
            self.site.head_timed_out(self.origin().address)
            self._refuse(RequestTimeout(f"the request's head did not end within {timeout_s:g} s"))
            return
        if request is not None and not request.body.ended and not self.gate.is_held_by("body"):
            self.client_stalled()
        self._closing.close_idle()

    def client_stalled(self) -> None:
        """The connection is ended because the client moves no byte."""
        self.site.stalled(self.origin().address)

    def ignore_input(self) -> None:
        """Parse nothing any more."""
        self.ignores_input = True
        self._rest = b""

    def unsent_bytes(self) -> int:
        """How much of what was written is not in the kernel yet; at least 1 if any is."""
        return int(self._clogged) if self.writer is None else self.writer.unsent_bytes()

    def next_request(self) -> None:
        """The connection is free for the next request, which may have come already."""
        if self._parsing:
            return  # the parsing goes on with it
        if self._rest and not self._clogged and not self._waiting and not self.ignores_input:
            data, self._rest = self._rest, b""
            self.gate.release("pipeline")
            self._parse(data)
        if self._input_ended:
            self._close_unless_more()

    # --- reading

    def dataReceived(self, data: bytes) -> None:
        """Twisted's call: bytes came in."""
        if self.ignores_input:
            return
        if self.exchange.request is not None:
            self.exchange.client_sends()
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._waiting:
            self._rest = data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """
        Parse bytes until none can be used now, or until it is other connections' turn. If an answer ends meanwhile, the next
        request begins.
        """
        exchange = self.exchange
        self._parsing = True
        self._units = SLICE_UNITS
        try:
            while data and not self.ignores_input:
                if self._units <= 0:
                    self._wait_for_turn(data)
                    break
                request = exchange.request
                if request is None:
                    if self._clogged:
                        self._keep(data)
                        break
                    data = self._parse_head(data)
                elif request.body.ended:
                    self._keep(data)
                    break
                else:
                    data = self._parse_body(request, data)
        finally:
            self._parsing = False

    def _wait_for_turn(self, data: bytes) -> None:
        """Parse this later, and read nothing until then."""
        self._rest = data
        self._waiting = True
        self.gate.hold("turn")
        self.site.turns.wait(self)

    def go_on(self) -> None:
        """It is this connection's turn (L{resticserver.web.http1.turns.Waits})."""
        if not self._waiting:
            return  # it was lost meanwhile
        self._waiting = False
        data, self._rest = self._rest, b""
        if not self.ignores_input:
            self.exchange.client_sends()  # the silence was not the client's
        self._parse(data)
        if not self._waiting:
            self.gate.release("turn")
            if self._input_ended:
                self._close_unless_more()

    def _keep(self, data: bytes) -> None:
        """Keep next requests for later."""
        self._rest = data
        if len(data) > MOST_PIPELINED_BYTES:
            self.gate.hold("pipeline")

    def _parse_head(self, data: bytes) -> bytes:
        """Begin a request if its head is whole. Returns what comes after the head, and after the body if all of it is here."""
        seen_bytes = self._seen_bytes
        if data.startswith(b"\r\n"):
            data = data[2:]  # some clients send one after a body (RFC 9112 section 2.2)
            seen_bytes = 0
        end = data.find(b"\r\n\r\n", seen_bytes - 3 if seen_bytes > 3 else 0, MOST_HEAD_BYTES)
        if end < 0:
            self._wait_for_head(data, seen_bytes)
            return b""
        self._seen_bytes = 0
        self._in_head = False
        self._units -= REQUEST_UNITS + end // BYTES_PER_UNIT
        line_end = data.find(b"\r\n") + 2
        line = None
        try:
            line = parse_request_line(data[: line_end - 2])
            fields = self._fields(data[line_end : end + 4])
            fields.check(line.version)
            if self._crowded:
                self.site.out_of_descriptors(f"a request from {self.origin().address} was refused with 503")
                raise Unavailable(TOO_MANY_CONNECTIONS)
        except (BadRequest, Unavailable) as error:
            self._refuse(error, line)
            return b""
        site, length = self.site, fields.length
        request: Request = site.request_factory(self, line, fields)
        is_last = fields.closes or line.version != b"HTTP/1.1" or site.retiring
        self.exchange.begin(request, length is None, is_last)
        rest = data[end + 4 :]
        if length and len(rest) >= length:
            # A small body is here already, so the route gets all of it at its start.
            rest = self._parse_body(request, rest)
        self._deadline.set(None if request.body.ended else site.options.stall_timeout_s)
        request.begin()
        return rest

    def _wait_for_head(self, data: bytes, seen_bytes: int) -> None:
        """Keep the begin of a head; C{seen_bytes} of it have been checked before."""
        self._rest = data
        self._seen_bytes = len(data)
        if len(data) >= MOST_HEAD_BYTES:
            self.site.limited.count(HEADER_SIZE)
            self._refuse(HeaderTooLarge())
        elif data.count(b"\n", seen_bytes) != data.count(b"\r\n", max(0, seen_bytes - 1)):
            self._refuse(BadRequest())
        elif not self._in_head and data:
            self._in_head = True
            if not self._crowded:
                self._deadline.set(self.site.options.header_timeout_s)

    def _fields(self, lines: bytes) -> HeaderFields:
        """The header fields. Most clients send the same ones with each request."""
        last = self._last_fields
        if last is not None and last[0] == lines:
            return last[1]
        self._units -= lines.count(b"\n")
        fields = HeaderFields(lines)
        self._last_fields = (lines, fields)
        return fields

    def _parse_body(self, request: Request, data: bytes) -> bytes:
        """Give a body its next bytes. Returns what comes after the body, or what waits for the connection's turn."""
        body, decoder = request.body, self.exchange.decoder
        if decoder is not None:
            try:
                pieces = decoder.feed(data, self._units)
            except BadRequest as error:
                self._refuse(error)
                return b""
            if pieces:
                # One for all: a client may send chunks of one byte each.
                body.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self._units = decoder.units
            data = decoder.rest
            if not decoder.ended:
                return data
        else:
            expected = body.expected_bytes
            assert expected is not None
            piece, data = (data, b"") if len(data) <= expected else (data[:expected], data[expected:])
            body.feed(piece)
            if body.expected_bytes:
                return b""
        if not self.ignores_input:
            self.exchange.end_body(request)
        return data

    def _refuse(self, error: ServerError, line: RequestLine | None = None) -> None:
        """Bytes cannot be parsed, so neither can those after them: answer, or let the request answer, and close."""
        self.ignore_input()
        self.exchange.set_last()
        self.gate.open()
        if self.exchange.request is not None:
            self.exchange.fail_body(error)
            return
        self._deadline.set(None)
        request: Request = self.site.request_factory(self, line, None)
        self.exchange.begin(request, False, True)
        request.refuse(error)

    # --- answering

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Send bytes of an answer: at once, as far as the socket takes them, if nothing waits to be written."""
        if self.writer is not None and not self.transport.disconnecting:
            self.writer.write(data, body)
        else:
            self.transport.write(data + body)

    def may_lend(self) -> bool:
        """
        Whether a transfer may write to the socket now: nothing waits to be written, and nothing is being parsed (OpenSSL's
        connection is in use then).
        """
        settled = self.writer is not None and self.writer.is_empty()
        return settled and not self._parsing and not self.transport.disconnecting

    def may_lend_input(self) -> bool:
        """Whether a transfer may take the body from the socket now. The end of a chunked body is found only by parsing."""
        return self.may_lend() and not self._waiting and not self.ignores_input and self.exchange.decoder is None

    # --- what Twisted's Request asks of its channel

    def requestDone(self, request: Request) -> None:
        """A request is answered."""
        self.exchange.end_answer(request)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """A request's producer, which is paused when the client takes its bytes slowly."""
        assert streaming and self._producer is None
        self._producer = producer
        if self._clogged:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The request's producer is done."""
        self._producer = None

    # --- the transport's calls (it knows one producer for the whole connection: this)

    def pauseProducing(self) -> None:
        """Enough waits to be written: no further request is begun, and nothing more is read."""
        self._clogged = True
        self.gate.hold("write")
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """Go on."""
        self._clogged = False
        self.gate.release("write")
        if self._producer is not None:
            self._producer.resumeProducing()
        if self.exchange.request is None:
            self.next_request()

    def stopProducing(self) -> None:
        """The connection is gone."""
        if self._producer is not None:
            self._producer.stopProducing()
