"""
L{tests.integration.test_object_faults} with Azurite: what clients are told, and what is in the container, when Azure answers as
it does if something is wrong.

It runs with C{OBJECTS=all} (C{make objects-check}), where Azurite is installed.
"""

from __future__ import annotations

from ..support import faulty_engine as faults
from ..support.azurite import Azurite
from ..support.engines import RealEngine, shared_engine
from ..support.faulty_azurite import FaultyAzurite
from ..support.faulty_engine import (
    Cut,
    CutUpload,
    DoneThenTold,
    FaultyEngine,
    FlippedBit,
    Ignored,
    Late,
    Refused,
    ShortBody,
    SlowBody,
)
from ..support.processes import process_test
from . import test_object_faults as cases
from .test_object_faults import CUT, ONCE, PAGE_SIZE, RANGES, REMOVAL, UPLOADS, WHOLES, WRONG_BYTES, Row, rows_of
from .test_objects import ALL as ALL_ENGINES

_EXISTS = "BlobAlreadyExists"
_ABSENT = "BlobNotFound"
_STORED_THEN_409 = DoneThenTold(409, _EXISTS)
#: The service is busy, and a partition is moved.
_BUSY = Refused(503, "ServerBusy")
_NOT_THERE = Refused(404, _ABSENT)
_NO_CONTAINER = (
    ("404 ContainerNotFound", Refused(404, "ContainerNotFound"), "", "503"),
    ("409 ContainerBeingDeleted", Refused(409, "ContainerBeingDeleted"), "", "503"),
)
_REFUSED = (
    ("403 AuthenticationFailed", Refused(403, "AuthenticationFailed"), "", "503"),
    ("403 AuthorizationFailure", Refused(403, "AuthorizationFailure"), "", "503"),
    ("403 AuthorizationPermissionMismatch", Refused(403, "AuthorizationPermissionMismatch"), "", "503"),
    ("403 AccountIsDisabled", Refused(403, "AccountIsDisabled"), "", "503"),
    ("401 InvalidAuthenticationInfo", Refused(401, "InvalidAuthenticationInfo"), "", "503"),
)
_STORED = (
    ("stored then 500", faults.STORED_THEN_500, "200", "200"),
    ("stored then 500 OperationTimedOut", DoneThenTold(500, "OperationTimedOut"), "200", "200"),
    ("stored then cut", faults.STORED_THEN_CUT, "200", "200"),
    ("stored then reset", Cut(done=True, by_reset=True), "200", "200"),
    ("stored then 409", _STORED_THEN_409, "200", "200"),
    ("stored then 412", DoneThenTold(412, "ConditionNotMet"), "200", "200"),
    ("stored then 404", DoneThenTold(404, _ABSENT), "200", "200"),
    ("late", Late(1.0), "200", ""),
    ("asked late", Late(1.0, asked_late=True), "200", ""),
)
_NOT_STORED = (
    ("not stored then 500", faults.NOT_STORED_500, "200", "503"),
    ("not stored then 503", _BUSY, "200", "503"),
    ("not stored then cut", faults.NOT_STORED_CUT, "200", "503"),
    ("not stored then reset", Cut(done=False, by_reset=True), "200", "503"),
    ("409 though absent", Refused(409, _EXISTS), "200", "503"),
    ("412 though absent", Refused(412, "ConditionNotMet"), "200", "503"),
    ("404 BlobNotFound", _NOT_THERE, "200", "503"),
)
_NOT_READ = (
    ("500", faults.NOT_STORED_500, "503", "503"),
    ("503", _BUSY, "503", ""),
    ("412", Refused(412, "ConditionNotMet"), "503", ""),
    ("cut", faults.NOT_STORED_CUT, "503", "503"),
    ("reset", Cut(done=True, by_reset=True), "503", ""),
)


def azure_rows() -> list[Row]:
    """The table."""
    full = [("403 AccountLimitExceeded", Refused(403, "AccountLimitExceeded"), "", "507")]
    rows = [*rows_of((*UPLOADS, "create"), "PUT", (*_STORED, *_NOT_STORED, *_REFUSED, *_NO_CONTAINER, *full))]
    rows += rows_of(["upload large"], "PUT", [("cut during the upload", CutUpload(100_000), "200", "503")])
    rows += rows_of(["upload again", "upload damaged"], "GET", [("500", faults.NOT_STORED_500, "503", "503")])
    rows += rows_of(["upload again"], "GET", [("short", ShortBody(), "503", "")])
    flipped = (("PUT", _STORED_THEN_409, ONCE, 0), ("GET", FlippedBit(), ONCE, 0))
    rows += [Row(each, "PUT stored then 409, GET wrong", flipped, frozenset(["200"])) for each in UPLOADS[:2]]
    for kind, operations in (("GET", (*WHOLES, *RANGES)), ("HEAD", ("head",))):
        rows += rows_of(operations, kind, (*_NOT_READ, *_REFUSED))
        rows += rows_of(operations, kind, [("404 BlobNotFound", _NOT_THERE, "404", "")])
    rows += rows_of((*WHOLES, *RANGES), "GET", _NO_CONTAINER[:1])
    rows += rows_of((*WHOLES, *RANGES), "GET", [("wrong bytes", FlippedBit(100), WRONG_BYTES, "")])
    rows += rows_of((*WHOLES, *RANGES), "GET", [("slow body", SlowBody(50, 1.0), "200", "")])
    rows += rows_of(("download small", "range small"), "GET", [("short", ShortBody(), "503", "503")])
    rows += rows_of(("download large", "range large"), "GET", [("short", ShortBody(), CUT, CUT)])
    rows += rows_of(RANGES, "GET", [("range ignored", Ignored("range"), "503", "503")])
    for page in (1, 2, 3):
        failed = "503" if page == 1 else f"503/{CUT}"
        table: list[tuple[str, faults.Fault, str, str]] = [
            ("500", faults.NOT_STORED_500, "200", failed),
            ("503", _BUSY, "200", ""),
            ("cut", faults.NOT_STORED_CUT, "200", failed),
            ("short", ShortBody(), "200", failed),
            ("200 with an error", faults.ERROR_WITH_200, "200", failed),
            ("403", _REFUSED[0][1], "", failed),
            ("404 ContainerNotFound", _NO_CONTAINER[0][1], failed, ""),
            ("slow body", SlowBody(50, 1.0), "200", ""),
        ]
        rows += rows_of(["list"], "LIST", table, page)
    rows += rows_of(["list"], "LIST", [*_REFUSED], 1)
    for kind in ("HEAD", REMOVAL):
        rows += rows_of(["delete"], kind, [*_NOT_READ[:4], *_REFUSED, ("late", Late(1.0), "200", "")])
        rows += rows_of(["delete repository"], kind, [_NOT_READ[0], *_REFUSED[:1]])
    rows += rows_of(["delete"], "HEAD", [("404 BlobNotFound", _NOT_THERE, "200", "200")])
    rows += rows_of(
        ["delete", "delete repository"],
        REMOVAL,
        [
            *_NO_CONTAINER[:1],
            ("done then 500", faults.STORED_THEN_500, "503", ""),
            ("done then cut", faults.STORED_THEN_CUT, "503", ""),
        ],
    )
    rows += rows_of(["delete missing"], "HEAD", [("500", faults.NOT_STORED_500, "503", "")])
    for page in (1, 2):
        rows += rows_of(["delete repository"], "LIST", [("500", faults.NOT_STORED_500, "200", "503")], page)
    return rows


class OnAzurite(cases.Faulty):
    """With Azurite instead."""

    skip = (None if ALL_ENGINES else "OBJECTS=all tries all engines") or Azurite.reason()

    def make_engine(self) -> tuple[RealEngine, FaultyEngine]:
        """See L{cases.Faulty.make_engine}."""
        engine = shared_engine(Azurite)
        return engine, FaultyAzurite(self, engine, page_size=PAGE_SIZE)


@process_test
class AzureTableTests(OnAzurite, cases.TableTests):
    """The table of Azure."""

    def rows(self) -> list[Row]:
        """See L{cases.TableTests.rows}."""
        return azure_rows()


@process_test
class AzureEngineTests(OnAzurite, cases.EngineTests):
    """Azurite as a whole not as it should be."""

    no_bucket = _NO_CONTAINER[0][1]
    invalid_key = _REFUSED[0][1]
