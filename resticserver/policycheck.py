"""
C{rest-server policy check}: what a policy decides of one request, and which of its rules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from .access.policy import ACTIONS, Decision, Policy
from .access.policyfile import PolicyError, parse_policy
from .arguments import OneLineParser, write_line
from .errors import NotFound
from .files import read_file
from .names import is_user_name, parse_prefix, parse_target
from .utf8 import as_text


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: what stands behind C{policy}.
    @return: 0 if it is allowed, 1 if not, 2 if the question makes no sense.
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
    check.add_argument("user", metavar="USER", help="the user's name")
    check.add_argument("method", metavar="METHOD", help="GET, HEAD, POST or DELETE")
    check.add_argument("path", metavar="PATH", help="of the request, as /alice/laptop/ or /alice/laptop/config")
    try:
        asked = check.parse_args(arguments[1:]) if arguments[:1] == ["check"] else parser.parse_args(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        decision = _decide(asked)
    except (PolicyError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"{check.prog}: {asked.policy}: {reason}", file=sys.stderr)
        return 2
    except _NoQuestion as error:
        print(f"{check.prog}: {error}", file=sys.stderr)
        return 2
    said = f"allowed by {decision.rule}" if decision.allowed else f"refused by {decision.rule}: {decision.reason}"
    if not write_line(said):
        return 2
    return 0 if decision.allowed else 1


class _NoQuestion(Exception):
    """The arguments name nothing that could be decided."""


def _decide(asked: argparse.Namespace) -> Decision:
    asked.user, asked.path, asked.proxy_prefix = map(as_text, (asked.user, asked.path, asked.proxy_prefix))
    policy = Policy(append_only=asked.append_only, read_only=asked.read_only, private_repos=asked.private_repos)
    if asked.policy is not None:
        policy = replace(policy, grants=parse_policy(read_file(asked.policy)[0].decode("utf-8")))
    if not is_user_name(asked.user):
        raise _NoQuestion(f"{asked.user!r} is no user name")
    try:
        prefix = parse_prefix(asked.proxy_prefix) if asked.proxy_prefix else ()
        path = asked.path.partition("?")[0].encode("utf-8", "surrogateescape")
        target = parse_target(path, asked.max_depth, prefix)
    except (NotFound, ValueError):
        raise _NoQuestion(
            f"{asked.path} names nothing that the server has: every method is answered 404 "
            "(a path begins with a slash, and a repository or a list ends in one: /alice/laptop/)"
        ) from None
    action = ACTIONS[target.kind].get(asked.method.encode("utf-8", "surrogateescape"))
    if action is None:
        raise _NoQuestion(f"{asked.method} is no method of {asked.path}: it is answered 405")
    return policy.decide(asked.user, action, target)
