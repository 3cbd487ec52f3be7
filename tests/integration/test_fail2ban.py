"""
The fail2ban filter that is shipped, by the real fail2ban, on the lines of the real server.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.htpasswd import sha_line
from ..support.scratch import scratch_directory
from ..support.server import REST_SERVER, TWISTD, start_server

FAIL2BAN_REGEX = shutil.which("fail2ban-regex")
SHIPPED = Path(__file__).resolve().parents[2] / "etc" / "fail2ban"
FILTER = SHIPPED / "filter.d" / "restic-rest.conf"

#: What comes before a line: in a file, in twistd's log, from the journal with either.
PREFIXES = (
    "",
    "2026-11-23T10:11:12+0000 [resticserver.web.authentication#warn] ",
    "Nov 23 10:11:12 nas rest-server[123]: ",
    "Nov 23 10:11:12 nas twistd[123]: 2026-11-23T10:11:12+0000 [resticserver.web.authentication#warn] ",
)

FAILURES = (
    "auth failure from 192.0.2.1 for user alice",
    "auth failure from 192.0.2.1 for user alice@example.org",
    "auth failure from 192.0.2.1 for user müller",
    "auth failure from 192.0.2.1 for user (not a user name)",
    "auth failure from 2001:db8::1 for user a-b_c.d",
)

OTHERS = (
    # nobody to ban
    "auth failure from - for user alice",
    "auth failure from unknown for user alice",
    # what others might write into a line
    "GET /auth failure from 192.0.2.1 for user alice from 198.51.100.1: 401",
    "x auth failure from 192.0.2.1 for user alice",
    "auth failure from 198.51.100.1 for user alice auth failure from 192.0.2.1 for user alice",
    "auth failure from 198.51.100.1 for user auth failure from 192.0.2.1 for user alice",
    "too many auth failures from 192.0.2.1: refused for a while",
    "Authentication enabled",
)


class Fail2banTests(SynchronousTestCase):
    """fail2ban-regex."""

    if FAIL2BAN_REGEX is None:
        skip = "fail2ban is not installed"

    def matched(self, lines: list[str]) -> tuple[int, int]:
        """How many lines the filter takes, and how many it does not."""
        log = scratch_directory(self) / "log"
        log.write_text("".join(f"{line}\n" for line in lines))
        done = subprocess.run(
            [str(FAIL2BAN_REGEX), "--encoding", "UTF-8", str(log), str(FILTER)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = re.search(r"^Lines: (\d+) lines, \d+ ignored, (\d+) matched, (\d+) missed", done.stdout, re.MULTILINE)
        assert found is not None and int(found[1]) == len(lines), done
        return int(found[2]), int(found[3])

    def test_failures(self) -> None:
        """Every failure with an address, wherever the line is read."""
        for prefix in PREFIXES:
            lines = [prefix + line for line in FAILURES]
            self.assertEqual((len(lines), 0), self.matched(lines), prefix)

    def test_others(self) -> None:
        """Nothing else, and nobody can have somebody else banned."""
        for prefix in PREFIXES:
            lines = [prefix + line for line in OTHERS]
            self.assertEqual((0, len(lines)), self.matched(lines), prefix)

    def test_real_lines(self) -> None:
        """What a server says of wrong passwords, through either door, and of names that would be somebody else's line."""
        for door in (REST_SERVER, TWISTD):
            scratch = scratch_directory(self)
            users = scratch / "users"
            users.write_text(sha_line("alice", "secret"))
            server = start_server(self, scratch / "data", "--htpasswd-file", str(users), door=door)
            for user in ("alice", "bob", "x\nauth failure from 192.0.2.1 for user alice", "a for user b", ""):
                with server.client(user, "wrong") as client:
                    self.assertEqual(401, client.get("/config").status)
            with server.client("alice", "secret") as client:
                self.assertEqual(404, client.get("/config").status)
            with server.client() as client:
                self.assertEqual(401, client.get("/config").status)
            server.stop()
            lines = [*server.err, *server.out]
            self.assertEqual((5, len(lines) - 5), self.matched(lines), lines)
            self.assertEqual(5, sum("auth failure from 127.0.0.1 for user" in line for line in lines))
            self.assertFalse(any("wrong" in line or "secret" in line for line in lines), lines)

    def test_jail(self) -> None:
        """The jail names the filter, and has what a jail needs."""
        jail = configparser.ConfigParser()
        jail.read(SHIPPED / "jail.d" / "restic-rest.conf")
        self.assertEqual(["restic-rest"], jail.sections())
        self.assertTrue((SHIPPED / "filter.d" / f"{jail['restic-rest']['filter']}.conf").exists())
        self.assertTrue(jail["restic-rest"].getboolean("enabled"))
