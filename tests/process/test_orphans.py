"""
Who takes note of the end of which child.
"""

from __future__ import annotations

import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from ..support.processes import process_test

#: In a process of its own: the tests' own children are not to be taken.
PROGRAM = """
import os, subprocess, time
from resticserver.process.orphans import child_of_ours, reap

def is_zombie(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0] == "Z"

def ended(status):
    child = os.fork()
    if child == 0:
        os._exit(status)
    while not is_zombie(child):
        time.sleep(0.01)
    return child

with child_of_ours(["sh", "-c", "exit 5"]) as ours:
    while not is_zombie(ours.pid):
        time.sleep(0.01)
    orphans = [ended(1), ended(2)]
    for _ in range(5):
        reap()
    assert is_zombie(ours.pid)
    assert ours.wait() == 5
    reap()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in orphans)
reap()
try:
    with child_of_ours(["/no/such/program"]):
        raise AssertionError
except FileNotFoundError:
    pass
abandoned = child_of_ours(["true"])
with abandoned as child:
    pass
while os.path.exists(f"/proc/{child.pid}"):
    reap()
    time.sleep(0.01)
"""


@process_test
class OrphansTests(SynchronousTestCase):
    """L{resticserver.process.orphans}."""

    def test_ours_and_others(self) -> None:
        """Others are taken, ours are left to whoever has started them, and taken when they have been given up."""
        if not sys.platform.startswith("linux"):
            self.skipTest("the program looks into Linux's /proc")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((0, ""), (done.returncode, done.stderr))
