"""
The state of a request and its answer: whichever of body and answer ends first, what follows, and what transfers do to it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import BadRequest, ServerError
from resticserver.web.http1.body import WAITING_BYTES, Body
from resticserver.web.http1.closing import Closing
from resticserver.web.http1.exchange import Exchange, Timeouts
from resticserver.web.http1.gate import ReadGate
from resticserver.web.http1.options import STALL_TIMEOUT_S
from resticserver.web.http1.socket_writer import SocketWriter

from ...support.memory import MemoryTransport

IDLE_S = 180.0


class FakeRequest:
    """A request with a body."""

    def __init__(self, exchange: Exchange, length: int | None) -> None:
        self.body = Body(exchange, length)
        self.authenticated = False
        self.awaits_continue = False
        self.lost = False

    def begin(self) -> None:
        """Do nothing."""

    def connectionLost(self, reason: Any) -> None:
        """Note it."""
        self.lost = True

    def refuse(self, error: ServerError) -> None:
        """Do nothing."""


class FakeTransfer:
    """Has the socket."""

    def interrupt(self, then: Any) -> bool:
        """No job runs."""
        return False


class ExchangeTests(SynchronousTestCase):
    """L{Exchange}; this case is its connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = MemoryTransport()
        self.transport.protocol = self
        self.transport.registerProducer(self, True)
        self.writer: SocketWriter | None = None
        self.secure = False
        self.ignores_input = False
        self.freed = 0
        self.gate = ReadGate(self.transport, None)
        self.closing = Closing(self, self.clock, self.gate, STALL_TIMEOUT_S)
        self.exchange = Exchange(self, self.gate, self.closing, Timeouts(IDLE_S, STALL_TIMEOUT_S))

    def connectionLost(self, reason: Failure) -> None:
        """The transport's call."""
        self.closing.connection_lost()
        self.exchange.connection_lost(reason)

    def deadline_passed(self) -> None:
        """The closing's call."""
        self.closing.close_idle()

    def client_stalled(self) -> None:
        """The closing's call."""

    def ignore_input(self) -> None:
        """The closing's call."""
        self.ignores_input = True

    def unsent_bytes(self) -> int:
        """The closing's call."""
        return 0

    def next_request(self) -> None:
        """The exchange's call."""
        self.freed += 1

    def begin(self, length: int | None, is_last: bool = False) -> FakeRequest:
        """A request begins."""
        request = FakeRequest(self.exchange, length)
        self.exchange.begin(request, length is None, is_last)
        return request

    def feed(self, request: FakeRequest, size_bytes: int) -> None:
        """Bytes of a body come, and perhaps its end."""
        request.body.feed(bytes(size_bytes))
        if request.body.expected_bytes == 0:
            self.exchange.end_body(request)

    def test_body_first(self) -> None:
        """The usual way: the connection is free at the end of the answer."""
        request = self.begin(5)
        self.feed(request, 5)
        self.assertEqual((request, 0), (self.exchange.request, self.freed))
        self.exchange.end_answer(request)
        self.assertEqual((None, 1, False), (self.exchange.request, self.freed, self.ignores_input))

    def test_answer_first(self) -> None:
        """The rest of a body is dropped; then the connection is free, and nothing is left to close it."""
        request = self.begin(5)
        self.assertFalse(self.exchange.is_last_answer(request))
        self.exchange.end_answer(request)
        self.assertEqual(0, self.freed)
        self.feed(request, 3)
        self.feed(request, 2)
        self.assertEqual((None, 1), (self.exchange.request, self.freed))
        self.clock.advance(Exchange.swallow_timeout_s + 1)
        self.assertFalse(self.transport.half_closed)

    def test_held_body_answered_first(self) -> None:
        """Reading goes on for a body that nothing takes any more, whether its end has come or not."""
        for rest in (0, 1):
            request = self.begin(WAITING_BYTES + 1 + rest)
            self.feed(request, WAITING_BYTES + 1)
            self.assertEqual("paused", self.transport.producerState)
            self.exchange.end_answer(request)
            self.assertEqual("producing", self.transport.producerState)
            self.feed(request, rest)
        self.assertEqual(2, self.freed)

    def test_too_much_to_swallow(self) -> None:
        """How much is dropped depends on who sends it. The answer says before that it is the last."""
        for authenticated, length, last in (
            (False, Exchange.swallow_stranger_bytes, False),
            (False, Exchange.swallow_stranger_bytes + 1, True),
            (True, Exchange.swallow_stranger_bytes + 1, False),
            (True, Exchange.swallow_bytes + 1, True),
        ):
            self.setUp()
            request = self.begin(length)
            request.authenticated = authenticated
            self.assertEqual(last, self.exchange.is_last_answer(request))
            self.exchange.end_answer(request)
            self.assertEqual((last, last), (self.transport.half_closed, self.ignores_input))

    def test_last(self) -> None:
        """After the last answer the connection closes, also if the rest of a body came later."""
        for answer_first in (False, True):
            self.setUp()
            request = self.begin(5, is_last=True)
            if answer_first:
                self.exchange.end_answer(request)
                self.feed(request, 5)
            else:
                self.feed(request, 5)
                self.exchange.end_answer(request)
            self.assertEqual((True, 0), (self.transport.disconnecting, self.freed))

    def test_finish(self) -> None:
        """An idle connection closes at once, a busy one after its answer."""
        request = self.begin(0)
        self.exchange.finish()
        self.assertFalse(self.transport.disconnecting)
        self.exchange.end_answer(request)
        self.assertTrue(self.transport.disconnecting)
        self.setUp()
        self.exchange.finish()
        self.assertTrue(self.transport.disconnecting)

    def test_cannot_be_parsed(self) -> None:
        """Before the answer the body's taker gets the error; after it the connection lingers."""
        request = self.begin(None)
        whole = request.body.whole()
        self.exchange.fail_body(BadRequest())
        self.failureResultOf(whole, BadRequest)
        request = self.begin(None)
        self.exchange.end_answer(request)
        self.exchange.fail_body(BadRequest())
        self.assertTrue(self.transport.half_closed)

    def test_lost(self) -> None:
        """A request whose answer has not ended learns that the connection is gone; an answered one does not."""
        for answered in (False, True):
            self.setUp()
            request = self.begin(5)
            if answered:
                self.exchange.end_answer(request)
            self.transport.abortConnection()
            self.assertEqual(not answered, request.lost)
            self.assertEqual([], self.clock.getDelayedCalls())

    def test_transfer(self) -> None:
        """While a transfer has the socket nothing is read and no deadline runs. It may take all of the body, or a part."""
        for taken, ended in ((5, True), (3, False)):
            self.setUp()
            request = self.begin(5)
            self.exchange.lend(FakeTransfer())
            self.assertEqual("paused", self.transport.producerState)
            self.clock.advance(10 * STALL_TIMEOUT_S)
            self.exchange.take_back(taken)
            self.assertEqual(("producing", ended), (self.transport.producerState, request.body.ended))
            self.assertEqual((taken, 5 - taken), (request.body.received_bytes, request.body.expected_bytes))
            self.clock.advance(STALL_TIMEOUT_S + 1)
            self.assertEqual(not ended, self.transport.disconnecting)

    def test_silence(self) -> None:
        """A client that sends nothing of a body is closed; with reading paused by the disk it has more time."""
        request = self.begin(2 * WAITING_BYTES)
        self.exchange.client_sends()
        self.clock.advance(STALL_TIMEOUT_S - 1)
        self.exchange.client_sends()
        self.feed(request, WAITING_BYTES + 1)
        self.clock.advance(Exchange.held_timeout_s - 1)
        self.exchange.client_sends()
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(2)
        self.assertTrue(self.transport.disconnecting)

    def test_bulk(self) -> None:
        """A body through the reactor's thread is read in large pieces, and what follows its answer is not."""
        usual_bytes = self.transport.bufferSize
        request = self.begin(5)
        self.exchange.read_in_bulk()
        self.assertGreater(self.transport.bufferSize, usual_bytes)
        self.feed(request, 5)
        self.exchange.end_answer(request)
        self.assertEqual(usual_bytes, self.transport.bufferSize)
