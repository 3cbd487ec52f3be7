"""
System calls that fail in processes that run, by C{strace}: of servers with and without workers, and of SQLite, whose calls
L{tests.storage.test_fault_table} does not see.

C{FAULTS=all} tries every call with every error; without it some.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.sizes import Amount
from resticserver.storage.layout import CELLS
from resticserver.storage.state import RepositoryState, StateFile

from ..support.client import LIST_V2, Client, object_id
from ..support.crashes import LIVE, ClientWorker, Directory, assert_books
from ..support.fault_cases import LAPTOP, Key, look_at
from ..support.faults import traced, why_no_faults
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import start_server
from ..support.waiting import wait_until

ALL = os.environ.get("FAULTS") == "all"
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EMFILE", "EROFS", "EINTR")
FEW_RUNS = 6


class FaultyClient(ClientWorker):
    """
    A client that goes on after a failure. It does not touch again what it does not know the state of.

    @ivar wrong: what was given out and is wrong.
    @ivar failed: how many requests failed.
    """

    def __init__(self, directory: Directory, number: int, own: dict[Key, str], client: Client) -> None:
        super().__init__(directory.data, number, own, directory.journal.note, client)
        self._repository = directory.repository
        self.wrong: list[str] = []
        self.failed = 0

    def steps(self) -> dict[Callable[[], None], int]:
        """All that goes through the server."""
        return {
            self._upload: 4,
            self._delete: 3,
            self._again: 1,
            self._download: 2,
            self._list: 2,
        }

    def go(self, steps: int) -> None:
        """Do so many steps."""
        chosen = self.steps()
        for _ in range(steps):
            self._random.choices(list(chosen), list(chosen.values()))[0]()

    def _step(self, key: Key, after: str, act: Callable[[], object]) -> None:
        try:
            super()._step(key, after, act)
        except OSError:
            self.failed += 1
            self._own.pop(key, None)

    def check_all(self) -> None:
        """Without faults: everything of it that is there can be read and listed."""
        failed = self.failed
        self._list()
        for key, place in self._own.items():
            if place == LIVE:
                reply = self._client.get(self._path(key))
                if reply.status != 200 or object_id(reply.body) != key[1]:
                    self.wrong.append(f"{key}: {reply.status}")
        if self.failed != failed:
            self.wrong.append("lists fail also without a fault")

    def _download(self) -> None:
        key = self._some(LIVE)
        if key is None or key not in self._bodies:
            return
        body = self._bodies[key]
        for headers, right in ((None, body), ({"Range": "bytes=10-59"}, body[10:60])):
            reply = self._client.get(self._path(key), headers)
            if reply.status not in (200, 206):
                self.failed += 1
            elif reply.body != right:
                self.wrong.append(f"{key}: {len(reply.body)} other bytes")

    def _list(self) -> None:
        found = look_at(self._repository, lambda key, content: True)
        for kind in ("data", "keys"):
            there = {name: size for (of, name), size in found.live_bytes.items() if of == kind}
            reply = self._client.get(f"/{'/'.join(LAPTOP)}/{kind}/", {"Accept": LIST_V2})
            if reply.status != 200:
                self.failed += 1
            elif {entry["name"]: entry["size"] for entry in json.loads(reply.body)} != there:
                self.wrong.append(f"a list of {kind}")


@process_test
class ServerFaultTests(SynchronousTestCase):
    """Servers whose calls fail while a client is at work."""

    skip = why_no_faults()

    CALLS = (
        "fsync",
        "linkat",
        "openat",
        "/^unlink",
        "renameat2",
        "/^mkdir",
        "pread64",
        "getdents64",
        "newfstatat",
        "fchmod",
        "flock",
        "/^pwrite",
    )
    #: All calls from then on, or each third one.
    WHEN = ("1+", "2+3")
    STEPS = 20

    def work(self, *flags: str) -> None:
        """Each call, each error."""
        directory = Directory(scratch_directory(self) / "data")
        directory.make()
        common = ("--max-size", "1GiB", "--delete-delay", "1d", "--prometheus", "--prometheus-no-auth")
        server = start_server(self, directory.data, *common, *flags)
        server.wait_for_line("Quota initialized")
        runs = [
            (call, error, when)
            for call in self.CALLS
            for error in ERRORS
            for when in self.WHEN
            # Python repeats a call that was interrupted: for ever, if each one is.
            if error != "EINTR" or when != "1+"
        ]
        if not ALL:
            runs = random.Random(1).sample(runs, FEW_RUNS)
        table: Counter[tuple[str, str]] = Counter()
        for number, (call, error, when) in enumerate(runs):
            (own,) = directory.shares(1)
            with server.client() as connection:
                client = FaultyClient(directory, number, own, connection)
                client.go(self.STEPS)
                self.assertEqual(0, client.failed, "without a fault")
                log = directory.data.parent / "calls"
                with traced([server.pid, *server.workers()], call, f"error={error}:when={when}", kept=log):
                    client.go(self.STEPS)
                table[call, error] += injected(log)
                client.check_all()
            directory.check()
            self.assertEqual(({}, []), (directory.bad, client.wrong), f"{call} {error} {when}")
        self.assertIsNone(server.process.poll())
        # The pool closes the file of a download after the client has all of it.
        opened = partial(server.open_files_below, directory.repository)
        wait_until(lambda: not opened(), what=opened)
        assert_books(server, directory)
        for (call, error), hits in sorted(table.items()):
            print(f"| {call} | {error} | {hits} |", file=sys.stderr)
        words = f"{len(runs)} faults in a server {' '.join(flags)}: {directory.journal.acknowledged} steps acknowledged"
        print(f"\n{words}", file=sys.stderr)

    def test_one_process(self) -> None:
        """One process."""
        self.work()

    def test_workers(self) -> None:
        """The calls of a parent and its workers."""
        self.work("--workers", "2")


def injected(log: Path) -> int:
    """How many calls were made to fail."""
    return log.read_text().count("(INJECTED)")


def stored_number(data: str) -> int:
    """What the state file has; 0 if it has nothing."""
    state = StateFile(data)
    kept = state.repositories()
    state.close()
    return kept[("a",)].at_most.size_bytes if ("a",) in kept else 0


@process_test
class StateFileFaultTests(SynchronousTestCase):
    """Writes to the state file: SQLite makes the calls."""

    skip = why_no_faults()

    CALLS = ("pwrite64", "fdatasync", "fsync", "openat", "ftruncate", "newfstatat", "fcntl", "pread64", "mmap")

    def test_all(self) -> None:
        """The file has what was stored before or what was stored last, and what was said to be stored is."""
        data = scratch_directory(self) / "data"
        os.makedirs(data / ".rest-server")
        runs: Counter[tuple[str, str]] = Counter()
        chosen = [(call, error) for call in self.CALLS for error in ERRORS]
        if not ALL:
            chosen = random.Random(2).sample(chosen, 3)
        number = 1
        for call, error in chosen:
            for at in count(1):
                number += 1
                before = stored_number(str(data))
                said, hit = self.store(str(data), number, call, f"error={error}:when={at}")
                after = stored_number(str(data))
                self.assertIn(after, (number,) if said else (before, number, 0), f"{call} {error} {at}")
                if not hit:
                    self.assertTrue(said, f"{call} {error} {at}")
                    break
                runs[call, error] += 1
        print("\n| call | error | operation | runs | wrong |\n|---|---|---|--:|--:|", file=sys.stderr)
        for (call, error), times in sorted(runs.items()):
            print(f"| {call} | {error} | state file | {times} | 0 |", file=sys.stderr)

    def store(self, data: str, number: int, call: str, fault: str) -> tuple[bool, bool]:
        """Store a number in a process whose call fails: whether it said that it did, and whether a call failed."""
        go_read, go_write = os.pipe()
        said_read, said_write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.read(go_read, 1)
                state = StateFile(data)
                nothing = array("q", bytes(8 * CELLS))
                done = state.put_repositories({("a",): RepositoryState(Amount(number, 1), nothing, nothing)})
                os.write(said_write, b"1" if done else b"0")
            finally:
                # Also after an error: the test must not wait for ever.
                os.close(said_write)
                signal.pause()
        try:
            log = Path(data).parent / "calls"
            os.close(said_write)
            with traced([pid], call, fault, kept=log):
                os.write(go_write, b"1")
                said = os.read(said_read, 1)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for fd in (go_read, go_write, said_read):
                os.close(fd)
        return said == b"1", injected(log) > 0
