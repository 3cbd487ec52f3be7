"""
Command line parsing and output of the subcommands.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage, and accepts no abbreviated flags."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **named})

    def error(self, message: str) -> NoReturn:
        """See C{argparse.ArgumentParser.error}."""
        self.exit(2, f"{self.prog}: {message}\n")


def write_line(line: str) -> bool:
    """
    Print a line to standard output. A failure is reported on standard error.

    @return: whether it was written.
    """
    try:
        print(line, flush=True)
    except (OSError, UnicodeError, ValueError) as error:
        print(f"rest-server: cannot write to standard output: {error}", file=sys.stderr)
        if sys.stdout is not None:
            # The interpreter flushes stdout again at exit, and would report that failure, too.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return sys.stdout is not None
