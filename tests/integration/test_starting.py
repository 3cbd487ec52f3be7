"""
How the server starts where not all is as on the developer's machine, and what it says when it cannot.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.namespaces import no_namespaces, with_read_only_root
from ..support.scratch import scratch_directory
from ..support.server import REST_SERVER, TWISTD, command_line, server_environment, start_server

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
