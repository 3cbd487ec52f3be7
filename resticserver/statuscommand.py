"""
C{rest-server status}: what the status page says, for a terminal, asked of a running server.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from getpass import getpass
from http.client import HTTPException
from typing import Any

from .arguments import OneLineParser, write_line
from .sizes import format_size
from .telemetry.status import SCHEMA, Level, RepositoryStatus, ServerStatus, age, printable

_TIMEOUT_S = 30.0
#: No page is longer.
_MOST_BYTES = 64 << 20


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: what stands behind C{status}.
    @return: 0 if all is well, 1 if something needs attention, 2 if that cannot be found out.
    """
    parser = OneLineParser(
        "rest-server status",
        description="Ask a running server (with --prometheus or --metrics-listen) how its repositories are. "
        "The status is 0 if all is well, 1 if something needs attention, 2 if that cannot be found out.",
    )
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8000", metavar="URL", help="of the server (default %(default)s)"
    )
    parser.add_argument("--user", metavar="NAME", help="whose repositories; the user metrics sees all")
    parser.add_argument(
        "--password-file", metavar="FILE", help="file with the password; else it is asked for, or read from a pipe"
    )
    parser.add_argument("--cacert", metavar="FILE", help="PEM file of the authority that signed the server's certificate")
    parser.add_argument("--json", action="store_true", help="print what the server says as it is")
    try:
        asked = parser.parse_args(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        document = _fetch(asked)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError("the server speaks another version's language")
        status = ServerStatus.from_json(document)
        shown = json.dumps(document, indent=2) if asked.json else text(status)
        worst = max((concern.level for concern in status.concerns()), default=Level.GOOD)
        worst = max([worst, *(one.level(status.time_s) for one in status.repositories)])
    except (EOFError, KeyboardInterrupt):
        print(f"{parser.prog}: no password", file=sys.stderr)
        return 2
    except (OSError, HTTPException) as error:
        print(f"{parser.prog}: {printable(asked.url)}: {printable(_reason(error))}", file=sys.stderr)
        return 2
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, ValueError) else "that is no status of this version"
        print(f"{parser.prog}: {printable(asked.url)}: {printable(str(reason))}", file=sys.stderr)
        return 2
    if not write_line(shown):
        return 2
    return 1 if worst >= Level.WARNING else 0


def _fetch(asked: argparse.Namespace) -> Any:
    """
    The server's JSON.

    @raise OSError: it does not answer, or not with that.
    """
    if not asked.url.startswith(("http://", "https://")):
        raise ValueError("a URL is needed, as http://127.0.0.1:8000")
    request = urllib.request.Request(asked.url.rstrip("/") + "/-/status.json")
    if asked.user is not None:
        both = f"{asked.user}:{_password(asked.password_file)}".encode()
        # Not to where a redirect may lead.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(both).decode("ascii"))
    context = ssl.create_default_context(cafile=asked.cacert) if asked.url.startswith("https:") else None
    # No proxy of the environment's: it would get the password, and knows nothing of this machine's own addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(request, timeout=_TIMEOUT_S) as answer:
        return json.loads(answer.read(_MOST_BYTES))


def _password(path: str | None) -> str:
    if path is not None:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    return getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and error.reason:
        return str(error.reason)
    return str(error)


def text(status: ServerStatus) -> str:
    """The status as a table; what needs attention comes first."""
    lines = [printable(concern.words) for concern in status.concerns()]
    number = len(status.repositories)
    stored = f"{format_size(status.size_bytes)} in {number} repositor{'y' if number == 1 else 'ies'}"
    if status.quota_bytes is not None:
        stored += f", of {format_size(status.quota_bytes)}"
    if status.disk_free_bytes is not None:
        stored += f"; {format_size(status.disk_free_bytes)} of disk free"
    rows = [("REPOSITORY", "LAST SNAPSHOT", "SIZE", "QUOTA", "LOCKS", "")]
    rows += [_row(repository, status.time_s) for repository in status.by_need()]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    table = [
        "  ".join(
            value.rjust(width) if column in (2, 3, 4) else value.ljust(width)
            for column, (value, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, stored, "", *table])


def _row(repository: RepositoryStatus, now_s: float) -> tuple[str, str, str, str, str, str]:
    quota = "-"
    if repository.quota_bytes is not None:
        quota = f"{repository.size_bytes * 100 // repository.quota_bytes if repository.quota_bytes else 100} %"
    last = repository.last_snapshot_s
    return (
        repository.name,
        "never" if last is None else f"{age(max(0.0, now_s - last))} ago",
        format_size(repository.size_bytes),
        quota,
        str(repository.locks),
        "; ".join(concern.words for concern in repository.concerns(now_s)),
    )
