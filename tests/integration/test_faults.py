"""
Clients that break off, servers that are killed, and many of everything at once: nothing wrong may become visible, nothing
may be left over, nobody may get another's bytes.
"""

from __future__ import annotations

# Not its names: trial takes a module attribute "suppress" for a list of warnings to suppress.
import contextlib
import http.client
import json
import random
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.names import TYPES

from ..support.certificates import make_certificate
from ..support.client import (
    LIST_V2,
    Client,
    Reply,
    authorization,
    connect,
    object_id,
    random_bytes,
    read_reply,
    reset,
)
from ..support.faults import traced, why_no_faults
from ..support.htpasswd import bcrypt_line, sha_line
from ..support.scratch import files_below, hash_of_file, object_path, scratch_directory
from ..support.server import TWISTD, ServerProcess, start_server
from ..support.waiting import wait_until

MIB = 1 << 20


def in_parallel(count: int, job: Callable[[int], None]) -> None:
    """Run C{job(0)} to C{job(count - 1)} at once; raises what one of them raised."""
    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(job, number) for number in range(count)]:
            future.result()


def upload_head(name: str, framing: str, kind: str = "data", headers: str = "") -> bytes:
    """The head of an upload's request; C{framing} is its header line for the length."""
    return f"POST /{kind}/{name} HTTP/1.1\r\nHost: localhost\r\n{headers}{framing}\r\n\r\n".encode("ascii")


def chunked(body: bytes, size_bytes: int) -> bytes:
    """A body in chunks, to its end."""
    pieces = [body[first : first + size_bytes] for first in range(0, len(body), size_bytes)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


class CutUploadTests(SynchronousTestCase):
    """An upload that breaks off, wherever that is."""

    BODY = random_bytes(seed=1, length=1_200_000)

    def setUp(self) -> None:
        self.data = scratch_directory(self) / "data"
        self.server = start_server(self, self.data)
        with self.server.client() as client:
            client.create_repository()

    def cuts(self, request: bytes) -> Iterator[int]:
        """Where to cut: in the request line, in the header, at its end, all over the body, before the last byte."""
        head = request.index(b"\r\n\r\n") + 4
        yield from (0, 1, 10, head - 30, head - 2, head - 1, head, head + 1, head + 3)
        source = random.Random(len(request))
        yield from (source.randrange(head, len(request)) for _ in range(8))
        yield from (len(request) - 65536, len(request) - 7, len(request) - 2, len(request) - 1)

    def assert_nothing_left(self) -> None:
        """No file has appeared, and the server has closed whatever it had open."""
        wait_until(lambda: not self.server.open_files_below(self.data), what="closed files")
        self.assertEqual(files_below(self.data), set())

    def assert_serves(self) -> None:
        """The same upload, whole, is taken and comes back."""
        with self.server.client() as client:
            name = client.save("data", self.BODY)
            self.assertEqual(client.get(f"/data/{name}").body, self.BODY)
            self.assertEqual(client.list("data"), {name: len(self.BODY)})

    def cut_everywhere(self, request: bytes) -> None:
        """Send the beginning of a request and break off, in each of the ways there are."""
        for cut in self.cuts(request):
            for end in (socket.socket.close, reset, _close_half):
                connection = connect(("127.0.0.1", self.server.port))
                self.addCleanup(connection.close)
                with contextlib.suppress(ConnectionError):  # the server may have refused the torn header already
                    connection.sendall(request[:cut])
                end(connection)
                if end is _close_half:
                    # This client still listens, so it must learn that nothing was stored.
                    self.assertFalse(_answer_to_half(connection).startswith(b"HTTP/1.1 200"), f"cut at {cut}")
        self.assert_nothing_left()
        self.assert_serves()

    def test_with_content_length(self) -> None:
        """21 places, each closed, reset and half-closed."""
        head = upload_head(object_id(self.BODY), f"Content-Length: {len(self.BODY)}")
        self.cut_everywhere(head + self.BODY)

    def test_in_chunks(self) -> None:
        """The same for a chunked body: its last chunk is what says that it is whole."""
        head = upload_head(object_id(self.BODY), "Transfer-Encoding: chunked")
        self.cut_everywhere(head + chunked(self.BODY, 32_768))

    def test_config(self) -> None:
        """The config has no hash that could tell a part from the whole, so here the framing alone protects."""
        body = random_bytes(seed=2, length=155)
        request = b"POST /config HTTP/1.1\r\nHost: localhost\r\nContent-Length: 155\r\n\r\n" + body
        for cut in range(len(request) - 155, len(request), 14):
            with connect(("127.0.0.1", self.server.port)) as connection:
                connection.sendall(request[:cut])
                _close_half(connection)
                self.assertFalse(_answer_to_half(connection).startswith(b"HTTP/1.1 200"), f"cut at {cut}")
        self.assert_nothing_left()
        with self.server.client() as client:
            self.assertEqual(client.get("/config").status, 404)
            self.assertEqual(client.post("/config", body).status, 200)

    def test_healing_that_is_cut(self) -> None:
        """The damaged object that an upload was to heal stays as it was, and a whole upload heals it."""
        with self.server.client() as client:
            name = client.save("data", self.BODY)
        path = object_path(self.data, "data", name)
        path.write_bytes(b"damaged")
        request = upload_head(name, f"Content-Length: {len(self.BODY)}") + self.BODY
        for cut in self.cuts(request):
            with connect(("127.0.0.1", self.server.port)) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(request[:cut])
        wait_until(lambda: not self.server.open_files_below(self.data), what="closed files")
        self.assertEqual(files_below(self.data), {f"data/{name[:2]}/{name}"})
        self.assertEqual(path.read_bytes(), b"damaged")
        self.assert_serves()


def _close_half(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def _answer_to_half(connection: socket.socket) -> bytes:
    """Whatever comes until the server closes too."""
    answer = b""
    with connection, contextlib.suppress(ConnectionError):
        while received := connection.recv(65536):
            answer += received
    return answer


class KilledServerTests(SynchronousTestCase):
    """C{kill -9} of the server while five clients upload."""

    UPLOADERS = 5
    PIECE_BYTES = 64 << 10

    def setUp(self) -> None:
        self.random = random.Random(3)
        self.data = scratch_directory(self, 256 * MIB) / "data"
        self.server = start_server(self, self.data)

    def kill_in_mid_upload(self, repository: str, size_bytes: int, kill_after_bytes: int) -> set[str]:
        """
        Let five clients upload until so many bytes are sent in all, kill the server at that byte, start another.

        @return: the names that were acknowledged.
        """
        server = self.server
        acknowledged: set[str] = set()
        base = random_bytes(self.random.getrandbits(32), size_bytes)
        sent_bytes = 0
        lock = threading.Lock()

        def upload(number: int) -> None:
            nonlocal sent_bytes
            with (
                contextlib.suppress(ConnectionError, http.client.HTTPException),
                connect(("127.0.0.1", server.port)) as connection,
            ):
                while server.process.poll() is None:
                    # Another name each time, without the cost of new random bytes.
                    body = secrets.token_bytes(16) + base[16:]
                    name = object_id(body)
                    head = f"POST {repository}data/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(head.encode("ascii"))
                    for first in range(0, len(body), self.PIECE_BYTES):
                        connection.sendall(body[first : first + self.PIECE_BYTES])
                        with lock:
                            sent_bytes += min(self.PIECE_BYTES, len(body) - first)
                            if sent_bytes >= kill_after_bytes:
                                server.process.kill()
                    if read_reply(connection, "POST").status != 200:
                        raise AssertionError("refused")
                    acknowledged.add(name)

        with server.client() as client:
            client.create_repository(repository)
        in_parallel(self.UPLOADERS, upload)
        server.wait()
        self.server = start_server(self, self.data)
        return acknowledged

    def assert_sound(self, repository: str, acknowledged: set[str]) -> int:
        """
        Every listed object has the hash of its name, what was acknowledged is listed, and no other file is there.

        @return: how many objects there are.
        """
        with self.server.client() as client:
            listed = client.list("data", repository)
            for name, size in listed.items():
                reply = client.get(f"{repository}data/{name}")
                self.assertEqual((reply.status, object_id(reply.body), len(reply.body)), (200, name, size))
        self.assertEqual(acknowledged - set(listed), set(), "acknowledged and lost")
        directory = self.data / repository.strip("/")
        self.assertEqual(files_below(directory), {f"data/{name[:2]}/{name}" for name in listed})
        return len(listed)

    def rounds(self, count: int, size_bytes: int, most_bytes: int) -> None:
        """Kill again and again, each time at another byte and in a repository of its own."""
        kept = 0
        for number in range(count):
            repository = f"/round{number}/"
            kill_after_bytes = self.random.randrange(1, most_bytes)
            acknowledged = self.kill_in_mid_upload(repository, size_bytes, kill_after_bytes)
            kept += self.assert_sound(repository, acknowledged)
        # Repositories of earlier rounds have seen the later kills and starts.
        self.assertEqual(len(files_below(self.data)), kept)
        self.assertGreater(kept, 0, "no upload ever came to its end, so the test shows nothing")

    def test_large_uploads(self) -> None:
        """20 kills within objects of 4 MiB."""
        self.rounds(20, size_bytes=4 * MIB, most_bytes=40 * MIB)

    def test_acknowledged_uploads(self) -> None:
        """Smaller objects, so that many were acknowledged before each of 10 kills: all of them are there."""
        self.rounds(10, size_bytes=100_000, most_bytes=12 * MIB)

    def test_named_temporary_files_are_swept(self) -> None:
        """
        On file systems without unnamed files uploads have names in C{.tmp}; what a killed server left is removed at the
        next start, at every depth, and what another server is writing at that moment is not.
        """
        import fcntl

        self.server.kill()
        for repository in (self.data, self.data / "one", self.data / "one" / "two"):
            for kind in TYPES:
                (repository / kind).mkdir(parents=True, exist_ok=True)
            (repository / ".tmp").mkdir()
            (repository / ".tmp" / f"{secrets.token_hex(16)}.upload").write_bytes(b"half of some")
        alive = self.data / "one" / ".tmp" / f"{secrets.token_hex(16)}.upload"
        with alive.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            server = start_server(self, self.data)
            self.assertEqual(files_below(self.data), {f"one/.tmp/{alive.name}"})
            server.wait_for_line("removed 3 unfinished uploads of an earlier run")

    def test_what_others_keep_is_not_swept(self) -> None:
        """
        Whatever is called C{.tmp} and is not the server's own stays: in folders that are no repositories, in repositories
        under other names, behind links.
        """
        self.server.kill()
        outside = scratch_directory(self)
        upload = f"{secrets.token_hex(16)}.upload"
        for folder in (self.data / "alice", self.data / "alice" / "pc", outside / "elsewhere"):
            for kind in TYPES:
                (folder / kind).mkdir(parents=True)
            (folder / "config").write_bytes(b"a config")
        kept = (
            self.data / ".tmp" / upload,
            self.data / "x" / ".tmp" / "precious",
            self.data / "x" / ".tmp" / upload,
            self.data / "x" / "y" / ".tmp" / "precious",
            self.data / "alice" / ".tmp" / "precious",
            self.data / "alice" / ".tmp" / "link",
            outside / "precious" / upload,
            outside / "elsewhere" / ".tmp" / upload,
        )
        for path in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"foreign")
        (self.data / "alice" / ".tmp" / upload).symlink_to(outside / "precious" / upload)
        (self.data / "alice" / "pc" / ".tmp").symlink_to(outside / "precious")
        (self.data / "bob").symlink_to(outside / "elsewhere")
        start_server(self, self.data)
        self.assertEqual([], [path for path in kept if not path.exists()])
        self.assertTrue((self.data / "alice" / ".tmp" / upload).is_symlink())


class BrokenDiskTests(SynchronousTestCase):
    """A disk whose calls fail, under a running server."""

    skip = why_no_faults()

    def setUp(self) -> None:
        self.data = scratch_directory(self) / "data"

    def start(self, *flags: str) -> ServerProcess:
        """A server that keeps account, with a repository."""
        server = start_server(self, self.data, "--max-size", "1GiB", "--prometheus", "--prometheus-no-auth", *flags)
        server.wait_for_line("Quota initialized")
        with server.client() as client:
            client.create_repository("/alice/")
        return server

    def path(self, kind: str, name: str) -> Path:
        """Where an object lies."""
        return object_path(self.data / "alice", kind, name)

    def booked_bytes(self, client: Client) -> int:
        """How much is stored, as the server's books have it."""
        metrics = client.get("/metrics").body.decode("utf-8")
        found = re.search(r"^rest_server_size_bytes ([0-9.e+]+)$", metrics, re.MULTILINE)
        assert found is not None, metrics
        return int(float(found[1]))

    def test_removal_is_asked_for_again(self) -> None:
        """Each DELETE of what is gone already brings the directory to the disk before its answer."""
        server = self.start()
        with server.client() as client:
            name = client.save("index", b"an index", "/alice/")
            for request in range(3):
                with traced([server.pid], "fsync") as log:
                    self.assertEqual(200, client.delete(f"/alice/index/{name}").status)
                    wait_until(lambda: "alice/index>" in log.read_text(), what=f"the fsync of DELETE {request}")
            (self.data / "alice" / "index").rmdir()
            with traced([server.pid], "fsync") as log:
                self.assertEqual(200, client.delete(f"/alice/index/{name}").status)
                wait_until(lambda: "/data/alice>" in log.read_text(), what="the fsync of the repository")

    def removal_fails(self, *flags: str) -> None:
        """A DELETE whose fsync fails is a 500, and the books have what is there."""
        server = self.start(*flags)
        with server.client() as client:
            names = [client.save("data", b"%d" % number * 50_000, "/alice/") for number in range(10)]
            wait_until(lambda: self.booked_bytes(client) == 500_000, what="the books")
            left = 500_000
            for name in names[:3]:
                with traced([server.pid, *server.workers()], "fsync", "error=EIO", self.path("data", name).parent):
                    for _ in range(2):
                        self.assertEqual(500, client.delete(f"/alice/data/{name}").status)
                self.assertFalse(self.path("data", name).exists())
                left -= 50_000
                wait_until(lambda: self.booked_bytes(client) == left, what=f"{left:,} bytes in the books")
                self.assertEqual(200, client.delete(f"/alice/data/{name}").status)
            self.assertEqual(left, self.booked_bytes(client))

    def test_removal_fails(self) -> None:
        """In one process."""
        self.removal_fails()

    def test_removal_fails_in_a_worker(self) -> None:
        """In a worker, whose books are the parent's."""
        self.removal_fails("--workers", "2")

    def test_refused_once(self) -> None:
        """One linkat that fails: the upload is stored, and the next one is unnamed again."""
        server = self.start()
        with server.client() as client:
            for error in ("EPERM", "EMLINK", "EINVAL"):
                with traced([server.pid], "linkat", f"error={error}:when=1"):
                    client.save("data", f"first {error}".encode(), "/alice/")
                with traced([server.pid], "linkat") as log:
                    client.save("data", f"second {error}".encode(), "/alice/")
                    wait_until(lambda: re.search(r"linkat\(.*/proc/self/fd/.* = 0$", log.read_text(), re.M), what=error)
            self.assertEqual(6, len(client.list("data", "/alice/")))
        self.assertIsNone(server.said("does not support"))
        self.assertEqual(6, len(files_below(self.data)))

    def test_name_cannot_be_removed(self) -> None:
        """Without unnamed files: an unlink that fails behind the link is no failure of the upload, and nothing stays open."""
        server = self.start()
        with server.client() as client:
            with traced([server.pid], "linkat", "error=EPERM"):
                client.save("data", b"0" * 1000, "/alice/")
            server.wait_for_line("does not support unnamed")
            with traced([server.pid], "/^unlink", "error=EIO"):
                for number in range(1, 9):
                    client.save("data", b"%d" % number * 1000, "/alice/")
                wait_until(lambda: not server.open_files_below(self.data / "alice"), what="closed files")
            self.assertEqual(9000, sum(client.list("data", "/alice/").values()))
            wait_until(lambda: self.booked_bytes(client) == 9000, what="the books")
        self.assertEqual(17, len(files_below(self.data)))
        server.stop()
        again = start_server(self, self.data)
        again.wait_for_line("removed 8 unfinished uploads")
        self.assertEqual(9, len(files_below(self.data)))

    def test_unreadable(self) -> None:
        """An object that cannot be read, or not opened, is replaced by the next upload of the same, append-only or not."""
        server = self.start("--append-only")
        body = random_bytes(seed=11, length=300_000)
        with server.client() as client:
            name = client.save("data", body, "/alice/")
            for calls in ("pread64", "/^open"):
                path = self.path("data", name)
                before = path.stat().st_ino
                with traced([server.pid], calls, "error=EIO", path):
                    self.assertEqual(200, client.post(f"/alice/data/{name}", body).status, calls)
                self.assertNotEqual(before, path.stat().st_ino)
                self.assertEqual(body, client.get(f"/alice/data/{name}").body)
            self.assertEqual(len(body), self.booked_bytes(client))
        server.wait_for_line(r"cannot be read \(Input/output error\); replaced by a verified upload")

    def test_directory_cannot_be_looked_at(self) -> None:
        """Nobody hears "not found" or "no such repository" because the disk does not bring a directory back."""
        server = self.start()
        body = b"some object"
        name = object_id(body)
        repository = self.data / "alice"
        with server.client() as client:
            for kind, missing in (("data", self.path("data", name).parent), ("index", repository / "index")):
                missing.rmdir()
                for error in ("EIO", "EACCES"):
                    with traced([server.pid], "/stat,/^open", f"error={error}", repository):
                        for method, sent in (("POST", body), ("GET", None), ("HEAD", None), ("DELETE", None)):
                            reply = client.request(method, f"/alice/{kind}/{name}", sent)
                            self.assertEqual(500, reply.status, f"{method} {kind} {error}: {reply.reason}")
                        if kind == "index":
                            self.assertEqual(500, client.get("/alice/index/").status)
                self.assertEqual(404, client.get(f"/alice/{kind}/{name}").status)
                self.assertEqual(200, client.post(f"/alice/{kind}/{name}", body).status)

    def test_something_else_there(self) -> None:
        """A type's directory that is none, and a config that is no file, are never "not there"."""
        server = self.start()
        body = b"some object"
        name = object_id(body)
        with server.client() as client:
            for kind in TYPES:
                directory = self.data / "alice" / kind
                for make in (directory.write_bytes, directory.symlink_to):
                    directory.rename(directory.with_suffix(".away"))
                    make(b"nowhere")
                    for method, path, sent in (
                        ("GET", f"/alice/{kind}/", None),
                        ("GET", f"/alice/{kind}/{name}", None),
                        ("HEAD", f"/alice/{kind}/{name}", None),
                        ("POST", f"/alice/{kind}/{name}", body),
                        ("DELETE", f"/alice/{kind}/{name}", None),
                    ):
                        self.assertEqual(500, client.request(method, path, sent).status, f"{method} {path}")
                    directory.unlink()
                    directory.with_suffix(".away").rename(directory)
            config = self.data / "alice" / "config"
            for make_config in (config.mkdir, lambda: config.symlink_to("nowhere")):
                make_config()
                for method in ("GET", "HEAD"):
                    self.assertEqual(500, client.request(method, "/alice/config").status, method)
                config.rmdir() if config.is_dir() else config.unlink()
            self.assertEqual(404, client.head("/alice/config").status)


class ListTests(SynchronousTestCase):
    """Lists while what they list comes and goes."""

    LISTS = 1000

    def test_lists_of_locks_in_motion(self) -> None:
        """
        1,000 lists of both versions, locks made and deleted at full speed beside them, by clients and by a local restic
        on the same directory: always 200; every lock that was there all the time is listed, and none that never was.
        """
        data = scratch_directory(self) / "data"
        server = start_server(self, data)
        with server.client() as client:
            client.create_repository()
            present = {client.save("locks", b"stable lock %d" % number) for number in range(30)}
        ever = set(present)
        enough = threading.Event()

        def churn_by_http(number: int) -> None:
            with server.client() as client:
                turn = 0
                while not enough.is_set():
                    turn += 1
                    body = b"lock %d of client %d" % (turn, number)
                    name = object_id(body)
                    ever.add(name)
                    client.save("locks", body)
                    present.add(name)
                    if client.head(f"/locks/{name}").status != 200:
                        raise AssertionError("a lock is not there after it was acknowledged")
                    present.discard(name)
                    if client.delete(f"/locks/{name}").status != 200:
                        raise AssertionError("a lock could not be removed")

        def churn_on_disk(number: int) -> None:
            turn = 0
            while not enough.is_set():
                turn += 1
                name = object_id(b"local lock %d of %d" % (turn, number))
                ever.add(name)
                # As restic's local backend does it.
                temporary = data / "locks" / f"{name}-tmp-{turn}"
                temporary.write_bytes(b"local")
                temporary.rename(data / "locks" / name)
                (data / "locks" / name).unlink()

        def list_often(number: int) -> None:
            try:
                with server.client() as client:
                    for turn in range(self.LISTS // 2):
                        second = (turn + number) % 2 == 0
                        before = set(present)
                        reply = client.get("/locks/", {"Accept": LIST_V2} if second else None)
                        after = set(present)
                        if reply.status != 200:
                            raise AssertionError(reply)
                        entries = json.loads(reply.body)
                        listed = [entry["name"] for entry in entries] if second else entries
                        # Names are never used again, so what was there before and after was there all the time.
                        self.assertEqual(before & after - set(listed), set(), "locks that the list missed")
                        self.assertEqual(set(listed) - ever, set(), "no locks at all")
                        self.assertEqual(len(set(listed)), len(listed), "listed twice")
            finally:
                enough.set() if number == 0 else None

        def job(number: int) -> None:
            try:
                (list_often, list_often, churn_by_http, churn_by_http, churn_on_disk)[number](number)
            except BaseException:
                enough.set()
                raise

        in_parallel(5, job)
        self.assertGreater(len(ever), 100, "nothing moved, so the test shows nothing")


class KilledClientTests(SynchronousTestCase):
    """Clients that die in mid-download beside others that do not."""

    OTHERS = 50
    VICTIMS = 8
    ROUNDS = 3
    #: How often each client connects in a round.
    TIMES = 4

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 256 * MIB)
        self.random = random.Random(7)

    def show(
        self, server: ServerProcess, connect_client: Callable[[], Client], victim: Callable[[], socket.socket]
    ) -> None:
        """
        Some clients read a large object as fast as they can and die in the midst of it, again and again, while 50 others
        connect, again and again; each of those must get exactly the bytes of its own object.

        (At full speed, since then a job of the server is most likely to be at work for the one that dies. A new
        connection each time, since it may get the descriptor's number of one that just died.)
        """
        # Above and below the size from which the server sends by other means than a plain write.
        objects = [random_bytes(100 + number, 2000 if number % 5 == 0 else 400_000) for number in range(self.OTHERS)]
        large = random_bytes(99, 24 * MIB)
        with connect_client() as client:
            client.create_repository()
            names = [client.save("data", body) for body in objects]
            large_name = client.save("data", large)

        def die(deaths_bytes: list[int]) -> None:
            for death_bytes in deaths_bytes:
                connection = victim()
                connection.sendall(f"GET /data/{large_name} HTTP/1.1\r\nHost: x\r\n\r\n".encode("ascii"))
                left = death_bytes
                while left > 0:
                    received = connection.recv(MIB)
                    if not received:
                        raise AssertionError("the server ended the download")
                    left -= len(received)
                (reset if death_bytes % 2 else socket.socket.close)(connection)

        def download(number: int) -> None:
            for _ in range(self.TIMES):
                with connect_client() as client:
                    for headers in ({"Range": "bytes=0-"}, {}):
                        reply = client.get(f"/data/{names[number]}", headers)
                        if reply.body != objects[number]:
                            raise AssertionError(f"client {number}: {reply.status}, {len(reply.body)} wrong bytes")

        for _ in range(self.ROUNDS):
            deaths_bytes = [
                [self.random.randrange(1, len(large)) for _ in range(self.TIMES)] for _ in range(self.VICTIMS)
            ]
            barrier = threading.Barrier(self.OTHERS + self.VICTIMS)

            def job(number: int) -> None:
                barrier.wait()
                if number < self.OTHERS:
                    download(number)
                else:
                    die(deaths_bytes[number - self.OTHERS])

            in_parallel(self.OTHERS + self.VICTIMS, job)
        with connect_client() as client:
            self.assertEqual(client.get(f"/data/{large_name}").body, large)
        wait_until(lambda: not server.open_files_below(self.scratch), what="closed files")

    def test_plain(self) -> None:
        """On plain sockets, where the kernel sends from the file."""
        server = start_server(self, self.scratch / "data")
        address = ("127.0.0.1", server.port)
        self.show(server, lambda: Client(address), lambda: connect(address))

    def test_tls(self) -> None:
        """Over TLS, where the server reads ahead."""
        certificate = make_certificate(self.scratch)
        server = start_server(self, self.scratch / "data", *certificate.flags)
        address = ("127.0.0.1", server.port)
        context = certificate.client_context()

        def victim() -> socket.socket:
            return context.wrap_socket(connect(address), server_hostname="localhost")

        self.show(server, lambda: Client(address, tls=context), victim)


class EarlyAnswerTests(SynchronousTestCase):
    """An answer that is clear from the header alone, while 8 MiB of a body are on their way."""

    BODY = random_bytes(seed=4, length=8 * MIB)

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text(bcrypt_line("alice", "secret") + sha_line("bob", "secret"))
        self.server = start_server(
            self, self.data, "--htpasswd-file", str(htpasswd), "--private-repos", "--append-only", door=TWISTD
        )
        with self.server.client("alice", "secret") as client:
            client.create_repository("/alice/")
            self.kept = client.save("data", b"not to be touched", "/alice/")

    def refusals(self) -> Iterator[tuple[int, str, str]]:
        """Requests that are refused at once: the status, the request line, the credentials' header line."""
        name = object_id(self.BODY)
        alice = f"Authorization: {authorization('alice', 'secret')}\r\n"
        yield 401, f"POST /alice/data/{name}", ""
        yield 401, f"POST /alice/data/{name}", f"Authorization: {authorization('alice', 'wrong')}\r\n"
        yield 403, f"POST /bob/data/{name}", alice
        yield 403, f"DELETE /alice/data/{self.kept}", alice
        yield 404, f"POST /alice/missing/data/{name}", alice
        yield 404, f"POST /alice/data/{name}.tmp", alice

    def connections(self, expect: bool) -> Iterator[tuple[int, socket.socket]]:
        """For each refusal a connection with the head on its way."""
        for status, line, credentials in self.refusals():
            with connect(("127.0.0.1", self.server.port)) as connection:
                head = f"{line} HTTP/1.1\r\nHost: x\r\n{credentials}Content-Length: {len(self.BODY)}\r\n"
                head += "Expect: 100-continue\r\n" if expect else ""
                connection.sendall(head.encode("ascii") + b"\r\n")
                yield status, connection

    def assert_refused(self, reply: Reply, status: int) -> None:
        """The answer is whole and says why."""
        self.assertEqual(reply.status, status)
        self.assertEqual(reply.body, reply.reason.encode("ascii") + b"\n")
        self.assertEqual(reply.headers["Content-Length"], str(len(reply.body)))
        if status == 401:
            self.assertTrue(reply.headers["WWW-Authenticate"].startswith("Basic realm="))

    def assert_nothing_stored(self) -> None:
        """The one object is there, and nothing else."""
        wait_until(lambda: not self.server.open_files_below(self.data), what="closed files")
        self.assertEqual(files_below(self.data), {f"alice/data/{self.kept[:2]}/{self.kept}"})

    def test_a_client_that_waits_for_100_continue(self) -> None:
        """It gets the refusal and no 100 before or after it, and never sends the body."""
        for status, connection in self.connections(expect=True):
            received = b""
            # The server closes its half: it cannot know whether the body will come.
            while chunk := connection.recv(65536):
                received += chunk
            self.assertTrue(received.startswith(b"HTTP/1.1 %d " % status), received)
            self.assertEqual(received.count(b"HTTP/1.1"), 1)
            self.assertNotIn(b"100 Continue", received)
        self.assert_nothing_stored()

    def test_a_client_that_does_not_wait_for_its_100_continue(self) -> None:
        """It sends C{Expect} and the whole body at once, and still reads the whole refusal: no RST destroys it."""
        for status, connection in self.connections(expect=True):
            connection.sendall(self.BODY)
            self.assert_refused(read_reply(connection), status)
        self.assert_nothing_stored()

    def test_a_client_that_sends_all_before_it_reads(self) -> None:
        """Without C{Expect}: the body is swallowed, the refusal is read, and the connection takes a next request."""
        for status, connection in self.connections(expect=False):
            connection.sendall(self.BODY)
            self.assert_refused(read_reply(connection), status)
            connection.sendall(b"HEAD /alice/config HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual(read_reply(connection, "HEAD").status, 401)
        self.assert_nothing_stored()

    def test_a_client_that_reads_while_it_sends(self) -> None:
        """As restic's own client does: the refusal is there before half of the body was sent, and is whole."""
        for status, connection in self.connections(expect=False):
            connection.sendall(self.BODY[: MIB // 2])
            self.assert_refused(read_reply(connection), status)
            connection.sendall(self.BODY[MIB // 2 :])
        self.assert_nothing_stored()

    def test_a_body_is_never_taken_for_a_request(self) -> None:
        """A refused body that is full of requests has no effect and gets no answers."""
        credentials = authorization("alice", "secret")
        smuggled = (
            f"POST /alice/?create=true HTTP/1.1\r\nHost: x\r\nAuthorization: {credentials}\r\nContent-Length: 0\r\n\r\n"
            f"POST /alice/locks/{object_id(b'')} HTTP/1.1\r\nHost: x\r\nAuthorization: {credentials}\r\n"
            "Content-Length: 0\r\n\r\n"
        ).encode("ascii")
        body = (smuggled * (len(self.BODY) // len(smuggled) + 1))[: len(self.BODY)]
        for expect in (False, True):
            for status, connection in self.connections(expect):
                connection.sendall(body)
                connection.shutdown(socket.SHUT_WR)
                received = b""
                while chunk := connection.recv(65536):
                    received += chunk
                self.assertTrue(received.startswith(b"HTTP/1.1 %d " % status), received[:100])
                self.assertEqual(received.count(b"HTTP/1.1"), 1)
        self.assert_nothing_stored()


class MemoryTests(SynchronousTestCase):
    """Bodies stream: how much memory they need does not depend on their size."""

    UPLOADS = 20
    SIZE_BYTES = 64 * MIB
    BOUND_BYTES = 200_000_000

    def test_20_uploads_of_64_mib(self) -> None:
        """20 parallel uploads and then downloads of 64 MiB each: the server never has 200 MB of resident memory."""
        scratch = scratch_directory(self, self.UPLOADS * self.SIZE_BYTES)
        data = scratch / "data"
        server = start_server(self, data)
        base = memoryview(random_bytes(seed=5, length=self.SIZE_BYTES))
        with server.client() as client:
            client.create_repository()

        def upload(number: int) -> None:
            # Another object each, without 20 copies of it in this process.
            first = number.to_bytes(16, "big")
            name = _hash_of(first, base[16:])
            with connect(("127.0.0.1", server.port), timeout_s=120) as connection:
                connection.sendall(upload_head(name, f"Content-Length: {self.SIZE_BYTES}"))
                connection.sendall(first)
                connection.sendall(base[16:])
                reply = read_reply(connection, "POST")
                if reply.status != 200:
                    raise AssertionError(reply)
            if hash_of_file(object_path(data, "data", name)) != name:
                raise AssertionError(f"{name} is damaged")

        in_parallel(self.UPLOADS, upload)
        uploads_bytes = server.peak_memory_bytes()
        self.assertEqual(len(files_below(data)), self.UPLOADS)
        self.assertLess(uploads_bytes, self.BOUND_BYTES)

        def download(name: str) -> None:
            with connect(("127.0.0.1", server.port), timeout_s=120) as connection:
                connection.sendall(f"GET /data/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("ascii"))
                left = self.SIZE_BYTES
                while received := connection.recv(MIB):
                    left -= len(received)
                if left > 0:
                    raise AssertionError(f"{left} bytes are missing")

        stored = [Path(name).name for name in sorted(files_below(data))]
        in_parallel(self.UPLOADS, lambda number: download(stored[number]))
        self.assertLess(server.peak_memory_bytes(), self.BOUND_BYTES)

    def test_uploads_over_tls(self) -> None:
        """The same bound for TLS, where every byte passes through the process; half the size is enough to show it."""
        scratch = scratch_directory(self, self.UPLOADS * self.SIZE_BYTES)
        certificate = make_certificate(scratch)
        server = start_server(self, scratch / "data", *certificate.flags)
        context = certificate.client_context()
        base = random_bytes(seed=6, length=self.SIZE_BYTES // 2)
        with Client(("127.0.0.1", server.port), tls=context) as client:
            client.create_repository()

        def upload(number: int) -> None:
            first = number.to_bytes(16, "big")
            name = _hash_of(first, memoryview(base)[16:])
            pieces = [first] + [base[at : at + MIB] for at in range(16, len(base), MIB)]
            with Client(("127.0.0.1", server.port), tls=context) as client:
                reply = client.request("POST", f"/data/{name}", iter(pieces), {"Content-Length": str(len(base))})
                if reply.status != 200:
                    raise AssertionError(reply)
                head = client.head(f"/data/{name}")
                if head.headers["Content-Length"] != str(len(base)):
                    raise AssertionError(head)

        in_parallel(self.UPLOADS, upload)
        self.assertLess(server.peak_memory_bytes(), self.BOUND_BYTES)


def _hash_of(*pieces: bytes | memoryview) -> str:
    import hashlib

    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
