"""
L{resticserver.storage.trash} and L{resticserver.storage.trash_moves}: deleted objects move to the trash and back, nothing is
replaced on the way, and nothing ends early.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, NoSuchRepository, NotFound
from resticserver.sizes import Amount
from resticserver.storage import local, trash, trash_keep, trash_moves, trash_restore
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.interface import NotDurable
from resticserver.storage.layout import CELLS, TRASH_CELL, Repository
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher
from resticserver.storage.trash import (
    TrashDay,
    Trashed,
    keep_name,
    read_delay,
    trash_days,
    trash_words,
    trashed_objects,
)
from resticserver.storage.trash_restore import Damaged

from ..contract.store import entries, id_of, load, save
from ..support.scratch import scratch_directory

ALICE: Repository = ("alice",)
KINDS = ("data", "index", "keys", "snapshots")
DAY_S = trash.DAY_S
MONTH_S = 30 * DAY_S


class TrashCase(SynchronousTestCase):
    """A store with a repository."""

    mechanisms = Mechanisms()

    def setUp(self) -> None:
        self.data = scratch_directory(self) / "data"
        self.store = self.make_store()
        self.store.create_repository(ALICE)
        save(self.store, ALICE, "config", b"its config", "config")
        self.top = self.data / "alice" / ".trash"
        self.now_s = time.time()

    def make_store(self) -> LocalStore:
        """A store over the directory."""
        publisher = Publisher(mechanisms=self.mechanisms)
        store = LocalStore(str(self.data), publisher=publisher, snapshots=Snapshots(keeps_times=lambda fd: False))
        store.prepare()
        return store

    def put(self, content: bytes, kind: str = "data") -> str:
        """Store an object; its name."""
        save(self.store, ALICE, kind, content)
        return id_of(content)

    def delete(self, name: str, kind: str = "data", keep_s: float = MONTH_S) -> Amount:
        """Delete an object."""
        return self.store.remove_object(ALICE, kind, name, keep_s)

    def live(self, name: str, kind: str = "data") -> Path:
        """Where an object lies."""
        return Path(self.store.object_path(ALICE, kind, name))

    def trashed(self) -> list[Trashed]:
        """What is in the trash."""
        return [one for day in trash_days(str(self.data), ALICE) for one in trashed_objects(day)]

    def names(self) -> set[tuple[str, str]]:
        """Types and names in the trash."""
        return {(one.object_type, one.name) for one in self.trashed()}

    def one(self) -> Trashed:
        """The one object in the trash."""
        (found,) = self.trashed()
        return found

    def expire(self, later_s: float, delay_s: float = 0, most: int = 100) -> trash_restore.Expired:
        """A step of the expiry, so many seconds from now."""
        return self.store.trash.expire(ALICE, time.time() + later_s, delay_s, most)


class KeepTests(TrashCase):
    """Into the trash."""

    def test_each_type(self) -> None:
        """The file moves to the day's directory as it is, and for clients it is gone; locks are removed."""
        day = time.strftime("%Y-%m-%d", time.gmtime())
        for kind in KINDS:
            name = self.put(kind.encode(), kind)
            inode = self.live(name, kind).stat().st_ino
            self.assertEqual(Amount(-len(kind), -1), self.delete(name, kind))
            moved = self.top / day / kind / name
            self.assertEqual((inode, kind.encode()), (moved.stat().st_ino, moved.read_bytes()))
            self.assertRaises(NotFound, load, self.store, ALICE, kind, name)
            self.assertEqual([], entries(self.store, ALICE, kind))
        lock = self.put(b"a lock", "locks")
        self.assertEqual(Amount(-6, -1), self.delete(lock, "locks"))
        self.assertFalse((self.top / day / "locks").exists())
        self.assertEqual(MONTH_S, read_delay(str(self.top / day)))

    def test_without_delay(self) -> None:
        """Without a delay there is no trash."""
        self.delete(self.put(b"x"), keep_s=0)
        self.assertFalse(self.top.exists())

    def test_missing(self) -> None:
        """What is not there is no error, and leaves no trash."""
        self.assertEqual(Amount(), self.delete(id_of(b"never")))
        self.assertRaises(NotFound, self.store.delete_repository, ("nobody",), MONTH_S)
        self.assertFalse(self.top.exists())

    def test_again(self) -> None:
        """The same object may come again and be deleted again, any number of times a day: one copy is enough."""
        for _ in range(3):
            self.delete(self.put(b"again"))
        self.assertEqual({("data", id_of(b"again"))}, self.names())
        self.assertEqual(1, len(self.trashed()))

    def test_again_renews(self) -> None:
        """The copy that stays counts from the second deletion."""
        self.delete(self.put(b"again"))
        before_ns = self.one().changed_ns
        time.sleep(0.02)
        self.delete(self.put(b"again"))
        self.assertGreater(self.one().changed_ns, before_ns)

    def test_other_content(self) -> None:
        """What has another content than its namesake in the trash never takes its place."""
        name = self.put(b"good")
        self.delete(name)
        for content in (b"bad", b"worse"):
            self.live(name).write_bytes(content)
            self.delete(name)
        found = {Path(one.path).parent.name: Path(one.path).read_bytes() for one in self.trashed()}
        self.assertEqual({"data": b"good", "data.2": b"bad", "data.3": b"worse"}, found)

    def test_config(self) -> None:
        """A config lies under its hash, so that several repositories' have a place."""
        for content in (b"its config", b"another"):
            self.store.remove_object(ALICE, "config", "config", MONTH_S)
            save(self.store, ALICE, "config", b"another", "config") if content == b"its config" else None
        self.assertEqual({("config", id_of(b"its config")), ("config", id_of(b"another"))}, self.names())

    def test_longer_delay(self) -> None:
        """The longest delay of a day holds for the day; a shorter one changes nothing."""
        self.delete(self.put(b"1"), keep_s=100)
        self.delete(self.put(b"2"), keep_s=1000.5)
        self.delete(self.put(b"3"), keep_s=10)
        (day,) = trash_days(str(self.data), ALICE)
        self.assertEqual(1001, day.delay_s)
        fresh = self.make_store()
        self.assertEqual(Amount(-1, -1), fresh.remove_object(ALICE, "data", self.put(b"4"), 5))
        self.assertEqual(1001, trash_days(str(self.data), ALICE)[0].delay_s)

    def test_emptied_in_between(self) -> None:
        """Another program may remove the directories at any time: they are made again, with the delay."""
        for _ in range(2):
            self.delete(self.put(b"x"))
            (day,) = trash_days(str(self.data), ALICE)
            self.store.trash.remove(ALICE, self.trashed())
            self.make_store().trash.remove_if_empty(day)
            self.assertFalse(self.top.exists())
        self.delete(self.put(b"x"))
        self.assertEqual(MONTH_S, trash_days(str(self.data), ALICE)[0].delay_s)

    def synced(self) -> list[str]:
        """The directories and files that are flushed from now on, below the data directory."""
        found: list[str] = []
        real = self.store.publisher.fsync

        def fsync(fd: int) -> None:
            found.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self.data))
            real(fd)

        self.patch(self.store.publisher, "fsync", fsync)
        return found

    def test_durable(self) -> None:
        """Both directories are flushed before the deletion is answered, the trash's first."""
        self.patch(trash_keep, "renames_at_once", lambda fd: False)
        name = self.put(b"x")
        synced = self.synced()
        self.delete(name)
        day = time.strftime("%Y-%m-%d", time.gmtime())
        self.assertEqual([f"alice/.trash/{day}/data", f"alice/data/{name[:2]}"], synced[-2:])
        self.assertTrue({"alice", "alice/.trash", f"alice/.trash/{day}"} <= set(synced), synced)
        self.assertIn(f"alice/.trash/{day}/{keep_name(MONTH_S)}", synced)
        # A deletion that failed there is asked for again: what it moved is made durable then.
        synced.clear()
        self.delete(name)
        self.assertEqual([f"alice/.trash/{day}/data", f"alice/data/{name[:2]}"], [synced[0], synced[-1]])

    def test_durable_at_once(self) -> None:
        """Where the journal has a rename as one transaction, one of both is flushed."""
        self.patch(trash_keep, "renames_at_once", lambda fd: True)
        self.delete(self.put(b"y"))
        name = self.put(b"x")
        synced = self.synced()
        self.delete(name)
        self.assertEqual([f"alice/data/{name[:2]}"], synced)

    def test_not_durable(self) -> None:
        """An fsync that fails is an error with the change; the object is in the trash."""
        name = self.put(b"x")
        self.delete(self.put(b"y"))

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "broken")

        patch = self.patch(self.store.publisher, "fsync", fail)
        error = self.assertRaises(NotDurable, self.delete, name)
        patch.restore()
        self.assertEqual(Amount(-1, -1), error.change)
        self.assertIn(("data", name), self.names())

    def test_no_space(self) -> None:
        """Where there is no room for a directory the object stays where it was."""
        name = self.put(b"x")

        def fail(path: str, *_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        self.patch(os, "mkdir", fail)
        self.assertRaises(InsufficientStorage, self.delete, name)
        self.assertEqual(b"x", load(self.store, ALICE, "data", name))

    def test_every_call_fails(self) -> None:
        """Whichever call of a deletion fails, the object is in one of both places, and whole."""
        for call in ("mkdir", "open", "stat", "lstat", "fsync"):
            real: Callable[..., Any] = getattr(os, call)
            for after in range(12):
                name = self.put(f"{call} {after}".encode())
                left = [after]

                def fail(
                    *arguments: Any, _real: Callable[..., Any] = real, _left: list[int] = left, **named: Any
                ) -> Any:
                    if _left[0] == 0:
                        _left[0] = -1
                        raise OSError(errno.EIO, "broken")
                    _left[0] -= 1
                    return _real(*arguments, **named)

                patch = self.patch(os, call, fail)
                try:
                    self.delete(name)
                except OSError:
                    pass
                finally:
                    patch.restore()
                places = [self.live(name).exists(), ("data", name) in self.names()]
                self.assertEqual(1, sum(places), f"{call} after {after}: {places}")

    def test_by_many_at_once(self) -> None:
        """Of many that delete the same object one moves it; it lies in the trash once."""
        for number in range(20):
            name = self.put(f"{number}".encode())
            changes: list[Amount] = []
            threads = [
                threading.Thread(target=lambda name=name, found=changes: found.append(self.delete(name)))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(1, sum(change != Amount() for change in changes))
        self.assertEqual(20, len(self.trashed()))

    def test_repository(self) -> None:
        """A repository goes to its own trash, the config first, and is no repository any more; its folder stays."""
        for kind in KINDS:
            self.put(kind.encode(), kind)
        self.put(b"a lock", "locks")
        (self.data / "alice" / "notes.txt").write_text("mine")
        self.store.delete_repository(ALICE, MONTH_S)
        names = {(kind, id_of(kind.encode())) for kind in KINDS}
        self.assertEqual(names | {("config", id_of(b"its config"))}, self.names())
        self.assertEqual({".trash", "notes.txt"}, set(os.listdir(self.data / "alice")))
        self.assertRaises(NotFound, self.store.delete_repository, ALICE, MONTH_S)
        self.assertRaises(NotFound, save, self.store, ALICE, "data", b"a late upload")
        self.assertEqual([ALICE], self.store.counting.repositories())


class PlainRenameTests(KeepTests):
    """The same on a file system without renameat2 and hard links."""

    mechanisms = Mechanisms(unnamed=False, hard_links=False, rename_noreplace=False)


class OtherFileSystemTests(TrashCase):
    """The trash is on another file system than an object: C{data} is a link to another disk."""

    def test_copied(self) -> None:
        """A copy is made, with the time of the original, and the original is removed."""

        def fail(source: str, target: str) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), target)

        self.patch(trash_moves, "rename_noreplace", fail)
        name = self.put(b"x" * 3_000_000)
        os.utime(self.live(name), (1_000_000_000, 1_000_000_000))
        self.delete(name)
        self.assertFalse(self.live(name).exists())
        one = self.one()
        self.assertEqual(
            (b"x" * 3_000_000, 1_000_000_000), (Path(one.path).read_bytes(), int(os.stat(one.path).st_mtime))
        )
        self.assertTrue(self.store.trash.restore(one))
        self.assertEqual(b"x" * 3_000_000, load(self.store, ALICE, "data", name))
        self.assertEqual([], self.trashed())

    def test_no_room_for_a_copy(self) -> None:
        """Then nothing has happened."""

        def fail(source: str, target: str) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), target)

        def full(fd: int, chunk: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        name = self.put(b"x")
        self.delete(self.put(b"y"))
        self.patch(trash_moves, "rename_noreplace", fail)
        patch = self.patch(os, "write", full)
        self.assertRaises(InsufficientStorage, self.delete, name)
        patch.restore()
        self.assertEqual(b"x", load(self.store, ALICE, "data", name))
        self.assertEqual({("data", id_of(b"y"))}, self.names())


class RestoreTests(TrashCase):
    """Out of the trash."""

    def restore(self) -> list[bool]:
        """Restore everything."""
        return [self.store.trash.restore(one) for one in self.trashed()]

    def test_each_type(self) -> None:
        """What was deleted is as it was, its times included."""
        for kind in KINDS:
            name = self.put(kind.encode(), kind)
            os.utime(self.live(name, kind), (1_000_000_000, 1_000_000_000))
            self.delete(name, kind)
        self.store.remove_object(ALICE, "config", "config", MONTH_S)
        self.assertEqual([True] * 5, self.restore())
        for kind in KINDS:
            self.assertEqual(kind.encode(), load(self.store, ALICE, kind, id_of(kind.encode())))
            self.assertEqual(1_000_000_000, int(self.live(id_of(kind.encode()), kind).stat().st_mtime))
        self.assertEqual(b"its config", load(self.store, ALICE, "config", "config"))
        self.assertEqual([], self.trashed())

    def test_deleted_repository(self) -> None:
        """Its directories are made again."""
        for kind in KINDS:
            self.put(kind.encode(), kind)
        self.store.delete_repository(ALICE, MONTH_S)
        self.restore()
        for kind in KINDS:
            self.assertEqual(kind.encode(), load(self.store, ALICE, kind, id_of(kind.encode())))
        save(self.store, ALICE, "locks", b"a lock")

    def test_there_already(self) -> None:
        """The same object that was uploaded again stays, and so does the copy in the trash."""
        self.delete(self.put(b"x"))
        inode = os.stat(self.one().path).st_ino
        self.put(b"x")
        self.assertEqual([False], self.restore())
        self.assertNotEqual(inode, self.live(id_of(b"x")).stat().st_ino)
        self.assertEqual(1, len(self.trashed()))

    def test_never_replaces(self) -> None:
        """Whatever has its name stays, also if it is damaged, and so does the good copy."""
        self.delete(self.put(b"x"))
        self.live(id_of(b"x")).write_bytes(b"something else")
        self.assertRaises(FileExistsError, self.restore)
        self.assertEqual(b"something else", self.live(id_of(b"x")).read_bytes())
        self.assertEqual(b"x", Path(self.one().path).read_bytes())

    def test_damaged(self) -> None:
        """What is damaged in the trash is not restored."""
        self.delete(self.put(b"x"))
        Path(self.one().path).write_bytes(b"y")
        self.assertRaises(Damaged, self.restore)
        self.assertFalse(self.live(id_of(b"x")).exists())

    def test_killed_between(self) -> None:
        """A restore that had linked the file and was killed before it removed the other name is completed."""
        self.delete(self.put(b"x"))
        os.link(self.one().path, self.live(id_of(b"x")))
        self.assertEqual([True], self.restore())
        self.assertEqual((b"x", []), (self.live(id_of(b"x")).read_bytes(), self.trashed()))

    def test_gone_or_another(self) -> None:
        """What was listed and is gone, or is another file by now, is not restored."""
        self.delete(self.put(b"x"))
        one = self.one()
        moved = Path(one.path).rename(self.data / "elsewhere")
        self.assertRaises(FileNotFoundError, self.store.trash.restore, one)
        self.assertFalse(self.live(id_of(b"x")).exists())
        self.assertEqual(b"x", moved.read_bytes())

    def test_without_renameat2(self) -> None:
        """By a link where there are links, else by a rename under the lock of uploads."""
        for mechanisms in (Mechanisms(rename_noreplace=False), Mechanisms(False, False, False)):
            self.store.publisher.mechanisms = mechanisms
            if not mechanisms.hard_links:

                def refuse(*_: Any, **__: Any) -> None:
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM))

                self.patch(os, "link", refuse)
            self.delete(self.put(b"x"))
            self.assertEqual([True], self.restore())
            self.assertEqual(b"x", self.live(id_of(b"x")).read_bytes())
            self.delete(id_of(b"x"))
            self.live(id_of(b"x")).write_bytes(b"other")
            self.assertRaises(FileExistsError, self.restore)
            self.live(id_of(b"x")).unlink()
            self.store.trash.remove(ALICE, self.trashed())


class ExpiryTests(TrashCase):
    """The end."""

    def test_time(self) -> None:
        """Never before its time, and then at once."""
        self.delete(self.put(b"x"), keep_s=100)
        early = self.expire(90)
        self.assertEqual((Amount(), False), (early.removed, early.more))
        assert early.next_s is not None
        self.assertLess(abs(self.now_s + 100 - early.next_s), 5)
        self.assertEqual((Amount(1, 1), False, None), self.expire(110))
        self.assertFalse(self.top.exists())
        self.assertTrue((self.data / "alice").exists())

    def test_current_delay(self) -> None:
        """A longer delay that is in force now holds too; a shorter one does not."""
        self.delete(self.put(b"x"), keep_s=100)
        self.assertEqual(Amount(), self.expire(110, delay_s=1000).removed)
        self.assertEqual(Amount(), self.expire(90, delay_s=1).removed)
        self.assertEqual(Amount(1, 1), self.expire(110, delay_s=1).removed)

    def test_steps(self) -> None:
        """A bounded number at a time."""
        for number in range(7):
            self.delete(self.put(b"%d" % number), keep_s=1)
        steps = [self.expire(10, most=3) for _ in range(3)]
        self.assertEqual([(3, True), (3, True), (1, False)], [(step.removed.objects, step.more) for step in steps])

    def test_no_retention(self) -> None:
        """Where nothing says how long, nothing ends."""
        self.delete(self.put(b"x"), keep_s=1)
        for path in self.top.glob("*/keep-*"):
            path.unlink()
        self.assertEqual((Amount(), False, None), self.expire(1e9))
        self.assertEqual(1, len(self.trashed()))

    def test_changed_times(self) -> None:
        """Another program that changes the files' times delays the end by a day and an hour at most, and never hastens it."""
        day = TrashDay(ALICE, str(self.top / "2026-01-02"), 1_767_312_000, 100.0)
        for changed_s, deleted_s in (
            (0, 0),
            (-5 * DAY_S, 0),
            (1000, 1000),
            (DAY_S + 60, DAY_S + 60),
            (9e8, DAY_S + 3600),
        ):
            status = os.stat_result((0o100600, 1, 1, 1, 0, 0, 1, 0, 0, int(day.begins_s + changed_s)))
            self.assertEqual(day.begins_s + deleted_s, day.deleted_s(status))

    def test_times_not_known(self) -> None:
        """On a file system where a rename leaves no time, the end of the day counts."""
        self.delete(self.put(b"x"), keep_s=100)
        self.patch(trash, "stamps_renames", lambda fd: False)
        (day,) = trash_days(str(self.data), ALICE)
        self.assertEqual(day.begins_s + DAY_S, self.one().deleted_s)

    def test_deleted_repository(self) -> None:
        """When the trash of a deleted repository is empty its folder goes too, and never one with anything else in it."""
        self.store.delete_repository(ALICE, 1)
        self.assertEqual(Amount(10, 1), self.expire(10).removed)
        self.assertFalse((self.data / "alice").exists())

    def test_upload_to_deleted_repository(self) -> None:
        """As long as the trash of a deleted repository is there, uploads find no repository: its config's neither."""
        self.store.delete_repository(ALICE, 1)
        for kind in ("config", "keys", "data"):
            self.assertRaises(NoSuchRepository, save, self.store, ALICE, kind, b"x")
        self.assertEqual([".trash"], os.listdir(self.data / "alice"))

    def test_foreign_files(self) -> None:
        """What is not an object of the trash stays, links are not followed, and their directory stays with them."""
        self.delete(self.put(b"x"), keep_s=1)
        (day,) = self.top.iterdir()
        outside = self.data / "outside"
        outside.mkdir()
        victim = outside / id_of(b"victim")
        victim.write_bytes(b"victim")
        (day / "notes").write_text("mine")
        (day / "index").symlink_to(outside)
        (day / "data" / "notes").write_text("mine")
        (day / "data" / id_of(b"link")).symlink_to(victim)
        (self.top / "2020-01-01").symlink_to(outside)
        (self.top / "2020-99-99").mkdir()
        (self.top / "other").mkdir()
        self.assertEqual(Amount(1, 1), self.expire(1e6).removed)
        self.assertEqual(b"victim", victim.read_bytes())
        self.assertEqual({"notes", id_of(b"link")}, set(os.listdir(day / "data")))
        self.assertEqual({"notes", "index", "data", keep_name(1)}, set(os.listdir(day)))

    def test_trash_is_a_link(self) -> None:
        """A trash that is a link is none."""
        outside = self.data / "outside" / "2020-01-01" / "data"
        outside.mkdir(parents=True)
        (outside / id_of(b"x")).write_bytes(b"x")
        (self.data / "outside" / "2020-01-01" / "keep-1s").touch()
        self.top.symlink_to(self.data / "outside")
        self.assertEqual(Amount(), self.expire(1e9).removed)
        name = self.put(b"y")
        self.assertRaises(OSError, self.delete, name)
        self.assertEqual(b"y", load(self.store, ALICE, "data", name))

    def test_touched_in_between(self) -> None:
        """What was deleted again after it was listed is not removed with the list's time."""
        self.delete(self.put(b"x"), keep_s=1)
        listed = self.trashed()
        time.sleep(0.02)
        self.delete(self.put(b"x"), keep_s=1)
        self.assertEqual(Amount(), self.store.trash.remove(ALICE, listed))
        self.assertEqual(1, len(self.trashed()))

    def test_prolong(self) -> None:
        """Days since a time are kept for longer."""
        self.delete(self.put(b"x"), keep_s=100)
        self.store.trash.prolong(ALICE, self.now_s + 2 * DAY_S, 500)
        self.assertEqual(100, trash_days(str(self.data), ALICE)[0].delay_s)
        self.store.trash.prolong(ALICE, self.now_s, 500)
        self.assertEqual(600, trash_days(str(self.data), ALICE)[0].delay_s)


class CountTests(TrashCase):
    """What the trash takes."""

    def count(self) -> dict[int, Amount]:
        """All cells that are not empty."""
        counting = self.store.counting
        found = counting.known(ALICE)
        found |= counting.count(ALICE, [cell for cell in range(CELLS) if cell not in found])
        return {cell: amount for cell, amount in found.items() if amount != Amount()}

    def test_moved(self) -> None:
        """A deletion moves an amount from one cell to another."""
        name = self.put(b"12345")
        before = self.count()
        self.delete(name)
        after = self.count()
        cell = int(name[:2], 16)
        self.assertEqual(before.pop(cell), after.pop(TRASH_CELL))
        self.assertEqual(before, after)
        self.assertNotIn(cell, after)
        ends_s = self.store.counting.trash_ends_s(ALICE, 0)
        assert ends_s is not None
        self.assertTrue(self.now_s + MONTH_S - 2 * DAY_S < ends_s <= self.now_s + MONTH_S)

    def test_words(self) -> None:
        """What a refusal says."""
        self.assertEqual("", trash_words(0, 1e9))
        self.assertEqual("; 2 KiB are in the trash", trash_words(2048, None))
        self.assertEqual("; 2 KiB are in the trash until 2001-09-09 or later", trash_words(2048, 1e9))

    def test_full_disk(self) -> None:
        """The reason of a refusal for want of space names the repository's trash."""
        self.delete(self.put(b"x" * 4096))
        self.patch(local, "_TRASH_WORDS_S", 0.0)

        def full(fd: int, buffers: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "writev", full)
        self.patch(os, "write", full)
        error = self.assertRaises(InsufficientStorage, save, self.store, ALICE, "data", b"more")
        self.assertRegex(error.message, r"left; 4 KiB are in the trash until \d{4}-\d\d-\d\d or later$")

    def test_hash(self) -> None:
        """The name of a config in the trash is its hash."""
        self.store.remove_object(ALICE, "config", "config", MONTH_S)
        self.assertEqual(hashlib.sha256(b"its config").hexdigest(), self.one().name)
