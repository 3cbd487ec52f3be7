"""
The OpenRC script, by the real OpenRC in a tree of Debian's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import resticserver

from ..support.namespaces import no_namespaces
from ..support.server import children_of
from ..support.waiting import wait_until
from .examples import ETC
from .machine import NAMESPACES, remove_tree

PACKAGES = "openrc,python3,procps"
#: The first process there: it waits for the end of those that have lost their parent, as an init does.
INIT = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.05)
"""
#: What `openrc sysinit` makes.
STATES = (
    "starting started stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled init.d tmp"
)
PROGRAM = "/opt/resticserver/bin/rest-server"


def missing() -> str | None:
    """Why this cannot be tried here, or C{None}."""
    if os.geteuid() != 0:
        return "only root can make a tree"
    for program in ("mmdebstrap", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return no_namespaces("--mount", "--pid", "--fork", "--cgroup")


class OpenrcTests(SynchronousTestCase):
    """openrc-run and supervise-daemon."""

    skip = missing()

    def setUp(self) -> None:
        self.tree = Path(tempfile.mkdtemp(prefix="restic-openrc-", dir="/var/tmp"))
        self.addCleanup(remove_tree, self.tree)
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        made = subprocess.run(
            [
                *(*NAMESPACES, "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"),
                *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"),
                *(release.get("VERSION_CODENAME", "stable"), str(self.tree)),
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual(0, made.returncode, made.stderr)
        self.install()
        self.enter()

    def install(self) -> None:
        """The server of the tests' own environment in /opt/resticserver, the script and what its head asks for."""
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if not (self.tree / "usr" / "bin" / f"python{version}").exists():
            self.skipTest(f"Debian's Python is not {version}")
        self.chroot("python3", "-m", "venv", "--without-pip", "/opt/resticserver")
        packages = self.tree / "opt" / "resticserver" / "lib" / f"python{version}" / "site-packages"
        ours = Path(sysconfig.get_path("purelib"))
        shutil.copytree(
            ours, packages, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__editable__*", "mypy*", "ruff*")
        )
        checkout = Path(resticserver.__file__).parents[1]
        for name in ("resticserver", "twisted"):
            shutil.copytree(checkout / name, packages / name, dirs_exist_ok=True)
        program = self.tree / PROGRAM[1:]
        program.write_text(
            "#!/opt/resticserver/bin/python3\nimport sys\nfrom resticserver.cli import main\nsys.exit(main())\n"
        )
        program.chmod(0o755)
        (self.tree / "etc" / "conf.d").mkdir(exist_ok=True)
        shutil.copy(ETC / "openrc" / "restic-rest.confd", self.tree / "etc" / "conf.d" / "restic-rest")
        shutil.copy(ETC / "openrc" / "restic-rest", self.tree / "etc" / "init.d" / "restic-rest")
        self.assertTrue(os.access(self.tree / "etc" / "init.d" / "restic-rest", os.X_OK))
        # Debian has these under the names of System V.
        for name, depend in (("networking", "depend() { provide net; }\n"), ("localmount", "")):
            stub = self.tree / "etc" / "init.d" / name
            stub.write_text(f"#!/sbin/openrc-run\n{depend}start() {{ :; }}\n")
            stub.chmod(0o755)
        self.chroot("useradd", "--system", "restic")
        (self.tree / "etc" / "rest-server.toml").write_text('listen = ["unix:/run/rest.sock"]\nno-auth = true\n')

    def chroot(self, *command: str) -> None:
        """Run a command in the tree before it is entered."""
        subprocess.run(["chroot", str(self.tree), *command], check=True, capture_output=True)

    def enter(self) -> None:
        """Start a first process in namespaces of its own; everything in there ends with it, mounts too."""
        (self.tree / "init.py").write_text(INIT)
        script = (
            'mount -t tmpfs tmpfs "$0/run"; mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; mkdir "$0/run/openrc"; '
            f'cd "$0/run/openrc"; mkdir {STATES}; touch softlevel; exec chroot "$0" python3 /init.py'
        )
        namespaces = ("unshare", "--cgroup", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
        outside = subprocess.Popen([*namespaces, "sh", "-ec", script, str(self.tree)], stdin=subprocess.DEVNULL)
        self.addCleanup(outside.wait)
        self.addCleanup(outside.kill)
        self.init = wait_until(lambda: next(iter(children_of(outside.pid)), 0), what="the first process")
        # Before that it is the shell, which has not mounted everything yet.
        wait_until(lambda: Path(f"/proc/{self.init}/cmdline").read_bytes() == b"python3\0/init.py\0", what="its start")

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there."""
        entered = ("nsenter", "--target", str(self.init), "--mount", "--pid", "--cgroup", "--root", "--wd")
        return subprocess.run(
            [*entered, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )

    def service(self, command: str, status: int = 0) -> None:
        """Run a command of the script."""
        done = self.inside("rc-service", "restic-rest", command)
        self.assertEqual(status, done.returncode, (command, done, self.said()))

    def said(self) -> str:
        """The server's diagnostics."""
        log = self.tree / "var" / "log" / "restic" / "server.log"
        return log.read_text() if log.exists() else ""

    def server(self) -> int:
        """The server's process, as it is called in there; 0 without one."""
        found = self.inside("pgrep", "-xf", f"[^ ]*python3 {PROGRAM} .*")
        return int(found.stdout or 0)

    def ready(self) -> bool:
        """Whether the server answers."""
        # Another program of Python's, so that the tree needs no curl.
        ask = (
            "import http.client, socket; c = http.client.HTTPConnection('x'); c.sock = socket.socket(socket.AF_UNIX); "
            "c.sock.connect('/run/rest.sock'); c.request('GET', '/-/ready'); assert c.getresponse().status == 200"
        )
        return self.inside("python3", "-c", ask).returncode == 0

    def test_life(self) -> None:
        """Start, reload, crash, stop; the owner and the modes of what it makes; once more after all that."""
        self.service("status", 3)
        self.service("start")
        wait_until(self.ready, what=self.said)
        self.service("status")
        user = self.inside("ps", "-o", "user=", "-p", str(self.server())).stdout.strip()
        self.assertEqual("restic", user)
        modes = self.inside("stat", "-c", "%U %a", "/var/lib/restic", "/var/log/restic", "/var/log/restic/access.log")
        self.assertEqual("restic 700\nrestic 750\nrestic 600\n", modes.stdout)

        before = self.server()
        (self.tree / "var" / "log" / "restic" / "access.log").rename(
            self.tree / "var" / "log" / "restic" / "access.log.1"
        )
        self.service("reload")
        wait_until((self.tree / "var" / "log" / "restic" / "access.log").exists, what="a new access log")
        self.assertEqual(before, self.server())

        for _ in range(7):
            crashed = self.server()
            self.inside("kill", f"-{signal.SIGKILL.value}", str(crashed))
            wait_until(lambda: self.server() not in (0, crashed), what=self.said)
            wait_until(self.ready, what=self.said)
        self.service("status")

        self.service("stop")
        self.assertEqual(0, self.server())
        self.assertTrue(self.said().rstrip().endswith("shutdown cleanly"), self.said())
        self.service("status", 3)
        self.service("start")
        wait_until(self.ready, what=self.said)
        self.service("restart")
        wait_until(self.ready, what=self.said)

        # The script says what is missing, and starts nothing.
        self.service("stop")
        (self.tree / "etc" / "rest-server.toml").unlink()
        done = self.inside("rc-service", "restic-rest", "start")
        self.assertNotEqual(0, done.returncode)
        self.assertIn("/etc/rest-server.toml", done.stdout + done.stderr)
        self.assertEqual(0, self.server())
