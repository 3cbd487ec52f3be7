"""
L{resticserver.objects.store.ObjectStore}: the contract of all stores, and what it does after errors, with an engine in memory.
The same contract with real engines is in L{tests.integration.test_objects}.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Forbidden, NoSuchRepository, NotFound, SpoolFull, StartError, TooLarge, Unavailable
from resticserver.objects.engine import Absent, AccessRefused, BucketMissing, EngineError, EngineFull, Exists
from resticserver.objects.probe import ProvenFile
from resticserver.objects.spool import Spool
from resticserver.objects.store import ObjectStore
from resticserver.objects.unconditional import Unconditional
from resticserver.storage.interface import Outcome, WantedPart

from ..contract.store import DEEP, StoreContract, at_once, entries, id_of, key_of, load, save
from ..support.memory_engine import MemoryEngine

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as _Base
else:
    _Base = object

PACK = b"a pack"
NAME = id_of(PACK)
KEY = key_of(DEEP, "data", NAME)


def raising(error: Exception) -> Callable[[], Any]:
    """A fault."""

    def fail() -> None:
        raise error

    return fail


class InMemory(_Base):
    """Stores over an engine in memory."""

    prefix = ""

    def setUp(self) -> None:
        """An empty bucket, and no pauses."""
        self.engine = MemoryEngine()
        self.pauses: list[float] = []
        self.patch(time, "sleep", self.pauses.append)
        self.directory = self.mktemp()

    def make_store(self, verify: bool = True) -> ObjectStore:
        """A prepared store over this test's bucket."""
        store = ObjectStore(self.engine, self.prefix, Spool(self.directory, 0), verify=verify)
        store.prepare()
        return store

    def contents(self) -> dict[str, bytes]:
        """What restic could see."""
        shown = {key.removeprefix(self.prefix): content for key, content in self.engine.objects.items()}
        return {key: content for key, content in shown.items() if ".rest-server/" not in key}

    def plant(self, key: str, content: bytes) -> None:
        """An object under a key."""
        self.engine.objects[self.prefix + key] = content
        self.engine.modified_s[self.prefix + key] = 0.0


class ContractTests(InMemory, StoreContract, SynchronousTestCase):
    """The contract."""


class PrefixTests(InMemory, StoreContract, SynchronousTestCase):
    """The contract below a prefix."""

    prefix = "some/place/"


class UnconditionalTests(InMemory, StoreContract, SynchronousTestCase):
    """The contract with an engine that ignores conditions."""

    def make_store(self, verify: bool = True) -> ObjectStore:
        """See L{InMemory.make_store}."""
        store = ObjectStore(self.unconditional, "", Spool(self.directory, 0), verify=verify)
        store.prepare()
        return store

    def setUp(self) -> None:
        """As L{InMemory.setUp}."""
        super().setUp()
        self.patch(self.engine, "put_new", self.engine.put)
        self.unconditional = Unconditional(self.engine)


class FaultCase(InMemory, SynchronousTestCase):
    """Tests with one repository whose calls are counted from now on."""

    def setUp(self) -> None:
        """A repository that is known to be there."""
        super().setUp()
        self.store = self.make_store()
        self.store.create_repository(DEEP)
        self.store.find_repository(DEEP)
        self.engine.calls.clear()

    def save(self) -> Outcome:
        """Upload the pack."""
        return save(self.store, DEEP, "data", PACK)

    def names_of_calls(self) -> list[str]:
        """The calls of the engine."""
        return [name for name, _ in self.engine.calls]


class UploadTests(FaultCase):
    """What an upload does after an error."""

    def test_one_request(self) -> None:
        """A new object is one request."""
        self.assertIs(Outcome.STORED, self.save())
        self.assertEqual([("put_new", KEY)], self.engine.calls)

    def test_stored_then_error(self) -> None:
        """An object that was stored before the error is ours."""
        self.engine.after["put_new"] = [raising(EngineError())]
        self.assertIs(Outcome.STORED, self.save())
        self.assertEqual(["put_new", "get"], self.names_of_calls())

    def test_not_stored(self) -> None:
        """What was not stored is stored again, after pauses that grow."""
        self.engine.before["put_new"] = [raising(EngineError())] * 3
        self.assertIs(Outcome.STORED, self.save())
        self.assertEqual(["put_new", "get"] * 3 + ["put_new"], self.names_of_calls())
        self.assertEqual(sorted(self.pauses), self.pauses)
        self.assertEqual(PACK, self.engine.objects[KEY])

    def test_never_stored(self) -> None:
        """After four attempts the upload fails, and leaves nothing."""
        self.engine.before["put_new"] = [raising(EngineError("", "broken"))] * 4
        error = self.assertRaises(EngineError, self.save)
        self.assertEqual("broken", error.detail)
        self.assertEqual(4, self.names_of_calls().count("put_new"))
        self.assertNotIn(KEY, self.engine.objects)
        self.assertEqual(0, self.store.spool.used_bytes)

    def test_conflict(self) -> None:
        """A conflict with nothing stored (AWS's 409) is no other object: it is stored again."""
        self.engine.before["put_new"] = [raising(Exists())]
        self.assertIs(Outcome.STORED, self.save())

    def test_refusal_of_our_own(self) -> None:
        """After an error, the same bytes under the name are ours, also if the second attempt is refused because of them."""
        self.engine.before["put_new"] = [raising(EngineError())]
        self.engine.before["get"] = [partial(self.plant, KEY, PACK)]
        self.assertIs(Outcome.STORED, self.save())

    def test_damaged(self) -> None:
        """Other bytes under the name are replaced by the verified ones, also after an error."""
        for faults in ([], [raising(EngineError())]):
            self.engine.before["put_new"] = [*faults]
            self.plant(KEY, b"damaged")
            self.assertIs(Outcome.HEALED, self.save())
            self.assertEqual(PACK, self.engine.objects[KEY])

    def test_hopeless(self) -> None:
        """What will not be better in a moment is not tried again, and the object is not looked at."""
        for error in (AccessRefused(), BucketMissing(), EngineFull()):
            self.engine.calls.clear()
            self.engine.before["put_new"] = [raising(error)]
            self.assertRaises(type(error), self.save)
            self.assertEqual(["put_new"], self.names_of_calls())

    def test_look_fails(self) -> None:
        """Where the object cannot be looked at after an error, nothing is said of it."""
        self.engine.after["put_new"] = [raising(EngineError())]
        self.engine.before["get"] = [raising(EngineError("", "down"))]
        self.assertEqual("down", self.assertRaises(EngineError, self.save).detail)

    def test_config_after_error(self) -> None:
        """The config that was stored before the error is ours; another one is not, and stays."""
        self.engine.after["put_new"] = [raising(EngineError())]
        self.assertIs(Outcome.STORED, save(self.store, DEEP, "config", b"ours", "config"))
        self.engine.before["put_new"] = [raising(EngineError())]
        self.assertRaises(Forbidden, save, self.store, DEEP, "config", b"another", "config")
        self.assertEqual(b"ours", self.engine.objects[key_of(DEEP, "config", "config")])

    def test_config_race(self) -> None:
        """Of several configs at once one wins."""
        contents = [b"%d" % number for number in range(8)]
        jobs = [partial(save, self.store, DEEP, "config", content, "config") for content in contents]
        results = at_once(jobs)
        self.assertEqual(1, results.count(Outcome.STORED))
        self.assertEqual(7, sum(isinstance(one, Forbidden) for one in results))

    def test_spool_full(self) -> None:
        """What does not fit into the spool is refused for now, and its room is given back."""
        store = ObjectStore(self.engine, "", Spool(self.directory, 100_000))
        first = store.upload(DEEP, "data", NAME, 90_000)
        first.open()
        self.assertRaises(SpoolFull, store.upload(DEEP, "data", NAME, 20_000).open)
        other = store.upload(DEEP, "data", NAME)
        other.open()
        self.assertRaises(SpoolFull, other.write, [bytes(20_000)])
        other.abort()
        first.abort()
        for large in (store.upload(DEEP, "data", NAME, 100_001), store.upload(DEEP, "data", NAME)):
            with self.assertRaises(TooLarge):
                large.open()
                large.write([bytes(100_001)])
            large.abort()
        self.assertEqual(0, store.spool.used_bytes)
        self.assertIs(Outcome.STORED, save(store, DEEP, "data", PACK))


class MissingTests(FaultCase):
    """A bucket that is gone is no empty repository."""

    def test_replaced(self) -> None:
        """Another bucket in its place is 503 for whatever is missing there, and a removal is not said to be done."""
        save(self.store, DEEP, "keys", PACK)
        self.engine.objects.clear()
        store = ObjectStore(self.engine, "", Spool(self.directory, 0))
        store.volume.expect(self.store.volume.known)
        for job in (
            partial(store.size_of, DEEP, "data", NAME),
            partial(load, store, DEEP, "data", NAME),
            partial(store.remove_object, DEEP, "data", NAME),
            partial(entries, store, DEEP, "data"),
            partial(save, store, DEEP, "data", PACK),
            partial(store.create_repository, DEEP),
            partial(store.delete_repository, DEEP),
        ):
            self.assertRaises(Unavailable, job)
        self.assertEqual({}, self.engine.objects)
        self.assertEqual("the bucket with the repositories is missing", store.try_out())
        self.flushLoggedErrors()

    def test_present(self) -> None:
        """With the bucket there a missing object is a 404."""
        self.assertRaises(NotFound, self.store.size_of, DEEP, "data", NAME)
        self.assertEqual("", self.store.try_out())


class ReadTests(FaultCase):
    """Reading takes one request."""

    def test_parts(self) -> None:
        """The part that is wanted is asked for, and other parts can be read as well."""
        content = bytes(range(256)) * 40
        save(self.store, DEEP, "data", content)
        for wanted, start, end in (
            (None, 0, len(content)),
            (WantedPart(5, 9), 5, 9),
            (WantedPart(5), 5, len(content)),
            (WantedPart(suffix=7), len(content) - 7, len(content)),
            (WantedPart(10_000, 99_999), 10_000, len(content)),
        ):
            self.engine.calls.clear()
            stored = self.store.stored(DEEP, "data", id_of(content))
            stored.open(wanted)
            self.assertEqual(len(content), stored.size_bytes)
            found = b""
            while len(found) < end - start:
                found += stored.read(start + len(found), end - start - len(found))
            self.assertEqual(content[start:end], found)
            self.assertEqual(["get"], self.names_of_calls())
            self.assertEqual(content[:4], stored.read(0, 4))
            stored.close()

    def test_empty(self) -> None:
        """Each part of an empty object is the whole."""
        save(self.store, DEEP, "data", b"")
        stored = self.store.stored(DEEP, "data", id_of(b""))
        stored.open(WantedPart(5, 9))
        self.assertEqual(0, stored.size_bytes)
        self.assertEqual(b"", stored.read(0, 10))


class WrongAnswerTests(FaultCase):
    """What is not believed."""

    def test_removal(self) -> None:
        """An object is removed even if a look before does not find it."""
        self.save()
        self.engine.before["size_of"] = [raising(Absent())]
        self.store.remove_object(DEEP, "data", NAME)
        self.assertNotIn(KEY, self.engine.objects)

    def test_size_in_bucket_that_has_just_gone(self) -> None:
        """A size that is not found is a 404 only if the bucket is there at this moment."""
        self.store.volume.check()
        self.engine.objects.clear()
        self.assertTrue(self.store.volume.seen_lately())
        self.assertRaises(Unavailable, self.store.size_of, DEEP, "data", NAME)
        self.flushLoggedErrors()

    def test_list_of_another_bucket(self) -> None:
        """A list is empty only if the bucket is the right one, also of a repository that is known."""
        self.store.volume.check()
        self.engine.objects.clear()
        now_s = time.monotonic() + 1.1
        self.patch(time, "monotonic", lambda: now_s)
        self.assertRaises(Unavailable, self.store.list_objects(DEEP, "data", True).open)
        self.flushLoggedErrors()

    def test_deletion_goes_on(self) -> None:
        """A repository that restic has made can be deleted again if its deletion fails after its config is gone."""
        self.save()
        save(self.store, DEEP, "config", b"a config")
        del self.engine.objects[f"{'/'.join(DEEP)}/.rest-server/repository"]
        self.engine.before["list_pages"] = [raising(EngineError())]
        self.assertRaises(EngineError, self.store.delete_repository, DEEP)
        self.store.delete_repository(DEEP)
        self.assertEqual({}, self.contents())
        self.assertRaises(NoSuchRepository, self.store.find_repository, DEEP)

    def test_slow_failures(self) -> None:
        """An upload whose attempts take long is not tried again: its client would be gone."""
        now_s = [0.0]
        self.patch(time, "monotonic", lambda: now_s[0])

        def time_out() -> None:
            now_s[0] += 30
            raise EngineError("", "timed out")

        self.engine.before["put_new"] = [time_out] * 4
        self.assertRaises(EngineError, self.save)
        self.assertEqual(1, self.names_of_calls().count("put_new"))


class StartTests(InMemory, SynchronousTestCase):
    """What the engine promises is tried at the start."""

    def prepare(self) -> None:
        """A start."""
        proven = ProvenFile(f"{self.directory}-proven", "s3://memory")
        ObjectStore(self.engine, "", Spool(self.directory, 0), proven=proven).prepare()

    def test_promises_kept(self) -> None:
        """Nothing is left of the trial, and the race is run once."""
        self.prepare()
        self.assertEqual({}, self.engine.objects)
        first = len(self.engine.calls)
        self.engine.calls.clear()
        self.prepare()
        self.assertTrue(len(self.engine.calls) < first - 40)

    def test_condition_ignored(self) -> None:
        """An engine that ignores the condition is refused, with what to do."""
        self.patch(self.engine, "put_new", self.engine.put)
        error = self.assertRaises(StartError, self.prepare)
        self.assertIn("the condition is ignored", str(error))
        self.assertIn("--objects-unconditional", str(error))
        self.assertEqual({}, self.engine.objects)

    def test_range_ignored(self) -> None:
        """So is one that answers a range otherwise, also where conditions are not relied on, and no flag helps there."""
        whole = self.engine.get
        self.patch(self.engine, "get", lambda key, wanted=None: whole(key))
        for proven in (ProvenFile(f"{self.directory}-proven", "s3://memory"), None):
            store = ObjectStore(self.engine, "", Spool(self.directory, 0), proven=proven)
            message = str(self.assertRaises(StartError, store.prepare))
            self.assertIn("(206): other bytes came", message)
            self.assertNotIn("--objects-unconditional", message)
        self.patch(self.engine, "put_new", self.engine.put)
        message = str(self.assertRaises(StartError, self.prepare))
        self.assertIn("the condition is ignored", message)
        self.assertIn("(206): other bytes came", message)
        self.assertNotIn("--objects-unconditional", message)

    def test_race_lost(self) -> None:
        """So is one that looks first and stores then, also if it was tried before."""
        calls = []

        def put_new(key: str, content: bytes, sha256: bytes | None = None) -> None:
            calls.append(key)
            if "race" not in key and key in self.engine.objects:
                raise Exists()
            self.engine.put(key, content, sha256)

        self.patch(self.engine, "put_new", put_new)
        self.assertIn("8 of them succeeded", str(self.assertRaises(StartError, self.prepare)))
        self.assertTrue(any("race" in key for key in calls))

    def test_no_bucket(self) -> None:
        """A bucket that is missing is one line."""
        self.engine.before["check_bucket"] = [raising(BucketMissing("", "NoSuchBucket"))]
        error = self.assertRaises(StartError, self.prepare)
        self.assertEqual(
            "--path: cannot use s3://memory: the bucket with the repositories is missing (NoSuchBucket)", str(error)
        )
