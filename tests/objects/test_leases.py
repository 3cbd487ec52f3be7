"""
Quotas that several front ends share: the arithmetic, the chain of states, who is alive, and all of it in a simulation, with
threads, and at a real engine.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from resticserver.objects.engine import Content, Engine, EngineError, Found
from resticserver.objects.front_ends import FrontEnds, LeaseEnded, Moment, Times
from resticserver.objects.lease_use import Held, LeaseUse
from resticserver.objects.leased_account import NoRoom, NotCounted
from resticserver.objects.leases import Leases
from resticserver.objects.location import Location
from resticserver.objects.quota_register import Register, Version
from resticserver.objects.quota_state import AccountState, Share, decode_state, lease_size
from resticserver.objects.s3_engine import make_s3_engine

from ..support.engines import shared_seaweedfs
from ..support.lease_world import ACCOUNT, DATA, PREFIX, TIMES, Direct, Exceeded, World, count
from ..support.memory_engine import MemoryEngine
from ..support.processes import process_test
from .environment import aws_environment

COUNTS = st.integers(0, 1 << 70)


class Scripted(Direct):
    """
    An engine and a clock whose faults a test writes down.

    @ivar faults: of the next requests that change something, in order: what happens before the request and after it.
    @ivar requests: all that were made, each with its key.
    @ivar behind_s: how far the clock is behind that is never set; C{wall_behind_s} likewise.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.world = world
        self.faults: list[tuple[Callable[[], object] | None, Callable[[], object] | None]] = []
        self.requests: list[tuple[str, str]] = []
        self.behind_s = 0.0
        self.wall_behind_s = 0.0

    def now(self) -> Moment:
        """See L{Direct.now}."""
        return Moment(self.world.now_s - self.behind_s, self.world.now_s - self.wall_behind_s)

    def request(self, kind: str, key: str, content: Content = b"") -> object:
        """See L{Direct.request}."""
        self.requests.append((kind, key))
        before, after = self.faults.pop(0) if self.faults and kind in ("put", "put_new") else (None, None)
        if before is not None:
            before()
        result = super().request(kind, key, content)
        if after is not None:
            after()
        return result


def fail() -> None:
    """A fault: the request fails."""
    raise EngineError("", "a fault")


def new_leases(engine: Scripted, most: int = 100, **others: Any) -> Leases:
    """A front end."""
    return Leases(engine, PREFIX, times=TIMES, clock=engine, most=most, sleep=engine.world.advance, **others)


def upload(world: World, leases: Leases, size: int, limit: int | None = None) -> None:
    """Take, store, and end."""
    limit = world.limit if limit is None else limit
    held = leases.take(ACCOUNT, size) or leases.acquire(ACCOUNT, limit, size)
    leases.check(held)
    Direct(world).put_new(world.new_name(), bytes(size))
    leases.ended(held, size)


class AccountStateTests(SynchronousTestCase):
    """The shared state of an account."""

    def test_the_bound_is_what_is_counted_and_what_is_not_settled(self) -> None:
        """What was granted counts until it is certainly in the count."""
        state = AccountState("a", 100, 1, {"x": Share(50, 40, 30), "y": Share(7, 0, 0)})
        self.assertEqual(100 + 20 + 7, state.bound)

    def test_a_count_settles_what_was_done_before_it(self) -> None:
        """What was done after the count had begun is in both."""
        began = AccountState("a", 0, 3, {"x": Share(50, 20, 0)})
        now = replace(began, shares={"x": Share(60, 45, 0), "y": Share(5, 5, 0)})
        state = now.with_count(began, 20)
        assert state is not None
        self.assertEqual({"x": Share(60, 45, 20), "y": Share(5, 5, 0)}, state.shares)
        self.assertEqual((20, 4, 20 + 40 + 5), (state.counted, state.counts, state.bound))

    def test_a_count_is_dropped_after_another_one(self) -> None:
        """The other one may have removed the share of what this one has missed."""
        began = AccountState("a", 0, 3)
        self.assertIsNone(replace(began, counts=4).with_count(began, 20))

    def test_a_closed_share_goes_with_the_count_after(self) -> None:
        """Not with a count that began before it was closed."""
        began = AccountState("a", 0, 1, {"x": Share(50, 20, 0), "y": Share(9, 0, 0)})
        closed = began.closing(["x"])
        self.assertEqual({"x": Share(50, 50, 0, True), "y": Share(9, 0, 0)}, closed.shares)
        early = closed.with_count(began, 20)
        assert early is not None
        self.assertEqual(Share(50, 50, 20, True), early.shares["x"])
        late = early.with_count(early, 20)
        assert late is not None
        self.assertEqual({"y": Share(9, 0, 0)}, late.shares)
        self.assertEqual(29, late.bound)

    @given(
        st.none() | COUNTS,
        COUNTS,
        st.lists(st.tuples(COUNTS, COUNTS, COUNTS, st.booleans(), COUNTS), max_size=4),
        st.text(),
    )
    def test_it_is_read_as_it_was_written(
        self, counted: int | None, counts: int, shares: list[tuple[int, int, int, bool, int]], name: str
    ) -> None:
        """Whatever the numbers are."""
        made = {}
        for number, (first, second, third, closed, serial) in enumerate(shares):
            settled, done, granted = sorted((first, second, third))
            made[f"holder{number}"] = Share(granted, done, settled, closed, serial)
        state = AccountState(name, counted, counts, made)
        self.assertEqual(state, decode_state(state.encode(), "key"))

    def test_other_content_is_refused(self) -> None:
        """With the key in the log."""
        good = AccountState("a", 5, 1, {"x": Share(3, 2, 1)}).encode()
        for content in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            good[:-1],
            good.replace(b'"format": 1', b'"format": 2'),
            good.replace(b'"counted": 5', b'"counted": -5'),
            good.replace(b'"counts": 1', b'"counts": null'),
            good.replace(b"[3, 2", b"[1, 2"),
            good.replace(b"[3, 2", b"[2"),
        ):
            error = self.assertRaises(EngineError, decode_state, content, "the/key")
            self.assertIn("the/key", error.detail)

    def test_leases_become_smaller(self) -> None:
        """A part of what is left, for each front end."""
        self.assertEqual([10, 10, 5, 0, 0], [lease_size(left, 2, 10) for left in (1000, 80, 40, 7, -5)])


class LeaseUseTests(SynchronousTestCase):
    """What a front end has leased, and uses."""

    def test_what_was_not_stored_is_free_again(self) -> None:
        """An upload takes its size, and gives back what is not stored."""
        use = LeaseUse(granted=10)
        self.assertTrue(use.take(8))
        self.assertFalse(use.take(3))
        use.end(Held("a", "x", 8), 5)
        self.assertEqual((10, 5, 5, 5), (use.granted, use.used, use.done, use.unused))

    def test_what_was_leased_above_the_limit_is_for_nothing_else(self) -> None:
        """What is not stored of it goes back."""
        use = LeaseUse(granted=10)
        use.grant_above(8)
        self.assertEqual(10, use.unused)
        use.end(Held("a", "x", 8, above=True), 0)
        self.assertEqual((10, 0, 0), (use.granted, use.used, use.done))

    def test_what_may_be_stored_is_done_later(self) -> None:
        """It stays used."""
        use = LeaseUse(granted=10)
        use.take(8)
        use.end_late(Held("a", "x", 8), 100.0)
        use.at(99.0)
        self.assertEqual((8, 0), (use.used, use.done))
        use.at(100.0)
        use.at(101.0)
        self.assertEqual((8, 8), (use.used, use.done))


class RegisterTests(SynchronousTestCase):
    """The chain of states."""

    def setUp(self) -> None:
        self.world = World(0, 1000, 100)
        self.engine = Scripted(self.world)
        self.register = Register(self.engine, "folder/", "a")

    def changed(self, before: Version, serial: int, holder: str = "x") -> Version:
        """Make a change."""
        return self.register.change(before, before.state.with_share(holder, serial, 0, serial), holder, serial)

    def test_a_change_is_read(self) -> None:
        """By all."""
        self.assertEqual(Version(0, AccountState("a")), self.register.read())
        made = self.changed(self.register.read(), 1)
        self.assertTrue(made.is_by("x", 1))
        self.assertEqual((1, made), (made.number, self.register.read()))

    def test_of_two_changes_of_one_state_one_is_made(self) -> None:
        """The other one learns the state that is there."""
        empty = self.register.read()
        first, second = self.changed(empty, 1), self.changed(empty, 1, "y")
        self.assertTrue(first.is_by("x", 1))
        self.assertFalse(second.is_by("y", 1))
        self.assertEqual(first, second)

    def test_an_error_after_storing(self) -> None:
        """The change was made."""
        self.engine.faults = [(None, fail)]
        self.assertTrue(self.changed(self.register.read(), 1).is_by("x", 1))

    def test_an_error_before_storing(self) -> None:
        """It is tried again, and then it is not known."""
        self.engine.faults = [(fail, None), (fail, None)]
        made = self.changed(self.register.read(), 1)
        self.assertTrue(made.is_by("x", 1))
        self.engine.faults = [(fail, None)] * 3
        self.assertRaises(EngineError, self.changed, made, 2)
        self.assertEqual(made, self.register.read())

    def test_a_number_that_was_passed_is_no_change(self) -> None:
        """A front end that was paused stores an object whose number is free again."""
        old = self.register.read()
        version = old
        for serial in range(1, 40):
            version = self.changed(version, serial)
        self.assertNotIn("folder/0000000000000001", self.world.objects)
        woken = self.changed(old, 1, "y")
        self.assertIn("folder/0000000000000001", self.world.objects)
        self.assertEqual(version, woken)
        self.assertEqual(version, self.register.read())

    def test_old_objects_are_removed(self) -> None:
        """However many changes there are; a failed removal does no harm."""
        version = self.register.read()
        for serial in range(1, 100):
            version = self.changed(version, serial)
            self.assertLessEqual(len(self.world.objects), 16)
            self.assertIn(f"folder/{version.number:016}", self.world.objects)

    def test_what_is_superseded_at_once_was_made(self) -> None:
        """Another front end may change the state before the list."""
        other = Register(Scripted(self.world), "folder/", "a")

        def supersede() -> None:
            now = other.read()
            other.change(now, now.state.with_share("y", 5, 0, 1), "y", 1)

        self.engine.faults = [(None, supersede)]
        made = self.changed(self.register.read(), 1)
        self.assertEqual((2, True, True), (made.number, made.is_by("x", 1), made.is_by("y", 1)))

    def test_what_is_stored_and_not_listed_is_an_error(self) -> None:
        """The engine does not keep its promises."""
        self.engine.faults = [(None, self.world.objects.clear)]
        self.assertRaises(EngineError, self.changed, self.register.read(), 1)


class FrontEndsTests(SynchronousTestCase):
    """Who is alive."""

    def setUp(self) -> None:
        self.world = World(0, 1000, 100)
        self.engine, self.other = Scripted(self.world), Scripted(self.world)
        self.one = FrontEnds(self.engine, "ends/", TIMES, self.engine)
        self.two = FrontEnds(self.other, "ends/", TIMES, self.other)

    def pass_s(self, seconds: float, *alive: FrontEnds) -> None:
        """Let time pass, in which some renew."""
        while seconds > 0:
            self.world.advance(min(5.0, seconds))
            seconds -= 5.0
            for one in alive:
                one.renew()

    def test_leases_may_be_used_for_a_while(self) -> None:
        """And not before the first look."""
        holder = self.one.holder
        self.assertFalse(self.one.may_store(holder))
        self.one.renew()
        self.assertTrue(self.one.may_store(holder))
        self.assertFalse(self.one.may_store("another"))
        self.world.advance(TIMES.usable_s)
        self.assertFalse(self.one.may_store(holder))

    def test_a_dead_front_end_is_gone_when_nothing_of_it_can_come(self) -> None:
        """It is declared dead first, and then its time is waited for."""
        self.one.renew()
        self.two.renew()
        dead = self.two.holder
        self.one.renew()
        self.pass_s(TIMES.suspect_s - 5, self.one)
        self.assertNotIn(f"ends/{dead}.dead", self.world.objects)
        self.pass_s(10, self.one)
        self.assertIn(f"ends/{dead}.dead", self.world.objects)
        self.pass_s(TIMES.dead_s - 10, self.one)
        self.assertEqual(set(), self.one.gone([dead]))
        self.pass_s(20, self.one)
        self.assertEqual({dead}, self.one.gone([dead, self.one.holder]))
        self.assertNotIn(f"ends/{dead}.alive", self.world.objects)
        self.pass_s(TIMES.keep_dead_s, self.one)
        self.assertEqual([f"ends/{self.one.holder}.alive"], sorted(self.world.objects))

    def test_another_observer_waits_by_its_own_clock(self) -> None:
        """A machine that has slept knows less than the engine; the later one is right."""
        self.two.renew()
        dead = self.two.holder
        self.one.renew()
        Direct(self.world).put_new(f"ends/{dead}.dead", b"")
        self.pass_s(10, self.one)
        self.engine.behind_s += TIMES.dead_s
        self.world.advance(TIMES.dead_s)
        # The wall clock says that this one was away itself.
        self.assertRaises(LeaseEnded, self.one.renew)
        self.one.renew()
        self.assertEqual(set(), self.one.gone([dead]))

    def test_one_that_was_away_for_too_long_gets_another_name(self) -> None:
        """Whether or not another front end has noticed, and by either clock."""
        for behind_s, wall_behind_s in ((0.0, 0.0), (TIMES.usable_s, 0.0), (0.0, TIMES.usable_s)):
            self.one.renew()
            before = self.one.holder
            self.world.advance(TIMES.usable_s)
            self.engine.behind_s += behind_s
            self.engine.wall_behind_s += wall_behind_s
            self.assertFalse(self.one.may_store(before))
            self.assertRaises(LeaseEnded, self.one.renew)
            self.assertNotEqual(before, self.one.holder)
            self.assertFalse(self.one.may_store(before))
            self.assertFalse(self.one.may_store(self.one.holder))

    def test_one_that_was_declared_dead_gets_another_name(self) -> None:
        """Even if it has never stopped."""
        self.one.renew()
        before = self.one.holder
        Direct(self.world).put_new(f"ends/{before}.dead", b"")
        self.assertRaises(LeaseEnded, self.one.renew)
        self.assertFalse(self.one.may_store(before))
        self.one.renew()
        self.assertTrue(self.one.may_store(self.one.holder))

    def test_the_others_wait_for_what_the_engine_may_still_take(self) -> None:
        """From a machine whose clocks stood still: signatures are taken for 15 minutes, with any clock that the engine takes."""
        signature_s, request_s = 900.0, 240.0
        self.assertGreaterEqual(Times().grace_s, 2 * signature_s + request_s)
        self.assertGreaterEqual(Times().dead_s, Times().usable_s + Times().grace_s)
        self.assertGreater(Times().keep_dead_s, 2 * Times().dead_s)

    def test_a_failed_look_is_no_look(self) -> None:
        """What was usable stays so for its time, and no longer."""
        self.one.renew()
        self.world.advance(TIMES.usable_s - 1)
        self.engine.faults = [(None, fail)]
        self.assertRaises(EngineError, self.one.renew)
        self.assertTrue(self.one.may_store(self.one.holder))
        self.world.advance(1)
        self.assertFalse(self.one.may_store(self.one.holder))

    def test_a_new_front_end_is_not_gone(self) -> None:
        """One that came after the last look is looked for."""
        self.one.renew()
        self.two.renew()
        self.assertEqual(set(), self.one.gone([self.two.holder]))
        holder = self.two.holder
        self.two.leave()
        self.one.renew()
        self.assertEqual({holder}, self.one.gone([holder]))


class LeasesTests(SynchronousTestCase):
    """The leases of two front ends."""

    def setUp(self) -> None:
        self.world = World(0, 1000, 100)
        self.engine, self.other = Scripted(self.world), Scripted(self.world)
        self.one, self.two = new_leases(self.engine), new_leases(self.other)

    def state(self) -> AccountState:
        """The account as it is in the bucket."""
        (last, *_) = sorted((key for key in self.world.objects if "/accounts/" in key), reverse=True)
        return decode_state(self.world.objects[last], last)

    def test_nothing_is_leased_before_a_count(self) -> None:
        """One front end counts for all."""
        self.assertRaises(NotCounted, self.one.acquire, ACCOUNT, 1000, 1)
        self.assertTrue(count(self.world, self.two))
        self.assertEqual(1, self.one.acquire(ACCOUNT, 1000, 1).size)

    def test_many_uploads_take_few_requests(self) -> None:
        """A lease is for many."""
        count(self.world, self.one)
        self.engine.requests.clear()
        for _ in range(100):
            upload(self.world, self.one, 1)
        self.assertLessEqual(len(self.engine.requests), 4)

    def test_what_does_not_fit_is_refused(self) -> None:
        """With what is left."""
        count(self.world, self.one)
        upload(self.world, self.one, 900)
        error = self.assertRaises(NoRoom, self.one.acquire, ACCOUNT, 1000, 101)
        self.assertEqual(100, error.left)
        error = self.assertRaises(NoRoom, self.two.acquire, ACCOUNT, 1000, 101)
        unused = self.state().bound - self.world.stored
        self.assertEqual(100 - unused, error.left)

    def test_another_front_ends_lease_is_not_free(self) -> None:
        """Until it is given back, unused, and that is seen without a count."""
        count(self.world, self.one)
        upload(self.world, self.two, 5)
        left = self.assertRaises(NoRoom, self.one.acquire, ACCOUNT, 1000, 1000).left
        self.assertEqual(1000 - 100, left)
        self.two.tidy()
        self.two.tidy()
        self.assertEqual(995, self.assertRaises(NoRoom, self.one.acquire, ACCOUNT, 1000, 1000).left)

    def test_a_removal_gives_back_with_the_next_count(self) -> None:
        """Another front end's lists say so."""
        count(self.world, self.one)
        upload(self.world, self.one, 990)
        for key in [key for key in self.world.objects if key.startswith(DATA)]:
            Direct(self.world).remove(key)
        self.assertRaises(NoRoom, self.two.acquire, ACCOUNT, 1000, 500)
        self.one.tidy()
        self.one.tidy()
        count(self.world, self.two)
        self.assertEqual(500, self.two.acquire(ACCOUNT, 1000, 500).size)

    def test_a_count_that_another_one_has_overtaken_is_dropped(self) -> None:
        """Its lists may have missed what is only in the other one."""
        count(self.world, self.one)
        begun = self.one.begin_count(ACCOUNT)
        upload(self.world, self.two, 50)
        self.two.close()
        third = new_leases(self.other)
        self.assertTrue(count(self.world, third))
        self.assertFalse(self.one.counted(begun, 0))
        self.assertEqual((50, 50), (self.state().counted, self.state().bound))

    def test_what_was_uploaded_during_a_count_is_not_forgotten(self) -> None:
        """The count may have missed it: what was done when it began is settled, and no more."""
        count(self.world, self.one)
        begun = self.two.begin_count(ACCOUNT)
        upload(self.world, self.one, 100)
        self.one.tidy()
        self.one.tidy()
        self.assertTrue(self.two.counted(begun, 0))
        self.assertEqual(100, self.state().bound)
        count(self.world, self.two)
        self.assertEqual((100, 100), (self.state().counted, self.state().bound))

    def test_what_may_be_stored_counts_until_it_cannot_be_any_more(self) -> None:
        """A count does not settle it before."""
        count(self.world, self.one)
        held = self.one.acquire(ACCOUNT, 1000, 600)
        self.one.ended(held, 0, certain=False)
        self.one.ended(held, 0)
        self.one.tidy()
        self.one.tidy()
        count(self.world, self.one)
        self.assertEqual(600, self.state().bound)
        for _ in range(int(TIMES.grace_s / 10) + 1):
            self.one.renew()
            self.world.advance(10.0)
        self.one.renew()
        count(self.world, self.one)
        self.assertEqual(0, self.state().bound)

    def test_locks_may_use_a_reserve(self) -> None:
        """Nothing else can, even when it was not needed."""
        count(self.world, self.one)
        upload(self.world, self.one, 1000)
        held = self.one.acquire(ACCOUNT, 1010, 10, above=True)
        self.assertIsNone(self.one.take(ACCOUNT, 1))
        self.assertRaises(NoRoom, self.one.acquire, ACCOUNT, 1010, 1, above=True)
        self.one.ended(held, 0)
        self.assertIsNone(self.one.take(ACCOUNT, 1))
        self.assertRaises(NoRoom, self.one.acquire, ACCOUNT, 1000, 1)
        self.assertEqual(10, self.one.acquire(ACCOUNT, 1010, 10, above=True).size)

    def test_an_unclear_answer_gives_nothing(self) -> None:
        """The lease may be there; the next change says what is so."""
        count(self.world, self.one)
        self.one.acquire(ACCOUNT, 1000, 10)
        before = self.state().bound
        self.engine.faults = [(fail, None)] * 3
        self.assertRaises(EngineError, self.one.acquire, ACCOUNT, 1000, 200)
        self.assertIsNone(self.one.take(ACCOUNT, 200))
        self.one.tidy()
        self.one.tidy()
        self.assertLess(self.state().bound, before)

    def test_a_front_end_that_ends_in_order_leaves_nothing(self) -> None:
        """Its leases can be used at once, and its share goes with the next count."""
        count(self.world, self.one)
        upload(self.world, self.one, 5)
        upload(self.world, self.two, 5)
        self.one.close()
        self.assertEqual(990, self.assertRaises(NoRoom, self.two.acquire, ACCOUNT, 1000, 2000).left)
        count(self.world, self.two)
        self.assertEqual([self.two.holder], list(self.state().shares))

    def test_an_upload_in_progress_at_the_end_is_left_to_the_others(self) -> None:
        """Its object stays, so that it is declared dead and waited for."""
        count(self.world, self.one)
        self.one.acquire(ACCOUNT, 1000, 50)
        holder = self.one.holder
        self.one.close()
        count(self.world, self.two)
        self.assertEqual(Share(50, 0, 0), self.state().shares[holder]._replace(serial=0))
        self.assertIn(f"{PREFIX}front-ends/{holder}.alive", self.world.objects)

    def test_the_leases_of_a_dead_front_end_come_back(self) -> None:
        """One lease of each live one is the most that is missing then."""
        count(self.world, self.one)
        self.two.acquire(ACCOUNT, 1000, 300)
        for _ in range(int((TIMES.suspect_s + TIMES.dead_s) / 5) + 3):
            self.one.renew()
            self.world.advance(5.0)
        self.one.renew()
        self.assertEqual(700, self.assertRaises(NoRoom, self.one.acquire, ACCOUNT, 1000, 1000).left)
        count(self.world, self.one)
        self.assertEqual(1000, self.one.acquire(ACCOUNT, 1000, 1000).size)

    def test_a_lease_from_before_a_pause_is_not_used(self) -> None:
        """It is refused before the request, and another one is taken."""
        count(self.world, self.one)
        held = self.one.acquire(ACCOUNT, 1000, 5)
        self.one.check(held)
        self.world.advance(TIMES.usable_s)
        self.assertRaises(LeaseEnded, self.one.check, held)
        self.assertRaises(LeaseEnded, self.one.renew)
        self.assertIsNone(self.one.take(ACCOUNT, 5))
        again = self.one.acquire(ACCOUNT, 1000, 5)
        self.one.check(again)
        self.one.ended(held, 5)
        self.assertRaises(LeaseEnded, self.one.check, held)

    def test_a_share_that_the_others_have_closed_is_not_used(self) -> None:
        """Whoever has closed it."""
        count(self.world, self.one)
        self.one.acquire(ACCOUNT, 1000, 5)
        (folder,) = {key.rpartition("/")[0] for key in self.world.objects if "/accounts/" in key}
        register = Register(self.other, f"{folder}/", ACCOUNT)
        version = register.read()
        register.change(version, version.state.closing([self.one.holder]).with_share("x", 0, 0, 1), "x", 1)
        self.assertRaises(LeaseEnded, self.one.acquire, ACCOUNT, 1000, 500)
        self.assertIsNone(self.one.take(ACCOUNT, 1))
        self.assertEqual(500, self.one.acquire(ACCOUNT, 1000, 500).size)


class SimulationTests(SynchronousTestCase):
    """
    Front ends that are killed, stopped, paused with their clocks and woken between any two requests, and an engine that answers
    late, wrongly, or not at all.
    """

    limit, most_lease, front_ends, steps = 200, 60, 4, 6000

    def simulate(self, seed: int) -> World:
        """
        One run, and what is left when the survivors have filled the limit.

        @raise AssertionError: the limit was exceeded, or cannot be filled.
        """
        world = World(seed, self.limit, self.most_lease)
        world.run(self.steps, self.front_ends)
        left = world.fill(2)
        assert 0 <= left <= lease_size(self.limit, 2, self.most_lease), f"{left} is left"
        return world

    def test_no_limit_is_exceeded_and_all_of_it_can_be_used(self) -> None:
        """With any seed. Everything that the simulation is for happens."""
        events: set[str] = set()
        most_stored = 0
        for seed in range(6):
            world = self.simulate(seed)
            events.update(world.events)
            most_stored = max(most_stored, world.most_stored)
        self.assertEqual(self.limit, most_stored)
        for event in ("lost", "late", "carried out", "signature too old", "lease ended", "NoRoom", "machine paused"):
            self.assertIn(event, events)

    def assert_found(self, what: object, name: str, broken: Callable[..., object]) -> None:
        """With a part of the protocol broken, one of some runs exceeds the limit."""
        with mock.patch.object(what, name, broken):
            for seed in range(60):
                # What the broken part has written may be refused when it is read: that run shows nothing.
                with contextlib.suppress(EngineError):
                    try:
                        self.simulate(seed)
                    except Exceeded:
                        return
        self.fail(f"nothing is found without {name}")

    def test_a_lease_that_is_not_checked_is_found(self) -> None:
        """A front end that was stopped for long goes on as before."""
        self.assert_found(Leases, "check", lambda leases, held: None)

    def test_what_is_done_too_early_is_found(self) -> None:
        """A count may miss what was granted before it and is stored after it."""
        right = AccountState.with_share

        def broken(state: AccountState, holder: str, granted: int, done: int, serial: int) -> AccountState:
            return right(state, holder, granted, granted, serial)

        self.assert_found(AccountState, "with_share", broken)


class Machine(RuleBasedStateMachine):
    """
    Front ends in any order of calls, each of which may fail at any of its requests, before or after it was carried out. What was
    sent and not answered may be stored later.
    """

    limit = 100
    times: ClassVar[Times] = TIMES

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0, self.limit, 40)
        self.engines = [Scripted(self.world) for _ in range(3)]
        self.leases = [new_leases(engine, 40) for engine in self.engines]
        self.held: list[tuple[int, Leases, Held]] = []
        self.late: list[tuple[float, str, int]] = []

    @initialize()
    def begin(self) -> None:
        """There is a count."""
        count(self.world, self.leases[0])

    def attempt(self, call: Callable[[], object]) -> None:
        """What may fail."""
        try:
            call()
        except (EngineError, LeaseEnded, NoRoom):
            pass

    @rule(which=st.integers(0, 2), faults=st.lists(st.sampled_from(["none", "before", "after"]), max_size=6))
    def break_requests(self, which: int, faults: list[str]) -> None:
        """The next requests of one front end fail."""
        made = {"none": (None, None), "before": (fail, None), "after": (None, fail)}
        self.engines[which].faults = [made[one] for one in faults]

    @rule(which=st.integers(0, 2), size=st.integers(1, 60))
    def take(self, which: int, size: int) -> None:
        """An upload begins."""

        def call() -> None:
            leases = self.leases[which]
            self.held.append((which, leases, leases.take(ACCOUNT, size) or leases.acquire(ACCOUNT, self.limit, size)))

        self.attempt(call)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["stored", "refused", "late", "unclear"]))
    def end(self, data: st.DataObject, how: str) -> None:
        """An upload is sent, if it may be."""
        _, leases, held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        try:
            leases.check(held)
        except LeaseEnded:
            leases.ended(held, 0)
            return
        name = self.world.new_name()
        if how == "late":
            self.late.append((self.world.now_s + self.times.grace_s, name, held.size))
        elif how != "refused":
            Direct(self.world).put_new(name, bytes(held.size))
        leases.ended(held, held.size if how == "stored" else 0, how in ("stored", "refused"))

    @rule(data=st.data())
    def store_late(self, data: st.DataObject) -> None:
        """What the engine has kept back is stored, at the end of its time at the latest."""
        if self.late:
            _, name, size = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
            Direct(self.world).put_new(name, bytes(size))

    @rule(seconds=st.sampled_from([1.0, TIMES.usable_s, TIMES.suspect_s, TIMES.dead_s]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.advance(seconds)
        for one in [one for one in self.late if one[0] <= self.world.now_s]:
            self.late.remove(one)
            Direct(self.world).put_new(one[1], bytes(one[2]))

    @rule(which=st.integers(0, 2))
    def renew(self, which: int) -> None:
        """A front end looks."""
        self.attempt(self.leases[which].renew)

    @rule(which=st.integers(0, 2))
    def tidy(self, which: int) -> None:
        """A front end gives back."""
        self.attempt(self.leases[which].tidy)

    @rule(which=st.integers(0, 2))
    def count(self, which: int) -> None:
        """A front end counts."""
        self.attempt(lambda: count(self.world, self.leases[which]))

    @rule(which=st.integers(0, 2), in_order=st.booleans())
    def replace(self, which: int, in_order: bool) -> None:
        """A front end ends, or dies, and another one starts."""
        if in_order and not any(number == which for number, *_ in self.held):
            self.attempt(self.leases[which].close)
        self.held = [one for one in self.held if one[0] != which]
        self.leases[which] = new_leases(self.engines[which], 40)

    @rule()
    def remove(self) -> None:
        """A client removes objects."""
        for key in sorted(key for key in self.world.objects if key.startswith(DATA))[:3]:
            Direct(self.world).remove(key)

    @invariant()
    def is_within_the_limit(self) -> None:
        """What is stored, and what may still be."""
        assert self.world.stored + sum(size for *_, size in self.late) <= self.limit

    def teardown(self) -> None:
        """The limit can be filled."""
        for _, name, size in self.late:
            Direct(self.world).put_new(name, bytes(size))
        assert 0 <= self.world.fill(2) <= lease_size(self.limit, 2, 40)


class MachineTests(SynchronousTestCase):
    """Short runs of any calls; hypothesis shortens those that fail."""

    def test_any_order_of_calls(self) -> None:
        """No limit is exceeded, and what is left can be used."""
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))


class Crowd:
    """
    Uploaders in threads, several at each front end, which are killed and replaced.

    @param make_engine: a new engine of the bucket.
    @param data: what the keys of objects begin with.
    """

    #: As short as an engine's lists with times in seconds allow.
    times = Times(usable_s=2.0, suspect_s=4.0, grace_s=2.0)

    def __init__(self, make_engine: Callable[[], Engine], data: str, limit: int) -> None:
        self._make_engine = make_engine
        self._data = data
        self._limit = limit
        self._lock = threading.Lock()
        self._names = 0
        self.problems: list[BaseException] = []
        self.stored = 0
        self.refused = 0

    def front_end(self, uploaders: int, kill_after: int | None) -> None:
        """A front end until its uploads are refused, or until it dies after so many uploads."""
        engine = self._make_engine()
        leases = Leases(engine, PREFIX, times=self.times, most=self._limit // 10)
        stop = threading.Event()
        left = [kill_after]
        threads = [threading.Thread(target=self._upload, args=(engine, leases, left, stop)) for _ in range(uploaders)]
        renewing = threading.Thread(target=self._renew, args=(leases, stop))
        for thread in (*threads, renewing):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        renewing.join()

    def _renew(self, leases: Leases, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            with contextlib.suppress(EngineError, LeaseEnded):
                leases.renew()

    def _upload(self, engine: Engine, leases: Leases, left: list[int | None], stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                with self._lock:
                    self._names += 1
                    name = f"{self._data}{self._names:06}"
                    if left[0] is not None:
                        if not left[0]:
                            return  # what it has leased is never given back by itself
                        left[0] -= 1
                size = 50 + len(name) % 7 * 10
                try:
                    held = leases.take(ACCOUNT, size) or leases.acquire(ACCOUNT, self._limit, size)
                    leases.check(held)
                except LeaseEnded:
                    continue
                engine.put_new(name, bytes(size))
                leases.ended(held, size)
                with self._lock:
                    self.stored += size
        except NoRoom:
            with self._lock:
                self.refused += 1
        except BaseException as error:
            self.problems.append(error)

    def count(self, leases: Leases) -> int:
        """Count, and say how much it was."""
        begun = leases.begin_count(ACCOUNT)
        counted = sum(one.size_bytes for page in self._make_engine().list_pages(self._data) for one in page)
        leases.counted(begun, counted)
        return counted


class ThreadedMemoryEngine(MemoryEngine):
    """An engine in memory for several threads."""

    def __init__(self) -> None:
        super().__init__(page_objects=1000)
        self._listing = threading.RLock()

    def _store(self, key: str, content: Content, sha256: bytes | None) -> None:
        with self._listing:
            super()._store(key, content, sha256)

    def remove(self, key: str) -> None:
        """See L{MemoryEngine.remove}."""
        with self._listing:
            super().remove(key)

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{MemoryEngine.list_pages}."""
        with self._listing:
            pages = list(super().list_pages(prefix, after))
        yield from pages


class CrowdTests(SynchronousTestCase):
    """Three front ends with sixteen uploaders, of which two die: with threads and clocks as they are."""

    def check(self, make_engine: Callable[[], Engine], limit: int) -> None:
        """Fill a limit, let front ends die, and fill what they had leased."""
        crowd = Crowd(make_engine, "repo/data/", limit)
        engine = make_engine()
        observer = Leases(engine, PREFIX, times=crowd.times, most=limit // 10)
        self.assertEqual(0, crowd.count(observer))
        runs = [threading.Thread(target=crowd.front_end, args=arguments) for arguments in ((6, None), (5, 20), (5, 30))]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        self.assertEqual([], crowd.problems)
        self.assertGreater(crowd.refused, 0)
        stored = sum(one.size_bytes for page in engine.list_pages("repo/data/") for one in page)
        self.assertEqual(crowd.stored, stored)
        self.assertLessEqual(stored, limit)
        # Those that have ended have left their leases behind.
        until_s = time.monotonic() + crowd.times.suspect_s + crowd.times.dead_s + 3.0
        while time.monotonic() < until_s:
            with contextlib.suppress(LeaseEnded):
                observer.renew()
            time.sleep(0.3)
        for _ in range(2):
            crowd.count(observer)
        before = crowd.stored
        crowd.front_end(1, None)
        self.assertEqual([], crowd.problems)
        self.assertGreaterEqual(crowd.stored, before)
        self.assertLessEqual(crowd.stored, limit)
        # Less than one object is left.
        self.assertGreater(crowd.stored, limit - 110)
        self.assertEqual(crowd.stored, crowd.count(observer))

    def test_an_engine_in_memory(self) -> None:
        """The locks within a front end hold."""
        engine = ThreadedMemoryEngine()
        self.check(lambda: engine, 20_000)

    @process_test
    def test_seaweedfs(self) -> None:
        """A real engine orders the changes."""
        server = shared_seaweedfs()
        bucket = server.new_bucket(self)
        aws_environment(self, **server.environment())
        location = Location("s3", bucket)
        self.check(lambda: make_s3_engine(location), 20_000)
