"""
How many cores there are for this process.
"""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.process.cores import default_workers, usable_cores


class CoresTests(SynchronousTestCase):
    """L{usable_cores}."""

    def setUp(self) -> None:
        """A machine with eight cores, and control groups."""
        self.patch(os, "sched_getaffinity", lambda pid: set(range(8)))
        self.groups = Path(self.mktemp())
        self.group = self.groups / "system.slice" / "restic-rest.service"
        self.group.mkdir(parents=True)
        self.group_file = Path(self.mktemp())
        self.group_file.write_text("1:cpu:/\n0::/system.slice/restic-rest.service\n")

    def cores(self) -> int:
        """What is found."""
        return usable_cores(str(self.group_file), str(self.groups))

    def test_affinity(self) -> None:
        """Without a limit it is the cores that the process may run on."""
        self.assertEqual(8, self.cores())
        self.patch(os, "sched_getaffinity", lambda pid: {3})
        self.assertEqual(1, self.cores())
        (self.group / "cpu.max").write_text("max 100000\n")
        self.assertEqual(1, self.cores())

    def test_quota(self) -> None:
        """The smallest limit of the group and those above it, rounded up; at least one core."""
        (self.group / "cpu.max").write_text("350000 100000\n")
        self.assertEqual(4, self.cores())
        (self.group.parent / "cpu.max").write_text("150000 100000\n")
        self.assertEqual(2, self.cores())
        (self.groups / "cpu.max").write_text("20000 100000\n")
        self.assertEqual(1, self.cores())

    def test_container(self) -> None:
        """In a container the top is its own group."""
        self.group_file.write_text("0::/\n")
        (self.groups / "cpu.max").write_text("200000 100000\n")
        self.assertEqual(2, self.cores())

    def test_unknown(self) -> None:
        """What cannot be read or understood is no limit."""
        for content in ("", "many 100000\n", "100000 0\n", "100000\n"):
            (self.group / "cpu.max").write_text(content)
            self.assertEqual(8, self.cores(), content)
        self.group_file.unlink()
        self.assertEqual(8, self.cores())

    def test_here(self) -> None:
        """It works on this machine."""
        self.patch(os, "sched_getaffinity", lambda pid: {0, 1})
        self.assertIn(usable_cores(), (1, 2))

    def test_workers(self) -> None:
        """One process on one or two cores, and one for each of more."""
        self.assertEqual([1, 1, 3, 4, 16], [default_workers(cores) for cores in (1, 2, 3, 4, 16)])
