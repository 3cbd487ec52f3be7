"""
Answers: reason phrases that no name can break, and the table from errors to statuses.
"""

from __future__ import annotations

from collections.abc import Iterator

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver import errors
from resticserver.objects.engine import AccessRefused, BucketMissing, EngineError, EngineFull
from resticserver.objects.front_ends import LeaseEnded
from resticserver.quota.ledger import Account, QuotaExceeded
from resticserver.web.http1 import replies

#: text -> the phrase that goes out
PHRASES: tuple[tuple[str, bytes], ...] = (
    ("Not Found", b"Not Found"),
    ("quota of 10 GiB for alice exceeded", b"quota of 10 GiB for alice exceeded"),
    ("", b""),
    ("a\r\nSet-Cookie: b", b"a\\r\\nSet-Cookie: b"),
    ("a\nb", b"a\\nb"),
    ("a\rb", b"a\\rb"),
    ("a\tb\x00c\x7fd\x1be", b"a\\tb\\x00c\\x7fd\\x1be"),
    ("café", b"caf\\xe9"),
    ("\u2028алиса", b"\\u2028\\u0430\\u043b\\u0438\\u0441\\u0430"),
    ("\N{PACKAGE}", b"\\U0001f4e6"),
    ("\ud800", b"\\ud800"),
    ('"~ !', b'"~ !'),
    ("x" * 200, b"x" * 200),
    ("x" * 201, b"x" * 200),
    ("é" * 1000, b"\\xe9" * 50),
    ("\r\n" * 1000, b"\\r\\n" * 50),
)

#: error -> status and reason
STATUSES: tuple[tuple[BaseException, int, bytes], ...] = (
    (
        QuotaExceeded(Account("ren\u00e9", used_bytes=9 << 30), "10 GiB", "2 GiB", "1 GiB"),
        507,
        b"quota of 10 GiB for ren\\xe9 exceeded: upload of 2 GiB, 1 GiB left",
    ),
    (errors.NotFound(), 404, b"not found"),
    (errors.NoSuchRepository(), 404, b"no such repository"),
    (errors.Unavailable(), 503, b"not available now"),
    (errors.Busy(), 503, b"not available now"),
    (errors.SpoolFull(), 503, b"no room for more uploads at once: try again later"),
    (EngineError("", "what it said"), 503, b"the object store does not answer as it should"),
    (BucketMissing(), 503, b"the bucket with the repositories is missing"),
    (AccessRefused(), 503, b"the object store refuses the server's credentials"),
    (EngineFull(), 507, b"no space left in the object store"),
    (LeaseEnded(), 503, LeaseEnded.default.encode("ascii")),
    (errors.TooManyUploads(), 503, b"too many uploads at once: try again later"),
    (errors.TooLarge(), 413, b"the object is too large"),
    (errors.RequestTimeout(), 408, b"the request did not come in time"),
    (errors.BadRequest(), 400, b"bad request"),
    (errors.HashMismatch(), 400, b"the hash of the content does not match the name"),
    (errors.HeaderTooLarge(), 431, b"request header too large"),
    (errors.Unauthorized(), 401, b"authentication required"),
    (errors.Forbidden(), 403, b"not allowed"),
    (
        errors.NotPermitted("append-only: you may only add to this repository"),
        403,
        b"append-only: you may only add to this repository",
    ),
    (errors.Forbidden("append-only: only locks may be deleted"), 403, b"append-only: only locks may be deleted"),
    (errors.MethodNotAllowed([b"GET", b"HEAD"]), 405, b"method not allowed"),
    (errors.MethodNotAllowed([b"GET"], "a list"), 405, b"a list"),
    (errors.RangeNotSatisfiable(7), 416, b"the range starts past the end of the object"),
    (errors.InsufficientStorage(), 507, b"no space left on the server's disk"),
    (
        errors.InsufficientStorage("quota of 1 GiB for caf\xe9\r\n exceeded"),
        507,
        b"quota of 1 GiB for caf\\xe9\\r\\n exceeded",
    ),
    (OSError(5, "Input/output error", "/srv/secret"), 500, b"Internal Server Error"),
    (ValueError("secret"), 500, b"Internal Server Error"),
)


def subclasses(kind: type) -> Iterator[type]:
    """All classes below a class."""
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


class FakeRequest:
    """What an answer is written to."""

    method = b"GET"
    uri = b"/alice/data/caf\xe9\r"

    def __init__(self, started: bool = False) -> None:
        self.startedWriting = started
        self.status = 0
        self.reason = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.aborted = False

    def start_answer(self, status: int, reason: bytes, fields: bytes, length: int | None) -> None:
        """How it begins."""
        self.status, self.reason = status, reason
        for line in fields.splitlines():
            name, _, value = line.partition(b": ")
            self.headers[name] = value
        if length is not None:
            self.headers[b"Content-Length"] = b"%d" % length

    def write(self, data: bytes) -> None:
        """A part of the body."""
        self.body += data

    def abort(self) -> None:
        """The connection ends."""
        self.aborted = True


class ReasonTests(SynchronousTestCase):
    """L{replies.reason_phrase}."""

    def test_table(self) -> None:
        """Each text becomes one line of printable ASCII of at most 200 bytes."""
        for text, phrase in PHRASES:
            self.assertEqual(phrase, replies.reason_phrase(text), repr(text))

    def test_always_safe(self) -> None:
        """No character whatsoever gets anything else through."""
        for code in (*range(0x300), *range(0x2000, 0x2100), *range(0xD800, 0xE000, 99), 0x1F600):
            phrase = replies.reason_phrase(f"a{chr(code)}b")
            self.assertTrue(all(0x20 <= byte <= 0x7E for byte in phrase), phrase)


class StatusTests(SynchronousTestCase):
    """L{replies.status_of} and L{replies.send_error}."""

    def test_table(self) -> None:
        """Each error is answered by its status, its message as reason and as one line of text, and a length."""
        for error, status, reason in STATUSES:
            self.assertEqual(status, replies.status_of(error))
            request = FakeRequest()
            replies.send_error(request, error)  # type: ignore[arg-type]
            self.assertEqual((status, reason, reason + b"\n"), (request.status, request.reason, request.body))
            self.assertEqual(b"%d" % len(request.body), request.headers[b"Content-Length"])
            self.assertEqual(b"text/plain; charset=utf-8", request.headers[b"Content-Type"])
            self.assertFalse(request.aborted)
        self.flushLoggedErrors(ValueError)

    def test_every_error_has_a_status(self) -> None:
        """No error of the domain is taken for a fault of the server, and each status has a phrase of its own."""
        tested = {type(error) for error, _, _ in STATUSES}
        for kind in subclasses(errors.ServerError):
            self.assertIn(kind, tested)
        for error, status, _ in STATUSES:
            self.assertEqual(status == 500, not isinstance(error, errors.ServerError))
            self.assertIn(status, replies.PHRASES)

    def test_headers(self) -> None:
        """The headers that some statuses need."""
        for error, name, value in (
            (errors.MethodNotAllowed([b"GET", b"HEAD"]), b"Allow", b"GET, HEAD"),
            (errors.MethodNotAllowed([]), b"Allow", b""),
            (errors.RangeNotSatisfiable(7), b"Content-Range", b"bytes */7"),
            (errors.TooManyUploads(), b"Retry-After", b"2"),
            (errors.SpoolFull(), b"Retry-After", b"2"),
            (
                errors.Unauthorized(),
                b"WWW-Authenticate",
                b'Basic realm="restic repository server", charset="UTF-8"',
            ),
        ):
            request = FakeRequest()
            replies.send_error(request, error)  # type: ignore[arg-type]
            self.assertEqual(value, request.headers[name])

    def test_faults_are_logged_once(self) -> None:
        """
        A fault of the server is logged once, with its cause and what was asked, escaped; what the client did is not.
        """
        for error, logged in ((OSError(5, "Input/output error"), 1), (ValueError("odd"), 1), (errors.NotFound(), 0)):
            with capturedLogs() as events:
                replies.send_error(FakeRequest(), error)  # type: ignore[arg-type]
            self.assertEqual(logged, len(events))
            for event in events:
                self.assertEqual(("GET", "/alice/data/caf\\xe9\\r"), (event["method"], event["uri"]))
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))

    def test_an_answer_that_began_is_aborted(self) -> None:
        """Nothing is appended to an answer that is on its way."""
        request = FakeRequest(started=True)
        replies.send_error(request, OSError(5, "Input/output error"))  # type: ignore[arg-type]
        self.assertTrue(request.aborted)
        self.assertEqual((0, b"", {}), (request.status, request.body, request.headers))

    def test_success(self) -> None:
        """An answer has its length always, and a type only where it has one."""
        request = FakeRequest()
        replies.send(request, 200, b"[]", b"application/json")  # type: ignore[arg-type]
        self.assertEqual((200, b"OK", b"[]"), (request.status, request.reason, request.body))
        self.assertEqual({b"Content-Length": b"2", b"Content-Type": b"application/json"}, request.headers)
        request = FakeRequest()
        replies.send(request)  # type: ignore[arg-type]
        self.assertEqual({b"Content-Length": b"0"}, request.headers)
