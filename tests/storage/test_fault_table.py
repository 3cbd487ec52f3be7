"""
The fault table: each operation on a repository, each of its calls of the file layer, each error. Whatever fails, nothing that
was acknowledged is lost, no wrong byte is visible, no descriptor and no file is left over, and the ledger is right.

C{FAULTS=all} tries all of it and prints the table; without it a part of the calls fails, once each.
"""

from __future__ import annotations

import atexit
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import ServerError, StartError
from resticserver.sizes import Amount
from resticserver.storage.layout import CELLS, TRASH_CELL
from resticserver.storage.scrub_state import ScrubUnavailable

from ..support.descriptors import left_open, open_descriptors
from ..support.fault_cases import (
    LAPTOP,
    Found,
    Operation,
    World,
    Wrong,
    check_list,
    download,
    operations,
    world_in,
)
from ..support.file_layer import FAULTS, Fault, FileLayer
from ..support.scratch import scratch_directory

#: Whether everything is tried.
ALL = os.environ.get("FAULTS") == "all"
#: How an operation fails.
FAILED = (OSError, ServerError, StartError, ScrubUnavailable)
#: What is counted in the table, in the order of its columns.
BAD = ("lost", "wrong", "leaks", "left over", "ledger", "stuck")


@dataclass
class Table:
    """
    The results.

    @ivar runs: by call, error and operation.
    @ivar bad: likewise, with what was bad.
    @ivar words: what was bad, in words.
    """

    runs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def rows(self, columns: Sequence[int]) -> Iterator[str]:
        """As Markdown, summed up over the columns that are left out."""
        names = ("call", "error", "operation")
        chosen = [names[column] for column in columns]
        yield f"| {' | '.join([*chosen, 'runs', *BAD])} |"
        yield f"|{'---|' * len(chosen)}{'--:|' * (1 + len(BAD))}"
        runs: Counter[tuple[str, ...]] = Counter()
        bad: Counter[tuple[str, ...]] = Counter()
        for key, number in self.runs.items():
            runs[tuple(key[column] for column in columns)] += number
        for cell, number in self.bad.items():
            bad[(*(cell[column] for column in columns), cell[3])] += number
        for row, number in sorted(runs.items()):
            yield f"| {' | '.join(row)} | {number} | {' | '.join(str(bad[(*row, what)]) for what in BAD)} |"


TABLE = Table()


def print_table() -> None:
    """Print it summed up, and put all of it, and what was wrong, where C{FAULTS_TABLE} says."""
    for columns in ((0, 1), (2,)):
        print("\n" + "\n".join(TABLE.rows(columns)), file=sys.stderr)
    if path := os.environ.get("FAULTS_TABLE"):
        with open(path, "w") as file:
            file.write("\n".join([*TABLE.rows((0, 1, 2)), "", *TABLE.words]) + "\n")


if ALL:
    atexit.register(print_table)


class FaultTableTests(SynchronousTestCase):
    """All operations but those of the state file."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.number = 0

    def tell(self, what: str, run: tuple[str, str, str], words: object) -> None:
        """Something is not as it should be."""
        TABLE.bad[(*run, what)] += 1
        TABLE.words.append(f"{what}: {' | '.join(run)}: {words}")

    def try_once(self, operation: Operation, at: int, fault: Fault) -> str:
        """Run an operation whose call of that number fails; the call's name, empty if nothing failed."""
        self.number += 1
        with world_in(self.scratch, self.number) as world:
            operation.prepare(world)
            world.before = before = world.look()
            store = operation.store(world)
            opened = open_descriptors()
            caught: BaseException | None = None
            with operation.around(), FileLayer(self.scratch, at, fault) as layer:
                try:
                    operation.run(world, store)
                except FAILED as error:
                    caught = error
                except Wrong as error:
                    caught = error
            if not layer.failed:
                return ""
            run = (layer.failed, fault.name, operation.title)
            TABLE.runs[run] += 1
            if isinstance(caught, Wrong):
                self.tell("wrong", run, caught)
            if left := left_open(opened):
                self.tell("leaks", run, left)
            try:
                after = self.check(operation, world, before, run, caught is None)
                self.again(operation, world, after, run)
            except FAILED as error:
                self.tell("lost", run, repr(error))
            return layer.failed

    def check(self, operation: Operation, world: World, before: Found, run: tuple[str, str, str], done: bool) -> Found:
        """Look at everything after a fault, with a fresh store and without one."""
        found = world.look()
        self.check_places(world, found, before, run, done)
        if not world.recount:
            for cell in range(CELLS):
                was, now = before.amounts.get(cell, Amount()), found.amounts.get(cell, Amount())
                booked = Amount(was.size_bytes + world.booked[cell], was.objects + world.booked_objects[cell])
                if booked != now and not (world.counts_soon and booked >= now):
                    self.tell("ledger", run, f"cell {cell} is {now}, booked {booked}")
        store = operation.store(world)
        store.prepare()
        after = world.look()
        if after.places != found.places:
            self.tell("lost", run, f"the start changed {found.places} to {after.places}")
        if after.others:
            self.tell("left over", run, after.others)
        cells = {*before.amounts, *after.amounts, TRASH_CELL}
        counted = store.counting.count(LAPTOP, cells)
        there = {cell: after.amounts.get(cell, Amount()) for cell in cells}
        if counted != there:
            self.tell("ledger", run, "a count is not what is there")
        if not world.repository.exists():
            return after
        for kind in ("data", "keys", "locks", "index", "snapshots"):
            if (world.repository / kind).exists():
                try:
                    check_list(after, store, kind, True)
                except Wrong as error:
                    self.tell("wrong", run, error)
        if words := operation.check(world):
            self.tell("wrong", run, words)
        for key, places in after.places.items():
            if "live" in places and download(store, key) != world.bodies[key]:
                self.tell("wrong", run, key)
        return after

    def check_places(self, world: World, found: Found, before: Found, run: tuple[str, str, str], done: bool) -> None:
        """Where each object is."""
        for key, places in found.places.items():
            expected = world.expected.get(key)
            if expected is None:
                allowed = {before.places.get(key, ())}
            else:
                allowed = expected.done if done else expected.failed
            if places not in allowed:
                new = set(places) - {place for right in allowed for place in right}
                what = "wrong" if any(place.endswith("!") for place in new) else "lost"
                self.tell(what, run, f"{key} is {places}, not one of {allowed}{'' if done else ' (it failed)'}")

    def again(self, operation: Operation, world: World, after: Found, run: tuple[str, str, str]) -> None:
        """The operation can be repeated, and is done then."""
        world.recount = True
        world.before = after
        try:
            with operation.around():
                operation.run(world, operation.store(world))
            found = world.look()
            for key, expected in world.expected.items():
                if found.places.get(key, ()) not in expected.done:
                    self.tell("stuck", run, f"{key} is {found.places.get(key)} at the end")
        except (*FAILED, Wrong) as error:
            self.tell("stuck", run, repr(error))

    def calls_of(self, operation: Operation) -> list[str]:
        """The calls of an operation that succeeds."""
        self.number += 1
        with world_in(self.scratch, self.number) as world:
            operation.prepare(world)
            world.before = world.look()
            store = operation.store(world)
            with operation.around(), FileLayer(self.scratch) as layer:
                operation.run(world, store)
            found = world.look()
            for key, expected in world.expected.items():
                self.assertIn(found.places.get(key, ()), expected.done, operation.title)
        return layer.seen

    def table_of(self, group: str) -> None:
        """Try all operations of a group."""
        told = len(TABLE.words)
        source = random.Random(1)
        for operation in operations():
            if operation.group != group:
                continue
            calls = self.calls_of(operation)
            tried = [
                (at, fault)
                for at in range(0, len(calls), operation.step)
                for fault in FAULTS
                if fault.applies_to(calls[at])
            ]
            if not ALL:
                # Each look, and half of the other calls, once. That a look fails is most easily taken for "nothing is there".
                source.shuffle(tried)
                tried.sort(key=lambda one: calls[one[0]] == "stat" and one[1].name != "EIO")
                once = {at: (at, fault) for at, fault in reversed(tried)}
                tried = [once[at] for at in once if calls[at] == "stat" or at // operation.step % 2]
            for at, fault in tried:
                self.try_once(operation, at, fault)
        new = TABLE.words[told:]
        self.assertEqual([], new[:20], f"{len(new)} things are wrong")

    def test_uploads(self) -> None:
        """New objects, the same again, damaged ones, a new repository; each way to publish."""
        self.table_of("upload")

    def test_downloads(self) -> None:
        """Whole objects, parts, sizes."""
        self.table_of("download")

    def test_lists(self) -> None:
        """Both versions."""
        self.table_of("list")

    def test_counts(self) -> None:
        """What quotas rest on."""
        self.table_of("count")

    def test_deletions(self) -> None:
        """Without a trash."""
        self.table_of("delete")

    def test_trash(self) -> None:
        """Into the trash."""
        self.table_of("trash")

    def test_restores(self) -> None:
        """Out of the trash."""
        self.table_of("restore")

    def test_expiry(self) -> None:
        """The end of what is in the trash."""
        self.table_of("expiry")

    def test_states(self) -> None:
        """The markers of the volume."""
        self.table_of("state")

    def test_scrub(self) -> None:
        """Nothing is called damaged or missing that is not."""
        self.table_of("scrub")

    def test_start(self) -> None:
        """What a killed server left is removed."""
        self.table_of("start")
