"""
L{resticserver.telemetry.status}: what needs attention, what of it somebody may see, and its way through JSON.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.dates import date_text
from resticserver.telemetry.concerns import DEFAULT, Concern, Level, Thresholds, age
from resticserver.telemetry.refusals import Refused
from resticserver.telemetry.status import (
    SCHEMA,
    LastDayStatus,
    ObjectProblem,
    RepositoryStatus,
    ScrubStatus,
    ServerStatus,
    UserStatus,
)

DAY_S = 86_400
NOW_S = 1_800_000_000.0
GOOD, NOTICE, WARNING, BAD = Level
#: A repository that is well.
WELL = RepositoryStatus("alice/laptop", "alice", 500, 7, last_snapshot_s=NOW_S - 60)
#: A server that is well.
SERVER = ServerStatus("1.2.3", NOW_S, NOW_S - DAY_S)


class AgeTests(SynchronousTestCase):
    """L{age} and L{date_text}."""

    def test_age(self) -> None:
        """The largest unit that is there once, rounded down, in the singular where it is one."""
        table = (
            (-5, "a moment"),
            (0, "a moment"),
            (59.9, "a moment"),
            (60, "1 minute"),
            (119.9, "1 minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "1 hour"),
            (7200, "2 hours"),
            (DAY_S - 1, "23 hours"),
            (DAY_S, "1 day"),
            (2 * DAY_S - 1, "1 day"),
            (400.5 * DAY_S, "400 days"),
        )
        for seconds, words in table:
            self.assertEqual(words, age(seconds), seconds)

    def test_date(self) -> None:
        """Points in time are UTC's, whatever the machine's zone."""
        self.assertEqual("2027-01-15T08:00:00Z", date_text(NOW_S))
        self.assertEqual("1969-12-31T23:59:59Z", date_text(-1))
        self.assertEqual("2027-01-15T08:00:00.250Z", date_text(NOW_S + 0.25, "milliseconds"))

    def test_odd_date(self) -> None:
        """A file's time may be any (C{touch -d @99999999999999}, a broken clock): that is no reason to show nothing."""
        for seconds in (1e14, -1e14):
            self.assertIsInstance(date_text(seconds), str)


class RepositoryTests(SynchronousTestCase):
    """L{RepositoryStatus.concerns}."""

    def test_concerns(self) -> None:
        """What needs attention, how much, and the edges of each."""
        quota, objects, lock = "quota", "objects", "stale lock"
        table: tuple[tuple[dict[str, Any], list[tuple[Level, str]]], ...] = (
            ({}, []),
            ({"damaged": 1}, [(BAD, "1 damaged file found")]),
            ({"damaged": 2}, [(BAD, "2 damaged files found")]),
            ({"quota_bytes": 1000}, []),
            ({"quota_bytes": 1000, "size_bytes": 899}, []),
            ({"quota_bytes": 1000, "size_bytes": 901}, [(WARNING, f"{quota} 90 % used")]),
            ({"quota_bytes": 1000, "size_bytes": 999}, [(WARNING, f"{quota} 99 % used")]),
            ({"quota_bytes": 1000, "size_bytes": 1000}, [(BAD, f"{quota} 100 % used")]),
            ({"quota_bytes": 1000, "size_bytes": 2500}, [(BAD, f"{quota} 250 % used")]),
            ({"quota_bytes": 0, "size_bytes": 0}, [(BAD, f"{quota} 100 % used")]),
            ({"quota_objects": 100, "objects": 89}, []),
            ({"quota_objects": 100, "objects": 95}, [(WARNING, f"{objects} 95 % used")]),
            ({"quota_objects": 100, "objects": 100}, [(BAD, f"{objects} 100 % used")]),
            ({"last_snapshot_s": None}, [(NOTICE, "no snapshot yet")]),
            ({"last_snapshot_s": NOW_S - DEFAULT.snapshot_age_s}, []),
            ({"last_snapshot_s": NOW_S - DEFAULT.snapshot_age_s - 1}, [(WARNING, "last snapshot 7 days ago")]),
            ({"last_snapshot_s": NOW_S - 30 * DAY_S}, [(WARNING, "last snapshot 30 days ago")]),
            ({"last_snapshot_s": NOW_S + DAY_S}, []),
            ({"last_snapshot_s": None, "counted": False}, [(NOTICE, "not counted yet")]),
            ({"last_snapshot_s": None, "created_s": NOW_S - DAY_S}, [(NOTICE, "no snapshot yet")]),
            (
                {"last_snapshot_s": None, "created_s": NOW_S - DAY_S - 1},
                [(WARNING, "no snapshot yet, created 1 day ago")],
            ),
            ({"last_snapshot_s": None, "created_s": NOW_S + DAY_S}, [(NOTICE, "no snapshot yet")]),
            ({"locks": 1}, []),
            ({"locks": 1, "oldest_lock_s": NOW_S - DEFAULT.lock_age_s}, []),
            ({"locks": 1, "oldest_lock_s": NOW_S - 2 * DEFAULT.lock_age_s}, [(WARNING, f"{lock}, 1 hour old")]),
            ({"locks": 0, "oldest_lock_s": NOW_S - DAY_S}, []),
        )
        for changes, concerns in table:
            one = replace(WELL, **changes)
            self.assertEqual([Concern(*concern) for concern in concerns], one.concerns(NOW_S), changes)
            self.assertEqual(max((level for level, _ in concerns), default=GOOD), one.level(NOW_S), changes)

    def test_thresholds(self) -> None:
        """Each threshold moves its edge, and 0 turns its rule off, but nothing hides a quota that is used up."""
        new = {"last_snapshot_s": None, "created_s": NOW_S - 3 * DAY_S}
        lock = {"locks": 1, "oldest_lock_s": NOW_S - 3600}
        table: tuple[tuple[dict[str, Any], dict[str, float], Level], ...] = (
            ({"last_snapshot_s": NOW_S - 2 * DAY_S}, {"snapshot_age_s": 2 * DAY_S}, GOOD),
            ({"last_snapshot_s": NOW_S - 2 * DAY_S}, {"snapshot_age_s": 2 * DAY_S - 1}, WARNING),
            ({"last_snapshot_s": NOW_S - 900 * DAY_S}, {"snapshot_age_s": 0}, GOOD),
            (new, {"first_snapshot_s": 3 * DAY_S}, NOTICE),
            (new, {"first_snapshot_s": 3 * DAY_S - 1}, WARNING),
            (new, {"first_snapshot_s": 0}, NOTICE),
            (lock, {"lock_age_s": 3600}, GOOD),
            (lock, {"lock_age_s": 3599}, WARNING),
            (lock, {"lock_age_s": 0}, GOOD),
            ({"quota_bytes": 1000}, {"quota": 0.5}, WARNING),
            ({"quota_bytes": 1000}, {"quota": 0.51}, GOOD),
            ({"quota_bytes": 501}, {"quota": 0}, GOOD),
            ({"quota_bytes": 500}, {"quota": 0}, BAD),
            ({"quota_objects": 14}, {"quota": 0.5}, WARNING),
        )
        for changes, thresholds, level in table:
            self.assertEqual(
                level, replace(WELL, **changes).level(NOW_S, Thresholds(**thresholds)), (changes, thresholds)
            )

    def test_worst_first(self) -> None:
        """All that is wrong is said, the worst first."""
        one = replace(
            WELL,
            last_snapshot_s=NOW_S - 8 * DAY_S,
            locks=2,
            oldest_lock_s=NOW_S - DAY_S,
            quota_bytes=500,
            quota_objects=7,
            damaged=3,
        )
        found = one.concerns(NOW_S)
        self.assertEqual([BAD, BAD, BAD, WARNING, WARNING], [level for level, _ in found])
        self.assertEqual("stale lock, 1 day old", found[-1].words)

    def test_refusals(self) -> None:
        """
        Refused uploads of the last day need attention, however many reasons there are; those that the rules refuse are
        said and no more.
        """
        disk = Refused("alice", "alice/laptop", "disk", 3, NOW_S - 7200, "no space left")
        quota = Refused("bob", "alice/laptop", "quota", 1, NOW_S - 60, "quota of 1 GiB")
        rights = Refused("bob", "alice/laptop", "rights", 1, NOW_S - 5, "you may only read")
        table: tuple[tuple[tuple[Refused, ...], list[Concern]], ...] = (
            ((), []),
            ((disk,), [Concern(WARNING, "3 uploads refused within a day, the last 2 hours ago: no space left")]),
            (
                (disk, quota),
                [Concern(WARNING, "4 uploads refused within a day, the last 1 minute ago: quota of 1 GiB")],
            ),
            ((rights,), [Concern(NOTICE, "1 upload refused within a day, the last a moment ago: you may only read")]),
        )
        for refusals, concerns in table:
            self.assertEqual(concerns, replace(WELL, refusals=refusals).concerns(NOW_S))
            self.assertEqual(concerns, UserStatus("bob", 1, refusals=refusals).concerns(NOW_S))
        self.assertEqual(2, len(replace(WELL, refusals=(disk, quota, rights)).concerns(NOW_S)))

    def test_stale_lock_needs_attention(self) -> None:
        """docs/monitoring.md: a lock older than half an hour is one of what needs attention, so it counts as that."""
        one = replace(WELL, locks=1, oldest_lock_s=NOW_S - 3600)
        self.assertGreaterEqual(one.level(NOW_S), WARNING)

    def test_name(self) -> None:
        """The one at the root is called C{/}."""
        self.assertEqual(("/", "a/b"), (RepositoryStatus("", None, 0, 0).name, RepositoryStatus("a/b", "a", 0, 0).name))


class ServerTests(SynchronousTestCase):
    """L{ServerStatus}."""

    def test_concerns(self) -> None:
        """What of the server needs attention, and the edges of each."""
        table: tuple[tuple[dict[str, Any], list[tuple[Level, str]]], ...] = (
            ({}, []),
            ({"not_ready": "the disk is full"}, [(BAD, "not ready: the disk is full")]),
            ({"repositories": (WELL,), "quota_bytes": 1000}, []),
            ({"repositories": (WELL, WELL), "quota_bytes": 1050}, [(WARNING, "quota 95 % used")]),
            ({"repositories": (WELL, WELL), "quota_bytes": 1000}, [(BAD, "quota 100 % used")]),
            ({"disk_free_bytes": 200, "disk_size_bytes": 1000}, []),
            ({"disk_free_bytes": 50, "disk_size_bytes": 1000}, [(WARNING, "only 50 bytes of disk space free")]),
            ({"disk_free_bytes": 0, "disk_size_bytes": 1000}, [(WARNING, "only 0 bytes of disk space free")]),
            ({"disk_free_bytes": 0, "disk_size_bytes": 0}, []),
            ({"disk_free_bytes": None, "disk_size_bytes": 1000}, []),
            ({"certificate_s": NOW_S + 15 * DAY_S}, []),
            ({"certificate_s": NOW_S + 14 * DAY_S}, []),
            ({"certificate_s": NOW_S + 13 * DAY_S}, [(WARNING, "certificate expires in 13 days")]),
            ({"certificate_s": NOW_S}, [(BAD, "certificate expired a moment ago")]),
            ({"certificate_s": NOW_S - DAY_S}, [(BAD, "certificate expired 1 day ago")]),
            ({"counted": False}, [(NOTICE, "sizes are still being counted")]),
            (
                {"counted": False, "certificate_s": NOW_S + DAY_S, "not_ready": "x"},
                [
                    (BAD, "not ready: x"),
                    (WARNING, "certificate expires in 1 day"),
                    (NOTICE, "sizes are still being counted"),
                ],
            ),
        )
        for changes, concerns in table:
            self.assertEqual([Concern(*one) for one in concerns], replace(SERVER, **changes).concerns(), changes)

    def test_thresholds(self) -> None:
        """Those of the server hold for it, its users and its repositories, and 0 turns each off, but not what has happened."""
        disk = {"disk_free_bytes": 250, "disk_size_bytes": 1000}
        scrub = {"scrub": ScrubStatus(10 * DAY_S, oldest_s=NOW_S - 30 * DAY_S)}
        table: tuple[tuple[dict[str, Any], dict[str, float], Level], ...] = (
            (disk, {"disk": 0.75}, WARNING),
            (disk, {"disk": 0.76}, GOOD),
            ({"disk_free_bytes": 0, "disk_size_bytes": 1000}, {"disk": 0}, GOOD),
            ({"certificate_s": NOW_S + 20 * DAY_S}, {"certificate_s": 21 * DAY_S}, WARNING),
            ({"certificate_s": NOW_S + 20 * DAY_S}, {"certificate_s": 20 * DAY_S}, GOOD),
            ({"certificate_s": NOW_S + 1}, {"certificate_s": 0}, GOOD),
            ({"certificate_s": NOW_S}, {"certificate_s": 0}, BAD),
            (scrub, {"scrub": 2.8}, WARNING),
            (scrub, {"scrub": 2.9}, GOOD),
            (scrub, {"scrub": 0}, GOOD),
            ({"users": (UserStatus("a", 50, 100),)}, {"quota": 0.5}, WARNING),
            ({"repositories": (WELL,)}, {"snapshot_age_s": 59}, WARNING),
            ({"repositories": (WELL,), "quota_bytes": 1000}, {"quota": 0.5}, WARNING),
        )
        for changes, thresholds, level in table:
            status = replace(SERVER, thresholds=Thresholds(**thresholds), **changes)
            self.assertEqual(level, status.worst(), (changes, thresholds))
            again = ServerStatus.from_json(json.loads(json.dumps(status.as_json())))
            self.assertEqual(level, again.worst(), (changes, thresholds))

    def test_users(self) -> None:
        """A user's quota, by bytes and by objects, and who is shown: those with a quota, and those who were refused."""
        table: tuple[tuple[UserStatus, list[Concern], bool], ...] = (
            (UserStatus("a", 100), [], False),
            (UserStatus("a", 89, 100), [], True),
            (UserStatus("a", 90, 100), [Concern(WARNING, "quota 90 % used")], True),
            (UserStatus("a", 100, 100), [Concern(BAD, "quota 100 % used")], True),
            (UserStatus("a", 211, 100), [Concern(BAD, "quota 211 % used")], True),
            (UserStatus("a", 1, None, 7, 5), [Concern(BAD, "objects 140 % used")], True),
        )
        for user, concerns, shown in table:
            self.assertEqual(concerns, user.concerns(NOW_S))
            status = replace(SERVER, users=(user,))
            self.assertEqual([user] if shown else [], status.users_by_need())
            self.assertEqual(max((level for level, _ in concerns), default=GOOD), status.worst())

    def test_with_refusals(self) -> None:
        """
        Each refusal stands with its repository and with its user, who may have nothing yet. Of the server itself it is what
        is about the disk, and what would stand nowhere.
        """
        hers = Refused("alice", "alice/laptop", "quota", 1, NOW_S, "quota")
        new = Refused("carol", "carol", "disk", 2, NOW_S, "no space")
        nobodys = Refused(None, "elsewhere", "quota", 4, NOW_S, "quota of this server")
        whole = replace(SERVER, repositories=(WELL,), users=(UserStatus("alice", 500, 1000), UserStatus("bob", 5, 10)))
        status = whole.with_refusals((hers, new, nobodys))
        self.assertEqual([(hers,)], [one.refusals for one in status.repositories])
        self.assertEqual(
            [("alice", (hers,)), ("bob", ()), ("carol", (new,))], [(one.user, one.refusals) for one in status.users]
        )
        self.assertEqual(["alice", "carol", "bob"], [one.user for one in status.users_by_need()])
        words = "6 uploads refused within a day, the last a moment ago: no space"
        self.assertEqual([Concern(WARNING, words)], status.concerns())
        self.assertEqual([], whole.with_refusals((hers,)).concerns())

    def test_only_her_refusals(self) -> None:
        """Who sees just some sees the own refusals, and of the others' nothing."""
        hers = Refused("alice", "alice/laptop", "quota", 1, NOW_S, "quota")
        his = Refused("bob", "alice/laptop", "quota", 1, NOW_S, "quota of bob")
        shown = replace(SERVER, repositories=(WELL,)).with_refusals((hers, his)).only("alice", [])
        self.assertEqual((hers,), shown.refusals)
        shown = replace(SERVER, repositories=(WELL,)).with_refusals((hers, his)).only("carol", [WELL])
        self.assertEqual(((), ()), (shown.refusals, shown.users))
        self.assertNotIn("quota of bob", json.dumps(shown.as_json()))

    def test_size(self) -> None:
        """What is stored is the sum of the repositories."""
        self.assertEqual(0, SERVER.size_bytes)
        self.assertEqual(501, replace(SERVER, repositories=(WELL, RepositoryStatus("", None, 1, 1))).size_bytes)

    def test_by_need(self) -> None:
        """The worst first, and by name where they are alike; the given order is of no matter."""
        changes: tuple[tuple[str, dict[str, Any]], ...] = (
            ("b/good", {}),
            ("a/good", {}),
            ("z/new", {"last_snapshot_s": None}),
            ("y/old", {"last_snapshot_s": NOW_S - 8 * DAY_S}),
            ("x/damaged", {"damaged": 1}),
            ("c/old", {"last_snapshot_s": NOW_S - 80 * DAY_S}),
        )
        several = tuple(replace(WELL, repository=name, **values) for name, values in changes)
        expected = ["x/damaged", "c/old", "y/old", "z/new", "a/good", "b/good"]
        for order in (several, several[::-1]):
            found = replace(SERVER, repositories=order).by_need()
            self.assertEqual(expected, [one.repository for one in found])

    def test_only(self) -> None:
        """Who sees just some sees nothing of the others, of their owners, of the disk or of the server's quota."""
        hers, his, root = WELL, replace(WELL, repository="bob", owner="bob"), RepositoryStatus("", None, 9, 1)
        whole = replace(
            SERVER,
            quota_bytes=1000,
            disk_free_bytes=5,
            disk_size_bytes=1000,
            history=((20_000, 5), (20_001, 7)),
            growth_bytes_per_day=5.5,
            disk_full_s=NOW_S + 5,
            last_day=LastDayStatus(1.0, 2, 3, 4, 5, 6),
            repositories=(his, hers, root),
            users=(UserStatus("alice", 500, 1000), UserStatus("bob", 500, 600)),
        )
        table: tuple[tuple[RepositoryStatus, ...], ...] = ((hers,), (root,), (), (his, root))
        for shown in table:
            part = whole.only("alice", iter(shown))
            self.assertEqual(shown, part.repositories)
            self.assertEqual(("alice",), tuple(user.user for user in part.users))
            self.assertEqual(sum(one.size_bytes for one in shown), part.size_bytes)
            self.assertEqual((None,) * 3, (part.quota_bytes, part.disk_free_bytes, part.disk_size_bytes))
            self.assertEqual([], part.concerns())
            self.assertEqual(
                ((), None, None, None), (part.history, part.growth_bytes_per_day, part.disk_full_s, part.last_day)
            )
        self.assertEqual((his, hers, root), whole.repositories)

    def test_only_one_of_an_owners(self) -> None:
        """Who may read one repository of bob's learns nothing of the size of what else he has."""
        shared = RepositoryStatus("bob/shared", "bob", 100, 1)
        secret = RepositoryStatus("bob/secret", "bob", 77_777, 1)
        whole = replace(SERVER, repositories=(shared, secret), users=(UserStatus("bob", 77_877, 80_000),))
        said = json.dumps(whole.only("alice", [shared]).as_json())
        self.assertNotIn("77877", said)


class JsonTests(SynchronousTestCase):
    """L{ServerStatus.as_json} and back."""

    full = ServerStatus(
        "1.2.3",
        NOW_S + 0.25,
        NOW_S - 99.5,
        "no room",
        False,
        1 << 50,
        12,
        1 << 40,
        NOW_S + 5 * DAY_S,
        (
            RepositoryStatus(
                "ä/<&>",
                "ä",
                1 << 42,
                77,
                1 << 43,
                1000,
                NOW_S - 7.5,
                3,
                NOW_S - 3600.0,
                2,
                ((20_000, 5), (20_001, 1 << 42)),
                snapshots=9,
                created_s=NOW_S - 1e6,
                last_writer="b<>",
                last_write_s=NOW_S - 0.5,
            ),
            RepositoryStatus(
                "",
                None,
                0,
                0,
                problem_counts={"damaged": 2},
                problems=(ObjectProblem("data", "ab" * 32, "damaged", NOW_S - 0.5, "why"),),
            ),
        ),
        (UserStatus("ä", 1 << 42, None), UserStatus("bob", 0, 7, 3, 4)),
        scrub=ScrubStatus(86_400, 0.5, 60, NOW_S - 5.5, NOW_S - 9.5, 2),
        host="höst",
        thresholds=Thresholds(8e5, 2e5, 1801.0, 0.91, 0.92, 2e6, 1.6),
        history=((19_999, 4), (20_001, 1 << 43)),
        growth_bytes_per_day=-1.5,
        disk_full_s=NOW_S + 7.25,
        last_day=LastDayStatus(86_400.0, 1, 2, 3, 4, 5),
    ).with_refusals(
        (Refused("bob", "ä/<&>", "disk", 3, NOW_S - 0.5, "full"), Refused(None, "x", "content", 1, NOW_S, "odd"))
    )

    def test_round_trip(self) -> None:
        """What is read is what was written, every field, also when it was text in between."""
        for status in (self.full, SERVER):
            document = status.as_json()
            self.assertEqual(status, ServerStatus.from_json(document))
            self.assertEqual(status, ServerStatus.from_json(json.loads(json.dumps(document))))

    def test_concerns_are_in_it(self) -> None:
        """Programs get the words as well, the server's and each repository's own."""
        document = self.full.as_json()
        self.assertEqual(SCHEMA, document["schema"])
        self.assertEqual([words for _, words in self.full.concerns()], document["concerns"])
        refused = "3 uploads refused within a day, the last a moment ago: full"
        concerns = ["2 damaged files found", refused, "stale lock, 1 hour old"]
        self.assertEqual(concerns, document["repositories"][0]["concerns"])
        self.assertEqual([[], [refused]], [one["concerns"] for one in document["users"]])
        self.assertEqual(["found by the scrub: 2 damaged", "no snapshot yet"], document["repositories"][1]["concerns"])

    def test_keys(self) -> None:
        """The keys are those that docs/monitoring.md has."""
        document = self.full.as_json()
        server = "schema version time_s started_s not_ready counted quota_bytes disk_free_bytes disk_size_bytes certificate_s"
        server += " host thresholds history growth_bytes_per_day disk_full_s last_day"
        self.assertEqual({*server.split(), "concerns", "users", "repositories", "refusals", "scrub"}, set(document))
        thresholds = "snapshot_age_s first_snapshot_s lock_age_s quota disk certificate_s scrub"
        self.assertEqual(set(thresholds.split()), set(document["thresholds"]))
        last_day = "covered_s received_bytes sent_bytes uploads_refused failed_logins limited"
        self.assertEqual(set(last_day.split()), set(document["last_day"]))
        repository = "repository owner size_bytes objects quota_bytes quota_objects last_snapshot_s locks oldest_lock_s"
        trash = "trash_bytes trash_objects trash_counts trash_ends_s"
        self.assertEqual(
            {
                *repository.split(),
                *trash.split(),
                "damaged",
                "history",
                "counted",
                "concerns",
                "problems",
                "problem_counts",
                *"snapshots created_s last_writer last_write_s".split(),
            },
            set(document["repositories"][0]),
        )
        user = {
            "user",
            "size_bytes",
            "quota_bytes",
            "objects",
            "quota_objects",
            "trash_bytes",
            "trash_objects",
            "concerns",
        }
        self.assertEqual(user, set(document["users"][0]))
        self.assertEqual({"user", "repository", "reason", "number", "last_s", "message"}, set(document["refusals"][0]))

    def test_unknown_keys(self) -> None:
        """New keys may come: who does not know them goes without."""
        document = json.loads(json.dumps(self.full.as_json()))
        for part in (
            document,
            *(document[name][0] for name in ("repositories", "users", "refusals")),
            *(document[name] for name in ("scrub", "thresholds", "last_day")),
        ):
            part["mood"] = {"fine": [1]}
        self.assertEqual(self.full, ServerStatus.from_json(document))

    def test_missing_keys(self) -> None:
        """What must be there and is not is an error, and no guess."""
        for key in ("version", "time_s", "repositories", "users"):
            document = self.full.as_json()
            del document[key]
            self.assertRaises((KeyError, TypeError), ServerStatus.from_json, document)

    def test_older_server(self) -> None:
        """A server that does not tell the newest keys is read all the same, with the thresholds of this version."""
        document = json.loads(json.dumps(self.full.as_json()))
        for key in ("host", "thresholds", "history", "growth_bytes_per_day", "disk_full_s", "last_day"):
            del document[key]
        for one in document["repositories"]:
            for key in ("snapshots", "created_s", "last_writer", "last_write_s"):
                del one[key]
        status = ServerStatus.from_json(document)
        self.assertEqual((DEFAULT, None, "", ()), (status.thresholds, status.last_day, status.host, status.history))
