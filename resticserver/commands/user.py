"""
C{rest-server user}: adds, changes, removes and lists the users of an htpasswd file.

A running server notices the new file by itself, so this command does not contact it. L{user_file
<resticserver.commands.user_file>} makes the change.
"""

from __future__ import annotations

import argparse
import getpass
import io
import sys
from collections.abc import Sequence

from ..access.htpasswd import parse_htpasswd
from ..config.console import OneLineParser, write_line
from ..config.server_flags import add_server_flags, server_settings
from ..names import is_user_name
from ..process.utf8 import as_text
from .user_file import Change, Refused, added, change_users, changed, deleted, read_lines
from .user_hash import BCRYPT_BYTES, COSTS, DEFAULT_COST, hash_password, problem_of_password
from .user_import import Import, add_users


def main(arguments: Sequence[str]) -> int:
    """
    Run C{rest-server user}.

    @param arguments: the arguments after C{user}.
    @return: the exit status: 0; 1 if the command failed; 2 for invalid arguments.
    """
    try:
        given = _parsed(arguments)
        path = server_settings(given, "rest-server user").htpasswd_path
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    if given.__dict__.get("user") is not None:
        given.user = as_text(given.user)
    try:
        if given.command == "list":
            _list(path)
        elif given.command == "add" and given.source is not None:
            for note in add_users(path, Import(given.source, given.generate, given.replace, given.cost)):
                _complain(note)
        else:
            _change(path, given)
    except Refused as refused:
        return _complain(str(refused))
    except OSError as error:
        return _complain(f"{path}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _complain("interrupted", after_prompt=True)
    except EOFError:
        return _complain("no password was given", after_prompt=True)
    return 0


def _complain(line: str, after_prompt: bool = False) -> int:
    """
    Print a message on a line of its own.

    @return: the exit status for an error.
    """
    begin = "\n" if after_prompt and sys.stderr.isatty() else ""
    print(f"{begin}rest-server user: {line}", file=sys.stderr, flush=True)
    return 1


# --- the command line


def _parser() -> argparse.ArgumentParser:
    where = OneLineParser(add_help=False)
    add_server_flags(where, "path", "htpasswd-file")
    user = OneLineParser(add_help=False)
    user.add_argument("user", metavar="USER")
    optional_user = OneLineParser(add_help=False)
    optional_user.add_argument("user", metavar="USER", nargs="?")
    # There is no option for the password itself, because every user of the machine can read command lines.
    password = OneLineParser(add_help=False)
    password.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password, one line, from standard input (the default if that is not a terminal)",
    )
    password.add_argument(
        "--cost",
        type=_cost,
        default=DEFAULT_COST,
        metavar="N",
        help=f"bcrypt cost, 4 to 17 (default {DEFAULT_COST}); each step doubles the time",
    )
    parser = OneLineParser(
        prog="rest-server user",
        description="Manage the users in the server's htpasswd file.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, parents, text in (
        (
            "add",
            [where, optional_user, password, _many_users()],
            "add a user, or all users of a file; the htpasswd file is created if it does not exist",
        ),
        ("passwd", [where, user, password], "change the password of a user"),
        ("delete", [where, user], "remove a user"),
        ("list", [where], "print the names of the users, one per line"),
    ):
        commands.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
    return parser


def _many_users() -> OneLineParser:
    """The options of L{user_import<resticserver.commands.user_import>}."""
    many = OneLineParser(add_help=False)
    group = many.add_argument_group("many users at once")
    group.add_argument(
        "--from",
        dest="source",
        metavar="CSV",
        help="add all users of this file, user,password on each line, or none if a line is bad; - is standard input",
    )
    group.add_argument(
        "--generate",
        metavar="FILE",
        help="generate the passwords that the CSV file does not have, and write them to this new file (mode 0600); "
        "- is standard output",
    )
    group.add_argument("--replace", action="store_true", help="change the passwords of users that exist already")
    return many


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """
    Read the command line.

    @raise SystemExit: it is wrong; one line was printed.
    """
    parser = _parser()
    given = parser.parse_args(list(arguments))
    if given.command == "add":
        if given.source is None:
            if given.user is None:
                parser.error("USER or --from is required")
            if given.generate is not None or given.replace:
                parser.error("--generate and --replace need --from")
        elif given.user is not None:
            parser.error("USER and --from exclude each other")
        elif given.password_stdin:
            parser.error("--password-stdin and --from exclude each other")
    return given


def _cost(text: str) -> int:
    if not text.isdecimal() or int(text) not in COSTS:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from {COSTS[0]} to {COSTS[-1]}")
    return int(text)


# --- passwords


def _new_hash(given: argparse.Namespace) -> bytes:
    """Read a password and hash it."""
    password = _password(given.user, given.password_stdin)
    problem = problem_of_password(password)
    if problem is not None:
        raise Refused(problem)
    if len(password) > BCRYPT_BYTES:
        _complain(f"warning: only the first {BCRYPT_BYTES} bytes of the password are used")
    return hash_password(password, given.cost)


def _password(user: str, from_stdin: bool) -> bytes:
    """Read a password: one line of standard input, or typed twice at a terminal."""
    if sys.stdin is None:  # closed before the start
        raise Refused("no password was given: standard input is closed")
    try:
        if from_stdin or not sys.stdin.isatty():
            return sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r")
        password = getpass.getpass(f"Password for {user}: ")
        if password and getpass.getpass("Repeat the password: ") != password:
            raise Refused("the passwords do not match")
        return password.encode("utf-8", "surrogateescape")
    except OSError as error:
        raise Refused(f"cannot read the password: {error.strerror or error}") from error
    except UnicodeError as error:
        raise Refused("the password is not valid in the terminal's encoding") from error


# --- the commands


def _list(path: str) -> None:
    lines, _ = read_lines(path)
    users, warnings = parse_htpasswd(b"".join(lines), path)
    for warning in warnings:
        _complain("warning: " + ascii(warning)[1:-1])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may not be able to display every name
    if users and not write_line("\n".join(users)):
        raise SystemExit(1)


def _change(path: str, given: argparse.Namespace) -> None:
    """
    Change one user.

    @raise Refused: the change is not possible.
    """
    user: str = given.user
    if not is_user_name(user):
        raise Refused(f"{user!a} is not a user name")

    def make_hashes() -> dict[str, bytes]:
        return {user: b"" if given.command == "delete" else _new_hash(given)}

    note = change_users(path, [user], _CHANGES[given.command], make_hashes, given.command == "add")
    if note:
        _complain(note)


_CHANGES: dict[str, Change] = {"add": added, "passwd": changed, "delete": deleted}
