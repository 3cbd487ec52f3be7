"""
C{rest-server policy check}: what a policy decides about one request, and by which rule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..access.htpasswd import parse_htpasswd
from ..access.policy import ACTIONS, Decision, Policy
from ..access.policyfile import PolicyError, parse_policy
from ..config.console import OneLineParser, write_line
from ..errors import NotFound
from ..files import read_file, reason_of
from ..names import MOST_FOLDERS, why_no_user, why_reserved
from ..process.utf8 import as_text
from ..targets import Kind, Target, parse_prefix, parse_target, why_nothing
from ..telemetry.status import printable

_DESCRIPTION = (
    "Print whether a request is allowed, and by which rule. The exit status is 0 if it is allowed, 1 if not, and 2 if the "
    "arguments are invalid or describe no request."
)


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{policy}.
    @return: 0 if the request is allowed, 1 if not, 2 for invalid arguments.
    """
    parser, check = _parsers()
    try:
        asked = check.parse_args(arguments[1:]) if arguments[:1] == ["check"] else parser.parse_args(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        decision = _decide(asked)
    except _NoQuestion as error:
        print(f"{check.prog}: {printable(str(error))}", file=sys.stderr)
        return 2
    said = f"allowed by {decision.rule}" if decision.allowed else f"refused by {decision.rule}: {decision.reason}"
    if not write_line(said):
        return 2
    return 0 if decision.allowed else 1


def _parser() -> OneLineParser:
    return _parsers()[0]


def _parsers() -> tuple[OneLineParser, OneLineParser]:
    """The parser of the command, and that of its subcommand."""
    parser = OneLineParser("rest-server policy", description="Check the access rules of a policy file.")
    help_ = "print whether a request is allowed, and by which rule"
    check: OneLineParser = parser.add_subparsers(required=True, metavar="check", parser_class=OneLineParser).add_parser(
        "check", help=help_, description=_DESCRIPTION
    )
    check.add_argument("--policy", metavar="FILE", help="policy file (default: all rights, limited by the flags below)")
    for flag in ("append-only", "read-only", "private-repos"):
        check.add_argument(f"--{flag}", action="store_true", help="set this if the server runs with it")
    check.add_argument("--max-depth", type=int, default=2, help="the server's --max-depth (default 2)")
    check.add_argument("--proxy-prefix", default="", help="the server's --proxy-prefix")
    check.add_argument("--htpasswd-file", metavar="FILE", help="htpasswd file, to check that the user can log in")
    check.add_argument("user", metavar="USER", help="name of the user")
    check.add_argument("method", metavar="METHOD", help="GET, HEAD, POST or DELETE")
    check.add_argument(
        "path", metavar="PATH", help="path of the request, such as /alice/laptop/ or /alice/laptop/config"
    )
    return parser, check


class _NoQuestion(Exception):
    """The arguments do not describe a request that a policy can decide about."""


def _text(path: str) -> str:
    """
    Read a text file.

    @raise _NoQuestion: it cannot be read.
    """
    try:
        return read_file(path)[0].decode("utf-8")
    except OSError as error:
        raise _NoQuestion(f"{path}: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise _NoQuestion(f"{path}: not UTF-8 text") from None
    except ValueError as error:
        raise _NoQuestion(f"{path}: {error}") from None  # a NUL in the path


def _decide(asked: argparse.Namespace) -> Decision:
    asked.user, asked.path, asked.proxy_prefix = map(as_text, (asked.user, asked.path, asked.proxy_prefix))
    policy = Policy(append_only=asked.append_only, read_only=asked.read_only, private_repos=asked.private_repos)
    if asked.policy is not None:
        text = _text(asked.policy)
        try:
            policy = replace(policy, grants=parse_policy(text))
        except PolicyError as error:
            raise _NoQuestion(f"{asked.policy}: {error}") from None
    if reason := why_no_user(asked.user):
        raise _NoQuestion(f"{asked.user!r} is not a user name: {reason}")
    if asked.htpasswd_file is not None:
        _see_that_there_is(asked.user, asked.htpasswd_file)
    try:
        prefix = parse_prefix(asked.proxy_prefix) if asked.proxy_prefix else ()
    except ValueError as error:
        raise _NoQuestion(f"--proxy-prefix {error}") from None
    if not 0 <= asked.max_depth <= MOST_FOLDERS:
        raise _NoQuestion(f"--max-depth {asked.max_depth}: must be a number from 0 to {MOST_FOLDERS}")
    path = asked.path.partition("?")[0].encode("utf-8", "surrogateescape")
    try:
        target = parse_target(path, asked.max_depth, prefix)
    except NotFound:
        why = why_nothing(path, asked.max_depth, prefix)
        raise _NoQuestion(f"{asked.path} is not a path of the server: {why}; the server answers 404") from None
    method = asked.method.encode("utf-8", "surrogateescape")
    action = ACTIONS[target.kind].get(method)
    if action is None:
        raise _NoQuestion(f"{asked.path}{_why_no_method(target, method)}; the server answers {asked.method} with 405")
    return policy.decide(asked.user, action, target)


def _see_that_there_is(user: str, path: str) -> None:
    """
    Check that the htpasswd file has a user of this name.

    @raise _NoQuestion: it has none.
    """
    users, warnings = parse_htpasswd(_text(path))
    if user not in users:
        reason = next((warning for warning in warnings if f"entry for {user}." in warning), "no such user")
        raise _NoQuestion(f"{user!r} cannot log in with {path}: {reason}")


def _why_no_method(target: Target, method: bytes) -> str:
    """Explain which methods the path supports, and name the usual mistakes."""
    takes = ", ".join(known.decode("ascii") for known in ACTIONS[target.kind])
    if method.upper() in ACTIONS[target.kind]:
        return " needs the method in capitals"
    if target.kind is Kind.LIST and method == b"POST":
        return f" is a list and supports only {takes} ({why_reserved(target.type)})"
    article = "an" if target.kind is Kind.OBJECT else "a"
    return f" is {article} {target.kind.value} and supports only {takes}"
