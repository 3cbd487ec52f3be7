"""
Garbage collection around the start.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from twisted.trial.unittest import SynchronousTestCase

from resticserver.process import allocator

from ..support.processes import process_test


class CollectionsTests(SynchronousTestCase):
    """When garbage is collected."""

    def setUp(self) -> None:
        self.addCleanup(gc.enable)
        self.addCleanup(gc.unfreeze)

    def test_put_off(self) -> None:
        """None is collected during the start; the garbage of the start is collected at its end, and collecting goes on."""

        class Knot:
            """Refers to itself."""

            def __init__(self) -> None:
                self.itself = self

        allocator.put_off_collections()
        self.assertFalse(gc.isenabled())
        knot = Knot()
        remembered = weakref.ref(knot)
        del knot
        self.assertIsNotNone(remembered())
        allocator.leave_out_what_stays()
        self.assertIsNone(remembered())
        self.assertTrue(gc.isenabled())
        self.assertGreater(gc.get_freeze_count(), 0)


@process_test
class ImportsTests(SynchronousTestCase):
    """What the start of a server with one process leaves out."""

    def test_workers(self) -> None:
        """The modules for workers are imported if there are workers."""
        code = "import resticserver.server, sys; print([name for name in sys.modules if '.workers' in name])"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual("[]\n", found.stdout)
