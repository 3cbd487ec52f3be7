"""
L{resticserver.service.logins}: a worker's judge, and the parent's that it asks. (How passwords are judged is in
test_authentication.)
"""

from __future__ import annotations

import base64
import hashlib

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.htpasswd import Htpasswd
from resticserver.access.throttle import Login, Throttle
from resticserver.errors import Forbidden, Unauthorized, Unavailable
from resticserver.service.logins import CheckPools, PasswordChecker
from resticserver.workers import logins as remembering
from resticserver.workers.ipc import Failed, IpcConnectionLost
from resticserver.workers.logins import LoginRequests, RemotePasswordChecker

from ..support.memory import HeldPool, InlinePool
from ..support.wires import DirectIpc

ALICE = Login("alice", b"s\xe9cret", "192.0.2.1", False, False)
KNOWN = ALICE._replace(known=True)
WRONG = ALICE._replace(password=b"wrong")


class RemotePasswordCheckerTests(SynchronousTestCase):
    """L{RemotePasswordChecker} and L{LoginRequests}."""

    def setUp(self) -> None:
        """A user alice, a parent and a worker."""
        self.path = self.mktemp()
        with open(self.path, "w") as file:
            file.write(self.line(b"s\xe9cret"))
        self.clock = Clock()
        self.users = Htpasswd(self.path, self.clock.seconds)
        self.users.load()
        self.pool: InlinePool | HeldPool = InlinePool()
        self.start()

    def start(self) -> None:
        """A parent that checks passwords in the pool, and a worker."""
        self.parents = PasswordChecker(
            self.users, CheckPools(self.pool, self.pool), Throttle(4, self.clock.seconds), self.clock
        )
        self.requests = LoginRequests(self.parents)
        self.ipc = DirectIpc(self.requests.handlers())
        self.check = RemotePasswordChecker(self.ipc, self.users.reading, self.clock.seconds)  # type: ignore[arg-type]

    @staticmethod
    def line(password: bytes) -> str:
        """An entry for alice with a password of any bytes."""
        return f"alice:{{SHA}}{base64.b64encode(hashlib.sha1(password).digest()).decode()}\n"

    def asks(self, login: Login) -> Deferred[None]:
        """A login that is not known."""
        return Deferred.fromCoroutine(self.check.check(login))

    def test_right(self) -> None:
        """The right password passes, whatever its bytes, and the same connection need not ask again."""
        self.assertFalse(self.check.is_cached(KNOWN))
        self.successResultOf(self.asks(ALICE))
        self.assertEqual(1, self.ipc.asked)
        self.assertTrue(self.check.is_cached(KNOWN))

    def test_wrong(self) -> None:
        """A wrong one does not, nor is it remembered."""
        with capturedLogs() as events:
            self.failureResultOf(self.asks(WRONG), Unauthorized)
        self.assertEqual(1, len(events))
        self.assertFalse(self.check.is_cached(WRONG._replace(known=True)))

    def test_others_ask(self) -> None:
        """To find what another connection had right is a guess, which only the parent can count: it is asked."""
        self.successResultOf(self.asks(ALICE))
        self.assertFalse(self.check.is_cached(ALICE))
        for other in (
            KNOWN._replace(address="192.0.2.2"),
            KNOWN._replace(user="bob"),
            KNOWN._replace(password=b"s\xe9cret "),
        ):
            self.assertFalse(self.check.is_cached(other), other)
        self.assertTrue(self.check.is_cached(KNOWN._replace(address_is_trusted=True)))

    def test_the_parents_minute(self) -> None:
        """What is known here ends when it ends at the parent, however late it was asked for."""
        self.successResultOf(self.asks(ALICE))
        self.clock.advance(40)
        self.successResultOf(self.asks(ALICE))
        self.assertTrue(self.check.is_cached(KNOWN))
        self.clock.advance(19)
        self.assertTrue(self.check.is_cached(KNOWN))
        self.clock.advance(1)
        self.assertFalse(self.check.is_cached(KNOWN))
        self.successResultOf(self.asks(KNOWN))
        self.assertTrue(self.check.is_cached(KNOWN))

    def test_users_changed(self) -> None:
        """After a reload nothing is known any more."""
        self.successResultOf(self.asks(ALICE))
        with open(self.path, "w") as file:
            file.write(self.line(b"other"))
        self.users.reload_if_changed(True)
        self.check.users_changed(self.users.reading)
        self.assertFalse(self.check.is_cached(KNOWN))
        self.failureResultOf(self.asks(KNOWN), Unauthorized)

    def test_users_changed_meanwhile(self) -> None:
        """
        An answer that was given before a reload is not known after it, and one from after it is, in whatever order the
        worker hears of both.
        """
        self.successResultOf(self.asks(ALICE))
        self.users.reload_if_changed(True)
        self.successResultOf(self.asks(ALICE))
        self.assertTrue(self.check.is_cached(KNOWN))
        self.check.users_changed(self.users.reading)
        self.assertTrue(self.check.is_cached(KNOWN))
        old = self.users.reading
        self.users.reload_if_changed(True)
        self.check.users_changed(self.users.reading)
        self.check._right = {digest: (until, old) for digest, (until, _) in self.check._right.items()}
        self.assertFalse(self.check.is_cached(KNOWN))

    def test_refusals(self) -> None:
        """Each refusal of the parent's is the same here, with its words."""
        for _ in range(8):
            answer = self.asks(WRONG)
            self.clock.pump([1] * 6)
            self.failureResultOf(answer, Unauthorized)
            self.clock.advance(-6)
        refused = self.failureResultOf(self.asks(WRONG), Forbidden).value
        self.assertIn("too many failed logins", str(refused))
        self.parents._queue.size = 0
        busy = self.failureResultOf(self.asks(WRONG._replace(address="192.0.2.9", user="carol")), Unavailable).value
        self.assertIn("too many logins at once", str(busy))
        self.flushLoggedErrors()

    def test_client_gone(self) -> None:
        """A client of a worker's that is gone has no place in the parent's queue any more; others keep theirs."""
        self.pool = HeldPool()
        self.start()
        busy = self.asks(WRONG._replace(user="busy"))
        gone, stays = self.asks(WRONG._replace(user="gone")), self.asks(ALICE)
        self.assertEqual(2, len(self.parents._queue))
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(1, len(self.parents._queue))
        self.requests._withdraw("no such question")
        self.pool.release(2)
        self.successResultOf(stays)
        self.failureResultOf(busy, Unauthorized)
        self.assertEqual((1, {}), (self.parents.failures, self.requests._asked))

    def test_no_parent(self) -> None:
        """Without a parent passwords cannot be checked; what is known is known."""
        self.successResultOf(self.asks(ALICE))
        for error in (IpcConnectionLost("gone"), Failed("broken")):
            self.ipc.error = error
            self.failureResultOf(self.asks(ALICE), Unavailable)
        self.assertTrue(self.check.is_cached(KNOWN))

    def test_memory_is_bounded(self) -> None:
        """The oldest is forgotten first."""
        self.patch(remembering, "MOST_REMEMBERED", 2)
        for host in (1, 2, 3):
            self.successResultOf(self.asks(ALICE._replace(address=f"192.0.2.{host}")))
        known = [self.check.is_cached(KNOWN._replace(address=f"192.0.2.{host}")) for host in (1, 2, 3)]
        self.assertEqual([False, True, True], known)

    def test_no_passwords_in_memory(self) -> None:
        """What is remembered is a digest."""
        self.successResultOf(self.asks(ALICE))
        self.assertNotIn(b"cret", b"".join(self.check._right))
