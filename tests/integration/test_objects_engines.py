"""
L{tests.integration.test_objects} with other engines than SeaweedFS: Ceph's RADOS gateway, and Azurite for Azure Blob Storage.

They run with C{OBJECTS=all} (C{make objects-check}), where the engines are installed.
"""

from __future__ import annotations

import re
import ssl

from ..support.azurite import Azurite
from ..support.client import object_id, random_bytes
from ..support.engines import CephRGW, RealEngine, start_engine
from ..support.faulty_azurite import FaultyAzurite
from ..support.faulty_engine import FaultyEngine, Request
from ..support.processes import process_test
from ..support.restic import SKIP_WITHOUT_RESTIC
from ..support.waiting import wait_until
from . import test_objects as cases
from . import test_objects_trash as trash_cases

MIB = 1 << 20
_NOT_ALL = None if cases.ALL else "OBJECTS=all tries all engines"


class OnCeph(cases.ObjectsCase):
    """With Ceph instead."""

    kind: type[RealEngine] = CephRGW
    skip = _NOT_ALL or CephRGW.reason() or SKIP_WITHOUT_RESTIC


class OnAzurite(cases.ObjectsCase):
    """With Azurite instead."""

    kind: type[RealEngine] = Azurite
    ca_variable = "REQUESTS_CA_BUNDLE"
    skip = _NOT_ALL or Azurite.reason() or SKIP_WITHOUT_RESTIC

    def proxy(self, tls: ssl.SSLContext | None = None) -> FaultyEngine:
        """See L{cases.ObjectsCase.proxy}."""
        return FaultyAzurite(self, self.engine, tls=tls)


@process_test
class CephLifeCycleTests(OnCeph, cases.LifeCycleTests):
    """The life of a repository on Ceph."""


@process_test
class CephLifeCycleVariantsTests(OnCeph, cases.LifeCycleVariantsTests):
    """The same over TLS, and with workers."""


@process_test
class CephLifeCycleAccessTests(OnCeph, cases.LifeCycleAccessTests):
    """The same where not everything is allowed."""


@process_test
class CephSharedWithResticTests(OnCeph, cases.SharedWithResticTests):
    """restic's own S3 backend and this server use the same bucket of Ceph."""


@process_test
class CephRequestsTests(OnCeph, cases.RequestsTests):
    """How many requests an operation is, as Ceph sees it."""


@process_test
class CephRefusedStartTests(OnCeph, cases.RefusedStartTests):
    """A bucket of Ceph that cannot be used."""


@process_test
class CephTrashTests(OnCeph, trash_cases.TrashTests):
    """Old versions in a bucket of Ceph, which ignores the condition of an upload to it."""

    conditions = False


@process_test
class CephRefusedTrashTests(OnCeph, trash_cases.RefusedTests):
    """A bucket of Ceph that does not keep what is deleted for long enough."""


@process_test
class CephRaceTests(OnCeph, cases.RaceTests):
    """Races through two front ends over Ceph."""


@process_test
class CephFrontEndKilledTests(OnCeph, cases.FrontEndKilledTests):
    """A front end over Ceph that dies is replaced."""


@process_test
class CephKilledTests(OnCeph, cases.EngineKilledTests):
    """Ceph dies under load and comes back."""


@process_test
class CephFullTests(OnCeph, cases.EngineFullTests):
    """A bucket of Ceph that has reached its quota."""

    full_statuses = frozenset((507,))

    def make_engine(self) -> RealEngine:
        """One of this test alone."""
        return start_engine(self, CephRGW(self.scratch / "engine"))

    def limit(self) -> None:
        """Room for some objects."""
        assert isinstance(self.engine, CephRGW)
        self.engine.limit_bucket(self.bucket, 12 * MIB)


@process_test
class CephCredentialsTests(OnCeph, cases.CredentialsTests):
    """Credentials for Ceph that change while the server runs."""


@process_test
class AzuriteLifeCycleTests(OnAzurite, cases.LifeCycleTests):
    """The life of a repository in Azure Blob Storage."""


@process_test
class AzuriteLifeCycleVariantsTests(OnAzurite, cases.LifeCycleVariantsTests):
    """The same over TLS, and with workers."""


@process_test
class AzuriteRequestsTests(OnAzurite, cases.RequestsTests):
    """How many requests an operation is, as Azurite sees it."""

    def assert_hash_sent(self, put: Request, name: str) -> None:
        """Azure has no such header field."""


class AccessLogCase(cases.ObjectsCase):
    """How many requests an upload is, by the engine's own log of them."""

    def check_one_put(self, log: str, line: str) -> None:
        """
        A new object is one PUT, and no HEAD.

        @param log: the file in the engine's directory.
        @param line: a regular expression for its lines: method and target.
        """

        def requests_for(name: str) -> list[str]:
            text = (self.engine.directory / log).read_text(errors="replace")
            return [method for method, target in re.findall(line, text) if name in target]

        server = self.serve()
        bodies = [random_bytes(seed, 1000 * seed) for seed in range(1, 21)]
        names = list(map(object_id, bodies))
        with server.client() as client:
            client.create_repository()
            for body in bodies:
                client.save("data", body)
            self.assertEqual(bodies[0], client.get(f"/data/{names[0]}").body)
        # The log has the line of the last request.
        wait_until(lambda: requests_for(names[0]) == ["PUT", "GET"], what="the line of the last request")
        self.assertEqual([["PUT"]] * 19, [requests_for(name) for name in names[1:]])


@process_test
class CephAccessLogTests(OnCeph, AccessLogCase):
    """By the log of the RADOS gateway."""

    def test_one_put(self) -> None:
        """A new object is one PUT, and no HEAD."""
        self.check_one_put("log/client.rgw.a.log", r'beast: .*"([A-Z]+) (\S+) HTTP/1\.1" 200 ')


@process_test
class AzuriteAccessLogTests(OnAzurite, AccessLogCase):
    """By the log of Azurite."""

    def test_one_put(self) -> None:
        """A new object is one PUT, and no HEAD."""
        self.check_one_put("azurite-blob.log", r'"([A-Z]+) (\S+) HTTP/1\.1" 20\d ')


@process_test
class AzuriteLifeCycleAccessTests(OnAzurite, cases.LifeCycleAccessTests):
    """The same where not everything is allowed."""


@process_test
class AzuriteRaceTests(OnAzurite, cases.RaceTests):
    """Races through two front ends over Azurite."""


@process_test
class AzuriteFrontEndKilledTests(OnAzurite, cases.FrontEndKilledTests):
    """A front end over Azurite that dies is replaced."""
