"""
How the server starts where not all is as on the developer's machine, and what it says when it cannot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.namespaces import no_namespaces, with_read_only_root
from ..support.scratch import scratch_directory
from ..support.client import Client
from ..support.server import REST_SERVER, TWISTD, ServerProcess, command_line, installed, server_environment, start_server
from ..support.waiting import wait_until

DOORS = (REST_SERVER, TWISTD)


class ReadOnlyRootTests(SynchronousTestCase):
    """A container with a read-only root: nothing can be written but the data directory, and no temporary file can be made."""

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
                    for given in ("rest.sock", "./rest.sock"):
                        flags = ("--path", "data", "--workers", workers, "--listen", f"unix:{given}")
                        server = self.start(door, *flags, directory=directory)
                        self.assertEqual(str(directory / "rest.sock"), server.address)
                        here = os.open(directory, os.O_RDONLY)
                        try:
                            with Client(f"/proc/self/fd/{here}/rest.sock") as client:
                                self.assertEqual(404, client.get("/config").status)
                        finally:
                            os.close(here)
                        self.assertIn(server.stop(), (0, -15))
                        self.assertFalse((directory / "rest.sock").exists())
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
