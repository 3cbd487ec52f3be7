"""
L{resticserver.commands.interface}: the tree has the whole command line, and what the parsers say of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from resticserver.cli import COMMANDS
from resticserver.commands import interface
from resticserver.commands.interface import Command, Kind, Option, Value, program
from resticserver.config.console import OneLineParser
from resticserver.config.flags import CHOICES, DIRECTORIES, FILES
from resticserver.config.options import Options
from resticserver.config.server_flags import add_server_flags

from ..support.processes import process_test


def example_parser() -> argparse.ArgumentParser:
    """A parser with everything that the subcommands have."""
    parser = OneLineParser("rest-server example", description="Do something as of v1.2 of it. It is done (or not). Bye")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    first = commands.add_parser("first", help="the first", description="The first.")
    first.add_argument("who", metavar="WHO", help="whose")
    first.add_argument("more", metavar="MORE", nargs="*", type=int)
    first.add_argument("--from", metavar="FILE", help="file with %(prog)s, 100%%")
    first.add_argument("-k", "--kind", metavar="KIND", action="append", choices=("a", "b"))
    first.add_argument("--depth", type=int, default=2, help="default %(default)s")
    first.add_argument("--yes", action="store_true")
    add_server_flags(first, "path")
    commands.add_parser("second", help="the second")
    return parser


class SubcommandTests(SynchronousTestCase):
    """From argparse's parsers."""

    def example(self) -> Command:
        """The tree of L{example_parser}."""
        module = type(sys)("resticserver.commands.example")
        module._parser = example_parser  # type: ignore[attr-defined]
        with patch.dict(sys.modules, {"resticserver.commands.example": module}):
            return interface.subcommand("example")

    def test_commands(self) -> None:
        """Names, summaries and texts."""
        command = self.example()
        self.assertEqual("rest-server example", command.name)
        self.assertEqual("do something as of v1.2 of it", command.summary)
        self.assertEqual("Do something as of v1.2 of it. It is done (or not). Bye", command.text)
        found = [(one.name, one.summary, one.text) for one in command.walk()][1:]
        self.assertEqual(
            [
                ("rest-server example first", "the first", "The first."),
                ("rest-server example second", "the second", ""),
            ],
            found,
        )

    def test_options(self) -> None:
        """Forms, values, choices, paths, sections."""
        options = {option.name: option for option in self.example().commands[0].options}
        self.assertEqual(["help", "from", "kind", "depth", "yes", "config", "path"], list(options))
        text = "file with rest-server example first, 100%"
        self.assertEqual(Option("from", "", Value("FILE", (), Kind.FILE), text), options["from"])
        self.assertEqual(Option("kind", "k", Value("KIND", ("a", "b")), "", repeatable=True), options["kind"])
        self.assertEqual(Option("depth", "", Value("DEPTH"), "default 2"), options["depth"])
        self.assertEqual(Option("yes", "", None, ""), options["yes"])
        self.assertEqual(("-h", "--help"), options["help"].forms)
        self.assertEqual(Kind.DIRECTORY, getattr(options["path"].value, "kind", None))
        self.assertEqual("the server's flags", options["path"].section)

    def test_arguments(self) -> None:
        """Which are required, and which may be several."""
        who, more = self.example().commands[0].arguments
        self.assertEqual(("WHO", "whose", True, False), (who.value.name, who.summary, who.required, who.repeatable))
        self.assertEqual(("MORE", False, True), (more.value.name, more.required, more.repeatable))


class ProgramTests(SynchronousTestCase):
    """The program as it is."""

    def test_flags(self) -> None:
        """All flags of the server, each once, with both texts."""
        options = program(()).options
        flags = {str(flag[0]) for flag in (*Options.optFlags, *Options.optParameters)}
        names = [option.name for option in options]
        self.assertEqual(sorted(flags | {"listen", "trusted-proxy", "help", "version"}), sorted(names))
        self.assertEqual([], [option.name for option in options if not option.summary or not option.text])
        values = {option.name: option.value for option in options if option.value is not None}
        self.assertEqual(CHOICES, {name: value.choices for name, value in values.items() if value.choices})
        self.assertEqual(set(FILES), {name for name, value in values.items() if value.kind is Kind.FILE})
        self.assertEqual(set(DIRECTORIES), {name for name, value in values.items() if value.kind is Kind.DIRECTORY})
        self.assertEqual({"help": "h", "version": "v"}, {one.name: one.short for one in options if one.short})

    def test_every_command(self) -> None:
        """Every subcommand can be read, and says in a few words what it is for."""
        commands = list(program(COMMANDS).walk())
        self.assertEqual(list(COMMANDS), [one.path[1] for one in commands if len(one.path) == 2])
        self.assertEqual([], [one.name for one in commands if not one.summary])
        self.assertEqual([], [one.name for one in commands if not one.commands and len(one.options) < 2])

    def test_help_names_every_command(self) -> None:
        """The help of the server names all subcommands; config, which a new user looks for first, is the first."""
        named = [word for word in COMMANDS if f"rest-server {word} (" in program(()).text]
        self.assertEqual(list(COMMANDS), named)
        self.assertIn("each with --help: rest-server config (", program(()).text)


class StartTests(SynchronousTestCase):
    """What a server that starts does without."""

    @process_test
    def test_not_imported(self) -> None:
        """None of this is imported by a server, nor by its workers: it would start later."""
        program = (
            "import sys, resticserver.cli, resticserver.tap, resticserver.workers.child\n"
            "print(*sorted(n for n in sys.modules if n.startswith('resticserver.commands') or n in (\n"
            "    'resticserver.config.reference', 'resticserver.config.inspection',\n"
            "    'resticserver.service.start_checks')))\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, check=True)
        self.assertEqual("", done.stdout.decode().strip())
