"""
Real server processes for tests: both front doors, on a port of the system's choice, always stopped after the test.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from .client import Client
from .scratch import Cleans, scratch_directory
from .waiting import PATIENCE_S, wait_until

#: The two front doors.
REST_SERVER = "rest-server"
TWISTD = "twistd"
#: With short times for quota leases.
QUICK_LEASES = "quick-leases"

#: rest-server prints the bare line; twistd's log has a time stamp and the logger's name before it.
LISTENING = re.compile(r"\bstart server on (\S+)$")
ACTIVATED = re.compile(r"systemd socket activation mode$")


def installed(command: str) -> str:
    """The path of a command of the environment that runs the tests."""
    beside = Path(sys.executable).parent / command
    found = str(beside) if beside.exists() else shutil.which(command)
    if found is None:
        raise AssertionError(f"{command} is not installed; the tests want the package installed (make does that)")
    return found


def command_line(door: str, flags: Sequence[str]) -> list[str]:
    """How to start a server through one of the front doors."""
    if door == REST_SERVER:
        return [installed("rest-server"), *flags]
    if door == QUICK_LEASES:
        return [sys.executable, "-m", "tests.support.quick_leases", *flags]
    return [installed("twistd"), "--nodaemon", "--pidfile=", "restic-rest", *flags]


def server_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server: the tests' own, without what a systemd or an admin around the tests may have set."""
    others = ("LISTEN_", "NOTIFY_SOCKET", "REST_SERVER_", "WATCHDOG_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environment["PYTHONUNBUFFERED"] = "1"
    environment.update(extra or {})
    return environment


class ServerProcess:
    """
    A running server.

    @ivar process: the process; its output is drained all the time.
    @ivar out: the lines of stdout so far, and C{err} those of stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        extra: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(
            command,
            # Not the checkout: what is tested is the installed package.
            cwd=cwd,
            env=server_environment(extra),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_listen_to_interrupts,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        assert self.process.stdout is not None and self.process.stderr is not None
        self._drains = [
            threading.Thread(target=_drain, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for drain in self._drains:
            drain.start()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self.process.pid

    def said(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        """The first line so far that matches."""
        for line in [*self.err, *self.out]:
            match = re.search(pattern, line)
            if match is not None:
                return match
        return None

    def wait_for_line(self, pattern: str | re.Pattern[str], timeout_s: float = PATIENCE_S) -> re.Match[str]:
        """
        Wait for a line of output.

        @raise AssertionError: none came, or the server ended without it.
        """

        def found() -> re.Match[str] | None:
            match = self.said(pattern)
            if match is None and self.process.poll() is not None:
                self._join()
                match = self.said(pattern)
                if match is None:
                    raise AssertionError(f"the server ended ({self.process.returncode}): {self.out + self.err}")
            return match

        # The lists grow meanwhile.
        return wait_until(found, timeout_s, (pattern, self.out, self.err))

    @property
    def address(self) -> str:
        """Where it says it listens (the first address); waits for that."""
        return self.wait_for_line(LISTENING)[1]

    @property
    def port(self) -> int:
        """The TCP port of L{address}."""
        return int(self.address.rpartition(":")[2])

    @property
    def url(self) -> str:
        """For clients on this machine."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, user: str | None = None, password: str = "") -> Client:
        """A new connection; the caller closes it (C{with})."""
        return Client(("127.0.0.1", self.port), user, password)

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end and for the last of its output; the exit status, negative for a signal."""
        status = self.process.wait(timeout_s)
        self._join()
        return status

    def stop(self) -> int:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def _join(self) -> None:
        for drain in self._drains:
            drain.join(PATIENCE_S)

    def clean_up(self) -> None:
        """After a test: ended, whatever state it was in."""
        self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def workers(self) -> list[int]:
        """The processes that it has started and that are there (Linux)."""
        return children_of(self.pid)

    def peak_memory_bytes(self) -> int:
        """The most resident memory that it ever had (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert match is not None
        return int(match[1]) << 10

    def open_files_below(self, directory: Path, pid: int | None = None) -> list[str]:
        """
        What it and its workers (or one of them) have open below a directory at this moment, unnamed files included,
        directories not (Linux).
        """
        pids = [self.pid, *self.workers()] if pid is None else [pid]
        targets = [target for one in pids for target in opened_by(one)]
        return [target for target in targets if target.startswith(f"{directory}/") and not os.path.isdir(target)]


def opened_by(pid: int) -> list[str]:
    """What a process has open at this moment, sockets too (Linux); nothing, if it has ended."""
    targets = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                targets.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return targets


def listening_ports(pid: int) -> list[int]:
    """The TCP ports of IPv4 addresses at which a process listens at this moment (Linux)."""
    sockets = {target[len("socket:[") : -1] for target in opened_by(pid) if target.startswith("socket:[")}
    with suppress(FileNotFoundError, ProcessLookupError):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        # Local address and port in hex, state (0A is LISTEN), inode: see proc(5).
        return [int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in sockets]
    return []


def is_running(pid: int) -> bool:
    """Whether a process is there and not all of its threads have ended, whoever has to take note of that (Linux)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        # A killed process is a zombie as soon as its first thread has ended; another one may still be in a system call.
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that are there, the oldest first (Linux)."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [child for child in children if is_running(child)]


def _listen_to_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so would whatever these tests start there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _drain(pipe: IO[bytes], lines: list[str]) -> None:
    for line in pipe:
        lines.append(line.decode("utf-8", "replace").rstrip("\n"))


def start_server(
    test: Cleans,
    data: Path,
    *flags: str,
    door: str = REST_SERVER,
    wait: bool = True,
    extra: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> ServerProcess:
    """
    Start a server on a free port of 127.0.0.1, without authentication unless C{flags} say how users are known. A test
    case may have flags for all its servers, C{every_server}.

    @param data: the data directory.
    @param flags: what else to say; a C{--listen} among them replaces the address.
    @param wait: whether to wait until it listens.
    @param extra: for its environment.
    @param wrapper: a command line that ends by running what stands behind it.
    """
    flags += getattr(test, "every_server", ())
    given = {flag.partition("=")[0] for flag in flags}
    defaults = ["--path", str(data)]
    if "--listen" not in given:
        defaults += ["--listen", "127.0.0.1:0"]
    if not given & {"--htpasswd-file", "--no-auth", "--proxy-auth-username", "--tls-client-ca"}:
        defaults += ["--no-auth"]
    server = ServerProcess([*wrapper, *command_line(door, [*defaults, *flags])], scratch_directory(test), extra)
    test.addCleanup(server.clean_up)
    if wait:
        server.wait_for_line(LISTENING)
    return server
