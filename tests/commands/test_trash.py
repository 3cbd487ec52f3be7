"""
L{resticserver.commands.trash}: what is chosen, what is printed, what is put back, and what is left alone.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import trash
from resticserver.names import TYPES
from resticserver.storage.local import LocalStore
from resticserver.storage.trash_restore import Trash

from ..support.client import object_id
from ..support.scratch import contents_below, scratch_directory
from ..support.skipping import skipped

LAPTOP = "alice/laptop"
DAY_S = 86_400
OWNER = 12_345


def day_of(seconds: float) -> str:
    """The day of a time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


class TrashCase(SynchronousTestCase):
    """A data directory, and the command."""

    def setUp(self) -> None:
        self.path = scratch_directory(self) / "data"
        self.store = LocalStore(str(self.path))
        self.store.prepare()
        self.store.create_repository(("alice", "laptop"))
        self.laptop = self.path / LAPTOP
        # Change times cannot be set, so the tests look as if they were modification times.
        self.ages: dict[str, float] = {}

    def put(self, body: bytes, kind: str = "data", repository: str = LAPTOP) -> str:
        """Store an object; its name."""
        name = "config" if kind == "config" else object_id(body)
        folders = tuple(repository.split("/"))
        upload = self.store.upload(folders, kind, name, len(body))
        upload.open()
        upload.write([body])
        upload.commit()
        return name

    def delete(self, name: str, kind: str = "data", repository: str = LAPTOP, keep_s: float = 30 * DAY_S) -> None:
        """Delete it as a client does."""
        self.store.remove_object(tuple(repository.split("/")), kind, name, keep_s)

    def put_in_trash(
        self, body: bytes, kind: str = "data", age_s: float = 0, repository: str = LAPTOP, folder: str = ""
    ) -> str:
        """An object that was deleted so long ago; its name in the trash."""
        deleted_s = time.time() - age_s
        name = object_id(body)
        day = self.path / repository / ".trash" / day_of(deleted_s)
        file = day / (folder or kind) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (day / f"keep-{30 * DAY_S}s").touch()
        file.write_bytes(body)
        self.ages[str(file)] = age_s
        return name

    def run_trash(self, *arguments: str, path: str | None = None, stdin: Any = None) -> tuple[int, str, str]:
        """Status, output, errors. No call may end with a traceback."""
        out, err = io.StringIO(), io.StringIO()
        ages = {path: time.time() - age_s for path, age_s in self.ages.items()}

        def deleted_s(status: os.stat_result) -> float:
            for file, at_s in ages.items():
                with_stat = os.lstat(file) if os.path.lexists(file) else None
                if with_stat is not None and os.path.samestat(with_stat, status):
                    return at_s
            return status.st_ctime

        def of_day(day: Any, status: os.stat_result) -> float:
            return deleted_s(status)

        where = ["--path", str(self.path) if path is None else path]
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch("sys.stdin", stdin or io.StringIO()),
            mock.patch("resticserver.storage.trash.TrashDay.deleted_s", of_day),
        ):
            status = trash.main([arguments[0], *where, *arguments[1:]] if arguments else [])
        self.assertNotIn("Traceback", err.getvalue())
        return status, out.getvalue(), err.getvalue()

    def succeed(self, *arguments: str) -> str:
        """Output of a run that says no error."""
        status, out, err = self.run_trash(*arguments)
        self.assertEqual((0, ""), (status, err), arguments)
        return out

    def document(self, *arguments: str) -> dict[str, Any]:
        """What it prints as JSON."""
        found: dict[str, Any] = json.loads(self.succeed(*arguments, "--json"))
        return found

    def ids(self, *arguments: str) -> set[str]:
        """The ids that are listed."""
        return {one["id"] for one in self.document("list", *arguments)["objects"]}

    def assert_refused(self, status: int, words: str, *arguments: str, path: str | None = None) -> None:
        """One line that says why, and nothing changed."""
        before = contents_below(self.path)
        found, out, err = self.run_trash(*arguments, path=path)
        self.assertEqual((status, ""), (found, out), (arguments, err))
        self.assertEqual(1, len(err.splitlines()), err)
        self.assertTrue(err.startswith("rest-server trash"), err)
        self.assertIn(words, err)
        self.assertTrue(err.rstrip("\n").isprintable(), err)
        self.assertEqual(before, contents_below(self.path))

    def live(self, name: str, kind: str = "data") -> Path:
        """Where an object lies that is in use."""
        if kind == "config":
            return self.laptop / "config"
        return self.laptop / kind / (name[:2] if kind == "data" else "") / name


class FilterTests(TrashCase):
    """Which objects are meant."""

    def setUp(self) -> None:
        super().setUp()
        self.new = self.put_in_trash(b"new", age_s=60)
        self.hours = self.put_in_trash(b"hours", "index", age_s=3 * 3600)
        self.days = self.put_in_trash(b"days", "snapshots", age_s=5 * DAY_S)
        self.config = self.put_in_trash(b"config", "config", age_s=10 * DAY_S)
        self.all = {self.new, self.hours, self.days, self.config}

    def test_all(self) -> None:
        """Without a filter everything is listed, of one repository and of all."""
        self.assertEqual(self.all, self.ids(LAPTOP))
        other = self.put_in_trash(b"other", repository="bob")
        self.assertEqual({*self.all, other}, self.ids())
        self.assertEqual(self.all, self.ids(f"/{LAPTOP}/"))

    def test_types(self) -> None:
        """--type may be repeated."""
        self.assertEqual({self.hours}, self.ids(LAPTOP, "--type", "index"))
        self.assertEqual({self.hours, self.config}, self.ids("--type=config", LAPTOP, "--type", "index"))

    def test_ids(self) -> None:
        """Whole ids, and parts of them."""
        self.assertEqual({self.hours}, self.ids(LAPTOP, self.hours))
        self.assertEqual({self.hours, self.new}, self.ids(LAPTOP, self.hours[:8], self.new[:12]))

    def test_ages(self) -> None:
        """Ages in all their forms."""
        for words in ("2 hours", "2 hours ago", "2h", "2 h", "120m", "7200s", "120 minutes ago", "2 HOURS AGO", " 2h "):
            self.assertEqual({self.new}, self.ids(LAPTOP, "--since", words), words)
            self.assertEqual(self.all - {self.new}, self.ids(LAPTOP, "--until", words), words)
            self.assertEqual(self.all - {self.new}, self.ids(LAPTOP, "--older-than", words), words)
        for words, number in (
            ("3d", 2),
            ("1 day ago", 2),
            ("1 week", 3),
            ("1w", 3),
            ("1 month ago", 4),
            ("9 years", 4),
        ):
            self.assertEqual(number, len(self.ids(LAPTOP, "--since", words)), words)
        self.assertEqual({self.hours}, self.ids(LAPTOP, "--since", "1d", "--older-than", "1h"))
        self.assertEqual({self.days}, self.ids(LAPTOP, "--since", "1w", "--until", "1h", "--older-than", "2d"))

    def test_times(self) -> None:
        """Times with a zone and without one, which is UTC; a day is its begin."""
        at = datetime.fromtimestamp(time.time() - 2 * 3600, UTC).replace(microsecond=0)
        elsewhere = at.astimezone(timezone(timedelta(hours=5, minutes=30)))
        for words in (
            at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            at.strftime("%Y-%m-%d %H:%M:%S"),
            at.strftime("%Y-%m-%dT%H:%M:%S"),
            at.isoformat(),
            elsewhere.isoformat(),
        ):
            self.assertEqual({self.new}, self.ids(LAPTOP, "--since", words), words)
            self.assertEqual(self.all - {self.new}, self.ids(LAPTOP, "--until", words), words)
        for days, number in ((1, 2), (4, 2), (6, 3), (11, 4)):
            day = day_of(time.time() - days * DAY_S)
            for words in (day, day.replace("-", "")):
                self.assertEqual(number, len(self.ids(LAPTOP, "--since", words)), words)

    def test_before_everything(self) -> None:
        """The begin of time is a time: nothing was deleted until then, and everything since."""
        self.assertEqual(set(), self.ids(LAPTOP, "--until", "1970-01-01"))
        self.assertEqual(self.all, self.ids(LAPTOP, "--since", "1970-01-01"))
        self.assertEqual(set(), self.ids(LAPTOP, "--until", "0001-01-01T00:00:00+14:00"))
        self.assertEqual(self.all, self.ids(LAPTOP, "--until", "9999-12-31T23:59:59-14:00"))
        self.succeed("empty", LAPTOP, "--yes", "--until", "1970-01-01")
        self.assertEqual(self.all, self.ids(LAPTOP))

    def test_options_anywhere(self) -> None:
        """Options may stand before, between and after the repository and the ids."""
        for order in (
            ("--type", "index", LAPTOP, self.hours),
            (LAPTOP, "--type", "index", self.hours),
            (LAPTOP, self.hours, "--type", "index"),
            (LAPTOP, self.hours[:8], "--type", "index", self.hours),
        ):
            self.assertEqual({self.hours}, self.ids(*order), order)
            out = self.succeed("restore", *order, "--dry-run")
            self.assertEqual("would restore 1 object (5 bytes)\n", out, order)
            out = self.succeed("empty", "--dry-run", *order)
            self.assertEqual("would remove 1 object (5 bytes)\n", out, order)


class ListTests(TrashCase):
    """C{rest-server trash list}."""

    def test_nothing(self) -> None:
        """An empty trash is no error."""
        self.assertEqual("the trash is empty\n", self.succeed("list"))
        self.assertEqual({"objects": []}, self.document("list"))
        self.assertEqual({"objects": []}, self.document("list", LAPTOP))
        self.assertEqual("nothing matches\n", self.succeed("list", LAPTOP))
        self.put_in_trash(b"1")
        self.assertEqual("nothing matches\n", self.succeed("list", "--type", "keys"))

    def test_tables(self) -> None:
        """One line for each repository, or for each object."""
        name = self.put_in_trash(b"x" * 1536, age_s=3600)
        self.put_in_trash(b"y", "keys", age_s=2 * DAY_S)
        self.put_in_trash(b"z", repository="b\x1bob")
        head, laptop, bob = self.succeed("list").splitlines()
        self.assertEqual(["REPOSITORY", "OBJECTS", "SIZE", "DELETED", "UNTIL"], head.split())
        self.assertEqual([LAPTOP, "2", "1.50", "KiB"], laptop.split()[:4])
        self.assertEqual(["b\\x1bob", "1", "1", "byte"], bob.split()[:4])
        lines = self.succeed("list", LAPTOP).splitlines()
        self.assertEqual(["TYPE", "ID", "SIZE", "DELETED", "UNTIL"], lines[0].split())
        kind, id_, size, unit, deleted, until = lines[1].split()
        self.assertEqual(("data", name, "1.50", "KiB"), (kind, id_, size, unit))
        self.assertTrue(deleted < until)
        self.assertEqual("2 objects (1.50 KiB) in the trash", lines[-1])

    def test_json(self) -> None:
        """Everything is in the document; until when is not known where nothing says it."""
        name = self.put(b"body")
        self.delete(name, keep_s=100)
        (found,) = self.document("list")["objects"]
        self.assertEqual({"repository", "type", "id", "size_bytes", "deleted", "until"}, set(found))
        self.assertEqual(
            (LAPTOP, "data", name, 4), tuple(found[key] for key in ("repository", "type", "id", "size_bytes"))
        )
        deleted, until = (datetime.fromisoformat(found[key]).timestamp() for key in ("deleted", "until"))
        self.assertTrue(abs(time.time() - deleted) < 60)
        self.assertTrue(abs(deleted + 100 - until) < 2)
        next(self.laptop.glob(".trash/*/keep-*")).unlink()
        (found,) = self.document("list", LAPTOP)["objects"]
        self.assertIsNone(found["until"])
        self.assertIn("not set", self.succeed("list", LAPTOP))

    def test_flags_of_the_server(self) -> None:
        """The delay that the server has now counts for until when, if it is longer."""
        self.delete(self.put(b"body"), keep_s=100)
        config = self.path / "config.toml"
        config.write_text('delete-delay = "30d"\n')
        (found,) = self.document("list", "--config", str(config))["objects"]
        deleted, until = (datetime.fromisoformat(found[key]).timestamp() for key in ("deleted", "until"))
        self.assertTrue(abs(deleted + 30 * DAY_S - until) < 2)

    def test_root_repository(self) -> None:
        """The one in the data directory itself."""
        name = self.put_in_trash(b"1", repository=".")
        self.assertEqual({name}, self.ids("/"))
        self.assertEqual(["/"], [one["repository"] for one in self.document("list")["objects"]])
        self.assertIn("1 object", self.succeed("restore", "/"))
        self.assertTrue((self.path / "data" / name[:2] / name).exists())

    def test_unreadable_trash(self) -> None:
        """One that cannot be read is named, and hides no other."""
        name = self.put_in_trash(b"1")
        self.put_in_trash(b"2", repository="bob")
        listdir = os.listdir

        def broken(path: Any = ".") -> Any:
            if str(path).endswith("/bob/.trash"):
                raise OSError(errno.EACCES, "Permission denied", str(path))
            return listdir(path)

        with mock.patch.object(os, "listdir", broken):
            status, out, err = self.run_trash("list", "--json")
            self.assertEqual((1, [name]), (status, [one["id"] for one in json.loads(out)["objects"]]))
            self.assertEqual("rest-server trash list: skipped the trash of bob: Permission denied\n", err)
            self.assert_refused(1, "/bob/.trash: Permission denied", "list", "bob")


class RestoreTests(TrashCase):
    """C{rest-server trash restore}."""

    def test_all_types(self) -> None:
        """Everything goes back to where it was, and the trash is gone then."""
        bodies = {kind: kind.encode() for kind in ("data", "index", "keys", "config", "snapshots")}
        for kind, body in bodies.items():
            self.put(body, kind)
        before = contents_below(self.path)
        for kind, body in bodies.items():
            self.delete("config" if kind == "config" else object_id(body), kind)
        gone = contents_below(self.laptop)
        self.assertFalse([name for name in gone if not name.startswith(".trash/")])
        self.assertEqual("restored 5 objects (28 bytes)\n", self.succeed("restore", LAPTOP))
        self.assertEqual(before, contents_below(self.path))
        self.assertFalse((self.laptop / ".trash").exists())
        self.assertEqual("restored 0 objects (0 bytes)\n", self.succeed("restore", LAPTOP))

    def test_dry_run(self) -> None:
        """It says what would be done, each object once, and does nothing."""
        one = self.put_in_trash(b"1", age_s=60)
        self.put_in_trash(b"1", age_s=3 * DAY_S)
        two = self.put_in_trash(b"22", "keys")
        before = contents_below(self.path)
        self.assertEqual("would restore 2 objects (3 bytes)\n", self.succeed("restore", LAPTOP, "--dry-run"))
        found = self.document("restore", LAPTOP, "--dry-run")["would_restore"]
        self.assertEqual([("data", one), ("keys", two)], [(each["type"], each["id"]) for each in found])
        self.assertEqual(before, contents_below(self.path))

    def test_json(self) -> None:
        """What was restored, what is there already, and what could not be restored and why."""
        good, bad = self.put_in_trash(b"good"), self.put_in_trash(b"bad")
        present = self.put(b"present")
        self.put_in_trash(b"present")
        next(self.laptop.glob(f".trash/*/data/{bad}")).write_bytes(b"BAD")
        status, out, err = self.run_trash("restore", LAPTOP, "--json")
        found = json.loads(out)
        self.assertEqual(1, status)
        self.assertEqual(
            ([good], [present], [bad]),
            tuple([one["id"] for one in found[key]] for key in ("restored", "present", "failed")),
        )
        reason = "its content does not match its id"
        self.assertEqual(reason, found["failed"][0]["reason"])
        self.assertEqual(f"rest-server trash restore: data {bad} was not restored: {reason}\n", err)

    def test_damaged(self) -> None:
        """A damaged object stays in the trash, and all others are restored, also an older copy of the same."""
        bad, good = self.put_in_trash(b"bad"), self.put_in_trash(b"good")
        twice = self.put_in_trash(b"twice", age_s=2 * DAY_S)
        self.put_in_trash(b"twice", age_s=60)
        for name in (bad, twice):
            max(self.laptop.glob(f".trash/*/data/{name}")).write_bytes(b"broken")
        status, out, err = self.run_trash("restore", LAPTOP)
        self.assertEqual((1, "restored 2 objects (9 bytes); 1 could not be restored\n"), (status, out))
        self.assertEqual(1, len(err.splitlines()), err)
        self.assertIn(bad, err)
        self.assertEqual([b"good", b"twice"], [self.live(name).read_bytes() for name in (good, twice)])
        self.assertFalse(self.live(bad).exists())
        self.assertEqual({bad, twice}, self.ids(LAPTOP))

    def test_never_replaced(self) -> None:
        """What has the name now stays: the same object, another file, a directory, a link."""
        for number, make in enumerate(
            (
                lambda path: path.write_bytes(b"other"),
                lambda path: path.mkdir(),
                lambda path: path.symlink_to("/nowhere"),
                lambda path: os.mkfifo(path),
            )
        ):
            name = self.put_in_trash(b"%d" % number)
            path = self.live(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
            before = os.lstat(path)
            good = self.put_in_trash(b"good %d" % number)
            status, _, err = self.run_trash("restore", LAPTOP)
            self.assertEqual((1, 1), (status, len(err.splitlines())), (number, err))
            self.assertIn(name, err)
            self.assertTrue(self.live(good).exists())
            self.assertEqual(before[:2], os.lstat(path)[:2])
            self.assertIn(name, self.ids(LAPTOP))
            self.succeed("empty", LAPTOP, "--yes")

    def test_present(self) -> None:
        """The same object is there already: it is not an error."""
        name = self.put(b"1")
        self.put_in_trash(b"1")
        out = self.succeed("restore", LAPTOP, name[:10])
        self.assertEqual("restored 0 objects (0 bytes); 1 object (1 byte) are there already\n", out)

    def test_twins(self) -> None:
        """Objects with a name that was taken lie in TYPE.2 and so on; of several the one whose content is right is taken."""
        name = self.put_in_trash(b"right", folder="data.3")
        wrong = next(self.laptop.glob(".trash/*/data.3")).parent
        for folder in ("data", "data.2"):
            (wrong / folder).mkdir(exist_ok=True)
            (wrong / folder / name).write_bytes(folder.encode())
        self.assertEqual(3, len(self.document("list", LAPTOP)["objects"]))
        self.assertEqual("restored 1 object (5 bytes)\n", self.succeed("restore", LAPTOP))
        self.assertEqual(b"right", self.live(name).read_bytes())
        self.assertEqual(2, len(self.document("list", LAPTOP)["objects"]))

    def test_interrupted(self) -> None:
        """A restore that is interrupted says so, and the next one does the rest."""
        names = [self.put_in_trash(b"%d" % number) for number in range(10)]
        restore = Trash.restore
        left = [4]

        def interrupted(self: Trash, one: Any) -> bool:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return restore(self, one)

        with mock.patch.object(Trash, "restore", interrupted):
            status, out, err = self.run_trash("restore", LAPTOP)
        self.assertEqual((1, ""), (status, out))
        self.assertEqual("\nrest-server trash restore: interrupted; run it again to go on\n", err)
        self.assertEqual(3, len([name for name in names if self.live(name).exists()]))
        self.assertEqual("restored 7 objects (7 bytes)\n", self.succeed("restore", LAPTOP))
        self.assertEqual(10, len([name for name in names if self.live(name).exists()]))

    def test_killed_between(self) -> None:
        """Killed between link and unlink, where a file system has no better call: both are the same file."""
        name = self.put_in_trash(b"1")
        self.live(name).parent.mkdir(parents=True, exist_ok=True)
        os.link(next(self.laptop.glob(f".trash/*/data/{name}")), self.live(name))
        self.assertEqual("restored 1 object (1 byte)\n", self.succeed("restore", LAPTOP))
        self.assertEqual(set(), self.ids(LAPTOP))

    def test_no_room(self) -> None:
        """Each object that does not fit is named."""
        name = self.put_in_trash(b"1")
        shutil.rmtree(self.laptop / "data")

        def full(self: object, path: str) -> bool:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        with mock.patch("resticserver.storage.publish.Publisher.make_directory", full):
            status, out, err = self.run_trash("restore", LAPTOP)
        self.assertEqual((1, "restored 0 objects (0 bytes); 1 could not be restored\n"), (status, out))
        self.assertIn(f"{name} was not restored: No space left on device", err)

    def test_locks(self) -> None:
        """A repository with a lock may have a prune that runs: the command says what then."""
        self.put(b"lock", "locks")
        self.put_in_trash(b"1")
        status, out, err = self.run_trash("restore", LAPTOP)
        self.assertEqual((0, "restored 1 object (1 byte)\n"), (status, out))
        self.assertIn("the repository has locks", err)

    def test_deleted_repository(self) -> None:
        """A repository whose every directory is gone."""
        name = self.put(b"1")
        self.put(b"config", "config")
        self.store.delete_repository(("alice", "laptop"), 1000)
        self.assertEqual([".trash"], os.listdir(self.laptop))
        self.assertEqual("restored 2 objects (7 bytes)\n", self.succeed("restore", LAPTOP))
        self.assertEqual(b"1", self.live(name).read_bytes())
        self.assertEqual(b"config", (self.laptop / "config").read_bytes())
        # Without these restic could not use it.
        self.assertEqual({"config", *TYPES}, set(os.listdir(self.laptop)))

    @skipped(None if os.geteuid() == 0 else "only root can give files away")
    def test_owner(self) -> None:
        """What root restores and makes belongs to the repository's owner."""
        name = self.put(b"1")
        self.put(b"config", "config")
        self.store.delete_repository(("alice", "laptop"), 1000)
        self.path.parent.chmod(0o711)
        for path in (self.path, *self.path.rglob("*")):
            os.chown(path, OWNER, OWNER)
        self.succeed("restore", LAPTOP)
        self.assertTrue(self.live(name).exists())
        for path in self.laptop.rglob("*"):
            self.assertEqual((OWNER, OWNER), (path.stat().st_uid, path.stat().st_gid), path)
        self.assertEqual((0, 0), (os.geteuid(), os.getegid()))


class OtherRepositoryTests(TrashCase):
    """What was deleted here may be of a repository that was at this path before."""

    def setUp(self) -> None:
        super().setUp()
        self.old = self.put_in_trash(b"old", age_s=3 * DAY_S)
        self.put_in_trash(b"old config", "config", age_s=3 * DAY_S + 10)
        self.new = self.put_in_trash(b"new", age_s=60)

    def test_config_in_use(self) -> None:
        """Another config is in use now: only what was deleted later, or all with --force."""
        self.put(b"new config", "config")
        words = f"another repository was at {LAPTOP} until "
        self.assert_refused(1, words, "restore", LAPTOP)
        self.assert_refused(1, words, "restore", LAPTOP, "--dry-run")
        self.assert_refused(1, words, "restore", LAPTOP, self.old)
        self.assertIn("1 object ", self.succeed("restore", LAPTOP, "--since", "2d"))
        status, out, err = self.run_trash("restore", LAPTOP, "--force")
        self.assertEqual((1, "restored 1 object (3 bytes); 1 could not be restored\n"), (status, out))
        self.assertIn("another file is at config now", err)
        self.assertEqual(b"new config", (self.laptop / "config").read_bytes())

    def test_config_deleted_too(self) -> None:
        """Both were deleted: the newer one is restored, and nothing of the older one comes with it unasked."""
        # Whichever hash is the lower one.
        for number in range(4):
            name = self.put_in_trash(b"new config %d" % number, "config", age_s=100)
            words = f"another repository was at {LAPTOP} until "
            self.assert_refused(1, words, "restore", LAPTOP)
            (found,) = self.document("restore", LAPTOP, "--since", "2d", "--type", "config", "--dry-run")[
                "would_restore"
            ]
            self.assertEqual(name, found["id"])
            self.succeed("restore", LAPTOP, "--since", "2d", "--type", "config")
            self.assertEqual(name, hashlib.sha256((self.laptop / "config").read_bytes()).hexdigest())
            (self.laptop / "config").unlink()

    def test_same_config(self) -> None:
        """The same config, deleted and made again, is no other repository."""
        self.put(b"old config", "config")
        out = self.succeed("restore", LAPTOP)
        self.assertEqual("restored 2 objects (6 bytes); 1 object (10 bytes) are there already\n", out)

    def test_only_config(self) -> None:
        """One config, in the trash: everything is its."""
        self.assertEqual("restored 3 objects (16 bytes)\n", self.succeed("restore", LAPTOP))


class Terminal(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self) -> bool:
        """It is one."""
        return True


class EmptyTests(TrashCase):
    """C{rest-server trash empty}."""

    def test_empty(self) -> None:
        """Everything in the trash, and nothing else."""
        self.put_in_trash(b"1")
        self.put_in_trash(b"22", "keys", age_s=3 * DAY_S)
        live = self.put(b"live")
        foreign = self.path / "bob"
        foreign.mkdir()
        other = self.put_in_trash(b"other", repository="bob")
        self.assertEqual("removed 2 objects (3 bytes)\n", self.succeed("empty", LAPTOP, "--yes"))
        self.assertFalse((self.laptop / ".trash").exists())
        self.assertTrue(self.live(live).exists())
        self.assertEqual({other}, self.ids())
        self.assertEqual("removed 0 objects (0 bytes)\n", self.succeed("empty", LAPTOP, "--yes"))

    def test_some(self) -> None:
        """What the filter says."""
        new = self.put_in_trash(b"1")
        self.put_in_trash(b"22", age_s=8 * DAY_S)
        self.put_in_trash(b"22", age_s=9 * DAY_S)
        found = self.document("empty", LAPTOP, "--yes", "--older-than", "7d")
        self.assertEqual({"removed_bytes": 4, "removed_objects": 2}, found)
        self.assertEqual({new}, self.ids(LAPTOP))

    def test_dry_run(self) -> None:
        """Says what would be removed, and asks nothing."""
        name = self.put_in_trash(b"1")
        before = contents_below(self.path)
        self.assertEqual("would remove 1 object (1 byte)\n", self.succeed("empty", LAPTOP, "--dry-run"))
        (found,) = self.document("empty", LAPTOP, "--dry-run")["would_remove"]
        self.assertEqual(name, found["id"])
        self.assertEqual(before, contents_below(self.path))

    def test_no_terminal(self) -> None:
        """Without a terminal nobody can be asked."""
        self.put_in_trash(b"1")
        self.assert_refused(1, "say --yes", "empty", LAPTOP)

    def test_asked(self) -> None:
        """At a terminal only a clear yes removes."""
        self.put_in_trash(b"1")
        for answer in ("n\n", "\n", "", "yesterday\n"):
            status, out, err = self.run_trash("empty", LAPTOP, stdin=Terminal(answer))
            self.assertEqual((1, ""), (status, out))
            self.assertIn(f"Remove 1 object (1 byte) from the trash of {LAPTOP} for good? [y/N] ", err)
            self.assertTrue(err.endswith("nothing was removed\n"), err)
            self.assertEqual(1, len(self.ids(LAPTOP)))
        status, out, _ = self.run_trash("empty", LAPTOP, stdin=Terminal("Y\n"))
        self.assertEqual((0, "removed 1 object (1 byte)\n"), (status, out))

    def test_what_is_not_ours(self) -> None:
        """Files that are no objects stay, and so does the day they lie in."""
        self.put_in_trash(b"1")
        day = next((self.laptop / ".trash").iterdir())
        (day / "data" / "notes").write_bytes(b"mine")
        (day / "README").write_bytes(b"mine")
        (self.laptop / ".trash" / "old").mkdir()
        self.succeed("empty", LAPTOP, "--yes")
        self.assertEqual({"data", "README"}, {path.name for path in day.iterdir()} - {f"keep-{30 * DAY_S}s"})
        self.assertEqual(b"mine", (day / "data/notes").read_bytes())


class WrongCallTests(TrashCase):
    """One clear line for each, and nothing is changed."""

    def setUp(self) -> None:
        super().setUp()
        self.name = self.put_in_trash(b"1")

    def test_command_line(self) -> None:
        """Status 2 for what cannot be meant."""
        when = "is not a time (2026-11-27, 2026-11-27T10:00, both in UTC) or an age (3d, '2 hours ago')"
        for words, *arguments in (
            (when, "list", LAPTOP, "--since", "yesterday"),
            (when, "list", LAPTOP, "--since", ""),
            (when, "list", LAPTOP, "--until", "2026-13-01"),
            (when, "list", LAPTOP, "--until", "2026"),
            (when, "list", LAPTOP, "--until", "1795741130"),
            (when, "list", LAPTOP, "--since", "2 fortnights ago"),
            (when, "list", LAPTOP, "--since", "٣d"),
            (when, "list", LAPTOP, "--since", "\x1b[2J"),
            (when, "list", LAPTOP, "--since", "9" * 400 + " years"),
            ("is not a duration", "list", LAPTOP, "--older-than", "2026-11-27"),
            ("is not a duration", "list", LAPTOP, "--older-than", "9" * 5000 + "d"),
            ("is not an id", "restore", LAPTOP, "abcdef1"),
            ("is not an id", "restore", LAPTOP, self.name.upper()),
            ("is not an id", "restore", LAPTOP, f"{self.name}0"),
            ("is not an id", "restore", LAPTOP, "../../etc/passwd"),
            ("is not the path of a repository", "list", "a/../b"),
            ("is not the path of a repository", "list", "a/data"),
            ("is not the path of a repository", "list", f"{LAPTOP}/.trash"),
            ("is not the path of a repository", "list", "a\x1b[2Jb"),
            ("is not the path of a repository", "list", "a\udcffb"),
            ("is not the path of a repository", "list", "a\nb"),
            ("it is empty", "empty", "", "--yes"),
            ("invalid choice: 'locks'", "list", LAPTOP, "--type", "locks"),
            ("REPO", "restore"),
            ("REPO", "empty", "--yes"),
            ("--dry-run", "list", LAPTOP, "--dry-run"),
            ("--force", "empty", LAPTOP, "--force"),
            ("--yes", "restore", LAPTOP, "--yes"),
            ("--colour", "list", "--colour"),
            ("--max-depth 99", "list", "--max-depth", "99"),
        ):
            self.assert_refused(2, words, *arguments)

    def test_no_command(self) -> None:
        """None, or none that there is."""
        for arguments in ((), ("purge",), ("--json", "list"), ("purge", "list")):
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = trash.main(arguments)
            self.assertEqual((2, "", 1), (status, out.getvalue(), len(err.getvalue().splitlines())), err.getvalue())
        for arguments in (("--help",), ("list", "--help"), ("restore", "--help"), ("empty", "-h")):
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = trash.main(arguments)
            self.assertEqual((0, ""), (status, err.getvalue()))
            self.assertIn("usage: rest-server trash", out.getvalue())

    def test_not_there(self) -> None:
        """Status 1 for what is not there."""
        for name in ("list", "restore", "empty"):
            yes = ("--yes",) if name == "empty" else ()
            self.assert_refused(1, "bob: no such repository", name, "bob", *yes)
            self.assert_refused(1, "böb: no such repository", name, "böb", *yes)
            self.assert_refused(1, f"00000000: no such object is in the trash of {LAPTOP}", name, LAPTOP, "0" * 8, *yes)
            self.assert_refused(1, "no such object", name, LAPTOP, self.name, "--type", "keys", *yes)
        self.assert_refused(1, "there is no data directory", "list", path=str(self.path / "nowhere"))
        self.assert_refused(1, "there is no data directory", "list", path="/dev/null")
        (self.path / "file").write_bytes(b"")
        self.assert_refused(1, "file: Not a directory", "list", "file")

    def test_ambiguous(self) -> None:
        """A part of an id that two objects have; each by a longer one."""
        day = next((self.laptop / ".trash").iterdir())
        for name in ("abcdef12" + "0" * 56, "abcdef12" + "1" * 56):
            (day / "data" / name).write_bytes(b"")
        for command, *more in (("list",), ("restore",), ("empty", "--yes")):
            self.assert_refused(1, "abcdef12: 2 objects have ids that begin so", command, LAPTOP, "abcdef12", *more)
        self.assertEqual(1, len(self.ids(LAPTOP, "abcdef120")))

    def test_two_directories(self) -> None:
        """The same object in the trash twice is not ambiguous."""
        self.put_in_trash(b"1", age_s=3 * DAY_S)
        self.assertEqual(2, len(self.document("list", LAPTOP, self.name[:8])["objects"]))
        self.assertEqual("restored 1 object (1 byte)\n", self.succeed("restore", LAPTOP, self.name[:8]))

    def test_no_rights(self) -> None:
        """Names the file, or the object, and why."""

        def denied(path: str) -> OSError:
            return OSError(errno.EACCES, "Permission denied", path)

        def refuse(self: object, path: str) -> None:
            raise denied(path)

        unlink = os.unlink

        def refuse_objects(path: Any) -> None:
            if re.search(r"/[0-9a-f]{64}\Z", str(path)):
                raise denied(str(path))
            unlink(path)

        with mock.patch.object(os, "unlink", refuse_objects):
            self.assert_refused(1, f"data/{self.name}: Permission denied", "empty", LAPTOP, "--yes")
        with mock.patch(
            "resticserver.storage.trash_moves.rename_noreplace", lambda source, target: refuse(None, target)
        ):
            status, out, err = self.run_trash("restore", LAPTOP)
        self.assertEqual((1, "restored 0 objects (0 bytes); 1 could not be restored\n"), (status, out))
        self.assertIn(f"data {self.name} was not restored: Permission denied\n", err)
