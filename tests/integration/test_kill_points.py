"""
C{kill -9} at any moment of uploads, deletions, moves to the trash, restores, the expiry and writes to the state file. After
each kill everything that was acknowledged is there, nothing that was deleted came back, and nothing is left over.

C{KILLS} says how often; L{tests.integration.test_faults} kills within large uploads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from contextlib import ExitStack

from twisted.trial.unittest import SynchronousTestCase

from ..support.crashes import ClientWorker, Directory, assert_books
from ..support.processes import process_test
from ..support.scratch import scratch_directory
from ..support.server import start_server
from ..support.waiting import PATIENCE_S

KILLS = int(os.environ.get("KILLS", "24"))
#: With more objects another repository is begun: all of them are looked at after each kill.
MOST_OBJECTS = 300
#: A server is started again after each kill, which takes much longer than what is killed.
SERVER_KILLS = max(2, KILLS // 10)
#: A process works for so long at most.
LONGEST_S = 0.06


@process_test
class KillPointTests(SynchronousTestCase):
    """Processes that work on the files as the server's pools do."""

    def rounds(self, processes: int, threads: int) -> None:
        """Kill all processes again and again, each at a moment of its own, and look."""
        scratch = scratch_directory(self)
        source = random.Random(processes)
        kills = acknowledged = 0
        directory = None
        while kills < KILLS:
            if directory is None or len(directory.journal.may_be) > MOST_OBJECTS:
                directory = Directory(scratch / f"{kills}")
                directory.make()
                directory.check()
            acknowledged -= directory.journal.acknowledged
            directory.plant_ended()
            directory.begin()
            running = directory.start(processes, threads)
            for process in running:
                time.sleep(source.uniform(0, LONGEST_S))
                process.kill(directory.journal)
                kills += 1
            directory.check()
            self.assertEqual({}, directory.bad, f"after {kills} kills")
            acknowledged += directory.journal.acknowledged
        self.assertGreater(acknowledged, kills, "too little was done, so this shows nothing")
        words = f"{kills} kills of {processes} processes with {threads} threads: {acknowledged} steps acknowledged"
        print(f"\n{words}", file=sys.stderr)

    def test_one_process(self) -> None:
        """Three threads of one."""
        self.rounds(1, 3)

    def test_two_processes(self) -> None:
        """Two at once, as with --workers 2: one goes on while the other is killed."""
        self.rounds(2, 2)


@process_test
class KilledServerTests(SynchronousTestCase):
    """The same with real servers and their clients; the books are right after each start."""

    CLIENTS = 4
    LONGEST_S = 0.3

    def rounds(self, *flags: str) -> None:
        """Kill a server with all its processes again and again."""
        directory = Directory(scratch_directory(self) / "data")
        directory.make()
        directory.check()
        source = random.Random(len(flags))
        number = 0
        for kill in range(SERVER_KILLS):
            directory.plant_ended()
            directory.begin()
            server = start_server(
                self,
                directory.data,
                "--max-size",
                "1GiB",
                "--delete-delay",
                "1d",
                "--prometheus",
                "--prometheus-no-auth",
                *flags,
            )
            if kill % 2:
                assert_books(server, directory)
            with ExitStack() as connections:
                guard = threading.Lock()

                def say(line: str) -> None:
                    with guard:
                        directory.journal.note(line)

                workers = []
                for own in directory.shares(self.CLIENTS):
                    number += 1
                    client = connections.enter_context(server.client())
                    workers.append(ClientWorker(directory.data, number, own, say, client))
                threads = [threading.Thread(target=worker.work, daemon=True) for worker in workers]
                for thread in threads:
                    thread.start()
                time.sleep(source.uniform(0, self.LONGEST_S))
                for pid in (server.pid, *server.workers()):
                    os.kill(pid, signal.SIGKILL)
                server.wait()
                for thread in threads:
                    thread.join(PATIENCE_S)
                    self.assertFalse(thread.is_alive(), "it hangs")
            directory.check()
            self.assertEqual({}, directory.bad, f"after {kill + 1} kills")
        self.assertGreater(directory.journal.acknowledged, SERVER_KILLS, "too little was done")
        words = (
            f"{SERVER_KILLS} kills of a server {' '.join(flags)}: {directory.journal.acknowledged} steps acknowledged"
        )
        print(f"\n{words}", file=sys.stderr)

    def test_one_process(self) -> None:
        """One process."""
        self.rounds()

    def test_workers(self) -> None:
        """A parent and two workers."""
        self.rounds("--workers", "2")
