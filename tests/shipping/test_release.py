"""
A release of a clone of the checkout, signed by a key that is made for the test. The checks of a release are left out: they
are C{make check}.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..integration.test_packaging import demand_an_index
from ..support.scratch import scratch_directory
from ..support.skipping import skipped

CHECKOUT = Path(__file__).resolve().parents[2]
VERSION = "98.7.6"
NEEDED = ("git", "gpg", "make", "dpkg-buildpackage", "dh", "sha256sum")
MISSING = [program for program in NEEDED if shutil.which(program) is None]
#: An environment with all that builds a release, and what it builds.
NEEDED_BYTES = 600 << 20
#: pip, twice, and debhelper.
LONGEST_S = 900.0


@skipped(f"not installed: {', '.join(MISSING)}" if MISSING else None)
class ReleaseTests(SynchronousTestCase):
    """C{make release} in a clone, with the files of the working tree as its one commit."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, NEEDED_BYTES)
        demand_an_index(self.scratch)
        self.clone = self.scratch / "clone"
        home = self.scratch / "gnupg"
        home.mkdir(mode=0o700)
        names = {f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
            },
            **{name: "releaser@example.org" for name in names},
            "GNUPGHOME": str(home),
        }
        # gpg leaves an agent behind.
        self.addCleanup(self.run_command, "gpgconf", "--kill", "all")
        self.make_clone()

    def run_command(self, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with both outputs in C{stdout}."""
        return subprocess.run(
            command,
            cwd=cwd or self.scratch,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S,
        )

    def succeed(self, *command: str | Path, cwd: Path | None = None) -> str:
        """
        Run a command that must succeed; its output.

        @raise AssertionError: it failed.
        """
        finished = self.run_command(*command, cwd=cwd)
        assert finished.returncode == 0, f"{command}: {finished.returncode}\n{finished.stdout}"
        return finished.stdout

    def make_clone(self) -> None:
        """Clone the checkout; what is not committed there is a commit of the clone."""
        self.succeed("git", "clone", "--quiet", CHECKOUT, self.clone)
        self.succeed("git", "switch", "--quiet", "-C", "release", cwd=self.clone)
        listed = self.succeed("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
        for name in filter(None, listed.split("\0")):
            source, target = CHECKOUT / name, self.clone / name
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
            else:
                target.unlink(missing_ok=True)
        (self.clone / "docs/news/+shipping-test.feature.md").write_text("A feature of the test's release.\n")
        self.succeed("git", "add", "--all", cwd=self.clone)
        self.succeed("git", "commit", "--quiet", "--message", "The working tree", cwd=self.clone)

    def release(self, version: str, *variables: str) -> subprocess.CompletedProcess[str]:
        """Run C{make release}."""
        base = os.path.realpath(sys.executable)
        command = ["make", "release", f"VERSION={version}", f"PYTHON={base}", "RELEASE_CHECKS=", *variables]
        return self.run_command(*command, cwd=self.clone)

    def make_key(self) -> None:
        """Make the key that signs."""
        self.succeed(
            "gpg", "--batch", "--passphrase", "", "--quick-generate-key", "releaser@example.org", "ed25519", "sign"
        )

    def assert_as_before(self) -> None:
        """Nothing was changed, committed or tagged."""
        self.assertEqual(self.succeed("git", "status", "--porcelain", cwd=self.clone), "")
        self.assertEqual(self.succeed("git", "tag", "--list", f"v{VERSION}", cwd=self.clone), "")
        self.assertEqual(self.succeed("git", "log", "-1", "--format=%s", cwd=self.clone), "The working tree\n")

    def test_release(self) -> None:
        """
        After a failure, which leaves the clone as it was: all files with the version, their checksums, and a signature that
        gpg finds good; a commit and a tag.
        """
        self.make_key()
        failed = self.release(VERSION, "RELEASE_CHECKS=no-such-target")
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("release: failed, and the files are as they were", failed.stdout)
        self.assert_as_before()

        begun = time.monotonic()
        finished = self.release(VERSION, "SIGN_KEY=releaser@example.org")
        self.assertEqual(finished.returncode, 0, finished.stdout)
        dist = self.clone / "dist"
        files = {path.name: path.stat().st_size for path in dist.iterdir()}
        print(f"release in {time.monotonic() - begun:.0f} s: {files}")

        (package,) = dist.glob("*.deb")
        self.assertTrue(package.name.startswith(f"resticserver_{VERSION}+"), package)
        built = {f"resticserver-{VERSION}.tar.gz", f"resticserver-{VERSION}-py3-none-any.whl", package.name}
        self.assertEqual(set(files), {*built, "SHA256SUMS", "SHA256SUMS.asc"})
        checked = self.succeed("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=dist)
        self.assertEqual({line.partition(":")[0] for line in checked.splitlines()}, built)
        verify = ("gpg", "--batch", "--verify", "SHA256SUMS.asc", "SHA256SUMS")
        self.assertIn("Good signature", self.succeed(*verify, cwd=dist))
        with (dist / "SHA256SUMS").open("a") as sums:
            sums.write("\n")
        self.assertNotEqual(self.run_command(*verify, cwd=dist).returncode, 0)

        self.assertIn("Version: " + package.name.split("_")[1], self.succeed("dpkg-deb", "--info", package))
        self.assertEqual(self.succeed("git", "status", "--porcelain", cwd=self.clone), "")
        self.assertEqual(self.succeed("git", "describe", "--exact-match", cwd=self.clone).strip(), f"v{VERSION}")
        self.assertIn(f'__version__ = "{VERSION}"', (self.clone / "resticserver/__init__.py").read_text())
        changelog = self.changelog(package)
        self.assertTrue(changelog.startswith(f"resticserver ({package.name.split('_')[1]}) "), changelog[:100])
        self.assertIn("  * A feature of the test's release.", changelog)

    def changelog(self, package: Path) -> str:
        """The changelog in a Debian package."""
        self.succeed("dpkg-deb", "--extract", package, "extracted")
        return self.succeed("gzip", "-dc", "extracted/usr/share/doc/resticserver/changelog.gz")

    def test_unknown_key(self) -> None:
        """A key that gpg does not have ends it before anything is changed."""
        self.environment["SIGN_KEY"] = "nobody@example.org"
        finished = self.run_command(".ci/release", VERSION, cwd=self.clone)
        self.assertEqual(finished.returncode, 1)
        self.assertEqual(finished.stdout, "release: gpg has no secret key for SIGN_KEY=nobody@example.org\n")
        self.assert_as_before()
