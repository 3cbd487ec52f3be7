"""
Steps of the system's time, by libfaketime, under load: no correct login is refused, no upload is cut, and what is removed is
refused soon. The monotonic clock runs on, as it does when a real system's time is set.
"""

from __future__ import annotations

import email.utils
import glob
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import authorization, object_id, read_reply
from ..support.htpasswd import bcrypt_line
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import wait_until

LIBRARY = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)

#: In seconds, one after the other.
STEPS_S = (-100, -300, -3600, -86_400, 7200, 86_400)
#: What the load goes on for after each.
WHILE_S = 1.0
#: Between two logins of a user, and two guesses: some are always on their way when the time makes a step, and more
#: of them would only keep both cores busy.
PAUSE_S = 0.04


class ClockTests(SynchronousTestCase):
    """One process."""

    skip = None if LIBRARY else "libfaketime is not installed (Debian and Ubuntu: apt-get install faketime)"
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.users = self.scratch / "htpasswd"
        self.offset = self.scratch / "offset"
        self.offset_s = 0
        self.write_offset()
        self.ended = threading.Event()
        self.addCleanup(self.ended.set)
        self.answers: Counter[tuple[str, int]] = Counter()
        self.slowest_s = 0.0

    def write_offset(self) -> None:
        """Set the server's time."""
        new = self.scratch / "new offset"
        new.write_text(f"{self.offset_s:+d}\n")
        os.replace(new, self.offset)

    def write_users(self, *users: str) -> None:
        """Let these users be all there are."""
        new = self.scratch / "new users"
        new.write_text("".join(bcrypt_line(user, f"password of {user}") for user in users))
        os.replace(new, self.users)

    def start(self) -> ServerProcess:
        """A server whose wall clock is the test's."""
        assert LIBRARY is not None
        return start_server(
            self,
            self.data,
            "--htpasswd-file",
            str(self.users),
            "--max-size",
            "1TB",
            *self.every_server,
            extra={
                "LD_PRELOAD": LIBRARY,
                "FAKETIME_TIMESTAMP_FILE": str(self.offset),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
                # Files have the real time; the server's own would be an hour older or younger than they are anyway.
                "NO_FAKE_STAT": "1",
            },
        )

    def login(self, server: ServerProcess, user: str, password: str | None = None) -> int:
        """The status of one request over a connection of its own."""
        began = time.monotonic()
        with server.client(user, f"password of {user}" if password is None else password) as client:
            status = client.head("/repository/config").status
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        return status

    def load(self, server: ServerProcess, user: str) -> None:
        """Correct logins all the time."""
        while not self.ended.is_set():
            self.answers["login", self.login(server, user)] += 1
            self.ended.wait(PAUSE_S)

    def guess(self, server: ServerProcess) -> None:
        """Wrong passwords from another address."""
        number = 0
        while not self.ended.is_set():
            number += 1
            with socket.create_connection(("127.0.0.1", server.port), 60, ("127.0.0.9", 0)) as connection:
                credentials = authorization(f"nobody{number}", "guess").encode()
                request = b"HEAD /repository/config HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n" % credentials
                connection.sendall(request)
                self.answers["guess", read_reply(connection, "HEAD").status] += 1
            self.ended.wait(PAUSE_S)

    def upload(self, server: ServerProcess, body: bytes) -> None:
        """One upload that lasts as long as all the steps."""

        def slowly() -> Iterator[bytes]:
            rest = body
            while len(rest) > 1000:
                yield rest[:1000]
                rest = rest[1000:]
                self.ended.wait(0.1)
            yield rest

        with server.client("steady", "password of steady") as client:
            self.answers["upload", client.post(f"/repository/data/{object_id(body)}", slowly()).status] += 1

    def served(self, server: ServerProcess) -> float:
        """What the server takes for the time, in seconds since 1970; it is ready, and takes uploads under the quota."""
        with server.client("steady", "password of steady") as client:
            ready = client.get("/-/ready")
            self.assertEqual(200, ready.status)
            body = os.urandom(20)
            self.assertEqual(200, client.post(f"/repository/data/{object_id(body)}", body).status)
            return email.utils.parsedate_to_datetime(ready.headers["date"]).timestamp()

    def test_steps(self) -> None:
        """All of them, one after the other."""
        victims = [f"victim{step_s}" for step_s in STEPS_S]
        self.write_users("steady", "other", *victims)
        server = self.start()
        with server.client("steady", "password of steady") as client:
            client.create_repository("/repository/")
            client.post("/repository/config", b"config")
        jobs: list[Callable[[], None]] = [
            lambda: self.load(server, "steady"),
            lambda: self.load(server, "other"),
            lambda: self.guess(server),
            lambda: self.upload(server, os.urandom(2_000_000)),
        ]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            refused_after_s = self.step(server, victims)
            self.assertFalse(self.answers["upload", 200])  # it is still on its way
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()
        print(
            f"removed users were refused after {refused_after_s} s; {dict(self.answers)}; {self.slowest_s:.2f} s at most"
        )
        self.assertEqual(1, self.answers["upload", 200])
        self.assertEqual({200}, {status for (what, status) in self.answers if what == "login"})
        self.assertGreater(self.answers["login", 200], 20)

    def step(self, server: ServerProcess, victims: list[str]) -> dict[int, float]:
        """Make the steps; after each one of the users goes, and how long that user was still let in."""
        refused_after_s = {}
        for step_s in STEPS_S:
            self.assertEqual(200, self.login(server, victims[0]))
            before = self.served(server) - time.time()
            self.offset_s += step_s
            self.write_offset()
            # It is the server's clock that has made this step, and not only the test's file.
            self.assertLess(abs(before + step_s - (self.served(server) - time.time())), 30)
            gone = victims.pop(0)
            self.write_users("steady", "other", *victims)
            changed = time.monotonic()
            wait_until(lambda: self.login(server, gone) == 401, what=f"{gone} being refused")
            refused_after_s[step_s] = round(time.monotonic() - changed, 1)
            self.ended.wait(WHILE_S)
        return refused_after_s


class SharedClockTests(ClockTests):
    """Two workers."""

    every_server = ("--workers", "2")
