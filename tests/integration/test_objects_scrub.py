"""
The scrub of repositories in a real object store: damage that was made behind the server's back is found, by the server and by the
command, also if the server is killed or the object store is away; it ends with the next upload of the same object.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..contract.store import key_of
from ..support.client import object_id, random_bytes
from ..support.engines import S3Engine, SeaweedFS, shared_seaweedfs, start_engine
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, installed, server_environment, start_server
from ..support.waiting import PATIENCE_S, wait_until
from ..telemetry.test_metrics import parsed, series

REPOSITORY = ("alice", "laptop")
OBJECTS = 200
OBJECT_BYTES = 20_000
#: Of the objects, these are damaged.
DAMAGED = range(0, OBJECTS, 10)
LABELS = {"user": "alice", "repo": "alice/laptop"}


class ObjectsCase(SynchronousTestCase):
    """A bucket with objects of which some are damaged, and what is done to it."""

    every_server: tuple[str, ...] = ("--objects-unconditional", "--prometheus")

    def engine_of_test(self) -> S3Engine:
        """The object store."""
        return shared_seaweedfs()

    def setUp(self) -> None:
        self.engine = self.engine_of_test()
        self.bucket = self.engine.new_bucket(self)
        self.path = f"s3://{self.bucket}/some/place"
        self.scratch = scratch_directory(self)
        self.bodies = [random_bytes(seed, OBJECT_BYTES) for seed in range(OBJECTS)]
        self.names = [object_id(body) for body in self.bodies]
        self.plant("config", "config", b"a config")
        for number, body in enumerate(self.bodies):
            self.plant("data", self.names[number], self.damaged(number) if number in DAMAGED else body)
        self.expected = {("damaged", self.names[number]) for number in DAMAGED}

    def damaged(self, number: int) -> bytes:
        """An object with a wrong bit, or cut."""
        body = bytearray(self.bodies[number])
        body[number] ^= 1
        return bytes(body) if number % 20 else bytes(body[:1000])

    def plant(self, kind: str, name: str, content: bytes) -> None:
        """Store an object behind the server's back."""
        reply = self.engine.request("PUT", f"/{self.bucket}/some/place/{key_of(REPOSITORY, kind, name)}", body=content)
        assert reply.status == 200, reply

    def stored(self, name: str) -> bytes:
        """What the object store has."""
        return self.engine.request("GET", f"/{self.bucket}/some/place/{key_of(REPOSITORY, 'data', name)}").body

    def start(self, *flags: str) -> ServerProcess:
        """A server."""
        state = f"--state-dir={self.scratch / 'state'}"
        return start_server(self, self.scratch, f"--path={self.path}", state, *flags, extra=self.engine.environment())

    def status(self, server: ServerProcess) -> dict[str, Any]:
        """The status as JSON."""
        with server.client() as client:
            document: dict[str, Any] = json.loads(client.get("/-/status.json").body)
        return document

    def found(self, server: ServerProcess) -> set[tuple[str, str]]:
        """The problems on the status page."""
        repositories = self.status(server)["repositories"]
        return {(one["kind"], one["name"]) for each in repositories for one in each["problems"]}

    def metrics(self, server: ServerProcess) -> dict[Any, float]:
        """The metrics."""
        with server.client() as client:
            return parsed(client.get("/metrics").body)

    def wait_for_found(self, server: ServerProcess, expected: set[tuple[str, str]]) -> None:
        """Until the server shows these problems and no others."""
        wait_until(lambda: self.found(server) == expected, 3 * PATIENCE_S, what=server.err)

    def scrub(self, *arguments: str, path: str = "") -> tuple[int, str, str]:
        """Run the command; status, output, errors."""
        place = ("--path", path or self.path, "--state-dir", str(self.scratch / "state"))
        done = subprocess.run(
            [installed("rest-server"), "scrub", *place, *arguments],
            capture_output=True,
            text=True,
            env=server_environment(self.engine.environment()),
            cwd=self.scratch,
        )
        return done.returncode, done.stdout, done.stderr


@process_test
class ScrubTests(ObjectsCase):
    """A server, and SeaweedFS."""

    def test_found_and_healed(self) -> None:
        """Exactly what is damaged is reported, everywhere, and stays as it is; uploads end it."""
        server = self.start("--scrub-interval", "30d", "--scrub-rate", "0")
        self.wait_for_found(server, self.expected)
        for number in DAMAGED:
            lines = [line for line in server.err if self.names[number] in line]
            self.assertEqual(1, len(lines), lines)
            self.assertIn(f"a file of repository alice/laptop is damaged: data {self.names[number]}: its ", lines[0])
        wait_until(lambda: self.status(server)["scrub"]["last_complete_s"], what=server.err)
        metrics = self.metrics(server)
        self.assertEqual(20, metrics[series("rest_server_scrub_problems", kind="damaged", **LABELS)])
        self.assertEqual(0, metrics[series("rest_server_scrub_problems", kind="missing", **LABELS)])
        self.assertEqual(OBJECTS + 1, metrics[series("rest_server_scrub_objects_total")])
        # The damaged ones twice, and the marker, which also is looked at when something is not there.
        gets = metrics[series("rest_server_scrub_requests_total", kind="get")]
        self.assertTrue(OBJECTS + 21 <= gets <= OBJECTS + 30, gets)
        # Everything, the folders of data, the config, and the damaged ones; not one for each folder.
        lists = metrics[series("rest_server_scrub_requests_total", kind="list")]
        self.assertTrue(22 <= lists <= 60, lists)
        with server.client() as client:
            self.assertIn(self.names[0], client.get("/-/status/alice/laptop").body.decode())
        for number in DAMAGED:
            self.assertEqual(self.damaged(number), self.stored(self.names[number]))
        with server.client() as client:
            for number in DAMAGED:
                client.save("data", self.bodies[number], "/alice/laptop/")
        self.wait_for_found(server, set())
        self.assertEqual([], [line for line in server.err if "missing" in line or "unreadable" in line])
        self.assertEqual(0, server.stop())

    def test_killed_again_and_again(self) -> None:
        """A server that is killed in its pass goes on where it was, and finds everything."""
        kills = 0
        while True:
            server = self.start("--scrub-interval", "30d", "--scrub-rate", "400KB")
            deadline_s = time.monotonic() + 5
            while time.monotonic() < deadline_s and not (self.status(server)["scrub"] or {}).get("last_complete_s"):
                time.sleep(0.1)
            if self.status(server)["scrub"]["last_complete_s"]:
                break
            kills += 1
            self.assertLess(kills, 30)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        self.assertGreater(kills, 0)
        self.assertLess(self.metrics(server)[series("rest_server_scrub_objects_total")], OBJECTS)
        self.wait_for_found(server, self.expected)

    def test_command(self) -> None:
        """It works without a server and beside one, which shows what it has found; it says what is wrong."""
        status, out, err = self.scrub("--json")
        self.assertEqual((1, ""), (status, err))
        document = json.loads(out)
        self.assertEqual((True, OBJECTS + 1), (document["complete"], document["objects"]))
        self.assertEqual(self.expected, {(one["problem"], one["name"]) for one in document["problems"]})
        self.assertEqual({"alice/laptop"}, {one["repository"] for one in document["problems"]})
        server = self.start()
        self.wait_for_found(server, self.expected)
        with server.client() as client:
            for number in DAMAGED:
                client.save("data", self.bodies[number], "/alice/laptop/")
            self.assertEqual(200, client.delete(f"/alice/laptop/data/{self.names[1]}").status)
        status, out, err = self.scrub("alice/laptop")
        self.assertEqual((0, ""), (status, err), out)
        self.assertIn(f"checked {OBJECTS} objects", out)
        self.wait_for_found(server, set())
        self.assertEqual(0, server.stop())
        for arguments, path, words in (
            (("bob",), "", "bob: there is no such repository in s3://"),
            ((), f"s3://no-such-{self.bucket[:40]}", "the bucket with the repositories is missing"),
            ((), "s3://UPPER..CASE/x", "is no name of a bucket"),
        ):
            status, out, err = self.scrub(*arguments, path=path)
            self.assertEqual((2, ""), (status, out), err)
            self.assertIn(words, err)
            self.assertEqual(1, err.count("\n"), err)

    def test_rate(self) -> None:
        """The rate is kept within a twentieth."""
        _, out, _ = self.scrub("--rate", "400KB", "--json")
        document = json.loads(out)
        self.assertLess(abs(document["size_bytes"] / document["duration_s"] - 4e5), 2e4)


@process_test
class SharedScrubTests(ObjectsCase):
    """Two processes serve, and the parent scrubs."""

    def test_found_and_healed(self) -> None:
        """An upload to a worker ends a problem."""
        self.every_server = ("--prometheus", "--workers=2")
        server = self.start("--scrub-interval", "30d", "--scrub-rate", "0")
        self.wait_for_found(server, self.expected)
        with server.client() as client:
            for number in DAMAGED:
                client.save("data", self.bodies[number], "/alice/laptop/")
        self.wait_for_found(server, set())


@process_test
class DownTests(ObjectsCase):
    """An object store that is away for a while."""

    def engine_of_test(self) -> S3Engine:
        """One of this test's own."""
        return start_engine(self, SeaweedFS(scratch_directory(self) / "engine"))

    def test_engine_is_down(self) -> None:
        """The scrub waits, nothing is said of the objects, and when the engine is back it goes on to its end."""
        server = self.start("--scrub-interval", "30d", "--scrub-rate", "400KB")
        wait_until(lambda: self.metrics(server).get(series("rest_server_scrub_objects_total"), 0) > 40, what=server.err)
        self.engine.kill()
        time.sleep(5)
        checked = self.metrics(server)[series("rest_server_scrub_objects_total")]
        self.assertLess(checked, OBJECTS)
        self.assertLessEqual(self.found(server), self.expected)
        status, out, err = self.scrub()
        self.assertEqual((2, "", 1), (status, out, err.count("\n")), err)
        self.assertIn("the object store does not answer as it should", err)
        self.engine.start()
        wait_until(lambda: self.status(server)["scrub"]["last_complete_s"], 4 * PATIENCE_S, what=server.err)
        self.wait_for_found(server, self.expected)
        # What was checked before was not checked again, but for a few.
        total = self.metrics(server)[series("rest_server_scrub_objects_total")]
        self.assertLess(total, OBJECTS + checked)
        self.assertEqual([], [line for line in server.err if "is unreadable" in line or "is missing" in line])
