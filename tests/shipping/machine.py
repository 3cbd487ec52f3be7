"""
A machine for the tests: a tree of Debian, booted by systemd-nspawn. L{tests.shipping.debian} makes the trees.

A machine has a control group, a mount and process namespace and a network of its own (loopback only), and writes into an
overlay above its tree, so it costs no copy and changes nothing for the next. It ends with the test's process, whatever ends
that.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..support.waiting import wait_until

#: For one command in a machine.
_LONGEST_S = 300.0
#: A machine boots within seconds; this one may share its cores with other tests.
_BOOT_S = 120.0

_ENVIRONMENT = (
    "env",
    "-i",
    "HOME=/root",
    "LANG=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)

#: A mount namespace of a command's own.
NAMESPACES = ("unshare", "--mount", "--propagation", "private")

#: Moves this shell into a control group of its own, below the one that it is in. $1 is a mount point, $2 a name.
_ENTER_GROUP = """
mount -t cgroup2 cgroup2 "$1"
group="$1$(sed -n 's/^0:://p' /proc/self/cgroup)/$2"
mkdir -p "$group"
echo $$ >"$group/cgroup.procs"
umount "$1"
"""

#: Removes it when its processes have ended.
_LEAVE_GROUP = """
mount -t cgroup2 cgroup2 "$1"
group="$1$(sed -n 's/^0:://p' /proc/self/cgroup)/$2"
if [ -d "$group" ]; then find "$group" -depth -type d -exec rmdir {} +; fi
"""

#: $3 are the options of the overlay, $4 is where it is mounted.
_MOUNT_TREE = """
mount -t overlay -o "$3" overlay "$4"
"""

#: systemd-nspawn looks for the control group of process 1, so it has to be in the same one. It is process 1 of a namespace,
#: so the kernel ends the whole machine with it.
_BOOT = """
exec unshare --cgroup --pid --mount-proc --kill-child sh -e -c '
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
exec systemd-nspawn --quiet --directory="$1" --boot --register=no --keep-unit --private-network --link-journal=no \
    --resolv-conf=off --timezone=off --console=read-only --machine=machine
' sh "$4"
"""

_CHROOT = """
mount -t proc proc "$4/proc"
mount --rbind /dev "$4/dev"
root="$4"
shift 4
exec chroot "$root" "$@"
"""


class Machine:
    """
    One machine. Its commands run in the booted system, and before L{boot} and after L{shut_down} in its tree (chroot).

    @param layers: read-only trees; the first lies above the others.
    @param directory: for what the machine writes; removed by L{remove}.
    @ivar journals: the journal of each boot that has ended.
    """

    def __init__(self, layers: Sequence[Path], directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self.journals: list[str] = []
        for name in ("upper", "work", "root", "group"):
            (directory / name).mkdir()
        lower = ":".join(str(layer) for layer in layers)
        options = f"lowerdir={lower},upperdir={directory / 'upper'},workdir={directory / 'work'}"
        self._places = (str(directory / "group"), directory.name, options, str(directory / "root"))

    @property
    def is_booted(self) -> bool:
        """Whether the machine runs."""
        return self._process is not None

    @property
    def upper(self) -> Path:
        """What was written by the machine. Only to be used while it is shut down."""
        return self._directory / "upper"

    def boot(self) -> None:
        """
        Boot, and wait until everything was started that is enabled.

        @raise AssertionError: it did not boot; with what it printed.
        """
        assert self._process is None, "already booted"
        script = _ENTER_GROUP + _MOUNT_TREE + _BOOT
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                # The machine must not outlive these tests.
                ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "sh", "-e", "-c", script, "sh", *self._places],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        try:
            self._leader = wait_until(self._find_leader, _BOOT_S, "the machine's first process")
            wait_until(self._is_up, _BOOT_S, "the end of the boot")
        except BaseException as error:
            said = self._console.read_text(errors="replace")
            self._kill()
            raise AssertionError(f"the machine does not boot: {error}\n{said}") from error

    def _find_leader(self) -> int | None:
        """The process that is process 1 in the machine."""
        nspawn = _child_called("systemd-nspawn", self._running().pid)
        return nspawn and _child_called("systemd", nspawn)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not booted"
        if self._process.poll() is not None:
            raise AssertionError(f"systemd-nspawn ended ({self._process.returncode})")
        return self._process

    def _is_up(self) -> bool:
        self._running()
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def shut_down(self) -> None:
        """
        Shut the machine down in order. Idempotent.

        @raise AssertionError: it had to be killed.
        """
        if self._process is None:
            return
        self._keep_journal()
        nspawn = _child_called("systemd-nspawn", self._running().pid)
        assert nspawn is not None
        # It passes this on as the request for an orderly shutdown.
        os.kill(nspawn, signal.SIGTERM)
        try:
            self._process.wait(_BOOT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError("the machine did not shut down") from None
        finally:
            self._kill()

    def power_off(self) -> None:
        """End all processes at once, as a power cut does (what was written to files stays). Idempotent."""
        if self._process is not None:
            self._keep_journal()
            self._kill()

    def remove(self) -> None:
        """Stop the machine and remove all that it wrote. Idempotent."""
        self.power_off()
        remove_tree(self._directory)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        wait_until(lambda: leave_group(self._directory), _BOOT_S, "the end of the machine's processes")

    @property
    def _console(self) -> Path:
        return self._directory / "console"

    def _command(self, command: Sequence[str]) -> list[str]:
        if self._process is None:
            script = _MOUNT_TREE + _CHROOT
            return [*NAMESPACES, "sh", "-e", "-c", script, "sh", *self._places, *_ENVIRONMENT, *command]
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
        return ["nsenter", "--target", str(self._leader), *spaces, *_ENVIRONMENT, *command]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as root, with its output in pipes; it ends with the machine at the latest."""
        return subprocess.Popen(
            self._command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def run(
        self, *command: str, standard_input: bytes = b"", timeout_s: float = _LONGEST_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root, to its end."""
        done = subprocess.run(self._command(command), input=standard_input, capture_output=True, timeout=timeout_s)
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def succeed(self, *command: str, standard_input: bytes = b"", timeout_s: float = _LONGEST_S) -> str:
        """
        Run a command that must succeed; its output.

        @raise AssertionError: it failed.
        """
        done = self.run(*command, standard_input=standard_input, timeout_s=timeout_s)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, script: str, timeout_s: float = _LONGEST_S) -> str:
        """
        Run a script of sh that must succeed; its output. Each of its commands must.

        @raise AssertionError: one failed.
        """
        return self.succeed("sh", "-e", "-c", script, timeout_s=timeout_s)

    def write(self, path: str, content: str | bytes, mode: int = 0o644, owner: str = "root:root") -> None:
        """Write a file, and make its directories."""
        body = content.encode() if isinstance(content, str) else content
        script = 'mkdir -p "$(dirname "$1")"; cat >"$1"; chown "$3" "$1"; chmod "$2" "$1"'
        self.succeed("sh", "-e", "-c", script, "sh", path, f"{mode:o}", owner, standard_input=body)

    def read(self, path: str) -> str:
        """The content of a file."""
        return self.succeed("cat", path)

    def copy(self, source: Path, destination: str) -> None:
        """
        Copy a file or directory of this machine, with its modes, as root's.

        @param destination: its new path, whose parent need not exist.
        """
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source, arcname=os.path.basename(destination), filter=_as_root)
        parent = os.path.dirname(destination)
        self.succeed("mkdir", "-p", parent)
        self.succeed("tar", "-x", "-C", parent, standard_input=packed.getvalue())

    def journal(self, *arguments: str) -> str:
        """The journal of this boot, or what other arguments of journalctl ask for."""
        return self.succeed("journalctl", "--no-pager", "--quiet", "--output=short-precise", *arguments or ("--boot",))

    def _keep_journal(self) -> None:
        """For a report, so whatever goes wrong here must not hide what is reported."""
        try:
            self.journals.append(self.journal())
        except Exception as error:
            self.journals.append(f"no journal: {error}\n{self._console.read_text(errors='replace')}")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.succeed("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 60.0, what: str = "") -> None:
        """
        Wait until something holds in the machine.

        @raise AssertionError: it did not; with the end of the journal.
        """
        try:
            wait_until(lambda: bool(condition()), timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal('--boot', '--lines=40')}") from error


def remove_tree(directory: Path) -> None:
    """
    Remove a directory, unless something is mounted below it: that may be a directory of this machine, with others' files.

    @raise AssertionError: there is such a mount. Nothing was removed.
    """
    real = os.path.realpath(directory)
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        points = [line.split(" ")[1].encode("utf-8", "surrogateescape").decode("unicode_escape") for line in mounts]
    found = [point for point in points if point == real or point.startswith(f"{real}/")]
    assert not found, f"{directory} is not removed, because these are mounted there: {found}. Unmount them first"
    shutil.rmtree(directory, ignore_errors=True)


def leave_group(directory: Path) -> bool:
    """
    Remove the control group of a machine.

    @param directory: the machine's.
    @return: false while there are processes in it.
    """
    command = [*NAMESPACES, "sh", "-e", "-c", _LEAVE_GROUP, "sh", str(directory), directory.name]
    return subprocess.run(command, capture_output=True).returncode == 0


def _child_called(name: str, parent: int) -> int | None:
    """The child with this name of a process; C{None} if there is none (yet)."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == f"{name}\n":
                return int(child)
    return None


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
