"""
L{resticserver.storage.trash_moves} where something is in its way: links and files in the trash, many threads at once, a disk
that is full, a file system that lacks a call, a clock that steps.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, NotFound
from resticserver.sizes import Amount
from resticserver.storage import trash_moves, trash_restore
from resticserver.storage.layout import TRASH_CELL
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher
from resticserver.storage.trash import Trashed, day_name, trash_days, trashed_objects

from ..support.client import object_id
from ..support.scratch import files_below, scratch_directory

LAPTOP = ("alice", "laptop")
DAY_S = 86_400
#: For how long a test that might hang waits.
PATIENCE_S = 60.0


class FaultsCase(SynchronousTestCase):
    """A store with one repository."""

    #: What the file system can do.
    mechanisms = Mechanisms()

    def setUp(self) -> None:
        self.path = scratch_directory(self) / "data"
        self.store = self.new_store()
        self.store.prepare()
        self.store.create_repository(LAPTOP)
        self.laptop = self.path / "alice/laptop"
        self.trash = self.laptop / ".trash"

    def new_store(self, publisher: Publisher | None = None) -> LocalStore:
        """Another store of the same files, as another process has it."""
        return LocalStore(str(self.path), publisher=publisher or Publisher(mechanisms=self.mechanisms))

    def put(self, body: bytes, kind: str = "data") -> str:
        """Upload an object; its name."""
        name = "config" if kind == "config" else object_id(body)
        upload = self.store.upload(LAPTOP, kind, name, len(body))
        upload.open()
        upload.write([body])
        upload.commit()
        return name

    def file(self, name: str, kind: str = "data") -> Path:
        """Where an object lies."""
        return self.laptop / kind / name[:2] / name if kind == "data" else self.laptop / kind / name

    def delete(self, name: str, keep_s: float = DAY_S, kind: str = "data") -> Amount:
        """Delete an object as a client does."""
        return self.store.remove_object(LAPTOP, kind, name, keep_s)

    def trashed(self) -> list[Trashed]:
        """What is in the trash."""
        return [one for day in trash_days(str(self.path), LAPTOP) for one in trashed_objects(day)]

    def expire(self, after_s: float, most: int = 100) -> trash_restore.Expired:
        """Remove what has ended after a time."""
        return self.store.trash.expire(LAPTOP, time.time() + after_s, 0, most)

    def at_once(self, *jobs: Callable[[], object]) -> None:
        """Run jobs in a thread each, and raise what one of them raised; fail where they hang."""
        failed: list[BaseException] = []

        def run(job: Callable[[], object]) -> None:
            try:
                job()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        until_s = time.monotonic() + PATIENCE_S
        for thread in threads:
            thread.join(max(0, until_s - time.monotonic()))
            self.assertFalse(thread.is_alive(), "it hangs")
        if failed:
            raise failed[0]


class InTheWayTests(FaultsCase):
    """Something in the trash is not what it should be. Then an object stays where it was, and the client hears so."""

    def assert_refused(self, name: str) -> None:
        """A deletion fails, and loses nothing."""
        before = files_below(self.laptop)
        self.assertRaises(OSError, self.delete, name)
        self.assertEqual(before, files_below(self.laptop))

    def test_files(self) -> None:
        """The name of the trash, of a day or of a type is a file's."""
        day = day_name(time.time())
        for made in ("", f"/{day}", f"/{day}/data"):
            name = self.put(made.encode())
            blocked = Path(f"{self.trash}{made}")
            blocked.write_bytes(b"")
            self.assert_refused(name)
            self.assertEqual([], self.trashed())
            blocked.unlink()
            self.assertEqual(-1, self.delete(name).objects)
            (found,) = self.trashed()
            self.store.trash.remove(LAPTOP, [found])
            (self.trash / day / "data").rmdir()
            if not made:
                shutil.rmtree(self.trash / day)

    def test_links(self) -> None:
        """Nothing is written through a link."""
        day = day_name(time.time())
        elsewhere = scratch_directory(self)
        for number, made in enumerate(("", f"/{day}", f"/{day}/data")):
            name = self.put(made.encode())
            link = Path(f"{self.trash}{made}")
            link.symlink_to(elsewhere)
            self.assertRaises(OSError, self.delete, name)
            self.assertTrue(self.file(name).exists(), number)
            self.assertEqual([], os.listdir(elsewhere))
            self.assertEqual(Amount(), self.store.counting.count(LAPTOP, (TRASH_CELL,))[TRASH_CELL])
            link.unlink()
            if number < 2:
                link.mkdir()

    def test_links_are_not_read(self) -> None:
        """What a link in the trash leads to is not listed, counted or removed."""
        elsewhere = scratch_directory(self)
        name = object_id(b"mine")
        (elsewhere / "data").mkdir()
        (elsewhere / "data" / name).write_bytes(b"mine")
        (elsewhere / "keep-1s").write_bytes(b"")
        self.trash.mkdir()
        (self.trash / "2001-01-01").symlink_to(elsewhere)
        (self.trash / "2001-01-02").mkdir()
        (self.trash / "2001-01-02/keep-1s").write_bytes(b"")
        (self.trash / "2001-01-02/data").symlink_to(elsewhere / "data")
        (self.trash / "2001-01-02/index").mkdir()
        (self.trash / "2001-01-02/index" / name).symlink_to(elsewhere / "data" / name)
        self.assertEqual([], self.trashed())
        self.expire(1)
        self.assertEqual({f"data/{name}", "keep-1s"}, files_below(elsewhere))

    def test_repository_with_bad_trash(self) -> None:
        """A whole repository is not half deleted."""
        self.put(b"config", "config")
        name = self.put(b"1")
        self.trash.write_bytes(b"")
        self.assertRaises(OSError, self.store.delete_repository, LAPTOP, DAY_S)
        self.assertTrue(self.file(name).exists())
        self.assertTrue((self.laptop / "config").exists())

    def test_directory_of_that_name(self) -> None:
        """Where a directory or a pipe has the name in the trash, the object lies beside it; a restore says that it cannot."""
        name = self.put(b"1")
        day = self.trash / day_name(time.time())
        (day / "data" / name).mkdir(parents=True)
        (day / "data.2").mkdir()
        os.mkfifo(day / "data.2" / name)
        self.assertEqual(Amount(-1, -1), self.delete(name))
        (found,) = self.trashed()
        self.assertEqual(str(day / "data.3" / name), found.path)
        self.file(name).mkdir()
        self.assertRaises(FileExistsError, self.store.trash.restore, found)
        self.file(name).rmdir()
        self.assertTrue(self.store.trash.restore(found))

    def test_link_to_an_object(self) -> None:
        """An object that the administrator has moved and linked: only the link is removed, and its file stays."""
        name = self.put(b"1")
        elsewhere = scratch_directory(self) / "object"
        self.file(name).rename(elsewhere)
        self.file(name).symlink_to(elsewhere)
        self.assertEqual(Amount(-1, -1), self.delete(name))
        self.assertFalse(os.path.lexists(self.file(name)))
        self.assertEqual(b"1", elsewhere.read_bytes())
        self.assertEqual((False, []), (self.trash.exists(), self.trashed()))

    def test_retention_file_missing(self) -> None:
        """Then nothing of that day ends, until something is deleted again."""
        self.delete(self.put(b"1"), 1)
        day = self.trash / day_name(time.time())
        (day / "keep-1s").unlink()
        self.assertEqual((Amount(), None), self.expire(1e9)[::2])
        # As the server knows that it has made that file.
        self.delete(self.put(b"2"), 1)
        self.assertTrue((day / "keep-1s").exists())
        self.assertEqual(Amount(2, 2), self.expire(1e9).removed)
        self.assertFalse(self.trash.exists())

    def test_emptied_and_made_again(self) -> None:
        """
        The trash is emptied just before an object is moved there, and another process makes the day's directory again with a
        shorter delay: the object is kept for as long as it should be.
        """
        self.delete(self.put(b"1"))
        name = self.put(b"2")
        other = self.new_store()
        short = self.put(b"3")
        lock = self.store.trash._shared_lock
        again = [True]

        def emptied(repository: tuple[str, ...]) -> int:
            if again.pop() if again else False:
                self.assertEqual(1, other.trash.expire(LAPTOP, time.time() + 1e9, 0, 100).removed.objects)
                other.remove_object(LAPTOP, "data", short, 1)
            return lock(repository)

        self.patch(self.store.trash, "_shared_lock", emptied)
        self.assertEqual(Amount(-1, -1), self.delete(name))
        delays = {one.name: one.day.delay_s for one in self.trashed()}
        self.assertEqual({name: float(DAY_S), short: float(DAY_S)}, delays)

    def test_trash_removed_by_hand(self) -> None:
        """The server makes it again."""
        for number in range(3):
            self.delete(self.put(b"%d" % number))
            for path in sorted(self.trash.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            if number == 1:
                self.trash.rmdir()
        name = self.put(b"last")
        self.delete(name)
        self.assertEqual([name], [one.name for one in self.trashed()])

    def test_modes(self) -> None:
        """With --group-accessible-repos the group may read and empty the trash, whatever the umask."""
        self.addCleanup(os.umask, os.umask(0o077))
        for publisher, directory_mode, file_mode in ((Publisher(0o660, 0o770), 0o770, 0o660), (None, 0o700, 0o600)):
            self.store = self.new_store(publisher)
            self.delete(self.put(b"1"))
            day = self.trash / day_name(time.time())
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (self.trash, day, day / "data")]
            self.assertEqual([directory_mode] * 3, modes)
            self.assertEqual(file_mode, stat.S_IMODE((day / f"keep-{DAY_S}s").stat().st_mode))
            self.store.trash.remove(LAPTOP, self.trashed())
            self.store.trash.remove_if_empty(trash_days(str(self.path), LAPTOP)[0])


class FullDiskTests(FaultsCase):
    """A disk without room for one more directory."""

    def test_no_room_for_a_day(self) -> None:
        """The deletion is refused as an upload is, and nothing is lost; with room it is done."""
        name = self.put(b"1")
        full = True

        def mkdir(path: str, mode: int = 0o777, **more: object) -> None:
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            made(path, mode)

        made = os.mkdir
        with mock.patch.object(os, "mkdir", mkdir):
            self.assertRaises(InsufficientStorage, self.delete, name)
            self.assertTrue(self.file(name).exists())
            full = False
            self.assertEqual(Amount(-1, -1), self.delete(name))

    def test_no_room_for_a_name(self) -> None:
        """The same where the directory cannot grow."""
        name = self.put(b"1")

        def rename(source: str, target: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

        with mock.patch.object(trash_moves, "rename_noreplace", rename):
            self.assertRaises(InsufficientStorage, self.delete, name)
        self.assertTrue(self.file(name).exists())


class LookFailsTests(FaultsCase):
    """A look at something fails. That does not mean that nothing is there."""

    def fails(self, call: str, path: Path) -> None:
        """Let a look at a path fail until the end of the test."""
        look = getattr(os, call)

        def fail(what: object, *arguments: Any, **named: Any) -> Any:
            if what == str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO), what)
            return look(what, *arguments, **named)

        self.patched = self.patch(os, call, fail)

    def test_deletion_of_a_repository(self) -> None:
        """What cannot be looked at is not removed instead of kept."""
        self.put(b"config", "config")
        name = self.put(b"1")
        for call in ("lstat", "stat"):
            self.fails(call, self.file(name))
            try:
                self.store.delete_repository(LAPTOP, DAY_S)
            except OSError:
                self.assertTrue(self.file(name).exists())
            self.patched.restore()
        with contextlib.suppress(NotFound):
            self.store.delete_repository(LAPTOP, DAY_S)
        self.assertIn(name, [one.name for one in self.trashed()])

    def test_deletion_without_a_trash(self) -> None:
        """Nobody knows how large it was, so it is not removed: the ledger would keep its size."""
        name = self.put(b"1")
        self.fails("lstat", self.file(name))
        self.assertRaises(OSError, self.delete, name, 0)
        self.patched.restore()
        self.assertEqual(Amount(-1, -1), self.delete(name, 0))

    def test_link_without_a_trash(self) -> None:
        """A link to where nobody may look is removed all the same: it counts as nothing."""
        name = self.put(b"1")
        self.file(name).unlink()
        self.file(name).symlink_to(name)
        self.assertEqual(Amount(), self.delete(name, 0))
        self.assertFalse(self.file(name).is_symlink())

    def test_removal_that_was_done(self) -> None:
        """An unlink that reports an error and has done its work counts as done."""
        name = self.put(b"1")
        unlink = os.unlink

        def late(path: str) -> None:
            unlink(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

        self.patch(os, "unlink", late)
        self.assertEqual(Amount(-1, -1), self.delete(name, 0))

    def test_restored_config(self) -> None:
        """No directory is made in the config's place."""
        self.put(b"config", "config")
        self.delete("config", kind="config")
        (kept,) = self.trashed()
        self.fails("stat", self.laptop)
        self.assertRaises(OSError, self.store.trash.restore, kept)
        self.patched.restore()
        self.assertFalse((self.laptop / "config").exists())
        self.assertTrue(self.store.trash.restore(kept))

    def test_nothing_is_replaced_in_the_trash(self) -> None:
        """Without renameat2."""
        self.store = self.new_store(Publisher(mechanisms=Mechanisms(rename_noreplace=False)))
        name = self.put(b"1")
        self.file(name).write_bytes(b"damaged")
        self.delete(name)
        (damaged,) = self.trashed()
        self.put(b"1")
        self.fails("lstat", Path(damaged.path))
        self.assertRaises(OSError, self.delete, name)
        self.patched.restore()
        self.assertEqual(b"damaged", Path(damaged.path).read_bytes())
        self.assertEqual(b"1", self.file(name).read_bytes())

    def test_config_is_not_replaced(self) -> None:
        """Nor is a config by an upload, where a plain rename publishes it."""
        self.put(b"config", "config")
        self.store = self.new_store(Publisher(mechanisms=Mechanisms(False, False, False)))
        self.fails("lstat", self.laptop / "config")
        self.assertRaises(OSError, self.put, b"other", "config")
        self.assertEqual(b"config", (self.laptop / "config").read_bytes())


class RacesTests(FaultsCase):
    """Many threads do different things with the same objects."""

    def test_two_deletions(self) -> None:
        """Of the same object: one counts."""
        for number in range(50):
            name = self.put(b"%d" % number)
            changes: list[Amount] = []
            self.at_once(*[lambda name=name: changes.append(self.delete(name)) for _ in range(4)])  # type: ignore[misc]
            self.assertEqual(-1, sum(change.objects for change in changes))
            self.assertEqual([name], [one.name for one in self.trashed() if one.name == name])

    def test_upload_after_the_look(self) -> None:
        """An object that is uploaded or restored just after a deletion has found nothing stays."""
        name = object_id(b"1")
        lstat = os.lstat
        again = [True]

        def look(path: Any, **more: Any) -> os.stat_result:
            try:
                return lstat(path, **more)
            except FileNotFoundError:
                if str(path).endswith(name) and again and again.pop():
                    self.put(b"1")
                raise

        self.patch(os, "lstat", look)
        self.assertEqual(Amount(), self.delete(name))
        self.assertEqual([], again)
        self.assertEqual(b"1", self.file(name).read_bytes())

    def test_deletions_and_expiry(self) -> None:
        """The directories of the trash vanish and come again all the time, and no deletion fails or hangs."""
        names = [self.put(b"%d" % number) for number in range(300)]
        done = threading.Event()
        removed: list[int] = []

        def expire() -> None:
            while not done.is_set() or self.trash.exists():
                removed.append(self.expire(1e9, most=10).removed.objects)

        left = [3]
        guard = threading.Lock()

        def delete(some: list[str]) -> None:
            try:
                for name in some:
                    self.assertEqual(-1, self.delete(name, 1).objects)
            finally:
                with guard:
                    left[0] -= 1
                    if not left[0]:
                        done.set()

        self.at_once(expire, expire, *[lambda part=part: delete(names[part::3]) for part in range(3)])  # type: ignore[misc]
        self.assertEqual(300, sum(removed))
        self.assertFalse([name for name in names if self.file(name).exists()])

    def test_everything(self) -> None:
        """
        Deletions, uploads and restores of the same objects at once, for a second. An object never vanishes: at the end each is
        live or in the trash.
        """
        bodies = {object_id(b"%d" % number): b"%d" % number for number in range(8)}
        for body in bodies.values():
            self.put(body)
        until_s = time.monotonic() + 1.0

        def act(seed: int) -> None:
            source = random.Random(seed)
            while time.monotonic() < until_s:
                name = source.choice(list(bodies))
                match source.randrange(4):
                    case 0 | 1:
                        self.delete(name)
                    case 2:
                        self.put(bodies[name])
                    case _:
                        for one in self.trashed():
                            try:
                                if one.name == name:
                                    self.store.trash.restore(one)
                            except FileNotFoundError:
                                pass  # another restore was first

        self.at_once(*[lambda seed=seed: act(seed) for seed in range(4)])  # type: ignore[misc]
        kept = [one.name for one in self.trashed()]
        for name in bodies:
            self.assertTrue(name in kept or self.file(name).exists(), name)
            if self.file(name).exists():
                self.assertEqual(bodies[name], self.file(name).read_bytes())


class RacesWithoutRenameat2Tests(RacesTests):
    """The same on a file system that has no RENAME_NOREPLACE, as NFS."""

    mechanisms = Mechanisms(rename_noreplace=False)


class RacesWithoutLinksTests(RacesTests):
    """The same where there are no hard links either, as on exFAT."""

    mechanisms = Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False)

    def setUp(self) -> None:
        def link(source: object, target: object, **more: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), source)

        super().setUp()
        self.patch(os, "link", link)
