"""
Bodies that go from the socket to pool jobs directly: nothing but their own bytes is taken, and every end is in order.

A real site in this process on a real port, with clients in threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import socket
import ssl
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase, TestCase

from resticserver.access.policy import Policy
from resticserver.errors import InsufficientStorage
from resticserver.net.tls import ConnectionCreator, server_context
from resticserver.quota.admission import Admission
from resticserver.storage.interface import Chunks
from resticserver.storage.local import LocalStore
from resticserver.storage.upload import LocalUpload
from resticserver.telemetry.limited import Limited
from resticserver.telemetry.record import Ending, Record
from resticserver.threads.pools import JobPool, Pools
from resticserver.web.authentication import NoAuthentication
from resticserver.web.http1 import tls_writer
from resticserver.web.http1.options import STALL_TIMEOUT_S, SiteOptions
from resticserver.web.http1.site import RepositorySite
from resticserver.web.http1.tls_connection import behind_tls
from resticserver.web.http1.tls_records import Space
from resticserver.web.http1.turns import Turns
from resticserver.web.routes import Api, Repositories
from resticserver.web.transfer import body as bodies
from resticserver.web.transfer import plain, tls

from ...support.certificates import make_certificate
from ...support.client import connect, object_id, random_bytes, read_reply
from ...support.scratch import files_below, scratch_directory
from ...support.waiting import PATIENCE_S, wait_until
from ...support.wires import StepReactor, as_reactor

MIB = 1 << 20
BODY = random_bytes(seed=3, length=3 * MIB + 17)

#: The reactor as what it is.
real: Any = reactor


class SlowUpload(LocalUpload):
    """An upload whose writes fail or wait as its store says."""

    def write(self, chunks: Chunks) -> None:
        """Write, or not."""
        store: Any = self._directories
        if self.size_bytes >= store.full_at:
            raise InsufficientStorage()
        store.directly.append(any(isinstance(chunk, memoryview) for chunk in chunks))
        time.sleep(store.write_s)
        super().write(chunks)


class Store(LocalStore):
    """A store that fills up."""

    full_at = 1 << 60
    write_s = 0.0

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.directly: list[bool] = []

    def upload(self, repository: tuple[str, ...], kind: str, name: str, length: int | None = None) -> SlowUpload:
        """A new upload."""
        return SlowUpload(self, repository, kind, name, length)


class HeldWaits:
    """The reactor, but how long a transfer waits for its client is the time of a Clock."""

    def __init__(self) -> None:
        self.time = Clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def callLater(self, delay_s: float, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Twisted's call."""
        clock = self.time if getattr(call, "__name__", "") == "_stalled" else real
        return clock.callLater(delay_s, call, *args, **kwargs)


class DirectCase(TestCase):
    """A site on a port of its own."""

    timeout = 2 * PATIENCE_S
    #: Of its pool.
    threads = 4

    def setUp(self) -> None:
        self.path = scratch_directory(self) / "data"
        self.store = Store(str(self.path))
        self.store.prepare()
        self.store.create_repository(())
        self.pool = JobPool(real, "jobs", self.threads)
        self.pool.startService()
        self.addCleanup(self.pool.stopService)
        self.records: list[Record] = []
        repositories = Repositories(self.store, Pools(self.pool, self.pool, self.pool), Admission())
        api = Api(NoAuthentication(), Policy(), repositories)
        # What it logs of limits is on a clock: a timer would outlive the test.
        self.site = RepositorySite(api.resource(), real, self.records.append, SiteOptions(limited=Limited(Clock())))
        port = real.listenTCP(0, self.factory(), interface="127.0.0.1")
        self.address = ("127.0.0.1", port.getHost().port)
        self.clients = ThreadPool(0, 4)
        self.clients.start()
        self.addCleanup(self.clients.stop)
        self.addCleanup(self._gone)
        self.addCleanup(port.stopListening)

    def use(self, options: SiteOptions) -> None:
        """Use these options for connections that are made from now on."""
        self.site.options = options

    def factory(self) -> Any:
        """What listens."""
        return self.site

    def connect(self) -> socket.socket:
        """A client's connection."""
        return connect(self.address)

    def _gone(self) -> Deferred[None]:
        self.site.abort_all()
        return self.site.drain()

    def client(self, talk: Callable[[socket.socket], Any]) -> Deferred[Any]:
        """Let a client talk in a thread."""

        def run() -> Any:
            with self.connect() as connection:
                return talk(connection)

        return deferToThreadPool(real, self.clients, run)

    def stored(self) -> dict[str, bytes]:
        """What lies in the repository."""
        return {name: (self.path / name).read_bytes() for name in files_below(self.path)}

    def store_body(self, body: bytes) -> bytes:
        """Put an object there; the request that reads it."""
        upload = LocalStore.upload(self.store, (), "data", object_id(body))
        upload.open()
        assert isinstance(upload, LocalUpload)
        LocalUpload.write(upload, (body,))
        upload.commit()
        return f"GET /data/{object_id(body)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that the reactor's thread is about to do."""
        for _ in range(int(PATIENCE_S / 0.01)):
            if condition():
                return
            waiting: Deferred[None] = Deferred()
            real.callLater(0.01, waiting.callback, None)
            await waiting
        self.fail("it never came")


class TlsCase(DirectCase):
    """The same over TLS."""

    def setUp(self) -> None:
        directory = scratch_directory(self)
        self.certificate = make_certificate(directory)
        super().setUp()

    def factory(self) -> Any:
        """What listens."""
        context = server_context(str(self.certificate.certificate), str(self.certificate.key), "1.2")
        return behind_tls(ConnectionCreator(context), self.site)

    def connect(self) -> socket.socket:
        """A client's connection."""
        context = self.certificate.client_context()
        return context.wrap_socket(super().connect(), server_hostname="localhost")


def head(body: bytes, length: int | None = None) -> bytes:
    """The head of an upload."""
    length = len(body) if length is None else length
    return f"POST /data/{object_id(body)} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


class ReceiveTests(DirectCase):
    """Uploads by L{plain.ReceiveTransfer}."""

    async def test_whole(self) -> None:
        """It is stored, and most of it came directly (so that the tests here test what they say)."""

        def talk(connection: socket.socket) -> int:
            connection.sendall(head(BODY) + BODY)
            return read_reply(connection, "POST").status

        self.assertEqual(200, await self.client(talk))
        self.assertEqual([BODY], list(self.stored().values()))
        self.assertIn(True, self.store.directly)
        self.assertEqual([(Ending.DONE, len(BODY))], [(r.ending, r.received_bytes) for r in self.records])

    async def test_next_requests_stay_in_the_socket(self) -> None:
        """Requests sent behind the body at once are answered after it, none of their bytes is taken for the body's."""
        other = BODY[::-1]
        get = f"GET /data/{object_id(other)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(head(BODY) + BODY + head(other) + other + get)
            with connection.makefile("rb") as replies:
                return replies.read()

        replies = await self.client(talk)
        self.assertEqual(3, replies.count(b"HTTP/1.1 200 OK\r\n"))
        self.assertTrue(replies.endswith(b"\r\n\r\n" + other))
        self.assertEqual({BODY, other}, set(self.stored().values()))

    async def test_in_small_pieces(self) -> None:
        """A client that sends less at a time than the low-water mark, with pauses."""
        body = BODY[: 700 << 10]

        def talk(connection: socket.socket) -> int:
            connection.sendall(head(body))
            for first in range(0, len(body), 100 << 10):
                time.sleep(0.02)
                connection.sendall(body[first : first + (100 << 10)])
            return read_reply(connection, "POST").status

        self.assertEqual(200, await self.client(talk))
        self.assertEqual([body], list(self.stored().values()))

    async def test_small_requests_afterwards(self) -> None:
        """The low-water mark does not stay on the socket: a small request behind a big upload is answered."""

        def talk(connection: socket.socket) -> tuple[int, int]:
            connection.sendall(head(BODY))
            time.sleep(0.1)
            connection.sendall(BODY)
            first = read_reply(connection, "POST").status
            connection.sendall(b"GET /data/ HTTP/1.1\r\nHost: x\r\n\r\n")
            return first, read_reply(connection).status

        self.assertEqual((200, 200), await self.client(talk))

    async def test_full_disk(self) -> None:
        """A refusal in mid-body: the client reads it, the rest is swallowed, the connection takes the next request."""
        self.store.full_at = MIB

        def talk(connection: socket.socket) -> tuple[int, int]:
            connection.sendall(head(BODY) + BODY)
            first = read_reply(connection, "POST").status
            connection.sendall(b"GET /data/ HTTP/1.1\r\nHost: x\r\n\r\n")
            return first, read_reply(connection).status

        first, second = await self.client(talk)
        self.assertEqual((507, 200), (first, second))
        self.assertEqual({}, self.stored())

    async def test_lost(self) -> None:
        """A client that goes away leaves nothing, and one record."""

        def talk(connection: socket.socket) -> None:
            connection.sendall(head(BODY) + BODY[: 2 * MIB])
            time.sleep(0.1)

        await self.client(talk)
        await self.until(lambda: self.records)
        self.assertEqual([Ending.LOST], [record.ending for record in self.records])
        self.assertEqual({}, self.stored())

    async def test_half_closed(self) -> None:
        """A client that closes its half too early learns that nothing was stored."""

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(head(BODY) + BODY[:-1])
            connection.shutdown(socket.SHUT_WR)
            try:
                return connection.recv(100)
            except ConnectionResetError:
                return b""

        self.assertEqual(b"", await self.client(talk))
        self.assertEqual({}, self.stored())

    async def test_stopped(self) -> None:
        """The server ends connections while a job runs: it ends, and the upload is aborted behind it."""
        self.store.write_s = 0.2

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(head(BODY) + BODY[: 2 * MIB])
            while True not in self.store.directly:
                time.sleep(0.01)
            real.callFromThread(self.site.abort_all)
            try:
                return connection.recv(100)
            except ConnectionResetError:
                return b""

        self.assertEqual(b"", await self.client(talk))
        await self.until(lambda: self.records)
        self.assertEqual({}, self.stored())

    async def test_no_descriptor(self) -> None:
        """Without a descriptor for the transfer the body goes the slower way."""
        self.patch(bodies, "duplicate_of", lambda request: None)

        def talk(connection: socket.socket) -> int:
            connection.sendall(head(BODY) + BODY)
            return read_reply(connection, "POST").status

        self.assertEqual(200, await self.client(talk))
        self.assertEqual([BODY], list(self.stored().values()))
        self.assertNotIn(True, self.store.directly)

    async def test_silence(self) -> None:
        """A client that sends no more is given up; one that is slow, below the low-water mark, is not."""
        waits: Any = HeldWaits()
        self.site.reactor = waits

        async def pass_(seconds: float) -> None:
            """So much time passes while the server waits for its client."""
            await self.until(lambda: [call for call in waits.time.getDelayedCalls() if call.func.__self__._waiting])
            # In the steps in which the server looks: each look schedules the next.
            waits.time.pump([plain.LOOK_S] * math.ceil(seconds / plain.LOOK_S))

        def silent(connection: socket.socket) -> bytes:
            try:
                # On a busy machine the server may have given up before all of it is sent.
                connection.sendall(head(BODY) + BODY[:MIB])
                return connection.recv(100)
            except (ConnectionResetError, BrokenPipeError):
                return b""

        def slow(connection: socket.socket) -> int:
            body = BODY[:MIB]
            connection.sendall(head(body) + body[: -100 << 10])
            for first in range(len(body) - (100 << 10), len(body), 10 << 10):
                # mypy cannot choose between the function's two kinds of result.
                blockingCallFromThread(real, lambda: Deferred.fromCoroutine(pass_(0.7 * STALL_TIMEOUT_S)))  # type: ignore[arg-type]
                connection.sendall(body[first : first + (10 << 10)])
                # Until the server's side has it.
                wait_until(
                    lambda: not int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
                )
            return read_reply(connection, "POST").status

        given_up = self.client(silent)
        await pass_(STALL_TIMEOUT_S + 2 * plain.LOOK_S)
        self.assertEqual(b"", await given_up)
        self.assertEqual(200, await self.client(slow))


class SilenceTests(SynchronousTestCase):
    """How long a client may be silent, on a clock."""

    def test_after_the_last_byte(self) -> None:
        """
        310 s, counted from the last byte: also where the bytes are too few for the reactor to be told of them.
        """
        self.assertEqual(310.0, STALL_TIMEOUT_S)
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        reactor = StepReactor()
        aborted: list[float] = []

        def stall() -> None:
            aborted.append(reactor.seconds())

        lent = plain.LentSocket(ours, as_reactor(reactor), self.fail, stall, STALL_TIMEOUT_S, Turns(reactor))
        transfer = plain.ReceiveTransfer(lent, maybeDeferred, (), MIB, lambda chunks: None)
        done = transfer.start()
        reactor.advance(300)
        theirs.send(b"x")
        while not aborted:
            reactor.advance(1)
        self.assertGreaterEqual(aborted[0], 610)
        self.assertLess(aborted[0], 617)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        reactor.advance(0)


class TlsReceiveTests(TlsCase, ReceiveTests):
    """Uploads by L{directtls.TlsReceiveTransfer}."""

    async def test_begin_of_a_record(self) -> None:
        """
        The begin of a record is in OpenSSL's memory and no longer in the socket: the low-water mark does not wait for as
        many bytes as are left of the body.
        """
        body = BODY[: 600 << 10]

        def talk(connection: socket.socket) -> int:
            assert isinstance(connection, ssl.SSLSocket)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = self.certificate.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with connect(self.address) as raw:
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        raw.sendall(outgoing.read())
                        incoming.write(raw.recv(65536))
                raw.sendall(outgoing.read())
                tls.write(head(body) + body)
                encrypted = outgoing.read()
                # The last 60,000 bytes begin within a record, and come when the server waits.
                raw.sendall(encrypted[:-60_000])
                time.sleep(0.3)
                raw.sendall(encrypted[-60_000:])
                while True:
                    incoming.write(raw.recv(65536))
                    try:
                        return int(tls.read(1000).split(b" ")[1])
                    except ssl.SSLWantReadError:
                        pass

        self.use(SiteOptions(stall_timeout_s=30))
        self.assertEqual(200, await self.client(talk))
        self.assertEqual([body], list(self.stored().values()))

    async def test_half_closed(self) -> None:
        """A client that says too early that nothing follows: nothing is stored."""

        def talk(connection: socket.socket) -> None:
            assert isinstance(connection, ssl.SSLSocket)
            connection.sendall(head(BODY) + BODY[:-1])
            with contextlib.suppress(OSError):
                connection.unwrap()

        await self.client(talk)
        await self.until(lambda: self.records)
        self.assertEqual({}, self.stored())


class SendTests(DirectCase):
    """Downloads by L{plain.SendfileTransfer}."""

    async def test_whole(self) -> None:
        """The object and nothing else; the request behind it is answered behind it."""
        get, small = self.store_body(BODY), self.store_body(b"small")

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(get + small + get + b"GET /keys/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with connection.makefile("rb") as replies:
                return replies.read()

        replies = await self.client(talk)
        answers = replies.split(b"HTTP/1.1 200 OK\r\n")[1:]
        self.assertEqual([BODY, b"small", BODY, b"[]"], [answer.partition(b"\r\n\r\n")[2] for answer in answers])
        self.assertEqual([len(BODY), 5, len(BODY), 2], [record.sent_bytes for record in self.records])

    async def test_no_descriptor(self) -> None:
        """Without a descriptor for the transfer the object goes the slower way."""
        self.patch(bodies, "duplicate_of", lambda request: None)
        get = self.store_body(BODY)

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(get)
            return read_reply(connection).body

        self.assertEqual(BODY, await self.client(talk))

    async def test_slow_client(self) -> None:
        """One that stops reading now and then gets all of it."""
        get = self.store_body(BODY)

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(get)
            received = bytearray()
            while len(received.partition(b"\r\n\r\n")[2]) < len(BODY):
                piece = connection.recv(256 << 10)
                if not piece:
                    break
                received += piece
                if len(received) % 7 == 0:
                    time.sleep(0.01)
            return bytes(received)

        self.assertEqual(BODY, (await self.client(talk)).partition(b"\r\n\r\n")[2])

    async def test_lost(self) -> None:
        """A client that goes away in the middle: one record that says so."""
        body = BODY * 8
        get = self.store_body(body)

        def talk(connection: socket.socket) -> None:
            connection.sendall(get)
            connection.recv(1000)

        await self.client(talk)
        await self.until(lambda: self.records)
        self.assertEqual([Ending.TRUNCATED], [record.ending for record in self.records])

    async def test_stopped(self) -> None:
        """The server ends connections in the middle: the client sees less than was promised."""
        body = BODY * 8
        get = self.store_body(body)

        def talk(connection: socket.socket) -> int:
            connection.sendall(get)
            received = len(connection.recv(1000))
            real.callFromThread(self.site.abort_all)
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                while piece := connection.recv(1 << 20):
                    received += len(piece)
            return received

        self.assertLess(await self.client(talk), len(body))
        await self.until(lambda: self.records)
        self.assertEqual([Ending.TRUNCATED], [record.ending for record in self.records])

    async def test_stalled(self) -> None:
        """A client that takes nothing is given up."""
        self.use(SiteOptions(stall_timeout_s=0.3))
        get = self.store_body(BODY * 8)

        def talk(connection: socket.socket) -> None:
            connection.sendall(get)
            while not self.records:
                time.sleep(0.01)

        await self.client(talk)
        self.assertEqual([Ending.TRUNCATED], [record.ending for record in self.records])


class ShortRecordTests(TlsCase):
    """Clients may ask for short records (RFC 6066 section 4), and then an answer takes more space than was thought."""

    async def test_all_is_sent(self) -> None:
        """All of it is sent, by a transfer and by the reactor's thread."""
        self.patch(tls, "encrypted_bytes", lambda size_bytes: 1000)
        self.patch(tls_writer, "REACTOR_SPACE", Space(100))
        get, small = self.store_body(BODY), self.store_body(BODY[: 100 << 10])

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(get + small + b"GET /keys/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with connection.makefile("rb") as replies:
                return replies.read()

        answers = (await self.client(talk)).split(b"HTTP/1.1 200 OK\r\n")[1:]
        contents = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
        self.assertEqual([BODY, BODY[: 100 << 10], b"[]"], contents)


class OneThreadTests(DirectCase):
    """Transfers that share a thread, and its buffers."""

    threads = 1

    async def test_slow_clients(self) -> None:
        """Several that stop reading now and then: each gets its own bytes."""
        objects = [random_bytes(seed=seed, length=8 * MIB) for seed in range(3)]
        gets = [self.store_body(body) for body in objects]

        def content(got: bytearray) -> bytearray:
            return got.partition(b"\r\n\r\n")[2]

        def talk(connection: socket.socket) -> list[bytes]:
            with contextlib.ExitStack() as stack:
                connections = [connection, *(stack.enter_context(self.connect()) for _ in gets[1:])]
                for one, get in zip(connections, gets, strict=True):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
                    one.sendall(get)
                received = [bytearray() for _ in connections]
                while left := [number for number, got in enumerate(received) if len(content(got)) < 8 * MIB]:
                    for number in left:
                        received[number] += connections[number].recv(512 << 10)
                return [bytes(content(got)) for got in received]

        self.assertEqual([True] * 3, [a == b for a, b in zip(await self.client(talk), objects, strict=True)])


class TlsSendTests(TlsCase, SendTests):
    """Downloads by L{directtls.TlsSendTransfer}."""


class TlsOneThreadTests(TlsCase, OneThreadTests):
    """The same over TLS."""
