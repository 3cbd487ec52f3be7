"""
C{rest-server config}: checks what a server would make of its flags, environment and configuration file, and shows where each
value comes from. Nothing is started, and no data are touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from twisted.logger import LogEvent, LogLevel, eventAsText, globalLogPublisher
from twisted.python.usage import UsageError

from ..config.console import OneLineParser, write_line
from ..config.flags import PARAMETERS
from ..config.inspection import DEFAULT, FlagValue, InspectedOptions
from ..service.announcement import warn
from ..service.start_checks import start_problems
from ..telemetry.status import printable
from .interface import server_options
from .table import text_table

_DESCRIPTION = (
    "Check or show a server's configuration. It is read from the command line, the environment and the --config file, as the "
    "server would read it."
)
_CHECK = (
    "Report everything that would keep a server from starting, as far as that can be known without touching data: unknown "
    "keys, bad values, contradictions, and a policy, users or certificates that cannot be used. Run it as the server's user, "
    "with the server's flags. The exit status is 0 if there is no problem, 1 if there is one, and 2 if the command line is "
    "wrong."
)
_SHOW = (
    "Print the value of each flag, and where it was set. Arguments of commands and passwords are hidden. The exit status is 0, "
    "1 if the configuration cannot be read or has a bad value, and 2 if the command line is wrong."
)
#: The switches of C{config show} that a server does not have.
_SHOW_SWITCHES = {"--json": "print JSON", "--changed": "only flags that do not have their default"}
#: From which other flags the file of a flag follows, or whether it is needed.
_DEPENDS_ON = {
    "htpasswd-file": ("path", "proxy-auth-username", "tls-client-ca"),
    "tls-cert": ("path",),
    "tls-key": ("path",),
}
#: Not for these commands.
_NO_FLAGS = ("help", "version")
_FLAGS_WITH_VALUE = frozenset(("listen", "trusted-proxy", *(parameter[0] for parameter in PARAMETERS)))


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{config}.
    @return: 0; 1 if there is a problem; 2 for invalid arguments.
    """
    command = arguments[0] if arguments else None
    try:
        if command not in ("check", "show"):
            _parser().parse_args(list(arguments))
            return 2
        own, flags = _split(arguments[1:], _SHOW_SWITCHES if command == "show" else {})
        if own & {"-h", "--help"}:
            _parser().parse_args([command, "--help"])
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    program = f"rest-server config {command}"
    options = InspectedOptions()
    try:
        options.inspect(flags)
    except UsageError as error:
        _print_problem(program, str(error))
        return 2
    if command == "show":
        return _show(program, options, own)
    return _check(program, options)


def _parser() -> OneLineParser:
    """For the help. The flags are parsed by the server's own parser, which knows other forms than argparse."""
    parser = OneLineParser("rest-server config", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    for name, summary, text in (
        ("check", "report what would keep a server from starting", _CHECK),
        ("show", "print the value of each flag, and where it was set", _SHOW),
    ):
        command = commands.add_parser(name, help=summary, description=text, usage="%(prog)s [options]")
        for switch, help_ in (_SHOW_SWITCHES if name == "show" else {}).items():
            command.add_argument(switch, action="store_true", help=help_)
        group = command.add_argument_group("the server's flags", "See rest-server --help.")
        for option in server_options():
            if option.name not in _NO_FLAGS:
                option.add_to(group)
    return parser


def _split(arguments: Sequence[str], switches: Any) -> tuple[set[str], list[str]]:
    """Separate the switches of this command from the server's flags, whose values may look like switches."""
    own: set[str] = set()
    flags: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument in switches or argument in ("-h", "--help"):
            own.add(argument)
            continue
        flags.append(argument)
        if argument.startswith("--") and argument[2:] in _FLAGS_WITH_VALUE:
            flags += [value for value in [next(left, None)] if value is not None]
    return own, flags


def _print_problem(program: str, problem: str) -> None:
    print(f"{program}: {printable(problem)}", file=sys.stderr)


# --- check


def _check(program: str, options: InspectedOptions) -> int:
    problems = list(options.problems)
    with _warnings(program):
        if options.complete:
            if "path" not in options.ignored:
                warn(options.settings)
            problems += map(options.where_it_stands, _start_problems(options))
    for problem in problems:
        _print_problem(program, problem)
    if problems:
        return 1
    return 0 if write_line("no problem found") else 1


def _start_problems(options: InspectedOptions) -> Iterator[str]:
    """What start_problems finds, without problems that only follow from a flag that was left out."""
    for problem in start_problems(options.settings):
        named = re.match("--([a-z-]+)", problem)
        flag = named[1] if named is not None else ""
        if not options.ignored & {flag, *_DEPENDS_ON.get(flag, ())}:
            yield problem


@contextmanager
def _warnings(program: str) -> Iterator[None]:
    """Print what the server's code warns of."""

    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn and str(event.get("log_namespace")).startswith("resticserver."):
            text = eventAsText(event, includeTimestamp=False, includeSystem=False).removeprefix("WARNING: ")
            print(f"{program}: warning: {printable(text)}", file=sys.stderr)

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observer)


# --- show


def _show(program: str, options: InspectedOptions, own: set[str]) -> int:
    for problem in options.problems:
        _print_problem(program, problem)
    if not options.complete:
        return 1
    values = [value for value in options.flag_values() if value.origin != DEFAULT or "--changed" not in own]
    written = write_line(_json(values) if "--json" in own else _table(values))
    return 0 if written and not options.problems else 1


def _json(values: Sequence[FlagValue]) -> str:
    document = {
        one.flag: {"value": one.value, "origin": one.origin, **({"place": one.place} if one.place else {})}
        for one in values
    }
    return json.dumps(document, indent=2)


def _table(values: Sequence[FlagValue]) -> str:
    rows = [("FLAG", "VALUE", "ORIGIN")]
    rows += [(one.flag, printable(_text(one)), printable(_origin(one))) for one in values]
    return "\n".join(text_table(rows, ()))


def _text(one: FlagValue) -> str:
    if one.value is None:
        return "-"
    if isinstance(one.value, bool):
        return "true" if one.value else "false"
    return one.value if isinstance(one.value, str) else " ".join(one.value) or "-"


def _origin(one: FlagValue) -> str:
    """Where a value was set: the variable and the key are found by their names, a flag is on the command line."""
    return one.origin if one.origin == DEFAULT or one.place.startswith("--") else one.place
