"""
The wheel under pipx: installed by a user without rights on a machine that has nothing of it, used and uninstalled.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

import resticserver

from ..support.scratch import scratch_directory
from .debian import MachineTestCase, no_machines, wheels

WHEELS = "/srv/wheels"
HOME = "/home/tester"
URL = "rest:http://alice:secret@127.0.0.1:8123/alice/laptop"
#: The wheels of the server, of all that it needs, and of pipx.
NEEDED_BYTES = 200 << 20


class PipxTests(MachineTestCase):
    """From no pipx to an uninstalled server."""

    skip = no_machines()

    def setUp(self) -> None:
        directory = scratch_directory(self, NEEDED_BYTES)
        found = wheels(directory)
        # pipx keeps these for its environments, and asks for them when it makes the first.
        extra = ("pipx", "pip", "setuptools", "wheel")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--wheel-dir", str(found), *extra], check=True, stderr=subprocess.DEVNULL)
        self.debian = self.machine(with_program=False)
        self.debian.copy(found, WHEELS)
        self.debian.shell("useradd --create-home tester")

    def as_user(self, script: str) -> str:
        """Run a script of sh, which must succeed, as the user; its output."""
        path = f"{HOME}/.local/bin:/opt/pipx/bin:/usr/bin:/bin"
        environment = {"HOME": HOME, "PATH": path, "LANG": "C.UTF-8", "RESTIC_PASSWORD": "x"}
        return self.debian.succeed(
            *("runuser", "-u", "tester", "--", "env", "-i"),
            *(f"{name}={value}" for name, value in environment.items()),
            *("sh", "-e", "-c", f"cd\n{script}"),
        )

    def live(self, links_man_pages: bool) -> None:
        """
        Install, use with two workers, and uninstall: the data stay.

        @param links_man_pages: whether this pipx does.
        """
        begun = time.monotonic()
        # In place of a package index.
        options = shlex.quote(f"--no-index --find-links {WHEELS}")
        self.as_user(f"pipx install --pip-args={options} {WHEELS}/resticserver-*.whl 2>&1")
        self.assertIn(f"rest-server {resticserver.__version__} ", self.as_user("rest-server --version"))
        self.as_user("mkdir backups; echo secret | rest-server user add --path backups alice")
        self.as_user(
            f"""
            rest-server --path backups --listen 127.0.0.1:8123 --workers 2 >log 2>&1 &
            server=$!
            trap 'kill $server' EXIT
            for attempt in $(seq 60); do
                if grep -q 'start server on' log; then break; fi
                sleep 1
            done
            restic --repo {URL} init
            restic --repo {URL} backup /etc/systemd
            wc --words </proc/$server/task/$server/children >workers
            trap - EXIT
            kill $server
            wait $server
            """
        )
        self.assertEqual("2", self.debian.read(f"{HOME}/workers").strip())
        print(f"\npipx install to first backup: {time.monotonic() - begun:.1f} s")
        share = self.as_user('echo "$(pipx environment --value PIPX_LOCAL_VENVS)/resticserver/share"').strip()
        for name in ("man/man1/rest-server.1", "resticserver/systemd/restic-rest.service"):
            self.assertEqual(0, self.debian.run("test", "-f", f"{share}/{name}").returncode, name)
        if links_man_pages:
            # Where man looks for a program of ~/.local/bin.
            self.assertIn(r".TH REST\-SERVER 1", self.as_user("cat .local/share/man/man1/rest-server.1").upper())
        self.as_user("pipx uninstall resticserver")
        self.assertNotEqual(0, self.debian.run("test", "-e", share).returncode)
        self.assertEqual(
            "", self.as_user(f"find {HOME}/.local/bin {HOME}/.local/share/man ! -type d 2>/dev/null || true")
        )
        self.assertIn("no errors were found", self.as_user("restic --repo backups/alice/laptop check --read-data"))

    def test_current(self) -> None:
        """The pipx of the package index, which also links the man pages."""
        self.debian.shell(
            f"""
            python3 -m venv /opt/pipx
            /opt/pipx/bin/pip install --quiet --no-index --find-links {WHEELS} pipx
            """
        )
        self.debian.boot()
        print(f"\npipx {self.as_user('pipx --version').strip()}", end="")
        self.live(links_man_pages=True)

    def test_debian(self) -> None:
        """The pipx of this Debian."""
        installed = self.debian.run(
            *("sh", "-e", "-c", "apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends pipx")
        )
        if installed.returncode != 0:
            self.skipTest(f"apt cannot reach Debian's packages: {installed.stderr.strip()[-200:]}")
        self.debian.boot()
        print(f"\npipx {self.as_user('pipx --version').strip()}", end="")
        self.live(links_man_pages=False)
