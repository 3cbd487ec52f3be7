"""
One connection of a client: HTTP/1.1 from bytes to requests, and the requests' answers back to bytes.

It gives Twisted's C{Request} what C{HTTPChannel} would. What is different, and why it is our own:

 - a request begins after its head; its body flows into the request's L{resticserver.web.http1.body.Body}, or is left in the
   socket for pool jobs to take (L{resticserver.web.transfer.plain});
 - C{100 Continue} is sent when the route starts to read, not before;
 - an answer before the end of the body swallows the rest up to a bound, then closes its half and lingers, so that the
   client reads the answer and the rest of the body is never parsed as a request (RFC 9112 section 9.6);
 - strict parsing (L{resticserver.web.http1.head}), a deadline for the head, and after anything that cannot be understood nothing
   is looked at any more;
 - speed: an answer goes to the socket at once where nothing waits to be written.

Requests that come while one is answered (pipelining) wait as bytes, few of them. What is much work to decode waits as well, for
the connection's turn (L{resticserver.web.http1.turns}).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from zope.interface import implementer

from ...errors import BadRequest, HeaderTooLarge, ServerError, Unavailable
from .addresses import address_text
from .body import SILENCE_S, Body
from .chunked import ChunkedDecoder
from .head import HeaderFields, RequestLine, parse_request_line
from .interfaces import Origin, Owner, Request, SocketHolder
from .replies import date_now, reason_phrase
from .socket_writer import STALL_S, SocketWriter, sender_of
from .turns import BYTES_PER_UNIT, REQUEST_UNITS, SLICE_UNITS

#: A body that comes through the reactor's thread is read in pieces of this size.
BULK_BYTES = 512 << 10
#: The longest head of a request.
MOST_HEAD_BYTES = 32 * 1024
#: How much of next requests may wait while one is answered.
MOST_PIPELINED_BYTES = 16 * 1024

TOO_MANY_CONNECTIONS = "the server has too many connections: try again later"

T = TypeVar("T")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ReadGate:
    """Reading from the socket, paused as long as anyone has a reason."""

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

    def is_held_by(self, reason: str) -> bool:
        """Whether reading is paused for this reason."""
        return reason in self._reasons

    def open(self) -> None:
        """Forget all reasons."""
        for reason in tuple(self._reasons):
            self.release(reason)


class Deadline:
    """
    A point in time after which something is called, cheap to move: the timer is not touched as long as it is early enough.
    """

    def __init__(self, reactor: Any, call: Any) -> None:
        self._reactor = reactor
        self._call = call
        self._at: float | None = None
        self._timer: IDelayedCall | None = None

    def set(self, seconds: float | None) -> None:
        """Call so many seconds from now, unless it is set anew; C{None} is never."""
        if seconds is None:
            self._at = None
            return
        self._at = self._reactor.seconds() + seconds
        if self._timer is None:
            self._timer = self._reactor.callLater(seconds, self._ring)
        elif self._timer.getTime() > self._at:
            self._timer.reset(seconds)

    def _ring(self) -> None:
        self._timer = None
        if self._at is None:
            return
        left = self._at - self._reactor.seconds()
        if left > 0:
            self._timer = self._reactor.callLater(left, self._ring)
        else:
            self._at = None
            self._call()

    def stop(self) -> None:
        """Never call again."""
        self._at = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


@implementer(IPushProducer, IHalfCloseableProtocol)
class StreamingChannel(Protocol):
    """
    One connection.

    @cvar header_timeout_s: how long a head may take from its first byte.
    @cvar held_timeout_s: how long reading may stay paused by a slow disk before the connection is given up.
    @cvar swallow_timeout_s: how long the rest of a body is read after an early answer.
    @cvar swallow_bytes: how much of it, from a client that is authenticated; C{swallow_stranger_bytes} else.
    @cvar close_timeout_s: how long an idle connection may take to close.
    @cvar crowded_timeout_s: how long a connection that is one too many may wait with its request.
    @cvar linger_s: how long a half-closed connection waits for its client to read the answer.
    @ivar persistent: whether another request may follow the one that is there.
    @ivar peer: the socket's other end, whatever the PROXY protocol claims.
    @ivar credentials: user and password that were right in the last request.
    """

    header_timeout_s = 60.0
    held_timeout_s = 600.0
    swallow_timeout_s = 30.0
    swallow_bytes = 160 << 20
    swallow_stranger_bytes = 16 << 20
    linger_s = 10.0
    close_timeout_s = 2.0
    crowded_timeout_s = 10.0

    transport: Any

    def __init__(self, site: Owner, peer: IAddress | None = None) -> None:
        self.site = site
        self.peer = peer
        self.persistent = True
        self.credentials: tuple[str, bytes] | None = None
        #: The request that is there, from its head to the end of its answer and of its body.
        self._request: Request | None = None
        self._answered = False
        self._decoder: ChunkedDecoder | None = None
        #: What came and is not understood yet: the begin of a head, or next requests.
        self._rest = b""
        self._in_head = False
        #: How much of the begin of a head has been looked at.
        self._seen_bytes = 0
        #: Whether bytes are being looked at, and how many units that may still cost now.
        self._parsing = False
        self._units = 0
        #: Whether C{_rest} is to be looked at when it is this connection's turn.
        self._waiting = False
        #: Whether the client has closed its half.
        self._input_ended = False
        #: Whether nothing that comes is looked at any more.
        self._deaf = False
        #: Whether the client takes answers more slowly than they are made.
        self._clogged = False
        self._producer: Any = None
        self._last_fields: tuple[bytes, HeaderFields] | None = None
        self._closing_call: IDelayedCall | None = None
        self._origin: Origin | None = None
        #: Whether the descriptors that are left are needed for files.
        self._crowded = False
        #: Where answers go at once; C{None} where only the transport will do.
        self.writer: SocketWriter | None = None
        self._in_bulk = False
        #: Who has the socket.
        self._transfer: SocketHolder | None = None
        self.secure = False

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
        transport = self.transport
        self.gate = ReadGate(transport)
        self.secure = ISSLTransport.providedBy(transport)
        self.writer = sender_of(transport)
        self._deadline = Deadline(self.site.reactor, self._too_late)
        descriptor = transport.fileno() if hasattr(transport, "fileno") else -1
        self._crowded = descriptor >= self.site.crowded_from
        self._deadline.set(self.crowded_timeout_s if self._crowded else self.site.timeOut)
        transport.registerProducer(self, True)
        with suppress(AttributeError, OSError):  # a unix socket has none of it
            transport.setTcpNoDelay(True)
        self.site.connection_made(self)
        if descriptor >= self.site.full_from:
            self._turn_away()

    def _turn_away(self) -> None:
        """
        End a connection for which there is no descriptor to spare. In plain HTTP it is told why; its request may be on its
        way, and then the client's system may throw the answer away. There is no room to wait for that.
        """
        self.site.out_of_descriptors(f"a connection from {self.origin().address} was closed")
        self._deaf = True
        if self.writer is not None:
            self.writer.drop_received()
        if not self.secure:
            reason = reason_phrase(TOO_MANY_CONNECTIONS)
            self.transport.write(
                b"HTTP/1.1 503 %s\r\nDate: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (reason, date_now())
            )
        self._close(self.close_timeout_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted's call: the connection is gone."""
        self._deaf = True
        self._rest = b""
        self._waiting = False
        self._deadline.stop()
        self._cancel_closing()
        request, self._request = self._request, None
        if request is not None and not self._answered:
            request.connectionLost(reason)
        self.site.connection_lost(self)

    def _cancel_closing(self) -> None:
        call, self._closing_call = self._closing_call, None
        if call is not None and call.active():
            call.cancel()

    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._request is not None and not self._answered

    def finish_and_close(self) -> None:
        """Take no further request: close now if none is there, else after the answer."""
        self.persistent = False
        if self._request is None:
            self._close(self.close_timeout_s)

    def loseConnection(self) -> None:
        """Close when everything is written; whatever comes is not looked at."""
        self._close(self.site.timeOut)

    def _close(self, patience_s: float) -> None:
        """Close; a client that does not play its part is cut off after a while."""
        self._deaf = True
        self._rest = b""
        self._deadline.set(None)
        self._cancel_closing()
        # Over TLS the closing waits for the client's part of it, on any connection for what is still to be written.
        self._closing_call = self.site.reactor.callLater(
            patience_s, self._still_open, patience_s, self._unsent_bytes(), 0.0
        )
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _unsent_bytes(self) -> int:
        """How much of what was answered is not in the kernel yet; at least 1 if any is."""
        return int(self._clogged) if self.writer is None else self.writer.unsent_bytes()

    def _still_open(self, patience_s: float, unsent_bytes: int, stalled_s: float) -> None:
        """The connection did not close in time. A client that still takes its answer gets all of it."""
        unsent_before, unsent_bytes = unsent_bytes, self._unsent_bytes()
        if unsent_bytes:
            stalled_s = 0.0 if unsent_bytes < unsent_before else stalled_s + patience_s
            if stalled_s < STALL_S:
                patience_s = min(patience_s, STALL_S - stalled_s)
                again = (patience_s, unsent_bytes, stalled_s)
                self._closing_call = self.site.reactor.callLater(patience_s, self._still_open, *again)
                return
        elif self.secure and self.writer is not None and self._transfer is None:
            # All that TLS has to say is in the kernel, which brings it to the client, and then the end. A reset would cut
            # that off.
            self._closing_call = self.site.reactor.callLater(patience_s, self.abort)
            self.writer.close_socket()
            return
        self.abort()

    def abort(self) -> None:
        """End the connection now, whatever is on the way."""
        if self.secure and self._transfer is not None and self._transfer.interrupt(self._abort_now):
            return
        self._abort_now()

    def _abort_now(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()

    def _too_late(self) -> None:
        """The deadline: an idle connection, a head or a body that does not come, a disk that does not take it."""
        self._close(self.close_timeout_s)

    def readConnectionLost(self) -> None:
        """Twisted's call: the client has closed its half. It may still wait for its answer, but it sends nothing more."""
        self._input_ended = True
        if not self._rest:
            self.persistent = False
        if self._deaf or self._answered:
            # An answer that it still reads has its time.
            self.loseConnection()
        else:
            self._close_unless_more()

    def _close_unless_more(self) -> None:
        """The client sends nothing more: close, unless a request is there as a whole, or may be when all is looked at."""
        request = self._request
        if not self._deaf and not self._waiting and (request is None or not request.body.ended):
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Twisted's call: our half is closed, as was wanted."""

    # --- reading

    def dataReceived(self, data: bytes) -> None:
        """Twisted's call: bytes came in."""
        if self._deaf:
            return
        request = self._request
        if request is not None and not request.body.ended and not self.gate.is_held_by("body"):
            self._deadline.set(SILENCE_S)
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._waiting:
            self._rest = data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """
        Look at bytes until nothing can be done with them now, or until others should have their turn; an answer that ends
        meanwhile lets the next begin.
        """
        self._parsing = True
        self._units = SLICE_UNITS
        try:
            while data and not self._deaf:
                if self._units <= 0:
                    self._wait_for_turn(data)
                    break
                request = self._request
                if request is None:
                    if self._clogged:
                        self._keep(data)
                        break
                    data = self._parse_head(data)
                elif request.body.ended:
                    self._keep(data)
                    break
                else:
                    data = self._parse_body(request.body, data)
        finally:
            self._parsing = False

    def _wait_for_turn(self, data: bytes) -> None:
        """Look at this later, and read nothing more until then."""
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
        request = self._request
        if request is not None and not request.body.ended and not self._deaf and not self.gate.is_held_by("body"):
            self._deadline.set(SILENCE_S)  # it was not the client that was silent
        self._parse(data)
        if not self._waiting:
            self.gate.release("turn")
            if self._input_ended:
                self._close_unless_more()

    def _keep(self, data: bytes) -> None:
        """Next requests: later."""
        self._rest = data
        if len(data) > MOST_PIPELINED_BYTES:
            self.gate.hold("pipeline")

    def _next(self) -> None:
        """The connection is free for the next request; it may be here already."""
        if self._rest and not self._clogged and not self._parsing and not self._waiting and not self._deaf:
            data, self._rest = self._rest, b""
            self.gate.release("pipeline")
            self._parse(data)

    def _parse_head(self, data: bytes) -> bytes:
        """Begin the request whose head this is, if it is whole; returns what comes after it."""
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
        request = self.site.request_factory(self, line, fields)
        self._request = request
        self._answered = False
        self._decoder = ChunkedDecoder() if fields.length is None else None
        if fields.closes or line.version != b"HTTP/1.1":
            self.persistent = False
        rest = data[end + 4 :]
        if fields.length and len(rest) >= fields.length:
            # A small body is here already: the route has it from the start.
            rest = self._parse_body(request.body, rest)
        self._deadline.set(None if request.body.ended else SILENCE_S)
        request.begin()
        return rest

    def _wait_for_head(self, data: bytes, seen_bytes: int) -> None:
        """Keep the begin of a head, of which so many bytes have been looked at before."""
        self._rest = data
        self._seen_bytes = len(data)
        if len(data) >= MOST_HEAD_BYTES:
            self._refuse(HeaderTooLarge())
        elif data.count(b"\n", seen_bytes) != data.count(b"\r\n", max(0, seen_bytes - 1)):
            self._refuse(BadRequest())
        elif not self._in_head and data:
            self._in_head = True
            if not self._crowded:
                self._deadline.set(self.header_timeout_s)

    def _fields(self, lines: bytes) -> HeaderFields:
        """The header fields; most clients send the same ones with each request."""
        last = self._last_fields
        if last is not None and last[0] == lines:
            return last[1]
        self._units -= lines.count(b"\n")
        fields = HeaderFields(lines)
        self._last_fields = (lines, fields)
        return fields

    def _parse_body(self, body: Body, data: bytes) -> bytes:
        """Feed a body; returns what comes after it."""
        decoder = self._decoder
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
        if not self._deaf:
            self._end_body(body)
        return data

    def _end_body(self, body: Body) -> None:
        if not self._answered:
            self._deadline.set(None)
        body.end()

    def read_in_bulk(self) -> None:
        """A body is taken now that comes through the reactor's thread: read more of it at a time."""
        request = self._request
        if request is not None and not request.body.ended:
            self._in_bulk = True
            self._read_at_once(BULK_BYTES)

    def may_read_directly(self) -> bool:
        """
        Whether others may take the body from the socket now: not while bytes are being parsed (the body's next ones may be
        among them), and not a body in chunks, whose end is in its bytes.
        """
        settled = self.writer is not None and self.writer.is_empty()
        settled = settled and not self._parsing and not self._waiting
        return settled and not self._deaf and self._decoder is None

    def begin_direct_read(self, transfer: SocketHolder) -> None:
        """Leave the socket to others until L{end_direct_read}: nothing is read here, and no timer runs."""
        self.gate.hold("direct")
        self._deadline.set(None)
        self._transfer = transfer

    def end_direct_read(self, taken_bytes: int) -> None:
        """Go on behind the bytes of the body that were read by others."""
        request = self._request
        assert request is not None
        body = request.body
        self._transfer = None
        self._deadline.set(SILENCE_S)
        body.taken(taken_bytes)
        if body.expected_bytes == 0:
            self._end_body(body)
        self._read_on()

    def while_written_directly(self, transfer: SocketHolder, written: Deferred[None]) -> Deferred[None]:
        """Leave the socket to others who write an answer, until C{written} fires. A TLS connection rests meanwhile."""
        if not self.secure:
            return written
        self.gate.hold("direct")
        self._transfer = transfer

        def go_on(result: T) -> T:
            self._transfer = None
            self._read_on()
            return result

        return written.addBoth(go_on)

    def _read_on(self) -> None:
        """Read again after others had the socket, first what they left over in the connection."""
        if self.writer is not None:
            self.writer.read_on()
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

    def _refuse(self, error: ServerError, line: RequestLine | None = None) -> None:
        """Something cannot be parsed, so nothing after it can be: answer, or let the request answer, and close."""
        self._deaf = True
        self._rest = b""
        self.persistent = False
        self.gate.open()
        request = self._request
        if request is None:
            self._deadline.set(None)
            self._request = self.site.request_factory(self, line, None)
            self._answered = False
            self._request.refuse(error)
        elif self._answered:
            self._linger()
        else:
            request.body.fail(error)

    # --- the body's calls (L{resticserver.web.http1.body.Source})

    def hold_body(self) -> None:
        """Read no more for now: the body's taker is behind. The idle timer rests; a longer one watches."""
        self.gate.hold("body")
        self._deadline.set(self.held_timeout_s)

    def release_body(self) -> None:
        """Read on."""
        self.gate.release("body")
        request = self._request
        if request is not None and not request.body.ended:
            self._deadline.set(SILENCE_S)
        elif request is not None:
            self._deadline.set(self.site.timeOut if self._answered else None)

    def body_ended(self, body: Body) -> None:
        """The end of a body came: if its request was answered before, the connection is free for the next."""
        request = self._request
        if self._answered and request is not None and request.body is body and not self._deaf:
            self._cancel_closing()
            self._free()

    # --- answering

    def last_answer(self, request: Request) -> bool:
        """Whether the connection ends behind this answer, so that it must say so."""
        if self._cannot_go_on(request):
            self.persistent = False
        return not self.persistent

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Twisted's call: the head of an answer that was put together by Twisted's own means."""
        assert self._request is not None
        if self.last_answer(self._request):
            headers.setRawHeaders(b"Connection", [b"close"])
        lines = [version, b" ", code, b" ", reason, b"\r\n"]
        for name, values in headers.getAllRawHeaders():
            for value in values:
                lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        self.write(b"".join(lines))

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Send bytes of an answer: at once, as far as the socket takes them, where nothing waits to be written."""
        if self.writer is not None and not self.transport.disconnecting:
            self.writer.write(data, body)
        else:
            self.transport.write(data + body)

    def writeSequence(self, iovec: list[bytes]) -> None:
        """Send bytes of an answer."""
        self.write(b"".join(iovec))

    def send_continue(self) -> None:
        """Tell the client to go on with its body."""
        self.write(_CONTINUE)

    def may_write_directly(self) -> bool:
        """
        Whether nothing waits to be written, so that others may write to the socket without overtaking; and not while bytes
        are being parsed, for OpenSSL's connection is in use then.
        """
        settled = self.writer is not None and self.writer.is_empty()
        return settled and not self._parsing and not self.transport.disconnecting

    def requestDone(self, request: Request) -> None:
        """Twisted's call: a request is answered."""
        self._answered = True
        if self._in_bulk:
            self._in_bulk = False
            self._read_at_once(FileDescriptor.bufferSize)
        if self._deaf or self._cannot_go_on(request):
            self._linger()
        elif request.body.ended:
            self._free()
        else:
            self._swallow(request)

    def _free(self) -> None:
        """The request is over: close, or take the next."""
        self._request = None
        # Its body may have paused reading and come to its end, and then nobody wanted it.
        self.gate.release("body")
        if not self.persistent:
            self.loseConnection()
            return
        self._deadline.set(self.site.timeOut)
        self._next()
        if self._input_ended and not self._parsing:
            self._close_unless_more()

    def _swallow_limit(self, request: Request) -> int:
        return self.swallow_bytes if request.authenticated else self.swallow_stranger_bytes

    def _cannot_go_on(self, request: Request) -> bool:
        """
        Whether no further request can be read once this one is answered: its body is not here and is too much to
        swallow, or the client waits for a C{100 Continue} and may send the body or may not.
        """
        body = request.body
        if body.ended:
            return False
        rest = body.expected_bytes
        return request.awaits_continue or (rest is not None and rest > self._swallow_limit(request))

    def _swallow(self, request: Request) -> None:
        """Read the rest of a body that nobody wants, within bounds, so that the client comes to read its answer."""
        self.release_body()
        self._closing_call = self.site.reactor.callLater(self.swallow_timeout_s, self._linger)
        request.body.discard(self._swallow_limit(request), self._linger)

    def _linger(self) -> None:
        """Close our half; drop what still comes, unparsed, until the client has closed its half or the time is up."""
        self._deaf = True
        self._rest = b""
        self._cancel_closing()
        self._deadline.set(None)
        self.gate.open()
        transport = self.transport
        transport.unregisterProducer()
        if self.secure:
            # TLS has an end of its own for each half, and the socket is closed when the client's has come. (Twisted's TLS
            # cannot bear a socket whose half is closed: the client's end would find it gone in the middle of a call.)
            transport.loseConnection()
        else:
            transport.loseWriteConnection()
        self._closing_call = self.site.reactor.callLater(self.linger_s, self.abort)

    # --- what Twisted's Request asks of its channel

    @property
    def factory(self) -> Owner:
        """The site."""
        return self.site

    def getPeer(self) -> IAddress:
        """The other end, as the PROXY protocol claims it if it was spoken."""
        return self.transport.getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        """Our end."""
        return self.transport.getHost()  # type: ignore[no-any-return]

    def isSecure(self) -> bool:
        """Whether this is TLS."""
        return self.secure

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """A request's producer, which is to be paused when the client takes its bytes slowly."""
        assert streaming and self._producer is None
        self._producer = producer
        if self._clogged:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The request's producer is done."""
        self._producer = None

    # --- the transport's calls (it knows one producer for the whole connection: this)

    def pauseProducing(self) -> None:
        """Enough is waiting to be written: no further request is begun, and nothing more is read."""
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
        if self._request is None:
            self._next()

    def stopProducing(self) -> None:
        """The connection is gone."""
        if self._producer is not None:
            self._producer.stopProducing()
