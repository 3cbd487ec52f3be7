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
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from resticserver.errors import InsufficientStorage
from resticserver.names import TYPES
from resticserver.storage import durable, publish
from resticserver.storage.free_space import space_errors
from resticserver.storage.publish import Mechanisms, Publisher, rename_noreplace
from resticserver.storage.sweep import sweep

from ..contract.files import failing
from ..support.descriptors import left_open, open_descriptors
from ..support.scratch import scratch_directory


def formats(events: Sequence[LogEvent]) -> list[str]:
    """What was logged, without its parts."""
    return [str(event["log_format"]) for event in events]


#: Each way of publishing that there is.
WAYS = (
    Mechanisms(),
    Mechanisms(unnamed=False),
    Mechanisms(unnamed=False, hard_links=False),
    Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False),
)


def make_repository(path: Path) -> Path:
    """A repository that has no config yet, as C{?create=true} makes it."""
    for kind in TYPES:
        (path / kind).mkdir(parents=True)
    return path


def upload_name(number: int = 0) -> str:
    """What an upload is called that has a name before it is published."""
    return f"{number:032x}.upload"


def failing_after(call: Callable[..., Any], allowed: int, code: int) -> Callable[..., Any]:
    """A system call that fails but for the first times; C{close} closes all the same, as Linux does it."""
    left = iter(range(allowed))

    def fail(*args: Any, **named: Any) -> Any:
        if next(left, None) is not None:
            return call(*args, **named)
        if call.__name__ == "close":
            call(*args, **named)
        raise OSError(code, os.strerror(code))

    return fail


class TemporaryCase(SynchronousTestCase):
    """A repository and files on their way into it."""

    def setUp(self) -> None:
        """A repository with one directory, open."""
        self.repository = make_repository(Path(self.mktemp()))
        self.directory = self.repository / "keys"
        self.directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, self.directory_fd)

    def temporary(self, mechanisms: Mechanisms, publisher: Publisher | None = None) -> tuple[Publisher, Any]:
        """A publisher and a temporary file of its."""
        publisher = publisher or Publisher(0o600, 0o700, mechanisms)
        file = publisher.temporary(str(self.directory), self.directory_fd, str(self.repository))
        self.addCleanup(file.discard)
        return publisher, file

    def names(self) -> list[str]:
        """What is there, C{.tmp} included."""
        return sorted(str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file())


class TemporaryFileTests(TemporaryCase):
    """L{Publisher.temporary} and what becomes of the file."""

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
        for number, mechanisms in enumerate(WAYS):
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
        for number, mechanisms in enumerate(WAYS):
            publisher, file = self.temporary(mechanisms)
            for taken in ("directory", "file", "dangling"):
                self.assertRaises(FileExistsError, publisher.publish, file, taken)
            self.assertEqual(b"there", (self.directory / "file").read_bytes())
            self.assertFalse((self.directory / "nowhere").exists())
            publisher.publish(file, f"{number}")
            self.assertTrue((self.directory / f"{number}").exists())

    def test_mode_cannot_be_set(self) -> None:
        """A file whose mode cannot be set is given back at once."""
        before = open_descriptors()
        for mechanisms in (Mechanisms(), Mechanisms(unnamed=False)):
            patch = self.patch(os, "fchmod", failing(errno.EPERM))
            try:
                self.assertRaises(OSError, self.temporary, mechanisms)
            finally:
                patch.restore()
            self.assertEqual([], self.names())
        self.assertEqual([], left_open(before))

    def test_sweep_before_the_lock(self) -> None:
        """A sweep that comes between the making of a file and its lock takes that file; the upload gets another one."""
        real_flock = fcntl.flock
        swept: list[str] = []

        def flock(fd: int, operation: int) -> None:
            if not swept:
                swept.extend(self.names())
                (self.repository / swept[0]).unlink()
                os.rmdir(self.repository / ".tmp")
            real_flock(fd, operation)

        self.patch(fcntl, "flock", flock)
        before = open_descriptors()
        publisher, file = self.temporary(Mechanisms(unnamed=False))
        self.assertEqual(1, len(left_open(before)))
        publisher.publish(file, "there")
        self.assertEqual((1, ["keys/there"]), (len(swept), self.names()))

    def test_replacing_file_is_locked(self) -> None:
        """A file that gets a temporary name only to replace another is locked by then."""
        publisher, file = self.temporary(Mechanisms())
        swept = []
        real_rename = os.rename

        def rename(source: str, target: str) -> None:
            before = self.names()
            swept.append(sweep(str(self.repository)))
            self.assertEqual(before, self.names())
            real_rename(source, target)

        self.patch(os, "rename", rename)
        (self.directory / "damaged").write_bytes(b"x")
        publisher.replace(file, "damaged")
        self.assertEqual(([0], b""), (swept, (self.directory / "damaged").read_bytes()))

    def test_folder_is_no_folder(self) -> None:
        """Where something else has the name of C{.tmp} that is an error, and nobody tries for ever."""
        folder = self.repository / ".tmp"
        for make in (lambda: folder.write_bytes(b""), lambda: folder.symlink_to("nowhere")):
            make()
            self.assertRaises(OSError, self.temporary, Mechanisms(unnamed=False))
            folder.unlink()

    def test_two_files_never_share_a_name(self) -> None:
        """Temporary names do not meet."""
        files = [self.temporary(Mechanisms(unnamed=False))[1] for _ in range(50)]
        self.assertEqual(50, len({file.path for file in files}))


class FaultTests(TemporaryCase):
    """Calls that fail once a name is there, or before: what is stored counts, what is open is closed."""

    def test_each_call(self) -> None:
        """Whichever call fails, when a file is made, published or replaces another: no descriptor is left open."""
        failed = set()
        calls = ("fstat", "fchmod", "open", "link", "unlink", "rename", "stat", "lstat", "close", "fsync")
        for mechanisms, call, code, allowed in product(WAYS, calls, (errno.EIO, errno.EACCES, errno.EPERM), range(4)):
            before = open_descriptors()
            (self.directory / "damaged").write_bytes(b"x")
            patch = self.patch(os, call, failing_after(getattr(os, call), allowed, code))
            try:
                with capturedLogs():
                    self.make_and_publish(Publisher(0o600, 0o700, mechanisms))
            except OSError:
                failed.add(call)
            finally:
                patch.restore()
            self.assertEqual([], left_open(before), f"{mechanisms} {call} {errno.errorcode[code]} after {allowed}")
            (self.directory / "there").unlink(missing_ok=True)
        self.assertLessEqual({"fstat", "fchmod", "open", "link", "rename"}, failed)

    def make_and_publish(self, publisher: Publisher) -> None:
        """Replace one file and publish another; whatever fails, both are given up as an upload is."""
        for give_name, name in ((publisher.replace, "damaged"), (publisher.publish, "there")):
            file = publisher.temporary(str(self.directory), self.directory_fd, str(self.repository))
            try:
                give_name(file, name)
            finally:
                file.discard()

    def test_name_that_cannot_be_removed(self) -> None:
        """The file has its name and keeps it, and says which name is left over; the next start removes that."""
        before = open_descriptors()
        for number in range(8):
            publisher, file = self.temporary(Mechanisms(unnamed=False))
            patch = self.patch(os, "unlink", failing(errno.EIO))
            try:
                with capturedLogs() as events:
                    publisher.publish(file, f"{number}")
                    file.discard()
            finally:
                patch.restore()
            self.assertEqual(["cannot remove {path} ({error}): it will be removed at the next start"], formats(events))
            self.assertTrue((self.directory / f"{number}").exists())
        self.assertEqual([], left_open(before))
        self.assertEqual(8, sweep(str(self.repository)))
        self.assertEqual([f"keys/{number}" for number in range(8)], self.names())

    def test_done_and_failed(self) -> None:
        """
        A call that has done its work and fails all the same, as on a network file system whose answer was lost: the file has
        its name, so it is published.
        """
        for mechanisms in WAYS:
            for call, code in (("link", errno.EEXIST), ("link", errno.EIO), ("rename", errno.EIO)):
                real = getattr(os, call)

                def do_and_fail(*args: Any, real: Any = real, code: int = code, **named: Any) -> Any:
                    real(*args, **named)
                    raise OSError(code, os.strerror(code))

                publisher, file = self.temporary(mechanisms)
                patch = self.patch(os, call, do_and_fail)
                try:
                    publisher.publish(file, "there")
                finally:
                    patch.restore()
                file.discard()
                self.assertEqual(["keys/there"], self.names())
                (self.directory / "there").unlink()

    def test_failed_and_not_done(self) -> None:
        """A name that is another file's is taken, also where that one has the same bytes."""
        (self.directory / "there").write_bytes(b"")
        for mechanisms in WAYS:
            publisher, file = self.temporary(mechanisms)
            self.assertRaises(FileExistsError, publisher.publish, file, "there")
            file.discard()


class RefusalTests(TemporaryCase):
    """What a file system refuses: once, or always; and only that one."""

    CODES = (errno.EPERM, errno.EMLINK, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP)

    def believed(self, publisher: Publisher) -> Mechanisms:
        """What is left for this directory."""
        return publisher.mechanisms_on(self.directory_fd)

    def publish_another(self, publisher: Publisher, name: str) -> None:
        """One more file."""
        _, file = self.temporary(Mechanisms(), publisher)
        os.write(file.fd, name.encode())
        publisher.publish(file, name)
        file.discard()
        self.assertEqual(name.encode(), (self.directory / name).read_bytes())

    def refuse_once(self, module: Any, call: str, code: int, matters: Callable[..., bool]) -> None:
        """The next call of this kind fails, and no other."""
        real = getattr(module, call)
        left = [1]

        def fail_once(*args: Any, **named: Any) -> Any:
            if left and matters(*args):
                left.clear()
                raise OSError(code, os.strerror(code))
            return real(*args, **named)

        self.patch(module, call, fail_once)

    def test_once(self) -> None:
        """One refusal of each way: the file is published by another one, and the next file is taken as before."""
        cases = (
            (WAYS[0], os, "link", lambda source, *_: source.startswith("/proc/")),
            (WAYS[0], os, "open", lambda path, flags, *_: flags & os.O_TMPFILE == os.O_TMPFILE),
            (WAYS[1], os, "link", lambda *_: True),
            (WAYS[2], publish, "rename_noreplace", lambda *_: True),
        )
        number = 0
        for mechanisms, module, call, matters in cases:
            for code in self.CODES:
                if code == errno.EXDEV and (call, mechanisms) != ("link", WAYS[0]):
                    continue  # means that the target is elsewhere
                publisher = Publisher(0o600, 0o700, mechanisms)
                self.refuse_once(module, call, code, matters)
                for _ in range(2):
                    number += 1
                    self.publish_another(publisher, f"{number}")
                    self.assertEqual(mechanisms, self.believed(publisher), f"{call} {errno.errorcode[code]}")
        self.assertEqual(number, len(self.names()))

    def test_always(self) -> None:
        """What is refused for a trial too is left out, is said once, and is tried again after a while."""
        real = os.link
        tried = []

        def refuse(source: str, *args: Any, **named: Any) -> None:
            if source.startswith("/proc/"):
                tried.append(source)
                raise OSError(errno.EPERM, "no")
            real(source, *args, **named)

        now_s = [1000.0]
        self.patch(time, "monotonic", lambda: now_s[0])
        patch = self.patch(os, "link", refuse)
        publisher = Publisher(0o600, 0o700)
        with capturedLogs() as events:
            for number in range(4):
                self.publish_another(publisher, f"{number}")
            self.assertEqual(2, len(tried))
            self.assertEqual(Mechanisms(unnamed=False), self.believed(publisher))
            now_s[0] += publish._REFUSED_S
            self.publish_another(publisher, "later")
            self.assertEqual(4, len(tried))
        self.assertEqual(1, sum("does not support" in text for text in formats(events)))
        patch.restore()
        now_s[0] += publish._REFUSED_S
        self.assertEqual(Mechanisms(), self.believed(publisher))
        self.publish_another(publisher, "at last")
        self.assertEqual([], [name for name in self.names() if name.startswith(".tmp")])

    def test_only_there(self) -> None:
        """What one file system refuses another one below the same data directory may take."""
        elsewhere = scratch_directory(self, needed_bytes=1 << 20)
        if elsewhere.stat().st_dev == self.directory.stat().st_dev:
            raise SkipTest("needs two file systems")
        elsewhere_fd = os.open(elsewhere, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, elsewhere_fd)
        real = os.link

        def refuse(source: str, *args: Any, **named: Any) -> None:
            if named.get("dst_dir_fd") != elsewhere_fd and source.startswith("/proc/"):
                raise OSError(errno.EPERM, "no")
            real(source, *args, **named)

        self.patch(os, "link", refuse)
        publisher = Publisher(0o600, 0o700)
        self.publish_another(publisher, "there")
        self.assertEqual(Mechanisms(unnamed=False), self.believed(publisher))
        self.assertEqual(Mechanisms(), publisher.mechanisms_on(elsewhere_fd))
        file = publisher.temporary(str(elsewhere), elsewhere_fd, str(elsewhere))
        self.assertIsNone(file.path)
        publisher.publish(file, "there")
        file.discard()
        self.assertEqual(["there"], os.listdir(elsewhere))


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
        real = time.time_ns
        self.patch(time, "time_ns", lambda: real() + int(self.later_s * 1e9))

    def settled(self, directory: str | None = None) -> list[str]:
        """What a look at a directory's way made durable."""
        self.synced.clear()
        self.publisher.settle(directory or self.directory, self.top)
        time.sleep(0.02)  # a step of the kernel's clock, so that the next change shows
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
        self.patch(durable, "_MOST_SETTLED", 1)
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
    """L{rename_noreplace}: Linux's call by ctypes."""

    def test_moves(self) -> None:
        """A free name is taken."""
        one, other = Path(self.mktemp()), Path(self.mktemp())
        one.write_bytes(b"1")
        rename_noreplace(str(one), str(other))
        self.assertEqual((False, b"1"), (one.exists(), other.read_bytes()))

    def test_never_replaces(self) -> None:
        """A taken one is not."""
        one, other = Path(self.mktemp()), Path(self.mktemp())
        one.write_bytes(b"1")
        other.write_bytes(b"2")
        error = self.assertRaises(FileExistsError, rename_noreplace, str(one), str(other))
        self.assertEqual(errno.EEXIST, error.errno)
        self.assertEqual((b"1", b"2"), (one.read_bytes(), other.read_bytes()))

    def test_error(self) -> None:
        """The system's error comes through."""
        error = self.assertRaises(OSError, rename_noreplace, self.mktemp(), self.mktemp())
        self.assertEqual(errno.ENOENT, error.errno)

    def test_names_of_any_bytes(self) -> None:
        """Paths that are no UTF-8 are passed on as they are."""
        folder = self.mktemp()
        os.mkdir(folder)
        name = os.fsdecode(b"\xff\xfe")
        Path(folder, name).write_bytes(b"1")
        rename_noreplace(f"{folder}/{name}", f"{folder}/{name}2")
        self.assertEqual([f"{name}2"], os.listdir(folder))

    def test_no_such_call(self) -> None:
        """A C library without it is like a kernel without it."""
        self.patch(ctypes, "CDLL", lambda *_, **__: object())
        publish._renameat2.cache_clear()
        self.addCleanup(publish._renameat2.cache_clear)
        error = self.assertRaises(OSError, rename_noreplace, "a", "b")
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

        self.patch(os.path, "lexists", slowly)
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
    """L{sweep}: what a killed server left in one repository, and nothing else."""

    def setUp(self) -> None:
        """A data directory with a repository that has two leftovers."""
        self.data = Path(self.mktemp()).absolute()
        self.repository = make_repository(self.data / "alice")
        self.folder = self.repository / ".tmp"
        self.leave(self.folder)

    def leave(self, folder: Path) -> None:
        """Two leftovers."""
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / upload_name(number)).write_bytes(b"half")

    def sweep(self, *repository: str) -> int:
        """Sweep one repository."""
        return sweep(str(self.data), repository)

    def test_all(self) -> None:
        """Every upload that nobody holds is removed and counted, and the folder with it."""
        self.assertEqual(2, self.sweep("alice"))
        self.assertFalse(self.folder.exists())
        self.assertEqual(0, self.sweep("alice"))

    def test_locked(self) -> None:
        """What is locked stays."""
        with open(self.folder / upload_name(0), "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.assertEqual(1, self.sweep("alice"))
        self.assertEqual([upload_name(0)], os.listdir(self.folder))
        self.assertEqual(1, self.sweep("alice"))

    def test_no_folder(self) -> None:
        """No repository, or a file where its folder would be, is nothing to sweep."""
        self.assertEqual(0, self.sweep("bob"))
        self.assertEqual(0, sweep(self.mktemp()))
        make_repository(self.data / "bob")
        (self.data / "bob/.tmp").write_bytes(b"")
        self.assertEqual(0, self.sweep("bob"))
        self.assertTrue((self.data / "bob/.tmp").exists())

    def test_other_names(self) -> None:
        """Files that are called otherwise are somebody else's."""
        names = (
            "precious",
            "a.upload",
            "A" * 32 + ".upload",
            "0" * 32,
            "0" * 33 + ".upload",
            "0" * 32 + ".upload\n",
            "f" * 64,
        )
        for name in names:
            (self.folder / name).write_bytes(b"foreign")
        self.assertEqual(2, self.sweep("alice"))
        self.assertEqual(sorted(names), sorted(os.listdir(self.folder)))

    def test_no_regular_files(self) -> None:
        """Whatever else has an upload's name stays, and what it leads to."""
        outside = self.data / "outside"
        outside.write_bytes(b"foreign")
        (self.folder / upload_name(2)).symlink_to(outside)
        (self.folder / upload_name(3)).mkdir()
        os.mkfifo(self.folder / upload_name(4))
        self.assertEqual(2, self.sweep("alice"))
        self.assertEqual([upload_name(number) for number in (2, 3, 4)], sorted(os.listdir(self.folder)))
        self.assertEqual(b"foreign", outside.read_bytes())

    def test_no_repository(self) -> None:
        """A folder that has not what a repository has is somebody else's, whatever is in its C{.tmp}."""
        self.leave(self.data / "bob/.tmp")
        self.leave(self.data / ".tmp")
        for name in ("config", "data2"):
            (self.data / "bob" / name).mkdir()
        for name in TYPES:
            (self.data / "bob" / name).write_bytes(b"foreign")
        self.assertEqual((0, 0), (self.sweep("bob"), self.sweep()))
        self.assertEqual(4, len(list(self.data.glob("**/bob/.tmp/*"))) + len(list((self.data / ".tmp").iterdir())))

    def test_repositories(self) -> None:
        """A config makes a folder one; so does any directory that uploads go to, as after a restore of some objects."""
        self.leave(self.data / "bob/.tmp")
        (self.data / "bob/config").write_bytes(b"")
        self.leave(self.data / ".tmp")
        make_repository(self.data)
        self.assertEqual((2, 2), (self.sweep("bob"), self.sweep()))
        for name in TYPES:
            self.leave(self.data / name / ".tmp")
            (self.data / name / name).mkdir()
            self.assertEqual(2, self.sweep(name))

    def test_links(self) -> None:
        """No link is followed: not to a C{.tmp}, not to a repository, not to what is above one."""
        elsewhere = Path(self.mktemp()).absolute()
        make_repository(elsewhere / "inner")
        self.leave(elsewhere / "inner/.tmp")
        make_repository(self.data / "bob")
        (self.data / "bob/.tmp").symlink_to(elsewhere / "inner/.tmp")
        (self.data / "carol").symlink_to(elsewhere)
        (self.data / "dave").symlink_to(elsewhere / "inner")
        (self.data / "erin").symlink_to("alice")
        self.assertEqual([0] * 4, [self.sweep(*way) for way in (("bob",), ("carol", "inner"), ("dave",), ("erin",))])
        self.assertEqual(2, len(list((elsewhere / "inner/.tmp").iterdir())))
        self.assertTrue((self.data / "bob/.tmp").is_symlink())

    def test_data_directory_may_be_a_link(self) -> None:
        """That is the administrator's word."""
        link = Path(self.mktemp()).absolute()
        link.symlink_to(self.data)
        self.assertEqual(2, sweep(str(link), ("alice",)))

    def test_cannot_be_read(self) -> None:
        """A folder that cannot be read or changed is passed over, and nothing stays open."""
        before = open_descriptors()
        for call in ("open", "listdir", "stat", "unlink"):
            for code in (errno.EACCES, errno.EIO):
                patch = self.patch(os, call, failing(code))
                try:
                    self.assertEqual(0, self.sweep("alice"), call)
                finally:
                    patch.restore()
        self.assertEqual(2, len(list(self.folder.iterdir())))
        self.assertEqual([], left_open(before))


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
