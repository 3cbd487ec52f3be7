"""
Wires between two sides of one test, and a reactor that reads and writes when it is told to.
"""

from __future__ import annotations

import json
import select
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from resticserver.threads.serial_jobs import shielded
from resticserver.workers.ipc import Command, Failed, Handlers, Question


class StepReactor(Clock):
    """A clock, and the descriptors that somebody wants to be told about."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        """Twisted's call."""
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        """Twisted's call."""
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        """Twisted's call."""
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        """Twisted's call."""
        self.writers.discard(writer)

    def pump(self) -> None:
        """Let everything be read and written that can be, and the calls of this moment be made."""
        while True:
            self.advance(0)
            readable, writable, _ = select.select(self.readers, self.writers, (), 0)
            if not readable and not writable:
                return
            for reader in readable:
                if reader in self.readers:
                    reader.doRead()
            for writer in writable:
                if writer in self.writers:
                    writer.doWrite()


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
