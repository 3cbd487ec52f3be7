"""
Clients that send as many tiny pieces as they can: how much is done with what they sent in one turn of the reactor, who has the
next turn, and that it all comes to the same in the end.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.net.tls import ConnectionCreator, server_context
from resticserver.telemetry.record import Ending
from resticserver.web.http1.exchange import Exchange
from resticserver.web.http1.options import STALL_TIMEOUT_S
from resticserver.web.http1.tls_connection import SLICE_RECORDS, TlsConnection, behind_tls
from resticserver.web.http1.turns import REQUEST_UNITS, REST_S, SLICE_UNITS, SLICES, Turns

from ...support.certificates import make_certificate
from ...support.memory import Bench, Connection, HeldPool, MemoryTransport, request
from ...support.scratch import files_below, scratch_directory

#: As many one-byte chunks as one read of a socket brings.
TINY = b"1\r\nx\r\n" * 10_000
BODY = b"x" * 10_000
NAME = hashlib.sha256(BODY).hexdigest()
CHUNKED = b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD = f"POST /data/{NAME} HTTP/1.1\r\n".encode() + CHUNKED
#: Requests that may be answered in one slice: the last of them may begin with the last unit.
MOST_REQUESTS = SLICE_UNITS // REQUEST_UNITS + 1


class Waiting:
    """Something that waits for turns as often as it is told to."""

    def __init__(self, name: str, turns: Turns, log: list[str], times: int) -> None:
        self.name = name
        self.turns = turns
        self.log = log
        self.times = times
        self.aborted = False
        turns.wait(self)

    def go_on(self) -> None:
        """One slice."""
        self.log.append(self.name)
        self.times -= 1
        if self.times < 0:
            raise RuntimeError("a fault")
        if self.times:
            self.turns.wait(self)

    def abort(self) -> None:
        """End it."""
        self.aborted = True


class TurnsTests(SynchronousTestCase):
    """L{Turns}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)
        self.log: list[str] = []

    def test_in_turn(self) -> None:
        """Those who wait come one after the other, a few in one turn of the reactor, and others have their time between."""
        for name in "abcdef":
            Waiting(name, self.turns, self.log, 2)
        self.assertEqual([], self.log)
        self.clock.advance(0)
        self.assertEqual("abcd", "".join(self.log))
        self.clock.advance(0)
        self.assertEqual("abcd", "".join(self.log))
        self.clock.advance(REST_S)
        self.assertEqual("abcdefab", "".join(self.log))
        self.clock.advance(REST_S)
        self.assertEqual("abcdefabcdef", "".join(self.log))
        self.clock.advance(10)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_one_alone(self) -> None:
        """One alone has one slice in a turn."""
        Waiting("a", self.turns, self.log, 3)
        self.clock.advance(0)
        self.assertEqual(["a"], self.log)
        self.clock.advance(REST_S)
        self.assertEqual(["a", "a"], self.log)

    def test_fault(self) -> None:
        """One that fails is ended, and the others go on."""
        bad = Waiting("bad", self.turns, self.log, 0)
        good = Waiting("good", self.turns, self.log, 2)
        self.clock.advance(0)
        self.clock.advance(REST_S)
        self.assertEqual(["bad", "good", "good"], self.log)
        self.assertEqual((True, False), (bad.aborted, good.aborted))
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))


class TurnsCase(SynchronousTestCase):
    """A site over an empty repository."""

    def setUp(self) -> None:
        self.bench = Bench(self.mktemp())
        self.bench.store.create_repository(())

    def turn(self, number: int = 1) -> None:
        """So many turns of the reactor."""
        for _ in range(number):
            self.bench.clock.advance(REST_S)

    def all_turns(self) -> None:
        """Until nobody waits; silence is counted in seconds and this is less than one."""
        self.turn(400)

    def received_bytes(self, connection: Connection) -> int:
        """How much of the body of a connection's request was decoded."""
        body_request = connection.channel.exchange.request
        assert body_request is not None
        return body_request.body.received_bytes


class ChunkTests(TurnsCase):
    """Chunked bodies."""

    def test_bounded(self) -> None:
        """One read brings ten thousand chunks, and a few hundred are decoded in each turn, while reading is paused."""
        connection = self.bench.connect()
        connection.send(HEAD + TINY)
        seen = [self.received_bytes(connection)]
        while seen[-1] < len(BODY):
            self.assertEqual("paused", connection.transport.producerState)
            self.turn()
            seen.append(self.received_bytes(connection))
        steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
        self.assertLessEqual(max(steps), SLICE_UNITS)
        self.assertEqual("producing", connection.transport.producerState)
        connection.send(b"0\r\n\r\n" + request("HEAD", f"/data/{NAME}"))
        self.turn()
        self.assertEqual([200, 200], connection.statuses())
        self.assertEqual([len(BODY), 0], [record.received_bytes for record in self.bench.records])

    def test_all_together(self) -> None:
        """Ten such clients have no more of a turn than four, and each comes to its end."""
        connections = [self.bench.connect() for _ in range(10)]
        for connection in connections:
            connection.send(HEAD + TINY + b"0\r\n\r\n" + request("HEAD", f"/data/{NAME}"))
        for _ in range(50):
            before = sum(map(self.received_bytes, connections))
            self.turn()
            self.assertLessEqual(sum(map(self.received_bytes, connections)) - before, SLICES * SLICE_UNITS)
        counts = [self.received_bytes(connection) for connection in connections]
        self.assertLessEqual(max(counts) - min(counts), 2 * SLICE_UNITS)
        self.all_turns()
        self.assertEqual([[200, 200]] * 10, [connection.statuses() for connection in connections])

    def test_another_client(self) -> None:
        """A client beside them is answered at once."""
        for _ in range(10):
            self.bench.connect().send(HEAD + TINY)
        self.assertEqual([404], self.bench.ask(request("HEAD", "/config")).statuses())

    def test_large_chunks(self) -> None:
        """restic's chunks (Go's have 32 KiB) never wait: a read of 512 KiB is decoded at once."""
        for size in (32 << 10, 4 << 10):
            connection = self.bench.ask(b"POST /config HTTP/1.1\r\n" + CHUNKED)
            connection.send((b"%x\r\n%s\r\n" % (size, bytes(size))) * ((512 << 10) // size))
            self.assertEqual(512 << 10, self.received_bytes(connection))
            self.assertEqual("producing", connection.transport.producerState)
            connection.lose()

    def test_answered_early(self) -> None:
        """What follows an early answer is decoded in turns as well, and the request behind it is found."""
        connection = self.bench.ask(b"PUT /config HTTP/1.1\r\n" + CHUNKED + TINY)
        self.assertEqual([405], connection.statuses())
        self.assertLessEqual(self.received_bytes(connection), SLICE_UNITS)
        connection.send(b"0\r\n\r\n" + request("HEAD", "/config"))
        self.all_turns()
        self.assertEqual([405, 404], connection.statuses())
        self.assertFalse(connection.closed)

    def test_too_much_behind_an_early_answer(self) -> None:
        """The bound of what is swallowed holds; what waits then is never looked at."""
        self.patch(Exchange, "swallow_bytes", 1000)
        connection = self.bench.ask(b"PUT /nobody/knows/config HTTP/1.1\r\n" + CHUNKED + TINY)
        self.all_turns()
        self.assertEqual(1, len(connection.statuses()))
        self.assertTrue(connection.closed)

    def test_bad_chunk(self) -> None:
        """What is no chunk is found when its turn comes: 400, closed, nothing after it is looked at."""
        connection = self.bench.ask(HEAD + TINY + b"nonsense\r\n" + request("HEAD", "/config"))
        self.assertEqual([], connection.statuses())
        self.all_turns()
        self.assertEqual([400], connection.statuses())
        self.assertTrue(connection.closed)

    def test_lost(self) -> None:
        """A client that goes while something of it waits: one record, nothing stored, no call left."""
        connection = self.bench.ask(HEAD + TINY)
        connection.lose()
        self.turn()
        self.assertEqual([Ending.LOST], [record.ending for record in self.bench.records])
        self.assertEqual([], self.bench.clock.getDelayedCalls())
        self.assertEqual([], list(files_below(Path(self.bench.store.path))))

    def test_aborted(self) -> None:
        """The server ends all connections while something waits."""
        connection = self.bench.ask(HEAD + TINY)
        self.bench.site.abort_all()
        self.turn()
        self.assertTrue(connection.transport.aborted)
        self.assertEqual([], self.bench.clock.getDelayedCalls())

    def test_drain(self) -> None:
        """At a stop the request whose body waits comes to its end, and is the last."""
        connection = self.bench.ask(HEAD + TINY + b"0\r\n\r\n" + request("HEAD", f"/data/{NAME}"))
        self.bench.site.drain()
        self.all_turns()
        self.assertEqual([200], connection.statuses())
        self.assertTrue(connection.closed)

    def test_half_closed(self) -> None:
        """A client that closed its half behind its request gets its answer, also when the request still waits."""
        for behind, statuses in (
            (b"0\r\n\r\n", [200]),
            (b"0\r\n\r\n" + request("HEAD", "/keys/"), [200, 405]),
            (b"", []),
        ):
            connection = self.bench.ask(HEAD + TINY + behind)
            connection.channel.readConnectionLost()
            self.assertFalse(connection.closed, behind)
            self.all_turns()
            self.assertEqual(statuses, connection.statuses(), behind)
            self.assertTrue(connection.closed, behind)
            connection.lose()

    def test_silence_counts_from_the_last_turn(self) -> None:
        """A client is not taken for silent because others had their turn."""
        connection = self.bench.ask(HEAD + TINY)
        self.turn(3)
        self.bench.clock.advance(STALL_TIMEOUT_S - 1)
        self.all_turns()
        self.bench.clock.advance(STALL_TIMEOUT_S - 1)
        self.assertFalse(connection.closed)
        self.bench.clock.advance(1)
        self.assertTrue(connection.closed)

    def test_slow_disk(self) -> None:
        """Where the disk is slower than the client, what waits is bounded, and nothing is lost."""
        pool = HeldPool()
        self.bench = Bench(self.mktemp(), pool=pool)
        self.bench.store.create_repository(())
        body = b"y" * 40_000
        name = hashlib.sha256(body).hexdigest()
        connection = self.bench.ask(f"POST /data/{name} HTTP/1.1\r\n".encode() + CHUNKED)
        for _ in range(20):
            connection.send(b"1\r\ny\r\n" * 2000)
            self.all_turns()
        connection.send(b"0\r\n\r\n")
        self.all_turns()
        pool.release(20)
        self.assertEqual([200], connection.statuses())


class HeadTests(TurnsCase):
    """Requests without bodies."""

    def test_pipelined(self) -> None:
        """Of thousands of requests in one read a few are answered in each turn, in order."""
        connection = self.bench.connect()
        connection.send(request("HEAD", "/x/config") * 1500 + request("GET", "/keys/"))
        answered = [len(connection.statuses())]
        while len(connection.statuses()) < 1501:
            self.assertEqual("paused", connection.transport.producerState)
            self.turn()
            answered.append(len(connection.statuses()))
        steps = [after - before for before, after in zip([0, *answered], answered, strict=False)]
        self.assertLessEqual(max(steps), MOST_REQUESTS)
        self.assertEqual([404] * 1500 + [200], connection.statuses())
        self.assertEqual("producing", connection.transport.producerState)

    def test_many_fields(self) -> None:
        """A head of many fields counts for more requests than one."""
        lines = "".join(f"A: {number}\r\n" for number in range(490))
        connection = self.bench.connect()
        # The fields of each differ from those before: equal ones are not taken apart again.
        heads = [f"HEAD /config HTTP/1.1\r\nHost: x{number}\r\n{lines}\r\n" for number in range(10)]
        connection.send("".join(heads).encode())
        self.assertEqual([404], connection.statuses())
        self.turn()
        self.assertEqual([404] * 2, connection.statuses())
        self.all_turns()
        self.assertEqual([404] * 10, connection.statuses())

    def test_body_behind_pipelined_requests(self) -> None:
        """A body of known length behind them comes whole."""
        connection = self.bench.connect()
        connection.send(request("HEAD", "/config") * 20 + request("POST", f"/data/{NAME}", BODY)[:-9000])
        connection.send(BODY[:9000])
        self.all_turns()
        self.assertEqual([404] * 20 + [200], connection.statuses())

    def test_byte_by_byte(self) -> None:
        """A head in single bytes: a bare LF is refused where it stands, and a CRLF may be cut anywhere."""
        head = request("HEAD", "/config", A="b" * 300)
        connection = self.bench.connect()
        connection.send(
            *(head[i : i + 1] for i in range(len(head))), *(head[i : i + 2] for i in range(0, len(head), 2))
        )
        self.assertEqual([404, 404], connection.statuses())
        for cut in range(1, 12):
            bad = self.bench.connect()
            head = b"HEAD / HTTP/1.1\r\nA: b\nC: d"
            bad.send(head[:cut], *(head[i : i + 1] for i in range(cut, len(head))))
            self.assertEqual([400], bad.statuses(), cut)
        blank = self.bench.connect()
        blank.send(b"\r\n", b"\r", b"\nHEAD /config HTTP/1.1\r", b"\nHost: x\r\n\r", b"\n")
        self.assertEqual([404], blank.statuses())


class TlsTests(TurnsCase):
    """The same over TLS, in records of a byte each."""

    def setUp(self) -> None:
        super().setUp()
        files = make_certificate(scratch_directory(self))
        creator = ConnectionCreator(server_context(str(files.certificate), str(files.key), "1.2"))
        self.factory = behind_tls(creator, self.bench.site)
        self.factory._clock = self.bench.clock
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self.client = SSL.Connection(context, None)
        self.client.set_connect_state()
        self.transport = MemoryTransport()
        connection = self.factory.buildProtocol(None)
        assert isinstance(connection, TlsConnection)
        self.connection = self.transport.protocol = connection
        self.connection.makeConnection(self.transport)
        self.received = b""
        for _ in range(4):
            try:
                self.client.do_handshake()
            except SSL.WantReadError:
                pass
            self.exchange()

    def exchange(self) -> None:
        """Let what each side has to say come to the other."""
        try:
            self.connection.dataReceived(self.client.bio_read(1 << 20))
        except SSL.WantReadError:
            pass
        self.take()

    def take(self) -> None:
        """Let the client take what the server has said."""
        said = self.transport.value()
        self.transport.clear()
        if said:
            self.client.bio_write(said)
        try:
            while True:
                self.received += self.client.recv(65536)
        except (SSL.WantReadError, SSL.ZeroReturnError):
            pass

    def send(self, data: bytes, size: int = 1) -> None:
        """Send in records of so many bytes, which come in one read of the socket."""
        for start in range(0, len(data), size):
            self.client.send(data[start : start + size])
        self.exchange()

    def statuses(self) -> list[int]:
        """Of the answers so far."""
        self.take()
        return [int(line.split(b" ")[1]) for line in self.received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]

    def channel_received_bytes(self) -> int:
        """How much of a body was decoded."""
        (channel,) = self.bench.site.channels
        request = channel.exchange.request
        return 0 if request is None else request.body.received_bytes

    def test_bounded(self) -> None:
        """A few records are decrypted in each turn, while nothing is read from the socket."""
        self.send(request("POST", "/config", Content_Length="3000"), 1000)
        self.assertEqual([], self.statuses())
        self.send(b"x" * 3000)
        seen = [self.channel_received_bytes()]
        while not self.statuses():
            self.assertEqual("paused", self.transport.producerState)
            self.turn()
            seen.append(self.channel_received_bytes() or 3000)
        steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
        self.assertLessEqual(max(steps), SLICE_RECORDS)
        self.assertEqual([200], self.statuses())
        self.turn()
        self.assertEqual("producing", self.transport.producerState)

    def test_whole_records(self) -> None:
        """A client that fills its records never waits."""
        self.send(request("POST", "/config", Content_Length=str(512 << 10)), 1000)
        self.send(bytes((512 << 10) - 1), 16 << 10)
        self.assertEqual("producing", self.transport.producerState)
        self.assertEqual((512 << 10) - 1, self.channel_received_bytes())

    def test_chunks_in_records(self) -> None:
        """Tiny chunks in tiny records, and a pipelined request behind them."""
        body = b"z" * 500
        name = hashlib.sha256(body).hexdigest()
        self.send(f"POST /data/{name} HTTP/1.1\r\n".encode() + CHUNKED + b"1\r\nz\r\n" * 500 + b"0\r\n\r\n")
        self.send(request("HEAD", f"/data/{name}"))
        self.all_turns()
        self.assertEqual([200, 200], self.statuses())
        self.assertEqual("producing", self.transport.producerState)

    def test_more_comes_while_something_waits(self) -> None:
        """Bytes that come though reading is paused (what stands below has read them already) are in their order."""
        head = request("HEAD", "/config", A="b" * 500)
        for start in range(0, 3 * len(head), 200):
            self.send((head * 3)[start : start + 200])
        self.all_turns()
        self.assertEqual([404] * 3, self.statuses())

    def test_end(self) -> None:
        """TLS's own end behind many records comes in its turn; the request before it is answered."""
        self.send(request("HEAD", "/config", A="b" * 500))
        self.client.shutdown()
        self.exchange()
        self.assertEqual([], self.statuses())
        self.all_turns()
        self.assertEqual([404], self.statuses())
        self.assertTrue(self.transport.disconnecting)

    def test_lost(self) -> None:
        """The socket ends while records wait, and nothing is left."""
        self.send(request("HEAD", "/config", A="b" * 500))
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.turn()
        self.assertEqual(set(), self.bench.site.channels)
        self.assertEqual([], self.bench.clock.getDelayedCalls())

    def test_paused_above(self) -> None:
        """While the channel wants to read nothing, nothing is decrypted."""
        (channel,) = self.bench.site.channels
        channel.gate.hold("write")
        self.send(request("HEAD", "/config") * 2, 10)
        self.turn(5)
        self.assertEqual([], self.statuses())
        channel.gate.release("write")
        self.turn()
        self.assertEqual([404, 404], self.statuses())
        self.assertEqual("producing", self.transport.producerState)
