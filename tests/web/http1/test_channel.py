"""
HTTP on the real channel, byte by byte: framing, strictness, early answers, time-outs, one record a request.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Policy
from resticserver.errors import Unauthorized
from resticserver.telemetry.record import Ending
from resticserver.web.http1.channel import StreamingChannel
from resticserver.web.http1.closing import Closing
from resticserver.web.http1.exchange import Exchange
from resticserver.web.http1.options import HEADER_TIMEOUT_S, SiteOptions
from resticserver.web.http1.request import StreamingRequest
from resticserver.web.http1.site import IDLE_TIMEOUT_S, LAST_REQUEST_S
from tests.support.descriptors import no_descriptors
from tests.support.memory import Bench, Connection, HeldPool, MemoryTransport, request
from tests.support.scratch import files_below

BLOB = b"pack" * 1000
NAME = hashlib.sha256(BLOB).hexdigest()
#: A server where 100 descriptors are too many, and 110 far too many.
CROWDED = SiteOptions(crowded_from=100, full_from=110)


class Nobody:
    """Lets no one in."""

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """Refuse."""
        raise Unauthorized()


class ChannelCase(SynchronousTestCase):
    """A site over an empty repository."""

    def bench(self, **options: object) -> Bench:
        """A bench with a repository at the root."""
        bench = Bench(self.mktemp(), **options)  # type: ignore[arg-type]
        bench.store.create_repository(())
        return bench

    def files(self, bench: Bench) -> list[str]:
        """Every file below the data directory."""
        return sorted(map(os.path.basename, files_below(Path(bench.store.path))))


class FramingTests(ChannelCase):
    """What is a request and what is not."""

    def test_whole_exchange(self) -> None:
        """Save, load, stat, list and remove on one connection."""
        bench = self.bench()
        connection = bench.connect()
        connection.send(request("POST", f"/data/{NAME}", BLOB))
        connection.send(request("GET", f"/data/{NAME}", Range="bytes=4-7"))
        connection.send(request("HEAD", f"/data/{NAME}"))
        connection.send(request("GET", "/data/"))
        connection.send(request("DELETE", f"/data/{NAME}"))
        connection.send(request("GET", f"/data/{NAME}"))
        self.assertEqual(connection.statuses(), [200, 206, 200, 200, 200, 404])
        self.assertFalse(connection.closed)
        self.assertIn(b"Content-Range: bytes 4-7/4000\r\n", connection.received)
        self.assertEqual([record.ending for record in bench.records], [Ending.DONE] * 5 + [Ending.REFUSED])

    def test_one_byte_at_a_time(self) -> None:
        """Requests cut at every byte mean the same."""
        bench = self.bench()
        connection = bench.connect()
        data = request("POST", f"/data/{NAME}", BLOB) + request("GET", f"/data/{NAME}")
        connection.send(*(data[i : i + 1] for i in range(len(data))))
        self.assertEqual(connection.statuses(), [200, 200])
        self.assertTrue(connection.received.endswith(BLOB))

    def test_pipelined(self) -> None:
        """Requests that come all at once are answered in order."""
        bench = self.bench()
        connection = bench.connect()
        connection.send(
            request("POST", f"/data/{NAME}", BLOB) + request("HEAD", f"/data/{NAME}") + request("GET", "/keys/") * 3
        )
        bench.clock.advance(0)
        self.assertEqual(connection.statuses(), [200] * 5)
        self.assertEqual(len(bench.records), 5)

    def test_chunked(self) -> None:
        """A chunked body, as restic before 0.9 sends it."""
        bench = self.bench()
        connection = bench.connect()
        connection.send(f"POST /data/{NAME} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for start in range(0, len(BLOB), 999):
            piece = BLOB[start : start + 999]
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n" + request("HEAD", f"/data/{NAME}"))
        self.assertEqual(connection.statuses(), [200, 200])

    def test_refused(self) -> None:
        """Whatever cannot be told apart for sure: 400 (431 for too much), closed, nothing after it is looked at."""
        after = request("DELETE", f"/data/{NAME}")
        start = f"POST /data/{NAME} HTTP/1.1\r\nHost: x\r\n"
        cases = {
            "no Host": (f"GET /data/{NAME} HTTP/1.1\r\n\r\n", 400),
            "two Hosts": (start + "Host: y\r\n\r\n", 400),
            "length and chunked": (start + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            "chunked and length": (start + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
            "two lengths": (start + "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
            "signed length": (start + "Content-Length: +3\r\n\r\n", 400),
            "listed length": (start + "Content-Length: 3, 3\r\n\r\n", 400),
            "empty length": (start + "Content-Length: \r\n\r\n", 400),
            "endless length": (start + f"Content-Length: {'9' * 5000}\r\n\r\n", 400),
            "gzip coding": (start + "Transfer-Encoding: gzip, chunked\r\n\r\n", 400),
            "identity coding": (start + "Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\n", 400),
            "folded": (start + "A: b\r\n c\r\n\r\n", 400),
            "folded first": (f"GET /data/{NAME} HTTP/1.1\r\n Host: x\r\n\r\n", 400),
            "space before colon": (start + "Content-Length : 3\r\n\r\n", 400),
            "no colon": (start + "nonsense\r\n\r\n", 400),
            "bare LF": (start + "A: b\nContent-Length: 3\r\n\r\n", 400),
            "NUL": (start + "A: \0\r\n\r\n", 400),
            "no version": (f"GET /data/{NAME}\r\nHost: x\r\n\r\n", 400),
            "version 2": (f"GET /data/{NAME} HTTP/2.0\r\nHost: x\r\n\r\n", 400),
            "odd method": (f"GE(T /data/{NAME} HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            "raw space in the path": ("GET /data/ x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            "chunked in 1.0": ("POST /config HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            "long line": (start + f"A: {'b' * 70000}\r\n\r\n", 431),
            "many headers": (start + "A: b\r\n" * 600 + "\r\n", 400),
        }
        for what, (head, status) in cases.items():
            bench = self.bench()
            connection = bench.ask(request("POST", f"/data/{NAME}", BLOB))
            connection.send(head.encode("latin-1") + after)
            connection.send(after)
            self.assertEqual(connection.statuses(), [200, status], what)
            self.assertTrue(connection.closed, what)
            self.assertIn(b"Connection: close\r\n", connection.received, what)
            self.assertEqual(self.files(bench), [NAME], what)
            self.assertEqual(len(bench.records), 2, what)

    def test_bad_chunk(self) -> None:
        """A chunk that is none: 400, closed, nothing stored, the rest is no request."""
        bench = self.bench()
        connection = bench.connect()
        connection.send(f"POST /data/{NAME} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.send(b"3\r\nabc\r\nxyz\r\n", request("GET", "/keys/"))
        self.assertEqual(connection.statuses(), [400])
        self.assertTrue(connection.closed)
        self.assertEqual(self.files(bench), [])
        self.assertEqual([record.status for record in bench.records], [400])

    def test_http_1_0(self) -> None:
        """HTTP/1.0 needs no Host and is closed after the answer."""
        connection = self.bench().ask(b"GET /keys/ HTTP/1.0\r\n\r\n")
        self.assertTrue(connection.received.endswith(b"\r\n\r\n[]"))
        self.assertTrue(connection.closed)

    def test_connection_close(self) -> None:
        """C{close} anywhere in C{Connection} is honoured."""
        connection = self.bench().ask(request("GET", "/keys/", Connection="te, close"))
        self.assertEqual(connection.statuses(), [200])
        self.assertTrue(connection.closed)

    def test_never_a_redirect(self) -> None:
        """Missing and doubled slashes are 404."""
        bench = self.bench()
        for path in ("/data", "//data/", "/data//", "/config/", "/a/b", "//", "/./keys/", "/keys/%2e%2e/", "/*"):
            connection = bench.ask(request("POST", path, b""))
            self.assertEqual(connection.statuses(), [404], path)

    def test_odd_queries(self) -> None:
        """A query of any bytes is no error of ours: nothing but create=true means anything."""
        bench = self.bench()
        for query in (
            b"%ff",
            b"%FF=%FE",
            b"=",
            b"&&;;",
            b"%",
            b"%zz",
            b"create",
            b"create=%ff",
            b"a=%00",
            b"?",
        ):
            connection = bench.ask(b"HEAD /data/" + NAME.encode() + b"?" + query + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual([404], connection.statuses(), query)
            connection.send(b"POST /alice/?" + query + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(2, len(connection.statuses()), query)
        self.assertEqual([], self.files(bench))

    def test_any_host(self) -> None:
        """The value of Host is never looked at."""
        for host in ("", "L3RtcC9zb2NrZXQ=", "é", "a b", "[::1]:x", "../.."):
            data = request("GET", "/keys/").replace(b"Host: x", b"Host: " + host.encode())
            self.assertEqual(self.bench().ask(data).statuses(), [200], host)

    def test_methods(self) -> None:
        """405 with Allow for what a path does not take, also for methods that nobody knows."""
        cases = {
            "/": b"POST",
            "/data/": b"GET",
            f"/data/{NAME}": b"GET, HEAD, POST, DELETE",
            "/config": b"GET, HEAD, POST, DELETE",
        }
        for path, allowed in cases.items():
            for method in ("PUT", "OPTIONS", "PATCH", "BREW", "TRACE"):
                connection = self.bench().ask(request(method, path))
                self.assertEqual(connection.statuses(), [405], (method, path))
                self.assertIn(b"Allow: " + allowed + b"\r\n", connection.received)
        self.assertEqual(self.bench().ask(request("HEAD", "/data/")).statuses(), [405])
        self.assertEqual(self.bench().ask(request("DELETE", "/")).statuses(), [405])


class EarlyAnswerTests(ChannelCase):
    """Answers that come before the end of the body."""

    def test_body_is_swallowed(self) -> None:
        """A refused body is read and dropped, is no request, and the connection goes on."""
        bench = self.bench(policy=Policy(append_only=True, private_repos=True))
        connection = bench.connect()
        smuggled = request("GET", "/keys/")
        connection.send(request("POST", "/config", b""))
        connection.send(f"POST /config HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled)}\r\n\r\n".encode())
        self.assertEqual(connection.statuses(), [403, 403])
        connection.send(smuggled)
        self.assertEqual(connection.statuses(), [403, 403])
        self.assertFalse(connection.closed)
        connection.send(request("GET", "/x/y"))
        self.assertEqual(connection.statuses(), [403, 403, 404])

    def test_too_much_to_swallow(self) -> None:
        """A stranger's body of more than 16 MiB: said so, half-closed, dropped, ended after the linger."""
        bench = self.bench(authentication=Nobody())
        connection = bench.ask(b"POST /config HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        self.assertEqual(connection.statuses(), [401])
        self.assertIn(b"Connection: close\r\n", connection.received)
        self.assertTrue(connection.transport.half_closed)
        connection.send(*[request("GET", "/keys/")] * 3)
        self.assertEqual(connection.statuses(), [401])
        bench.clock.advance(Closing.linger_s + 1)
        self.assertTrue(connection.transport.aborted)

    def test_chunked_too_much(self) -> None:
        """The same for a body whose length nobody told."""
        bench = self.bench(authentication=Nobody())
        connection = bench.ask(b"POST /config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        connection.send(*[chunk] * 16)
        self.assertFalse(connection.closed)
        connection.send(*[chunk] * 2)
        self.assertTrue(connection.transport.half_closed)

    def test_slow_swallow(self) -> None:
        """Swallowing ends after 30 s."""
        bench = self.bench(authentication=Nobody())
        connection = bench.ask(b"POST /config HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        self.assertFalse(connection.closed)
        bench.clock.advance(Exchange.swallow_timeout_s + 1)
        self.assertTrue(connection.transport.half_closed)

    def test_expect_refused(self) -> None:
        """A client that waits for 100 gets the refusal alone, and the connection ends."""
        bench = self.bench(authentication=Nobody())
        connection = bench.ask(b"POST /config HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        self.assertEqual(connection.statuses(), [401])
        self.assertTrue(connection.closed)

    def test_expect_accepted(self) -> None:
        """100 is sent when the route starts to read."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        head = request("POST", f"/data/{NAME}", BLOB, Expect="100-continue")[: -len(BLOB)]
        connection = bench.ask(head)
        self.assertEqual(connection.statuses(), [])
        pool.release()
        self.assertEqual(connection.statuses(), [100])
        connection.send(BLOB)
        pool.release(4)
        self.assertEqual(connection.statuses(), [100, 200])
        self.assertFalse(connection.closed)

    def test_waiting_body_is_bounded(self) -> None:
        """While the route thinks, reading is paused after a small bound; then all of it arrives."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        blob = os.urandom(300_000)
        name = hashlib.sha256(blob).hexdigest()
        connection = bench.ask(request("POST", f"/data/{name}", blob)[:100_000])
        self.assertEqual(connection.transport.producerState, "paused")
        pool.release(2)
        self.assertEqual(connection.transport.producerState, "producing")
        connection.send(request("POST", f"/data/{name}", blob)[100_000:])
        pool.release(4)
        self.assertEqual(connection.statuses(), [200])


class EndTests(ChannelCase):
    """Lost clients, time-outs, one record each."""

    def test_lost_in_the_body(self) -> None:
        """Nothing is left, and the record says lost."""
        for pool in (None, HeldPool()):
            bench = self.bench(pool=pool)
            connection = bench.ask(request("POST", f"/data/{NAME}", BLOB)[:-1])
            connection.lose()
            if isinstance(pool, HeldPool):
                pool.release(6)
            self.assertEqual(self.files(bench), [])
            self.assertEqual([(r.ending, r.status) for r in bench.records], [(Ending.LOST, 499)])

    def test_lost_while_committing(self) -> None:
        """A commit that runs when the client goes away ends whole or not at all."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        connection = bench.ask(request("POST", f"/data/{NAME}", BLOB))
        pool.release(2)
        connection.lose()
        pool.release(6)
        self.assertIn(self.files(bench), ([], [NAME]))
        self.assertEqual(len(bench.records), 1)

    def test_no_password_in_the_log(self) -> None:
        """The absolute form may have one in it, which is nobody's business."""
        bench = self.bench()
        bench.ask(b"GET http://alice:secret@x/data/ HTTP/1.1\r\nHost: x\r\n\r\n").lose()
        (record,) = bench.records
        self.assertEqual((b"http://x/data/", 200), (record.uri, record.status))
        for target, logged in (
            (b"http://user:pa/ss@h/x", b"http://h/x"),
            (b"http://user:pa?ss@h/x", b"http://h/x"),
            (b"//user:pa/ss@h/x", b"//h/x"),
            (b"user:pass@h", b"h"),
            (b"http:/user:pass@h/", b"h/"),
            (b"rest:http://user:pass@h/", b"rest:http://h/"),
            (b"/rest:http://user:pass@h/x/config", b"/rest:http://h/x/config"),
            (b"/alice@example.org/config", b"/alice@example.org/config"),
        ):
            bench.ask(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nReferer: http://user:pass@h/x\r\n\r\n").lose()
            record = bench.records[-1]
            self.assertEqual((logged, b"http://h/x"), (record.uri, record.referer), target)

    def test_idle(self) -> None:
        """An idle connection is closed, but not before restic's 90 s."""
        bench = self.bench()
        connection = bench.connect()
        bench.clock.advance(100)
        self.assertFalse(connection.closed)
        bench.clock.advance(IDLE_TIMEOUT_S)
        self.assertTrue(connection.closed)

    def test_silent_body(self) -> None:
        """A body that stalls is given up after 310 s and not before: restic itself waits for five minutes."""
        chunked = b"POST /config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for head, more in (
            (chunked, b"1\r\nx\r\n"),
            (chunked + b"5\r\nab", b"c"),
            (chunked + b"0\r\nA: b", b"c"),
            (request("POST", "/config", Content_Length="100"), b"x"),
        ):
            bench = self.bench()
            connection = bench.ask(head)
            for _ in range(3):
                bench.clock.advance(309)
                self.assertFalse(connection.closed, head)
                connection.send(more)
            bench.clock.advance(309)
            self.assertFalse(connection.closed, head)
            bench.clock.advance(2)
            self.assertTrue(connection.closed, head)
            connection.lose()
            self.assertEqual(self.files(bench), [], head)

    def test_slow_header(self) -> None:
        """A header must come to its end, however busily its bytes drip."""
        bench = self.bench()
        connection = bench.connect()
        connection.send(b"GET / HTTP/1.1\r\n")
        for _ in range(70):
            bench.clock.advance(1)
            connection.send(b"A: b\r\n")
        self.assertTrue(connection.closed)

    def test_no_timer_while_the_disk_works(self) -> None:
        """A request that waits for the disk is not cut by the idle timer."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        connection = bench.ask(request("GET", "/keys/"))
        bench.clock.advance(10 * IDLE_TIMEOUT_S)
        self.assertFalse(connection.closed)
        pool.release(2)
        self.assertEqual(connection.statuses(), [200])
        bench.clock.advance(IDLE_TIMEOUT_S + 1)
        self.assertTrue(connection.closed)

    def test_drain(self) -> None:
        """At the stop idle connections close soon, others after their answer, and the wait ends with the last."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        idle, busy = bench.connect(), bench.ask(request("GET", "/keys/"))
        drained = bench.site.drain()
        bench.clock.advance(LAST_REQUEST_S / 2)
        self.assertFalse(idle.closed)
        bench.clock.advance(LAST_REQUEST_S / 2)
        self.assertTrue(idle.closed)
        self.assertFalse(busy.closed)
        pool.release(2)
        self.assertEqual(busy.statuses(), [200])
        self.assertIn(b"Connection: close\r\n", busy.received)
        self.assertTrue(busy.closed)
        self.assertNoResult(drained)
        idle.lose()
        busy.lose()
        self.successResultOf(drained)

    def test_last_request(self) -> None:
        """A client that is about to send a request when the server stops gets its answer, and is told that it was the last."""
        bench = self.bench()
        before, drained = bench.connect(), bench.site.drain()
        late = bench.connect()
        for connection in (before, late):
            connection.send(request("POST", "/?create=true", b""))
            self.assertEqual(connection.statuses(), [200])
            self.assertIn(b"Connection: close\r\n", connection.received)
            self.assertTrue(connection.closed)
            self.assertNoResult(drained)
        before.lose()
        late.lose()
        self.successResultOf(drained)
        self.assertEqual([], bench.clock.getDelayedCalls())

    def test_failure_is_500_once(self) -> None:
        """A fault of the server: 500 without details, logged once with its cause."""
        bench = self.bench()

        def broken(*_: object) -> int:
            raise PermissionError(13, "Permission denied", "/secret/path")

        self.patch(bench.store, "size_of", broken)
        connection = bench.ask(request("HEAD", "/config"))
        self.assertEqual(connection.statuses(), [500])
        self.assertNotIn(b"secret", connection.received)
        self.assertEqual([record.ending for record in bench.records], [Ending.FAILED])


class HalfClosedTests(ChannelCase):
    """Clients that close their half of the connection when they have sent their request."""

    def test_waits_for_the_answer(self) -> None:
        """It is answered, and nothing else is taken."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        connection = bench.ask(request("GET", "/keys/"))
        connection.channel.readConnectionLost()
        self.assertFalse(connection.closed)
        pool.release(2)
        self.assertEqual(connection.statuses(), [200])
        self.assertIn(b"Connection: close\r\n", connection.received)
        self.assertTrue(connection.closed)

    def test_in_the_body(self) -> None:
        """A body that will never be whole: closed, and nothing is left."""
        bench = self.bench()
        connection = bench.ask(request("POST", f"/data/{NAME}", BLOB)[:-1])
        connection.channel.readConnectionLost()
        self.assertTrue(connection.closed)
        connection.lose()
        self.assertEqual(self.files(bench), [])
        self.assertEqual([record.ending for record in bench.records], [Ending.LOST])

    def test_idle(self) -> None:
        """Between requests it is the end."""
        connection = self.bench().ask(request("GET", "/keys/"))
        connection.channel.readConnectionLost()
        self.assertTrue(connection.closed)

    def test_requests_that_had_come(self) -> None:
        """All that came before are answered, and half a request behind them is none."""
        for behind in (b"", b"GET /keys/ HT", request("POST", f"/data/{NAME}", BLOB)[:-1]):
            pool = HeldPool()
            bench = self.bench(pool=pool)
            connection = bench.ask(request("GET", "/keys/") * 3 + behind)
            connection.channel.readConnectionLost()
            self.assertFalse(connection.closed)
            pool.release(9)
            self.assertEqual(connection.statuses(), [200] * 3, behind)
            self.assertTrue(connection.closed)
            connection.lose()
            self.assertEqual(self.files(bench), [])

    def test_still_reading(self) -> None:
        """A slow client that has said all it wants gets the rest of its answer, and is not cut off at once."""
        bench = self.bench()
        connection = bench.ask(request("GET", "/keys/"))
        connection.channel.readConnectionLost()
        bench.clock.advance(10 * Closing.close_timeout_s)
        self.assertEqual((True, False), (connection.closed, connection.transport.aborted))
        bench.clock.advance(IDLE_TIMEOUT_S)
        self.assertTrue(connection.transport.aborted)


class DescriptorTests(ChannelCase):
    """Too many descriptors: of files, and of connections."""

    def test_files(self) -> None:
        """Whatever cannot open a file is 503, one line in the log, and never a missing object or another fault."""
        bench = self.bench()
        bench.ask(request("POST", f"/data/{NAME}", BLOB))
        # As it is at a server that has marked its volume.
        bench.store.volume.mark()
        bench.store.volume._stamp = None
        other = hashlib.sha256(b"other").hexdigest()
        with capturedLogs() as events:
            for ask in (
                request("GET", f"/data/{NAME}"),
                request("POST", f"/data/{other}", b"other"),
                request("GET", "/data/"),
                request("DELETE", f"/data/{NAME}"),
            ):
                connection = bench.connect()
                with no_descriptors():
                    connection.send(ask)
                self.assertEqual([503], connection.statuses(), ask)
                self.assertIn(b"too many open files: try again later", connection.received)
        self.assertEqual(4, len([event for event in events if "out of descriptors" in formatEvent(event)]))
        self.assertEqual([], [event for event in events if "volume" in formatEvent(event)])
        self.assertEqual([200], bench.ask(request("HEAD", f"/data/{NAME}")).statuses())

    def crowded(self, bench: Bench, descriptor: int) -> Connection:
        """A connection with this descriptor."""
        self.patch(MemoryTransport, "fileno", lambda transport: descriptor)
        return bench.connect()

    def test_crowded(self) -> None:
        """The first request of a connection that is one too many is 503, and the last; it may not wait long with it."""
        bench = self.bench(options=CROWDED)
        self.assertEqual([404], self.crowded_answer(bench, 99))
        for descriptor in (100, 109):
            connection = self.crowded(bench, descriptor)
            connection.send(request("POST", f"/data/{NAME}", BLOB) + request("HEAD", "/config"))
            self.assertEqual([503], connection.statuses())
            self.assertIn(b"503 the server has too many connections: try again later\r\n", connection.received)
            self.assertIn(b"Connection: close\r\n", connection.received)
            self.assertTrue(connection.closed)
            self.assertEqual((503, b"POST"), (bench.records[-1].status, bench.records[-1].method))
        self.assertEqual([], self.files(bench))
        for data in (b"", b"GET / HTTP"):
            connection = self.crowded(bench, 100)
            connection.send(data)
            bench.clock.advance(StreamingChannel.crowded_timeout_s)
            self.assertTrue(connection.closed)

    def crowded_answer(self, bench: Bench, descriptor: int) -> list[int]:
        """What is said to a request."""
        connection = self.crowded(bench, descriptor)
        connection.send(request("HEAD", "/config"))
        return connection.statuses()

    def test_full(self) -> None:
        """Where there is no room to wait for its request, a connection is told so at once."""
        bench = self.bench(options=CROWDED)
        connection = self.crowded(bench, 110)
        self.assertEqual([503], connection.statuses())
        self.assertTrue(connection.transport.disconnecting)
        connection.send(request("HEAD", "/config"))
        self.assertEqual([503], connection.statuses())
        connection.lose()
        self.assertEqual(set(), bench.site.channels)


class PipelineTests(ChannelCase):
    """Requests that come before the answer to the one before."""

    def test_bounded(self) -> None:
        """What waits is little: then reading is paused, and goes on behind the answer."""
        pool = HeldPool()
        bench = self.bench(pool=pool)
        connection = bench.ask(request("GET", "/keys/") * 1000)
        self.assertEqual("paused", connection.transport.producerState)
        pool.release(3000)
        self.assertEqual("producing", connection.transport.producerState)
        self.assertEqual([200] * 1000, connection.statuses())

    def test_client_that_takes_no_answer(self) -> None:
        """No request is begun while answers pile up, and the rest comes behind them."""
        bench = self.bench()
        connection = bench.connect()
        connection.channel.pauseProducing()
        connection.send(request("HEAD", "/config") * 3)
        self.assertEqual(([], "paused"), (connection.statuses(), connection.transport.producerState))
        connection.channel.resumeProducing()
        self.assertEqual(([404] * 3, "producing"), (connection.statuses(), connection.transport.producerState))

    def test_begin_of_a_head_behind_a_request(self) -> None:
        """It has its own deadline from then on."""
        bench = self.bench()
        connection = bench.ask(request("GET", "/keys/") + b"GET /keys/ HT")
        self.assertEqual([200], connection.statuses())
        bench.clock.advance(HEADER_TIMEOUT_S + 1)
        self.assertTrue(connection.closed)

    def test_other_fields_each_time(self) -> None:
        """What is remembered of the fields of the request before is never taken for another's."""
        bench = self.bench()
        connection = bench.ask(request("POST", f"/data/{NAME}", BLOB))
        for wanted, status, body in (
            ({"Range": "bytes=0-1"}, 206, BLOB[:2]),
            ({"Range": "bytes=4-5"}, 206, BLOB[4:6]),
            ({"Range": "bytes=4-5"}, 206, BLOB[4:6]),
            ({}, 200, BLOB),
        ):
            connection.transport.clear()
            connection.send(request("GET", f"/data/{NAME}", **wanted))
            self.assertEqual([status], connection.statuses())
            self.assertTrue(connection.received.endswith(b"\r\n\r\n" + body))
        connection.transport.clear()
        connection.send(request("GET", "/keys/", Connection="close"))
        self.assertTrue(connection.closed)
