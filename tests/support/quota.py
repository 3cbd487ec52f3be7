"""
What the tests of quotas need: a count of what is stored that owes nothing to the server's own, storms of clients, a look at
the directory while they rage, small file systems, a restic that can be interrupted.
"""

from __future__ import annotations

# Not its names: trial takes a module attribute "suppress" for a list of warnings to suppress.
import contextlib
import functools
import hashlib
import http.client
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from .client import Client, Reply, connect, object_id, random_bytes, reset
from .scratch import Cleans, object_path, scratch_directory
from .server import ServerProcess, start_server
from .waiting import PATIENCE_S, wait_until

MIB = 1 << 20
#: What may go above a limit, by a reserve.
WITH_RESERVE = frozenset(("locks", "index"))
#: Uploads that were refused for want of space, and what is said then.
REFUSED = 507

_OBJECT = re.compile(
    r"(?:[^/]+/)*?(?:(?P<config>config)|(?P<kind>keys|locks|snapshots|index)/[0-9a-f]{64}"
    r"|(?P<data>data)/(?P<prefix>[0-9a-f]{2})/(?P=prefix)[0-9a-f]{62})"
)
#: What the server keeps for itself below the data directory.
_OWN = ".rest-server/"


def reserve_of(limit_bytes: int) -> int:
    """How much locks and indexes may go above a limit."""
    return min(limit_bytes // 100, 1 << 30)


def kind_of(relative: str) -> str | None:
    """The type of the object that a path below the data directory is; C{None} if it is none."""
    match = _OBJECT.fullmatch(relative)
    return None if match is None else match["config"] or match["kind"] or match["data"]


def _sizes(data: Path) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(data):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                yield os.path.relpath(path, data), os.stat(path).st_size


def stored(data: Path, below: str = "") -> dict[str, int]:
    """The objects on disk with their sizes, by relative path; those below a folder, or all."""
    return {path: size for path, size in _sizes(data) if kind_of(path) and path.startswith(below)}


def surplus(data: Path) -> list[str]:
    """Files that are neither objects nor the server's own, such as unfinished uploads."""
    return sorted(path for path, _ in _sizes(data) if kind_of(path) is None and not path.startswith(_OWN))


def used(data: Path, below: str = "") -> int:
    """The bytes of all objects on disk."""
    return sum(stored(data, below).values())


@functools.cache
def _base() -> bytes:
    return random_bytes(seed=7, length=4 * MIB)


def seed_of(*parts: object) -> int:
    """A seed for L{body_of}, another one for other parts."""
    return random.Random(repr(parts)).getrandbits(60)


def body_of(seed: int, length: int) -> bytes:
    """Bytes for a seed, other ones for each, without the cost of making so many."""
    begin = hashlib.sha256(b"%d" % seed).digest()[:length]
    base = _base()
    rest = length - len(begin)
    whole, left = divmod(rest, len(base))
    return b"".join((begin, *[base] * whole, base[:left]))


def pieces(body: bytes, source: random.Random) -> Iterator[bytes]:
    """A body in pieces of all sizes, to be sent in chunks."""
    at = 0
    while at < len(body):
        length = int(2 ** source.uniform(0, 18))
        yield body[at : at + length]
        at += length


@contextlib.contextmanager
def frozen(server: ServerProcess) -> Iterator[None]:
    """While none of the server's processes runs: what is on disk is of one moment."""
    pids = [server.pid, *server.workers()]
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        while any(_is_running(pid) for pid in pids):
            time.sleep(0.0005)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _is_running(pid: int) -> bool:
    """Whether any thread of a process may still do something."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state = Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(") ")[2][0]
                if state not in "TtZX":
                    return True
    return False


class Watch:
    """
    Looks at what is stored again and again, from entering to leaving.

    Without C{server} it looks while everything goes on: then nothing may be removed meanwhile, or what it adds up may never
    have been there at once. With it the server stands still for each look.

    @ivar bulk_bytes: the most of all but locks and indexes, and C{all_bytes} the most of everything.
    @ivar looks: how often it looked.
    """

    def __init__(self, data: Path, server: ServerProcess | None = None, pause_s: float = 0.0) -> None:
        self._data = data
        self._server = server
        self._pause_s = pause_s
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self.bulk_bytes = self.all_bytes = self.looks = 0

    def __enter__(self) -> Self:
        self._done = self._threads.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._threads.shutdown()
        if error is None:
            self._done.result()
            self._look()

    def _run(self) -> None:
        while not self._over.wait(self._pause_s):
            if self._server is None:
                self._look()
            else:
                with frozen(self._server):
                    self._look()

    def _look(self) -> None:
        found = stored(self._data)
        self.looks += 1
        self.all_bytes = max(self.all_bytes, sum(found.values()))
        self.bulk_bytes = max(
            self.bulk_bytes, sum(size for path, size in found.items() if kind_of(path) not in WITH_RESERVE)
        )


@dataclass(frozen=True)
class Known:
    """An object that a storm has made."""

    repository: str
    kind: str
    seed: int
    length: int

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return body_of(self.seed, self.length)


@dataclass
class Storm:
    """
    Clients that do all sorts of things at once, each on a connection of its own.

    @ivar actions: what they do and how often each beside the others: C{upload} something new, the same as others at the same
        time (C{twin}), something that was there before (C{again}), C{delete}, C{cut} an upload off, damage a stored file and
        C{heal} it by an upload.
    @ivar repositories: where, with a slash at both ends.
    @ivar longest: of an object, in bytes.
    @ivar longer: whether damage may also make a file longer.
    @ivar tolerant: whether connections may break.
    @ivar statuses: how often each action had each status.
    @ivar damaged: paths that are damaged at this moment.
    """

    server: ServerProcess
    data: Path
    seed: int
    actions: Mapping[str, int]
    clients: int = 16
    repositories: Sequence[str] = ("/",)
    longest: int = MIB
    longer: bool = False
    tolerant: bool = False
    user: str | None = None
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    damaged: set[Path] = field(default_factory=set)
    _known: dict[str, Known] = field(default_factory=dict)
    _used: Counter[str] = field(default_factory=Counter)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)
    _running: list[Future[None]] = field(default_factory=list)

    def begin(self) -> None:
        """Let it begin."""
        self._port = self.server.port
        self._threads = ThreadPoolExecutor(self.clients)
        self._over.clear()
        self._running = [self._threads.submit(self._work, number) for number in range(self.clients)]

    def end(self) -> None:
        """Let each client come to the end of what it does; raises what one of them raised."""
        self._over.set()
        self._threads.shutdown()
        running, self._running = self._running, []
        for future in running:
            future.result()

    def rage(self, seconds: float, until: Callable[[], object] = lambda: True) -> None:
        """From its beginning to its end: so many seconds, and longer where something has not come about yet."""
        self.begin()
        try:
            self._over.wait(seconds)
            wait_until(lambda: self._over.is_set() or until(), what="what the storm is for")
        finally:
            self.end()

    def count(self, status: int) -> int:
        """How many requests had a status."""
        return sum(number for (_, each), number in self.statuses.items() if each == status)

    def _work(self, number: int) -> None:
        source = random.Random(f"{self.seed} {number}")
        names, weights = list(self.actions), list(self.actions.values())
        with Client(("127.0.0.1", self._port), self.user, self.user or "") as client:
            while not self._over.is_set():
                action = source.choices(names, weights)[0]
                try:
                    getattr(self, f"_{action}")(client, source)
                except (OSError, http.client.HTTPException) as error:
                    if not self.tolerant:
                        self._over.set()
                        raise AssertionError(f"{action} had no answer: {error!r}") from error
                    client.close()
                    # Nobody may be there to answer.
                    self._over.wait(0.02)
                except BaseException:
                    self._over.set()
                    raise

    def _new(self, source: random.Random, seed: int) -> Known:
        kind = source.choices(("data", "index", "locks", "snapshots", "keys"), (80, 6, 8, 3, 3))[0]
        if source.random() < 0.5:
            length = source.randrange(1, self.longest + 1)
        else:
            # Small ones too, evenly by magnitude: they are what comes close to a limit.
            length = int(self.longest ** source.random())
        return Known(source.choice(self.repositories), kind, seed, length)

    def _send(self, action: str, client: Client, known: Known, source: random.Random) -> int:
        body = known.body
        name = object_id(body)
        in_chunks = source.random() < 0.5
        reply = client.post(f"{known.repository}{known.kind}/{name}", pieces(body, source) if in_chunks else body)
        self._count(action, reply)
        if reply.status == 200:
            with self._guard:
                self._known[f"{known.repository}{known.kind}/{name}"] = known
        return reply.status

    def _count(self, action: str, reply: Reply) -> None:
        with self._guard:
            self.statuses[action, reply.status] += 1
        if reply.status >= 500 and reply.status != REFUSED and not self.tolerant:
            raise AssertionError(f"{action}: {reply.status} {reply.reason}")

    @contextlib.contextmanager
    def _some(self, source: random.Random, alone: bool = False) -> Iterator[tuple[str, Known] | None]:
        """
        Something that is or was there; C{None}, if nothing can be had.

        @param alone: nobody else does anything with it meanwhile.
        """
        chosen = None
        with self._guard:
            if self._known:
                path = source.choice(list(self._known))
                if self._used[path] >= 0 and not (alone and self._used[path]):
                    self._used[path] = -1 if alone else self._used[path] + 1
                    chosen = path, self._known[path]
        try:
            yield chosen
        finally:
            if chosen is not None:
                with self._guard:
                    self._used[chosen[0]] = 0 if alone else self._used[chosen[0]] - 1

    def _upload(self, client: Client, source: random.Random) -> None:
        self._send("upload", client, self._new(source, source.getrandbits(60)), source)

    def _twin(self, client: Client, source: random.Random) -> None:
        # What everybody sends in these 50 ms.
        seed = int(time.monotonic() * 20)
        self._send("twin", client, self._new(random.Random(seed), seed), source)

    def _again(self, client: Client, source: random.Random) -> None:
        with self._some(source) as some:
            if some is not None:
                self._send("again", client, some[1], source)

    def _delete(self, client: Client, source: random.Random) -> None:
        with self._some(source) as some:
            if some is not None:
                self._count("delete", client.delete(some[0]))

    def _cut(self, client: Client, source: random.Random) -> None:
        known = self._new(source, source.getrandbits(60))
        body = known.body
        framing = f"Content-Length: {len(body)}"
        if source.random() < 0.5:
            framing = "Transfer-Encoding: chunked"
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces(body, source))
        head = f"POST {known.repository}{known.kind}/{object_id(known.body)} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
        connection = connect(("127.0.0.1", self._port))
        with connection, contextlib.suppress(ConnectionError):
            # Seldom before the body, often before its very end.
            connection.sendall(head.encode("ascii") + body[: max(len(body) - source.choice((1, len(body) // 2)), 0)])
            if source.random() < 0.5:
                reset(connection)

    def _heal(self, client: Client, source: random.Random) -> None:
        with self._some(source, alone=True) as some:
            if some is None:
                return
            path, known = some
            name = path.rpartition("/")[2]
            file = object_path(self.data / known.repository.strip("/"), known.kind, name)
            if not file.exists():
                return
            length = source.randrange(known.length * 2) if self.longer else source.randrange(known.length)
            self.damaged.add(file)
            os.truncate(file, length)
            if length == known.length:
                with file.open("r+b") as opened:
                    opened.write(bytes([known.body[0] ^ 1]))
            # It may need the room of both for a moment, so until there is some others must go.
            while self._send("heal", client, known, source) == REFUSED and not self._over.is_set():
                self._delete(client, source)
            if hashlib.sha256(file.read_bytes()).hexdigest() != name:
                client.delete(path)
                # So far nobody has told the server of the damage; this it can see.
                file.unlink(missing_ok=True)
            self.damaged.discard(file)


def settle(server: ServerProcess, data: Path) -> None:
    """Wait until no upload is on its way any more."""
    own = f"{data}/{_OWN}"
    wait_until(
        lambda: not [path for path in server.open_files_below(data) if not path.startswith(own)], what="closed files"
    )


def make_room(client: Client, data: Path, limit_bytes: int, wanted_bytes: int, below: str = "") -> None:
    """
    Remove locks and indexes, and then others, until so much may be stored again.

    @param below: the folder that the limit is for; else it is for everything.
    """
    found = stored(data, below)
    left = limit_bytes - sum(found.values())
    for path in sorted(found, key=lambda path: (kind_of(path) not in WITH_RESERVE, found[path])):
        if left >= wanted_bytes and kind_of(path) not in WITH_RESERVE:
            break
        # The folder below data is not in the object's address.
        reply = client.delete("/" + re.sub(r"(^|/)data/../", r"\1data/", path))
        if reply.status != 200:
            raise AssertionError(f"DELETE {path}: {reply.status} {reply.reason}")
        left += found[path]


def assert_exact(
    client: Client,
    data: Path,
    limit_bytes: int,
    *,
    repository: str = "/",
    below: str = "",
    patience_s: float = PATIENCE_S,
) -> None:
    """
    What may still be stored is the limit less what is on disk, to the byte; and for locks the reserve more.

    One byte too many is never taken. What fits is taken in C{patience_s}: reservations of connections that were cut are
    given back a moment later, and a directory that was changed by others is not read more than once in a few seconds.

    @param below: the folder that the limit is for; else it is for everything.
    @raise AssertionError: not so.
    """
    make_room(client, data, limit_bytes, 1, below)
    remaining = limit_bytes - used(data, below)
    reserve = reserve_of(limit_bytes)
    said = f"{used(data, below):,} of {limit_bytes:,} bytes are stored, {remaining:,} are left"

    @functools.cache
    def made(seed: int, length: int) -> tuple[str, bytes]:
        # Most of the quota, and sent several times.
        body = body_of(seed_of("exact", seed), length)
        return object_id(body), body

    def store(seed: int, length: int, kind: str = "data") -> tuple[str, Reply]:
        name, body = made(seed, length)
        path = f"{repository}{kind}/{name}"
        return path, client.post(path, body)

    def refuse(seed: int, length: int, kind: str, when: str) -> None:
        path, reply = store(seed, length, kind)
        if reply.status != REFUSED:
            client.delete(path)
            raise AssertionError(f"{kind} of {length:,} bytes {when}: {reply.status} {reply.reason}; {said}")

    def take(seed: int, length: int, kind: str, when: str) -> str:
        until = time.monotonic() + patience_s
        while (got := store(seed, length, kind))[1].status != 200:
            if time.monotonic() > until:
                reply = got[1]
                raise AssertionError(f"{kind} of {length:,} bytes {when}: {reply.status} {reply.reason}; {said}")
            time.sleep(0.05)
        return got[0]

    refuse(1, remaining + 1, "data", "and so one too many")
    exact = take(2, remaining, "data", "and so just right")
    try:
        if limit_bytes != used(data, below):
            raise AssertionError(f"{used(data, below):,} bytes are stored")
        refuse(3, 1, "data", "when it was full")
        refuse(4, reserve + 1, "locks", "when it was full")
        lock = take(5, reserve, "locks", "when it was full")
        refuse(6, 1, "locks", "when even the reserve was full")
        for path in (lock, exact):
            reply = client.delete(path)
            if reply.status != 200:
                raise AssertionError(f"DELETE {path}: {reply.status} {reply.reason}")
        take(2, remaining, "data", "after it had been removed")
    finally:
        client.delete(exact)


def start_on_tmpfs(test: Cleans, size: str, *flags: str) -> tuple[ServerProcess, Path]:
    """
    A server whose data directory is a small file system of its own, which nobody else sees.

    @param size: as C{mount} takes it.
    @return: the server, and its data directory as it can be seen from here.
    """
    mount_point = scratch_directory(test) / "mounted"
    mount_point.mkdir()
    script = f'mount -t tmpfs -o size={size},mode=0700 tmpfs "{mount_point}" && exec "$@"'
    wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    server = start_server(test, mount_point / "data", *flags, wrapper=wrapper)
    return server, Path(f"/proc/{server.pid}/root{mount_point}/data")


def why_no_tmpfs() -> str | None:
    """Why there are no mount namespaces here, or C{None}."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
    )
    return None if tried.returncode == 0 else "mount namespaces need more rights than the tests have"
