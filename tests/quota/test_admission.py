"""
Room for uploads as the routes see it: fences, places, and what is asked of whoever keeps the books.
"""

from __future__ import annotations

import errno
import hashlib
import os
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, Unavailable
from resticserver.quota.admission import STEP_BYTES, Admission, Admitted, NoQuota
from resticserver.quota.directory_locks import DirectoryLocks
from resticserver.sizes import Amount
from resticserver.storage.layout import Repository, cell_of
from resticserver.targets import Kind, Target
from resticserver.web.authentication import NoAuthentication
from resticserver.web.http1.request import StreamingRequest

from ..contract.files import failing
from ..contract.store import save
from ..support.memory import Bench, HeldPool, request

ALICE: Repository = ("alice",)
NAME = "ab" * 32
TARGET = Target(ALICE, Kind.OBJECT, "data", NAME)
KEY = (ALICE, 0xAB)
OTHER = (ALICE, 0xAC)


class FencesTests(SynchronousTestCase):
    """L{DirectoryLocks}."""

    def setUp(self) -> None:
        self.directory_locks = DirectoryLocks()
        self.order: list[Any] = []

    def enter(self, who: Any = None, key: Any = KEY) -> Deferred[None]:
        """Somebody wants in; who is in is noted."""
        return Deferred.fromCoroutine(self.directory_locks.enter(key)).addCallback(lambda _: self.order.append(who))

    def close(self, *keys: Any) -> Deferred[None]:
        """Nobody is to come in any more."""
        return Deferred.fromCoroutine(self.directory_locks.close(keys or (KEY,)))

    def test_open(self) -> None:
        """Any number may be inside an open fence, and leave in any order."""
        for who in range(3):
            self.successResultOf(self.enter(who))
        for _ in range(3):
            self.directory_locks.leave(KEY)
        self.successResultOf(self.close())

    def test_refuse(self) -> None:
        """When nobody keeps the books any more those who wait and those who come are refused; who is inside ends as usual."""
        self.successResultOf(self.enter("inside"))
        self.successResultOf(self.close(OTHER))
        waiting = self.enter("waits", OTHER)
        self.directory_locks.refuse("the server is stopping")
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.enter("late"), Unavailable)
        self.assertEqual(["inside"], self.order)
        self.directory_locks.leave(KEY)

    def test_open_all(self) -> None:
        """Whoever waits goes on, wherever that is."""
        self.successResultOf(self.close(KEY, OTHER))
        waiting = [self.enter(1), self.enter(2, OTHER)]
        self.directory_locks.open_all()
        for one in waiting:
            self.successResultOf(one)

    def test_enter_waits(self) -> None:
        """Who comes to a closed fence waits until it is open; others are not concerned."""
        self.successResultOf(self.close())
        waiting = [self.enter(who) for who in range(3)]
        for one in waiting:
            self.assertNoResult(one)
        self.successResultOf(self.enter("other", OTHER))
        self.successResultOf(self.enter("bob", (("bob",), 0xAB)))
        self.directory_locks.open([OTHER])
        for one in waiting:
            self.assertNoResult(one)
        self.directory_locks.open([KEY])
        for one in waiting:
            self.successResultOf(one)
        self.assertEqual(["other", "bob", 0, 1, 2], self.order)
        self.successResultOf(self.enter("late"))

    def test_close_waits(self) -> None:
        """To close means to wait until the last is out."""
        for _ in range(2):
            self.successResultOf(self.enter())
        closing = self.close()
        self.directory_locks.leave(KEY)
        self.assertNoResult(closing)
        self.directory_locks.leave(KEY)
        self.successResultOf(closing)

    def test_nobody_slips_in(self) -> None:
        """Once it is being closed nobody enters, though others are still inside: closing always comes to its end."""
        self.successResultOf(self.enter("first"))
        closing = self.close()
        late = self.enter("late")
        self.assertNoResult(late)
        self.directory_locks.leave(KEY)
        self.successResultOf(closing)
        self.assertNoResult(late)
        self.directory_locks.open([KEY])
        self.successResultOf(late)
        self.assertEqual(["first", "late"], self.order)

    def test_enter_several(self) -> None:
        """Who needs two directories is in none of them before both are open: a count of both would wait for ever."""
        self.successResultOf(self.close(OTHER))
        both = Deferred.fromCoroutine(self.directory_locks.enter(KEY, OTHER))
        self.successResultOf(self.close(KEY))
        self.directory_locks.open([OTHER])
        self.assertNoResult(both)
        self.directory_locks.open([KEY])
        self.successResultOf(both)
        closing = self.close(OTHER, KEY)
        self.assertNoResult(closing)
        self.directory_locks.leave(KEY, OTHER)
        self.successResultOf(closing)

    def test_close_many(self) -> None:
        """All of several are closed before any is waited for, and all are empty when it is done."""
        for key in (KEY, OTHER):
            self.successResultOf(self.enter(key=key))
        closing = self.close(KEY, (ALICE, 0), OTHER)
        late = [self.enter(key=key) for key in (KEY, (ALICE, 0), OTHER)]
        self.directory_locks.leave(OTHER)
        self.assertNoResult(closing)
        self.directory_locks.leave(KEY)
        self.successResultOf(closing)
        for one in late:
            self.assertNoResult(one)
        self.directory_locks.open([KEY, (ALICE, 0), OTHER])
        for one in late:
            self.successResultOf(one)

    def test_closed_from_the_start(self) -> None:
        """For a process that begins while others count."""
        self.directory_locks = DirectoryLocks([KEY])
        late = self.enter()
        self.assertNoResult(late)
        self.successResultOf(self.enter(key=OTHER))
        self.directory_locks.open([KEY])
        self.successResultOf(late)

    def test_cancelled_while_it_waits(self) -> None:
        """Who gave up waiting is not inside, and holds up nobody; the others come in."""
        self.successResultOf(self.close())
        gone, waiting = self.enter("gone"), self.enter("waiting")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.directory_locks.open([KEY])
        self.successResultOf(waiting)
        self.assertEqual(["waiting"], self.order)
        closing = self.close()
        self.assertNoResult(closing)
        self.directory_locks.leave(KEY)
        self.successResultOf(closing)

    def test_cancelled_closing(self) -> None:
        """Who gave up closing has to open; then all is as if nothing had been."""
        self.successResultOf(self.enter("inside"))
        closing = self.close()
        late = self.enter("late")
        closing.cancel()
        self.failureResultOf(closing, CancelledError)
        self.directory_locks.open([KEY])
        self.successResultOf(late)
        for _ in range(2):
            self.directory_locks.leave(KEY)
        self.successResultOf(self.close())

    def test_closed_again_at_once(self) -> None:
        """Of several who wait the first may bring it about that it is closed again: the others go on waiting."""
        self.successResultOf(self.close())
        closings = []
        first = self.enter("first").addCallback(lambda _: closings.append(self.close()))
        second = self.enter("second")
        self.directory_locks.open([KEY])
        self.successResultOf(first)
        self.assertNoResult(second)
        self.assertNoResult(closings[0])
        self.directory_locks.leave(KEY)
        self.successResultOf(closings[0])
        self.directory_locks.open([KEY])
        self.successResultOf(second)

    def test_open_twice(self) -> None:
        """To open what is open is nothing."""
        self.directory_locks.open([KEY])
        self.successResultOf(self.close())
        self.directory_locks.open([KEY, KEY])
        self.successResultOf(self.enter())

    def test_nothing_is_left(self) -> None:
        """Directories that were changed once take no memory."""
        for cell in range(100):
            self.successResultOf(self.enter(key=(ALICE, cell)))
            self.directory_locks.leave((ALICE, cell))
            self.successResultOf(self.close((ALICE, cell)))
            self.directory_locks.open([(ALICE, cell)])
        self.assertEqual(
            (0, 0, 0),
            (len(self.directory_locks._inside), len(self.directory_locks._closed), len(self.directory_locks._leaving)),
        )

    @settings(deadline=None, database=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["enter", "leave", "close", "open", "cancel"]), st.integers(0, 1)), max_size=40
        )
    )
    def test_any_order(self, steps: list[tuple[str, int]]) -> None:
        """Nobody is ever inside while it is closed for good, and at the end everybody was inside or has given up."""
        directory_locks = DirectoryLocks()
        inside = {0: 0, 1: 0}
        closing: dict[int, Deferred[None]] = {}
        waiting: list[Deferred[None]] = []

        def entered(key: int, _: None) -> None:
            self.assertFalse(key in closing and closing[key].called, "inside a closed fence")
            inside[key] += 1

        for step, key in steps:
            if step == "enter":
                entering = Deferred.fromCoroutine(directory_locks.enter((ALICE, key)))
                entering.addCallback(partial(entered, key))
                waiting.append(entering)
            elif step == "leave" and inside[key]:
                inside[key] -= 1
                directory_locks.leave((ALICE, key))
            elif step == "close" and key not in closing:
                closing[key] = Deferred.fromCoroutine(directory_locks.close([(ALICE, key)]))
            elif step == "open" and key in closing:
                done = closing.pop(key)
                if not done.called:
                    done.cancel()
                    self.failureResultOf(done, CancelledError)
                directory_locks.open([(ALICE, key)])
            elif step == "cancel" and waiting and not waiting[-1].called:
                waiting[-1].cancel()
                self.failureResultOf(waiting[-1], CancelledError)
            for key_, done in closing.items():
                self.assertEqual(inside[key_] == 0, done.called)
        for key in list(closing):
            while inside[key]:
                inside[key] -= 1
                directory_locks.leave((ALICE, key))
            self.successResultOf(closing.pop(key))
            directory_locks.open([(ALICE, key)])
        self.assertTrue(all(one.called for one in waiting))


class NotedBooks:
    """
    Books that note what they are asked.

    @ivar most: the most that there is room for.
    """

    def __init__(self, most: int = 1 << 60) -> None:
        self.most = most
        self.reserved = 0
        self.asked: list[Any] = []
        self.ends: list[Any] = []
        self.again: list[Repository] = []
        self.error: Exception | None = None
        self.number = 7

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """Room, if there is some."""
        self.asked.append((user, target, size_bytes))
        if self.error is not None:
            raise self.error
        self.reserved += size_bytes
        return self.number

    async def grow(self, number: int, size_bytes: int) -> None:
        """More room."""
        self.asked.append((number, size_bytes))
        if self.error is not None:
            raise self.error
        if self.reserved + size_bytes > self.most:
            raise InsufficientStorage("it is full")
        self.reserved += size_bytes

    is_shared = False

    async def fence(self, number: int) -> None:
        """Nothing to call."""

    def settle(self, number: int, repository: Repository, cell: int, change: Amount, certain: bool = True) -> None:
        """It has ended."""
        self.ends.append((number, repository, cell, change))

    async def settled(self) -> None:
        """It is booked at once."""

    def recount(self, repository: Repository) -> None:
        """Much has changed."""
        self.again.append(repository)


class PlaceTests(SynchronousTestCase):
    """L{Admitted} and L{Admission}."""

    def setUp(self) -> None:
        self.quota = NotedBooks()
        self.directory_locks = DirectoryLocks()
        self.admission = Admission(self.quota, self.directory_locks)

    def admit(self, length: int | None, target: Target = TARGET) -> Admitted:
        """Room for an upload."""
        return self.successResultOf(Deferred.fromCoroutine(self.admission.admit("alice", target, length)))

    def cover(self, admitted: Admitted, size_bytes: int) -> None:
        """Room for so much."""
        self.successResultOf(Deferred.fromCoroutine(admitted.cover(size_bytes)))

    def enter(self, admitted: Admitted) -> Deferred[None]:
        """It wants to change the directory."""
        return Deferred.fromCoroutine(admitted.enter())

    def closed(self) -> bool:
        """Whether nobody is inside: the fence can be closed (and is opened again)."""
        closing = Deferred.fromCoroutine(self.directory_locks.close([KEY]))
        done = closing.called
        if not done:
            closing.cancel()
            self.failureResultOf(closing, CancelledError)
        self.directory_locks.open([KEY])
        return done

    def test_admitted(self) -> None:
        """What is asked for is what is known of the length."""
        for length, asked in ((10, 10), (0, 0), (None, 0)):
            self.admit(length)
            self.assertEqual(("alice", TARGET, asked), self.quota.asked.pop())

    def test_refused(self) -> None:
        """A refusal passes, and nothing is settled."""
        for error in (InsufficientStorage("it is full"), Unavailable("not yet")):
            self.quota.error = error
            admitted = Deferred.fromCoroutine(self.admission.admit(None, TARGET, 5))
            self.assertIs(error, self.failureResultOf(admitted).value)
        self.assertEqual([], self.quota.ends)

    def test_known_length(self) -> None:
        """As long as it stays within what it said nothing more is asked for."""
        admitted = self.admit(100)
        for size_bytes in (1, 50, 100):
            self.cover(admitted, size_bytes)
        self.assertEqual(1, len(self.quota.asked))
        self.cover(admitted, 101)
        self.assertEqual((7, STEP_BYTES), self.quota.asked[1])

    def test_unknown_length(self) -> None:
        """Room is taken in steps, and more at once if more came at once."""
        admitted = self.admit(None)
        for size_bytes in (1, STEP_BYTES, STEP_BYTES + 1, STEP_BYTES * 2, STEP_BYTES * 4):
            self.cover(admitted, size_bytes)
            self.assertGreaterEqual(self.quota.reserved, size_bytes)
        self.assertEqual([(7, STEP_BYTES), (7, STEP_BYTES), (7, 2 * STEP_BYTES)], self.quota.asked[1:])

    def test_exactly_at_the_end(self) -> None:
        """Where a whole step does not fit, what is needed is taken to the byte, until that does not fit either."""
        self.quota.most = STEP_BYTES + 100
        admitted = self.admit(None)
        for size_bytes in (10, STEP_BYTES + 40, STEP_BYTES + 100):
            self.cover(admitted, size_bytes)
        self.assertEqual(STEP_BYTES + 100, self.quota.reserved)
        covered = Deferred.fromCoroutine(admitted.cover(STEP_BYTES + 101))
        self.assertEqual("it is full", self.failureResultOf(covered, InsufficientStorage).value.message)
        self.cover(admitted, STEP_BYTES + 100)
        admitted.end()
        self.assertEqual([(7, *KEY, Amount())], self.quota.ends)

    def test_more_than_a_step_is_asked_for_once(self) -> None:
        """A refusal of exactly what is needed is not asked for again."""
        self.quota.most = 10
        admitted = self.admit(None)
        covered = Deferred.fromCoroutine(admitted.cover(STEP_BYTES + 1))
        self.failureResultOf(covered, InsufficientStorage)
        self.assertEqual([(7, STEP_BYTES + 1)], self.quota.asked[1:])

    def test_other_errors_are_not_taken_for_a_refusal(self) -> None:
        """That the parent is gone is no reason to ask for less."""
        admitted = self.admit(None)
        self.quota.error = Unavailable("gone")
        self.failureResultOf(Deferred.fromCoroutine(admitted.cover(1)), Unavailable)
        self.assertEqual(2, len(self.quota.asked))

    def test_without_account(self) -> None:
        """Where no account is kept nothing is asked for, and changes are told all the same."""
        self.quota.number = 0
        admitted = self.admit(None)
        self.cover(admitted, 1 << 40)
        self.assertEqual(1, len(self.quota.asked))
        admitted.end()
        self.assertEqual([], self.quota.ends)
        admitted = self.admit(5)
        admitted.end(Amount(5, 1))
        self.assertEqual([(0, *KEY, Amount(5, 1))], self.quota.ends)

    def test_end(self) -> None:
        """It is settled once, with what has become of it."""
        admitted = self.admit(5)
        admitted.end(Amount(5, 1))
        admitted.end(Amount(9, 9))
        admitted.end()
        self.assertEqual([(7, *KEY, Amount(5, 1))], self.quota.ends)

    def test_end_without_change(self) -> None:
        """A reservation is settled also where nothing came of it."""
        self.admit(5).end()
        self.assertEqual([(7, *KEY, Amount(0, 0))], self.quota.ends)

    def test_each_has_its_cell(self) -> None:
        """What was changed is the object's own directory."""
        for kind, name in (("data", "00" * 32), ("data", "ff" * 32), ("index", NAME), ("config", "config")):
            target = Target(ALICE, Kind.CONFIG if kind == "config" else Kind.OBJECT, kind, name)
            self.admit(1, target).end()
            self.assertEqual((7, ALICE, cell_of(kind, name), Amount()), self.quota.ends.pop())

    def test_fence(self) -> None:
        """From enter to end the directory cannot be counted; what it was settled with is told before it can be."""
        admitted = self.admit(5)
        self.assertTrue(self.closed())
        for _ in range(2):  # the second changes nothing
            self.successResultOf(self.enter(admitted))
            self.assertFalse(self.closed())
        closing = Deferred.fromCoroutine(self.directory_locks.close([KEY]))
        closing.addCallback(lambda _: self.quota.ends.append("closed"))
        admitted.end(Amount(5, 1))
        self.successResultOf(closing)
        self.assertEqual([(7, *KEY, Amount(5, 1)), "closed"], self.quota.ends)
        admitted.end()
        self.directory_locks.open([KEY])
        self.assertTrue(self.closed())

    def test_ended_without_having_entered(self) -> None:
        """An upload that failed early leaves no fence."""
        self.admit(5).end()
        self.assertTrue(self.closed())

    def test_cancelled_before_the_fence(self) -> None:
        """A client that goes while it waits for the fence is not inside, then or later."""
        self.successResultOf(Deferred.fromCoroutine(self.directory_locks.close([KEY])))
        admitted = self.admit(5)
        entering = self.enter(admitted)
        self.assertNoResult(entering)
        entering.cancel()
        self.failureResultOf(entering, CancelledError)
        admitted.end()
        self.assertEqual([(7, *KEY, Amount())], self.quota.ends)
        self.directory_locks.open([KEY])
        self.assertTrue(self.closed())

    def test_no_books(self) -> None:
        """Where nobody keeps account everything is admitted."""
        admission = Admission()
        self.assertIsInstance(admission.quota, NoQuota)
        admitted = self.successResultOf(Deferred.fromCoroutine(admission.admit(None, TARGET, None)))
        self.cover(admitted, 1 << 60)
        self.successResultOf(self.enter(admitted))
        admitted.end(Amount(1, 1))
        admission.quota.recount(ALICE)
        self.successResultOf(Deferred.fromCoroutine(admission.quota.grow(1, 1)))


class LateAuthentication(NoAuthentication):
    """Takes its time, as a password check does."""

    def __init__(self) -> None:
        self.known: Deferred[str | None] = Deferred()

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """Who it is, once that is known."""
        return await self.known


class RoutesTests(SynchronousTestCase):
    """What the routes ask for and settle."""

    def setUp(self) -> None:
        self.quota = NotedBooks()
        self.start()

    def start(self, **options: Any) -> None:
        """A site with a repository at the root."""
        self.bench = Bench(self.mktemp(), **options)
        self.bench.store.create_repository(())
        self.directory_locks = DirectoryLocks()
        self.bench.api._admission = Admission(self.quota, self.directory_locks)

    def sizes(self) -> list[int]:
        """How much was asked for by uploads."""
        return [asked[2] for asked in self.quota.asked if len(asked) == 3]

    def test_upload(self) -> None:
        """An upload reserves its length, and settles with what is there."""
        for length in (0, 1, 60_000, 300_000):
            blob = b"x" * length
            name = hashlib.sha256(blob).hexdigest()
            self.assertEqual([200], self.bench.ask(request("POST", f"/data/{name}", blob)).statuses())
            self.assertEqual(length, self.sizes()[-1])
            self.assertEqual((7, (), int(name[:2], 16), Amount(length, 1)), self.quota.ends.pop())
            self.bench.ask(request("POST", f"/data/{name}", blob))
            self.assertEqual(Amount(0, 0), self.quota.ends.pop()[3])
            self.bench.ask(request("DELETE", f"/data/{name}"))
            self.assertEqual((0, (), int(name[:2], 16), Amount(-length, -1)), self.quota.ends.pop())
            self.bench.ask(request("DELETE", f"/data/{name}"))
            self.assertEqual([], self.quota.ends)

    def test_whole_length_however_late(self) -> None:
        """What is reserved is all of the body, also where a part of it came while the password was being checked."""
        for length in (100, 300_000):
            authentication = LateAuthentication()
            self.start(authentication=authentication)
            blob = b"y" * length
            name = hashlib.sha256(blob).hexdigest()
            connection = self.bench.connect()
            head_and_some = request("POST", f"/data/{name}", blob)[: -length // 2]
            connection.send(head_and_some)
            authentication.known.callback("alice")
            connection.send(blob[-(length // 2) :])
            self.assertEqual([200], connection.statuses())
            self.assertEqual(length, self.sizes()[-1])

    def test_paused_while_it_was_asked(self) -> None:
        """Of a body that is too long to wait for as a whole reading goes on, also if little of it is still to come."""
        authentication = LateAuthentication()
        self.start(authentication=authentication)
        blob = b"y" * 100_000
        connection = self.bench.connect()
        sent = request("POST", f"/data/{hashlib.sha256(blob).hexdigest()}", blob)
        connection.send(sent[:-20_000])
        self.assertEqual("paused", connection.transport.producerState)
        authentication.known.callback("alice")
        self.assertEqual("producing", connection.transport.producerState)
        connection.send(sent[-20_000:])
        self.assertEqual([200], connection.statuses())

    def test_chunked_that_ends_while_it_is_asked(self) -> None:
        """Of a body of unknown length that has come to its end while room was asked for all is reserved."""
        authentication = LateAuthentication()
        self.start(authentication=authentication)
        quota, reserve = self.quota, self.quota.reserve
        asked: Deferred[None] = Deferred()

        async def later(user: str | None, target: Target, size_bytes: int) -> int:
            await asked
            return await reserve(user, target, size_bytes)

        quota.reserve = later  # type: ignore[method-assign]
        blob = b"z" * 500
        name = hashlib.sha256(blob).hexdigest()
        connection = self.bench.connect()
        connection.send(f"POST /data/{name} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        authentication.known.callback("alice")
        connection.send(b"1f4\r\n" + blob + b"\r\n0\r\n\r\n")
        asked.callback(None)
        self.assertEqual([200], connection.statuses())
        self.assertGreaterEqual(quota.reserved, len(blob))

    def test_refused_when_all_of_it_is_here(self) -> None:
        """After a refusal the connection goes on, also where reading had paused and the whole body had come by then."""
        authentication = LateAuthentication()
        self.start(authentication=authentication)
        self.quota.error = InsufficientStorage("it is full")
        blob = b"y" * 100_000
        connection = self.bench.connect()
        sent = request("POST", f"/data/{hashlib.sha256(blob).hexdigest()}", blob)
        connection.send(sent[:-20_000], sent[-20_000:])
        self.assertEqual("paused", connection.transport.producerState)
        authentication.known.callback("alice")
        self.assertEqual([507], connection.statuses())
        self.assertEqual("producing", connection.transport.producerState)

    def test_chunked(self) -> None:
        """A body of unknown length is covered before it is written, and one that is here already is known."""
        blob = b"z" * 1000
        name = hashlib.sha256(blob).hexdigest()
        head = f"POST /data/{name} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        connection = self.bench.connect()
        connection.send(head, b"1f4\r\n" + blob[:500] + b"\r\n")
        self.assertEqual([("", 0), (7, STEP_BYTES)], [(a[0] or "", a[-1]) for a in self.quota.asked])
        connection.send(b"1f4\r\n" + blob[500:] + b"\r\n", b"0\r\n\r\n")
        self.assertEqual([200], connection.statuses())
        self.assertEqual([(7, (), int(name[:2], 16), Amount(1000, 1))], self.quota.ends)

    def test_refused_while_it_comes(self) -> None:
        """A body that turns out too long is 507, settled without change, and nothing is left."""
        self.quota.most = 400
        blob = b"z" * 500
        name = hashlib.sha256(blob).hexdigest()
        connection = self.bench.connect()
        connection.send(
            f"POST /data/{name} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
            b"1f4\r\n" + blob + b"\r\n0\r\n\r\n",
        )
        self.assertEqual([507], connection.statuses())
        self.assertEqual([(7, (), int(name[:2], 16), Amount())], self.quota.ends)

    def test_refused(self) -> None:
        """507 and 503, and nothing was reserved that could be settled."""
        for error, status in ((InsufficientStorage("it is full"), 507), (Unavailable("not yet"), 503)):
            self.quota.error = error
            connection = self.bench.ask(request("POST", f"/data/{NAME}", b"x"))
            self.assertEqual([status], connection.statuses())
            self.assertIn(str(error).encode(), connection.received)
        self.assertEqual([], self.quota.ends)

    def test_failed(self) -> None:
        """Whatever fails gives its room back: another hash, a client that goes, a repository that is not there."""
        self.assertEqual([400], self.bench.ask(request("POST", f"/data/{NAME}", b"x")).statuses())
        self.assertEqual([404], self.bench.ask(request("POST", f"/nobody/data/{NAME}", b"x")).statuses())
        for sent in (10, 150_000):
            connection = self.bench.connect()
            connection.send(request("POST", f"/data/{NAME}", b"x" * 300_000)[: -300_000 + sent])
            connection.lose()
        self.assertEqual([7] * 4, [settled[0] for settled in self.quota.ends])
        self.assertEqual({Amount()}, {settled[3] for settled in self.quota.ends})

    def test_client_gone_while_the_fence_is_closed(self) -> None:
        """Room is given back, and the fence can be opened and closed."""
        blob = b"w"
        name = hashlib.sha256(blob).hexdigest()
        key = ((), int(name[:2], 16))
        self.successResultOf(Deferred.fromCoroutine(self.directory_locks.close([key])))
        for method, body in (("POST", blob), ("POST", b"w" * 200_000), ("DELETE", None)):
            connection = self.bench.ask(request(method, f"/data/{name}", body))
            self.assertEqual([], connection.statuses())
            connection.lose()
        self.assertEqual([(7, *key, Amount()), (7, *key, Amount())], self.quota.ends)
        self.directory_locks.open([key])
        self.successResultOf(Deferred.fromCoroutine(self.directory_locks.close([key])))

    def test_client_gone_while_it_is_committed(self) -> None:
        """A commit that runs counts, and nobody counts the directory before it has ended."""
        pool = HeldPool()
        self.start(pool=pool)
        blob = b"v"
        name = hashlib.sha256(blob).hexdigest()
        key = ((), int(name[:2], 16))
        connection = self.bench.ask(request("POST", f"/data/{name}", blob))
        closing = Deferred.fromCoroutine(self.directory_locks.close([key]))
        connection.lose()
        self.assertNoResult(closing)
        self.assertEqual([], self.quota.ends)
        pool.release(3)
        self.assertEqual([(7, *key, Amount(1, 1))], self.quota.ends)
        self.successResultOf(closing)

    def test_client_gone_while_it_is_removed(self) -> None:
        """So does a removal."""
        pool = HeldPool()
        self.start(pool=pool)
        blob = b"v"
        name = hashlib.sha256(blob).hexdigest()
        save(self.bench.store, (), "data", blob)
        connection = self.bench.ask(request("DELETE", f"/data/{name}"))
        closing = Deferred.fromCoroutine(self.directory_locks.close([((), int(name[:2], 16))]))
        connection.lose()
        self.assertNoResult(closing)
        self.assertEqual([], self.quota.ends)
        pool.release()
        self.successResultOf(closing)
        self.assertEqual(Amount(-1, -1), self.quota.ends[0][3])

    def test_removed_and_failed(self) -> None:
        """What is gone is booked, also where nobody knows whether it is gone for good."""
        blob = b"v"
        name = hashlib.sha256(blob).hexdigest()
        save(self.bench.store, (), "data", blob)
        patch = self.patch(os, "fsync", failing(errno.EIO))
        try:
            with capturedLogs():
                for _ in range(2):
                    self.assertEqual([500], self.bench.ask(request("DELETE", f"/data/{name}")).statuses())
        finally:
            patch.restore()
        self.assertEqual([(0, (), int(name[:2], 16), Amount(-1, -1))], self.quota.ends)
        self.assertEqual([200], self.bench.ask(request("DELETE", f"/data/{name}")).statuses())
        self.assertEqual(1, len(self.quota.ends))
