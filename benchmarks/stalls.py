"""
How often this server's reactor is held up, in everything that is measured here, and in cold downloads from a real disk.

The server runs with a watchdog (watchdog/sitecustomize.py) that counts the reactor's turns of more than 20 ms, less what
the kernel had its thread wait for a processor. See README.md here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from endtoend import QUICK, Restic, empty_repository, make_data, steps
from figures import line, text_table, title_line
from harness import (
    BUILD,
    HERE,
    MIB,
    BenchmarkError,
    Load,
    Server,
    built_client,
    certificate,
    machine,
    positive,
    program,
    run_main,
    scratch,
    this_server,
    version,
)
from lists import list_directory, list_round

LIMIT_MS = 20
PACK, SMALL = 16 * MIB, 4096
#: Of the longest stalls, how many are told with what ran.
TOLD = 8
NO_VERIFY = "--no-verify-upload"
#: When nobody is served: what these parts' names begin with.
EDGES = ("start", "stop")


@dataclass
class Part:
    """
    Something that was done to a server, and the stalls of its reactor while it lasted.

    @ivar began: by the clock that all processes share, in seconds; so is C{ended}.
    @ivar note: what else is to be said.
    """

    name: str
    began: float
    ended: float = 0.0
    note: str = ""
    stalls: list[dict[str, Any]] = field(default_factory=list)


class Watched:
    """
    Servers with the watchdog, and what it saw.

    @ivar parts: in the order in which they were done.
    @ivar processes: that ran a reactor.
    @ivar turns: of all reactors.
    @ivar busy_s: seconds between polls, of all.
    @ivar failures: a line for each phase that had failed requests.
    """

    def __init__(self, directory: Path, flags: list[str]) -> None:
        """
        @param directory: for the watchdog's files.
        @param flags: more of them for the server.
        """
        self._directory = directory
        self._flags = flags
        self.parts: list[Part] = []
        self.processes = 0
        self.turns = 0
        self.busy_s = 0.0
        self.failures: list[str] = []

    @contextmanager
    def server(self, path: Path, tls: tuple[Path, Path] | None, flags: list[str]) -> Iterator[Server]:
        """
        A server that is watched until it has ended.

        @raise BenchmarkError: no watchdog reported.
        """
        found = tempfile.mkdtemp(dir=self._directory)
        environment = {"RESTICSERVER_WATCHDOG": f"{found}/watchdog"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(HERE / "watchdog"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        first = len(self.parts)
        began = time.monotonic()
        with this_server(path, tls, [*self._flags, *flags], environment=environment) as server:
            started = time.monotonic()
            yield server
            stopping = time.monotonic()
        reports = [json.loads(report.read_text()) for report in Path(found).glob("watchdog.*[0-9]")]
        if not reports:
            raise BenchmarkError(f"{server.name}: its watchdog said nothing; {server.last_words()}")
        edges = [
            Part("start", began, started),
            *self.parts[first:],
            Part("stop", stopping, time.monotonic()),
        ]
        self.processes += len(reports)
        self.turns += sum(report["turns"] for report in reports)
        self.busy_s += sum(report["busy_s"] for report in reports)
        between = Part("between the phases", began, began)
        for report in reports:
            for stall in report["stalls"]:
                part = next((part for part in edges if part.began <= stall["at_s"] <= part.ended), between)
                part.stalls.append(stall)
        for part in (edges[0], edges[-1], between):
            if part.stalls:
                part.name = f"{part.name}{' over TLS' if tls else ''}"
                self.parts.append(part)

    def load(self, load: Load, name: str, phase: str) -> None:
        """One phase of the load client as a part."""
        with self.part(name):
            measured = load.measure(phase)
        self.parts[-1].note = f"{measured.requests:,} requests"
        if measured.failed:
            self.failures.append(f"{name}: {measured.failed} of {measured.requests}, first: {measured.reason}")

    @contextmanager
    def part(self, name: str) -> Iterator[Part]:
        """A part of the run, from entering to leaving."""
        part = Part(name, time.monotonic())
        self.parts.append(part)
        yield part
        part.ended = time.monotonic()
        print(f"{name}: {part.ended - part.began:.1f} s", file=sys.stderr)


def in_memory(watched: Watched, client: str, directory: Path, tls: bool, arguments: argparse.Namespace) -> None:
    """Packs, small objects and lists, as compare.py has them."""
    over = "TLS" if tls else "plain"
    room = directory / over
    room.mkdir()
    pair = certificate(room) if tls else None
    seconds = arguments.seconds
    with watched.server(room / "objects", pair, []) as server:
        for number in range(arguments.rounds):
            seed = ["-seed", str(number)]
            with Load(client, server, ["-n", str(arguments.packs), "-size", str(PACK), *seed]) as load:
                watched.load(load, f"{over}: put packs", "put")
                watched.load(load, f"{over}: get packs", f"get for={seconds}s")
                watched.load(load, f"{over}: ranges of 256 KiB", f"range for={seconds}s")
                watched.load(load, f"{over}: ranges of 4 KiB", f"range rlen=4096 for={seconds}s")
                watched.load(load, f"{over}: delete packs", "delete")
            with Load(client, server, ["-n", str(arguments.small), "-size", str(SMALL), *seed]) as load:
                watched.load(load, f"{over}: put small", "put")
                watched.load(load, f"{over}: get small", f"get for={seconds}s")
                watched.load(load, f"{over}: head", f"head for={seconds}s")
                watched.load(load, f"{over}: delete small", "delete")
    with watched.server(room / "unverified", pair, [NO_VERIFY]) as server:
        for number in range(arguments.rounds):
            options = ["-n", str(arguments.packs), "-size", str(PACK), "-seed", str(number)]
            with Load(client, server, options) as load:
                watched.load(load, f"{over}: put packs {NO_VERIFY}", "put")
                load.measure("delete")
    listed = list_directory(directory / "listed", arguments.entries)
    for number in range(arguments.rounds):
        listed.reset()
        with watched.server(listed.path, pair, []) as server, watched.part(f"{over}: lists of {arguments.entries:,}"):
            list_round(client, server, arguments.entries, number, [])


def cold(watched: Watched, client: str, directory: Path, tls: bool, arguments: argparse.Namespace) -> None:
    """
    Downloads of packs from a disk whose cache has just forgotten them.

    @param directory: on that disk.
    """
    over = "TLS" if tls else "plain"
    room = directory / f"cold-{over}"
    room.mkdir()
    pair = certificate(room) if tls else None
    data = room / "data"
    with watched.server(data, pair, []) as server:
        options = ["-n", str(arguments.packs), "-size", str(PACK), "-seed", "1"]
        with Load(client, server, options) as load:
            watched.load(load, f"{over}: put packs on disk", "put")
            for words, what in (("get", "get packs"), ("range reps=8", "ranges of 256 KiB")):
                for _ in range(arguments.rounds):
                    forget(data)
                    before = read_from_disk(server)
                    watched.load(load, f"{over}: {what}, cold, from disk", words)
                    watched.parts[-1].note += f", {(read_from_disk(server) - before) / 1e6:,.0f} MB from the disk"
            watched.load(load, f"{over}: delete packs on disk", "delete")


def forget(directory: Path) -> None:
    """Have the kernel drop the pages of all files below a directory."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that are not written yet stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def read_from_disk(server: Server) -> int:
    """Bytes that the server's processes had the disk read so far; 0 where the kernel does not say."""
    total = 0
    for pid in server.processes():
        try:
            said = Path(f"/proc/{pid}/io").read_text()
        except OSError:
            continue
        total += int(said.partition("read_bytes: ")[2].split()[0])
    return total


def real_restic(watched: Watched, directory: Path, tls: bool, rounds: int) -> None:
    """restic's steps, as endtoend.py has them."""
    over = "TLS" if tls else "plain"
    room = directory / f"restic-{over}"
    first, second, data = room / "first", room / "second", room / "data"
    make_data(first, second, QUICK)
    pair = certificate(room) if tls else None
    template = empty_repository(room)
    with watched.server(data, pair, []) as server:
        restic = Restic(server, room / "room", data, pair and pair[0])
        for number in range(rounds):
            restic.begin(number, template)
            for name, step in steps(first, second):
                with watched.part(f"{over}: restic {name}"):
                    step(restic)
            restic.end()


def report(watched: Watched, markdown: bool) -> None:
    """Print the table, and what ran in the longest stalls."""
    table = [
        ["what", "times", "seconds", "stalls", "longest ms", "its run delay", "its CPU", "its garbage", "last time"]
    ]
    for name in dict.fromkeys(part.name for part in watched.parts):
        parts = [part for part in watched.parts if part.name == name]
        stalls = [stall for part in parts for stall in part.stalls]
        longest = max(stalls, key=lambda stall: stall["own_ms"], default=None)
        table.append(
            [
                name,
                str(len(parts)),
                f"{sum(part.ended - part.began for part in parts):.1f}",
                str(len(stalls)),
                *(f"{longest[what]:.0f}" if longest else "-" for what in ("own_ms", "run_delay_ms", "cpu_ms", "gc_ms")),
                parts[-1].note or "-",
            ]
        )
    print(text_table(table, markdown))
    print()
    told = [(stall, part.name) for part in watched.parts for stall in part.stalls]
    edges = sum(name.startswith(EDGES) for _, name in told)
    serving = len(told) - edges
    word = "missed" if serving else "reached"
    print(
        line(
            f"stalls above {LIMIT_MS} ms: {serving} (needed: none, {word}), and {edges} while servers started and stopped; "
            f"{watched.turns:,} turns of {watched.processes} processes, which were busy for {watched.busy_s:.0f} s",
            markdown,
        )
    )
    for stall, name in sorted(told, key=lambda pair: -float(pair[0]["own_ms"]))[:TOLD]:
        where = " < ".join(stall["stack"][:6]) or "not sampled: the interpreter's lock was held"
        spent = f"{stall['own_ms']:.0f} ms, {stall['cpu_ms']:.0f} ms of CPU, {stall['gc_ms']:.0f} ms collecting garbage"
        print(line(f"{spent}, {name}: {where}", markdown))


def disk_directory(wanted: str | None) -> Path:
    """
    A directory on a real disk.

    @raise BenchmarkError: what is named is in memory.
    """
    if wanted is None:
        BUILD.mkdir(exist_ok=True)
    path = Path(wanted) if wanted else BUILD
    kinds: dict[Path, str] = {}
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = mount.split()
        kinds[Path(point)] = kind
    kind = next(kinds[parent] for parent in (path.resolve(), *path.resolve().parents) if parent in kinds)
    if kind in ("tmpfs", "ramfs"):
        raise BenchmarkError("what is to be a disk is in memory: name another directory with --disk")
    return path


def main() -> int:
    """
    Run and print.

    @return: 1 if any request failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--rounds", type=positive, help="times that everything is done (3; quick: 1)")
    parser.add_argument("--packs", type=positive, help="of 16 MiB (48; quick: 16)")
    parser.add_argument("--small", type=positive, help="objects of 4 KiB (4000; quick: 1000)")
    parser.add_argument("--entries", type=positive, help="objects that are listed (200000; quick: 20000)")
    parser.add_argument("--seconds", type=float, help="that a phase of reading takes (2; quick: 0.5)")
    parser.add_argument("--disk", metavar="DIRECTORY", help="on the disk for cold downloads (benchmarks/.build)")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("flags", nargs="*", help="more flags for this server, after --")
    arguments = parser.parse_args()
    for name, usual, quick in (
        ("rounds", 3, 1),
        ("packs", 48, 16),
        ("small", 4000, 1000),
        ("entries", 200_000, 20_000),
        ("seconds", 2.0, 0.5),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else usual)

    client = built_client()
    disk = disk_directory(arguments.disk)
    needed = arguments.packs * PACK * 2 + QUICK.large * 64 * MIB + 512 * MIB
    with scratch(needed) as directory, tempfile.TemporaryDirectory(dir=disk) as cold_directory:
        watched = Watched(directory, arguments.flags)
        for tls in (False, True):
            in_memory(watched, client, directory, tls, arguments)
            real_restic(watched, directory, tls, arguments.rounds)
            cold(watched, client, Path(cold_directory), tls, arguments)
    flags = f", flags {' '.join(arguments.flags)}" if arguments.flags else ""
    print(title_line("Stalls of the reactor", arguments.markdown))
    report(watched, arguments.markdown)
    said = version([program("rest-server", ".venv/bin/pip install --editable ."), "--version"])
    print(line(f"{said}{flags}; {machine()}", arguments.markdown))
    for failure in watched.failures:
        print(f"FAILED REQUESTS: {failure}")
    return 1 if watched.failures else 0


if __name__ == "__main__":
    run_main(main)
