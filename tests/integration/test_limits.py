"""
Limits of a real server: time-outs, connections, the size of objects, uploads at once, bandwidth; in one process and in workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.client import Client, connect, object_id, random_bytes, read_reply
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import files_below, scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import PATIENCE_S, wait_until

MIB = 1 << 20
#: So that loopback's addresses count as clients' addresses.
NO_PROXY = ("--trusted-proxy", "none")
METRICS = ("--prometheus", "--prometheus-no-auth")
BODY = random_bytes(seed=5, length=3 * MIB)


class LimitsCase(SynchronousTestCase):
    """A server with limits, and a repository at its root."""

    flags: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.directory = scratch_directory(self)
        self.data = self.directory / "data"

    def start(self, *flags: str) -> ServerProcess:
        """Start it."""
        server = start_server(self, self.data, *METRICS, *flags, *self.flags)
        with self.client(server) as client:
            client.create_repository()
        return server

    def client(self, server: ServerProcess) -> Client:
        """A new connection."""
        return server.client()

    def limited(self, server: ServerProcess, limit: str) -> float:
        """What the metric says; 0 as long as the server takes no more connections."""
        try:
            with self.client(server) as client:
                page = client.get("/metrics").body.decode()
        except (OSError, http.client.HTTPException):
            return 0.0
        line = f'rest_server_limited_total{{limit="{limit}"}} '
        return float(page.partition(line)[2].partition("\n")[0])

    def assert_limited(self, server: ServerProcess, limit: str, least: int) -> None:
        """The metric has so many at least, soon."""
        wait_until(lambda: self.limited(server, limit) >= least, what=limit)

    def assert_nothing_stored(self) -> None:
        """No object and no temporary file."""
        wait_until(lambda: not [name for name in files_below(self.data) if not name.startswith(".rest-server")])

    def open(self, server: ServerProcess, source: str = "127.0.0.1") -> socket.socket:
        """
        A connection that the server has accepted and serves. (Those before may have ended without the server knowing it.)
        """

        def opened() -> socket.socket | None:
            connection = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S, (source, 0))
            try:
                connection.sendall(b"GET /-/health HTTP/1.1\r\nHost: x\r\n\r\n")
                read_reply(connection)
            except (OSError, http.client.HTTPException):
                connection.close()
                return None
            return connection

        return wait_until(opened)

    def is_closed(self, connection: socket.socket) -> bool:
        """Whether the server closed a connection without a byte."""
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


if TYPE_CHECKING:
    _Base = LimitsCase
else:
    _Base = object


class BothWays(_Base):
    """For a single process and for workers."""

    def test_head(self) -> None:
        """A head that does not end is answered, though it comes byte by byte."""
        server = self.start("--header-timeout", "1s")
        with connect(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET /config HTTP/1.1\r\n")
            begun_s = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - begun_s < 3:
                    connection.sendall(b"X")
                    time.sleep(0.1)
            self.assertEqual(408, read_reply(connection).status)
        self.assert_limited(server, "header-timeout", 1)
        server.wait_for_line("a request from 127.0.0.1 was refused: its head did not end within 1 s")

    def test_stall(self) -> None:
        """A body and an answer that do not move end their connections, and leave nothing."""
        server = self.start("--stall-timeout", "2s")
        name = object_id(BODY)
        head = f"POST /data/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        for begin in (BODY[:1000], BODY[: 2 * MIB]):
            with connect(("127.0.0.1", server.port)) as connection:
                connection.sendall(head + begin)
                self.assertTrue(self.is_closed(connection))
        self.assert_nothing_stored()
        large = random_bytes(seed=6, length=40 * MIB)
        with self.client(server) as client:
            stored = client.save("data", large)
        with connect(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"GET /data/{stored} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self.assert_limited(server, "stall-timeout", 3)
        server.wait_for_line("a transfer with 127.0.0.1 was ended: no byte moved for 2 s")

    def test_connections(self) -> None:
        """Beyond the number they are closed at accept; when others end there is room again. A slow socket is one."""
        server = self.start("--max-connections", "20")
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(self.open(server)) for _ in range(20)]
            for _ in range(5):
                # It may be closed before the client knows that it was accepted.
                with contextlib.suppress(ConnectionResetError), connect(("127.0.0.1", server.port)) as refused:
                    self.assertTrue(self.is_closed(refused))
            opened[0].sendall(b"GET /-/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            self.assertEqual(200, read_reply(opened[0]).status)
        self.assert_served(server)
        self.assert_limited(server, "max-connections", 5)
        server.wait_for_line("--max-connections: there are 20; one more from 127.0.0.1 was closed")

    def assert_served(self, server: ServerProcess) -> None:
        """A new client is served, soon."""

        def served() -> bool:
            try:
                with self.client(server) as client:
                    return client.get("/-/health").status == 200
            except (OSError, http.client.HTTPException):
                return False

        wait_until(served)

    def test_by_address(self) -> None:
        """One address cannot take all: others are served."""
        server = self.start("--max-connections-per-address", "10", *NO_PROXY)
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(self.open(server, "127.0.0.9"))
            for _ in range(3):
                with (
                    contextlib.suppress(ConnectionResetError),
                    socket.create_connection(("127.0.0.1", server.port), 10, ("127.0.0.9", 0)) as refused,
                ):
                    self.assertTrue(self.is_closed(refused))
            self.assert_served(server)
        self.assert_limited(server, "max-connections-per-address", 3)
        server.wait_for_line("--max-connections-per-address: there are 10 from 127.0.0.9; one more was closed")

    def test_trusted_proxy(self) -> None:
        """A trusted proxy has as many connections as it wants."""
        server = self.start("--max-connections-per-address", "2", "--trusted-proxy", "127.0.0.9")
        with contextlib.ExitStack() as stack:
            proxied = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10, ("127.0.0.9", 0)))
                for _ in range(10)
            ]
            for connection in proxied:
                connection.sendall(b"GET /-/health HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
                self.assertEqual(200, read_reply(connection).status)

    def test_slow_sockets(self) -> None:
        """Three hundred sockets that send a byte now and then delay nobody."""
        server = self.start()
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(connect(("127.0.0.1", server.port))) for _ in range(300)]
            for number, connection in enumerate(slow):
                kind = (
                    f"POST /data/{'ab' * 32} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx"
                    if number % 2
                    else "GET"
                )
                connection.sendall(kind.encode())
            with self.client(server) as client:
                begun_s = time.monotonic()
                for number in range(20):
                    client.save("data", random_bytes(number, 100_000))
                self.assertLess(time.monotonic() - begun_s, 20)

    def test_object_size(self) -> None:
        """413 by length and in the middle of a chunked body; nothing is left, and what fits is stored."""
        server = self.start("--max-object-size", "1MiB")
        with self.client(server) as client:
            reply = client.post(f"/data/{object_id(BODY)}", BODY)
            self.assertEqual(413, reply.status)
            self.assertEqual("the object is larger than 1 MiB, the most that this server takes", reply.reason)
            pieces = (BODY[begin : begin + 50_000] for begin in range(0, len(BODY), 50_000))
            self.assertEqual(413, client.post(f"/data/{object_id(BODY)}", pieces).status)
        self.assert_nothing_stored()
        with self.client(server) as client:
            client.save("data", BODY[:MIB])
        self.assert_limited(server, "max-object-size", 2)

    def test_uploads(self) -> None:
        """One too many gets 503 and may come again."""
        server = self.start("--max-uploads", "4")
        head = f"POST /data/{object_id(BODY)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            uploads = [stack.enter_context(connect(("127.0.0.1", server.port))) for _ in range(4)]
            for connection in uploads:
                connection.sendall(head + BODY[:MIB])
            time.sleep(0.5)
            late = [stack.enter_context(connect(("127.0.0.1", server.port))) for _ in range(2)]
            for connection in late:
                connection.sendall(head + BODY)
                reply = read_reply(connection, "POST")
                self.assertEqual((503, "2"), (reply.status, reply.headers["Retry-After"]))
            for connection in uploads:
                connection.sendall(BODY[MIB:])
                self.assertEqual(200, read_reply(connection, "POST").status)
            for connection in late:
                connection.sendall(head + BODY)
                self.assertEqual(200, read_reply(connection, "POST").status)
        self.assert_limited(server, "max-uploads", 2)

    def rate_of(self, server: ServerProcess, clients: int, size_bytes: int, up: bool) -> float:
        """Bytes a second, of so many clients together that each move an object."""
        bodies = [random.Random(number).randbytes(size_bytes // clients) for number in range(clients)]
        if not up:
            with self.client(server) as client:
                for body in bodies:
                    client.save("data", body)
        failed: list[BaseException] = []

        def work(body: bytes) -> None:
            try:
                with self.client(server) as client:
                    if up:
                        client.save("data", body)
                    else:
                        name = object_id(body)
                        assert hashlib.sha256(client.get(f"/data/{name}").body).hexdigest() == name
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
        begun_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failed)
        return size_bytes / (time.monotonic() - begun_s)

    def test_bandwidth(self) -> None:
        """Roughly kept in both directions, by any number of clients."""
        server = self.start("--bandwidth-up", "4M")
        for clients in (1, 5, 20):
            rate = self.rate_of(server, clients, 12 * MIB + clients, up=True)
            self.assertLess(rate, 1.5 * 4 * MIB, clients)
            self.assertGreater(rate, 0.3 * 4 * MIB, clients)


class SingleTests(BothWays, LimitsCase):
    """One process."""

    def test_downloads(self) -> None:
        """Downloads are limited, uploads are not."""
        server = self.start("--bandwidth-down", "4M")
        rate = self.rate_of(server, 5, 12 * MIB, up=False)
        self.assertLess(rate, 1.5 * 4 * MIB)
        self.assertGreater(rate, 0.3 * 4 * MIB)

    def test_rule(self) -> None:
        """A rule's bandwidth is each user's own; it can be changed while the server runs."""
        users, policy = self.directory / "users", self.directory / "policy"
        users.write_text("".join(sha_line(user, user) for user in ("alice", "bob", "metrics")))
        rule = (
            '[[rule]]\nusers = ["alice"]\nrepositories = ["**"]\nrights = "full"\ncreate = true\nbandwidth = "%s"\n'
            '[[rule]]\nusers = ["*"]\nrepositories = ["**"]\nrights = "full"\ncreate = true\n'
        )
        policy.write_text(rule % "1M")
        server = start_server(self, self.data, "--htpasswd-file", str(users), "--policy", str(policy))
        with server.client("alice", "alice") as alice, server.client("bob", "bob") as bob:
            alice.create_repository("/repo/")

            def seconds(client: Client, seed: int) -> float:
                body = random_bytes(seed, 2 * MIB)
                begun_s = time.monotonic()
                client.save("data", body, "/repo/")
                return time.monotonic() - begun_s

            self.assertGreater(seconds(alice, 1), 1.3)
            self.assertLess(seconds(bob, 2), 1.3)
            policy.write_text(rule % "100M")
            server.wait_for_line("Reloaded policy")
            self.assertLess(seconds(alice, 3), 1.3)


class ResticTests(LimitsCase):
    """The real restic, at a server with every limit."""

    skip = SKIP_WITHOUT_RESTIC

    def test_restic(self) -> None:
        """It does its work: refused uploads are tried again, and slow ones end."""
        server = self.start(
            *("--max-uploads", "2", "--bandwidth", "8M", "--max-connections", "50", "--max-object-size", "200MiB"),
            *("--max-connections-per-address", "20", "--stall-timeout", "310s", "--header-timeout", "10s", *NO_PROXY),
        )
        tree = self.directory / "tree"
        make_tree(tree, seed=1, size_bytes=16 * MIB)
        restic = Restic(self, f"{server.url}/laptop/", self.directory)
        restic.create()
        restic.succeed("backup", str(tree))
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        restic.succeed("forget", "--keep-last", "1", "--prune")


class WorkersTests(BothWays, LimitsCase):
    """Several processes: what the parent accepts, and parts of what there is."""

    flags = ("--workers", "2")

    def test_worker_dies(self) -> None:
        """The connections of a worker that is gone do not count any more."""
        server = self.start("--max-connections", "10")
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(self.open(server))
            # It may be closed before the client knows that it was accepted.
            with contextlib.suppress(ConnectionResetError), connect(("127.0.0.1", server.port)) as refused:
                self.assertTrue(self.is_closed(refused))
            os.kill(server.workers()[0], signal.SIGKILL)
            self.assert_served(server)


class TlsTests(LimitsCase):
    """Over TLS."""

    def setUp(self) -> None:
        super().setUp()
        self.certificate = make_certificate(self.directory)
        self.flags = tuple(self.certificate.flags)

    def client(self, server: ServerProcess) -> Client:
        """A new connection."""
        return Client(("127.0.0.1", server.port), tls=self.certificate.client_context())

    def test_object_size(self) -> None:
        """413 also here."""
        server = self.start("--max-object-size", "1MiB")
        with self.client(server) as client:
            self.assertEqual(413, client.post(f"/data/{object_id(BODY)}", BODY).status)
        self.assert_nothing_stored()

    def test_connections(self) -> None:
        """Closed before the handshake."""
        server = self.start("--max-connections", "3")
        with contextlib.ExitStack() as stack:
            # The one that made the repository may still count.
            for _ in range(3):
                stack.enter_context(connect(("127.0.0.1", server.port)))
            time.sleep(0.5)
            for _ in range(2):
                with contextlib.suppress(ConnectionResetError):
                    stack.enter_context(connect(("127.0.0.1", server.port)))
            # It may be closed before the client knows that it was accepted.
            with contextlib.suppress(ConnectionResetError), connect(("127.0.0.1", server.port)) as refused:
                self.assertTrue(self.is_closed(refused))

    def test_stall(self) -> None:
        """A body that does not move."""
        server = self.start("--stall-timeout", "2s")
        raw = connect(("127.0.0.1", server.port))
        with self.certificate.client_context().wrap_socket(raw, server_hostname="localhost") as connection:
            head = f"POST /data/{object_id(BODY)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
            connection.sendall(head + BODY[: 2 * MIB])
            self.assertTrue(self.is_closed(connection))
        self.assert_nothing_stored()
        self.assert_limited(server, "stall-timeout", 1)

    def test_bandwidth(self) -> None:
        """Roughly kept in both directions."""
        server = self.start("--bandwidth", "4M")
        body = random_bytes(9, 8 * MIB)
        with self.client(server) as client:
            begun_s = time.monotonic()
            name = client.save("data", body)
            half_s = time.monotonic()
            self.assertEqual(body, client.get(f"/data/{name}").body)
        for took_s in (half_s - begun_s, time.monotonic() - half_s):
            self.assertTrue(1.3 < took_s < 8, took_s)
