"""
The parts of publishing that the contract of stores does not reach: names of directories, the last fallback's lock,
C{renameat2}, the sweep's count.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage
from resticserver.storage import publish
from resticserver.storage.publish import Mechanisms, Publisher, _rename_noreplace, space_errors, sweep

from .contract.files import failing


class TemporaryFileTests(SynchronousTestCase):
    """L{Publisher.temporary} and what becomes of the file."""

    def setUp(self) -> None:
        """A repository with one directory, open."""
        self.repository = Path(self.mktemp())
        self.directory = self.repository / "keys"
        self.directory.mkdir(parents=True)
        self.directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, self.directory_fd)

    def temporary(self, mechanisms: Mechanisms) -> tuple[Publisher, Any]:
        """A publisher and a temporary file of its."""
        publisher = Publisher(0o600, 0o700, mechanisms)
        file = publisher.temporary(str(self.directory), self.directory_fd, str(self.repository))
        self.addCleanup(file.discard)
        return publisher, file

    def names(self) -> list[str]:
        """What is there, C{.tmp} included."""
        return sorted(str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file())

    def test_unnamed(self) -> None:
        """An unnamed file is nowhere to be seen."""
        self.temporary(Mechanisms())
        self.assertEqual([], self.names())

    def test_named(self) -> None:
        """A named one is in the repository's C{.tmp}, under a name that is no object's, and locked."""
        _, _file = self.temporary(Mechanisms(unnamed=False))
        (name,) = self.names()
        self.assertRegex(name, r"\A\.tmp/[0-9a-f]{32}\.upload\Z")
        with open(self.repository / name, "rb") as other:
            error = self.assertRaises(OSError, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.assertEqual(errno.EWOULDBLOCK, error.errno)

    def test_discard(self) -> None:
        """A discarded file is gone and closed; to discard it again, or one that somebody removed, is allowed."""
        for mechanisms in (Mechanisms(), Mechanisms(unnamed=False)):
            _, file = self.temporary(mechanisms)
            fd = file.fd
            for name in self.names():
                os.unlink(self.repository / name)
            file.discard()
            file.discard()
            self.assertEqual([], self.names())
            self.assertRaises(OSError, os.fstat, fd)

    def test_published_is_not_discarded(self) -> None:
        """Once it has its name a file is no temporary one any more."""
        for number, mechanisms in enumerate(
            (
                Mechanisms(),
                Mechanisms(unnamed=False),
                Mechanisms(unnamed=False, hard_links=False),
                Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False),
            )
        ):
            publisher, file = self.temporary(mechanisms)
            publisher.publish(file, f"{number}")
            file.discard()
            self.assertIn(f"keys/{number}", self.names())
            self.assertEqual(1, (self.directory / f"{number}").stat().st_nlink)
        self.assertEqual(4, len(self.names()))

    def test_taken(self) -> None:
        """A taken name is never replaced, whatever has it, and the file can be published under another."""
        (self.directory / "directory").mkdir()
        (self.directory / "file").write_bytes(b"there")
        (self.directory / "dangling").symlink_to("nowhere")
        for number, mechanisms in enumerate(
            (
                Mechanisms(),
                Mechanisms(unnamed=False),
                Mechanisms(unnamed=False, hard_links=False),
                Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False),
            )
        ):
            publisher, file = self.temporary(mechanisms)
            for taken in ("directory", "file", "dangling"):
                self.assertRaises(FileExistsError, publisher.publish, file, taken)
            self.assertEqual(b"there", (self.directory / "file").read_bytes())
            self.assertFalse((self.directory / "nowhere").exists())
            publisher.publish(file, f"{number}")
            self.assertTrue((self.directory / f"{number}").exists())

    def test_mode_cannot_be_set(self) -> None:
        """A file whose mode cannot be set is given back at once."""
        before = sorted(os.listdir("/proc/self/fd"))
        for mechanisms in (Mechanisms(), Mechanisms(unnamed=False)):
            patch = self.patch(os, "fchmod", failing(errno.EPERM))
            try:
                self.assertRaises(OSError, self.temporary, mechanisms)
            finally:
                patch.restore()
            self.assertEqual([], self.names())
        self.assertEqual(before, sorted(os.listdir("/proc/self/fd")))

    def test_sweep_before_the_lock(self) -> None:
        """A sweep that comes between the making of a file and its lock takes that file; the upload gets another one."""
        real_flock, swept = fcntl.flock, []

        def flock(fd: int, operation: int) -> None:
            if not swept:
                swept.extend(self.names())
                (self.repository / swept[0]).unlink()
                os.rmdir(self.repository / ".tmp")
            real_flock(fd, operation)

        self.patch(fcntl, "flock", flock)
        before = len(os.listdir("/proc/self/fd"))
        publisher, file = self.temporary(Mechanisms(unnamed=False))
        self.assertEqual(before + 1, len(os.listdir("/proc/self/fd")))
        publisher.publish(file, "there")
        self.assertEqual((1, ["keys/there"]), (len(swept), self.names()))

    def test_replacing_file_is_locked(self) -> None:
        """A file that gets a temporary name only to replace another is locked by then."""
        publisher, file = self.temporary(Mechanisms())
        swept = []
        real_rename = os.rename

        def rename(source: str, target: str) -> None:
            swept.append(sweep(str(self.repository)))
            real_rename(source, target)

        self.patch(os, "rename", rename)
        (self.directory / "damaged").write_bytes(b"x")
        publisher.replace(file, "damaged")
        self.assertEqual(([0], b""), (swept, (self.directory / "damaged").read_bytes()))

    def test_two_files_never_share_a_name(self) -> None:
        """Temporary names do not meet."""
        files = [self.temporary(Mechanisms(unnamed=False))[1] for _ in range(50)]
        self.assertEqual(50, len({file.path for file in files}))


class SettleTests(SynchronousTestCase):
    """L{Publisher.settle}: directories that somebody else has made and not made durable yet."""

    def setUp(self) -> None:
        """A data directory with a repository in it, both as old as they have to be."""
        self.top = os.path.abspath(self.mktemp())
        self.repository = os.path.join(self.top, "alice")
        self.directory = os.path.join(self.repository, "keys")
        os.makedirs(self.directory)
        self.publisher = Publisher(0o600, 0o700)
        self.synced: list[str] = []
        self.patch(self.publisher, "fsync_directory", self.synced.append)
        self.later_s = 60.0
        real = publish.time.time_ns
        self.patch(publish.time, "time_ns", lambda: real() + int(self.later_s * 1e9))

    def settled(self, directory: str | None = None) -> list[str]:
        """What a look at a directory's way made durable."""
        self.synced.clear()
        self.publisher.settle(directory or self.directory, self.top)
        return list(self.synced)

    def test_once(self) -> None:
        """All that lead to a directory are made durable, and then no more."""
        self.assertEqual([self.repository, self.top], self.settled())
        self.assertEqual([], self.settled())
        self.assertEqual([], self.settled(self.repository))
        self.assertEqual([], self.settled(self.top))

    def test_changed(self) -> None:
        """Whoever makes a directory: what it was made in is made durable again, and nothing else."""
        self.settled()
        os.mkdir(os.path.join(self.repository, "locks"))
        self.assertEqual([self.repository], self.settled())
        self.assertEqual([], self.settled())

    def test_made_again(self) -> None:
        """A directory that was removed and made anew is a new name, whatever number its inode got."""
        self.settled()
        os.rmdir(self.directory)
        os.mkdir(self.directory)
        self.assertEqual([self.repository], self.settled())

    def test_root(self) -> None:
        """The way ends at the data directory also where that is the root, below which paths have a slash more."""
        self.publisher.settle(f"/{self.directory}", "/")
        self.assertEqual([f"/{self.repository}", f"/{self.top}"], self.synced[:2])
        self.assertEqual("/", self.synced[-1])
        self.synced.clear()
        self.publisher._settled.clear()
        self.publisher.settle("/any", "/")
        self.assertEqual(["/"], self.synced)

    def test_young(self) -> None:
        """Times that are of this moment tell nothing: a change of the same tick would not show."""
        self.later_s = 0.0
        for _ in range(3):
            self.assertEqual([self.repository, self.top], self.settled())
        self.later_s = -3600.0
        self.assertEqual([self.repository, self.top], self.settled())

    def test_memory_is_bounded(self) -> None:
        """What is forgotten is made durable again."""
        self.patch(publish, "_MOST_SETTLED", 1)
        self.assertEqual([self.repository, self.top], self.settled())
        self.assertEqual([self.repository], self.settled(self.directory)[:1])
        self.assertEqual(1, len(self.publisher._settled))

    def test_not_ours(self) -> None:
        """A directory on the way that the server may not read is nothing that it made something in."""

        def refuse(path: str) -> None:
            self.synced.append(path)
            raise PermissionError(errno.EACCES, "no", path)

        self.patch(self.publisher, "fsync_directory", refuse)
        self.assertEqual([self.repository, self.top], self.settled())
        self.assertEqual([], self.settled())

    def test_made_by_another(self) -> None:
        """A directory that is there already may have been made a moment ago: its name is made durable all the same."""
        top = os.path.abspath(self.mktemp())
        os.makedirs(os.path.join(top, "ab"))
        publisher = Publisher(0o600, 0o700)
        synced: list[str] = []
        self.patch(publisher, "fsync_directory", synced.append)
        self.assertFalse(publisher.make_directory(os.path.join(top, "ab")))
        self.assertEqual([top], synced)


class RenameTests(SynchronousTestCase):
    """L{_rename_noreplace}: Linux's call by ctypes."""

    def test_moves(self) -> None:
        """A free name is taken."""
        one, other = Path(self.mktemp()), Path(self.mktemp())
        one.write_bytes(b"1")
        _rename_noreplace(str(one), str(other))
        self.assertEqual((False, b"1"), (one.exists(), other.read_bytes()))

    def test_never_replaces(self) -> None:
        """A taken one is not."""
        one, other = Path(self.mktemp()), Path(self.mktemp())
        one.write_bytes(b"1")
        other.write_bytes(b"2")
        error = self.assertRaises(FileExistsError, _rename_noreplace, str(one), str(other))
        self.assertEqual(errno.EEXIST, error.errno)
        self.assertEqual((b"1", b"2"), (one.read_bytes(), other.read_bytes()))

    def test_error(self) -> None:
        """The system's error comes through."""
        error = self.assertRaises(OSError, _rename_noreplace, self.mktemp(), self.mktemp())
        self.assertEqual(errno.ENOENT, error.errno)

    def test_names_of_any_bytes(self) -> None:
        """Paths that are no UTF-8 are passed on as they are."""
        folder = self.mktemp()
        os.mkdir(folder)
        name = os.fsdecode(b"\xff\xfe")
        Path(folder, name).write_bytes(b"1")
        _rename_noreplace(f"{folder}/{name}", f"{folder}/{name}2")
        self.assertEqual([f"{name}2"], os.listdir(folder))

    def test_no_such_call(self) -> None:
        """A C library without it is like a kernel without it."""
        self.patch(ctypes, "CDLL", lambda *_, **__: object())
        error = self.assertRaises(OSError, _rename_noreplace, "a", "b")
        self.assertEqual(errno.ENOSYS, error.errno)


class PlainRenameTests(SynchronousTestCase):
    """The last fallback: a look and a rename, and nobody in between."""

    def test_one_wins(self) -> None:
        """Of many who publish the same name, in this process and in others, one does; the others hear that it is taken."""
        repository = Path(self.mktemp())
        directory = repository / "keys"
        directory.mkdir(parents=True)
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, directory_fd)
        real = os.path.lexists

        def slowly(path: str) -> bool:
            found = real(path)
            time.sleep(0.002)
            return found

        self.patch(publish.os.path, "lexists", slowly)
        # Each has locks of its own for its threads, as processes have.
        publishers = [Publisher(0o600, 0o700, Mechanisms(False, False, False)) for _ in range(3)]
        outcomes: list[str] = []

        def work(publisher: Publisher, name: str) -> None:
            file = publisher.temporary(str(directory), directory_fd, str(repository))
            try:
                publisher.publish(file, name)
                outcomes.append(name)
            except FileExistsError:
                pass
            finally:
                file.discard()

        for round_number in range(5):
            threads = [threading.Thread(target=work, args=(one, f"{round_number}")) for one in publishers * 3]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual([f"{number}" for number in range(5)], sorted(outcomes))
        self.assertEqual([], os.listdir(repository / ".tmp"))

    def test_without_locks(self) -> None:
        """Where the file system has no locks it is tried all the same."""

        def refuse(fd: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        self.patch(fcntl, "flock", refuse)
        repository = Path(self.mktemp())
        repository.mkdir()
        directory_fd = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, directory_fd)
        publisher = Publisher(0o600, 0o700, Mechanisms(False, False, False))
        file = publisher.temporary(str(repository), directory_fd, str(repository))
        publisher.publish(file, "config")
        self.assertTrue((repository / "config").exists())


class SweepTests(SynchronousTestCase):
    """L{sweep}: what a killed server left in one repository."""

    def setUp(self) -> None:
        """A repository with two leftovers."""
        self.folder = Path(self.mktemp()) / ".tmp"
        self.folder.mkdir(parents=True)
        for name in ("a.upload", "b.upload"):
            (self.folder / name).write_bytes(b"half")

    def test_all(self) -> None:
        """Everything that nobody holds is removed and counted, and the folder with it."""
        self.assertEqual(2, sweep(str(self.folder.parent)))
        self.assertFalse(self.folder.exists())
        self.assertEqual(0, sweep(str(self.folder.parent)))

    def test_locked(self) -> None:
        """What is locked stays."""
        with open(self.folder / "a.upload", "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.assertEqual(1, sweep(str(self.folder.parent)))
        self.assertEqual(["a.upload"], os.listdir(self.folder))
        self.assertEqual(1, sweep(str(self.folder.parent)))

    def test_no_folder(self) -> None:
        """No repository, or a file where its folder would be, is nothing to sweep."""
        self.assertEqual(0, sweep(self.mktemp()))
        file = Path(self.mktemp())
        file.mkdir()
        (file / ".tmp").write_bytes(b"")
        self.assertEqual(0, sweep(str(file)))


class SpaceErrorTests(SynchronousTestCase):
    """L{space_errors}."""

    def test_table(self) -> None:
        """A full disk and a full disk quota get the domain's word; other errors stay what they are."""
        for code, wanted in (
            (errno.ENOSPC, InsufficientStorage),
            (errno.EDQUOT, InsufficientStorage),
            (errno.EIO, OSError),
            (errno.EACCES, PermissionError),
            (errno.ENOENT, FileNotFoundError),
        ):
            with self.assertRaises(wanted) as caught, space_errors():
                raise OSError(code, os.strerror(code))
            self.assertIs(wanted is InsufficientStorage, isinstance(caught.exception, InsufficientStorage))

    def test_cause_is_kept(self) -> None:
        """The system's error stays the cause."""
        with self.assertRaises(InsufficientStorage) as caught, space_errors():
            raise OSError(errno.ENOSPC, "full")
        self.assertIsInstance(caught.exception.__cause__, OSError)


class MechanismTests(SynchronousTestCase):
    """L{Mechanisms}: what is believed before anything was tried."""

    def test_default(self) -> None:
        """Linux is believed to have all of them."""
        if publish._O_TMPFILE and os.path.isdir("/proc/self/fd"):
            self.assertEqual(Mechanisms(True, True, True), Mechanisms())
