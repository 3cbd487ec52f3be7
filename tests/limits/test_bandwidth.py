"""
Token buckets on a clock: rates, fairness, what is given back, and several processes.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.limits.bandwidth import (
    BURST_S,
    LEAST_GRANT_BYTES,
    MOST_GRANT_BYTES,
    TOTAL,
    Bandwidth,
    BothDirections,
    Share,
)

MIB = 1 << 20
#: How often the clock ticks.
TICK_S = 0.005


class Transfer:
    """
    A transfer without end.

    @param uses: how much of each grant it moves; the rest it gives back.
    @ivar moved_bytes: how much it has moved.
    @ivar longest_s: the longest time between two grants.
    """

    def __init__(self, share: Share | None, clock: Clock, uses: Callable[[int], int] = lambda granted: granted) -> None:
        assert share is not None
        self._share = share
        self._clock = clock
        self._uses = uses
        self.moved_bytes = 0
        self.longest_s = 0.0
        self._since_s = clock.seconds()
        self.asking: Deferred[int]
        self._ask()

    def _ask(self) -> None:
        self.asking = self._share.take(100 * MIB)
        self.asking.addCallbacks(self._granted, lambda failure: failure.trap(CancelledError))

    def _granted(self, size_bytes: int) -> None:
        now_s = self._clock.seconds()
        self.longest_s = max(self.longest_s, now_s - self._since_s)
        self._since_s = now_s
        used_bytes = self._uses(size_bytes)
        self.moved_bytes += used_bytes
        # A job takes a moment.
        self._clock.callLater(0.001, self._moved, size_bytes - used_bytes)

    def _moved(self, unused_bytes: int) -> None:
        self._share.give_back(unused_bytes)
        self._ask()


class BandwidthCase(SynchronousTestCase):
    """A clock."""

    def setUp(self) -> None:
        self.clock = Clock()

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([TICK_S] * round(seconds / TICK_S))

    def transfers(self, bandwidth: Bandwidth, *users: str, rate: int | None = None) -> list[Transfer]:
        """A transfer of each user."""
        return [Transfer(bandwidth.share(user, rate), self.clock) for user in users]

    def assert_rate(self, expected: float, moved_bytes: float, seconds: float, tolerance: float = 0.05) -> None:
        """So much moved in so much time, within a twentieth, and besides what a bucket holds at first."""
        self.assertGreater(moved_bytes, expected * seconds * (1 - tolerance))
        burst = max(expected * BURST_S, LEAST_GRANT_BYTES)
        self.assertLess(moved_bytes, expected * seconds * (1 + tolerance) + burst)


class TotalTests(BandwidthCase):
    """The limit of the server."""

    def test_rates(self) -> None:
        """It is kept for any number of transfers, at low and high rates, and none waits for long."""
        for rate in (64 << 10, MIB, 50 * MIB, 150 * MIB):
            for number in (1, 5, 20):
                self.clock = Clock()
                transfers = self.transfers(Bandwidth(self.clock, rate), *["alice"] * number)
                self.run_for(20)
                self.assert_rate(rate, sum(each.moved_bytes for each in transfers), 20)
                most_wait_s = max(0.2, 3 * number * LEAST_GRANT_BYTES / rate)
                self.assertLess(max(each.longest_s for each in transfers), most_wait_s, (rate, number))

    def test_smooth(self) -> None:
        """Each tenth of a second has its part, after the first moment."""
        transfers = self.transfers(Bandwidth(self.clock, 10 * MIB), "alice", "bob")
        self.run_for(1)
        for _ in range(50):
            before = sum(each.moved_bytes for each in transfers)
            self.run_for(0.1)
            moved = sum(each.moved_bytes for each in transfers) - before
            self.assertTrue(0.4 * MIB < moved < 1.6 * MIB, moved)

    def test_between_connections(self) -> None:
        """A user's transfers get the same."""
        transfers = self.transfers(Bandwidth(self.clock, 10 * MIB), *["alice"] * 7)
        self.run_for(10)
        moved = [each.moved_bytes for each in transfers]
        self.assertLess(max(moved), 1.1 * min(moved))

    def test_between_users(self) -> None:
        """A user with one connection gets as much as one with twenty."""
        transfers = self.transfers(Bandwidth(self.clock, 10 * MIB), "bob", *["alice"] * 20)
        self.run_for(10)
        bob, *alice = (each.moved_bytes for each in transfers)
        self.assertLess(abs(bob - sum(alice)), 0.1 * bob)

    def test_away(self) -> None:
        """Who was away does not make up for it: others are not kept waiting."""
        bandwidth = Bandwidth(self.clock, 10 * MIB)
        (alice,) = self.transfers(bandwidth, "alice")
        self.run_for(100)
        (bob,) = self.transfers(bandwidth, "bob")
        before = alice.moved_bytes
        self.run_for(4)
        self.assertLess(abs(bob.moved_bytes - (alice.moved_bytes - before)), 0.1 * bob.moved_bytes)

    def test_given_back(self) -> None:
        """What slow clients do not use of their grants, the others get."""
        bandwidth = Bandwidth(self.clock, 10 * MIB)
        slow = [Transfer(bandwidth.share(f"slow{number}", None), self.clock, lambda _: 1) for number in range(10)]
        (fast,) = self.transfers(bandwidth, "fast")
        self.run_for(10)
        self.assert_rate(10 * MIB, fast.moved_bytes, 10, tolerance=0.2)
        self.assertLess(sum(each.moved_bytes for each in slow), MIB)

    def test_charge(self) -> None:
        """What moved without a grant is waited for later."""
        bandwidth = Bandwidth(self.clock, MIB)
        share = bandwidth.share("alice", None)
        assert share is not None
        share.charge(10 * MIB)
        granted = share.take(1)
        self.run_for(9)
        self.assertNoResult(granted)
        self.run_for(1)
        self.assertEqual(1, self.successResultOf(granted))

    def test_idle(self) -> None:
        """A pause is not made up for, and without anybody who waits no timer runs."""
        bandwidth = Bandwidth(self.clock, MIB)
        share = bandwidth.share("alice", None)
        assert share is not None
        self.successResultOf(share.take(MIB))
        self.assertEqual([], self.clock.getDelayedCalls())
        self.clock.advance(1000)
        taken = 0
        while (granted := share.take(MIB)).called:
            taken += self.successResultOf(granted)
        self.assertLessEqual(taken, MIB * BURST_S)
        granted.cancel()
        self.failureResultOf(granted, CancelledError)
        self.run_for(1)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_cancelled(self) -> None:
        """A transfer that ends while it waits takes nothing from the others."""
        bandwidth = Bandwidth(self.clock, MIB)
        lost, other = self.transfers(bandwidth, "alice", "alice")
        while lost.asking.called:
            self.run_for(TICK_S)
        lost.asking.cancel()
        before = other.moved_bytes
        self.run_for(10)
        self.assert_rate(MIB, other.moved_bytes - before, 10)

    def test_take_all(self) -> None:
        """What is more than a grant is waited for to its end."""
        bandwidth = Bandwidth(self.clock, MIB)
        share = bandwidth.share("alice", None)
        assert share is not None
        done = Deferred.fromCoroutine(share.take_all(2 * MIB))
        self.run_for(1.5)
        self.assertNoResult(done)
        self.run_for(0.5)
        self.successResultOf(done)

    def test_late_timers(self) -> None:
        """The rate is kept when the reactor is busy for a tenth of a second at a time."""
        transfers = self.transfers(Bandwidth(self.clock, 10 * MIB), "alice", "bob", "carol")
        self.clock.pump([0.1] * 100)
        self.assert_rate(10 * MIB, sum(each.moved_bytes for each in transfers), 10, tolerance=0.1)


class UserTests(BandwidthCase):
    """Limits of users, by rules."""

    def test_alone(self) -> None:
        """Without a limit of the server, each user with one has that, and others have none."""
        bandwidth = Bandwidth(self.clock, 0)
        self.assertIsNone(bandwidth.share("carol", None))
        alice = self.transfers(bandwidth, "alice", "alice", "alice", rate=MIB)
        (bob,) = self.transfers(bandwidth, "bob", rate=2 * MIB)
        self.run_for(10)
        self.assert_rate(MIB, sum(each.moved_bytes for each in alice), 10)
        self.assert_rate(2 * MIB, bob.moved_bytes, 10)

    def test_within_the_total(self) -> None:
        """What a limited user leaves, the others get; the total holds."""
        bandwidth = Bandwidth(self.clock, 10 * MIB)
        (alice,) = self.transfers(bandwidth, "alice", rate=MIB)
        bob, carol = self.transfers(bandwidth, "bob", "carol")
        self.run_for(10)
        self.assert_rate(MIB, alice.moved_bytes, 10)
        self.assert_rate(4.5 * MIB, bob.moved_bytes, 10, tolerance=0.1)
        self.assert_rate(10 * MIB, sum(each.moved_bytes for each in (alice, bob, carol)), 10)

    def test_changed(self) -> None:
        """A rule that changes holds for transfers that run already."""
        bandwidth = Bandwidth(self.clock, 0)
        (alice,) = self.transfers(bandwidth, "alice", rate=MIB)
        self.run_for(5)
        before = alice.moved_bytes
        bandwidth.share("alice", 4 * MIB)
        self.run_for(10)
        self.assert_rate(4 * MIB, alice.moved_bytes - before, 10)

    def test_forgotten(self) -> None:
        """Shares that nobody uses are dropped; a limit that is reached is remembered."""
        bandwidth = Bandwidth(self.clock, 0)
        used = bandwidth.share("alice", MIB)
        assert used is not None
        used.charge(100 * MIB)
        for number in range(10_000):
            bandwidth.share(f"user{number}", MIB)
        self.assertIs(used, bandwidth.share("alice", MIB))
        self.assertLess(len(bandwidth._shares), 1000)

    def test_both_directions(self) -> None:
        """A user's key has the rule; without authentication each address is a user."""
        limits = {"alice": (3, MIB)}
        both = BothDirections(
            Bandwidth(self.clock, 0), Bandwidth(self.clock, 5 * MIB), lambda user, repository: limits.get(user or "")
        )
        up, down = both.shares("alice", "192.0.2.1", ())
        assert up is not None and down is not None
        self.assertEqual(("3 alice", "3 alice"), (up.key, down.key))
        up, down = both.shares("bob", "192.0.2.1", ())
        self.assertIsNone(up)
        one, other = (both.shares(None, address, ())[1] for address in ("192.0.2.1", "192.0.2.2"))
        self.assertIsNot(one, other)
        self.assertIs(one, both.shares(None, "192.0.2.1", ())[1])


class PartsTests(BandwidthCase):
    """One of several processes."""

    def test_part(self) -> None:
        """It has a part of each limit at first, and another one when it is told."""
        bandwidth = Bandwidth(self.clock, 8 * MIB, 0.25)
        (alice,) = self.transfers(bandwidth, "alice", rate=4 * MIB)
        (bob,) = self.transfers(bandwidth, "bob")
        self.run_for(10)
        self.assert_rate(MIB, alice.moved_bytes, 10)
        self.assert_rate(MIB, bob.moved_bytes, 10, tolerance=0.15)
        before = alice.moved_bytes, bob.moved_bytes
        bandwidth.set_parts({TOTAL: 8 * MIB, "alice": 3 * MIB, "unknown": 1})
        self.run_for(10)
        self.assert_rate(3 * MIB, alice.moved_bytes - before[0], 10)
        self.assert_rate(5 * MIB, bob.moved_bytes - before[1], 10, tolerance=0.1)

    def test_tiny_part(self) -> None:
        """A part that is smaller than a grant still moves."""
        bandwidth = Bandwidth(self.clock, 64 << 10, 1 / 64)
        (alice,) = self.transfers(bandwidth, "alice")
        self.run_for(60)
        self.assert_rate(1 << 10, alice.moved_bytes, 60, tolerance=0.3)

    def test_usages(self) -> None:
        """What was used and wanted since the last time."""
        bandwidth = Bandwidth(self.clock, 4 * MIB)
        self.transfers(bandwidth, "alice", "alice", rate=MIB)
        self.transfers(bandwidth, "bob")
        self.run_for(1)
        found = {usage.key: usage for usage in bandwidth.usages()}
        self.assertEqual({TOTAL, "alice"}, found.keys())
        self.assertEqual((4 * MIB, True, 2), found[TOTAL][1:2] + found[TOTAL][3:])
        self.assertEqual((MIB, True, 2), found["alice"][1:2] + found["alice"][3:])
        self.assert_rate(MIB, found["alice"].used_bytes, 1)
        self.assert_rate(4 * MIB, found[TOTAL].used_bytes, 1)

    def test_quiet(self) -> None:
        """Who uses little is not short."""
        bandwidth = Bandwidth(self.clock, 4 * MIB)
        share = bandwidth.share("alice", MIB)
        assert share is not None
        self.successResultOf(share.take(10))
        self.assertEqual([("alice", MIB, 10, False, 1), (TOTAL, 4 * MIB, 10, False, 1)], list(bandwidth.usages()))
        self.assertEqual([(TOTAL, 4 * MIB, 0, False, 0)], list(bandwidth.usages()))


class GrantTests(BandwidthCase):
    """How much is granted at a time."""

    def test_bounds(self) -> None:
        """Never more than is asked for, nor than others may wait for."""
        for rate in (64 << 10, 10_000 * MIB):
            bandwidth = Bandwidth(self.clock, rate)
            share = bandwidth.share("alice", None)
            assert share is not None
            self.assertEqual(5, self.successResultOf(share.take(5)))
            granted = share.take(100 * MIB)
            self.run_for(1)
            self.assertLessEqual(self.successResultOf(granted), MOST_GRANT_BYTES)
            bandwidth.stop()
