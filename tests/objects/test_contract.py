"""
The contract of all stores over real engines: SeaweedFS, and with C{OBJECTS=all} (C{make objects-check}) Ceph and Azurite as well.
With an engine in memory it is in L{tests.objects.test_store}.

The losers of a race wait for seconds at SeaweedFS. C{OBJECTS=all} runs all races.
"""

from __future__ import annotations

import os
import urllib.parse
import uuid
from typing import TYPE_CHECKING, ClassVar
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import resticserver.objects.upload
from resticserver.objects.engine import Engine, EngineError
from resticserver.objects.location import Location
from resticserver.objects.probe import Probe
from resticserver.objects.s3_engine import LARGE_BYTES
from resticserver.objects.spool import Spool
from resticserver.objects.store import ObjectStore
from resticserver.service.object_store import make_engine
from resticserver.storage.interface import Outcome, Upload

from ..contract.store import ROOT, StoreContract, id_of, key_of, save
from ..support.azurite import Azurite
from ..support.client import random_bytes
from ..support.engines import CephRGW, RealEngine, SeaweedFS, shared_engine
from ..support.processes import process_test
from ..support.skipping import skipped

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as _Base
else:
    _Base = object

ALL = os.environ.get("OBJECTS") == "all"
#: The tests of the contract that take more than ten seconds here.
RACES = frozenset(
    (
        "test_many_upload_the_same",
        "test_many_upload_the_same_and_one_is_wrong",
        "test_one_config_wins",
        "test_upload_beside_removal",
        "test_wrong_bytes_for_a_taken_name",
    )
)


#: Why other engines than SeaweedFS are not tried.
NOT_ALL = None if ALL else "OBJECTS=all tries all engines"


class InEngine(_Base):
    """Stores over a bucket."""

    kind: type[RealEngine] = SeaweedFS
    skip = SeaweedFS.reason()
    prefix = ""
    #: Those of L{RACES} that run always.
    races: frozenset[str] = frozenset()

    def setUp(self) -> None:
        """An empty place."""
        if not ALL and self._testMethodName in RACES - self.races:
            raise SkipTest("OBJECTS=all runs all races")
        self.engine = shared_engine(self.kind)
        self.bucket = self.make_bucket()
        self.directory = self.mktemp()
        environment = mock.patch.dict(os.environ, self.engine.environment())
        environment.start()
        self.addCleanup(environment.stop)
        self.client: Engine = make_engine(Location(self.kind.scheme, self.bucket, self.prefix))

    def make_bucket(self) -> str:
        """A bucket of this test alone."""
        return self.engine.new_bucket(self)

    def make_store(self, verify: bool = True) -> ObjectStore:
        """A prepared store over this test's bucket."""
        store = ObjectStore(self.client, self.prefix, Spool(self.directory, 0), verify=verify)
        store.prepare()
        return store

    def contents(self) -> dict[str, bytes]:
        """What restic could see, as the engine says it to another client."""
        keys = [key for key in self.engine.keys(self.bucket) if key.startswith(self.prefix)]
        return {
            key.removeprefix(self.prefix): self.engine.request("GET", self.path_of(key)).body
            for key in keys
            if ".rest-server/" not in key
        }

    def plant(self, key: str, content: bytes) -> None:
        """An object under a key."""
        reply = self.engine.request("PUT", self.path_of(self.prefix + key), body=content)
        self.assertIn(reply.status, (200, 201), reply)

    def path_of(self, key: str) -> str:
        """Where the engine has a key."""
        return f"/{self.bucket}/{urllib.parse.quote(key)}"


@process_test
class ContractTests(InEngine, StoreContract, SynchronousTestCase):
    """The contract in a bucket."""

    races = frozenset(("test_one_config_wins",))


@process_test
class PrefixTests(InEngine, StoreContract, SynchronousTestCase):
    """The contract below a prefix that needs to be encoded, in a bucket with other objects."""

    _shared: ClassVar[dict[type[RealEngine], str]] = {}

    def setUp(self) -> None:
        """As L{InEngine.setUp}."""
        self.prefix = f"grün & blau/{uuid.uuid4()}/"
        super().setUp()

    def make_bucket(self) -> str:
        """One bucket for all of them, which goes with the engine."""
        name = PrefixTests._shared.get(self.kind)
        if name is None:
            name = PrefixTests._shared[self.kind] = f"test-{uuid.uuid4()}"
            self.engine.make_bucket(name)
        return name


@process_test
class PromisesTests(InEngine, SynchronousTestCase):
    """What the store needs of an engine."""

    def test_kept(self) -> None:
        """The engine keeps all promises, also in the race, and nothing of the trial is left."""
        probe = Probe(self.client, self.prefix)
        findings = [*probe.quick(), *probe.race()]
        self.assertEqual([], [one for one in findings if one.problem])
        self.assertEqual(4, len(findings))
        self.assertEqual([], self.engine.keys(self.bucket))


@process_test
class LargeTests(InEngine, SynchronousTestCase):
    """Objects of the size of a pack, below a prefix that needs to be encoded."""

    prefix = "grün & 100 %+~/"

    def setUp(self) -> None:
        """As L{InEngine.setUp}, with a repository."""
        super().setUp()
        self.store = self.make_store()
        self.store.create_repository(ROOT)
        self.content = random_bytes(1, LARGE_BYTES + 1)
        self.key = key_of(ROOT, "data", id_of(self.content))

    def test_stored(self) -> None:
        """They are stored as they come, once, and one that is damaged is replaced."""
        self.assertIs(Outcome.STORED, save(self.store, ROOT, "data", self.content))
        self.assertEqual(self.content, self.contents()[self.key])
        self.assertIs(Outcome.UNCHANGED, save(self.store, ROOT, "data", self.content))
        self.plant(self.key, self.content[:-1])
        self.assertIs(Outcome.HEALED, save(self.store, ROOT, "data", self.content))
        self.assertEqual(self.content, self.contents()[self.key])

    def changed(self) -> Upload:
        """An upload of which a byte is another one when it is stored, as by a bad disk."""
        upload = self.store.upload(ROOT, "data", id_of(self.content))
        self.addCleanup(upload.abort)
        opened = self.store.spool.open()
        copy = os.dup(opened)
        self.addCleanup(os.close, copy)
        self.patch(self.store.spool, "open", lambda: opened)
        upload.open()
        upload.write([self.content])
        os.pwrite(copy, bytes([self.content[-1] ^ 1]), len(self.content) - 1)
        return upload

    def test_changed_meanwhile(self) -> None:
        """What is no longer what was verified is refused by the engine."""
        self.patch(resticserver.objects.upload, "PAUSES_S", ())
        self.assertRaises(EngineError, self.changed().commit)
        self.assertNotIn(self.key, self.contents())


class OnCeph(InEngine):
    """With Ceph instead."""

    kind: type[RealEngine] = CephRGW
    skip = NOT_ALL or CephRGW.reason()


class OnAzurite(InEngine):
    """With Azurite instead."""

    kind: type[RealEngine] = Azurite
    skip = NOT_ALL or Azurite.reason()


@process_test
class CephContractTests(OnCeph, ContractTests):
    """The contract on Ceph."""


@process_test
class CephPrefixTests(OnCeph, PrefixTests):
    """The contract below a prefix on Ceph."""


@process_test
class CephPromisesTests(OnCeph, PromisesTests):
    """The promises of Ceph."""


@process_test
class CephLargeTests(OnCeph, LargeTests):
    """Large objects on Ceph."""


@process_test
class AzuriteContractTests(OnAzurite, ContractTests):
    """The contract on Azurite."""


@process_test
class AzuritePrefixTests(OnAzurite, PrefixTests):
    """The contract below a prefix on Azurite."""


@process_test
class AzuritePromisesTests(OnAzurite, PromisesTests):
    """The promises of Azurite."""


@process_test
class AzuriteLargeTests(OnAzurite, LargeTests):
    """Large objects on Azurite."""

    @skipped("Azure takes no SHA-256")
    def test_changed_meanwhile(self) -> None:
        """It stores what comes."""
