"""
L{resticserver.process.start_signals}: signals before the server runs.
"""

from __future__ import annotations

import importlib
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

    def test_within_the_end_of_an_import(self) -> None:
        """Python would print it with a traceback and go on, so it is only noted there."""
        frames: list[FrameType] = []

        def watch(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_globals.get("__name__") == "importlib._bootstrap" and not frames:
                if frame.f_code.co_name == "cb":
                    frames.append(frame)
                    start_signals._end(signal.SIGTERM, frame)

        ignored: list[object] = []
        self.patch(sys, "unraisablehook", ignored.append)
        sys.modules.pop("colorsys", None)
        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            importlib.import_module("colorsys")
        finally:
            sys.setprofile(before)
        self.assertEqual((1, []), (len(frames), ignored))
        self.assertTrue(start_signals.told_to_end())
