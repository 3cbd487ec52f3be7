"""
Files without waiting, on this machine's own file systems: what is in the caches is had, what is not is not waited for.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from resticserver.errors import NotFound
from resticserver.storage.local import LocalStore
from resticserver.storage.nowait import FileSystemTraits, Nowait
from tests.support.descriptors import left_open, open_descriptors
from tests.support.scratch import scratch_directory

NAME = "ab" * 32
BODY = b"x" * 10_000


class AtOnceTests(SynchronousTestCase):
    """L{Nowait} and L{FileSystemTraits}, where the kernel has them."""

    def setUp(self) -> None:
        self.nowait = Nowait()
        if not self.nowait.available:
            raise SkipTest("needs Linux 5.12")
        self.path = Path(self.mktemp())
        self.path.write_bytes(BODY)

    def test_look(self) -> None:
        """What stat(2) says, for what was looked at just before."""
        self.assertEqual(os.stat(self.path), self.nowait.look(str(self.path)))

    def test_missing(self) -> None:
        """No such file, or that it would have to wait to know; never something else."""
        self.assertRaises((FileNotFoundError, BlockingIOError), self.nowait.look, f"{self.path}.no")
        self.assertRaises((FileNotFoundError, BlockingIOError), self.nowait.open, f"{self.path}.no")

    def test_read(self) -> None:
        """A part of what is in the page cache, and nothing that is only a part of it."""
        fd = self.nowait.open(str(self.path))
        self.addCleanup(os.close, fd)
        self.assertFalse(os.get_inheritable(fd))
        traits = FileSystemTraits.of(fd)
        self.assertEqual(BODY[:100], traits.read(fd, 100, 0))
        self.assertEqual(BODY, traits.read(fd, len(BODY), 0))
        self.assertEqual(b"", traits.read(fd, 0, 0))
        self.assertRaises(BlockingIOError, traits.read, fd, len(BODY) + 1, 0)
        self.assertRaises(BlockingIOError, traits.read, fd, 1, len(BODY))

    def test_not_in_the_cache(self) -> None:
        """What the disk has to bring is not waited for."""
        fd = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, fd)
        traits = FileSystemTraits.of(fd)
        if traits.in_memory or not traits.names:
            raise SkipTest("needs a disk")
        for _ in range(100):
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                traits.read(fd, 100, 0)
            except BlockingIOError:
                break
            time.sleep(0.05)  # the kernel keeps a page that something else uses at the moment
        else:
            self.fail("what is not in the cache was read")
        self.assertEqual(BODY[:100], os.pread(fd, 100, 0))

    def test_odd_names(self) -> None:
        """Names of any bytes."""
        odd = os.fsdecode(os.fsencode(self.path) + b"\xff\xc3\xa9")
        Path(odd).write_bytes(b"odd")
        self.assertEqual(3, self.nowait.look(odd).st_size)


class StoreTests(SynchronousTestCase):
    """What L{LocalStore} makes of it."""

    def setUp(self) -> None:
        self.store = LocalStore(str(scratch_directory(self) / "data"))
        self.store.prepare()
        self.store.create_repository(())
        if not self.store.nowait.available:
            raise SkipTest("needs Linux 5.12")
        self.object = Path(self.store.path, "data", NAME[:2], NAME)
        self.object.write_bytes(BODY)

    def size_nowait(self) -> int | None:
        """Of the object."""
        return self.store.size_nowait((), "data", NAME)

    def test_found_out_in_the_pool(self) -> None:
        """Nothing is asked before a job of the pool has seen what kind of file system that is."""
        stored = self.store.stored((), "data", NAME)
        self.assertEqual((None, False), (self.size_nowait(), stored.open_nowait()))
        self.assertEqual(len(BODY), self.store.size_of((), "data", NAME))
        self.assertEqual(len(BODY), self.size_nowait())
        self.assertTrue(stored.open_nowait())
        self.addCleanup(stored.close)
        self.assertEqual((len(BODY), BODY[5:15]), (stored.size_bytes, stored.read_nowait(5, 10)))

    def test_found_out_by_a_download(self) -> None:
        """Also by one that opens the file."""
        stored = self.store.stored((), "data", NAME)
        stored.open()
        stored.close()
        self.assertEqual(len(BODY), self.size_nowait())

    def test_always_the_file_itself(self) -> None:
        """What is removed, replaced or grown is seen at once, and a missing one is for the pool to say."""
        self.store.size_of((), "data", NAME)
        for content in (b"", b"other", BODY * 2):
            self.object.unlink()
            self.object.write_bytes(content)
            self.assertEqual(len(content), self.size_nowait())
        self.object.unlink()
        self.assertIsNone(self.size_nowait())
        self.assertFalse(self.store.stored((), "data", NAME).open_nowait())
        self.assertRaises(NotFound, self.store.size_of, (), "data", NAME)

    def test_failing_status(self) -> None:
        """A file whose status cannot be read is left to the pool, and is not left open."""
        self.store.size_of((), "data", NAME)
        before = open_descriptors()
        with mock.patch.object(os, "fstat", side_effect=OSError(errno.EIO, "no")):
            self.assertFalse(self.store.stored((), "data", NAME).open_nowait())
        self.assertEqual([], left_open(before))

    def test_no_file(self) -> None:
        """A directory, a FIFO or a dangling link of that name is no object."""
        self.store.size_of((), "data", NAME)
        self.object.unlink()
        for make in (self.object.mkdir, lambda: os.mkfifo(self.object), lambda: self.object.symlink_to("nowhere")):
            make()
            self.assertIsNone(self.size_nowait())
            self.assertFalse(self.store.stored((), "data", NAME).open_nowait())
            if self.object.is_dir():
                self.object.rmdir()
            else:
                self.object.unlink()

    def test_not_trusted(self) -> None:
        """On file systems that may wait all the same, nothing is asked."""
        self.store.size_of((), "data", NAME)
        self.store.nowait._traits[()] = (FileSystemTraits(False, False), self.store.nowait._traits[()][1])
        self.assertIsNone(self.size_nowait())
        self.assertFalse(self.store.stored((), "data", NAME).open_nowait())

    def test_not_for_ever(self) -> None:
        """After a while it is found out again: something else may be mounted there."""
        self.store.size_of((), "data", NAME)
        traits, _ = self.store.nowait._traits[()]
        self.store.nowait._traits[()] = (traits, 0.0)
        self.assertIsNone(self.size_nowait())
        self.store.size_of((), "data", NAME)
        self.assertEqual(len(BODY), self.size_nowait())

    def test_no_descriptor_is_left(self) -> None:
        """Whatever the answer."""
        self.store.size_of((), "data", NAME)
        before = open_descriptors()
        for _ in range(10):
            self.size_nowait()
            stored = self.store.stored((), "data", NAME)
            stored.open_nowait()
            stored.read_nowait(0, 10)
            stored.close()
            self.store.stored((), "data", "cd" * 32).open_nowait()
        self.assertEqual([], left_open(before))
