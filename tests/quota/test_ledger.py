"""
The quotas' arithmetic: what is admitted, what a refusal says, and that all sums are those of a naive model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage
from resticserver.quota import ledger as ledger_module
from resticserver.quota.ledger import Ledger, Limits, QuotaExceeded, Reservation, owner_of
from resticserver.sizes import LEAST_RESERVE_OBJECTS, MOST_RESERVE_BYTES, UNLIMITED, Amount, Limit, reserve_bytes
from resticserver.storage.layout import CELLS, TRASH_CELL, Repository, cell_directory, cell_of
from resticserver.web.http1.replies import reason_phrase

from ..contract.store import id_of
from ..storage.test_directory_snapshots import PROFILE

GIB = 1 << 30
ALICE: Repository = ("alice",)
LAPTOP: Repository = ("alice", "laptop")
BOB: Repository = ("bob",)
ROOT: Repository = ()
NAME = id_of(b"x")
NO_LIMITS = Limits()

by_chance = settings(PROFILE, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def limits(user: Limit = UNLIMITED, repository: Limit = UNLIMITED) -> Limits:
    """Limits of both."""
    return Limits(user, repository)


class CellTests(SynchronousTestCase):
    """What a repository is made of, and whose it is."""

    def test_cells(self) -> None:
        """Each directory with objects is a cell of its own, and the config is one."""
        found: dict[int, set[tuple[str, str]]] = {}
        for kind in ("data", "index", "keys", "locks", "snapshots"):
            for number in range(256):
                name = f"{number:02x}" + "0" * 62
                found.setdefault(cell_of(kind, name), set()).add((kind, name[:2] if kind == "data" else ""))
        found.setdefault(cell_of("config", "config"), set()).add(("config", ""))
        found[TRASH_CELL] = {(".trash", "")}
        self.assertEqual(set(range(CELLS)), set(found))
        self.assertEqual({cell: {cell_directory(cell)} for cell in range(CELLS)}, found)

    def test_owners(self) -> None:
        """A repository counts for the user with the name of its first folder, whether there is one or not."""
        for repository, owner in (
            (ROOT, None),
            (ALICE, "alice"),
            (LAPTOP, "alice"),
            (("a b",), None),
            (("a b", "alice"), None),
            (("jörg",), "jörg"),
            (("all",), "all"),
            (("\udcff",), None),
        ):
            self.assertEqual(owner, owner_of(repository), repository)

    def test_reserve_above(self) -> None:
        """One per cent of a limit, and at most a GiB."""
        for limit, reserve in ((0, 0), (99, 0), (100, 1), (10_050, 100), (100 * GIB, GIB), (500 * GIB, GIB)):
            self.assertEqual(reserve, reserve_bytes(limit))


class LimitCase(SynchronousTestCase):
    """A ledger of its own."""

    def setUp(self) -> None:
        self.ledger = Ledger()

    def store(self, repository: Repository, size_bytes: int, objects: int = 1, kind: str = "data") -> None:
        """Something is there."""
        self.ledger.change(repository, cell_of(kind, NAME), Amount(size_bytes, objects))

    def reserve(
        self, repository: Repository, size_bytes: int, limits: Limits = NO_LIMITS, kind: str = "data"
    ) -> Reservation:
        """Room."""
        return self.ledger.reserve(repository, kind, NAME if kind != "config" else kind, size_bytes, limits)

    def refused(self, repository: Repository, size_bytes: int, limits: Limits = NO_LIMITS, kind: str = "data") -> str:
        """What a refusal says."""
        before = self.sums()
        error: Any = self.assertRaises(QuotaExceeded, self.reserve, repository, size_bytes, limits, kind)
        self.assertIsInstance(error, InsufficientStorage)
        self.assertEqual(before, self.sums(), "what was refused has reserved something")
        return str(error)

    def sums(self) -> dict[str, tuple[int, int, int, int]]:
        """All accounts that are not empty."""
        accounts = [self.ledger.server, *self.ledger._users.values(), *self.ledger.repositories.values()]
        found = {
            account.words: (
                account.used_bytes,
                account.used_objects,
                account.reserved_bytes,
                account.reserved_objects,
            )
            for account in accounts
        }
        return {words: sums for words, sums in found.items() if any(sums)}

    def assert_empty(self) -> None:
        """Nothing is left behind."""
        self.assertEqual({}, self.ledger.repositories)
        self.assertEqual({}, self.ledger._users)
        self.assertEqual({}, self.sums())


class LimitTests(LimitCase):
    """What is admitted."""

    def test_each_limit(self) -> None:
        """Server, user and repository, bytes and objects: each refuses by itself what the others would admit."""
        for what, server, its in (
            ("server", Limit(100), NO_LIMITS),
            ("server", Limit(objects=2), NO_LIMITS),
            ("user", UNLIMITED, limits(user=Limit(100))),
            ("user", UNLIMITED, limits(user=Limit(objects=2))),
            ("repository", UNLIMITED, limits(repository=Limit(100))),
            ("repository", UNLIMITED, limits(repository=Limit(objects=2))),
        ):
            self.ledger = Ledger(server)
            self.reserve(ALICE, 50, its)
            last = self.reserve(ALICE, 50, its)
            self.refused(ALICE, 1, its)
            if what == "user":
                self.refused(LAPTOP, 1, its)
                self.reserve(BOB, 1, its)
                self.reserve(ROOT, 1, its)
            elif what == "repository":
                self.reserve(LAPTOP, 1, its)
            else:
                self.refused(BOB, 1, its)
                self.refused(ROOT, 1, its)
            self.ledger.release(last)
            self.reserve(ALICE, 50, its)

    def test_all_at_once(self) -> None:
        """All limits hold at the same time, and the refusal names the nearest."""
        self.ledger = Ledger(Limit(100))
        its = limits(Limit(90), Limit(80))
        self.store(LAPTOP, 75)
        self.assertIn(
            "for repository alice/laptop exceeded: upload of 6 bytes, 5 bytes left", self.refused(LAPTOP, 6, its)
        )
        self.assertIn(
            "for repository alice/laptop exceeded: upload of 60 bytes, 5 bytes left", self.refused(LAPTOP, 60, its)
        )
        self.assertIn("for alice exceeded: upload of 16 bytes, 15 bytes left", self.refused(ALICE, 16, its))
        self.assertIn("for this server exceeded: upload of 26 bytes, 25 bytes left", self.refused(ROOT, 26, its))
        self.reserve(LAPTOP, 5, its)
        self.reserve(ALICE, 10, its)
        self.reserve(BOB, 10, its)
        for repository in (LAPTOP, ALICE, BOB):
            self.refused(repository, 1, its)
            self.reserve(repository, 0, its)

    def test_words(self) -> None:
        """What the refusals say, to the letter: whose limit, how much was sent, how much is left."""
        self.store(ALICE, 998 * GIB // 100 + 1)
        self.store(ROOT, 0)
        sent = "exceeded: upload of 1 GiB, 20.47 MiB left"
        for repository, its, server, size_bytes, words in (
            (ALICE, limits(Limit(10 * GIB)), UNLIMITED, GIB, f"quota of 10 GiB for alice {sent}"),
            (("alice", "home", "pc"), limits(Limit(10 * GIB)), UNLIMITED, GIB, f"quota of 10 GiB for alice {sent}"),
            (ALICE, limits(repository=Limit(10 * GIB)), UNLIMITED, GIB, f"quota of 10 GiB for repository alice {sent}"),
            (
                ("alice", "home"),
                limits(repository=Limit(1)),
                UNLIMITED,
                2,
                "quota of 1 byte for repository alice/home exceeded: upload of 2 bytes, 1 byte left",
            ),
            (
                ROOT,
                limits(repository=Limit(5)),
                UNLIMITED,
                6,
                "quota of 5 bytes for repository / exceeded: upload of 6 bytes, 5 bytes left",
            ),
            (BOB, NO_LIMITS, Limit(10 * GIB), GIB, f"quota of 10 GiB for this server {sent}"),
            (
                ALICE,
                limits(Limit(objects=1)),
                UNLIMITED,
                0,
                "quota of 1 object for alice exceeded: upload of 1 object, 0 left",
            ),
            (
                ALICE,
                limits(Limit(GIB)),
                UNLIMITED,
                0,
                "quota of 1 GiB for alice exceeded: upload of 0 bytes so far, 0 bytes left",
            ),
        ):
            self.ledger.limit = server
            self.assertEqual(words, self.refused(repository, size_bytes, its))

    def test_words_of_unknown_length(self) -> None:
        """What an upload of unknown length has reserved itself is not in its own way: that is still left for it."""
        its = limits(Limit(100))
        self.reserve(ALICE, 30, its)
        growing = self.reserve(ALICE, 0, its)
        self.ledger.grow(growing, 60)
        error = self.assertRaises(QuotaExceeded, self.ledger.grow, growing, 20)
        self.assertEqual(
            "quota of 100 bytes for alice exceeded: upload of 80 bytes so far, 70 bytes left", error.message
        )

    def test_long_names(self) -> None:
        """A long name, of any letters, leaves room for the figures in the 200 bytes that a reason phrase has."""
        for name in ("x" * 255, "\u0430" * 127, "\N{PACKAGE}" * 60, "x\u0430" * 80):
            for repository in ((name,), (name, name)):
                its = limits(repository=Limit(1023 * GIB))
                words = reason_phrase(self.refused(repository, 1 << 50, its)).decode("ascii")
                self.assertTrue(words.endswith("... exceeded: upload of 1 PiB, 1023 GiB left"), words)
                self.assertTrue(words.startswith("quota of 1023 GiB for repository "), words)

    def test_what_is_on_its_way_counts(self) -> None:
        """Reservations count for the limit, and are not said to be used."""
        its = limits(Limit(100))
        self.reserve(ALICE, 60, its)
        self.assertEqual(
            "quota of 100 bytes for alice exceeded: upload of 41 bytes, 40 bytes left", self.refused(ALICE, 41, its)
        )

    def test_reserve_for_locks_and_index(self) -> None:
        """Locks and index may use one per cent above a limit, at most a GiB; nothing else may."""
        for limit, above in ((1000, 10), (50, 0), (100 * GIB, GIB), (1000 * GIB, MOST_RESERVE_BYTES)):
            for server, its in (
                (Limit(limit), NO_LIMITS),
                (UNLIMITED, limits(Limit(limit))),
                (UNLIMITED, limits(repository=Limit(limit))),
            ):
                self.ledger = Ledger(server)
                self.store(ALICE, limit)
                for kind in ("data", "keys", "snapshots", "config"):
                    self.refused(ALICE, 1, its, kind)
                for kind in ("locks", "index"):
                    self.refused(ALICE, above + 1, its, kind)
                    self.ledger.release(self.reserve(ALICE, above, its, kind))
                self.reserve(ALICE, above, its, "locks")
                self.refused(ALICE, 1, its, "index")

    def test_reserve_of_objects(self) -> None:
        """Of objects as well, and at least a few."""
        for limit, above in ((0, LEAST_RESERVE_OBJECTS), (100, LEAST_RESERVE_OBJECTS), (100_000, 1000)):
            its = limits(Limit(objects=limit))
            self.ledger = Ledger()
            self.store(ALICE, 0, limit)
            self.refused(ALICE, 0, its)
            self.store(ALICE, 0, above - 1, "locks")
            self.reserve(ALICE, 5, its, "locks")
            self.refused(ALICE, 5, its, "locks")
            self.refused(ALICE, 5, its, "index")

    def test_above_the_limit_already(self) -> None:
        """Where more is stored than may be (the limit was lowered) nothing more is admitted, and removals go on."""
        its = limits(Limit(10, 1))
        self.store(ALICE, 100, 3)
        self.refused(ALICE, 0, its)
        self.store(ALICE, -95, -3)
        self.reserve(ALICE, 5, its)

    def test_nothing_fits_into_nothing(self) -> None:
        """A limit of 0 is one."""
        self.refused(ALICE, 1, limits(Limit(0)))
        self.refused(ALICE, 0, limits(Limit(objects=0)))
        self.reserve(ALICE, 0, limits(Limit(0)))


class ReservationTests(LimitCase):
    """From reserve to release."""

    def test_grow(self) -> None:
        """An upload that turns out longer takes more, or keeps what it has; it is one object all the time."""
        self.ledger = Ledger(Limit(1000, 1))
        its = limits(Limit(100), Limit(90))
        one = self.reserve(LAPTOP, 0, its)
        self.ledger.grow(one, 50)
        self.ledger.grow(one, 40)
        self.assertEqual(90, one.size_bytes)
        self.assertIn("repository alice/laptop", str(self.assertRaises(QuotaExceeded, self.ledger.grow, one, 1)))
        self.assertEqual(90, one.size_bytes)
        self.assertEqual((0, 0, 90, 1), self.sums()["this server"])
        self.assertEqual((0, 0, 90, 1), self.sums()["alice"])
        self.ledger.release(one)
        self.assert_empty()

    def test_grow_into_the_reserve(self) -> None:
        """A lock or an index that grows may use the reserve as well."""
        self.ledger = Ledger(Limit(1000))
        self.store(ALICE, 1000)
        one = self.reserve(ALICE, 0, kind="index")
        self.ledger.grow(one, 10)
        self.assertRaises(QuotaExceeded, self.ledger.grow, one, 1)

    def test_grow_has_the_limits_of_its_beginning(self) -> None:
        """What held when it was admitted holds for all of it."""
        one = self.reserve(ALICE, 0, limits(Limit(10)))
        self.assertRaises(QuotaExceeded, self.ledger.grow, one, 11)
        other = self.reserve(ALICE, 0)
        self.ledger.grow(other, 11)

    def test_release_twice(self) -> None:
        """Room is given back once, however often that is said."""
        one, other = self.reserve(ALICE, 10), self.reserve(ALICE, 7)
        for _ in range(3):
            self.ledger.release(one)
            self.assertEqual((0, 0, 7, 1), self.sums()["this server"])
        self.ledger.release(other)
        self.ledger.release(one)
        self.assert_empty()

    def test_release_of_an_old_one(self) -> None:
        """Also when the same repository has begun anew meanwhile."""
        one = self.reserve(ALICE, 10)
        self.ledger.release(one)
        self.reserve(ALICE, 5)
        self.ledger.release(one)
        self.assertEqual((0, 0, 5, 1), self.sums()["repository alice"])

    def test_names_that_are_no_repositories(self) -> None:
        """What is asked for and never filled leaves nothing behind, of users neither."""
        for repository in (("nobody", str(number)) for number in range(10)):
            self.ledger.release(self.reserve(repository, 10))
            self.ledger.count(repository, dict.fromkeys(range(CELLS), Amount()))
            self.ledger.all_counted(repository)
            self.ledger.forget(repository)
        self.assert_empty()

    def test_refused_names_leave_nothing(self) -> None:
        """Nor do names that were refused: whoever is over the quota could have any number of them."""
        self.ledger = Ledger(Limit(10))
        for number in range(10):
            self.refused(("nobody", str(number)), 11)
        self.assert_empty()

    def test_a_user_stays_with_another_repository(self) -> None:
        """The last of a user's repositories takes the user along, and no other does."""
        self.store(LAPTOP, 5)
        self.ledger.release(self.reserve(ALICE, 10))
        self.assertEqual((5, 1, 0, 0), self.sums()["alice"])
        self.ledger.forget(LAPTOP)
        self.assert_empty()

    def test_a_user_with_bytes_alone(self) -> None:
        """A user whose other repositories have bytes and (by what is known) no objects keeps them."""
        self.ledger.load(LAPTOP, [0] * CELLS, [0] * CELLS, Amount(5, 0))
        self.ledger.release(self.reserve(ALICE, 10))
        self.assertEqual((5, 0, 0, 0), self.sums().get("alice"))
        self.assertEqual((5, 0, 0, 0), self.sums()["this server"])


class StoredTests(LimitCase):
    """Changes, counts, and what was known before."""

    def test_change(self) -> None:
        """What comes and goes counts for all three, and for its cell."""
        self.store(LAPTOP, 10)
        self.store(LAPTOP, 5, 1, "keys")
        self.store(ALICE, 3)
        self.store(LAPTOP, -10, -1)
        self.assertEqual(
            {
                "this server": (8, 2, 0, 0),
                "alice": (8, 2, 0, 0),
                "repository alice/laptop": (5, 1, 0, 0),
                "repository alice": (3, 1, 0, 0),
            },
            self.sums(),
        )
        account = self.ledger.account(LAPTOP)
        self.assertEqual((5, 1), (account.sizes[cell_of("keys", NAME)], account.objects[cell_of("keys", NAME)]))
        self.assertEqual(5, sum(account.sizes))

    def test_count(self) -> None:
        """A count says by how much it differs, and then holds; cells that were not counted stay."""
        self.store(ALICE, 10)
        self.store(ALICE, 7, 1, "index")
        cell = cell_of("data", NAME)
        self.assertEqual(Amount(0, 0), self.ledger.count(ALICE, {cell: Amount(10, 1)}))
        self.assertEqual(Amount(-4, 2), self.ledger.count(ALICE, {cell: Amount(6, 3)}))
        self.assertEqual(Amount(100, 1), self.ledger.count(ALICE, {0: Amount(100, 1)}))
        self.assertEqual((113, 5, 0, 0), self.sums()["repository alice"])
        self.assertEqual((113, 5, 0, 0), self.sums()["alice"])

    def test_changed(self) -> None:
        """Whether something has changed is known of each, by changes and by counts that differ."""
        account = self.ledger.account(ALICE)
        for call, changed in (
            (lambda: self.store(ALICE, 1), True),
            (lambda: self.ledger.count(ALICE, {cell_of("data", NAME): Amount(1, 1)}), False),
            (lambda: self.ledger.count(ALICE, {cell_of("data", NAME): Amount(1, 2)}), True),
            (lambda: self.ledger.count(ALICE, {3: Amount(1, 0), 4: Amount()}), True),
            (lambda: self.ledger.count(ALICE, {3: Amount(1, 0), 4: Amount()}), False),
            (lambda: self.reserve(ALICE, 1), False),
        ):
            account.changed = False
            call()
            self.assertEqual(changed, account.changed)

    def load(self, repository: Repository, cells: dict[int, Amount], at_most: Amount) -> None:
        """What was last known."""
        sizes = [cells.get(cell, Amount()).size_bytes for cell in range(CELLS)]
        objects = [cells.get(cell, Amount()).objects for cell in range(CELLS)]
        self.ledger.load(repository, sizes, objects, at_most)

    def test_load(self) -> None:
        """A repository that was not counted since has as much as it can have at most; that ends when all is counted."""
        self.load(LAPTOP, {5: Amount(100, 2)}, Amount(150, 10))
        account = self.ledger.repositories[LAPTOP]
        self.assertFalse(account.counted)
        for words in ("this server", "alice", "repository alice/laptop"):
            self.assertEqual((150, 10, 0, 0), self.sums()[words])
        self.assertEqual(Amount(150, 10), account.most)
        self.store(LAPTOP, 7)
        self.assertEqual((157, 11, 0, 0), self.sums()["this server"])
        self.ledger.all_counted(LAPTOP)
        self.assertTrue(account.counted)
        self.assertEqual((107, 3, 0, 0), self.sums()["alice"])
        self.ledger.all_counted(LAPTOP)
        self.assertEqual((107, 3, 0, 0), self.sums()["alice"])

    def test_load_without_margin(self) -> None:
        """After a clean stop what is known is what there is; and a ceiling below that takes nothing away."""
        self.load(ALICE, {5: Amount(100, 2)}, Amount(100, 2))
        self.load(BOB, {5: Amount(100, 2)}, Amount(50, 0))
        self.assertEqual((100, 2, 0, 0), self.sums()["alice"])
        self.assertEqual((100, 2, 0, 0), self.sums()["bob"])

    def test_never_less_while_it_is_counted(self) -> None:
        """
        As long as not every cell was counted, what is taken for stored is never less than what can be there: what was
        removed from a cell that is counted first may have come to one that is counted last.
        """
        # Before the crash cell 0 lost its 100 bytes, and 140 came to cell 1; never more than 150 were there.
        self.load(ALICE, {0: Amount(100, 10)}, Amount(150, 15))
        stored = {0: Amount(0, 0), 1: Amount(140, 14)}
        self.ledger.count(ALICE, {0: stored[0]})
        self.assertGreaterEqual(self.ledger.server.used_bytes, 140)
        self.assertGreaterEqual(self.ledger.server.used_objects, 14)
        self.ledger.count(ALICE, {cell: stored.get(cell, Amount()) for cell in range(1, CELLS)})
        self.assertGreaterEqual(self.ledger.server.used_bytes, 140)
        self.ledger.all_counted(ALICE)
        self.assertEqual((140, 14, 0, 0), self.sums()["alice"])

    def test_forget(self) -> None:
        """A repository that is gone has nothing, whatever was known of it; what is on its way to it stays reserved."""
        self.store(BOB, 1)
        self.load(ALICE, {5: Amount(100, 2)}, Amount(150, 10))
        self.ledger.forget(ALICE)
        self.ledger.forget(ALICE)
        self.assertEqual([BOB], list(self.ledger.repositories))
        self.assertEqual((1, 1, 0, 0), self.sums()["this server"])
        self.store(ALICE, 10)
        one = self.reserve(ALICE, 20)
        self.ledger.forget(ALICE)
        self.assertEqual((0, 0, 20, 1), self.sums()["repository alice"])
        self.ledger.release(one)
        self.assertEqual([BOB], list(self.ledger.repositories))

    def test_never_below_nothing(self) -> None:
        """What is removed and was never booked, because others put it there, takes nothing from what was."""
        self.store(ALICE, 100)
        self.store(BOB, 7)
        cell = next(cell for cell in range(CELLS) if self.ledger.repositories[ALICE].sizes[cell])
        self.ledger.change(ALICE, cell, Amount(-1000, -5))
        self.assertEqual((7, 1, 0, 0), self.sums()["this server"])

    def test_of_user(self) -> None:
        """The repositories that count for a user."""
        for repository in (ALICE, LAPTOP, BOB, ROOT, ("alice2",), ("bob", "alice")):
            self.store(repository, 1)
        self.assertEqual({ALICE, LAPTOP}, set(self.ledger.of_user("alice")))


REPOSITORIES: list[Repository] = [ROOT, ALICE, LAPTOP, BOB, ("a b",)]
KINDS = ["data", "index", "locks", "keys"]
#: Few and small, so that limits are met, and cells too.
SIZES = st.integers(0, 60)
CELL_CHOICE = st.sampled_from([0, 1, 0xAB, 255, 256, 258, 260])
AMOUNTS = st.builds(Amount, st.integers(0, 60), st.integers(0, 5))
LIMITS = st.builds(Limit, st.none() | st.integers(0, 250), st.none() | st.integers(0, 12))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("reserve"),
            st.tuples(st.sampled_from(REPOSITORIES), st.sampled_from(KINDS), SIZES, st.integers(0, 3)),
        ),
        st.tuples(st.just("grow"), st.tuples(st.integers(0, 5), SIZES)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("commit"), st.tuples(st.integers(0, 5), st.integers(0, 60))),
        st.tuples(st.just("remove"), st.tuples(st.sampled_from(REPOSITORIES), CELL_CHOICE)),
        st.tuples(
            st.just("count"),
            st.tuples(st.sampled_from(REPOSITORIES), st.dictionaries(CELL_CHOICE, AMOUNTS, max_size=4)),
        ),
        st.tuples(
            st.just("load"),
            st.tuples(st.sampled_from(REPOSITORIES), st.dictionaries(CELL_CHOICE, AMOUNTS, max_size=4), AMOUNTS),
        ),
        st.tuples(st.just("all counted"), st.sampled_from(REPOSITORIES)),
        st.tuples(st.just("forget"), st.sampled_from(REPOSITORIES)),
    ),
    max_size=40,
)


@dataclass
class Held:
    """A reservation as the model sees it."""

    reservation: Reservation
    repository: Repository
    kind: str
    size_bytes: int


class Model:
    """
    The same in the most stupid way: sums are made anew each time.

    @ivar cells: what is in each cell of each repository.
    @ivar margins: what may be there besides.
    """

    def __init__(self, limit: Limit, of_users: Limit, of_repositories: Limit) -> None:
        self.limit = limit
        self.of_users = of_users
        self.of_repositories = of_repositories
        self.cells: dict[tuple[Repository, int], Amount] = {}
        self.margins: dict[Repository, Amount] = {}
        self.held: list[Held] = []

    def cell(self, repository: Repository, cell: int) -> Amount:
        """What is in a cell."""
        return self.cells.get((repository, cell), Amount())

    def used(self, which: Iterable[Repository]) -> Amount:
        """What some repositories have."""
        amounts = [amount for (repository, _), amount in self.cells.items() if repository in which]
        amounts += [margin for repository, margin in self.margins.items() if repository in which]
        return Amount(sum(amount.size_bytes for amount in amounts), sum(amount.objects for amount in amounts))

    def reserved(self, which: Iterable[Repository]) -> Amount:
        """What is on its way to them."""
        held = [one for one in self.held if one.repository in which]
        return Amount(sum(one.size_bytes for one in held), len(held))

    def groups(self, repository: Repository) -> list[tuple[str, Limit, list[Repository]]]:
        """All that a repository counts for, with the limit of each and whose amounts are added up there."""
        owner = owner_of(repository)
        found = [(f"repository {'/'.join(repository) or '/'}", self.of_repositories, [repository])]
        if owner is not None:
            found.append((owner, self.of_users, [other for other in REPOSITORIES if owner_of(other) == owner]))
        return [*found, ("this server", self.limit, REPOSITORIES)]

    def refuses(self, repository: Repository, kind: str, size_bytes: int, objects: int) -> str | None:
        """The first account that leaves no room."""
        above = kind in ("index", "locks")
        for words, limit, which in self.groups(repository):
            used, reserved = self.used(which), self.reserved(which)
            if limit.size_bytes is not None:
                most = limit.size_bytes + (limit.size_bytes // 100 if above else 0)
                if used.size_bytes + reserved.size_bytes + size_bytes > most:
                    return words
            if limit.objects is not None and objects:
                most = limit.objects + (32 if above else 0)
                if used.objects + reserved.objects + objects > most:
                    return words
        return None


class AnyOrderTests(SynchronousTestCase):
    """Any operations in any order."""

    @by_chance
    @given(LIMITS, LIMITS, LIMITS, OPERATIONS)
    def test_like_the_model(
        self, limit: Limit, of_users: Limit, of_repositories: Limit, operations: list[tuple[str, Any]]
    ) -> None:
        """After each operation every sum is the model's, and what is refused is what the model refuses, for its reason."""
        self.ledger = Ledger(limit)
        self.model = Model(limit, of_users, of_repositories)
        for operation, what in operations:
            getattr(self, operation.replace(" ", "_"))(what)
            self.assert_same()
        for held in list(self.model.held):
            self.ledger.release(held.reservation)
            self.ledger.release(held.reservation)
        self.model.held = []
        for repository in REPOSITORIES:
            self.forget(repository)
        self.assert_same()
        self.assertEqual({}, self.ledger.repositories)
        self.assertEqual({}, self.ledger._users)

    def reserve(self, what: tuple[Repository, str, int, int]) -> None:
        """Room for an upload."""
        repository, kind, size_bytes, number = what
        its = Limits(self.model.of_users, self.model.of_repositories)
        refused = self.model.refuses(repository, kind, size_bytes, 1)
        try:
            reservation = self.ledger.reserve(repository, kind, id_of(b"%d" % number), size_bytes, its)
        except QuotaExceeded as error:
            self.assertEqual(refused, error.account.words)
            # That names leave nothing is tested by itself.
            self.ledger._drop_if_empty(repository)
        else:
            self.assertIsNone(refused)
            self.model.held.append(Held(reservation, repository, kind, size_bytes))

    def pick(self, number: int) -> Held | None:
        """One of the uploads on their way."""
        return self.model.held[number % len(self.model.held)] if self.model.held else None

    def grow(self, what: tuple[int, int]) -> None:
        """More room."""
        held = self.pick(what[0])
        if held is None:
            return
        refused = self.model.refuses(held.repository, held.kind, what[1], 0)
        try:
            self.ledger.grow(held.reservation, what[1])
        except QuotaExceeded as error:
            self.assertEqual(refused, error.account.words)
        else:
            self.assertIsNone(refused)
            held.size_bytes += what[1]

    def release(self, number: int) -> None:
        """An upload has failed."""
        held = self.pick(number)
        if held is not None:
            self.model.held.remove(held)
            self.ledger.release(held.reservation)
            self.ledger.release(held.reservation)

    def commit(self, what: tuple[int, int]) -> None:
        """An upload has ended, and has not become more than was reserved."""
        held = self.pick(what[0])
        if held is None:
            return
        added = Amount(min(what[1], held.size_bytes), 1)
        before = {words: self.both(words) for words, _, _ in self.model.groups(held.repository)}
        cell = held.reservation.cell
        old = self.model.cell(held.repository, cell)
        self.model.cells[held.repository, cell] = Amount(old.size_bytes + added.size_bytes, old.objects + 1)
        self.model.held.remove(held)
        self.ledger.change(held.repository, cell, added)
        self.ledger.release(held.reservation)
        for words, (size_bytes, objects) in before.items():
            self.assertLessEqual(self.both(words)[0], size_bytes, "what was admitted has become more than was reserved")
            self.assertLessEqual(self.both(words)[1], objects)

    def both(self, words: str) -> tuple[int, int]:
        """What an account has and may come to have."""
        for account in (self.ledger.server, *self.ledger._users.values(), *self.ledger.repositories.values()):
            if account.words == words:
                return account.used_bytes + account.reserved_bytes, account.used_objects + account.reserved_objects
        return 0, 0

    def remove(self, what: tuple[Repository, int]) -> None:
        """All of a cell is removed."""
        amount = self.model.cell(*what)
        self.model.cells[what] = Amount()
        self.ledger.change(*what, Amount(-amount.size_bytes, -amount.objects))

    def count(self, what: tuple[Repository, dict[int, Amount]]) -> None:
        """Cells of a repository that is sure are counted. (Of one that was loaded and not counted: test_never_less.)"""
        repository, cells = what
        if repository in self.model.margins:
            return
        before = self.model.used([repository])
        self.model.cells.update({(repository, cell): amount for cell, amount in cells.items()})
        after = self.model.used([repository])
        drift = self.ledger.count(repository, cells)
        self.assertEqual(Amount(after.size_bytes - before.size_bytes, after.objects - before.objects), drift)

    def load(self, what: tuple[Repository, dict[int, Amount], Amount]) -> None:
        """A repository is not known yet, and something was known of it."""
        repository, cells, at_most = what
        if repository in self.ledger.repositories:
            return
        for cell, amount in cells.items():
            self.model.cells[repository, cell] = amount
        used = self.model.used([repository])
        self.model.margins[repository] = Amount(
            max(0, at_most.size_bytes - used.size_bytes), max(0, at_most.objects - used.objects)
        )
        sizes = [cells.get(cell, Amount()).size_bytes for cell in range(CELLS)]
        objects = [cells.get(cell, Amount()).objects for cell in range(CELLS)]
        self.ledger.load(repository, sizes, objects, at_most)

    def all_counted(self, repository: Repository) -> None:
        """Nothing is uncertain any more."""
        self.model.margins.pop(repository, None)
        self.ledger.all_counted(repository)

    def forget(self, repository: Repository) -> None:
        """A repository is gone."""
        self.model.margins.pop(repository, None)
        for key in [key for key in self.model.cells if key[0] == repository]:
            del self.model.cells[key]
        self.ledger.forget(repository)

    def assert_same(self) -> None:
        """Every account has the model's sums."""
        groups = {words: which for repository in REPOSITORIES for words, _, which in self.model.groups(repository)}
        accounts = {"this server": self.ledger.server, **self.ledger._users}
        accounts |= {account.words: account for account in self.ledger.repositories.values()}
        for words, which in groups.items():
            account = accounts.get(words, ledger_module.Account(words))
            self.assertEqual(self.model.used(which), (account.used_bytes, account.used_objects), words)
            self.assertEqual(self.model.reserved(which), (account.reserved_bytes, account.reserved_objects), words)
        self.assertLessEqual(set(accounts), set(groups))

    @by_chance
    @given(
        st.dictionaries(CELL_CHOICE, AMOUNTS),
        st.dictionaries(CELL_CHOICE, AMOUNTS),
        AMOUNTS,
        st.permutations([0, 1, 0xAB, 255, 256, 258, 260]),
    )
    def test_never_less(
        self, known: dict[int, Amount], stored: dict[int, Amount], more: Amount, order: list[int]
    ) -> None:
        """After a crash, in whatever order the cells are counted, no sum is ever less than what is stored."""
        total = Amount(sum(amount.size_bytes for amount in stored.values()), sum(a.objects for a in stored.values()))
        ledger = Ledger()
        sizes = [known.get(cell, Amount()).size_bytes for cell in range(CELLS)]
        objects = [known.get(cell, Amount()).objects for cell in range(CELLS)]
        at_most = Amount(total.size_bytes + more.size_bytes, total.objects + more.objects)
        ledger.load(ALICE, sizes, objects, at_most)
        for cell in order:
            ledger.count(ALICE, {cell: stored.get(cell, Amount())})
            for account in (ledger.server, ledger.user("alice"), ledger.account(ALICE)):
                self.assertGreaterEqual(account.used_bytes, total.size_bytes)
                self.assertGreaterEqual(account.used_objects, total.objects)
        ledger.all_counted(ALICE)
        self.assertEqual(total, (ledger.server.used_bytes, ledger.server.used_objects))


class TrashTests(LimitCase):
    """What lies in the trash."""

    def setUp(self) -> None:
        super().setUp()
        self.uncounted: set[Repository] = set()
        self.ledger = Ledger(Limit(1000), lambda repository: repository not in self.uncounted)

    def trash(self, repository: Repository, size_bytes: int, objects: int = 1) -> None:
        """An object moves to the trash."""
        self.ledger.change(repository, TRASH_CELL, Amount(size_bytes, objects))
        self.ledger.change(repository, cell_of("data", NAME), Amount(-size_bytes, -objects))

    def test_counts(self) -> None:
        """It counts as before, and is told apart."""
        self.store(ALICE, 600, 3)
        before = self.sums()
        self.trash(ALICE, 400, 2)
        self.assertEqual(before, self.sums())
        account = self.ledger.account(ALICE)
        self.assertEqual((Amount(200, 1), Amount(400, 2), Amount()), (account.stored, account.trash, account.uncounted))
        account.trash_ends_s = 1e9
        self.assertEqual(
            "quota of 1000 bytes for this server exceeded: upload of 500 bytes, 400 bytes left; "
            "400 bytes are in the trash until 2001-09-09 or later",
            self.refused(ALICE, 500),
        )

    def test_words_for_a_user(self) -> None:
        """A user's refusal is about all of the user's repositories, and about nobody else's."""
        for repository in (ALICE, LAPTOP, BOB):
            self.store(repository, 100)
            self.trash(repository, 100)
        its = Limits(user=Limit(250))
        self.assertTrue(self.refused(LAPTOP, 100, its).endswith("50 bytes left; 200 bytes are in the trash"))

    def test_uncounted(self) -> None:
        """With a rule that says so it counts nowhere, until the rule changes."""
        self.uncounted.add(ALICE)
        self.store(ALICE, 600, 3)
        self.trash(ALICE, 400, 2)
        account = self.ledger.account(ALICE)
        self.assertEqual((200, 200), (account.used_bytes, self.ledger.server.used_bytes))
        self.assertEqual((Amount(200, 1), Amount(400, 2)), (account.stored, account.uncounted))
        self.assertEqual(Amount(600, 3), account.most)
        self.ledger.release(self.reserve(ALICE, 800))
        self.assertNotIn("trash", self.refused(ALICE, 801))
        self.uncounted.clear()
        self.ledger.refresh()
        self.assertEqual((600, 600), (account.used_bytes, self.ledger.server.used_bytes))
        self.refused(ALICE, 800)
        self.uncounted.add(ALICE)
        self.ledger.refresh()
        self.assertEqual((200, 200), (account.used_bytes, self.ledger.server.used_bytes))

    def test_count_and_load(self) -> None:
        """A count of the trash, and the ceiling of an earlier run, hold whether it counts or not."""
        for uncounted in (False, True):
            self.uncounted = {ALICE} if uncounted else set()
            self.ledger = Ledger(Limit(1000), lambda repository: repository not in self.uncounted)
            cells = {TRASH_CELL: Amount(300, 3), cell_of("data", NAME): Amount(100, 1)}
            sizes = [cells.get(cell, Amount()).size_bytes for cell in range(CELLS)]
            objects = [cells.get(cell, Amount()).objects for cell in range(CELLS)]
            self.ledger.load(ALICE, sizes, objects, Amount(500, 5))
            account = self.ledger.account(ALICE)
            self.assertEqual((Amount(100, 1), Amount(300, 3)), (account.stored, account.trash))
            self.assertEqual((Amount(100, 1), Amount(500, 5)), (account.margin, account.most))
            self.ledger.count(ALICE, {TRASH_CELL: Amount(50, 1)})
            self.ledger.count(ALICE, {cell: Amount() for cell in range(TRASH_CELL) if cell != cell_of("data", NAME)})
            self.ledger.all_counted(ALICE)
            self.assertEqual((Amount(100, 1), Amount(50, 1)), (account.stored, account.trash))
            self.assertEqual(100 if uncounted else 150, self.ledger.server.used_bytes)

    def test_only_trash(self) -> None:
        """A repository of which only the trash is left is not forgotten, also if that does not count."""
        self.uncounted.add(ALICE)
        self.store(ALICE, 100)
        self.trash(ALICE, 100)
        self.ledger.all_counted(ALICE)
        self.assertIn(ALICE, self.ledger.repositories)
        self.ledger.count(ALICE, {TRASH_CELL: Amount()})
        self.ledger.all_counted(ALICE)
        self.assertNotIn(ALICE, self.ledger.repositories)
        self.assertEqual(0, self.ledger.server.used_bytes)

    def test_locks(self) -> None:
        """A lock may use what the trash takes of a quota: it never goes there. Nothing else may."""
        self.store(ALICE, 1000)
        self.trash(ALICE, 900)
        for kind in ("index", "data", "keys", "snapshots"):
            self.refused(ALICE, 200, NO_LIMITS, kind)
        held = self.reserve(ALICE, 200, NO_LIMITS, "locks")
        self.refused(ALICE, 800, NO_LIMITS, "locks")
        self.ledger.release(held)
        self.reserve(ALICE, 800, Limits(user=Limit(1000), repository=Limit(1000)), "locks")
