"""
What a server would make of its flags, for C{rest-server config}: all problems instead of the first one, and where each value
comes from. The server itself does not need this module.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from twisted.python import usage

from ..access.proxies import TrustedProxies
from . import sources
from .flags import DIRECTORIES, FILES
from .options import Options, without_password
from .settings import DEFAULT_LISTEN, Settings, default_path

#: The value of a flag, as C{config show} prints it; C{None} if there is none.
Shown = str | bool | tuple[str, ...] | None

#: Which origin a value has.
COMMAND_LINE, ENVIRONMENT, FILE, DEFAULT = "command line", "environment", "file", "default"

_HIDDEN = "(hidden)"


class FlagValue(NamedTuple):
    """
    A flag's value, and where it comes from.

    @ivar value: what is in effect, without secrets.
    @ivar origin: L{COMMAND_LINE}, L{ENVIRONMENT}, L{FILE} or L{DEFAULT}.
    @ivar place: the flag, the variable, or the file and its key; empty for a default.
    """

    flag: str
    value: Shown
    origin: str
    place: str


class InspectedOptions(Options):
    """
    The server's options, which goes on after a problem as if the flag in question were not given.

    @ivar problems: a line for each problem, as the server would print it.
    @ivar ignored: the flags whose values are unusable.
    @ivar complete: whether all sources could be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.ignored: set[str] = set()
        self.complete = False
        self._initial = {flag: [] if isinstance(value, list) else value for flag, value in self.items()}
        self._given: dict[str, Any] = {}

    def inspect(self, arguments: Sequence[str]) -> Settings:
        """
        Parse an argument list, the environment and the file.

        @return: the settings without the unusable values.
        @raise usage.UsageError: it is not the command line of a server.
        """
        rewritten = self._in_getopt_form(list(arguments))
        if {"help", "version"} & self._sources.keys() or {"-h", "-v"} & set(rewritten):
            raise usage.UsageError("--help and --version are not flags of this command")
        try:
            rewritten = self._with_others(rewritten)
            self.complete = True
        except usage.UsageError as error:
            self.problems.append(self.where_it_stands(str(error)))
        usage.Options.parseOptions(self, rewritten)
        self._given = dict(self)
        while True:
            try:
                self.settings = self._checked()
                return self.settings
            except usage.UsageError as error:
                self._leave_out(str(error))

    def _leave_out(self, problem: str) -> None:
        """Set the flag that a problem names to its default."""
        self.problems.append(self.where_it_stands(problem))
        named = re.match(r"--([a-z-]+)", problem)
        flag = named[1] if named is not None else ""
        if flag not in self._initial or flag in self.ignored:
            raise AssertionError(f"not the problem of a flag, or not solved by leaving it out: {problem}")
        self.ignored.add(flag)
        self[flag] = [] if isinstance(self[flag], list) else self._initial[flag]

    def _refuse(self, problem: str) -> None:
        self.problems.append(problem)

    def _is_on(self, source: str, value: str) -> bool:
        try:
            return super()._is_on(source, value)
        except usage.UsageError as error:
            self.problems.append(str(error))
            return False

    def _config_file(self, arguments: list[str]) -> str | None:
        path = super()._config_file(arguments)
        self["config"] = path
        return path

    def flag_values(self) -> list[FlagValue]:
        """All flags, in the order of C{--help}. Values that are unusable are shown as they were given."""
        flags = [*(str(flag[0]) for flag in self.optFlags), *(str(parameter[0]) for parameter in self.optParameters)]
        return [self._flag_value(flag) for flag in (*flags, "listen", "trusted-proxy")]

    def _flag_value(self, flag: str) -> FlagValue:
        place = self._sources.get(flag)
        if place is None:
            return FlagValue(flag, self._default_value(flag), DEFAULT, "")
        origin = FILE
        if place == f"--{flag}":
            origin = COMMAND_LINE
        elif place == sources.variable(flag):
            origin = ENVIRONMENT
        value = self._given[flag]
        if flag in self._flags().switches:
            return FlagValue(flag, bool(value), origin, place)
        if isinstance(value, list):
            return FlagValue(flag, tuple(map(without_password, value)), origin, place)
        if flag == "on-event":
            value = _without_arguments(value)
        elif flag in FILES or flag in DIRECTORIES:
            value = self._path(flag, value)
        return FlagValue(flag, None if value is None else without_password(value), origin, place)

    def _path(self, flag: str, value: str) -> str:
        """A path as the server uses it: absolute, if it is usable."""
        setting = getattr(self.settings, flag.replace("-", "_"), None)
        return setting if isinstance(setting, str) and flag not in self.ignored else value

    def _default_value(self, flag: str) -> Shown:
        """What holds without a flag, also where that follows from other flags."""
        settings = self.settings
        following: dict[str, Shown] = {
            "path": default_path(),
            "listen": (DEFAULT_LISTEN,),
            "trusted-proxy": tuple(map(str, TrustedProxies.parse(()).networks)),
            "htpasswd-file": settings.htpasswd_path if settings.passwords else None,
            "tls-cert": settings.certificate_path if settings.tls else None,
            "tls-key": settings.key_path if settings.tls else None,
            "state-dir": f"{settings.path.rstrip('/')}/.rest-server",
            "spool-dir": settings.state_dir if settings.location is not None else None,
            "bandwidth-up": self["bandwidth"],
            "bandwidth-down": self["bandwidth"],
        }
        if flag in following:
            return following[flag]
        value = self._initial[flag]
        return bool(value) if flag in self._flags().switches else value


def _without_arguments(command: str) -> str:
    """The program of a command line. Its arguments may be secrets."""
    try:
        words = shlex.split(command)
    except ValueError:
        return _HIDDEN
    return words[0] if len(words) == 1 else f"{words[0]} {_HIDDEN}" if words else ""
