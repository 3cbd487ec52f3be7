"""
Clients that send as many tiny pieces as they can, at a running server: the others get what they ask for, with the right bytes.

How long that takes is measured by C{benchmarks/tiny.py}; here it only must not be for ever.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.client import Client, connect, object_id, random_bytes
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server

CHUNKED = b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"
TINY = b"1\r\nx\r\n" * 10_000
PROXY = b"PROXY TCP4 192.0.2.99 192.0.2.1 5555 8000\r\n"

#: What hostile clients send first, and then for ever.
KINDS: tuple[tuple[bytes, bytes], ...] = (
    (b"POST /data/" + b"a" * 64 + b" HTTP/1.1\r\n" + CHUNKED, TINY),
    (b"PUT /data/" + b"a" * 64 + b" HTTP/1.1\r\n" + CHUNKED, TINY),
    (b"", b"HEAD /x HTTP/1.1\r\nHost:\r\n\r\n" * 2000),
    (b"", b"POST /config HTTP/1.1\r\n" + CHUNKED + b"0\r\n" + b"a:\r\n" * 8000 + b"\r\n"),
    (b"POST /data/" + b"b" * 64 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n", b"x" * 60_000),
)


class TinyTests(SynchronousTestCase):
    """Five hostile clients, and one that is not."""

    def setUp(self) -> None:
        self.directory = scratch_directory(self)
        self.files = make_certificate(self.directory)
        self.stop = threading.Event()

    def hostile(self, port: int, tls: bool, before: bytes, first: bytes, then: bytes) -> None:
        """Send until it is over; who is cut off comes again."""
        piece_bytes = 1 if tls else len(then)
        while not self.stop.is_set():
            with contextlib.suppress(OSError, ssl.SSLError), contextlib.ExitStack() as stack:
                connection = stack.enter_context(connect(("127.0.0.1", port), timeout_s=1))
                connection.sendall(before)
                if tls:
                    connection = stack.enter_context(
                        self.files.client_context().wrap_socket(connection, server_hostname="localhost")
                    )
                connection.sendall(first)
                drain = threading.Thread(target=self.drain, args=(connection,), daemon=True)
                if not tls:  # one thread at a time, where it is TLS
                    drain.start()
                while not self.stop.is_set():
                    for start in range(0, len(then), piece_bytes):
                        connection.sendall(then[start : start + piece_bytes])
                        if self.stop.is_set():
                            break

    def drain(self, connection: socket.socket) -> None:
        """Take what comes."""
        with contextlib.suppress(OSError):
            while not self.stop.is_set():
                try:
                    if not connection.recv(1 << 16):
                        return
                except TimeoutError:
                    pass

    @contextlib.contextmanager
    def beside(self, server: ServerProcess, tls: bool, before: bytes) -> Iterator[None]:
        """Hostile clients of all kinds."""
        self.stop.clear()
        threads = [
            threading.Thread(target=self.hostile, args=(server.port, tls, before, *kind), daemon=True) for kind in KINDS
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def check(self, client: Client, server: ServerProcess) -> None:
        """Everything that a client may ask for."""
        for seed, size in enumerate((0, 1, 2000, 100_000, 700_000)):
            body = random_bytes(seed, size)
            name = client.save("data", body)
            self.assertEqual(object_id(body), name)
            self.assertEqual(body, client.get(f"/data/{name}").body)
            if size > 7:
                self.assertEqual(200, client.post(f"/index/{name}", iter([body[:7], body[7:]])).status)
            self.assertEqual(200, client.get("/-/ready").status)
            self.assertEqual("", json.loads(client.get("/-/status.json").body)["not_ready"])
        self.assertEqual([0, 1, 2000, 100_000, 700_000], sorted(client.list("data").values()))

    def test_beside(self) -> None:
        """Plain and over TLS, with workers and behind the PROXY protocol: all is right, nothing is logged, memory is bound."""
        for tls, flags, before in (
            (False, (), b""),
            (True, (), b""),
            (False, ("--workers", "2"), b""),
            (True, ("--workers", "2"), b""),
            (False, ("--listen", "haproxy:tcp:0:interface=127.0.0.1"), PROXY),
            (True, ("--listen", "haproxy:tcp:0:interface=127.0.0.1"), PROXY),
        ):
            data = Path(self.mktemp()).absolute()
            server = start_server(self, data, "--prometheus", *flags, *(self.files.flags if tls else ()))
            with self.beside(server, tls, before):
                context = self.files.client_context() if tls else None
                with Client(("127.0.0.1", server.port), tls=context, before=before) as client:
                    client.create_repository()
                    self.check(client, server)
            peak = server.peak_memory_bytes()
            self.assertEqual(0, server.stop(), flags)
            self.assertEqual([], [line for line in server.err if "Traceback" in line or "Unhandled" in line])
            self.assertLess(peak, 200 << 20)
