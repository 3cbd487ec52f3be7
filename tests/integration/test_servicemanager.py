"""
What a service manager is told by real servers, on a socket as systemd has it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id
from ..support.scratch import scratch_directory
from ..support.server import REST_SERVER, TWISTD, ServerProcess, start_server
from ..support.waiting import PATIENCE_S, wait_until


class ServiceManagerTests(SynchronousTestCase):
    """A server whose environment names a socket."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.told.close)
        self.told.settimeout(PATIENCE_S)

    def start(self, address: str, door: str = REST_SERVER, **more: str) -> ServerProcess:
        """A server that tells this socket."""
        self.told.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        return start_server(self, self.scratch / "data", door=door, extra={"NOTIFY_SOCKET": address, **more})

    def next(self) -> dict[str, str]:
        """What is told next, but for the lines of L{test_status}."""
        while True:
            told = dict(line.split("=", 1) for line in self.told.recv(4096).decode().split("\n"))
            if "STATUS" not in told:
                return told

    def test_life(self) -> None:
        """Ready when it serves, by either door; reloading and ready again; stopping before the first connection is closed."""
        for number, door in enumerate((REST_SERVER, TWISTD)):
            server = self.start(str(self.scratch / f"notify{number}"), door)
            self.assertEqual({"READY": "1", "MAINPID": str(server.pid)}, self.next())
            with server.client() as client:
                self.assertEqual(200, client.get("/-/health").status)
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            server.signal(signal.SIGHUP)
            reloading = self.next()
            self.assertEqual("1", reloading.pop("RELOADING"))
            self.assertLessEqual(before, int(reloading.pop("MONOTONIC_USEC")))
            self.assertEqual({"READY": "1"}, self.next())
            server.stop()
            self.assertEqual({"STOPPING": "1"}, self.next())
            self.told.close()
            self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.addCleanup(self.told.close)
            self.told.settimeout(PATIENCE_S)

    def test_status(self) -> None:
        """Where it listens, what it does, why it is not ready, and what a stop waits for."""
        server = self.start(str(self.scratch / "notify"))
        self.next()
        self.wait_for_status(f"listening on {server.address}; requests in flight: 0")
        with server.client() as client:
            client.create_repository("/alice/")
            wait_until(lambda: (self.scratch / "data" / ".rest-server" / "id").exists(), what="the marker")
            (self.scratch / "data" / ".rest-server" / "id").rename(self.scratch / "id")
            missing = "not ready: the volume with the repositories is missing"
            self.wait_for_status(f"{missing}; listening on {server.address}; requests in flight: 0")
            (self.scratch / "id").rename(self.scratch / "data" / ".rest-server" / "id")
            self.wait_for_status(f"listening on {server.address}; requests in flight: 0")
            go_on = threading.Event()

            def slowly() -> Iterator[bytes]:
                yield body[:500]
                go_on.wait(PATIENCE_S)
                yield body[500:]

            body = b"x" * 1000
            with ThreadPoolExecutor(1) as uploads:
                upload = uploads.submit(client.post, f"/alice/data/{object_id(body)}", slowly())
                self.wait_for_status(f"listening on {server.address}; requests in flight: 1")
                server.signal(signal.SIGTERM)
                self.wait_for_status("stopping; requests in flight: 1")
                go_on.set()
                self.assertEqual(200, upload.result().status)
        self.assertEqual(0, server.process.wait(PATIENCE_S))

    def wait_for_status(self, line: str) -> None:
        """Read until the manager is told this line."""
        while True:
            told = dict(line.split("=", 1) for line in self.told.recv(4096).decode().split("\n"))
            if told.get("STATUS") == line:
                return

    def test_watchdog(self) -> None:
        """It says twice in the time that it is not stuck, and nothing when it is; also by a name that is no file's."""
        server = self.start(f"@rest-server-test-{self.scratch.name}", WATCHDOG_USEC="400000")
        self.assertEqual("1", self.next()["READY"])
        for _ in range(4):
            self.assertEqual({"WATCHDOG": "1"}, self.next())
        server.signal(signal.SIGSTOP)
        self.addCleanup(server.signal, signal.SIGCONT)
        wait_until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(") ")[2][0] == "T", what="its stop")
        # What it had said until then.
        self.told.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.next()
        self.told.settimeout(1)
        self.assertRaises(TimeoutError, self.next)

    def test_not_for_us(self) -> None:
        """A watchdog that wants another process is not answered, and nobody at the other end is no harm."""
        server = self.start(str(self.scratch / "notify"), WATCHDOG_USEC="10000", WATCHDOG_PID="1")
        self.assertEqual("1", self.next()["READY"])
        self.told.close()
        server.signal(signal.SIGHUP)
        with server.client() as client:
            self.assertEqual(200, client.get("/-/health").status)
        self.assertEqual(0, server.stop())


class SharedServiceManagerTests(ServiceManagerTests):
    """The same with workers: the parent tells."""

    every_server = ("--workers", "2")
