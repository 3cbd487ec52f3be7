"""
The whole server as a state machine: requests of any kind in any order, several at the same time, lost answers, restarts,
crashes, damage, quotas and the trash, against a model in plain Python of what must be there.

Requests are bytes to the real channel; routes, admission, quotas, store and trash are the real ones over files in memory. Only
time, threads and sockets are not. C{HYPOTHESIS_PROFILE=nightly} tries much more.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from resticserver.access.policy import Policy
from resticserver.access.policyfile import parse_policy
from resticserver.names import TYPES
from resticserver.quota.admission import Admission
from resticserver.quota.directory_locks import DirectoryLocks
from resticserver.service.quota_keeper import COUNT_AGAIN_S, QuotaKeeper, QuotaRules
from resticserver.sizes import UNLIMITED, Limit, reserve_bytes
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.interface import Upload
from resticserver.storage.layout import PRUNE_NEEDS
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher
from resticserver.storage.state import StateFile
from resticserver.storage.trash import live_name, trash_days, trashed_objects
from resticserver.storage.trash_restore import Damaged
from resticserver.storage.upload import LocalUpload

from ..contract.store import id_of
from ..service.test_quota_keeper import LatePool, Told
from ..support.client import LIST_V2
from ..support.descriptors import left_open, open_descriptors
from ..support.memory import Bench, Connection, request
from ..support.scratch import scratch_directory

EXAMPLES = {"quick": 60, "nightly": 10_000}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
#: How long sequences are tried at least.
MINUTES = float(os.environ.get("STATE_MACHINE_MINUTES", "0"))
by_chance = settings(
    max_examples=EXAMPLES.get(PROFILE, EXAMPLES["quick"]),
    stateful_step_count=30,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

DAY_S = 86_400.0
HOUR_S = 3_600.0

Repository = tuple[str, ...]
#: What alice deletes in the first is kept; in the second it is not; in the third she deletes nothing but locks.
KEPT: Repository = ("alice", "kept")
PLAIN: Repository = ("alice", "plain")
APPEND: Repository = ("alice", "append")
REPOSITORIES = (KEPT, PLAIN, APPEND)
#: How long the first rule keeps, and how long at most anything is kept here by rule or flag.
DELAY_S, LONGEST_S = HOUR_S, 4 * DAY_S


def _neighbour(content: bytes, prefix: str) -> bytes:
    """A content whose id begins with the same two digits."""
    return next(made for number in range(100_000) if id_of(made := content + b"%d" % number)[:2] == prefix)


SMALL = b"a small pack"
#: More than is taken in one job.
LARGE = b"large " * 12_000
CONTENTS: dict[str, tuple[bytes, ...]] = {
    "data": (b"", SMALL, _neighbour(b"in the same directory", id_of(SMALL)[:2]), LARGE),
    "index": (b"an index", LARGE + b"index"),
    "keys": (b"a key",),
    "locks": (b"a lock",),
    "snapshots": (b"a snapshot",),
}
CONFIGS = (b"one config", b"another config")


def short(content: bytes | None) -> str:
    """A content, as reports show it."""
    return str(content) if content is None or len(content) < 30 else f"{content[:6]!r}...({len(content)})"


@dataclass(frozen=True, order=True, repr=False)
class Key:
    """One object of one repository."""

    repository: Repository
    kind: str
    name: str

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis's call."""
        printer.text(repr(self))

    def __repr__(self) -> str:
        return f"{'/'.join(self.repository)}/{self.kind}/{self.name[:8]}"

    @cached_property
    def path(self) -> str:
        """Of its requests."""
        folders = "/".join(("", *self.repository))
        return f"{folders}/config" if self.kind == "config" else f"{folders}/{self.kind}/{self.name}"

    @cached_property
    def file(self) -> str:
        """Of its file, below the data directory."""
        folders = "/".join(self.repository)
        if self.kind == "config":
            return f"{folders}/config"
        return f"{folders}/{self.kind}/{f'{self.name[:2]}/' if self.kind == 'data' else ''}{self.name}"


KEYS = [
    Key(repository, kind, id_of(content))
    for repository in REPOSITORIES
    for kind, contents in CONTENTS.items()
    for content in contents
] + [Key(repository, "config", "config") for repository in REPOSITORIES]
BY_NAME = {id_of(content): content for contents in CONTENTS.values() for content in contents}

#: Which of the objects that an example is about.
some_key = st.integers(0, 4)
some_repository = st.sampled_from(REPOSITORIES)


@dataclass(frozen=True, repr=False)
class Operation:
    """
    A request for one object.

    @ivar body: of an upload.
    @ivar wanted: the C{Range} of a download.
    """

    method: str
    key: Key
    body: bytes = b""
    wanted: tuple[int, int | None] | None = None
    chunked: bool = False

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis's call."""
        printer.text(repr(self))

    def __repr__(self) -> str:
        body = f" {short(self.body)}{' in chunks' if self.chunked else ''}" if self.method == "POST" else ""
        return f"{self.method} {self.key!r}{body}{f' {self.wanted}' if self.wanted else ''}"

    def to_bytes(self) -> bytes:
        """As it is sent."""
        if self.method == "POST" and self.chunked:
            half = len(self.body) // 2
            chunks = b"".join(
                b"%x\r\n%s\r\n" % (len(part), part) for part in (self.body[:half], self.body[half:]) if part
            )
            return request("POST", self.key.path, Transfer_Encoding="chunked") + chunks + b"0\r\n\r\n"
        if self.method == "POST":
            return request("POST", self.key.path, self.body)
        if self.wanted is not None:
            first, last = self.wanted
            return request(self.method, self.key.path, Range=f"bytes={first}-{'' if last is None else last}")
        return request(self.method, self.key.path)


@st.composite
def operations(draw: st.DrawFn, keys: Sequence[Key]) -> Operation:
    """One of restic's requests; uploads are right more often than not."""
    key = draw(st.sampled_from(keys))
    method = draw(st.sampled_from(["POST", "POST", "POST", "DELETE", "GET", "HEAD"]))
    if method == "POST":
        right = draw(st.sampled_from(CONFIGS)) if key.kind == "config" else BY_NAME[key.name]
        body = draw(st.sampled_from([right, right, right, right, b"", SMALL, LARGE]))
        return Operation(method, key, body, chunked=draw(st.booleans()))
    wanted = draw(st.none() | st.tuples(st.integers(0, 20), st.none() | st.integers(0, 90_000)))
    return Operation(method, key, wanted=wanted if method == "GET" and (not wanted or _is_range(wanted)) else None)


def _is_range(wanted: tuple[int, int | None]) -> bool:
    return wanted[1] is None or wanted[0] <= wanted[1]


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    fields: bytes
    body: bytes

    def field(self, name: bytes) -> bytes | None:
        """A header field."""
        match = re.search(rb"(?im)^%s: *(.*?)\r?$" % name, self.fields)
        return match[1] if match else None


def answer_of(received: bytes, method: str) -> Answer | None:
    """The one answer on a connection; C{None} while it is not complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    status = int(head.split(b" ", 2)[1])
    answer = Answer(status, head, body)
    if method == "HEAD":
        assert not body, received
        return answer
    if b"chunked" in (answer.field(b"transfer-encoding") or b""):
        whole = b""
        while True:
            size, _, rest = body.partition(b"\r\n")
            if not size or len(rest) < int(size, 16) + 2:
                return None
            if size == b"0":
                assert rest == b"\r\n", received
                return Answer(status, head, whole)
            whole += rest[: int(size, 16)]
            body = rest[int(size, 16) + 2 :]
    length = answer.field(b"content-length")
    assert length is not None, head
    assert len(body) <= int(length), received[:500]
    return answer if len(body) == int(length) else None


@dataclass(frozen=True)
class Copy:
    """
    What must be in the trash, or may be.

    @ivar until_s: it must be there before this time, in seconds since 1970.
    """

    content: bytes
    until_s: float


@dataclass(frozen=True, repr=False)
class State:
    """
    One object as the model has it.

    @ivar live: its content; C{None} if it is not there.
    @ivar trash: its contents in the trash.
    """

    live: bytes | None = None
    trash: frozenset[bytes] = frozenset()

    def __repr__(self) -> str:
        return f"<{short(self.live)}, trash: {', '.join(map(short, self.trash))}>"


@dataclass
class Model:
    """
    What must be there.

    @ivar there: the repositories that were made and not deleted.
    @ivar quota: the limits that hold: for which repositories together, and how much.
    """

    live: dict[Key, bytes] = field(default_factory=dict)
    trash: dict[Key, list[Copy]] = field(default_factory=dict)
    there: set[Repository] = field(default_factory=set)
    quota: tuple[tuple[Repository, ...], int] | None = None
    trash_counts: bool = True

    def state(self, key: Key) -> State:
        """Of one object."""
        return State(self.live.get(key), frozenset(copy.content for copy in self.trash.get(key, ())))

    def used_bytes(self, repositories: tuple[Repository, ...], only_trash: bool = False) -> int:
        """What counts."""
        live = sum(len(content) for key, content in self.live.items() if key.repository in repositories)
        return 0 if only_trash else live

    def outcomes(
        self, state: State, operation: Operation, keeps: bool, allowed: bool
    ) -> tuple[int, State, bytes | None]:
        """
        What an operation answers where its quota suffices: the status, the state after it, and the
        body of a download.
        """
        key, live = operation.key, state.live
        if operation.method in ("GET", "HEAD"):
            return self._read(live, operation, state)
        if operation.method == "DELETE":
            if not allowed:
                return 403, state, None
            kept = frozenset((live,)) if keeps and live is not None else frozenset()
            return 200, State(None, state.trash | kept), None
        body = operation.body
        if key.repository not in self.there:
            return 404, state, None
        if key.kind == "config":
            if live is None or live == body:
                return 200, State(body, state.trash), None
            return 403, state, None
        if id_of(body) != key.name:
            return (400 if live is None else 403), state, None
        return 200, State(body, state.trash), None

    @staticmethod
    def _read(live: bytes | None, operation: Operation, state: State) -> tuple[int, State, bytes | None]:
        if live is None:
            return 404, state, None
        if operation.wanted is None or operation.key.kind == "config":
            return 200, state, live
        first, last = operation.wanted
        if not live:
            return 200, state, live
        if first >= len(live):
            return 416, state, None
        return 206, state, live[first : None if last is None else last + 1]


class Alice:
    """Everyone is alice."""

    async def authenticate(self, request: object) -> str:
        """Alice."""
        return "alice"


@dataclass
class Client:
    """
    An operation under way.

    @ivar left: what was not sent yet.
    @ivar lost: whether the client went away.
    """

    operation: Operation
    connection: Connection
    left: bytes
    lost: bool = False

    @property
    def answer(self) -> Answer | None:
        """What it got."""
        return answer_of(self.connection.received, self.operation.method)


class NotedUploads(LocalStore):
    """Notes uploads, for the end of a process: their files are closed then, and nothing else is done."""

    noted: list[Upload]

    def upload(self, repository: Repository, object_type: str, name: str, length: int | None = None) -> Upload:
        """Note it."""
        upload = super().upload(repository, object_type, name, length)
        self.noted.append(upload)
        return upload

    def process_ends(self) -> None:
        """As the kernel does it."""
        for upload in self.noted:
            assert isinstance(upload, LocalUpload)
            descriptors = [upload._directory_fd]
            if upload._file is not None:
                descriptors.append(upload._file.fd)
            for descriptor in descriptors:
                if descriptor >= 0:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
        self.noted = []


@implementer(ILogObserver)
class Faults:
    """
    Keeps what is logged as a fault of the server.

    @ivar events: the log's events.
    """

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        """Twisted's call."""
        if event.get("log_level") in (LogLevel.error, LogLevel.critical) or "log_failure" in event:
            self.events.append(event)


class ServerMachine(RuleBasedStateMachine):
    """The server, and the model beside it."""

    #: Where the data directories are made.
    scratch: Path
    #: How many sequences were tried.
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        ServerMachine.examples += 1
        self.data = Path(tempfile.mkdtemp(dir=self.scratch))
        self.model = Model()
        self.faults = Faults()
        globalLogPublisher.addObserver(self.faults)
        self.exact = True
        self.ahead_s = 0.0
        self.pool = LatePool()

    # --- the server

    @initialize(
        made=st.sampled_from([(KEPT,), (PLAIN,), (KEPT, PLAIN), (KEPT, APPEND)]),
        data=st.data(),
        limited=st.sampled_from(["", "", "server", "user", "repository"]),
        limit=st.sampled_from([90_000, 160_000, 250_000]),
        trash_counts=st.booleans(),
        ways=st.sampled_from([(True,) * 3, (True,) * 3, (False, True, True), (False, False, True), (False,) * 3]),
        cached=st.booleans(),
        flag_delay=st.sampled_from([0.0, 0.0, 2 * DAY_S]),
        sparse=st.sampled_from([True, True, True, False]),
    )
    def start_first(
        self,
        made: tuple[Repository, ...],
        data: st.DataObject,
        limited: str,
        limit: int,
        trash_counts: bool,
        ways: tuple[bool, ...],
        cached: bool,
        flag_delay: float,
        sparse: bool,
    ) -> None:
        """The first start, with some flags; some repositories, and a few objects that the example is about."""
        possible = [key for key in KEYS if key.repository in made]
        self.focus = data.draw(st.lists(st.sampled_from(possible), min_size=1, max_size=3, unique=True))
        counts = f"trash-counts = {str(trash_counts).lower()}"
        quota = f'\nquota = "{limit}"' if limited == "repository" else ""
        rules = (
            f'[[rule]]\nusers = ["*"]\nrepositories = ["{{user}}/kept"]\nrights = "full"\ncreate = true\n'
            f'delete-repository = true\ndelete-delay = "1h"\n{counts}{quota}\n'
            f'[[rule]]\nusers = ["*"]\nrepositories = ["{{user}}/plain"]\nrights = "full"\ncreate = true\n'
            f"delete-repository = true\n{counts}\n"
            f'[[rule]]\nusers = ["*"]\nrepositories = ["{{user}}/*"]\nrights = "append"\ncreate = true\n{counts}\n'
        )
        if limited == "user":
            rules += f'[users.alice]\nquota = "{limit}"\n'
        self.policy = Policy(grants=parse_policy(rules), delete_delay_s=flag_delay)
        self.server_limit = Limit(limit) if limited == "server" else UNLIMITED
        self.model.trash_counts = trash_counts
        if limited:
            self.model.quota = ((KEPT,) if limited == "repository" else REPOSITORIES, limit)
        self.flag_delay_s = flag_delay
        self.mechanisms = Mechanisms(*ways)
        self.cached = cached
        self.sparse = sparse
        self.start()
        for repository in made:
            self.create(repository)

    def start(self) -> None:
        """A process begins."""
        self.descriptors = open_descriptors()
        self.pool = LatePool()
        self.pool.inline = True
        self.state = StateFile(str(self.data))
        snapshots = Snapshots(store=self.state) if self.cached else Snapshots(bound_bytes=0)
        self.bench = Bench(str(self.data), pool=self.pool, policy=self.policy, authentication=Alice())
        self.store = NotedUploads(str(self.data), publisher=Publisher(mechanisms=self.mechanisms), snapshots=snapshots)
        self.store.noted = []
        self.store.prepare()
        locks = DirectoryLocks()
        rules = QuotaRules(self.server_limit, self.policy, in_any_case=True)
        self.clock = self.bench.clock
        self.keeper = QuotaKeeper(self.clock, rules, self.store.counting, self.state, self.pool, locks)
        self.bench.api._store = self.store
        self.bench.api._admission = Admission(self.keeper, locks)
        self.bench.store = self.store
        self.keeper.startService()
        self.clock.advance(0)
        assert self.keeper.complete
        self.exact = True
        self.asked = 0

    def process_ends(self) -> None:
        """Nothing more is done by the process."""
        self.pool.inline = False
        for channel in self.bench.site.channels:
            # When Python frees the route of a request that waits for ever, that counts as its end.
            served: Any = channel.exchange.request
            if served is not None:
                served.aborted = True
        for _, job, _ in self.pool.jobs:
            if isinstance(job, Told):  # nobody hears of its error
                job.result.addErrback(lambda failure: None)
        self.store.process_ends()
        self.state.close()

    @rule(cleanly=st.booleans())
    def restart(self, cleanly: bool) -> None:
        """Another process on the same files."""
        if cleanly:
            stopping = self.keeper.stopService()
            with contextlib.suppress(StopIteration):
                stopping.send(None)  # type: ignore[attr-defined]
                raise AssertionError("the stop waits for something")
        self.process_ends()
        self.start()

    # --- requests, one after the other

    def keeps(self, key: Key) -> bool:
        """Whether what is deleted is kept in the trash."""
        return key.kind != "locks" and (key.repository == KEPT or self.flag_delay_s > 0)

    def may_delete(self, key: Key) -> bool:
        """Whether alice may delete an object."""
        return key.repository != APPEND or key.kind == "locks"

    def send(self, raw: bytes, method: str) -> Answer:
        """A request and its answer."""
        self.asked += 1
        connection = self.bench.ask(raw)
        self.clock.advance(0)
        answer = answer_of(connection.received, method)
        assert answer is not None, connection.received[:300]
        connection.lose()
        return answer

    def room(self, operation: Operation, less: int = 0) -> int | None:
        """How many bytes an upload may have; C{None} for any number."""
        if self.model.quota is None or operation.key.repository not in self.model.quota[0]:
            return None
        repositories, limit = self.model.quota
        kind = operation.key.kind
        used = sum(self.sizes_of(repository)[0] for repository in repositories)
        trash = sum(self.sizes_of(repository)[1] for repository in repositories) if self.model.trash_counts else 0
        most = limit + (reserve_bytes(limit) if kind in PRUNE_NEEDS else 0)
        return most - used - (0 if kind == "locks" else trash)

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """One request."""
        self.ask_now(data.draw(operations(self.focus)))

    def key(self, number: int) -> Key:
        """One of the objects that the example is about."""
        return self.focus[number % len(self.focus)]

    def judge(self, operation: Operation, answer: Answer, fits: bool) -> None:
        """The one answer that is right, and the state after it."""
        key = operation.key
        before = self.model.state(key)
        status, after, body = self.model.outcomes(before, operation, self.keeps(key), self.may_delete(key))
        if operation.method == "POST":
            # Without a length the server looks for the repository first.
            is_missing = answer.status == status == 404
            if (answer.status == 507) == fits and self.exact and not is_missing:
                raise AssertionError(f"{operation} {answer} fits: {fits}")
            if answer.status == 507:
                return
        assert answer.status == status, (operation, answer, status, before)
        self.assert_content(operation, answer, body)
        self.note_twin(operation, before)
        self.take(key, after)

    def note_twin(self, operation: Operation, before: State) -> None:
        """
        A deletion of what was deleted before: if that was on the same day, one copy stays in the trash. Two are booked until
        the next count.
        """
        if operation.method == "DELETE" and self.keeps(operation.key) and before.trash:
            self.look_again()

    def assert_content(self, operation: Operation, answer: Answer, body: bytes | None) -> None:
        """The bytes of a download."""
        if answer.status not in (200, 206) or operation.method not in ("GET", "HEAD"):
            return
        assert body is not None
        if operation.method == "HEAD":
            assert answer.field(b"content-length") == b"%d" % len(body), (operation, answer)
        else:
            assert answer.body == body, (operation, answer.fields)

    def take(self, key: Key, after: State) -> None:
        """An object's state is this now."""
        if after.live is None:
            self.model.live.pop(key, None)
        else:
            self.model.live[key] = after.live
        known = {copy.content for copy in self.model.trash.get(key, ())}
        delay_s = max(self.flag_delay_s, DELAY_S if key.repository == KEPT else 0)
        now_s = time.time()
        for content in after.trash - known:
            self.model.trash.setdefault(key, []).append(Copy(content, now_s + delay_s - 60))

    @rule(repository=some_repository)
    def create(self, repository: Repository) -> None:
        """A repository is made; again and again is the same."""
        answer = self.send(request("POST", f"/{'/'.join(repository)}/?create=true", b""), "POST")
        assert answer.status == 200, answer
        self.model.there.add(repository)
        if self.sparse:
            # The server makes them again when it needs them, and the example takes half the time.
            for directory in os.scandir(f"{self.data}/{'/'.join(repository)}/data"):
                with contextlib.suppress(OSError):
                    os.rmdir(directory.path)

    @rule(number=some_key)
    def save(self, number: int) -> None:
        """An object that is right: most rules need some."""
        key = self.key(number)
        self.ask_now(Operation("POST", key, CONFIGS[0] if key.kind == "config" else BY_NAME[key.name]))

    @rule(number=some_key)
    def load(self, number: int) -> None:
        """An object, whole."""
        self.ask_now(Operation("GET", self.key(number)))

    def ask_now(self, operation: Operation) -> None:
        """A request from within a rule."""
        room = self.room(operation)
        self.judge(
            operation,
            self.send(operation.to_bytes(), operation.method),
            room is None or len(operation.body) <= room,
        )

    @rule(repository=some_repository)
    def delete_repository(self, repository: Repository) -> None:
        """A whole repository."""
        answer = self.send(request("DELETE", f"/{'/'.join(repository)}/"), "DELETE")
        if repository == APPEND:
            assert answer.status == 403, answer
            return
        assert answer.status == (200 if repository in self.model.there else 404), answer
        self.model.there.discard(repository)
        for key in self.focus:
            if key.repository == repository:
                state = self.model.state(key)
                kept = frozenset((state.live,)) if self.keeps(key) and state.live is not None else frozenset()
                self.take(key, State(None, state.trash | kept))

    @rule(repository=some_repository, kind=st.sampled_from(TYPES), version=st.sampled_from([1, 2]))
    def list_objects(self, repository: Repository, kind: str, version: int) -> None:
        """A list is what the model has."""
        path = f"/{'/'.join(repository)}/{kind}/"
        answer = self.send(request("GET", path, **({"Accept": LIST_V2} if version == 2 else {})), "GET")
        wanted = {
            key.name: len(content)
            for key, content in self.model.live.items()
            if (key.repository, key.kind) == (repository, kind)
        }
        if answer.status == 404:
            assert not wanted and not (self.data.joinpath(*repository) / kind).is_dir(), (path, wanted)
            return
        assert answer.status == 200, answer
        listed = json.loads(answer.body)
        if version == 2:
            assert len(listed) == len(wanted), (listed, wanted)
            assert {line["name"]: line["size"] for line in listed} == wanted, (listed, wanted)
        else:
            assert sorted(listed) == sorted(wanted), (listed, wanted)

    # --- requests at the same time

    @rule(
        ours=st.lists(some_key, min_size=1, max_size=2),
        number=st.sampled_from([1, 2, 2, 3, 3]),
        crash=st.sampled_from([False] * 5 + [True]),
        may_lose=st.sampled_from([False, False, True]),
        again=st.booleans(),
        turns=st.lists(st.integers(0, 2519), min_size=10, max_size=40),
        data=st.data(),
    )
    def race(
        self,
        ours: list[int],
        number: int,
        crash: bool,
        may_lose: bool,
        again: bool,
        turns: list[int],
        data: st.DataObject,
    ) -> None:
        """
        Some requests at the same time, whose steps come in any order, of clients that may go away at any moment. What comes
        of them is what would come of them one after the other, in some order; of a lost one it may have happened or not.

        @param turns: what comes next each time, of what is possible then. They are drawn before, since how many jobs there
            are depends on the kernel's cache, and Hypothesis wants to draw the same again.
        """
        keys = [self.key(one) for one in ours]
        todo = [data.draw(operations(keys)) for _ in range(number)]
        rooms = {id(operation): self.room(operation) for operation in todo}
        together = sum(len(operation.body) for operation in todo if operation.method == "POST")
        freed = sum(len(self.model.live.get(key, b"")) for key in set(keys))
        clients: list[Client] = []
        self.pool.inline = False
        for turn in turns:
            choices: list[tuple[str, Any]] = []
            if len(clients) < len(todo):
                choices.append(("begin", todo[len(clients)]))
            choices += [("step", n) for n in range(min(4, len(self.pool.jobs)))] * 2
            choices += [("send", client) for client in clients if client.left and not client.lost]
            if not choices:
                break
            if may_lose:
                choices += [("lose", client) for client in clients if not client.lost and client.answer is None]
            what, which = choices[turn % len(choices)]
            if what == "step":
                self.pool.step(which)
            elif what == "begin":
                clients.append(self.begin(which))
            elif what == "send":
                self.send_rest(which)
            else:
                which.lost = True
                which.connection.lose()
            self.clock.advance(0)
        exact = self.exact
        if crash:
            self.process_ends()
        else:
            self.finish(clients)
        answers = [(client.operation, None if client.lost else client.answer) for client in clients]
        if crash:
            self.start()
        for operation, answer in answers:
            if answer is not None and operation.method == "POST":
                room = rooms[id(operation)]
                if answer.status == 507:
                    assert room is not None and (together > room or not exact), (operation, answer)
                elif room is not None and exact and answer.status != 404:
                    assert len(operation.body) <= room + freed, (operation, answer)
        for operation in todo:
            self.note_twin(operation, State(None, frozenset((b"",))))
        for key in set(keys):
            if {"POST", "DELETE"} <= {operation.method for operation in todo if operation.key == key}:
                # The reactor may hear of a deletion before it hears of the upload that made the object. The ledger does not
                # go below zero, so it has too much until the next count.
                self.look_again()
        for key in sorted(set(keys)):
            self.judge_race(key, [(operation, answer) for operation, answer in answers if operation.key == key])
        if again and clients and clients[0].lost and not crash:
            self.repeat(clients[0].operation)

    def repeat(self, operation: Operation) -> None:
        """A client that got no answer to an upload deletes what may be there, and sends it again."""
        if operation.method == "POST":
            self.ask_now(Operation("DELETE", operation.key))
        self.ask_now(operation)

    def begin(self, operation: Operation) -> Client:
        """Send a request, or its first half if it is long."""
        raw = operation.to_bytes()
        half = len(raw) // 2 if len(raw) > 1000 else len(raw)
        connection = self.bench.ask(raw[:half])
        self.asked += 1
        return Client(operation, connection, raw[half:])

    def send_rest(self, client: Client) -> None:
        """Send the second half, if the server still reads."""
        left, client.left = client.left, b""
        if not client.connection.closed:
            client.connection.send(left)

    def finish(self, clients: list[Client]) -> None:
        """Let everything come to its end."""
        for client in clients:
            if client.left and not client.lost:
                self.send_rest(client)
        self.pool.inline = True
        for _ in range(1000):
            self.clock.advance(0)
            if not self.pool.jobs:
                break
            self.pool.step()
        self.clock.advance(0)
        for client in clients:
            assert client.lost or client.answer is not None, (client, client.connection.received[:300])
            if not client.lost:
                client.connection.lose()

    def judge_race(self, key: Key, done: list[tuple[Operation, Answer | None]]) -> None:
        """Find an order that explains all answers and what is on disk."""
        found = self.on_disk(key)
        before = self.model.state(key)
        for order in permutations(done):
            for state in self.ends(key, before, list(order)):
                if (state.live, state.trash) == (found.live, found.trash):
                    self.take(key, state)
                    return
        raise AssertionError(f"no order explains {key}: {before} {done} {found}")

    def ends(self, key: Key, state: State, order: list[tuple[Operation, Answer | None]]) -> Iterator[State]:
        """What may be there after some operations in this order that were answered so."""
        if not order:
            yield state
            return
        (operation, answer), rest = order[0], order[1:]
        status, after, body = self.model.outcomes(state, operation, self.keeps(key), self.may_delete(key))
        if answer is None:
            yield from self.ends(key, state, rest)
            if status == 200 and after != state:
                yield from self.ends(key, after, rest)
        elif answer.status == 507:
            yield from self.ends(key, state, rest)
        elif answer.status == status:
            with contextlib.suppress(AssertionError):
                self.assert_content(operation, answer, body)
                yield from self.ends(key, after, rest)

    # --- what others do

    @rule(number=some_key, how=st.sampled_from(["flip", "cut"]))
    def damage(self, number: int, how: str) -> None:
        """The disk spoils a file, if there is one."""
        if not self.model.live:
            return
        self.damage_key(sorted(self.model.live)[number % len(self.model.live)], how)

    def damage_key(self, damaged: Key, how: str) -> None:
        """Spoil one file."""
        content = self.model.live[damaged]
        if not content or damaged.kind == "config":
            return
        path = self.data / damaged.file
        if how == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
            with path.open("r+b") as file:
                file.write(content[:1])
        else:
            content = content[:-1]
            new = path.with_name("new")
            new.write_bytes(content)
            new.replace(path)
            self.look_again()
        self.model.live[damaged] = content

    @rule(number=some_key, how=st.sampled_from(["flip", "cut"]), restores=st.booleans())
    def delete_damaged(self, number: int, how: str, restores: bool) -> None:
        """An object is deleted whole, and once more when it is damaged: by chance alone that would be rare."""
        key = self.key(number)
        for is_damaged in (False, True):
            self.save(number)
            if is_damaged and key in self.model.live:
                self.damage_key(key, how)
            self.ask_now(Operation("DELETE", key))
        self.check()
        if restores:
            self.restore(key.repository)

    @rule(seconds=st.sampled_from([1.0, 16.0, COUNT_AGAIN_S]))
    def wait(self, seconds: float) -> None:
        """Time goes by for the server."""
        self.clock.advance(seconds)
        if seconds == COUNT_AGAIN_S:
            self.exact = True

    def look_again(self) -> None:
        """Others have changed a repository: the ledger finds out when it counts."""
        self.exact = False

    # --- the trash

    def in_trash(self, repository: Repository) -> list[Any]:
        """What lies there."""
        return [one for day in trash_days(self.store.path, repository) for one in trashed_objects(day)]

    @rule(repository=some_repository, ahead_s=st.sampled_from([0.0, 0.0, HOUR_S / 2, 20 * DAY_S]))
    def expire(self, repository: Repository, ahead_s: float) -> None:
        """The expiry looks, with the clock some time ahead; what it removes was there for long enough."""
        now_s = time.time() + ahead_s
        delay_s = self.policy.delete_delay_of("alice", repository)
        while self.store.trash.expire(repository, now_s, delay_s, 2).more:
            pass
        for key in [key for key in self.model.trash if key.repository == repository]:
            left = [copy for copy in self.model.trash[key] if copy.until_s > now_s]
            if ahead_s > LONGEST_S + 2 * DAY_S:
                assert not left
                assert not self.on_disk(key).trash, key
            self.model.trash[key] = left
        self.keeper.count_soon(repository)
        self.clock.advance(16)

    @rule(repository=some_repository)
    def restore(self, repository: Repository) -> None:
        """Everything in a repository's trash is put back, as far as that is possible."""
        for trashed in self.in_trash(repository):
            key = Key(repository, trashed.object_type, live_name(trashed))
            content = Path(trashed.path).read_bytes()
            live = self.model.live.get(key)
            is_damaged = id_of(content) != trashed.name
            try:
                restored = self.store.trash.restore(trashed)
            except Damaged:
                assert is_damaged, trashed
            except FileExistsError:
                assert live is not None and live != content, trashed
            else:
                assert not is_damaged, trashed
                assert restored == (live is None), trashed
                assert live in (None, content), trashed
                self.model.live[key] = content
                if restored:
                    copies = [copy for copy in self.model.trash.get(key, []) if copy.content != content]
                    # The same content may have been deleted on another day, and lie there once more.
                    self.model.trash[key] = copies
                self.model.there.add(repository)
        for day in trash_days(self.store.path, repository):
            self.store.trash.remove_if_empty(day)
        self.look_again()

    @rule(repository=some_repository)
    def empty(self, repository: Repository) -> None:
        """The administrator empties a repository's trash."""
        self.store.trash.remove(repository, self.in_trash(repository))
        for day in trash_days(self.store.path, repository):
            self.store.trash.remove_if_empty(day)
        for key in [key for key in self.model.trash if key.repository == repository]:
            del self.model.trash[key]
        assert not self.in_trash(repository)
        self.look_again()

    # --- what must hold

    def on_disk(self, key: Key) -> State:
        """One object, looked at with nothing of ours."""
        live = None
        with contextlib.suppress(FileNotFoundError), open(f"{self.data}/{key.file}", "rb") as file:
            live = file.read()
        trash = set()
        top = f"{self.data}/{'/'.join(key.repository)}/.trash"
        if os.path.isdir(top):
            name = "*" if key.kind == "config" else key.name
            trash = {Path(found).read_bytes() for found in glob.glob(f"{top}/*/{key.kind}*/{name}")}
        return State(live, frozenset(trash))

    def sizes_of(self, repository: Repository) -> tuple[int, int]:
        """How much is live and in the trash of a repository, on disk."""
        live = 0
        for key in self.focus:
            if key.repository == repository:
                with contextlib.suppress(FileNotFoundError):
                    live += os.stat(f"{self.data}/{key.file}").st_size
        return live, sum(one.size_bytes for one in self.in_trash(repository))

    def check(self) -> None:
        """After each step."""
        assert not self.faults.events, self.faults.events
        if not hasattr(self, "store"):
            return
        assert not self.pool.jobs, self.pool.jobs
        for key in self.focus:
            found, wanted = self.on_disk(key), self.model.state(key)
            assert found.live == wanted.live, (key, found, wanted)
            assert wanted.trash <= found.trash, (key, found, wanted)
            more = found.trash - wanted.trash
            assert not more or self.model.trash.get(key) is not None or key.kind == "config", (key, more)
            for content in more:
                # Its time is over, and it was not removed yet.
                self.model.trash.setdefault(key, []).append(Copy(content, 0.0))
        for repository in REPOSITORIES:
            temporary = f"{self.data}/{'/'.join(repository)}/.tmp"
            assert not os.path.isdir(temporary) or not os.listdir(temporary), os.listdir(temporary)
        self.check_ledger()

    def check_ledger(self) -> None:
        """What is booked is what is there."""
        server = self.keeper.ledger.server
        assert (server.reserved_bytes, server.reserved_objects) == (0, 0), server
        if not self.exact:
            return
        for repository in REPOSITORIES:
            live, trash = self.sizes_of(repository)
            account = self.keeper.ledger.repositories.get(repository)
            stored = (0, 0) if account is None else (account.stored.size_bytes, account.trash.size_bytes)
            assert stored == (live, trash), (repository, stored, live, trash)
        used = sum(
            sum(self.sizes_of(one)) if self.model.trash_counts else self.sizes_of(one)[0] for one in REPOSITORIES
        )
        assert server.used_bytes == used, (server, used)

    def check_invariants(self, *arguments: Any, **named: Any) -> None:
        """Hypothesis's call after each step."""
        super().check_invariants(*arguments, **named)
        self.check()

    def teardown(self) -> None:
        """The last look: lists are the model, nothing else lies anywhere, each request left one record, and all is closed."""
        try:
            if hasattr(self, "store") and sys.exc_info()[0] is None:
                for repository in REPOSITORIES:
                    for kind in TYPES:
                        self.list_objects(repository, kind, 2)
                assert len(self.bench.records) == self.asked, (len(self.bench.records), self.asked)
                known = {key.file for key in self.model.live}
                found = {
                    str(path.relative_to(self.data))
                    for path in self.data.rglob("*")
                    if path.is_file() and not {".trash", ".rest-server"} & set(path.parts)
                }
                assert known == found, (known, found)
                # What the end of a process has left open it closes itself.
                left = [file for file in left_open(self.descriptors) if file.startswith(str(self.data))]
                assert not [file for file in left if "/.rest-server/" not in file], left
        finally:
            globalLogPublisher.removeObserver(self.faults)
            if hasattr(self, "store"):
                self.process_ends()
            shutil.rmtree(self.data)


class StateMachineTests(SynchronousTestCase):
    """L{ServerMachine}."""

    def test_as_the_model(self) -> None:
        """Whatever is asked in whatever order, the server does what the model says."""
        ServerMachine.scratch = scratch_directory(self)
        ServerMachine.examples = 0
        until = time.monotonic() + MINUTES * 60
        while not ServerMachine.examples or time.monotonic() < until:
            try:
                run_state_machine_as_test(ServerMachine, settings=by_chance)
            except Exception as error:
                # Trial does not show the notes of an exception, and in them are the steps.
                raise self.failureException("".join(traceback.format_exception(error))) from None
        if MINUTES:
            print(f"{ServerMachine.examples} sequences, {time.process_time():.0f} s of processor time")
