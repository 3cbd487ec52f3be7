"""
Repositories in an object store: real servers and the real restic in front of SeaweedFS, which is killed and filled; several
servers on one bucket; and engines that must be refused.

C{OBJECTS=all} says that everything is done as often as it must be shown (C{make objects-check}); by default less often.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.objects.probe import ProvenFile
from resticserver.service.object_store import PROVEN_FILE

from ..support.certificates import make_certificate
from ..support.client import Client, object_id, random_bytes
from ..support.engines import RcloneS3, RealEngine, S3Engine, SeaweedFS, new_credentials, shared_engine, start_engine
from ..support.faulty_engine import FaultyEngine, Ignored, Request
from ..support.htpasswd import bcrypt_line
from ..support.processes import process_test
from ..support.proxy import _Relay
from ..support.restic import SKIP_WITHOUT_RESTIC, ImpatientRestic, Restic, change_tree, make_tree
from ..support.scratch import contents_below, scratch_directory
from ..support.server import LISTENING, REST_SERVER, TWISTD, ServerProcess, command_line
from ..support.waiting import PATIENCE_S, wait_until

MIB = 1 << 20
ALL = os.environ.get("OBJECTS") == "all"
#: What each repository of a life cycle gets to store.
LIFE_BYTES = (160 if ALL else 12) * MIB
#: SeaweedFS lets the losers of a race wait for seconds.
RACES = 20 if ALL else 1
RACERS = 16
LOCKS = 1000 if ALL else 60
ENGINE_KILLS = 5 if ALL else 1
FRONT_END_KILLS = 3

#: The request for the marker of the bucket.
MARKER = ("GET", ".rest-server/id")
WITHOUT_SEAWEEDFS = SeaweedFS.reason()
#: What a server says on stderr before it opens anything.
ANNOUNCEMENT = re.compile(r"Object store: |Authentication |Trying what s3://")


class ObjectsCase(SynchronousTestCase):
    """
    Servers in front of a bucket of this test.

    @cvar ca_variable: the environment variable for certificates to trust.
    """

    ca_variable = "AWS_CA_BUNDLE"
    kind: type[RealEngine] = SeaweedFS
    skip = WITHOUT_SEAWEEDFS or SKIP_WITHOUT_RESTIC

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 4 * LIFE_BYTES)
        self.tree = self.scratch / "tree"
        self.use(self.make_engine())
        self.bucket = self.make_bucket()

    def make_bucket(self) -> str:
        """A bucket of this test."""
        return self.engine.new_bucket(self)

    def make_engine(self) -> RealEngine:
        """The engine of this test."""
        return shared_engine(self.kind)

    def use(self, engine: RealEngine) -> None:
        """Let the servers and restic's own S3 backend know this engine."""
        self.engine = engine
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "AZURE_"))}
        # Nobody's own files.
        variables |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        patched = mock.patch.dict(os.environ, {**variables, **engine.environment()}, clear=True)
        patched.start()
        self.addCleanup(patched.stop)

    def launch(
        self,
        *flags: str,
        bucket: str | None = None,
        state: str = "state",
        listen: str = "127.0.0.1:0",
        door: str = REST_SERVER,
        proven_at: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> ServerProcess:
        """
        Start a server and do not wait for it.

        @param bucket: and prefix; by default this test's, without one.
        @param state: its directory; each server has one of its own.
        @param proven_at: the endpoint at which the race of the start is not run, since it takes SeaweedFS ten seconds.
        """
        place = f"{self.engine.scheme}://{bucket or self.bucket}"
        directory = self.scratch / state
        if proven_at is not None:
            directory.mkdir(exist_ok=True)
            ProvenFile(str(directory / PROVEN_FILE), f"{'/'.join(place.split('/')[:3])} at {proven_at}").remember()
        arguments = ["--path", place, "--state-dir", str(directory), "--listen", listen, *flags]
        if "--htpasswd-file" not in flags:
            arguments.append("--no-auth")
        server = ServerProcess(command_line(door, arguments), self.scratch, extra)
        self.addCleanup(server.clean_up)
        return server

    def serve(
        self,
        *flags: str,
        bucket: str | None = None,
        state: str = "state",
        listen: str = "127.0.0.1:0",
        door: str = REST_SERVER,
        faulty: FaultyEngine | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> ServerProcess:
        """
        Start a server and wait until it listens; without the race of its start.

        @param faulty: the proxy through which it asks the engine.
        """
        endpoint = self.engine.endpoint if faulty is None else faulty.endpoint
        given = {**({} if faulty is None else faulty.environment()), **(extra or {})}
        server = self.launch(
            *flags, bucket=bucket, state=state, listen=listen, door=door, proven_at=endpoint, extra=given
        )
        server.wait_for_line(LISTENING)
        return server

    def proxy(self, tls: ssl.SSLContext | None = None) -> FaultyEngine:
        """A proxy in front of the engine, see L{FaultyEngine}."""
        return FaultyEngine(self, self.engine, tls=tls)

    def restic(self, url: str, name: str = "restic", *flags: str) -> ImpatientRestic:
        """A restic with a directory of its own."""
        directory = self.scratch / name
        directory.mkdir(exist_ok=True)
        return ImpatientRestic(self, url, directory, *flags)

    def restic_of_s3(self, path: str, name: str) -> Restic:
        """restic with its own S3 backend. The last C{--repo} counts."""
        return self.restic("", name, "--repo", f"s3:{self.engine.endpoint}/{path}")

    def assert_restores(self, restic: Restic, snapshot: str, expected: dict[str, str]) -> None:
        """A restored snapshot has the same files with the same bytes."""
        target = self.scratch / "restored"
        restic.succeed("restore", snapshot, "--target", str(target))
        self.assertEqual(contents_below(target / self.tree.relative_to("/")), expected)
        shutil.rmtree(target)

    def assert_whole(self, restic: Restic) -> None:
        """restic finds no error in all that is stored."""
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))

    @property
    def s3(self) -> S3Engine:
        """The engine, which speaks S3."""
        assert isinstance(self.engine, S3Engine)
        return self.engine

    def stored(self, key: str) -> bytes | None:
        """What the engine has under a key."""
        reply = self.engine.request("GET", f"/{self.bucket}/{key}")
        return reply.body if reply.status == 200 else None


class LifeCycleCase(ObjectsCase):
    """From C{init} to C{prune} and C{copy}, with nothing lost on the way."""

    def live(self, restic: Restic, whole: bool = ALL) -> None:
        """
        The life of a repository.

        @param whole: whether with C{init} itself and two snapshots more.
        """
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES if whole else LIFE_BYTES // 4)
        first = contents_below(self.tree)
        if whole:
            restic.succeed("init")
        else:
            restic.create()
        restic.succeed("backup", str(self.tree))
        change_tree(self.tree, seed=2)
        second = contents_below(self.tree)
        restic.succeed("backup", str(self.tree))
        self.assert_whole(restic)
        if whole:
            self.assert_restores(restic, str(restic.snapshots()[0]["id"]), first)
        before = set(self.engine.keys(self.bucket))
        restic.succeed("forget", "--keep-last", "1", "--prune")
        self.assertTrue(before - set(self.engine.keys(self.bucket)), "pruning removed nothing")
        if whole:
            self.assert_whole(restic)
        self.assert_restores(restic, "latest", second)
        self.assertEqual([], [key for key in self.engine.keys(self.bucket) if "/locks/" in f"/{key}"])


@process_test
class LifeCycleTests(LifeCycleCase):
    """The life of a repository, and its copy."""

    def test_plain(self) -> None:
        """Through C{twistd restic-rest}, below a prefix, with the start's race; and a copy to a second repository."""
        server = self.launch(bucket=f"{self.bucket}/some/place", door=TWISTD)
        first, second = f"{server.url}/host/first/", f"{server.url}/host/second/"
        restic = self.restic(first)
        self.live(restic, whole=True)
        other = self.restic(second, "other")
        other.create()
        password = self.scratch / "password"
        password.write_text("the password of the tests\n")
        other.succeed("copy", "--from-repo", f"rest:{first}", "--from-password-file", str(password))
        self.assert_whole(other)
        self.assert_restores(other, "latest", contents_below(self.tree))
        server.stop()
        folders = {"/".join(key.split("/")[:4]) for key in self.engine.keys(self.bucket)}
        self.assertEqual({"some/place/host/first", "some/place/host/second", "some/place/.rest-server/id"}, folders)


@process_test
class LifeCycleVariantsTests(LifeCycleCase):
    """The same over TLS, and with workers."""

    def test_tls_at_the_engine(self) -> None:
        """The engine is asked over TLS alone, by a certificate of an authority of our own."""
        certificate = make_certificate(self.scratch)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        faulty = self.proxy(context)
        server = self.serve(faulty=faulty, extra={self.ca_variable: str(certificate.authority)})
        self.live(self.restic(f"{server.url}/"))
        self.assertGreater(faulty.count("PUT", "^data/"), 0)

    def test_unknown_authority(self) -> None:
        """A certificate of an unknown authority is refused at the start."""
        certificate = make_certificate(self.scratch)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        faulty = self.proxy(context)
        server = self.launch(extra=faulty.environment())
        self.assertEqual(1, server.wait())
        self.assertIn("certificate", server.err[-1].lower())
        self.assertEqual([], faulty.log)

    def test_workers(self) -> None:
        """With two worker processes."""
        server = self.serve("--workers", "2")
        self.live(self.restic(f"{server.url}/"))


@process_test
class LifeCycleAccessTests(LifeCycleCase):
    """The same where not everything is allowed."""

    def test_private_repositories(self) -> None:
        """Users have their own folder alone."""
        users = self.scratch / "htpasswd"
        users.write_text(bcrypt_line("alice", "secret of alice") + bcrypt_line("bob", "secret of bob"))
        server = self.serve("--private-repos", "--htpasswd-file", str(users))
        self.live(self.restic(f"http://alice:secret%20of%20alice@127.0.0.1:{server.port}/alice/laptop/"))
        for user, password, path, status in (
            ("alice", "secret of alice", "/alice/laptop/config", 200),
            ("bob", "secret of bob", "/alice/laptop/config", 403),
            ("bob", "secret of bob", "/bob/laptop/config", 404),
            ("alice", "secret of bob", "/alice/laptop/config", 401),
            (None, "", "/alice/laptop/config", 401),
        ):
            with server.client(user, password) as client:
                self.assertEqual(status, client.get(path).status, (user, path))
        self.assertEqual([], [key for key in self.engine.keys(self.bucket) if key.startswith("bob")])

    def test_append_only(self) -> None:
        """Backups, checks and restores work; nothing but locks can be removed, and nothing is replaced."""
        server = self.serve("--append-only")
        restic = self.restic(f"{server.url}/")
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES // 4)
        restic.create()
        restic.succeed("backup", str(self.tree))
        change_tree(self.tree, seed=2)
        restic.succeed("backup", str(self.tree))
        before = self.engine.keys(self.bucket)
        refused = restic.run_until(
            "403 append-only: only locks may be deleted", "forget", str(restic.snapshots()[0]["id"])
        )
        self.assertNotEqual(0, refused.status)
        self.assertIn("403 append-only: only locks may be deleted", refused.out)
        with server.client() as client:
            for kind in ("data", "index", "keys", "snapshots"):
                for name in client.list(kind):
                    self.assertEqual(403, client.delete(f"/{kind}/{name}").status)
            self.assertEqual(403, client.delete("/config").status)
            self.assertEqual(403, client.post("/config", b"another").status)
            lock = client.save("locks", b"a lock")
            self.assertEqual(200, client.delete(f"/locks/{lock}").status)
        restic.succeed("unlock", "--remove-all")
        self.assertEqual(before, self.engine.keys(self.bucket))
        self.assert_whole(restic)
        self.assert_restores(restic, "latest", contents_below(self.tree))


@process_test
class SharedWithResticTests(ObjectsCase):
    """restic's own S3 backend and this server use the same bucket."""

    def setUp(self) -> None:
        super().setUp()
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES // 4)

    def test_opens_ours(self) -> None:
        """C{restic -r s3:} opens what was made through the server, and what it adds is served."""
        server = self.serve(bucket=f"{self.bucket}/prefix")
        ours = self.restic(f"{server.url}/host/")
        ours.succeed("init")
        ours.succeed("backup", str(self.tree))
        direct = self.restic_of_s3(f"{self.bucket}/prefix/host", "direct")
        self.assertEqual(1, len(direct.snapshots()))
        self.assert_whole(direct)
        change_tree(self.tree, seed=2)
        direct.succeed("backup", str(self.tree))
        self.assert_whole(direct)
        self.assertEqual(2, len(ours.snapshots()))
        self.assert_restores(ours, "latest", contents_below(self.tree))
        direct.succeed("forget", "--keep-last", "1", "--prune")
        self.assert_whole(ours)

    def test_serves_its(self) -> None:
        """A repository that restic made by its S3 backend is served, and what comes through the server it reads."""
        direct = self.restic_of_s3(f"{self.bucket}/deep/host", "direct")
        direct.succeed("init")
        direct.succeed("backup", str(self.tree))
        server = self.serve(bucket=f"{self.bucket}/deep")
        ours = self.restic(f"{server.url}/host/")
        self.assertEqual(1, len(ours.snapshots()))
        self.assert_whole(ours)
        change_tree(self.tree, seed=2)
        ours.succeed("backup", str(self.tree))
        self.assert_restores(direct, "latest", contents_below(self.tree))
        ours.succeed("forget", "--keep-last", "1", "--prune")
        self.assert_whole(direct)


@process_test
class RequestsTests(ObjectsCase):
    """How many requests an operation is, as the engine sees it."""

    def test_one_request(self) -> None:
        """
        A new object is one PUT and no HEAD, from the second on; a download and a part of one are one GET each, and a list
        is one; besides, the marker of the bucket is looked at once a second.
        """
        faulty = self.proxy()
        server = self.serve(faulty=faulty)
        pack = random_bytes(1, 300_000)
        with server.client() as client:
            client.create_repository()
            client.save("data", b"the first one")

            def requests(job: Callable[[], object]) -> list[tuple[str, str]]:
                faulty.forget()
                job()
                found = [(seen.request.kind, seen.request.key) for seen in faulty.log]
                # At most once a second.
                self.assertLessEqual(found.count(MARKER), 1)
                return [one for one in found if one != MARKER]

            name = object_id(pack)
            key = f"data/{name[:2]}/{name}"
            self.assertEqual([("PUT", key)], requests(partial(client.save, "data", pack)))
            put = faulty.seen("PUT")[0].request
            self.assertEqual("*", put.headers["if-none-match"])
            self.assert_hash_sent(put, name)
            self.assertEqual([("PUT", f"locks/{object_id(b'x')}")], requests(partial(client.save, "locks", b"x")))

            def download(headers: dict[str, str], expected: bytes) -> None:
                self.assertEqual(expected, client.get(f"/data/{name}", headers).body)

            self.assertEqual([("GET", key)], requests(partial(download, {}, pack)))
            part = requests(partial(download, {"Range": "bytes=100000-200000"}, pack[100_000:200_001]))
            self.assertEqual([("GET", key)], part)
            self.assertEqual("bytes=100000-200000", faulty.seen("GET", "^data/")[0].request.headers["range"])
            self.assertEqual([("HEAD", key)], requests(partial(client.head, f"/data/{name}")))
            self.assertEqual([("LIST", "")], requests(partial(client.list, "data")))
            wrong = requests(partial(client.post, f"/data/{object_id(b'y')}", b"z"))
            self.assertEqual([], [one for one in wrong if one[0] == "PUT"], "the engine has heard of wrong bytes")

    def assert_hash_sent(self, put: Request, name: str) -> None:
        """A PUT says what hash its bytes have."""
        self.assertEqual(name, put.headers["x-amz-content-sha256"])


class RefusedCase(ObjectsCase):
    """Starts that fail: one line that says why, and status 1."""

    def assert_refused(self, server: ServerProcess, *parts: str) -> None:
        """It ended with one line that has all of these parts."""
        self.assertEqual(1, server.wait(), server.err)
        lines = [line for line in server.err + server.out if not ANNOUNCEMENT.search(line)]
        self.assertEqual(1, len(lines), lines)
        for part in parts:
            self.assertIn(part, lines[0])


@process_test
class RefusedStartTests(RefusedCase):
    """A bucket that cannot be used."""

    def test_missing_bucket(self) -> None:
        """A bucket that is not there, and is not made."""
        self.assert_refused(
            self.launch(bucket="no-such-bucket"), "s3://no-such-bucket", "the bucket with the repositories is missing"
        )
        self.assertEqual(404, self.engine.request("HEAD", "/no-such-bucket").status)

    def test_wrong_credentials(self) -> None:
        """An access key that the engine does not know, and a secret key that is wrong; neither is shown."""
        other = new_credentials()
        for extra in (
            {"AWS_ACCESS_KEY_ID": other.access_key, "AWS_SECRET_ACCESS_KEY": other.secret_key},
            {"AWS_SECRET_ACCESS_KEY": other.secret_key},
        ):
            server = self.launch(extra=extra)
            self.assert_refused(server, f"s3://{self.bucket}", "refuses the server's credentials")
            self.assertNotIn(other.secret_key, "".join(server.err))

    def test_missing_credentials(self) -> None:
        """None anywhere; the line says where they could be."""
        with mock.patch.dict(os.environ):
            del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
            # There is no machine to ask.
            server = self.launch(extra={"AWS_EC2_METADATA_DISABLED": "true"})
        self.assert_refused(server, f"s3://{self.bucket}", "no credentials", "AWS_ACCESS_KEY_ID")

    def test_engine_down(self) -> None:
        """Nothing listens there."""
        faulty = self.proxy()
        faulty.refuse_connections()
        begun_s = time.monotonic()
        self.assert_refused(self.launch(extra=faulty.environment()), f"s3://{self.bucket}", "refused")
        self.assertLess(time.monotonic() - begun_s, PATIENCE_S)


@process_test
class WithoutConditionsTests(RefusedCase):
    """Engines that ignore C{If-None-Match}."""

    def ignoring(self) -> FaultyEngine:
        """A proxy as which the engine ignores conditions."""
        faulty = self.proxy()
        faulty.when(Ignored("if-none-match"), kind="PUT", times=None)
        return faulty

    def test_refused(self) -> None:
        """It is refused with the reason and the way out, and nothing is left in the bucket."""
        self.assert_refused(
            self.launch(extra=self.ignoring().environment()),
            f"s3://{self.bucket} cannot be used",
            "the condition is ignored: the second upload replaces the first one",
            "--objects-unconditional",
        )
        self.assertEqual([], self.engine.keys(self.bucket))

    def test_unconditional(self) -> None:
        """With C{--objects-unconditional} it is used, and a config is not replaced."""
        server = self.serve("--objects-unconditional", faulty=self.ignoring())
        restic = self.restic(f"{server.url}/")
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES // 4)
        restic.create()
        restic.succeed("backup", str(self.tree))
        self.assert_whole(restic)
        config = self.stored("config")
        with server.client() as client:
            self.assertEqual(403, client.post("/config", b"another").status)
            self.assertEqual(400, client.post(f"/data/{object_id(b'right')}", b"wrong").status)
        self.assertEqual(config, self.stored("config"))
        self.assert_restores(restic, "latest", contents_below(self.tree))


@process_test
class RcloneTests(RefusedCase):
    """C{rclone serve s3}, which ignores conditions, and answers 200 where it sends a part."""

    skip = RcloneS3.reason() or SKIP_WITHOUT_RESTIC

    def make_engine(self) -> RealEngine:
        """Of this test alone."""
        return start_engine(self, RcloneS3(self.scratch / "rclone"))

    def test_refused(self) -> None:
        """It is refused with both reasons, and nothing is left in the bucket; the flag does not help with the second."""
        range_ignored = "a part of an object is answered with that part (206)"
        server = self.launch()
        self.assert_refused(
            server,
            f"s3://{self.bucket} cannot be used",
            "the condition is ignored: the second upload replaces the first one",
            range_ignored,
        )
        self.assertNotIn("--objects-unconditional", server.err[-1])
        self.assert_refused(self.launch("--objects-unconditional"), f"s3://{self.bucket} cannot be used", range_ignored)
        self.assertEqual([], self.engine.keys(self.bucket))


class TwoCase(ObjectsCase):
    """Two front ends on one bucket."""

    def setUp(self) -> None:
        super().setUp()
        self.servers = [self.serve(state=f"state-{number}") for number in range(2)]


@process_test
class RaceTests(TwoCase):
    """Uploads of one name at the same time through two front ends."""

    def race(self, path: str, bodies: list[bytes]) -> list[int]:
        """Upload all of them at once, each on a connection of its own; the statuses, in order."""
        start = threading.Barrier(len(bodies))

        def upload(number: int) -> int:
            with self.servers[number % 2].client() as client:
                client.get("/config")  # connects
                start.wait(PATIENCE_S)
                return client.post(path, bodies[number]).status

        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(upload, range(len(bodies))))

    @contextlib.contextmanager
    def watched(self, path: str) -> Iterator[list[bytes]]:
        """All that could be read there meanwhile, through both front ends and from the engine itself."""
        seen: list[bytes] = []
        done = threading.Event()

        def poll() -> None:
            with self.servers[0].client() as one, self.servers[1].client() as other:
                while not done.is_set():
                    replies = [one.get(path), other.get(path), self.engine.request("GET", f"/{self.bucket}{key}")]
                    seen.extend(reply.body for reply in replies if reply.status == 200)
                    time.sleep(0.01)

        name = path.rpartition("/")[2]
        key = path.replace(name, f"{name[:2]}/{name}") if path.startswith("/data/") else path
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            poller = pool.submit(poll)
            try:
                yield seen
            finally:
                done.set()
            poller.result()

    def test_right_and_wrong_bytes(self) -> None:
        """Whatever comes first, only verified bytes are ever visible; the right ones are stored, the wrong ones refused."""
        with self.servers[0].client() as client:
            client.create_repository()
        for number in range(RACES):
            right = random_bytes(number, 100_000)
            wrong = [random_bytes(1000 + racer, 100_000) for racer in range(RACERS // 2)]
            bodies = [wrong[racer // 2] if racer % 4 >= 2 else right for racer in range(RACERS)]
            path = f"/data/{object_id(right)}"
            with self.watched(path) as seen:
                statuses = self.race(path, bodies)
                wait_until(lambda: len(seen) >= 3, what="a look after the race")
            for body, status in zip(bodies, statuses, strict=True):
                if body == right:
                    self.assertEqual(200, status)
                else:
                    self.assertIn(status, (400, 403))
            self.assertEqual({object_id(right)}, {object_id(body) for body in seen})

    def test_config(self) -> None:
        """Of sixteen configs exactly one wins, and it is the one that stays."""
        for number in range(RACES):
            bodies = [random_bytes(100 * number + racer, 155) for racer in range(RACERS)]
            repository = f"/repository-{number}/"
            with self.servers[number % 2].client() as client:
                client.create_repository(repository)
            with self.watched(f"{repository}config") as seen:
                statuses = self.race(f"{repository}config", bodies)
                wait_until(lambda: len(seen) >= 3, what="a look after the race")
            self.assertEqual([200] + [403] * (RACERS - 1), sorted(statuses))
            self.assertEqual({bodies[statuses.index(200)]}, set(seen))

    def test_locks(self) -> None:
        """A lock that was written through one front end is listed by the other at once, and not after its removal."""
        missed = []
        with self.servers[0].client() as one, self.servers[1].client() as other:
            one.create_repository()
            for number in range(LOCKS):
                writer, reader = (one, other) if number % 2 else (other, one)
                name = writer.save("locks", b"lock %d" % number)
                if name not in reader.list("locks"):
                    missed.append(number)
                self.assertEqual(200, reader.delete(f"/locks/{name}").status)
                self.assertEqual({}, writer.list("locks"))
        self.assertEqual([], missed)


class Balancer(_Relay):
    """
    Passes connections to several servers in turn; one that does not listen is passed over.
    """

    def __init__(self, test: SynchronousTestCase, ports: list[int]) -> None:
        self._ports = ports
        self._turn = 0
        super().__init__(test)

    def _connect(self) -> socket.socket:
        """See L{_Relay._connect}."""
        self._turn += 1
        for number in range(len(self._ports)):
            with contextlib.suppress(OSError):
                return socket.create_connection(
                    ("127.0.0.1", self._ports[(self._turn + number) % len(self._ports)]), PATIENCE_S
                )
        raise ConnectionRefusedError


@process_test
class FrontEndKilledTests(TwoCase):
    """A front end that dies is replaced, and clients do not notice."""

    CLIENTS = 6

    def test_killed_three_times(self) -> None:
        """
        Six clients back up through both front ends, of which one is killed three times and started anew, each time with an
        empty state directory: all clients succeed, and their repositories are whole.
        """
        size_bytes = LIFE_BYTES // 2
        make_tree(self.tree, seed=1, size_bytes=size_bytes)
        balancer = Balancer(self, [server.port for server in self.servers])
        clients = [
            self.restic(f"http://127.0.0.1:{balancer.port}/client-{number}/", f"client-{number}")
            for number in range(self.CLIENTS)
        ]
        for client in clients:
            client.create()
        port = self.servers[0].port
        limit = ("--limit-upload", str(size_bytes // 8 >> 10))
        killed = threading.Event()

        def back_up(number: int) -> int:
            """Back up until the last kill is over; how often."""
            folder = self.tree
            for backups in itertools.count(1):
                result = clients[number].run("backup", *limit, str(folder))
                self.assertEqual(0, result.status, result)
                if killed.is_set():
                    return backups
                folder = self.scratch / f"tree-{number}-{backups}"
                make_tree(folder, seed=100 * number + backups, size_bytes=size_bytes // 8)
            raise AssertionError

        with concurrent.futures.ThreadPoolExecutor(self.CLIENTS) as pool:
            backups = [pool.submit(back_up, number) for number in range(self.CLIENTS)]
            try:
                for kill in range(FRONT_END_KILLS):
                    time.sleep(1.0)
                    self.servers[0].kill()
                    self.servers[0] = self.serve(state=f"new-{kill}", listen=f"127.0.0.1:{port}")
            finally:
                killed.set()
            taken = [backup.result() for backup in backups]
        for number, client in enumerate(clients):
            thoroughly = ("--read-data",) if ALL or number < 2 else ()
            self.assertIn("no errors were found", client.succeed("check", *thoroughly))
            self.assertEqual(taken[number], len(client.snapshots()))


class Journal:
    """
    Clients that upload without end, and what was acknowledged.

    @ivar most: after how many acknowledged objects they wait, so that the time in which an engine starts is not spent on
        thousands of them; C{None}: never.
    @ivar acknowledged: the names of objects by which a 200 came, with a seed for their bytes.
    @ivar statuses: all other answers, and C{None} for connections that broke.
    """

    def __init__(self, server: ServerProcess, clients: int, size_bytes: int) -> None:
        self._server = server
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._next = 0
        self.most: int | None = None
        self.acknowledged: dict[str, int] = {}
        self.statuses: list[int | None] = []
        self._threads = [threading.Thread(target=self._upload, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def body_of(self, seed: int) -> bytes:
        """The bytes of an object."""
        return random_bytes(seed, self._size_bytes + seed % 1000)

    def _upload(self) -> None:
        while not self._done.is_set():
            with self._server.client() as client:
                while not self._done.is_set():
                    if self.most is not None and len(self.acknowledged) >= self.most:
                        self._done.wait(0.05)
                    elif not self._upload_one(client):
                        time.sleep(0.2)
                        break

    def _upload_one(self, client: Client) -> bool:
        with self._lock:
            self._next += 1
            seed = self._next
        body = self.body_of(seed)
        name = object_id(body)
        status: int | None = None
        with contextlib.suppress(OSError):
            status = client.post(f"/data/{name}", body).status
        with self._lock:
            if status == 200:
                self.acknowledged[name] = seed
            else:
                self.statuses.append(status)
        return status == 200

    def end(self) -> None:
        """Stop after what is under way."""
        self._done.set()
        for thread in self._threads:
            thread.join(5 * PATIENCE_S)
            assert not thread.is_alive()


class OwnEngineCase(ObjectsCase):
    """An engine for this test alone."""

    def make_engine(self) -> RealEngine:
        """In memory if there is room."""
        return start_engine(self, self.kind(self.scratch / "engine"))

    def make_bucket(self) -> str:
        """One that goes with the engine: to remove thousands of objects one by one takes minutes."""
        self.engine.make_bucket("bucket")
        return "bucket"

    def assert_there(self, server: ServerProcess, journal: Journal) -> None:
        """All that was acknowledged is there, is listed, and has the right bytes."""
        with server.client() as client:
            listed = client.list("data")
            for name, seed in journal.acknowledged.items():
                body = journal.body_of(seed)
                self.assertEqual(len(body), listed.get(name))
                self.assertEqual(body, client.get(f"/data/{name}").body)


@process_test
class EngineKilledTests(OwnEngineCase):
    """The engine dies under load and comes back."""

    def test_killed(self) -> None:
        """Nothing that was acknowledged is lost, the answers are 503 meanwhile, and the server goes on without help."""
        server = self.serve()
        with server.client() as client:
            client.create_repository()
        journal = Journal(server, clients=4, size_bytes=200_000)
        self.addCleanup(journal.end)
        for _ in range(ENGINE_KILLS):
            before = len(journal.acknowledged)
            journal.most = None
            wait_until(lambda before=before: len(journal.acknowledged) > before + 20, what="uploads")  # type: ignore[misc]
            self.engine.kill()
            failed = len(journal.statuses)
            wait_until(lambda failed=failed: len(journal.statuses) > failed, what="a failure")  # type: ignore[misc]
            with server.client() as client:
                self.assertEqual(503, client.get(f"/data/{next(iter(journal.acknowledged))}").status)
                self.assertEqual(503, client.get("/data/").status)
                self.assertEqual(503, client.get(f"/data/{'0' * 64}").status)
            journal.most = len(journal.acknowledged) + 100
            self.engine.start()
        before = len(journal.acknowledged)
        journal.most = None
        wait_until(lambda: len(journal.acknowledged) > before + 20, what="uploads after the last kill")
        journal.end()
        self.assertEqual({503}, set(journal.statuses))
        self.assert_there(server, journal)
        self.assertEqual(0, server.stop())


@process_test
class EngineFullTests(OwnEngineCase):
    """
    An engine without room.

    @cvar full_statuses: what an upload is answered that does not fit.
    """

    full_statuses = frozenset((503, 507))

    def make_engine(self) -> RealEngine:
        """Of three volumes: the filer's own, and what a bucket may take."""
        return start_engine(self, SeaweedFS(self.scratch / "engine", volumes=3, volume_mib=8))

    def limit(self) -> None:
        """Called before anything is stored."""

    def test_full(self) -> None:
        """
        What does not fit is answered 503 (SeaweedFS does not say that it is full) or 507, and is not there; all that was
        acknowledged is, and can still be read, listed and removed.
        """
        self.limit()
        server = self.serve()
        with server.client() as client:
            client.create_repository()
        journal = Journal(server, clients=2, size_bytes=MIB)
        self.addCleanup(journal.end)
        wait_until(lambda: len(journal.statuses) >= 2, what="a full engine")
        journal.end()
        self.assertGreater(len(journal.acknowledged), 3)
        self.assertLessEqual(set(journal.statuses), self.full_statuses)
        self.assert_there(server, journal)
        with server.client() as client:
            self.assertEqual(set(journal.acknowledged), set(client.list("data")))
            name = next(iter(journal.acknowledged))
            self.assertEqual(200, client.delete(f"/data/{name}").status)
            self.assertEqual(404, client.get(f"/data/{name}").status)


@process_test
class CredentialsTests(ObjectsCase):
    """Credentials that change while the server runs."""

    def test_changed_in_the_file(self) -> None:
        """
        With credentials that the engine refuses, all requests are 503, and a line says why; with the right ones in the file
        again the server goes on without a restart.
        """
        path = self.scratch / "credentials"

        def write(access_key: str, secret_key: str) -> None:
            new = path.with_suffix(".new")
            new.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
            new.replace(path)

        write(*self.s3.credentials)
        with mock.patch.dict(os.environ):
            del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
            server = self.serve(extra={"AWS_SHARED_CREDENTIALS_FILE": str(path)})
        with server.client() as client:
            client.create_repository()
            name = client.save("data", b"a pack")
            other = f"/data/{object_id(b'another')}"
            # obstore's clients for reading and for storing ask for credentials apart, ten times a second at most.
            write(*new_credentials())
            wait_until(lambda: client.get(f"/data/{name}").status == 503, what="the wrong credentials")
            wait_until(lambda: client.post(other, b"another").status == 503, what="the wrong credentials")
            self.assertEqual(503, client.get("/data/").status)
            self.assertEqual(503, client.delete(f"/data/{name}").status)
            server.wait_for_line(
                f"cannot read from {self.engine.scheme}://{self.bucket}: the object store refuses the server's credentials"
            )
            write(*self.s3.credentials)
            wait_until(lambda: client.get(f"/data/{name}").status == 200, what="the right credentials")
            wait_until(lambda: client.post(other, b"another").status == 200, what="the right credentials")
            server.wait_for_line(f"can read from {self.engine.scheme}://{self.bucket} again")
            self.assertEqual({name: 6, object_id(b"another"): 7}, client.list("data"))
        server.signal(signal.SIGTERM)
        self.assertEqual(0, server.wait())
