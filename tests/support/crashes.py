"""
Crashes of a store's processes: what was acknowledged before one, what may be there after it, and what is.

A process here is a fork of the tests' own, which works on the files as the server's pools do, in several threads. It says
before each step what it is about to do, and after it that it was done; then it is killed, or its disk goes away.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import random
import re
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.python.failure import Failure

from resticserver.errors import ServerError
from resticserver.names import CONFIG, TYPES
from resticserver.sizes import Amount
from resticserver.storage.layout import CELLS
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Publisher
from resticserver.storage.state import RepositoryState, StateFile
from resticserver.storage.trash import trash_days, trashed_objects
from resticserver.threads.steps import Steps, run_together, stepped, steps_of

from .client import Client, object_id
from .fault_cases import DAY_S, LAPTOP, Key, Places, look_at
from .fault_cases import listed as listed_by
from .server import ServerProcess
from .waiting import wait_until

#: Where an object may be.
LIVE, TRASH, GONE = "live", "trash", "gone"
_PLACES: dict[Places, str] = {(): GONE, (LIVE,): LIVE, (TRASH,): TRASH}
_PIPE_BYTES = 1 << 20
#: The trash of a day that is long over: all in it has ended.
_OLD_DAY = "2001-01-01"


@dataclass
class Journal:
    """
    What processes have said.

    @ivar may_be: where each object may be.
    @ivar states: which numbers each repository may have in the state file.
    @ivar acknowledged: how many steps were done.
    """

    may_be: dict[Key, set[str]] = field(default_factory=dict)
    states: dict[str, set[int]] = field(default_factory=dict)
    acknowledged: int = 0

    def note(self, line: str) -> None:
        """Take a line: C{begin} or C{done}, the kind, the name, and what becomes of it."""
        verb, kind, name, after = line.split()
        if kind == "state":
            numbers = self.states.setdefault(name, {0})
            if verb == "done":
                numbers.clear()
            numbers.add(int(after))
        else:
            places = self.may_be.setdefault((kind, name), {GONE})
            if verb == "done":
                places.clear()
            places.add(after)
        self.acknowledged += verb == "done"


@stepped
def _put(store: LocalStore, key: Key, body: bytes) -> Steps[None]:
    """Upload an object."""
    upload = store.upload(LAPTOP, *key, len(body))
    try:
        upload.open()
        upload.write([body])
        yield from steps_of(upload.commit)
    finally:
        upload.abort()


class Worker:
    """
    One thread of a process: it uploads, deletes, restores, expires and writes the state file, all with objects of its own.

    @param data: the data directory.
    @param number: of this worker; no other one has the same at any time.
    @param own: its objects of earlier rounds, and where they are.
    @param say: called with each line for the journal.
    """

    def __init__(
        self, data: Path, number: int, own: dict[Key, str], say: Callable[[str], object], publisher: Publisher
    ) -> None:
        self._store = LocalStore(str(data), publisher=publisher)
        self._state = StateFile(str(data))
        self._number = number
        self._own = own
        self._bodies: dict[Key, bytes] = {}
        self._say = say
        self._random = random.Random(f"{number} {time.time_ns()}")
        self._state_number = time.time_ns()

    def work(self) -> None:
        """Work until something fails."""
        with contextlib.suppress(OSError, ServerError, http.client.HTTPException):
            steps = self.steps()
            while True:
                self._random.choices(list(steps), list(steps.values()))[0]()

    def steps(self) -> dict[Callable[[], None], int]:
        """What it does, and how often."""
        return {
            self._upload: 8,
            self._delete: 6,
            self._several: 4,
            self._restore: 3,
            self._again: 1,
            self._expire: 1,
            self._write_state: 1,
        }

    def _step(self, key: Key, after: str, act: Callable[[], object]) -> None:
        self._say(f"begin {key[0]} {key[1]} {after}")
        act()
        self._say(f"done {key[0]} {key[1]} {after}")
        self._own[key] = after

    def _some(self, place: str) -> Key | None:
        found = [key for key, where in self._own.items() if where == place]
        return self._random.choice(found) if found else None

    def _upload(self) -> None:
        kind = self._random.choice(("data", "data", "data", "index", "keys", "locks"))
        size = self._random.choice((100, 1000, 1000, 100_000))
        body = self._random.randbytes(32) * (size // 32)
        key = (kind, object_id(body))
        self._bodies[key] = body
        self._step(key, LIVE, lambda: self.put(key, body))

    def put(self, key: Key, body: bytes) -> None:
        """Upload."""
        _put(self._store, key, body)

    def _several(self) -> None:
        """Upload and delete several that wait for their fsyncs together."""
        jobs: list[tuple[tuple[Key, str], Steps[object]]] = []
        put: Any = _put
        for _ in range(self._random.randrange(2, 7)):
            body = self._random.randbytes(1000)
            key = (self._random.choice(("data", "index")), object_id(body))
            jobs.append(((key, LIVE), put.steps(self._store, key, body)))
        live = [key for key, where in self._own.items() if where == LIVE]
        for key in self._random.sample(live, min(2, len(live))):
            after = GONE if key[0] == "locks" else TRASH
            remove: Any = self._store.remove_object
            jobs.append(((key, after), remove.steps(LAPTOP, *key, DAY_S)))
        for (key, after), _ in jobs:
            self._say(f"begin {key[0]} {key[1]} {after}")

        def ended(which: tuple[Key, str], result: object) -> None:
            if isinstance(result, Failure):
                result.raiseException()
            key, after = which
            self._say(f"done {key[0]} {key[1]} {after}")
            self._own[key] = after

        self._store.publisher._mean_fsync_s = 1.0  # also on a disk in memory they are handed over together
        run_together(jobs, ended, lambda waits: None)

    def _again(self) -> None:
        key = self._some(LIVE)
        if key is not None and key in self._bodies:
            body = self._bodies[key]
            self._step(key, LIVE, lambda: self.put(key, body))

    def _delete(self) -> None:
        key = self._some(LIVE)
        if key is not None:
            after = GONE if key[0] == "locks" else TRASH
            self._step(key, after, lambda: self.remove(key))

    def remove(self, key: Key) -> None:
        """Delete, with a trash."""
        self._store.remove_object(LAPTOP, *key, DAY_S)

    def _restore(self) -> None:
        key = self._some(TRASH)
        if key is not None:
            for day in trash_days(self._store.path, LAPTOP):
                for one in trashed_objects(day):
                    if (one.object_type, one.name) == key and _OLD_DAY not in one.path:
                        self._step(key, LIVE, lambda: self._store.trash.restore(one))
                        return

    def _expire(self) -> None:
        self._store.trash.expire(LAPTOP, time.time(), 0, 3)

    def _write_state(self) -> None:
        self._state_number += 1
        number = self._state_number
        name = f"state{self._number}"
        nothing = array("q", bytes(8 * CELLS))
        self._say(f"begin state {name} {number}")
        if self._state.put_repositories({(name,): RepositoryState(Amount(number, 1), nothing, nothing)}):
            self._say(f"done state {name} {number}")


class ClientWorker(Worker):
    """
    A client of a server. It restores as the command C{rest-server trash restore} does, beside the server.

    @param client: its connection.
    """

    def __init__(
        self, data: Path, number: int, own: dict[Key, str], say: Callable[[str], object], client: Client
    ) -> None:
        super().__init__(data, number, own, say, Publisher())
        self._client = client

    def steps(self) -> dict[Callable[[], None], int]:
        """All that goes through the server, and restores."""
        return {self._upload: 8, self._delete: 6, self._restore: 2, self._again: 1}

    def put(self, key: Key, body: bytes) -> None:
        """Upload."""
        self._request("POST", key, body)

    def remove(self, key: Key) -> None:
        """Delete."""
        self._request("DELETE", key)

    def _request(self, method: str, key: Key, body: bytes | None = None) -> None:
        reply = self._client.request(method, self._path(key), body)
        if reply.status != 200:
            raise OSError(f"{method} {key}: {reply}")

    @staticmethod
    def _path(key: Key) -> str:
        return f"/{'/'.join(LAPTOP)}/{key[0]}/{key[1]}"


class Process:
    """
    A fork that works.

    @ivar pid: of it.
    """

    def __init__(self, start: Callable[[Callable[[str], object]], Iterable[Worker]]) -> None:
        self._half = b""
        self._too_late = False
        self._read_fd, write_fd = os.pipe()
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(write_fd, False)  # a full pipe ends the work
        self.pid = os.fork()
        if self.pid:
            os.close(write_fd)
            return
        try:
            workers = start(lambda line: os.write(write_fd, f"{line}\n".encode("ascii")))
            threads = [threading.Thread(target=worker.work, daemon=True) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            os._exit(0)

    def listen(self, journal: Journal) -> None:
        """
        Note what it has said so far. What it says from now on is not acknowledged: between this and the end of a power cut the
        system may report anything.
        """
        os.set_blocking(self._read_fd, False)
        said = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._read_fd, 1 << 16):
                said += chunk
        whole, _, self._half = said.rpartition(b"\n")
        for line in whole.decode("ascii").splitlines():
            journal.note(line)
        self._too_late = True

    def kill(self, journal: Journal) -> None:
        """Kill it, and note what it has said."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.set_blocking(self._read_fd, True)
        with open(self._read_fd, "rb") as said:
            for line in (self._half + said.read()).decode("ascii").splitlines():
                if not (self._too_late and line.startswith("done")):
                    journal.note(line)


class Directory:
    """
    A data directory that goes through crashes.

    @ivar journal: what was acknowledged.
    @ivar bad: what was not as it should be after a crash, by kind.
    """

    def __init__(self, data: Path, publisher: Callable[[], Publisher] = Publisher) -> None:
        self.data = data
        self.repository = data / "alice/laptop"
        self.journal = Journal()
        self.bad: dict[str, list[str]] = {}
        self._publisher = publisher
        self._workers = 0
        self._ended: set[Key] = set()

    def make(self) -> None:
        """Make the repository, in full."""
        store = LocalStore(str(self.data))
        store.prepare()
        store.create_repository(LAPTOP)
        upload = store.upload(LAPTOP, CONFIG, CONFIG)
        upload.open()
        upload.write([b"the config"])
        upload.commit()

    def plant_ended(self, number: int = 5) -> None:
        """Put objects into the trash that have ended."""
        day = self.repository / ".trash" / _OLD_DAY
        (day / "data").mkdir(parents=True, exist_ok=True)
        (day / "keep-1s").touch()
        for _ in range(number):
            body = b"ended %d" % len(self._ended)
            with open(day / "data" / object_id(body), "wb", buffering=0) as file:
                file.write(body)
                os.fsync(file.fileno())
            self._ended.add(("data", object_id(body)))
        for path in (day / "data", day, day.parent, self.repository):
            Publisher().fsync_directory(str(path))

    def start(self, processes: int, threads: int) -> list[Process]:
        """Start so many processes with so many threads each, among which the objects of earlier rounds are divided."""
        shares = self.shares(processes * threads)
        first = self._workers
        self._workers += len(shares)

        def start_one(number: int) -> Process:
            def workers(say: Callable[[str], object]) -> list[Worker]:
                publisher = self._publisher()
                mine = range(number * threads, (number + 1) * threads)
                return [Worker(self.data, first + one, shares[one], say, publisher) for one in mine]

            return Process(workers)

        return [start_one(number) for number in range(processes)]

    def shares(self, number: int) -> list[dict[Key, str]]:
        """Divide the objects that are there among so many workers."""
        shares: list[dict[Key, str]] = [{} for _ in range(number)]
        for key, places in self.journal.may_be.items():
            if key in self._ended:
                continue
            (place,) = places
            if place != GONE:
                shares[int(key[1][:8], 16) % number][key] = place
        return shares

    def begin(self) -> None:
        """From now on what is in the trash and has ended may be removed at any time."""
        for key in self._ended:
            places = self.journal.may_be.setdefault(key, {TRASH})
            if TRASH in places:
                places.add(GONE)

    def check(self) -> None:
        """After a crash: start again, and compare what is there with what was acknowledged."""
        store = LocalStore(str(self.data))
        store.prepare()
        found = look_at(self.repository, lambda key, content: key[0] == CONFIG or object_id(content) == key[1])
        for key in {*found.places, *self.journal.may_be}:
            if key[0] == CONFIG:
                self._check(found.places[key] == (LIVE,), "lost", key)
                continue
            places = found.places.get(key, ())
            may_be = self.journal.may_be.get(key, set())
            is_at = _PLACES.get(places)
            if is_at is None:
                self._tell("wrong" if any("!" in one for one in places) else "twice", f"{key}: {places}")
            elif is_at not in may_be:
                what = "came back" if is_at == LIVE or may_be == {GONE} else "lost"
                self._tell(what, f"{key} is {is_at}, may be {may_be}")
            if is_at is not None:
                self.journal.may_be[key] = {is_at}
        for other in found.others:
            self._tell("left over", other)
        cells = range(CELLS)
        counted = store.counting.count(LAPTOP, cells)
        self._check(counted == {cell: found.amounts.get(cell, Amount()) for cell in cells}, "quota", "a count is wrong")
        for kind in TYPES:
            listed = {name for name, _ in listed_by(store, kind, True)}
            there = {name for of, name in found.live_bytes if of == kind}
            self._check(listed == there, "list", f"{kind}: {listed ^ there}")
        self._check_states()

    def stored_bytes(self) -> int:
        """How many bytes are stored, the trash included."""
        found = look_at(self.repository, lambda key, content: True)
        return sum(amount.size_bytes for amount in found.amounts.values())

    def _check_states(self) -> None:
        state = StateFile(str(self.data))
        kept = state.repositories()
        state.close()
        for name, numbers in self.journal.states.items():
            there = kept.get((name,))
            number = 0 if there is None else there.at_most.size_bytes
            self._check(number in numbers, "state", f"{name}: {number}, not one of {numbers}")
            self.journal.states[name] = {number}

    def _check(self, is_right: bool, what: str, words: object) -> None:
        if not is_right:
            self._tell(what, words)

    def _tell(self, what: str, words: object) -> None:
        self.bad.setdefault(what, []).append(str(words))


def assert_books(server: ServerProcess, directory: Directory) -> None:
    """What a server has counted is what is there, when it has removed what has ended."""
    server.wait_for_line("Quota initialized")
    with server.client() as client:

        def are_right() -> bool:
            figures = re.findall(
                r"^rest_server_repository_(?:size|trash)_bytes\{.*\} (.+)$",
                client.get("/metrics").body.decode("utf-8"),
                re.MULTILINE,
            )
            return sum(int(float(figure)) for figure in figures) == directory.stored_bytes()

        wait_until(are_right, what="the books")
