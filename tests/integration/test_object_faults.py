"""
What clients are told, and what is in the bucket, when an object store answers as engines do if something is wrong: a real
server, a real SeaweedFS, and between them a proxy that forgets, lies, cuts and waits. One row for each operation and fault.

The bytes of an object are passed on as the engine sends them: a download cannot be verified before it is sent, so wrong bytes
reach the client. restic verifies all that it reads; the names of objects are their hashes.

C{OBJECT_FAULTS_TABLE} names a file for the table of all rows, C{OBJECT_FAULTS_ALL=1} makes the engine silent for as long as it
was in the requirements.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from resticserver.server import REST_S
from resticserver.service.object_store import PROVEN_FILE

from ..support import faulty_engine as faults
from ..support.client import LIST_V2, Client, Reply, authorization, connect, object_id, random_bytes, reset
from ..support.engines import RealEngine, shared_seaweedfs
from ..support.faulty_engine import (
    Answer,
    Cut,
    CutUpload,
    DoneThenTold,
    Exchange,
    Fault,
    FaultyEngine,
    FlippedBit,
    Ignored,
    Late,
    Refused,
    Request,
    Rule,
    ShortBody,
    SlowBody,
    WithoutToken,
)
from ..support.htpasswd import sha_line
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import wait_until

ALL = os.environ.get("OBJECT_FAULTS_ALL", "") == "1"

MIB = 1 << 20
SMALL_BYTES, LARGE_BYTES = 1000, 1_000_000
#: All room for uploads: more than the rows take at once, and far less than all of them.
SPOOL_BYTES = 16 * MIB
#: Rows that run at once. Most of them wait.
AT_ONCE = 12
PAGE_SIZE = 5
#: Three pages.
LISTED = 13
#: How long an answer may take that waits for nothing; the machine may be busy.
SOON_S = 5.0

#: A server that behaves has no line like these.
BAD_LINES = re.compile(r"Traceback|Unhandled|^(GET|HEAD|POST|DELETE) .* failed")

USER, PASSWORD = "alice", "secret"
POLICY = """
[[rule]]
users = ["*"]
repositories = ["**"]
rights = "full"
create = true
delete-repository = true
"""

#: Outcomes besides statuses: the connection ended early; the status is 200 or 206 and the bytes are the engine's wrong ones.
CUT, WRONG_BYTES = "cut", "wrong bytes"

ONCE, ALWAYS = 1, None

#: A kind of request besides those of L{Request.kind}.
REMOVAL = "remove"


@dataclass(frozen=True)
class Row:
    """
    One row of the table.

    @ivar fault: its title.
    @ivar rules: kind of request, what is done to it, how often (C{None}: each time), and from which page of a list on.
    @ivar outcomes: what the client may see.
    """

    operation: str
    fault: str
    rules: tuple[tuple[str, Fault, int | None, int], ...]
    outcomes: frozenset[str]


def rows_of(
    operations: Iterable[str], kind: str, table: Iterable[tuple[str, Fault, str, str]], page: int = 0
) -> Iterable[Row]:
    """
    Rows for some operations.

    @param table: of each fault its title, and the outcomes if it comes once and if it comes each time; several are separated by
        a slash, and an empty one stands for no such row.
    """
    for operation in operations:
        for title, fault, once, always in table:
            for times, outcomes in ((ONCE, once), (ALWAYS, always)):
                if outcomes:
                    name = f"{kind} {f'page {page} ' if page else ''}{title}{', always' if times is None else ''}"
                    yield Row(operation, name, ((kind, fault, times, page),), frozenset(outcomes.split("/")))


#: The credentials are refused, or the bucket is missing: nothing is tried again.
REFUSED = (
    ("403 AccessDenied", faults.ACCESS_DENIED, "", "503"),
    ("403 InvalidAccessKeyId", faults.INVALID_KEY, "", "503"),
    ("403 SignatureDoesNotMatch", Refused(403, "SignatureDoesNotMatch"), "", "503"),
    ("403 RequestTimeTooSkewed", faults.WRONG_CLOCK, "", "503"),
    ("400 ExpiredToken", Refused(400, "ExpiredToken"), "", "503"),
    ("401", Refused(401, "Unauthorized"), "", "503"),
)
MISSING = (("404 NoSuchBucket", faults.NO_BUCKET, "", "503"),)
FULL = (
    ("507", faults.FULL_507, "", "507"),
    ("403 QuotaExceeded", faults.FULL_AS_CEPH, "", "507"),
)
STORED = (
    ("stored then 500", faults.STORED_THEN_500, "200", "200"),
    ("stored then cut", faults.STORED_THEN_CUT, "200", "200"),
    ("stored then reset", Cut(done=True, by_reset=True), "200", "200"),
    ("stored then 412", faults.STORED_THEN_412, "200", "200"),
    ("stored then 409", DoneThenTold(409, "ConditionalRequestConflict"), "200", "200"),
    ("stored then 404", faults.STORED_THEN_404, "200", "200"),
    ("late", Late(1.0), "200", ""),
    ("asked late", Late(1.0, asked_late=True), "200", ""),
)
NOT_STORED = (
    ("not stored then 500", faults.NOT_STORED_500, "200", "503"),
    ("not stored then 503", faults.SLOW_DOWN, "200", "503"),
    ("not stored then cut", faults.NOT_STORED_CUT, "200", "503"),
    ("not stored then reset", Cut(done=False, by_reset=True), "200", "503"),
    ("409", faults.CONFLICT, "200", "503"),
    ("412 though absent", Refused(412, "PreconditionFailed"), "200", "503"),
    ("404 NoSuchKey", Refused(404, "NoSuchKey"), "200", "503"),
    ("416", Refused(416, "InvalidRange"), "200", "503"),
    ("301", Refused(301, "PermanentRedirect"), "200", "503"),
    ("200 with an error", faults.ERROR_WITH_200, "200", "503"),
)
NOT_READ = (
    ("500", faults.NOT_STORED_500, "503", "503"),
    ("503", faults.SLOW_DOWN, "503", ""),
    ("507", faults.FULL_507, "503", ""),
    ("409", faults.CONFLICT, "503", ""),
    ("412", Refused(412, "PreconditionFailed"), "503", ""),
    ("cut", faults.NOT_STORED_CUT, "503", "503"),
    ("reset", Cut(done=True, by_reset=True), "503", ""),
    ("301", Refused(301, "PermanentRedirect"), "503", ""),
    ("late", Late(1.0), "200", ""),
)

UPLOADS = ("upload small", "upload large", "upload config")
WHOLES = ("download small", "download large")
RANGES = ("range small", "range large")


def all_rows() -> list[Row]:
    """The table."""
    #: Only a part of what goes wrong with one upload goes wrong with another size in another way.
    rows = [*rows_of((*UPLOADS, "create"), "PUT", (*STORED, *NOT_STORED, *REFUSED, *MISSING, *FULL))]
    rows += rows_of(["upload large"], "PUT", [("cut during the upload", CutUpload(100_000), "200", "503")])
    rows += rows_of(["upload again", "upload damaged"], "GET", [("500", faults.NOT_STORED_500, "503", "503")])
    rows += rows_of(
        ["upload again"], "GET", [("short", ShortBody(), "503", ""), ("403", faults.ACCESS_DENIED, "503", "")]
    )
    combined: tuple[tuple[str, str, Fault, str, Fault], ...] = (
        ("stored then 500, GET 500", "503", faults.STORED_THEN_500, "GET", faults.NOT_STORED_500),
        ("stored then 412, GET cut", "503", faults.STORED_THEN_412, "GET", faults.NOT_STORED_CUT),
        ("stored then 500, GET short", "503", faults.STORED_THEN_500, "GET", ShortBody()),
        ("stored then 500, GET 404", "200", faults.STORED_THEN_500, "GET", Refused(404, "NoSuchKey")),
        ("stored then 500, GET 403", "503", faults.STORED_THEN_500, "GET", faults.ACCESS_DENIED),
        ("409, stored then 500", "200", faults.CONFLICT, "PUT", faults.STORED_THEN_500),
        ("500, stored then 412", "200", faults.NOT_STORED_500, "PUT", faults.STORED_THEN_412),
    )
    for title, outcome, first, kind, second in combined:
        both = (("PUT", first, ONCE, 0), (kind, second, ONCE, 0))
        rows += [Row(each, f"PUT {title}", both, frozenset([outcome])) for each in UPLOADS]
    # A flipped bit makes an object damaged: it is replaced by the verified upload. A config is never replaced.
    flipped = (("PUT", faults.STORED_THEN_500, ONCE, 0), ("GET", FlippedBit(), ONCE, 0))
    rows += [Row(each, "PUT stored then 500, GET wrong", flipped, frozenset(["200"])) for each in UPLOADS[:2]]
    for kind, operations in (("GET", (*WHOLES, *RANGES)), ("HEAD", ("head",))):
        rows += rows_of(operations, kind, (*NOT_READ, *REFUSED))
        # The truth cannot be known: the bucket is there.
        rows += rows_of(operations, kind, [("404 NoSuchKey", Refused(404, "NoSuchKey"), "404", "")])
    rows += rows_of((*WHOLES, *RANGES), "GET", MISSING)
    rows += rows_of((*WHOLES, *RANGES), "GET", [("wrong bytes", FlippedBit(100), WRONG_BYTES, "")])
    rows += rows_of((*WHOLES, *RANGES), "GET", [("slow body", SlowBody(50, 1.0), "200", "")])
    rows += rows_of(("download small", "range small"), "GET", [("short", ShortBody(), "503", "503")])
    rows += rows_of(
        ("download large",), "GET", [("short", ShortBody(), CUT, CUT), ("no byte", ShortBody(0), "503", "")]
    )
    rows += rows_of(("range large",), "GET", [("short", ShortBody(), CUT, CUT)])
    rows += rows_of(RANGES, "GET", [("range ignored", Ignored("range"), "503", "503")])
    rows += rows_of(RANGES, "GET", [("200 with an error", faults.ERROR_WITH_200, "503", "")])
    # Lists are asked for again by the server itself, four times.
    for page in (1, 2, 3):
        failed = "503" if page == 1 else f"503/{CUT}"
        table: list[tuple[str, Fault, str, str]] = [
            ("500", faults.NOT_STORED_500, "200", failed),
            ("503", faults.SLOW_DOWN, "200", ""),
            ("cut", faults.NOT_STORED_CUT, "200", failed),
            ("reset", Cut(done=True, by_reset=True), "200", ""),
            ("short", ShortBody(), "200", failed),
            ("200 with an error", faults.ERROR_WITH_200, "200", failed),
            ("403", faults.ACCESS_DENIED, "", failed),
            ("404 NoSuchBucket", faults.NO_BUCKET, failed, ""),
            ("404 NoSuchKey", Refused(404, "NoSuchKey"), failed, ""),
            ("late", Late(1.0), "200", ""),
            ("slow body", SlowBody(50, 1.0), "200", ""),
        ]
        if page < 3:
            table.append(("without a token", WithoutToken(), "200", failed))
        rows += rows_of(["list"], "LIST", table, page)
    rows += rows_of(["list"], "LIST", [*REFUSED], 1)
    # obstore removes by POST with ?delete, also a single object.
    for kind in ("HEAD", REMOVAL):
        table = [each for each in NOT_READ if each[0] not in ("late", "reset")]
        rows += rows_of(["delete"], kind, [*table, *REFUSED, ("late", Late(1.0), "200", "")])
        rows += rows_of(["delete repository"], kind, [*table, *REFUSED[:1]])
    rows += rows_of(["delete"], "HEAD", [("404 NoSuchKey", Refused(404, "NoSuchKey"), "200", "200")])
    rows += rows_of(
        ["delete", "delete repository"],
        REMOVAL,
        [
            *MISSING,
            ("done then 500", faults.STORED_THEN_500, "503", ""),
            ("done then cut", faults.STORED_THEN_CUT, "503", ""),
            ("done then 404", faults.STORED_THEN_404, "200", "200"),
            ("404 though there", Refused(404, "NoSuchKey"), "200", "503"),
            ("200 with an error", faults.ERROR_WITH_200, "503", "503"),
        ],
    )
    rows += rows_of(
        ["delete"],
        REMOVAL,
        [
            ("200 with an error of the object", NotRemoved("InternalError"), "503", "503"),
            ("200 with a refusal of the object", NotRemoved("AccessDenied"), "503", ""),
            ("200 with no such key of the object", NotRemoved("NoSuchKey"), "200", "503"),
            ("200 with no such bucket", NotRemoved("NoSuchBucket"), "503", ""),
            ("200 with an error of another object", NotRemoved("AccessDenied", "another"), "503", ""),
        ],
    )
    rows += rows_of(["delete missing"], "HEAD", [("500", faults.NOT_STORED_500, "503", "")])
    rows += rows_of(["delete repository"], "LIST", [("500", faults.NOT_STORED_500, "200", "503"), *MISSING], 1)
    rows += rows_of(["delete repository"], "LIST", [("500", faults.NOT_STORED_500, "200", "503")], 2)
    return rows


@dataclass(frozen=True)
class NotRemoved:
    """
    A removal is answered with 200 and an error of its object, which is still there.

    @cvar current: the key that is being removed.
    @ivar key: what is said instead.
    """

    current: ClassVar[str] = ""
    code: str
    key: str = ""

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        exchange.drop_upload()
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult><Error>'
            f"<Key>{self.key or self.current}</Key><Code>{self.code}</Code><Message>from the tests</Message>"
            "</Error></DeleteResult>"
        ).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        exchange.tell(Answer(200, head.encode(), iter([body]), len(body)))


class ByRepository:
    """
    The faults of all rows as one: those of a row are found by its repository.

    @ivar removes_in: the repository of removals, whose requests name their objects in the body.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: dict[str, list[Rule]] = {}
        self._chosen: dict[int, Fault] = {}
        self.removes_in = ""

    def set(self, repository: str, rules: list[Rule]) -> None:
        """From now on."""
        with self._lock:
            self._rules[repository] = rules

    def matches(self, request: Request) -> bool:
        """Whether something is done to a request; counts."""
        folders = (request.key or request.query.get("prefix", "")).split("/")
        repository = self.removes_in if request.removes else folders[2] if len(folders) > 2 else ""
        with self._lock:
            for rule in self._rules.get(repository, ()):
                if rule.takes(request):
                    self._chosen[id(request)] = rule.fault
                    return True
        return False

    def apply(self, exchange: Exchange) -> None:
        """See L{Fault}."""
        with self._lock:
            fault = self._chosen.pop(id(exchange.request))
        fault.apply(exchange)


def rule_of(kind: str, fault: Fault, times: int | None, page: int) -> Rule:
    """A rule for requests of a kind; with a page, for lists from that page on."""

    def matches(request: Request) -> bool:
        return request.removes if kind == REMOVAL else request.kind == kind and request.page >= page

    return Rule(fault, matches, times, 0)


@dataclass
class Seen:
    """
    What the client saw.

    @ivar outcome: the status, or L{CUT}.
    """

    outcome: str
    reply: Reply | None = None
    error: str = ""
    took_s: float = 0.0


def ask(
    client: Client, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Seen:
    """One request."""
    begun_s = time.monotonic()
    try:
        reply = client.request(method, path, body, headers)
        seen = Seen(str(reply.status), reply)
    except (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionError) as error:
        client.close()
        seen = Seen(CUT, error=repr(error))
    seen.took_s = time.monotonic() - begun_s
    return seen


@process_test
class Faulty(SynchronousTestCase):
    """A server over an engine behind a proxy."""

    every_server = ("--prometheus", "--prometheus-no-auth", "--spool-size", str(SPOOL_BYTES), "--shutdown-timeout", "2")

    def setUp(self) -> None:
        """Start it. What the engine guarantees was tried before."""
        self.engine, self.faulty = self.make_engine()
        self.bucket = self.engine.new_bucket(self)
        self.scratch = scratch_directory(self)
        self.server = self.start()

    def make_engine(self) -> tuple[RealEngine, FaultyEngine]:
        """The engine of this test, and the proxy in front of it."""
        engine = shared_seaweedfs()
        return engine, FaultyEngine(self, engine, page_size=PAGE_SIZE)

    def secrets(self) -> list[str]:
        """What clients are never told."""
        return [
            self.bucket,
            *self.engine.environment().values(),
            "127.0.0.1",
            str(self.faulty.port),
            "<",
            "S3",
            "Azure",
        ]

    def start(self, *flags: str) -> ServerProcess:
        """Start a server."""
        state = self.scratch / "state"
        state.mkdir(exist_ok=True)
        (state / PROVEN_FILE).write_text(f"{self.engine.scheme}://{self.bucket} at {self.faulty.endpoint}")
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        users = self.scratch / "htpasswd"
        users.write_text(sha_line(USER, PASSWORD))
        place = (
            "--path",
            f"{self.engine.scheme}://{self.bucket}/some/place",
            "--state-dir",
            str(state),
            "--policy",
            str(policy),
            "--htpasswd-file",
            str(users),
        )
        return start_server(self, self.scratch / "unused", *place, *flags, extra=self.faulty.environment())

    def key(self, repository: str, kind: str, name: str) -> str:
        """The key of an object."""
        below = {"config": "config", "data": f"data/{name[:2]}/{name}"}.get(kind, f"{kind}/{name}")
        return f"some/place/{repository}/{below}"

    def stored(self, repository: str, kind: str, name: str) -> bytes | None:
        """What the engine itself has under a key."""
        return self.raw(self.key(repository, kind, name))

    def raw(self, key: str) -> bytes | None:
        """What the engine itself has under a key."""
        reply = self.engine.request("GET", f"/{self.bucket}/{quote(key)}")
        assert reply.status in (200, 404), reply
        return reply.body if reply.status == 200 else None

    def plant(self, repository: str, kind: str, name: str, body: bytes) -> None:
        """Store an object past the server."""
        reply = self.engine.request("PUT", f"/{self.bucket}/{quote(self.key(repository, kind, name))}", body=body)
        assert reply.status in (200, 201), reply

    def keys_below(self, repository: str) -> list[str]:
        """What the engine lists of a repository."""
        return [key for key in self.engine.keys(self.bucket) if key.startswith(f"some/place/{repository}/")]

    def check_alive(self, server: ServerProcess | None = None) -> None:
        """The server answers at once, has room in its spool, and has logged no traceback."""
        server = server or self.server
        with server.client(USER, PASSWORD) as client:
            body = random_bytes(seed=int(time.monotonic() * 1000), length=SPOOL_BYTES - 1000)
            begun_s = time.monotonic()
            self.assertEqual("200", ask(client, "GET", "/-/health").outcome)
            self.assertLess(time.monotonic() - begun_s, SOON_S)
            wait_until(lambda: ask(client, "GET", "/-/ready").outcome == "200", what="ready")
            client.create_repository("/alive/")
            begun_s = time.monotonic()
            small = client.save("data", body[:100], "/alive/")
            self.assertEqual(body[:100], client.get(f"/alive/data/{small}").body)
            self.assertLess(time.monotonic() - begun_s, SOON_S)
            # Room that was not given back would be missing here.
            client.save("data", body, "/alive/")
        self.assertEqual([], self.bad_lines(server))

    def bad_lines(self, server: ServerProcess) -> list[str]:
        """Lines of a log that should not be there."""
        return [line for line in [*server.err, *server.out] if BAD_LINES.search(line)]


@dataclass
class Cell:
    """
    One row that is being tried.

    @ivar repository: its own, so that its faults meet no other request.
    @ivar wrong: what is wrong, in words.
    """

    row: Row
    repository: str
    wrong: list[str] = field(default_factory=list)
    seen: Seen = field(default_factory=lambda: Seen(""))
    again: str = ""
    requests: str = ""

    def check(self, right: object, words: str) -> None:
        """Note what is wrong."""
        if not right:
            self.wrong.append(words)


class TableTests(Faulty):
    """The table."""

    def setUp(self) -> None:
        """With the faults of all rows."""
        super().setUp()
        self.by_repository = ByRepository()
        self.faulty.when(self.by_repository, matching=self.by_repository.matches, times=None)

    def run_row(self, numbered: tuple[int, Row]) -> Cell:
        """Try one row."""
        number, row = numbered
        cell = Cell(row, f"r{number}")
        body = random_bytes(number, LARGE_BYTES if "large" in row.operation else SMALL_BYTES)
        prepare = OPERATIONS[row.operation.removesuffix(" small").removesuffix(" large")]
        with self.server.client(USER, PASSWORD) as client:
            if row.operation != "create":
                client.create_repository(f"/{cell.repository}/")
            run, check = prepare(self, cell, client, body)
            rules = [rule_of(*each) for each in row.rules]
            self.by_repository.set(cell.repository, rules)
            cell.seen = run()
            self.by_repository.set(cell.repository, [])
            cell.requests = ", ".join(str(rule.used) for rule in rules)
            for rule in rules:
                cell.check(rule.used, f"{rule.fault} was never done")
            check(cell.seen)
        seen = cell.seen
        cell.check(seen.outcome in row.outcomes, f"{seen.outcome}, not {'/'.join(sorted(row.outcomes))}")
        if seen.reply is not None and seen.reply.status >= 400:
            self.check_words(cell, seen.reply)
        return cell

    def run_removal(self, numbered: tuple[int, Row]) -> Cell:
        """Try a row that removes; only one at a time."""
        self.by_repository.removes_in = f"r{numbered[0]}"
        return self.run_row(numbered)

    def check_words(self, cell: Cell, reply: Reply) -> None:
        """A client is told one clear line."""
        words = reply.reason
        body = reply.body.decode()
        cell.check(body in ("", f"{words}\n"), f"the body is {body!r}")
        for secret in self.secrets():
            cell.check(secret not in words, f"{secret} is in {words!r}")
        known = {
            503: (
                "the object store does not answer as it should",
                "the object store refuses the server's credentials",
                "the bucket with the repositories is missing",
            ),
            507: ("no space left in the object store",),
            404: ("not found", "no such repository", "Not Found"),
        }
        # The answer to a HEAD has no body; its reason phrase is the same.
        cell.check(words in known.get(reply.status, ()), f"{reply.status} {words!r}")

    # --- operations: each prepares a row; what is done while the engine is faulty, and what is checked when it is not any more

    def create(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """Make a repository."""
        marker = f"some/place/{cell.repository}/.rest-server/repository"

        def run() -> Seen:
            return ask(client, "POST", f"/{cell.repository}/?create=true", b"")

        def check(seen: Seen) -> None:
            cell.check(seen.outcome != "200" or self.raw(marker) == b"", "200, and it is not there")
            cell.again = run().outcome
            cell.check(cell.again == "200" and self.raw(marker) == b"", f"again: {cell.again}, and it is not there")

        return run, check

    def upload(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """Store an object; for its repetition and its repair one is there before."""
        kind, name = ("config", "") if cell.row.operation == "upload config" else ("data", object_id(body))
        before = {"upload again": body, "upload damaged": body[:-1]}.get(cell.row.operation)
        if before is not None:
            self.plant(cell.repository, kind, name, before)

        def run() -> Seen:
            return ask(client, "POST", f"/{cell.repository}/{kind}{name and '/'}{name}", body)

        def check(seen: Seen) -> None:
            there = self.stored(cell.repository, kind, name)
            cell.check(seen.outcome != "200" or there == body, f"200, and {there and len(there)} bytes are there")
            cell.check(there in (before, body), "something else is there")
            cell.again = run().outcome
            cell.check(cell.again == "200", f"again: {cell.again}")
            cell.check(self.stored(cell.repository, kind, name) == body, "again, and it is not there")

        return run, check

    def download(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """Read an object, or a part of one."""
        name = object_id(body)
        self.plant(cell.repository, "data", name, body)
        is_part = cell.row.operation.startswith("range")
        start, end = (len(body) // 8, len(body) // 8 * 7) if is_part else (0, len(body))
        headers = {"Range": f"bytes={start}-{end - 1}"} if is_part else None

        def run() -> Seen:
            seen = ask(client, "GET", f"/{cell.repository}/data/{name}", headers=headers)
            if seen.reply is not None and seen.reply.status in (200, 206):
                right = seen.reply.status == (206 if is_part else 200) and seen.reply.body == body[start:end]
                seen.outcome = "200" if right else WRONG_BYTES
            return seen

        def check(seen: Seen) -> None:
            cell.again = run().outcome
            cell.check(cell.again == "200", f"again: {cell.again}")

        return run, check

    def head(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """Ask for an object's size."""
        name = object_id(body)
        self.plant(cell.repository, "data", name, body)

        def run() -> Seen:
            seen = ask(client, "HEAD", f"/{cell.repository}/data/{name}")
            if seen.outcome == "200" and seen.reply is not None:
                cell.check(seen.reply.headers["Content-Length"] == str(len(body)), "another size")
            return seen

        def check(seen: Seen) -> None:
            cell.again = run().outcome
            cell.check(cell.again == "200", f"again: {cell.again}")

        return run, check

    def list_objects(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """List objects; a list that ends properly is whole."""
        sizes = {}
        for number in range(LISTED):
            name = object_id(body + bytes([number]))
            self.plant(cell.repository, "index", name, body[: number + 1])
            sizes[name] = number + 1

        def run() -> Seen:
            seen = ask(client, "GET", f"/{cell.repository}/index/", headers={"Accept": LIST_V2})
            if seen.outcome == "200" and seen.reply is not None:
                found = {each["name"]: each["size"] for each in json.loads(seen.reply.body)}
                cell.check(found == sizes, f"200, and {len(found)} of {len(sizes)} objects")
            return seen

        def check(seen: Seen) -> None:
            cell.again = run().outcome
            cell.check(cell.again == "200", f"again: {cell.again}")

        return run, check

    def delete(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """Delete an object."""
        name = object_id(body)
        if cell.row.operation != "delete missing":
            self.plant(cell.repository, "locks", name, body)
        NotRemoved.current = self.key(cell.repository, "locks", name)

        def run() -> Seen:
            return ask(client, "DELETE", f"/{cell.repository}/locks/{name}")

        def check(seen: Seen) -> None:
            there = self.stored(cell.repository, "locks", name)
            cell.check(seen.outcome != "200" or there is None, "200, and it is there")
            cell.check(there in (None, body), "something else is there")
            cell.again = run().outcome
            cell.check(cell.again == "200", f"again: {cell.again}")
            cell.check(self.stored(cell.repository, "locks", name) is None, "again, and it is there")

        return run, check

    def delete_repository(self, cell: Cell, client: Client, body: bytes) -> Attempt:
        """Delete a repository, one that restic has made: it has no marker."""
        self.plant(cell.repository, "config", "", body)
        for number in range(PAGE_SIZE + 1):
            self.plant(cell.repository, "data", object_id(body + bytes([number])), body)
        reply = self.engine.request("DELETE", f"/{self.bucket}/some/place/{cell.repository}/.rest-server/repository")
        assert reply.status in (202, 204), reply

        def run() -> Seen:
            return ask(client, "DELETE", f"/{cell.repository}/")

        def check(seen: Seen) -> None:
            left = self.keys_below(cell.repository)
            cell.check(seen.outcome != "200" or not left, f"200, and {len(left)} objects are there")
            cell.again = run().outcome
            # What is gone cannot be deleted again.
            cell.check(cell.again == ("200" if left else "404"), f"again: {cell.again}, {left} were left")
            left = self.keys_below(cell.repository)
            cell.check(not left, f"again, and {left} are there")

        return run, check

    def rows(self) -> list[Row]:
        """The table."""
        return all_rows()

    def test_table(self) -> None:
        """Every row."""
        rows = self.rows()
        self.assertEqual(len(rows), len({(row.operation, row.fault) for row in rows}), "a row is there twice")
        # Those that try again and wait come first.
        order = sorted(enumerate(rows), key=lambda each: "always" not in each[1].fault)
        removals = [each for each in order if each[1].operation.startswith("delete")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            deleted = pool.submit(lambda: [self.run_removal(each) for each in removals])
            cells = list(pool.map(self.run_row, [each for each in order if each not in removals]))
            cells += deleted.result()
        print_table(cells)
        wrong = [f"{cell.row.operation}: {cell.row.fault}: {words}" for cell in cells for words in cell.wrong]
        self.assertEqual([], wrong[:30], f"{len(wrong)} things are wrong")
        self.check_alive()
        # Hundreds of failures of three kinds.
        lines = [line for line in self.server.err if line.startswith(("cannot ", "can "))]
        self.assertLess(len(lines), 40, lines)
        self.server.wait_for_line("^cannot store in .*refuses the server's credentials ")


#: What is to be done, and what is checked after it.
Attempt = tuple[Callable[[], Seen], Callable[[Seen], None]]

OPERATIONS: dict[str, Callable[[TableTests, Cell, Client, bytes], Attempt]] = {
    "create": TableTests.create,
    "upload": TableTests.upload,
    "upload config": TableTests.upload,
    "upload again": TableTests.upload,
    "upload damaged": TableTests.upload,
    "download": TableTests.download,
    "range": TableTests.download,
    "head": TableTests.head,
    "list": TableTests.list_objects,
    "delete": TableTests.delete,
    "delete missing": TableTests.delete,
    "delete repository": TableTests.delete_repository,
}


def print_table(cells: list[Cell]) -> None:
    """Write all rows where C{OBJECT_FAULTS_TABLE} says."""
    path = os.environ.get("OBJECT_FAULTS_TABLE")
    if not path:
        return
    lines = [
        "| operation | fault | client | seconds | message | again | faults | wrong |",
        "|---|---|---|--:|---|---|---|---|",
    ]
    for cell in sorted(cells, key=lambda each: (each.row.operation, each.row.fault)):
        seen = cell.seen
        words = seen.reply.reason if seen.reply is not None else seen.error
        columns = (seen.outcome, f"{seen.took_s:.1f}", words, cell.again, cell.requests, "; ".join(cell.wrong))
        lines.append(f"| {' | '.join((cell.row.operation, cell.row.fault, *columns))} |")
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")


class EngineTests(Faulty):
    """
    An engine that is as a whole not as it should be.

    @cvar no_bucket: how it says that there is no such bucket; C{invalid_key}: that it does not know the credentials.
    """

    no_bucket = faults.NO_BUCKET
    invalid_key = faults.INVALID_KEY

    def setUp(self) -> None:
        """With a repository and an object."""
        super().setUp()
        self.body = random_bytes(1, SMALL_BYTES)
        self.name = object_id(self.body)
        with self.server.client(USER, PASSWORD) as client:
            client.create_repository("/r/")
            client.save("data", self.body, "/r/")
            self.assertEqual("200", ask(client, "POST", "/r/config", b"config").outcome)

    def requests(self) -> list[tuple[str, str, bytes | None]]:
        """One of each kind, in a repository that the server knows and in one that it does not."""
        new = random_bytes(2, SMALL_BYTES)
        large = random_bytes(3, LARGE_BYTES)
        return [
            ("POST", "/r/?create=true", b""),
            ("POST", "/new/?create=true", b""),
            ("POST", f"/r/data/{object_id(new)}", new),
            ("POST", f"/r/data/{object_id(large)}", large),
            ("POST", f"/r/data/{self.name}", self.body),
            ("POST", f"/new/data/{object_id(new)}", new),
            ("POST", "/r/config", b"another config"),
            ("POST", "/new/config", b"config"),
            ("GET", f"/r/data/{self.name}", None),
            ("GET", "/r/config", None),
            ("GET", f"/new/data/{self.name}", None),
            ("HEAD", f"/r/data/{self.name}", None),
            ("HEAD", "/r/config", None),
            ("HEAD", "/new/config", None),
            ("GET", "/r/data/", None),
            ("GET", "/r/locks/", None),
            ("GET", "/new/data/", None),
            ("DELETE", f"/r/data/{self.name}", None),
            ("DELETE", f"/r/locks/{self.name}", None),
            ("DELETE", f"/new/locks/{self.name}", None),
            ("DELETE", "/r/config", None),
            ("DELETE", "/r/", None),
            ("DELETE", "/new/", None),
        ]

    def one(self, request: tuple[str, str, bytes | None]) -> Seen:
        """One request on a connection of its own."""
        with self.server.client(USER, PASSWORD) as client:
            return ask(client, *request)

    def check_all_unavailable(self, words: str, requests: list[tuple[str, str, bytes | None]] | None = None) -> None:
        """Each request gets 503, so does the question for readiness, and what needs no engine works."""
        if requests is None:
            requests = self.requests()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(self.one, requests))
        wrong = [
            f"{request[0]} {request[1]}: {seen.outcome} {seen.reply and seen.reply.reason}"
            for request, seen in zip(requests, found, strict=True)
            if seen.outcome != "503" or seen.reply is None or seen.reply.reason != words
        ]
        self.assertEqual([], wrong, wrong)
        wait_until(lambda: self.one(("GET", "/-/ready", None)).outcome == "503", what="not ready")
        for path in ("/-/health", "/metrics"):
            seen = self.one(("GET", path, None))
            self.assertEqual("200", seen.outcome, path)
            self.assertLess(seen.took_s, SOON_S)

    def check_all_there(self) -> None:
        """Nothing was removed, and the server works."""
        wait_until(lambda: self.one(("GET", "/-/ready", None)).outcome == "200", what="ready")
        with self.server.client(USER, PASSWORD) as client:
            self.assertEqual(self.body, client.get(f"/r/data/{self.name}").body)
            self.assertEqual(b"config", client.get("/r/config").body)
            self.assertEqual("404", ask(client, "HEAD", "/r/config2").outcome)
        self.assertEqual([], self.keys_below("new"))
        self.check_alive()

    def log_of_engine(self) -> list[str]:
        """What was logged of failures of the engine."""
        return [line for line in self.server.err if line.startswith(("cannot ", "can "))]

    def test_bucket_missing(self) -> None:
        """An engine that knows no such bucket is no server without repositories, and nothing counts as removed."""
        self.faulty.when(self.no_bucket, times=None)
        self.check_all_unavailable("the bucket with the repositories is missing")
        self.faulty.behave()
        self.check_all_there()

    def test_bucket_removed(self) -> None:
        """So it is with the real engine, and with an empty bucket in the place of the right one."""
        self.engine.remove_bucket(self.bucket)
        self.check_all_unavailable("the bucket with the repositories is missing")
        self.engine.make_bucket(self.bucket)
        # Uploads to a repository that is known are one request: they believe a look of the last seconds.
        others = [each for each in self.requests() if each[0] != "POST" or not each[1].startswith("/r/")]
        self.check_all_unavailable("the bucket with the repositories is missing", others)
        self.assertEqual([], self.engine.keys(self.bucket))
        self.server.wait_for_line(f"^no marker of an earlier run is at {self.engine.scheme}://")
        self.assertEqual([], self.bad_lines(self.server))

    def test_credentials_refused(self) -> None:
        """All requests fail, and the log says it once for each thing that is done."""
        self.faulty.when(self.invalid_key, times=None)
        self.check_all_unavailable("the object store refuses the server's credentials")
        self.faulty.behave()
        lines = self.log_of_engine()
        self.assertLessEqual(len(lines), 3, lines)
        loud = self.server.wait_for_line("^cannot read from .*refuses the server's credentials .*")[0]
        secret = self.engine.environment().keys() & {"AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY"}
        self.assertNotIn(self.engine.environment()[secret.pop()], loud)
        self.check_all_there()
        self.server.wait_for_line("^can read from .* again; failed requests: ")

    def test_down(self) -> None:
        """An engine that does not run, and a thousand requests: few lines."""
        self.faulty.refuse_connections()
        self.check_all_unavailable("the object store does not answer as it should")

        def some(number: int) -> list[str]:
            with self.server.client(USER, PASSWORD) as client:
                return [ask(client, "HEAD", f"/r/data/{self.name}").outcome for _ in range(125)]

        with ThreadPoolExecutor(8) as pool:
            found = [each for many in pool.map(some, range(8)) for each in many]
        self.assertEqual(["503"] * 1000, found)
        lines = self.log_of_engine()
        self.assertLessEqual(len(lines), 3 + 3, lines)
        self.faulty.accept_connections()
        self.check_all_there()
        again = self.server.wait_for_line(r"^can read from .* again; failed requests: (\d+)$")
        self.assertGreater(int(again[1]), 1000)

    def test_clients_that_leave(self) -> None:
        """Clients close their connections while the engine is slow: nothing stays behind."""
        large = random_bytes(4, SPOOL_BYTES // 4)
        read = random_bytes(5, LARGE_BYTES)
        self.plant("r", "data", object_id(read), read)
        self.faulty.when(Late(2.0, asked_late=True), kind="PUT", times=None)
        self.faulty.when(SlowBody(300_000, 2.0), kind="GET", key=object_id(read), times=None)
        self.faulty.when(Late(2.0), kind="LIST", times=None)
        head = f"Host: x\r\nAuthorization: {authorization(USER, PASSWORD)}\r\n"
        for number in range(3):
            body = large[number:]
            upload = f"POST /r/data/{object_id(body)} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
            sent: tuple[bytes, ...] = (
                upload + body,
                upload + body[: len(body) // 2],
                f"GET /r/data/{object_id(read)} HTTP/1.1\r\n{head}\r\n".encode(),
                f"GET /r/index/ HTTP/1.1\r\n{head}\r\n".encode(),
            )
            for each in sent:
                connection = connect(("127.0.0.1", self.server.port))
                connection.sendall(each)
                if each.startswith(b"GET /r/data"):
                    self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 200"))
                time.sleep(0.1)
                (reset if number % 2 else socket.socket.close)(connection)
        self.faulty.behave()
        # What was received whole may be stored; what was not is not.
        wait_until(lambda: self.room_for_all(), what="the room of uploads")
        for number in range(3):
            body = large[number:]
            self.assertIn(self.stored("r", "data", object_id(body)), (None, body))
        self.check_alive()

    def room_for_all(self) -> bool:
        """Whether an upload that needs the whole spool is taken."""
        with self.server.client(USER, PASSWORD) as client:
            body = random_bytes(6, SPOOL_BYTES)
            return ask(client, "POST", f"/r/data/{object_id(body)}", body).outcome == "200"

    def test_spool_full(self) -> None:
        """Uploads that wait fill the spool; the next one is told to come again, and does so."""
        self.faulty.when(Late(3.0, asked_late=True), kind="PUT", times=None)
        bodies = [random_bytes(seed, SPOOL_BYTES // 3) for seed in range(10, 14)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda body: self.one(("POST", f"/r/data/{object_id(body)}", body)), bodies))
        self.assertEqual(["200", "200", "200", "503"], sorted(each.outcome for each in found))
        refused = next(each.reply for each in found if each.outcome == "503")
        assert refused is not None
        self.assertEqual("no room for more uploads at once: try again later", refused.reason)
        self.assertEqual("2", refused.headers["Retry-After"])
        self.faulty.behave()
        self.check_alive()

    def test_silent_engine(self) -> None:
        """
        The engine takes requests and answers none, and all threads wait for it: the process is alive, it says that it is not
        ready, and goes on when the engine does.
        """
        silent_s = 30.0 if ALL else 8.0
        bodies = [random_bytes(seed, SMALL_BYTES) for seed in range(100, 120)]
        self.faulty.stop_answering()
        begun_s = time.monotonic()
        waiting = [
            *[("POST", f"/r/data/{object_id(body)}", body) for body in bodies],
            *[("GET", f"/r/data/{self.name}", None)] * 20,
            *[("POST", f"/r/locks/{object_id(body)}", body) for body in bodies[:10]],
            *[("DELETE", f"/r/locks/{object_id(body)}", None) for body in bodies[10:20]],
        ]
        with ThreadPoolExecutor(len(waiting)) as pool:
            asked = [pool.submit(self.one, each) for each in waiting]
            health: list[float] = []
            not_ready_s = None
            while time.monotonic() - begun_s < silent_s:
                seen = self.one(("GET", "/-/health", None))
                self.assertEqual("200", seen.outcome)
                health.append(seen.took_s)
                if not_ready_s is None and self.one(("GET", "/-/ready", None)).outcome == "503":
                    not_ready_s = time.monotonic() - begun_s
                time.sleep(0.2)
            self.assertLess(max(health), SOON_S)
            assert not_ready_s is not None
            # Three seconds until the look is given up, two for which an earlier one counts.
            self.assertLess(not_ready_s, 3.0 + 2.0 + SOON_S)
            self.faulty.go_on()
            gone_on_s = time.monotonic()
            found = [each.result() for each in asked]
        # Reads give up after 30 s by themselves.
        allowed = {"200", "503"} if ALL else {"200"}
        self.assertEqual([], [each.outcome for each in found if each.outcome not in allowed])
        self.assertLess(time.monotonic() - gone_on_s, 3 * SOON_S)
        for (method, path, body), seen in zip(waiting, found, strict=True):
            if method == "POST" and seen.outcome == "200":
                kind, name = path.split("/")[2:]
                self.assertEqual(body, self.stored("r", kind, name))
        self.check_all_there()

    def test_stop(self) -> None:
        """A server that is to end does not wait for an engine that does not answer, and says so."""
        self.faulty.stop_answering()
        body = random_bytes(7, LARGE_BYTES)
        with ThreadPoolExecutor(2) as pool:
            upload = pool.submit(self.one, ("POST", f"/r/data/{object_id(body)}", body))
            read = pool.submit(self.one, ("GET", f"/r/data/{self.name}", None))
            wait_until(lambda: self.faulty.count("PUT", object_id(body)), what="the upload at the engine")
            begun_s = time.monotonic()
            self.server.signal(signal.SIGTERM)
            self.server.wait()
            self.assertLess(time.monotonic() - begun_s, 2.0 + REST_S + SOON_S)
            self.assertIn(upload.result().outcome, (CUT, "503"))
            self.assertIn(read.result().outcome, (CUT, "503"))
        self.server.wait_for_line("did not stop in time; exiting without it$")
        self.assertEqual([], self.bad_lines(self.server))
        self.faulty.go_on()
        again = self.start()
        with again.client(USER, PASSWORD) as client:
            self.assertEqual("200", ask(client, "POST", f"/r/data/{object_id(body)}", body).outcome)
        self.assertEqual(body, self.stored("r", "data", object_id(body)))
