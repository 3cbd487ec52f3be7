"""
What the page of options and the man pages share.
"""

from __future__ import annotations

from resticserver.commands.interface import Option

#: Flags for the command line alone, and the one that names the file and so is no key of it.
COMMAND_LINE_ONLY = ("help", "version")
NO_KEY = (*COMMAND_LINE_ONLY, "config")

#: Markdown, which is wrapped anew.
PRECEDENCE = """
The command line wins over the environment, the environment over the file, the file over the default. An unknown flag or
key, an empty variable, a bad value, or a flag that contradicts another stops the start with one line on stderr that names
the flag, the variable, or the file and the key. Environment variables that begin with `REST_SERVER_` and belong to no flag
are ignored.

`rest-server config check` finds all of that out without a start, and `rest-server config show` prints each value and where
it was set.
"""


def signature(option: Option) -> str:
    """The flag with its value, as it stands on a command line."""
    return f"--{option.name}" if option.value is None else f"--{option.name} {option.value.name}"
