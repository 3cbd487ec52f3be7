"""
The command lines of the subcommands.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without its usage, and takes no abbreviation for what it is not."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **named})

    def error(self, message: str) -> NoReturn:
        """argparse's call for a bad command line."""
        self.exit(2, f"{self.prog}: {message}\n")


def write_line(line: str) -> bool:
    """Print a line to standard output; whether that worked. It is said on standard error if not."""
    try:
        print(line, flush=True)
    except (OSError, UnicodeError, ValueError) as error:
        print(f"rest-server: cannot write to standard output: {error}", file=sys.stderr)
        if sys.stdout is not None:
            # The interpreter flushes once more when it ends, and would say so if that failed.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return sys.stdout is not None
