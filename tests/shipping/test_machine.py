"""
The machines of these tests: that they boot, keep their files, and leave nothing behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..support.scratch import scratch_directory
from ..support.waiting import wait_until
from .debian import PREFIX, SHIPPING_CACHE, MachineTestCase, debian_tree, new_machine, no_machines
from .machine import remove_tree


class MachineTests(MachineTestCase):
    """One machine through its life."""

    skip = no_machines()

    def test_life(self) -> None:
        """Files are there before the boot, after it and after the next one, and nothing of it is left at the end."""
        machine = self.machine()
        machine.write("/root/before", "written before the boot\n", mode=0o600)
        machine.boot()
        self.assertEqual("systemd\n", machine.read("/proc/1/comm"))
        self.assertEqual("written before the boot\n", machine.read("/root/before"))
        self.assertEqual("600 root", machine.succeed("stat", "--format=%a %U", "/root/before").strip())
        self.assertIn("rest-server", machine.succeed(f"{PREFIX}/bin/rest-server", "--version"))
        source = scratch_directory(self) / "some"
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "file").write_text("copied\n")
        machine.copy(source, "/srv/new/name")
        self.assertEqual("copied\n", machine.read("/srv/new/name/deep/file"))
        machine.shut_down()
        self.assertIn("Reached target", machine.journals[0])
        self.assertEqual("copied\n", machine.read("/srv/new/name/deep/file"))
        machine.boot()
        self.assertEqual("copied\n", machine.read("/srv/new/name/deep/file"))
        machine.remove()
        self.assertEqual([], processes_with(f"restic-machine-{os.getpid()}-"))
        self.assertNotIn(f"restic-machine-{os.getpid()}-", Path("/proc/self/mounts").read_text())

    def test_failures(self) -> None:
        """A command that fails says why, and a machine is not seen by the next one."""
        machine = self.machine(with_program=False)
        machine.boot()
        said = self.assertRaises(AssertionError, machine.shell, "echo here; touch /root/mine; ls /missing")
        self.assertIn("here\nls: cannot access '/missing'", str(said))
        other = self.machine(with_program=False)
        other.boot()
        self.assertEqual(1, other.run("test", "-e", "/root/mine").returncode)
        self.assertEqual(0, machine.run("test", "-e", "/root/mine").returncode)
        self.assertEqual(1, other.run("test", "-e", PREFIX).returncode)

    def test_mounts_stay(self) -> None:
        """A directory with a mount below it is not removed, and what is mounted keeps its files."""
        scratch = scratch_directory(self)
        others, tree = scratch / "others", scratch / "tree"
        others.mkdir()
        (others / "file").write_text("of others\n")
        point = tree / "dev" / "with space"
        point.mkdir(parents=True)
        subprocess.run(["mount", "--bind", others, point], check=True)
        try:
            self.assertRaises(AssertionError, remove_tree, tree)
            self.assertEqual("of others\n", (others / "file").read_text())
        finally:
            subprocess.run(["umount", point], check=True)
        remove_tree(tree)
        self.assertFalse(tree.exists())
        self.assertEqual("of others\n", (others / "file").read_text())

    def test_owner_ends(self) -> None:
        """A machine does not outlive the process that started it, and its files are removed by the next run."""
        new_machine(self, with_program=False)  # The tree is there.
        program = (
            "import unittest; from tests.shipping.debian import *;"
            "machine = new_machine(unittest.TestCase(), with_program=False); machine.boot(); print('booted', flush=True);"
            "import time; time.sleep(600)"
        )
        environment = {**os.environ, SHIPPING_CACHE: str(debian_tree().parent)}
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as owner:
            assert owner.stdout is not None
            self.assertEqual(b"booted\n", owner.stdout.readline())
            name = f"restic-machine-{owner.pid}-"
            self.assertNotEqual([], processes_with(name))
            owner.kill()
        wait_until(lambda: not processes_with(name), what="the end of the machine's processes")
        self.assertNotEqual([], list(Path("/var/tmp").glob(f"{name}*")))
        new_machine(self, with_program=False)
        self.assertEqual([], list(Path("/var/tmp").glob(f"{name}*")))
        self.assertEqual([], list(Path("/sys/fs/cgroup").glob(f"**/{name}*")))


def processes_with(text: str) -> list[str]:
    """The command lines with this text."""
    listed = subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if text in line]
