"""
C{rest-server user}: what becomes of the file, byte by byte, and of whoever types something wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from resticserver.access.htpasswd import check_password, parse_htpasswd
from resticserver.commands import user as command

from ..support.processes import process_test
from ..support.waiting import PATIENCE_S

#: A file as people have it: comments, empty lines, an entry that the server does not take, other ends of lines, no text.
OTHERS = b"# users of the NAS\r\n\r\n  alice : spaces \nbob:{SHA}nonsense\n\n#carol:x\nm\xfcller:x\nlast:$1$x"


class UsersCase(SynchronousTestCase):
    """A data directory."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.file = self.directory / ".htpasswd"

    def run_(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> tuple[str, str]:
        """Run it in this process, cheaply; what it says on stdout and stderr."""
        given = [*arguments, "--path", str(self.directory)]
        if arguments[:1] and arguments[0] in ("add", "passwd") and "--cost" not in arguments:
            given += ["--cost", "4"]
        out, err = io.StringIO(), io.StringIO()
        entered = io.TextIOWrapper(io.BytesIO(stdin))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "stdin", entered):
            ended = command.main(given)
        self.assertEqual(status, ended, (arguments, out.getvalue(), err.getvalue()))
        if status:
            self.assertEqual(1, len(err.getvalue().splitlines()), err.getvalue())
            self.assertEqual("", out.getvalue())
        return out.getvalue(), err.getvalue()

    def entries(self) -> dict[str, str]:
        """As the server reads the file."""
        return parse_htpasswd(self.file.read_bytes())[0]

    def assert_password(self, user: str, password: bytes) -> None:
        """The server lets this user in with this password."""
        self.assertTrue(check_password(self.entries()[user], password))


class ChangeTests(UsersCase):
    """add, passwd, delete, list."""

    def test_life(self) -> None:
        """A user comes, changes the password, and goes."""
        self.run_("add", "alice", stdin=b"first\n")
        self.assert_password("alice", b"first")
        self.run_("add", "bob", stdin=b"another")
        self.run_("passwd", "alice", stdin=b"second\r\n")
        self.assert_password("alice", b"second")
        self.assertFalse(check_password(self.entries()["alice"], b"first"))
        self.assertEqual("alice\nbob\n", self.run_("list")[0])
        self.run_("delete", "alice")
        self.assertEqual("bob\n", self.run_("list")[0])
        self.assertEqual([".htpasswd"], os.listdir(self.directory))

    def test_form(self) -> None:
        """The entry is Apache's bcrypt, at cost 12 unless told otherwise, in a file that only its owner reads."""
        self.run_("add", "alice", "--cost", "12", stdin=b"x\n")
        self.assertRegex(self.file.read_bytes(), rb"\Aalice:\$2y\$12\$[./A-Za-z0-9]{53}\n\Z")
        self.assertEqual(0o600, stat.S_IMODE(self.file.stat().st_mode))
        parsed = command._parser().parse_args(["add", "bob"])
        self.assertEqual(12, parsed.cost)
        self.run_("add", "bob", "--cost", "5", stdin=b"x\n")
        self.assertTrue(self.entries()["bob"].startswith("$2y$05$"))

    def test_passwords(self) -> None:
        """One line of standard input, whatever it is: spaces, any bytes, more than bcrypt looks at."""
        for number, (line, password) in enumerate(
            (
                (b" with spaces \n", b" with spaces "),
                ("gr\u00fcn\n".encode(), "gr\u00fcn".encode()),
                (b"\xff\xfe\n", b"\xff\xfe"),
                (b"a:b\nsecond line\n", b"a:b"),
                (b"x" * 100, b"x" * 72),
            )
        ):
            self.run_("add", f"user{number}", "--password-stdin", stdin=line)
            self.assert_password(f"user{number}", password)
        self.assertIn("only the first 72 bytes", self.run_("passwd", "user0", stdin=b"x" * 73)[1])

    def test_more_fields(self) -> None:
        """What stands behind the hash stays, and so does a line that is not UTF-8; spaces before a hash do not."""
        self.file.write_bytes(b"\xef\xbb\xbfalice: x:Alice:a@b\r\nm\xfcller:x\n bob:y \n# \xfc\n")
        for user in ("alice", "bob"):
            self.run_("passwd", user, stdin=b"new\n")
            self.assert_password(user, b"new")
        self.assertRegex(
            self.file.read_bytes(),
            rb"\A\xef\xbb\xbfalice:[$]2y[^:]*:Alice:a@b\r\nm\xfcller:x\n bob:[$]2y\S* \n# \xfc\n\Z",
        )
        self.run_("delete", "alice")
        self.assertRegex(self.file.read_bytes(), rb"\Am\xfcller:x\n bob:")
        self.assertIn("line 1, ignored: not valid UTF-8", self.run_("list")[1])

    def test_other_lines(self) -> None:
        """All other lines stay as they are, byte for byte."""
        self.file.write_bytes(OTHERS)
        self.run_("add", "dave", stdin=b"x\n")
        content = self.file.read_bytes()
        self.assertTrue(content.startswith(OTHERS + b"\ndave:$2y$04$"), content)
        self.assertTrue(content.endswith(b"\n"))
        self.run_("passwd", "bob", stdin=b"x\n")
        before, after = content.splitlines(True), self.file.read_bytes().splitlines(True)
        self.assertEqual(
            [3], [number for number, pair in enumerate(zip(before, after, strict=True)) if len(set(pair)) > 1]
        )
        self.run_("passwd", "bob", stdin=b"y\n")
        self.run_("delete", "dave")
        self.run_("delete", "bob")
        self.assertEqual(OTHERS.replace(b"bob:{SHA}nonsense\n", b"") + b"\n", self.file.read_bytes())

    def test_twice(self) -> None:
        """A user who is there twice is changed and removed in both places: the server takes the last."""
        self.file.write_bytes(b"alice:x\r\nbob:y\nalice:z  ")
        self.run_("passwd", "alice", stdin=b"new\n")
        lines = self.file.read_bytes().split(b"\n")
        self.assertEqual(lines[0].rstrip(), lines[2].rstrip())
        self.assertTrue(lines[0].endswith(b"\r") and lines[2].endswith(b"  "))
        self.assert_password("alice", b"new")
        self.run_("delete", "alice")
        self.assertEqual(b"bob:y\n", self.file.read_bytes())

    def test_windows_file(self) -> None:
        """A new line ends as the last one."""
        self.file.write_bytes(b"# x\r\n")
        self.run_("add", "alice", stdin=b"x\n")
        self.assertTrue(self.file.read_bytes().endswith(b"\r\n"))
        self.assert_password("alice", b"x")

    def test_symlink(self) -> None:
        """The file that a link names is changed, and the link stays."""
        elsewhere = self.directory / "users"
        elsewhere.write_bytes(b"bob:x\n")
        self.file.symlink_to("users")
        self.run_("add", "alice", stdin=b"x\n")
        self.assertTrue(self.file.is_symlink())
        self.assertTrue(elsewhere.read_bytes().startswith(b"bob:x\nalice:$2y$"))

    def test_tightened(self) -> None:
        """A file that others could read is not any more."""
        self.file.write_bytes(b"bob:x\n")
        self.file.chmod(0o644)
        self.assertIn("its mode was changed to 0600", self.run_("add", "alice", stdin=b"x\n")[1])
        self.assertEqual(0o600, stat.S_IMODE(self.file.stat().st_mode))

    def test_roots_file(self) -> None:
        """Root's file that a group reads stays readable for it: so the server reads it."""
        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        self.file.write_bytes(b"bob:x\n")
        os.chown(self.file, 0, 12345)
        self.file.chmod(0o640)
        self.assertEqual("", self.run_("add", "alice", stdin=b"x\n")[1])
        status = self.file.stat()
        self.assertEqual((0, 12345, 0o640), (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)))
        os.chown(self.file, 12345, 12345)
        self.run_("delete", "alice")
        status = self.file.stat()
        self.assertEqual((12345, 12345, 0o600), (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)))

    def test_other_file(self) -> None:
        """C{--htpasswd-file} instead of the data directory's."""
        other = self.directory / "other"
        self.run_("add", "alice", "--htpasswd-file", str(other), stdin=b"x\n")
        self.assertTrue(other.exists())
        self.assertFalse(self.file.exists())

    def test_list(self) -> None:
        """The names as the server knows them; what it leaves out is said on stderr."""
        self.file.write_bytes(
            b"alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\nbob:nonsense\nalice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n"
        )
        out, err = self.run_("list")
        self.assertEqual("alice\n", out)
        self.assertIn("Invalid htpasswd entry for bob", err)
        self.assertNotIn("nonsense", err)

    @process_test
    def test_at_the_same_time(self) -> None:
        """Several at once: nobody's user is lost."""
        code = "import sys; from resticserver.commands.user import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, "add", f"user{number}", "--path", str(self.directory), "--cost", "4"],
                stdin=subprocess.PIPE,
                env=environment,
            )
            for number in range(6)
        ]
        for process in started:
            process.communicate(b"x\n", timeout=PATIENCE_S)
            self.assertEqual(0, process.returncode)
        self.assertEqual({f"user{number}" for number in range(6)}, set(self.entries()))

    def test_waits_for_the_other(self) -> None:
        """What another one wrote while we waited for it is kept."""
        self.file.write_bytes(b"bob:x\n")
        directory = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, directory)
        fcntl.flock(directory, fcntl.LOCK_EX)

        def release() -> None:
            self.file.write_bytes(b"bob:x\ncarol:y\n")
            fcntl.flock(directory, fcntl.LOCK_UN)

        timer = threading.Timer(0.3, release)
        timer.start()
        self.run_("add", "alice", stdin=b"x\n")
        timer.join()
        self.assertTrue(self.file.read_bytes().startswith(b"bob:x\ncarol:y\nalice:"))


class RefusedTests(UsersCase):
    """What cannot be done is one line, and changes nothing."""

    def test_table(self) -> None:
        """Arguments, standard input -> status and a part of the line."""
        before = b"alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n"
        self.file.write_bytes(before)
        for arguments, stdin, status, part in (
            (("add", "alice"), b"x\n", 1, "user alice already exists"),
            (("passwd", "bob"), b"x\n", 1, "no such user: bob"),
            (("delete", "bob"), b"", 1, "no such user: bob"),
            (("add", "bob"), b"", 1, "the password is empty"),
            (("add", "bob"), b"\n", 1, "the password is empty"),
            (("add", "bob"), b"a\x00b\n", 1, "NUL"),
            (("add", "a b"), b"x\n", 1, "'a b' is not a user name"),
            (("add", "a:b"), b"x\n", 1, "is not a user name"),
            (("add", "bob\n"), b"x\n", 1, "is not a user name"),
            (("add", ""), b"x\n", 1, "is not a user name"),
            (("add", "../bob"), b"x\n", 1, "is not a user name"),
            (("add", "data"), b"x\n", 1, "is not a user name"),
            (("add",), b"x\n", 2, "USER"),
            (("add", "bob", "secret"), b"x\n", 2, "unrecognized arguments"),
            (("add", "bob", "--cost", "3"), b"x\n", 2, "4 to 17"),
            (("add", "bob", "--cost", "18"), b"x\n", 2, "4 to 17"),
            (("add", "bob", "--cost", "x"), b"x\n", 2, "4 to 17"),
            (("remove", "bob"), b"", 2, "invalid choice"),
            (("add", "bob", "--pass", "x"), b"", 2, "unrecognized arguments"),
            (("delete", "alice", "--cost", "4"), b"", 2, "unrecognized arguments"),
        ):
            _, err = self.run_(*arguments, stdin=stdin, status=status)
            self.assertIn(part, err, arguments)
            self.assertTrue(err.startswith("rest-server user"), err)
            self.assertEqual(before, self.file.read_bytes(), arguments)
        self.assertEqual([".htpasswd"], os.listdir(self.directory))

    def test_no_file(self) -> None:
        """Only add makes one; a directory that is missing is not made."""
        for arguments in (("passwd", "alice"), ("delete", "alice"), ("list",)):
            _, err = self.run_(*arguments, stdin=b"x\n", status=1)
            self.assertIn("No such file or directory", err)
        self.directory = self.directory / "missing"
        _, err = self.run_("add", "alice", stdin=b"x\n", status=1)
        self.assertIn("No such file or directory", err)
        self.assertFalse(self.directory.exists())

    def test_odd_files(self) -> None:
        """A directory or a FIFO in the file's place."""
        self.file.mkdir()
        self.assertIn("Is a directory", self.run_("add", "alice", stdin=b"x\n", status=1)[1])
        self.file.rmdir()
        os.mkfifo(self.file)
        self.assertIn("not a regular file", self.run_("add", "alice", stdin=b"x\n", status=1)[1])

    def test_disk_full(self) -> None:
        """A file that cannot be written stays as it was, and nothing lies beside it."""
        self.file.write_bytes(b"bob:x\n")

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        with mock.patch.object(os, "fsync", full):
            _, err = self.run_("add", "alice", stdin=b"x\n", status=1)
        self.assertIn("No space left on device", err)
        self.assertEqual((b"bob:x\n", [".htpasswd"]), (self.file.read_bytes(), os.listdir(self.directory)))

    def test_help(self) -> None:
        """Each command says how it is used."""
        for arguments in (("--help",), ("add", "--help"), ("list", "-h")):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                self.assertEqual(0, command.main(arguments))
            self.assertIn("usage: rest-server user", out.getvalue())


@process_test
class PromptTests(UsersCase):
    """At a terminal."""

    def at_terminal(self, *typed: bytes) -> tuple[int, bytes]:
        """Type lines at a pseudo-terminal; the status and what was to be seen there."""
        code = "import sys; from resticserver.commands.user import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        arguments = ["add", "alice", "--path", str(self.directory), "--cost", "4"]
        pid, terminal = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
            os.execve(sys.executable, [sys.executable, "-c", code, *arguments], environment)
        seen = b""
        left = list(typed)
        while select.select([terminal], [], [], PATIENCE_S)[0]:
            try:
                data = os.read(terminal, 1000)
            except OSError:
                break
            if not data:
                break
            seen += data
            if left and seen.endswith(b": "):
                os.write(terminal, left.pop(0))
        os.close(terminal)  # whoever still reads there is told by SIGHUP
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen

    def test_twice(self) -> None:
        """The password is asked for twice and is not to be seen."""
        status, seen = self.at_terminal(b"hidden\n", b"hidden\n")
        self.assertEqual(0, status, seen)
        self.assertNotIn(b"hidden", seen)
        self.assert_password("alice", b"hidden")

    def test_refused(self) -> None:
        """Two passwords that differ, none, or a control key: nothing is done, in one line."""
        for typed, part in (
            ((b"one\n", b"two\n"), b"do not match"),
            ((b"\n",), b"the password is empty"),
            ((b"\x04",), b"no password was given"),
            ((b"\x03",), b"interrupted"),
        ):
            status, seen = self.at_terminal(*typed)
            self.assertEqual(1, status, seen)
            self.assertIn(part, seen)
            self.assertNotIn(b"Traceback", seen)
            self.assertFalse(self.file.exists())
