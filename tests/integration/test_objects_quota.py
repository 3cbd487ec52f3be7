"""
Limits that several servers on one bucket share: they are never exceeded, also when servers are killed, and what a killed server
had leased is used by the others. With SeaweedFS; with C{OBJECTS=all} (C{make objects-check}) longer.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import random
import threading
import time
import urllib.parse
import xml.etree.ElementTree
from functools import partial

from ..support.client import object_id, random_bytes
from ..support.htpasswd import bcrypt_line
from ..support.processes import process_test
from ..support.quick_leases import BACK_S
from ..support.server import LISTENING, QUICK_LEASES, ServerProcess
from ..support.waiting import PATIENCE_S, wait_until
from .test_objects import ALL, MIB, ObjectsCase

FRONT_ENDS = 3
UPLOADERS = 16
KILLS = 6 if ALL else 2
LIMIT_MIB = 320 if ALL else 80
#: The sizes of objects.
LEAST_BYTES, MOST_BYTES = 20_000, 300_000
#: An uploader ends after so many refusals in a row.
REFUSALS = 8


class Crowd:
    """
    Uploaders at several servers, of which some are killed.

    @ivar acknowledged: the size of each object that was, by its name.
    @ivar may_end: whether uploaders end that are refused. Before, what killed servers had leased may be all that is left, and
        comes back.
    """

    def __init__(self, servers: list[ServerProcess]) -> None:
        self.servers = servers
        self._seeds = itertools.count(1)
        self._lock = threading.Lock()
        self.acknowledged: dict[str, int] = {}
        self.refused = 0
        self.others: dict[int | None, int] = {}
        self.may_end = threading.Event()

    def has_stored_more_than(self, size_bytes: int) -> bool:
        """Whether more bytes were acknowledged."""
        return sum(list(self.acknowledged.values())) > size_bytes

    def upload(self, number: int) -> None:
        """One uploader: until it was refused several times in a row, however small its objects are."""
        chosen = random.Random(number)
        refusals = 0
        while refusals < REFUSALS or not self.may_end.is_set():
            with self._lock:
                seed = next(self._seeds)
            size = chosen.randint(LEAST_BYTES, MOST_BYTES if not refusals else LEAST_BYTES + 1)
            status = self.post(number, chosen.choice(self.servers), random_bytes(seed, size))
            if status == 507:
                refusals += 1
                if refusals >= REFUSALS:
                    self.may_end.wait(0.1)
            elif status == 200:
                refusals = 0
            else:
                time.sleep(0.1)

    def post(self, number: int, server: ServerProcess, body: bytes) -> int | None:
        """Upload an object; C{None} if the server is gone."""
        name = object_id(body)
        status: int | None = None
        with contextlib.suppress(OSError), server.client() as client:
            status = client.post(f"/user-{number % 4}/host-{number}/data/{name}", body).status
        with self._lock:
            if status == 200:
                self.acknowledged[name] = len(body)
            elif status == 507:
                self.refused += 1
            else:
                self.others[status] = self.others.get(status, 0) + 1
        return status


class SharedLimitCase(ObjectsCase):
    """Servers with short times for leases."""

    def serve_quickly(self, *flags: str, state: str, listen: str = "127.0.0.1:0") -> ServerProcess:
        """Start one."""
        server = self.launch(*flags, state=state, listen=listen, door=QUICK_LEASES, proven_at=self.engine.endpoint)
        server.wait_for_line(LISTENING)
        return server

    def stored(self) -> dict[str, int]:  # type: ignore[override]
        """The size of each of restic's objects by its key, as the engine says it."""
        found: dict[str, int] = {}
        token = ""
        while True:
            query = "list-type=2" + (f"&continuation-token={urllib.parse.quote(token, safe='')}" if token else "")
            root = xml.etree.ElementTree.fromstring(self.engine.request("GET", f"/{self.bucket}", query).body)
            for element in root.findall("{*}Contents"):
                key = element.findtext("{*}Key") or ""
                if ".rest-server/" not in key:
                    found[key] = int(element.findtext("{*}Size") or "0")
            token = root.findtext("{*}NextContinuationToken") or ""
            if not token:
                return found

    def leases(self) -> list[str]:
        """The keys of the shared state."""
        return [key for key in self.engine.keys(self.bucket) if "/quota/" in key]


@process_test
class SharedLimitTests(SharedLimitCase):
    """The limit of a whole bucket."""

    def test_kills(self) -> None:
        """
        Sixteen uploaders fill a bucket through three servers, of which one after the other is killed and started anew: the
        limit is never exceeded, all that was acknowledged is there, and in the end it is full to the last object, although
        the killed servers had leased a part of it.
        """
        limit = LIMIT_MIB * MIB
        flags = ("--max-size", f"{LIMIT_MIB}MiB")
        servers = [self.serve_quickly(*flags, state=f"state-{number}") for number in range(FRONT_ENDS)]
        with servers[0].client() as client:
            for number in range(UPLOADERS):
                client.create_repository(f"/user-{number % 4}/host-{number}/")
        crowd = Crowd(servers)
        most = 0
        with concurrent.futures.ThreadPoolExecutor(UPLOADERS) as pool:
            uploads = [pool.submit(crowd.upload, number) for number in range(UPLOADERS)]
            try:
                for kill in range(KILLS):
                    part = limit * (kill + 1) // (KILLS + 2)
                    wait_until(
                        partial(crowd.has_stored_more_than, part),
                        timeout_s=2 * BACK_S + PATIENCE_S,
                        what="uploads before the next kill",
                    )
                    victim = kill % FRONT_ENDS
                    port = servers[victim].port
                    servers[victim].kill()
                    most = max(most, sum(self.stored().values()))
                    servers[victim] = self.serve_quickly(*flags, state=f"new-{kill}", listen=f"127.0.0.1:{port}")
            finally:
                crowd.may_end.set()
            while not all(each.done() for each in uploads):
                most = max(most, sum(self.stored().values()))
                time.sleep(0.5)
            for each in uploads:
                each.result()
        self.assertLessEqual(most, limit)
        filled = sum(self.stored().values())
        told = f"{KILLS} kills, {crowd.refused} refusals, {crowd.others} other answers"
        print(f"full for the first time: {filled:,} of {limit:,} bytes, {told}")
        # Then what the killed servers had leased comes back, and is used.
        deadline_s = time.monotonic() + 2 * BACK_S + PATIENCE_S
        while limit - sum(self.stored().values()) >= LEAST_BYTES and time.monotonic() < deadline_s:
            with concurrent.futures.ThreadPoolExecutor(UPLOADERS) as pool:
                list(pool.map(crowd.upload, range(UPLOADERS)))
            most = max(most, sum(self.stored().values()))
            time.sleep(1.0)
        stored = self.stored()
        print(f"at the end: {sum(stored.values()):,} of {limit:,} bytes")
        self.assertLessEqual(most, limit)
        self.assertLess(limit - sum(stored.values()), LEAST_BYTES)
        names = {key.rpartition("/")[2]: size for key, size in stored.items()}
        self.assertEqual(crowd.acknowledged, {name: names.get(name) for name in crowd.acknowledged})
        self.assertLessEqual(set(crowd.others), {None, 503})
        with servers[0].client() as client:
            refused = client.post(f"/user-0/host-0/data/{'0' * 64}", bytes(MIB))
        self.assertEqual(507, refused.status)
        self.assertRegex(refused.body.decode(), rf"quota of {LIMIT_MIB} MiB for this server exceeded")


@process_test
class LimitsOfUsersTests(SharedLimitCase):
    """Limits in the policy, through two servers, of which one has two workers."""

    POLICY = """
[[rule]]
repositories = ["**"]
users = ["*"]
rights = "full"
create = true
max-objects = 6

[users.alice]
quota = "1MiB"
"""

    def test_of_users_and_repositories(self) -> None:
        """
        What was stored through the other server counts, by bytes of a user and by objects of a repository; what was removed can
        be stored again; and a limit that is made lower holds at once.
        """
        policy = self.scratch / "policy.toml"
        policy.write_text(self.POLICY)
        users = self.scratch / "htpasswd"
        users.write_text(bcrypt_line("alice", "secret"))
        flags = ("--policy", str(policy), "--htpasswd-file", str(users))
        servers = [
            self.serve_quickly(*flags, state="one"),
            self.serve_quickly(*flags, "--workers", "2", state="other"),
        ]

        def post(number: int, path: str, seed: int, size: int) -> int:
            body = random_bytes(seed, size)
            with servers[number].client("alice", "secret") as client:
                return client.post(f"{path}data/{object_id(body)}", body).status

        with servers[0].client("alice", "secret") as client:
            for path in ("/alice/a/", "/alice/b/", "/bob/"):
                client.create_repository(path)
        # alice may have 1 MiB in both of her repositories.
        self.assertEqual(200, post(0, "/alice/a/", 1, 400_000))
        self.assertEqual(200, post(1, "/alice/b/", 2, 400_000))
        self.assertEqual([507, 507], [post(number, "/alice/a/", 3, 400_000) for number in (0, 1)])
        # Six objects in a repository of bob's. What one server has leased and does not use comes back after some seconds.
        for number in range(6):
            wait_until(
                lambda number=number: post(number % 2, "/bob/", 10 + number, 100) == 200,  # type: ignore[misc]
                what=f"object {number}",
            )
        self.assertEqual([507, 507], [post(number, "/bob/", 20, 100) for number in (0, 1)])
        with servers[1].client("alice", "secret") as client:
            self.assertEqual(200, client.delete(f"/alice/a/data/{object_id(random_bytes(1, 400_000))}").status)
        wait_until(lambda: post(0, "/alice/a/", 3, 400_000) == 200, what="room after a removal")
        self.assertEqual(507, post(1, "/alice/b/", 4, 400_000))
        for server in servers:
            self.assertEqual(0, server.stop())
        self.assertEqual([], [key for key in self.engine.keys(self.bucket) if key.endswith(".alive")])

    def test_without_limits(self) -> None:
        """Nothing is leased, and nothing is written for it."""
        server = self.serve_quickly(state="one")
        with server.client() as client:
            client.create_repository()
            client.save("data", b"a pack")
        self.assertEqual(0, server.stop())
        self.assertEqual([], self.leases())
