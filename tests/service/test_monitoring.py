"""
L{resticserver.service.monitoring}: the metrics of the whole server, put together from what was counted, the books and the disk.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import twisted
from twisted.internet.defer import CancelledError, Deferred, FirstError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

import resticserver
from resticserver.access.htpasswd import Htpasswd
from resticserver.access.policy import Policy
from resticserver.access.policyfile import PolicyFile
from resticserver.access.throttle import Login, Throttle
from resticserver.config.settings import Settings
from resticserver.errors import Forbidden, Unauthorized, Unavailable
from resticserver.quota.directory_locks import DirectoryLocks
from resticserver.quota.ledger import Ledger
from resticserver.server import ResticServer
from resticserver.service.activity import Activity
from resticserver.service.logins import CheckPools, PasswordChecker
from resticserver.service.monitoring import MISSING_S, PATIENCE_S, Monitoring, Sources
from resticserver.service.quota_keeper import QuotaKeeper, QuotaRules
from resticserver.service.size_history import KEEP_S, MOST_POINTS
from resticserver.sizes import UNLIMITED, Amount, Limit
from resticserver.storage.layout import CELLS, cell_of
from resticserver.storage.local import LocalStore
from resticserver.storage.state import StateFile
from resticserver.targets import Kind, Target
from resticserver.telemetry import process_metrics as process
from resticserver.telemetry.concerns import Thresholds
from resticserver.telemetry.metrics import Family, Tally, gauge
from resticserver.telemetry.refusals import Refusals
from resticserver.telemetry.status import LastDayStatus
from resticserver.threads.single_flight import CachedFlight
from resticserver.web.page import Page

from ..contract.store import save
from ..support.certificates import make_certificate
from ..support.htpasswd import sha_line
from ..support.memory import HeldPool, InlinePool
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.skipping import skipped
from ..support.wires import as_reactor
from ..telemetry.test_metrics import PLAIN, SKIP_WITHOUT_PROMTOOL, Series, complaints, parsed, series

POLICY = """
[[rule]]
users = ["alice"]
repositories = ["alice/laptop"]
rights = "full"
quota = 1000

[[rule]]
users = ["*"]
repositories = ["**"]
rights = "full"

[users.alice]
quota = 5000

[users."*"]
quota = 700
"""


def steady(page: bytes) -> list[bytes]:
    """A page without what changes from one to the next, whatever happens: CPU time, memory, the disk that others use too."""
    others = (b"process_", b"python_gc_", b"rest_server_disk_free_bytes")
    return [line for line in page.splitlines() if not line.startswith(others)]


class QuotaBackend:
    """Accounts that have a ledger and sizes of other days, and no more."""

    complete = False

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.days: dict[tuple[str, ...], list[tuple[int, int]]] = {}

    def history(self) -> dict[tuple[str, ...], list[tuple[int, int]]]:
        """Sizes by days."""
        return self.days


class MonitoringCase(SynchronousTestCase):
    """Metrics over a ledger."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        os.mkdir(self.path)
        self.on_disk = os.statvfs(self.path)
        # Others write to the disk, so what is free would differ from one page to the next.
        self.patch(os, "statvfs", lambda path: self.on_disk if os.path.isdir(path) else os.stat(path))
        self.books = QuotaBackend()
        self.ledger = self.books.ledger
        self.pool: Any = InlinePool()
        self.disk: Any = InlinePool()
        self.clock = Clock()
        self.limit = UNLIMITED
        self.policy: Any = Policy()
        self.gather: Callable[[], Any] | None = None

    def read_policy(self, text: str = POLICY) -> None:
        """Rules with limits."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(text)
        self.policy = PolicyFile(path, Policy())
        self.policy.load()

    def monitoring(self, **sources: Any) -> Monitoring:
        """What is tested."""
        books: Any = self.books
        if self.gather is not None:
            sources["gather"] = self.gather
        return Monitoring(
            self.clock, Sources(self.path, self.limit, self.policy, **sources), books, self.disk, self.pool
        )

    def answer(self, monitoring: Monitoring) -> Page:
        """The whole page."""
        return self.successResultOf(Deferred.fromCoroutine(monitoring.metrics()))

    def found(self, monitoring: Monitoring | None = None) -> dict[Series, float]:
        """Its samples."""
        return parsed(self.answer(monitoring or self.monitoring()).body)

    def store(self, repository: tuple[str, ...], kind: str, size_bytes: int, objects: int = 1) -> None:
        """Something is stored."""
        self.ledger.change(repository, cell_of(kind, "00"), Amount(size_bytes, objects))

    def values(self, found: dict[Series, float], name: str) -> dict[str, float]:
        """A family's values by repository, or by user where there is none."""
        return {
            dict(labels).get("repo", dict(labels).get("user", "")): value
            for (one, labels), value in found.items()
            if one == f"rest_server_{name}"
        }


class PageTests(MonitoringCase):
    """The page as a whole."""

    def test_answer(self) -> None:
        """It is 200, in the text format that every Prometheus takes."""
        answer = self.answer(self.monitoring())
        self.assertEqual((200, b"text/plain; version=0.0.4; charset=utf-8"), (answer.status, answer.content_type))

    def test_parts(self) -> None:
        """What requests did, what others know of, and the server itself, are on one page."""

        def more() -> Iterator[Family]:
            yield gauge("certain_things", "Certain things", 7)

        monitoring = self.monitoring(families=[more])
        monitoring.tally(PLAIN)
        found = self.found(monitoring)
        key = series("rest_server_blob_write_total", user="alice", repo="alice/laptop", type="data")
        self.assertEqual(1, found[key])
        self.assertEqual(7, found[series("rest_server_certain_things")])
        info = {
            "version": resticserver.__version__,
            "python": platform.python_version(),
            "twisted": twisted.__version__,
        }
        self.assertEqual(1, found[series("rest_server_build_info", **info)])
        self.assertGreater(found[series("rest_server_start_time_seconds")], 1.7e9)

    def test_start_time_stays(self) -> None:
        """The start is the server's and not the page's."""
        monitoring = self.monitoring()
        first = self.found(monitoring)[series("rest_server_start_time_seconds")]
        self.assertEqual(first, self.found(monitoring)[series("rest_server_start_time_seconds")])

    def test_disk(self) -> None:
        """Free and whole size of the data directory's file system, as C{df} has them for everyone but root."""
        found = self.found()
        status = self.on_disk
        self.assertEqual(status.f_blocks * status.f_frsize, found[series("rest_server_disk_size_bytes")])
        self.assertEqual(status.f_bavail * status.f_frsize, found[series("rest_server_disk_free_bytes")])

    def test_no_disk(self) -> None:
        """A data directory that is gone costs the page only what would be known of it."""
        os.rmdir(self.path)
        found = self.found()
        self.assertNotIn(series("rest_server_disk_free_bytes"), found)
        self.assertIn(series("rest_server_size_bytes"), found)

    def test_ready(self) -> None:
        """Whether the server can do its work is a figure too: who scrapes need not ask a second page."""
        reason = ""

        async def not_ready() -> str:
            return reason

        monitoring = self.monitoring(not_ready=not_ready)
        self.assertEqual(1, self.found(monitoring)[series("rest_server_ready")])
        reason = "the disk is gone"
        self.assertEqual(0, self.found(monitoring)[series("rest_server_ready")])

    def test_damaged(self) -> None:
        """Each repository has a figure for damaged files, so that the first one found is an increase."""
        monitoring = self.monitoring()
        for name in ("laptop", "nas"):
            self.store(("alice", name), "data", 100)
        monitoring.damaged["alice/nas"] += 2
        wanted = {"alice/laptop": 0.0, "alice/nas": 2.0}
        self.assertEqual(wanted, self.values(self.found(monitoring), "repository_damaged_total"))

    def test_volume_gone(self) -> None:
        """The space of whatever file system is in the data directory's place is not told."""

        def gone() -> None:
            raise Unavailable("the volume is gone")

        monitoring = self.monitoring(check_volume=gone)
        self.assertNotIn(series("rest_server_disk_free_bytes"), self.found(monitoring))
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(monitoring.status())).disk_free_bytes)

    def test_deleted(self) -> None:
        """What was counted of a repository that was deleted is not its successor's."""
        monitoring = self.monitoring()
        self.store(("alice", "laptop"), "data", 100)
        monitoring.tally(PLAIN)
        monitoring.damaged["alice/laptop"] += 1
        monitoring.deleted("alice/laptop")
        found = self.found(monitoring)
        self.assertEqual({"alice/laptop": 0.0}, self.values(found, "repository_damaged_total"))
        self.assertEqual([], [labels for (name, labels) in found if name == "rest_server_blob_write_total"])

    def test_beside(self) -> None:
        """A repository that the books do not know yet has its series all the same; one that has left them has none."""
        monitoring = self.monitoring()
        self.books.complete = True
        monitoring.tally(PLAIN)
        key = series("rest_server_blob_write_total", user="alice", repo="alice/laptop", type="data")
        for _ in range(3):
            self.assertEqual(1, self.found(monitoring)[key])
        self.store(("alice", "laptop"), "data", 100)
        self.assertEqual(1, self.found(monitoring)[key])
        self.ledger.repositories.clear()
        self.assertNotIn(key, self.found(monitoring))
        # Never there for the books.
        monitoring = self.monitoring()
        monitoring.tally(PLAIN)
        self.assertEqual(1, self.found(monitoring)[key])
        self.clock.advance(MISSING_S - 1)
        self.assertEqual(1, self.found(monitoring)[key])
        self.clock.advance(1)
        self.assertNotIn(key, self.found(monitoring))

    def test_deleted_and_counted_later(self) -> None:
        """A worker may say of a repository what it did there after it was deleted: that makes no series."""
        monitoring = self.monitoring()
        self.books.complete = True
        monitoring.deleted("alice/laptop")
        for _ in range(3):
            monitoring.tally(PLAIN)
            self.assertEqual({}, self.values(self.found(monitoring), "blob_write_total"))

    def test_in_flight(self) -> None:
        """Requests of all processes together; those of one that has ended are none."""
        monitoring = self.monitoring()
        for worker, number in (("one", 3), ("other", 4)):
            monitoring.count_in_flight(worker, number)
        self.assertEqual(7, self.found(monitoring)[series("rest_server_http_requests_in_flight")])
        monitoring.count_in_flight("one", 1)
        self.assertEqual(5, self.found(monitoring)[series("rest_server_http_requests_in_flight")])
        monitoring.process_gone("other")
        self.assertEqual(1, self.found(monitoring)[series("rest_server_http_requests_in_flight")])

    def test_gathered_first(self) -> None:
        """The others are asked before anything is read, so what they have just counted is there."""
        asked: Deferred[None] = Deferred()

        async def gather() -> None:
            await asked
            monitoring.tally(PLAIN)

        self.gather = gather
        monitoring = self.monitoring()
        waiting = Deferred.fromCoroutine(monitoring.metrics())
        self.assertNoResult(waiting)
        asked.callback(None)
        key = series("rest_server_blob_write_total", user="alice", repo="alice/laptop", type="data")
        self.assertEqual(1, parsed(self.successResultOf(waiting).body)[key])

    def test_not_in_the_reactors_thread(self) -> None:
        """The text is made in the pool, of what was counted when that was asked for."""
        self.pool = HeldPool()
        monitoring = self.monitoring()
        monitoring.tally(PLAIN)
        waiting = Deferred.fromCoroutine(monitoring.metrics())
        self.assertNoResult(waiting)
        monitoring.tally(PLAIN)
        self.pool.release()
        key = series("rest_server_blob_write_total", user="alice", repo="alice/laptop", type="data")
        self.assertEqual(1, parsed(self.successResultOf(waiting).body)[key])

    def test_changes_show(self) -> None:
        """A page that is made again has what has changed since, also what is gone."""
        monitoring = self.monitoring()
        self.store(("alice",), "data", 10)
        self.assertEqual({"alice": 10}, self.values(self.found(monitoring), "repository_size_bytes"))
        self.store(("alice",), "data", 5)
        self.store(("bob",), "data", 1)
        self.assertEqual({"alice": 15, "bob": 1}, self.values(self.found(monitoring), "repository_size_bytes"))
        self.ledger.forget(("alice",))
        self.assertEqual({"bob": 1}, self.values(self.found(monitoring), "repository_size_bytes"))

    @skipped(SKIP_WITHOUT_PROMTOOL)
    @process_test
    def test_promtool(self) -> None:
        """C{promtool check metrics} finds nothing in a page that has everything."""
        self.read_policy()
        self.limit = Limit(10_000)
        for repository in ((), ("alice",), ("alice", "laptop"), ("bob", 'x"\\y')):
            self.store(repository, "snapshots", 10)
            self.ledger.account(repository).last_snapshot_s = 1.5e9
        monitoring = self.monitoring(
            families=[lambda: iter((gauge("workers", "Number of worker processes that are ready", 2),))]
        )
        monitoring.tally(PLAIN)
        self.assertEqual("", complaints(self.answer(monitoring).body))


class StoredTests(MonitoringCase):
    """What is stored, and how much may be."""

    def test_sizes(self) -> None:
        """Bytes and objects of each repository, of each user, and of all; also of the one at the root."""
        self.store((), "config", 7)
        self.store(("alice",), "data", 100, 2)
        self.store(("alice", "laptop"), "data", 1000, 3)
        self.store(("alice", "laptop"), "keys", 1)
        self.store(("bob", "pc"), "index", 50)
        found = self.found()
        self.assertEqual(
            {"": 7, "alice": 100, "alice/laptop": 1001, "bob/pc": 50}, self.values(found, "repository_size_bytes")
        )
        self.assertEqual({"": 1, "alice": 2, "alice/laptop": 4, "bob/pc": 1}, self.values(found, "repository_objects"))
        self.assertEqual({"alice": 1101, "bob": 50}, self.values(found, "user_size_bytes"))
        self.assertEqual(1158, found[series("rest_server_size_bytes")])
        self.assertIn(series("rest_server_repository_size_bytes", user="alice", repo="alice/laptop"), found)
        self.assertIn(series("rest_server_repository_size_bytes", user="", repo=""), found)

    def test_folders_that_are_no_users(self) -> None:
        """A first folder that is not a user name has no user."""
        self.store(("a b",), "config", 7)
        found = self.found()
        self.assertIn(series("rest_server_repository_size_bytes", user="", repo="a b"), found)
        self.assertEqual({}, self.values(found, "user_size_bytes"))

    def test_names_that_are_only_asked_for(self) -> None:
        """An upload that is not stored yet, wherever it wants to go, makes no series."""
        for number in range(20):
            self.ledger.reserve((f"invented{number}",), "data", "00" * 32, 5, _no_limits())
        found = self.found()
        self.assertEqual({}, self.values(found, "repository_size_bytes"))
        self.assertEqual({}, self.values(found, "user_size_bytes"))
        self.assertEqual(0, found[series("rest_server_size_bytes")])

    def test_reservations_are_not_stored(self) -> None:
        """What uploads on their way may become does not count as stored."""
        self.store(("alice",), "config", 7)
        self.ledger.reserve(("alice",), "data", "00" * 32, 5000, _no_limits())
        self.assertEqual({"alice": 7}, self.values(self.found(), "repository_size_bytes"))

    def test_margins_are_not_stored(self) -> None:
        """
        What a repository may have at most, as long as it was not counted after a crash, is for quotas; it is not what it has.
        """
        sizes, objects = [0] * CELLS, [0] * CELLS
        sizes[0], objects[0] = 1000, 2
        self.ledger.load(("alice",), sizes, objects, Amount(1000 + (256 << 20), 10_002))
        found = self.found()
        self.assertEqual({"alice": 1000}, self.values(found, "repository_size_bytes"))
        self.assertEqual({"alice": 2}, self.values(found, "repository_objects"))

    def test_quotas(self) -> None:
        """Those that there are, of repositories, users and the server; and how much of it is left."""
        self.read_policy()
        self.limit = Limit(20_000)
        self.store(("alice", "laptop"), "data", 400)
        self.store(("alice", "nas"), "data", 300)
        self.store(("bob",), "data", 30)
        found = self.found()
        self.assertEqual({"alice/laptop": 1000}, self.values(found, "repository_quota_bytes"))
        self.assertEqual({"alice/laptop": 600}, self.values(found, "repository_quota_free_bytes"))
        self.assertEqual({"alice": 5000, "bob": 700}, self.values(found, "user_quota_bytes"))
        self.assertEqual({"alice": 700, "bob": 30}, self.values(found, "user_size_bytes"))
        self.assertEqual(20_000, found[series("rest_server_quota_bytes")])

    def test_no_quotas(self) -> None:
        """Without limits there are none to be seen, and nothing that looks like zero."""
        self.store(("alice", "laptop"), "data", 400)
        text = self.answer(self.monitoring()).body.decode()
        self.assertNotRegex(text, r"(?m)^rest_server_\w*quota\w*[ {]")

    def test_over_its_quota(self) -> None:
        """Locks and indexes go above it, and quotas may be made smaller: nothing is left then, not less than nothing."""
        self.read_policy()
        self.store(("alice", "laptop"), "data", 1500)
        self.assertEqual({"alice/laptop": 0}, self.values(self.found(), "repository_quota_free_bytes"))

    def test_quotas_are_read_again(self) -> None:
        """A policy that is read again holds for the next page."""
        self.read_policy()
        self.store(("alice", "laptop"), "data", 400)
        monitoring = self.monitoring()
        self.found(monitoring)
        self.policy.take(POLICY.replace("quota = 1000", "quota = 800"))
        found = self.found(monitoring)
        self.assertEqual({"alice/laptop": 800}, self.values(found, "repository_quota_bytes"))
        self.assertEqual({"alice/laptop": 400}, self.values(found, "repository_quota_free_bytes"))

    def test_last_snapshot(self) -> None:
        """When each repository got its youngest; one that has none has no series, so no alert takes it for old."""
        for repository in (("alice",), ("bob",)):
            self.store(repository, "config", 7)
        self.ledger.account(("alice",)).last_snapshot_s = 1_700_000_000.25
        found = self.found()
        self.assertEqual({"alice": 1_700_000_000.25}, self.values(found, "repository_last_snapshot_timestamp_seconds"))


def _no_limits() -> Any:
    from resticserver.quota.ledger import Limits

    return Limits()


class HungTests(MonitoringCase):
    """A disk that does not answer: what does not need it is told all the same, and it costs one thread."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = HeldPool()
        self.store(("alice", "laptop"), "data", 100)

    def test_metrics(self) -> None:
        """All but the disk's own families, after a while; all of it when the disk is back."""
        monitoring = self.monitoring()
        for _ in range(3):
            asked = Deferred.fromCoroutine(monitoring.metrics())
            self.clock.advance(PATIENCE_S - 0.01)
            self.assertNoResult(asked)
            self.clock.advance(0.01)
            found = parsed(self.successResultOf(asked).body)
            self.assertEqual({"alice/laptop": 100}, self.values(found, "repository_size_bytes"))
            self.assertNotIn(series("rest_server_disk_free_bytes"), found)
        self.assertEqual(1, len(self.disk.jobs))
        self.disk.release()
        asked = Deferred.fromCoroutine(monitoring.metrics())
        self.disk.release()
        found = parsed(self.successResultOf(asked).body)
        self.assertGreater(found[series("rest_server_disk_free_bytes")], 0)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_status(self) -> None:
        """Repositories without their history, and no figures of the disk."""
        self.books.days[("alice", "laptop")] = [(1, 50)]
        monitoring = self.monitoring()
        asked = Deferred.fromCoroutine(monitoring.status())
        self.clock.advance(PATIENCE_S)
        status = self.successResultOf(asked)
        self.assertEqual((None, None), (status.disk_free_bytes, status.disk_size_bytes))
        self.assertEqual([1], [len(repository.history) for repository in status.repositories])
        self.disk.release()
        self.clock.advance(PATIENCE_S * CachedFlight.KEPT_TIMES)
        asked = Deferred.fromCoroutine(monitoring.status())
        self.disk.release()
        status = self.successResultOf(asked)
        self.assertEqual((1, 50), status.repositories[0].history[0])
        self.assertIsNotNone(status.disk_size_bytes)


class StatusTests(MonitoringCase):
    """L{Monitoring.status}: many may ask, and it is put together once."""

    def test_shared(self) -> None:
        """Those who ask at once, and a moment later, get the same; it is put together in the pool, and then anew."""
        self.pool = HeldPool()
        self.store(("alice", "laptop"), "data", 100)
        monitoring = self.monitoring()
        asked = [Deferred.fromCoroutine(monitoring.status()) for _ in range(20)]
        asked[0].cancel()
        asked[7].cancel()
        for gone in (asked.pop(7), asked.pop(0)):
            self.failureResultOf(gone, CancelledError)
        self.assertEqual(1, len(self.pool.jobs))
        self.clock.advance(0.5)
        self.pool.release()
        statuses = [self.successResultOf(one) for one in asked]
        self.assertEqual(1, len(set(map(id, statuses))))
        self.clock.advance(0.5 * CachedFlight.KEPT_TIMES - 0.1)
        self.assertIs(statuses[0], self.successResultOf(Deferred.fromCoroutine(monitoring.status())))
        self.clock.advance(0.1)
        self.store(("alice", "laptop"), "data", 200)
        late = Deferred.fromCoroutine(monitoring.status())
        self.assertNoResult(late)
        self.pool.release()
        self.assertEqual(300, self.successResultOf(late).size_bytes)

    def test_a_fault_is_not_kept(self) -> None:
        """Who asks after a fault is asked for anew."""
        faults: list[Exception] = [RuntimeError("broken")]

        async def not_ready() -> str:
            if faults:
                raise faults.pop()
            return ""

        monitoring = self.monitoring(not_ready=not_ready)
        failure = self.failureResultOf(Deferred.fromCoroutine(monitoring.status()))
        failure.trap(FirstError)
        self.assertEqual("", self.successResultOf(Deferred.fromCoroutine(monitoring.status())).not_ready)

    def test_last_day(self) -> None:
        """Traffic and failed logins of the last day, refusals, and who wrote last, of all processes."""
        self.store(("alice", "laptop"), "data", 100)
        self.store(("alice", "laptop"), "snapshots", 3, 2)
        self.ledger.account(("alice", "laptop")).created_s = 1.5e9
        tally, refusals = Tally(), Refusals()
        gathered: list[int] = []
        for _ in range(3):
            refusals.add("alice", "alice/laptop", "quota", "full")

        async def gather() -> None:
            """The workers tell what they have counted."""
            worker = Tally()
            worker(PLAIN._replace(started=1.6e9))
            tally.add(worker.take())
            gathered.append(1)

        self.gather = gather
        activity = Activity(self.clock, tally, lambda: 7, StateFile(self.path), self.pool)
        monitoring = self.monitoring(
            tally=tally, refusals=refusals, host="backup1", counted=activity.counted, thresholds=Thresholds(disk=0.5)
        )
        for times in (1, 2):
            self.clock.advance(60)
            status = self.successResultOf(Deferred.fromCoroutine(monitoring.status()))
            self.assertEqual(times, len(gathered))
            expected = LastDayStatus(times * 60.0, times * 70, times * 5, 3, 7, 0)
            self.assertEqual(("backup1", expected), (status.host, status.last_day))
            self.assertEqual(Thresholds(disk=0.5), status.thresholds)
            (one,) = status.repositories
            found = (one.snapshots, one.created_s, one.last_writer, one.last_write_s)
            self.assertEqual((2, 1.5e9, "alice", 1.6e9 + 0.004), found)

    def test_growth(self) -> None:
        """The growth of all repositories together, and when the disk is full."""
        now_s = 20_000.5 * 86_400
        self.patch(time, "time", lambda: now_s)
        for name, times in (("a", 2), ("b", 3)):
            self.books.days[(name,)] = [(20_000 - ago, (100 - ago) * times * 1000) for ago in range(10, 0, -1)]
            self.store((name,), "data", 100 * times * 1000)
        status = self.successResultOf(Deferred.fromCoroutine(self.monitoring().status()))
        self.assertEqual(((19_990, 450_000), (20_000, 500_000)), (status.history[0], status.history[-1]))
        self.assertAlmostEqual(5000.0, status.growth_bytes_per_day or 0)
        self.assertGreater(self.on_disk.f_bavail * self.on_disk.f_frsize, 3650 * 5000)
        self.assertIsNone(status.disk_full_s)
        self.on_disk = os.statvfs_result((4096, 4096, 1000, 10, 10, 5, 5, 5, 0, 255))
        status = self.successResultOf(Deferred.fromCoroutine(self.monitoring().status()))
        self.assertAlmostEqual(now_s + 10 * 4096 / 5000 * 86_400, status.disk_full_s or 0, places=3)

    def test_growth_is_not_known(self) -> None:
        """A few days say nothing, neither does an empty server."""
        for days in (0, 5):
            today = int(time.time() // 86_400)
            self.books.days[("a",)] = [(today - ago, 5) for ago in range(days, 0, -1)]
            status = self.successResultOf(Deferred.fromCoroutine(self.monitoring().status()))
            self.assertEqual((None, None), (status.growth_bytes_per_day, status.disk_full_s))

    def test_history_is_kept(self) -> None:
        """The sizes of earlier days are read once an hour, and when a day ends."""
        time_s = 20_000.2 * 86_400
        self.patch(time, "time", lambda: time_s)
        read: list[int] = []

        def look() -> dict[tuple[str, ...], list[tuple[int, int]]]:
            read.append(1)
            return self.books.days

        self.patch(self.books, "history", look)
        self.books.days[("a",)] = [(19_999, 5), (20_000, 7)]
        self.store(("a",), "data", 9)
        monitoring = self.monitoring()
        same, next_day = ((19_999, 5), (20_000, 9)), ((19_999, 5), (20_000, 7), (20_001, 9))
        for day, later_s, reads, history in (
            (20_000.2, 0, 1, same),
            (20_000.3, KEEP_S - 1, 1, same),
            (20_000.4, 1, 2, same),
            (20_001.0, 5, 3, next_day),
        ):
            time_s = day * 86_400
            self.clock.advance(later_s)
            status = self.successResultOf(Deferred.fromCoroutine(monitoring.status()))
            self.assertEqual((reads, history, history), (len(read), status.repositories[0].history, status.history))

    def test_long_history(self) -> None:
        """A curve has points enough for every page, and no more: its ends, and the same distance between them."""
        now_s = time.time()
        self.patch(time, "time", lambda: now_s)  # not beyond midnight
        today = int(now_s // 86_400)
        for number in (1, 2, 99, 100, 101, 399, 400):
            self.books.days[("alice", "laptop")] = [(today - number + day, day) for day in range(number)]
            self.store(("alice", "laptop"), "data", 1)
            monitoring = self.monitoring()
            (repository,) = self.successResultOf(Deferred.fromCoroutine(monitoring.status())).repositories
            days = [day for day, _ in repository.history]
            self.assertEqual((today - number, today - 1, today), (days[0], days[-2], days[-1]))
            self.assertLessEqual(len(days), MOST_POINTS + 2)
            self.assertGreaterEqual(len(days), min(number, MOST_POINTS // 2))
            self.assertEqual(days, sorted(set(days)))


class LoginsTests(SynchronousTestCase):
    """What is counted of passwords."""

    def test_failures_and_lockouts(self) -> None:
        """Each wrong password is a failure, a refusal without a look is none; each time that an address is shut out is one."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(sha_line("alice", "right"))
        clock = Clock()
        users = Htpasswd(path, clock.seconds)
        users.load()
        check = PasswordChecker(users, CheckPools(InlinePool(), InlinePool()), Throttle(3, clock.seconds), clock)

        def ask(password: bytes, address: str = "192.0.2.1") -> Deferred[None]:
            asked = Deferred.fromCoroutine(check.check(Login("alice", password, address, False, False)))
            clock.pump([1] * 6)
            clock.rightNow -= 6
            return asked

        self.successResultOf(ask(b"right"))
        self.assertEqual((0, 0), (check.failures, check.lockouts))
        wrong = 0
        with capturedLogs():
            for number in range(30):
                error = self.failureResultOf(ask(b"wrong %d" % number), Unauthorized, Forbidden)
                wrong += error.check(Unauthorized) is not None
        self.assertTrue(3 <= wrong < 30, wrong)
        self.assertEqual((wrong, 1), (check.failures, check.lockouts))
        self.successResultOf(ask(b"right", "192.0.2.2"))
        self.assertEqual((wrong, 1), (check.failures, check.lockouts))


class ServerTests(SynchronousTestCase):
    """What L{ResticServer} adds: certificates, logins, processes."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)

    def found(self, **settings: Any) -> dict[Series, float]:
        """The samples of a server that was not started."""
        server = ResticServer(Settings(str(self.scratch), **settings), as_reactor(Clock()))
        families = [family for more in server.topology.monitoring._sources.families for family in more()]
        self.server = server
        return {
            series(family.name, **dict(zip(family.labels, sample.labels, strict=True))): sample.value
            for family in families
            for sample in family.samples
        }

    def test_certificate(self) -> None:
        """The day on which the certificate ends, and after a renewal that of the new one."""
        files = make_certificate(self.scratch)
        tls = {"tls": True, "tls_cert": str(files.certificate), "tls_key": str(files.key)}
        found = self.found(no_auth=True, prometheus=True, **tls)
        key = series("rest_server_certificate_expiry_timestamp_seconds")
        assert self.server.core.certificates is not None
        self.assertEqual(self.server.core.certificates.not_after.timestamp(), found[key])
        self.assertTrue(29 * 86400 < found[key] - time.time() < 31 * 86400)
        self.assertNotIn(key, self.found(no_auth=True, prometheus=True))

    def test_logins(self) -> None:
        """Where there are passwords, what was counted of them; where there are none, nothing."""
        (self.scratch / ".htpasswd").write_text(sha_line("alice", "x"))
        found = self.found(prometheus=True)
        self.assertEqual(0, found[series("rest_server_auth_failures")])
        self.assertEqual(0, found[series("rest_server_auth_lockouts")])
        self.assertNotIn(series("rest_server_auth_failures"), self.found(no_auth=True, prometheus=True))

    def test_processes(self) -> None:
        """How many workers serve, where there are any."""
        self.assertEqual(0, self.found(no_auth=True, prometheus=True, workers=3)[series("rest_server_workers")])
        self.assertNotIn(series("rest_server_workers"), self.found(no_auth=True, prometheus=True))


class AccountsTests(SynchronousTestCase):
    """Books that are kept for the metrics alone: they must cost nobody anything."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.store = LocalStore(self.path)
        self.store.prepare()
        self.store.create_repository(("alice",))
        self.clock = Clock()
        self.pool = HeldPool()
        state = StateFile(self.path, None, 0o600)
        self.quota_keeper = QuotaKeeper(
            self.clock,
            QuotaRules(UNLIMITED, Policy(), in_any_case=True),
            self.store.counting,
            state,
            self.pool,
            DirectoryLocks(),
        )
        self.addCleanup(state.close)
        self.quota_keeper.startService()
        self.clock.advance(0)
        self.target = Target(("alice",), Kind.OBJECT, "data", "ab" * 32)

    def reserve(self) -> Deferred[int]:
        """An upload begins."""
        return Deferred.fromCoroutine(self.quota_keeper.reserve(None, self.target, 5))

    def test_no_upload_waits_for_a_count(self) -> None:
        """Where there are no limits nothing needs to be known: an upload goes on at once, however long the first count takes."""
        asked = self.reserve()
        self.addCleanup(asked.addErrback, lambda failure: None)
        self.successResultOf(asked)

    def test_no_upload_is_refused_for_want_of_a_count(self) -> None:
        """Nor is one refused because a count has failed, or takes for ever."""
        asked = self.reserve()
        self.clock.pump([5] * 6)
        self.successResultOf(asked)

    def test_counted(self) -> None:
        """What was there before is known when it has been counted, with its last snapshot, and then what comes."""
        save(self.store, ("alice",), "snapshots", b"a snapshot")
        self.pool.release(2000)
        account = self.quota_keeper.ledger.repositories[("alice",)]
        self.assertEqual((10, 1), (account.used_bytes, account.used_objects))
        assert account.last_snapshot_s is not None
        counted = os.stat(f"{self.path}/alice/snapshots").st_mtime
        self.assertLess(abs(counted - account.last_snapshot_s), 60)
        account.last_snapshot_s = 5.0
        self.quota_keeper.settle(0, ("alice",), cell_of("snapshots", ""), Amount(3, 1))
        self.assertGreater(account.last_snapshot_s, 1.7e9)
        self.quota_keeper.settle(0, ("alice",), cell_of("snapshots", ""), Amount(-1, -1))
        self.assertEqual(12, account.used_bytes)

    def test_created(self) -> None:
        """A repository is as old as its config, also one that is created while it is counted."""
        config = f"{self.path}/alice/config"
        with open(config, "wb") as file:
            file.write(b"x")
        os.utime(config, (1e9, 1e9))
        self.pool.release(2000)
        account = self.quota_keeper.ledger.repositories[("alice",)]
        self.assertEqual(1e9, account.created_s)
        look = self.store.counting.created_s

        def looked(repository: tuple[str, ...], otherwise: float | None) -> float | None:
            found = look(repository, otherwise)
            self.quota_keeper.settle(0, ("alice",), cell_of("config", ""), Amount(3, 1))
            return found

        self.patch(self.store.counting, "created_s", looked)
        self.quota_keeper.recount(("alice",))
        self.pool.release(2000)
        self.assertGreater(account.created_s or 0, 1.7e9)

    def test_snapshot_while_it_is_counted(self) -> None:
        """A snapshot that comes while the youngest is looked for is the youngest."""
        save(self.store, ("alice",), "snapshots", b"an old snapshot")
        name = os.listdir(f"{self.path}/alice/snapshots")[0]
        os.utime(f"{self.path}/alice/snapshots/{name}", (1e9, 1e9))
        look = self.store.counting.last_snapshot_s

        def looked(repository: tuple[str, ...], otherwise: float | None) -> float | None:
            found = look(repository, otherwise)
            self.quota_keeper.settle(0, ("alice",), cell_of("snapshots", ""), Amount(3, 1))
            return found

        self.patch(self.store.counting, "last_snapshot_s", looked)
        self.pool.release(2000)
        account = self.quota_keeper.ledger.repositories[("alice",)]
        assert account.last_snapshot_s is not None
        self.assertGreater(account.last_snapshot_s, 1.7e9)


class ProcessTests(MonitoringCase):
    """L{resticserver.telemetry.process_metrics}: what the processes take."""

    def test_without_proc(self) -> None:
        """Where there is no C{/proc} the start and the CPU are known, and what Python says."""
        self.patch(process, "figures_of", lambda pid: None)
        found = self.found()
        names = {name for name, _ in found if name.startswith("process_")}
        self.assertEqual({"process_cpu_seconds_total", "process_start_time_seconds"}, names)
        self.assertEqual(1, len([name for name, _ in found if name == "python_info"]))

    def test_a_process_that_has_ended(self) -> None:
        """A worker may end at any moment: it is not in the sum, and the CPU does not go back."""
        known = {7: process.Figures(5.0, 0.0, 1, 2, 3, 4), os.getpid(): process.Figures(1.0, 0.0, 10, 20, 30, 40)}
        self.patch(process, "figures_of", known.get)
        monitoring = self.monitoring(worker_pids=lambda: [7])
        before = self.found(monitoring)
        self.assertEqual((33, 44), (before[series("process_open_fds")], before[series("process_max_fds")]))
        del known[7]
        after = self.found(monitoring)
        self.assertEqual((30, 40), (after[series("process_open_fds")], after[series("process_max_fds")]))
        self.assertEqual(before[series("process_cpu_seconds_total")], after[series("process_cpu_seconds_total")])
        self.assertGreaterEqual(before[series("process_cpu_seconds_total")], 6.0)

    def test_refused_uploads(self) -> None:
        """Each reason has its number from the start, so that an alert sees the first one."""
        refusals = Refusals()
        monitoring = self.monitoring(refusals=refusals)
        refused = "rest_server_uploads_refused_total"
        self.assertEqual(5, len([name for name, _ in self.found(monitoring) if name == refused]))
        refusals.add("alice", "alice", "disk", "full")
        found = self.found(monitoring)
        self.assertEqual((1, 0), (found[series(refused, reason="disk")], found[series(refused, reason="quota")]))
