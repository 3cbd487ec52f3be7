"""
C{rest-server user add --from}: many users at once, or none.
"""

from __future__ import annotations

import csv
import io
import os
import pty
import stat
import sys
from pathlib import Path
from unittest import mock

from resticserver.access.htpasswd import check_password
from resticserver.commands import user_import
from resticserver.commands.user_file import Refused
from resticserver.commands.user_hash import hash_password
from resticserver.commands.user_import import parse_users

from .test_user import UsersCase

BEFORE = b"# users of the NAS\nalice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=:Alice\n"


class ImportCase(UsersCase):
    """A data directory, and a directory for CSV files."""

    def setUp(self) -> None:
        super().setUp()
        self.csv = Path(self.mktemp()).with_suffix(".csv").absolute()
        self.generated = self.csv.with_name(self.csv.name + ".generated")

    def import_(self, content: bytes, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Add the users of a file with this content; what is printed on stdout and stderr."""
        self.csv.write_bytes(content)
        return self.run_("add", "--from", str(self.csv), *arguments, status=status)


class AddTests(ImportCase):
    """What is added."""

    def test_file(self) -> None:
        """All users of the file can log in, and the other lines stay as they are."""
        self.file.write_bytes(BEFORE)
        self.import_('user,password\nbob,"a ""b"", c:d"\n\ncarol, spaces \nzoë,grün\n'.encode())
        self.assertTrue(self.file.read_bytes().startswith(BEFORE))
        self.assertEqual(["alice", "bob", "carol", "zoë"], list(self.entries()))
        for user, password in (("bob", 'a "b", c:d'), ("carol", " spaces "), ("zoë", "grün")):
            self.assert_password(user, password.encode())
        self.assertEqual([".htpasswd"], os.listdir(self.directory))

    def test_new_file(self) -> None:
        """The htpasswd file is created with mode 0600."""
        self.import_(b"bob,x\n")
        self.assertEqual(0o600, stat.S_IMODE(self.file.stat().st_mode))
        self.assert_password("bob", b"x")

    def test_spreadsheets(self) -> None:
        """A byte order mark, a heading in capitals, Windows' line ends and a missing last one are no problem."""
        self.import_(b"\xef\xbb\xbfUser,Password\r\nbob,x\r\ncarol,y")
        self.assert_password("bob", b"x")
        self.assert_password("carol", b"y")

    def test_standard_input(self) -> None:
        """C{-} is standard input."""
        self.run_("add", "--from", "-", stdin=b"bob,x\ncarol,y\n")
        self.assertEqual(["bob", "carol"], list(self.entries()))

    def test_replace(self) -> None:
        """C{--replace} changes passwords in their place, keeps the other fields, and adds new users."""
        self.file.write_bytes(BEFORE + b"dave:x\n")
        self.import_(b"bob,x\nalice,new\n", "--replace")
        lines = self.file.read_bytes().splitlines()
        self.assertEqual(b"# users of the NAS", lines[0])
        self.assertRegex(lines[1], rb"\Aalice:[$]2y[$]04[$].*:Alice\Z")
        self.assertEqual(b"dave:x", lines[2])
        self.assert_password("alice", b"new")
        self.assert_password("bob", b"x")

    def test_only_replaced(self) -> None:
        """If all users exist, no line is added, not even the end of the last one."""
        self.file.write_bytes(b"alice:x")
        self.import_(b"alice,new\n", "--replace")
        self.assertRegex(self.file.read_bytes(), rb"\Aalice:[^\n]*\Z")

    def test_long_password(self) -> None:
        """Passwords of which bcrypt uses only a part are named by their lines."""
        _, err = self.import_(b"bob,x\ncarol," + b"y" * 73 + b"\n")
        self.assertIn(f"only the first 72 bytes of these passwords are used: {self.csv}, line 2", err)
        self.assert_password("carol", b"y" * 72)

    def test_one_write(self) -> None:
        """300 users are written in one step: the server never reads a part of them."""
        with mock.patch.object(os, "rename", wraps=os.rename) as renamed:
            self.import_(b"".join(b"user%d,p%d\n" % (number, number) for number in range(300)))
        self.assertEqual(1, renamed.call_count)
        self.assertEqual(300, len(self.entries()))
        self.assert_password("user299", b"p299")

    def test_one_hash_per_user(self) -> None:
        """Each password is hashed once, at the cost that was asked for."""
        with mock.patch.object(user_import, "hash_password", wraps=hash_password) as hashed:
            self.import_(b"bob,x\ncarol,y\n", "--cost", "5")
        self.assertEqual(sorted([(b"x", 5), (b"y", 5)]), sorted(call.args for call in hashed.call_args_list))
        self.assertTrue(all(entry.startswith("$2y$05$") for entry in self.entries().values()))


class GenerateTests(ImportCase):
    """Generated passwords."""

    def rows(self, text: str) -> dict[str, str]:
        """The rows of a file with generated passwords."""
        first, *others = csv.reader(io.StringIO(text))
        self.assertEqual(["user", "password"], first)
        return {user: password for user, password in others}

    def test_file(self) -> None:
        """Missing passwords are generated and written to a file of mode 0600; given ones are not written."""
        mask = os.umask(0)
        self.addCleanup(os.umask, mask)
        out, err = self.import_(b"user\nbob\ncarol,\ndave,mine\n", "--generate", str(self.generated))
        self.assertEqual(("", ""), (out, err))
        rows = self.rows(self.generated.read_text())
        self.assertEqual(["bob", "carol"], list(rows))
        for user, password in rows.items():
            self.assertRegex(password, r"\A[2-9A-HJ-NP-Za-km-z1]{24}\Z")
            self.assert_password(user, password.encode())
        self.assertNotEqual(rows["bob"], rows["carol"])
        self.assert_password("dave", b"mine")
        self.assertEqual(0o600, stat.S_IMODE(self.generated.stat().st_mode))

    def test_read_again(self) -> None:
        """The written file has the form that C{--from} reads."""
        self.import_(b"bob\n", "--generate", str(self.generated))
        written = self.generated.read_bytes()
        self.file.unlink()
        self.import_(written)
        self.assert_password("bob", self.rows(written.decode())["bob"].encode())

    def test_standard_output(self) -> None:
        """C{-} is standard output."""
        out, _ = self.import_(b"bob\n", "--generate", "-")
        self.assert_password("bob", self.rows(out)["bob"].encode())

    def test_never_overwritten(self) -> None:
        """A file that exists is not overwritten, even if it is a symbolic link to nothing."""
        self.generated.symlink_to("nowhere")
        _, err = self.import_(b"bob\n", "--generate", str(self.generated), status=1)
        self.assertIn("exists already", err)
        self.assertFalse(self.file.exists())

    def test_no_directory(self) -> None:
        """A file that cannot be created is named before the passwords are hashed."""
        with mock.patch.object(user_import, "hash_password", side_effect=AssertionError):
            _, err = self.import_(b"bob\n", "--generate", str(self.csv / "x" / "y"), status=1)
        self.assertIn("cannot create", err)

    def test_removed_after_a_failure(self) -> None:
        """If the users cannot be added, their passwords do not stay behind."""
        self.file.write_bytes(BEFORE)

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        with mock.patch.object(os, "rename", full):
            _, err = self.import_(b"bob\n", "--generate", str(self.generated), status=1)
        self.assertIn("No space left on device", err)
        self.assertFalse(self.generated.exists())
        self.assertEqual(BEFORE, self.file.read_bytes())

    def test_kept_after_the_change(self) -> None:
        """If only the last flush fails, the users are there, and so their passwords stay."""
        flush = os.fsync

        def failing(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(5, "Input/output error")
            flush(fd)

        with mock.patch.object(os, "fsync", failing):
            _, err = self.import_(b"bob\n", "--generate", str(self.generated), status=1)
        self.assertIn("Input/output error", err)
        self.assert_password("bob", self.rows(self.generated.read_text())["bob"].encode())

    def test_passwords_first(self) -> None:
        """A full disk for the passwords leaves the users as they were."""
        self.file.write_bytes(BEFORE)

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        with mock.patch.object(os, "fsync", full):
            _, err = self.import_(b"bob\n", "--generate", str(self.generated), status=1)
        self.assertIn(f"cannot write {self.generated}: No space left on device; nothing was changed", err)
        self.assertFalse(self.generated.exists())
        self.assertEqual(BEFORE, self.file.read_bytes())

    def test_closed_output(self) -> None:
        """Without a reader of the passwords no user is added."""

        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(28, "No space left on device")

        self.csv.write_bytes(b"bob\n")
        wanted = user_import.Import(str(self.csv), "-", False, 4)
        with mock.patch.object(sys, "stdout", Full()), mock.patch.object(sys, "stderr", io.StringIO()) as err:
            with self.assertRaises(SystemExit) as left:
                user_import.add_users(str(self.file), wanted)
        self.assertEqual(1, left.exception.code)
        self.assertIn("cannot write to standard output", err.getvalue())
        self.assertFalse(self.file.exists())


class RefusedTests(ImportCase):
    """A mistake is one line with its number, and changes nothing."""

    def test_bad_lines(self) -> None:
        """Content of the file -> part of the line on stderr."""
        self.file.write_bytes(BEFORE)
        for content, part in (
            (b"", "has no users"),
            (b"user,password\n\n", "has no users"),
            (b"bob,x\na b,y\n", "line 2: the first column is not a user name; nothing was changed"),
            (b"bob,x\n\n\n../c,y\n", "line 4: the first column is not a user name"),
            (b'bob,"x\ny"\n', "line 1: the password contains a line break"),
            (b'bob,"x\n\ny"\ndata,z\n', "line 1: the password contains a line break; line 4: the first column"),
            (b"bob;x\n", "line 1: the first column is not a user name"),
            (b"bob,x,y\n", "line 1: 3 columns instead of user,password"),
            (b"bob\n", "line 1: no password (--generate makes one)"),
            (b"bob,\n", "line 1: no password"),
            (b"bob,x\ncarol,y\nbob,z\n", "line 3: the same user as in line 1"),
            (b"bob,x\ncarol,y\x00\n", "line 2: the password contains a NUL byte"),
            (b"bob,x\ncarol,\xff\n", "line 2: not valid UTF-8"),
            (b'bob,x\ncarol,"y\n', "line 2: not CSV"),
            (b"bob,x\nuser,password\nalice,z\n", "line 3: user alice already exists; nothing was changed (--replace"),
            (b"a b,x\n" * 7, "line 5: the first column is not a user name; and 2 more lines; nothing was changed"),
        ):
            _, err = self.import_(content, status=1)
            self.assertIn(part, err, content)
            self.assertEqual(BEFORE, self.file.read_bytes(), content)
        self.assertEqual([".htpasswd"], os.listdir(self.directory))

    def test_no_secret_in_messages(self) -> None:
        """No message shows what may be a password: swapped columns, other separators, broken quotes."""
        for content in (b"s3cret!,bob\n", b"bob;s3cret!\n", b"bob\ts3cret!\n", b"bob,s3cret!,x\n", b'bob,"s3cret!"x\n'):
            _, err = self.import_(content, status=1)
            self.assertNotIn("s3cret", err, content)

    def test_several_exist(self) -> None:
        """The first one that exists is named, with the number of the others."""
        self.file.write_bytes(b"alice:x\nbob:y\ncarol:z\n")
        _, err = self.import_(b"dave,x\ncarol,x\nalice,x\n", status=1)
        self.assertIn("line 2: user carol (and 1 more user) already exists", err)

    def test_no_csv_file(self) -> None:
        """A CSV file that cannot be read."""
        _, err = self.run_("add", "--from", str(self.csv), status=1)
        self.assertIn(f"cannot read {self.csv}: No such file or directory", err)
        self.assertFalse(self.file.exists())

    def test_arguments(self) -> None:
        """Arguments that contradict each other."""
        for arguments, part in (
            (("add",), "USER or --from is required"),
            (("add", "bob", "--from", "x"), "USER and --from exclude each other"),
            (("add", "bob", "--replace"), "need --from"),
            (("add", "bob", "--generate", "x"), "need --from"),
            (("add", "--from", "x", "--password-stdin"), "exclude each other"),
            (("passwd", "bob", "--from", "x"), "unrecognized arguments"),
        ):
            self.assertIn(part, self.run_(*arguments, stdin=b"x\n", status=2)[1], arguments)

    def test_interrupted(self) -> None:
        """Control-C while passwords are hashed changes nothing."""
        with mock.patch.object(user_import, "hash_password", side_effect=KeyboardInterrupt):
            _, err = self.import_(b"bob,x\ncarol,y\n", status=1)
        self.assertIn("interrupted", err)
        self.assertFalse(self.file.exists())

    def test_added_meanwhile(self) -> None:
        """A user that another process adds while the passwords are hashed is not overwritten."""

        def hash_slowly(password: bytes, cost: int) -> bytes:
            self.file.write_bytes(b"carol:other\n")
            return b"$2y$"

        with mock.patch.object(user_import, "hash_password", hash_slowly):
            _, err = self.import_(b"bob\ncarol\n", "--generate", str(self.generated), status=1)
        self.assertIn("line 2: user carol already exists", err)
        self.assertEqual(b"carol:other\n", self.file.read_bytes())
        self.assertFalse(self.generated.exists())


class ProgressTests(ImportCase):
    """What a terminal shows."""

    def test_terminal(self) -> None:
        """A terminal shows how many passwords were hashed, and at the end nothing of that; a pipe gets nothing."""
        rows = [user_import.Row(number, f"user{number}", "x") for number in range(1, 4)]
        terminal, side = pty.openpty()
        self.addCleanup(os.close, terminal)
        with open(side, "w") as stderr, mock.patch.object(sys, "stderr", stderr):
            hashes = user_import.hash_all(rows, 4)
            shown = b""
            while not shown.endswith(b"3 of 3 passwords hashed\r\x1b[K"):  # it comes through the terminal in parts
                shown += os.read(terminal, 1000)
        self.assertTrue(check_password(hashes["user3"].decode(), b"x"))
        self.assertIn(b"1 of 3 passwords hashed", shown)
        self.assertTrue(shown.endswith(b"3 of 3 passwords hashed\r\x1b[K"), shown)
        with mock.patch.object(sys, "stderr", io.StringIO()) as pipe:
            user_import.hash_all(rows, 4)
        self.assertEqual("", pipe.getvalue())


class ParseTests(UsersCase):
    """The CSV file alone."""

    def test_line_numbers(self) -> None:
        """A record that spans lines, and empty lines, count as an editor counts them."""
        rows = parse_users(b'\nuser,password\n\n"bob",x\n\n\ncarol,"y"\n', "users.csv", False)
        self.assertEqual([(4, "bob", "x"), (7, "carol", "y")], [(row.line, row.user, row.password) for row in rows])

    def test_heading_once(self) -> None:
        """Only the first line can be a heading; a user may have that name."""
        rows = parse_users(b"user,password\nuser,password\n", "users.csv", False)
        self.assertEqual([("user", "password")], [(row.user, row.password) for row in rows])
        self.assertRaises(Refused, parse_users, b"user\n", "users.csv", True)
