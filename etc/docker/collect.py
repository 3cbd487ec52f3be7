"""
Copies programs into the root of a new image, with all that they need: the libraries that they are linked to, Python and
its modules for a virtual environment, and each symbolic link on the way. Runs in a stage of F{Dockerfile}::

    python3 collect.py ROOT VENV PROGRAM FILE=/PLACE ...
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: Python's modules that a server does not use.
LEFT_OUT = frozenset(
    "curses dbm distutils ensurepip idlelib lib2to3 pydoc_data site-packages dist-packages test tests "
    "tkinter turtledemo venv".split()
)
LEFT_OUT_FILES = re.compile(r"(_curses|_dbm|_gdbm|_tkinter|readline|_test|_ctypes_test|_xx|xx).*\.so\Z|turtle\.py\Z")
#: Other files that programs look for, where the base image has them.
DATA = (
    "/etc/nsswitch.conf",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/lib/ssl/openssl.cnf",
    "/usr/lib/locale/C.utf8",
)
#: Libraries that are loaded by name: libgcc_s when a thread is cancelled.
BY_NAME = ("libgcc_s.so.1",)


class Root:
    """
    The root directory of the new image.

    @ivar path: where it is now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._copied: set[Path] = set()

    def add(self, source: Path) -> None:
        """Copy a file, or a directory with all that is in it, to the same place, and the links that lead there."""
        real = self._links(source)
        if real in self._copied:
            return
        self._copied.add(real)
        if real.is_dir():
            self._inside(real).mkdir(parents=True, exist_ok=True)
            for entry in sorted(real.iterdir()):
                self.add(entry)
        else:
            self.put(real, real)

    def put(self, source: Path, place: Path) -> None:
        """Copy one file to another place."""
        target = self._inside(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)

    def _links(self, source: Path) -> Path:
        """Make the symbolic links on the way to a file, and return where they lead."""
        place = Path("/")
        parts = list(source.absolute().parts[1:])
        while parts:
            part = parts.pop(0)
            if part == "..":
                place = place.parent
                continue
            found = place / part
            if found.is_symlink():
                target = os.readlink(found)
                link = self._inside(found)
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(target)
                if target.startswith("/"):
                    place = Path("/")
                parts = [one for one in Path(target).parts if one != "/"] + parts
            else:
                place = found
        return place

    def _inside(self, place: Path) -> Path:
        return self.path / place.relative_to("/")


def libraries(program: Path) -> Iterator[Path]:
    """The shared libraries of a program or library, with the dynamic loader, as C{ldd} says."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True)
    for line in said.stdout.splitlines():
        if "not found" in line:
            raise SystemExit(f"{program}: {line.strip()}")
        match = re.search(r"(?:=> |^\s+)(/\S+)", line)
        if match is not None:
            yield Path(match[1])


def modules() -> Iterator[Path]:
    """The files of Python's own modules, compiled ones too."""
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-3")]
        yield from (Path(folder, name) for name in files if not LEFT_OUT_FILES.match(name))


def main() -> None:
    """Copy everything that the arguments name."""
    root = Root(Path(sys.argv[1]))
    wanted = [*modules(), Path(sys.executable)]
    for argument in sys.argv[2:]:
        source, _, place = argument.partition("=")
        if place:
            root.put(Path(source), Path(place))
        else:
            wanted.append(Path(source))
    wanted += [Path(path) for path in DATA if os.path.exists(path)]
    for path in wanted:
        root.add(path)
    binaries = [path for path in root.path.rglob("*") if path.is_file() and not path.is_symlink() and is_elf(path)]
    for binary in binaries:
        for library in libraries(binary):
            if not library.is_relative_to(root.path):
                root.add(library)
    directories = {str(library.parent) for binary in binaries for library in libraries(binary)}
    for name in BY_NAME:
        for directory in sorted(directories):
            if os.path.exists(f"{directory}/{name}"):
                root.add(Path(directory, name))


def is_elf(path: Path) -> bool:
    """Whether a file is a program or a library."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


if __name__ == "__main__":
    main()
