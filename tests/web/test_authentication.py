"""
From the C{Authorization} header to a user: the header's forms, and one check for all who wait for it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access import throttle
from resticserver.access.throttle import Throttle
from resticserver.errors import Forbidden, Unauthorized, Unavailable
from resticserver.service import logins
from resticserver.service.logins import CheckPools, PasswordChecker
from resticserver.threads.interface import Pool
from resticserver.web.authentication import (
    CertificateAuthentication,
    NoAuthentication,
    PasswordAuthentication,
    ProxyAuthentication,
    basic_credentials,
)
from resticserver.web.http1.head import HeaderFields

from ..access.test_client_certificates import ALICE
from ..access.test_client_certificates import certificate as certificate_for


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


class FakeChannel:
    """A connection."""

    credentials: tuple[str, bytes] | None = None


class FakeRequest:
    """A request with some C{Authorization} headers, and what is known of where it came from."""

    def __init__(
        self,
        *headers: bytes,
        address: str = "192.0.2.1",
        through_proxy: bool = False,
        certificate: x509.Certificate | None = None,
        named: tuple[bytes, ...] = (),
        channel: FakeChannel | None = None,
    ) -> None:
        lines = [b"Authorization: %s\r\n" % value for value in headers] + [b"X-Remote-User: %s\r\n" % n for n in named]
        self.fields = HeaderFields(b"".join(lines) + b"\r\n")
        self.address = address
        self.address_is_trusted = address == "127.0.0.1"
        self.peer_is_trusted = through_proxy
        self._certificate = certificate
        self.channel = channel if channel is not None else FakeChannel()

    def channel_or_none(self) -> FakeChannel:
        """The connection."""
        return self.channel

    def client_certificate(self) -> x509.Certificate | None:
        """From the handshake."""
        return self._certificate


class FakeUsers:
    """An htpasswd file that knows alice; a check is noted."""

    def __init__(self) -> None:
        self.cached: set[tuple[str, bytes]] = set()
        self.verified: set[tuple[str, bytes]] = set()
        self.checked: list[tuple[str, bytes]] = []
        self.error: Exception | None = None
        self.is_missing = False

    def is_cached(self, user: str, password: bytes, place: str) -> bool:
        """Whether this was verified a moment ago."""
        return (user, password) in self.cached

    def was_verified(self, user: str, password: bytes, place: str) -> bool:
        """Whether this was verified today."""
        return (user, password) in self.verified

    def check(self, user: str, password: bytes, place: str) -> bool:
        """In the pool: whether it is right."""
        self.checked.append((user, password))
        if self.error is not None:
            raise self.error
        return (user, password) == ("alice", b"secret")


class HeldPool(Pool):
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
        self.users, self.pool, self.clock = FakeUsers(), HeldPool(), Clock()
        #: The same one, where it does not matter which it is.
        self.guesses = self.pool
        self.check = self.make_judge(threads=1000)
        self.authentication = PasswordAuthentication(self.check)

    def make_judge(self, threads: int) -> PasswordChecker:
        """A judge whose pool has so many threads."""
        throttle = Throttle(4, self.clock.seconds)
        users: Any = self.users
        return PasswordChecker(users, CheckPools(self.pool, self.guesses, threads), throttle, self.clock)

    def ask(self, *headers: bytes, authentication: Any = None, **more: Any) -> Deferred[str | None]:
        """A request at the door."""
        asked: Any = authentication or self.authentication
        return Deferred.fromCoroutine(asked.authenticate(FakeRequest(*headers, **more)))

    def drop(self, *headers: bytes, **more: Any) -> None:
        """A request whose answer is nobody's business."""
        self.ask(*headers, **more).addErrback(lambda failure: failure.trap(Unauthorized, Forbidden, Unavailable))

    def guess(self, times: int, user: str = "alice", **more: Any) -> None:
        """Wrong passwords, one after the other, each answered."""
        for number in range(times):
            answer = self.ask(basic(f"{user}:wrong{number}"), **more)
            self.clock.pump([0.5] * 11)
            self.pool.run_all()
            self.failureResultOf(answer, Unauthorized, Forbidden)

    def test_right(self) -> None:
        """The right password is checked in the pool, and the request has its user."""
        answer = self.ask(basic("alice:secret"))
        self.assertNoResult(answer)
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))

    def test_wrong(self) -> None:
        """A wrong password and an unknown user are refused, each after a check of the same cost."""
        for credentials in ("alice:wrong", "bob:secret", ":secret", "alice:"):
            answer = self.ask(basic(credentials))
            self.pool.run_all()
            self.failureResultOf(answer, Unauthorized)
        self.assertEqual(4, len(self.users.checked))

    def test_no_credentials(self) -> None:
        """No header, one that cannot be read, two of them, or an empty one, are refused without a check; no guesses."""
        twice = (basic("alice:secret"), basic("alice:secret"))
        with capturedLogs() as events:
            for headers in ((), (b"Bearer x",), (b"Basic",), twice, (b"Basic Og==",)) * 10:
                self.failureResultOf(self.ask(*headers), Unauthorized)
        self.assertEqual(([], []), (self.pool.jobs, events))
        self.drop(basic("alice:secret"))
        self.assertEqual(1, len(self.pool.jobs))

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

    # --- guessing

    def test_failure_is_logged(self) -> None:
        """A line with address and name for each failure; what is no name is not repeated, nor any password."""
        with capturedLogs() as events:
            for user, address in (
                ("alice", "192.0.2.1"),
                ("müller", "2001:db8::1"),
                ("a b\nc", "-"),
                ("", "127.0.0.1"),
            ):
                self.drop(basic(f"{user}:hidden"), address=address)
                self.pool.run_all()
            self.drop(basic("alice:secret"))
            self.pool.run_all()
        lines = [
            "auth failure from 192.0.2.1 for user alice",
            "auth failure from 2001:db8::1 for user müller",
            "auth failure from - for user (not a user name)",
            "auth failure from 127.0.0.1 for user (not a user name)",
        ]
        self.assertEqual(lines, [formatEvent(event) for event in events])
        self.flushLoggedErrors()

    def test_slowed(self) -> None:
        """After the free failures a check begins later; the right password's too, for who guesses might have it."""
        self.guess(4)
        self.clock.advance(0)
        answer = self.ask(basic("alice:secret"), address="192.0.2.2")
        self.guess(3, address="192.0.2.3")
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))
        for number in range(9):
            self.drop(basic(f"alice:again{number}"), address=f"192.0.2.{100 + number}")
        late = self.ask(basic("alice:secret"), address="192.0.2.4")
        self.pool.run_all()
        self.assertNoResult(late)
        self.clock.advance(5)
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(late))

    def test_address_is_refused(self) -> None:
        """An address that goes on is refused without a check, in any name, which is said once; another is not."""
        for _ in range(8):
            self.drop(basic(f"bob:wrong{_}"))
        with capturedLogs() as events:
            for user in ("alice", "carol"):
                answer = self.ask(basic(f"{user}:secret"))
                self.failureResultOf(answer, Forbidden)
        lines = [formatEvent(event) for event in events]
        self.assertEqual(["too many auth failures from 192.0.2.1: refused for a while"], lines)
        answer = self.ask(basic("alice:secret"), address="192.0.2.2")
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))

    def test_verified_is_never_refused(self) -> None:
        """Whoever was right today, or a moment ago, is neither slowed nor refused, wherever that is from."""
        self.users.verified.add(("alice", b"secret"))
        for number in range(30):
            self.drop(basic(f"alice:wrong{number}"))
        answer = self.ask(basic("alice:secret"))
        self.assertEqual(("alice", b"secret", "192.0.2.1"), self.pool.jobs[-1][1])
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))
        self.users.cached.add(("alice", b"secret"))
        self.assertEqual("alice", self.successResultOf(self.ask(basic("alice:secret"))))

    def test_memory_is_no_oracle(self) -> None:
        """
        Guessing what somebody in the same place had right lately is bounded as well; connections that are known go on.
        """
        known = FakeChannel()
        self.users.cached.add(("alice", b"secret"))
        self.assertEqual("alice", self.successResultOf(self.ask(basic("alice:secret"), channel=known)))
        guesser = FakeChannel()
        for number in range(throttle.LOOKUPS + 10):
            self.drop(basic(f"alice:guess{number}"), channel=guesser)
        self.failureResultOf(self.ask(basic("alice:secret"), channel=guesser), Forbidden)
        self.assertEqual("alice", self.successResultOf(self.ask(basic("alice:secret"), channel=known)))
        # A connection that others share, as a proxy's may be, is not known after somebody else's wrong password.
        self.drop(basic("alice:guess"), channel=known)
        self.failureResultOf(self.ask(basic("alice:secret"), channel=known), Forbidden)
        self.clock.advance(60)
        self.assertEqual("alice", self.successResultOf(self.ask(basic("alice:secret"))))

    def test_places_do_not_wait_together(self) -> None:
        """A place that is shut out learns nothing from a check that somebody else's login takes."""
        for number in range(9):
            self.drop(basic(f"bob:wrong{number}"))
        self.pool.run_all()
        first = self.ask(basic("alice:secret"), address="192.0.2.2")
        self.failureResultOf(self.ask(basic("alice:secret")), Forbidden)
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(first))

    def test_trusted_address_is_never_refused(self) -> None:
        """A trusted proxy's own address is everybody's."""
        for number in range(30):
            self.drop(basic(f"user{number}:wrong"), address="127.0.0.1")
            self.pool.run_all()
        answer = self.ask(basic("alice:secret"), address="127.0.0.1")
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))

    def test_right_is_no_failure(self) -> None:
        """Logins that are right never slow anyone."""
        for _ in range(30):
            answer = self.ask(basic("alice:secret"))
            self.pool.run_all()
            self.assertEqual("alice", self.successResultOf(answer))

    # --- many at once

    def crowd(self, threads: int = 1) -> None:
        """A pool with few threads, which are all busy with guesses from an address that nobody else here has."""
        self.check = self.make_judge(threads)
        self.authentication = PasswordAuthentication(self.check)
        for number in range(threads):
            self.drop(basic(f"busy{number}:wrong"), address="203.0.113.1")
        self.assertEqual(threads, len(self.pool.jobs))

    def checked_users(self) -> str:
        """The users whose passwords were checked since the last time, in order."""
        checked = " ".join(user for user, _ in self.users.checked)
        self.users.checked.clear()
        return checked

    def run_jobs(self, times: int) -> None:
        """Let checks end one after the other, with a rest after each."""
        for _ in range(times):
            self.pool.run_all()
            self.clock.advance(1)

    def test_threads(self) -> None:
        """The pool has as many checks as threads, and the next when one has ended."""
        self.crowd(threads=2)
        for number in range(3):
            self.drop(basic(f"user{number}:wrong"))
        self.assertEqual(2, len(self.pool.jobs))
        self.pool.run_all()
        self.assertEqual(2, len(self.pool.jobs))
        self.pool.run_all()
        self.assertEqual(1, len(self.pool.jobs))

    def test_longest_waiter_of_the_most_crowded(self) -> None:
        """In a full queue the longest waiter of the address with the most is given up, which is no failure of his."""
        self.patch(logins, "MOST_CHECKS", 4)
        self.crowd()
        crowded = [self.ask(basic(f"crowd{number}:wrong"), address="192.0.2.1") for number in range(3)]
        few = self.ask(basic("few:wrong"), address="198.51.100.1")
        new = self.ask(basic("alice:secret"), address="198.51.100.2")
        self.failureResultOf(crowded[0], Unavailable)
        for waits in (*crowded[1:], few, new):
            self.assertNoResult(waits)
        self.run_jobs(5)
        self.assertEqual("alice", self.successResultOf(new))
        self.failureResultOf(few, Unauthorized)
        for answer in crowded[1:]:
            self.failureResultOf(answer, Unauthorized)
        self.assertEqual(4, self.check.failures)

    def test_addresses_without_failures_come_first(self) -> None:
        """
        Whoever failed lately waits for a thread of those who guess, and never keeps one from those who did not fail, or were
        right lately, whoever came first.
        """
        self.guesses = HeldPool()
        self.crowd()
        for number in range(3):
            self.drop(basic(f"guess{number}:wrong"), address="203.0.113.1")
        self.drop(basic("other:wrong"), address="192.0.2.2")
        self.pool.run_all()  # now that address has failed
        self.drop(basic("new:wrong"), address="192.0.2.3")
        self.users.verified.add(("bob", b"secret"))
        self.drop(basic("bob:secret"), address="203.0.113.1")
        self.run_jobs(6)
        self.assertEqual("busy0 other bob new", self.checked_users())
        for _ in range(3):
            self.assertEqual(1, len(self.guesses.jobs))
            self.guesses.run_all()
        self.assertEqual("guess0 guess1 guess2", self.checked_users())

    def test_those_who_wait_do_not_count_verified(self) -> None:
        """Who was right lately waits in a full queue as well, and nobody is given up for it."""
        self.patch(logins, "MOST_CHECKS", 2)
        self.crowd()
        waiting = [self.ask(basic(f"user{number}:wrong"), address=f"192.0.2.{number}") for number in range(2)]
        self.users.verified.add(("alice", b"secret"))
        known = self.ask(basic("alice:secret"), address="192.0.2.9")
        for answer in (*waiting, known):
            self.assertNoResult(answer)
        self.run_jobs(2)
        self.assertEqual("alice", self.successResultOf(known))

    def test_client_gone_frees_its_place(self) -> None:
        """A check that nobody waits for is not made, and was no failure: neither one in the queue nor one that is delayed."""
        self.patch(logins, "MOST_CHECKS", 2)
        self.crowd()
        for number in range(30):
            gone = self.ask(basic(f"alice:gone{number}"), address=f"10.0.{number}.1")
            gone.cancel()
            self.failureResultOf(gone, CancelledError)
        delayed = [self.ask(basic(f"alice:wrong{number}"), address=f"10.1.{number}.1") for number in range(6)]
        for answer in delayed:
            answer.addErrback(lambda failure: failure.trap(CancelledError, Unavailable))
            answer.cancel()
        self.assertEqual([], self.clock.getDelayedCalls())
        answer = self.ask(basic("alice:secret"), address="192.0.2.1")
        self.assertNoResult(answer)
        self.run_jobs(2)
        self.assertEqual("alice", self.successResultOf(answer))
        self.assertEqual("busy0 alice", self.checked_users())

    def test_one_of_two_gone(self) -> None:
        """Of two that wait for one check in the queue one goes: the other has its answer."""
        self.crowd()
        gone, stays = self.ask(basic("alice:secret")), self.ask(basic("alice:secret"))
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.run_jobs(2)
        self.assertEqual("alice", self.successResultOf(stays))

    def test_flood(self) -> None:
        """
        When many wait, a wrong password is followed by a rest before the next guess, and not before a login from an address
        without failures or one that was right lately; nor is there a rest when few wait.
        """
        self.patch(logins, "FLOOD_CHECKS", 2)
        self.crowd()
        self.pool.run_all()
        self.assertEqual([], self.clock.getDelayedCalls())
        for number in range(8):
            self.drop(basic(f"guess{number}:wrong"), address="203.0.113.1")
        self.clock.advance(10)
        self.pool.run_all()
        self.assertEqual([], self.pool.jobs)  # it rests
        answer = self.ask(basic("alice:secret"), address="192.0.2.9")
        self.assertEqual(1, len(self.pool.jobs))
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))
        self.users.verified.add(("alice", b"secret"))
        answer = self.ask(basic("alice:secret"), address="203.0.113.1")
        self.pool.run_all()
        self.assertEqual("alice", self.successResultOf(answer))
        self.assertEqual([], self.pool.jobs)
        self.clock.advance(1)
        self.assertEqual(1, len(self.pool.jobs))

    def test_flood_of_new_addresses(self) -> None:
        """Many guesses from addresses that never failed before are guesses, and rest, too."""
        self.patch(logins, "FLOOD_CHECKS", 2)
        self.guesses = HeldPool()
        self.crowd()
        for number in range(8):
            self.drop(basic(f"guess{number}:wrong"), address=f"192.0.2.{number}")
        self.pool.run_all()
        self.assertEqual([], self.pool.jobs)
        self.pool = self.guesses
        self.pool.run_all()
        self.assertEqual([], self.pool.jobs)
        self.clock.advance(1)
        self.assertEqual(1, len(self.pool.jobs))

    def test_too_many_after_a_delay(self) -> None:
        """What comes out of its delay waits in the same queue, and is given up there like all others."""
        self.patch(logins, "MOST_CHECKS", 2)
        self.crowd()
        answers = [self.ask(basic(f"alice:more{number}"), address=f"192.0.2.{10 + number}") for number in range(12)]
        self.clock.advance(5)
        given_up = [answer for answer in answers if answer.called]
        for answer in given_up:
            self.failureResultOf(answer, Unavailable)
        self.assertEqual(10, len(given_up))
        self.run_jobs(3)
        for answer in answers:
            self.assertTrue(answer.called)
            answer.addErrback(lambda failure: failure.trap(Unauthorized))

    def test_no_authentication(self) -> None:
        """With --no-auth nobody is asked, whatever the header says."""
        for headers in ((), (b"Basic Og==",), (basic("alice:wrong"),), (b"garbage", b"garbage")):
            self.assertIsNone(self.successResultOf(self.ask(*headers, authentication=NoAuthentication())))


class Passwords:
    """A door that knows alice by the password "secret", at once."""

    async def authenticate(self, request: Any) -> str | None:
        """Alice or nobody."""
        if basic_credentials(request.fields.last(b"authorization")) != ("alice", b"secret"):
            raise Unauthorized()
        return "alice"


class OtherDoorsTests(SynchronousTestCase):
    """L{CertificateAuthentication} and L{ProxyAuthentication}."""

    def user(self, authentication: Any, *headers: bytes, **more: Any) -> str | None:
        """Who a request is from; C{None} for one that is refused."""
        answer = Deferred.fromCoroutine(authentication.authenticate(FakeRequest(*headers, **more)))
        results: list[Any] = []

        def refused(failure: Failure) -> None:
            failure.trap(Unauthorized)
            results.append(None)

        answer.addCallbacks(results.append, refused)
        (result,) = results
        return str(result) if result is not None else None

    def test_certificates(self) -> None:
        """Certificate, header -> user, alone and besides passwords: two names that differ are nobody."""
        alice, wrong, other = basic("alice:secret"), basic("alice:wrong"), basic("bob:secret")
        nothing = basic(":")
        bob, nobody = certificate_for(("bob",)), certificate_for(("no name",))
        for certificate, headers, alone, besides in (
            (ALICE, (), "alice", "alice"),
            (ALICE, (nothing,), "alice", "alice"),
            (ALICE, (b"garbage",), "alice", "alice"),
            (ALICE, (alice,), "alice", "alice"),
            (ALICE, (wrong,), "alice", None),
            (ALICE, (other,), "alice", None),
            (bob, (alice,), "bob", None),
            (bob, (), "bob", "bob"),
            (nobody, (), None, None),
            (nobody, (alice,), None, None),
            (None, (alice,), None, "alice"),
            (None, (wrong,), None, None),
            (None, (), None, None),
        ):
            for passwords, wanted in ((None, alone), (Passwords(), besides)):
                authentication = CertificateAuthentication("cn", passwords)  # type: ignore[arg-type]
                found = self.user(authentication, *headers, certificate=certificate)
                self.assertEqual(wanted, found, (certificate, headers, passwords))
        authentication = CertificateAuthentication("email", None)
        self.assertEqual("carol@example.org", self.user(authentication, certificate=ALICE))

    def test_proxy(self) -> None:
        """The header is a name from a trusted proxy, and nothing from anyone else."""
        alice, bob = basic("alice:secret"), (b"bob",)
        for through, named, headers, alone, besides in (
            (True, bob, (), "bob", "bob"),
            (True, ("müller".encode(),), (), "müller", "müller"),
            # what the proxy says holds, whatever the client sent through it
            (True, bob, (alice,), "bob", "bob"),
            (True, (), (alice,), None, "alice"),
            (True, (), (), None, None),
            (True, (b"",), (alice,), None, None),
            (True, (b"-",), (), None, None),
            (True, (b"a b",), (), None, None),
            (True, (b"../bob",), (), None, None),
            (True, (b"m\xfcller",), (), None, None),
            (True, (b"bob", b"alice"), (), None, None),
            (True, (b"bob, alice",), (), None, None),
            (False, bob, (), None, None),
            (False, bob, (alice,), None, "alice"),
            (False, (), (alice,), None, "alice"),
            (False, (), (), None, None),
        ):
            for passwords, wanted in ((None, alone), (Passwords(), besides)):
                authentication = ProxyAuthentication("X-Remote-User", passwords, passwords)
                found = self.user(authentication, *headers, through_proxy=through, named=named)
                self.assertEqual(wanted, found, (through, named, headers, passwords))

    def test_proxys_own_certificate(self) -> None:
        """The certificate that a trusted proxy shows is its own, not its client's."""
        authentication = ProxyAuthentication("X-Remote-User", None, CertificateAuthentication("cn", None))
        self.assertIsNone(self.user(authentication, certificate=ALICE, through_proxy=True))
        self.assertEqual("bob", self.user(authentication, certificate=ALICE, through_proxy=True, named=(b"bob",)))
        self.assertEqual("alice", self.user(authentication, certificate=ALICE, through_proxy=False, named=(b"bob",)))
