"""
The proxy with faults before a real engine: what each fault does to a request, what the engine has done, and what is logged.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import socket
import ssl
import time
from collections.abc import Callable

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import S3Store
from twisted.trial.unittest import SynchronousTestCase

from ..support import faulty_engine as faults
from ..support.certificates import make_certificate
from ..support.client import Reply, random_bytes
from ..support.engines import shared_seaweedfs, signed_headers
from ..support.faulty_engine import (
    Answer,
    Cut,
    CutUpload,
    Exchange,
    Fault,
    FaultyEngine,
    FlippedBit,
    Ignored,
    Late,
    Refused,
    ShortBody,
    SlowBody,
    WithoutToken,
)
from ..support.processes import process_test
from ..support.scratch import Cleans, scratch_directory
from ..support.waiting import wait_until

MIB = 1 << 20
#: Long enough to be told from an answer at once on a busy machine.
WAIT_S = 0.5
NOBODY_WAITS_S = 600.0


@process_test
class FaultyEngineTests(SynchronousTestCase):
    """SeaweedFS behind it."""

    #: What the proxy is made with.
    page_size: int | None = None

    def setUp(self) -> None:
        self.engine = shared_seaweedfs()
        self.bucket = self.engine.new_bucket(self)
        self.faulty = FaultyEngine(self, self.engine, page_size=self.page_size)

    def store(self, faulty: FaultyEngine | None = None, **options: str) -> S3Store:
        """A client of the proxy, which tries nothing again."""
        variables = {name.lower(): value for name, value in (faulty or self.faulty).environment().items()}
        return S3Store(
            self.bucket,
            config=variables,  # type: ignore[arg-type]
            client_options={"allow_http": True, **options},  # type: ignore[arg-type]
            retry_config={"max_retries": 0},
        )

    def ask(self, method: str, key: str = "", query: str = "", body: bytes = b"", **headers: str) -> Reply:
        """A request to the proxy."""
        path = f"/{self.bucket}/{key}" if key else f"/{self.bucket}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.engine.request(method, path, query, body, named, self.faulty.port)

    def stored(self, key: str) -> bytes | None:
        """What the engine has."""
        reply = self.engine.request("GET", f"/{self.bucket}/{key}")
        return reply.body if reply.status == 200 else None

    def in_thread(self, job: Callable[[], Reply]) -> concurrent.futures.Future[Reply]:
        """Begin something that waits."""
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self.addCleanup(pool.shutdown)
        return pool.submit(job)


class PassingTests(FaultyEngineTests):
    """Without faults."""

    def test_unchanged(self) -> None:
        """
        A client that has the proxy's environment can do everything: the engine takes signatures for the proxy's address. Each
        request is in the log.
        """
        store = self.store()
        body = random_bytes(1, 3 * MIB + 17)
        obstore.put(store, "data/ab/c d+é", body, mode="create", use_multipart=False)
        self.assertRaises(
            AlreadyExistsError, obstore.put, store, "data/ab/c d+é", b"", mode="create", use_multipart=False
        )
        self.assertEqual(body, bytes(obstore.get(store, "data/ab/c d+é").bytes()))
        self.assertEqual(body[5:9], bytes(obstore.get_range(store, "data/ab/c d+é", start=5, end=9)))
        self.assertEqual(len(body), obstore.head(store, "data/ab/c d+é")["size"])
        self.assertEqual(["data/ab/c d+é"], [each["path"] for page in obstore.list(store) for each in page])
        self.assertEqual(body, self.stored("data/ab/c%20d%2B%C3%A9"))
        obstore.delete(store, "data/ab/c d+é")
        self.assertEqual([], self.engine.keys(self.bucket))
        summary = [(seen.request.kind, seen.engine_status, seen.status) for seen in self.faulty.log]
        # obstore deletes with a POST of names.
        expected = [("PUT", 200), ("PUT", 412), ("GET", 200), ("GET", 206), ("HEAD", 200), ("LIST", 200), ("POST", 200)]
        self.assertEqual([(kind, status, status) for kind, status in expected], summary)
        first = self.faulty.log[0].request
        self.assertEqual((self.bucket, "data/ab/c d+é", len(body)), (first.bucket, first.key, first.body_bytes))
        self.assertEqual("*", first.headers["if-none-match"])
        self.assertEqual(2, self.faulty.count("PUT", "^data/"))
        self.assertEqual(0, self.faulty.count("PUT", "^index/"))
        self.faulty.forget()
        self.assertEqual([], self.faulty.log)

    def test_connection_kept(self) -> None:
        """Several requests can come on one connection, and a client that goes away does no harm."""
        connection = http.client.HTTPConnection("127.0.0.1", self.faulty.port, timeout=60)
        for _ in range(3):
            connection.request("GET", f"/{self.bucket}/x")
            reply = connection.getresponse()
            self.assertEqual(403, reply.status)
            reply.read()
        connection.close()
        self.assertEqual(200, self.ask("PUT", "x", body=b"x").status)

    def test_many_at_once(self) -> None:
        """Requests do not wait for one another."""
        store = self.store()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(obstore.put, store, f"{n}", b"x", use_multipart=False) for n in range(40)]:
                future.result()
        self.assertEqual(40, len(self.engine.keys(self.bucket)))
        self.assertEqual(40, self.faulty.count("PUT"))

    def test_expect_continue(self) -> None:
        """A client that asks before it sends a body is told to send it, once."""
        signed = signed_headers(
            "PUT",
            f"{self.faulty.endpoint}/{self.bucket}/x",
            {},
            self.engine.credentials,
            "UNSIGNED-PAYLOAD",
        )
        lines = [
            f"PUT /{self.bucket}/x HTTP/1.1",
            *(f"{name}: {value}" for name, value in signed.items()),
            "Content-Length: 5",
            "Expect: 100-continue",
        ]
        with socket.create_connection(("127.0.0.1", self.faulty.port), 60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            self.assertEqual(b"HTTP/1.1 100 Continue\r\n\r\n", connection.recv(1000))
            connection.sendall(b"hello")
            self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertEqual(b"hello", self.stored("x"))

    def test_tls(self) -> None:
        """It can speak TLS to the client."""
        certificate = make_certificate(scratch_directory(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        faulty = FaultyEngine(self, self.engine, tls=context)
        store = self.store(faulty, root_certificate=certificate.authority.read_text())
        body = random_bytes(2, MIB)
        obstore.put(store, "x", body, use_multipart=False)
        faulty.when(ShortBody(1000), "GET")
        self.assertRaises(GenericError, lambda: obstore.get(store, "x").bytes())
        self.assertEqual(body, bytes(obstore.get(store, "x").bytes()))
        self.assertTrue(faulty.endpoint.startswith("https://"))
        # A handshake that never comes does not keep the proxy from its end.
        self.addCleanup(socket.create_connection(("127.0.0.1", faulty.port)).close)

    def test_mistake_in_a_fault(self) -> None:
        """It fails the test."""

        class Wrong:
            def apply(self, exchange: Exchange) -> None:
                raise ValueError("a mistake")

        class Test:
            def addCleanup(self, *_: object, **__: object) -> None:
                pass

        faulty = FaultyEngine(Test(), self.engine)
        faulty.when(Wrong())
        self.assertRaises(http.client.RemoteDisconnected, self.engine.request, "GET", "/", port=faulty.port)
        error = self.assertRaises(AssertionError, faulty.close)
        self.assertIn("a mistake", str(error))
        faulty.close()


class RuleTests(FaultyEngineTests):
    """Which requests get a fault."""

    def statuses(self, *requests: tuple[str, str]) -> list[int]:
        """The statuses of requests, by method and key."""
        return [self.ask(method, key).status for method, key in requests]

    def test_count(self) -> None:
        """So many requests, after so many that go through; then no more."""
        rule = self.faulty.when(faults.SLOW_DOWN, "HEAD", times=2, skip=1)
        self.assertEqual([404, 503, 503, 404], self.statuses(*[("HEAD", "x")] * 4))
        self.assertEqual(2, rule.used)

    def test_kind_and_key(self) -> None:
        """By kind and by key; a list is no GET."""
        self.faulty.when(faults.SLOW_DOWN, "GET", "^index/", times=None)
        self.assertEqual(
            [404, 503, 404, 503],
            self.statuses(("GET", "data/x"), ("GET", "index/x"), ("HEAD", "index/x"), ("GET", "index/y")),
        )
        self.assertEqual(200, self.ask("GET", query="list-type=2").status)
        self.faulty.when(faults.ACCESS_DENIED, "LIST")
        self.assertEqual(403, self.ask("GET", query="list-type=2").status)

    def test_condition(self) -> None:
        """By anything else."""
        self.faulty.when(faults.SLOW_DOWN, matching=lambda request: "range" in request.headers, times=None)
        self.assertEqual(404, self.ask("GET", "x").status)
        self.assertEqual(503, self.ask("GET", "x", range="bytes=0-1").status)

    def test_first_counts(self) -> None:
        """The first rule that takes a request counts, until it has done all it should; then the next one."""
        self.faulty.when(faults.SLOW_DOWN)
        self.faulty.when(faults.ACCESS_DENIED)
        self.assertEqual([503, 403, 404], self.statuses(*[("GET", "x")] * 3))

    def test_forgotten(self) -> None:
        """Rules can be forgotten."""
        self.faulty.when(faults.SLOW_DOWN, times=None)
        self.assertEqual([503], self.statuses(("GET", "x")))
        self.faulty.behave()
        self.assertEqual([404], self.statuses(("GET", "x")))


class AnswerTests(FaultyEngineTests):
    """Faults that are another answer."""

    def test_not_stored(self) -> None:
        """The engine never sees the request; the client gets status and code."""
        cases = {
            faults.NOT_STORED_500: (500, b"InternalError"),
            faults.SLOW_DOWN: (503, b"SlowDown"),
            faults.CONFLICT: (409, b"ConditionalRequestConflict"),
            faults.ACCESS_DENIED: (403, b"AccessDenied"),
            faults.INVALID_KEY: (403, b"InvalidAccessKeyId"),
            faults.WRONG_CLOCK: (403, b"RequestTimeTooSkewed"),
            faults.NO_BUCKET: (404, b"NoSuchBucket"),
            faults.FULL_AS_SEAWEEDFS: (500, b"InternalError"),
            faults.FULL_507: (507, b"InsufficientStorage"),
            faults.FULL_AS_CEPH: (403, b"QuotaExceeded"),
        }
        for fault, (status, code) in cases.items():
            self.faulty.when(fault, "PUT")
            reply = self.ask("PUT", "x", body=bytes(MIB))
            self.assertEqual(status, reply.status)
            self.assertIn(b"<Code>%s</Code>" % code, reply.body)
            seen = self.faulty.log[-1]
            self.assertEqual((fault, None, status), (seen.fault, seen.engine_status, seen.status))
        self.assertIsNone(self.stored("x"))
        self.faulty.when(faults.SLOW_DOWN)
        self.assertEqual("1", self.ask("PUT", "x").headers["Retry-After"])

    def test_stored(self) -> None:
        """The engine does what is asked, and the client is told otherwise."""
        cases = {
            faults.STORED_THEN_500: (500, b"InternalError"),
            faults.STORED_THEN_412: (412, b"PreconditionFailed"),
            faults.STORED_THEN_404: (404, b"NoSuchKey"),
        }
        for number, (fault, (status, code)) in enumerate(cases.items()):
            self.faulty.when(fault, "PUT")
            reply = self.ask("PUT", f"{number}", body=b"hello", if_none_match="*")
            self.assertEqual(status, reply.status)
            self.assertIn(b"<Code>%s</Code>" % code, reply.body)
            self.assertEqual(b"hello", self.stored(f"{number}"))
            seen = self.faulty.log[-1]
            self.assertEqual((200, status), (seen.engine_status, seen.status))
        self.faulty.when(faults.STORED_THEN_500, "DELETE")
        self.assertEqual(500, self.ask("DELETE", "0").status)
        self.assertIsNone(self.stored("0"))

    def test_head(self) -> None:
        """An error for a HEAD has no body, and the connection can be used afterwards."""
        connection = http.client.HTTPConnection("127.0.0.1", self.faulty.port, timeout=60)
        self.addCleanup(connection.close)
        self.faulty.when(faults.SLOW_DOWN, times=2)
        for _ in range(2):
            connection.request("HEAD", f"/{self.bucket}/x")
            reply = connection.getresponse()
            self.assertEqual((503, b""), (reply.status, reply.read()))

    def test_stored_then_tried_again(self) -> None:
        """obstore, which tries again, takes its own object for another's after a 500."""
        store = S3Store(
            self.bucket,
            config={name.lower(): value for name, value in self.faulty.environment().items()},  # type: ignore[arg-type]
            client_options={"allow_http": True},
        )
        self.faulty.when(faults.STORED_THEN_500, "PUT")
        self.assertRaises(AlreadyExistsError, obstore.put, store, "x", b"x", mode="create", use_multipart=False)
        self.assertEqual([500, 412], [seen.status for seen in self.faulty.seen("PUT")])
        self.assertEqual(b"x", self.stored("x"))

    def test_header_ignored(self) -> None:
        """The engine does not see a condition or a range, and takes the request nevertheless."""
        self.assertEqual(200, self.ask("PUT", "x", body=b"first").status)
        self.faulty.when(Ignored("if-none-match"), "PUT")
        self.assertEqual(200, self.ask("PUT", "x", body=b"second", if_none_match="*").status)
        self.assertEqual(b"second", self.stored("x"))
        self.assertEqual(412, self.ask("PUT", "x", body=b"third", if_none_match="*").status)
        self.faulty.when(Ignored("range"), "GET")
        reply = self.ask("GET", "x", range="bytes=2-3")
        self.assertEqual((200, b"second"), (reply.status, reply.body))
        reply = self.ask("GET", "x", range="bytes=2-3")
        self.assertEqual((206, b"co"), (reply.status, reply.body))

    def test_own_fault(self) -> None:
        """A test may have a fault of its own."""

        class Teapot:
            def apply(self, exchange: Exchange) -> None:
                answer = exchange.ask_engine()
                body = answer.whole()
                exchange.tell(Answer(418, b"HTTP/1.1 418 Teapot\r\nContent-Length: 3\r\n\r\n", iter([body[:3]]), 3))

        self.ask("PUT", "x", body=b"hello")
        self.faulty.when(Teapot(), "GET")
        reply = self.ask("GET", "x")
        self.assertEqual((418, b"hel"), (reply.status, reply.body))


class BrokenTests(FaultyEngineTests):
    """Connections that end, and bodies that are not what was stored."""

    def test_cut(self) -> None:
        """The connection ends without an answer, and the object is stored or not."""
        cases: dict[Fault, bytes | None] = {
            faults.STORED_THEN_CUT: b"hello",
            faults.NOT_STORED_CUT: None,
            Cut(done=True, by_reset=True): b"hello",
            Cut(done=False, by_reset=True): None,
        }
        for number, (fault, expected) in enumerate(cases.items()):
            self.faulty.when(fault, "PUT")
            error = http.client.RemoteDisconnected if number < 2 else ConnectionResetError
            self.assertRaises(error, self.ask, "PUT", f"{number}", body=b"hello")
            self.assertEqual(expected, self.stored(f"{number}"))
            self.assertIsNone(self.faulty.log[-1].status)
            self.assertEqual(200 if expected else None, self.faulty.log[-1].engine_status)

    def test_cut_upload(self) -> None:
        """An upload that ends in the middle leaves nothing in the engine."""
        self.faulty.when(CutUpload(2 * MIB), "PUT")
        self.assertRaises(ConnectionError, self.ask, "PUT", "x", body=bytes(8 * MIB))
        self.assertIsNone(self.stored("x"))
        self.assertEqual([], self.engine.keys(self.bucket))

    def test_short_body(self) -> None:
        """The body ends early after a head that promises all of it."""
        body = random_bytes(3, MIB)
        self.ask("PUT", "x", body=body)
        for keep_bytes in (None, 0, 1000, MIB - 1):
            self.faulty.when(ShortBody(keep_bytes), "GET")
            error = self.assertRaises(http.client.IncompleteRead, self.ask, "GET", "x")
            expected = MIB // 2 if keep_bytes is None else keep_bytes
            self.assertEqual((body[:expected], MIB - expected), (error.partial, error.expected))
        self.faulty.when(ShortBody(), "GET")
        self.assertRaises(GenericError, lambda: obstore.get(self.store(), "x").bytes())

    def test_flipped_bit(self) -> None:
        """One bit of the body is wrong, where the test wants it."""
        body = random_bytes(4, 100_000)
        self.ask("PUT", "x", body=body)
        for at in (0, 5000, -1):
            self.faulty.when(FlippedBit(at), "GET")
            reply = self.ask("GET", "x")
            self.assertEqual((200, len(body)), (reply.status, len(reply.body)))
            different = [place for place, pair in enumerate(zip(body, reply.body, strict=True)) if pair[0] != pair[1]]
            self.assertEqual([at % len(body)], different)
            self.assertEqual(1, (body[at] ^ reply.body[at]).bit_count())
        self.assertEqual(body, self.stored("x"))

    def test_connections_refused(self) -> None:
        """It can be as if the engine did not run, and be there again at the same port."""
        endpoint = self.faulty.endpoint
        kept = socket.create_connection(("127.0.0.1", self.faulty.port), 60)
        self.addCleanup(kept.close)
        # The connection is not only in the queue.
        kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(kept.recv(1000).startswith(b"HTTP/1.1 403"))
        self.faulty.refuse_connections()
        self.assertRaises(ConnectionRefusedError, self.ask, "GET", "x")
        while kept.recv(1000):
            pass
        self.faulty.accept_connections()
        self.assertEqual(endpoint, self.faulty.endpoint)
        self.assertEqual(404, self.ask("GET", "x").status)


class SlowTests(FaultyEngineTests):
    """Waiting."""

    def took_s(self, job: Callable[[], object]) -> float:
        """How long something takes."""
        begun = time.monotonic()
        job()
        return time.monotonic() - begun

    def test_late(self) -> None:
        """The engine does at once what is asked, and the answer comes late."""
        self.faulty.when(Late(NOBODY_WAITS_S), "PUT")
        self.assertRaises(
            GenericError, obstore.put, self.store(timeout="2s"), "x", b"hello", mode="create", use_multipart=False
        )
        self.assertEqual(b"hello", self.stored("x"))
        self.faulty.when(Late(WAIT_S), "GET")
        self.assertGreaterEqual(self.took_s(lambda: self.assertEqual(b"hello", self.ask("GET", "x").body)), WAIT_S)

    def test_asked_late(self) -> None:
        """The engine does late what is asked: after the client has done something else."""
        self.faulty.when(Late(WAIT_S, asked_late=True), "PUT")
        waiting = self.in_thread(lambda: self.ask("PUT", "x", body=b"late", if_none_match="*"))
        wait_until(lambda: self.faulty.count("PUT") == 1)
        self.assertEqual(200, self.ask("PUT", "x", body=b"quick", if_none_match="*").status)
        self.assertEqual(412, waiting.result().status)
        self.assertEqual(b"quick", self.stored("x"))

    def test_slow_body(self) -> None:
        """The body stops in the middle, and goes on."""
        body = random_bytes(5, MIB)
        self.ask("PUT", "x", body=body)
        self.faulty.when(SlowBody(100_000, WAIT_S), "GET")
        self.assertGreaterEqual(self.took_s(lambda: self.assertEqual(body, self.ask("GET", "x").body)), WAIT_S)

    def test_stopped_body(self) -> None:
        """A client with a time limit gives up."""
        self.ask("PUT", "x", body=bytes(MIB))
        self.faulty.when(SlowBody(100_000, NOBODY_WAITS_S), "GET")
        store = self.store(timeout="2s")
        self.assertRaises(GenericError, lambda: obstore.get(store, "x").bytes())

    def test_stops_answering(self) -> None:
        """It can stop answering, the engine is not asked meanwhile, and what has waited goes on later."""
        self.faulty.stop_answering()
        waiting = self.in_thread(lambda: self.ask("PUT", "x", body=b"hello"))
        wait_until(lambda: self.faulty.count("PUT") == 1)
        self.assertRaises(GenericError, obstore.get, self.store(timeout="1s"), "x")
        self.assertFalse(waiting.done())
        self.assertIsNone(self.stored("x"))
        self.faulty.go_on()
        self.assertEqual(200, waiting.result().status)
        self.assertEqual(b"hello", self.stored("x"))

    def test_ends_while_it_waits(self) -> None:
        """The end of the proxy does not wait for anything, and breaks what waits."""
        ended: list[Callable[[], object]] = []

        class Test:
            def addCleanup(self, f: Callable[..., object], *_: object, **__: object) -> None:
                ended.append(f)

        test: Cleans = Test()
        faulty = FaultyEngine(test, self.engine)
        faulty.when(Late(NOBODY_WAITS_S), "GET")
        waiting = self.in_thread(lambda: self.engine.request("GET", f"/{self.bucket}/x", port=faulty.port))
        wait_until(lambda: faulty.count("GET") == 1 and faulty.log[0].engine_status == 404)
        begun = time.monotonic()
        ended[0]()
        self.assertRaises(ConnectionError, waiting.result)
        self.assertLess(time.monotonic() - begun, 30)


class ListTests(FaultyEngineTests):
    """Errors late in a list: ten objects, three a page."""

    page_size = 3
    keys = [f"k/{number}" for number in range(10)]

    def setUp(self) -> None:
        super().setUp()
        for key in self.keys:
            self.engine.request("PUT", f"/{self.bucket}/{key}", body=b"x")

    def listed(self) -> list[str]:
        """The keys as obstore lists them."""
        return [each["path"] for page in obstore.list(self.store(), "k") for each in page]

    def test_pages(self) -> None:
        """The pages are as small as the test wants, and their numbers are known."""
        self.assertEqual(self.keys, self.listed())
        self.assertEqual([1, 2, 3, 4], [seen.request.page for seen in self.faulty.seen("LIST")])
        self.faulty.forget()
        self.assertEqual(self.keys, self.listed())
        self.assertEqual([1, 2, 3, 4], [seen.request.page for seen in self.faulty.seen("LIST")])

    def test_start_after(self) -> None:
        """A client that asks for the next page by the last key gets pages with numbers too."""
        self.assertIn(b"<Key>k/2</Key>", self.ask("GET", query="list-type=2&prefix=k%2F").body)
        reply = self.ask("GET", query="list-type=2&prefix=k%2F&start-after=k%2F2")
        self.assertIn(b"<Key>k/3</Key>", reply.body)
        self.assertEqual([1, 2], [seen.request.page for seen in self.faulty.seen("LIST")])

    def test_error(self) -> None:
        """A page is an error, also for a client that tries again."""
        self.faulty.when(faults.NOT_STORED_500, "LIST", page=3, times=None)
        self.assertRaises(GenericError, self.listed)
        self.assertEqual([200, 200, 500], [seen.status for seen in self.faulty.seen("LIST")])

    def test_cut(self) -> None:
        """A page is cut, before it or in it."""
        for fault in (faults.STORED_THEN_CUT, ShortBody()):
            self.faulty.when(fault, "LIST", page=2)
            self.assertRaises(GenericError, self.listed)
        self.assertEqual(self.keys, self.listed())

    def test_error_with_200(self) -> None:
        """A page is an error with status 200. obstore takes it for the end of the list, which is why the server must not."""
        self.faulty.when(faults.ERROR_WITH_200, "LIST", page=2)
        self.assertEqual(self.keys[:3], self.listed())
        self.faulty.when(faults.ERROR_WITH_200, "LIST")
        reply = self.ask("GET", query="list-type=2")
        self.assertEqual(200, reply.status)
        self.assertIn(b"<Error><Code>InternalError</Code>", reply.body)

    def test_no_token(self) -> None:
        """A page says that there is more, without a token. obstore takes it for the end of the list too."""
        self.faulty.when(WithoutToken(), "LIST", page=2)
        self.assertEqual(self.keys[:6], self.listed())
        self.faulty.when(WithoutToken(), "LIST")
        body = self.ask("GET", query="list-type=2").body
        self.assertIn(b"<IsTruncated>true</IsTruncated>", body)
        self.assertNotIn(b"NextContinuationToken", body)

    def test_bucket_gone(self) -> None:
        """The bucket vanishes in the middle."""
        self.faulty.when(faults.NO_BUCKET, "LIST", page=2, times=None)
        error = self.assertRaises(GenericError, self.listed)
        self.assertIn("NoSuchBucket", str(error))

    def test_refused(self) -> None:
        """Other answers are made for this one list only."""
        self.faulty.when(Refused(503, "SlowDown"), "LIST", page=2, matching=lambda each: each.query["prefix"] == "k/")
        self.assertEqual(200, self.ask("GET", query="list-type=2&prefix=k").status)
        self.assertRaises(GenericError, self.listed)
