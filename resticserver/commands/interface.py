"""
The whole command line as one tree: the server's flags, and each subcommand with its options. The man pages, the completions of
the shells and C{docs/options.md} are made of it. A running server does not need it.

The server's flags are those of L{resticserver.config.options} with the long texts of L{resticserver.config.reference}. The
subcommands are read from the parsers that their modules make (C{_parser}).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from inspect import cleandoc
from typing import Any

from ..config.flags import CHOICES, DESCRIPTION, DIRECTORIES, FILES
from ..config.options import Options
from ..config.reference import REFERENCE
from ..config.settings import default_path

PROGRAM = "rest-server"

#: The groups of each parser, in argparse's words.
_USUAL_GROUPS = ("positional arguments", "options")


class Kind(Enum):
    """What a value is, for completion."""

    TEXT = "text"
    FILE = "file"
    DIRECTORY = "directory"


@dataclass(frozen=True)
class Value:
    """
    What an option or an argument takes.

    @ivar name: what stands for it in the help.
    @ivar choices: all values that are possible; empty if there are others.
    """

    name: str
    choices: tuple[str, ...] = ()
    kind: Kind = Kind.TEXT


@dataclass(frozen=True)
class Option:
    """
    A flag of the server, or an option of a subcommand.

    @ivar name: its long form, without dashes.
    @ivar short: the letter of its short form, or empty.
    @ivar value: C{None} for a switch.
    @ivar summary: one line of plain text, as in C{--help}.
    @ivar text: what it does, in Markdown; empty if there is no more to say than in C{summary}.
    @ivar default: what holds without it, in Markdown; empty if C{summary} says so.
    @ivar section: the heading that it belongs to, or empty.
    """

    name: str
    short: str
    value: Value | None
    summary: str
    text: str = ""
    default: str = ""
    repeatable: bool = False
    section: str = ""

    @property
    def forms(self) -> tuple[str, ...]:
        """The option as it is written, the short form first."""
        return (*((f"-{self.short}",) if self.short else ()), f"--{self.name}")

    def add_to(self, group: Any) -> None:
        """Add it to the help of another command."""
        if self.value is None:
            group.add_argument(*self.forms, action="store_true", help=_escaped(self.summary))
            return
        group.add_argument(
            *self.forms,
            metavar=self.value.name,
            choices=self.value.choices or None,
            action="append" if self.repeatable else "store",
            help=_escaped(self.summary),
        )


@dataclass(frozen=True)
class Argument:
    """An argument of a subcommand that is no option."""

    value: Value
    summary: str
    required: bool
    repeatable: bool


@dataclass(frozen=True)
class Command:
    """
    The program, a subcommand, or a subcommand of that.

    @ivar path: its name in words: C{("rest-server", "user", "add")}.
    @ivar summary: one line of plain text.
    @ivar text: what it does, in plain text.
    """

    path: tuple[str, ...]
    summary: str
    text: str
    options: tuple[Option, ...] = ()
    arguments: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def name(self) -> str:
        """How it is called."""
        return " ".join(self.path)

    def walk(self) -> Iterator[Command]:
        """This command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def program(subcommands: Sequence[str]) -> Command:
    """
    The whole command line.

    @param subcommands: the names of the modules in this package that have subcommands.
    """
    commands = tuple(map(subcommand, subcommands))
    return Command((PROGRAM,), "repository server for restic backups", DESCRIPTION, server_options(), (), commands)


def server_options() -> tuple[Option, ...]:
    """The flags of the server, in the order of the reference."""
    options = Options()
    summaries = {str(flag[0]): str(flag[-1]) for flag in (*options.optFlags, *options.optParameters)}
    short = {name: letter for letter, name in options.synonyms.items() if len(letter) == 1}
    found = []
    for section in REFERENCE:
        for one in section.options:
            method = getattr(options, f"opt_{one.flag.replace('-', '_')}", None)
            found.append(
                Option(
                    one.flag,
                    short.get(one.flag, ""),
                    _value_of_flag(one.flag, one.value),
                    _portable(summaries.get(one.flag) or cleandoc(method.__doc__ or "")),
                    cleandoc(one.text),
                    one.default,
                    one.repeatable,
                    section.title,
                )
            )
    return tuple(found)


def _value_of_flag(flag: str, name: str) -> Value | None:
    if not name:
        return None
    kind = Kind.DIRECTORY if flag in DIRECTORIES else Kind.FILE if flag in FILES else Kind.TEXT
    return Value(name, CHOICES.get(flag, ()), kind)


def subcommand(name: str) -> Command:
    """The command line of a subcommand."""
    parser: argparse.ArgumentParser = import_module(f".{name}", __package__)._parser()
    description = " ".join((parser.description or "").split())
    summary = _first_sentence(description)
    return _of_parser(parser, (PROGRAM, name), summary[:1].lower() + summary[1:])


def _first_sentence(text: str) -> str:
    """A sentence ends with a full stop before a capital letter, or with the text."""
    words = text.split(" ")
    for position, (word, following) in enumerate(zip(words, [*words[1:], "A"], strict=True)):
        if word.endswith(".") and following[:1].isupper():
            return " ".join(words[: position + 1]).removesuffix(".")
    return text


def _of_parser(parser: argparse.ArgumentParser, path: tuple[str, ...], summary: str) -> Command:
    options: list[Option] = []
    arguments: list[Argument] = []
    commands: list[Command] = []
    for group in parser._action_groups:
        section = "" if group.title in _USUAL_GROUPS else str(group.title)
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                summaries = {pseudo.dest: pseudo.help or "" for pseudo in action._choices_actions}
                commands += [
                    _of_parser(inner, (*path, name), summaries.get(name, "")) for name, inner in action.choices.items()
                ]
            elif action.option_strings:
                options.append(_option(parser, action, section))
            else:
                arguments.append(_argument(parser, action))
    text = " ".join((parser.description or "").split())
    return Command(path, _portable(summary), _portable(text), tuple(options), tuple(arguments), tuple(commands))


def _option(parser: argparse.ArgumentParser, action: argparse.Action, section: str) -> Option:
    long = next(form for form in action.option_strings if form.startswith("--"))
    short = next((form[1:] for form in action.option_strings if not form.startswith("--")), "")
    value = None if action.nargs == 0 else _value(action)
    repeatable = isinstance(action, argparse._AppendAction)
    return Option(long[2:], short, value, _summary(parser, action), repeatable=repeatable, section=section)


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    return Argument(
        _value(action), _summary(parser, action), action.nargs not in ("?", "*"), action.nargs in ("*", "+")
    )


def _value(action: argparse.Action) -> Value:
    name = action.metavar or action.dest.upper()
    name = name if isinstance(name, str) else " ".join(name)
    kind = {"FILE": Kind.FILE, "DIR": Kind.DIRECTORY}.get(name, Kind.TEXT)
    return Value(name, tuple(map(str, action.choices or ())), kind)


def _summary(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if not action.help:
        return ""
    return _portable(action.help % {**vars(action), "prog": parser.prog})


def _portable(text: str) -> str:
    """A text without this machine's temporary directory."""
    return text.replace(default_path(), "/tmp/restic")


def _escaped(text: str) -> str:
    """A text for argparse, which formats it."""
    return text.replace("%", "%%")
