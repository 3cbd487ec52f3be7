"""
L{resticserver.commands.usage}: what the command prints, and what it leaves alone.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
from array import array
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import usage
from resticserver.sizes import Amount
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.layout import CELLS
from resticserver.storage.local import LocalStore
from resticserver.storage.state import RepositoryState, StateFile

from ..support.scratch import scratch_directory

POLICY = """
[[rule]]
users = ["*"]
repositories = ["{user}", "{user}/*"]
rights = "append"
quota = "1KiB"
max-objects = 10

[users.alice]
quota = "2KiB"
"""

#: What the document says of an empty trash.
NO_TRASH = {"trash_bytes": 0, "trash_objects": 0}


class UsageTests(SynchronousTestCase):
    """C{rest-server usage}."""

    def setUp(self) -> None:
        self.path = scratch_directory(self) / "data"
        self.store = LocalStore(str(self.path))
        self.store.prepare()

    def put(self, repository: str, kind: str, number: int, length: int, mtime: int = 0) -> Path:
        """A stored object of zeros."""
        name = f"{number:02x}" + f"{number:062x}"
        folder = self.path / repository / kind / (name[:2] if kind == "data" else "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0" * length)
        if mtime:
            os.utime(folder / name, (mtime, mtime))
        return folder / name

    def run_usage(self, *arguments: str) -> tuple[int, str, str]:
        """Status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = usage.main(["--path", str(self.path), *arguments])
        return status, out.getvalue(), err.getvalue()

    def document(self, *arguments: str) -> dict[str, Any]:
        """What it prints as JSON."""
        status, out, err = self.run_usage("--json", *arguments)
        self.assertEqual((0, ""), (status, err))
        found: dict[str, Any] = json.loads(out)
        return found

    def test_unreadable(self) -> None:
        """
        What cannot be read is named. A folder of somebody else's is no failure; a part of a repository is, and what the
        server has last known of it stands in for it.
        """
        self.put("alice/laptop", "data", 7, 100)
        self.put("alice/laptop", "index", 7, 11)
        self.put("bob", "data", 7, 5)
        scandir = os.scandir
        broken = ["/carol"]

        def scan(path: Any) -> Any:
            name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            if any(name.endswith(ending) for ending in broken):
                raise OSError(13, "Permission denied", name)
            return scandir(path)

        self.patch(os, "scandir", scan)
        (self.path / "carol").mkdir()
        status, out, err = self.run_usage("--json")
        self.assertEqual(
            (0, f"rest-server usage: skipped {self.path.absolute()}/carol: Permission denied\n"), (status, err)
        )
        found = json.loads(out)
        self.assertEqual([{"path": f"{self.path.absolute()}/carol", "reason": "Permission denied"}], found["skipped"])
        for last, expected in ((None, 11), (300, 311)):
            if last is not None:
                (self.path / ".rest-server").mkdir()
                state = StateFile(str(self.path))
                sizes, objects = array("q", bytes(8 * CELLS)), array("q", bytes(8 * CELLS))
                sizes[7], objects[7] = last, 3
                state.put_repositories({("alice", "laptop"): RepositoryState(Amount(1, 1), sizes, objects)})
                state.close()
            broken[:] = ["/alice/laptop/data/07"]
            status, out, err = self.run_usage("--json")
            self.assertEqual(
                [
                    f"rest-server usage: skipped {self.path.absolute()}/alice/laptop/data/07: Permission denied",
                    "rest-server usage: incomplete size: alice/laptop",
                ],
                err.splitlines(),
            )
            self.assertEqual(1, status)
            rows = [(one["repository"], one["size_bytes"], one["complete"]) for one in json.loads(out)["repositories"]]
            self.assertEqual([("alice/laptop", expected, False), ("bob", 5, True)], rows)

    def test_unreadable_data_directory(self) -> None:
        """Of that nothing can be said."""
        self.patch(os, "listdir", lambda path: (_ for _ in ()).throw(OSError(13, "Permission denied", path)))
        status, out, err = self.run_usage()
        self.assertEqual((1, ""), (status, out))
        self.assertEqual(f"rest-server usage: cannot count {self.path.absolute()}: Permission denied\n", err)

    def test_bad_questions(self) -> None:
        """Each says which file or option it is about."""
        for arguments, words in (
            (("--policy", "/nope"), "/nope: No such file or directory"),
            (("--max-depth", "99"), "--max-depth 99: must be a number from 0 to 16"),
        ):
            status, out, err = self.run_usage(*arguments)
            self.assertEqual((2, "", f"rest-server usage: {words}\n"), (status, out, err))

    def test_what_counts(self) -> None:
        """Objects of all types and the config count, each repository for itself; nothing else does."""
        for kind in ("data", "index", "keys", "locks", "snapshots"):
            self.put("alice/laptop", kind, 7, 100)
        self.put("alice/laptop", "data", 8, 50)
        (self.path / "alice/laptop/config").write_bytes(b"12345")
        (self.path / "alice/laptop/data/08/foreign").write_bytes(b"x" * 1000)
        (self.path / ".htpasswd").write_bytes(b"x" * 1000)
        (self.path / "alice/notes").mkdir()
        self.put("alice", "keys", 1, 11)
        self.put("", "keys", 1, 3)
        found = self.document("--max-size", "1MiB")
        sizes = [
            (line["repository"], line["owner"], line["size_bytes"], line["objects"]) for line in found["repositories"]
        ]
        self.assertEqual([("/", None, 3, 1), ("alice", "alice", 11, 1), ("alice/laptop", "alice", 555, 7)], sizes)
        self.assertEqual(
            {"size_bytes": 569, "objects": 9, "quota_bytes": 1 << 20, "quota_objects": None, **NO_TRASH}, found["total"]
        )

    def test_quotas_and_snapshots(self) -> None:
        """Limits come from the policy, also those of users; the last snapshot is the youngest file there."""
        self.put("alice/laptop", "snapshots", 1, 100, mtime=1_000_000_000)
        self.put("alice/laptop", "snapshots", 2, 100, mtime=1_000_003_600)
        self.put("bob", "data", 3, 100)
        policy = self.path / "policy.toml"
        policy.write_text(POLICY)
        found = self.document("--policy", str(policy))
        alice, bob = found["repositories"]
        keys = ("quota_bytes", "quota_objects", "last_snapshot")
        self.assertEqual((1024, 10, "2001-09-09T02:46:40Z"), tuple(alice[key] for key in keys))
        self.assertEqual((1024, 10, None), tuple(bob[key] for key in keys))
        self.assertEqual(
            [
                {
                    "user": "alice",
                    "size_bytes": 200,
                    "objects": 2,
                    "quota_bytes": 2048,
                    "quota_objects": None,
                    **NO_TRASH,
                }
            ],
            found["users"],
        )

    def test_table(self) -> None:
        """A line each, names that would disturb a terminal escaped, and a sum."""
        self.put("ma\u0308rz\x1b[2J", "data", 1, 1536)
        status, out, _ = self.run_usage()
        self.assertEqual(0, status)
        head, line, total = out.splitlines()
        self.assertEqual(["REPOSITORY", "OWNER", "SIZE", "QUOTA", "OBJECTS", "LAST", "SNAPSHOT"], head.split())
        self.assertNotIn("\x1b", out)
        self.assertEqual(["ma\u0308rz\\x1b[2J", "-", "1.50", "KiB", "-", "1", "-"], line.split())
        self.assertEqual(["all", "1.50", "KiB", "-", "1"], total.split())

    def test_state_file_is_used_and_not_touched(self) -> None:
        """What the server knows is believed while it stands, and nothing is made or changed, whoever owns the file."""
        for number in range(100):
            self.put("alice", "index", number, 10)
        os.utime(self.path / "alice/index", (1_000_000_000, 1_000_000_000))
        self.document()
        self.assertFalse((self.path / ".rest-server").exists())
        (self.path / ".rest-server").mkdir()
        later = 4_000_000_000 * 10**9  # so that the directory's change time is settled
        state = StateFile(str(self.path))
        store = LocalStore(str(self.path), snapshots=Snapshots(store=state, now_ns=lambda: later))
        listing = store.list_objects(("alice",), "index", True)
        listing.open()
        self.assertEqual(100, sum(map(len, listing)))
        listing.close()
        state.close()
        file = self.path / ".rest-server/state.sqlite3"
        with sqlite3.connect(file) as connection:
            self.assertEqual([(100,)], connection.execute("SELECT objects FROM directory").fetchall())
            connection.execute("UPDATE directory SET size_bytes = 123456, taken_ns = 1")
            connection.execute("UPDATE directory SET taken_ns = ?", (os.stat(self.path).st_mtime_ns,))
        connection.close()
        before = sorted((path.name, path.read_bytes()) for path in file.parent.iterdir())
        self.assertEqual(123456, self.document()["total"]["size_bytes"])
        self.assertEqual(before, sorted((path.name, path.read_bytes()) for path in file.parent.iterdir()))
        file.write_bytes(b"no database")
        self.assertEqual(1000, self.document()["total"]["size_bytes"])
        self.assertEqual(b"no database", file.read_bytes())

    def test_refused(self) -> None:
        """One line for what cannot be: no such directory, bad sizes, a policy that is none."""
        for status, arguments, word in (
            (1, ("--path", str(self.path / "nowhere")), "No such file"),
            (2, ("--max-size", "lots"), "not a size"),
            (2, ("--policy", str(self.path / "none.toml")), "No such file"),
            (2, ("--colour",), "unrecognized"),
            (2, ("--max-depth", "x"), "a number from 0 to 16"),
            (2, ("--config", str(self.path / "none.toml")), "cannot read"),
        ):
            found, out, err = self.run_usage(*arguments)
            self.assertEqual((status, ""), (found, out), arguments)
            self.assertEqual(1, len(err.splitlines()), err)
            self.assertIn(word, err)
