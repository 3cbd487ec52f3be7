"""
The wall clock is set while the server works: nothing that is measured in seconds may notice. Real processes with Debian's
libfaketime, which leaves the monotonic clock alone.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Client, authorization, connect, object_id, random_bytes, read_reply
from ..support.faketime import SKIP_WITHOUT_FAKETIME, WallClock
from ..support.htpasswd import bcrypt_line
from ..support.scratch import object_path, scratch_directory
from ..support.server import LISTENING, ServerProcess, installed, start_server
from ..support.waiting import PATIENCE_S, wait_until

#: -100 s, -300 s, -1 h, -1 d, +2 h, +1 d.
STEPS_S = (-100, -300, -3600, -86_400, 7200, 86_400)
#: The files are looked at every ten seconds; some patience for a busy machine.
RELOADED_S = 25.0
#: Several servers that start at once, on a busy machine.
STARTS_S = 4 * PATIENCE_S
AT_ONCE = 3
KIB = 1 << 10
LIMIT_BYTES = 2048 * KIB


def at_address(number: int) -> dict[str, str]:
    """Headers that claim an address of the client's own; a proxy on loopback is believed."""
    return {"X-Forwarded-For": f"198.51.{number // 250}.{number % 250 + 1}"}


class Logins:
    """
    Right logins that go on until the end: each on a connection of its own, from an address that never failed, so that each
    is checked, and some on a connection and from an address that stay.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._ended = threading.Event()
        self.statuses: Counter[object] = Counter()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._new, self._same_address, self._same)]

    def __enter__(self) -> Logins:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.statuses.total() >= 20, what=self.statuses)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)

    def go_on(self) -> None:
        """Wait until there were some more."""
        before = self.statuses.total()
        wait_until(lambda: self.statuses.total() >= before + 20, 2 * PATIENCE_S, self.statuses)

    def _ask(self, client: Client, headers: dict[str, str]) -> None:
        try:
            reply = client.request("HEAD", "/repo/config", headers=headers)
            self.statuses[reply.status] += 1
        except OSError as error:
            self.statuses[type(error).__name__] += 1
        time.sleep(0.02)

    def _new(self) -> None:
        for number in range(60_000):
            if self._ended.is_set():
                return
            with self._server.client("alice", "alice") as client:
                self._ask(client, at_address(1000 + number))

    def _same_address(self) -> None:
        while not self._ended.is_set():
            with self._server.client("alice", "alice") as client:
                self._ask(client, at_address(1))

    def _same(self) -> None:
        with self._server.client("alice", "alice") as client:
            while not self._ended.is_set():
                self._ask(client, at_address(2))


def slow_upload(server: ServerProcess, seed: int, chunked: bool) -> Iterator[int | None]:
    """An upload that stands half done until it is asked for the rest; then its status."""
    body = random_bytes(seed, 256 * KIB)
    half = len(body) // 2
    with connect(("127.0.0.1", server.port), 2 * PATIENCE_S) as connection:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        connection.sendall(
            f"POST /repo/data/{object_id(body)} HTTP/1.1\r\nHost: x\r\n{framing}\r\n"
            f"Authorization: {authorization('alice', 'alice')}\r\n\r\n".encode()
        )
        for part in (body[:half], body[half:]):
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            if part == body[:half]:
                yield None
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        yield read_reply(connection).status


class ClockStepTests(SynchronousTestCase):
    """Steps of the wall clock under load."""

    skip = SKIP_WITHOUT_FAKETIME
    flags: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 100 << 20)

    def start(self, name: str) -> tuple[ServerProcess, WallClock, Path]:
        """A server with users and a quota, its clock, and its directory."""
        directory = self.scratch / name
        directory.mkdir()
        users = directory / "users"
        users.write_text("".join(bcrypt_line(user, user) for user in ("alice", "bob")))
        clock = WallClock(directory / "clock")
        said = ("--htpasswd-file", str(users), "--max-size", str(LIMIT_BYTES), "--prometheus", *self.flags)
        server = start_server(self, directory / "data", *said, extra=clock.environment, wait=False)
        return server, clock, directory

    def test_steps(self) -> None:
        """
        No right login is refused, no upload is cut, a removed user is gone in time, and readiness, counts and the status
        are as of now and not of before the step.
        """
        # Some at a time: most of it is waiting, but they all start at once.
        with ThreadPoolExecutor(AT_ONCE) as threads:
            trials = [threads.submit(self.trial, step_s) for step_s in STEPS_S]
        wrong = [
            f"{step_s:+d} s: {what}"
            for step_s, trial in zip(STEPS_S, trials, strict=True)
            for what in trial.result()
        ]
        self.assertFalse(wrong, "\n".join(wrong))

    def trial(self, step_s: int) -> list[str]:
        """What goes wrong at one server."""
        server, clock, directory = self.start(f"step{step_s}")
        wrong: list[str] = []

        def expect(what: str, holds: object) -> None:
            if not holds:
                wrong.append(what)

        def comes(what: str, predicate: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
            try:
                wait_until(predicate, timeout_s, what)
            except (AssertionError, OSError) as error:
                wrong.append(str(error))

        server.wait_for_line(LISTENING, STARTS_S)
        server.wait_for_line("Quota initialized", STARTS_S)
        with server.client("alice", "alice") as alice, server.client("bob", "bob") as bob:
            alice.create_repository("/repo/")
            self.assertEqual(200, alice.post("/repo/config", b"x").status)
            kept = alice.save("data", random_bytes(1, 1000 * KIB), "/repo/")
            self.assertEqual(200, bob.get("/repo/config").status)
            self.assertEqual(200, alice.get("/-/ready").status)
            self.assertEqual(["repo"], self.status(alice))
            large = random_bytes(2, 1200 * KIB)
            self.assertEqual(507, alice.post(f"/repo/data/{object_id(large)}", large).status)
            # A few failures are free, and stay free.
            for _ in range(3):
                with server.client("alice", "wrong") as client:
                    self.assertEqual(401, client.get("/repo/config", at_address(3)).status)
            with Logins(server) as logins:
                uploads = [slow_upload(server, 100 + number, chunked) for number, chunked in enumerate((False, True))]
                for upload in uploads:
                    next(upload)
                clock.set(step_s)
                stepped = time.monotonic()
                alice.close()  # the uploads and the logins are those that may not be cut
                now = parsedate_to_datetime(alice.get("/-/health").headers["Date"]).timestamp()
                self.assertLess(abs(now - time.time() - step_s), 60, "the clock of the server did not step")
                logins.go_on()
                with server.client("alice", "alice") as client:
                    expect("login after failures", client.get("/repo/config", at_address(3)).status == 200)
                (directory / "users").write_text(bcrypt_line("alice", "alice"))
                alice.create_repository("/new/")
                self.assertEqual(200, alice.post("/new/config", b"y").status)
                comes("status", lambda: self.status(alice) == ["new", "repo"])
                # Removed beside the server: a refusal is spoken only when it was counted again.
                object_path(directory / "data/repo", "data", kept).unlink()
                comes("new count", lambda: alice.post(f"/repo/data/{object_id(large)}", large).status == 200)
                comes("removed user", lambda: bob.get("/repo/config").status == 401, RELOADED_S)
                with server.client("bob", "bob") as again:
                    expect("removed user, new connection", again.get("/repo/config").status == 401)
                # Longer than a time-out of the upload's own would have been shortened to, and it must not be cut.
                time.sleep(max(0.0, stepped + 5 - time.monotonic()))
                for upload, what in zip(uploads, ("upload", "chunked upload"), strict=True):
                    try:
                        status: object = next(upload)
                    except OSError as error:
                        status = repr(error)
                    expect(f"{what}: {status}", status == 200)
                logins.go_on()
            expect(f"logins: {logins.statuses}", set(logins.statuses) == {200})
            (directory / "data").rename(directory / "gone")
            comes("not ready", lambda: alice.get("/-/ready").status == 503)
            (directory / "gone").rename(directory / "data")
            comes("ready again", lambda: alice.get("/-/ready").status == 200)
        server.kill()
        return wrong

    @staticmethod
    def status(client: Client) -> list[str]:
        """The repositories that the status names."""
        return sorted(repository["repository"] for repository in json.loads(client.get("/-/status.json").body)["repositories"])


class TwistdTests(SynchronousTestCase):
    """Under twistd, which has installed a reactor before our code runs, whichever that is."""

    skip = SKIP_WITHOUT_FAKETIME

    def test_reactors(self) -> None:
        """Logins and an upload in flight do not notice a step back and one forward."""
        scratch = scratch_directory(self)
        users = scratch / "users"
        users.write_text(bcrypt_line("alice", "alice"))
        clock = WallClock(scratch / "clock")
        flags = ["--htpasswd-file", str(users), "--path", str(scratch / "data"), "--listen", "127.0.0.1:0"]
        servers = {}
        for reactor in ("default", "epoll", "poll", "select", "asyncio"):
            twistd = [installed("twistd"), "--nodaemon", "--pidfile=", "--reactor", reactor, "restic-rest"]
            server = servers[reactor] = ServerProcess([*twistd, *flags], scratch, clock.environment)
            self.addCleanup(server.clean_up)
        for server in servers.values():
            server.wait_for_line(LISTENING, STARTS_S)
        with servers["default"].client("alice", "alice") as alice:
            alice.create_repository("/repo/")
            self.assertEqual(200, alice.post("/repo/config", b"x").status)
        uploads = {}
        for number, (reactor, server) in enumerate(servers.items()):
            uploads[reactor] = slow_upload(server, number, chunked=False)
            next(uploads[reactor])
        found: dict[str, set[int | None]] = {reactor: set() for reactor in servers}
        for step_s in (0, -300, 7200):
            clock.set(step_s)
            for reactor, server in servers.items():
                with server.client("alice", "alice") as client:
                    found[reactor] |= {client.get("/repo/config", at_address(number)).status for number in range(3)}
        time.sleep(2)  # what was to be ended ends now
        for reactor, upload in uploads.items():
            found[reactor].add(next(upload))
        self.assertEqual({reactor: {200} for reactor in servers}, found)


class WorkersClockStepTests(ClockStepTests):
    """The same with two workers."""

    flags = ("--workers", "2")
