"""
The contract of all stores over a real engine, SeaweedFS. With an engine in memory it is in L{tests.objects.test_store}.

The losers of a race wait for seconds at SeaweedFS. C{OBJECTS=all} runs all races (C{make objects-check}).
"""

from __future__ import annotations

import os
import urllib.parse
import uuid
from typing import TYPE_CHECKING
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from resticserver.objects.engine import Engine
from resticserver.objects.location import Location
from resticserver.objects.probe import Probe
from resticserver.objects.s3_engine import make_s3_engine
from resticserver.objects.spool import Spool
from resticserver.objects.store import ObjectStore

from ..contract.store import StoreContract
from ..support.engines import SeaweedFS, shared_seaweedfs
from ..support.processes import process_test

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


class InSeaweedFS(_Base):
    """Stores over a bucket."""

    skip = SeaweedFS.reason()
    prefix = ""
    #: Those of L{RACES} that run always.
    races: frozenset[str] = frozenset()

    def setUp(self) -> None:
        """An empty place."""
        if not ALL and self._testMethodName in RACES - self.races:
            raise SkipTest("OBJECTS=all runs all races")
        self.engine = shared_seaweedfs()
        self.bucket = self.make_bucket()
        self.directory = self.mktemp()
        environment = mock.patch.dict(os.environ, self.engine.environment())
        environment.start()
        self.addCleanup(environment.stop)
        self.client: Engine = make_s3_engine(Location("s3", self.bucket, self.prefix))

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
        self.assertEqual(200, reply.status, reply)

    def path_of(self, key: str) -> str:
        """Where the engine has a key."""
        return f"/{self.bucket}/{urllib.parse.quote(key)}"


@process_test
class ContractTests(InSeaweedFS, StoreContract, SynchronousTestCase):
    """The contract in a bucket."""

    races = frozenset(("test_one_config_wins",))


@process_test
class PrefixTests(InSeaweedFS, StoreContract, SynchronousTestCase):
    """The contract below a prefix that needs to be encoded, in a bucket with other objects."""

    _shared: str | None = None

    def setUp(self) -> None:
        """As L{InSeaweedFS.setUp}."""
        self.prefix = f"grün & blau/{uuid.uuid4()}/"
        super().setUp()

    def make_bucket(self) -> str:
        """One bucket for all of them, which goes with the engine."""
        if PrefixTests._shared is None:
            name = f"test-{uuid.uuid4()}"
            self.engine.make_bucket(name)
            PrefixTests._shared = name
        return PrefixTests._shared


@process_test
class PromisesTests(InSeaweedFS, SynchronousTestCase):
    """What the store needs of an engine."""

    def test_kept(self) -> None:
        """SeaweedFS keeps all promises, also in the race, and nothing of the trial is left."""
        probe = Probe(self.client, self.prefix)
        findings = [*probe.quick(), *probe.race()]
        self.assertEqual([], [one for one in findings if one.problem])
        self.assertEqual(4, len(findings))
        self.assertEqual([], self.engine.keys(self.bucket))
