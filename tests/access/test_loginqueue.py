"""
L{resticserver.access.loginqueue}: whose password is checked next, and whose is not when too many wait.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.access import loginqueue
from resticserver.access.loginqueue import FAILED_S, LoginQueue, Waiting
from resticserver.access.throttle import Login


class LoginQueueTests(SynchronousTestCase):
    """L{LoginQueue}; items are numbers, or words."""

    def setUp(self) -> None:
        """An empty queue for eight, and a clock that stands still."""
        self.now = 1000.0
        self.queue: LoginQueue[str] = LoginQueue(8, lambda: self.now)

    def add(self, address: str, user: str = "alice", verified: bool = False) -> str | None:
        """Let a check wait that is called C{address user}; the one that is given up."""
        login = Login(user, b"", address, False, False)
        _, given_up = self.queue.add(login, verified, f"{address} {user}")
        return None if given_up is None else given_up.item

    def next(self) -> Waiting[str]:
        """The next one's turn."""
        waiting = self.queue.first()
        assert waiting is not None
        self.queue.take(waiting)
        return waiting

    def order(self, right: bool = False) -> list[str]:
        """All that wait, in the order of their turns, each of them wrong."""
        found = []
        while len(self.queue):
            waiting = self.next()
            (self.queue.was_right if right else self.queue.was_wrong)(waiting)
            found.append(waiting.item)
        return found

    def fails(self, address: str, times: int = 1, user: str = "alice") -> None:
        """Wrong passwords."""
        for _ in range(times):
            self.add(address, user)
            self.queue.was_wrong(self.next())

    def test_empty(self) -> None:
        """Nobody's turn."""
        self.assertIsNone(self.queue.first())

    def test_turns(self) -> None:
        """Addresses that tried as much take turns, whoever came first."""
        for address in ("10.1.0.1", "10.1.0.1", "10.2.0.1", "10.2.0.1", "10.3.0.1", "10.3.0.1"):
            self.add(address)
        networks = [item.split(".")[1] for item in self.order(right=True)]
        self.assertEqual(["1", "2", "3"], sorted(networks[:3]))
        self.assertEqual(["1", "2", "3"], sorted(networks[3:]))

    def test_who_tries_little_comes_first(self) -> None:
        """Before anyone has failed: an address with many checks waits for one with few."""
        for number in range(6):
            self.add("10.1.0.1", f"user{number}")
        self.add("10.2.0.1")
        self.assertEqual("10.2.0.1 alice", self.next().item)

    def test_failures(self) -> None:
        """Addresses without failures come first, then those that failed less; for ten minutes."""
        self.fails("10.1.0.1", 20)
        self.fails("10.2.0.1")
        for number in range(6):
            self.add("10.3.0.1", f"user{number}")
        for address in ("10.1.0.1", "10.2.0.1"):
            self.add(address)
        self.assertEqual(["10.2.0.1 alice", "10.1.0.1 alice"], self.order(right=True)[-2:])
        self.add("10.1.0.1")
        waiting = self.next()
        self.assertTrue(waiting.claim(self.now + FAILED_S - 1) > waiting.claim(self.now + FAILED_S))

    def test_verified(self) -> None:
        """Who was right lately comes before all others and is never given up, in whatever bad company."""
        self.fails("10.1.0.1", 20)
        for number in range(20):
            self.add("10.1.0.1", f"guess{number}")
        self.assertIsNone(self.add("10.1.0.1", verified=True))
        self.add("10.2.0.1")
        self.assertEqual("10.1.0.1 alice", self.next().item)

    def test_right_is_nothing_against_anyone(self) -> None:
        """However often somebody was right: it is as if it had never been."""
        for _ in range(100):
            self.add("10.1.0.1")
            self.queue.was_right(self.next())
        self.add("10.1.0.1")
        self.add("10.2.0.1")
        self.assertEqual({0}, {waiting.address.weight for waiting in (self.next(), self.next())})

    def test_longest_waiter_of_the_most_crowded(self) -> None:
        """It goes when the queue is full; an address with failures before one without, even if that has more."""
        for number in range(5):
            self.add("10.1.0.1", f"user{number}")
        for number in range(3):
            self.add("10.2.0.1", f"user{number}")
        self.assertEqual("10.1.0.1 user0", self.add("10.3.0.1"))
        self.queue.was_wrong(self.take("10.2.0.1 user2"))
        self.assertIsNone(self.add("10.3.0.1", "bob"))
        self.assertEqual("10.2.0.1 user0", self.add("10.3.0.1", "carol"))
        self.assertEqual("10.2.0.1 user1", self.add("10.3.0.1", "dora"))
        self.assertEqual("10.3.0.1 alice", self.add("10.3.0.1", "eve"))

    def take(self, item: str) -> Waiting[str]:
        """Let a certain check begin."""
        (waiting,) = (waiting for waiting in self.queue._waiting if waiting.item == item)
        self.queue.take(waiting)
        return waiting

    def test_who_goes_on_alone_is_given_up_for_itself(self) -> None:
        """Also the one who comes may be the longest waiter of the most crowded address: its only one."""
        self.fails("10.9.0.1")
        for number in range(8):
            self.add(f"10.{number}.0.1")
        self.assertEqual("10.9.0.1 alice", self.add("10.9.0.1"))

    def test_many_addresses_of_a_network(self) -> None:
        """Ever new addresses of one network, IPv4 or IPv6: a client from elsewhere is neither late nor given up."""
        for address in ("198.51.100.{}", "2001:db8:1:{:x}::1"):
            self.setUp()
            for number in range(100):
                self.add(address.format(number))
            self.add("192.0.2.1")
            for number in range(100, 200):
                self.add(address.format(number))
            self.assertEqual("192.0.2.1 alice", self.next().item)

    def test_one_64_is_one_address(self) -> None:
        """Addresses of one /64 are as crowded as one address."""
        for number in range(4):
            self.add(f"2001:db8:1:1::{number + 1:x}")
        for number in range(4):
            self.add(f"2001:db8:{number + 2:x}:1::1")
        self.assertEqual("2001:db8:1:1::1 alice", self.add("192.0.2.1"))

    def test_users_of_an_address(self) -> None:
        """Behind one address (NAT, a proxy without the client's address) who tries one name again and again waits."""
        self.fails("10.1.0.1", 10, "root")
        for _ in range(5):
            self.add("10.1.0.1", "root")
        self.add("10.1.0.1", "alice")
        for _ in range(20):
            self.assertEqual("10.1.0.1 root", self.add("10.1.0.1", "root") or "10.1.0.1 root")
        self.assertEqual("10.1.0.1 alice", self.next().item)

    def quiet(self) -> bool:
        """Whether the first one is no part of a flood of more than three."""
        waiting = self.queue.first()
        assert waiting is not None
        return self.queue.is_quiet(waiting, 3)

    def test_quiet(self) -> None:
        """Addresses that have tried little are quiet, also with a failure or two, as long as they are few."""
        self.fails("10.1.0.1", 2)
        self.add("10.1.0.1")
        self.assertTrue(self.quiet())
        self.fails("10.1.0.1", 4)
        self.assertFalse(self.quiet())
        self.add("10.1.0.1", verified=True)
        self.assertTrue(self.quiet())
        self.setUp()
        for number in range(3):
            self.add(f"10.1.{number}.1")
            self.assertTrue(self.quiet())
        self.add("10.1.4.1")
        self.assertFalse(self.quiet())

    def test_quiet_beside_a_flood(self) -> None:
        """Whoever can be told from the many is quiet: by its network where they have one, by its address else."""
        for addresses in (("10.1.0.{}", "10.2.0.1"), ("10.1.{}.1", "10.2.0.1")):
            self.setUp()
            for number in range(40):
                self.add(addresses[0].format(number % 8), f"user{number}")
            self.add(addresses[1])
            self.assertTrue(self.quiet())
            self.assertEqual(f"{addresses[1]} alice", self.next().item)
            self.assertFalse(self.quiet())

    def test_removed(self) -> None:
        """Who goes frees the place; to go twice does nothing."""
        for _ in range(3):
            waiting, _ = self.queue.add(Login("alice", b"", "10.1.0.1", False, False), False, "")
            self.queue.remove(waiting)
            self.queue.remove(waiting)
        self.assertEqual(0, len(self.queue))
        for _ in range(8):
            self.assertIsNone(self.add("10.1.0.1"))

    def test_attempts_are_forgotten(self) -> None:
        """What was tried counts half after a minute."""
        self.fails("10.1.0.1", 63)
        weights = []
        for _ in range(8):
            self.add("10.1.0.1")
            waiting = self.next()
            self.queue.was_right(waiting)
            weights.append(waiting.address.weight)
            self.now += 60
        self.assertEqual([4, 3, 2, 1, 0, 0, 0, 0], weights)

    def test_memory(self) -> None:
        """Ever new addresses and names fill no memory; what can be no name is one."""
        self.patch(loginqueue, "MOST_SOURCES", 50)
        for number in range(200):
            self.add(f"10.{number}.0.1", f"user{number}")
            self.next()
        self.assertEqual(50, len(self.queue._sources))
        self.setUp()
        for number in range(8):
            self.add("10.1.0.1", "x" * 10_000 + f" {number}")
        self.assertEqual(3, len(self.queue._sources))
