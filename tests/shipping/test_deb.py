"""
The Debian package: it is built from this checkout, judged by lintian, installed on a machine that has nothing of it, used,
upgraded under load, removed and purged.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import resticserver

from ..integration.test_packaging import copy_of_the_tree, demand_an_index
from ..support.skipping import skipped
from .debian import MachineTestCase, no_machines
from .machine import Machine

_NEEDED = {"dpkg-buildpackage": "dpkg-dev", "dpkg-deb": "dpkg", "dh": "debhelper", "lintian": "lintian"}
_MISSING = [package for program, package in _NEEDED.items() if shutil.which(program) is None]
SKIP = f"not installed: {', '.join(_MISSING)}" if _MISSING else None

#: What the issue asks for; printed beside what it took, never asserted: the network decides.
WANTED_S = 60
UPGRADES = 5
URL = "rest:http://alice:secret@127.0.0.1:8000/alice/laptop"
PACKAGE = "/root/resticserver.deb"
UNITS = ("restic-rest.service", "restic-rest.socket")


class Built:
    """
    The package of this checkout.

    @ivar path: the package.
    @ivar changes: the description of the build, for lintian.
    @ivar seconds: how long C{make deb} took, without the environment that it uses.
    """

    def __init__(self, directory: Path) -> None:
        source = copy_of_the_tree(directory)
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
            },
            # Where the module build is.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        begun = time.monotonic()
        done = subprocess.run(
            [".ci/deb"],
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.seconds = time.monotonic() - begun
        assert done.returncode == 0, done.stdout
        (self.path,) = (source / "dist").glob("*.deb")
        (self.changes,) = (source / "build" / "deb").glob("*.changes")


@functools.cache
def built() -> Built:
    """
    The package, built once for a run of the tests.

    @raise SkipTest: something that the build needs is missing here.
    """
    checked = subprocess.run(
        ["dpkg-checkbuilddeps", str(Path(__file__).parents[2] / "etc" / "debian" / "control")],
        stderr=subprocess.PIPE,
        text=True,
    )
    if checked.returncode != 0:
        raise SkipTest(checked.stderr.strip())
    directory = Path(tempfile.mkdtemp(prefix="restic-deb-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    demand_an_index(directory)
    package = Built(directory)
    size_mb = package.path.stat().st_size / 1e6
    print(f"\n{package.path.name}: built in {package.seconds:.0f} s, {size_mb:.1f} MB")
    return package


def with_version(package: Path, version: str, directory: Path) -> Path:
    """
    The same package as another version.

    @param directory: for the new package and its files.
    """
    tree = directory / version
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}+test", control.read_text()))
    (module,) = tree.glob("usr/lib/resticserver/lib/python3.*/site-packages/resticserver/__init__.py")
    module.write_text(re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', module.read_text()))
    # The sums of the package's files, one of which has changed.
    (tree / "DEBIAN" / "md5sums").unlink()
    new = directory / f"{version}.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(tree), str(new)], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return new


@skipped(SKIP)
class ContentsTests(SynchronousTestCase):
    """The package as a file."""

    def test_lintian(self) -> None:
        """No error and no warning that is not overridden by name, with a reason; no override that is not needed."""
        command = ["lintian", "--allow-root", "--tag-display-limit", "0", "--info", str(built().changes)]
        judged = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual("", judged.stdout)
        self.assertEqual(0, judged.returncode)

    def test_files(self) -> None:
        """What is where; no path of the build, no bytecode, and no file of /opt in the units."""
        directory = Path(self.mktemp())
        subprocess.run(["dpkg-deb", "--raw-extract", str(built().path), str(directory)], check=True)
        for name in (
            *("usr/bin/rest-server", "etc/rest-server.toml", "etc/logrotate.d/restic-rest"),
            *("usr/share/man/man1/rest-server.1.gz", "usr/share/man/man5/rest-server.toml.5.gz"),
            "usr/share/bash-completion/completions/rest-server",
            "usr/share/zsh/vendor-completions/_rest-server",
            "usr/share/fish/vendor_completions.d/rest-server.fish",
            "usr/share/doc/resticserver/examples/nginx/restic-rest.conf",
        ):
            self.assertTrue((directory / name).is_file() or (directory / name).is_symlink(), name)
        configuration = (directory / "DEBIAN/conffiles").read_text().split()
        self.assertEqual({"/etc/rest-server.toml", "/etc/logrotate.d/restic-rest"}, set(configuration))
        self.assertEqual([], [str(path) for path in directory.rglob("*.pyc")])
        for unit in UNITS:
            # Debian 12 still has them in /lib.
            (path,) = directory.glob(f"**/lib/systemd/system/{unit}")
            self.assertNotIn("/opt/", path.read_text(), unit)
        with_build_path = subprocess.run(
            [
                "grep",
                "--recursive",
                "--files-with-matches",
                "--fixed-strings",
                str(built().path.parent),
                str(directory),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.assertEqual("", with_build_path.stdout)


@skipped(SKIP or no_machines())
class InstallTests(MachineTestCase):
    """The package on a machine that has Debian and restic."""

    def setUp(self) -> None:
        package = built().path
        self.debian = self.machine(with_program=False)
        self.debian.copy(package, PACKAGE)

    def restic(self, *arguments: str) -> str:
        """Run restic, which must succeed without a second attempt; its output."""
        finished = self.debian.run("env", "RESTIC_PASSWORD=x", "restic", "--repo", URL, *arguments)
        said = finished.stdout + finished.stderr
        self.assertEqual(finished.returncode, 0, said)
        self.assertNotIn("retr", said)
        return said

    def install(self, package: str = PACKAGE) -> str:
        """Install a package with what it needs; the output."""
        apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet")
        return self.debian.succeed(*apt, "--no-install-recommends", package)

    def add_user(self) -> None:
        """Add the user of L{URL}, as the message of the package says."""
        add = ("rest-server", "user", "add", "--path", "/var/lib/restic", "alice")
        self.debian.succeed(*add, standard_input=b"secret\n")
        self.debian.succeed("systemctl", "reload", "restic-rest")
        # systemd does not wait until a reload is done.
        ask = ("curl", "--silent", "--user", "alice:secret", "--output", "/dev/null", "--write-out", "%{http_code}")
        address = URL.removeprefix("rest:").replace("alice:secret@", "")
        self.debian.wait_for(lambda: self.debian.succeed(*ask, f"{address}/config") == "404", what="the new user")

    def links_and_files(self) -> list[str]:
        """All of the package that is on the machine."""
        names = ("*restic-rest*", "*resticserver*", "rest-server*")
        tests = " -o ".join(f"-name '{name}'" for name in names)
        found = self.debian.shell(
            f"find / -xdev \\( -path /proc -o -path /root -o -path /var/tmp -o -path /tmp \\) -prune -o \\( {tests} \\) -print"
        )
        return found.split()

    def test_first_backup(self) -> None:
        """From a tree without Python to the first backup, with the time that it takes."""
        apt = "DEBIAN_FRONTEND=noninteractive apt-get"
        self.debian.shell(
            f"{apt} purge --yes --quiet --auto-remove python3 'python3.*' 'libpython3*'; ! command -v python3"
        )
        updated = self.debian.run("apt-get", "update", "--quiet")
        if updated.returncode != 0:
            raise SkipTest(f"apt cannot reach Debian's packages: {updated.stderr.strip()[-200:]}")
        begun = time.monotonic()
        self.assertIn("rest-server user add --path /var/lib/restic", self.install())
        installed_s = time.monotonic() - begun
        self.debian.boot()
        begun = time.monotonic()
        self.add_user()
        self.restic("init")
        self.restic("backup", "/etc")
        used_s = time.monotonic() - begun
        print(
            f"\nfresh tree to first backup: {installed_s + used_s:.1f} s (at most {WANTED_S} s wanted), "
            f"{installed_s:.1f} s of it for apt-get install with Python"
        )
        self.assertIn("no errors were found", self.restic("check", "--read-data"))

    def test_life(self) -> None:
        """Installed on the running system, used with several workers, removed, installed again and purged: the data stay."""
        machine = self.debian
        machine.boot()
        self.install()
        self.assertEqual(["enabled"] * 2, machine.succeed("systemctl", "is-enabled", *UNITS).split())
        self.assertEqual(["active"] * 2, machine.succeed("systemctl", "is-active", *UNITS).split())
        self.assertIn(f"rest-server {resticserver.__version__} ", machine.succeed("rest-server", "--version"))
        machine.shell("echo 'workers = 2' >>/etc/rest-server.toml; systemctl restart restic-rest.service")
        self.add_user()
        self.restic("init")
        self.restic("backup", "/etc")
        group = machine.show("restic-rest.service", "ControlGroup")
        self.assertEqual(3, len(machine.read(f"/sys/fs/cgroup{group}/cgroup.procs").split()))
        # Bytecode of all modules is there, so that no start compiles them.
        self.assertIn(
            "cli.cpython", machine.shell("ls /usr/lib/resticserver/lib/python3*/site-packages/resticserver/__pycache__")
        )
        # The list of plugins is current: twistd has nothing to write and to complain of.
        self.assertIn("restic-rest", machine.shell("/usr/lib/resticserver/bin/twistd --help 2>&1"))

        # Another server, by the template.
        machine.shell(
            """
            mkdir --parents /etc/rest-server /var/lib/restic-photos
            touch /etc/rest-server/photos.toml /var/lib/restic-photos/.htpasswd
            systemctl enable --now --quiet restic-rest@photos.socket restic-rest@photos.service
            curl --silent --fail --unix-socket /run/restic-rest/photos.sock http://localhost/-/ready
            """
        )

        machine.succeed("apt-get", "remove", "--yes", "resticserver")
        self.assertEqual(1, machine.run("test", "-e", "/usr/lib/resticserver").returncode)
        self.assertNotEqual(0, machine.run("curl", "--silent", "http://127.0.0.1:8000/").returncode)
        self.install()
        self.assertIn("workers = 2", machine.read("/etc/rest-server.toml"))
        self.restic("backup", "/etc")

        said = machine.succeed("apt-get", "purge", "--yes", "resticserver")
        self.assertIn("resticserver: the repositories in /var/lib/restic were kept", said)
        # The administrator's.
        machine.shell("rm -r /etc/rest-server")
        self.assertEqual([], self.links_and_files())
        dangling = machine.shell("find /etc/systemd /lib/systemd -xtype l ! -lname /dev/null")
        self.assertEqual("", dangling)
        self.assertEqual("", machine.succeed("systemctl", "list-units", "--all", "--no-legend", "restic-rest*"))
        kept = machine.shell("cd /var/lib/restic/; find . -type f").split()
        self.assertIn("./.htpasswd", kept)
        self.assertIn("./alice/laptop/config", kept)
        self.assertEqual(2, len([name for name in kept if "/snapshots/" in name]))
        # The backups are restic's own.
        local = ("env", "RESTIC_PASSWORD=x", "restic", "--repo", "/var/lib/restic/alice/laptop")
        self.assertIn("no errors were found", machine.succeed(*local, "check", "--read-data"))

    def test_upgrades(self) -> None:
        """New versions while backups run through the socket, one after the other: none fails, none is tried again."""
        machine = self.debian
        directory = Path(self.mktemp())
        directory.mkdir()
        versions = [f"{99 + number}.0" for number in range(UPGRADES)]
        for version in versions:
            machine.copy(with_version(built().path, version, directory), f"/root/{version}.deb")
        machine.boot()
        self.install()
        self.add_user()
        self.restic("init")
        machine.write("/root/loop", _LOOP, mode=0o755)
        machine.shell("head -c 20M /dev/urandom >/root/data; mkdir /root/runs")
        loop = machine.start("/root/loop")
        try:
            self.upgrade(machine, versions)
        finally:
            machine.write("/root/enough", "")
            out, _ = loop.communicate(timeout=300)
        runs = [line.split() for line in machine.read("/root/runs/list").splitlines()]
        failed = [number for number, status in runs if status != "0"]
        said = machine.shell("cat /root/runs/*.out")
        retries = [line for line in said.splitlines() if "retr" in line or "returned error" in line]
        print(
            f"\n{UPGRADES} upgrades during {len(runs)} backups: {len(failed)} failed, {len(retries)} lines of retries"
        )
        self.assertEqual(([], []), (failed, retries[:3]), machine.journal("--unit=restic-rest*", "--lines=40") + out)
        self.assertGreater(len(runs), UPGRADES)
        self.assertIn("no errors were found", self.restic("check", "--read-data"))

    def upgrade(self, machine: Machine, versions: list[str]) -> None:
        """Install each version while backups run, and see that it serves."""
        for version in versions:
            before = machine.show("restic-rest.service", "MainPID")
            self.wait_for_run(machine)
            begun = time.monotonic()
            machine.succeed("dpkg", "--install", f"/root/{version}.deb")
            print(f"\nupgrade to {version}: {time.monotonic() - begun:.1f} s", end="")
            self.assertNotEqual(before, machine.show("restic-rest.service", "MainPID"))
            self.assertIn(f"rest-server {version} ", machine.succeed("rest-server", "--version"))
            self.wait_for_run(machine)

    def wait_for_run(self, machine: Machine) -> None:
        """Wait for the end of the backup that runs now."""
        before = self.count_runs(machine)
        machine.wait_for(lambda: self.count_runs(machine) > before, what="another backup")

    def count_runs(self, machine: Machine) -> int:
        """How many backups have ended."""
        return len(machine.shell("cat /root/runs/list 2>/dev/null || true").splitlines())


#: Backups of new data until F{/root/enough} appears: number and exit status of each in F{list}, what it said in a file.
_LOOP = f"""#!/bin/sh
export RESTIC_PASSWORD=x
number=0
while [ ! -e /root/enough ]; do
    number=$((number + 1))
    head -c 2M /dev/urandom >/root/data.new
    status=0
    restic --repo {URL} backup --verbose /root/data /root/data.new >/root/runs/$number.out 2>&1 || status=$?
    echo "$number $status" >>/root/runs/list
done
"""
