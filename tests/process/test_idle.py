"""
L{resticserver.process.idle}: only the calling thread gives way.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

from twisted.trial.unittest import SynchronousTestCase

from resticserver.process.idle import LOWEST_NICE, idle_disk, idle_processor

#: C{ioprio_get} on x86-64.
_IOPRIO_GET = 252


class IdleTests(SynchronousTestCase):
    """In a thread of its own."""

    if sys.platform != "linux" or os.uname().machine != "x86_64":
        skip = "the number of the system call is that of x86-64"

    def test_thread(self) -> None:
        """Disk and processor of this thread, and of no other."""
        found: list[object] = []

        def work() -> None:
            found.append(idle_disk())
            idle_processor()
            found.append(ctypes.CDLL(None).syscall(_IOPRIO_GET, 1, 0) >> 13)
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

        before = os.getpriority(os.PRIO_PROCESS, 0)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if found[0] is False:
            raise self.skipTest("this kernel or sandbox has no ioprio_set")
        self.assertEqual([True, 3, LOWEST_NICE], found)
        self.assertNotEqual(3, ctypes.CDLL(None).syscall(_IOPRIO_GET, 1, 0) >> 13)
        self.assertEqual(before, os.getpriority(os.PRIO_PROCESS, 0))
