"""
Large uploads to S3, which are requests of our own: what is sent, and what each answer stands for, at an engine that answers as
it is told. With real engines they are in L{tests.objects.test_contract}, with faults in L{tests.integration.test_object_faults}.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.objects import connections, signed_requests
from resticserver.objects.credentials import Credentials, new_session
from resticserver.objects.engine import AccessRefused, BucketMissing, EngineError, EngineFull, Exists
from resticserver.objects.location import Location
from resticserver.objects.s3_engine import LARGE_BYTES, S3Engine, make_s3_engine
from resticserver.objects.s3_requests import S3Requests
from resticserver.objects.s3_settings import find_settings

from ..support.client import random_bytes
from ..support.waiting import PATIENCE_S
from .environment import aws_environment
from .test_credentials import profile
from .test_s3 import error

CONTENT = random_bytes(1, LARGE_BYTES)
SHA256 = hashlib.sha256(CONTENT).digest()


def answer(status: int, body: bytes = b"", *fields: bytes) -> bytes:
    """An answer of the engine."""
    head = b"\r\n".join((b"HTTP/1.1 %d Words" % status, b"Content-Length: %d" % len(body), *fields))
    return head + b"\r\n\r\n" + body


FINE = answer(200, b"", b'ETag: "x"')


class OneEngine:
    """
    Takes one connection after the other, and answers each request with the next answer; an empty one ends the connection.

    @param wait: called before the body of a request is read.
    """

    def __init__(
        self,
        test: SynchronousTestCase,
        *answers: bytes,
        wait: Callable[[], object] = lambda: None,
        buffer_bytes: int = 0,
    ) -> None:
        self._answers = list(answers)
        self._wait = wait
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        if buffer_bytes:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        test.addCleanup(thread.join, PATIENCE_S)
        test.addCleanup(self._listening.close)
        # close(2) does not wake accept(2).
        test.addCleanup(self._listening.shutdown, socket.SHUT_RDWR)

    def _run(self) -> None:
        while self._answers:
            try:
                connection = self._listening.accept()[0]
            except OSError:
                return
            self.connections += 1
            with connection, connection.makefile("rb") as file:
                while self._answers and (line := file.readline()):
                    fields = {}
                    while (field := file.readline().rstrip(b"\r\n").decode()) != "":
                        name, _, value = field.partition(": ")
                        fields[name.lower()] = value
                    self._wait()
                    body = file.read(int(fields["content-length"]))
                    self.requests.append((line.decode().rstrip(), fields, body))
                    reply = self._answers.pop(0)
                    if not reply:
                        break
                    connection.sendall(reply)


class LargeUploadTests(SynchronousTestCase):
    """See the module."""

    def setUp(self) -> None:
        self.home = aws_environment(self)
        self.write_keys("A")

    def write_keys(self, key: str) -> None:
        """Write the file with the credentials."""
        (self.home / ".aws/credentials").write_text(profile(key))

    def engine(self, url: str) -> S3Engine:
        """The engine at a URL."""
        with mock.patch.dict("os.environ", AWS_ENDPOINT_URL=url):
            return make_s3_engine(Location("s3", "bucket"))

    def put(self, *answers: bytes, new: bool = True, **options: Any) -> OneEngine:
        """Store the content at an engine that answers so."""
        server = OneEngine(self, *answers, **options)
        engine = self.engine(server.url)
        (engine.put_new if new else engine.put)("a b/ü+%", CONTENT, SHA256)
        return server

    def test_request(self) -> None:
        """The content's hash is signed and sent as a checksum; it is one request, on a connection that is used again."""
        server = OneEngine(self, FINE, FINE)
        engine = self.engine(server.url)
        engine.put_new("a b/ü+%", CONTENT, SHA256)
        engine.put("a b/ü+%", CONTENT, SHA256)
        for (line, fields, body), condition in zip(server.requests, ("*", None), strict=True):
            self.assertEqual("PUT /bucket/a%20b/%C3%BC%2B%25 HTTP/1.1", line)
            self.assertEqual(CONTENT, body)
            self.assertEqual(condition, fields.get("if-none-match"))
            self.assertEqual(SHA256.hex(), fields["x-amz-content-sha256"])
            self.assertEqual(SHA256, base64.b64decode(fields["x-amz-checksum-sha256"]))
            self.assertIn("AWS4-HMAC-SHA256 Credential=", fields["authorization"])
            self.assertIn("x-amz-checksum-sha256", fields["authorization"])
        self.assertEqual(1, server.connections)

    def test_answers(self) -> None:
        """What each answer stands for, where an object is new and where one may be there."""
        table: list[tuple[bytes, type[Exception], type[Exception]]] = [
            (answer(412, error("PreconditionFailed")), Exists, EngineError),
            (answer(409, error("ConditionalRequestConflict")), Exists, EngineError),
            (answer(404, error("NoSuchBucket")), BucketMissing, BucketMissing),
            (answer(404, error("NoSuchKey")), EngineError, EngineError),
            (answer(403, error("AccessDenied")), AccessRefused, AccessRefused),
            (answer(400, error("ExpiredToken")), AccessRefused, AccessRefused),
            (answer(403, error("QuotaExceeded")), EngineFull, EngineFull),
            (answer(507), EngineFull, EngineFull),
            (answer(400, error("XAmzContentSHA256Mismatch")), EngineError, EngineError),
            (answer(500, error("InternalError")), EngineError, EngineError),
            (answer(301, b"", b"Location: http://127.0.0.1:1/", b'ETag: "x"'), EngineError, EngineError),
            (answer(416), EngineError, EngineError),
            (answer(204, b"", b'ETag: "x"'), EngineError, EngineError),
            (answer(200), EngineError, EngineError),
            (answer(200, error("InternalError"), b'ETag: "x"'), EngineError, EngineError),
            (b"", EngineError, EngineError),
            (b"SSH-2.0\r\n", EngineError, EngineError),
            (FINE.replace(b"Length: 0", b"Length: 9"), EngineError, EngineError),
        ]
        for reply, *kinds in table:
            for new, kind in zip((True, False), kinds, strict=True):
                raised: Exception = self.assertRaises(kind, self.put, reply, new=new)
                self.assertIs(kind, type(raised), reply)
                self.assertNotIn("geheim", f"{getattr(raised, 'detail', '')}{raised}{raised!r}")

    def test_refused_credentials_are_read_again(self) -> None:
        """The next request has the new ones."""
        server = OneEngine(self, answer(403, error("InvalidAccessKeyId")), FINE)
        engine = self.engine(server.url)
        self.assertRaises(AccessRefused, engine.put_new, "a", CONTENT, SHA256)
        self.write_keys("B")
        engine.put_new("a", CONTENT, SHA256)
        first, second = (fields["authorization"] for _, fields, _ in server.requests)
        self.assertIn("Credential=A", first)
        self.assertIn("Credential=B", second)

    def test_slow_engine(self) -> None:
        """An engine may take longer for what it gets than for a connection."""
        waited = threading.Event()
        content = bytes(8 << 20)
        server = OneEngine(self, FINE, FINE, wait=lambda: waited.wait(0.5), buffer_bytes=4096)
        with mock.patch.dict("os.environ", AWS_ENDPOINT_URL=server.url):
            settings = find_settings(Location("s3", "bucket"), new_session())
        requests = S3Requests(settings, Credentials("s3://bucket"), connect_timeout_s=0.1)
        for _ in range(2):
            self.assertEqual(200, requests.put("a", memoryview(content), hashlib.sha256(content).digest(), {}).status)
        self.assertEqual([len(content)] * 2, [len(body) for _, _, body in server.requests])

    def test_silent_engine(self) -> None:
        """One that takes nothing, and one that does not answer, are given up."""
        for module in (connections, signed_requests):
            self.patch(module, "STORE_TIMEOUT_S", 0.2)
        large = bytes(8 << 20)
        for content in (large, large[:LARGE_BYTES]):
            waited = threading.Event()
            server = OneEngine(self, FINE, wait=partial(waited.wait, PATIENCE_S), buffer_bytes=4096)
            try:
                engine = self.engine(server.url)
                raised = self.assertRaises(EngineError, engine.put_new, "a", content, hashlib.sha256(content).digest())
            finally:
                waited.set()
            self.assertIn("timed out", raised.detail)
