"""
Test cases with the shipped image: built once for a run from a local base without network, run by podman.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

import resticserver

from ..support.restic import change_tree, make_tree
from ..support.scratch import scratch_directory
from .containers import Container, Sandbox, build_image, make_base, make_context, why_not

MIB = 1 << 20
SLIM = "localhost/resticserver:slim"
MINIMAL = "localhost/resticserver:minimal"
#: No writable root, no capability, no temporary directory.
LOCKED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
LISTENS = "start server on "

_numbers = itertools.count()


class Images(NamedTuple):
    """
    The images of this run.

    @ivar context: the directory that they are built from.
    @ivar base: the image that they are made from.
    """

    sandbox: Sandbox
    context: Path
    base: str


def next_port() -> int:
    """A port that no container had before."""
    return 8100 + next(_numbers)


@functools.cache
def images() -> Images:
    """What all images are built from, made once for all tests."""
    directory = tempfile.TemporaryDirectory(prefix="restic-image-")
    atexit.register(directory.cleanup)
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    base = make_base(sandbox, Path(directory.name))
    context = make_context(Path(directory.name))
    return Images(sandbox, context, base)


@functools.cache
def built_s(image: str) -> float:
    """Build a target of the F{Dockerfile}, once for all tests; how long that took."""
    target = image.rpartition(":")[2]
    return build_image(images().sandbox, images().context, images().base, target, image, resticserver.__version__)


class ContainerCase(SynchronousTestCase):
    """
    Runs containers, and removes them after the test.

    @cvar needed: the images.
    """

    needed: tuple[str, ...] = (SLIM,)
    skip = why_not()

    def setUp(self) -> None:
        self.sandbox = images().sandbox
        for image in self.needed:
            built_s(image)
        self.port = next_port()

    def run_server(self, *words: str, image: str = SLIM, user: str = "1234", wait: bool = True) -> Container:
        """
        Start a container with everything taken from it that can be taken.

        @param words: flags of podman; after C{"--"} the arguments of the container.
        """
        flags, arguments = split(words)
        name = f"server{next(_numbers)}"
        container = Container(
            self.sandbox, name, *LOCKED, f"--user={user}", f"--publish=127.0.0.1:{self.port}:8000", *flags, image,
            *arguments,
        )  # fmt: skip
        self.addCleanup(container.remove)
        if wait:
            container.wait_for_line(LISTENS)
        return container

    def run_once(self, *words: str, image: str = SLIM, user: str = "1234") -> tuple[int, str]:
        """Run a container to its end; status and output."""
        flags, arguments = split(words)
        done = self.sandbox.run("podman", "run", "--rm", *LOCKED, f"--user={user}", *flags, image, *arguments)
        errors = "\n".join(line for line in done.stderr.splitlines() if "systemd connection" not in line)
        return done.returncode, f"{done.stdout}{errors}".strip()

    def directory(self, owner: str = "1234", mode: str = "700") -> Path:
        """A new directory of a user's for a bind mount."""
        path = self.sandbox.directory / f"directory{next(_numbers)}"
        self.sandbox.succeed("mkdir", path)
        self.sandbox.succeed("chown", owner, path)
        self.sandbox.succeed("chmod", mode, path)
        return path

    def get(
        self, path: str, login: str | None = None, port: int | None = None, scheme: str = "http"
    ) -> tuple[int, str]:
        """Ask a published port; status and body."""
        flags = () if login is None else ("--user", login)
        url = f"{scheme}://127.0.0.1:{self.port if port is None else port}{path}"
        said = self.sandbox.run(
            "curl", "--silent", "--insecure", "--max-time", "20", "--write-out", "\n%{http_code}", *flags, url
        )
        body, _, status = said.stdout.rpartition("\n")
        return int(status), body

    def back_up(self, url: str) -> None:
        """restic init, backup and check through a published port."""
        back_up_with(self, url)


def back_up_with(case: ContainerCase, url: str, *flags: str, and_prune: bool = False) -> None:
    """
    restic init, backup and check through a published port.

    @param flags: for restic.
    @param and_prune: whether to change the files, back them up again, and remove the first snapshot.
    """
    scratch = scratch_directory(case, 64 * MIB)
    make_tree(scratch / "tree", seed=case.port, size_bytes=8 * MIB)
    extra = {"RESTIC_PASSWORD": "secret", "RESTIC_CACHE_DIR": str(scratch / "cache"), "HOME": str(scratch)}

    def restic(*words: str) -> None:
        case.sandbox.succeed("restic", "--repo", f"rest:{url}", *flags, *words, extra=extra)

    restic("init")
    restic("backup", str(scratch / "tree"))
    restic("check", "--read-data")
    if and_prune:
        change_tree(scratch / "tree", seed=2)
        restic("backup", str(scratch / "tree"))
        restic("forget", "--keep-last", "1", "--prune", "--max-unused", "0")


def split(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is before and after C{"--"}."""
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]
