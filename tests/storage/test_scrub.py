"""
L{resticserver.storage.scrub} and what it is made of: what is checked in which order, what is found, and what is kept.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Unavailable
from resticserver.storage import object_check, page_cache, scrubbed_files
from resticserver.storage import scrub as scrub_module
from resticserver.storage.filesystem_types import type_of
from resticserver.storage.object_check import Finding, check_object
from resticserver.storage.page_cache import CachedPages
from resticserver.storage.scrub import ScrubRun
from resticserver.storage.scrub_state import FILE, DirectoryRow, Problem, ScrubState, ScrubUnavailable
from resticserver.storage.scrub_survey import DUE_PART, Plan
from resticserver.threads.rate_limit import Stopped

from ..support.client import object_id, random_bytes
from ..support.scratch import scratch_directory
from ..support.scrub import DAY_S, REPOSITORY, HastyLimit, ScrubBench, failing

MONTH_S = 30 * DAY_S

#: For patches of what it imports.
FILES: Any = scrubbed_files


class ObjectTests(SynchronousTestCase):
    """L{check_object}."""

    def setUp(self) -> None:
        self.path = scratch_directory(self) / "object"
        self.body = random_bytes(1, 3_000_000)
        self.name = object_id(self.body)
        self.limit = HastyLimit()

    def write(self, body: bytes) -> None:
        """The file, written long ago."""
        self.path.write_bytes(body)
        os.utime(self.path, (1, 1))

    def check(self, name: str | None = None) -> Finding:
        """What is found."""
        return check_object(str(self.path), name or self.name, self.limit).finding

    def test_good(self) -> None:
        """All bytes are read, no more than a step at a time, and the file stays as it is."""
        self.write(self.body)
        before = self.path.stat()
        found = check_object(str(self.path), self.name, self.limit)
        self.assertEqual((Finding.GOOD, "", len(self.body)), (found.finding, found.reason, found.read_bytes))
        self.assertEqual(len(self.body), sum(self.limit.taken_bytes))
        self.assertLessEqual(max(self.limit.taken_bytes), self.limit.step_bytes)
        after = self.path.stat()
        self.assertEqual((before.st_atime_ns, before.st_mtime_ns), (after.st_atime_ns, after.st_mtime_ns))

    def test_wrong(self) -> None:
        """One bit, one byte less, one more, nothing at all."""
        flipped = bytearray(self.body)
        flipped[-1] ^= 1
        for body in (bytes(flipped), self.body[:-1], self.body + b"x", b""):
            self.write(body)
            found = check_object(str(self.path), self.name, self.limit)
            self.assertIs(Finding.DAMAGED, found.finding)
            self.assertIn(f"{len(body)} bytes", found.reason)
        self.assertEqual([], self.limit.pauses)

    def test_empty(self) -> None:
        """An object may be empty."""
        self.write(b"")
        self.assertIs(Finding.GOOD, self.check(object_id(b"")))

    def test_config(self) -> None:
        """A config has no hash."""
        self.write(self.body)
        self.assertIs(Finding.GOOD, self.check("config"))

    def test_no_object(self) -> None:
        """Nothing, a link, a directory, a FIFO."""
        self.assertIs(Finding.GONE, self.check())
        self.path.symlink_to("/etc/passwd")
        self.assertIs(Finding.FOREIGN, self.check())
        self.path.unlink()
        self.path.mkdir()
        self.assertIs(Finding.FOREIGN, self.check())
        self.path.rmdir()
        os.mkfifo(self.path)
        self.assertIs(Finding.FOREIGN, self.check())

    def test_unreadable(self) -> None:
        """The disk does not return the bytes, or does not open the file."""
        self.write(self.body)
        for name in ("preadv", "open"):
            with self.subTest(name):
                broken = failing(getattr(os, name), OSError(errno.EIO, "Input/output error"), [self.path])
                patch = self.patch(os, name, broken)
                found = check_object(str(self.path), self.name, self.limit)
                patch.restore()
                self.assertEqual((Finding.UNREADABLE, "Input/output error"), (found.finding, found.reason))

    def test_fault_of_this_process(self) -> None:
        """Too many open files say nothing about the file."""
        self.write(self.body)
        self.patch(os, "open", failing(os.open, OSError(errno.EMFILE, "too many"), [self.path]))
        self.assertRaises(OSError, self.check)

    def test_being_written(self) -> None:
        """A file that was written to just now is read once more; while it changes nothing is said about it."""
        self.path.write_bytes(self.body[:-1])
        self.assertIs(Finding.DAMAGED, self.check())
        self.assertEqual([object_check.RECENT_S], self.limit.pauses)

        class Completes(HastyLimit):
            def pause(inner, seconds: float) -> None:
                with self.path.open("ab") as file:
                    file.write(self.body[-1:])

        self.path.write_bytes(self.body[:-1])
        self.limit = Completes()
        self.assertIs(Finding.GOOD, self.check())
        self.path.write_bytes(self.body[:-1])
        with self.path.open("ab") as file:
            file.write(b"x")
        self.assertIs(Finding.CHANGING, self.check())

    def test_replaced_meanwhile(self) -> None:
        """A damaged file that was replaced while it was read is not reported."""
        self.write(self.body[:-1])
        other = self.path.with_name("other")
        other.write_bytes(self.body)

        class Replaces(HastyLimit):
            def take(inner, size_bytes: int) -> None:
                if other.exists():
                    other.rename(self.path)

        self.limit = Replaces()
        self.assertIs(Finding.GOOD, self.check())

    def test_stopped(self) -> None:
        """In the middle of a file."""
        self.write(self.body)
        self.limit = HastyLimit(takes=1)
        self.assertRaises(Stopped, self.check)


class PageCacheTests(SynchronousTestCase):
    """L{CachedPages}."""

    def pages(self, cached: bytes | None, size_bytes: int = 1 << 20) -> CachedPages:
        """Pages of which these are cached."""
        self.patch(page_cache, "_cached_pages", lambda fd, status: cached)
        with tempfile.TemporaryFile() as file:
            file.truncate(size_bytes)
            return CachedPages(file.fileno(), os.fstat(file.fileno()))

    def test_ranges(self) -> None:
        """Only runs of pages that were not cached, within what was read."""
        page = page_cache._PAGE_BYTES
        found = self.pages(bytes([1, 0, 0, 1, 0, 1]))
        self.assertEqual([(page, 2 * page), (4 * page, page)], list(found._uncached(0, 6 * page)))
        self.assertEqual([(2 * page, page)], list(found._uncached(2 * page, page)))
        self.assertEqual([], list(found._uncached(5 * page, page)))
        self.assertEqual([(page, 3 * page)], list(self.pages(None)._uncached(page, 2 * page + 1)))

    def test_on_a_disk(self) -> None:
        """What was cached stays, what was not is dropped again."""
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            if type_of(file.fileno()) in ("tmpfs", "ramfs", "overlay", None):
                raise self.skipTest("/var/tmp is not on a disk")
            size_bytes = 4 << 20
            file.write(os.urandom(size_bytes))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), 8192, 1 << 20)
            status = os.fstat(file.fileno())
            before = page_cache._cached_pages(file.fileno(), status)
            if before is None or b"\1" not in before or b"\0" not in before:
                raise self.skipTest("this file system does not tell what is cached, or drops nothing")
            check_object(file.name, "0" * 64, HastyLimit())
            self.assertEqual(before, page_cache._cached_pages(file.fileno(), status))


class RunTests(SynchronousTestCase):
    """L{ScrubRun}."""

    def setUp(self) -> None:
        self.bench = ScrubBench(self)
        self.file = self.bench.file

    def test_all_good(self) -> None:
        """Objects of every type are read."""
        for kind in ("data", "index", "keys", "snapshots", "locks"):
            self.bench.put(*range(5), kind=kind)
        limit = HastyLimit()
        self.assertTrue(self.bench.run(limit=limit).complete)
        self.assertEqual(25 * 1000 + len(b"a config"), sum(limit.taken_bytes))
        self.assertEqual([], self.bench.problems())
        self.assertIn("pass_ended", self.bench.state.facts())

    def test_exactly_what_is_wrong(self) -> None:
        """Flipped, truncated, removed, unreadable, of many; each is told once, by its id. Several threads find the same."""
        for threads in (1, 3):
            with self.subTest(threads):
                bench = ScrubBench(self)
                names = bench.put(*range(300))
                snapshots = bench.put(400, 401, kind="snapshots")
                bench.run()
                bench.flip(names[7])
                os.truncate(bench.file(names[8]), 10)
                os.utime(bench.file(names[8]), (1, 1))
                bench.file(names[9]).unlink()
                bench.file(snapshots[0], "snapshots").unlink()
                broken = failing(os.preadv, OSError(errno.EIO, "Input/output error"), [bench.file(names[10])])
                patch = self.patch(os, "preadv", broken)
                expected = sorted(
                    [
                        ("damaged", "data", names[7]),
                        ("damaged", "data", names[8]),
                        ("missing", "data", names[9]),
                        ("missing", "snapshots", snapshots[0]),
                        ("unreadable", "data", names[10]),
                    ]
                )
                for _ in range(2):
                    bench.run(threads=threads)
                    self.assertEqual(expected, bench.problems())
                    self.assertEqual(expected, sorted(bench.observer.problems))
                patch.restore()
                self.assertTrue(bench.file(names[7]).exists())

    def test_good_again(self) -> None:
        """A later good check ends a problem; so does the return of a missing object."""
        names = self.bench.put(1, 2)
        self.bench.run()
        self.bench.flip(names[0])
        self.file(names[1]).unlink()
        self.bench.run()
        self.bench.flip(names[0])
        self.bench.put(2)
        self.bench.run()
        self.assertEqual([], self.bench.problems())
        ended = [("damaged", "data", names[0]), ("missing", "data", names[1])]
        self.assertEqual(sorted(ended), sorted(self.bench.observer.ended))

    def test_config(self) -> None:
        """A config that vanishes is missing."""
        self.bench.run()
        (self.bench.repository / "config").unlink()
        self.bench.run()
        self.assertEqual([("missing", "config", "config")], self.bench.problems())

    def test_deleted_through_the_server(self) -> None:
        """Objects, with and without a trash, and whole repositories are not missing."""
        names = self.bench.put(*range(8))
        self.bench.run()
        for name in names[:3]:
            self.bench.store.remove_object(REPOSITORY, "data", name)
        for name in names[3:5]:
            self.bench.store.remove_object(REPOSITORY, "data", name, keep_s=DAY_S)
        self.file(names[5]).unlink()
        self.bench.run()
        self.assertEqual([("missing", "data", names[5])], self.bench.problems())
        # It is deleted in turn: nobody misses it any more.
        self.bench.store.remove_object(REPOSITORY, "data", names[5])
        self.bench.run()
        self.assertEqual([], self.bench.problems())
        self.assertEqual(set(), self.bench.deletions.all())
        self.bench.store.delete_repository(REPOSITORY)
        self.bench.run()
        self.assertEqual([], self.bench.problems())
        self.assertEqual({}, self.bench.state.directories())

    def test_in_the_trash(self) -> None:
        """What another program has moved to the trash is not missing."""
        (name,) = self.bench.put(1)
        self.bench.run()
        trash = self.bench.repository / ".trash" / "2026-11-27" / "data.2"
        trash.mkdir(parents=True)
        self.file(name).rename(trash / name)
        self.bench.run()
        self.assertEqual([], self.bench.problems())

    def test_deleted_meanwhile(self) -> None:
        """What is deleted through the server while a run is under way is not missing; what is removed otherwise is."""
        names = self.bench.put(*range(20))
        self.bench.run()
        self.bench.now_s += 1
        run = self.bench.begin()
        first, second = sorted(names)[-2:]
        directories = {name[:2] for name in names}
        if len({first[:2], second[:2]}) < 2 or len(directories) < 2:
            raise self.skipTest("the same directory")
        self.bench.store.remove_object(REPOSITORY, "data", first)
        self.file(second).unlink()
        run.work()
        run.finish()
        self.assertEqual([("missing", "data", second)], self.bench.problems())

    def test_accept_missing(self) -> None:
        """What a local prune has removed."""
        names = self.bench.put(1, 2, 3)
        self.bench.run()
        self.file(names[0]).unlink()
        self.bench.run()
        self.file(names[1]).unlink()
        self.bench.flip(names[2])
        self.bench.run(Plan(began_s=self.bench.now_s + 1, accept_missing=True))
        self.assertEqual([("damaged", "data", names[2])], self.bench.problems())
        self.bench.run()
        self.assertEqual([("damaged", "data", names[2])], self.bench.problems())

    def test_locks_come_and_go(self) -> None:
        """A lock is read, and never missing."""
        names = self.bench.put(1, 2, kind="locks")
        self.bench.run()
        self.file(names[0], "locks").unlink()
        self.bench.flip(names[1], "locks")
        self.bench.run()
        self.assertEqual([("damaged", "locks", names[1])], self.bench.problems())

    def test_foreign_files(self) -> None:
        """Other files, objects in the wrong directory, links and what they lead to are left alone."""
        outside = scratch_directory(self) / ("0" * 64)
        outside.write_bytes(b"x")
        (name,) = self.bench.put(1)
        self.file("00" + "1" * 62).symlink_to(outside)
        (self.bench.repository / "data" / "00" / "README").write_bytes(b"x")
        (self.bench.repository / "data" / "00" / ("f" * 64)).write_bytes(b"x")
        (self.bench.repository / "index" / f"{name}-tmp-1").write_bytes(b"x")
        (self.bench.repository / "keys" / ("2" * 64)).mkdir()
        limit = HastyLimit()
        self.bench.run(limit=limit)
        self.assertEqual(1000 + len(b"a config"), sum(limit.taken_bytes))
        self.assertEqual([], self.bench.problems())

    def test_unreadable_directory(self) -> None:
        """It is skipped, logged once, and affects nothing else; what was in it is not missing."""
        names = self.bench.put(*range(100))
        self.bench.run()
        folder = self.file(names[0]).parent
        folder.rename(folder.with_name("elsewhere"))
        folder.write_bytes(b"no directory")
        other = next(name for name in names if name[:2] != names[0][:2])
        self.bench.flip(other)
        for _ in range(2):
            run = self.bench.begin(Plan(began_s=self.bench.now_s + 1))
            self.bench.now_s += 2
            run.work()
            run.finish()
            self.assertEqual({str(folder): "Not a directory"}, run.surveyed.skipped)
        self.assertEqual([("damaged", "data", other)], self.bench.problems())
        folder.unlink()
        folder.with_name("elsewhere").rename(folder)
        self.bench.run()
        self.assertEqual([("damaged", "data", other)], self.bench.problems())

    def test_volume_is_gone(self) -> None:
        """An unmounted volume does not look as if everything were missing."""
        self.bench.put(*range(5))
        self.bench.store.volume.mark()
        self.bench.run()
        self.bench.path.rename(self.bench.path.with_name("unmounted"))
        self.bench.path.mkdir()
        self.assertRaises(Unavailable, self.bench.run)
        self.bench.path.rmdir()
        self.bench.path.with_name("unmounted").rename(self.bench.path)
        self.bench.run()
        self.assertEqual([], self.bench.problems())

    def test_volume_goes_meanwhile(self) -> None:
        """The same in the middle of a run, with the state elsewhere."""
        self.bench.state = ScrubState(str(self.bench.path), str(scratch_directory(self)))
        self.bench.put(*range(5))
        self.bench.store.volume.mark()
        self.bench.run()
        self.bench.now_s += 1
        run = self.bench.begin()
        self.bench.path.rename(self.bench.path.with_name("unmounted"))
        self.assertRaises(Unavailable, run.work)
        self.bench.path.with_name("unmounted").rename(self.bench.path)
        self.assertEqual([], self.bench.problems())

    def test_only_some(self) -> None:
        """Of several repositories only those that are asked for."""
        self.bench.store.create_repository(("bob",))
        (name,) = self.bench.put(1)
        self.bench.flip(name)
        self.bench.run(Plan(began_s=self.bench.now_s + 1, repositories=frozenset({("bob",)})))
        self.assertEqual([], self.bench.problems())
        self.assertNotIn("pass_ended", self.bench.state.facts())
        self.bench.run(Plan(began_s=self.bench.now_s + 1, repositories=frozenset({REPOSITORY})))
        self.assertEqual([("damaged", "data", name)], self.bench.problems())

    def test_empty(self) -> None:
        """Without repositories nothing is made."""
        path = scratch_directory(self)
        bench = ScrubBench(self, path / "data")
        bench.store.delete_repository(REPOSITORY)
        self.assertEqual((True, None), bench.run())
        self.assertEqual(["id"], os.listdir(path / "data" / ".rest-server"))


class ScheduleTests(SynchronousTestCase):
    """What is due when, and that a run which is killed is resumed."""

    def setUp(self) -> None:
        self.bench = ScrubBench(self)
        self.plan = Plan(interval_s=MONTH_S)
        self.read: list[str] = []
        check = FILES.check_object

        def noted(path: str, name: str, limit: Any) -> Any:
            self.read.append(name)
            return check(path, name, limit)

        self.patch(FILES, "check_object", noted)

    def checked(self) -> list[str]:
        """What was read since the last call, besides the config."""
        read, self.read = [name for name in self.read if name != "config"], []
        return read

    def test_when_it_is_due(self) -> None:
        """Everything is read once in the interval."""
        names = sorted(self.bench.put(*range(20)))
        ended = self.bench.run(self.plan)
        self.assertEqual(names, self.checked())
        assert ended.next_s is not None
        self.assertEqual(self.bench.now_s + DUE_PART * MONTH_S, ended.next_s)
        self.bench.run(self.plan)
        self.assertEqual([], self.checked())
        self.bench.now_s = ended.next_s
        self.bench.run(self.plan)
        self.assertEqual(names, self.checked())

    def test_new_objects(self) -> None:
        """They are read with the next survey, before all that is due."""
        old = self.bench.put(*range(20))
        self.bench.run(self.plan)
        self.checked()
        new = self.bench.put(100, 101)
        self.bench.run(self.plan)
        self.assertEqual(sorted(new), sorted(self.checked()))
        self.bench.run(self.plan)
        self.assertEqual([], self.checked())
        newest = self.bench.put(102, 103)
        self.bench.now_s += MONTH_S
        self.bench.run(self.plan)
        checked = self.checked()
        self.assertEqual(sorted(newest), sorted(checked[:2]))
        self.assertEqual(sorted([*old, *new, *newest]), sorted(checked[2:]))
        # They are known from then on.
        self.bench.file(newest[0]).unlink()
        self.bench.run(self.plan)
        self.assertEqual([("missing", "data", newest[0])], self.bench.problems())

    def test_a_new_repository_is_not_a_backlog(self) -> None:
        """What comes to an old server is checked before what is due."""
        self.bench.put(*range(20))
        self.bench.run(self.plan)
        self.checked()
        self.bench.store.create_repository(("bob",))
        body = random_bytes(77, 100)
        name = object_id(body)
        (self.bench.path / "bob" / "data" / name[:2] / name).write_bytes(body)
        self.bench.now_s += MONTH_S
        self.bench.run(self.plan)
        self.assertEqual(name, self.checked()[0])

    def test_oldest_first(self) -> None:
        """The directory whose check is oldest comes first."""
        names = self.bench.put(*range(60))
        by_directory = {name[:2]: name for name in names}
        self.bench.run(self.plan)
        prefixes = sorted(by_directory)
        ages = {prefix: number for number, prefix in enumerate(reversed(prefixes))}
        rows = self.bench.state.directories()
        self.bench.state.put_directories(
            (key, row._replace(checked_s=1000.0 + ages.get(f"{key[1]:02x}", 1e6))) for key, row in rows.items()
        )
        self.checked()
        self.bench.run(self.plan)
        seen = list(dict.fromkeys(name[:2] for name in self.checked() if name in names))
        self.assertEqual(list(reversed(prefixes)), seen)

    def test_killed_again_and_again(self) -> None:
        """A run that is killed goes on where it was, in the middle of a directory too, and finds what it would have found."""
        self.patch(scrub_module, "SAVE_S", 0.0)
        names = self.bench.put(*range(100), kind="index")
        for name in names[10], names[60]:
            self.bench.flip(name, "index")
        kills = 0
        while True:
            self.bench.now_s += 1
            run = self.bench.begin(self.plan, HastyLimit(takes=7))
            run.work()
            if run._all_given:
                break
            kills += 1
            self.assertLess(kills, 60)
        self.assertTrue(run.finish().complete)
        self.assertGreater(kills, 10)
        self.assertEqual(
            sorted([("damaged", "index", names[10]), ("damaged", "index", names[60])]), self.bench.problems()
        )
        self.assertLess(len(self.read), 2 * len(names))
        self.assertEqual(set(names), set(self.checked()))

    def test_an_old_beginning_is_not_resumed(self) -> None:
        """A directory whose check began before the interval is checked anew."""
        self.patch(scrub_module, "SAVE_S", 0.0)
        names = self.bench.put(*range(10), kind="index")
        self.bench.begin(self.plan, HastyLimit(takes=5)).work()
        self.checked()
        self.bench.now_s += 2 * MONTH_S
        self.bench.run(self.plan)
        self.assertEqual(sorted(names), sorted(self.checked()))

    def test_time_is_over(self) -> None:
        """A run ends in time, so that new objects are looked for; the next one goes on."""
        names = self.bench.put(*range(10), kind="index")
        clock_s = [0.0]
        run = ScrubRun(self.bench.survey(), Plan(interval_s=MONTH_S, lasts_s=5), HastyLimit(), lambda: clock_s[0])
        run.survey()
        check = FILES.check_object

        def slow(*arguments: Any) -> Any:
            clock_s[0] += 1
            return check(*arguments)

        self.patch(FILES, "check_object", slow)
        run.work()
        self.assertEqual((False, None), run.finish())
        self.assertEqual(5, len(self.read))
        self.bench.run(self.plan)
        self.assertEqual(sorted(names), sorted(self.checked()))

    def test_clock_is_set_back(self) -> None:
        """Checks in the future do not put off the next one for years."""
        names = self.bench.put(1)
        self.bench.now_s += 20 * 365 * DAY_S
        self.bench.run(self.plan)
        self.bench.now_s -= 20 * 365 * DAY_S
        self.checked()
        self.bench.run(self.plan)
        self.assertEqual(names, self.checked())

    def test_progress(self) -> None:
        """The bytes of the pass, those of earlier runs included."""
        self.bench.put(*range(10), kind="index")
        self.patch(scrub_module, "SAVE_S", 0.0)
        self.bench.begin(self.plan, HastyLimit(takes=5)).work()
        run = self.bench.begin(self.plan)
        self.assertEqual(10_000 + 8, run.progress.total_bytes)
        run.work()
        self.assertEqual(1.0, run.progress.part)
        self.assertLess(run.progress.read_bytes, 10_000)


class AgainTests(SynchronousTestCase):
    """L{Survey.look_again}."""

    def setUp(self) -> None:
        self.bench = ScrubBench(self)
        self.names = self.bench.put(*range(6))
        self.bench.run()
        self.bench.flip(self.names[0])
        self.bench.file(self.names[1]).unlink()
        self.bench.run()
        self.before = self.bench.problems()
        self.assertEqual(2, len(self.before))

    def look(self) -> list[tuple[str, str, str]]:
        """Look again; the problems after it."""
        self.limit = HastyLimit()
        self.bench.survey().look_again(self.bench.state.problems(), self.limit)
        return self.bench.problems()

    def test_nothing_has_changed(self) -> None:
        """Nothing is read."""
        self.assertEqual(self.before, self.look())
        self.assertEqual([], self.limit.taken_bytes)

    def test_replaced_and_restored(self) -> None:
        """Good files end the problems; other wrong bytes do not."""
        self.bench.put(0, 1)
        self.assertEqual([], self.look())
        self.bench.flip(self.names[0])
        self.bench.run()
        os.truncate(self.bench.file(self.names[0]), 5)
        self.assertEqual([("damaged", "data", self.names[0])], self.look())

    def test_deleted(self) -> None:
        """Through the server: it is no problem any more. Otherwise it is missing."""
        self.bench.store.remove_object(REPOSITORY, "data", self.names[0])
        self.bench.store.remove_object(REPOSITORY, "data", self.names[1])
        self.assertEqual([], self.look())
        self.bench.flip(self.names[2])
        self.bench.run()
        self.bench.file(self.names[2]).unlink()
        self.assertEqual([("missing", "data", self.names[2])], self.look())


class StateTests(SynchronousTestCase):
    """L{ScrubState}."""

    def setUp(self) -> None:
        self.path = scratch_directory(self)
        (self.path / ".rest-server").mkdir()

    def state(self) -> ScrubState:
        """The database as a process has it."""
        state = ScrubState(str(self.path))
        self.addCleanup(state.close)
        return state

    def test_round_trip(self) -> None:
        """Rows, problems and facts of one process are those of the next."""
        names = frozenset({"ab" * 32, "cd" * 32})
        row = DirectoryRow(1.5, 2.5, "ab" * 32, (1 << 63, 2, 3, 4), 5, 6, names)
        config = DirectoryRow(0.0, None, "", None, 5, 1, frozenset({"config"}))
        odd = ("b\udcffb",)
        self.state().put_directories([((odd, 3), row), (((), 260), config)])
        problem = Problem(odd, "data", "ab" * 32, "damaged", 3.5, "why", (1, 2, 3, 4))
        missing = Problem((), "config", "config", "missing", 1.5, "gone")
        self.state().put_problems([problem, missing])
        self.state().put_facts(one=1.5, two=None)
        state = self.state()
        self.assertEqual(
            {(odd, 3): row._replace(names=None), ((), 260): config._replace(names=None)}, state.directories()
        )
        self.assertEqual(row, state.directory((odd, 3)))
        self.assertEqual(config, state.directory(((), 260)))
        self.assertIsNone(state.directory(((), 261)))
        self.assertEqual([missing, problem], state.problems())
        self.assertEqual([problem], state.problems(odd, "data", "ab" * 32))
        self.assertEqual([], state.problems(odd, "index"))
        self.assertEqual({"one": "1.5"}, state.facts())
        state.put_directories([((odd, 3), row._replace(checked_s=9.0, names=None))])
        self.assertEqual(row._replace(checked_s=9.0), self.state().directory((odd, 3)))
        state.remove_problems([problem])
        state.forget_directories([(odd, 3)])
        state.put_facts(one=None)
        self.assertEqual([missing], self.state().problems())
        self.assertEqual([((), 260)], list(self.state().directories()))
        self.assertEqual({}, self.state().facts())
        self.assertTrue(state.lasts)

    def test_no_place(self) -> None:
        """Where nothing can be written the scrub works, with what it knows in memory."""
        state = ScrubState(str(self.path / "nowhere"))
        state.put_facts(one=1)
        self.assertEqual({"one": "1"}, state.facts())
        self.assertFalse(state.lasts)

    def test_place_is_lost(self) -> None:
        """What could be written once is not replaced by memory: the run ends and is tried again."""
        state = self.state()
        state.put_facts(one=1)
        (self.path / ".rest-server").rename(self.path / "elsewhere")
        self.assertRaises(ScrubUnavailable, state.facts)
        (self.path / "elsewhere").rename(self.path / ".rest-server")
        self.assertEqual({"one": "1"}, state.facts())

    def test_stamp(self) -> None:
        """Another process's writing shows, reading and closing do not."""
        state, other = self.state(), self.state()
        other.put_facts(one=1)
        state.facts()
        state.close()
        other.close()
        before = state.stamp()
        state.facts()
        self.assertEqual(before, state.stamp())
        state.close()
        self.assertEqual(before, state.stamp())
        other.put_facts(one=2)
        self.assertNotEqual(before, state.stamp())

    def test_broken(self) -> None:
        """A broken file is made anew."""
        (self.path / ".rest-server" / FILE).write_bytes(b"no database" * 1000)
        self.assertEqual({}, ScrubState(str(self.path)).facts())


class DeletionsTests(SynchronousTestCase):
    """L{Deletions}."""

    def setUp(self) -> None:
        self.bench = ScrubBench(self)
        self.deletions = self.bench.deletions
        self.file: Path = self.bench.path / ".rest-server" / "deleted"
        self.bench.store.volume.mark()

    def test_nobody_asks(self) -> None:
        """Without a scrub no file is made."""
        self.deletions.add(REPOSITORY, "data", "1" * 64)
        self.assertFalse(self.file.exists())
        self.assertFalse(self.deletions.has(REPOSITORY, "data", "1" * 64))

    def test_added(self) -> None:
        """What was deleted is found, by other processes too; a line that a power cut has cut costs only itself."""
        token = self.deletions.prepare()
        self.assertTrue(token)
        self.assertEqual(token, self.deletions.prepare())
        self.deletions.add(REPOSITORY, "data", "1" * 64)
        with self.file.open("ab") as file:
            file.write(b'\n["alice/lap')
        odd = ("b\udcffb",)
        self.deletions.add(odd, "index", "2" * 64)
        expected = {(REPOSITORY, "data", "1" * 64), (odd, "index", "2" * 64)}
        self.assertEqual(expected, self.deletions.all())
        self.assertTrue(self.deletions.has(odd, "index", "2" * 64))
        self.assertFalse(self.deletions.has(odd, "index", "1" * 64))
        self.deletions.add(odd)
        self.assertTrue(self.deletions.has(odd, "data", "1" * 64))

    def test_forget(self) -> None:
        """Only what was seen, and is over; the file stays the same one."""
        token = self.deletions.prepare()
        for digit in "123":
            self.deletions.add((), "data", digit * 64)
        seen = self.deletions.all()
        self.deletions.add((), "data", "4" * 64)
        self.deletions.forget(lambda one: one[2] != "2" * 64, seen)
        self.assertEqual({((), "data", digit * 64) for digit in "24"}, self.deletions.all())
        self.assertEqual(token, self.deletions.prepare())
        self.deletions.add((), "data", "5" * 64)
        self.assertEqual(3, len(self.deletions.all()))

    def test_lost(self) -> None:
        """Where it is not known what was deleted, nothing is called missing; from then on it is."""
        names = self.bench.put(1, 2)
        self.bench.run()
        self.file.unlink()
        self.bench.store.remove_object(REPOSITORY, "data", names[0])
        self.bench.run()
        self.assertEqual([], self.bench.problems())
        self.bench.file(names[1]).unlink()
        self.bench.run()
        self.assertEqual([("missing", "data", names[1])], self.bench.problems())

    def test_cannot_be_written(self) -> None:
        """The deletion goes on, and the log says so."""
        self.deletions.prepare()

        def broken(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(os, "fdatasync", broken)
        self.deletions.add(REPOSITORY, "data", "1" * 64)

    def test_large(self) -> None:
        """A file that nobody has looked at for years does not grow for ever."""
        self.deletions.prepare()
        os.truncate(self.file, (256 << 20) + 1)
        self.deletions.add(REPOSITORY, "data", "1" * 64)
        self.assertFalse(self.file.exists())


class SpeedTests(SynchronousTestCase):
    """A look at directories that have not changed reads none of them."""

    def test_unchanged(self) -> None:
        """Not even their names."""
        bench = ScrubBench(self)
        bench.put(*range(50))
        for folder in (bench.repository / "data").iterdir():
            os.utime(folder, (1, 1))
        # The change time cannot be set: the directories are as new as the test.
        patch = self.patch(time, "time_ns", lambda: 4_000_000_000_000_000_000)
        bench.run()
        patch.restore()
        self.patch(os, "scandir", self.refuse)
        self.patch(bench.store.counting, "repositories", lambda: [REPOSITORY])
        run = bench.begin(Plan(interval_s=MONTH_S))
        self.assertEqual([], run.surveyed.tasks)

    def refuse(self, *arguments: object) -> None:
        """It must not be called."""
        raise AssertionError(arguments)
