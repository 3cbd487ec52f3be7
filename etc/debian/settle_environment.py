"""
Makes a virtual environment in a package's build tree one that is used at another place: C{debian/rules} runs this.

    settle_environment.py ROOT HOME COMMAND ...

HOME is the environment's path after the installation; until then it is below ROOT. Only the named commands stay.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

#: Directories of dependencies that no server uses (the tests are half of all files), and what pip needs to uninstall.
UNUSED = ("test", "tests", "newsfragments")
RECORDS = ("RECORD", "REQUESTED", "INSTALLER", "direct_url.json")


def settle_commands(directory: Path, python: str, kept: set[str]) -> None:
    """
    Leave the interpreter and some commands, whose first line names the interpreter.

    @param python: its path after the installation.
    """
    for path in directory.iterdir():
        if path.name.startswith("python"):
            continue
        if path.name not in kept:
            path.unlink()
            continue
        # A path that is too long for the kernel stands in lines of sh, which are a string to Python.
        lines = path.read_text().splitlines()[1:]
        lines = [line for line in lines if not line.startswith(("'''exec'", "' '''"))]
        path.write_text("\n".join([f"#!{python}", *lines, ""]))
        kept.remove(path.name)
    if kept:
        raise SystemExit(f"settle_environment.py: {directory} has no {', '.join(sorted(kept))}")


def settle_interpreter(environment: Path) -> None:
    """Leave of C{pyvenv.cfg} what Python reads, without the path of the build tree, and one link to the interpreter."""
    configuration = environment / "pyvenv.cfg"
    names = ("home", "include-system-site-packages", "version")
    lines = configuration.read_text().splitlines()
    configuration.write_text("\n".join(line for line in lines if line.partition(" ")[0] in names) + "\n")
    for path in (environment / "bin").glob("python*"):
        if path.name not in ("python", "python3"):
            path.unlink()
    for name in ("python3", "python"):
        link = environment / "bin" / name
        link.unlink()
        link.symlink_to("/usr/bin/python3" if name == "python3" else "python3")


def settle_packages(environment: Path) -> None:
    """Remove what is not used after the installation."""
    (environment / "lib64").unlink(missing_ok=True)
    # Files of our wheel, which have other places in a package; and headers.
    for name in ("share", "include"):
        shutil.rmtree(environment / name, ignore_errors=True)
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for path in sorted(packages.rglob("*"), reverse=True):
        if path.is_dir() and path.name in UNUSED:
            shutil.rmtree(path)
        elif path.parent.suffix == ".dist-info" and path.name in RECORDS:
            path.unlink()
        elif path.is_file():
            path.chmod(0o755 if path.suffix == ".so" else 0o644)


def main(root: str, home: str, *commands: str) -> None:
    """Do all of it."""
    environment = Path(root + home)
    settle_commands(environment / "bin", f"{home}/bin/python3", set(commands))
    settle_interpreter(environment)
    settle_packages(environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
