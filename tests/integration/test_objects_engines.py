"""
L{tests.integration.test_objects} with other engines than SeaweedFS: Ceph's RADOS gateway, and Azurite for Azure Blob Storage.

They run with C{OBJECTS=all} (C{make objects-check}), where the engines are installed.
"""

from __future__ import annotations

from ..support.azurite import Azurite
from ..support.engines import CephRGW, RealEngine, start_engine
from ..support.processes import process_test
from ..support.restic import SKIP_WITHOUT_RESTIC
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
    skip = _NOT_ALL or Azurite.reason() or SKIP_WITHOUT_RESTIC


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
class AzuriteWorkersTests(OnAzurite, cases.LifeCycleCase):
    """The same with two worker processes."""

    def test_workers(self) -> None:
        """With two worker processes."""
        server = self.serve("--workers", "2")
        self.live(self.restic(f"{server.url}/"))


@process_test
class AzuriteLifeCycleAccessTests(OnAzurite, cases.LifeCycleAccessTests):
    """The same where not everything is allowed."""


@process_test
class AzuriteRaceTests(OnAzurite, cases.RaceTests):
    """Races through two front ends over Azurite."""


@process_test
class AzuriteFrontEndKilledTests(OnAzurite, cases.FrontEndKilledTests):
    """A front end over Azurite that dies is replaced."""
