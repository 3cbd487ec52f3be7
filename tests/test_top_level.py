"""
What the repository contains: nothing that a command left behind was committed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from .support.processes import process_test

CHECKOUT = Path(__file__).parent.parent
FOLDERS = {".ci", "benchmarks", "docs", "etc", "resticserver", "tests", "twisted"}
FILES = {
    ".dockerignore",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
    "setup.py",
    "tox.ini",
}
#: The pictures are smaller.
MOST_BYTES = 512 << 10


@process_test
class TopLevelTests(SynchronousTestCase):
    """The files that git knows."""

    def setUp(self) -> None:
        """Ask git."""
        if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
            raise SkipTest("this is no checkout")
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
        self.paths = [path for path in listed.split("\0") if path]

    def test_names(self) -> None:
        """At the top are these and no others."""
        self.assertEqual(FOLDERS | FILES, {path.partition("/")[0] for path in self.paths})

    def test_sizes(self) -> None:
        """No file is large."""
        sizes = {path: (CHECKOUT / path).lstat().st_size for path in self.paths if (CHECKOUT / path).exists()}
        self.assertEqual({}, {path: size for path, size in sizes.items() if size > MOST_BYTES})
