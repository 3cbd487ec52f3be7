"""
Container images and containers for tests: a base image made from Debian's archive, what builds the shipped image from it,
and containers in namespaces of their own.

podman makes networks, mounts and control groups. All of them are in namespaces of a L{Sandbox} and end with it, also after
a test that failed. Images are on a file system in memory that ends with it, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..integration.test_packaging import copy_of_the_tree, environment_variables, succeed
from ..support.server import children_of
from ..support.waiting import wait_until
from .machine import NAMESPACES, remove_tree

#: What must be installed for these tests.
PROGRAMS = (
    "buildah",
    "podman",
    "runc",
    "mmdebstrap",
    "nsenter",
    "unshare",
    "setpriv",
    "netavark",
    "iptables",
    "restic",
    "curl",
)
#: The environment variable for a directory that keeps the base's files from one run to the next.
CACHE = "RESTICSERVER_SHIPPING_CACHE"
_PACKAGES = ("python3", "python3-venv", "ca-certificates")
#: For one command: a base needs half a minute, on a busy machine more.
LONGEST_S = 900.0
#: What the images and containers of one class need.
_MEMORY = "6g"

_CONTAINERS_CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["/usr/libexec/podman", "/usr/lib/podman"]
[network]
network_backend = "netavark"
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
log_driver = "k8s-file"
"""
_STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{directory}/images"
runroot = "{directory}/run"
"""
_NAMESPACES = (
    *("setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child", "--mount-proc"),
    *("--pid", "--cgroup", "--mount", "--net", "--propagation=private"),
)
#: The hierarchies of version 1 are mounted again, so that groups are made below the group that the tests run in.
_SET_UP = """
mount -t tmpfs -o size={memory} tmpfs {directory}
for group in /sys/fs/cgroup/*/; do
    type=$(stat -f -c %T $group); name=$(basename $group)
    if [ $type = cgroupfs ]; then
        if [ $name = systemd ]; then options=none,name=systemd; else options=$name; fi
        umount $group && mount -t cgroup -o $options cgroup $group
    fi
done
mkdir -p {directory}/tmp && mount --bind {directory}/tmp /var/tmp
mount -t tmpfs tmpfs /run
ip link set lo up
echo ready
# The shell is process 1 there, and waits for processes that containers leave behind.
while :; do sleep 1; done
"""


def why_not() -> str | None:
    """Why containers cannot be tried here, or C{None}."""
    if os.geteuid() != 0:
        return "containers need root here"
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/lib/podman", "/usr/libexec/podman"))
    missing = [program for program in PROGRAMS if shutil.which(program, path=places) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(missing)})"
    if not Path("/etc/debian_version").exists():
        return "the base image is made from Debian's packages, and this is not Debian"
    # The wheels are built by the Python of the tests, and installed by that of the base, which is the system's.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not Path(f"/usr/bin/python{version}").exists():
        return f"the tests run under Python {version}, for which this Debian has no python3"
    tried = subprocess.run([*_NAMESPACES, "true"], capture_output=True)
    return None if tried.returncode == 0 else "namespaces need more rights than the tests have"


def debian_release() -> str:
    """The code name of the Debian release that runs."""
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise AssertionError("/etc/os-release has no VERSION_CODENAME")


class Sandbox:
    """
    Namespaces for mounts, control groups and networks, in which podman and buildah run.

    @ivar directory: for files; removed at the end.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="restic-ship-"))
        script = _SET_UP.format(memory=_MEMORY, directory=self.directory)
        # All processes inside end with process 1, and that one with the tests, however they end.
        self._holder = subprocess.Popen(
            [*_NAMESPACES, "sh", "-e", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.close()
            raise AssertionError("the namespaces could not be set up")
        [self._init] = children_of(self._holder.pid)
        # The files must be on the file system that podman sees.
        self.write("containers.conf", _CONTAINERS_CONF)
        self.write("storage.conf", _STORAGE_CONF.format(directory=self.directory))

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file inside, below its directory; the path."""
        path = self.directory / name
        self.run(
            "sh",
            "-c",
            'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"',
            "sh",
            str(path),
            f"{mode:o}",
            stdin=text,
        )
        return path

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs inside."""
        namespaces = ("--pid", "--cgroup", "--mount", "--net")
        return ["nsenter", f"--target={self._init}", *namespaces, "--", *map(str, words)]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """For commands inside."""
        return {
            **environment_variables(),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
            **(extra or {}),
        }

    def run(
        self, *words: str | Path, stdin: str = "", extra: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end."""
        if cwd is not None:
            # nsenter begins in the root.
            words = ("env", f"--chdir={cwd}", *words)
        return subprocess.run(
            self.command(*words),
            input=stdin,
            env=self.environment(extra),
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )

    def succeed(self, *words: str | Path, **named: Any) -> str:
        """
        Run a command inside that must succeed; its output.

        @raise AssertionError: it failed.
        """
        done = self.run(*words, **named)
        assert done.returncode == 0, (
            f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def podman(self, *words: str | Path, **named: Any) -> str:
        """Run podman, which must succeed; its output without the newline at the end."""
        return self.succeed("podman", *words, **named).rstrip("\n")

    def close(self) -> None:
        """End all processes inside. Containers, mounts and networks end with them."""
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        remove_tree(self.directory)


def make_base(sandbox: Sandbox, directory: Path) -> str:
    """
    An image with Debian's Python, from Debian's archive.

    @param directory: for its files, if the environment does not name one that keeps them for the next run.
    @return: its name.
    """
    tree = Path(os.environ.get(CACHE) or directory) / f"python-{debian_release()}.tar"
    if not tree.exists():
        left_out = (f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale"))
        command = [
            *NAMESPACES,
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(_PACKAGES)}",
            *left_out,
        ]
        # Not inside: there is no network.
        subprocess.run([*command, debian_release(), tree], check=True, stdin=subprocess.DEVNULL, timeout=LONGEST_S)
    name = "localhost/debian-python:base"
    sandbox.podman("import", "--quiet", tree, name)
    return name


def make_context(directory: Path) -> Path:
    """The files of the checkout, and wheels of the server and all that it needs: what the image is built from."""
    context = copy_of_the_tree(directory)
    succeed(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", context / "wheels", f"{context}[objects]"],
        directory,
    )
    return context


def build_image(
    sandbox: Sandbox, context: Path, base: str, target: str, name: str, version: str = "", extras: str = ""
) -> float:
    """
    Build a target of the shipped F{Dockerfile}.

    @param target: empty for the default one.
    @param extras: of the package.
    @return: how many seconds it took.
    """
    flags = (f"--target={target}",) if target else ()
    begun = time.monotonic()
    arguments = (f"--build-arg=BASE={base}", f"--build-arg=VERSION={version}", f"--build-arg=EXTRAS={extras}")
    file = context / "etc" / "docker" / "Dockerfile"
    sandbox.succeed(
        *("buildah", "bud", "--quiet", "--format=docker", "--layers", f"--tag={name}", f"--file={file}"),
        *(*flags, *arguments, context),
    )
    return time.monotonic() - begun


class Container:
    """
    A container that runs in the background.

    @ivar name: its name for podman.
    """

    def __init__(self, sandbox: Sandbox, name: str, *words: str) -> None:
        self._sandbox = sandbox
        self.name = name
        sandbox.podman("run", "--detach", f"--name={name}", *words)

    def inspected(self, form: str) -> Any:
        """A part of what podman knows of it, from JSON."""
        return json.loads(self._sandbox.podman("inspect", "--format", f"{{{{json {form}}}}}", self.name))

    def log(self) -> str:
        """What it has printed so far, both outputs."""
        done = self._sandbox.run("podman", "logs", self.name)
        return done.stdout + done.stderr

    def wait_for_line(self, words: str) -> None:
        """
        Wait until it has printed this.

        @raise AssertionError: it has ended without that.
        """

        def found() -> bool:
            if words in self.log():
                return True
            state = self.inspected(".State.Status")
            assert state in ("running", "created") or words in self.log(), f"{self.name} is {state}: {self.log()}"
            return False

        wait_until(found, what=f"{words!r} in the log of {self.name}")

    def exec(self, *words: str, stdin: str = "", flags: Sequence[str] = ()) -> tuple[int, str]:
        """Run a command in it; status and output."""
        done = self._sandbox.run("podman", "exec", "--interactive", *flags, self.name, *words, stdin=stdin)
        return done.returncode, (done.stdout + done.stderr).strip()

    def health(self) -> tuple[int, str]:
        """Run its health check; status and output."""
        done = self._sandbox.run("podman", "healthcheck", "run", self.name)
        return done.returncode, (done.stdout + done.stderr).strip()

    def reload(self) -> None:
        """Let the server read its users now, and not within ten seconds."""
        self._sandbox.podman("kill", "--signal=HUP", self.name)

    def stop(self, grace_s: int) -> int:
        """Stop it as an administrator does; the exit status."""
        self._sandbox.podman("stop", f"--time={grace_s}", self.name)
        return int(self.inspected(".State.ExitCode"))

    def remove(self) -> None:
        """Remove it, with its volumes."""
        self._sandbox.run("podman", "rm", "--force", "--volumes", "--time=0", self.name)
