"""
The server's own flags in its subcommands: with the same names, and from the same places. A subcommand that is told of the
server's C{--config} file, or runs with its environment, works on the same directories by the same rules.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .options import Options
from .settings import Settings, default_path

#: Value and text; a flag without a value is a switch.
_HELP: dict[str, tuple[str | None, str]] = {
    "path": ("DIR", f"data directory (default {default_path()})"),
    "htpasswd-file": ("FILE", "htpasswd file with the users (default .htpasswd in the data directory)"),
    "policy": ("FILE", "the server's policy file"),
    "max-size": ("SIZE", "limit of all repositories together"),
    "max-depth": ("N", "how many folders deep a repository may be (default 2)"),
    "listen": ("ADDR", "address that the server listens on; repeatable (default :8000)"),
    "metrics-listen": ("ADDR", "the server's address for metrics and health"),
    "tls": (None, "the server serves TLS"),
    "state-dir": ("DIR", "directory of the server's state file (default .rest-server in the data directory)"),
}

_REPEATABLE = ("listen",)


def add_server_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add some of the server's flags to a subcommand, and C{--config}."""
    group = parser.add_argument_group(
        "the server's flags", "Without them the values of --config and of the environment (REST_SERVER_*) apply."
    )
    group.add_argument("--config", metavar="FILE", help="the server's configuration file (default $REST_SERVER_CONFIG)")
    for name in names:
        metavar, text = _HELP[name]
        if metavar is None:
            group.add_argument(f"--{name}", action="store_true", default=None, help=text)
        else:
            action = "append" if name in _REPEATABLE else "store"
            group.add_argument(f"--{name}", metavar=metavar, action=action, help=text)


def server_settings(asked: argparse.Namespace, program: str) -> Settings:
    """
    The server's settings, as it would have them with these flags.

    @param asked: parsed with L{add_server_flags}.
    @raise SystemExit: a value is invalid; status 2, and one line was printed.
    """
    values = vars(asked)
    arguments = []
    for name in ("config", *_HELP):
        value = values.get(name.replace("-", "_"))
        if value is not None:
            each = value if isinstance(value, list) else [value]
            arguments += [f"--{name}" if one is True else f"--{name}={one}" for one in each]
    return settings_of(arguments, program)


def settings_of(arguments: Sequence[str], program: str) -> Settings:
    """
    The settings of a server with this command line.

    @param arguments: the server's arguments, without the program's name.
    @param program: the name of the command for the message.
    @raise SystemExit: a value is invalid; status 2, and one line was printed.
    """
    options = Options()
    try:
        options.parseOptions(arguments)
    except SystemExit as left:
        reason = str(left.code).removeprefix("rest-server: ")
        print(f"{program}: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    return options.settings
