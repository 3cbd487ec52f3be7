"""
The body of a request as a stream: order, back-pressure, and every way that it can end.

The channel is a fake that notes what it is told; the pool's answers are Deferreds that the test fires.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import BadRequest, InsufficientStorage
from resticserver.web.http1.body import HIGH_WATER_BYTES, LOW_WATER_BYTES, WAITING_BYTES, Body

by_chance = settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))

KIB = b"x" * 1024


class FakeSource:
    """The channel: whether it reads, and how often it was told."""

    def __init__(self) -> None:
        self.held = False
        self.calls: list[str] = []

    def hold_body(self) -> None:
        """Read no more."""
        self.held = True
        self.calls.append("hold")

    def release_body(self) -> None:
        """Read on."""
        self.held = False
        self.calls.append("release")


class FakeTaker:
    """Takes a body: keeps what it is given until the test says that it is done."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.running: Deferred[None] | None = None

    def __call__(self, chunks: Sequence[bytes]) -> Deferred[None]:
        """Take the next chunks."""
        assert self.running is None, "called again before it was done"
        self.batches.append(list(chunks))
        self.running = Deferred()
        return self.running

    def done(self, error: Exception | None = None) -> None:
        """Be done with them."""
        running, self.running = self.running, None
        assert running is not None
        if error is None:
            running.callback(None)
        else:
            running.errback(error)

    @property
    def taken(self) -> bytes:
        """All that it was given."""
        return b"".join(b"".join(batch) for batch in self.batches)


class BodyTests(SynchronousTestCase):
    """L{Body}."""

    def setUp(self) -> None:
        """A chunked body."""
        self.source = FakeSource()
        self.body = Body(self.source, None)
        self.taker = FakeTaker()

    # --- the usual way

    def test_delivered(self) -> None:
        """What came before a taker was there and what comes after is delivered, in order, then its end."""
        self.body.feed(b"one,")
        self.body.feed(b"two,")
        delivered = self.body.deliver(self.taker)
        self.assertEqual([[b"one,two,"]], self.taker.batches)
        self.taker.done()
        self.body.feed(b"three,")
        self.taker.done()
        self.body.feed(b"four")
        self.body.end()
        self.assertNoResult(delivered)
        self.taker.done()
        self.assertIsNone(self.successResultOf(delivered))
        self.assertEqual(b"one,two,three,four", self.taker.taken)
        self.assertEqual(([], True), (self.source.calls, self.body.ended))

    def test_one_job_at_a_time(self) -> None:
        """While a job runs, chunks are gathered; the next job takes them all."""
        self.body.deliver(self.taker)
        for number in range(5):
            self.body.feed(b"%d" % number)
        self.assertEqual([[b"0"]], self.taker.batches)
        self.taker.done()
        self.assertEqual([[b"0"], [b"1234"]], self.taker.batches)

    def test_byte_by_byte(self) -> None:
        """Bytes that come alone are put together: each would be an object of its own otherwise, with fifty bytes to it."""
        coming = bytes(range(256)) * 64
        for byte in range(0, len(coming), 2):
            self.body.feed(coming[byte : byte + 2])
        pieces = self.body.take_waiting()
        self.assertEqual(coming, b"".join(pieces))
        self.assertLessEqual(len(pieces), 5)
        self.body.feed(bytes(3000))
        self.body.feed(bytes(3000))
        self.assertEqual([3000, 3000], [len(piece) for piece in self.body.take_waiting()])

    def test_empty(self) -> None:
        """A body without a byte ends without a job, whether its end came before its taker or after."""
        self.assertTrue(Body(self.source, 0).ended)
        self.assertIsNone(self.successResultOf(Body(self.source, 0).deliver(self.taker)))
        later = Body(self.source, None)
        delivered = later.deliver(self.taker)
        self.assertNoResult(delivered)
        later.end()
        self.assertIsNone(self.successResultOf(delivered))
        self.assertEqual([], self.taker.batches)

    def test_whole(self) -> None:
        """A small body as a whole: when its last byte is there, before or after somebody waits for it."""
        self.body.feed(b"one")
        whole = self.body.whole()
        self.body.feed(b"two")
        self.assertNoResult(whole)
        self.body.end()
        self.assertEqual([b"onetwo"], self.successResultOf(whole))
        before = Body(self.source, 3)
        before.feed(b"abc")
        before.end()
        self.assertEqual([b"abc"], self.successResultOf(before.whole()))
        self.assertEqual([], self.successResultOf(Body(self.source, 0).whole()))

    def test_whole_that_never_comes(self) -> None:
        """What cannot be understood fails it, and it can be cancelled."""
        for fails_first in (False, True):
            body = Body(self.source, None)
            if fails_first:
                body.fail(BadRequest())
            whole = body.whole()
            if not fails_first:
                body.fail(BadRequest())
            self.failureResultOf(whole, BadRequest)
        whole = self.body.whole()
        whole.cancel()
        self.failureResultOf(whole, CancelledError)
        self.body.feed(b"late")
        self.body.end()

    def test_all_before_the_taker(self) -> None:
        """A small body may be whole before its taker comes."""
        self.body.feed(b"all of it")
        self.body.end()
        delivered = self.body.deliver(self.taker)
        self.assertNoResult(delivered)
        self.taker.done()
        self.assertIsNone(self.successResultOf(delivered))
        self.assertEqual(b"all of it", self.taker.taken)

    def test_counts(self) -> None:
        """It counts what came, and with a length what is still to come."""
        body = Body(self.source, 10)
        body.feed(b"1234")
        self.assertEqual((4, 6, False), (body.received_bytes, body.expected_bytes, body.ended))
        body.discard(100, lambda: None)
        body.feed(b"567890")
        body.end()
        self.assertEqual((10, 0, True), (body.received_bytes, body.expected_bytes, body.ended))
        self.body.feed(b"1234")
        self.assertEqual((4, None), (self.body.received_bytes, self.body.expected_bytes))

    def test_immediate_taker(self) -> None:
        """A taker that is done at once is given everything as it comes."""
        taken: list[bytes] = []

        def write(chunks: Sequence[bytes]) -> Deferred[None]:
            taken.extend(chunks)
            return succeed(None)

        self.body.feed(b"a")
        delivered = self.body.deliver(write)
        for _ in range(3000):
            self.body.feed(b"b")
        self.body.end()
        self.assertIsNone(self.successResultOf(delivered))
        self.assertEqual(b"a" + b"b" * 3000, b"".join(taken))

    # --- back-pressure

    def test_waiting_bound(self) -> None:
        """Before a taker is there a small bound holds: a route that checks a password gathers no pack."""
        for _ in range(WAITING_BYTES // len(KIB)):
            self.body.feed(KIB)
        self.assertFalse(self.source.held)
        self.body.feed(b"x")
        self.assertTrue(self.source.held)
        self.body.deliver(self.taker)
        self.assertFalse(self.source.held)
        self.assertEqual(["hold", "release"], self.source.calls)

    def test_high_and_low_water(self) -> None:
        """Above the high mark reading is held; it goes on when the queue was taken over."""
        self.body.deliver(self.taker)
        self.body.feed(KIB)
        for _ in range(HIGH_WATER_BYTES // len(KIB)):
            self.body.feed(KIB)
        self.assertFalse(self.source.held)
        self.body.feed(b"x")
        self.assertTrue(self.source.held)
        self.body.feed(KIB)
        self.assertEqual(["hold"], self.source.calls)
        self.taker.done()
        self.assertFalse(self.source.held)
        self.assertEqual(["hold", "release"], self.source.calls)
        self.assertLess(LOW_WATER_BYTES, HIGH_WATER_BYTES)

    def test_again_and_again(self) -> None:
        """Hold and release alternate for as long as the disk is slower than the network, and no byte is lost."""
        self.body.deliver(self.taker)
        fed = 0
        for _ in range(10):
            while not self.source.held:
                self.body.feed(KIB)
                fed += len(KIB)
            self.taker.done()
        self.assertEqual(["hold", "release"] * 10, self.source.calls)
        while self.taker.running is not None:
            self.taker.done()
        self.assertEqual(fed, len(self.taker.taken))

    def test_end_while_held(self) -> None:
        """A body whose end came while reading was held is delivered to its end."""
        delivered = self.body.deliver(self.taker)
        while not self.source.held:
            self.body.feed(KIB)
        self.body.end()
        while self.taker.running is not None:
            self.taker.done()
        self.assertIsNone(self.successResultOf(delivered))
        self.assertFalse(self.source.held)

    # --- other ends

    def test_taker_fails(self) -> None:
        """What the taker fails with is the delivery's failure, and nothing more is given to it."""
        delivered = self.body.deliver(self.taker)
        self.body.feed(b"one")
        self.body.feed(b"two")
        self.taker.done(InsufficientStorage())
        self.failureResultOf(delivered, InsufficientStorage)
        self.body.feed(b"three")
        self.body.end()
        self.assertEqual(b"one", self.taker.taken)

    def test_taker_fails_at_once(self) -> None:
        """Also where it fails before it returns."""
        self.body.feed(b"one")
        delivered = self.body.deliver(lambda chunks: fail(InsufficientStorage()))
        self.failureResultOf(delivered, InsufficientStorage)

    def test_failure_keeps_the_bound(self) -> None:
        """After a failure a client that goes on sending is held, until somebody discards the rest."""
        self.failureResultOf(self._failed(), InsufficientStorage)
        for _ in range(2 * HIGH_WATER_BYTES // len(KIB)):
            self.body.feed(KIB)
            if self.source.held:
                break
        self.assertTrue(self.source.held)

    def _failed(self) -> Deferred[None]:
        delivered = self.body.deliver(self.taker)
        self.body.feed(b"one")
        self.taker.done(InsufficientStorage())
        return delivered

    def test_cannot_be_understood(self) -> None:
        """
        A bad chunk is told to the taker's side, behind the job that runs; the bytes before it are never the whole.
        """
        delivered = self.body.deliver(self.taker)
        self.body.feed(b"one")
        self.body.feed(b"two")
        self.body.fail(BadRequest())
        self.assertNoResult(delivered)
        self.taker.done()
        self.failureResultOf(delivered, BadRequest)
        self.assertEqual(b"one", self.taker.taken)

    def test_cannot_be_understood_before_the_taker(self) -> None:
        """A taker that comes later is told at once."""
        self.body.feed(b"one")
        self.body.fail(BadRequest())
        self.failureResultOf(self.body.deliver(self.taker), BadRequest)
        self.assertEqual([], self.taker.batches)

    def test_cancelled(self) -> None:
        """A delivery that is cancelled (the client is gone) gives nothing more to its taker, whose job goes on."""
        delivered = self.body.deliver(self.taker)
        self.body.feed(b"one")
        self.body.feed(b"two")
        delivered.cancel()
        self.failureResultOf(delivered, CancelledError)
        self.taker.done()
        self.body.feed(b"three")
        self.body.end()
        self.assertEqual(b"one", self.taker.taken)

    def test_cancelled_and_the_job_fails(self) -> None:
        """The failure of a job whose delivery was cancelled is nobody's."""
        delivered = self.body.deliver(self.taker)
        self.body.feed(b"one")
        delivered.cancel()
        self.failureResultOf(delivered, CancelledError)
        self.taker.done(InsufficientStorage())
        self.assertEqual([], self.flushLoggedErrors())

    # --- discarding

    def test_discard(self) -> None:
        """
        A body that nobody wants is dropped, what came and what comes, up to a limit; it says once when that is
        passed.
        """
        excesses: list[int] = []
        self.body.feed(b"x" * 50)
        self.body.discard(100, lambda: excesses.append(self.body.received_bytes))
        self.body.feed(b"x" * 60)
        self.body.feed(b"x" * 40)
        self.assertEqual([], excesses)
        self.body.feed(b"x")
        self.body.feed(b"x" * 1000)
        self.assertEqual([151], excesses)
        self.assertEqual((1151, []), (self.body.received_bytes, self.source.calls))

    def test_discard_is_not_held(self) -> None:
        """Nothing is kept, so nothing is held, however much comes."""
        self.body.discard(1 << 40, lambda: None)
        for _ in range(3 * HIGH_WATER_BYTES // len(KIB)):
            self.body.feed(KIB)
        self.body.end()
        self.assertEqual(([], True), (self.source.calls, self.body.ended))

    def test_discard_after_a_failure(self) -> None:
        """The rest of a body whose taker failed is dropped like that."""
        delivered = self._failed()
        excesses: list[int] = []
        self.body.discard(10, lambda: excesses.append(1))
        self.body.feed(b"x" * 11)
        self.failureResultOf(delivered, InsufficientStorage)
        self.assertEqual(([1], b"one"), (excesses, self.taker.taken))

    # --- whatever happens in whatever order

    @by_chance
    @given(
        sizes=st.lists(st.integers(0, 3 << 20), max_size=12),
        takes=st.lists(st.booleans(), max_size=24),
        taker_after=st.integers(0, 12),
    )
    def test_nothing_is_lost(self, sizes: list[int], takes: list[bool], taker_after: int) -> None:
        """
        For any sizes and any pace: every byte in order, the queue never far above the high mark, and reading is never
        held for ever.
        """
        source, taker = FakeSource(), FakeTaker()
        body, delivered, pace, fed = Body(source, None), None, iter(takes), b""
        for number, size in enumerate(sizes):
            if number == taker_after and delivered is None:
                delivered = body.deliver(taker)
            while source.held and delivered is not None:
                taker.done()
            chunk = bytes([number]) * size
            body.feed(chunk)
            fed += chunk
            if next(pace, False) and taker.running is not None:
                taker.done()
        body.end()
        delivered = delivered or body.deliver(taker)
        while taker.running is not None:
            taker.done()
        self.assertIsNone(self.successResultOf(delivered))
        self.assertEqual((fed, False), (taker.taken, source.held))
