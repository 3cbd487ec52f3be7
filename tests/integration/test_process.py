"""
The server as a process: how it starts, what it says, what it does on signals, how it ends. Both front doors.
"""

from __future__ import annotations

import errno
import os
import pstats
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.client import Client, connect, object_id, random_bytes, read_reply
from ..support.htpasswd import bcrypt_line, sha_line
from ..support.scratch import files_below, object_path, scratch_directory
from ..support.server import (
    ACTIVATED,
    LISTENING,
    REST_SERVER,
    TWISTD,
    ServerProcess,
    command_line,
    installed,
    server_environment,
    start_server,
)
from ..support.waiting import wait_until

MIB = 1 << 20
#: How long a program that cannot start may take to say so. It takes a fraction of a second; machines are busy at times.
SOON_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a program ended that was not to stay."""

    status: int
    out: str
    err: str


def run_to_end(directory: Path, command: Sequence[str]) -> Ended:
    """
    Run a program that must end by itself.

    @raise subprocess.TimeoutExpired: it did not, soon (and was killed).
    """
    finished = subprocess.run(
        command,
        cwd=directory,
        env=server_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    return Ended(finished.returncode, finished.stdout, finished.stderr)


#: What rest-server says on stderr before it opens anything.
ANNOUNCEMENT = re.compile(
    r"Data directory: |Authentication |Loaded htpasswd file |Append only mode |Private repositories |"
    r"Group accessible repos |TLS enabled, |start server on "
)


if TYPE_CHECKING:
    _Base = SynchronousTestCase
else:
    _Base = object


class BadInput(_Base):
    """
    One clear line on stderr, a status that is not zero, no traceback, soon; the same for every front door.

    @cvar door: which one.
    """

    door: str
    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"

    def assert_refused(self, pattern: str, *flags: str) -> None:
        """Starting with these flags fails with a line that matches, and makes no traceback anywhere."""
        ended = run_to_end(self.scratch, command_line(self.door, (*self.every_server, *flags)))
        self.assertNotEqual(ended.status, 0, ended)
        self.assertGreater(ended.status, 0, ended)
        self.assertNotIn("Traceback", ended.out + ended.err)
        lines = [line for line in ended.err.splitlines() if not ANNOUNCEMENT.match(line)]
        self.assertEqual(len(lines), 1, ended)
        self.assertRegex(lines[0], pattern)

    def start_flags(self, *flags: str) -> list[str]:
        """Flags with which it would start, and more."""
        return ["--path", str(self.data), "--listen", "127.0.0.1:0", *flags]

    def test_missing_htpasswd(self) -> None:
        """Without users and without C{--no-auth}; the line names the file and the flag."""
        self.assert_refused(rf"{re.escape(str(self.data))}/\.htpasswd.*--no-auth", *self.start_flags())

    def test_unreadable_htpasswd(self) -> None:
        """A directory stands for a file that cannot be read (root can read all others)."""
        path = str(self.scratch)
        self.assert_refused(rf"{re.escape(path)}.*directory", *self.start_flags("--htpasswd-file", path))

    def test_htpasswd_of_other_bytes(self) -> None:
        """A file that is no text."""
        path = self.scratch / "htpasswd"
        path.write_bytes(b"\xff\xfe\x00")
        self.assert_refused("UTF-8", *self.start_flags("--htpasswd-file", str(path)))

    def test_missing_certificate(self) -> None:
        """C{--tls} with a file that is not there, and with no file in the default place."""
        self.assert_refused(r"certificate.*public_key", *self.start_flags("--no-auth", "--tls"))
        missing = ["--tls-cert", str(self.scratch / "cert.pem"), "--tls-key", str(self.scratch / "key.pem")]
        self.assert_refused(r"certificate.*cert\.pem", *self.start_flags("--no-auth", "--tls", *missing))

    def test_bad_certificate(self) -> None:
        """A file that holds none, and a key that is another's."""
        (self.scratch / "one").mkdir()
        (self.scratch / "other").mkdir()
        one, other = make_certificate(self.scratch / "one"), make_certificate(self.scratch / "other")
        flags = self.start_flags("--no-auth", "--tls", "--tls-cert", str(one.certificate), "--tls-key")
        self.assert_refused("does not match the certificate", *flags, str(other.key))
        one.certificate.write_text("nothing of that kind")
        self.assert_refused("no usable PEM certificate", *flags, str(one.key))

    def test_certificate_without_tls(self) -> None:
        """Else someone might think that TLS is on."""
        self.assert_refused("--tls-cert needs --tls", *self.start_flags("--no-auth", "--tls-cert", "cert.pem"))

    def test_unknown_tls_version(self) -> None:
        """The line names those that there are."""
        self.assert_refused(r"1\.9.*1\.2.*1\.3", *self.start_flags("--no-auth", "--tls", "--tls-min-ver", "1.9"))

    def test_unknown_flag(self) -> None:
        """Also one that is the beginning of a flag, which getopt would take for it."""
        self.assert_refused("unknown flag: --bogus", *self.start_flags("--no-auth", "--bogus"))
        self.assert_refused("unknown flag: --append", *self.start_flags("--no-auth", "--append"))

    def test_bad_values(self) -> None:
        """A switch that is neither true nor false, a flag without its value, an argument that is no flag."""
        self.assert_refused("--append-only=perhaps", *self.start_flags("--no-auth", "--append-only=perhaps"))
        self.assert_refused("--log", *self.start_flags("--no-auth", "--log"))
        self.assert_refused("surplus", *self.start_flags("--no-auth", "surplus"))
        self.assert_refused("--shutdown-timeout", *self.start_flags("--no-auth", "--shutdown-timeout", "soon"))

    def test_private_repositories_of_nobody(self) -> None:
        """C{--private-repos} needs users."""
        self.assert_refused(r"--private-repos.*--no-auth", *self.start_flags("--no-auth", "--private-repos"))

    def test_port_in_use(self) -> None:
        """The line names the address."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            flags = ("--no-auth", "--path", str(self.data), "--listen", address)
            self.assert_refused(rf"{re.escape(address)}.*in use", *flags)

    def test_second_of_two_addresses_in_use(self) -> None:
        """The first is given up again: a server on half of its addresses is none."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.assert_refused(rf"{re.escape(address)}.*in use", *self.start_flags("--no-auth", "--listen", address))

    def test_bad_address(self) -> None:
        """What is no address of any form, and what is none of this machine's."""
        for address in ("nonsense", "127.0.0.1:99999", "bogus:8000:interface=127.0.0.1", "unix:/missing/dir/socket"):
            self.assert_refused(re.escape(address), "--no-auth", "--path", str(self.data), "--listen", address)

    def test_unwritable_path(self) -> None:
        """A data directory below something that is none, and one that is a file."""
        file = self.scratch / "file"
        file.write_bytes(b"")
        for path in ("/dev/null/data", str(file / "data"), str(file)):
            self.assert_refused(re.escape(path), "--no-auth", "--listen", "127.0.0.1:0", "--path", path)
        self.assertEqual(file.read_bytes(), b"")

    def test_unwritable_log(self) -> None:
        """An access log that cannot be opened."""
        path = str(self.scratch / "missing" / "access.log")
        self.assert_refused(re.escape(path), *self.start_flags("--no-auth", "--log", path))


class RestServerBadInputTests(BadInput, SynchronousTestCase):
    """The drop-in command."""

    door = REST_SERVER


class TwistdBadInputTests(BadInput, SynchronousTestCase):
    """The plugin."""

    door = TWISTD


class HelpTests(SynchronousTestCase):
    """What is printed on request."""

    def test_version(self) -> None:
        """C{-v} and C{--version}: one line on stdout with this server's version and those that it stands on."""
        scratch = scratch_directory(self)
        for door in (REST_SERVER, TWISTD):
            for flag in ("-v", "--version"):
                ended = run_to_end(scratch, command_line(door, [flag]))
                self.assertEqual((ended.status, ended.err), (0, ""))
                self.assertRegex(ended.out, r"^rest-server [0-9]\S* .*Twisted [0-9]+\.[0-9]+.*\n\Z")

    def test_help(self) -> None:
        """C{-h} and C{--help} name every flag that people know from rest-server."""
        scratch = scratch_directory(self)
        for door in (REST_SERVER, TWISTD):
            for flag in ("-h", "--help"):
                ended = run_to_end(scratch, command_line(door, [flag]))
                self.assertEqual((ended.status, ended.err), (0, ""))
                for known in (
                    "append-only cpu-profile debug group-accessible-repos help htpasswd-file listen log no-auth "
                    "no-verify-upload path private-repos tls tls-cert tls-key tls-min-ver version"
                ).split():
                    self.assertIn(f"--{known}", ended.out)

    def test_plugin_is_listed(self) -> None:
        """C{twistd --help} lists the plugin beside Twisted's own."""
        ended = run_to_end(scratch_directory(self), [installed("twistd"), "--help"])
        self.assertEqual(ended.status, 0)
        self.assertRegex(ended.out, r"(?m)^    restic-rest +A repository server")
        self.assertRegex(ended.out, r"(?m)^    web ")


class StartTests(SynchronousTestCase):
    """A start that works."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "a" / "b" / "data"

    def test_what_rest_server_says(self) -> None:
        """restic's own tests look for the line with the address on stderr; stdout stays empty; SIGTERM gives 0."""
        server = start_server(self, self.data, "--listen", ":0")
        self.assertRegex(server.address, r"^(\[::\]|0\.0\.0\.0):[1-9][0-9]*$")
        with server.client() as client:
            client.create_repository()
            client.save("data", b"something")
        self.assertEqual(server.stop(), 0)
        self.assertEqual(server.out, [])
        self.assertEqual(
            server.err[:5],
            [
                f"Data directory: {self.data}",
                "Authentication disabled",
                "Append only mode disabled",
                "Private repositories disabled",
                "Group accessible repos disabled",
            ],
        )
        self.assertEqual(server.err[-1], "shutdown cleanly")
        self.assertTrue(server.err[-2].startswith("Creating repository directories in "))

    def test_interrupt(self) -> None:
        """Ctrl-C ends it like SIGTERM, with status 0."""
        server = start_server(self, self.data)
        server.signal(signal.SIGINT)
        self.assertEqual(server.wait(), 0)

    def test_no_workers_to_replace(self) -> None:
        """SIGUSR2 by mistake does not end the one process that there is."""
        server = start_server(self, self.data)
        server.signal(signal.SIGUSR2)
        wait_until(lambda: server.said("^SIGUSR2 ignored"), what="the line that says so")
        with server.client() as client:
            self.assertEqual(client.get("/config").status, 404)

    def test_twistd(self) -> None:
        """twistd logs to stdout, and ends by the signal itself (so the units say C{SuccessExitStatus=143})."""
        server = start_server(self, self.data, door=TWISTD)
        with server.client() as client:
            client.create_repository()
        self.assertIn(server.stop(), (0, -signal.SIGTERM))
        self.assertIsNotNone(server.said("shutdown cleanly$"))
        self.assertEqual(server.err, [])

    def test_ipv4_reaches_the_socket_of_both_families(self) -> None:
        """Without a host it listens on IPv4 and IPv6."""
        server = start_server(self, self.data, "--listen", ":0")
        for address in ("127.0.0.1", "::1") if server.address.startswith("[") else ("127.0.0.1",):
            with Client((address, server.port)) as client:
                self.assertEqual(client.get("/config").status, 404)

    def test_several_addresses(self) -> None:
        """C{--listen} may be given again: TCP, a unix socket and an endpoint string of Twisted's."""
        path = str(self.scratch / "socket")
        server = start_server(
            self,
            self.data,
            "--listen",
            "127.0.0.1:0",
            "--listen",
            f"unix:{path}",
            "--listen",
            "tcp:0:interface=127.0.0.1",
        )
        wait_until(lambda: len([line for line in server.err if LISTENING.search(line)]) == 3, what="three addresses")
        first, second, third = (match[1] for line in server.err if (match := LISTENING.search(line)))
        self.assertEqual(second, path)
        for address in (
            ("127.0.0.1", int(first.rpartition(":")[2])),
            path,
            ("127.0.0.1", int(third.rpartition(":")[2])),
        ):
            with Client(address) as client:
                self.assertEqual(client.get("/config").status, 404)

    def test_switches_with_values(self) -> None:
        """Go's C{--switch=true} and C{--switch=false}, and its 1 and 0."""
        flags = ("--no-auth=true", "--append-only=1", "--private-repos=false", "--group-accessible-repos=0")
        for door in (REST_SERVER, TWISTD):
            server = start_server(self, self.data, *flags, door=door)
            server.wait_for_line("Authentication disabled$")
            server.wait_for_line("Append only mode enabled$")
            server.wait_for_line("Private repositories disabled$")
            server.wait_for_line("Group accessible repos disabled$")
            with server.client() as client:
                client.create_repository()
                name = client.save("snapshots", b"a snapshot")
                self.assertEqual(client.delete(f"/snapshots/{name}").status, 403)
                lock = client.save("locks", b"a lock")
                self.assertEqual(client.delete(f"/locks/{lock}").status, 200)

    def test_announcements_of_what_is_on(self) -> None:
        """With users, TLS and the switches on, in rest-server's words."""
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text(sha_line("alice", "secret") + "broken:plain text\n")
        certificate = make_certificate(self.scratch)
        flags = ("--append-only", "--private-repos", "--group-accessible-repos", "--htpasswd-file", str(htpasswd))
        server = start_server(self, self.data, *flags, *certificate.flags)
        for line in (
            "Authentication enabled",
            f"Loaded htpasswd file {htpasswd}",
            "Append only mode enabled",
            "Private repositories enabled",
            "Group accessible repos enabled",
            f"TLS enabled, private key {certificate.key}, pubkey {certificate.certificate}",
        ):
            self.assertIn(line, server.err)
        self.assertIsNotNone(server.said(r"Invalid htpasswd entry for broken\."))
        with Client(("127.0.0.1", server.port), "alice", "secret", certificate.client_context()) as client:
            self.assertEqual(client.get("/alice/config").status, 404)

    def test_modes_of_files(self) -> None:
        """Files are 0600 in directories 0700, or 0660 and 0770, whatever the umask of who started the server."""
        for umask in (0o000, 0o077):
            for flags, file_mode, directory_mode in (((), 0o600, 0o700), (("--group-accessible-repos",), 0o660, 0o770)):
                data = self.scratch / f"{umask}{len(flags)}"
                before = os.umask(umask)
                try:
                    server = start_server(self, data, *flags)
                finally:
                    os.umask(before)
                with server.client() as client:
                    client.create_repository("/repo/")
                    name = client.save("data", b"something", "/repo/")
                    self.assertEqual(client.post("/repo/config", b"config").status, 200)
                for path in (object_path(data / "repo", "data", name), data / "repo" / "config"):
                    self.assertEqual(stat.S_IMODE(path.stat().st_mode), file_mode, path)
                for path in (data / "repo", data / "repo" / "data", data / "repo" / "data" / name[:2]):
                    self.assertEqual(stat.S_IMODE(path.stat().st_mode), directory_mode, path)
                server.stop()


class UnixSocketTests(SynchronousTestCase):
    """C{--listen unix:PATH}."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.path = self.scratch / "socket"
        self.flags = ("--listen", f"unix:{self.path}")

    def assert_serves(self) -> None:
        """Somebody answers there."""
        with Client(str(self.path)) as client:
            self.assertEqual(client.get("/config").status, 404)

    def test_mode_and_end(self) -> None:
        """The socket is 0660, whatever the umask; the line is the bare path; at the stop the file goes."""
        for umask in (0o000, 0o077):
            before = os.umask(umask)
            try:
                server = start_server(self, self.data, *self.flags)
            finally:
                os.umask(before)
            self.assertEqual(server.address, str(self.path))
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o660)
            self.assert_serves()
            self.assertEqual(server.stop(), 0)
            self.assertFalse(self.path.exists())

    def test_stale_socket_is_replaced(self) -> None:
        """A server that was killed leaves its socket; the next one takes its place."""
        start_server(self, self.data, *self.flags).kill()
        self.assertTrue(stat.S_ISSOCK(self.path.stat().st_mode))
        start_server(self, self.data, *self.flags)
        self.assert_serves()

    def test_live_socket_is_not_replaced(self) -> None:
        """A second server on the same path fails, and the first one goes on."""
        start_server(self, self.data, *self.flags)
        for door in (REST_SERVER, TWISTD):
            command = command_line(door, ["--no-auth", "--path", str(self.data), *self.flags, *self.every_server])
            ended = run_to_end(self.scratch, command)
            self.assertGreater(ended.status, 0)
            self.assertNotIn("Traceback", ended.out + ended.err)
            self.assertIn(str(self.path), ended.err)
        self.assert_serves()

    def test_file_is_not_replaced(self) -> None:
        """Something that is no socket is not touched."""
        self.path.write_bytes(b"dear to somebody")
        ended = run_to_end(
            self.scratch, command_line(REST_SERVER, ["--no-auth", "--path", str(self.data), *self.flags])
        )
        self.assertEqual(ended.status, 1)
        self.assertEqual(self.path.read_bytes(), b"dear to somebody")


class StopTests(SynchronousTestCase):
    """SIGTERM while something is on its way."""

    BODY = random_bytes(seed=1, length=2 * MIB)

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"

    def begin_upload(self, server: ServerProcess) -> socket.socket:
        """A connection with half of an upload; the server has begun to take it."""
        with server.client() as client:
            client.create_repository()
        connection = connect(("127.0.0.1", server.port))
        self.addCleanup(connection.close)
        name = object_id(self.BODY)
        head = f"POST /data/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(self.BODY)}\r\n\r\n"
        connection.sendall(head.encode("ascii") + self.BODY[:MIB])
        wait_until(lambda: server.open_files_below(self.data), what="the beginning of the upload")
        return connection

    def terminate(self, server: ServerProcess) -> None:
        """SIGTERM, and wait until nobody new gets in."""
        port = server.port
        server.signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                connect(("127.0.0.1", port)).close()
            except (ConnectionRefusedError, ConnectionResetError):
                return True  # reset: it was in the backlog of the socket that was closed just then
            return False

        wait_until(refused, what="closed listeners")

    def test_a_log_that_hangs(self) -> None:
        """
        Whoever reads the access log has stalled: requests are answered all the same, and SIGHUP does no harm. The stop is
        bounded, and at a second signal it is quick.
        """
        fifo = self.scratch / "log"
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reading)
        server = start_server(self, self.data, "--log", str(fifo), "--shutdown-timeout", "1000")
        with server.client() as client:
            client.create_repository()
            for number in range(600):
                client.get("/config", {"User-Agent": "x" * 300})
                if number % 100 == 0:
                    server.signal(signal.SIGHUP)
            name = client.save("data", self.BODY)
            self.assertEqual(self.BODY, client.get(f"/data/{name}").body)
        self.terminate(server)
        self.assertIsNone(server.process.poll())
        server.signal(signal.SIGTERM)
        self.assertEqual(0, server.wait())

    def test_an_upload_comes_to_its_end(self) -> None:
        """It is stored and acknowledged, while new connections are refused; then the server ends with 0."""
        server = start_server(self, self.data)
        connection = self.begin_upload(server)
        self.terminate(server)
        self.assertIsNone(server.process.poll())
        connection.sendall(self.BODY[MIB:])
        reply = read_reply(connection, "POST")
        self.assertEqual((reply.status, reply.headers["Connection"]), (200, "close"))
        self.assertEqual(server.wait(), 0)
        path = object_path(self.data, "data", object_id(self.BODY))
        self.assertEqual(path.read_bytes(), self.BODY)

    def test_a_download_comes_to_its_end(self) -> None:
        """Its client gets every byte."""
        body = random_bytes(seed=2, length=32 * MIB)
        server = start_server(self, self.data)
        with server.client() as client:
            client.create_repository()
            name = client.save("data", body)
        with connect(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"GET /data/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode("ascii"))
            received = bytearray(connection.recv(1000))
            self.terminate(server)
            while chunk := connection.recv(MIB):
                received += chunk
        self.assertEqual(bytes(received).partition(b"\r\n\r\n")[2], body)
        self.assertEqual(server.wait(), 0)

    def test_an_idle_connection_does_not_hold_it_up(self) -> None:
        """Keep-alive connections without a request are closed at once, on plain sockets and over TLS."""
        certificate = make_certificate(self.scratch)
        for flags, tls in (((), None), (certificate.flags, certificate.client_context())):
            server = start_server(self, self.data, "--shutdown-timeout", "600", *flags)
            with Client(("127.0.0.1", server.port), tls=tls) as client:
                self.assertEqual(client.get("/config").status, 404)
                self.assertEqual(server.stop(), 0)

    def test_an_upload_that_takes_too_long(self) -> None:
        """After C{--shutdown-timeout} it is aborted: no acknowledgement, nothing on disk, and the server ends."""
        server = start_server(self, self.data, "--shutdown-timeout", "1")
        connection = self.begin_upload(server)
        self.terminate(server)
        self.assertEqual(server.wait(), 0)
        self.assertEqual(_rest_of(connection), b"")
        self.assertEqual(files_below(self.data), set())

    def test_a_second_signal_means_now(self) -> None:
        """Who asks twice does not want to wait."""
        server = start_server(self, self.data, "--shutdown-timeout", "600")
        connection = self.begin_upload(server)
        self.terminate(server)
        server.signal(signal.SIGTERM)
        self.assertEqual(server.wait(), 0)
        self.assertEqual(_rest_of(connection), b"")
        self.assertEqual(files_below(self.data), set())
        self.assertIsNone(server.said("Traceback"))

    def test_twistd_waits_too(self) -> None:
        """The same for the other front door: an upload comes to its end, then the process does."""
        server = start_server(self, self.data, door=TWISTD)
        connection = self.begin_upload(server)
        self.terminate(server)
        connection.sendall(self.BODY[MIB:])
        self.assertEqual(read_reply(connection, "POST").status, 200)
        self.assertIn(server.wait(), (0, -signal.SIGTERM))
        self.assertIsNone(server.said("Traceback"))


def _rest_of(connection: socket.socket) -> bytes:
    """What still comes until the connection ends, in whichever way."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


#: The combined format: address, user, time, request, status, bytes, referer, user agent.
COMBINED = re.compile(
    r"(?P<address>\S+) - (?P<user>\S+) \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<bytes>\d+|-) '
    r'"(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"\Z'
)


class AccessLogTests(SynchronousTestCase):
    """C{--log}."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.log = self.scratch / "access.log"

    def entries(self, count: int, path: Path | None = None) -> list[re.Match[str]]:
        """Wait for so many lines; each must be of the combined format."""

        def lines() -> list[str]:
            file = path or self.log
            found = file.read_text().splitlines() if file.exists() else []
            return found if len(found) >= count else []

        found = wait_until(lines, what=f"{count} lines")
        self.assertEqual(len(found), count, found)
        entries = [COMBINED.match(line) for line in found]
        self.assertNotIn(None, entries, found)
        return [entry for entry in entries if entry is not None]

    def test_lines(self) -> None:
        """One line a request: with user, status and bytes; also for refused ones, and for torn requests."""
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text(bcrypt_line("alice", "secret"))
        server = start_server(self, self.data, "--log", str(self.log), "--htpasswd-file", str(htpasswd))
        body = random_bytes(seed=1, length=200_000)
        with server.client("alice", "secret") as client:
            client.create_repository()
            name = client.save("data", body)
            client.get(f"/data/{name}", {"Range": "bytes=100-", "User-Agent": 'a "quoted" agent', "Referer": "there"})
            client.head(f"/data/{name}")
        # Each connection's lines before the next one's: it may be another worker that writes those.
        self.entries(4)
        with server.client("alice", "wrong") as client:
            client.get("/data/")
        self.entries(5)
        with connect(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"this is not HTTP\r\n\r\n")
            self.assertEqual(read_reply(connection).status, 400)
        lines = [
            (entry["address"], entry["user"], entry["request"], entry["status"], entry["bytes"])
            for entry in self.entries(5 + 1)
        ]
        self.assertEqual(
            lines[:5],
            [
                ("127.0.0.1", "alice", "POST /?create=true HTTP/1.1", "200", "-"),
                ("127.0.0.1", "alice", f"POST /data/{name} HTTP/1.1", "200", "-"),
                ("127.0.0.1", "alice", f"GET /data/{name} HTTP/1.1", "206", str(len(body) - 100)),
                ("127.0.0.1", "alice", f"HEAD /data/{name} HTTP/1.1", "200", "-"),
                ("127.0.0.1", "-", "GET /data/ HTTP/1.1", "401", lines[4][4]),
            ],
        )
        self.assertEqual(lines[5][3], "400")
        text = self.log.read_text()
        self.assertIn('"there" "a \\"quoted\\" agent"', text)
        self.assertNotIn("secret", text)

    def test_lost_requests(self) -> None:
        """A client that goes away in mid-upload or mid-download leaves its line, once."""
        server = start_server(self, self.data, "--log", str(self.log))
        body = random_bytes(seed=1, length=32 * MIB)
        with server.client() as client:
            client.create_repository()
            name = client.save("data", body)
        # These lines before the next one's: it may be another worker that writes that.
        self.entries(2)
        with connect(("127.0.0.1", server.port)) as connection:
            lost = object_id(b"lost")
            head = f"POST /data/{lost} HTTP/1.1\r\nHost: x\r\nContent-Length: {16 * MIB}\r\n\r\n"
            connection.sendall(head.encode("ascii") + b"a bit")
            wait_until(lambda: server.open_files_below(self.data), what="the beginning of the upload")
        upload = self.entries(3)[2]
        self.assertEqual((upload["request"], upload["status"]), (f"POST /data/{lost} HTTP/1.1", "499"))
        with connect(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"GET /data/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode("ascii"))
            received = 0
            while received < 9 * MIB:
                received += len(connection.recv(65536))
        download = self.entries(4)[3]
        self.assertEqual((download["request"], download["status"]), (f"GET /data/{name} HTTP/1.1", "200"))
        # How much exactly is known only when the kernel's last sendfile (of up to 4 MiB) returns, maybe after the record.
        self.assertTrue(0 < int(download["bytes"].replace("-", "0")) < len(body), download[0])
        server.stop()
        self.entries(4)

    def test_to_stdout(self) -> None:
        """C{--log -}."""
        server = start_server(self, self.data, "--log", "-")
        with server.client() as client:
            client.get("/config")
        server.stop()
        self.assertEqual(len(server.out), 1)
        self.assertIsNotNone(COMBINED.match(server.out[0]), server.out)

    def test_reopened_on_sighup(self) -> None:
        """
        logrotate renames the file and sends SIGHUP: from then on lines go to a new file, and none is lost. Without
        anything to read or to open again SIGHUP does nothing; it never ends the server.
        """
        for door in (REST_SERVER, TWISTD):
            log, rotated = self.scratch / f"{door}.log", self.scratch / f"{door}.log.1"
            server = start_server(self, self.data, "--log", str(log), door=door)
            with server.client() as client:
                client.get("/config")
                self.entries(1, log)
                log.rename(rotated)
                client.get("/config")
                self.entries(2, rotated)
                server.signal(signal.SIGHUP)
                wait_until(log.exists, what="the new log")
                client.get("/config")
                self.entries(1, log)
                self.entries(2, rotated)
            server.stop()

    def test_sighup_without_a_log(self) -> None:
        """SIGHUP with nothing to do: the server goes on."""
        for door in (REST_SERVER, TWISTD):
            server = start_server(self, self.data, door=door)
            for _ in range(3):
                server.signal(signal.SIGHUP)
                with server.client() as client:
                    self.assertEqual(client.get("/config").status, 404)
            self.assertIsNone(server.process.poll())


class ConfigurationTests(SynchronousTestCase):
    """Flags from C{--config} and from the environment."""

    def test_served(self) -> None:
        """Through both doors, and with workers, which read neither themselves."""
        scratch = scratch_directory(self)
        file = scratch / "server.toml"
        file.write_text(f'log = "{scratch / "access.log"}"\nno-auth = true\nappend-only = true\n')
        for number, door in enumerate((REST_SERVER, TWISTD)):
            environment = {
                "REST_SERVER_CONFIG": str(file),
                "REST_SERVER_WORKERS": str(number + 1),
                "REST_SERVER_PORT": "tcp://x",
            }
            server = start_server(self, scratch / "data", door=door, extra=environment)
            with server.client() as client:
                client.create_repository(f"/{number}/")
                name = client.save("data", b"something", f"/{number}/")
                self.assertEqual(403, client.delete(f"/{number}/data/{name}").status)
            self.assertEqual(number * 2, len(server.workers()))
            server.stop()
        self.assertEqual(6, len((scratch / "access.log").read_text().splitlines()))


class ProfileTests(SynchronousTestCase):
    """C{--cpu-profile}."""

    def test_profile(self) -> None:
        """After a clean stop the file is one that C{pstats} loads, with the server's own functions in it."""
        scratch = scratch_directory(self)
        path = scratch / "profile"
        server = start_server(self, scratch / "data", "--cpu-profile", str(path))
        with server.client() as client:
            client.create_repository()
            client.save("data", b"something")
        self.assertEqual(server.stop(), 0)
        functions = {Path(file).name for file, _, _ in pstats.Stats(str(path)).stats}  # type: ignore[attr-defined]
        self.assertIn("channel.py", functions)


class SocketActivationTests(SynchronousTestCase):
    """systemd opens the socket and hands it over as descriptor 3."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.log = self.scratch / "access.log"

    def start(self, listening: socket.socket, door: str, *flags: str) -> ServerProcess:
        """A server that gets this socket as systemd would give it."""
        # LISTEN_PID must be the server's own pid, which is known only after the fork: a shell sets it and becomes the
        # server. The socket comes as its stdin, since a shell can pass on nothing above 9.
        wrapper = ["sh", "-c", 'export LISTEN_PID=$$; exec "$@" 3<&0 0</dev/null', "sh"]
        # Should it not see the socket, it must not get the default port.
        flags = ("--no-auth", "--path", str(self.data), "--log", str(self.log), "--listen", "127.0.0.1:0", *flags)
        flags += self.every_server
        server = ServerProcess(
            [*wrapper, *command_line(door, flags)],
            self.scratch,
            {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "restic-rest.socket"},
            stdin=listening.fileno(),
        )
        self.addCleanup(server.clean_up)
        server.wait_for_line(ACTIVATED)
        return server

    def test_tcp(self) -> None:
        """
        An IPv6 socket that takes IPv4 too, as C{ListenStream=8000} makes it: it is served, clients have their plain
        addresses in the log, and C{--listen} is not looked at. It stays systemd's: after a stop the next server gets it.
        """
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
            port = listening.getsockname()[1]
            for door in (REST_SERVER, TWISTD):
                server = self.start(listening, door, "--listen", f"127.0.0.1:{port}")
                for address in ("127.0.0.1", "::1"):
                    with Client((address, port)) as client:
                        self.assertEqual(client.get("/config").status, 404)
                server.stop()
                self.assertIsNone(server.said(LISTENING))
                addresses = [line.split()[0] for line in self.log.read_text().splitlines()]
                # Two workers write their lines in any order.
                self.assertEqual(["127.0.0.1", "::1"], sorted(addresses))
                self.log.unlink()

    def test_unix(self) -> None:
        """A unix socket keeps its mode and its file: both are systemd's."""
        path = self.scratch / "socket"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            path.chmod(0o640)
            listening.listen()
            server = self.start(listening, REST_SERVER)
            with Client(str(path)) as client:
                self.assertEqual(client.get("/config").status, 404)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
            self.assertEqual(server.stop(), 0)
            self.assertTrue(path.exists())
            # The socket is still systemd's, and the next server gets it.
            self.start(listening, REST_SERVER)
            with Client(str(path)) as client:
                self.assertEqual(client.get("/config").status, 404)
        self.assertTrue(self.log.read_text().startswith("- - - ["))

    def test_tls(self) -> None:
        """C{--tls} holds for an inherited socket too."""
        certificate = make_certificate(self.scratch)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            self.start(listening, REST_SERVER, *certificate.flags)
        with Client(("127.0.0.1", port), tls=certificate.client_context()) as client:
            self.assertEqual(client.get("/config").status, 404)

    def test_sockets_of_another_process(self) -> None:
        """Variables that name another process are not for us."""
        server = start_server(self, self.data, extra={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
        with server.client() as client:
            self.assertEqual(client.get("/config").status, 404)


class TlsTests(SynchronousTestCase):
    """What TLS clients get."""

    def test_versions_and_protocols(self) -> None:
        """1.2 and later, or 1.3 alone; HTTP/1.1 by ALPN, for a client that would like HTTP/2 too."""
        import ssl

        scratch = scratch_directory(self)
        certificate = make_certificate(scratch)
        for flags, versions in (((), ("TLSv1.2", "TLSv1.3")), (("--tls-min-ver", "1.3"), ("TLSv1.3",))):
            server = start_server(self, scratch / "data", *certificate.flags, *flags)
            for version in ("TLSv1.2", "TLSv1.3"):
                context = certificate.client_context()
                context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
                context.set_alpn_protocols(["h2", "http/1.1"])
                with connect(("127.0.0.1", server.port)) as plain:
                    if version not in versions:
                        self.assertRaises(ssl.SSLError, context.wrap_socket, plain, server_hostname="localhost")
                        continue
                    with context.wrap_socket(plain, server_hostname="localhost") as connection:
                        self.assertEqual(connection.version(), version)
                        self.assertEqual(connection.selected_alpn_protocol(), "http/1.1")
            server.stop()


class DaemonTests(SynchronousTestCase):
    """twistd's own way into the background."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.pid_file = self.scratch / "server.pid"
        self.log = self.scratch / "server.log"

    def start(self, *flags: str) -> Ended:
        """Start it; twistd returns when the daemon runs or has failed."""
        self.addCleanup(self.kill)
        command = [installed("twistd"), "--pidfile", str(self.pid_file), "--logfile", str(self.log), "restic-rest"]
        # Not run_to_end's pipes: the daemon would keep them open and we would wait for it.
        with (self.scratch / "out").open("w+") as out:
            process = subprocess.Popen(
                [*command, "--no-auth", *flags, *self.every_server],
                cwd=self.scratch,
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            try:
                status = process.wait(SOON_S)
            except BaseException:
                process.kill()
                process.wait()
                raise
            out.seek(0)
            return Ended(status, out.read(), "")

    def pid(self) -> int | None:
        """The daemon's, from its pid file."""
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def kill(self) -> None:
        """After the test: end what may still run."""
        pid = self.pid()
        if pid is not None:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise

    def logged(self, pattern: re.Pattern[str]) -> Callable[[], re.Match[str] | None]:
        """For L{wait_until}: a line of the log."""

        def found() -> re.Match[str] | None:
            text = self.log.read_text() if self.log.exists() else ""
            return next((match for line in text.splitlines() if (match := pattern.search(line))), None)

        return found

    def test_daemon(self) -> None:
        """It forks, serves (as the umask of daemons is 077, modes are of interest), and SIGTERM stops it."""
        path = self.scratch / "socket"
        data = self.scratch / "data"
        ended = self.start(
            "--path", str(data), "--listen", "127.0.0.1:0", "--listen", f"unix:{path}", "--group-accessible-repos"
        )
        self.assertEqual((ended.status, ended.out), (0, ""))
        address = wait_until(self.logged(LISTENING), what="the address in the log")[1]
        wait_until(path.exists, what="the socket")
        pid = wait_until(self.pid, what="the pid file")
        with Client(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.create_repository()
            name = client.save("data", b"something")
        with Client(str(path)) as client:
            self.assertEqual(client.get(f"/data/{name}").body, b"something")
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o660)
        self.assertEqual(stat.S_IMODE(object_path(data, "data", name).stat().st_mode), 0o660)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not self.pid_file.exists(), what="the removed pid file")
        wait_until(self.logged(re.compile("shutdown cleanly$")), what="the last line of the log")
        self.assertFalse(path.exists())
        self.assertNotIn("Traceback", self.log.read_text())

    def test_a_failing_start(self) -> None:
        """A port in use, a directory that cannot be written: the command fails and says why; no daemon stays."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for flags, reason in (
                (("--path", str(self.scratch / "data"), "--listen", address), address),
                (("--path", "/dev/null/data", "--listen", "127.0.0.1:0"), "/dev/null/data"),
                (("--path", str(self.scratch), "--bogus"), "--bogus"),
            ):
                ended = self.start(*flags)
                self.assertGreater(ended.status, 0)
                self.assertIn(reason, ended.out)
                self.assertNotIn("Traceback", ended.out)
                wait_until(lambda: not self.pid_file.exists(), what="the removed pid file")
        self.assertNotIn("Traceback", self.log.read_text())
