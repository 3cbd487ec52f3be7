"""
Snapshots of directories: when one stands for its directory, when not, and what is never kept.

Time is a number of the test's. Where a directory's real times would not do (they cannot be set freely, and move in steps
of the kernel's choice) its stamps are made by hand.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import NotFound, Unavailable
from resticserver.files import Stamp
from resticserver.sizes import Amount
from resticserver.storage import directory_snapshots as snapshots_module
from resticserver.storage import listing as listing_module
from resticserver.storage.directory_snapshots import LASTS_NS, LEAST_STORED, QUIET_NS, SETTLED_NS, Snapshot, Snapshots
from resticserver.storage.interface import Entry, Objects, SizeChange
from resticserver.storage.layout import cell_of
from resticserver.storage.local import LocalStore
from resticserver.storage.state import StateFile

from ..contract.files import failing
from ..contract.store import entries, id_of, lines_of, save

SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
ROOT = ()


def name_of(number: int, prefix: str = "") -> str:
    """An id that begins with a prefix."""
    return prefix + id_of(b"%d" % number)[len(prefix) :]


class SnapshotsCase(SynchronousTestCase):
    """
    A repository at the root, whose clock is an hour ahead: whatever is on disk has been left alone that long.

    @ivar scans: how many directories of objects were read.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.now_ns = time.time_ns() + HOUR_NS
        self.asked: list[int] = []
        self.believed = True
        self.store = self.store_of()
        self.store.create_repository(ROOT)
        self.scans = 0
        scandir = os.scandir

        def count(path: Any) -> Any:
            self.scans += isinstance(path, int)
            return scandir(path)

        self.patch(os, "scandir", count)

    def store_of(self, **options: Any) -> LocalStore:
        """A store over the test's directory and clock."""

        def keeps_times(fd: int) -> bool:
            self.asked.append(os.fstat(fd).st_dev)
            return self.believed

        snapshots = Snapshots(now_ns=lambda: self.now_ns, keeps_times=keeps_times, **options)
        store = LocalStore(str(self.path), snapshots=snapshots)
        store.prepare()
        return store

    def write(self, key: str, content: bytes = b"x") -> None:
        """A file behind the server's back, as local restic puts it there: under another name first."""
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "temporary").write_bytes(content)
        os.rename(path.parent / "temporary", path)

    def names(self, kind: str = "keys", with_sizes: bool = True) -> list[str]:
        """What a list names."""
        return [entry.name for entry in entries(self.store, ROOT, kind, with_sizes)]

    def scans_of(self, call: Callable[[], object]) -> int:
        """How many directories a call read."""
        before = self.scans
        call()
        return self.scans - before

    def hand_made(self, **stamps: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Give directories of the repository, by name, the times that are in a dictionary from now on."""
        times = dict(stamps)

        def stamp_of(status: os.stat_result) -> Stamp:
            for name in list(times):
                here = self.path / name
                if here.exists() and os.path.samestat(status, here.stat()):
                    return (status.st_dev, status.st_ino, *times[name])
            raise AssertionError("a directory without times")

        self.patch(snapshots_module, "stamp_of", stamp_of)
        return times


class StandsTests(SnapshotsCase):
    """When a snapshot is used."""

    def test_repeated(self) -> None:
        """Of a directory that nobody touched one reading is enough, empty ones included."""
        self.write("keys/" + name_of(1), b"four")
        for kind in ("keys", "index", "snapshots"):
            self.assertEqual(1, self.scans_of(lambda: self.names(kind)))
            self.assertEqual(0, self.scans_of(lambda: self.names(kind)))
        self.assertEqual([Entry(name_of(1), 4)], entries(self.store, ROOT, "keys"))

    def test_two_levels(self) -> None:
        """Of C{data} each directory has its own: after a change only that one is read again."""
        for number in range(20):
            self.write(f"data/{name_of(number)[:2]}/{name_of(number)}")
        self.assertEqual(256, self.scans_of(lambda: self.names("data")))
        self.assertEqual(0, self.scans_of(lambda: self.names("data")))
        self.write("data/00/" + name_of(1, "00"))
        self.assertEqual(1, self.scans_of(lambda: self.assertIn(name_of(1, "00"), self.names("data"))))
        save(self.store, ROOT, "data", b"x")
        self.assertEqual(1, self.scans_of(lambda: self.assertIn(id_of(b"x"), self.names("data"))))
        self.store.remove_object(ROOT, "data", name_of(3))
        self.assertEqual(1, self.scans_of(lambda: self.assertNotIn(name_of(3), self.names("data"))))
        self.assertEqual(0, self.scans_of(lambda: self.names("data")))

    def test_own_changes(self) -> None:
        """Uploads, healing and removals through the server are in the next list."""
        for kind in ("keys", "index", "snapshots"):
            self.assertEqual([], entries(self.store, ROOT, kind))
            name = id_of(b"right")
            self.write(f"{kind}/{name}", b"damaged, and longer")
            self.assertEqual([Entry(name, 19)], entries(self.store, ROOT, kind))
            time.sleep(0.02)  # a step of the kernel's clock, which two seconds stand for elsewhere
            save(self.store, ROOT, kind, b"right")
            self.assertEqual([Entry(name, 5)], entries(self.store, ROOT, kind))
            time.sleep(0.02)
            self.store.remove_object(ROOT, kind, name)
            self.assertEqual([], entries(self.store, ROOT, kind))

    def test_young(self) -> None:
        """What changed in the last two seconds is read each time: it may change again and show the same times."""
        base = self.now_ns
        for young in ((base, base - HOUR_NS), (base - HOUR_NS, base), (base - SETTLED_NS + 1, 0), (base + HOUR_NS, 0)):
            self.now_ns = base
            self.hand_made(keys=young)
            for number in range(3):
                self.write(f"keys/{name_of(number)}")
                self.assertIn(name_of(number), self.names())
                os.unlink(self.path / "keys" / name_of(number))
                self.assertNotIn(name_of(number), self.names())
            self.now_ns = max(young) + SETTLED_NS - 1
            self.assertEqual(2, self.scans_of(lambda: [self.names(), self.names()]))
            self.now_ns += 1
            self.assertEqual(1, self.scans_of(lambda: [self.names(), self.names()]))
            self.store = self.store_of()

    def test_in_quick_succession(self) -> None:
        """By the real clock: changes and lists within one of its steps never miss each other."""
        self.store = LocalStore(str(self.path), snapshots=Snapshots(keeps_times=lambda fd: True))
        self.store.prepare()
        for number in range(100):
            self.write(f"index/{name_of(number)}")
            self.assertEqual(1, len(self.names("index")))
            self.assertEqual(-1, self.store.remove_object(ROOT, "index", name_of(number)).objects)
            self.assertEqual([], self.names("index"))

    def test_modification_time_put_back(self) -> None:
        """rsync, tar and cp do that; it moves the change time."""
        directory = self.path / "keys"
        before = directory.stat()
        self.assertEqual([], self.names())
        time.sleep(0.02)
        self.write("keys/" + name_of(1))
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual(before.st_mtime_ns, directory.stat().st_mtime_ns)
        self.assertEqual([name_of(1)], self.names())

    def test_each_of_the_stamp(self) -> None:
        """A snapshot falls with any of the times, to whichever side they go."""
        old = self.now_ns - HOUR_NS
        times = self.hand_made(keys=(old, old))
        self.names()
        for changed in ((old + 1, old), (old, old + 1), (old - 1, old), (old, old - 1)):
            times["keys"] = changed
            self.assertEqual(1, self.scans_of(self.names), changed)
            self.assertEqual(0, self.scans_of(self.names), changed)

    def test_another_directory(self) -> None:
        """A directory in the place of another, with the same times, is known by its inode."""
        old = self.now_ns - HOUR_NS
        self.hand_made(keys=(old, old))
        self.assertEqual([], self.names())
        self.write("other/" + name_of(1))
        os.rename(self.path / "keys", self.path / "away")
        os.rename(self.path / "other", self.path / "keys")
        self.assertEqual([name_of(1)], self.names())

    def test_another_device(self) -> None:
        """So is one of another file system, by its device."""
        stamps = [(1, 2, 3, 4)]
        self.patch(snapshots_module, "stamp_of", lambda status: stamps[0])
        self.names()
        self.assertEqual(0, self.scans_of(self.names))
        stamps[0] = (2, 2, 3, 4)
        self.assertEqual(1, self.scans_of(self.names))

    def test_symlink_to_a_directory(self) -> None:
        """What counts is the directory behind it."""
        for where in ("one", "two"):
            self.write(f"{where}/{name_of(1, where[:2].replace('o', '0').replace('n', '1').replace('tw', '2'))}")
        (self.path / "keys").rmdir()
        for where in ("one", "two"):
            (self.path / "keys").unlink(missing_ok=True)
            (self.path / "keys").symlink_to(self.path / where)
            self.assertEqual(sorted(os.listdir(self.path / where)), self.names())
            self.assertEqual(0, self.scans_of(self.names))

    def test_daily(self) -> None:
        """Everything is read anew after a day, and when the clock went back behind the reading."""
        self.names()
        taken_ns = self.now_ns
        for now_ns, scans in ((taken_ns + LASTS_NS - 1, 0), (taken_ns + LASTS_NS, 1), (taken_ns - 1, 1)):
            self.now_ns = now_ns
            self.assertEqual(scans, self.scans_of(self.names))
            self.assertEqual(0, self.scans_of(self.names))

    def test_sizes(self) -> None:
        """A snapshot of names serves version 1 alone; one with sizes serves both, and is not lost to one without."""
        self.write("keys/" + name_of(1), b"four")
        self.assertEqual(1, self.scans_of(lambda: self.names(with_sizes=False)))
        self.assertEqual(0, self.scans_of(lambda: self.names(with_sizes=False)))
        self.assertEqual(1, self.scans_of(lambda: self.names()))
        self.assertEqual(0, self.scans_of(lambda: [self.names(with_sizes=False), self.names()]))
        self.assertEqual([Entry(name_of(1), 4)], entries(self.store, ROOT, "keys"))
        self.assertEqual([Entry(name_of(1), 0)], entries(self.store, ROOT, "keys", with_sizes=False))

    def test_missing_and_back(self) -> None:
        """
        A directory that is gone is NotFound whatever is remembered, and what comes in its place is read; a file in its place
        is an error.
        """
        self.write("keys/" + name_of(1))
        self.names()
        shutil.rmtree(self.path / "keys")
        self.assertRaises(NotFound, self.names)
        (self.path / "keys").write_bytes(b"a file")
        self.assertRaises(NotADirectoryError, self.names)
        (self.path / "keys").unlink()
        self.write("keys/" + name_of(2))
        self.assertEqual([name_of(2)], self.names())

    def test_volume(self) -> None:
        """A volume that is gone is not served from memory."""
        self.write("keys/" + name_of(1))
        self.names()
        os.rename(self.path, self.path.with_suffix(".away"))
        self.path.mkdir()
        for kind in ("keys", "data"):
            self.assertRaises(Unavailable, self.names, kind)
        shutil.copytree(self.path.with_suffix(".away") / "keys", self.path / "keys")
        self.assertRaises(Unavailable, self.names)

    def test_another_volume_at_the_end(self) -> None:
        """A list that began on a volume and ended on the system's disk below fails, also if no directory was missing."""
        listing = self.store.list_objects(ROOT, "data", True)
        listing.open()
        os.rename(self.path, self.path.with_suffix(".away"))
        for number in range(256):
            (self.path / "data" / f"{number:02x}").mkdir(parents=True)
        self.assertRaises(Unavailable, list, listing)


class PresentSizesTests(SnapshotsCase):
    """Sizes are those that the files have at the moment of the list; a size that differs is told of."""

    def setUp(self) -> None:
        super().setUp()
        self.changes: list[SizeChange] = []
        self.store.observe_size_changes(self.changes.append)

    def sizes(self, kind: str = "keys") -> dict[str, int]:
        """What a list says."""
        return {entry.name: entry.size_bytes for entry in entries(self.store, ROOT, kind)}

    def resize(self, key: str, size_bytes: int) -> None:
        """Change a file in place: the times of its directory stay."""
        os.truncate(self.path / key, size_bytes)

    def test_in_place(self) -> None:
        """Truncated, shortened and grown files have their sizes in the next list, and each is told of once."""
        names = [name_of(number) for number in range(5)]
        for number, name in enumerate(names):
            self.write(f"keys/{name}", b"x" * (100 + number))
        before = self.sizes()
        self.assertEqual(0, self.scans_of(self.sizes))
        for name, size in zip(names, (0, 100, 1000), strict=False):
            self.resize(f"keys/{name}", size)
        expected = {**before, names[0]: 0, names[1]: 100, names[2]: 1000}
        self.assertEqual(expected, self.sizes())
        self.assertEqual(expected, self.sizes())
        self.assertEqual(
            {SizeChange(ROOT, "keys", name, before[name], expected[name]) for name in names[:3]}, set(self.changes)
        )
        self.assertEqual(3, len(self.changes))

    def test_two_levels(self) -> None:
        """The same below C{data}, in one of several directories."""
        names = [name_of(number, prefix) for prefix in ("00", "ab", "ff") for number in range(3)]
        for name in names:
            self.write(f"data/{name[:2]}/{name}", b"four")
        self.sizes("data")
        self.resize(f"data/ab/{names[4]}", 0)
        self.assertEqual({**dict.fromkeys(names, 4), names[4]: 0}, self.sizes("data"))
        self.assertEqual([SizeChange(ROOT, "data", names[4], 4, 0)], self.changes)

    def test_names_come_from_the_snapshot(self) -> None:
        """A list with the same sizes reads no directory, and gives out the same parts again."""
        self.write("keys/" + name_of(1))
        self.sizes()
        parts = [next(iter(self.opened())) for _ in range(2)]
        self.assertIs(parts[0], parts[1])
        self.assertEqual(0, self.scans_of(self.sizes))

    def opened(self) -> Any:
        """An open list of keys."""
        listing = self.store.list_objects(ROOT, "keys", True)
        listing.open()
        self.addCleanup(listing.close)
        return listing

    def test_vanished(self) -> None:
        """An object that goes while a list looks up sizes is not in it, and nobody is told of anything."""
        for number in range(3):
            self.write(f"keys/{name_of(number)}")
        self.sizes()
        listing = self.opened()
        (self.path / "keys" / name_of(1)).unlink()
        snapshots_find = self.store.snapshots.find
        stale = self.store.snapshots.last(str(self.path / "keys"))
        self.patch(
            self.store.snapshots, "find", lambda *_: stale
        )  # it goes between the look at the directory and at the file
        self.assertEqual({name_of(0), name_of(2)}, {entry.name for entry in lines_of(listing)})
        self.patch(self.store.snapshots, "find", snapshots_find)
        self.assertEqual([], self.changes)

    def test_replaced_meanwhile(self) -> None:
        """A file that is replaced while sizes are looked up has not changed in place."""
        self.write(f"keys/{name_of(1)}", b"damaged")
        self.sizes()
        stale = self.store.snapshots.last(str(self.path / "keys"))
        self.write(f"keys/{name_of(1)}", b"good")
        self.patch(self.store.snapshots, "find", lambda *_: stale)
        self.assertEqual({name_of(1): 4}, self.sizes())
        self.assertEqual([], self.changes)

    def test_in_a_directory_that_changed_as_well(self) -> None:
        """Then the directory is read, and what was known of its objects is compared all the same."""
        self.write(f"keys/{name_of(1)}", b"whole")
        self.sizes()
        self.resize(f"keys/{name_of(1)}", 2)
        self.write(f"keys/{name_of(2)}")
        self.assertEqual({name_of(1): 2, name_of(2): 1}, self.sizes())
        self.assertEqual([SizeChange(ROOT, "keys", name_of(1), 5, 2)], self.changes)

    def test_counted_before_it_is_listed(self) -> None:
        """The ledger's count of a directory that changed finds it as well."""
        self.write(f"keys/{name_of(1)}", b"whole")
        self.sizes()
        self.resize(f"keys/{name_of(1)}", 2)
        self.write(f"keys/{name_of(2)}")
        keys = cell_of("keys", "")
        self.assertEqual({keys: Amount(3, 2)}, self.store.counting.count(ROOT, [keys]))
        self.assertEqual([SizeChange(ROOT, "keys", name_of(1), 5, 2)], self.changes)

    def test_counts_look_up_no_sizes(self) -> None:
        """As long as the directory's times are the same the ledger has what is known; a list corrects it."""
        self.write(f"keys/{name_of(1)}", b"whole")
        self.sizes()
        self.resize(f"keys/{name_of(1)}", 2)
        keys = cell_of("keys", "")
        self.assertEqual({keys: Amount(5, 1)}, self.store.counting.count(ROOT, [keys]))
        self.sizes()
        self.assertEqual({keys: Amount(2, 1)}, self.store.counting.count(ROOT, [keys]))

    def test_cannot_be_looked_up(self) -> None:
        """An error that is none of a missing file ends the list."""
        self.write(f"keys/{name_of(1)}")
        self.sizes()
        self.patch(os, "stat", failing(errno.EACCES))
        self.assertRaises(PermissionError, self.sizes)

    def test_whoever_opens_it_sees_it(self) -> None:
        """HEAD, GET and an upload of the same object compare the size as well."""
        name = id_of(b"whole")
        store = self.store

        def get() -> None:
            stored = store.stored(ROOT, "keys", name)
            stored.open()
            stored.close()

        for call in (lambda: store.size_of(ROOT, "keys", name), get, lambda: save(store, ROOT, "keys", b"whole")):
            self.write(f"keys/{name}", b"whole")
            self.now_ns = time.time_ns() + HOUR_NS
            store.snapshots.forget(str(self.path / "keys"))
            self.sizes()
            self.changes.clear()
            call()
            self.assertEqual([], self.changes)
            self.resize(f"keys/{name}", 2)
            os.utime(self.path / "keys" / name)
            self.patch_taken()
            call()
            self.assertEqual([SizeChange(ROOT, "keys", name, 5, 2)], self.changes)
            self.assertTrue(self.sizes())

    def patch_taken(self) -> None:
        """The test's clock is an hour ahead of the one that stamps files: let the snapshot be from before the change."""
        path = str(self.path / "keys")
        snapshot = self.store.snapshots.last(path)
        assert snapshot is not None
        self.store.snapshots.keep(path, replace(snapshot, taken_ns=time.time_ns() - HOUR_NS), 0)

    def test_damaged(self) -> None:
        """The hash decides whether a changed size is damage."""
        name = id_of(b"whole")
        for content, damaged in ((b"who", True), (b"whole", False), (None, False)):
            if content is None:
                (self.path / "keys" / name).unlink()
            else:
                self.write(f"keys/{name}", content)
            self.assertEqual(damaged, self.store.is_damaged(SizeChange(ROOT, "keys", name, 4, 5)))


class SizeOfTests(SynchronousTestCase):
    """The known size of one object of a snapshot."""

    def test_each(self) -> None:
        """Of several parts; also where an id begins within another by chance."""
        first, second = bytes(range(32)), bytes(range(100, 132))
        across = first[16:] + second[:16]
        parts = (Objects(first + second, array("Q", [1, 2])), Objects(across, array("Q", [3])))
        snapshot = Snapshot((1, 2, 3, 4), 5, True, parts)
        sizes = {first: 1, second: 2, across: 3, bytes(32): None}
        self.assertEqual(sizes, {name: snapshot.size_of(name.hex()) for name in sizes})

    def test_not_known(self) -> None:
        """A snapshot of names alone."""
        self.assertIsNone(Snapshot((1, 2, 3, 4), 5, False, (Objects(bytes(32), None),)).size_of("00" * 32))


class NotKeptTests(SnapshotsCase):
    """What is read each time."""

    def test_locks(self) -> None:
        """Locks, also when nothing tells that there is a new one."""
        old = self.now_ns - HOUR_NS
        self.hand_made(locks=(old, old))
        for number in range(3):
            self.write(f"locks/{name_of(number)}")
            self.assertEqual(1, self.scans_of(lambda: self.assertIn(name_of(number), self.names("locks"))))
        self.assertEqual(0, self.store.snapshots.used_bytes)

    def test_file_system(self) -> None:
        """Everything on a file system whose times are not believed; each list asks once a device."""
        self.believed = False
        for _ in range(2):
            self.asked.clear()
            self.assertEqual(256, self.scans_of(lambda: self.names("data")))
            self.assertEqual([self.path.stat().st_dev], self.asked)
        self.believed = True
        self.assertEqual(256, self.scans_of(lambda: [self.names("data"), self.names("data")]))

    def test_switched_off(self) -> None:
        """With no memory for it."""
        self.store = self.store_of(bound_bytes=0)
        self.assertEqual(3, self.scans_of(lambda: [self.names() for _ in range(3)]))
        self.assertEqual([], self.asked)

    def test_symlinked_objects(self) -> None:
        """A directory with an object that is a link: its target may go."""
        (self.path / "target").write_bytes(b"elsewhere")
        (self.path / "keys" / name_of(1)).symlink_to(self.path / "target")
        for with_sizes in (True, False):
            self.assertEqual([name_of(1)], self.names(with_sizes=with_sizes))
        (self.path / "target").unlink()
        for with_sizes in (True, False):
            self.assertEqual([], self.names(with_sizes=with_sizes))

    def test_changed_while_it_is_read(self) -> None:
        """A directory whose stamp is another one after it was read."""
        self.patch(listing_module, "PART_OBJECTS", 64)
        for number in range(200):
            self.write(f"keys/{name_of(number)}")
        listing = self.store.list_objects(ROOT, "keys", True)
        listing.open()
        reading = lines_of(listing)
        next(reading)
        time.sleep(0.02)
        os.unlink(self.path / "keys" / name_of(7))
        list(reading)
        self.assertEqual(0, self.store.snapshots.used_bytes)
        self.assertNotIn(name_of(7), self.names())
        self.assertEqual(0, self.scans_of(self.names))

    def test_not_read_to_its_end(self) -> None:
        """A list that was closed half way, or failed, leaves nothing behind and holds up nobody."""
        self.patch(listing_module, "PART_OBJECTS", 64)
        for number in range(200):
            self.write(f"keys/{name_of(number)}")
        for ending in ("never begun", "closed", "failed"):
            listing = self.store.list_objects(ROOT, "keys", True)
            listing.open()
            if ending != "never begun":
                next(iter(listing))
                self.assertTrue(self.store.snapshots.is_drafted(str(self.path / "keys")))
            if ending == "failed":
                patch = self.patch(listing_module, "is_object_id", failing(5))
                self.assertRaises(OSError, list, listing)
                patch.restore()
            listing.close()
            self.assertFalse(self.store.snapshots.is_drafted(str(self.path / "keys")))
            self.assertEqual(0, self.store.snapshots.used_bytes)
        self.assertEqual(200, len(self.names()))

    def test_growing(self) -> None:
        """A directory with a file that is being written in place, as cp does; it counts as whole after ten minutes."""
        directory, file = self.path / "keys", self.path / "keys" / name_of(1)
        file.write_bytes(b"x")
        base = self.now_ns
        named = base - HOUR_NS
        for written, kept in (
            (named, True),
            (named + SETTLED_NS, True),  # filled at once
            (base - QUIET_NS, True),
            (base - QUIET_NS + 1, False),
            (base - SETTLED_NS, False),
            (base, False),
            (base + SETTLED_NS - 1, False),
            (base + SETTLED_NS, True),  # no write: somebody set it
            (base + HOUR_NS, True),
        ):
            self.store = self.store_of()
            self.hand_made(keys=(named, named))
            os.utime(file, ns=(written, written))
            self.assertEqual(1 if kept else 2, self.scans_of(lambda: [self.names(), self.names()]), written - base)
            self.assertEqual(1, self.scans_of(lambda: [self.names(with_sizes=False) for _ in range(2)]) + kept)
        self.assertTrue(directory.exists())

    def test_growing_in_a_young_directory(self) -> None:
        """A file that was written to in the last two seconds, though its directory's times are in order."""
        base = self.now_ns
        file = self.path / "keys" / name_of(1)
        file.write_bytes(b"x")
        self.hand_made(keys=(base - SETTLED_NS, base - SETTLED_NS))
        os.utime(file, ns=(base - 1, base - 1))
        self.assertEqual(2, self.scans_of(lambda: [self.names(), self.names()]))
        os.utime(file, ns=(base - SETTLED_NS, base - SETTLED_NS))
        self.assertEqual(1, self.scans_of(lambda: [self.names(), self.names()]))


class MemoryTests(SnapshotsCase):
    """What snapshots take."""

    def fill(self, kind: str, count: int) -> None:
        """Objects of a type."""
        directory = self.path / kind
        for number in range(count):
            (directory / name_of(number)).write_bytes(b"x")

    def test_counted(self) -> None:
        """40 bytes an object, 32 without its size, and something for each directory."""
        snapshots = self.store.snapshots
        self.patch(listing_module, "PART_S", 3600.0)  # on a busy machine a list has more parts, which take more
        self.names("index")
        empty = snapshots.used_bytes - len(str(self.path / "index"))
        self.assertLess(empty, 1000)
        self.fill("keys", 300)
        self.names("keys", with_sizes=False)
        used = snapshots.used_bytes
        self.names("keys")
        self.assertEqual(300 * 8, snapshots.used_bytes - used)
        snapshot = snapshots.last(str(self.path / "keys"))
        assert snapshot is not None
        self.assertEqual(empty + snapshot.memory_bytes, used + 300 * 8 - len(f"{self.path}/index{self.path}/keys"))
        self.assertEqual(300, sum(map(len, snapshot.parts)))
        self.assertEqual({32 * len(part) for part in snapshot.parts}, {len(part.ids) for part in snapshot.parts})

    def test_larger_than_the_bound(self) -> None:
        """A directory that does not fit is read each time, in parts that come but once; others are kept."""
        self.patch(listing_module, "PART_OBJECTS", 64)
        self.fill("keys", 1000)
        self.store = self.store_of(bound_bytes=20_000)
        self.names("index")
        for _ in range(2):
            listing = self.store.list_objects(ROOT, "keys", True)
            listing.open()
            parts = list(listing)
            self.assertEqual(1000, sum(map(len, parts)))
            self.assertLess(sum(part.cache_key is not None for part in parts), 10)
            self.assertFalse(self.store.snapshots.is_drafted(str(self.path / "keys")))
        self.assertLess(self.store.snapshots.used_bytes, 1000)
        self.assertEqual(0, self.scans_of(lambda: self.names("index")))

    def test_bound_is_held(self) -> None:
        """More than fits: a part of it is kept, and found again the next time."""
        for number in range(256):
            (self.path / "data" / f"{number:02x}" / name_of(number, f"{number:02x}")).write_bytes(b"x")
        self.store = self.store_of(bound_bytes=100_000)
        for scans in (256, None, None):
            got = self.scans_of(lambda: self.assertEqual(256, len(self.names("data"))))
            self.assertTrue(100 < got < 200 if scans is None else got == scans, got)
            self.assertLessEqual(self.store.snapshots.used_bytes, 100_000)
        self.assertEqual(1, self.scans_of(lambda: [self.names("index"), self.names("index")]))

    def test_same_parts_again(self) -> None:
        """A large directory leaves in parts, and the next list has the very same ones under the same numbers."""
        self.patch(listing_module, "PART_OBJECTS", 64)
        self.fill("keys", 200)

        def parts() -> list[Objects]:
            listing = self.store.list_objects(ROOT, "keys", True)
            listing.open()
            return list(listing)

        first, second = parts(), parts()
        self.assertEqual([64, 64, 64, 8], [len(part) for part in first])
        self.assertEqual(4, len({part.cache_key for part in first}))
        for one, other in zip(first, second, strict=True):
            self.assertIs(one, other)
        self.write("keys/" + name_of(1000))
        self.assertFalse({part.cache_key for part in first} & {part.cache_key for part in parts()})

    def test_slow_disk(self) -> None:
        """A part leaves when it took long, however small it is."""
        self.fill("keys", 200)
        ticks = iter(range(10**6))
        self.patch(time, "monotonic", lambda: next(ticks) * listing_module.PART_S * 0.6)
        listing = self.store.list_objects(ROOT, "keys", True)
        listing.open()
        self.assertEqual([128, 72], [len(part) for part in listing])


class AtOnceTests(SnapshotsCase):
    """Several lists at the same time."""

    def fill(self, *prefixes: str) -> None:
        """Directories that take two parts each."""
        self.patch(listing_module, "PART_OBJECTS", 64)
        for prefix in prefixes:
            for number in range(100):
                (self.path / "data" / prefix / name_of(number, prefix)).write_bytes(b"x")

    def test_work_is_shared(self) -> None:
        """What one list is reading another leaves for the end, when the first's snapshot is there."""
        self.fill("00", "55", "ff")
        one, other = (self.store.list_objects(ROOT, "data", True) for _ in range(2))
        one.open()
        reading = iter(one)
        first = next(reading)
        other.open()
        rest = iter(other)
        read = [next(rest), next(rest)]
        self.assertNotEqual(first.names()[0][:2], read[0].names()[0][:2])
        everything = [first, *reading]
        read += rest
        self.assertEqual(256, self.scans)
        self.assertEqual(300, sum(map(len, everything)))
        self.assertEqual({part.cache_key for part in everything}, {part.cache_key for part in read})

    def test_nobody_waits(self) -> None:
        """A list that stands still in a directory does not hold up another, which reads that for itself."""
        self.fill("00")
        one = self.store.list_objects(ROOT, "data", True)
        one.open()
        next(iter(one))
        for _ in range(2):
            self.assertEqual(100, len(self.names("data")))
        self.assertEqual(256 + 2, self.scans)
        one.close()
        self.assertEqual(1, self.scans_of(lambda: [self.names("data"), self.names("data")]))

    def test_nothing_is_open_between_directories(self) -> None:
        """A list that stands still behind a directory of one part has kept its snapshot already."""
        self.write("data/00/" + name_of(1, "00"))
        one = self.store.list_objects(ROOT, "data", True)
        one.open()
        next(iter(one))
        self.assertFalse(self.store.snapshots.is_drafted(str(self.path / "data" / "00")))
        self.names("data")
        self.assertEqual(256, self.scans)

    def test_lists_beside_changes(self) -> None:
        """Whatever comes and goes meanwhile, what was there all the time is in each list, once."""
        self.patch(listing_module, "PART_OBJECTS", 64)
        prefixes = [f"{number:02x}" for number in range(4)]
        stable = {name_of(number, prefix) for prefix in prefixes for number in range(150)}
        for name in stable:
            (self.path / "data" / name[:2] / name).write_bytes(b"x")
        self.store = LocalStore(str(self.path), snapshots=Snapshots(keeps_times=lambda fd: True))
        self.store.prepare()
        done = threading.Event()
        wrong: list[object] = []

        def change() -> None:
            dice = random.Random(1)
            while not done.is_set():
                name = name_of(dice.randrange(1000, 1020), dice.choice(prefixes))
                path = self.path / "data" / name[:2] / name
                if path.exists():
                    self.store.remove_object(ROOT, "data", name)
                else:
                    self.write(f"data/{name[:2]}/{name}")

        def look(with_sizes: bool) -> None:
            for _ in range(12):
                names = self.names("data", with_sizes)
                if len(names) != len(set(names)) or not stable <= set(names):
                    wrong.append(names)

        changer = threading.Thread(target=change)
        changer.start()
        lookers = [threading.Thread(target=look, args=(number % 2 == 0,)) for number in range(4)]
        for looker in lookers:
            looker.start()
        for looker in lookers:
            looker.join()
        done.set()
        changer.join()
        self.assertEqual([], wrong)
        self.assertEqual(sorted(path.name for path in self.path.glob("data/??/*")), self.names("data"))


class ShelfTests(SnapshotsCase):
    """What is kept in the state file, and found again."""

    def setUp(self) -> None:
        super().setUp()
        self.snapshot_store = StateFile(str(self.path))
        self.addCleanup(self.snapshot_store.close)
        self.restart()

    def restart(self, **options: Any) -> None:
        """Another process."""
        self.store = self.store_of(store=self.snapshot_store, **options)

    def fill(self, kind: str = "keys", count: int = 2 * LEAST_STORED, first: int = 0) -> None:
        """Objects of a type, each of another size."""
        for number in range(first, first + count):
            self.write(f"{kind}/{name_of(number)}", b"x" * number)

    def plain(self, kind: str = "keys") -> list[Entry]:
        """What is there."""
        return sorted(Entry(path.name, path.stat().st_size) for path in (self.path / kind).iterdir())

    def shelved(self, kind: str) -> bool:
        """Whether there is something of a directory on the shelf, whatever it is worth."""
        return self.snapshot_store.directory(f"{self.store.path}/{kind}") is not None

    def test_after_a_restart(self) -> None:
        """What was read before a restart need not be read after it, in either form."""
        self.fill()
        self.assertEqual(1, self.scans_of(self.names))
        for with_sizes in (True, False):
            self.restart()
            self.assertEqual(0, self.scans_of(lambda: self.names(with_sizes=with_sizes)))
            self.assertEqual(
                0, self.scans_of(lambda: self.assertEqual(self.plain(), entries(self.store, ROOT, "keys")))
            )

    def test_other_connection(self) -> None:
        """Also where another process has read it."""
        self.fill()
        self.names()
        other = StateFile(str(self.path))
        self.addCleanup(other.close)
        self.store = self.store_of(store=other)
        self.assertEqual(0, self.scans_of(lambda: self.assertEqual(self.plain(), entries(self.store, ROOT, "keys"))))

    def test_two_levels(self) -> None:
        """Of C{data} those directories are found that are large enough, and the others read."""
        for number in range(LEAST_STORED):
            self.write(f"data/00/{name_of(number, '00')}")
            self.write(f"data/ab/{name_of(number, 'ab')}", b"1234")
        self.write("data/ff/" + name_of(1, "ff"))
        before = entries(self.store, ROOT, "data")
        self.restart()
        self.assertEqual(254, self.scans_of(lambda: self.assertEqual(before, entries(self.store, ROOT, "data"))))

    def test_many_parts(self) -> None:
        """A large directory comes in parts, each with its own number, and the same ones from memory afterwards."""
        self.patch(snapshots_module, "_PART_OBJECTS", 50)
        self.fill(count=130)
        self.names()
        self.restart()

        def parts() -> list[Objects]:
            listing = self.store.list_objects(ROOT, "keys", True)
            listing.open()
            return list(listing)

        first, second = parts(), parts()
        self.assertEqual([50, 50, 30], [len(part) for part in first])
        self.assertEqual(3, len({part.cache_key for part in first}))
        for one, other in zip(first, second, strict=True):
            self.assertIs(one, other)
        self.assertEqual(self.plain(), sorted(entry for part in first for entry in part))

    def test_small_ones(self) -> None:
        """Directories with few objects are read as quickly: they are not on the shelf."""
        self.fill(count=LEAST_STORED - 1)
        self.names()
        self.names("index")
        self.assertFalse(self.shelved("keys") or self.shelved("index"))
        self.write("keys/" + name_of(LEAST_STORED - 1))
        self.names()
        self.assertTrue(self.shelved("keys"))

    def test_without_sizes(self) -> None:
        """A list of names alone is not put there, nor in the place of one with sizes."""
        self.fill()
        self.names(with_sizes=False)
        self.assertFalse(self.shelved("keys"))
        self.names()
        self.restart(bound_bytes=64 << 20)
        self.names(with_sizes=False)
        self.restart()
        self.assertEqual(0, self.scans_of(self.names))

    def test_locks(self) -> None:
        """Locks never are, whatever the number."""
        self.fill("locks")
        self.names("locks")
        self.assertFalse(self.shelved("locks"))
        self.assertEqual(1, self.scans_of(lambda: self.names("locks")))

    def test_young(self) -> None:
        """What changed just now is not put there: it may change again and show the same times."""
        base = self.now_ns
        self.hand_made(keys=(base - SETTLED_NS + 1, 0))
        self.fill()
        self.names()
        self.assertFalse(self.shelved("keys"))
        self.now_ns += 1
        self.names()
        self.assertTrue(self.shelved("keys"))

    def test_times_that_are_not_believed(self) -> None:
        """Nor is anything of a file system whose times tell nothing."""
        self.believed = False
        self.fill()
        self.names()
        self.assertFalse(self.shelved("keys"))

    def test_each_of_the_stamp(self) -> None:
        """It falls with any of the times, to whichever side they go, and with another directory in its place."""
        old = self.now_ns - HOUR_NS
        times = self.hand_made(keys=(old, old))
        self.fill()
        self.names()
        for changed in ((old + 1, old), (old, old + 1), (old - 1, old), (old, old - 1)):
            self.restart()
            times["keys"] = changed
            self.assertEqual(1, self.scans_of(self.names), changed)
            self.restart()
            self.assertEqual(0, self.scans_of(self.names), changed)
        os.rename(self.path / "keys", self.path / "away")
        (self.path / "keys").mkdir()
        self.restart()
        self.assertEqual([], self.names())

    def test_daily(self) -> None:
        """It stands for a day since it was read, however often the server is started, and not before it was read."""
        self.fill()
        self.names()
        taken_ns = self.now_ns
        for now_ns, scans in (
            (taken_ns + LASTS_NS // 2, 0),
            (taken_ns + LASTS_NS - 1, 0),
            (taken_ns - 1, 1),
        ):
            self.snapshot_store.put_directory(*self.as_taken(taken_ns))
            self.restart()
            self.now_ns = now_ns
            self.assertEqual(scans, self.scans_of(self.names), now_ns - taken_ns)
            self.restart()
        self.snapshot_store.put_directory(*self.as_taken(taken_ns))
        self.now_ns = taken_ns + LASTS_NS
        self.restart()
        self.assertEqual(1, self.scans_of(self.names))

    def as_taken(self, taken_ns: int) -> tuple[str, tuple[int, int, int, int], int, list[Objects]]:
        """What is on the shelf, as it was read at that time."""
        path = f"{self.store.path}/keys"
        found = self.snapshot_store.objects(path)
        assert found is not None
        return path, found[0], taken_ns, [Objects(found[2], found[3])]

    def test_memory_from_the_shelf_has_its_age(self) -> None:
        """What came from the shelf into memory is not young again."""
        self.fill()
        self.names()
        taken_ns = self.now_ns
        self.now_ns = taken_ns + LASTS_NS - 1
        self.restart()
        self.assertEqual(0, self.scans_of(lambda: [self.names(), self.names()]))
        self.now_ns += 1
        self.assertEqual(1, self.scans_of(self.names))

    def test_missing_and_back(self) -> None:
        """A directory that is gone is NotFound whatever is on the shelf, and what comes in its place is read."""
        self.fill()
        self.names()
        shutil.rmtree(self.path / "keys")
        self.restart()
        self.assertRaises(NotFound, self.names)
        self.write("keys/" + name_of(2))
        self.assertEqual([name_of(2)], self.names())

    def test_volume(self) -> None:
        """Without its volume a directory is not served from a shelf that lies elsewhere."""
        elsewhere = Path(self.mktemp()).absolute()
        self.snapshot_store = StateFile(str(self.path), str(elsewhere))
        self.addCleanup(self.snapshot_store.close)
        self.snapshot_store.prepare()
        self.restart()
        self.fill()
        self.names()
        self.assertTrue(self.shelved("keys"))
        os.rename(self.path, self.path.with_suffix(".away"))
        shutil.copytree(self.path.with_suffix(".away") / "keys", self.path / "keys")
        self.assertRaises(Unavailable, self.names)

    def test_no_memory(self) -> None:
        """With no memory nothing is put on the shelf, and what is there is found."""
        self.fill()
        self.restart(bound_bytes=0)
        self.names()
        self.assertFalse(self.shelved("keys"))
        self.restart()
        self.names()
        self.restart(bound_bytes=0)
        for _ in range(2):
            self.assertEqual(
                0, self.scans_of(lambda: self.assertEqual(self.plain(), entries(self.store, ROOT, "keys")))
            )
        self.assertEqual(0, self.store.snapshots.used_bytes)

    def test_little_memory(self) -> None:
        """More than fits is found on the shelf each time, and never drives out what is in memory."""
        kinds = ("keys", "index", "snapshots")
        for number, kind in enumerate(kinds):
            self.fill(kind, first=1000 * number)
        self.restart(bound_bytes=10_000)
        for kind in kinds:
            self.names(kind)
        for _ in range(3):
            for kind in kinds:
                scans = self.scans
                self.assertEqual(self.plain(kind), entries(self.store, ROOT, kind))
                self.assertEqual(scans, self.scans)
            self.assertLessEqual(self.store.snapshots.used_bytes, 10_000)

    def test_amount(self) -> None:
        """How much there is is known as long as the list would be, from memory and from the shelf."""
        path = str(self.path / "keys")
        self.fill()
        expected = Amount(sum(entry.size_bytes for entry in self.plain()), 2 * LEAST_STORED)
        self.assertIsNone(self.store.snapshots.amount(path))
        self.names(with_sizes=False)
        self.assertIsNone(self.store.snapshots.amount(path))
        self.names()
        self.assertEqual(expected, self.store.snapshots.amount(path))
        for options in ({}, {"bound_bytes": 0}):
            self.restart(**options)
            self.assertEqual(expected, self.store.snapshots.amount(path))
        self.names(with_sizes=False)
        self.assertEqual(expected, self.store.snapshots.amount(path))
        self.now_ns += LASTS_NS
        self.assertIsNone(self.store.snapshots.amount(path))
        self.now_ns -= LASTS_NS
        time.sleep(0.02)
        os.unlink(self.path / "keys" / name_of(1))
        self.assertIsNone(self.store.snapshots.amount(path))
        self.assertIsNone(self.store.snapshots.amount(str(self.path / "nowhere")))

    def test_shelf_that_cannot_be_used(self) -> None:
        """Without the file lists are read."""
        self.fill()
        (self.path / ".rest-server" / "state.sqlite3").mkdir()
        with capturedLogs():
            for _ in range(2):
                self.restart()
                self.assertEqual(
                    1, self.scans_of(lambda: self.assertEqual(self.plain(), entries(self.store, ROOT, "keys")))
                )


class CoarseDisk:
    """
    A file system whose times move in steps of a second, and the only thing that moves them is a change of names: each
    directory's stamp has the time of its last change, by the test's clock, for both times.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_ns = time.time_ns() // SECOND_NS * SECOND_NS + HOUR_NS
        self.changed: dict[int, int] = {}

    def stamp_of(self, status: os.stat_result) -> Stamp:
        """What a directory shows."""
        changed = self.changed.get(status.st_ino, 0)
        return (status.st_dev, status.st_ino, changed, changed)

    def change(self, key: str, size_bytes: int) -> None:
        """An object comes, goes, or is replaced by one of another size."""
        path = self.path / key
        if size_bytes < 0:
            path.unlink(missing_ok=True)
        else:
            temporary = self.path / "temporary"
            temporary.write_bytes(b"x" * size_bytes)
            temporary.rename(path)
        self.changed[path.parent.stat().st_ino] = self.now_ns // SECOND_NS * SECOND_NS

    def resize(self, key: str, size_bytes: int) -> None:
        """An object is cut or grows in place, which moves no time of the directory; one that is not there stays so."""
        if (path := self.path / key).exists():
            os.truncate(path, max(0, size_bytes))

    def plain(self, kind: str) -> list[Entry]:
        """What is there, read without any of ours."""
        pattern = "data/??/*" if kind == "data" else f"{kind}/*"
        return sorted(Entry(path.name, path.stat().st_size) for path in self.path.glob(pattern))


settings.register_profile("quick", max_examples=500)
settings.register_profile("nightly", max_examples=5_000)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
by_chance = settings(PROFILE, deadline=None, database=None, suppress_health_check=list(HealthCheck))

KEYS = [
    f"data/{name_of(number, prefix)[:2]}/{name_of(number, prefix)}" for prefix in ("00", "ab") for number in range(3)
]
KEYS += [f"index/{name_of(number)}" for number in range(2)]

CHANGES = st.tuples(st.sampled_from(KEYS), st.integers(-1, 3))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), CHANGES),
        st.tuples(st.just("resize"), CHANGES),
        st.tuples(st.just("pass"), st.sampled_from([n * SECOND_NS // 10 for n in (1, 5, 9, 9, 10, 11, 19, 20, 30)])),
        st.tuples(st.just("list"), st.tuples(st.sampled_from(["data", "index"]), st.booleans())),
        st.tuples(st.just("restart"), st.sampled_from([0, 1500, 64 << 20])),
        st.tuples(st.just("amount"), st.sampled_from(["data/00", "data/ab", "index"])),
        st.tuples(st.just("beside"), st.tuples(st.sampled_from(["data", "index"]), st.booleans(), CHANGES)),
    ),
    max_size=25,
)


class AnyOrderTests(SynchronousTestCase):
    """Changes, lists and time in any order, on a disk whose times are as bad as they may be."""

    @contextmanager
    def disk(self) -> Iterator[tuple[CoarseDisk, LocalStore]]:
        """A disk and a store on it."""
        path = Path(tempfile.mkdtemp(dir=self.mktemp_parent))
        for directory in ("data/00", "data/ab", "index"):
            (path / directory).mkdir(parents=True)
        disk = CoarseDisk(path)
        patch = self.patch(snapshots_module, "stamp_of", disk.stamp_of)
        try:
            yield disk, LocalStore(str(path), snapshots=Snapshots(now_ns=lambda: disk.now_ns, keeps_times=bool))
        finally:
            patch.restore()
            shutil.rmtree(path)

    def setUp(self) -> None:
        self.mktemp_parent = self.mktemp()
        os.makedirs(self.mktemp_parent)

    @by_chance
    @given(STEPS)
    def test_like_a_plain_scan(self, steps: list[tuple[str, Any]]) -> None:
        """Each list is what a plain scan finds; one during a change has what the scans before and after it share."""
        with self.disk() as (disk, store):
            for step, what in steps:
                if step == "change":
                    disk.change(*what)
                elif step == "resize":
                    disk.resize(*what)
                elif step == "pass":
                    disk.now_ns += what
                elif step == "list":
                    self.assert_whole(disk, store, *what)
                elif step in ("restart", "amount"):
                    pass  # these are for the test with a shelf
                else:
                    kind, with_sizes, change = what
                    before = {entry.name for entry in disk.plain(kind)}
                    listing = store.list_objects(ROOT, kind, with_sizes)
                    listing.open()
                    reading = lines_of(listing)
                    names = [entry.name for entry in [next(reading, None)] if entry]
                    disk.change(*change)
                    names += [entry.name for entry in reading]
                    after = {entry.name for entry in disk.plain(kind)}
                    self.assertEqual(len(names), len(set(names)))
                    self.assertLessEqual(before & after, set(names))
                    self.assertLessEqual(set(names), before | after)
            for kind in ("data", "index"):
                for with_sizes in (True, False):
                    self.assert_whole(disk, store, kind, with_sizes)

    @by_chance
    @given(STEPS)
    def test_with_a_shelf(self, steps: list[tuple[str, Any]]) -> None:
        """The same with a state file, restarts, and little memory or none; and known amounts are those of a plain scan."""
        with self.disk() as (disk, _):
            snapshot_store = StateFile(str(disk.path), str(disk.path))
            patch = self.patch(snapshots_module, "LEAST_STORED", 1)

            def store_of(bound_bytes: int) -> LocalStore:
                snapshots = Snapshots(bound_bytes, lambda: disk.now_ns, bool, snapshot_store)
                return LocalStore(str(disk.path), snapshots=snapshots)

            try:
                store = store_of(64 << 20)
                resized = False
                for step, what in steps:
                    if step == "change":
                        disk.change(*what)
                    elif step == "resize":
                        disk.resize(*what)
                        resized = True
                    elif step == "pass":
                        disk.now_ns += what
                    elif step == "list":
                        self.assert_whole(disk, store, *what)
                    elif step == "restart":
                        store = store_of(what)
                    elif step == "amount":
                        found = [path.stat().st_size for path in (disk.path / what).iterdir()]
                        amount = store.snapshots.amount(str(disk.path / what))
                        # Its bytes are what is known: counts look up no sizes.
                        self.assertIn(amount and amount.objects, (None, len(found)))
                        if not resized:
                            self.assertIn(amount, (None, (sum(found), len(found))))
                    else:
                        kind, with_sizes, change = what
                        listing = store.list_objects(ROOT, kind, with_sizes)
                        listing.open()
                        reading = lines_of(listing)
                        next(reading, None)
                        disk.change(*change)
                        list(reading)
                for kind in ("data", "index"):
                    for with_sizes in (True, False):
                        self.assert_whole(disk, store, kind, with_sizes)
            finally:
                patch.restore()
                snapshot_store.close()

    def assert_whole(self, disk: CoarseDisk, store: LocalStore, kind: str, with_sizes: bool) -> None:
        """A list is what is there."""
        expected = disk.plain(kind)
        if not with_sizes:
            expected = [Entry(entry.name, 0) for entry in expected]
        self.assertEqual(expected, entries(store, ROOT, kind, with_sizes))

    def test_the_disk_is_that_bad(self) -> None:
        """Without the two seconds a list of such a disk would be wrong, so the test above can tell."""
        self.patch(snapshots_module, "SETTLED_NS", 0)
        with self.disk() as (disk, store):
            disk.change(KEYS[0], 1)
            self.assert_whole(disk, store, "data", False)
            disk.change(KEYS[1], 1)
            self.assertRaises(self.failureException, self.assert_whole, disk, store, "data", False)
