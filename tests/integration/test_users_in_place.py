"""
C{rest-server user} where the htpasswd file cannot be replaced by another: a mount, a directory of somebody else's. Real
file systems, real users, and a server beside it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from resticserver.access.htpasswd import check_password, parse_htpasswd

from ..support.client import Client
from ..support.htpasswd import bcrypt_line, sha_line
from ..support.namespaces import no_namespaces, with_mounts
from ..support.scratch import scratch_directory
from ..support.server import installed, server_environment, start_server
from ..support.waiting import PATIENCE_S, wait_until

#: Some user of no name.
SOMEBODY, OTHER = 54321, 54322

#: What has to survive: a comment and a line that are no UTF-8, entries that the server does not take.
BEFORE = b"# M\xfcller\nm\xfcller:x\n" + sha_line("alice", "secret").encode() + b"old:$1$x\n"


class InPlaceCase(SynchronousTestCase):
    """A file, and the command run on it."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.scratch.chmod(0o755)
        self.directory = self.scratch / "etc"
        self.directory.mkdir()
        self.file = self.directory / "htpasswd"
        self.file.write_bytes(BEFORE)
        self.file.chmod(0o640)

    def user(
        self, *arguments: str, wrapper: Sequence[str] = (), uid: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run C{rest-server user} to its end."""
        command = [*wrapper, installed("rest-server"), "user", *arguments, "--htpasswd-file", str(self.file)]
        if arguments[0] in ("add", "passwd"):
            command += ["--cost", "4"]
        return self.run_(command, uid)

    def run_(self, command: Sequence[str], uid: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program, as another user if that is said."""
        if uid is not None:
            # Not everyone may look into the checkout: everything is imported before the rights go.
            code = (
                "import os, sys; import bcrypt; from resticserver import cli; from resticserver.commands import user;"
                "import encodings.idna;"
                f"os.setgroups([]); os.setgid({uid}); os.setuid({uid}); sys.exit(cli.main(sys.argv[1:]))"
            )
            command = [sys.executable, "-c", code, *command[1:]]
        return subprocess.run(
            command,
            cwd="/",
            env={**server_environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            input="new\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def assert_done(self, ended: subprocess.CompletedProcess[str], user: str = "bob") -> None:
        """It did what it was to do, all other lines are as they were, and nothing lies about."""
        self.assertEqual((0, ""), (ended.returncode, ended.stderr), ended)
        content = self.file.read_bytes()
        self.assertTrue(content.startswith(BEFORE), content)
        self.assertTrue(check_password(parse_htpasswd(content)[0][user], b"new"))
        self.assertEqual([self.file.name], os.listdir(self.directory))

    def assert_refused(self, ended: subprocess.CompletedProcess[str], part: str) -> None:
        """It said in one line why not, and the file is as it was."""
        self.assertEqual(1, ended.returncode, ended)
        self.assertEqual(1, len(ended.stderr.splitlines()), ended)
        self.assertIn(part, ended.stderr)
        self.assertEqual(BEFORE, self.file.read_bytes())
        self.assertEqual([self.file.name], os.listdir(self.directory))


class MountTests(InPlaceCase):
    """The file is a mount of its own, as containers have it; rename says EBUSY."""

    skip = no_namespaces("--mount")

    def setUp(self) -> None:
        super().setUp()
        self.real = self.scratch / "real"
        self.real.write_bytes(BEFORE)
        self.real.chmod(0o640)
        self.wrapper = with_mounts(f'mount --bind "{self.real}" "{self.file}"')

    def test_changed(self) -> None:
        """Users come, change and go; inode, owner and mode stay, and the file that is hidden below is not touched."""
        os.chown(self.real, SOMEBODY, OTHER)
        before = self.real.stat()
        for arguments in (
            ("add", "bob"),
            ("passwd", "bob"),
            ("add", "carol"),
            ("delete", "alice"),
            ("delete", "carol"),
        ):
            ended = self.user(*arguments, wrapper=self.wrapper)
            self.assertEqual((0, ""), (ended.returncode, ended.stderr), arguments)
        after = self.real.stat()
        for name in ("st_ino", "st_uid", "st_gid", "st_mode"):
            self.assertEqual(getattr(before, name), getattr(after, name), name)
        content = self.real.read_bytes()
        self.assertTrue(content.startswith(b"# M\xfcller\nm\xfcller:x\nold:$1$x\nbob:$2y$04$"), content)
        self.assertEqual((BEFORE, ["htpasswd"]), (self.file.read_bytes(), os.listdir(self.directory)))

    def test_through_a_symlink(self) -> None:
        """A link to the mount."""
        link = self.directory / "link"
        link.symlink_to("htpasswd")
        self.file, file = link, self.file
        ended = self.user("add", "bob", wrapper=self.wrapper)
        self.assertEqual((0, ""), (ended.returncode, ended.stderr))
        self.assertIn(b"\nbob:$2y$", self.real.read_bytes())
        self.assertTrue(link.is_symlink())
        self.assertEqual(BEFORE, file.read_bytes())

    def test_at_the_same_time(self) -> None:
        """Several at once: nobody's user is lost."""
        users = [f"user{number}" for number in range(5)]
        adds = " & ".join(
            f'{installed("rest-server")} user add {user} --cost 4 --htpasswd-file "{self.file}" <"{self.scratch}/in"'
            for user in users
        )
        script = f'echo new >"{self.scratch}/in"; mount --bind "{self.real}" "{self.file}"\n{adds} & wait'
        ended = self.run_([*with_mounts(script), "true"])
        self.assertEqual((0, ""), (ended.returncode, ended.stderr))
        self.assertEqual({"alice", *users}, set(parse_htpasswd(self.real.read_bytes())[0]))

    def test_full_disk(self) -> None:
        """The disk is full in the middle of writing: the old content is put back, and the copy of it goes."""
        # The file fills its pages, on a disk of its own that is full: it cannot grow. The copy has room beside the mount.
        content = BEFORE + b"#" * (4095 - len(BEFORE)) + b"\n"
        self.real.write_bytes(content)
        disk = self.scratch / "disk"
        script = (
            f'mkdir "{disk}"; mount -t tmpfs -o size=16k tmpfs "{disk}"\n'
            f'cp "{self.real}" "{disk}/real"; mount --bind "{disk}/real" "{self.file}"\n'
            f'cat /dev/zero >"{disk}/rest" 2>/dev/null || true\n'
            'set +e; "$@"; status=$?\n'
            f'cp "{self.file}" "{self.scratch}/after"; ls "{self.directory}"; exit $status'
        )
        ended = self.user("add", "bob", wrapper=with_mounts(script))
        self.assertEqual((1, "htpasswd\n"), (ended.returncode, ended.stdout), ended)
        self.assertIn("No space left on device", ended.stderr)
        self.assertEqual(content, (self.scratch / "after").read_bytes())

    def test_no_place_for_a_copy(self) -> None:
        """Where not even a copy can be put anywhere nothing is risked."""
        places = "\n".join(
            f"mount --bind {path} {path}; mount -o remount,bind,ro {path}"
            for path in ("/tmp", "/var/tmp", "/dev/shm", str(self.directory))
            if Path(path).is_dir()
        )
        script = f'{places}\nmount --bind "{self.real}" "{self.file}"; mount -o remount,bind,rw "{self.file}"'
        ended = self.user("add", "bob", wrapper=with_mounts(script))
        self.assertEqual(1, ended.returncode, ended)
        self.assertIn("no backup copy can be written", ended.stderr)
        self.assertEqual(BEFORE, self.real.read_bytes())

    def test_read_only_mount(self) -> None:
        """A file that cannot be written either."""
        script = f'mount --bind "{self.real}" "{self.file}"; mount -o remount,bind,ro "{self.file}"'
        ended = self.user("add", "bob", wrapper=with_mounts(script))
        self.assertEqual(1, ended.returncode, ended)
        self.assertRegex(ended.stderr, r"^rest-server user: \S+: Read-only file system\n\Z")
        self.assertEqual(BEFORE, self.real.read_bytes())


class RightsTests(InPlaceCase):
    """Who runs it may write the file, and not replace it."""

    def setUp(self) -> None:
        super().setUp()
        if os.geteuid() != 0:
            raise SkipTest("only root can be somebody else")

    def test_directory_of_another(self) -> None:
        """The file is one's own, in a directory that is not."""
        os.chown(self.file, SOMEBODY, SOMEBODY)
        self.directory.chmod(0o755)
        self.assert_done(self.user("add", "bob", uid=SOMEBODY))
        status = self.file.stat()
        self.assertEqual((SOMEBODY, SOMEBODY, 0o640), (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)))

    def test_directory_that_cannot_be_listed(self) -> None:
        """The same, where the directory cannot even be opened."""
        os.chown(self.file, SOMEBODY, SOMEBODY)
        self.directory.chmod(0o711)
        self.assert_done(self.user("add", "bob", uid=SOMEBODY))

    def test_sticky_directory(self) -> None:
        """Everyone may make files in it, nobody may replace another's (EPERM); the file is one that everyone may write."""
        os.chown(self.file, OTHER, OTHER)
        self.file.chmod(0o666)
        self.directory.chmod(0o1777)
        self.assert_done(self.user("add", "bob", uid=SOMEBODY))
        status = self.file.stat()
        self.assertEqual((OTHER, OTHER, 0o666), (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)))

    def test_another_users_file(self) -> None:
        """One may neither write nor replace it, or could replace it and would take it away from its owner."""
        os.chown(self.file, OTHER, OTHER)
        for mode in (0o755, 0o777):
            self.file.chmod(0o644)
            self.directory.chmod(mode)
            self.assert_refused(self.user("add", "bob", uid=SOMEBODY), "belongs to another user")


class ServerBesideTests(InPlaceCase):
    """A running server."""

    def test_never_half_of_it(self) -> None:
        """
        The file is changed in place again and again, and the server told to read it in the middle: it never reads a part,
        so the user at the very end is always there.
        """
        if os.geteuid() != 0:
            raise SkipTest("only root can be somebody else")
        filler = "".join(f"# {number:0100}\n" for number in range(20_000))
        self.file.write_text(filler + bcrypt_line("last", "secret"))
        os.chown(self.file, SOMEBODY, SOMEBODY)
        server = start_server(self, self.scratch / "data", "--htpasswd-file", str(self.file))

        def status(user: str, password: str) -> int:
            with Client(("127.0.0.1", server.port), user, password) as client:
                return client.get("/config").status

        for number in range(4):
            for arguments in (("add", f"user{number}"), ("delete", f"user{number}")):
                ended = self.user(*arguments, uid=SOMEBODY)
                self.assertEqual((0, ""), (ended.returncode, ended.stderr))
                server.signal(1)
                self.assertEqual(404, status("last", "secret"))
        self.user("passwd", "last", uid=SOMEBODY)
        wait_until(lambda: status("last", "new") == 404, what="the new password")
        self.assertIsNone(server.said("Invalid htpasswd|no users|could not"), server.err)
