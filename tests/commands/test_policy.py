"""
C{rest-server policy check}: one line that says what holds, and a status for scripts.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import policy

from ..access.test_policy import ID, OFFICE
from ..support.htpasswd import sha_line


class PolicyCheckTests(SynchronousTestCase):
    """L{policy.main}."""

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Status, and what was printed."""
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                status = policy.main(arguments)
            except SystemExit as end:
                status = int(str(end.code))
        return status, printed.getvalue().strip()

    def test_answers(self) -> None:
        """Allowed, refused, and by what."""
        path = Path(self.mktemp())
        path.write_text(OFFICE)
        file = ("--policy", str(path))
        table = (
            ((*file, "alice", "POST", "/alice/pc/"), 0, "allowed by rule 2: append"),
            ((*file, "alice", "POST", "/alice/pc/?create=true"), 0, "allowed by rule 2: append"),
            ((*file, "alice", "post", "/alice/pc/"), 2, "rest-server policy check: /alice/pc/ needs"),
            ((*file, "alice", "POST", "/alice/pc"), 2, "rest-server policy check: /alice/pc is not a path"),
            (
                ("--policy", "", "alice", "POST", "/alice/pc/"),
                2,
                "rest-server policy check: : No such file or directory",
            ),
            ((*file, "--bogus"), 2, "rest-server policy check: "),
            (
                (*file, "alice", "GET", "/bob/pc/data/"),
                1,
                "refused by default: none: you have no access to this repository",
            ),
            ((*file, "bob", "POST", "/shared/archive-1/config"), 1, "refused by rule 3: read: you may only read"),
            ((*file, "--append-only", "root", "DELETE", f"/x/data/{ID}"), 1, "refused by --append-only: append-only"),
            (("--private-repos", "alice", "GET", "/bob/config"), 1, "refused by --private-repos"),
            (("alice", "GET", "/bob/config"), 0, "allowed by the default without a policy file"),
            (("--proxy-prefix", "/backup", "alice", "GET", "/backup/bob/config"), 0, "allowed"),
            (("--max-depth", "3", "alice", "GET", "/a/b/c/config"), 0, "allowed"),
        )
        for arguments, status, said in table:
            found, printed = self.ask("check", *arguments)
            self.assertEqual(status, found, (arguments, printed))
            self.assertTrue(printed.startswith(said), (arguments, printed))

    def test_no_question(self) -> None:
        """What cannot be decided: one line, status 2."""
        broken = Path(self.mktemp())
        broken.write_text("default = 3")
        table = (
            (("alice", "GET", "/data/foobar"), "404"),
            (("alice", "PUT", "/config"), "405"),
            (("a b", "GET", "/config"), "is not a user name"),
            (("--policy", "/nowhere", "alice", "GET", "/config"), "No such file"),
            (("--policy", str(broken), "alice", "GET", "/config"), "default: 3 is not a right"),
        )
        for arguments, said in table:
            status, printed = self.ask("check", *arguments)
            self.assertEqual(2, status, printed)
            self.assertIn(said, printed)
            self.assertEqual(1, len(printed.splitlines()), printed)

    def test_what_is_wrong(self) -> None:
        """Which part of the question is wrong, and why."""
        users = Path(self.mktemp())
        users.write_text(sha_line("alice", "alice") + "bob:nonsense\n")
        htpasswd = ("--htpasswd-file", str(users))
        odd = Path(self.mktemp())
        odd.write_bytes(b"\xff")
        table = (
            (("a b", "GET", "/config"), "'a b' is not a user name: it contains ' '; only letters, digits"),
            (("data", "GET", "/config"), "'data' is not a user name: 'data' is a reserved name"),
            (
                (*htpasswd, "carol", "GET", "/config"),
                f"'carol' cannot log in with {users}: no such user",
            ),
            (
                (*htpasswd, "bob", "GET", "/config"),
                f"'bob' cannot log in with {users}: Invalid htpasswd entry for bob. (",
            ),
            (("--htpasswd-file", "/nowhere", "bob", "GET", "/config"), "/nowhere: No such file or directory"),
            (("alice", "get", "/config"), "/config needs the method in capitals; the server"),
            (
                ("alice", "PUT", "/config"),
                "/config is a config and supports only GET, HEAD, POST, DELETE; the server",
            ),
            (
                ("alice", "POST", "/data/"),
                '/data/ is a list and supports only GET ("data" is a reserved name, choose another repository',
            ),
            (
                ("alice", "GET", "/x/"),
                "/x/ is a repository and supports only POST, DELETE; the server answers GET with 405",
            ),
            (
                ("alice", "GET", "/x"),
                "/x is not a path of the server: the path of a repository must end with a slash: /x/; the server",
            ),
            (("alice", "GET", "/data/x"), "/data/x is not a path of the server: 'x' is not an object's name"),
            (("alice", "GET", "/a/b/c/config"), "a repository may be at most 2 folders deep (--max-depth)"),
            (("--proxy-prefix", "/b", "alice", "GET", "/config"), "it is not below /b (--proxy-prefix)"),
            (("--proxy-prefix", "b", "alice", "GET", "/config"), "--proxy-prefix b: must be a path such as /backup"),
            (("--max-depth", "99", "alice", "GET", "/config"), "--max-depth 99: must be a number from 0 to 16"),
            (("--policy", str(odd), "alice", "GET", "/config"), f"{odd}: not UTF-8 text"),
            (("alice", "GET", "/\x1b[31m"), "\\x1b[31m"),
        )
        for arguments, said in table:
            status, printed = self.ask("check", *arguments)
            self.assertEqual(2, status, printed)
            self.assertIn(said, printed)
            self.assertEqual(1, len(printed.splitlines()), printed)
            self.assertTrue(printed.startswith("rest-server policy check: "), printed)
            self.assertTrue(printed.isprintable(), printed)
        self.assertEqual(0, self.ask("check", *htpasswd, "alice", "GET", "/config")[0])

    def test_usage(self) -> None:
        """A missing argument or command."""
        for arguments in ((), ("check",), ("check", "alice"), ("nonsense",)):
            self.assertEqual(2, self.ask(*arguments)[0])
        self.assertEqual(0, self.ask("--help")[0])
        self.assertEqual(0, self.ask("check", "--help")[0])
