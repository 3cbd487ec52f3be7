"""
How much is stored, counted on disk: what counts and what does not, and that nothing is ever counted for less because it
cannot be seen. What uploads and removals say that they change is what counts find.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Forbidden, HashMismatch, Unavailable
from resticserver.sizes import Amount
from resticserver.storage import reading as stored_module
from resticserver.storage import upload as upload_module
from resticserver.storage.counting import MOST_NAMED, Counting
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.layout import CELLS, TRASH_CELL, Repository, cell_of
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher
from resticserver.storage.state import StateFile

from ..contract.store import id_of, save
from ..support.scratch import scratch_directory

ALICE: Repository = ("alice",)
LAPTOP: Repository = ("alice", "laptop")
TYPES = ("data", "index", "keys", "locks", "snapshots")


class CountingCase(SynchronousTestCase):
    """A data directory with a repository."""

    def setUp(self) -> None:
        self.data = scratch_directory(self) / "data"
        self.store = self.make_store()
        self.store.create_repository(ALICE)
        self.counting = self.store.counting

    def make_store(self, **options: Any) -> LocalStore:
        """A store over it."""
        snapshots = Snapshots(keeps_times=lambda fd: False)
        store = LocalStore(str(self.data), snapshots=options.pop("snapshots", snapshots), **options)
        store.prepare()
        return store

    def count(self, repository: Repository = ALICE) -> dict[int, Amount]:
        """All cells as a server counts them: what is known at once, then the others; empty ones are left out."""
        found = self.counting.known(repository)
        found |= self.counting.count(repository, [cell for cell in range(CELLS) if cell not in found])
        self.assertEqual(set(range(CELLS)), set(found))
        return {cell: amount for cell, amount in found.items() if amount != (0, 0)}

    def total(self, repository: Repository = ALICE) -> Amount:
        """All of it."""
        amounts = self.count(repository).values()
        return Amount(sum(amount.size_bytes for amount in amounts), sum(amount.objects for amount in amounts))

    def write(self, relative: str, size_bytes: int = 1) -> Path:
        """A file."""
        path = self.data / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size_bytes)
        return path


class WhatCountsTests(CountingCase):
    """What counts and what does not."""

    def test_all_types(self) -> None:
        """Objects of all types and the config, each in its cell."""
        expected = {}
        for number, kind in enumerate(TYPES):
            content = b"x" * (number + 1)
            save(self.store, ALICE, kind, content)
            expected[cell_of(kind, id_of(content))] = Amount(number + 1, 1)
        save(self.store, ALICE, "config", b"configuration", "config")
        expected[cell_of("config", "config")] = Amount(13, 1)
        self.assertEqual(expected, self.count())

    def test_every_directory_of_data(self) -> None:
        """Each of the 256 is a cell."""
        for number in range(256):
            self.write(f"alice/data/{number:02x}/{number:02x}{'0' * 62}", number)
        self.assertEqual({number: Amount(number, 1) for number in range(256)}, self.count())

    def test_empty(self) -> None:
        """A repository without objects has nothing."""
        self.assertEqual({}, self.count())

    def test_what_does_not_count(self) -> None:
        """Temporary and foreign files, names that are nearly ids, objects in others' directories, folders, dangling links."""
        name = "ab" * 32
        for relative in (
            "alice/.tmp/" + name,
            "alice/.tmp/x.upload",
            "alice/notes.txt",
            "alice/" + name,
            "alice/data/" + name,
            "alice/data/ab/notes.txt",
            "alice/data/ab/" + name.upper(),
            "alice/data/ab/" + name[:-1],
            "alice/data/ab/" + name + "0",
            "alice/data/ab/" + "cd" * 32,
            "alice/data/abc/" + name,
            "alice/data/AB/" + name,
            "alice/index/.tmp",
            "alice/index/below/" + name,
            "alice/other/" + name,
            ".rest-server/" + name,
            ".htpasswd",
        ):
            self.write(relative, 1000)
        (self.data / "alice/keys" / name).mkdir()
        (self.data / "alice/snapshots" / name).symlink_to("nowhere")
        self.assertEqual({}, self.count())

    def test_unfinished_uploads(self) -> None:
        """What is on its way does not count, whatever the way."""
        for mechanisms in (Mechanisms(), Mechanisms(unnamed=False)):
            store = self.make_store(publisher=Publisher(mechanisms=mechanisms))
            upload = store.upload(ALICE, "data", id_of(b"x"))
            upload.open()
            upload.write([b"x"])
            self.assertEqual({}, self.count())
            upload.abort()

    def test_repositories_below_are_their_own(self) -> None:
        """A repository in another's folder counts for itself, and one at the root as well."""
        for repository, size_bytes in (((), 1), (ALICE, 10), (LAPTOP, 100)):
            self.store.create_repository(repository)
            save(self.store, repository, "data", b"x" * size_bytes)
        for repository, size_bytes in (((), 1), (ALICE, 10), (LAPTOP, 100)):
            self.assertEqual(Amount(size_bytes, 1), self.total(repository))

    def test_large_and_sparse(self) -> None:
        """Sizes are the files', not what they take on disk."""
        path = self.write("alice/data/ab/" + "ab" * 32)
        os.truncate(path, 5 << 32)
        self.assertEqual(Amount(5 << 32, 1), self.total())

    def test_missing_directories(self) -> None:
        """Whatever is missing has nothing, and the rest counts."""
        name = "ab" * 32
        for missing in ("data", "data/ab", "index", "keys", "locks", "snapshots"):
            shutil.rmtree(self.data / "alice")
            self.store.create_repository(ALICE)
            kept = [f"alice/{kind}/{'ab/' if kind == 'data' else ''}{name}" for kind in TYPES]
            for relative in kept:
                self.write(relative)
            shutil.rmtree(self.data / "alice" / missing)
            self.assertEqual(Amount(4, 4), self.total(), missing)
        shutil.rmtree(self.data / "alice")
        self.assertEqual(Amount(), self.total())
        self.write("alice", 5)
        self.assertEqual(Amount(), self.total())

    def test_found(self) -> None:
        """Repositories are folders with something of restic's, as deep as they may lie, and never the server's own."""
        for relative in (
            "bob/config",
            "carol/keys/x",
            "carol/pc/data/x",
            "a/b/c/config",
            "plain/file",
            "-/config",
            ".trash/config",
            ".rest-server/config",
            ".tmp/config",
            "alice/data/ab/config",
            "alice/index/config",
        ):
            self.write(relative)
        os.makedirs(os.fsencode(str(self.data)) + b"/\xff/snapshots")
        self.assertEqual({ALICE, ("bob",), ("carol",), ("carol", "pc"), ("\udcff",)}, set(self.counting.repositories()))
        self.write("config")
        self.assertIn((), self.counting.repositories())
        deeper = Counting(str(self.data), self.store.volume, self.store.snapshots, 3)
        self.assertIn(("a", "b", "c"), deeper.repositories())

    def test_is_repository(self) -> None:
        """One thing of restic's is enough."""
        for kind in TYPES:
            (self.data / "x" / kind).mkdir(parents=True)
            self.assertTrue(self.counting.is_repository(("x",)))
            shutil.rmtree(self.data / "x")
            self.assertFalse(self.counting.is_repository(("x",)))


class NeverShorterTests(CountingCase):
    """What cannot be seen is not taken for missing."""

    def setUp(self) -> None:
        super().setUp()
        for kind in TYPES:
            save(self.store, ALICE, kind, b"x")

    def test_volume_gone(self) -> None:
        """Without the volume everything is Unavailable, also where directories of the same names are in its place."""
        away = self.data.with_suffix(".away")
        os.rename(self.data, away)
        for with_directories in (False, True):
            if with_directories:
                for number in range(256):
                    (self.data / "alice" / "data" / f"{number:02x}").mkdir(parents=True)
                for kind in TYPES[1:]:
                    (self.data / "alice" / kind).mkdir()
            self.assertRaises(Unavailable, self.counting.repositories)
            self.assertRaises(Unavailable, self.counting.known, ALICE)
            for cell in range(CELLS):
                if cell != cell_of("config", "config") or not with_directories:
                    self.assertRaises(Unavailable, self.counting.count, ALICE, [cell])

    def test_volume_goes_meanwhile(self) -> None:
        """At whatever moment it goes: a count has all or is Unavailable."""
        away = self.data.with_suffix(".away")
        complete = self.count()
        for gone_after in range(0, 400, 7):
            calls = 0
            stat, scandir = os.stat, os.scandir

            def tick() -> None:
                nonlocal calls
                calls += 1
                if calls == gone_after + 1:
                    os.rename(self.data, away)

            def stating(*arguments: Any, **named: Any) -> Any:
                tick()
                return stat(*arguments, **named)

            def scanning(*arguments: Any) -> Any:
                tick()
                return scandir(*arguments)

            patches = [self.patch(os, "stat", stating), self.patch(os, "scandir", scanning)]
            try:
                found = self.count()
            except Unavailable:
                found = complete
            finally:
                for patch in patches:
                    patch.restore()
                if away.exists():
                    os.rename(away, self.data)
                    self.store.volume.check()
            self.assertEqual(complete, found, gone_after)

    def failing(self, function: str, ending: str, code: int = errno.EIO) -> Any:
        """A call on a path that ends so is an error of the disk; the patch."""
        real = getattr(os, function)

        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and str(path).endswith(ending):
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *arguments, **named)

        return self.patch(os, function, call)

    def test_disk_that_fails(self) -> None:
        """A directory that the disk cannot read is left out, so what was last known of it stays; nothing is taken for empty."""
        complete = self.count()
        for function, path, cell in (
            ("open", "/alice/index", cell_of("index", "")),
            ("stat", "/alice/config", cell_of("config", "")),
        ):
            patch = self.failing(function, path)
            with capturedLogs() as events:
                for _ in range(3):
                    found = self.counting.known(ALICE)
                    found |= self.counting.count(ALICE, [one for one in range(CELLS) if one not in found])
            patch.restore()
            self.assertEqual(set(range(CELLS)) - {cell}, set(found))
            self.assertEqual(complete, {one: amount for one, amount in (found | complete).items() if amount != (0, 0)})
            said = [line for line in map(formatEvent, events) if "can be read again" not in str(line)]
            self.assertEqual(1, len(said), said)
            self.assertIn(f"cannot read {self.data}{path}: Input/output error", said[0])
        with capturedLogs() as events:
            self.assertEqual(complete, self.count())
        self.assertEqual([f"{self.data}/alice/config can be read again"], list(map(formatEvent, events)))

    def test_all_of_a_disk_fails(self) -> None:
        """Not every directory of a broken disk is named."""
        self.failing("open", "")
        with capturedLogs() as events:
            for _ in range(2):
                found = set(self.counting.count(ALICE, range(CELLS)))
                self.assertEqual({cell_of("config", ""), TRASH_CELL}, found)
        self.assertEqual(MOST_NAMED + 1, len(events))

    def test_no_descriptors(self) -> None:
        """That this process has too many files open is no fault of a directory: the count fails as a whole."""
        self.failing("open", "/alice/index", errno.EMFILE)
        self.assertRaises(OSError, self.counting.count, ALICE, range(CELLS))
        self.failing("scandir", "/alice", errno.ENFILE)
        self.assertRaises(OSError, self.counting.repositories)

    def test_created(self) -> None:
        """A repository is as old as its config; without one that is not known, and what was known is not forgotten."""
        config = f"{self.data}/alice/config"
        with open(config, "wb"):
            os.utime(config, (5.5, 5.5))
        self.assertEqual(5.5, self.counting.created_s(ALICE))
        self.assertIsNone(self.counting.created_s(("nobody",), 9.0))
        self.failing("stat", "/alice/config")
        self.assertEqual(9.0, self.counting.created_s(ALICE, 9.0))

    def test_times_that_cannot_be_read(self) -> None:
        """Nor are the times of snapshots and locks forgotten."""
        self.failing("scandir", "/alice/snapshots")
        self.failing("scandir", "/alice/locks")
        self.assertEqual(7.0, self.counting.last_snapshot_s(ALICE, 7.0))
        self.assertEqual(8.0, self.counting.oldest_lock_s(ALICE, 8.0))

    def test_data_that_cannot_be_looked_at(self) -> None:
        """The directory of packs, of which all depends, cannot be looked at."""
        self.failing("stat", "/alice/data")
        try:
            found = self.counting.known(ALICE)
        except OSError:
            return
        self.assertFalse(set(range(256)) & set(found), "what cannot be looked at was taken for empty")

    def test_folders_that_cannot_be_read(self) -> None:
        """They are skipped, one line each; the data directory itself must be readable."""
        for folders in (LAPTOP, ("bob",), ("carol", "a"), ("carol", "b"), ("lost",)):
            self.store.create_repository(folders)
        (self.data / "loop").symlink_to("loop")
        for function, ending, code in (
            ("scandir", "/alice", errno.EIO),
            ("stat", "/carol/.", errno.EACCES),
            ("stat", "/lost/.", errno.ENOTCONN),
        ):
            self.failing(function, ending, code)
        with capturedLogs() as events:
            for _ in range(3):
                self.assertEqual([ALICE, ("bob",)], sorted(self.counting.repositories()))
        said = sorted(formatEvent(event).partition(";")[0].partition(f"{self.data}/")[2] for event in events)
        self.assertEqual(
            [
                f"{name}: {os.strerror(code)}"
                for name, code in (("alice", 5), ("carol", 13), ("loop", 40), ("lost", 107))
            ],
            said,
        )
        self.failing("scandir", str(self.data))
        self.assertRaises(OSError, self.counting.repositories)


class KnownTests(CountingCase):
    """What need not be read."""

    def test_from_memory_and_shelf(self) -> None:
        """Directories that are known need not be read, and those that changed since do."""
        offset_ns = 3600 * 10**9

        def now_ns() -> int:
            return time.time_ns() + offset_ns

        state = StateFile(str(self.data))
        self.addCleanup(state.close)
        for number in range(100):
            self.write(f"alice/data/ab/ab{number:062x}", 2)
        self.write("alice/index/" + "ab" * 32)
        for memory in (64 << 20, 50_000):
            for _ in range(2):
                snapshots = Snapshots(memory, now_ns, lambda fd: True, state)
                self.counting = self.make_store(snapshots=snapshots).counting
                self.count()
            known = self.counting.known(ALICE)
            self.assertEqual(Amount(200, 100), known[0xAB])
            self.assertNotIn(cell_of("locks", "0" * 64), known)
        fresh = self.make_store(snapshots=Snapshots(64 << 20, now_ns, lambda fd: True, state)).counting
        self.assertEqual({0xAB, cell_of("config", "config"), TRASH_CELL}, set(fresh.known(ALICE)))
        self.counting = fresh
        self.write(f"alice/data/ab/ab{'f' * 62}", 5)
        self.assertNotIn(0xAB, fresh.known(ALICE))
        self.assertEqual(Amount(206, 102), self.total())


class ChangeTests(CountingCase):
    """What uploads and removals say that they change is the difference of two counts."""

    def changed(self, call: Any) -> Amount:
        """By how much a call changes what is counted."""
        before = self.total()
        call()
        after = self.total()
        return Amount(after.size_bytes - before.size_bytes, after.objects - before.objects)

    def assert_told(self, call: Any) -> None:
        """It says what it changes."""
        told: list[Amount] = []
        self.assertEqual(self.changed(lambda: told.append(call())), told[0])

    def upload(self, kind: str, name: str, content: bytes, store: LocalStore | None = None) -> Amount:
        """An upload, and what it says."""
        upload = (store or self.store).upload(ALICE, kind, name, len(content))
        try:
            upload.open()
            upload.write([content])
            upload.commit()
        except (Forbidden, HashMismatch):
            pass
        finally:
            upload.abort()
        return upload.change

    def test_uploads(self) -> None:
        """New, the same again, a damaged one healed, refused for its hash, a config twice."""
        name = id_of(b"right")
        for kind in TYPES:
            self.assert_told(lambda: self.upload(kind, name, b"right"))
            self.assert_told(lambda: self.upload(kind, name, b"right"))
            Path(self.store.object_path(ALICE, kind, name)).write_bytes(b"damaged, and longer")
            self.assert_told(lambda: self.upload(kind, name, b"right"))
            self.assert_told(lambda: self.upload(kind, name, b"wrong one"))
            self.assert_told(lambda: self.upload(kind, id_of(b"other"), b"wrong one"))
        for content in (b"config", b"config", b"another"):
            self.assert_told(lambda: self.upload("config", "config", content))

    def test_uploads_without_verification(self) -> None:
        """The same where bodies are not verified."""
        store = self.make_store(verify=False)
        for content in (b"wrong one", b"right", b"right"):
            self.assert_told(lambda: self.upload("data", id_of(b"right"), content, store))

    def test_failed_after_it_was_there(self) -> None:
        """An upload that fails when it has its name already has changed what is stored."""

        def fail(*_: Any) -> None:
            raise OSError(5, os.strerror(5))

        self.patch(self.store.publisher, "settle", fail)

        def call() -> Amount:
            upload = self.store.upload(ALICE, "data", id_of(b"x"))
            upload.open()
            upload.write([b"x"])
            self.assertRaises(OSError, upload.commit)
            upload.abort()
            return upload.change

        self.assert_told(call)
        self.assertEqual(Amount(1, 1), self.total())

    def test_removals(self) -> None:
        """One that is there, one that is not, and one that is a directory's or nothing's."""
        for kind in TYPES:
            save(self.store, ALICE, kind, b"content")
            for _ in range(2):
                self.assert_told(lambda: self.store.remove_object(ALICE, kind, id_of(b"content")))
        self.upload("config", "config", b"config")
        self.assert_told(lambda: self.store.remove_object(ALICE, "config", "config"))

    def test_removal_of_a_link(self) -> None:
        """An object that is a link counts as what is behind it, and so does its removal."""
        target = self.write("elsewhere", 50)
        path = self.data / "alice" / "keys" / ("ab" * 32)
        path.symlink_to(target)
        self.assertEqual(Amount(50, 1), self.total())
        self.assert_told(lambda: self.store.remove_object(ALICE, "keys", path.name))

    def test_healed_twice_at_once(self) -> None:
        """Of two that heal the same object at the same moment the sum is what has changed."""
        name = id_of(b"right")
        save(self.store, ALICE, "keys", b"right")
        Path(self.store.object_path(ALICE, "keys", name)).write_bytes(b"damaged, and longer")
        real = stored_module.hash_of
        told: list[Amount] = []

        def hash_of(fd: int) -> str:
            if not told:
                told.append(Amount())
                told.append(self.upload("keys", name, b"right"))
            return real(fd)

        self.patch(upload_module, "hash_of", hash_of)
        changed = self.changed(lambda: told.append(self.upload("keys", name, b"right")))
        self.assertEqual(changed, Amount(sum(t.size_bytes for t in told), sum(t.objects for t in told)))

    @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["save", "remove", "damage"]), st.sampled_from(["data", "index"]), st.integers(1, 4)
            ),
            max_size=12,
        )
    )
    def test_any_order(self, steps: list[tuple[str, str, int]]) -> None:
        """The sum of all that was told is what is there."""
        shutil.rmtree(self.data / "alice", ignore_errors=True)
        self.store.create_repository(ALICE)
        size_bytes = objects = 0
        for step, kind, number in steps:
            content = b"x" * number
            path = Path(self.store.object_path(ALICE, kind, id_of(content)))
            change = Amount()
            if step == "save":
                change = self.upload(kind, id_of(content), content)
            elif step == "remove":
                change = self.store.remove_object(ALICE, kind, id_of(content))
            elif path.exists():
                change = Amount(50 - path.stat().st_size, 0)
                path.write_bytes(b"y" * 50)
            size_bytes, objects = size_bytes + change.size_bytes, objects + change.objects
        self.assertEqual((size_bytes, objects), self.total())
