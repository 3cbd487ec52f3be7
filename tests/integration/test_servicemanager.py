"""
What a service manager is told by real servers, on a socket as systemd has it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

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
        """What is told next."""
        return dict(line.split("=", 1) for line in self.told.recv(4096).decode().split("\n"))

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
