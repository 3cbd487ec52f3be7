"""
Space that may not be exceeded: by many clients at once, across kills and restarts, beside local changes, on small disks.

C{RESTICSERVER_QUOTA_SECONDS} is how long each storm rages and C{RESTICSERVER_QUOTA_ROUNDS} how often servers are killed; 30
and 20 are what was asked for, and with so many seconds restic is left alone to its end and not interrupted.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import Client, Reply, connect, object_id, random_bytes, read_reply
from ..support.htpasswd import sha_line
from ..support.quota import (
    REFUSED,
    WITH_RESERVE,
    Storm,
    Watch,
    assert_exact,
    body_of,
    kind_of,
    make_room,
    pieces,
    reserve_of,
    seed_of,
    settle,
    start_on_tmpfs,
    stored,
    surplus,
    used,
    why_no_tmpfs,
)
from ..support.restic import RESTIC, SKIP_WITHOUT_RESTIC, ImpatientRestic, make_tree
from ..support.scratch import files_below, object_path, scratch_directory
from ..support.server import REST_SERVER, TWISTD, ServerProcess, command_line, installed, start_server
from ..support.skipping import skipped
from ..support.waiting import PATIENCE_S, wait_until
from . import test_process
from .test_faults import in_parallel

MIB = 1 << 20
TWO = ("--workers", "2")
USUAL_SECONDS = 1.2
SECONDS = float(os.environ.get("RESTICSERVER_QUOTA_SECONDS", USUAL_SECONDS))
ROUNDS = int(os.environ.get("RESTICSERVER_QUOTA_ROUNDS", "4"))
#: Whether restic is left alone until it gives up, which takes a minute.
PATIENT = SECONDS >= 30

LIMIT_BYTES = 40 * MIB
INITIALIZED = r"Quota initialized, currently using "
#: A directory that others changed is read again at most once in a few seconds.
NOTICED_S = PATIENCE_S
#: What a size looks like in a refusal.
SIZE = r"[0-9][0-9.]* (?:bytes?|KiB|MiB|GiB|TiB)"
#: What stands behind whose limit it is.
UPLOAD = rf"upload of {SIZE}(?: so far)?, {SIZE} left"


class QuotaCase(SynchronousTestCase):
    """A server with a quota for everything."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 300 * MIB)
        self.data = self.scratch / "data"

    def start(self, *flags: str, limit: str = str(LIMIT_BYTES), counted: bool = True) -> ServerProcess:
        """Start it, and wait until it knows what is there."""
        server = start_server(self, self.data, "--max-size", limit, *flags)
        if counted:
            server.wait_for_line(INITIALIZED)
        with server.client() as client:
            client.create_repository()
        return server

    def assert_statuses(self, storm: Storm, *allowed: int) -> None:
        """Every request was answered by one of these."""
        self.assertEqual(set(), {status for _, status in storm.statuses} - set(allowed), storm.statuses)

    def assert_clean(self) -> None:
        """There is nothing but objects."""
        self.assertEqual([], surplus(self.data))


class FillTests(QuotaCase):
    """Sixteen clients upload what they can, and it is never a byte too much."""

    def test_filling(self) -> None:
        """
        Random sizes, with Content-Length and in chunks, of all types, some at once from several clients: all but locks and
        indexes never exceed the quota, everything never exceeds quota and reserve, and at the end it is full.
        """
        server = self.start()
        left_s = SECONDS
        seed = 0
        while left_s > 0:
            seed += 1
            storm = Storm(server, self.data, seed, {"upload": 4, "twin": 1})
            # Nothing is removed meanwhile, so nobody has to stand still for the looks.
            with Watch(self.data) as watch:
                storm.rage(
                    min(left_s, USUAL_SECONDS),
                    lambda: storm.count(REFUSED) and used(self.data) > LIMIT_BYTES - storm.longest,
                )
            left_s -= USUAL_SECONDS
            self.assertLessEqual(watch.bulk_bytes, LIMIT_BYTES)
            self.assertLessEqual(watch.all_bytes, LIMIT_BYTES + reserve_of(LIMIT_BYTES))
            self.assert_statuses(storm, 200, REFUSED)
            self.assertGreater(storm.count(REFUSED), 0, "it was never full, so the test shows nothing")
            self.assertGreater(used(self.data), LIMIT_BYTES - storm.longest)
            settle(server, self.data)
            self.assert_clean()
            with server.client() as client:
                make_room(client, self.data, LIMIT_BYTES, LIMIT_BYTES // 2)
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES)
        self.assertIsNone(server.said("Traceback"))

    def test_one_that_just_fits_many_times(self) -> None:
        """Many clients at once want the same last room: one gets it."""
        server = self.start()
        with server.client() as client:
            client.save("data", body_of(1, LIMIT_BYTES - 100_000))
        for turn in range(10):
            statuses: list[int] = []
            barrier = threading.Barrier(8)

            def want(
                number: int,
                turn: int = turn,
                statuses: list[int] = statuses,
                barrier: threading.Barrier = barrier,
            ) -> None:
                body = body_of(100 * turn + number + 10, 100_000 if number % 2 else 60_000)
                with server.client() as client:
                    client.head("/config")
                    barrier.wait()
                    statuses.append(client.post(f"/data/{object_id(body)}", iter([body]) if turn % 2 else body).status)

            threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertLessEqual(used(self.data), LIMIT_BYTES)
            if turn % 2 == 0:
                # With a length each is judged once. In chunks they may all fail, each for the room that others hold.
                self.assertEqual([200, *[REFUSED] * 7], sorted(statuses))
            with server.client() as client:
                for path, size in stored(self.data).items():
                    if size <= 100_000:
                        self.assertEqual(200, client.delete(f"/data/{path.rpartition('/')[2]}").status)


class StormTests(QuotaCase):
    """Uploads, removals, the same again, broken connections, damaged files that are healed: the sum is right to the byte."""

    ACTIONS = {"upload": 8, "twin": 2, "again": 3, "delete": 5, "cut": 2, "heal": 1}
    REPOSITORIES = ("/", "/one/", "/one/two/")

    def create_all(self, server: ServerProcess) -> None:
        """Make the repositories."""
        with server.client() as client:
            for repository in self.REPOSITORIES:
                client.create_repository(repository)

    def test_exact(self) -> None:
        """At no moment there is too much, and afterwards exactly the rest is taken."""
        server = self.start()
        self.create_all(server)
        storm = Storm(server, self.data, 1, self.ACTIONS, repositories=self.REPOSITORIES)
        with Watch(self.data, server, pause_s=0.05) as watch:
            storm.rage(SECONDS, lambda: storm.count(REFUSED))
        self.assertLessEqual(watch.bulk_bytes, LIMIT_BYTES)
        self.assertLessEqual(watch.all_bytes, LIMIT_BYTES + reserve_of(LIMIT_BYTES))
        self.assert_statuses(storm, 200, REFUSED, 404)
        self.assertEqual(0, storm.statuses["upload", 404] + storm.statuses["again", 404] + storm.statuses["heal", 404])
        self.assertGreater(storm.count(REFUSED), 0, "it was never full, so the test shows nothing")
        settle(server, self.data)
        self.assert_clean()
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES)
        self.assertIsNone(server.said("Traceback"))

    def test_damage_of_all_lengths(self) -> None:
        """Damaged files may be longer than they should be, too."""
        server = self.start()
        self.create_all(server)
        actions = {"upload": 8, "again": 2, "delete": 6, "heal": 8}
        storm = Storm(server, self.data, 2, actions, repositories=self.REPOSITORIES, longer=True)
        storm.rage(SECONDS / 2, lambda: storm.statuses["heal", 200])
        self.assertGreater(storm.statuses["heal", 200], 0)
        settle(server, self.data)
        self.assert_clean()
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)

    def test_healed_and_nothing_else(self) -> None:
        """
        Whatever length the damaged file had: healed, or removed where it had become shorter, it leaves nothing wrong in the
        sum. (One that had become longer is wrong until the next count: nobody knows what it was.)
        """
        server = self.start()
        with server.client() as client:
            for end, length in (("heal", 7), ("heal", 3 * MIB), ("delete", 7)):
                body = body_of(length, MIB)
                name = client.save("data", body)
                path = object_path(self.data, "data", name)
                path.write_bytes(bytes(length))
                if end == "heal":
                    self.assertEqual(200, client.post(f"/data/{name}", body).status)
                    self.assertEqual(MIB, path.stat().st_size)
                else:
                    self.assertEqual(200, client.delete(f"/data/{name}").status)
                assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)

    def test_without_verification(self) -> None:
        """C{--no-verify-upload} changes nothing of it."""
        server = self.start("--no-verify-upload")
        self.create_all(server)
        actions = {"upload": 8, "twin": 2, "again": 3, "delete": 5, "cut": 2}
        storm = Storm(server, self.data, 3, actions, repositories=self.REPOSITORIES)
        storm.rage(SECONDS / 2)
        self.assert_statuses(storm, 200, REFUSED, 404)
        settle(server, self.data)
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES)

    def test_deleted_repositories(self) -> None:
        """A repository that is deleted whole makes room, and so do refused, failed and wrong uploads to those that stay."""
        policy = self.scratch / "policy"
        policy.write_text(
            '[[rule]]\nusers = ["*"]\nrepositories = ["**", "/"]\nrights = "full"\ncreate = true\ndelete-repository = true\n'
        )
        users = self.scratch / "users"
        users.write_text(sha_line("root", "root"))
        server = start_server(
            self,
            self.data,
            *("--max-size", str(LIMIT_BYTES), "--htpasswd-file", str(users), "--policy", str(policy)),
        )
        server.wait_for_line(INITIALIZED)
        with server.client("root", "root") as client:
            for turn in range(3):
                for repository in ("/", "/one/", "/one/two/"):
                    client.create_repository(repository)
                    for number in range(3):
                        client.save("data", body_of(10 * turn + number, MIB + number), repository)
                        client.save("index", body_of(10 * turn + number, 1000), repository)
                    self.assertEqual(200, client.post(f"{repository}config", b"x" * 155).status)
                    self.assertEqual(403, client.post(f"{repository}config", b"y" * 155).status)
                    wrong = client.post(f"{repository}data/{object_id(b'other')}", b"x" * 5000)
                    self.assertEqual(400, wrong.status)
                    damaged = object_path(self.data / repository.strip("/"), "data", object_id(body_of(10 * turn, MIB)))
                    kept = damaged.read_bytes()
                    damaged.write_bytes(b"damaged")
                    self.assertEqual(403, client.post(f"{repository}data/{damaged.name}", b"wrong").status)
                    self.assertEqual(200, client.post(f"{repository}data/{damaged.name}", kept).status)
                self.assertEqual(200, client.delete("/one/").status)
                self.assertEqual(200, client.delete("/one/two/").status)
                assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)


class KilledTests(QuotaCase):
    """C{kill -9} in the middle of a storm."""

    ACTIONS = StormTests.ACTIONS

    def storm_until_killed(self, server: ServerProcess, seed: int, kill: Callable[[], None]) -> None:
        """Let it rage, and kill at some moment."""
        storm = Storm(server, self.data, seed, self.ACTIONS, tolerant=True)
        storm.begin()
        time.sleep(random.Random(seed).uniform(0.1, 1.2))
        kill()
        storm.end()
        for path in storm.damaged:
            # The test's own half-done work; nothing tells a server that a file has changed in place.
            path.unlink(missing_ok=True)

    def test_killed_and_started_again(self) -> None:
        """What the next server counts is what is on disk, round after round."""
        server = self.start()
        for number in range(ROUNDS):
            self.storm_until_killed(server, number, lambda: kill_all(server))
            server = self.start()
            self.assert_clean()
            with server.client() as client:
                assert_exact(client, self.data, LIMIT_BYTES)
        self.assertIsNone(server.said("Traceback"))

    def test_killed_and_in_use_at_once(self) -> None:
        """A storm that begins before the next server has counted never brings in too much."""
        server = self.start()
        self.storm_until_killed(server, 100, lambda: kill_all(server))
        again = self.start(counted=False)
        storm = Storm(again, self.data, 101, self.ACTIONS)
        with Watch(self.data, again, pause_s=0.05) as watch:
            storm.rage(SECONDS / 2)
        self.assertLessEqual(watch.bulk_bytes, LIMIT_BYTES)
        self.assertLessEqual(watch.all_bytes, LIMIT_BYTES + reserve_of(LIMIT_BYTES))
        again.wait_for_line(INITIALIZED)
        settle(again, self.data)
        with again.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES)


class RestartCase(QuotaCase):
    """A server that is stopped and started again."""

    def fill(self, server: ServerProcess, count: int = 20) -> list[str]:
        """Some objects of 1 MiB; their names."""
        with server.client() as client:
            return [client.save("data", body_of(number, MIB)) for number in range(count)]

    def restart(self, server: ServerProcess, *flags: str, between: Callable[[], None] = lambda: None) -> ServerProcess:
        """Stop, do something, start again; what is left must be right."""
        self.assertEqual(0, server.stop())
        between()
        server = self.start(*flags)
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES)
        return server


class RestartTests(RestartCase):
    """Starts at which all is as the last server left it."""

    def test_stopped_and_started_again(self) -> None:
        """As it was left."""
        server = self.start()
        self.fill(server)
        self.restart(self.restart(server))


class StateTests(RestartCase):
    """What is said, the state file, and starts at which all is not as the last server left it."""

    def test_what_is_said(self) -> None:
        """The lines that people know from rest-server, with the sum."""
        server = self.start()
        self.fill(server)
        server.stop()
        again = self.start()
        again.wait_for_line(r"Initializing quota \(can take a while\)\.\.\.$")
        again.wait_for_line(r"Quota initialized, currently using 0\.02 GiB$")

    def test_changed_between(self) -> None:
        """Files that came, went or grew while no server ran."""
        server = self.start()
        names = self.fill(server)

        def change() -> None:
            object_path(self.data, "data", names[0]).unlink()
            shutil.rmtree(object_path(self.data, "data", names[1]).parent)
            body = body_of(77, 3 * MIB)
            object_path(self.data, "data", object_id(body)).parent.mkdir(exist_ok=True)
            object_path(self.data, "data", object_id(body)).write_bytes(body)
            (self.data / "laptop" / "snapshots").mkdir(parents=True)
            (self.data / "laptop" / "snapshots" / object_id(b"x")).write_bytes(b"x")
            # None of restic's:
            (self.data / "laptop" / "snapshots" / "notes.txt").write_bytes(b"x" * 500)
            (self.data / ".htpasswd").write_bytes(b"x" * 500)

        self.restart(server, between=change)

    def test_lost_and_broken_state(self) -> None:
        """Without what the last server wrote down, or with something else in its place, everything is counted again."""
        server = self.start()
        self.fill(server)
        state = self.data / ".rest-server" / "state.sqlite3"
        self.assertTrue(state.is_file())

        def lose() -> None:
            for path in state.parent.glob("state.sqlite3*"):
                path.unlink()

        def break_it() -> None:
            lose()
            state.write_bytes(random_bytes(1, 50_000))

        def cut() -> None:
            os.truncate(state, state.stat().st_size // 2)

        def replace_the_data() -> None:
            # The state is of another directory: somebody copied some of the data back.
            for path in list(stored(self.data))[::2]:
                (self.data / path).unlink()

        for damage in (lose, break_it, cut, replace_the_data):
            server = self.restart(server, between=damage)

    def test_state_elsewhere(self) -> None:
        """C{--state-dir}: the state lies there and nowhere else."""
        elsewhere = self.scratch / "state"
        server = self.start("--state-dir", str(elsewhere))
        self.fill(server)
        self.restart(server, "--state-dir", str(elsewhere))
        self.assertTrue((elsewhere / "state.sqlite3").is_file())
        self.assertEqual([], list((self.data / ".rest-server").glob("state*")))
        self.assertEqual(0o600, stat.S_IMODE((elsewhere / "state.sqlite3").stat().st_mode))

    def test_another_quota(self) -> None:
        """A smaller one than there is already: nothing is taken but locks' removal, and the server starts."""
        server = self.start()
        names = self.fill(server)
        server.stop()
        server = self.start(limit="10MiB")
        with server.client() as client:
            body = b"a lock"
            for kind in ("locks", "data", "config"):
                reply = client.post(f"/{kind}" if kind == "config" else f"/{kind}/{object_id(body)}", body)
                self.assertEqual(
                    (REFUSED, True), (reply.status, reply.reason.startswith("quota of 10 MiB for this server"))
                )
            self.assertEqual(MIB, len(client.get(f"/data/{names[0]}").body))
            for name in names[:11]:
                self.assertEqual(200, client.delete(f"/data/{name}").status)
            assert_exact(client, self.data, 10 * MIB)


class LocalChangesTests(QuotaCase):
    """Others who work in the directory while the server runs."""

    def test_removed_beside_the_server(self) -> None:
        """Files, and whole directories, that are removed by hand make room without a restart."""
        server = self.start()
        with server.client() as client:
            client.create_repository("/laptop/")
            names = [client.save("data", body_of(number, MIB)) for number in range(30)]
            for number in range(100, 110):
                client.save("data", body_of(number, MIB), "/laptop/")
            another = body_of(200, MIB)
            path = f"/data/{object_id(another)}"
            self.assertEqual(REFUSED, client.post(path, another).status)
            object_path(self.data, "data", names[0]).unlink()
            wait_until(lambda: client.post(path, another).status == 200, NOTICED_S, "the room of a removed file")
            shutil.rmtree(self.data / "laptop")
            large = body_of(201, 10 * MIB)
            path = f"/data/{object_id(large)}"
            wait_until(lambda: client.post(path, large).status == 200, NOTICED_S, "the room of a removed repository")
            assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)

    def test_added_beside_the_server_and_removed_by_it(self) -> None:
        """What others have added and clients remove was never in the sum, and so does not come off it."""
        server = self.start()
        with server.client() as client:
            kept = client.save("data", b"so that the server knows the repository")
            for number in range(10):
                body = body_of(number, MIB)
                object_path(self.data, "data", object_id(body)).write_bytes(body)
            for number in range(10):
                self.assertEqual(200, client.delete(f"/data/{object_id(body_of(number, MIB))}").status)
            self.assertEqual([f"data/{kept[:2]}/{kept}"], list(stored(self.data)))
            assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_added_beside_the_server(self) -> None:
        """Local backups count: soon nothing is taken that does not fit beside them."""
        server = self.start()
        tree = self.scratch / "tree"
        make_tree(tree, seed=1, size_bytes=12 * MIB)
        environment = {
            **os.environ,
            "RESTIC_PASSWORD": "the password of the tests",
            "RESTIC_CACHE_DIR": str(self.scratch / "cache"),
        }
        for arguments in (("init",), ("backup", str(tree))):
            subprocess.run(
                [str(RESTIC), "--repo", str(self.data / "laptop"), *arguments],
                env=environment,
                cwd=self.scratch,
                check=True,
                capture_output=True,
            )
        self.assertGreater(used(self.data), 8 * MIB)
        with server.client() as client:
            # What is refused anyway lets the server look again.
            self.assertEqual(REFUSED, client.post(f"/data/{object_id(b'x')}", body_of(1, LIMIT_BYTES + 1)).status)
            assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)


class RefusalTests(QuotaCase):
    """How it is said, and that nothing is left."""

    LIMIT = "1MiB"
    BYTES = MIB

    def setUp(self) -> None:
        super().setUp()
        self.server = self.start(limit=self.LIMIT)
        with self.server.client() as client:
            self.kept = client.save("data", body_of(1, self.BYTES - 1000))
        settle(self.server, self.data)
        self.before = files_below(self.data)

    def head(self, body: bytes, *headers: str, kind: str = "data") -> bytes:
        """An upload's head."""
        lines = [f"POST /{kind}/{object_id(body)} HTTP/1.1", "Host: x", *headers, "", ""]
        return "\r\n".join(lines).encode("ascii")

    def assert_refusal(self, reply: Reply) -> None:
        """It is a 507 that says why, in words that can be printed."""
        self.assertEqual(REFUSED, reply.status, reply)
        self.assertRegex(reply.reason, rf"^quota of 1 MiB for this server exceeded: {UPLOAD}$")
        self.assertTrue(reply.reason.isascii() and reply.reason.isprintable(), reply)
        self.assertEqual(reply.reason.encode("ascii") + b"\n", reply.body)

    def assert_nothing_new(self) -> None:
        """Files and what is open are as they were, and the room as well."""
        settle(self.server, self.data)
        self.assertEqual({name for name in self.before if kind_of(name)}, set(stored(self.data)))
        self.assert_clean()
        with self.server.client() as client:
            assert_exact(client, self.data, self.BYTES)

    def test_before_the_body(self) -> None:
        """With a length the answer is there before a byte of the body; of whatever length that is."""
        for length in (1001, MIB, 100 * MIB, 1 << 30, 1 << 40, 1 << 63, 10**19, 10**25):
            for expect in ((), ("Expect: 100-continue",)):
                with connect(("127.0.0.1", self.server.port)) as connection:
                    connection.sendall(self.head(b"some", f"Content-Length: {length}", *expect))
                    received = b""
                    while not received.partition(b"\r\n\r\n")[2].endswith(b"\n"):
                        chunk = connection.recv(65536)
                        if not chunk:
                            break
                        received += chunk
                    self.assertNotIn(b"100 Continue", received)
                    self.assertEqual(1, received.count(b"HTTP/1.1"), received)
                    if length <= 1 << 30:  # above that --max-object-size refuses it, 413
                        self.assertTrue(received.startswith(b"HTTP/1.1 507 quota of 1 MiB for this server"), received)
                    else:
                        # It may as well be called nonsense, but not by a fault of the server.
                        self.assertIn(received[:12], (b"HTTP/1.1 507", b"HTTP/1.1 400", b"HTTP/1.1 413"), received)
        self.assert_nothing_new()
        self.assertIsNone(self.server.said("Traceback"))

    def test_100_continue_when_it_fits(self) -> None:
        """A client that waits for it and has room gets it."""
        body = body_of(2, 1000)
        with connect(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(self.head(body, f"Content-Length: {len(body)}", "Expect: 100-continue"))
            self.assertEqual(b"HTTP/1.1 100 ", connection.recv(13))
            while not connection.recv(1) == b"\n":
                pass
            connection.recv(2)
            connection.sendall(body)
            self.assertEqual(200, read_reply(connection, "POST").status)

    def test_in_chunks(self) -> None:
        """A body of unknown length is refused while it comes, long before its end."""
        body = body_of(3, 64 * MIB)
        with connect(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(self.head(body, "Transfer-Encoding: chunked"))
            connection.settimeout(0.0)
            at = 0
            early = b""
            while at < len(body) and not early:
                connection.settimeout(PATIENCE_S)
                connection.sendall(b"%x\r\n%s\r\n" % (65536, body[at : at + 65536]))
                at += 65536
                connection.settimeout(0.02)
                try:
                    early = connection.recv(65536)
                except TimeoutError:
                    continue
            self.assertTrue(early.startswith(b"HTTP/1.1 507 quota of 1 MiB"), early)
            self.assertLess(at, len(body))
        self.assert_nothing_new()

    def test_the_connection_goes_on(self) -> None:
        """After a small body, in both framings, other requests are answered on the same connection."""
        body = body_of(4, 5000)
        with connect(("127.0.0.1", self.server.port)) as connection:
            for _ in range(3):
                connection.sendall(self.head(body, f"Content-Length: {len(body)}") + body)
                self.assert_refusal(read_reply(connection, "POST"))
                chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
                connection.sendall(self.head(body, "Transfer-Encoding: chunked") + chunks)
                self.assert_refusal(read_reply(connection, "POST"))
                connection.sendall(f"HEAD /data/{self.kept} HTTP/1.1\r\nHost: x\r\n\r\n".encode("ascii"))
                self.assertEqual(200, read_reply(connection, "HEAD").status)
            # Pipelined: what stands behind a refused body is a request.
            connection.sendall(
                self.head(body, f"Content-Length: {len(body)}")
                + body
                + f"GET /data/{object_id(b'x')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("ascii")
            )
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            self.assertEqual([b"507", b"404"], re.findall(rb"HTTP/1\.1 (\d+)", received))
        self.assert_nothing_new()

    def test_the_connection_goes_on_after_large_chunks(self) -> None:
        """
        Bodies in chunks of which so much waits already, when they are refused, that reading has been paused: it goes on.
        """
        body = body_of(11, 1_000_000)
        request = self.head(body, "Transfer-Encoding: chunked")
        request += b"".join(b"%x\r\n%s\r\n" % (50_000, body[at : at + 50_000]) for at in range(0, len(body), 50_000))
        request += b"0\r\n\r\n"

        def work() -> None:
            with connect(("127.0.0.1", self.server.port)) as connection:
                for _ in range(10):
                    connection.sendall(request)
                    self.assert_refusal(read_reply(connection, "POST"))
                connection.sendall(f"HEAD /data/{self.kept} HTTP/1.1\r\nHost: x\r\n\r\n".encode("ascii"))
                self.assertEqual(200, read_reply(connection, "HEAD").status)

        in_parallel(8, lambda _: work())
        self.assert_nothing_new()

    def test_large_bodies_are_swallowed(self) -> None:
        """A client that sends 8 MiB before it reads still reads why not."""
        body = body_of(5, 8 * MIB)
        with self.server.client() as client:
            self.assert_refusal(client.post(f"/data/{object_id(body)}", body))
            self.assertEqual(200, client.head(f"/data/{self.kept}").status)
        self.assert_nothing_new()

    def test_all_else_works(self) -> None:
        """When it is full one can read, list, remove, and store again what is there already."""
        with self.server.client() as client:
            client.save("data", body_of(6, 1000))
            self.assert_refusal(client.post(f"/data/{object_id(b'x')}", b"x"))
            self.assertEqual(self.BYTES - 1000, len(client.get(f"/data/{self.kept}").body))
            self.assertEqual(2, len(client.list("data")))
            self.assertEqual(200, client.post("/laptop/?create=true").status)
            # A client that lost its answer may send it again; that needs no room, and if it is refused then as full.
            again = client.post(f"/data/{self.kept}", body_of(1, self.BYTES - 1000))
            self.assertIn(again.status, (200, REFUSED))
            lock = client.save("locks", body_of(7, reserve_of(self.BYTES)))
            self.assert_refusal(client.post(f"/locks/{object_id(b'x')}", b"x"))
            self.assertEqual(200, client.delete(f"/locks/{lock}").status)
            self.assertEqual(200, client.delete(f"/data/{object_id(body_of(6, 1000))}").status)
        self.assert_nothing_new()

    def test_every_type(self) -> None:
        """Only locks and indexes have the reserve; the config counts like all others."""
        with self.server.client() as client:
            client.save("data", body_of(6, 1000))
            for kind in ("data", "keys", "snapshots"):
                self.assert_refusal(client.post(f"/{kind}/{object_id(b'x')}", b"x"))
            self.assert_refusal(client.post("/config", b"x"))
            for kind in ("locks", "index"):
                self.assertEqual(200, client.post(f"/{kind}/{object_id(b'x')}", b"x").status)
                self.assertEqual(200, client.delete(f"/{kind}/{object_id(b'x')}").status)
            self.assertEqual(200, client.delete(f"/data/{object_id(body_of(6, 1000))}").status)
            self.assertEqual(200, client.post("/config", b"x" * 1000).status)
            self.assert_refusal(client.post(f"/data/{object_id(b'x')}", b"x"))
            self.assertEqual(200, client.delete("/config").status)
        self.assert_nothing_new()

    def is_receiving(self) -> bool:
        """Whether an upload is on its way."""
        opened = self.server.open_files_below(self.data)
        return any(not path.startswith(f"{self.data}/.rest-server/") for path in opened)

    def test_uploads_on_their_way_hold_their_room(self) -> None:
        """What has begun with a length will not fail for want of room; what breaks off gives it back."""
        body, other = body_of(8, 700_000), body_of(9, 400_000)
        path, path_of_other = f"/data/{object_id(body)}", f"/data/{object_id(other)}"
        ends: tuple[Callable[[socket.socket], None], ...] = (
            lambda connection: connection.close(),
            lambda connection: connection.shutdown(socket.SHUT_WR),
            lambda connection: connection.sendall(body[100_000:]),
        )
        with self.server.client() as client:
            self.assertEqual(200, client.delete(f"/data/{self.kept}").status)
            for end in ends:
                with connect(("127.0.0.1", self.server.port)) as connection:
                    connection.sendall(self.head(body, f"Content-Length: {len(body)}") + body[:100_000])
                    wait_until(self.is_receiving, what="the beginning of the upload")
                    self.assert_refusal(client.post(path_of_other, other))
                    end(connection)
                    if end is ends[-1]:
                        self.assertEqual(200, read_reply(connection, "POST").status)
                        self.assertEqual(200, client.delete(path).status)
                    wait_until(lambda: client.post(path_of_other, other).status == 200, what="the room")
                    self.assertEqual(200, client.delete(path_of_other).status)
        self.before.discard(f"data/{self.kept[:2]}/{self.kept}")
        self.assert_nothing_new()

    def test_wrong_content(self) -> None:
        """A body that is not what its name says, and one for a repository that is not there, hold nothing afterwards."""
        path, body = f"/data/{object_id(b'other')}", body_of(10, 900)
        with self.server.client() as client:
            for turn in range(6):
                # The one before gives its room back a moment after its answer.
                wait_until(
                    lambda: client.post(path, iter([body]) if turn % 2 else body).status == 400,
                    what="the room of the one before",
                )
                self.assertEqual(404, client.post(f"/missing/data/{object_id(b'x')}", b"x").status)
        self.assert_nothing_new()


POLICY = """
[[rule]]
users = ["root"]
repositories = ["**"]
rights = "full"
create = true

[[rule]]
users = ["*"]
repositories = ["{user}/*"]
rights = "full"
create = true
quota = "1MiB"
max-objects = 12

[users.alice]
quota = "ALICE"

[users."*"]
quota = "1.5 MiB"
"""


class PolicyQuotaCase(SynchronousTestCase):
    """A server with a policy file that limits repositories and users."""

    every_server: tuple[str, ...] = ()
    EACH = 100_000

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 100 * MIB)
        self.data = self.scratch / "data"
        self.users = self.scratch / "users"
        self.users.write_text("".join(sha_line(user, user) for user in ("root", "alice", "bob", "carol")))
        self.policy = self.scratch / "policy"
        self.write_policy("2.5 MiB")

    def write_policy(self, alice: str) -> None:
        """Write the file."""
        self.policy.write_text(POLICY.replace("ALICE", alice))

    def start(self, *flags: str) -> ServerProcess:
        """Start a server."""
        return start_server(self, self.data, "--htpasswd-file", str(self.users), "--policy", str(self.policy), *flags)

    def fill(self, client: Client, repository: str, each: int = EACH) -> tuple[int, Reply]:
        """Upload to a repository until it is refused; how many were stored, and the refusal."""
        client.create_repository(repository)
        for number in range(100):
            # Not the same in two repositories.
            body = body_of(seed_of(repository, number, each), each)
            reply = client.post(f"{repository}data/{object_id(body)}", body)
            if reply.status != 200:
                self.assertEqual(REFUSED, reply.status, reply)
                return number, reply
        raise AssertionError(f"{repository} is never full")


class PolicyLimitsTests(PolicyQuotaCase):
    """Limits of a policy file: for each repository, for each user; all hold."""

    def test_all_hold(self) -> None:
        """The repository's, the user's and the server's, each with its own words; others are not touched."""
        server = self.start("--max-size", "4MiB")
        with server.client("alice", "alice") as alice, server.client("bob", "bob") as bob:
            stored_, refusal = self.fill(alice, "/alice/laptop/")
            self.assertEqual(10, stored_)
            self.assertRegex(refusal.reason, rf"^quota of 1 MiB for repository alice/laptop exceeded: {UPLOAD}$")
            stored_, refusal = self.fill(alice, "/alice/desktop/")
            self.assertEqual(10, stored_)
            self.assertRegex(refusal.reason, r"^quota of 1 MiB for repository alice/desktop exceeded: upload of ")
            stored_, refusal = self.fill(alice, "/alice/phone/")
            self.assertEqual(6, stored_)
            self.assertRegex(refusal.reason, rf"^quota of 2\.50? MiB for alice exceeded: {UPLOAD}$")
            assert_exact(alice, self.data, 5 * MIB // 2, repository="/alice/phone/", below="alice/")
            self.fill(alice, "/alice/phone/")
            stored_, refusal = self.fill(bob, "/bob/laptop/")
            self.assertEqual(10, stored_)
            stored_, refusal = self.fill(bob, "/bob/desktop/")
            self.assertEqual(5, stored_)
            self.assertRegex(refusal.reason, r"^quota of 1\.50? MiB for bob exceeded: upload of ")
        with server.client("root", "root") as root:
            # No limit for a repository in root's rule; the folder's owner still has no more than the user's quota.
            body = body_of(5, 200_000)
            refusal = root.post(f"/alice/laptop/data/{object_id(body)}", body)
            self.assertEqual(REFUSED, refusal.status)
            self.assertRegex(refusal.reason, r"^quota of 2\.50? MiB for alice exceeded: upload of ")
            stored_, refusal = self.fill(root, "/shared/")
            self.assertEqual((4 * MIB - used(self.data)) // self.EACH, 0)
            self.assertRegex(refusal.reason, rf"^quota of 4 MiB for this server exceeded: {UPLOAD}$")
            assert_exact(root, self.data, 4 * MIB, repository="/shared/")
        self.assertEqual([], surplus(self.data))

    def test_the_number_of_objects(self) -> None:
        """C{max-objects}: so many and no more, whatever their size; room is made by removing."""
        server = self.start()
        with server.client("alice", "alice") as alice:
            stored_, refusal = self.fill(alice, "/alice/laptop/", 100)
            self.assertEqual(12, stored_)
            self.assertIn("alice/laptop", refusal.reason)
            self.assertTrue(refusal.reason.isascii() and refusal.reason.isprintable())
            self.assertEqual(REFUSED, alice.post("/alice/laptop/config", b"x").status)
            name = next(iter(alice.list("data", "/alice/laptop/")))
            self.assertEqual(200, alice.delete(f"/alice/laptop/data/{name}").status)
            self.assertEqual(200, alice.post("/alice/laptop/config", b"x").status)
            self.assertEqual(REFUSED, alice.post(f"/alice/laptop/data/{object_id(b'y')}", b"y").status)
            # Another repository has its own.
            self.assertEqual(12, self.fill(alice, "/alice/desktop/", 100)[0])
        with server.client("root", "root") as root:
            self.assertEqual(200, root.post(f"/alice/laptop/data/{object_id(b'y')}", b"y").status)


class PolicyQuotaTests(PolicyQuotaCase):
    """Limits of a policy file, with many at once and while they change."""

    def test_at_once(self) -> None:
        """Many uploads of one user to several repositories at once: none of the limits is exceeded by a byte."""
        server = self.start()
        repositories = tuple(f"/alice/{name}/" for name in ("laptop", "desktop", "phone", "camera"))
        with server.client("root", "root") as root:
            for repository in repositories:
                root.create_repository(repository)
        actions = {"upload": 5, "twin": 1, "again": 1, "delete": 3, "cut": 1}
        storm = Storm(
            server, self.data, 1, actions, repositories=repositories, longest=200_000, user="alice", clients=8
        )
        storm.rage(SECONDS / 2)
        settle(server, self.data)
        for repository in repositories:
            objects = stored(self.data, repository[1:])
            bulk = [size for path, size in objects.items() if kind_of(path) not in WITH_RESERVE]
            self.assertLessEqual(len(bulk), 12)
            self.assertLessEqual(sum(bulk), MIB)
            self.assertLessEqual(sum(objects.values()), MIB + reserve_of(MIB))
        self.assertLessEqual(used(self.data, "alice/"), 5 * MIB // 2 + reserve_of(5 * MIB // 2))

    def test_changed_while_it_runs(self) -> None:
        """After SIGHUP a larger quota lets uploads in at once, and a smaller one keeps them out."""
        server = self.start()
        with server.client("alice", "alice") as alice:
            for name in ("laptop", "desktop", "phone"):
                self.fill(alice, f"/alice/{name}/")
            body = body_of(5, 300_000)
            path = f"/alice/phone/data/{object_id(body)}"
            for alices, status in (("10 MiB", 200), ("1 MiB", REFUSED), ("10 MiB", 200)):
                self.write_policy(alices)
                reloads = sum("Reloaded policy" in line for line in server.err)
                server.signal(signal.SIGHUP)
                wait_until(lambda: sum("Reloaded policy" in line for line in server.err) > reloads, what="the reload")
                reply = alice.post(path, body)
                self.assertEqual(status, reply.status, reply)
                if status == REFUSED:
                    self.assertRegex(reply.reason, r"^quota of 1 MiB for alice exceeded: upload of ")
                else:
                    self.assertEqual(200, alice.delete(path).status)

    def test_a_first_quota_while_it_runs(self) -> None:
        """A policy without quotas gets one: what is there already counts."""
        self.policy.write_text('[[rule]]\nusers = ["*"]\nrepositories = ["{user}/*"]\nrights = "full"\ncreate = true\n')
        server = self.start()
        with server.client("alice", "alice") as alice:
            alice.create_repository("/alice/laptop/")
            for number in range(30):
                alice.save("data", body_of(number, self.EACH), "/alice/laptop/")
            self.write_policy("1 MiB")
            server.signal(signal.SIGHUP)
            server.wait_for_line("Reloaded policy")
            body = body_of(99, self.EACH)

            def refused() -> bool:
                reply = alice.post(f"/alice/laptop/data/{object_id(body)}", body)
                if reply.status == 200:
                    alice.delete(f"/alice/laptop/data/{object_id(body)}")
                return reply.status == REFUSED

            wait_until(refused, 10, "the new quota")
        self.assertIsNone(server.said("not enforced"))


class SmallDiskCase(SynchronousTestCase):
    """A server on a small file system of its own."""

    every_server: tuple[str, ...] = ()
    skip = why_no_tmpfs()
    SIZE_BYTES = 64 * MIB
    #: File systems give whole blocks, and new directories some more.
    SLACK_BYTES = 64 << 10

    def upload_until_refused(self, server: ServerProcess, length: int, kind: str = "data", clients: int = 8) -> Reply:
        """Several clients upload until each is refused; one of the refusals."""
        refusals: list[Reply] = []
        failures: list[str] = []

        def work(number: int) -> None:
            with server.client() as client:
                for turn in range(1000):
                    body = body_of(seed_of(number, turn, length, kind), length)
                    in_chunks = turn % 2 == 1
                    reply = client.post(f"/{kind}/{object_id(body)}", iter([body]) if in_chunks else body)
                    if reply.status == REFUSED:
                        refusals.append(reply)
                        return
                    if reply.status != 200:
                        failures.append(f"{reply.status} {reply.reason}")
                        return

        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)
        return refusals[0]

    def free(self, data: Path) -> int:
        """What the file system has left."""
        status = os.statvfs(data)
        return status.f_bavail * status.f_frsize

    def begin(self, *flags: str) -> tuple[ServerProcess, Path]:
        """A server with a repository on a small disk."""
        server, data = start_on_tmpfs(self, str(self.SIZE_BYTES), *flags)
        with server.client() as client:
            client.create_repository()
        return server, data


class FullDiskTests(SmallDiskCase):
    """A file system that is really full."""

    def test_full(self) -> None:
        """ENOSPC is 507, nothing is left, removing works, and then storing again."""
        for flags in ((), ("--max-size", "1GiB")):
            server, data = self.begin(*flags)
            refusal = self.upload_until_refused(server, 900_000)
            self.assertRegex(refusal.reason, "no space left on the server's disk|would have less")
            refusal = self.upload_until_refused(server, 40_000)
            settle(server, data)
            self.assertEqual([], surplus(data))
            found = stored(data)
            self.assertGreater(sum(found.values()), self.SIZE_BYTES * 8 // 10)
            for path in found:
                self.assertEqual(path.rpartition("/")[2], object_id((data / path).read_bytes()))
            with server.client() as client:
                for path in list(found)[::2]:
                    self.assertEqual(200, client.delete(f"/data/{path.rpartition('/')[2]}").status)
                client.save("data", body_of(1, 10 * MIB))
                self.assertEqual(set(found) & set(stored(data)), set(list(found)[1::2]))
            self.assertIsNone(server.said("Traceback"))

    def test_a_quota_on_a_full_disk(self) -> None:
        """After the disk was full, and with removals in that time, the quota is as exact as ever."""
        limit = 60 * MIB
        server, data = self.begin("--max-size", str(limit))
        # Not ours, and it takes what the quota would allow.
        (data.parent / "others").write_bytes(bytes(30 * MIB))
        self.upload_until_refused(server, 700_000)
        self.upload_until_refused(server, 3_000)
        with server.client() as client:
            for path in list(stored(data))[::3]:
                self.assertEqual(200, client.delete(f"/data/{path.rpartition('/')[2]}").status)
            (data.parent / "others").unlink()
            assert_exact(client, data, limit)
        self.assertIsNone(server.said("Traceback"))


class MinFreeTests(SmallDiskCase):
    """C{--min-free}."""

    def test_min_free(self) -> None:
        """Uploads never take what is to stay free; locks may take a hundredth of the disk of it."""
        for given, kept in (("20MiB", 20 * MIB), ("25%", self.SIZE_BYTES // 4)):
            server, data = self.begin("--min-free", given)
            refusal = self.upload_until_refused(server, 700_000)
            self.assertTrue(refusal.reason.isascii() and refusal.reason.isprintable(), refusal)
            self.assertRegex(refusal.reason, "free")
            settle(server, data)
            self.assertGreaterEqual(self.free(data), kept - self.SLACK_BYTES)
            self.assertLess(self.free(data), kept + 2 * 8 * 700_000)
            self.upload_until_refused(server, 3_000)
            settle(server, data)
            self.assertGreaterEqual(self.free(data), kept - self.SLACK_BYTES)
            self.assertLess(self.free(data), kept + 100_000)
            self.upload_until_refused(server, 3_000, "locks")
            settle(server, data)
            self.assertGreaterEqual(self.free(data), kept - self.SIZE_BYTES // 100 - self.SLACK_BYTES)
            self.assertLess(self.free(data), kept)
            self.assertEqual([], surplus(data))
            with server.client() as client:
                self.assertEqual(REFUSED, client.post(f"/data/{object_id(b'x')}", b"x").status)
                for path in list(stored(data)):
                    kind = kind_of(path)
                    self.assertEqual(200, client.delete(f"/{kind}/{path.rpartition('/')[2]}").status)
                client.save("data", body_of(1, 10 * MIB))
            self.assertIsNone(server.said("Traceback"))

    def test_min_free_with_large_uploads(self) -> None:
        """At no moment of many large uploads at once there is less."""
        for framing in ("length", "chunks"):
            server, data = self.begin("--min-free", "20MiB")
            statuses: list[int] = []
            over = threading.Event()
            least = [self.SIZE_BYTES]

            def look(data: Path = data, over: threading.Event = over, least: list[int] = least) -> None:
                while not over.wait(0.002):
                    least[0] = min(least[0], self.free(data))

            def work(
                number: int,
                server: ServerProcess = server,
                statuses: list[int] = statuses,
                in_chunks: bool = framing == "chunks",
            ) -> None:
                body = body_of(seed_of("large", number), 12 * MIB)
                with server.client() as client:
                    reply = client.post(
                        f"/data/{object_id(body)}", pieces(body, random.Random(number)) if in_chunks else body
                    )
                    statuses.append(reply.status)

            looking = threading.Thread(target=look)
            looking.start()
            try:
                in_parallel(8, work)
            finally:
                over.set()
                looking.join()
            self.assertEqual(set(), set(statuses) - {200, REFUSED})
            self.assertGreaterEqual(least[0], 20 * MIB - self.SLACK_BYTES, framing)

    def test_min_free_while_receiving(self) -> None:
        """What others take while an upload comes in counts: it is refused before the disk has less."""
        server, data = self.begin("--min-free", "20MiB")
        body = body_of(2, 30 * MIB)
        with connect(("127.0.0.1", server.port)) as connection:
            head = f"POST /data/{object_id(body)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode("ascii") + body[:MIB])
            wait_until(lambda: server.open_files_below(_seen_by(data)))
            (data.parent / "others").write_bytes(bytes(20 * MIB))
            connection.sendall(body[MIB:])
            reply = read_reply(connection, "POST")
            self.assertEqual(REFUSED, reply.status, reply)
        settle(server, _seen_by(data))
        self.assertEqual({}, stored(data))
        self.assertEqual([], surplus(data))


def _seen_by(data: Path) -> Path:
    """The data directory of a server on a small disk as the server itself calls it."""
    return Path("/", *data.parts[4:])


class ResticTests(SynchronousTestCase):
    """The real restic on a small disk: it says why, nothing is damaged, and one can make room."""

    every_server: tuple[str, ...] = ()
    skip = SKIP_WITHOUT_RESTIC or why_no_tmpfs()

    #: How the server is started, what restic shall say, and whether there is room for restic's own locks and indexes.
    VARIANTS = (
        (("--max-size", "40MiB"), r"507 quota of 40 MiB for this server exceeded", True),
        (("--min-free", "20MiB"), r"507 .*free", True),
        ((), r"507 no space left on the server's disk", False),
    )

    def test_a_backup_that_does_not_fit(self) -> None:
        """
        C{backup} fails with the reason, C{check} finds nothing wrong, C{forget --prune} makes room where there is a reserve,
        and then backups work again. All three at the same time: restic waits most of it.
        """
        scratch = scratch_directory(self, 200 * MIB)
        small, large = scratch / "small", scratch / "large"
        make_tree(small, seed=1, size_bytes=8 * MIB)
        large.mkdir()
        for number in range(16):
            (large / f"{number}.bin").write_bytes(random_bytes(number, 5 * MIB))
        servers = [start_on_tmpfs(self, "64m", *flags) for flags, _, _ in self.VARIANTS]
        failures: list[str] = []

        def live(number: int) -> None:
            (server, data), (flags, reason, reserve) = servers[number], self.VARIANTS[number]
            directory = scratch / str(number)
            directory.mkdir()
            try:
                self.live(server, data, directory, small, large, reason, reserve)
            except BaseException as error:
                failures.append(f"{' '.join(flags) or 'no flags'}: {error!r}")

        threads = [threading.Thread(target=live, args=(number,)) for number in range(len(self.VARIANTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)
        for server, _ in servers:
            self.assertIsNone(server.said("Traceback"))

    def live(
        self, server: ServerProcess, data: Path, directory: Path, small: Path, large: Path, reason: str, reserve: bool
    ) -> None:
        """One of them."""
        restic = ImpatientRestic(self, f"{server.url}/", directory, "--pack-size", "4")
        restic.create()
        restic.succeed("backup", str(small))
        first = str(restic.snapshots()[0]["id"])
        refused = restic.run("backup", str(large)) if PATIENT else restic.run_until(reason, "backup", str(large))
        assert refused.status != 0, refused
        assert re.search(reason, refused.out + refused.err), refused
        settle(server, _seen_by(data))
        assert surplus(data) == [], surplus(data)
        assert len(restic_snapshots(data)) == 1
        without = () if reserve else ("--no-lock",)
        checked = restic.succeed("check", "--read-data", *without)
        assert "no errors were found" in checked, checked
        before = used(data)
        if reserve:
            assert before > 30 * MIB, before
            restic.succeed("forget", first, "--prune", "--max-repack-size", "0")
            after = used(data)
            assert after < before - 8 * MIB, (before, after)
            restic.succeed("backup", str(small))
            assert "no errors were found" in restic.succeed("check", "--read-data")


def restic_snapshots(data: Path) -> list[str]:
    """The snapshots on disk."""
    return [path for path in stored(data) if kind_of(path) == "snapshots"]


class BadQuotaTests(SynchronousTestCase):
    """Values that make no sense."""

    def test_bad_values(self) -> None:
        """One clear line that names flag and value, and a status of 1 or 2; both front doors."""
        scratch = scratch_directory(self)
        for door in (REST_SERVER, TWISTD):
            for flag, value in (
                ("--max-size", "10XB"),
                ("--max-size", "-1"),
                ("--max-size", "lots"),
                ("--max-size", ""),
                ("--min-free", "120%"),
                ("--min-free", "-1%"),
                ("--min-free", "5 of them"),
                ("--min-free", "%"),
            ):
                if door == TWISTD and value not in ("10XB", "120%"):
                    continue  # that it is the same is seen
                flags = ["--no-auth", "--path", str(scratch / "data"), "--listen", "127.0.0.1:0", f"{flag}={value}"]
                ended = test_process.run_to_end(scratch, command_line(door, flags))
                self.assertIn(ended.status, (1, 2), ended)
                self.assertEqual(1, len(ended.err.splitlines()), ended)
                self.assertNotIn("Traceback", ended.err)
                self.assertIn(flag, ended.err)
                self.assertIn(value, ended.err)
        self.assertFalse((scratch / "data").exists())


class UsageTests(QuotaCase):
    """C{rest-server usage}."""

    def test_usage(self) -> None:
        """The repositories with their sizes as they are on disk, whether a server runs or not."""
        server = self.start()
        sizes = {}
        with server.client() as client:
            for number, repository in enumerate(("", "one", "one/two")):
                client.create_repository(f"/{repository}/" if repository else "/")
                client.save("data", body_of(number, 100_000 + number), f"/{repository}/" if repository else "/")
                client.save("keys", body_of(number, 400), f"/{repository}/" if repository else "/")
                client.post(f"/{repository}/config" if repository else "/config", b"x" * 155)
                sizes[repository] = 100_555 + number
        (self.data / ".htpasswd").write_bytes(b"x" * 1000)
        (self.data / "one" / "README").write_bytes(b"x" * 1000)
        for running in (True, False):
            finished = subprocess.run(
                [installed("rest-server"), "usage", "--path", str(self.data), "--json"],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            self.assertEqual((0, ""), (finished.returncode, finished.stderr))
            told = json.loads(finished.stdout)
            found = {
                str(entry.get("repository", entry.get("name", entry.get("path")))).strip("/"): entry
                for entry in told["repositories"]
            }
            self.assertEqual(set(sizes), set(found), told)
            for name, size in sizes.items():
                self.assertIn(size, found[name].values(), told)
            if running:
                server.stop()


def kill_all(server: ServerProcess) -> None:
    """C{kill -9} of a server and its workers, as when the machine goes down."""
    workers = server.workers()
    server.process.kill()
    for pid in workers:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    server.wait()


class SharedFillTests(FillTests):
    """The same with workers."""

    every_server = TWO


class SharedStormTests(StormTests):
    """The same with workers, and with workers that die or are replaced."""

    every_server = TWO

    def test_killed_workers(self) -> None:
        """Workers that are killed in mid-upload: the server goes on, never has too much, and is soon exact."""
        server = self.start()
        self.create_all(server)
        storm = Storm(server, self.data, 5, self.ACTIONS, repositories=self.REPOSITORIES, tolerant=True)
        source = random.Random(5)
        storm.begin()
        with Watch(self.data, server, pause_s=0.05) as watch:
            for _ in range(max(ROUNDS // 2, 2)):
                time.sleep(source.uniform(0.2, 0.8))
                pids = wait_until(lambda: len(server.workers()) == 2 and server.workers(), what="two workers")
                os.kill(source.choice(pids), signal.SIGKILL)
            time.sleep(0.3)
            storm.end()
        self.assertLessEqual(watch.bulk_bytes, LIMIT_BYTES)
        self.assertLessEqual(watch.all_bytes, LIMIT_BYTES + reserve_of(LIMIT_BYTES))
        for path in storm.damaged:
            path.unlink(missing_ok=True)
        self.assert_statuses(storm, 200, REFUSED, 404)
        wait_until(lambda: len(server.workers()) == 2, what="two workers")
        settle(server, self.data)
        # What heals a damaged file has a name for a moment, and is swept at the next start if its worker is killed then.
        self.assertEqual([], [path for path in surplus(self.data) if "/.tmp/" not in f"/{path}"])
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)
        self.assertIsNone(server.said("Traceback"))

    def test_replaced_workers(self) -> None:
        """SIGUSR2 in a storm: nothing is lost or counted twice."""
        server = self.start()
        self.create_all(server)
        storm = Storm(server, self.data, 6, self.ACTIONS, repositories=self.REPOSITORIES, tolerant=True)
        before = server.workers()
        storm.begin()
        time.sleep(0.4)
        server.signal(signal.SIGUSR2)
        wait_until(lambda: len(server.workers()) == 2 and not set(before) & set(server.workers()), what="new workers")
        storm.end()
        self.assert_statuses(storm, 200, REFUSED, 404)
        settle(server, self.data)
        with server.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES)


class SharedKilledTests(KilledTests):
    """The same with workers."""

    every_server = TWO

    def test_killed_parent(self) -> None:
        """
        Only the parent is killed: what its workers had begun comes to its end, soon and beside the next server, and is in the
        sum.
        """
        server = self.start()
        for number in range(max(ROUNDS // 2, 1)):
            self.storm_until_killed(server, 200 + number, server.process.kill)
            server.wait()
            server = self.start()
            with server.client() as client:
                assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)

    def test_upload_that_outlives_its_server(self) -> None:
        """A worker whose parent was killed does not store what it had begun: the next server may have counted already."""
        server = self.start()
        with server.client() as client:
            client.save("data", body_of(1, 1000))
        body = body_of(2, 4 * MIB)
        with connect(("127.0.0.1", server.port)) as connection:
            head = f"POST /data/{object_id(body)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode("ascii") + body[:MIB])
            own = f"{self.data}/.rest-server/"
            wait_until(lambda: [path for path in server.open_files_below(self.data) if not path.startswith(own)])
            server.process.kill()
            # Not for the end of its output: the worker has that, too.
            server.process.wait()
            again = self.start()
            connection.sendall(body[MIB:])
            self.assertEqual(503, read_reply(connection, "POST").status)
        with again.client() as client:
            assert_exact(client, self.data, LIMIT_BYTES, patience_s=NOTICED_S)


class SharedRestartTests(RestartTests):
    """The same with workers."""

    every_server = TWO


class SharedRefusalTests(RefusalTests):
    """The same with workers."""

    every_server = TWO


class SharedPolicyQuotaTests(PolicyQuotaTests):
    """The same with workers."""

    every_server = TWO


class SharedMinFreeTests(MinFreeTests):
    """The same with workers. None sees what the other is about to write, up to 4 MiB until it looks again."""

    every_server = TWO
    SLACK_BYTES = 5 << 20
