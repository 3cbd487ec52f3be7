"""
How the server starts where not all is as on the developer's machine, and what it says when it cannot.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.client import Client
from ..support.htpasswd import sha_line
from ..support.namespaces import no_namespaces, with_read_only_root
from ..support.scratch import scratch_directory
from ..support.server import (
    REST_SERVER,
    TWISTD,
    ServerProcess,
    command_line,
    installed,
    server_environment,
    start_server,
)
from ..support.waiting import wait_until

DOORS = (REST_SERVER, TWISTD)


class ReadOnlyRootTests(SynchronousTestCase):
    """A container with a read-only root: nothing can be written but the data directory, and cannot create a temporary file."""

    skip = no_namespaces("--mount")

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.state = self.scratch / "state"
        self.data.mkdir()
        self.state.mkdir()

    def run_(self, *command: str, writable: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a program to its end there."""
        return subprocess.run(
            [*with_read_only_root(*writable), *command],
            cwd=self.scratch,
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_there_is_no_temporary_directory(self) -> None:
        """What the other tests here rest on."""
        ended = self.run_(sys.executable, "-c", "import tempfile; tempfile.gettempdir()")
        self.assertIn("No usable temporary directory", ended.stderr)

    def test_help(self) -> None:
        """What is printed on request, of all commands."""
        subcommands = [["user"], ["user", "add"], ["policy"], ["usage"], ["status"]]
        for command in (
            *(command_line(door, [flag]) for door in DOORS for flag in ("--help", "--version")),
            *(command_line(REST_SERVER, [*words, "--help"]) for words in subcommands),
        ):
            ended = self.run_(*command)
            self.assertEqual((0, ""), (ended.returncode, ended.stderr), command)
            self.assertTrue(ended.stdout, command)

    def test_served(self) -> None:
        """Repositories are made, written, listed and read, also with workers, quotas, and the state file elsewhere."""
        for door in DOORS:
            for number, flags in enumerate(
                ((), ("--workers", "2"), ("--state-dir", str(self.state), "--max-size", "1GiB", "--prometheus"))
            ):
                wrapper = with_read_only_root(self.data, self.state)
                server = start_server(self, self.data, *flags, door=door, wrapper=wrapper)
                repository = f"/{door}/{number}/"
                with server.client() as client:
                    client.create_repository(repository)
                    # Enough for the state file to have rows.
                    names = {client.save("index", f"object {n}".encode(), repository) for n in range(70)}
                    self.assertEqual(names, client.list("index", repository).keys())
                server.stop()
                self.assertIsNone(server.said("Traceback|[Tt]emporary"), server.err + server.out)


class AddressTests(SynchronousTestCase):
    """C{--listen}."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"

    def start(self, door: str, *flags: str, directory: Path | None = None) -> ServerProcess:
        """A server that is started in a directory, with no flags but these."""
        server = ServerProcess(command_line(door, ["--no-auth", *flags]), directory or self.scratch)
        self.addCleanup(server.clean_up)
        return server

    def test_both_families(self) -> None:
        """C{[::]:PORT} takes IPv4 too, and logs clients by their plain addresses; C{[::1]:PORT} takes IPv6 alone."""
        for door in DOORS:
            for workers in ("1", "2"):
                log = self.scratch / f"{door}{workers}.log"
                flags = ("--log", str(log), "--workers", workers)
                server = start_server(self, self.data, *flags, "--listen", "[::]:0", door=door)
                self.assertTrue(server.address.startswith("[::]:"))
                for address in ("127.0.0.1", "::1"):
                    with Client((address, server.port)) as client:
                        self.assertEqual(404, client.get("/config").status)
                server.stop()
                seen = sorted(line.split()[0] for line in log.read_text().splitlines())
                self.assertEqual(["127.0.0.1", "::1"], seen)
        server = start_server(self, self.data, "--listen", "[::1]:0")
        with Client(("::1", server.port)) as client:
            self.assertEqual(404, client.get("/config").status)
        self.assertRaises(ConnectionRefusedError, Client(("127.0.0.1", server.port)).get, "/config")

    def test_relative_sockets(self) -> None:
        """C{unix:rest.sock} lies where the server was started; its directory may be too deep for an absolute path."""
        deep = self.scratch / ("x" * 100) / ("y" * 100)
        deep.mkdir(parents=True)
        for directory in (self.scratch, deep):
            for door in DOORS:
                for workers in ("1", "2"):
                    # Both ways to write it, for two sockets of one server.
                    names = ("rest.sock", "other.sock")
                    listen = [f"--listen=unix:{names[0]}", f"--listen=unix:./{names[1]}"]
                    server = self.start(door, "--path", "data", "--workers", workers, *listen, directory=directory)
                    for name in names:
                        server.wait_for_line(f"start server on {re.escape(str(directory / name))}$")
                        here = os.open(directory, os.O_RDONLY)
                        try:
                            with Client(f"/proc/self/fd/{here}/{name}") as client:
                                self.assertEqual(404, client.get("/config").status)
                        finally:
                            os.close(here)
                    self.assertIn(server.stop(), (0, -15))
                    for name in names:
                        self.assertFalse((directory / name).exists())
                    self.assertTrue((directory / "data").is_dir())

    def test_relative_socket_of_a_daemon(self) -> None:
        """twistd goes to another directory before it listens."""
        elsewhere = self.scratch / "elsewhere"
        elsewhere.mkdir()
        pid_file, log = self.scratch / "pid", self.scratch / "log"
        command = [installed("twistd"), "--rundir", str(elsewhere), "--pidfile", str(pid_file), "--logfile", str(log)]
        flags = ["restic-rest", "--no-auth", "--path", "data", "--listen", "unix:rest.sock"]
        subprocess.run([*command, *flags], cwd=self.scratch, env=server_environment(), timeout=120, check=True)

        def stop() -> None:
            if pid_file.exists():
                os.kill(int(pid_file.read_text()), 15)
                wait_until(lambda: not pid_file.exists(), what="the end of the daemon")

        self.addCleanup(stop)
        wait_until((self.scratch / "rest.sock").exists, what="the socket")
        with Client(str(self.scratch / "rest.sock")) as client:
            self.assertEqual(404, client.get("/config").status)
        self.assertTrue((self.scratch / "data").is_dir())
        self.assertEqual([], os.listdir(elsewhere))


#: What the server says of itself when it starts.
BANNER = re.compile(
    r"Data directory|Authentication|Loaded |Append only|Private repositories|Group accessible|TLS enabled|start "
)


class StartErrorTests(SynchronousTestCase):
    """
    A start that fails: the first line is the reason, begins with C{rest-server: }, and names the flag, the variable, or the
    file and its key. (What is refused without opening anything is in tests.test_configuration.)
    """

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.taken.close)
        address = f"127.0.0.1:{self.taken.getsockname()[1]}"
        file = self.scratch / "file"
        file.write_text("[what is this\n")
        missing = str(self.scratch / "missing" / "x")
        certificate = make_certificate(self.scratch)
        cert, key = f"--tls-cert={certificate.certificate}", f"--tls-key={certificate.key}"
        #: flag, bad value, a part of the reason, what it has to stand with
        self.table: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
            ("path", "/dev/null/data", "cannot use the data directory /dev/null/data: Not a directory", ()),
            ("path", str(file), f"cannot use the data directory {file}: ", ()),
            ("path", "s3://bucket", "an object store needs --state-dir", ()),
            ("state-dir", str(file / "x"), "cannot use the state directory", ()),
            ("state-dir", "s3://bucket", "must be a local directory, not a URL", ()),
            ("htpasswd-file", missing, "No such file or directory", ()),
            ("htpasswd-file", "/", "Is a directory", ()),
            ("policy", missing, "No such file or directory", ()),
            ("policy", str(file), "cannot load the policy", ()),
            ("listen", address, f"cannot listen on {address}: Address already in use", ()),
            ("listen", "nonsense", "neither host:port", ()),
            ("listen", "192.0.2.1:8000", "cannot listen on 192.0.2.1:8000: Cannot assign requested address", ()),
            ("listen", f"tcp:{address.rpartition(':')[2]}:interface=127.0.0.1", "in use", ()),
            ("listen", "unix:" + "x" * 200, "and the limit for a Unix socket is 107", ()),
            ("listen", f"unix:{missing}", "No such file or directory", ()),
            ("listen", f"unix:{file}", "the file exists and is not a socket", ()),
            ("metrics-listen", address, f"cannot listen on {address}: Address already in use", ()),
            ("metrics-listen", "nonsense", "neither host:port", ()),
            ("tls-cert", missing, "cannot read the TLS certificate", ("--tls", key)),
            ("tls-cert", str(file), "contains no usable PEM certificate: no start line", ("--tls", key)),
            ("tls-key", missing, "cannot read the TLS private key", ("--tls", cert)),
            ("tls-key", str(file), "contains no usable PEM private key: ", ("--tls", cert)),
            ("tls-client-ca", missing, "cannot read the TLS client CA", ("--tls", cert, key)),
            ("tls-client-ca", str(file), "contains no usable PEM certificate: ", ("--tls", cert, key)),
            ("log", missing, f"cannot open {missing}: No such file or directory", ()),
            ("cpu-profile", missing, f"cannot write {missing}: no such directory", ()),
            ("on-event", missing, "no such program", ()),
            ("max-size", "lots", "is not a size", ()),
        )

    def assert_refused(
        self, door: str, begin: str, part: str, *flags: str, extra: Mapping[str, str] | None = None
    ) -> None:
        """One line, with status 1, before anything else is said and without anything having been made."""
        given = {flag.partition("=")[0] for flag in flags}
        flags += () if "--path" in given or "path" in begin.lower() else ("--path=data",)
        names = {"--listen", "--htpasswd-file", "--policy", "--tls-client-ca"}
        others = [name for name in names if name[2:] in begin.lower().replace("_", "-")]
        flags += () if "--listen" in (*given, *others) and "metrics" not in begin.lower() else ("--listen=127.0.0.1:0",)
        users = {"--htpasswd-file", "--policy", "--tls-client-ca"} & {*given, *others}
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text(sha_line("alice", "secret"))
        if "--policy" in users or "--tls-client-ca" in users:
            flags += (f"--htpasswd-file={htpasswd}",)
        elif not users:
            flags += ("--no-auth",)
        before = sorted(os.listdir(self.scratch))
        ended = subprocess.run(
            command_line(door, flags),
            cwd=self.scratch,
            env=server_environment(extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        line = ended.stderr.rstrip("\n")
        self.assertEqual(1, ended.returncode, ended)
        self.assertTrue(line.startswith(f"rest-server: {begin}"), (begin, ended))
        self.assertIn(part, line)
        self.assertNotIn("\n", line)
        self.assertEqual(1, line.count("rest-server: "))
        said = ended.stdout.splitlines()
        self.assertNotIn("Traceback", ended.stdout)
        self.assertEqual([], [one for one in said if BANNER.match(re.sub(r"^\S+ \[\S+\] ", "", one))])
        if door == REST_SERVER:
            self.assertEqual([], said)
        left = set(os.listdir(self.scratch)) - set(before)
        self.assertLessEqual(left, {"data", "twistd.log"}, ended)

    def once(self) -> tuple[tuple[str, str, str, tuple[str, ...]], ...]:
        """The first row of each flag."""
        return tuple({row[0]: row for row in reversed(self.table)}.values())

    def test_flags(self) -> None:
        """On the command line."""
        for flag, value, part, others in self.table:
            self.assert_refused(REST_SERVER, f"--{flag}", part, f"--{flag}={value}", *others)

    def test_variables(self) -> None:
        """In the environment."""
        for flag, value, part, others in self.once():
            name = "REST_SERVER_" + flag.upper().replace("-", "_")
            self.assert_refused(REST_SERVER, name, part, *others, extra={name: value})

    def test_keys(self) -> None:
        """In a file, through the other door."""
        file = self.scratch / "server.toml"
        for flag, value, part, others in self.once():
            file.write_text(f"{flag} = '{value}'\n")
            self.assert_refused(TWISTD, f"{file}: {flag}", part, *others, extra={"REST_SERVER_CONFIG": str(file)})

    def test_workers(self) -> None:
        """With workers, which open some of it themselves."""
        for flag, value, part, others in self.once():
            if flag in ("listen", "log", "tls-cert", "metrics-listen", "path"):
                self.assert_refused(REST_SERVER, f"--{flag}", part, f"--{flag}={value}", "--workers=2", *others)

    def test_second_address(self) -> None:
        """The second of two: nothing was said of the first, and its socket is gone."""
        taken = f"127.0.0.1:{self.taken.getsockname()[1]}"
        for workers in ("1", "2"):
            flags = ("--listen=unix:first", f"--listen={taken}", f"--workers={workers}")
            self.assert_refused(REST_SERVER, "--listen", f"{taken}: Address already in use", *flags)
            flags = ("--listen=unix:first", f"--metrics-listen={taken}", f"--workers={workers}")
            self.assert_refused(REST_SERVER, "--metrics-listen", f"{taken}: Address already in use", *flags)

    def test_config(self) -> None:
        """The file itself."""
        file = self.scratch / "file"
        self.assert_refused(REST_SERVER, "--config: cannot read /nowhere", "No such file", "--config=/nowhere")
        extra = {"REST_SERVER_CONFIG": "/nowhere"}
        self.assert_refused(TWISTD, "REST_SERVER_CONFIG: cannot read /nowhere", "No such file", extra=extra)
        self.assert_refused(REST_SERVER, f"{file}: ", "at line 1", f"--config={file}")

    def test_defaults(self) -> None:
        """Files that nobody has named are missed under the flag that would name them."""
        self.assert_refused(REST_SERVER, "--tls-cert: cannot read the TLS certificate", "data/public_key", "--tls")
        ended = subprocess.run(
            command_line(REST_SERVER, ["--path=data", "--listen=127.0.0.1:0"]),
            cwd=self.scratch,
            env=server_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.assertEqual(1, ended.returncode)
        self.assertRegex(
            ended.stderr, r"^rest-server: --htpasswd-file: cannot load \S+/data/\.htpasswd \(use --no-auth.*\n\Z"
        )

    def test_no_permission(self) -> None:
        """Not as root: a data directory of somebody else's, a port that is reserved, an htpasswd file."""
        if os.geteuid() != 0:
            raise SkipTest("only root can be somebody else")
        self.scratch.chmod(0o755)
        (self.scratch / "mine").mkdir(0o700)
        (self.scratch / "theirs").mkdir()
        os.chown(self.scratch / "theirs", 54321, 54321)
        secret = self.scratch / "secret"
        secret.write_text("")
        secret.chmod(0o600)
        code = (
            "import os, sys; import resticserver.cli, resticserver.tap, resticserver.web.routes, encodings.idna;"
            "os.setgroups([]); os.setgid(54321); os.setuid(54321); sys.exit(resticserver.cli.main(sys.argv[1:]))"
        )
        for flags, begin in (
            (("--no-auth", "--path=mine/x", "--listen=127.0.0.1:0"), "--path: cannot use the data directory "),
            (("--no-auth", "--path=theirs", "--listen=127.0.0.1:0", "--log=mine/log"), "--log: cannot open "),
            (("--path=theirs", "--listen=127.0.0.1:0", "--htpasswd-file=secret"), "--htpasswd-file: cannot load "),
            (("--no-auth", "--path=theirs", "--listen=unix:mine/x"), "--listen: cannot listen on "),
        ):
            ended = subprocess.run(
                [sys.executable, "-c", code, *flags],
                cwd=self.scratch,
                env={**server_environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            self.assertEqual(1, ended.returncode, ended)
            self.assertRegex(ended.stderr, f"^rest-server: {begin}.*: Permission denied( for user id 54321 .*)?\n\\Z")
