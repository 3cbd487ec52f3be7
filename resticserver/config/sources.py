"""
Flags from other sources than the command line: C{--config FILE.toml}, and the environment::

    path = "/srv/restic"
    listen = [":8000", "unix:/run/restic-rest.sock"]
    private-repos = true
    max-size = "2TiB"
    workers = 2

Every flag is a key in the file under its own name, and an environment variable such as C{REST_SERVER_MAX_SIZE}. The
command line wins over the environment, the environment over the file. The values of sources are never combined, not
even for a repeatable flag.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..files import read_file

PREFIX = "REST_SERVER_"


class Given(NamedTuple):
    """
    The value of a flag.

    @ivar values: as on the command line, one for each time that the flag would appear there; C{"true"} or C{"false"}
        for a switch.
    @ivar source: where the value was set, for messages.
    """

    values: tuple[str, ...]
    source: str


class FlagNames(NamedTuple):
    """
    The names of all flags.

    @ivar switches: flags that are on or off.
    @ivar lists: repeatable flags.
    @ivar others: flags with one value.
    """

    switches: frozenset[str]
    lists: frozenset[str]
    others: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """The names of all flags, of any kind."""
        return self.switches | self.lists | self.others


def stop(problem: str) -> None:
    """
    Stop at the first problem.

    @raise ValueError: always, with the problem as its message.
    """
    raise ValueError(problem)


def from_environment(
    environment: Mapping[str, str], flags: FlagNames, refuse: Callable[[str], object] = stop
) -> dict[str, Given]:
    """
    Read flags from the environment. Variables that name no flag are ignored: for a service called C{rest-server},
    Kubernetes sets C{REST_SERVER_PORT} and others in every container.

    @param refuse: called with a line for each invalid value, which is left out if this returns.
    @return: the values by flag.
    """
    found = {}
    for flag in sorted(flags.all):
        name = variable(flag)
        value = environment.get(name)
        if value is None:
            continue
        if not value.strip():
            # Not treated as unset: an empty policy file name must not mean that there is no policy.
            refuse(f"{name} is empty: set it to a value, or unset it")
            continue
        try:
            values = tuple(shlex.split(value)) if flag in flags.lists else (value,)
        except ValueError as error:
            refuse(f"{name}: {error}")
            continue
        found[flag] = Given(values, name)
    return found


def variable(flag: str) -> str:
    """The environment variable for a flag."""
    return PREFIX + flag.upper().replace("-", "_")


def from_file(path: str, flags: FlagNames, refuse: Callable[[str], object] = stop) -> dict[str, Given]:
    """
    Read flags from a file.

    @param refuse: called with a line for each unknown key and each value of the wrong type, which are left out if this
        returns.
    @return: the values by flag.
    @raise OSError: the file cannot be read.
    @raise ValueError: the file is not TOML.
    """
    try:
        document = tomllib.loads(read_file(path)[0].decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    found = {}
    for key, value in document.items():
        if key not in flags.all:
            refuse(f"{path}: {key}: unknown key; the keys are the flags of --help, without the leading dashes")
            continue
        try:
            found[key] = Given(tuple(_values(key, value, flags)), f"{path}: {key}")
        except TypeError as error:
            refuse(f"{path}: {key}: {error}")
    return found


def _values(key: str, value: Any, flags: FlagNames) -> Iterable[str]:
    """
    Convert a value of the file to the form of the command line.

    @raise TypeError: it is of an unsuitable type.
    """
    if key in flags.switches:
        if not isinstance(value, bool):
            raise TypeError("must be true or false, without quotes")
        return ("true" if value else "false",)
    if isinstance(value, list):
        if key not in flags.lists:
            raise TypeError("must be one value, not a list")
        return map(_text, value)
    return (_text(value),)


def _text(value: Any) -> str:
    if isinstance(value, str):
        if not value:
            raise TypeError("it is empty: set it to a value, or remove the key")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("must be a string in quotes or a number")
    return str(value)
