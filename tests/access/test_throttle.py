"""
Failed logins: who is slowed, who is refused, for how long, and who never is.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.access import throttle
from resticserver.access.throttle import MOST_DELAY_S, Throttle, Verdict, parse_rate

RATES = (("20/minute", 20), ("20", 20), ("0", 0), ("0/minute", 0), (" 7/min ", 7), ("1/m", 1))
NO_RATES = ("", "x", "-1", "1.5", "20/hour", "20/", "/minute", "20/minute/minute", "２０", "9" * 10)


class RateTests(SynchronousTestCase):
    """L{parse_rate}."""

    def test_table(self) -> None:
        """Failures a minute, with or without the unit; nothing else."""
        for text, rate in RATES:
            self.assertEqual(rate, parse_rate(text), text)
        for text in NO_RATES:
            error = self.assertRaises(ValueError, parse_rate, text)
            self.assertIn("must be a number of failures per minute", str(error))


class ThrottleTests(SynchronousTestCase):
    """L{Throttle}, with four failures a minute."""

    def setUp(self) -> None:
        """A clock that stands still."""
        self.now = 1000.0
        self.throttle = Throttle(4, lambda: self.now)

    def fail_(
        self, user: str = "alice", address: str = "192.0.2.1", exempt: bool = False, times: int = 1
    ) -> list[Verdict]:
        """Attempts that are not given back."""
        return [self.throttle.admit(user, address, exempt) for _ in range(times)]

    def delays(self, *args: object, **named: object) -> list[float | None]:
        """The delays of such attempts; None for one that is refused."""
        verdicts = self.fail_(*args, **named)  # type: ignore[arg-type]
        return [None if verdict.refused else verdict.delay_s for verdict in verdicts]

    def test_address(self) -> None:
        """The first are free, the next wait longer and longer, then the address is refused; the first refusal says so."""
        self.assertEqual([0, 0, 0, 0, 0.5, 1, 1.5, 2, None, None], self.delays(times=10))
        self.setUp()
        began = [verdict.lockout_began for verdict in self.fail_(times=10)]
        self.assertEqual([8], [number for number, is_first in enumerate(began) if is_first])

    def test_address_is_let_in_again(self) -> None:
        """After a minute without a debt; a refused attempt does not prolong it."""
        self.fail_(times=9)
        for _ in range(59):
            self.now += 1
            self.assertTrue(self.fail_(user="bob")[0].refused)
        self.now += 1
        self.assertEqual([0.5], self.delays(user="bob"))
        self.now += 60
        self.fail_(user="bob", times=7)
        self.assertEqual([None], self.delays(user="bob"))
        self.assertEqual([0], self.delays(user="carol", address="192.0.2.2"))

    def test_second_lockout(self) -> None:
        """Who goes on is locked out again, and that is said again."""
        self.fail_(times=9)
        self.now += 61
        verdicts = self.fail_(times=10)
        self.assertEqual(1, sum(verdict.lockout_began for verdict in verdicts))
        self.assertTrue(verdicts[-1].refused)

    def test_other_addresses(self) -> None:
        """One address's failures are not another's."""
        self.fail_(user="bob", times=20)
        self.assertEqual([0], self.delays(user="carol", address="192.0.2.2"))

    def test_user_is_never_refused(self) -> None:
        """From many addresses: the user's attempts are slowed to the longest delay and go on."""
        delays = [self.delays(address=f"198.51.100.{number}")[0] for number in range(100)]
        self.assertEqual([0, 0, 0, 0, 0.5, 1.0, 1.5], delays[:7])
        self.assertEqual({MOST_DELAY_S}, set(delays[20:]))

    def test_user_recovers(self) -> None:
        """However long somebody went on: the user's debt is bounded, and is paid within a few minutes."""
        for number in range(10_000):
            self.fail_(address=f"198.51.{number // 250}.{number % 250}")
        self.now += 60 * 5
        self.assertEqual([0], self.delays(address="203.0.113.1"))

    def test_refused_is_not_the_users(self) -> None:
        """What is refused for its address does not slow the user."""
        self.fail_(user="bob", times=9)
        self.fail_(user="alice", times=100)
        self.assertEqual([0], self.delays(user="alice", address="192.0.2.9"))

    def test_given_back(self) -> None:
        """Who was right has failed nowhere, however often."""
        for _ in range(1000):
            (verdict,) = self.fail_()
            self.assertEqual(Verdict(), verdict)
            self.throttle.give_back("alice", "192.0.2.1")
        self.fail_(times=4)
        self.throttle.give_back("alice", "192.0.2.1")
        self.assertEqual([0, 0.5], self.delays(times=2))

    def test_give_back_makes_no_credit(self) -> None:
        """There are never more free attempts than a minute has, nor for those who are not known."""
        for _ in range(100):
            self.throttle.give_back("alice", "192.0.2.1")
            self.fail_(user="alice")
            self.throttle.give_back("alice", "192.0.2.1")
            self.throttle.give_back("alice", "192.0.2.1")
        self.assertEqual([0, 0, 0, 0, 0.5], self.delays(times=5))

    def test_at_the_same_time(self) -> None:
        """Guesses count when they begin, so that many at once are not all free."""
        self.assertEqual(4, self.delays(times=50).count(0))

    def test_refill(self) -> None:
        """A token comes back every fifteen seconds, up to four."""
        self.fail_(times=4)
        self.now += 15
        self.assertEqual([0, 0.5], self.delays(times=2))
        self.now += 3600
        self.assertEqual([0, 0, 0, 0, 0.5], self.delays(times=5))

    def test_exempt(self) -> None:
        """A trusted proxy's own address, and a unix socket, stand for many: they are not counted, their users are."""
        for address, exempt in (("127.0.0.1", True), ("-", False), ("unknown", False)):
            self.setUp()
            self.assertEqual([0], [self.delays(f"user{number}", address, exempt)[0] for number in range(99)][-1:])
            self.assertEqual([0, 0, 0, 0, 0.5], self.delays("alice", address, exempt, 5))

    def test_ipv6(self) -> None:
        """A /64 is one customer's; the next is another's."""
        for number in range(9):
            self.fail_(f"user{number}", f"2001:db8::{number:x}")
        self.assertEqual([None], self.delays("bob", "2001:db8::ffff:1"))
        self.assertEqual([None], self.delays("bob", "2001:db8::ffff:1%eth0"))
        self.assertEqual([0], self.delays("bob", "2001:db8:0:1::1"))

    def test_mapped(self) -> None:
        """IPv4 addresses in IPv6's clothes are IPv4 addresses, each its own."""
        for number in range(9):
            self.fail_(f"user{number}", "::ffff:198.51.100.7")
        self.assertEqual([None], self.delays("bob", "198.51.100.7"))
        self.assertEqual([0], self.delays("bob", "0:0:0:0:0:ffff:c633:6408"))

    def test_no_names(self) -> None:
        """What can be no user's name is one bucket, however long and however many: it fills no memory."""
        for number in range(100):
            self.throttle.admit("x" * 10_000 + f" {number}", "127.0.0.1", True)
        self.assertEqual(1, len(self.throttle._users))

    def test_full_buckets_are_forgotten(self) -> None:
        """Who has not failed for a minute takes no memory, once others come."""
        for number in range(100):
            self.fail_(f"user{number}", f"10.0.0.{number}")
        self.now += 61
        for number in range(60):
            self.fail_(f"another{number}", f"10.1.0.{number}")
        self.assertEqual([60, 60], [len(self.throttle._users), len(self.throttle._addresses)])

    def test_lookups(self) -> None:
        """Looking for a password among those that were right is bounded too: by address, or else by user."""
        most = throttle.LOOKUPS + throttle.LOOKUPS_OF_A_USER
        for address, exempt, lookups, others in (
            ("192.0.2.1", False, most, (("bob", "192.0.2.1", False, True), ("alice", "192.0.2.2", False, True))),
            ("127.0.0.1", True, throttle.LOOKUPS, (("bob", "127.0.0.1", True, True), ("alice", "-", False, False))),
        ):
            self.setUp()
            for _ in range(lookups):
                self.assertTrue(self.throttle.may_look_up("alice", address, exempt))
                self.throttle.missed("alice", address, exempt)
            self.assertFalse(self.throttle.may_look_up("alice", address, exempt))
            for user, other, other_exempt, may in others:
                self.assertEqual(may, self.throttle.may_look_up(user, other, other_exempt), (user, other))
            for _ in range(1000):
                self.throttle.missed("alice", address, exempt)
            self.assertFalse(self.throttle.may_look_up("alice", address, exempt))
            self.now += 1
            self.assertTrue(self.throttle.may_look_up("alice", address, exempt))

    def test_lookups_of_others(self) -> None:
        """Whoever guesses in many names leaves each of the others at the address a few looks of their own."""
        for number in range(1000):
            self.throttle.missed(f"guess{number}", "192.0.2.1", False)
        for user in ("alice", "bob"):
            for left in range(throttle.LOOKUPS_OF_A_USER, 0, -1):
                self.assertTrue(self.throttle.may_look_up(user, "192.0.2.1", False), left)
                self.throttle.missed(user, "192.0.2.1", False)
            self.assertFalse(self.throttle.may_look_up(user, "192.0.2.1", False))

    def test_wider_networks(self) -> None:
        """The network around an address: a /24, or the /48 of a /64; other places are their own."""
        for address, network in (
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:2::3", "2001:db8:1::/48"),
            ("-", "-"),
            ("unknown", "unknown"),
        ):
            place = throttle.Login("alice", b"", address, False, False).place
            self.assertEqual(network, throttle.wider_network_of(place))

    def test_off(self) -> None:
        """With 0 nothing is slowed or refused."""
        off = Throttle(0, lambda: self.now)
        for _ in range(1000):
            self.assertEqual(Verdict(), off.admit("alice", "192.0.2.1", False))
            off.missed("alice", "192.0.2.1", False)
        self.assertTrue(off.may_look_up("alice", "192.0.2.1", False))
        off.give_back("alice", "192.0.2.1")

    def test_memory(self) -> None:
        """Guessing in ever new names, from ever new addresses, does not fill the memory; the latest are kept."""
        self.patch(throttle, "MOST_BUCKETS", 50)
        for number in range(500):
            self.fail_(f"user{number}", f"10.0.{number // 250}.{number % 250}")
        self.assertEqual([50, 50], [len(self.throttle._users), len(self.throttle._addresses)])
        self.fail_("alice", "192.0.2.1", times=9)
        for number in range(49):
            self.fail_(f"another{number}", f"10.1.0.{number}")
        self.assertEqual([None], self.delays("alice", "192.0.2.1"))
