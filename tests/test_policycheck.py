"""
C{rest-server policy check}: one line that says what holds, and a status for scripts.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver import policycheck

from .test_policy import ID, OFFICE


class PolicyCheckTests(SynchronousTestCase):
    """L{policycheck.main}."""

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Status, and what was printed."""
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                status = policycheck.main(arguments)
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
            ((*file, "alice", "post", "/alice/pc/"), 2, "rest-server policy check: post is no method"),
            ((*file, "alice", "POST", "/alice/pc"), 2, "rest-server policy check: /alice/pc names nothing"),
            (
                ("--policy", "", "alice", "POST", "/alice/pc/"),
                2,
                "rest-server policy check: : No such file or directory",
            ),
            ((*file, "--bogus"), 2, "rest-server policy check: "),
            (
                (*file, "alice", "GET", "/bob/pc/data/"),
                1,
                "refused by default: none: you have no right to this repository",
            ),
            ((*file, "bob", "POST", "/shared/archive-1/config"), 1, "refused by rule 3: read: you may only read"),
            ((*file, "--append-only", "root", "DELETE", f"/x/data/{ID}"), 1, "refused by --append-only: append-only"),
            (("--private-repos", "alice", "GET", "/bob/config"), 1, "refused by --private-repos"),
            (("alice", "GET", "/bob/config"), 0, "allowed by no policy file: all rights"),
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
            (("a b", "GET", "/config"), "no user name"),
            (("--policy", "/nowhere", "alice", "GET", "/config"), "No such file"),
            (("--policy", str(broken), "alice", "GET", "/config"), "default: 3 is no right"),
        )
        for arguments, said in table:
            status, printed = self.ask("check", *arguments)
            self.assertEqual(2, status, printed)
            self.assertIn(said, printed)
            self.assertEqual(1, len(printed.splitlines()), printed)

    def test_usage(self) -> None:
        """A missing argument or command."""
        for arguments in ((), ("check",), ("check", "alice"), ("nonsense",)):
            self.assertEqual(2, self.ask(*arguments)[0])
        self.assertEqual(0, self.ask("--help")[0])
        self.assertEqual(0, self.ask("check", "--help")[0])
