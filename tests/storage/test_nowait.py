"""
Files without waiting, on this machine's own file systems: what is in the caches is had, what is not is not waited for.
"""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from resticserver.errors import NotFound
from resticserver.storage.local import LocalStore
from resticserver.storage.nowait import AtOnce, Trust
from tests.support.scratch import scratch_directory

NAME = "ab" * 32
BODY = b"x" * 10_000


class AtOnceTests(SynchronousTestCase):
    """L{AtOnce} and L{Trust}, where the kernel has them."""

    def setUp(self) -> None:
        self.at_once = AtOnce()
        if not self.at_once.available:
            raise SkipTest("needs Linux 5.12")
        self.path = Path(self.mktemp())
        self.path.write_bytes(BODY)

    def test_look(self) -> None:
        """What stat(2) says, for what was looked at just before."""
        self.assertEqual(os.stat(self.path), self.at_once.look(str(self.path)))

    def test_missing(self) -> None:
        """No such file, or that it would have to wait to know; never something else."""
        self.assertRaises((FileNotFoundError, BlockingIOError), self.at_once.look, f"{self.path}.no")
        self.assertRaises((FileNotFoundError, BlockingIOError), self.at_once.open, f"{self.path}.no")

    def test_read(self) -> None:
        """A part of what is in the page cache, and nothing that is only a part of it."""
        fd = self.at_once.open(str(self.path))
        self.addCleanup(os.close, fd)
        self.assertFalse(os.get_inheritable(fd))
        trust = Trust.of(fd)
        self.assertEqual(BODY[:100], trust.read(fd, 100, 0))
        self.assertEqual(BODY, trust.read(fd, len(BODY), 0))
        self.assertEqual(b"", trust.read(fd, 0, 0))
        self.assertRaises(BlockingIOError, trust.read, fd, len(BODY) + 1, 0)
        self.assertRaises(BlockingIOError, trust.read, fd, 1, len(BODY))

    def test_not_in_the_cache(self) -> None:
        """What the disk has to bring is not waited for."""
        fd = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, fd)
        trust = Trust.of(fd)
        if trust.in_memory or not trust.names:
            raise SkipTest("needs a disk")
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.assertRaises(BlockingIOError, trust.read, fd, 100, 0)
        self.assertEqual(BODY[:100], os.pread(fd, 100, 0))

    def test_odd_names(self) -> None:
        """Names of any bytes."""
        odd = os.fsdecode(os.fsencode(self.path) + b"\xff\xc3\xa9")
        Path(odd).write_bytes(b"odd")
        self.assertEqual(3, self.at_once.look(odd).st_size)


class StoreTests(SynchronousTestCase):
    """What L{LocalStore} makes of it."""

    def setUp(self) -> None:
        self.store = LocalStore(str(scratch_directory(self) / "data"))
        self.store.prepare()
        self.store.create_repository(())
        if not self.store.at_once.available:
            raise SkipTest("needs Linux 5.12")
        self.object = Path(self.store.path, "data", NAME[:2], NAME)
        self.object.write_bytes(BODY)

    def size_at_once(self) -> int | None:
        """Of the object."""
        return self.store.size_at_once((), "data", NAME)

    def test_found_out_in_the_pool(self) -> None:
        """Nothing is asked before a job of the pool has seen what kind of file system that is."""
        stored = self.store.stored((), "data", NAME)
        self.assertEqual((None, False), (self.size_at_once(), stored.open_at_once()))
        self.assertEqual(len(BODY), self.store.size_of((), "data", NAME))
        self.assertEqual(len(BODY), self.size_at_once())
        self.assertTrue(stored.open_at_once())
        self.addCleanup(stored.close)
        self.assertEqual((len(BODY), BODY[5:15]), (stored.size_bytes, stored.read_at_once(5, 10)))

    def test_found_out_by_a_download(self) -> None:
        """Also by one that opens the file."""
        stored = self.store.stored((), "data", NAME)
        stored.open()
        stored.close()
        self.assertEqual(len(BODY), self.size_at_once())

    def test_always_the_file_itself(self) -> None:
        """What is removed, replaced or grown is seen at once, and a missing one is for the pool to say."""
        self.store.size_of((), "data", NAME)
        for content in (b"", b"other", BODY * 2):
            self.object.unlink()
            self.object.write_bytes(content)
            self.assertEqual(len(content), self.size_at_once())
        self.object.unlink()
        self.assertIsNone(self.size_at_once())
        self.assertFalse(self.store.stored((), "data", NAME).open_at_once())
        self.assertRaises(NotFound, self.store.size_of, (), "data", NAME)

    def test_no_file(self) -> None:
        """A directory, a FIFO or a dangling link of that name is no object."""
        self.store.size_of((), "data", NAME)
        self.object.unlink()
        for make in (self.object.mkdir, lambda: os.mkfifo(self.object), lambda: self.object.symlink_to("nowhere")):
            make()
            self.assertIsNone(self.size_at_once())
            self.assertFalse(self.store.stored((), "data", NAME).open_at_once())
            if self.object.is_dir():
                self.object.rmdir()
            else:
                self.object.unlink()

    def test_not_trusted(self) -> None:
        """On file systems that may wait all the same, nothing is asked."""
        self.store.size_of((), "data", NAME)
        self.store._trusts[()] = (Trust(False, False), self.store._trusts[()][1])
        self.assertIsNone(self.size_at_once())
        self.assertFalse(self.store.stored((), "data", NAME).open_at_once())

    def test_not_for_ever(self) -> None:
        """After a while it is found out again: something else may be mounted there."""
        self.store.size_of((), "data", NAME)
        trust, _ = self.store._trusts[()]
        self.store._trusts[()] = (trust, 0.0)
        self.assertIsNone(self.size_at_once())
        self.store.size_of((), "data", NAME)
        self.assertEqual(len(BODY), self.size_at_once())

    def test_no_descriptor_is_left(self) -> None:
        """Whatever the answer."""
        self.store.size_of((), "data", NAME)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            self.size_at_once()
            stored = self.store.stored((), "data", NAME)
            stored.open_at_once()
            stored.read_at_once(0, 10)
            stored.close()
            self.store.stored((), "data", "cd" * 32).open_at_once()
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))
