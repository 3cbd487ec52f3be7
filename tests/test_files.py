"""
Files that are read whole, and when they are read again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver import files
from resticserver.files import WatchedFile, is_directory, read_file


class FileTests(SynchronousTestCase):
    """L{read_file} and L{WatchedFile}."""

    def setUp(self) -> None:
        """A path where nothing is."""
        self.path = Path(self.mktemp())
        self.file = WatchedFile(str(self.path))

    def test_only_regular_files(self) -> None:
        """A FIFO or a device would hold up who reads it, and a directory has no content."""
        os.mkfifo(self.path)
        for path in (str(self.path), "/dev/zero", "/dev/null", os.path.dirname(self.path) or "."):
            self.assertRaises(OSError, read_file, path)
        self.path.unlink()
        self.assertRaises(FileNotFoundError, read_file, str(self.path))

    def test_changes(self) -> None:
        """Once for each change: new content, another file in its place, gone, back."""
        other = Path(self.mktemp())

        def replace() -> None:
            other.write_bytes(b"second")
            other.rename(self.path)

        def make_directory() -> None:
            self.path.unlink()
            self.path.mkdir()

        for change in (
            lambda: self.path.write_bytes(b"one"),
            lambda: self.path.write_bytes(b"longer"),
            replace,
            self.path.unlink,
            lambda: self.path.write_bytes(b"back"),
            make_directory,
        ):
            change()
            self.assertTrue(self.file.changed())
            try:
                content = self.file.read()
            except OSError:
                self.assertFalse(self.path.is_file())
            else:
                self.assertEqual(self.path.read_bytes(), content)
            self.assertFalse(self.file.changed())

    def test_locked(self) -> None:
        """While somebody has it locked, in order to write it anew, it has not changed; to read it all the same is an error."""
        self.path.write_bytes(b"one\n")
        self.file.read()
        with self.path.open("r+b", buffering=0) as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            writer.write(b"tw")
            self.assertFalse(self.file.changed())
            error = self.assertRaises(OSError, self.file.read)
            self.assertIn("it is locked by another program", str(error))
            writer.write(b"o, and more\n")
            self.assertFalse(self.file.changed())
        self.assertTrue(self.file.changed())
        self.assertEqual(b"two, and more\n", self.file.read())
        self.assertFalse(self.file.changed())

    def test_waits_for_the_lock(self) -> None:
        """Who has it locked is waited for, for a while."""
        self.path.write_bytes(b"one\n")
        with self.path.open("r+b", buffering=0) as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)

            def finish() -> None:
                writer.write(b"other\n")
                fcntl.flock(writer, fcntl.LOCK_UN)

            timer = threading.Timer(0.3, finish)
            timer.start()
            self.assertEqual(b"other\n", self.file.read())
            timer.join()

    def test_written_in_place_without_a_lock(self) -> None:
        """Neither the emptied file nor a part of it is taken for the new content."""
        # The timers may be late on a busy machine.
        self.patch(files, "_PAUSES_TORN", 60)
        self.patch(files, "_MOST_LOOKS", 600)
        self.path.write_bytes(b"first\n")
        self.file.read()
        with self.path.open("wb", buffering=0) as writer:
            parts = (b"a:", b"b\nc", b":d\n")
            timers = [threading.Timer(0.05 + 0.25 * n, writer.write, (part,)) for n, part in enumerate(parts)]
            for timer in timers:
                timer.start()
            self.assertTrue(self.file.changed())
            self.assertEqual(b"a:b\nc:d\n", self.file.read())
            for timer in timers:
                timer.join()


class DirectoryTests(SynchronousTestCase):
    """L{is_directory}."""

    def test_table(self) -> None:
        """Only a name that nobody has is missing; what cannot be looked at, is something else or leads nowhere is an error."""
        there = Path(self.mktemp())
        there.mkdir()
        (there / "file").write_bytes(b"")
        for name, target in (("good", "."), ("bad", "nowhere"), ("round", "round"), ("to a file", "file")):
            (there / name).symlink_to(target)
        self.assertEqual([True, True, False], [is_directory(f"{there}/{name}") for name in ("", "good", "nowhere")])
        for name, code in (
            ("file", errno.ENOTDIR),
            ("file/below", errno.ENOTDIR),
            ("to a file", errno.ENOTDIR),
            ("bad", errno.ENOLINK),
            ("round", errno.ELOOP),
            ("x" * 300, errno.ENAMETOOLONG),
        ):
            self.assertEqual(code, self.assertRaises(OSError, is_directory, f"{there}/{name}").errno, name)
