"""
A server under everything at once, for as long as you like: C{make soak}, C{SOAK_MINUTES=30}.

Real restic clients back up, prune, restore and check over TLS, and some are killed. Meanwhile workers and the whole server are
killed, the certificate is renewed, users and rules are rewritten, stored files are damaged, and the disk is filled. Nothing
that was acknowledged may be lost, all damage must be found, and descriptors, threads and memory must not grow.

    python -m tests.soak [--minutes N] [--json FILE] [--seed N]

Prints a report every minute and at the end; the exit status is 0 if all is well, 1 if not, 2 if it cannot be run. In the last
part of the time (L{CALM_PART}) neither the parent nor the oldest worker is killed, so that their growth can be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import resticserver

from .support.certificates import Authority, make_certificate
from .support.client import Client, Reply, object_id
from .support.htpasswd import bcrypt_line, sha_line
from .support.restic import RESTIC, Finished, Restic, make_tree
from .support.scratch import contents_below, hash_of_file, object_path
from .support.server import LISTENING, ServerProcess, command_line, is_running

MIB = 1 << 20
#: The size of the data directory's file system where one can be mounted, and of what one client backs up.
DISK_BYTES, TREE_BYTES = 700 * MIB, 3 * MIB
#: In the last part of the time parent and oldest worker are left alone.
CALM_PART = 0.45
SAMPLE_S, REPORT_S = 5.0, 60.0
#: How much a process may grow between the first and the last third of that part.
MOST_MORE = {"descriptors": 12.0, "threads": 4.0, "memory_kib": 16 * 1024.0}

PASSWORD = "soak"
USERS = ("alice", "bob", "carol", "metrics")
#: Its repository is damaged on purpose; C{RAW} is written by a client of our own that keeps every acknowledgement.
DAMAGED, RAW = "carol/damaged", "bob/raw"
REPOSITORIES = ("alice/laptop", "alice/nas", "bob/desktop")
MOST_RAW = 1200
#: How much is damaged at most. A repair is an upload of what was there.
MOST_DAMAGED = 40
#: What refuses restic while the disk is full, and what it says after it was killed itself.
EXPECTED = re.compile(r"507|no space|Insufficient Storage|already locked|unable to create lock", re.IGNORECASE)
#: What it says of a server that is killed: restic 0.14 does not repeat its first requests. Workers whose parent was killed
#: answer 503 until they end, since the parent has the passwords.
GONE = re.compile(r"connection refused|connection reset|broken pipe|EOF|(passwords|quotas) cannot be checked now")


class Cleanups:
    """What is undone at the end; in place of a test case."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []

    def addCleanup(self, f: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call C{f} at the end."""
        self._calls.append(lambda: f(*args, **kwargs))

    def run(self) -> None:
        """The end."""
        while self._calls:
            self._calls.pop()()


@dataclass
class Notes:
    """What happened so far, from all threads."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, number: int = 1) -> None:
        """It happened again."""
        with self.lock:
            self.counts[what] += number

    def fail(self, what: str) -> None:
        """It must not happen."""
        with self.lock:
            self.failures.append(what)
        print(f"FAULT: {what}", flush=True)


@dataclass(frozen=True)
class Sample:
    """What a process has at one moment."""

    at_s: float
    role: str
    pid: int
    descriptors: int
    threads: int
    memory_kib: int


def sample_of(pid: int, role: str, at_s: float) -> Sample | None:
    """Of a process, if it is there."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = {name: int(value) for name, value in re.findall(r"^(Threads|RssAnon):\s+(\d+)", status, re.MULTILINE)}
    if "RssAnon" not in found:
        return None
    return Sample(at_s, role, pid, descriptors, found["Threads"], found["RssAnon"])


class Server:
    """
    The server under test, whichever process it is now.

    @ivar kept: the log lines of those before.
    @ivar calm: set when parent and oldest worker must not be killed any more.
    """

    def __init__(self, scratch: Path, notes: Notes) -> None:
        self._scratch = scratch
        self._notes = notes
        self.data = scratch / "disk" / "data"
        self.authority = Authority()
        self.certificate = make_certificate(scratch, self.authority)
        self.port = free_port()
        self.kept: list[str] = []
        self.lock = threading.RLock()
        self.calm = False
        self.delay_s = 60
        #: When connections broke the last time because of us, on the monotonic clock.
        self.broken_s = 0.0
        self.write_users()
        self.write_policy()
        self.flags = self._flags()
        self.process = self._start()

    def _flags(self) -> list[str]:
        flags = ["--path", str(self.data), "--listen", f"127.0.0.1:{self.port}", "--workers", "2"]
        flags += [*self.certificate.flags, "--htpasswd-file", str(self._scratch / "htpasswd"), "--prometheus"]
        flags += ["--policy", str(self._scratch / "policy.toml"), "--delete-delay", "30s", "--max-size", "2GiB"]
        flags += ["--log", str(self._scratch / "access.log")]
        usage = subprocess.run([*command_line("rest-server", []), "--help"], capture_output=True, text=True).stdout
        self.has_scrub = "--scrub-interval" in usage
        more = {
            "--scrub-interval": "2m",
            "--scrub-rate": "50M",
            "--max-connections": "500",
            "--max-connections-per-address": "400",
            "--max-uploads": "50",
            "--bandwidth": "200M",
        }
        for flag, value in more.items():
            if flag in usage:
                flags += [flag, value]
        return flags

    def _start(self) -> ServerProcess:
        process = ServerProcess(command_line("rest-server", self.flags), self._scratch)
        process.wait_for_line(LISTENING)
        return process

    # --- files that it reads again

    def write_users(self, more: int = 0) -> None:
        """The users, and some others that change."""
        lines = [bcrypt_line(user, PASSWORD) for user in USERS[:2]] + [sha_line(user, PASSWORD) for user in USERS[2:]]
        lines += [sha_line(f"extra{number}", "x") for number in range(more)]
        _replace(self._scratch / "htpasswd", "".join(lines))

    def write_policy(self) -> None:
        """The rules; what is kept for how long changes."""
        self.delay_s = 105 - self.delay_s
        _replace(
            self._scratch / "policy.toml",
            '[[rule]]\nusers = ["bob"]\nrepositories = ["bob/raw"]\nrights = "full"\ncreate = true\n'
            'delete-delay = "2d"\nquota = "400MiB"\n'
            f'[[rule]]\nusers = ["*"]\nrepositories = ["{{user}}/*"]\nrights = "full"\ncreate = true\n'
            f'delete-delay = "{self.delay_s}s"\nquota = "500MiB"\ntrash-counts = false\n'
            '[users.alice]\nquota = "1GiB"\n',
        )

    def renew_certificate(self) -> None:
        """New key and certificate of the same authority, by rename."""
        make_certificate(self._scratch, self.authority)

    # --- ends

    def kill_worker(self, source: random.Random) -> None:
        """kill -9 of one."""
        with self.lock:
            workers = self.process.workers()
            victims = workers[1:] if self.calm else workers
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(source.choice(victims), signal.SIGKILL)
                    self.broken_s = time.monotonic()
                    self._notes.count("workers killed")

    def replace(self, how: str) -> None:
        """The whole server ends, and another one starts."""
        with self.lock:
            workers = self.process.workers()
            if how == "stop":
                status = self.process.stop()
                if status != 0:
                    self._notes.fail(f"the server ended with status {status} after SIGTERM: {self.process.err[-3:]}")
            else:
                self.process.kill()
            if how == "kill all":
                for pid in workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            until = time.monotonic() + 30
            while any(map(is_running, workers)) and time.monotonic() < until:
                time.sleep(0.05)
            if any(map(is_running, workers)):
                self._notes.fail(f"workers outlived their parent by 30 s after {how}")
            self.kept += [*self.process.err, *self.process.out]
            self.process.clean_up()
            self.process = self._start()
            self.broken_s = time.monotonic()
            self._notes.count(f"server: {how}")

    def broke_since(self, seconds: float) -> bool:
        """Whether connections broke because of us within the last seconds."""
        with self.lock:  # it may be on its way
            return self.broken_s > time.monotonic() - seconds

    def hang_up(self) -> None:
        """SIGHUP."""
        with self.lock:
            self.process.signal(signal.SIGHUP)

    def samples(self, at_s: float) -> Iterator[Sample]:
        """Of all processes. The oldest worker is the one that is spared."""
        with self.lock:
            pids = [(self.process.pid, "parent")]
            pids += [(pid, "oldest worker" if n == 0 else "worker") for n, pid in enumerate(self.process.workers())]
        for pid, role in pids:
            sample = sample_of(pid, role, at_s)
            if sample is not None:
                yield sample

    def client(self, user: str) -> Client:
        """A connection."""
        return Client(("127.0.0.1", self.port), user, PASSWORD, self.certificate.client_context())

    def lines(self) -> list[str]:
        """All that was logged."""
        return [*self.kept, *self.process.err, *self.process.out]


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def free_port() -> int:
    """A port that is free now, and the same at each start."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Soak:
    """
    One run.

    @param seconds: how long.
    """

    def __init__(self, scratch: Path, seconds: float, seed: int) -> None:
        self.scratch = scratch
        self.seconds = seconds
        self.seed = seed
        self.notes = Notes()
        self.cleanups = Cleanups()
        self.stopping = threading.Event()
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        (scratch / "disk").mkdir()
        self.mounted = mount_disk(scratch / "disk")
        if self.mounted:
            self.cleanups.addCleanup(subprocess.run, ["umount", "--lazy", str(scratch / "disk")], check=False)
        self.server = Server(scratch, self.notes)
        self.cleanups.addCleanup(lambda: self.server.process.clean_up())

    def elapsed_s(self) -> float:
        """Since the begin."""
        return time.monotonic() - self.began

    def restic(self, repository: str) -> Restic:
        """A client of a repository."""
        directory = self.scratch / "clients" / repository.replace("/", "-")
        directory.mkdir(parents=True, exist_ok=True)
        user = repository.partition("/")[0]
        url = f"https://{user}:{PASSWORD}@127.0.0.1:{self.server.port}/{repository}/"
        return Restic(self.cleanups, url, directory, "--cacert", str(self.server.certificate.authority))

    def every(self, about_s: float, what: str, do: Callable[[random.Random], object]) -> threading.Thread:
        """Do something again and again, at random moments that are so long apart on average."""
        source = random.Random(f"{self.seed} {what}")

        def work() -> None:
            while not self.stopping.wait(source.uniform(0.5, 1.5) * about_s):
                try:
                    do(source)
                except Exception as error:
                    self.notes.fail(f"{what}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=work, name=what, daemon=True)
        thread.start()
        return thread

    # --- what disturbs

    def replace_server(self, source: random.Random) -> None:
        """Not in the calm part."""
        if not self.server.calm:
            self.server.replace(source.choice(["kill all", "kill the parent", "stop"]))

    def rewrite(self, source: random.Random) -> None:
        """Certificate, users or rules are new."""
        match source.randrange(4):
            case 0:
                self.server.renew_certificate()
                self.notes.count("certificates renewed")
            case 1:
                self.server.write_users(source.randrange(20))
                self.notes.count("htpasswd rewritten")
            case 2:
                self.server.write_policy()
                self.notes.count("policy rewritten")
            case _:
                self.server.hang_up()
                self.notes.count("SIGHUP")

    def fill_disk(self, source: random.Random) -> None:
        """The disk is full for some seconds."""
        if not self.mounted:
            return
        filler = self.scratch / "disk" / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(MIB))
                    file.flush()
            self.notes.count("disk filled")
            self.stopping.wait(source.uniform(2, 6))
        finally:
            filler.unlink(missing_ok=True)

    # --- the end

    def judge_growth(self) -> list[list[str]]:
        """Rows of a table: how much each process that was left alone has grown, by the minute and in all."""
        begin_s = self.calm_from_s + max(10.0, self.seconds / 10)  # caches fill at first
        rows = []
        for role in ("parent", "oldest worker"):
            calm = [one for one in self.samples if one.role == role and one.at_s >= begin_s]
            pids = Counter(one.pid for one in calm)
            if not pids:
                self.notes.fail(f"no samples of the {role}")
                continue
            pid = pids.most_common(1)[0][0]
            its = [one for one in calm if one.pid == pid]
            third = max(1, len(its) // 3)
            for what, most in MOST_MORE.items():
                values = [float(getattr(one, what)) for one in its]
                more = statistics.median(values[-third:]) - statistics.median(values[:third])
                slope = slope_of([one.at_s / 60 for one in its], values)
                if more > most:
                    self.notes.fail(f"{what} of the {role} grew by {more:g} in {its[-1].at_s - its[0].at_s:.0f} s")
                rows.append(
                    [
                        role,
                        what,
                        f"{values[0]:g}",
                        f"{values[-1]:g}",
                        f"{max(values):g}",
                        f"{slope:+.1f}",
                        str(len(its)),
                    ]
                )
        return rows

    @property
    def calm_from_s(self) -> float:
        """When the calm part begins."""
        return self.seconds * (1 - CALM_PART)

    def report(self) -> None:
        """How it goes."""
        latest = {one.pid: one for one in self.samples if one.at_s >= self.elapsed_s() - 2 * SAMPLE_S}
        processes = ", ".join(
            f"{one.role} {one.pid}: {one.descriptors} fds, {one.threads} threads, {one.memory_kib >> 10} MiB"
            for one in latest.values()
        )
        counts = ", ".join(f"{what} {number}" for what, number in sorted(self.notes.counts.items()))
        print(f"[{self.elapsed_s():5.0f} s] {processes}\n          {counts}", flush=True)


def mount_disk(path: Path) -> bool:
    """Mount a small file system for the data, if that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def slope_of(times: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through some points; 0 for too few."""
    return statistics.linear_regression(times, values).slope if len(set(times)) > 1 else 0.0


class ResticClient:
    """
    Real restic on one repository, and its own record.

    @ivar told: the snapshots that restic has said are stored, oldest first, each with what was in it.
    """

    def __init__(self, soak: Soak, repository: str) -> None:
        self._soak = soak
        self._notes = soak.notes
        self.repository = repository
        self._random = random.Random(f"{soak.seed} {repository}")
        self._restic = soak.restic(repository)
        self._tree = soak.scratch / "trees" / repository.replace("/", "-")
        make_tree(self._tree, self._random.randrange(1 << 30), TREE_BYTES)
        self._restic.create()
        self.told: dict[str, dict[str, str]] = {}
        self._began_s = 0.0

    def work(self) -> None:
        """Go on until the end."""
        while not self._soak.stopping.is_set():
            try:
                kind = self._random.choices(["backup", "forget", "restore", "check"], [6, 2, 1, 1])[0]
                getattr(self, f"_{kind}")()
            except Exception as error:
                self._notes.fail(f"{self.repository}: {type(error).__name__}: {error}")
            self._soak.stopping.wait(self._random.uniform(0.5, 3))

    def run(self, *arguments: str, may_kill: bool = True) -> Finished | None:
        """Run restic; C{None} if it was killed on the way."""
        self._began_s = time.monotonic()
        with self._restic.start(*arguments) as process:
            killer = None
            if may_kill and self._random.random() < 0.2:
                killer = threading.Timer(self._random.uniform(0.3, 3), process.kill)
                killer.start()
            try:
                out, err = process.communicate(timeout=400)
            except subprocess.TimeoutExpired:
                process.kill()
                self._notes.fail(f"{self.repository}: restic {arguments[0]} takes more than 400 s")
                return None
            if killer is not None:
                killer.cancel()
        if process.returncode == -signal.SIGKILL:
            self._notes.count("restic killed")
            self._restic.run("unlock")
            return None
        return Finished(process.returncode, out, err)

    def _done(self, finished: Finished | None, what: str) -> bool:
        """Whether a command has succeeded; if it failed, whether that may be."""
        if finished is None:
            return False
        if finished.status == 0:
            self._notes.count(f"restic {what}")
            return True
        is_gone = GONE.search(finished.err) and self._server_broke()
        if is_gone or EXPECTED.search(finished.err):
            self._notes.count(f"restic {what} refused")
            self._restic.run("unlock")
        else:
            self._notes.fail(f"{self.repository}: restic {what}: {finished.status} {finished.err.strip()[-800:]}")
        return False

    def _server_broke(self) -> bool:
        """Whether connections broke because of us since the command began."""
        with self._soak.server.lock:  # it may be on its way
            return self._soak.server.broken_s > self._began_s - 1

    def listed(self) -> list[str]:
        """The ids of the snapshots; asked again while the server is replaced."""
        for _ in range(8):
            self._began_s = time.monotonic()
            finished = self._restic.run("snapshots", "--json")
            if finished.status == 0:
                return [str(one["id"]) for one in json.loads(finished.out)]
            if not (EXPECTED.search(finished.err) or (GONE.search(finished.err) and self._server_broke())):
                break
            time.sleep(1)
        raise AssertionError(f"restic snapshots: {finished}")

    def change_tree(self) -> None:
        """Some files are new, and some are gone."""
        for _ in range(5):
            path = self._tree / "new" / f"{self._random.randrange(40)}.dat"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self._random.randbytes(self._random.randrange(200_000)))

    def _backup(self) -> None:
        self.change_tree()
        content = contents_below(self._tree)
        finished = self.run("backup", "--json", str(self._tree))
        if finished is not None and self._done(finished, "backup"):
            summary = json.loads(finished.out.strip().splitlines()[-1])
            full = [name for name in self.listed() if name.startswith(summary["snapshot_id"])]
            if not full:
                self._notes.fail(f"{self.repository}: snapshot {summary['snapshot_id']} was stored and is not listed")
                return
            self.told[full[0]] = content

    def _forget(self) -> None:
        if len(self.told) < 3:
            return
        old = list(self.told)[: len(self.told) - 2]
        # From now on they may be gone, whatever becomes of the command.
        for name in old:
            del self.told[name]
        self._done(self.run("forget", "--prune", *old), "forget --prune")

    def _restore(self) -> None:
        if self.told:
            self.restore(self._random.choice(list(self.told)), may_kill=True)

    def restore(self, name: str, may_kill: bool = False) -> None:
        """A snapshot has what it had when it was made."""
        with tempfile.TemporaryDirectory(dir=self._soak.scratch) as target:
            if self._done(self.run("restore", name, "--target", target, may_kill=may_kill), "restore"):
                restored = contents_below(Path(target) / self._tree.relative_to("/"))
                if restored != self.told[name]:
                    self._notes.fail(f"{self.repository}: snapshot {name} has other content than when it was stored")

    def _check(self) -> None:
        self._done(self.run("check"), "check")

    def judge(self) -> None:
        """At the end: the repository is whole, and has what it was told to have."""
        self._restic.run("unlock", "--remove-all")
        finished = self._restic.run("check", "--read-data")
        if finished.status != 0 or "no errors were found" not in finished.out:
            self._notes.fail(f"{self.repository}: check --read-data: {finished.err.strip()[-800:]}")
        left = set(self.listed())
        lost = set(self.told) - left
        if lost:
            self._notes.fail(f"{self.repository}: snapshots were acknowledged and are lost: {sorted(lost)}")
        self._notes.count("snapshots acknowledged and there", len(set(self.told) & left))
        for name in list(self.told)[-1:]:
            self.restore(name)


class RawClient:
    """
    Uploads and deletes objects, and keeps each acknowledgement.

    @ivar stored: what must be there, and C{deleted} what must be in the trash.
    """

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._random = random.Random(f"{soak.seed} raw")
        self.stored: dict[str, None] = {}
        self.deleted: set[str] = set()
        #: Its deletion was not answered: it may be in either place.
        self.either: set[str] = set()
        self._number = 0
        with soak.server.client("bob") as client:
            client.create_repository(f"/{RAW}/")

    def work(self) -> None:
        """Go on until the end."""
        while not self._soak.stopping.is_set():
            try:
                with self._soak.server.client("bob") as client:
                    while not self._soak.stopping.wait(0.1):
                        self._lock(client)
                        if self._soak.elapsed_s() > self._soak.seconds * self._number / MOST_RAW:
                            self._number += 1
                            self._one(client)
            except (OSError, http.client.HTTPException) as error:
                self._soak.notes.count(f"raw connections lost ({type(error).__name__})")
            except AssertionError as error:
                self._soak.notes.fail(f"{RAW}: {error}")
            self._soak.stopping.wait(0.2)

    def _lock(self, client: Client) -> None:
        """A lock is made, is in the list, and is removed; no trash has it."""
        body = self._random.randbytes(100)
        name = object_id(body)
        if not self._stored(client.post(f"/{RAW}/locks/{name}", body)):
            return
        if name not in client.list("locks", f"/{RAW}/"):
            self._soak.notes.fail(f"{RAW}: a lock is not in the list")
        client.delete(f"/{RAW}/locks/{name}")
        self._soak.notes.count("raw locks")

    def _stored(self, reply: Reply) -> bool:
        """Whether an upload was acknowledged; only a full disk refuses one, and workers whose parent was killed."""
        is_gone = reply.status == 503 and GONE.search(reply.reason) and self._soak.server.broke_since(30)
        if reply.status not in (200, 507) and not is_gone:
            self._soak.notes.fail(f"{RAW}: an upload was answered {reply.status} {reply.reason}")
        if reply.status != 200:
            self._soak.notes.count("raw uploads refused")
        return reply.status == 200

    def _one(self, client: Client) -> None:
        body = self._random.randbytes(self._random.choice([1000, 50_000, 300_000]))
        name = object_id(body)
        if self._stored(client.post(f"/{RAW}/data/{name}", body)):
            self.stored[name] = None
            self._soak.notes.count("raw uploads acknowledged")
        if self.stored and self._random.random() < 0.3:
            name = self._random.choice(list(self.stored)[-20:])
            del self.stored[name]
            self.either.add(name)
            reply = client.delete(f"/{RAW}/data/{name}")
            if reply.status == 200:
                self.either.discard(name)
                self.deleted.add(name)
                self._soak.notes.count("raw deletions acknowledged")

    def judge(self) -> None:
        """Everything acknowledged is where it must be, with its bytes."""
        notes, data = self._soak.notes, self._soak.server.data / RAW
        with self._soak.server.client("bob") as client:
            listed = client.list("data", f"/{RAW}/")
        lost = [name for name in self.stored if name not in listed]
        back = [name for name in self.deleted if name in listed]
        wrong = [name for name in listed if hash_of_file(object_path(data, "data", name)) != name]
        trash = {path.name for path in data.glob(".trash/*/data*/*")}
        gone = [name for name in self.deleted if name not in trash]
        gone += [name for name in self.either if name not in trash and name not in listed]
        for what, names in (("lost", lost), ("back", back), ("damaged", wrong), ("not in the trash", gone)):
            if names:
                notes.fail(f"{RAW}: {len(names)} objects are {what}: {names[:3]}")
        notes.count("raw objects there", len(listed))
        notes.count("raw objects in the trash", len(self.deleted))


class Damager:
    """Damages packs of one repository, and repairs some by an upload; the others must be found."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._restic = soak.restic(DAMAGED)
        self._directory = soak.server.data / DAMAGED
        self._restic.create()
        tree = soak.scratch / "trees" / "damaged"
        for number in range(4):
            make_tree(tree / str(number), number, 6 * MIB)
            self._restic.succeed("backup", str(tree / str(number)))
        self.packs = {path.name: path.read_bytes() for path in sorted(self._directory.glob("data/*/*"))}
        self.damaged: set[str] = set()

    def damage(self, source: random.Random) -> None:
        """Flip a bit, or cut; or repair one."""
        if self.damaged and source.random() < 0.25:
            self._repair(source.choice(sorted(self.damaged)))
            return
        whole = sorted(set(self.packs) - self.damaged)
        if len(whole) <= 2 or len(self.damaged) >= MOST_DAMAGED:
            return
        name = source.choice(whole)
        path = object_path(self._directory, "data", name)
        content = bytearray(self.packs[name])
        place = source.randrange(len(content))
        with path.open("r+b") as file:
            if source.random() < 0.3:
                file.truncate(place)
            else:
                file.seek(place)
                file.write(bytes([content[place] ^ 1 << source.randrange(8)]))
        self.damaged.add(name)
        self._soak.notes.count("packs damaged")

    def _repair(self, name: str) -> None:
        try:
            with self._soak.server.client("carol") as client:
                reply = client.post(f"/{DAMAGED}/data/{name}", self.packs[name])
        except Exception:
            return
        if reply.status == 200:
            if object_path(self._directory, "data", name).read_bytes() != self.packs[name]:
                self._soak.notes.fail(f"{DAMAGED}: a repair of {name} was acknowledged and is not there")
            self.damaged.discard(name)
            self._soak.notes.count("packs repaired")

    def judge(self) -> None:
        """Real restic names each damaged pack, and so does a scrub, where there is one."""
        notes = self._soak.notes
        found = self._restic.run("check", "--read-data")
        said = found.out + found.err
        missed = [name for name in self.damaged if name[:8] not in said]
        if missed:
            notes.fail(f"{DAMAGED}: check --read-data did not name {missed}")
        with self._soak.server.client("carol") as client:
            sizes = client.list("data", f"/{DAMAGED}/")
        cut = {name for name in self.damaged if sizes.get(name) != len(self.packs[name])}
        notes.count("damage found by check", len(self.damaged) - len(missed))
        notes.count("of that by the size in a list", len(cut))
        if self._soak.server.has_scrub:
            server = self._soak.server
            command = [*command_line("rest-server", []), "scrub", "--path", str(server.data), "--json"]
            scrubbed = subprocess.run(command, capture_output=True, text=True, cwd=self._soak.scratch)
            try:
                problems = json.loads(scrubbed.stdout)["problems"]
            except ValueError:
                notes.fail(f"scrub: {scrubbed.returncode} {scrubbed.stderr[-500:]}")
                return
            found_names = {one["name"] for one in problems if one["repository"] == DAMAGED}
            missed = [name for name in self.damaged if name not in found_names]
            wrong = [one for one in problems if one["repository"] != DAMAGED or one["name"] not in self.damaged]
            if missed or wrong:
                notes.fail(f"scrub did not name {missed}, and named {wrong[:5]}")
            notes.count("damage found by scrub", len(self.damaged) - len(missed))


def judge_server(soak: Soak) -> None:
    """Nothing half-written is left, what is booked is what is there, and nothing unexpected was logged."""
    server, notes = soak.server, soak.notes
    left = [str(path) for path in server.data.glob("**/.tmp/*")]
    half = server.process.open_files_below(server.data)
    half = [path for path in half if "/.rest-server/" not in path]
    if left or half:
        notes.fail(f"uploads are half-written: {left[:5]} {half[:5]}")
    stored_bytes = -1
    booked = ""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        stored_bytes = sum(
            path.stat().st_size
            for path in server.data.glob("*/*/**/*")
            if path.is_file() and ".trash" not in path.parts and (len(path.name) == 64 or path.name == "config")
        )
        with server.client("metrics") as client:
            page = client.get("/metrics").body.decode()
        sizes = re.findall(r"^rest_server_repository_size_bytes\{[^}]*\} ([0-9.e+]+)$", page, re.MULTILINE)
        booked = str(int(sum(map(float, sizes))))
        if booked == str(stored_bytes):
            break
        time.sleep(1)
    else:
        notes.fail(f"{booked} bytes are booked, and {stored_bytes} are stored")
    notes.count("bytes booked and stored", stored_bytes)


def judge_lines(soak: Soak) -> None:
    """What was logged in all."""
    lines = soak.server.lines()
    bad = [n for n, line in enumerate(lines) if re.search(r"Traceback|Unhandled|panic|cannot clean up", line)]
    for number in bad[:5]:
        soak.notes.fail("logged: " + " | ".join(lines[max(0, number - 2) : number + 12]))
    (soak.scratch / "server.log").write_text("\n".join(lines))
    soak.notes.count("lines logged", len(lines))


def run(soak: Soak) -> None:
    """All of it."""
    clients = [ResticClient(soak, repository) for repository in REPOSITORIES]
    raw, damager = RawClient(soak), Damager(soak)
    soak.began = time.monotonic()
    print(
        f"{len(clients)} restic clients, data on {'a small tmpfs' if soak.mounted else 'no disk of its own'}",
        flush=True,
    )
    works: list[tuple[str, Callable[[], None]]] = [(one.repository, one.work) for one in clients]
    works.append((RAW, raw.work))
    threads = [threading.Thread(target=work, name=name, daemon=True) for name, work in works]
    for thread in threads:
        thread.start()
    threads += [
        soak.every(12, "kill a worker", soak.server.kill_worker),
        soak.every(35, "replace the server", soak.replace_server),
        soak.every(6, "rewrite files", soak.rewrite),
        soak.every(40, "fill the disk", soak.fill_disk),
        soak.every(5, "damage", damager.damage),
    ]
    reported_s = 0.0
    while soak.elapsed_s() < soak.seconds:
        if soak.elapsed_s() >= soak.calm_from_s and not soak.server.calm:
            with soak.server.lock:
                soak.server.calm = True
        soak.samples += soak.server.samples(soak.elapsed_s())
        if soak.elapsed_s() - reported_s >= REPORT_S:
            reported_s = soak.elapsed_s()
            soak.report()
        time.sleep(SAMPLE_S)
    soak.stopping.set()
    print("stopping the clients", flush=True)
    for thread in threads:
        thread.join(500)
        if thread.is_alive():
            soak.notes.fail(f"{thread.name} does not end")
    soak.samples += soak.server.samples(soak.elapsed_s())
    soak.server.replace("stop")
    for client in clients:
        client.judge()
    raw.judge()
    damager.judge()
    judge_server(soak)
    status = soak.server.process.stop()
    if status != 0:
        soak.notes.fail(f"the server ended with status {status}")
    judge_lines(soak)


def print_report(soak: Soak, rows: Sequence[Sequence[str]]) -> None:
    """The table, and the faults."""
    print(f"\n{'process':14} {'what':12} {'first':>9} {'last':>9} {'most':>9} {'a minute':>9} {'samples':>8}")
    for row in rows:
        print(f"{row[0]:14} {row[1]:12} {row[2]:>9} {row[3]:>9} {row[4]:>9} {row[5]:>9} {row[6]:>8}")
    print()
    for what, number in sorted(soak.notes.counts.items()):
        print(f"{number:>12}  {what}")
    print(f"\n{len(soak.notes.failures)} faults in {soak.elapsed_s():.0f} s, seed {soak.seed}")
    for failure in soak.notes.failures:
        print(f"  {failure}")


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description="a server under everything at once")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="where to write the samples")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args(arguments)
    if RESTIC is None or not Path("/proc/self/fd").is_dir():
        print("restic and Linux's /proc are needed", file=sys.stderr)
        return 2
    # Clients share the cores with the server.
    os.environ.setdefault("GOMAXPROCS", "1")
    print(f"testing {Path(resticserver.__file__).parent} for {asked.minutes:g} minutes, seed {asked.seed}", flush=True)
    scratch = Path(tempfile.mkdtemp(prefix="rest-server-soak-"))
    soak = Soak(scratch, asked.minutes * 60, asked.seed)
    try:
        run(soak)
        rows = soak.judge_growth()
        print_report(soak, rows)
    finally:
        soak.stopping.set()
        soak.cleanups.run()
    if asked.json is not None:
        document = {
            "seed": asked.seed,
            "faults": soak.notes.failures,
            "counts": soak.notes.counts,
            "growth": rows,
            "samples": [vars(one) for one in soak.samples],
        }
        asked.json.write_text(json.dumps(document, indent=1) + "\n")
    if soak.notes.failures:
        print(f"the server's log and the clients' files are in {scratch}")
        return 1
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
