"""
How large an object may be, and how many uploads there may be at once.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import TooLarge, TooManyUploads
from resticserver.limits.uploads import UploadGate
from resticserver.telemetry.limited import Limited

PACK, LOCK = "data", "locks"


class UploadGateTests(SynchronousTestCase):
    """L{UploadGate}."""

    def setUp(self) -> None:
        self.counted: list[str] = []
        self.limited = Limited(Clock(), self.counted.append)

    def test_size(self) -> None:
        """Up to the limit, and not a byte more."""
        gate = UploadGate(self.limited, 1 << 20)
        gate.check_size(1 << 20)
        error = self.assertRaises(TooLarge, gate.check_size, (1 << 20) + 1)
        self.assertEqual("the object is larger than 1 MiB, the most that this server takes", str(error))
        self.assertEqual(["max-object-size"], self.counted)

    def test_uploads(self) -> None:
        """Each end makes room; locks need none."""
        gate = UploadGate(self.limited, 0, 2)
        gate.enter(PACK)
        gate.enter(PACK)
        self.assertRaises(TooManyUploads, gate.enter, PACK)
        gate.enter(LOCK)
        gate.leave(LOCK)
        self.assertRaises(TooManyUploads, gate.enter, PACK)
        gate.leave(PACK)
        gate.enter(PACK)
        self.assertEqual(["max-uploads"] * 2, self.counted)

    def test_none(self) -> None:
        """Without limits everything passes."""
        gate = UploadGate(self.limited)
        for _ in range(1000):
            gate.check_size(1 << 50)
            gate.enter(PACK)
        self.assertEqual([], self.counted)
