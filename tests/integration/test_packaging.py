"""
What a person installs: a wheel, a source distribution and an editable checkout, each in a new environment, with the
dependencies from the index; and the first two commands of the README.

The plugin lives in a directory of Twisted's, so it has to be seen after each kind of install, and Twisted's own plugins
have to be seen after ours is gone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import resticserver

from ..support.scratch import scratch_directory

CHECKOUT = Path(__file__).resolve().parents[2]
#: What of the checkout goes into an artifact, where it is there; nothing that a build or a run left behind.
SOURCES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "tox.ini"),
    *(
        "CONTRIBUTING.md",
        "SECURITY.md",
        ".ci",
        ".dockerignore",
        "benchmarks",
        "docs",
        "etc",
        "resticserver",
        "tests",
        "twisted",
    ),
)
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info", ".build")

#: An environment with its dependencies, unpacked.
ENVIRONMENT_BYTES = 150 << 20
#: For one command; an installation fetches and unpacks some twenty packages.
LONGEST_S = 300.0


def environment_variables() -> Mapping[str, str]:
    """Those of the tests, without what would let a new environment see the packages of another."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if name not in ours}


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with both outputs in C{stdout}."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_S,
    )


def succeed(command: list[str | Path], cwd: Path) -> str:
    """
    Run a command that must succeed; its output.

    @raise AssertionError: it failed.
    """
    finished = run(command, cwd)
    assert finished.returncode == 0, f"{command}: {finished.returncode}\n{finished.stdout}"
    return finished.stdout


def copy_of_the_tree(directory: Path) -> Path:
    """A copy of the checkout's sources, so that a build neither sees nor leaves anything in the checkout."""
    copy = directory / "source"
    copy.mkdir()
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=LEFT_BEHIND)
        elif source.exists():
            shutil.copy2(source, copy / name)
    return copy


def build(kind: str, directory: Path) -> Path:
    """Build a C{wheel} or an C{sdist} with the build backend of the running environment; the one file that came out."""
    source, out = copy_of_the_tree(directory), directory / "out"
    succeed([sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source], directory)
    (artifact,) = out.iterdir()
    return artifact


def demand_an_index(directory: Path) -> None:
    """
    See that pip reaches an index, by a small package that we depend on.

    @raise SkipTest: it does not.
    """
    fetch: list[str | Path] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    fetched = run([*fetch, "--dest", directory / "probe", "klein"], directory)
    if fetched.returncode != 0:
        lines = fetched.stdout.strip().splitlines() or ["no reason given"]
        raise SkipTest(f"pip cannot reach a package index: {lines[-1]}")


def shared_files() -> dict[str, bytes]:
    """What of F{etc} is installed beside the program, by its path below the environment's prefix."""
    completions = {
        ".bash": "share/bash-completion/completions",
        ".fish": "share/fish/vendor_completions.d",
        "": "share/zsh/site-functions",
    }
    shared = {}
    for path in (CHECKOUT / "etc").rglob("*"):
        source = path.relative_to(CHECKOUT / "etc")
        if path.is_dir() or source.parts[0] == "debian" or "__pycache__" in source.parts:
            continue
        if source.parts[0] == "man":
            place = f"share/man/man{source.suffix.removeprefix('.')}"
        elif source.parts[0] == "completion":
            place = completions[source.suffix]
        else:
            place = Path("share/resticserver", source.parent).as_posix()
        shared[f"{place}/{source.name}"] = path.read_bytes()
    return shared


class NewEnvironment:
    """
    A virtual environment that has nothing but what is installed into it.

    @ivar path: where it is; its commands are run from beside it, so that no checkout is the working directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "environment"
        self._cwd = directory
        # The running pip installs from outside (--python), which saves each environment a pip of its own.
        succeed([sys.executable, "-m", "venv", "--without-pip", self.path], directory)

    def pip(self, *arguments: str | Path) -> str:
        """Run pip on it; its output."""
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", self.path / "bin" / "python"]
        return succeed([*pip, *arguments, "--quiet", "--disable-pip-version-check"], self._cwd)

    def run(self, command: str, *arguments: str) -> str:
        """Run a command that is installed in it; its output."""
        return succeed([self.path / "bin" / command, *arguments], self._cwd)

    def has(self, command: str) -> bool:
        """Whether a command is installed in it."""
        return (self.path / "bin" / command).exists()

    def files(self, directory: str) -> dict[str, bytes]:
        """All files below one of its directories with their contents, by relative path."""
        found = (path for path in (self.path / directory).rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in found}

    def twistd_commands(self) -> set[str]:
        """What C{twistd --help} lists."""
        _, _, commands = self.run("twistd", "--help").partition("Commands:\n")
        return set(re.findall(r"^    (\S+) ", commands, re.MULTILINE))


class InstallTests(SynchronousTestCase):
    """Each kind of install, from nothing to nothing."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, ENVIRONMENT_BYTES)
        demand_an_index(self.scratch)

    def live(self, *what: str | Path) -> None:
        """Install, look, use, uninstall, look again."""
        new = NewEnvironment(self.scratch)
        new.pip("install", "--no-compile", *what)
        self.assertLessEqual({"restic-rest", "web"}, new.twistd_commands())
        version = f"rest-server {resticserver.__version__} "
        self.assertTrue(new.run("rest-server", "--version").startswith(version))
        self.assertTrue(new.run("twistd", "restic-rest", "--version").startswith(version))
        self.assertIn("--append-only", new.run("twistd", "restic-rest", "--help"))
        if "--editable" not in what:
            self.assertEqual(new.files("share"), shared_files())

        new.pip("uninstall", "--yes", "resticserver")
        commands = new.twistd_commands()
        self.assertIn("web", commands)
        self.assertNotIn("restic-rest", commands)
        self.assertFalse(new.has("rest-server"))
        self.assertEqual(new.files("share"), {})

    def test_wheel(self) -> None:
        """From a wheel."""
        self.live(build("wheel", self.scratch))

    def test_sdist(self) -> None:
        """From a source distribution, built by pip in an isolation of its own."""
        self.live(build("sdist", self.scratch))

    def test_editable(self) -> None:
        """From a checkout that stays where it is."""
        self.live("--editable", copy_of_the_tree(self.scratch))


class ContentsTests(SynchronousTestCase):
    """What the artifacts hold."""

    def test_wheel(self) -> None:
        """Our package whole, one plugin, and nothing of Twisted's or of the checkout's."""
        with zipfile.ZipFile(build("wheel", scratch_directory(self))) as wheel:
            names = set(wheel.namelist())
        data = f"resticserver-{resticserver.__version__}.data/data/"
        shared = {name.removeprefix(data) for name in names if name.startswith(data)}
        self.assertEqual(shared, set(shared_files()))
        self.assertLessEqual(
            {
                *("share/man/man1/rest-server.1", "share/man/man5/rest-server.toml.5"),
                *("share/bash-completion/completions/rest-server.bash", "share/zsh/site-functions/_rest-server"),
                *("share/fish/vendor_completions.d/rest-server.fish", "share/resticserver/rest-server.toml"),
                "share/resticserver/systemd/restic-rest.service",
            },
            shared,
        )
        installed = {name for name in names if ".dist-info/" not in name and not name.startswith(data)}
        ours = {
            path.relative_to(CHECKOUT).as_posix()
            for path in (CHECKOUT / "resticserver").rglob("*")
            if path.suffix in (".py", ".css") or path.name == "py.typed"
        }
        self.assertEqual(installed, ours | {"twisted/plugins/restic_rest.py"})
        self.assertTrue([name for name in names if name.endswith("LICENSE")])

    def test_sdist(self) -> None:
        """Also what is needed to check it and to run it as a service."""
        with tarfile.open(build("sdist", scratch_directory(self))) as sdist:
            names = {name.partition("/")[2] for name in sdist.getnames()}
        wanted = {
            *("setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", ".ci/run"),
            *(
                "CONTRIBUTING.md",
                ".ci/release",
                ".ci/deb",
                "etc/debian/rules",
                "docs/options.md",
                "docs/images/status.png",
            ),
            *("docs/design.md", "etc/systemd/restic-rest.service", "etc/systemd/restic-rest.socket"),
            *("tests/support/server.py", "twisted/plugins/restic_rest.py", "resticserver/py.typed"),
        }
        self.assertEqual(wanted - names, set())
        self.assertEqual(
            {name for name in names if name.startswith("twisted/") and name.endswith("__init__.py")}, set()
        )


class ReadmeTests(SynchronousTestCase):
    """The README keeps up with the program."""

    def setUp(self) -> None:
        self.text = (CHECKOUT / "README.md").read_text(encoding="utf-8")

    def test_two_commands(self) -> None:
        """The set-up is two commands, and they are the first."""
        blocks = re.findall(r"^```sh\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)
        self.assertEqual(blocks[:2], ["make run\n", "make check\n"])
