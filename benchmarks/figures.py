"""
Figures of several rounds and the tables that show them, for a terminal or a Markdown page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

REACHED, MISSED = "reached", "missed"


@dataclass(frozen=True)
class Need:
    """
    What is asked for.

    @ivar ratio: how fast beside the other, at least.
    @ivar mark: where Go's rest-server stood.
    @ivar most: this server's own figure, at most.
    @ivar cpu: CPU time beside the other's, at most.
    """

    ratio: float | None = None
    mark: float | None = None
    most: float | None = None
    cpu: float | None = None


@dataclass(frozen=True)
class Sample:
    """
    What one server gave in one round.

    @ivar speed: in the row's unit.
    @ivar cpu_s: the server's CPU time, per what the row says.
    @ivar peak_mb: the most memory of one of its processes.
    """

    speed: float
    cpu_s: float | None
    peak_mb: float | None


@dataclass
class Row:
    """
    One phase over all rounds.

    @ivar unit: of the speed.
    @ivar per: what CPU time is told for.
    @ivar slower_is_more: the figures are times; a ratio above 1 is faster all the same.
    """

    title: str
    unit: str
    per: str
    need: Need | None = None
    slower_is_more: bool = False
    rounds: list[dict[str, Sample | None]] = field(default_factory=list)

    def add(self, samples: dict[str, Sample | None]) -> None:
        """
        One round more.

        @param samples: by column; None where requests failed.
        """
        self.rounds.append(samples)

    def last(self, *columns: str) -> str:
        """The last round's speeds, for the one who waits."""
        return "/".join(_figure(sample.speed) if (sample := self.rounds[-1].get(each)) else "-" for each in columns)

    def values(self, column: str, what: Callable[[Sample], float | None]) -> list[float]:
        """One column's figures, of the rounds that had no failure there."""
        samples = [samples.get(column) for samples in self.rounds]
        return [value for sample in samples if sample is not None and (value := what(sample)) is not None]

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """How fast one was beside the other in each round; more than 1 is faster."""
        found = []
        for samples in self.rounds:
            mine, other = samples.get(ours), samples.get(theirs)
            if mine and other and mine.speed and other.speed:
                found.append(other.speed / mine.speed if self.slower_is_more else mine.speed / other.speed)
        return found

    def cpu_ratios(self, ours: str, theirs: str) -> list[float]:
        """How much CPU time one took beside the other in each round."""
        found = []
        for samples in self.rounds:
            mine, other = samples.get(ours), samples.get(theirs)
            if mine and other and mine.cpu_s and other.cpu_s:
                found.append(mine.cpu_s / other.cpu_s)
        return found

    def verdicts(self, ours: str, theirs: str) -> list[tuple[str, bool]]:
        """What is asked for, and whether it was reached; judged by what the table shows."""
        need = self.need
        if need is None:
            return []
        found = []
        if need.ratio is not None and (ratios := self.ratios(ours, theirs)):
            mark = f" ({need.mark:.2f})" if need.mark is not None else ""
            found.append((f"{need.ratio:.2f}{mark}", round(statistics.median(ratios), 2) >= need.ratio))
        if need.most is not None and (speeds := self.values(ours, lambda sample: sample.speed)):
            found.append((f"< {need.most:g} {self.unit}", statistics.median(speeds) < need.most))
        if need.cpu is not None and (ratios := self.cpu_ratios(ours, theirs)):
            found.append((f"CPU {need.cpu:.2f}", round(statistics.median(ratios), 2) <= need.cpu))
        return found


def table_of(rows: list[Row], titles: dict[str, str], ours: str, theirs: str, markdown: bool) -> str:
    """
    The table.

    @param titles: of the servers' columns.
    @param ours: the column that ratios are of, C{theirs} the one that they are to.
    """
    names = list(titles.values())
    table = [
        [
            "phase",
            *names,
            "unit",
            "ratio",
            "lowest-highest",
            "needed (mark)",
            "",
            *(f"CPU s {name}" for name in names),
            "CPU ratio",
            "CPU s per",
            *(f"peak MB {name}" for name in names),
        ]
    ]
    for row in rows:
        ratios, cpu = row.ratios(ours, theirs), row.cpu_ratios(ours, theirs)
        verdicts = row.verdicts(ours, theirs)
        words = dict.fromkeys(REACHED if reached else MISSED for _, reached in verdicts)
        table.append(
            [
                row.title,
                *(_median(row.values(column, lambda sample: sample.speed)) for column in titles),
                row.unit,
                f"{statistics.median(ratios):.2f}" if ratios else "-",
                f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "-",
                ", ".join(need for need, _ in verdicts) or "-",
                (MISSED if MISSED in words else REACHED) if words else "",
                *(_median(row.values(column, lambda sample: sample.cpu_s)) for column in titles),
                f"{statistics.median(cpu):.2f}" if cpu else "-",
                row.per if cpu else "-",
                *(_most(row.values(column, lambda sample: sample.peak_mb)) for column in titles),
            ]
        )
    return text_table(table, markdown)


def summary(
    rows: list[Row], titles: dict[str, str], ours: str, theirs: str, most_mb: float, all_together: bool
) -> list[str]:
    """
    The lines below a table.

    @param most_mb: what a process of this server may take.
    @param all_together: also how fast it was over all rows.
    """
    lines = []
    verdicts = [(row.title, need, reached) for row in rows for need, reached in row.verdicts(ours, theirs)]
    if verdicts:
        missed = [f"{title} ({need})" for title, need, reached in verdicts if not reached]
        reached = len(verdicts) - len(missed)
        lines.append(f"{reached} of {len(verdicts)} {REACHED}" + (f", {MISSED}: {'; '.join(missed)}" if missed else ""))
    if all_together:
        ratios = [statistics.median(found) for row in rows if (found := row.ratios(ours, theirs))]
        cpu = [statistics.median(found) for row in rows if (found := row.cpu_ratios(ours, theirs))]
        if ratios and cpu:
            speed = statistics.geometric_mean(ratios)
            word = REACHED if round(speed, 2) >= 1 else MISSED
            lines.append(
                f"all rows together (geometric mean): speed {speed:.2f} (needed: 1.00, {word}), "
                f"CPU time {statistics.geometric_mean(cpu):.2f}"
            )
    peaks = {
        column: max(found)
        for column in titles
        if (found := [peak for row in rows for peak in row.values(column, lambda sample: sample.peak_mb)])
    }
    if ours in peaks:
        word = REACHED if peaks[ours] < most_mb else MISSED
        others = ", ".join(f"{titles[column]} {peak:.0f} MB" for column, peak in peaks.items() if column != ours)
        lines.append(
            f"peak memory of a process: {titles[ours]} {peaks[ours]:.0f} MB (needed: below {most_mb:.0f} MB, {word})"
            + (f", {others}" if others else "")
        )
    return lines


def text_table(table: list[list[str]], markdown: bool) -> str:
    """
    A table in aligned columns, figures to the right, or in Markdown's way.

    @param table: rows of cells, the heading first. A column is of figures when each of its cells begins like one.
    """
    right = [
        len(table) > 1 and all(row[column][:1] in tuple("-<0123456789") for row in table[1:])
        for column in range(len(table[0]))
    ]
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


def title_line(text: str, markdown: bool) -> str:
    """A heading above a table."""
    return f"### {text}\n" if markdown else f"{text}\n{'=' * len(text)}"


def line(text: str, markdown: bool) -> str:
    """One of the lines around a table."""
    return f"- {text}" if markdown else text


def _median(values: list[float]) -> str:
    return _figure(statistics.median(values)) if values else "-"


def _most(values: list[float]) -> str:
    return f"{max(values):.0f}" if values else "-"


def _figure(value: float) -> str:
    """Three digits that count, no more."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 4)}f}"
