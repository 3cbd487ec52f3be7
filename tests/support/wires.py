"""
Wires between two sides of one test, and a reactor that reads and writes when it is told to.
"""

from __future__ import annotations

import json
import select
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from resticserver.threads.interface import shielded
from resticserver.threads.reactor import IReactor
from resticserver.workers.ipc import Command, Failed, Handlers, Question


@implementer(IReactorFDSet)
class StepReactor(Clock):
    """A clock, and the descriptors that wait to be ready: L{pump} is a turn of the reactor."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        self.writers.discard(writer)

    def removeAll(self) -> list[IReadDescriptor | IWriteDescriptor]:
        removed: list[IReadDescriptor | IWriteDescriptor] = [*self.readers, *self.writers]
        self.readers.clear()
        self.writers.clear()
        return removed

    def getReaders(self) -> list[IReadDescriptor]:
        return list(self.readers)

    def getWriters(self) -> list[IWriteDescriptor]:
        return list(self.writers)

    def pump(self, timings: Iterable[float] = (0,)) -> None:
        """Advance by each of C{timings}; after each, make the calls that are due and all reads and writes that are possible."""
        for seconds in timings:
            self.advance(seconds)
            while self._read_and_write():
                self.advance(0)

    def _read_and_write(self) -> bool:
        """Call every descriptor that is ready; whether there was one."""
        readable, writable, _ = select.select(self.readers, self.writers, (), 0)
        for reader in readable:
            if reader in self.readers:
                reader.doRead()
        for writer in writable:
            if writer in self.writers:
                writer.doWrite()
        return bool(readable or writable)


def as_reactor(partial: object) -> IReactor:
    """A reactor of a test, which provides only what the test needs."""
    return cast(IReactor, partial)


class DirectIpc:
    """
    One end of an L{IpcConnection} whose other end is handlers in this process; every message goes through JSON.

    @ivar told: how many commands were sent; C{asked}: how many questions.
    @ivar error: what every question fails with, if set.
    """

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self.told = self.asked = 0
        self.error: Exception | None = None

    def tell(self, command: Command) -> None:
        """Send a command."""
        self.told += 1
        self._call(command)

    def ask(self, question: Question[Any]) -> Deferred[Any]:
        """Ask a question; cancelling does not reach the other side."""
        self.asked += 1
        if self.error is not None:
            return fail(self.error)
        answer = shielded(maybeDeferred(self._call, question))
        return answer.addCallback(lambda value: json.loads(json.dumps(value))).addErrback(self._failed, question)

    def _call(self, command: Command) -> Any:
        values = json.loads(json.dumps(command.to_wire()))
        return self._handlers[type(command)](**command.from_wire(values))

    @staticmethod
    def _failed(failure: Failure, question: Question[Any]) -> Failure:
        if failure.check(CancelledError, *question.errors):
            return failure
        raise Failed(failure.getErrorMessage())
