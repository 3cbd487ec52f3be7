"""
Signals while the server starts, and the server as process 1 of a container.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.namespaces import no_namespaces
from ..support.scratch import scratch_directory
from ..support.server import (
    REST_SERVER,
    TWISTD,
    ServerProcess,
    children_of,
    command_line,
    is_running,
    server_environment,
    start_server,
)
from ..support.waiting import PATIENCE_S, wait_until

#: The first line by which somebody may know that the server is there.
STARTED = re.compile(rb"start server on ")


class EarlySignalTests(SynchronousTestCase):
    """A signal in the moment when the server says where it listens, and before."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.socket = self.scratch / "socket"

    def start(self, door: str, *flags: str) -> subprocess.Popen[bytes]:
        """A server whose output this test reads itself, so as to be quick."""
        command = command_line(
            door, ["--no-auth", "--path", str(self.scratch / "data"), "--listen", f"unix:{self.socket}", *flags]
        )
        process = subprocess.Popen(
            command,
            cwd=self.scratch,
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def said_until_started(self, process: subprocess.Popen[bytes]) -> bytes:
        """Read up to the line."""
        assert process.stdout is not None
        said = b""
        while not STARTED.search(said):
            part = process.stdout.read(4096)
            self.assertTrue(part, said)
            said += part
        return said

    def signalled_at_the_line(self, door: str, *flags: str, numbers: tuple[int, ...]) -> tuple[int, bytes]:
        """Send signals as soon as the line is there; the exit status, and all that it said."""
        process = self.start(door, *flags)
        said = self.said_until_started(process)
        for number in numbers:
            process.send_signal(number)
        rest, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, said + rest

    def test_at_the_line(self) -> None:
        """SIGTERM and SIGINT stop it as they always do; SIGHUP before does no harm."""
        for flags, tries in (((), 6), (("--workers", "2"), 2)):
            for number in (signal.SIGTERM, signal.SIGINT):
                for before in ((), (signal.SIGHUP, signal.SIGUSR2)):
                    for _ in range(tries // 2):
                        status, said = self.signalled_at_the_line(REST_SERVER, *flags, numbers=(*before, number))
                        self.assertEqual(0, status, said)
                        self.assertTrue(said.endswith(b"shutdown cleanly\n"), said)
                        self.assertNotIn(b"Traceback", said)
                        self.assertFalse(self.socket.exists())

    def test_twistd_at_the_line(self) -> None:
        """twistd stops cleanly, and then ends by the signal itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            for flags in ((), ("--workers", "2")):
                status, said = self.signalled_at_the_line(TWISTD, *flags, numbers=(signal.SIGHUP, number))
                self.assertIn(status, (0, -number), said)
                self.assertIn(b"shutdown cleanly\n", said)
                self.assertNotIn(b"Traceback", said)
                self.assertFalse(self.socket.exists())

    def test_twice(self) -> None:
        """Two signals at once: it ends, and says nothing of a fault."""
        for door in (REST_SERVER, TWISTD):
            status, said = self.signalled_at_the_line(door, numbers=(signal.SIGTERM, signal.SIGTERM))
            self.assertIn(status, (0, -15) if door == TWISTD else (0,), said)
            self.assertNotRegex(said, rb"Traceback|Unhandled|ReactorNotRunning")

    def test_hangup_at_the_line(self) -> None:
        """SIGHUP never ends it."""
        for door in (REST_SERVER, TWISTD):
            process = self.start(door)
            self.said_until_started(process)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR2)
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(1)
            process.terminate()
            self.assertIn(process.wait(PATIENCE_S), (0, -15) if door == TWISTD else (0,))

    def test_before_the_line(self) -> None:
        """
        At any time of the start: it ends, by the signal while the interpreter starts and with status 0 later, without a
        traceback, and no worker stays.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            for tenths in range(1, 9):
                process = self.start(REST_SERVER, "--workers", "2")
                time.sleep(tenths / 10)
                workers = children_of(process.pid)
                process.send_signal(number)
                said, _ = process.communicate(timeout=PATIENCE_S)
                self.assertIn(process.returncode, (0, -number), said)
                if process.returncode == 0:
                    self.assertNotIn(b"Traceback", said)
                wait_until(lambda: not any(map(is_running, workers)), what="the end of the workers")


class FirstProcessTests(SynchronousTestCase):
    """The server as process 1."""

    skip = no_namespaces("--pid", "--fork", "--mount-proc")

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.wrapper = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

    def inside(self, server: ServerProcess) -> int:
        """The server's number out here: that of the only child of unshare."""
        (pid,) = wait_until(lambda: children_of(server.pid), what="the server")
        return pid

    def test_no_zombies(self) -> None:
        """
        What a command of C{--on-event} leaves behind becomes the server's child, and does not stay when it has ended; the
        command's own status is still known, and so is that of a worker.
        """
        told = self.scratch / "told"
        script = self.scratch / "command"
        script.write_text(
            f'#!/bin/sh\ncat >>"{told}"; echo >>"{told}"\n(sleep 0.2; exit 7) >/dev/null 2>&1 &\nexit 3\n'
        )
        script.chmod(0o755)
        for door, workers in ((REST_SERVER, "1"), (TWISTD, "1"), (REST_SERVER, "2")):
            flags = ("--on-event", str(script), "--workers", workers)
            server = start_server(self, self.scratch / "data", *flags, door=door, wrapper=self.wrapper)
            pid = self.inside(server)
            repository = f"/{door}{workers}/"
            with server.client() as client:
                client.create_repository(repository)
                for number in range(4):
                    client.save("snapshots", f"{repository} {number}".encode(), repository)
            wait_until(
                lambda: len([line for line in server.err + server.out if "exit code 3" in line]) == 4,
                what="four events",
            )
            wait_until(lambda: _zombies_of(pid) == 0, what="no zombies")
            if workers == "2":
                os.kill(children_of(pid)[0], signal.SIGKILL)
                server.wait_for_line("ended by signal 9; starting another one")
            os.kill(pid, signal.SIGTERM)
            server.wait()
            self.assertIsNotNone(server.said("shutdown cleanly$"))

    def test_signals(self) -> None:
        """SIGTERM and SIGINT end it, with status 0, also in the moment of the line and before; SIGHUP does not."""
        for number in (signal.SIGTERM, signal.SIGINT):
            for early in (True, False):
                server = start_server(self, self.scratch / "data", wrapper=self.wrapper, wait=False)
                if early:
                    pid = self.inside(server)
                    # Its handlers are there: the kernel drops signals to process 1 before.
                    wait_until(lambda: _catches(pid, number), what="the handlers")
                else:
                    server.wait_for_line("start server on")
                    pid = self.inside(server)
                    os.kill(pid, signal.SIGHUP)
                os.kill(pid, number)
                self.assertEqual(0, server.wait(), server.err)
                self.assertIsNone(server.said("Traceback"))


def _zombies_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(not is_running(int(child)) for child in children)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, of its own and not the interpreter's (SIGHUP has none of those)."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    caught = int(match[1], 16) if match is not None else 0
    return all(caught >> one - 1 & 1 for one in (number, signal.SIGUSR2))
