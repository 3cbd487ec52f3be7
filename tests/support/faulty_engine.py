"""
A proxy in front of a real engine, of S3 or (L{tests.support.faulty_azurite}) of Azure, that answers chosen requests as engines
do when something is wrong: it forgets, lies, cuts, waits. Everything else goes through unchanged, C{Host} included, which is a
part of the signature: the engine takes it for its own.

It runs in threads of the test's process, HTTP/1.1 with or without TLS towards the client, plain towards the engine::

    faulty = FaultyEngine(self, engine)
    faulty.when(STORED_THEN_500, kind="PUT", key="^repo/data/")
    ... requests to faulty.endpoint ...
    self.assertEqual(2, faulty.count("PUT"))
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, ClassVar, Protocol
from xml.sax.saxutils import escape, unescape

from .client import reset
from .engines import RealEngine, S3Engine, environment, signed_headers
from .scratch import Cleans
from .waiting import PATIENCE_S

_PIECE_BYTES = 64 << 10
_ANY_PORT = ("127.0.0.1", 0)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_TRUNCATED = re.compile(rb"<IsTruncated>true</IsTruncated>")
_REASONS = {
    200: "OK",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    412: "Precondition Failed",
    500: "Internal Server Error",
    503: "Slow Down",
    507: "Insufficient Storage",
}


class _Gone(Exception):
    """The client or the engine has closed the connection, or the proxy is closed."""


@dataclass(frozen=True)
class Request:
    """
    A request of S3 as it came.

    @cvar ask_pages: how a further page of a list is asked for, the parameter of L{next_token} first.
    @cvar page_size: the parameter for the number of keys of a page.
    @cvar next_token: where a page of a list says how the next one is asked for.
    @ivar target: path and query, percent-encoded.
    @ivar path: the path alone, percent-encoded.
    @ivar query: decoded.
    @ivar headers: by name in lower case.
    @ivar page: for a list, which of its pages is asked for, from 1; for others 0.
    """

    ask_pages: ClassVar[tuple[str, ...]] = ("continuation-token", "start-after")
    page_size: ClassVar[str] = "max-keys"
    next_token: ClassVar[re.Pattern[bytes]] = re.compile(rb"<NextContinuationToken>([^<]+)</NextContinuationToken>")

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    page: int = 0

    @property
    def bucket(self) -> str:
        """The bucket's name; the endpoint is always asked by path."""
        return urllib.parse.unquote(self.path.strip("/").partition("/")[0])

    @property
    def key(self) -> str:
        """The object's key; empty, if this is about a bucket."""
        return urllib.parse.unquote(self.path.removeprefix("/").partition("/")[2])

    @property
    def kind(self) -> str:
        """The method, but C{LIST} for a GET of a bucket's list."""
        return "LIST" if self.method == "GET" and not self.key and "list-type" in self.query else self.method

    @property
    def removes(self) -> bool:
        """Whether it removes objects; one or many."""
        return self.method == "DELETE" or (self.method == "POST" and "delete" in self.query)

    def error_headers(self, code: str) -> dict[str, str]:
        """What an error has in its head besides the usual."""
        return {"x-amz-request-id": "4442587FB7D0A2F9"}

    @property
    def body_bytes(self) -> int:
        """How large its body is said to be."""
        return int(self.headers.get("content-length", "0"))


@dataclass
class Seen:
    """
    What became of a request.

    @ivar engine_status: what the engine answered; C{None}, if it was not asked or did not answer.
    @ivar status: what the client was told; C{None}, if it was cut off before, or waits.
    @ivar fault: what was done to it on purpose.
    @ivar begun_s: when it came, of C{time.monotonic}.
    """

    request: Request
    engine_status: int | None = None
    status: int | None = None
    fault: Fault | None = None
    begun_s: float = field(default_factory=time.monotonic)


class Answer:
    """
    An answer: of the engine, while its body still comes, or one made here.

    @ivar status: its status.
    @ivar head: the status line and all header lines with the empty one, as they came.
    @ivar pieces: its body as it goes over the wire, chunked coding included.
    @ivar body_bytes: its size; C{None}, if it is chunked.
    """

    def __init__(self, status: int, head: bytes, pieces: Iterator[bytes], body_bytes: int | None) -> None:
        self.status = status
        self.head = head
        self.pieces = pieces
        self.body_bytes = body_bytes

    def whole(self) -> bytes:
        """Its whole body, without chunked coding."""
        raw = b"".join(self.pieces)
        if self.body_bytes is None:
            raw = _without_chunks(raw)
        self.replace(raw)
        return raw

    def replace(self, body: bytes) -> None:
        """Give it another body."""
        lines = self.head.split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith((b"content-length:", b"transfer-encoding:"))]
        self.head = b"\r\n".join([kept[0], b"Content-Length: %d" % len(body), *kept[1:]])
        self.pieces = iter([body])
        self.body_bytes = len(body)


def _without_chunks(raw: bytes) -> bytes:
    parts = []
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        parts.append(rest[:length])
        raw = rest[length + 2 :] if length else b""
    return b"".join(parts)


class Exchange(Protocol):
    """A request and the connection that it came on, for a fault."""

    @property
    def request(self) -> Request:
        """The request."""

    def drop_upload(self) -> None:
        """Receive the request's body, and forget it."""

    def ask_engine(self, without: frozenset[str] = frozenset()) -> Answer:
        """
        Send the request to the engine; the body as it comes.

        @param without: names of headers, in lower case, to leave out; it is signed anew then.
        """

    def upload_part(self, size_bytes: int) -> None:
        """Send the request with the beginning of its body to the engine, and break the connection to it."""

    def tell(self, answer: Answer, stop_after: int | None = None) -> None:
        """
        Answer the client.

        @param stop_after: how many bytes of the body to send, if not all.
        """

    def cut(self, by_reset: bool = False) -> None:
        """Close the client's connection."""

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the proxy's end."""


class Fault(Protocol):
    """Something that is done to a request instead of passing it on."""

    def apply(self, exchange: Exchange) -> None:
        """Do it."""


def error_answer(request: Request, status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with S3's body for errors, of which Azure's is a part; that of a HEAD has none."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>from the tests</Message><Resource>{escape(request.path)}</Resource>"
        "<RequestId>4442587FB7D0A2F9</RequestId></Error>"
    ).encode()
    if request.method == "HEAD":
        body = b""
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}",
        "Content-Type: application/xml",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in {**request.error_headers(code), **(headers or {})}.items()),
    ]
    return Answer(status, "\r\n".join([*lines, "", ""]).encode(), iter([body]), len(body))


@dataclass(frozen=True)
class Refused:
    """
    The engine is not asked, so nothing is stored; the client gets an error.

    @ivar status: with 200 only the body says that it is an error.
    """

    status: int
    code: str
    headers: tuple[tuple[str, str], ...] = ()

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        exchange.drop_upload()
        exchange.tell(error_answer(exchange.request, self.status, self.code, dict(self.headers)))


@dataclass(frozen=True)
class DoneThenTold:
    """The engine does what is asked; the client gets an error."""

    status: int
    code: str

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        exchange.ask_engine().whole()
        exchange.tell(error_answer(exchange.request, self.status, self.code))


@dataclass(frozen=True)
class Cut:
    """
    The connection ends without an answer.

    @ivar done: whether the engine does before what is asked.
    @ivar by_reset: with a RST instead of a FIN.
    """

    done: bool
    by_reset: bool = False

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        if self.done:
            exchange.ask_engine().whole()
        else:
            exchange.drop_upload()
        exchange.cut(self.by_reset)


@dataclass(frozen=True)
class CutUpload:
    """Both connections end while the request's body is sent."""

    after_bytes: int

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        exchange.upload_part(self.after_bytes)
        exchange.cut(by_reset=True)


@dataclass(frozen=True)
class ShortBody:
    """
    The answer's body ends too early; its head promises all of it.

    @ivar keep_bytes: how much is sent; half of it, if C{None}.
    """

    keep_bytes: int | None = None

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        answer = exchange.ask_engine()
        if self.keep_bytes is None:
            answer.whole()
        keep_bytes = (answer.body_bytes or 0) // 2 if self.keep_bytes is None else self.keep_bytes
        exchange.tell(answer, keep_bytes)
        exchange.cut()


@dataclass(frozen=True)
class FlippedBit:
    """
    One bit of the answer's body is wrong.

    @ivar at: of which byte; negative from the end.
    """

    at: int = 0

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        answer = exchange.ask_engine()
        body = bytearray(answer.whole())
        body[self.at] ^= 1
        answer.replace(bytes(body))
        exchange.tell(answer)


@dataclass(frozen=True)
class WithoutToken:
    """A page of a list says that there is more, and not how to ask for it."""

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        answer = exchange.ask_engine()
        body = answer.whole()
        next_token = exchange.request.next_token
        if not _TRUNCATED.search(body) or not next_token.search(body):
            raise AssertionError(f"not a page with another one after it: {body[:500]!r}")
        answer.replace(next_token.sub(b"", body))
        exchange.tell(answer)


@dataclass(frozen=True)
class Late:
    """
    The answer begins late.

    @ivar asked_late: whether the engine is asked late as well; else it does at once what is asked.
    """

    seconds: float
    asked_late: bool = False

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        if self.asked_late:
            exchange.wait(self.seconds)
        answer = exchange.ask_engine()
        if not self.asked_late:
            exchange.wait(self.seconds)
        exchange.tell(answer)


@dataclass(frozen=True)
class SlowBody:
    """The answer's body stops for a while in the middle."""

    after_bytes: int
    seconds: float

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        answer = exchange.ask_engine()
        pieces = answer.pieces

        def slow() -> Iterator[bytes]:
            sent = 0
            for piece in pieces:
                if sent <= self.after_bytes < sent + len(piece):
                    yield piece[: self.after_bytes - sent]
                    exchange.wait(self.seconds)
                    yield piece[self.after_bytes - sent :]
                else:
                    yield piece
                sent += len(piece)

        answer.pieces = slow()
        exchange.tell(answer)


@dataclass(frozen=True)
class Ignored:
    """The engine never sees a header, as if it did not know it: C{if-none-match}, C{range}. The request is signed anew."""

    header: str

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        exchange.tell(exchange.ask_engine(without=frozenset((self.header,))))


#: Nothing is stored.
NOT_STORED_500 = Refused(500, "InternalError")
SLOW_DOWN = Refused(503, "SlowDown", (("Retry-After", "1"),))
#: Amazon's, when a DELETE or another PUT of the same key is under way.
CONFLICT = Refused(409, "ConditionalRequestConflict")
NOT_STORED_CUT = Cut(done=False)
ACCESS_DENIED = Refused(403, "AccessDenied")
INVALID_KEY = Refused(403, "InvalidAccessKeyId")
WRONG_CLOCK = Refused(403, "RequestTimeTooSkewed")
NO_BUCKET = Refused(404, "NoSuchBucket")
#: SeaweedFS 4.48 with no volume left; it says the same of any other trouble.
FULL_AS_SEAWEEDFS = Refused(500, "InternalError")
FULL_507 = Refused(507, "InsufficientStorage")
#: Ceph's gateway, for a quota of a bucket or of a user.
FULL_AS_CEPH = Refused(403, "QuotaExceeded")
#: What obstore 0.12 takes for the end of a list.
ERROR_WITH_200 = Refused(200, "InternalError")

#: The object is stored (or removed).
STORED_THEN_500 = DoneThenTold(500, "InternalError")
STORED_THEN_CUT = Cut(done=True)
STORED_THEN_412 = DoneThenTold(412, "PreconditionFailed")
STORED_THEN_404 = DoneThenTold(404, "NoSuchKey")


@dataclass
class Rule:
    """
    Which requests get a fault.

    @ivar used: how many have got it.
    """

    fault: Fault
    matches: Callable[[Request], bool]
    times: int | None
    skip: int
    used: int = 0
    _matched: int = 0

    def takes(self, request: Request) -> bool:
        """Whether the request gets the fault; counts."""
        if not self.matches(request) or (self.times is not None and self.used >= self.times):
            return False
        self._matched += 1
        if self._matched <= self.skip:
            return False
        self.used += 1
        return True


class FaultyEngine:
    """
    The proxy; closed after the test. A mistake in a fault or in the proxy itself fails the test then.

    @cvar request_class: of the engine's protocol.
    @param page_size: how many keys a page of a list has at most; the requests for lists are signed anew with that.
    @param tls: for the client's side.
    """

    request_class: ClassVar[type[Request]] = Request

    def __init__(
        self, test: Cleans, engine: RealEngine, page_size: int | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.engine = engine
        self.page_size = page_size
        self._tls = tls
        self._lock = threading.Lock()
        self._log: list[Seen] = []
        self._rules: list[Rule] = []
        self._pages: dict[tuple[str, str], int] = {}
        self._failures: list[BaseException] = []
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._closed = threading.Event()
        # Bound and not listening: the port stays ours while connections are refused.
        self._placeholder = socket.socket()
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind(_ANY_PORT)
        self.port: int = self._placeholder.getsockname()[1]
        self._listening: socket.socket | None = None
        test.addCleanup(self.close)
        self.accept_connections()

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """See L{RealEngine.environment}."""
        assert isinstance(self.engine, S3Engine)
        return environment(self.endpoint, self.engine.credentials)

    def sign(self, method: str, target: str, headers: Mapping[str, str]) -> dict[str, str]:
        """
        Sign a request anew that was changed.

        @param target: path and query, percent-encoded.
        @param headers: all, by name in lower case, those of the old signature among them.
        @return: all with those of the new one.
        """
        assert isinstance(self.engine, S3Engine)
        others = dict(headers)
        authorization = re.search(r"SignedHeaders=([^,\s]+)", others.pop("authorization", ""))
        assert authorization is not None, f"only requests signed by a header can be changed: {method} {target}"
        names = [name for name in authorization[1].split(";") if name in others and name != "host"]
        signed = signed_headers(
            method,
            f"http://{others['host']}{target}",
            {name: others[name] for name in names},
            self.engine.credentials,
            others["x-amz-content-sha256"],
        )
        return {**others, **signed}

    def when(
        self,
        fault: Fault,
        kind: str | None = None,
        key: str | None = None,
        page: int | None = None,
        matching: Callable[[Request], bool] | None = None,
        times: int | None = 1,
        skip: int = 0,
    ) -> Rule:
        """
        Do something to requests from now on. The first rule that takes a request counts.

        @param kind: L{Request.kind}.
        @param key: a regular expression that is searched in the key.
        @param page: of a list; one that asks for the next page by C{start-after} counts too.
        @param matching: any other condition.
        @param times: how many requests; C{None}: all.
        @param skip: so many requests that match go through before.
        """
        expression = re.compile(key) if key is not None else None

        def matches(request: Request) -> bool:
            return (
                (kind is None or request.kind == kind)
                and (expression is None or expression.search(request.key) is not None)
                and (page is None or request.page == page)
                and (matching is None or matching(request))
            )

        rule = Rule(fault, matches, times, skip)
        with self._lock:
            self._rules.append(rule)
        return rule

    def behave(self) -> None:
        """Forget all rules."""
        with self._lock:
            self._rules.clear()

    @property
    def log(self) -> list[Seen]:
        """All requests so far, in the order in which they came."""
        with self._lock:
            return list(self._log)

    def seen(self, kind: str | None = None, key: str | None = None) -> list[Seen]:
        """Those of the log of a L{Request.kind}, with a key that matches a regular expression."""
        return [
            each
            for each in self.log
            if (kind is None or each.request.kind == kind) and (key is None or re.search(key, each.request.key))
        ]

    def count(self, kind: str | None = None, key: str | None = None) -> int:
        """How many requests C{seen} finds."""
        return len(self.seen(kind, key))

    def forget(self) -> None:
        """Begin the log anew."""
        with self._lock:
            self._log.clear()

    def stop_answering(self) -> None:
        """Take connections and requests, but pass nothing on and answer nothing, from the next piece of a body on."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """End what L{stop_answering} has begun; what has waited goes on."""
        self._goes_on.set()

    def refuse_connections(self) -> None:
        """Be as an engine that does not run: established connections break, new ones are refused. Idempotent."""
        with self._lock:
            listening, self._listening = self._listening, None
            if listening is not None:
                _shut(listening)
            for connection in self._connections:
                _shut(connection)
        if listening is not None:
            listening.close()

    def accept_connections(self) -> None:
        """Listen, at the same port as before. Idempotent."""
        with self._lock:
            if self._listening is not None:
                return
            self._listening = socket.socket()
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listening.bind(("127.0.0.1", self.port))
            self._listening.listen(1024)
            self._start_thread(self._accept, self._listening)

    def close(self) -> None:
        """
        End; idempotent.

        @raise AssertionError: something went wrong in here.
        """
        self._closed.set()
        self._goes_on.set()
        self.refuse_connections()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self._placeholder.close()
        failures, self._failures = self._failures, []
        if failures:
            raise AssertionError(f"the proxy failed: {failures}") from failures[0]

    def _start_thread(self, target: Callable[[socket.socket], None], connection: socket.socket) -> None:
        """Start a thread; the lock is held."""
        thread = threading.Thread(target=target, args=(connection,), name="faulty engine", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._listening is not listening:
                    connection.close()
                    return
                self._connections.add(connection)
                self._start_thread(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        current = connection
        try:
            if self._tls is not None:
                current = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    # The plain one has given its descriptor away.
                    self._connections.discard(connection)
                    if self._listening is None:
                        return
                    self._connections.add(current)
                current.do_handshake()
            with current.makefile("rb") as reader:
                while self._exchange(current, reader):
                    pass
        except (_Gone, OSError):
            pass
        except BaseException as error:
            self._failures.append(error)
        finally:
            with self._lock:
                self._connections.discard(current)
            current.close()

    def _exchange(self, connection: socket.socket, reader: IO[bytes]) -> bool:
        """One request and its answer; whether another one may come."""
        head = _read_head(reader)
        if not head:
            return False
        request = self._with_page(self._parse_request(head))
        seen = Seen(request)
        with self._lock:
            self._log.append(seen)
            rule = next((rule for rule in self._rules if rule.takes(request)), None)
        exchange = _Exchange(self, connection, reader, head, seen)
        try:
            self.wait_for_go()
            if rule is None:
                exchange.tell(exchange.ask_engine())
            else:
                seen.fault = rule.fault
                rule.fault.apply(exchange)
        finally:
            exchange.close()
        return exchange.keeps_connection

    def _parse_request(self, head: bytes) -> Request:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        return self.request_class(method, target, parts.path, query, _parse_headers(head))

    def _with_page(self, request: Request) -> Request:
        if request.kind != "LIST":
            return request
        asked = [(name, request.query[name]) for name in request.ask_pages if name in request.query]
        with self._lock:
            page = next((self._pages[each] for each in asked if each in self._pages), 1)
        return replace(request, page=page)

    def note_page(self, request: Request, body: bytes) -> None:
        """Remember how the page after this one of a list will be asked for."""
        with self._lock:
            for token in request.next_token.findall(body):
                self._pages[request.ask_pages[0], unescape(token.decode())] = request.page + 1
            if _TRUNCATED.search(body):
                for key in _KEY.findall(body)[-1:]:
                    self._pages["start-after", unescape(key.decode())] = request.page + 1

    def register(self, connection: socket.socket) -> None:
        """Break this connection too when connections are to break."""
        with self._lock:
            if self._listening is None:
                raise _Gone
            self._connections.add(connection)

    def unregister(self, connection: socket.socket) -> None:
        """It is closed."""
        with self._lock:
            self._connections.discard(connection)

    def wait_for_go(self) -> None:
        """Wait while nothing is to be answered."""
        self._goes_on.wait()
        if self._closed.is_set():
            raise _Gone

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the proxy's end."""
        if self._closed.wait(seconds):
            raise _Gone


class _Exchange:
    """See L{Exchange}."""

    def __init__(
        self, proxy: FaultyEngine, connection: socket.socket, reader: IO[bytes], head: bytes, seen: Seen
    ) -> None:
        self._proxy = proxy
        self._connection = connection
        self._reader = reader
        self._head = head
        self._seen = seen
        self._engine: socket.socket | None = None
        self._engine_reader: IO[bytes] | None = None
        self.keeps_connection = seen.request.headers.get("connection", "").lower() != "close"

    @property
    def request(self) -> Request:
        return self._seen.request

    def close(self) -> None:
        """Let go of the engine."""
        if self._engine_reader is not None:
            self._engine_reader.close()
        if self._engine is not None:
            self._proxy.unregister(self._engine)
            self._engine.close()

    def _upload(self) -> Iterator[bytes]:
        """The request's body as it goes over the wire."""
        headers = self.request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._paced(_chunked_pieces(self._reader))
        return self._paced(_sized_pieces(self._reader, self.request.body_bytes))

    def _paced(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._proxy.wait_for_go()
            yield piece

    def drop_upload(self) -> None:
        for _ in self._upload():
            pass

    def _connect(self) -> socket.socket:
        try:
            self._engine = socket.create_connection(("127.0.0.1", self._proxy.engine.port))
        except OSError as error:
            raise _Gone from error
        self._engine.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy.register(self._engine)
        return self._engine

    def upload_part(self, size_bytes: int) -> None:
        assert size_bytes < self.request.body_bytes, f"the body has {self.request.body_bytes} bytes"
        engine = self._connect()
        engine.sendall(self._head)
        left = size_bytes
        for piece in self._upload():
            engine.sendall(piece[:left])
            left -= len(piece[:left])
            if left == 0:
                break
        reset(engine)

    def ask_engine(self, without: frozenset[str] = frozenset()) -> Answer:
        engine = self._connect()
        engine.sendall(self._head_for_engine(without))
        reads_on = True
        for piece in self._upload():
            try:
                if reads_on:
                    engine.sendall(piece)
            except OSError:
                # It may have answered before it had all.
                reads_on = False
        self._engine_reader = engine.makefile("rb")
        while True:
            head = _read_head(self._engine_reader)
            if not head:
                raise _Gone
            status = int(head.split(b" ", 2)[1])
            if status >= 200:
                break
        self._seen.engine_status = status
        answer = self._answer(status, head, self._engine_reader)
        if self.request.kind == "LIST":
            self._proxy.note_page(self.request, answer.whole())
        return answer

    def _answer(self, status: int, head: bytes, reader: IO[bytes]) -> Answer:
        headers = _parse_headers(head)
        if self.request.method == "HEAD" or status in (204, 304):
            return Answer(status, head, iter(()), 0)
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Answer(status, head, _chunked_pieces(reader), None)
        length = int(headers["content-length"])
        return Answer(status, head, _sized_pieces(reader, length), length)

    def _head_for_engine(self, without: frozenset[str]) -> bytes:
        page_size = self._proxy.page_size if self.request.kind == "LIST" else None
        if not without and page_size is None:
            return self._head
        target = self.request.target
        if page_size is not None:
            path, _, query = target.partition("?")
            name = self.request.page_size
            pairs = [pair for pair in query.split("&") if not pair.startswith(f"{name}=")]
            target = f"{path}?{'&'.join([*pairs, f'{name}={page_size}'])}"
        headers = {name: value for name, value in self.request.headers.items() if name not in without}
        lines = [f"{self.request.method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._proxy.sign(self.request.method, target, headers).items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def tell(self, answer: Answer, stop_after: int | None = None) -> None:
        self._proxy.wait_for_go()
        self._seen.status = answer.status
        self._connection.sendall(answer.head)
        left = stop_after
        for piece in self._paced(answer.pieces):
            if left is None:
                self._connection.sendall(piece)
                continue
            self._connection.sendall(piece[:left])
            left -= len(piece[:left])
            if left == 0:
                return

    def cut(self, by_reset: bool = False) -> None:
        self.keeps_connection = False
        if by_reset and self._proxy._tls is None:
            reset(self._connection)
        else:
            _shut(self._connection)

    def wait(self, seconds: float) -> None:
        self._proxy.wait(seconds)


def _shut(connection: socket.socket) -> None:
    """Wake the threads that read or accept there; closing alone does not."""
    with suppress(OSError):
        # Of one with TLS the socket below: its own method takes away what the thread that reads works with.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _read_head(reader: IO[bytes]) -> bytes:
    """The first line and the header lines with the empty one; empty at the end of the connection."""
    lines = []
    while True:
        line = reader.readline(_PIECE_BYTES)
        if not line:
            return b""
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)


def _parse_headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _sized_pieces(reader: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    """A body of known size."""
    left = size_bytes
    while left:
        # Not read(): it waits until it has all of that.
        piece: bytes = reader.read1(min(left, _PIECE_BYTES))  # type: ignore[attr-defined]
        if not piece:
            raise _Gone
        left -= len(piece)
        yield piece


def _chunked_pieces(reader: IO[bytes]) -> Iterator[bytes]:
    """A body in chunks with its coding, a chunk a piece."""
    while True:
        line = reader.readline(_PIECE_BYTES)
        if not line:
            raise _Gone
        size_bytes = int(line.partition(b";")[0], 16)
        if size_bytes == 0:
            trailer = line
            while (line := reader.readline(_PIECE_BYTES)) != b"\r\n":
                if not line:
                    raise _Gone
                trailer += line
            yield trailer + line
            return
        yield line + b"".join(_sized_pieces(reader, size_bytes + 2))
