"""
L{resticserver.process.start_signals}: signals before the server runs.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from twisted.internet import process
from twisted.trial.unittest import SynchronousTestCase

from resticserver.process import start_signals


class EndTests(SynchronousTestCase):
    """A signal that ends the start."""

    def setUp(self) -> None:
        self.patch(start_signals, "_told", [])

    def test_raises(self) -> None:
        """It raises what ends the program."""
        self.assertRaises(SystemExit, start_signals._end, signal.SIGTERM, sys._getframe())
        self.assertTrue(start_signals.told_to_end())

    def test_within_a_reaper(self) -> None:
        """Twisted would log it with a traceback and go on, so it is only noted there."""
        frames: list[FrameType] = []

        def waitpid(pid: int, options: int) -> tuple[int, int]:
            caller = sys._getframe().f_back
            assert caller is not None
            frames.append(caller)
            start_signals._end(signal.SIGTERM, caller)
            return 0, 0

        class Reaped:
            """A process that still runs."""

        self.patch(os, "waitpid", waitpid)
        process.registerReapProcessHandler(4711, Reaped())
        process.unregisterReapProcessHandler(4711, process.reapProcessHandlers[4711])
        self.assertEqual(["registerReapProcessHandler"], [frame.f_code.co_name for frame in frames])
        self.assertTrue(start_signals.told_to_end())
