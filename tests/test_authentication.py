"""
From the C{Authorization} header to a user: the header's forms, and one check for all who wait for it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from resticserver.errors import Unauthorized
from resticserver.web.authentication import NoAuthentication, PasswordAuthentication, basic_credentials


def basic(credentials: str | bytes) -> bytes:
    """A C{Basic} header."""
    raw = credentials.encode() if isinstance(credentials, str) else credentials
    return b"Basic " + base64.b64encode(raw)


#: header -> user and password
HEADERS: tuple[tuple[bytes | None, tuple[str, bytes] | None], ...] = (
    (basic("alice:secret"), ("alice", b"secret")),
    (basic("alice:"), ("alice", b"")),
    (basic("alice:a:b"), ("alice", b"a:b")),
    (basic("müller:pässword"), ("müller", "pässword".encode())),
    (basic(b"alice:\xff\x00"), ("alice", b"\xff\x00")),
    (b"basic YWxpY2U6c2VjcmV0", ("alice", b"secret")),
    (b"BASIC YWxpY2U6c2VjcmV0", ("alice", b"secret")),
    (b"  Basic   YWxpY2U6c2VjcmV0  ", ("alice", b"secret")),
    # what restic 0.16.1 and later sends without credentials
    (b"Basic Og==", ("", b"")),
    (None, None),
    (b"", None),
    (b"Basic", None),
    (b"Basic ", None),
    (b"Bearer YWxpY2U6c2VjcmV0", None),
    (b"BasicYWxpY2U6c2VjcmV0", None),
    (b"YWxpY2U6c2VjcmV0", None),
    (b"Basic YWxpY2U6c2VjcmV", None),
    (b"Basic YWxpY2U6c2VjcmV0, Basic YWxpY2U6c2VjcmV0", None),
    (b"Basic YWxp Y2U6c2VjcmV0", None),
    (b"Basic not base64!", None),
    (b"Basic \xff\xfe", None),
    (basic("no colon"), None),
    (basic(b"m\xfcller:secret"), None),
)


class FakeRequest:
    """A request with some C{Authorization} headers."""

    def __init__(self, *headers: bytes) -> None:
        self.requestHeaders = Headers({b"Authorization": list(headers)} if headers else {})


class FakeUsers:
    """An htpasswd file that knows alice; a check is noted."""

    def __init__(self) -> None:
        self.cached: set[tuple[str, bytes]] = set()
        self.checked: list[tuple[str, bytes]] = []
        self.error: Exception | None = None

    def is_cached(self, user: str, password: bytes) -> bool:
        """Whether this was verified."""
        return (user, password) in self.cached

    def check(self, user: str, password: bytes) -> bool:
        """In the pool: whether it is right."""
        self.checked.append((user, password))
        if self.error is not None:
            raise self.error
        return (user, password) == ("alice", b"secret")


class HeldPool:
    """A pool whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[..., Any], tuple[Any, ...], Deferred[Any]]] = []

    def run(self, job: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Keep a job."""
        result: Deferred[Any] = Deferred()
        self.jobs.append((job, args, result))
        return result

    def run_all(self) -> None:
        """Run what there is."""
        jobs, self.jobs = self.jobs, []
        for job, args, result in jobs:
            try:
                value = job(*args)
            except Exception:
                result.errback()
            else:
                result.callback(value)


class HeaderTests(SynchronousTestCase):
    """L{basic_credentials}."""

    def test_table(self) -> None:
        """Each header names this user and password, or nobody."""
        for header, wanted in HEADERS:
            self.assertEqual(wanted, basic_credentials(header), header)


class AuthenticationTests(SynchronousTestCase):
    """L{PasswordAuthentication} and L{NoAuthentication}."""

    def setUp(self) -> None:
        """A door with users behind a pool that is held."""
        self.users, self.pool = FakeUsers(), HeldPool()
        self.door = PasswordAuthentication(self.users, self.pool)  # type: ignore[arg-type]

    def ask(self, *headers: bytes, door: Any = None) -> Deferred[str | None]:
        """A request at the door."""
        asked: Any = door or self.door
        return Deferred.fromCoroutine(asked.authenticate(FakeRequest(*headers)))

    def test_right(self) -> None:
        """The right password is checked in the pool, and the request has its user."""
        answer = self.ask(basic("alice:secret"))
        self.assertNoResult(answer)
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))

    def test_wrong(self) -> None:
        """A wrong password, an unknown user and empty credentials are refused, each after a check of the same cost."""
        for credentials in ("alice:wrong", "bob:secret", ":"):
            answer = self.ask(basic(credentials))
            self.pool.run_all()
            self.failureResultOf(answer, Unauthorized)
        self.assertEqual(3, len(self.users.checked))

    def test_no_credentials(self) -> None:
        """No header, one that cannot be read, or two of them, are refused without a check."""
        for headers in ((), (b"Bearer x",), (b"Basic",), (basic("alice:secret"), basic("alice:secret"))):
            self.failureResultOf(self.ask(*headers), Unauthorized)
        self.assertEqual([], self.pool.jobs)

    def test_cached(self) -> None:
        """What was verified a moment ago passes at once."""
        self.users.cached.add(("alice", b"secret"))
        self.assertEqual("alice", self.successResultOf(self.ask(basic("alice:secret"))))
        self.assertNoResult(self.ask(basic("alice:wrong")))
        self.assertEqual(1, len(self.pool.jobs))

    def test_one_check_for_many(self) -> None:
        """restic's first requests come together, with the same credentials: one check answers all of them."""
        right = [self.ask(basic("alice:secret")) for _ in range(6)]
        wrong = [self.ask(basic("alice:wrong")) for _ in range(3)]
        self.assertEqual(2, len(self.pool.jobs))
        self.pool.run_all()
        self.assertEqual(["alice"] * 6, [self.successResultOf(answer) for answer in right])
        for answer in wrong:
            self.failureResultOf(answer, Unauthorized)
        self.assertEqual([("alice", b"secret"), ("alice", b"wrong")], self.users.checked)

    def test_next_check(self) -> None:
        """A request after the check's end has a check of its own (unless the users remember)."""
        for _ in range(2):
            answer = self.ask(basic("alice:secret"))
            self.pool.run_all()
            self.assertEqual("alice", self.successResultOf(answer))
        self.assertEqual(2, len(self.users.checked))

    def test_asks_again_when_answered(self) -> None:
        """So has one that is made by the answer itself (a pipelined request)."""
        second: list[Deferred[str | None]] = []
        first = self.ask(basic("alice:secret"))
        first.addCallback(lambda user: second.append(self.ask(basic("alice:secret"))))
        self.pool.run_all()
        self.assertNoResult(second[0])
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(second[0]))

    def test_client_gone(self) -> None:
        """A client that is gone while its password is checked takes nobody else's answer with it."""
        gone, first = self.ask(basic("alice:secret")), self.ask(basic("alice:secret"))
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        second = self.ask(basic("alice:secret"))
        self.pool.run_all()
        self.assertEqual(["alice", "alice"], [self.successResultOf(first), self.successResultOf(second)])
        self.assertEqual(1, len(self.users.checked))

    def test_check_fails(self) -> None:
        """A check that cannot be made is an error for each who waits, and is forgotten."""
        self.users.error = ValueError("odd entry")
        answers = [self.ask(basic("alice:secret")) for _ in range(2)]
        self.pool.run_all()
        for answer in answers:
            self.failureResultOf(answer, ValueError)
        self.users.error = None
        answer = self.ask(basic("alice:secret"))
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))

    def test_no_authentication(self) -> None:
        """With --no-auth nobody is asked, whatever the header says."""
        for headers in ((), (b"Basic Og==",), (basic("alice:wrong"),), (b"garbage", b"garbage")):
            self.assertIsNone(self.successResultOf(self.ask(*headers, door=NoAuthentication())))
