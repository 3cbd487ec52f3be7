"""
L{resticserver.objects.scrubbed}: what the scrub finds in a bucket, and with how many requests. The engine is in memory; the same
with a real one is in L{tests.integration.test_objects_scrub}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Unavailable
from resticserver.objects import scrubbed
from resticserver.objects.engine import WHOLE, AccessRefused, BucketMissing, EngineError
from resticserver.objects.layout import Keys
from resticserver.objects.scrubbed import AGAIN_S, GET, LIST, BucketScrubbed
from resticserver.objects.spool import Spool
from resticserver.objects.store import ObjectStore
from resticserver.service import scrub as scrub_module
from resticserver.service.scrub import LOOK_S, REMOTE_LOOK_S, START_S, TRY_AGAIN_S, Scrub, ScrubRules
from resticserver.storage import scrub_survey
from resticserver.storage.interface import Outcome, WantedPart
from resticserver.storage.layout import TRASH_CELL, cell_of
from resticserver.storage.object_directory import Contents
from resticserver.storage.scrub import Ended, ScrubRun
from resticserver.storage.scrub_state import ScrubState
from resticserver.storage.scrub_survey import Plan, Survey
from resticserver.telemetry.events import Event, EventKind
from resticserver.threads.rate_limit import RateLimit, Stopped

from ..contract.store import key_of, save
from ..support.client import object_id, random_bytes
from ..support.memory import InlinePool
from ..support.memory_engine import MemoryBody, MemoryEngine
from ..support.scrub import DAY_S, REPOSITORY, HastyLimit, Recording
from ..support.wires import as_reactor

MONTH_S = 30 * DAY_S
PAGE = 10
#: For patches of its parts.
SCRUB: Any = scrub_module


class ScrubbedEngine(MemoryEngine):
    """
    An engine in memory with objects that cannot be read.

    @ivar broken: how often reading the object of a key fails.
    @ivar down: the error that everything fails with; C{None} for nothing.
    """

    def __init__(self) -> None:
        super().__init__(PAGE)
        self.broken: Counter[str] = Counter()
        self.down: Exception | None = None

    def _call(self, name: str, key: str) -> None:
        super()._call(name, key)
        if self.down is not None:
            raise self.down

    def get(self, key: str, wanted: WantedPart = WHOLE) -> MemoryBody:
        """See L{MemoryEngine.get}."""
        if self.broken[key]:
            self.broken[key] -= 1
            self.calls.append(("get", key))
            raise EngineError("", "an error in this object")
        return super().get(key, wanted)

    def number(self, name: str) -> int:
        """How many calls of a name there were since the last time."""
        return sum(call == name for call, _ in self.calls)


class BucketCase(SynchronousTestCase):
    """A bucket below a prefix with one repository, and the scrub's parts on it."""

    def setUp(self) -> None:
        self.engine = ScrubbedEngine()
        self.pauses: list[float] = []
        directory = self.mktemp()
        self.keys = Keys("some/place/")
        self.store = ObjectStore(self.engine, self.keys.prefix, Spool(directory, 0))
        self.store.prepare()
        self.store.create_repository(REPOSITORY)
        self.store.volume.mark()
        self.place = BucketScrubbed(self.store.engine, self.keys, self.store.volume, 2)
        self.state = ScrubState("s3://memory", directory)
        self.addCleanup(lambda: self.state.close())
        self.observer = Recording()
        self.now_s = 1_800_000_000.0
        self.limit = HastyLimit()

    def plant(
        self, content: bytes, name: str = "", kind: str = "data", repository: tuple[str, ...] = REPOSITORY
    ) -> str:
        """An object, stored behind the server's back; its name."""
        name = name or object_id(content)
        key = self.keys.prefix + key_of(repository, kind, name)
        self.engine.objects[key] = content
        self.engine.modified_s[key] = self.now_s
        return name

    def put(self, *seeds: int, kind: str = "data") -> list[str]:
        """Objects that are right; their names."""
        return [self.plant(random_bytes(seed, 1000), kind=kind) for seed in seeds]

    def key(self, name: str, kind: str = "data") -> str:
        """The whole key of an object."""
        return self.keys.object(REPOSITORY, kind, name)

    def remove(self, name: str, kind: str = "data") -> None:
        """Remove an object behind the server's back."""
        del self.engine.objects[self.key(name, kind)]

    def flip(self, name: str, kind: str = "data") -> None:
        """Damage an object, as an engine does: its time stays."""
        content = bytearray(self.engine.objects[self.key(name, kind)])
        content[len(content) // 2] ^= 1
        self.engine.objects[self.key(name, kind)] = bytes(content)

    def look(self, known: Any = None) -> dict[Any, Contents]:
        """What a look finds."""
        found: dict[Any, Contents] = {}
        for key, contents in self.place.look(None, known or {}, self.limit):
            assert isinstance(contents, Contents)
            self.assertNotIn(key, found)
            found[key] = contents
        return found

    def survey(self) -> Survey:
        """A survey, as the next process would have it."""
        return Survey(self.place, self.state, None, self.observer, lambda: self.now_s)

    def run_of(self, survey: Survey, plan: Plan | None = None, limit: HastyLimit | None = None) -> Ended:
        """One run to its end."""
        self.now_s += 1
        run = ScrubRun(survey, plan or Plan(began_s=self.now_s), limit or self.limit)
        run.survey()
        run.work()
        return run.finish()

    def scrub(self, plan: Plan | None = None, limit: HastyLimit | None = None) -> Ended:
        """One run with a new survey."""
        return self.run_of(self.survey(), plan, limit)

    def problems(self) -> list[tuple[str, str, str]]:
        """All problems that are known: kind, type and name."""
        return sorted((one.kind, one.type, one.name) for one in self.state.problems())


class LookTests(BucketCase):
    """Lists: what is where."""

    def test_everything(self) -> None:
        """Objects of all types and repositories, one below another too, by their directories; nothing else."""
        names = self.put(*range(40))
        key = self.put(50, kind="keys")[0]
        self.plant(b"a config", "config", "config")
        below = self.plant(b"another", kind="index", repository=("alice",))
        self.plant(b"too deep", repository=("a", "b", "c"))
        self.plant(b"no folder", repository=("alice", "locks"))
        root = self.plant(b"a root", "config", "config", repository=())
        for stray in ("alice/laptop/data/README", f"alice/laptop/data/ab/{names[0][:-1]}x", "alice/laptop/x", "x/y"):
            self.engine.objects[self.keys.prefix + stray] = b""
            self.engine.modified_s[self.keys.prefix + stray] = 0.0
        wrong_folder = f"{self.keys.prefix}alice/laptop/data/00/{'f' * 64}"
        self.engine.objects[wrong_folder], self.engine.modified_s[wrong_folder] = b"", 0.0
        found = self.look()
        by_cell: dict[Any, set[str]] = {}
        for name in names:
            by_cell.setdefault((REPOSITORY, int(name[:2], 16)), set()).add(name)
        expected = by_cell | {
            (REPOSITORY, cell_of("keys", key)): {key},
            (REPOSITORY, cell_of("config", "config")): {"config"},
            (("alice",), cell_of("index", below)): {below},
            ((), cell_of("config", "config")): {root},
        }
        self.assertEqual(expected, {one: set(contents.sizes) for one, contents in found.items()})
        self.assertEqual({1000}, set(found[REPOSITORY, int(names[0][:2], 16)].sizes.values()))

    def test_requests(self) -> None:
        """A look costs a request for each page, and two for the marker, however many directories there are."""
        self.put(*range(95))
        self.engine.calls.clear()
        self.look()
        pages = -(-len(self.engine.objects) // PAGE)
        self.assertEqual((pages, 2), (self.engine.number("list_pages"), self.engine.number("get")))
        self.assertEqual({LIST: pages, GET: 2}, dict(self.place.requests))

    def test_unchanged(self) -> None:
        """Only directories in which an object was added, removed or stored again are reported."""
        names = self.put(*range(30))
        self.scrub()
        rows = self.state.directories()
        self.assertEqual({}, self.look(rows))
        self.engine.modified_s[self.key(names[0])] += 1
        self.remove(names[1])
        new = self.put(1000)[0]
        cells = {(REPOSITORY, int(name[:2], 16)) for name in (names[0], names[1], new)}
        self.assertEqual(cells, self.look(rows).keys())

    def test_vanished(self) -> None:
        """A directory that is not there any more has nothing; if the bucket is gone, the look fails."""
        (name,) = self.put(1)
        self.scrub()
        self.remove(name)
        found = self.look(self.state.directories())
        self.assertEqual([(REPOSITORY, int(name[:2], 16))], list(found))
        self.assertEqual((False, {}), (found[REPOSITORY, int(name[:2], 16)].there, {}))
        self.engine.objects.clear()
        self.assertRaises(Unavailable, self.look, self.state.directories())

    def test_directories_one_by_one(self) -> None:
        """In a pass they are what the look has seen, and the folders of data cost as many requests as their list has pages."""
        self.put(*range(95))
        self.put(*range(100, 103), kind="index")
        self.plant(b"a config", "config", "config")
        found = self.look()
        cells = sorted(found)
        self.engine.calls.clear()
        self.assertEqual([found[key] for key in cells], [self.place.contents(key) for key in cells])
        # Besides data: the index and the config. A page that ends with a folder costs one more at most.
        self.assertLessEqual(self.engine.number("list_pages"), 2 * 10 + 2)
        again = [self.place.contents(key) for key in reversed(cells)]
        self.assertEqual([found[key] for key in reversed(cells)], again)

    def test_every_folder(self) -> None:
        """Folders without objects have nothing, wherever the pages end."""
        for number in (0, 1, PAGE, PAGE + 1, 35):
            with self.subTest(number):
                self.engine.objects = {
                    key: content for key, content in self.engine.objects.items() if "/data/" not in key
                }
                self.put(*range(number))
                self.place._ahead = None
                found = self.look()
                for cell in range(TRASH_CELL):
                    contents = self.place.contents((REPOSITORY, cell))
                    self.assertEqual(found.get((REPOSITORY, cell), Contents(there=False)), contents)

    def test_old_list(self) -> None:
        """A list that was not used for long is begun again after its last key."""
        self.patch(scrubbed, "_TOKEN_S", -1.0)
        for seed in range(25):
            body = random_bytes(seed, 10)
            self.plant(body, "ab" + object_id(body)[2:])
        found = self.look()
        self.assertEqual(25, len(self.place.contents((REPOSITORY, 0xAB)).sizes))
        self.assertEqual(found[REPOSITORY, 0xAB], self.place.contents((REPOSITORY, 0xAB)))

    def test_some_repositories(self) -> None:
        """Only these are listed."""
        self.put(1)
        self.plant(b"x", repository=("bob",))
        self.plant(b"y", repository=("alice",))
        self.engine.calls.clear()
        found = {key[0] for key, _ in self.place.look([("alice",)], {}, self.limit)}
        self.assertEqual({("alice",)}, found)
        self.assertEqual({"some/place/alice/"}, {key for name, key in self.engine.calls if name == "list_pages"})

    def test_stopped(self) -> None:
        """In the middle of a list."""
        self.put(*range(30))
        self.limit.stop()
        self.assertRaises(Stopped, self.look)


class RunTests(BucketCase):
    """What a run finds."""

    def test_all_good(self) -> None:
        """Each object is read by one request."""
        self.put(*range(40))
        for kind in ("index", "keys", "snapshots", "locks"):
            self.put(*range(100, 105), kind=kind)
        self.plant(b"a config", "config", "config")
        self.engine.calls.clear()
        self.assertTrue(self.scrub().complete)
        reads = [key for name, key in self.engine.calls if name == "get" and not key.endswith("/id")]
        self.assertEqual(61, len(reads))
        self.assertEqual(61, len(set(reads)))
        self.assertEqual(60 * 1000 + 8, sum(self.limit.taken_bytes))
        self.assertEqual([], self.problems())

    def test_exactly_what_is_wrong(self) -> None:
        """Flipped, truncated, of any type; each is told once and stays; it ends with a verified upload."""
        names = self.put(*range(60))
        (snapshot,) = self.put(100, kind="snapshots")
        self.flip(names[7])
        self.plant(b"short", names[8])
        self.flip(snapshot, "snapshots")
        expected = sorted(
            [("damaged", "data", names[7]), ("damaged", "data", names[8]), ("damaged", "snapshots", snapshot)]
        )
        before = dict(self.engine.objects)
        for _ in range(2):
            self.scrub()
            self.assertEqual(expected, self.problems())
            self.assertEqual(expected, sorted(self.observer.problems))
        self.assertEqual(before, self.engine.objects)
        self.assertIn("its 5 bytes have the SHA-256", self.state.problems(name=names[8])[0].reason)
        self.assertIs(Outcome.HEALED, save(self.store, REPOSITORY, "data", random_bytes(7, 1000)))
        self.survey().look_again(self.state.problems(), self.limit)
        self.assertEqual([("damaged", "data", names[7])], self.observer.ended)
        self.assertEqual([], [one for one in self.problems() if one[2] == names[7]])

    def test_look_again_reads_nothing_unchanged(self) -> None:
        """A look at a problem is one list."""
        (name,) = self.put(1)
        self.flip(name)
        self.scrub()
        self.engine.calls.clear()
        self.survey().look_again(self.state.problems(), self.limit)
        self.assertEqual([("list_pages", self.key(name))], self.engine.calls)
        self.assertEqual([("damaged", "data", name)], self.problems())

    def test_nothing_is_missing(self) -> None:
        """Another front end may have deleted it; a problem that it had ends."""
        names = self.put(*range(10))
        locks = self.put(50, kind="locks")
        self.flip(names[3])
        self.flip(locks[0], "locks")
        self.scrub()
        self.assertEqual(2, len(self.problems()))
        for name in names[:5]:
            self.remove(name)
        self.remove(locks[0], "locks")
        self.scrub()
        self.assertEqual([], self.problems())
        self.assertEqual({"damaged"}, {kind for kind, _, _ in self.observer.problems})

    def test_deleted_meanwhile(self) -> None:
        """An object that vanishes between the list and the request is no problem; neither is it found by a look again."""
        names = self.put(*range(10), kind="index")
        run = ScrubRun(self.survey(), Plan(began_s=self.now_s + 1), self.limit)
        run.survey()
        contents = self.place.contents
        cell = (REPOSITORY, cell_of("index", ""))

        def stale(key: Any) -> Contents:
            found = contents(key)
            self.engine.objects.pop(self.key(names[4], "index"), None)
            return found

        self.patch(self.place, "contents", stale)
        run.work()
        self.assertTrue(run.finish().complete)
        self.assertEqual([], self.problems())
        row = self.state.directory(cell)
        assert row is not None and row.names is not None
        self.assertEqual(set(names) - {names[4]}, row.names)

    def test_replaced_while_it_is_checked(self) -> None:
        """What was damaged at the first reading and was replaced before the second is no problem."""
        (name,) = self.put(1)
        self.flip(name)
        version = self.place.version

        def replaced(*arguments: Any) -> Any:
            self.now_s += 5
            self.put(1)
            return version(*arguments)

        self.patch(self.place, "version", replaced)
        self.scrub()
        self.assertEqual([], self.problems())

    def test_unreadable_once(self) -> None:
        """An object that can be read at the second try is no problem."""
        (name,) = self.put(1)
        self.engine.broken[self.key(name)] = 1
        self.scrub()
        self.assertEqual([], self.problems())
        self.assertEqual([AGAIN_S], self.limit.pauses)

    def test_unreadable(self) -> None:
        """One that cannot be read twice is reported, while others can; the next survey tries it again."""
        names = self.put(*range(5))
        survey = self.survey()
        self.engine.broken[self.key(names[2])] = 2
        plan = Plan(interval_s=MONTH_S)
        self.assertTrue(self.run_of(survey, plan).complete)
        self.assertEqual([("unreadable", "data", names[2])], self.problems())
        self.assertIn("an error in this object", self.state.problems()[0].reason)
        self.engine.calls.clear()
        self.run_of(survey, plan)
        self.assertEqual([], self.problems())
        read = [key for name, key in self.engine.calls if name == "get" and "/data/" in key]
        self.assertEqual([self.key(names[2])], read)

    def test_engine_is_down(self) -> None:
        """That is nothing about the objects: the run is interrupted, and the next one goes on."""
        names = self.put(*range(20), kind="index")
        self.flip(sorted(names)[15], "index")
        for error in (EngineError(), AccessRefused(), BucketMissing()):
            with self.subTest(error):
                self.state.put_facts(pass_began=None)
                self.now_s += 2 * MONTH_S
                plan = Plan(interval_s=MONTH_S)
                run = ScrubRun(self.survey(), plan, self.limit)
                run.survey()
                taken = len(self.limit.taken_bytes)
                get = self.engine.get

                def dies(
                    key: str, *arguments: Any, taken: int = taken, error: Exception = error, get: Any = get
                ) -> Any:
                    if len(self.limit.taken_bytes) - taken > 20:
                        self.engine.down = error
                    return get(key, *arguments)

                patch = self.patch(self.engine, "get", dies)
                before = self.problems()
                self.assertRaises(Unavailable, run.work)
                run.finish()
                patch.restore()
                self.engine.down = None
                self.assertEqual(before, self.problems())
                self.engine.calls.clear()
                self.assertTrue(self.scrub(plan).complete)
                read = [key for name, key in self.engine.calls if name == "get" and "/index/" in key]
                self.assertLess(len(set(read)), 15)
                self.assertEqual([("damaged", "index", sorted(names)[15])], self.problems())

    def test_look_is_not_repeated(self) -> None:
        """A run after an interrupted one takes what the look before has found; new objects are not forgotten."""
        self.put(*range(30))
        self.scrub()
        names = self.put(*range(100, 110))
        for name in names:
            self.flip(name)
        survey = self.survey()
        plan = Plan(interval_s=MONTH_S, look_s=3600)
        self.run_of(survey, plan, HastyLimit(takes=20))
        self.assertTrue(0 < len(self.problems()) < 10)
        self.engine.calls.clear()
        self.run_of(survey, plan)
        self.assertEqual(sorted(("damaged", "data", name) for name in names), self.problems())
        lists = {key for name, key in self.engine.calls if name == "list_pages"}
        self.assertNotIn(self.keys.prefix, lists)
        self.now_s += 3600
        self.run_of(survey, plan)
        self.assertIn(self.keys.prefix, {key for name, key in self.engine.calls if name == "list_pages"})

    def test_large_repository(self) -> None:
        """What is known of many objects is stored in parts."""
        self.patch(scrub_survey, "MOST_HELD", 7)
        names = self.put(*range(40))
        self.scrub()
        known = [self.state.directory(key) for key in self.state.directories()]
        self.assertEqual(set(names), {name for row in known if row is not None for name in row.names or ()})
        self.assertEqual({}, self.look(self.state.directories()))

    def test_empty_bucket(self) -> None:
        """There is nothing to do."""
        self.assertEqual((True, None), self.scrub(Plan(interval_s=MONTH_S)))

    def test_body_breaks(self) -> None:
        """A body that ends early is an object that cannot be read."""
        (name,) = self.put(1)

        class Breaks(MemoryBody):
            def read(self) -> bytes:
                raise EngineError("", "a body ended early")

        get = self.engine.get

        def broken(key: str, *arguments: Any) -> MemoryBody:
            return Breaks(b"x", 0, 1) if key == self.key(name) else get(key, *arguments)

        self.patch(self.engine, "get", broken)
        self.scrub()
        self.assertEqual([("unreadable", "data", name)], self.problems())

    def test_stopped_in_a_body(self) -> None:
        """The end does not wait for the rest of an object."""
        (name,) = self.put(1)
        limit = HastyLimit()

        class Stops(MemoryBody):
            def read(self) -> bytes:
                limit.stop()
                return super().read()

        self.patch(self.engine, "get", lambda key, *arguments: Stops(b"x" * 10_000, 0, 10_000))
        self.assertRaises(Stopped, self.place.check, (REPOSITORY, int(name[:2], 16)), name, limit)


class Reactor(Clock):
    """A clock; calls from threads come at once, for all threads are inline."""

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it."""
        function(*args)


class ServiceTests(BucketCase):
    """L{Scrub} with a bucket."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = Reactor()
        self.events: list[Event] = []
        self.patch(SCRUB, "_with_low_priority", lambda job, *args: job(*args))

    def start(self, interval_s: float = MONTH_S) -> Scrub:
        """A scrub that has been started."""
        start_s = self.now_s

        def make_survey(observer: Any) -> Survey:
            return Survey(self.place, self.state, None, observer, lambda: start_s + self.reactor.seconds())

        rules = ScrubRules(interval_s, 0, is_remote=True)
        scrub = Scrub(as_reactor(self.reactor), rules, make_survey, InlinePool(), self.events.append, lambda: 0)
        scrub.startService()
        self.addCleanup(lambda: self.successResultOf(ensureDeferred(scrub.stopService())))
        return scrub

    def lists(self) -> int:
        """How many requests there were for a page of everything since the last call."""
        number = sum(call == ("list_pages", self.keys.prefix) for call in self.engine.calls)
        self.engine.calls.clear()
        return number

    def test_how_often(self) -> None:
        """Everything is listed once an hour at most, and with long intervals once in a thirtieth."""
        self.assertEqual(DAY_S, ScrubRules(30 * DAY_S, is_remote=True).survey_s)
        self.assertEqual(3600, ScrubRules(DAY_S, is_remote=True).survey_s)
        self.assertEqual(25, ScrubRules(100, is_remote=True).survey_s)
        self.assertGreaterEqual(ScrubRules(1, is_remote=True).threads, 8)
        self.put(*range(3))
        self.start()
        self.reactor.advance(START_S)
        pages = -(-len(self.engine.objects) // PAGE)
        self.assertEqual(pages, self.lists())
        for _ in range(20):
            self.reactor.advance(DAY_S / 20 - 1)
        self.assertEqual(0, self.lists())
        self.reactor.advance(60)
        self.assertEqual(pages, self.lists())

    def test_found_and_healed(self) -> None:
        """What it finds is told and counted; the event of an upload that replaces the object ends it at once."""
        names = self.put(*range(20))
        self.flip(names[3])
        self.flip(names[4])
        scrub = self.start()
        self.reactor.advance(START_S)
        self.reactor.advance(0)
        self.assertEqual({names[3], names[4]}, {event.details["name"] for event in self.events})
        self.assertEqual({"alice/laptop": {"damaged": 2}}, scrub.results.counts)
        families = {family.name: family for family in scrub.families()}
        requests = {sample.labels: sample.value for sample in families["rest_server_scrub_requests"].samples}
        self.assertEqual({(LIST,): self.place.requests[LIST], (GET,): self.place.requests[GET]}, requests)
        # Two of the objects were read twice.
        self.assertGreaterEqual(requests[GET,], 22)
        self.reactor.advance(REMOTE_LOOK_S)
        self.now_s += 10
        self.put(3, 4)
        self.engine.calls.clear()
        self.reactor.advance(LOOK_S)
        self.assertEqual([], self.engine.calls)
        details = {"type": "data", "name": names[3]}
        scrub.take(Event(EventKind.CORRUPTION, "replaced", "alice/laptop", details=details))
        self.reactor.advance(0)
        self.assertEqual({"alice/laptop": {"damaged": 1}}, scrub.results.counts)
        for _ in range(int(REMOTE_LOOK_S / LOOK_S) + 1):
            self.reactor.advance(LOOK_S)
        self.assertEqual({}, scrub.results.counts)

    def test_engine_is_down(self) -> None:
        """It waits, and does not list everything again when it goes on."""
        names = self.put(*range(20), kind="index")
        self.flip(max(names), "index")
        get = self.engine.get

        def dies(key: str, *arguments: Any) -> Any:
            if "/index/" in key:
                self.engine.down = EngineError()
            return get(key, *arguments)

        patch = self.patch(self.engine, "get", dies)
        scrub = self.start()
        self.reactor.advance(START_S)
        self.assertGreater(self.lists(), 0)
        for _ in range(3):
            self.reactor.advance(TRY_AGAIN_S)
        patch.restore()
        self.engine.down = None
        self.reactor.advance(TRY_AGAIN_S)
        self.assertEqual(0, self.lists())
        self.reactor.advance(0)
        self.assertEqual({"alice/laptop": {"damaged": 1}}, scrub.results.counts)
        self.assertIsNotNone(scrub.results.last_complete_s)


class RateTests(BucketCase):
    """The rate."""

    def test_debt(self) -> None:
        """Nobody begins to read before the rate allows what was read before; the whole is at the rate."""
        waits: list[float] = []
        clock = [0.0]

        def wait(event: Any, seconds: float) -> None:
            waits.append(seconds)
            clock[0] += seconds

        limit = RateLimit(10_000.0, lambda: clock[0], wait)
        for name in self.put(*range(100)):
            self.place.check((REPOSITORY, int(name[:2], 16)), name, limit)
        self.assertLess(abs(100 * 1000 / clock[0] - 10_000), 500)
        self.assertGreater(len(waits), 50)
