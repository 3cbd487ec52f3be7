"""
C{rest-server status} against small servers of the tests' own: what it prints, and its exit status.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import ssl
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.commands import status as command
from resticserver.telemetry.concerns import DEFAULT, Thresholds
from resticserver.telemetry.refusals import Refused
from resticserver.telemetry.status import (
    LastDayStatus,
    ObjectProblem,
    RepositoryStatus,
    ScrubStatus,
    ServerStatus,
    UserStatus,
)

from ..support.certificates import make_certificate
from ..support.client import authorization
from ..support.scratch import scratch_directory

NOW_S = 1_800_000_000.0
DAY_S = 86_400
WELL = RepositoryStatus("alice/laptop", "alice", 500 << 20, 7, 1000 << 20, last_snapshot_s=NOW_S - 3600)
SERVER = ServerStatus(
    "1.2.3", NOW_S, NOW_S - DAY_S, disk_free_bytes=5 << 30, disk_size_bytes=10 << 30, repositories=(WELL,)
)
UNKNOWN = "full: not known before 7 days of sizes"


class Answers:
    """
    What the server says.

    @ivar asked: path and C{Authorization} of each request.
    """

    def __init__(self) -> None:
        self.status = 200
        self.reason: str | None = None
        self.body = b""
        self.location = ""
        self.asked: list[tuple[str, str | None]] = []


class StatusCommandTests(SynchronousTestCase):
    """L{status.main}."""

    def setUp(self) -> None:
        self.answers = Answers()
        self.say(SERVER)
        self.url = self.listen(self.answers)
        # Nobody's proxy is asked for what is on this machine.
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            if name in os.environ:
                self.patch(os, "environ", {key: value for key, value in os.environ.items() if key != name})

    def listen(self, answers: Answers, context: Any = None) -> str:
        """A server on this machine; its address."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """http.server's call."""
                answers.asked.append((self.path, self.headers["Authorization"]))
                self.send_response(answers.status, answers.reason)
                if answers.location:
                    self.send_header("Location", answers.location)
                self.send_header("Content-Length", str(len(answers.body)))
                self.end_headers()
                self.wfile.write(answers.body)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        return f"http{'s' if context is not None else ''}://127.0.0.1:{server.server_port}"

    def say(self, status: ServerStatus) -> None:
        """How the server is."""
        self.answers.body = json.dumps(status.as_json()).encode()

    def ask(self, *arguments: str, url: str | None = None) -> tuple[int, str, str]:
        """Status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = command.main([self.url if url is None else url, *arguments])
        return status, out.getvalue(), err.getvalue()

    def refused(self, *arguments: str, url: str | None = None) -> str:
        """What it says when that cannot be found out: one line, and status 2, without a traceback."""
        try:
            status, out, err = self.ask(*arguments, url=url)
        except Exception as error:
            self.fail(f"a traceback: {error!r}")
        self.assertEqual((2, ""), (status, out), err)
        self.assertEqual(1, len(err.splitlines()), err)
        self.assertTrue(err.startswith("rest-server status: "), err)
        return err

    def test_table(self) -> None:
        """A sum, and a line each, those that need attention first."""
        old = replace(WELL, repository="bob", quota_bytes=None, last_snapshot_s=NOW_S - 9 * DAY_S, locks=2)
        new = RepositoryStatus("", None, 0, 0)
        well = replace(WELL, snapshots=12, last_writer="alice", last_write_s=NOW_S - 60)
        self.say(replace(SERVER, repositories=(well, old, new)))
        status, out, err = self.ask()
        self.assertEqual((1, ""), (status, err))
        sum_, empty, head, *lines = out.splitlines()
        self.assertEqual((f"1000 MiB in 3 repositories; 5 GiB of disk free ({UNKNOWN})", ""), (sum_, empty))
        columns = "REPOSITORY    LAST SNAPSHOT  AT                    LAST WRITER  SNAPSHOTS     SIZE  QUOTA  LOCKS"
        self.assertEqual(columns, head)
        self.assertEqual(
            [
                "bob           9 days ago     2027-01-06 08:00 UTC  -                    0  500 MiB      -      2"
                "  last snapshot 9 days ago",
                "/             never          -                     -                    0  0 bytes      -      0"
                "  no snapshot yet",
                "alice/laptop  1 hour ago     2027-01-15 07:00 UTC  alice               12  500 MiB   50 %      0",
            ],
            lines,
        )

    def test_last_day_and_growth(self) -> None:
        """The host, what happened within the last day, how all of it grows, and when the disk is full."""
        day = LastDayStatus(float(DAY_S), 5 << 30, 3 << 20, 7, 12, 1)
        history = ((20_000, 100 << 20), (20_030, 500 << 20))
        grows = replace(
            SERVER,
            host="backup1\x1b",
            last_day=day,
            history=history,
            growth_bytes_per_day=5e6,
            disk_full_s=NOW_S + 20.5 * DAY_S,
        )
        self.say(grows)
        _, out, _ = self.ask()
        self.assertEqual(
            [
                "backup1\\x1b: 500 MiB in 1 repository; 5 GiB of disk free (full about 2027-02-04, in 20 days)",
                "growth: +400 MiB in 30 days",
                "last day: 5 GiB received, 3 MiB sent, 7 uploads refused, 12 failed logins, limits reached 1 time",
            ],
            out.splitlines()[:3],
        )
        self.say(replace(grows, disk_full_s=None, last_day=day._replace(covered_s=7200.0)))
        _, out, _ = self.ask()
        self.assertIn("(full: not within ten years)\n", out)
        self.assertIn("limits reached 1 time (known for 2 hours)\n", out)

    def test_thresholds(self) -> None:
        """The server's thresholds decide the exit status, and those of this version where it tells none."""
        old = replace(WELL, last_snapshot_s=NOW_S - 8 * DAY_S)
        document = replace(SERVER, repositories=(old,)).as_json()
        for thresholds, expected in (
            (DEFAULT, 1),
            (Thresholds(snapshot_age_s=9 * DAY_S), 0),
            (Thresholds(snapshot_age_s=0), 0),
            (Thresholds(snapshot_age_s=9 * DAY_S, quota=0.5), 1),
        ):
            self.say(replace(SERVER, repositories=(old,), thresholds=thresholds))
            self.assertEqual(expected, self.ask()[0], thresholds)
        del document["thresholds"]
        self.answers.body = json.dumps(document).encode()
        self.assertEqual(1, self.ask()[0])

    def test_scrub(self) -> None:
        """When everything was verified, how far the pass is, and a line for each problem."""
        problem = ObjectProblem("data", "ab" * 32, "missing", NOW_S - 60, "it is not there")
        broken = replace(WELL, repository="bob", problem_counts={"missing": 1}, problems=(problem,))
        scrub = ScrubStatus(2_592_000, 0.5, 7200, NOW_S - 2 * DAY_S)
        self.say(replace(SERVER, repositories=(WELL, broken), scrub=scrub))
        status, out, _ = self.ask()
        self.assertEqual(1, status)
        self.assertIn("verified 2 days ago; 50 % of the present pass of the scrub done, 2 hours left\n", out)
        self.assertIn("found by the scrub: 1 missing\n", out)
        self.assertRegex(out, f"bob +missing +data/{'ab' * 32} +it is not there\n")
        self.say(replace(SERVER, repositories=(WELL,), scrub=ScrubStatus(2_592_000)))
        status, out, _ = self.ask()
        self.assertEqual(0, status)
        self.assertIn("not everything was verified yet\n", out)

    def test_users(self) -> None:
        """Users with a quota, or who were refused something, have a table of their own, and one above the quota is status 1."""
        refused = Refused("carol", "carol/x\x1b", "disk", 2, NOW_S - 7200, "no space left")
        users = (UserStatus("alice", 500 << 20, 1000 << 20), UserStatus("bob", 211, 100), UserStatus("dave", 5))
        self.say(replace(SERVER, users=users[::2]))
        status, out, _ = self.ask()
        self.assertEqual((0, False), (status, "dave" in out))
        self.say(replace(SERVER, users=users).with_refusals((refused,)))
        status, out, err = self.ask()
        self.assertEqual((1, ""), (status, err))
        words = "2 uploads refused within a day, the last 2 hours ago: no space left"
        self.assertEqual(
            [
                words,
                f"500 MiB in 1 repository; 5 GiB of disk free ({UNKNOWN})",
                "",
                "USER        SIZE  QUOTA",
                "bob    211 bytes  211 %  quota 211 % used",
                f"carol    0 bytes      -  {words}",
                "alice    500 MiB   50 %",
                "",
            ],
            out.splitlines()[:8],
        )
        for name, code in (("bob", 1), ("alice", 0)):
            self.say(replace(SERVER, users=tuple(user for user in users if user.user == name)))
            self.assertEqual(code, self.ask()[0], name)

    def test_status(self) -> None:
        """
        0 if all is well, 1 if something needs attention, of a repository or of the server; notices are none. 2 while nobody
        knows.
        """
        table: tuple[tuple[int, dict[str, Any], str], ...] = (
            (0, {}, "500 MiB in 1 repositor"),
            (0, {"repositories": ()}, "0 bytes in 0 repositories"),
            (0, {"repositories": (replace(WELL, last_snapshot_s=None),)}, "no snapshot yet"),
            (2, {"counted": False}, "sizes are still being counted"),
            (
                2,
                {"counted": False, "repositories": (replace(WELL, last_snapshot_s=None, counted=False),)},
                "not known yet",
            ),
            (1, {"counted": False, "not_ready": "the disk is full"}, "not ready"),
            (1, {"repositories": (replace(WELL, damaged=1),)}, "1 damaged file found"),
            (1, {"repositories": (WELL, replace(WELL, last_snapshot_s=NOW_S - 8 * DAY_S))}, "last snapshot 8 days ago"),
            (1, {"repositories": (replace(WELL, quota_bytes=500 << 20),)}, "quota 100 % used"),
            (1, {"not_ready": "the disk is full"}, "not ready: the disk is full"),
            (1, {"certificate_s": NOW_S + DAY_S}, "certificate expires in 1 day"),
            (1, {"disk_free_bytes": 1024}, "only 1 KiB of disk space free"),
            (1, {"quota_bytes": 500 << 20}, "quota 100 % used"),
        )
        for expected, changes, words in table:
            self.say(replace(SERVER, **changes))
            status, out, err = self.ask()
            self.assertEqual((expected, ""), (status, err), changes)
            self.assertIn(words, out)
            self.assertEqual(expected, self.ask("--json")[0], changes)

    def test_json(self) -> None:
        """With C{--json} it is what the server said, unknown keys too."""
        document = {**SERVER.as_json(), "mood": "fine"}
        self.answers.body = json.dumps(document).encode()
        _, out, _ = self.ask("--json")
        self.assertEqual(json.loads(self.answers.body), json.loads(out))

    def test_path(self) -> None:
        """One page is asked for, behind whatever the URL ends with; no password without a user."""
        for url in (self.url, f"{self.url}/", f"{self.url}/backup", f"{self.url}/backup/"):
            self.assertEqual(0, self.ask(url=url)[0])
        expected = ["/-/status.json", "/-/status.json", "/backup/-/status.json", "/backup/-/status.json"]
        self.assertEqual([(path, None) for path in expected], self.answers.asked)

    def test_password_from_a_file(self) -> None:
        """The first line of a file, whatever is behind it, in UTF-8."""
        path = Path(self.mktemp())
        for content in ("geh:eim ä", "geh:eim ä\n", "geh:eim ä\nmore\n"):
            path.write_text(content, encoding="utf-8")
            self.answers.asked.clear()
            self.assertEqual(0, self.ask("--user", "metrics", "--password-file", str(path))[0])
            self.assertEqual([("/-/status.json", authorization("metrics", "geh:eim ä"))], self.answers.asked)

    def test_password_from_a_pipe(self) -> None:
        """A line of standard input, if that is no terminal."""
        for content in ("secret", "secret\n", "secret\nmore\n"):
            self.patch(sys, "stdin", io.StringIO(content))
            self.answers.asked.clear()
            self.assertEqual(0, self.ask("--user", "alice")[0])
            self.assertEqual([("/-/status.json", authorization("alice", "secret"))], self.answers.asked)

    def test_password_that_cannot_be_read(self) -> None:
        """No such file, or no text: one line, and nobody is asked."""
        path = Path(self.mktemp())
        self.assertIn("No such file", self.refused("--user", "alice", "--password-file", str(path)))
        path.write_bytes(b"\xff\xfe\n")
        self.refused("--user", "alice", "--password-file", str(path))
        self.assertEqual([], self.answers.asked)

    def test_password_is_for_the_server_alone(self) -> None:
        """A redirect to somebody else does not take the password there."""
        path = Path(self.mktemp())
        path.write_text("secret\n")
        other = Answers()
        other.body = self.answers.body
        self.answers.status, self.answers.location = 302, self.listen(other) + "/stolen"
        self.ask("--user", "alice", "--password-file", str(path))
        self.assertNotIn(authorization("alice", "secret"), [header for _, header in other.asked])

    def test_no_server(self) -> None:
        """Nobody listens, there is no such host, or what listens speaks no HTTP."""
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            self.assertIn(f"{url}: Connection refused", self.refused(url=url))
        for url in ("", "127.0.0.1:8000", "ftp://127.0.0.1", "file:///etc/passwd"):
            self.assertIn("the URL must begin with", self.refused(url=url))

    def test_odd_urls(self) -> None:
        """A port that is no number, a space, a bracket that does not close."""
        for url in (
            "http://127.0.0.1:port",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:1/a b",
            "http://[::1",
            "http://",
        ):
            self.refused(url=url)

    def test_no_http(self) -> None:
        """Something else listens there, as sshd or a TLS server asked without TLS."""
        cut_off = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"
        for said in (b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x03\x00\x02\x02\x0a", b"", cut_off):
            with socket.create_server(("127.0.0.1", 0)) as listening:

                def answer() -> None:
                    with listening.accept()[0] as connection:
                        connection.recv(65536)
                        connection.sendall(said)

                thread = threading.Thread(target=answer, daemon=True)
                thread.start()
                try:
                    self.refused(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
                finally:
                    thread.join(30)

    def test_refused(self) -> None:
        """A server that does not say it: the status and the reason in a line."""
        self.answers.body = b"no\n"
        for status, reason in ((401, "Unauthorized"), (403, "Forbidden"), (503, "no data directory")):
            self.answers.status, self.answers.reason = status, reason
            self.assertEqual(f"rest-server status: {self.url}: {status} {reason}\n", self.refused())
            self.refused("--json")

    def test_no_page(self) -> None:
        """A server without metrics has none."""
        self.answers.status = 404
        self.assertIn("the status page needs --prometheus or --metrics-listen", self.refused())

    def test_no_secrets_where_all_can_read(self) -> None:
        """A password in the URL or behind an option that there is not is refused, and not repeated."""
        self.assertNotIn("s3cret", self.refused(url="http://metrics:s3cret@127.0.0.1:1"))
        self.assertIn("unrecognized arguments", self.refused("--password", "file"))
        self.assertEqual([], self.answers.asked)

    def test_no_password(self) -> None:
        """An empty one is not sent: the server would count it as a guess."""
        path = Path(self.mktemp())
        path.write_text("\n")
        self.assertIn("the password is empty", self.refused("--user", "alice", "--password-file", str(path)))
        self.assertIn(f"{path}.no: No such file", self.refused("--user", "alice", "--password-file", f"{path}.no"))
        self.assertEqual([], self.answers.asked)

    def test_endless(self) -> None:
        """A server that sends a byte now and then does not hold it up for ever."""
        # Each look at the clock is a minute after the last, which is longer than the command waits.
        looks = itertools.count(0, 60)
        self.patch(command, "time", SimpleNamespace(monotonic=lambda: float(next(looks)), time=time.time))
        ended = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def answer() -> None:
                with listening.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    while not ended.wait(0.05):
                        connection.sendall(b" ")

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            try:
                self.assertIn(
                    "did not answer in time", self.refused(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
                )
            finally:
                ended.set()
                thread.join(30)

    def test_no_status(self) -> None:
        """What is no JSON, of another schema, or of another form: one line."""
        whole = SERVER.as_json()
        bodies = [
            b"",
            b"[" * 200_000,
            b"<html>",
            b"[]",
            b"null",
            b"7",
            b"\xff",
            b"{}",
            json.dumps({**whole, "schema": 2}).encode(),
            json.dumps({**whole, "schema": "1"}).encode(),
            json.dumps({"schema": 1}).encode(),
        ]
        for key, value in (
            ("repositories", None),
            ("repositories", [7]),
            ("repositories", [{}]),
            ("repositories", ["x"]),
            ("users", [None]),
            ("users", None),
            ("time_s", None),
            ("repositories", [{**whole["repositories"][0], "repository": 7}]),
            ("repositories", [{**whole["repositories"][0], "size_bytes": "much"}]),
            ("disk_free_bytes", "much"),
        ):
            bodies.append(json.dumps({**whole, key: value}).encode())
        for self.answers.body in bodies:
            self.refused()

    def test_other_schema_is_said(self) -> None:
        """Another version of the server is called that."""
        self.answers.body = json.dumps({**SERVER.as_json(), "schema": 2}).encode()
        self.assertIn("another version", self.refused())

    def test_names_that_would_disturb_a_terminal(self) -> None:
        """Control characters are escaped, in names and in reasons; letters of all scripts stay."""
        names = ("grün\x1b[2J", "a\nb", "c\x9b", "d\u202e", "\N{SNOWMAN}", "bad\udcff")
        repositories = tuple(replace(WELL, repository=name) for name in names)
        self.say(replace(SERVER, not_ready="no\x1b[31m\nroom", repositories=repositories))
        status, out, _ = self.ask()
        self.assertEqual(1, status)
        for shown in ("grün\\x1b[2J ", "a\\nb ", "c\\x9b ", "d\\u202e ", "\N{SNOWMAN} ", "bad\\udcff "):
            self.assertIn(f"\n{shown}", out)
        self.assertTrue(all(c.isprintable() or c == "\n" for c in out), out)
        self.assertEqual(10, len(out.splitlines()), out)

    def test_reasons_that_would_disturb_a_terminal(self) -> None:
        """What a server says why not is escaped, too."""
        self.answers.status, self.answers.reason = 500, "no\x1b[2J"
        self.assertNotIn("\x1b", self.refused())

    def test_authority(self) -> None:
        """Over TLS with the authority that is told, and not without."""
        scratch = scratch_directory(self)
        certificate = make_certificate(scratch)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        url = self.listen(self.answers, context)
        self.assertEqual(0, self.ask("--cacert", str(certificate.authority), url=url)[0])
        self.assertIn("certificate verify failed", self.refused(url=url))
        self.assertIn("No such file", self.refused("--cacert", "/nowhere", url=url))

    def test_usage(self) -> None:
        """A wrong flag is status 2 in a line; C{--help} is 0 and says what the status means."""
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            self.assertEqual(2, command.main(["--bogus"]))
            self.assertEqual(2, command.main(["http://a", "http://b"]))
        self.assertEqual(2, len(out.getvalue().splitlines()))
        out = io.StringIO()
        with redirect_stdout(out):
            self.assertEqual(0, command.main(["--help"]))
        self.assertIn("1 if something needs attention", " ".join(out.getvalue().split()))

    def test_output_that_nobody_takes(self) -> None:
        """A full disk behind standard output is status 2, not 0."""
        with open("/dev/full", "w") as full, redirect_stdout(full), redirect_stderr(io.StringIO()) as err:
            self.assertEqual(2, command.main([self.url]))
            self.assertIn("cannot write", err.getvalue())

    def test_one_repository(self) -> None:
        """One is no plural."""
        self.assertIn("in 1 repository;", self.ask()[1])
