"""
The cache with a bound: bytes are counted exactly, the least recently used goes first, a round does not eat itself.
"""

from __future__ import annotations

import random
import threading

from twisted.trial.unittest import SynchronousTestCase

from resticserver.lru import BoundedCache


class BoundedCacheTests(SynchronousTestCase):
    """L{BoundedCache}."""

    def setUp(self) -> None:
        self.cache: BoundedCache[str, str] = BoundedCache(100)

    def put(self, *keys: str, size_bytes: int = 30) -> None:
        """Put values, each in a turn of its own."""
        for key in keys:
            self.cache.put(key, key.upper(), size_bytes, self.cache.begin())

    def kept(self, *keys: str) -> str:
        """Which of the keys are there; to ask is to use."""
        return "".join(key for key in keys if self.cache.get(key) == key.upper())

    def test_least_recently_used_goes_first(self) -> None:
        """What was asked for stays, what was not goes."""
        self.put("a", "b", "c")
        self.assertEqual("a", self.kept("a"))
        self.put("d")
        self.assertEqual("acd", self.kept("a", "b", "c", "d"))
        self.assertIsNone(self.cache.get("b"))

    def test_bytes_are_counted(self) -> None:
        """Put, put again, discard and drive out: the count is what is there, and never above the bound."""
        self.put("a", "b")
        self.assertEqual((60, 2), (self.cache.used_bytes, len(self.cache)))
        self.put("a", size_bytes=40)
        self.assertEqual(70, self.cache.used_bytes)
        self.cache.discard("b")
        self.cache.discard("b")
        self.assertEqual((40, 1), (self.cache.used_bytes, len(self.cache)))
        self.put("c", size_bytes=60)
        self.assertEqual((100, 2), (self.cache.used_bytes, len(self.cache)))
        self.put("d", size_bytes=1)
        self.assertEqual(("cd", 61), (self.kept("a", "c", "d"), self.cache.used_bytes))

    def test_larger_than_the_bound(self) -> None:
        """It is not kept and drives nothing out; what was under its key is old and goes."""
        self.put("a", "b")
        self.put("b", size_bytes=101)
        self.assertEqual(("a", 30), (self.kept("a", "b"), self.cache.used_bytes))
        empty: BoundedCache[str, str] = BoundedCache(0)
        empty.put("a", "A", 1, empty.begin())
        self.assertIsNone(empty.get("a"))

    def test_a_round_does_not_eat_itself(self) -> None:
        """Going round in more than fits finds in each round all that fits, not nothing."""
        keys = "abcdefgh"
        found = []
        for _ in range(4):
            turn = self.cache.begin()
            here = ""
            for key in keys:
                if self.cache.get(key) is None:
                    self.cache.put(key, key.upper(), 25, turn)
                else:
                    here += key
            found.append(here)
        self.assertEqual(["", "abcd", "abcd", "abcd"], found)

    def test_another_round_makes_room(self) -> None:
        """What an earlier round used and this one does not goes."""
        for keys in ("abcd", "efgh"):
            turn = self.cache.begin()
            for key in keys:
                self.cache.put(key, key.upper(), 25, turn)
            self.assertEqual(keys, self.kept(*keys))

    def test_threads(self) -> None:
        """The count holds whatever happens at the same time."""

        def use(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(3000):
                key = str(dice.randrange(20))
                turn = self.cache.begin()
                dice.choice((self.cache.get, self.cache.discard))(key)
                self.cache.put(key, key, dice.randrange(40), turn)

        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sizes = [kept.size_bytes for kept in self.cache._kept.values()]
        self.assertEqual(sum(sizes), self.cache.used_bytes)
        self.assertLessEqual(self.cache.used_bytes, 100)
        for key in list(self.cache._kept):
            self.cache.discard(key)
        self.assertEqual(0, self.cache.used_bytes)
