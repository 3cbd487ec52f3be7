"""
How fast C{rest-server scrub} is beside C{xargs -P2 sha256sum} on the same files, how exactly it keeps a rate, and what an upload
loses beside a scrub of the server.

C{.venv/bin/python benchmarks/scrub.py [--packs 64] [--mib 16] [--rounds 5] [--directory DIR]}
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER = [sys.executable, "-c", "import sys; from resticserver.cli import main; sys.exit(main(sys.argv[1:]))"]
PORT = 18999


def fill(repository: Path, packs: int, pack_bytes: int) -> None:
    """Store packs."""
    (repository / "config").parent.mkdir(parents=True)
    (repository / "config").write_bytes(b"a config")
    for _ in range(packs):
        body = os.urandom(pack_bytes)
        name = hashlib.sha256(body).hexdigest()
        path = repository / "data" / name[:2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    os.sync()


def drop(repository: Path) -> None:
    """Drop the packs from the kernel's cache, as far as it does that."""
    for path in repository.glob("data/*/*"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def sha256sum(repository: Path) -> float:
    """Seconds that two processes of sha256sum take."""
    began = time.monotonic()
    command = "find data -type f -print0 | xargs -0 -P2 -n4 sha256sum"
    subprocess.run(command, shell=True, cwd=repository, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def scrub(data: Path, *flags: str) -> tuple[float, dict[str, float]]:
    """Seconds that the command takes, with its start, and what it says."""
    began = time.monotonic()
    done = subprocess.run([*SERVER, "scrub", "--path", str(data), "--json", *flags], capture_output=True, check=True)
    return time.monotonic() - began, json.loads(done.stdout)


def upload_s(number: int, body: bytes) -> float:
    """Seconds for some uploads, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    began = time.monotonic()
    for each in range(number):
        content = each.to_bytes(8, "big") + os.urandom(8) + body
        connection.request("POST", f"/uploads/data/{hashlib.sha256(content).hexdigest()}", content)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"FAILED REQUESTS: {answer.status}")
    return time.monotonic() - began


def uploads(data: Path, *flags: str) -> float:
    """Seconds for the uploads to a server with these flags."""
    server = subprocess.Popen(
        [*SERVER, "--path", str(data), "--no-auth", "--listen", f"127.0.0.1:{PORT}", *flags],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", PORT)
                connection.request("POST", "/uploads/?create=true")
                connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.05)
        time.sleep(1.5)  # the scrub begins a second after the start
        return upload_s(24, os.urandom(8 << 20))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        shutil.rmtree(data / "uploads", ignore_errors=True)
        for file in (data / ".rest-server").glob("*"):
            file.unlink()


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--packs", type=int, default=64)
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.directory) as top:
        data = Path(top) / "data"
        repository = data / "repository"
        fill(repository, asked.packs, asked.mib << 20)
        size_mib = asked.packs * asked.mib
        for kind in ("cached", "not cached"):
            others, ours = [], []
            for _ in range(asked.rounds):
                for runs, run in ((others, lambda: sha256sum(repository)), (ours, lambda: scrub(data)[0])):
                    if kind == "not cached":
                        drop(repository)
                    runs.append(run())
            other, our = statistics.median(others), statistics.median(ours)
            print(
                f"{kind}: xargs -P2 sha256sum {size_mib / other:.0f} MiB/s, scrub {size_mib / our:.0f} MiB/s: "
                f"{other / our:.2f} times as fast"
            )
        for rate in ("20M", "50M", "100M"):
            _, said = scrub(data, "--rate", rate)
            mib = said["size_bytes"] / said["duration_s"] / (1 << 20)
            print(f"--rate {rate}: {mib:.1f} MiB/s, {mib / int(rate[:-1]) * 100 - 100:+.1f} %")
        alone, beside = [], []
        for _ in range(asked.rounds):
            alone.append(uploads(data))
            beside.append(uploads(data, "--scrub-interval", "30d", "--scrub-rate", "0"))
        one, other = statistics.median(alone), statistics.median(beside)
        print(f"24 uploads of 8 MiB: {one:.2f} s alone, {other:.2f} s beside a scrub without a rate: {one / other:.2f}")


if __name__ == "__main__":
    main()
