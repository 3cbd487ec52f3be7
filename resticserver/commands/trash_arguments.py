"""
The command line of C{rest-server trash}.
"""

from __future__ import annotations

import argparse
import re
import time
from typing import NamedTuple
from urllib.parse import quote

from ..config.console import OneLineParser
from ..config.server_flags import add_server_flags
from ..dates import parse_duration, parse_time
from ..errors import NotFound
from ..storage.layout import Repository
from ..storage.trash import KEPT_TYPES, Deleted
from ..targets import Kind, parse_target

#: An id may be shortened to so many digits.
_LEAST_DIGITS = 8
_PREFIX = re.compile(rf"[0-9a-f]{{{_LEAST_DIGITS},64}}\Z")
_AGO = re.compile(
    r"(?P<number>[0-9]{1,9}) ?(?P<unit>second|minute|hour|day|week|month|year)s?(?: ago)?\Z", re.IGNORECASE | re.ASCII
)
_UNITS_S = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 31 * 86_400,
    "year": 366 * 86_400,
}
_DESCRIPTIONS = {
    "list": "List deleted objects that are kept in the trash. The exit status is 0, 1 if a trash could not be read, 2 if the "
    "command line is invalid.",
    "restore": "Put deleted objects back to where they were. A file that is there now is never replaced, and a damaged object "
    "is not restored. An interrupted restore can be run again. The exit status is 0, 1 if something could not be restored, 2 if "
    "the command line is invalid.",
    "empty": "Remove deleted objects for good. The exit status is 0, 1 if something could not be removed, 2 if the command "
    "line is invalid.",
}
_WHEN = "a time (2026-11-27, 2026-11-27T10:00, both in UTC) or an age (3d, '2 hours ago')"


class Filter(NamedTuple):
    """
    Which objects are meant.

    @ivar since_s: deleted at this time or later, in seconds since 1970; C{until_s}: or earlier.
    """

    types: frozenset[str]
    ids: tuple[str, ...]
    since_s: float | None
    until_s: float | None

    def takes(self, trashed: Deleted) -> bool:
        """Whether an object is one of them."""
        return (
            (not self.types or trashed.object_type in self.types)
            and (not self.ids or trashed.name.startswith(self.ids))
            and (self.since_s is None or trashed.deleted_s >= self.since_s)
            and (self.until_s is None or trashed.deleted_s <= self.until_s)
        )


def overview() -> OneLineParser:
    """The parser for C{--help}, and for a wrong command. It cannot parse options between arguments."""
    parser = OneLineParser(
        "rest-server trash",
        description="List, restore and remove deleted objects. They are kept in the trash for the time of --delete-delay.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, text in _DESCRIPTIONS.items():
        command = commands.add_parser(name, help=text.partition(".")[0].lower(), description=text)
        _add_arguments(command, name)
    return parser


def command_parser(name: str) -> OneLineParser:
    """The parser of one command."""
    parser = OneLineParser(f"rest-server trash {name}", description=_DESCRIPTIONS[name])
    _add_arguments(parser, name)
    return parser


def _add_arguments(parser: OneLineParser, name: str) -> None:
    required = name != "list"
    parser.add_argument(
        "repository",
        metavar="REPO",
        type=_repository,
        nargs=None if required else "?",
        help="path, such as alice/laptop",
    )
    parser.add_argument(
        "ids", metavar="ID", type=_id, nargs="*", help=f"ids of objects, or at least their first {_LEAST_DIGITS} digits"
    )
    parser.add_argument(
        "--type",
        metavar="TYPE",
        action="append",
        choices=KEPT_TYPES,
        default=[],
        help=f"{', '.join(KEPT_TYPES)}; repeatable",
    )
    parser.add_argument("--since", metavar="WHEN", type=_when, help=f"deleted since: {_WHEN}")
    parser.add_argument("--until", metavar="WHEN", type=_when, help=f"deleted until: {_WHEN}")
    parser.add_argument("--older-than", metavar="AGE", type=_age, help="deleted at least so long ago, such as 7d")
    if name != "list":
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--json", action="store_true", help="print JSON")
    if name == "restore":
        parser.add_argument(
            "--force", action="store_true", help="restore also what may belong to another repository at the same path"
        )
    if name == "empty":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    add_server_flags(parser, "path", "max-depth", "state-dir")


def _repository(text: str) -> Repository:
    """Parse the path of a repository, as in a URL."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; the repository in the data directory itself is /")
    try:
        path = "/" + "".join(f"{part}/" for part in text.strip("/").split("/") if part)
        target = parse_target(quote(path, safe="/").encode("ascii"), 16)
    except (NotFound, UnicodeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a repository") from None
    if target.kind is not Kind.REPOSITORY:
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a repository")
    return target.repository


def _id(text: str) -> str:
    if not _PREFIX.match(text):
        words = f"{text!r} is not an id: it must be {_LEAST_DIGITS} to 64 hexadecimal digits in lower case"
        raise argparse.ArgumentTypeError(words)
    return text


def _age(text: str) -> float:
    match = _AGO.match(text.strip())
    if match:
        return float(int(match["number"]) * _UNITS_S[match["unit"].lower()])
    try:
        return parse_duration(text.strip().removesuffix(" ago"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _when(text: str) -> float:
    """Parse a point of time, in seconds since 1970."""
    # A date first: 20261127 is one, and no age. A number alone may be meant as a year or a time stamp, so it is refused.
    try:
        return parse_time(text)
    except ValueError:
        try:
            if not text.strip().isdecimal():
                return time.time() - _age(text)
        except argparse.ArgumentTypeError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {_WHEN}") from None


def filter_of(asked: argparse.Namespace) -> Filter:
    """Which objects are meant."""
    until = [] if asked.until is None else [asked.until]
    if asked.older_than is not None:
        until.append(time.time() - asked.older_than)
    return Filter(frozenset(asked.type), tuple(asked.ids), asked.since, min(until, default=None))
