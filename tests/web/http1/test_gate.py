"""
Reading pauses for several reasons at once.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.web.http1.gate import ReadGate

from ...support.memory import MemoryTransport


class FakeTransfer:
    """Has the socket."""

    def interrupt(self, then: object) -> bool:
        """No job runs."""
        return False


class ReadGateTests(SynchronousTestCase):
    """L{ReadGate}."""

    def setUp(self) -> None:
        self.transport = MemoryTransport()
        self.gate = ReadGate(self.transport, None)

    def test_reasons(self) -> None:
        """Reading goes on when the last reason is gone; a reason counts once however often it is given."""
        self.gate.hold("body")
        self.gate.hold("turn")
        self.gate.hold("turn")
        self.gate.release("turn")
        self.assertEqual("paused", self.transport.producerState)
        self.assertEqual([True, False], [self.gate.is_held_by("body"), self.gate.is_held_by("turn")])
        self.gate.release("body")
        self.assertEqual("producing", self.transport.producerState)
        self.gate.release("body")

    def test_open(self) -> None:
        """All reasons at once."""
        self.gate.hold("body")
        self.gate.hold("write")
        self.gate.open()
        self.assertEqual(("producing", False), (self.transport.producerState, self.gate.is_held_by("write")))

    def test_lent(self) -> None:
        """A transfer that has the socket is one of the reasons."""
        transfer = FakeTransfer()
        self.gate.lend(transfer)
        self.assertEqual(("paused", transfer), (self.transport.producerState, self.gate.holder))
        self.gate.take_back()
        self.assertEqual(("producing", None), (self.transport.producerState, self.gate.holder))
