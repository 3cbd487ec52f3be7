"""
Wires between two sides of one test, and a reactor that reads and writes when it is told to.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.task import Clock


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
