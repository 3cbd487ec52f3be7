"""
C{--on-event} with real servers: the command is told what happened, and whatever it does, no request waits for it.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.client import object_id
from ..support.restic import RESTIC, Restic, make_tree
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until
from ..telemetry.test_metrics import parsed, series
from .test_faults import in_parallel


class EventCase(SynchronousTestCase):
    """A server whose events go to a shell script."""

    every_server: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.output = self.scratch / "output"

    def start(self, script: str, *flags: str) -> ServerProcess:
        """A server, its script finds C{$output}."""
        command = f"output={shlex.quote(str(self.output))}; {script}"
        on_event = shlex.join(("/bin/sh", "-c", command))
        always = ("--no-auth", "--prometheus", "--on-event", on_event, *self.every_server)
        return start_server(self, self.data, *always, *flags)

    def told(self) -> list[dict[str, Any]]:
        """What the script has written down so far, of C{cat >> $output}."""
        return [json.loads(line) for line in self.output.read_text().splitlines()] if self.output.exists() else []

    def outcomes(self, server: ServerProcess, outcome: str) -> float:
        """How many snapshots' events came to this."""
        with server.client() as client:
            found = parsed(client.get("/metrics").body)
        return found.get(series("rest_server_events_total", event="snapshot", outcome=outcome), 0.0)

    def work(self, server: ServerProcess) -> None:
        """Much of what there are events for, and other requests; every one is answered as ever."""

        def one(number: int) -> None:
            with server.client() as client:
                client.create_repository(f"/r{number}/")
                for turn in range(10):
                    body = b"%d/%d" % (number, turn)
                    path = f"/r{number}/snapshots/{object_id(body)}"
                    self.assertEqual(200, client.post(path, body).status)
                    self.assertEqual(body, client.get(path).body)
                    self.assertEqual(200, client.head(path).status)

        in_parallel(4, one)


class EventTests(EventCase):
    """What the command is told, and what it cannot do."""

    @skipped(None if RESTIC else "restic is not installed")
    def test_restic(self) -> None:
        """A real backup: its snapshot is told of, by its own name, and the repository that was made."""
        server = self.start("cat >> $output")
        restic = Restic(self, f"{server.url}/alice/laptop/", self.scratch)
        make_tree(self.scratch / "tree", seed=1, size_bytes=1 << 20)
        restic.succeed("init")
        restic.succeed("backup", str(self.scratch / "tree"))
        wait_until(lambda: len(self.told()) == 2, what="two events")
        made, snapshot = self.told()
        self.assertEqual(("repository-created", "alice/laptop"), (made["event"], made["repository"]))
        names = os.listdir(self.data / "alice/laptop/snapshots")
        self.assertEqual(("snapshot", [snapshot["name"]]), (snapshot["event"], names))

    def test_hangs(self) -> None:
        """
        A command that never ends: all requests are answered while it runs, one of it is there and no more, and the server
        stops in spite of it.
        """
        server = self.start("echo $$ >> $output; exec sleep 3600")
        self.work(server)
        wait_until(self.output.exists, what="the command")
        (pid,) = map(int, self.output.read_text().split())
        os.kill(pid, 0)
        self.assertEqual(0, self.outcomes(server, "failed"))
        self.assertEqual(40, self.outcomes(server, "told"))
        self.assertEqual(0, server.stop())
        self.assertFalse(Path(f"/proc/{pid}").exists())

    def test_fails(self) -> None:
        """A command that fails each time costs a line in the log and a count."""
        server = self.start("exit 7")
        self.work(server)
        wait_until(lambda: self.outcomes(server, "failed") == 40, what="all have failed")
        server.wait_for_line("exit code 7")

    def test_floods(self) -> None:
        """One that writes without end is ended with its time, or by its pipe, and nothing is held in memory."""
        server = self.start("yes x; exit 1")
        self.work(server)
        self.assertLess(server.peak_memory_bytes(), 200 << 20)
        self.assertEqual(0, server.stop())


class SharedEventTests(EventTests):
    """The same with workers: one command at a time, whoever has seen the event."""

    every_server = ("--workers", "2")
