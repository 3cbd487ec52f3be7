"""
Power cuts: a file system that is shut down at any moment without a flush of its journal, and mounted again. What was
acknowledged is there, what was deleted is in the trash and does not come back, and nothing is left over.

Also whether L{resticserver.storage.filesystem_types.renames_at_once} is right: on ext4 and XFS a move to the trash is
acknowledged after the fsync of one of both directories.

C{POWER_CUTS} says how many there are on each file system.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from resticserver.storage.filesystem_types import renames_at_once
from resticserver.storage.publish import Publisher

from ..support.crashes import Directory
from ..support.mounts import EXT4, XFS, FileSystem, Mount, mounted
from ..support.processes import process_test

CUTS = int(os.environ.get("POWER_CUTS", "3"))
#: A file system works for so long at most between two cuts.
LONGEST_S = 0.3
#: For so long the processes go on after a cut: they must not acknowledge anything then.
AFTERWARDS_S = 0.02

#: FS_IOC_SHUTDOWN, which all file systems have from XFS, and its flag for "do not flush the journal".
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


#: With room, and inodes, for what a fast machine stores in a hundred rounds.
ROOMY_EXT4 = replace(EXT4, image_bytes=1 << 30)


class Forgetful(Publisher):
    """Flushes nothing."""

    def fsync(self, fd: int) -> None:
        """Do nothing."""


def cut_the_power(mount: Mount) -> None:
    """Shut a file system down: nothing reaches the disk from now on."""
    fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(fd)


@process_test
class PowerCutTests(SynchronousTestCase):
    """One file system for each test, and cut after cut."""

    def cuts(
        self, kind: FileSystem, number: int, publisher: Callable[[], Publisher] = Publisher, processes: int = 1
    ) -> Directory:
        """Cut the power again and again, each time at a moment of its own, until something is wrong."""
        mount = mounted(self, kind)
        directory = Directory(mount.path / "data", publisher)
        directory.make()
        fd = os.open(directory.data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.assertTrue(renames_at_once(fd))
        finally:
            os.close(fd)
        source = random.Random(number)
        for self.done in range(1, number + 1):
            directory.plant_ended()
            directory.begin()
            running = directory.start(processes, 3 // processes)
            time.sleep(source.uniform(0, LONGEST_S))
            for process in running:
                process.listen(directory.journal)
            cut_the_power(mount)
            time.sleep(AFTERWARDS_S)
            for process in running:
                process.kill(directory.journal)
            mount.unmount()
            self.assertEqual("", mount.mount())
            directory.check()
            if directory.bad:
                break
        return directory

    def survives(self, kind: FileSystem, processes: int = 1) -> None:
        """Nothing is wrong after all the cuts."""
        directory = self.cuts(kind, CUTS, processes=processes)
        journal = directory.journal
        words = f"{self.done} power cuts of {kind.mount[2]}, {processes} processes"
        print(f"\n{words}: {journal.acknowledged} steps acknowledged", file=sys.stderr)
        self.assertEqual({}, directory.bad, words)
        self.assertGreater(journal.acknowledged, self.done, "too little was done, so this shows nothing")

    def test_ext4(self) -> None:
        """One process."""
        self.survives(ROOMY_EXT4)

    def test_ext4_processes(self) -> None:
        """As with --workers 3."""
        self.survives(ROOMY_EXT4, processes=3)

    def test_xfs(self) -> None:
        """XFS."""
        self.survives(XFS)

    def test_without_fsync(self) -> None:
        """A server that flushes nothing loses what it acknowledged: the cuts above do show something."""
        directory = self.cuts(EXT4, 20, Forgetful)
        self.assertTrue({"lost", "came back", "wrong"} & set(directory.bad), directory.bad)
