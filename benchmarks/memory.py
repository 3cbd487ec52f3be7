"""
How much memory this server takes for many large uploads at once, plain and over TLS.

Each mode has a fresh server. Its resident memory is sampled while the load client (loadgen/, Go) uploads, and the
kernel's own peak is read at the end. See README.md here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import (
    MIB,
    BenchmarkError,
    Server,
    built_client,
    certificate,
    drive,
    positive,
    run_main,
    scratch,
    this_server,
)

#: Seconds between two looks.
INTERVAL_S = 0.01


class Sampler:
    """
    Looks at a server's resident memory again and again, from entering to leaving.

    @ivar peak_mb: the most it saw.
    @ivar samples: how often it looked.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_mb = 0.0
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(INTERVAL_S):
            try:
                self.peak_mb = max(self.peak_mb, self._server.resident_mb())
            except BenchmarkError:
                return  # the server is gone; who drives it will say so
            self.samples += 1


def measure(client: str, directory: Path, tls: bool, arguments: argparse.Namespace) -> int:
    """
    One mode: start, upload in rounds, print.

    @return: how many requests failed.
    """
    mode = "TLS" if tls else "plain"
    directory.mkdir()
    pair = certificate(directory) if tls else None
    data = directory / "data"
    failed = 0
    with this_server(data, pair, arguments.flags) as server:
        idle_mb = server.resident_mb()
        for number in range(1, arguments.rounds + 1):
            options = ["-n", str(arguments.uploads), "-c", str(arguments.uploads), "-size", str(arguments.size * MIB)]
            options += ["-seed", str(number)]
            with Sampler(server) as sampler:
                put = drive(client, server, "put", options)
            after_mb = server.resident_mb()
            deleted = drive(client, server, "delete", options)
            failed += put.failed + deleted.failed
            for name, got in (("put", put), ("delete", deleted)):
                if got.failed:
                    of = f"{got.failed} of {got.requests}"
                    print(f"FAILED REQUESTS: {mode}, {name}: {of}, first: {got.reason}")
            print(
                f"{mode}, round {number}: VmHWM {put.peak_mb:.0f} MB; VmRSS {idle_mb:.0f} MB at start, at most "
                f"{sampler.peak_mb:.0f} MB in {sampler.samples} samples, {after_mb:.0f} MB after; "
                f"{put.mb_per_s:.0f} MB/s"
            )
    shutil.rmtree(data)
    return failed


def main() -> int:
    """
    Run and print.

    @return: 1 if any request failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--plain", action="store_true", help="only without TLS")
    modes.add_argument("--tls", action="store_true", help="only with TLS")
    parser.add_argument("--uploads", type=positive, default=20, help="uploads at once, each on its connection (20)")
    parser.add_argument("--size", type=positive, default=64, help="MiB of each (64)")
    parser.add_argument("--rounds", type=positive, default=1, help="times on the same server: does it grow (1)")
    parser.add_argument("flags", nargs="*", help="more flags for the server, after --")
    arguments = parser.parse_args()

    client = built_client()
    failed = 0
    print(f"{arguments.uploads} uploads of {arguments.size} MiB at once; MB of a million bytes", flush=True)
    with scratch(arguments.uploads * arguments.size * MIB + 64 * MIB) as directory:
        if not arguments.tls:
            failed += measure(client, directory / "plain", False, arguments)
        if not arguments.plain:
            sys.stdout.flush()
            failed += measure(client, directory / "tls", True, arguments)
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
