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


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{policy}.
    @return: 0 if the request is allowed, 1 if not, 2 for invalid arguments.
    """
    parser = OneLineParser("rest-server policy", description="Look at a policy file.")
    check = parser.add_subparsers(required=True, metavar="check").add_parser(
        "check", help="say whether a request would be allowed, and by which rule"
    )
    check.add_argument("--policy", metavar="FILE", help="the policy file (without one: all rights but by these flags)")
    for flag in ("append-only", "read-only", "private-repos"):
        check.add_argument(f"--{flag}", action="store_true", help="as the server has it")
    check.add_argument("--max-depth", type=int, default=2, help="as the server has it")
    check.add_argument("--proxy-prefix", default="", help="as the server has it")
    check.add_argument(
        "--htpasswd-file", metavar="FILE", help="the file with the users, to see that there is one of this name"
    )
    check.add_argument("user", metavar="USER", help="the user's name")
    check.add_argument("method", metavar="METHOD", help="GET, HEAD, POST or DELETE")
    check.add_argument("path", metavar="PATH", help="of the request, as /alice/laptop/ or /alice/laptop/config")
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
        raise _NoQuestion(f"{path}: it is not UTF-8") from None
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
        raise _NoQuestion(f"{asked.user!r} is no user name: {reason}")
    if asked.htpasswd_file is not None:
        _see_that_there_is(asked.user, asked.htpasswd_file)
    try:
        prefix = parse_prefix(asked.proxy_prefix) if asked.proxy_prefix else ()
    except ValueError as error:
        raise _NoQuestion(f"--proxy-prefix {error}") from None
    if not 0 <= asked.max_depth <= MOST_FOLDERS:
        raise _NoQuestion(f"--max-depth {asked.max_depth}: a number from 0 to {MOST_FOLDERS} is needed")
    path = asked.path.partition("?")[0].encode("utf-8", "surrogateescape")
    try:
        target = parse_target(path, asked.max_depth, prefix)
    except NotFound:
        why = why_nothing(path, asked.max_depth, prefix)
        raise _NoQuestion(
            f"{asked.path} names nothing that the server has: {why} (every method is answered 404)"
        ) from None
    method = asked.method.encode("utf-8", "surrogateescape")
    action = ACTIONS[target.kind].get(method)
    if action is None:
        raise _NoQuestion(
            f"{asked.method} is no method of {asked.path}{_why_no_method(target, method)}: it is answered 405"
        )
    return policy.decide(asked.user, action, target)


def _see_that_there_is(user: str, path: str) -> None:
    """
    Check that the htpasswd file has a user of this name.

    @raise _NoQuestion: it has none.
    """
    users, warnings = parse_htpasswd(_text(path))
    if user not in users:
        reason = next(
            (warning for warning in warnings if f"entry for {user}." in warning), "there is no user of this name in it"
        )
        raise _NoQuestion(f"{user!r} cannot log in with {path}: {reason}")


def _why_no_method(target: Target, method: bytes) -> str:
    """Explain which methods the path supports, and name the usual mistakes."""
    takes = ", ".join(known.decode("ascii") for known in ACTIONS[target.kind])
    if method.upper() in ACTIONS[target.kind]:
        return ", where methods are written in capitals"
    if target.kind is Kind.LIST and method == b"POST":
        return f", a list, which takes {takes} ({why_reserved(target.type)})"
    return f", a {target.kind.value}, which takes {takes}"
