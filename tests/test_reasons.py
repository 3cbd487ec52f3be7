"""
What people are told when something does not work: of a path, a user's name, a file that cannot be read; and how dates look.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.htpasswd import Htpasswd
from resticserver.access.policy import Policy
from resticserver.access.policyfile import PolicyFile
from resticserver.dates import date_text
from resticserver.errors import NotFound, StartError
from resticserver.files import reason_of
from resticserver.names import is_user_name, why_no_user
from resticserver.targets import Kind, parse_target, why_no_repository, why_nothing

from .support.htpasswd import sha_line
from .support.memory import Bench, request
from .support.processes import process_test
from .support.skipping import skipped
from .test_layers import MODULES

SKIP_UNLESS_ROOT = None if os.geteuid() == 0 else "only root can become another user"

ID = "0a" * 32
PREFIX = ("backup",)

#: A path, why it is no repository's, and why it names nothing at all; empty where that is not so.
PATHS: tuple[tuple[bytes, str, str], ...] = (
    (b"/", "", ""),
    (b"/alice/laptop/", "", ""),
    (b"http://host/alice/", "", ""),
    (b"/data/", '"data" is a reserved name, choose another repository path', ""),
    (b"/alice/locks/", '"locks" is a reserved name, choose another repository path', ""),
    (
        b"/config/",
        '"config" is a reserved name, choose another repository path',
        "'config' is a reserved name and a file",
    ),
    (b"/data/x/", '"data" is a reserved name', "'data' is a reserved name, and only an object's name may follow it"),
    (b"/data/x", '"data" is a reserved name', "'x' is not an object's name: it must be 64 hexadecimal digits"),
    (b"/data/" + ID.upper().encode(), '"data" is a reserved name', "is not an object's name"),
    (b"/.tmp/", '".tmp" is a reserved name, choose another', "folder 1: '.tmp' is a reserved name"),
    (b"/a/-/", '"-" is a reserved name, choose another', "folder 2: '-' is a reserved name"),
    (b"/a/b/c/", "at most 2 folders deep (--max-depth)", "at most 2 folders deep (--max-depth)"),
    (
        b"/alice",
        "the path of a repository must end with a slash: /alice/",
        "the path of a repository must end with a slash: /alice/",
    ),
    (
        b"/alice/data",
        "'data' is a reserved name, and the path of a list must end with a slash: /alice/data/",
        "the path of a list must end with a slash: /alice/data/",
    ),
    (b"/alice//", "folder 2: it is empty", "folder 2: it is empty"),
    (b"/../", "folder 1: '..' is not a name", "folder 1: '..' is not a name"),
    (b"/a%2fb/", "'a%2fb' contains an encoded slash", "'a%2fb' contains an encoded slash"),
    (b"/%ff/", "'%ff' is not UTF-8", "'%ff' is not UTF-8"),
    (b"/a%00b/", r"'a\x00b' contains '\x00'", r"contains '\x00'"),
    (b"/a\\b/", r"'a\\b' contains '\\'", r"contains '\\'"),
    (b"/" + b"x" * 256 + b"/", "folder 1: it is longer than 255 bytes", "it is longer than 255 bytes"),
    (b"alice/", "the path must begin with a slash", "the path must begin with a slash"),
    (b"", "the path must begin with a slash", "the path must begin with a slash"),
)

USERS = (
    ("alice", ""),
    ("алиса@example.org", ""),
    ("a b", "it contains ' '; only letters, digits, '@', '.', '_' and '-' are allowed"),
    ("a:b", "it contains ':'"),
    ("a/b", "it contains '/'"),
    ("", "it is empty"),
    ("data", "'data' is a reserved name"),
    ("-", "'-' is a reserved name"),
    ("..", "'..' is not a name"),
    ("x" * 256, "longer than 255 bytes"),
    ("a\n", r"it contains '\n'"),
)


class NameTests(SynchronousTestCase):
    """L{why_no_repository}, L{why_nothing}, L{why_no_user}."""

    def test_paths(self) -> None:
        """Which part is wrong, and why; and these agree with the rules that are in force."""
        for path, no_repository, nothing in PATHS:
            for found, expected in ((why_no_repository(path), no_repository), (why_nothing(path), nothing)):
                self.assertEqual(not expected, not found, (path, found))
                self.assertIn(expected, found, path)
            try:
                target = parse_target(path)
            except NotFound:
                self.assertTrue(nothing, path)
                self.assertTrue(no_repository, path)
            else:
                self.assertEqual("", nothing, path)
                self.assertEqual(target.kind is Kind.REPOSITORY, not no_repository, path)

    def test_prefix(self) -> None:
        """What is not below the prefix, and what is."""
        self.assertEqual("it is not below /backup (--proxy-prefix)", why_nothing(b"/alice/", 2, PREFIX))
        self.assertEqual("", why_nothing(b"/backup/alice/", 2, PREFIX))
        self.assertIn("must end with a slash: /backup/", why_nothing(b"/backup", 2, PREFIX))
        self.assertIn('"data" is a reserved name', why_no_repository(b"/backup/data/", 2, PREFIX))

    def test_users(self) -> None:
        """Why a name may be no user's."""
        for name, expected in USERS:
            self.assertIn(expected, why_no_user(name), name)
            self.assertEqual(is_user_name(name), not why_no_user(name), name)


class AnswerTests(SynchronousTestCase):
    """What C{restic init} is answered where it cannot work."""

    def test_init(self) -> None:
        """Reserved words, other queries, odd paths: the status, and a phrase that says what is wrong."""
        bench = Bench(self.mktemp())
        reserved = '"{}" is a reserved name, choose another repository path'
        for path, status, reason in (
            ("/data/?create=true", 405, reserved.format("data")),
            ("/alice/snapshots/?create=true", 405, reserved.format("snapshots")),
            ("/data/", 405, reserved.format("data")),
            ("/config/?create=true", 404, reserved.format("config")),
            ("/data/x/?create=true", 404, reserved.format("data")),
            ("/.tmp/?create=true", 404, reserved.format(".tmp")),
            ("/a/b/c/?create=true", 404, "a repository may be at most 2 folders deep (--max-depth)"),
            ("/alice?create=true", 404, "the path of a repository must end with a slash: /alice/"),
            ("/a%0d%0ab/?create=true", 404, r"folder 1: 'a\r\nb' contains '\r'"),
            ("/alice/", 400, "nothing was created: to create a repository, POST with ?create=true"),
            ("/alice/?create=", 400, "nothing was created: to create a repository, POST with ?create=true"),
            (
                "/alice/?create=1",
                400,
                "nothing was created: to create a repository, POST with ?create=true, not ?create=1",
            ),
            ("/alice/?create=true", 200, "OK"),
        ):
            connection = bench.ask(request("POST", path, b""))
            first, _, rest = connection.received.partition(b"\r\n")
            self.assertEqual(f"HTTP/1.1 {status} {reason}", first.decode("ascii"), path)
            if status == 405:
                self.assertIn(b"\r\nAllow: GET\r\n", rest)
        # Who only reads learns no more than before.
        self.assertIn(b" 404 not found\r\n", bench.ask(request("GET", "/.tmp/config")).received)


@process_test
class FileTests(SynchronousTestCase):
    """Files that cannot be read."""

    def test_reasons(self) -> None:
        """Where rights are missing it says whose; all else is as the system says it."""
        error = reason_of(PermissionError(13, "Permission denied", "/x"))
        self.assertIn(f"Permission denied for user id {os.geteuid()} ", error)
        self.assertEqual(
            "No such file or directory", reason_of(FileNotFoundError(2, "No such file or directory", "/x"))
        )
        self.assertEqual("odd", reason_of(OSError("odd")))

    def as_nobody(self, path: Path, code: str) -> str:
        """What a program says that has no rights to a file. (The tests run as root, whom nobody refuses.)"""
        program = f"import os\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\npath = {str(path)!r}\n{code}"
        # What is imported may lie where only root may look: all of it before.
        before = (
            "import sys, time\n"
            "from resticserver.access.htpasswd import Htpasswd\n"
            "from resticserver.access.policy import Policy\n"
            "from resticserver.access.policyfile import PolicyFile\n"
            "from resticserver.errors import StartError\n"
            "from twisted.logger import capturedLogs, formatEvent\n"
        )
        done = subprocess.run([sys.executable, "-c", before + program], capture_output=True, text=True)
        self.assertEqual("", done.stderr)
        return done.stdout.strip()

    @skipped(SKIP_UNLESS_ROOT)
    def test_htpasswd(self) -> None:
        """An htpasswd file that may not be read: at the start and later, and never a word of doing without."""
        path = Path(self.mktemp()).absolute()
        path.write_text(sha_line("alice", "alice"))
        path.chmod(0o600)
        said = self.as_nobody(
            path, "try: Htpasswd(path, time.monotonic).load()\nexcept StartError as error: print(error)"
        )
        self.assertRegex(
            said, f"^--htpasswd-file: cannot load {re.escape(str(path))}: Permission denied for user id 65534 "
        )
        self.assertNotIn("--no-auth", said)
        code = (
            "file = Htpasswd(path, time.monotonic)\n"
            "with capturedLogs() as logged: file.reload_if_changed(True)\n"
            "print(formatEvent(logged[0]))"
        )
        said = self.as_nobody(path, code)
        words = "could not reload htpasswd file .*: Permission denied for user id 65534 .*; the previous users stay in effect"
        self.assertRegex(said, f"^{words}$")
        self.assertNotIn("--no-auth", said)

    @skipped(SKIP_UNLESS_ROOT)
    def test_policy(self) -> None:
        """A policy file likewise."""
        path = Path(self.mktemp()).absolute()
        path.write_text("")
        path.chmod(0o600)
        said = self.as_nobody(path, "try: PolicyFile(path, Policy()).load()\nexcept StartError as error: print(error)")
        self.assertIn("Permission denied for user id 65534 ", said)

    def test_missing(self) -> None:
        """One that is not there: what one may do is said; of a directory in its place it is not."""
        path = self.mktemp()
        error = self.assertRaises(StartError, Htpasswd(path, float).load)
        self.assertIn("use --no-auth", str(error))
        os.mkdir(path)
        error = self.assertRaises(StartError, Htpasswd(path, float).load)
        self.assertNotIn("--no-auth", str(error))

    def test_reload(self) -> None:
        """A file that goes away later: no advice to do without it."""
        path = self.mktemp()
        Path(path).write_text(sha_line("alice", "alice"))
        file = Htpasswd(path, lambda: 0.0)
        file.load()
        os.unlink(path)
        with capturedLogs() as logged:
            self.assertFalse(file.reload_if_changed())
        self.assertNotIn("--no-auth", formatEvent(logged[0]))
        Path(path).write_text("default = 3")
        policy = PolicyFile(path, Policy())
        self.assertRaises(StartError, policy.load)


class DateTests(SynchronousTestCase):
    """One format for dates."""

    def test_one_place(self) -> None:
        """Only C{dates.py} makes texts of points in time; the access log has Apache's format, and HTTP its own."""
        others = []
        for module, path in MODULES.items():
            source = path.read_text(encoding="utf-8")
            if module != "resticserver.dates" and re.search(
                r"strftime|isoformat|fromtimestamp|ctime\(|asctime", source
            ):
                others.append(module)
        self.assertEqual([], others)

    def test_where_they_are_shown(self) -> None:
        """The event of a certificate, the line of its reload, C{rest-server usage}: no blanks, no local time, a zone."""
        for seconds in (0.0, 1_800_000_000.25):
            self.assertRegex(date_text(seconds), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
