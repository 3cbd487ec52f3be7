"""
Files that change in place, beside the server: real restic finds them with C{check}, the server tells of each, and the next
verified upload of the same object repairs it.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.waiting import wait_until
from ..telemetry.test_metrics import parsed, series

LIST_V2 = "application/vnd.x.restic.rest.v2"

#: So long after its last change a directory's names come from a snapshot.
SETTLED_S = 2.5


def cut_to(size_bytes: int) -> Any:
    """Truncates a file."""
    return lambda path: os.truncate(path, size_bytes)


def shorten(path: Path) -> None:
    """One byte less."""
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    """One byte more."""
    with path.open("ab") as file:
        file.write(b"x")


class DamageTests(SynchronousTestCase):
    """One process."""

    skip = SKIP_WITHOUT_RESTIC
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.output = self.scratch / "events"
        self.flags: tuple[str, ...] = (
            "--prometheus",
            "--on-event",
            shlex.join(("/bin/sh", "-c", f"cat >> {shlex.quote(str(self.output))}")),
        )

    def start(self) -> ServerProcess:
        """A server."""
        return start_server(self, self.data, *self.flags)

    def restic(self, server: ServerProcess) -> Restic:
        """Real restic, without a cache."""
        return Restic(self, f"{server.url}/laptop/", self.scratch, "--no-cache")

    def backed_up(self, server: ServerProcess) -> Path:
        """Make a repository with a backup; the largest pack, when all directories may have snapshots."""
        make_tree(self.scratch / "tree", 1, 4 << 20)
        restic = self.restic(server)
        restic.create()
        restic.succeed("backup", str(self.scratch / "tree"))
        return max((self.data / "laptop" / "data").glob("??/*"), key=lambda path: path.stat().st_size)

    def learn(self, server: ServerProcess) -> None:
        """Let all processes of the server know the sizes of the packs, by a list each."""
        time.sleep(SETTLED_S)
        with ExitStack() as stack:
            # Connections that are open at the same time are dealt out evenly.
            for client in [stack.enter_context(server.client()) for _ in range(4)]:
                self.assertEqual(200, client.get("/laptop/data/", {"Accept": LIST_V2}).status)

    def told(self) -> list[dict[str, Any]]:
        """The C{corruption} events so far."""
        lines = self.output.read_text().splitlines() if self.output.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == "corruption"]

    def assert_found(self, server: ServerProcess, pack: Path, known_bytes: int, found_bytes: int) -> None:
        """The server has told of this pack, once: event, log, metric, status."""
        wait_until(self.told, what="a corruption event")
        details = {"repository": "laptop", "type": "data", "name": pack.name}
        (event,) = self.told()
        self.assertEqual(event, {**event, **details, "known_bytes": known_bytes, "found_bytes": found_bytes})
        self.assertEqual(1, sum(pack.name in line for line in server.err), server.err)
        with server.client() as client:
            metrics = parsed(client.get("/metrics").body)
            status = json.loads(client.get("/-/status.json").body)
        self.assertEqual(1, metrics[series("rest_server_repository_damaged_total", user="laptop", repo="laptop")])
        (laptop,) = status["repositories"]
        self.assertEqual(1, laptop["damaged"])
        self.assertIn("1 damaged file found", laptop["concerns"])

    def assert_check_fails_and_repair_helps(self, damage: Any) -> None:
        """The whole story of one pack."""
        server = self.start()
        pack = self.backed_up(server)
        content = pack.read_bytes()
        self.learn(server)
        restic = self.restic(server)
        times = pack.parent.stat()
        damage(pack)
        self.assertEqual(
            (times.st_mtime_ns, times.st_ctime_ns), (pack.parent.stat().st_mtime_ns, pack.parent.stat().st_ctime_ns)
        )
        for _ in range(2):
            finished = restic.run("check")
            self.assertNotEqual(0, finished.status, finished)
            self.assertIn(pack.name[:8], finished.err)
        self.assert_found(server, pack, len(content), pack.stat().st_size)
        with server.client() as client:
            self.assertEqual(200, client.post(f"/laptop/data/{pack.name}", content).status)
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        # It is the same damage that was repaired, not another one.
        with server.client() as client:
            (laptop,) = json.loads(client.get("/-/status.json").body)["repositories"]
        self.assertEqual(1, laptop["damaged"])

    def test_truncated(self) -> None:
        """C{truncate -s 0}."""
        self.assert_check_fails_and_repair_helps(cut_to(0))

    def test_shortened(self) -> None:
        """By one byte."""
        self.assert_check_fails_and_repair_helps(shorten)

    def test_grown(self) -> None:
        """By one byte."""
        self.assert_check_fails_and_repair_helps(grow)

    def test_while_the_server_was_stopped(self) -> None:
        """The sizes of a directory with many objects are in the state file: with a quota they are not read at the start."""
        self.flags += ("--max-size", "1TB")
        server = self.start()
        pack = self.backed_up(server)
        content = pack.read_bytes()
        beside = (b"%d" % number for number in count())
        beside = (body for body in beside if object_id(body)[:2] == pack.name[:2])
        with server.client() as client:
            for _ in range(70):
                body = next(beside)
                self.assertEqual(200, client.post(f"/laptop/data/{object_id(body)}", body).status)
        self.learn(server)
        self.assertEqual(0, server.stop())
        os.truncate(pack, 0)
        server = self.start()
        restic = self.restic(server)
        finished = restic.run("check")
        self.assertNotEqual(0, finished.status, finished)
        self.assert_found(server, pack, len(content), 0)
        with server.client() as client:
            self.assertEqual(200, client.post(f"/laptop/data/{pack.name}", content).status)
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))

    def test_whoever_reads_it_first(self) -> None:
        """A HEAD, before any list."""
        server = self.start()
        pack = self.backed_up(server)
        size_bytes = pack.stat().st_size
        self.learn(server)
        with server.client() as client:
            client.head(f"/laptop/data/{pack.name}")
            self.assertEqual([], self.told())
            os.truncate(pack, 100)
            for _ in range(3):
                self.assertEqual("100", client.head(f"/laptop/data/{pack.name}").headers["content-length"])
        self.assert_found(server, pack, size_bytes, 100)

    def test_a_copy_that_comes_to_its_end(self) -> None:
        """A file that had another size and now has the content that its name promises is no damage."""
        server = self.start()
        pack = self.backed_up(server)
        content = pack.read_bytes()
        os.truncate(pack, 1000)
        os.utime(pack, (1, 1))  # nobody writes to it, as far as its time tells
        self.learn(server)
        restic = self.restic(server)
        self.assertNotEqual(0, restic.run("check").status)
        told = len(self.told())
        pack.write_bytes(content)
        restic.succeed("check")
        with server.client() as client:
            client.get("/metrics")
        self.assertEqual(told, len(self.told()))


class SharedDamageTests(DamageTests):
    """Two processes: each knows sizes of its own, and the damage is told of once."""

    every_server = ("--workers", "2")
