"""
The scrub of a running server, and of the command beside it: damage among many packs of the real restic is found, also by a
server that is killed again and again, and ends with the next upload of the same object.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id, random_bytes
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import contents_below, object_path, scratch_directory
from ..support.server import ServerProcess, installed, server_environment, start_server
from ..support.waiting import wait_until
from ..telemetry.test_metrics import parsed, series

PACKS = 120


class ScrubTestCase(SynchronousTestCase):
    """A data directory, and what is done to it."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.repository = self.data / "alice" / "laptop"

    def start(self, *flags: str) -> ServerProcess:
        """A server."""
        return start_server(self, self.data, "--prometheus", *flags)

    def fill(self, server: ServerProcess, length: int = 20_000) -> list[str]:
        """Store packs; their names."""
        with server.client() as client:
            client.create_repository("/alice/laptop/")
            return [client.save("data", random_bytes(seed, length), "/alice/laptop/") for seed in range(PACKS)]

    def file(self, name: str, kind: str = "data") -> Path:
        """The file of an object."""
        return object_path(self.repository, kind, name)

    def flip(self, name: str) -> None:
        """Change one bit."""
        path = self.file(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, (1, 1))

    def damage(self, names: list[str]) -> set[tuple[str, str]]:
        """Damage some of many packs in several ways; what is to be found."""
        self.flip(names[3])
        self.flip(names[70])
        os.truncate(self.file(names[4]), 100)
        os.utime(self.file(names[4]), (1, 1))
        self.file(names[5]).unlink()
        return {("damaged", names[3]), ("damaged", names[70]), ("damaged", names[4]), ("missing", names[5])}

    def status(self, server: ServerProcess) -> dict[str, Any]:
        """The status as JSON."""
        with server.client() as client:
            document: dict[str, Any] = json.loads(client.get("/-/status.json").body)
        return document

    def found(self, server: ServerProcess) -> set[tuple[str, str]]:
        """The problems on the status page."""
        repositories = self.status(server)["repositories"]
        return {(one["kind"], one["name"]) for each in repositories for one in each["problems"]}

    def concerns(self, server: ServerProcess) -> list[str]:
        """What the status page says about the repository's problems."""
        (laptop,) = self.status(server)["repositories"]
        return [words for words in laptop["concerns"] if "scrub" in words or "damaged" in words]

    def scrub(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command; status, output, errors."""
        command = [installed("rest-server"), "scrub", "--path", str(self.data), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=server_environment(), cwd=self.scratch)
        return done.returncode, done.stdout, done.stderr

    def wait_for_pass(self, server: ServerProcess) -> None:
        """Until everything was checked once."""
        wait_until(lambda: (self.status(server)["scrub"] or {}).get("last_complete_s"), what=server.err)


class ScrubTests(ScrubTestCase):
    """One process."""

    def test_found_and_healed(self) -> None:
        """Exactly what is damaged or missing is reported, everywhere, and never removed; uploads end it."""
        server = self.start("--scrub-interval", "5s", "--scrub-rate", "0")
        names = self.fill(server)
        self.wait_for_pass(server)
        self.assertEqual(set(), self.found(server))
        with server.client() as client:
            self.assertEqual(200, client.delete(f"/alice/laptop/data/{names[9]}").status)
        expected = self.damage(names)
        wait_until(lambda: self.found(server) == expected, what=server.err)
        for kind, name in expected:
            lines = [line for line in server.err if name in line]
            self.assertEqual(1, len(lines), lines)
            self.assertIn(f"a file of repository alice/laptop is {kind}: data {name}", lines[0])
        with server.client() as client:
            metrics = parsed(client.get("/metrics").body)
            page = client.get("/-/status/alice/laptop").body.decode()
        labels = {"user": "alice", "repo": "alice/laptop"}
        self.assertEqual(3, metrics[series("rest_server_scrub_problems", kind="damaged", **labels)])
        self.assertEqual(1, metrics[series("rest_server_scrub_problems", kind="missing", **labels)])
        for kind, name in expected:
            self.assertIn(name, page)
            self.assertEqual(kind != "missing", self.file(name).exists())
        with server.client() as client:
            for number in (3, 4, 5, 70):
                client.save("data", random_bytes(number, 20_000), "/alice/laptop/")
        wait_until(lambda: self.found(server) == set(), what=server.err)
        # Another worker may still answer with what it knew a moment ago.
        wait_until(lambda: not self.concerns(server), what=server.err)
        self.assertNotIn(names[9], "\n".join(server.err))

    def test_killed_again_and_again(self) -> None:
        """A server that is killed all the time comes to the end of its pass, and has found everything."""
        server = self.start()
        names = self.fill(server, 100_000)
        expected = {("damaged", names[3]), ("damaged", names[70])}
        self.assertEqual(0, server.stop())
        for _, name in expected:
            self.flip(name)
        kills = 0
        flags = ("--scrub-interval", "30d", "--scrub-rate", "2M")
        while True:
            server = self.start(*flags)
            deadline_s = time.monotonic() + 4
            while time.monotonic() < deadline_s and not (self.status(server)["scrub"] or {}).get("last_complete_s"):
                time.sleep(0.1)
            if self.status(server)["scrub"]["last_complete_s"]:
                break
            kills += 1
            # On a busy machine each life gets only a little further.
            self.assertLess(kills, 30)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        self.assertGreater(kills, 0)
        wait_until(lambda: self.found(server) == expected, what=server.err)

    def test_command_beside_the_server(self) -> None:
        """A server that does not scrub shows what the command has found, and notes deletions for it."""
        server = self.start()
        names = self.fill(server)
        before = contents_below(self.data)
        self.assertEqual((0, ""), self.scrub()[::2])
        self.assertEqual(before, contents_below(self.data))
        with server.client() as client:
            self.assertEqual(200, client.delete(f"/alice/laptop/data/{names[9]}").status)
        expected = self.damage(names)
        status, out, err = self.scrub("--json")
        self.assertEqual((1, ""), (status, err))
        self.assertEqual(expected, {(one["problem"], one["name"]) for one in json.loads(out)["problems"]})
        wait_until(lambda: self.found(server) == expected, what=server.err)
        with server.client() as client:
            for number in (3, 4, 5, 70):
                client.save("data", random_bytes(number, 20_000), "/alice/laptop/")
        wait_until(lambda: self.found(server) == set(), what=server.err)
        self.assertEqual(0, self.scrub("alice/laptop")[0])
        self.assertEqual(0, server.stop())
        self.assertEqual(0, self.scrub()[0])

    def test_real_restic(self) -> None:
        """A repository of restic's, with prunes through the server: nothing is reported."""
        server = self.start("--scrub-interval", "2s", "--scrub-rate", "0")
        restic = Restic(self, f"{server.url}/alice/laptop/", self.scratch)
        restic.create()
        make_tree(self.scratch / "tree", 5, 1 << 20)
        for number in range(3):
            (self.scratch / "tree" / f"more-{number}").write_bytes(random_bytes(number, 500_000))
            restic.succeed("backup", str(self.scratch / "tree"))
        self.wait_for_pass(server)
        restic.succeed("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
        time.sleep(4)
        restic.succeed("check", "--read-data")
        self.assertEqual(set(), self.found(server))
        pack = max((self.repository / "data").glob("??/*"), key=lambda path: path.stat().st_size)
        content = pack.read_bytes()
        self.flip(pack.name)
        wait_until(lambda: self.found(server) == {("damaged", pack.name)}, what=server.err)
        with server.client() as client:
            self.assertEqual(200, client.post(f"/alice/laptop/data/{object_id(content)}", content).status)
        wait_until(lambda: self.found(server) == set(), what=server.err)

    test_real_restic.skip = SKIP_WITHOUT_RESTIC  # type: ignore[attr-defined]


class SharedScrubTests(ScrubTests):
    """Two processes serve, and the parent scrubs."""

    every_server = ("--workers", "2")


class CommandTests(ScrubTestCase):
    """C{rest-server scrub} without a server."""

    def test_command_is_killed(self) -> None:
        """The command, killed again and again, comes to its end and reports everything."""
        server = self.start()
        names = self.fill(server, 100_000)
        self.assertEqual(0, server.stop())
        self.flip(names[3])
        self.flip(names[70])
        command = [installed("rest-server"), "scrub", "--path", str(self.data), "--rate", "3M", "--json"]
        for _ in range(10):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=server_environment(), cwd=self.scratch
            )
            try:
                out, _ = process.communicate(timeout=3)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self.assertEqual(1, process.returncode)
        found = {(one["problem"], one["name"]) for one in json.loads(out)["problems"]}
        self.assertEqual({("damaged", names[3]), ("damaged", names[70])}, found)

    def test_rate(self) -> None:
        """The rate is kept within a tenth."""
        server = self.start()
        self.fill(server, 100_000)
        self.assertEqual(0, server.stop())
        _, out, _ = self.scrub("--rate", "4MB", "--json")
        document = json.loads(out)
        self.assertLess(abs(document["size_bytes"] / document["duration_s"] - 4e6), 4e5)

    def test_as_root(self) -> None:
        """Root leaves nothing behind that the server's user could not use."""
        if os.geteuid() != 0:
            raise self.skipTest("needs root")
        server = self.start()
        names = self.fill(server)
        self.assertEqual(0, server.stop())
        os.chmod(self.scratch, 0o755)
        for folder, _, files in os.walk(self.data):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, 65534, 65534)
        self.flip(names[3])
        os.chown(self.file(names[3]), 65534, 65534)
        status, out, err = self.scrub()
        self.assertEqual((1, ""), (status, err))
        self.assertIn(names[3], out)
        for folder, _, files in os.walk(self.data):
            for name in files:
                self.assertEqual(65534, os.stat(os.path.join(folder, name)).st_uid, name)
