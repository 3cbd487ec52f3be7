"""
C{rest-server status}: shows the status page of a running server in a terminal.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from getpass import getpass
from http.client import HTTPException, RemoteDisconnected
from typing import Any

from ..config.console import OneLineParser, write_line
from ..dates import minute_text
from ..sizes import format_size
from ..telemetry.concerns import Concern, Level, age
from ..telemetry.growth import full_text, growth_text
from ..telemetry.last_day import DAY_S, SLOT_S
from ..telemetry.status import SCHEMA, RepositoryStatus, ScrubStatus, ServerStatus, UserStatus, printable
from .table import text_table

_TIMEOUT_S = 30.0
#: The longest response that is read.
_MOST_BYTES = 64 << 20


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{status}.
    @return: 0 if all is well, 1 if something needs attention, 2 if the status is unknown, or incomplete because the
        server still counts.
    """
    parser = _parser()
    try:
        asked = parser.parse_args(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        document = _fetch(asked)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError("the server's status has another format; is the server another version?")
        status = ServerStatus.from_json(document)
        shown = json.dumps(document, indent=2) if asked.json else text(status)
        worst = status.worst()
    except _NotAsked as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except (OSError, HTTPException) as error:
        print(f"{parser.prog}: {printable(asked.url)}: {printable(_reason(error, asked.url))}", file=sys.stderr)
        return 2
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = (
            error
            if isinstance(error, ValueError)
            else "the server's status has another format; is the server another version?"
        )
        print(f"{parser.prog}: {printable(asked.url)}: {printable(str(reason))}", file=sys.stderr)
        return 2
    if not write_line(shown):
        return 2
    if worst >= Level.WARNING:
        return 1
    # Repositories that were not counted yet may be in any state.
    return 0 if status.counted else 2


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "rest-server status",
        description="Print the state of a running server and its repositories. The server needs --prometheus or "
        "--metrics-listen. "
        "The exit status is 0 if all is well, 1 if something needs attention, and 2 if the state is unknown, or "
        "the server is still counting.",
    )
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8000", metavar="URL", help="URL of the server (default %(default)s)"
    )
    parser.add_argument("--user", metavar="NAME", help="user to log in as; the user metrics sees all repositories")
    parser.add_argument(
        "--password-file", metavar="FILE", help="file with the password (default: prompt, or read it from a pipe)"
    )
    parser.add_argument("--cacert", metavar="FILE", help="CA certificate to verify the server's certificate, PEM")
    parser.add_argument("--json", action="store_true", help="print the server's JSON unchanged")
    return parser


class _NotAsked(Exception):
    """The server cannot be asked; the message says why in one line."""


def _fetch(asked: argparse.Namespace) -> Any:
    """
    Fetch the server's JSON.

    @raise _NotAsked: the arguments are unusable.
    @raise OSError: the server does not respond, or responds with an error.
    """
    if not asked.url.startswith(("http://", "https://")):
        raise _NotAsked("the URL must begin with http:// or https://, such as http://127.0.0.1:8000")
    if "@" in asked.url.split("/")[2]:
        raise _NotAsked("the URL must not contain a user or a password; use --user and --password-file")
    request = urllib.request.Request(asked.url.rstrip("/") + "/-/status.json")
    if asked.user is not None:
        both = f"{asked.user}:{_password(asked.password_file)}".encode()
        # Unredirected: the password must not follow a redirect.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(both).decode("ascii"))
    try:
        context = ssl.create_default_context(cafile=asked.cacert) if asked.url.startswith("https:") else None
    except OSError as error:
        raise _NotAsked(f"{asked.cacert}: {error.strerror or error}") from None
    # Ignore proxies of the environment: a proxy would get the password, and cannot reach this machine's own addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    until_s = time.monotonic() + _TIMEOUT_S
    content = b""
    with opener.open(request, timeout=_TIMEOUT_S) as answer:
        while (more := answer.read1(1 << 20)) and len(content) < _MOST_BYTES:
            content += more
            if time.monotonic() > until_s:
                raise TimeoutError("the server did not answer in time")
    return json.loads(content)


def _password(path: str | None) -> str:
    """
    Read the password, which is never on a command line.

    @raise _NotAsked: there is none.
    """
    try:
        if path is not None:
            with open(path, encoding="utf-8") as file:
                found = file.readline()
        elif sys.stdin is None:
            raise EOFError
        else:
            found = getpass() if sys.stdin.isatty() else sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        raise _NotAsked("no password") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _NotAsked(f"{path or 'standard input'}: {getattr(error, 'strerror', None) or error}") from None
    found = found.rstrip("\r\n")
    if not found:
        raise _NotAsked("the password is empty")
    return found


def _reason(error: Exception, url: str) -> str:
    if isinstance(error, urllib.error.HTTPError):
        more = " (the status page needs --prometheus or --metrics-listen)" if error.code == 404 else ""
        return f"{error.code} {error.reason}{more}"
    reason = error.reason if isinstance(error, urllib.error.URLError) and error.reason else error
    if isinstance(reason, RemoteDisconnected) and url.startswith("http:"):
        return "the server closed the connection; does it speak TLS (https://)?"
    return getattr(reason, "strerror", None) or str(reason)


def text(status: ServerStatus) -> str:
    """Format the status as a table; what needs attention comes first."""
    lines = [printable(concern.words) for concern in status.concerns()]
    number = len(status.repositories)
    host = f"{printable(status.host)}: " if status.host else ""
    stored = f"{host}{format_size(status.size_bytes)} in {number} repositor{'y' if number == 1 else 'ies'}"
    if status.quota_bytes is not None:
        stored += f", of {format_size(status.quota_bytes)}"
    if status.trash_bytes:
        stored += f"; {format_size(status.trash_bytes)} in the trash"
    if status.disk_free_bytes is not None:
        stored += f"; {format_size(status.disk_free_bytes)} of disk free"
        stored += f" ({full_text(status.time_s, status.disk_full_s, status.growth_bytes_per_day)})"
    stored += _last_day(status)
    if status.scrub is not None:
        stored += f"\n{_scrub(status.scrub, status.time_s)}"
    users = status.users_by_need()
    rows: list[Sequence[str]] = [("USER", "SIZE", "QUOTA", "")]
    rows += [_user_row(user, status) for user in users]
    of_users = [*text_table(rows, (1, 2)), ""] if users else []
    rows = [("REPOSITORY", "LAST SNAPSHOT", "AT", "LAST WRITER", "SNAPSHOTS", "SIZE", "QUOTA", "LOCKS", "")]
    rows += [_row(repository, status) for repository in status.by_need()]
    return "\n".join([*lines, stored, "", *of_users, *text_table(rows, (4, 5, 6, 7)), *_problems(status.by_need())])


def _last_day(status: ServerStatus) -> str:
    """Growth, traffic and what was refused; nothing for a user who may not see that."""
    last = status.last_day
    if last is None:
        return ""
    growth = growth_text(status.history)
    text = f"\ngrowth: {growth}" if growth else ""
    text += f"\nlast day: {format_size(last.received_bytes)} received, {format_size(last.sent_bytes)} sent, "
    text += f"{last.uploads_refused} uploads refused, {last.failed_logins} failed logins, limits reached "
    text += f"{last.limited} time{'s' if last.limited != 1 else ''}"
    return text if last.covered_s >= DAY_S - SLOT_S else f"{text} (known for {age(last.covered_s)})"


def _scrub(scrub: ScrubStatus, now_s: float) -> str:
    last_s = scrub.last_complete_s
    text = "not everything was verified yet" if last_s is None else f"verified {age(max(0.0, now_s - last_s))} ago"
    if scrub.progress is not None:
        text += f"; {scrub.progress * 100:.0f} % of the present pass of the scrub done"
        text += "" if scrub.left_s is None else f", {age(scrub.left_s)} left"
    return text


def _problems(repositories: Sequence[RepositoryStatus]) -> list[str]:
    """What the scrub has found, a line for each object."""
    rows = [
        (one.name, problem.kind, f"{problem.type}/{problem.name}", printable(problem.reason))
        for one in repositories
        for problem in one.problems
    ]
    return ["", *text_table([("REPOSITORY", "PROBLEM", "OBJECT", ""), *rows], ())] if rows else []


def _quota(used: int, most: int | None) -> str:
    return "-" if most is None else f"{used * 100 // most if most else 100} %"


def _words(concerns: Sequence[Concern]) -> str:
    return printable("; ".join(concern.words for concern in concerns))


def _user_row(user: UserStatus, status: ServerStatus) -> tuple[str, ...]:
    return (
        user.name,
        format_size(user.size_bytes),
        _quota(user.used_bytes, user.quota_bytes),
        _words(user.concerns(status.time_s, status.thresholds)),
    )


def _row(repository: RepositoryStatus, status: ServerStatus) -> tuple[str, ...]:
    now_s, last = status.time_s, repository.last_snapshot_s
    return (
        repository.name,
        ("never" if repository.counted else "not known yet") if last is None else f"{age(max(0.0, now_s - last))} ago",
        "-" if last is None else minute_text(last),
        printable(repository.last_writer or "-"),
        str(repository.snapshots),
        format_size(repository.size_bytes),
        _quota(repository.used_bytes, repository.quota_bytes),
        str(repository.locks),
        _words(repository.concerns(now_s, status.thresholds)),
    )
