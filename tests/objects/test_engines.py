"""
The real engines that other tests use: they start, take only their own credentials, keep what they have, fill up, and end with
the process that has started them.
"""

from __future__ import annotations

import datetime
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store
from twisted.trial.unittest import SynchronousTestCase

from ..support import engines
from ..support.client import random_bytes
from ..support.engines import (
    CephRGW,
    Credentials,
    Ports,
    RcloneS3,
    S3Engine,
    SeaweedFS,
    new_credentials,
    shared_seaweedfs,
    signed_headers,
    start_engine,
    usual_ports,
)
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import is_running
from ..support.waiting import PATIENCE_S, wait_until

MIB = 1 << 20

#: Starts a SeaweedFS, says its process and its ports, and waits for the end of its own.
STARTS_AN_ENGINE = """
import pathlib, signal, sys
from tests.support.engines import SeaweedFS
engine = SeaweedFS(pathlib.Path(sys.argv[1]))
engine.start()
print(*engine.pids, *engine.ports, flush=True)
signal.pause()
"""


def sockets_of(ports: Iterable[int]) -> list[Path]:
    """The unix sockets that SeaweedFS has made for ports."""
    return [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def store_of(engine: S3Engine, bucket: str) -> S3Store:
    """A client of one of the engine's buckets, which tries nothing again."""
    variables = {name.lower(): value for name, value in engine.environment().items()}
    return S3Store(
        bucket,
        config=variables,  # type: ignore[arg-type]
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


class SigningTests(SynchronousTestCase):
    """The examples of Amazon's documentation, "Signature Calculations for the Authorization Header", for S3."""

    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    now = datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC)
    host = "http://examplebucket.s3.amazonaws.com"

    def signature(self, target: str, headers: dict[str, str]) -> str:
        """The signature of a GET."""
        signed = signed_headers("GET", self.host + target, headers, self.credentials, now=self.now)
        return signed["authorization"].rpartition("Signature=")[2]

    def test_object(self) -> None:
        """A GET with one more header."""
        self.assertEqual(
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            self.signature("/test.txt", {"Range": "bytes=0-9"}),
        )

    def test_parameter_without_a_value(self) -> None:
        """It is signed with an equals sign."""
        self.assertEqual(
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", self.signature("/?lifecycle", {})
        )

    def test_list(self) -> None:
        """Parameters are signed in the order of their names, whatever their order is."""
        expected = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        self.assertEqual(expected, self.signature("/?max-keys=2&prefix=J", {}))
        self.assertEqual(expected, self.signature("/?prefix=J&max-keys=2", {}))


class PortsTests(SynchronousTestCase):
    """Ports for programs that cannot choose one."""

    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            port: int = chosen.getsockname()[1]
        self.port = port

    def test_reserved(self) -> None:
        """What one has another does not get, until it is released."""
        first = Ports(1, [self.port])
        self.addCleanup(first.release)
        self.assertEqual([self.port], first.ports)
        self.assertRaises(AssertionError, Ports, 1, [self.port])
        first.release()
        second = Ports(1, [self.port])
        self.addCleanup(second.release)
        self.assertEqual([self.port], second.ports)

    def test_taken(self) -> None:
        """A port at which another program listens is left out."""
        with socket.create_server(("127.0.0.1", self.port)):
            self.assertRaises(AssertionError, Ports, 1, [self.port])

    def test_not_of_connections(self) -> None:
        """The system gives none of them to a connection, or to a program that asks for any port."""
        self.assertNotIn(self.port, usual_ports())
        ports = Ports(8)
        self.addCleanup(ports.release)
        self.assertEqual(8, len(set(ports.ports)))
        self.assertTrue(set(ports.ports) <= set(usual_ports()))


@process_test
class SharedTests(SynchronousTestCase):
    """The SeaweedFS that the tests of a process share."""

    def setUp(self) -> None:
        self.engine = shared_seaweedfs()
        self.bucket = self.engine.new_bucket(self)

    def test_usable(self) -> None:
        """A client that has its environment can store, read and list."""
        store = store_of(self.engine, self.bucket)
        body = random_bytes(1, 100_000)
        obstore.put(store, "a/b", body, mode="create", use_multipart=False)
        self.assertEqual(body, bytes(obstore.get(store, "a/b").bytes()))
        self.assertEqual(["a/b"], self.engine.keys(self.bucket))
        self.assertRaises(AlreadyExistsError, obstore.put, store, "a/b", b"other", mode="create", use_multipart=False)

    def test_shared(self) -> None:
        """The next test gets the same one, and another bucket, which is empty."""
        self.assertIs(self.engine, shared_seaweedfs())
        self.assertEqual(200, self.engine.request("PUT", f"/{self.bucket}/x", body=b"x").status)
        self.assertEqual([], self.engine.keys(self.engine.new_bucket(self)))

    def test_credentials(self) -> None:
        """It takes no others."""
        right, self.engine.credentials = self.engine.credentials, new_credentials()
        try:
            self.assertEqual(403, self.engine.request("GET", f"/{self.bucket}", "list-type=2").status)
        finally:
            self.engine.credentials = right

    def test_missing_bucket(self) -> None:
        """A PUT does not make a bucket."""
        store = store_of(self.engine, f"{self.bucket}-missing")
        self.assertRaises(FileNotFoundError, obstore.put, store, "x", b"x", use_multipart=False)
        self.assertEqual(404, self.engine.request("GET", f"/{self.bucket}-missing", "list-type=2").status)

    def test_bucket_removed(self) -> None:
        """A bucket is removed with its objects."""
        for number in range(3):
            self.engine.request("PUT", f"/{self.bucket}/{number}", body=b"x")
        self.engine.remove_bucket(self.bucket)
        self.assertEqual(404, self.engine.request("GET", f"/{self.bucket}", "list-type=2").status)
        self.engine.remove_bucket(self.bucket)

    def test_many_keys(self) -> None:
        """All pages of a list are asked for."""
        store = store_of(self.engine, self.bucket)
        expected = [f"{number:04}" for number in range(1001)]
        for key in expected:
            obstore.put(store, key, b"", use_multipart=False)
        self.assertEqual(expected, self.engine.keys(self.bucket))


@process_test
class OwnTests(SynchronousTestCase):
    """An engine that a test has for itself."""

    def start(self, engine: SeaweedFS) -> SeaweedFS:
        """Start it."""
        return start_engine(self, engine)

    def test_full(self) -> None:
        """
        A small one fills up. What it has acknowledged is there, also when it was killed and started again, which it can be
        while it is full; a bucket that is removed makes space.
        """
        engine = self.start(SeaweedFS(scratch_directory(self) / "engine", volumes=2, volume_mib=2))
        bucket = engine.new_bucket(self)
        bodies = {f"{number}": random_bytes(number, MIB // 2) for number in range(20)}
        stored = {
            key for key, body in bodies.items() if engine.request("PUT", f"/{bucket}/{key}", body=body).status == 200
        }
        # It finds out that a volume is full when it looks, so one may take a little more.
        self.assertGreaterEqual(len(stored), 8)
        self.assertNotIn("19", stored)
        endpoint = engine.endpoint
        engine.kill()
        self.assertRaises(ConnectionRefusedError, engine.request, "GET", f"/{bucket}", "list-type=2")
        engine.restart()
        self.assertEqual(endpoint, engine.endpoint)
        self.assertEqual(sorted(stored), engine.keys(bucket))
        for key in stored:
            self.assertEqual(bodies[key], engine.request("GET", f"/{bucket}/{key}").body)
        other = engine.new_bucket(self)
        self.assertEqual(500, engine.request("PUT", f"/{other}/x", body=b"x").status)
        engine.remove_bucket(bucket)
        wait_until(lambda: engine.request("PUT", f"/{other}/x", body=b"x").status == 200)

    def test_makes_buckets(self) -> None:
        """With SeaweedFS's own default a PUT makes the bucket. Stopped, it leaves no socket behind."""
        engine = self.start(SeaweedFS(scratch_directory(self) / "engine", creates_buckets=True))
        self.assertEqual(200, engine.request("PUT", "/not-there-yet/x", body=b"x").status)
        self.assertEqual(["x"], engine.keys("not-there-yet"))
        (pid,) = engine.pids
        self.assertEqual(4, len(sockets_of(engine.ports)))
        engine.stop()
        self.assertFalse(is_running(pid))
        self.assertEqual([], sockets_of(engine.ports))

    def test_ends_with_the_process(self) -> None:
        """A process of tests that is killed takes its engine with it."""
        if (reason := SeaweedFS.reason()) is not None:
            self.skipTest(reason)
        process = subprocess.Popen(
            [sys.executable, "-c", STARTS_AN_ENGINE, str(scratch_directory(self) / "engine")],
            cwd=Path(engines.__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            pid, *ports = map(int, process.stdout.readline().split())
            self.assertTrue(is_running(pid))
            process.kill()
            process.wait(PATIENCE_S)
            wait_until(lambda: not is_running(pid))
            for path in sockets_of(ports):
                path.unlink()
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE_S)

    def test_broken_start(self) -> None:
        """The end of an engine that does not start is an error with its last words."""
        if (reason := SeaweedFS.reason()) is not None:
            self.skipTest(reason)
        directory = scratch_directory(self)
        (directory / "data").mkdir()
        (directory / "data" / "filerldb2").write_text("not a directory")
        engine = SeaweedFS(directory)
        self.addCleanup(engine.clean_up)
        error = self.assertRaises(AssertionError, engine.start)
        self.assertIn("ended", str(error))
        self.assertIn("filerldb2", str(error))
        self.assertEqual([], engine.pids)


@process_test
class CephTests(SynchronousTestCase):
    """Ceph's RADOS gateway."""

    def test_ceph(self) -> None:
        """It stores once, follows a bucket's quota, and has its objects when it was killed and started again."""
        engine = start_engine(self, CephRGW(scratch_directory(self) / "engine"))
        bucket = engine.new_bucket(self)
        store = store_of(engine, bucket)
        obstore.put(store, "a/b", b"first", mode="create", use_multipart=False)
        self.assertRaises(AlreadyExistsError, obstore.put, store, "a/b", b"second", mode="create", use_multipart=False)
        engine.limit_bucket(bucket, MIB)
        body = random_bytes(1, MIB // 4)

        def refused() -> bytes | None:
            number = len(engine.keys(bucket))
            reply = engine.request("PUT", f"/{bucket}/{number}", body=body)
            return None if reply.status == 200 else reply.body

        self.assertIn(b"<Code>QuotaExceeded</Code>", wait_until(refused))
        before = engine.keys(bucket)
        engine.restart()
        self.assertEqual(before, engine.keys(bucket))
        self.assertEqual(b"first", bytes(obstore.get(store, "a/b").bytes()))


@process_test
class RcloneTests(SynchronousTestCase):
    """rclone's S3 server."""

    def test_overwrites(self) -> None:
        """It ignores the condition: this is what it is here for."""
        engine = start_engine(self, RcloneS3(scratch_directory(self) / "engine"))
        bucket = engine.new_bucket(self)
        store = store_of(engine, bucket)
        for body in (b"first", b"second"):
            obstore.put(store, "a/b", body, mode="create", use_multipart=False)
        self.assertEqual(b"second", bytes(obstore.get(store, "a/b").bytes()))
