"""
The state file: what is kept, what becomes of it when the file is broken, gone or in the way, and that nothing fails for it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from array import array
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.sizes import Amount
from resticserver.storage import database
from resticserver.storage.interface import Objects
from resticserver.storage.layout import CELLS, Repository
from resticserver.storage.state import FILE, DirectoryState, RepositoryState, StateFile

from ..contract.store import id_of
from ..support.scratch import scratch_directory

STAMP = (1, 2, 3_000_000_000, 4_000_000_000)


def parts_of(*sizes: int, number: int = 0) -> list[Objects]:
    """Objects of these sizes, in parts of two."""
    ids = [bytes.fromhex(id_of(b"%d/%d" % (number, position))) for position in range(len(sizes))]
    return [
        Objects(b"".join(ids[first : first + 2]), array("Q", sizes[first : first + 2]))
        for first in range(0, len(sizes), 2)
    ]


def known(size_bytes: int, objects: int = 1, at_most: Amount | None = None) -> RepositoryState:
    """What is known of a repository, all in its first cell."""
    sizes, counts = (array("q", [number] + [0] * (CELLS - 1)) for number in (size_bytes, objects))
    return RepositoryState(at_most or Amount(size_bytes, objects), sizes, counts)


class StateCase(SynchronousTestCase):
    """A data directory that a repository was made in."""

    def setUp(self) -> None:
        self.data = Path(self.mktemp()).absolute()
        self.folder = self.data / ".rest-server"
        self.folder.mkdir(parents=True)
        self.file = self.folder / FILE
        self.now_s = 1000.0
        self.patch(time, "monotonic", lambda: self.now_s)
        self.state = self.open()

    def open(self, *arguments: Any, **named: Any) -> StateFile:
        """The state of the data directory."""
        state = StateFile(str(self.data), *arguments, **named)
        self.addCleanup(state.close)
        return state

    def path(self, inside: str) -> str:
        """A directory's path."""
        return f"{self.data}/{inside}"

    def put(self, inside: str, *sizes: int, state: StateFile | None = None) -> None:
        """Keep a directory."""
        (state or self.state).put_directory(self.path(inside), STAMP, 5, parts_of(*sizes))

    def kept(self, *inside: str) -> list[str]:
        """Which of these are known."""
        return [name for name in inside if self.state.directory(self.path(name)) is not None]

    def said(self, events: Any) -> list[str]:
        """What was logged."""
        return [formatEvent(event) for event in events]


class KeptTests(StateCase):
    """What is kept comes back, whoever asks."""

    def test_directory(self) -> None:
        """Stamp, time, how much there is, and all objects in their order."""
        self.put("alice/data/00", 5, 7, 1 << 40)
        self.put("alice/data/01")
        ids = b"".join(part.ids for part in parts_of(5, 7, 1 << 40))
        for state in (self.state, self.open()):
            self.assertEqual(
                DirectoryState(STAMP, 5, Amount(12 + (1 << 40), 3)), state.directory(self.path("alice/data/00"))
            )
            self.assertEqual((STAMP, 5, ids, array("Q", [5, 7, 1 << 40])), state.objects(self.path("alice/data/00")))
            self.assertEqual(DirectoryState(STAMP, 5, Amount(0, 0)), state.directory(self.path("alice/data/01")))
            self.assertEqual((STAMP, 5, b"", array("Q")), state.objects(self.path("alice/data/01")))
            self.assertIsNone(state.directory(self.path("alice/data/02")))
            self.assertIsNone(state.objects(self.path("alice/data/02")))

    def test_replaced(self) -> None:
        """What was known is replaced as a whole, and forgotten when it is to be."""
        self.put("index", 1, 2, 3)
        self.state.put_directory(self.path("index"), (9, 8, 7, 6), 4, parts_of(5))
        self.assertEqual(DirectoryState((9, 8, 7, 6), 4, Amount(5, 1)), self.state.directory(self.path("index")))
        self.state.forget_directory(self.path("index"))
        self.state.forget_directory(self.path("index"))
        self.assertIsNone(self.state.directory(self.path("index")))

    def test_reopened(self) -> None:
        """It survives being closed, and is opened again by whoever asks; to close twice is nothing."""
        self.put("index", 1)
        for _ in range(2):
            self.state.close()
            self.state.close()
            self.assertEqual(["index"], self.kept("index"))

    def test_repositories(self) -> None:
        """All or some of them, each replaced as a whole."""
        first: dict[Repository, RepositoryState] = {
            (): known(5),
            ("alice",): known(7, 2, Amount(100, 50)),
            ("alice", "ü"): known(-3, 0, Amount(0, 0)),
        }
        self.assertTrue(self.state.put_repositories(first))
        self.assertEqual(first, self.state.repositories())
        second: dict[Repository, RepositoryState] = {("alice",): known(8), ("bob",): known(1)}
        self.assertTrue(self.state.put_repositories(second, durable=False))
        self.assertEqual({**first, **second}, self.open().repositories())
        self.assertTrue(self.state.put_repositories({}))

    def test_large_numbers(self) -> None:
        """Inodes and devices of 64 bits, times before 1970, sizes beyond 4 GiB."""
        for number, stamp in enumerate(
            (
                ((1 << 64) - 1, (1 << 64) - 2, -1, -(10**18)),
                (1 << 63, 1 << 63, 0, 0),
                ((1 << 63) - 1, (1 << 63) + 1, (1 << 63) - 1, -(1 << 63)),
            )
        ):
            path = self.path(f"data/{number:02x}")
            self.state.put_directory(path, stamp, 1 << 62, parts_of(1 << 62))
            found = self.state.directory(path)
            assert found is not None
            self.assertEqual((stamp, 1 << 62, Amount(1 << 62, 1)), found)
            objects = self.state.objects(path)
            assert objects is not None
            self.assertEqual((stamp, array("Q", [1 << 62])), (objects[0], objects[3]))

    def test_too_large_numbers(self) -> None:
        """Sparse files whose sizes together need more than 63 bits are not kept, and fail nothing."""
        self.put("index", 1 << 63, 1)
        self.put("keys", 1 << 62, 1 << 62)
        self.state.put_repositories({("alice",): known(1, 1, Amount(1 << 63, 1))})
        self.put("snapshots", 1)
        self.assertEqual(["snapshots"], self.kept("snapshots"))

    def test_odd_names(self) -> None:
        """Names that are no UTF-8, quotes, spaces, and a folder that looks like another's."""
        names: list[Repository] = [
            ("a\udcff",),
            ("'; DROP TABLE repository; --",),
            (" ",),
            ("a%",),
            ("a_",),
            ("ü", "\udc80"),
        ]
        for number, name in enumerate(names):
            self.assertTrue(self.state.put_repositories({name: known(number)}))
            self.put("/".join((*name, "index")), number)
        state = self.open()
        self.assertEqual(set(names), set(state.repositories()))
        for number, name in enumerate(names):
            found = state.directory(self.path("/".join((*name, "index"))))
            assert found is not None
            self.assertEqual(number, found.amount.size_bytes)

    def test_forget_repositories(self) -> None:
        """What goes is the repository with its own directories, and nothing of others whose names begin alike."""
        kinds = ("data", "index", "keys", "snapshots", "data/00", "data/ff")
        repositories: list[Repository] = [
            (),
            ("alice",),
            ("alice", "laptop"),
            ("alice2",),
            ("alic",),
            ("alice-",),
            ("alice0",),
            ("x", "alice"),
            ("index2",),
            ("data0",),
        ]
        for gone in ([("alice",)], [()], [("alice", "laptop"), ("x", "alice")], [("nobody",)], []):
            self.state.put_repositories({repository: known(1) for repository in repositories})
            paths = {"/".join((*repository, kind)): repository for repository in repositories for kind in kinds}
            for path in paths:
                self.put(path, 1)
            self.state.forget_repositories(gone)
            self.assertEqual(set(repositories).difference(gone), set(self.state.repositories()))
            left = {path for path, repository in paths.items() if repository not in gone}
            self.assertEqual(left, set(self.kept(*paths)))

    def test_data_directory_with_a_root_of_its_own(self) -> None:
        """What is kept is kept by the path below the data directory: it may be mounted elsewhere at the next start."""
        self.put("alice/index", 7)
        self.state.close()
        elsewhere = self.data.with_name(self.data.name + "-longer-name")
        os.rename(self.data, elsewhere)
        state = StateFile(str(elsewhere))
        self.addCleanup(state.close)
        found = state.directory(f"{elsewhere}/alice/index")
        assert found is not None
        self.assertEqual(7, found.amount.size_bytes)

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["put", "forget", "reopen", "delete", "repository", "gone"]),
                st.sampled_from(["alice", "alice/b", "bob"]),
                st.lists(st.integers(0, 1 << 50), max_size=5),
            ),
            max_size=15,
        )
    )
    def test_any_order(self, steps: list[tuple[str, str, list[int]]]) -> None:
        """Two of them on one file: each finds what the other kept, until the file is deleted; then there is nothing."""
        states = [self.open(), self.open()]
        for state in states:
            state.forget_repositories([("alice",), ("alice", "b"), ("bob",)])
        directories: dict[str, list[int]] = {}
        repositories: dict[Repository, RepositoryState] = {}
        for number, (step, name, sizes) in enumerate(steps):
            state = states[number % 2]
            if step == "put":
                self.put(f"{name}/index", *sizes, state=state)
                directories[name] = sizes
            elif step == "forget":
                state.forget_directory(self.path(f"{name}/index"))
                directories.pop(name, None)
            elif step == "reopen":
                state.close()
            elif step == "delete":
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self.file}{suffix}").unlink(missing_ok=True)
                directories, repositories = {}, {}
            elif step == "repository":
                repositories[tuple(name.split("/"))] = known(sum(sizes))
                state.put_repositories({tuple(name.split("/")): known(sum(sizes))})
            else:
                state.forget_repositories([tuple(name.split("/"))])
                directories.pop(name, None)
                repositories.pop(tuple(name.split("/")), None)
            for one in states:
                self.assertEqual(repositories, one.repositories())
                for name in ("alice", "alice/b", "bob"):
                    found = one.directory(self.path(f"{name}/index"))
                    self.assertEqual(
                        sum(directories[name]) if name in directories else None,
                        found.amount.size_bytes if found is not None else None,
                    )
        for state in states:
            state.close()


class FileTests(StateCase):
    """The file itself."""

    def test_where(self) -> None:
        """It lies in the server's own folder, or where it is said."""
        self.put("index", 1)
        self.assertTrue(self.file.is_file())
        elsewhere = Path(self.mktemp()).absolute()
        state = self.open(str(elsewhere / "a" / "b"))
        state.prepare()
        self.assertEqual(0o700, stat.S_IMODE((elsewhere / "a" / "b").stat().st_mode))
        self.assertIsNone(state.directory(self.path("index")))
        self.put("index", 2, state=state)
        self.assertTrue((elsewhere / "a" / "b" / FILE).is_file())
        found = self.state.directory(self.path("index"))
        assert found is not None
        self.assertEqual(1, found.amount.size_bytes)

    def test_modes(self) -> None:
        """The file and what SQLite puts beside it have the server's mode, whatever the umask."""
        for mode, umask in ((0o600, 0o000), (0o600, 0o777), (0o660, 0o077), (0o660, 0o000)):
            directory = Path(self.mktemp()).absolute()
            state = self.open(str(directory), file_mode=mode)
            state.prepare()
            before = os.umask(umask)
            try:
                self.put("index", 1, state=state)
            finally:
                os.umask(before)
            modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in directory.iterdir()}
            self.assertEqual({FILE: oct(mode), f"{FILE}-wal": oct(mode), f"{FILE}-shm": oct(mode)}, modes)

    def test_nothing_is_made_at_first(self) -> None:
        """Not before something is asked for."""
        self.state.prepare()
        self.assertEqual([], list(self.folder.iterdir()))

    def test_no_folder(self) -> None:
        """Without a repository, or without the volume, there is no folder: no state, no file and no word about it."""
        for missing in (self.folder, self.data):
            missing.rmdir()
            with capturedLogs() as events:
                self.put("index", 1)
                self.assertFalse(self.state.put_repositories({("alice",): known(1)}))
                self.assertIsNone(self.state.directory(self.path("index")))
                self.assertIsNone(self.state.objects(self.path("index")))
                self.assertEqual({}, self.state.repositories())
                self.state.forget_directory(self.path("index"))
                self.state.forget_repositories([("alice",)])
                self.state.close()
            self.assertEqual([], self.said(events))
            self.assertFalse(missing.exists())
        self.folder.mkdir(parents=True)
        self.put("index", 1)
        self.assertEqual(["index"], self.kept("index"))

    def test_prepare(self) -> None:
        """A directory that was named and cannot be had is an error of the start; the server's own folder is none."""
        file = Path(self.mktemp()).absolute()
        file.write_bytes(b"")
        for path in (file, file / "below"):
            error = self.assertRaises(StartError, self.open(str(path)).prepare)
            self.assertIn(f"cannot use the state directory {path}", str(error))
        StateFile(str(file)).prepare()
        self.assertFalse((self.data / "x").exists())
        self.open(str(self.data / "x")).prepare()
        self.assertTrue((self.data / "x").is_dir())
        self.open(str(self.data / "x")).prepare()

    def test_deleted_while_open(self) -> None:
        """The next one begins anew, and what is kept from then on is in the new file."""
        for names in (("",), ("", "-wal"), ("", "-wal", "-shm")):
            self.put("index", 1)
            self.put("keys", 1)
            for suffix in names:
                os.unlink(f"{self.file}{suffix}")
            with capturedLogs() as events:
                self.assertEqual([], self.kept("index", "keys"))
                self.put("index", 2)
                self.assertEqual(["index"], self.kept("index", "keys"))
                found = self.open().directory(self.path("index"))
            assert found is not None
            self.assertEqual(2, found.amount.size_bytes)
            self.assertEqual([], self.said(events))

    def test_deleted_while_two_have_it_open(self) -> None:
        """Nothing that was not kept since comes from either, nothing fails, and both go on with the same new file."""
        other = self.open()
        for number in range(50):
            self.put(f"data/{number:02x}", *range(100))
            self.put("keys", 1, state=other)
        os.unlink(self.file)
        self.put("index", 2)
        for state in (other, self.state):
            found = state.directory(self.path("index"))
            assert found is not None
            self.assertEqual(2, found.amount.size_bytes)
            self.assertIsNone(state.directory(self.path("keys")))
            self.assertIsNone(state.directory(self.path("data/00")))

    def test_another_volume(self) -> None:
        """Where another volume is mounted the state is that volume's, and where none is there is none."""
        self.put("index", 1)
        away = self.data.with_suffix(".away")
        os.rename(self.data, away)
        self.assertEqual([], self.kept("index"))
        self.folder.mkdir(parents=True)
        self.put("keys", 1)
        self.assertEqual(["keys"], self.kept("index", "keys"))
        os.rename(self.data, self.data.with_suffix(".other"))
        os.rename(away, self.data)
        self.assertEqual(["index"], self.kept("index", "keys"))

    def test_two_on_one_file(self) -> None:
        """As in several processes: each sees at once what the other has kept."""
        other = self.open()
        for number in range(20):
            self.put(f"data/{number:02x}", number, state=(self.state, other)[number % 2])
            for state in (self.state, other):
                found = state.directory(self.path(f"data/{number:02x}"))
                assert found is not None
                self.assertEqual(number, found.amount.size_bytes)

    def test_new_for_several(self) -> None:
        """Several processes that make the file at the same moment, as workers do at their start, wait for each other."""
        for attempt in range(30):
            folder = self.data / str(attempt)
            (folder / ".rest-server").mkdir(parents=True)
            states = [StateFile(str(folder)) for _ in range(4)]
            together = threading.Barrier(len(states))

            def put(number: int, together: threading.Barrier = together, states: list[StateFile] = states) -> None:
                together.wait()
                states[number].put_repositories({(f"r{number}",): known(number)})

            threads = [threading.Thread(target=put, args=(number,)) for number in range(len(states))]
            with capturedLogs() as events:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            self.assertEqual([], self.said(events))
            self.assertEqual({(f"r{number}",): known(number) for number in range(4)}, states[0].repositories())
            for state in states:
                state.close()

    def test_locked_by_another(self) -> None:
        """Another program has the file for itself: that costs one wait of a few seconds, and then nothing for a while."""
        self.put("keys", 1)
        self.state.close()
        other = sqlite3.connect(self.file, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM directory")
        self.patch(database, "_BUSY_S", 0.5)
        attempts: list[object] = []
        open_ = sqlite3.connect

        def count(*args: Any, **kwargs: Any) -> Any:
            attempts.append(args)
            return open_(*args, **kwargs)

        self.patch(sqlite3, "connect", count)
        with capturedLogs() as events:
            for _ in range(3):
                self.assertEqual([], self.kept("keys"))
        self.assertEqual(1, len(events))
        self.assertEqual(1, len(attempts))
        other.execute("ROLLBACK")
        other.close()
        self.now_s += 1000
        self.assertEqual(["keys"], self.kept("keys"))

    def test_history_of_other_types(self) -> None:
        """Somebody's hand was in it: what is no number is left out."""
        self.state.put_history(20_000, {("alice",): 5})
        with contextlib.closing(sqlite3.connect(self.file)) as other, other:
            other.execute("INSERT INTO history VALUES (x'72', 1, 'abc')")
        self.assertEqual({("alice",): [(20_000, 5)]}, self.state.history())

    def test_activity(self) -> None:
        """What was counted within a day, and the last uploads, in place of what was stored before; names may be any."""
        self.assertEqual(([], []), self.state.activity())
        self.state.put_activity([(1.5, 1, 2, 3, 4)], [("old", "alice", 5.5)])
        counted = [(1.5, 1 << 60, 0, 0, 0), (900.0, 1, 2, 3, 4)]
        written = [("", "", 1.5), ("alice/\udcff", "ä", 2.5)]
        self.state.put_activity(counted, written)
        self.assertEqual((counted, written), self.state.activity())
        self.assertEqual((counted, written), self.open().activity())
        with contextlib.closing(sqlite3.connect(self.file)) as other, other:
            other.execute("INSERT INTO counted VALUES ('x', 1, 2, 3, 4)")
            other.execute("INSERT INTO counted VALUES (1.5, 'x', 2, 3, 4)")
            other.execute("INSERT INTO written VALUES ('text', x'00', 1.5)")
        self.assertEqual((counted, written), self.state.activity())

    def test_many_threads(self) -> None:
        """Threads and two connections at once lose nothing and fail nothing."""
        self.patch(time, "monotonic", lambda: 1000.0)
        other = self.open()
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(15):
                    state = (self.state, other)[(number + turn) % 2]
                    self.put(f"r{number}/data/{turn:02x}", number, turn, state=state)
                    state.put_repositories({(f"r{number}",): known(turn)}, durable=False)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        with capturedLogs() as events:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(([], []), (errors, self.said(events)))
        self.assertEqual({(f"r{number}",): known(14) for number in range(6)}, self.state.repositories())
        paths = [f"r{number}/data/{turn:02x}" for number in range(6) for turn in range(15)]
        self.assertEqual(paths, self.kept(*paths))


class MarkerTests(StateCase):
    """Which volume there was."""

    def test_remembered(self) -> None:
        """Beside the state file where that is elsewhere, once it was seen, and the one that was seen last."""
        folder = scratch_directory(self) / "state"
        state = StateFile(str(self.data), str(folder), 0o660)
        self.assertIsNone(state.marker())
        state.prepare()
        for marker in (b"one", b"another", b"another"):
            state.remember_marker(marker)
            self.assertEqual(marker, StateFile(str(self.data), str(folder)).marker())
        self.assertEqual(["volume-id"], os.listdir(folder))
        self.assertEqual(0o660, (folder / "volume-id").stat().st_mode & 0o777)
        state.forget_repositories([("alice",)])
        (folder / "volume-id").write_bytes(b"\n")
        self.assertIsNone(state.marker())

    def test_not_on_the_volume(self) -> None:
        """On the volume itself it would tell nothing."""
        self.state.remember_marker(b"marker")
        self.assertIsNone(self.state.marker())
        self.assertEqual([], [path for path in self.data.rglob("*") if "volume" in path.name])

    def test_cannot_be_kept(self) -> None:
        """It is said, and nothing is left; one that cannot be read is no reason to go on as if there were none."""
        folder = scratch_directory(self) / "state"
        state = StateFile(str(self.data), str(folder))
        with capturedLogs() as events:
            state.remember_marker(b"marker")
        self.assertIn("will not be detected", str(formatEvent(events[0])))
        (folder / "volume-id").mkdir(parents=True)
        self.assertRaises(StartError, state.marker)
        with capturedLogs():
            state.remember_marker(b"marker")
        self.assertEqual(["volume-id"], os.listdir(folder))


class BrokenTests(StateCase):
    """A file that cannot be used."""

    def assert_recreated(self, reason: str) -> None:
        """The next use says so once, and after it everything works with a new file."""
        state = self.open()
        with capturedLogs() as events:
            for _ in range(3):
                self.assertIsNone(state.directory(self.path("index")))
                self.assertEqual({}, state.repositories())
            self.put("keys", 7, state=state)
            found = state.directory(self.path("keys"))
        assert found is not None
        self.assertEqual(7, found.amount.size_bytes)
        (said,) = self.said(events)
        self.assertIn(f"recreating {self.file}: ", said)
        self.assertIn(reason, said)
        self.assertIsNotNone(self.open().directory(self.path("keys")))

    def test_garbage(self) -> None:
        """Bytes that are no database, short and long, with what lies beside."""
        for content in (b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 5000, b"x" * 200):
            self.state.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.file}{suffix}").unlink(missing_ok=True)
            self.file.write_bytes(content)
            self.assert_recreated("")

    def test_empty(self) -> None:
        """An empty file is one that was just made."""
        self.file.write_bytes(b"")
        with capturedLogs() as events:
            self.put("index", 1)
            self.assertEqual(["index"], self.kept("index"))
        self.assertEqual([], self.said(events))

    def test_another_version(self) -> None:
        """A file of another form, older or newer."""
        for version in (2, 99, -1):
            self.put("index", 1)
            self.state.close()
            with sqlite3.connect(self.file) as connection:
                connection.execute(f"PRAGMA user_version = {version}")
            connection.close()
            self.assert_recreated(f"schema version {version} is not supported")

    def test_broken_inside(self) -> None:
        """Pages that were overwritten while the file was closed: whatever is found, nothing fails and it ends well."""
        for number in range(100):
            self.put(f"data/{number:02x}", *range(200))
        self.state.close()
        content = bytearray(self.file.read_bytes())
        for first in range(4096, len(content), 8192):
            content[first : first + 4096] = b"\xa5" * 4096
        self.file.write_bytes(content)
        state = self.open()
        with capturedLogs() as events:
            for number in range(100):
                state.directory(self.path(f"data/{number:02x}"))
                state.objects(self.path(f"data/{number:02x}"))
            state.repositories()
            self.put("index", 7, state=state)
            found = state.directory(self.path("index"))
        assert found is not None
        self.assertEqual(7, found.amount.size_bytes)
        self.assertEqual(1, sum("recreating " in line for line in self.said(events)))

    def test_rows_that_make_no_sense(self) -> None:
        """Contents that were cut off are as if they were not there; they fail nothing and are never half a list."""
        for column, cut in (("sizes", "x'0001'"), ("ids", "x'00'"), ("sizes", "x'0000000000000000'"), ("ids", "x''")):
            self.put("index", 1, 2, 3)
            self.state.close()
            with sqlite3.connect(self.file) as connection:
                connection.execute(f"UPDATE directory SET {column} = {cut}")
            connection.close()
            self.assertIsNone(self.state.objects(self.path("index")), (column, cut))
        for column in ("sizes", "objects"):
            self.state.put_repositories({("alice",): known(1), ("bob",): known(2)})
            self.state.close()
            with sqlite3.connect(self.file) as connection:
                connection.execute(f"UPDATE repository SET {column} = x'0001' WHERE name = x'626f62'")
            connection.close()
            self.assertEqual([("alice",)], list(self.state.repositories()))

    def assert_said_once(self, reason: str) -> None:
        """Everything may be asked, and nothing comes of it; that is said once."""
        with capturedLogs() as events:
            for _ in range(5):
                self.put("index", 1)
                self.assertFalse(self.state.put_repositories({("alice",): known(1)}))
                self.state.forget_directory(self.path("keys"))
                self.state.forget_repositories([("bob",)])
                self.now_s += database._PAUSE_S + 1
        (said,) = self.said(events)
        self.assertIn(f"cannot use {self.file}: ", said)
        self.assertIn(reason, said)

    def test_full(self) -> None:
        """A disk that is full: what was known can still be read, the rest is kept when there is room again."""
        self.put("keys", 1)
        connection = self.state._connection
        assert connection is not None
        execute = sqlite3.connect

        def full(*arguments: Any, **named: Any) -> sqlite3.Connection:
            made: sqlite3.Connection = execute(*arguments, **named)
            made.execute("PRAGMA max_page_count = 1")
            return made

        self.state.close()
        patch = self.patch(sqlite3, "connect", full)
        large = [number for number in range(5000)]
        with capturedLogs() as events:
            for _ in range(5):
                self.put("index", *large)
                self.now_s += database._PAUSE_S + 1
            self.assertEqual(["keys"], self.kept("keys", "index"))
        (said,) = self.said(events)
        self.assertIn("full", said)
        patch.restore()
        self.state.close()
        self.put("index", *large)
        self.assertEqual(["keys", "index"], self.kept("keys", "index"))

    def test_read_only(self) -> None:
        """A place where nothing can be written."""

        def refuse(*_: object, **__: object) -> int:
            raise OSError(30, os.strerror(30))

        real = os.open

        def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            return refuse() if str(path) == str(self.file) else real(path, flags, *rest, **named)

        self.patch(os, "open", opened)
        self.assert_said_once("Read-only file system")
        self.assertFalse(self.file.exists())

    def test_a_folder_in_its_place(self) -> None:
        """Something that is no file has the name."""
        self.file.mkdir()
        self.assert_said_once("unable to open")

    def test_folder_is_a_file(self) -> None:
        """Or the folder is none."""
        self.folder.rmdir()
        self.folder.write_bytes(b"")
        with capturedLogs() as events:
            self.put("index", 1)
            self.now_s += 100
            self.put("index", 1)
        self.assertLessEqual(len(self.said(events)), 1)

    def test_held_by_another(self) -> None:
        """One who holds the file for too long: nothing fails, that is said, and later it is tried again."""
        self.patch(database, "_BUSY_S", 0.05)
        self.put("index", 1)
        self.state.close()
        holder = sqlite3.connect(self.file, isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN IMMEDIATE")
        self.assert_said_once("locked")
        holder.execute("COMMIT")
        self.put("keys", 2)
        self.assertEqual(["index", "keys"], self.kept("index", "keys"))

    def test_rest_after_an_error(self) -> None:
        """After an error the file is left alone for a minute, so that not everyone waits for it; then it is tried again."""
        self.file.mkdir()
        with capturedLogs():
            self.put("index", 1)
        self.file.rmdir()
        self.put("index", 1)
        self.assertFalse(self.file.exists())
        self.now_s += database._PAUSE_S
        self.put("index", 1)
        self.assertEqual(["index"], self.kept("index"))

    def test_other_reasons_are_said(self) -> None:
        """Once means once for each reason, not for ever."""
        self.file.mkdir()
        with capturedLogs() as events:
            self.put("index", 1)
            self.now_s += 100
            self.file.rmdir()
            self.patch(os, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
            self.put("index", 1)
        self.assertEqual(2, len(self.said(events)))

    def test_no_local_file_system(self) -> None:
        """SQLite's log needs shared memory: on another machine's file system there is no file; that is said once."""
        self.patch(database, "is_local", lambda fd: False)
        with capturedLogs() as events:
            for _ in range(5):
                self.put("index", 1)
                self.now_s += 1e6
        (said,) = self.said(events)
        self.assertIn("--state-dir", said)
        self.assertFalse(self.file.exists())

    def test_a_file_that_was_brought_there(self) -> None:
        """Nor is one used that came there with a copy of the data directory."""
        self.put("index", 1)
        self.state.close()
        self.patch(database, "is_local", lambda fd: False)
        state = self.open()
        with capturedLogs() as events:
            self.assertIsNone(state.directory(self.path("index")))
        self.assertEqual(1, len(self.said(events)))
