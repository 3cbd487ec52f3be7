"""
L{resticserver.workers.ipc}: what one process tells and asks another.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, Unavailable
from resticserver.quota.ledger import Account, QuotaExceeded
from resticserver.sizes import Amount
from resticserver.workers import ipc
from resticserver.workers.ipc import (
    Command,
    Failed,
    Handlers,
    IpcConnection,
    IpcConnectionLost,
    Question,
    wired,
)

from ..support.descriptors import no_descriptors
from ..support.wires import StepReactor


@dataclass(frozen=True)
class Note(Command):
    """Something to note."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Take(Command):
    """Take a descriptor."""

    name: str


@dataclass(frozen=True)
class Double(Question[int]):
    """Twice a number."""

    number: Any


@dataclass(frozen=True)
class Slowly(Question[None]):
    """Answered by a coroutine."""


@dataclass(frozen=True)
class Later(Question[str]):
    """Answered when the test says so."""


@dataclass(frozen=True)
class Refuse(Question[None]):
    """Refused, in a way that the question knows or not."""

    known: str = ""

    errors = (InsufficientStorage, Unavailable)


@dataclass(frozen=True)
class Unheard(Question[None]):
    """Not taken."""


@dataclass(frozen=True)
class Convert(Question[None]):
    """Fields that JSON does not have."""

    repository: tuple[str, ...] = wired(tuple)
    change: Amount | None = wired(lambda value: Amount(*value))  # noqa: RUF009


class WireTests(SynchronousTestCase):
    """Two wires, joined."""

    def setUp(self) -> None:
        self.reactor = StepReactor()
        self.told: list[Any] = []
        self.lost: list[str] = []
        self.later: Deferred[str] = Deferred()

        async def slowly() -> str:
            return await self.later

        def refuse(known: str) -> None:
            if known == "quota":
                raise QuotaExceeded(Account("alice"), "5 bytes", "7 bytes", "5 bytes")
            if known:
                raise Unavailable(known)
            raise ValueError("not today")

        def take(fd: int, name: str) -> None:
            self.told.append((name, os.get_inheritable(fd), os.read(fd, 100)))
            os.close(fd)

        handlers: Handlers = {
            Note: lambda values: self.told.append(values),
            Double: lambda number: 2 * number,
            Slowly: lambda: Deferred.fromCoroutine(slowly()),
            Later: lambda: self.later,
            Refuse: refuse,
            Take: take,
            Convert: lambda **values: self.told.append(values),
        }
        self.ends = socket.socketpair()
        self.one = IpcConnection(self.reactor, self.ends[0], "the other", {}, lambda: self.lost.append("one"))
        self.other = IpcConnection(self.reactor, self.ends[1], "the one", handlers, lambda: self.lost.append("other"))
        for end in (self.one, self.other):
            end.start()
            self.addCleanup(end.close)

    def test_tell(self) -> None:
        """What is told arrives, in order, whatever is in it."""
        for number in range(100):
            self.one.tell(
                Note({"number": number, "text": "ü\0\n" + os.fsdecode(b"\xff"), "nothing": None, "many": [1, [2.5]]})
            )
        self.reactor.pump()
        self.assertEqual(list(range(100)), [told["number"] for told in self.told])
        self.assertEqual(
            {"number": 0, "text": "ü\0\n\udcff", "nothing": None, "many": [1, [2.5]]},
            self.told[0],
        )

    def test_closed_with_a_question(self) -> None:
        """A question that nobody waits for when this side closes leaves no unhandled error: a signal may interrupt the start."""
        self.one.ask(Later())
        self.one.close()
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors(IpcConnectionLost))

    def test_ask(self) -> None:
        """An answer is what was returned, or will be; several questions may wait for theirs."""
        first, later, slowly = self.one.ask(Double(number=21)), self.one.ask(Later()), self.one.ask(Slowly())
        self.reactor.pump()
        self.assertEqual(42, self.successResultOf(first))
        self.assertNoResult(later)
        second = self.one.ask(Double(number=2))
        self.reactor.pump()
        self.assertEqual(4, self.successResultOf(second))
        self.later.callback("at last")
        self.reactor.pump()
        self.assertEqual("at last", self.successResultOf(later))
        self.assertIsNone(self.successResultOf(slowly))  # Twisted's chain: the first to wait had the value

    def test_failed(self) -> None:
        """A question that cannot be answered fails with the reason, also one that nobody knows."""
        for question, reason in ((Refuse(), "not today"), (Unheard(), "unknown question: Unheard")):
            answer = self.one.ask(question)
            self.reactor.pump()
            self.assertEqual(reason, str(self.failureResultOf(answer, Failed).value))
        doubled = self.one.ask(Double({}))
        self.reactor.pump()
        self.failureResultOf(doubled, Failed)

    def test_errors(self) -> None:
        """An error of the question is raised as its own class, with all that it says."""
        answer = self.one.ask(Refuse("quota"))
        self.reactor.pump()
        error = self.failureResultOf(answer, InsufficientStorage).value
        self.assertIs(InsufficientStorage, type(error))
        words = "quota of 5 bytes for alice exceeded: upload of 7 bytes, 5 bytes left"
        self.assertEqual((words, "quota", "alice"), (error.message, error.cause, error.limit_of))
        answer = self.one.ask(Refuse("not now"))
        self.reactor.pump()
        self.assertEqual("not now", self.failureResultOf(answer, Unavailable).value.message)

    def test_fields(self) -> None:
        """Fields of other types than JSON has arrive as they were."""
        for change in (Amount(5, 1), None):
            self.one.ask(Convert(("alice", "ü\udcff"), change))
            self.reactor.pump()
            self.assertEqual({"repository": ("alice", "ü\udcff"), "change": change}, self.told[-1])

    def test_unknown(self) -> None:
        """A message that nobody knows, or whose taker fails, is logged and does no harm."""
        with capturedLogs() as events:
            self.one.tell(Unheard())
            self.one.tell(Refuse())
            self.one.tell(Note({"number": 1}))
            self.reactor.pump()
        self.assertEqual(2, len(events))
        self.assertEqual([{"number": 1}], self.told)
        self.flushLoggedErrors()

    def test_who_asked_may_go(self) -> None:
        """An answer that nobody waits for any more does no harm."""
        answer = self.one.ask(Later())
        self.reactor.pump()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.later.callback("too late")
        self.reactor.pump()

    def test_descriptor(self) -> None:
        """A descriptor comes with its message, and no child inherits it; the sender's stays open."""
        pipes = [os.pipe() for _ in range(20)]
        for number, (reading, writing) in enumerate(pipes):
            os.write(writing, b"%d" % number)
            self.assertTrue(self.one.hand_over(reading, Take(f"pipe {number}")))
            self.one.tell(Note({"number": number}))
        self.reactor.pump()
        wanted: list[Any] = []
        for number in range(20):
            wanted += [(f"pipe {number}", False, b"%d" % number), {"number": number}]
        self.assertEqual(wanted, self.told)
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)

    def test_behind(self) -> None:
        """Nothing blocks: what the other does not take waits, in order; a descriptor is not even begun to be sent."""
        count = 0
        while not self.one.waiting_bytes:
            self.one.tell(Note({"number": count, "text": "x" * 10_000}))
            count += 1
        self.one.tell(Note({"number": count}))
        before = self.one.waiting_bytes
        self.assertFalse(self.one.hand_over(0, Take("x")))
        self.assertEqual(before, self.one.waiting_bytes)
        self.reactor.pump()
        self.assertEqual(list(range(count + 1)), [told["number"] for told in self.told])
        self.assertEqual((0, set()), (self.one.waiting_bytes, self.reactor.writers))

    def test_descriptors_behind(self) -> None:
        """As many are sent as the other may have, and the next is refused instead of waited for."""
        sent = 0
        with open(os.devnull, "rb") as file:
            while self.one.hand_over(file.fileno(), Take("null")):
                sent += 1
        self.assertGreater(sent, 10)
        self.reactor.pump()
        self.assertEqual([("null", False, b"")] * sent, self.told)

    def test_no_room_for_a_descriptor(self) -> None:
        """
        A descriptor that this process has no room for is lost, and the taker is told so; frames and descriptors behind it are
        as they were sent.
        """
        taken: list[Any] = []
        self.other.handle({Take: lambda fd, name: taken.append((name, fd))})
        with open(os.devnull, "rb") as file:
            for name in ("one", "two"):
                self.assertTrue(self.one.hand_over(file.fileno(), Take(name)))
            with no_descriptors():
                self.other.doRead()
                self.other.doRead()
            self.assertTrue(self.one.hand_over(file.fileno(), Take("three")))
        self.reactor.pump()
        self.assertEqual([("one", -1), ("two", -1)], taken[:2])
        name, fd = taken[2]
        self.assertEqual("three", name)
        os.close(fd)
        self.assertEqual([], self.lost)

    def test_large(self) -> None:
        """A policy file of some size fits; what is longer than any message may be is refused before it is sent."""
        text = "ü" * 1_000_000
        self.one.tell(Note({"text": text}))
        self.reactor.pump()
        self.assertEqual([{"text": text}], self.told)
        self.patch(ipc, "MOST_BYTES", 1000)
        self.assertRaises(ValueError, self.one.tell, Note({"text": text}))
        self.one.tell(Note({"text": "short"}))
        self.reactor.pump()
        self.assertEqual({"text": "short"}, self.told[1])

    def test_in_pieces(self) -> None:
        """Frames may come in any pieces."""
        frames = b"".join(ipc._frame({"tell": "Note", "with": {"values": {"number": number}}}) for number in range(3))
        for byte in frames:
            self.ends[0].send(bytes([byte]))
            self.reactor.pump()
        self.assertEqual([{"number": 0}, {"number": 1}, {"number": 2}], self.told)

    def test_lost_thread(self) -> None:
        """Bytes that are no frames end the wire, for no size is believed."""
        with capturedLogs() as events:
            self.ends[0].send(struct.pack(">I", ipc.MOST_BYTES + 1))
            self.reactor.pump()
        self.assertEqual((1, ["other", "one"]), (len(events), self.lost))

    def test_lost(self) -> None:
        """When the other side is gone questions fail, now and later, and messages are for nobody."""
        waiting = self.one.ask(Later())
        self.reactor.pump()
        self.other.close()
        self.reactor.pump()
        self.failureResultOf(waiting, IpcConnectionLost)
        self.failureResultOf(self.one.ask(Double(number=1)), IpcConnectionLost)
        self.one.tell(Note({"number": 1}))
        self.assertFalse(self.one.hand_over(0, Take("x")))
        self.assertEqual((["one"], set()), (self.lost, self.reactor.readers))

    def test_last_words(self) -> None:
        """What was said before the end is heard, also by who found out first that nobody listens any more."""
        self.one.handle({Note: lambda values: self.told.append(values)})
        for number in range(3):
            self.other.tell(Note({"number": number}))
        self.other.close()
        for number in range(3):
            self.one.tell(Note({"number": number}))
        self.assertEqual([], self.lost)
        self.one.read_all()
        self.assertEqual([0, 1, 2], [told["number"] for told in self.told])
        self.assertEqual(["one"], self.lost)

    def test_flush(self) -> None:
        """Before a process ends it waits until what it had to say is taken; but not for ever."""
        while not self.one.waiting_bytes:
            self.one.tell(Note({"text": "x" * 10_000}))
        self.one.flush(0.01)
        self.assertEqual(0, self.one.waiting_bytes)
        self.one.tell(Note({"text": "to nobody"}))
        self.one.flush(0.01)
