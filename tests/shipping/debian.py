"""
The machines of the tests, and the trees that they boot.

The tree of Debian is made once for a run of the tests (mmdebstrap, from the package sources of this machine), and so is a
layer above it with this checkout installed in F{/opt/resticserver}. L{SHIPPING_CACHE} keeps the former from one run to the
next, for work on the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ..integration.test_packaging import build, demand_an_index, succeed
from ..support.scratch import Cleans
from ..support.waiting import wait_until
from .machine import NAMESPACES, Machine, leave_group, remove_tree

#: The environment variable that names a directory where the trees are kept between runs. Only the tree of Debian is used
#: again: the checkout is installed anew by each run.
SHIPPING_CACHE = "RESTICSERVER_SHIPPING_CACHE"

#: What a machine has beside Debian's essential packages and apt.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-venv",
    "curl",
    "restic",
    "openssl",
    "ca-certificates",
)
_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}

#: Where the checkout's program is in a machine.
PREFIX = "/opt/resticserver"

#: On a disk: an overlay needs attributes that not every tmpfs has, and a tree 300 MB.
_PLACE = Path("/var/tmp")


@functools.cache
def no_machines() -> str | None:
    """Why no machine can be booted here, or C{None}: what a test case's C{skip} is set to."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install {package})"
    if not _debian():
        return "machines are made from Debian's packages, and this is not Debian"
    with tempfile.TemporaryDirectory(prefix="restic-namespaces-") as scratch:
        tried = subprocess.run(
            [*NAMESPACES, "--cgroup", "mount", "-t", "cgroup2", "cgroup2", scratch], capture_output=True, text=True
        )
    return None if tried.returncode == 0 else f"no mount and control group namespaces: {tried.stderr.strip()}"


def new_machine(test: Cleans, with_program: bool = True) -> Machine:
    """
    A machine that has not been booted yet. It is stopped and removed after the test, and its journal is printed if the test
    case is a L{MachineTestCase} and has failed.

    @param with_program: whether this checkout is installed in L{PREFIX}; otherwise there is Debian alone.
    @raise SkipTest: its tree cannot be made without what is missing here.
    """
    layers = (program_layer(), debian_tree()) if with_program else (debian_tree(),)
    machine = Machine(layers, _new_directory())
    test.addCleanup(machine.remove)
    return machine


def _debian() -> str:
    """The code name of this Debian, or an empty string."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("VERSION_CODENAME", "") if release.get("ID") == "debian" else ""


def _new_directory() -> Path:
    """An empty directory that an overlay can be written to. What killed runs have left is removed before."""
    for left in _PLACE.glob("restic-machine-*-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            with contextlib.suppress(AssertionError):
                wait_until(functools.partial(leave_group, left), 10, "the end of a machine")
            remove_tree(left)
    return Path(tempfile.mkdtemp(prefix=f"restic-machine-{os.getpid()}-", dir=_PLACE))


@functools.cache
def debian_tree() -> Path:
    """
    A tree of this machine's Debian with systemd. Never to be written to.

    @raise SkipTest: the packages cannot be fetched.
    """
    cache = os.environ.get(SHIPPING_CACHE)
    tree = Path(cache or _kept_until_the_end(), f"debian-{_debian()}")
    if tree.is_dir():
        return tree
    new = tree.with_name(f"{tree.name}.{os.getpid()}")
    new.parent.mkdir(parents=True, exist_ok=True)
    listed = Path("/etc/apt/sources.list.d")
    sources = [*sorted(listed.glob("*.sources")), *sorted(listed.glob("*.list")), Path("/etc/apt/sources.list")]
    without = (f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale"))
    # It binds /dev/shm of this machine into the tree. If it is killed, those mounts must end with it: whatever removes the tree
    # would remove the files of others.
    command = [
        *NAMESPACES,
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        *without,
    ]
    used = [str(file) for file in sources if _is_debians(file)]
    made = subprocess.run(
        [*command, _debian(), str(new), *used], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if made.returncode != 0:
        remove_tree(new)
        raise SkipTest(f"mmdebstrap made no tree: {made.stderr.strip()[-400:]}")
    # It gets an id of its own at its first boot.
    (new / "etc/machine-id").write_text("")
    (new / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (new / "var/log/journal").mkdir(exist_ok=True)
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"):
        (new / "etc/systemd/system" / timer).symlink_to("/dev/null")
    new.rename(tree)
    return tree


def _is_debians(sources: Path) -> bool:
    """Whether a file names Debian's own packages: others need keys that the new tree does not have."""
    return sources.is_file() and "debian.org/debian" in sources.read_text()


@functools.cache
def program_layer() -> Path:
    """
    A layer above L{debian_tree} with this checkout installed, as the documents say it, in L{PREFIX}.

    @raise SkipTest: the packages that it needs cannot be fetched, or the tree has another Python.
    """
    machine = Machine([debian_tree()], _kept_until_the_end())
    ours = ".".join(map(str, sys.version_info[:2]))
    python = machine.succeed("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    if python != ours:
        raise SkipTest(f"the tests run under Python {ours}, but this Debian has {python}")
    with tempfile.TemporaryDirectory(prefix="restic-wheels-") as scratch:
        machine.copy(wheels(Path(scratch)), "/root/wheels")
    machine.shell(
        f"""
        python3 -m venv {PREFIX}
        {PREFIX}/bin/pip install --quiet --no-index --find-links /root/wheels resticserver
        rm -r /root/wheels
        """,
        timeout_s=900,
    )
    return machine.upper


def wheels(directory: Path) -> Path:
    """
    Wheels of this checkout and of all that it needs.

    @param directory: where they are built.
    @raise SkipTest: there is no package index.
    """
    demand_an_index(directory)
    found = directory / "wheels"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    succeed([*pip, "wheel", "--wheel-dir", found, build("wheel", directory)], directory)
    return found


def _kept_until_the_end() -> Path:
    directory = _new_directory()
    atexit.register(remove_tree, directory)
    return directory


class MachineTestCase(SynchronousTestCase):
    """Tests in machines. When one fails, the end of each machine's journal is printed."""

    #: How many lines of a journal are printed.
    journal_lines = 60

    _has_failed = False

    def run(self, result: Any) -> None:  # type: ignore[override]
        """Run the test, and notice when it fails: the cleanups cannot ask trial."""

        def noticing(add: Callable[[object, object], None]) -> Callable[[object, object], None]:
            def noticed(test: object, why: object) -> None:
                self._has_failed = True
                add(test, why)

            return noticed

        result.addError = noticing(result.addError)
        result.addFailure = noticing(result.addFailure)
        super().run(result)

    def machine(self, with_program: bool = True) -> Machine:
        """A machine as L{new_machine} makes it."""
        machine = new_machine(self, with_program)
        # Cleanups run in the opposite order: first the machine ends, then comes its report, then its files are removed.
        self.addCleanup(self._report, machine)
        self.addCleanup(machine.power_off)
        return machine

    def _report(self, machine: Machine) -> None:
        if not self._has_failed:
            return
        for number, journal in enumerate(machine.journals, 1):
            print(f"--- journal of boot {number} in {self.id()}")
            print("\n".join(journal.splitlines()[-self.journal_lines :]))
