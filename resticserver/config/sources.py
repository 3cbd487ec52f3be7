"""
Flags from elsewhere than the command line: C{--config FILE.toml}, and the environment::

    path = "/srv/restic"
    listen = [":8000", "unix:/run/restic-rest.sock"]
    private-repos = true
    max-size = "2TiB"
    workers = 2

Every flag is a key of the file by its own name, and a variable as C{REST_SERVER_MAX_SIZE}. The command line comes before the
environment, that before the file; a flag that is given in one is not looked for in the next, also one that may be given
several times.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..files import read_file

PREFIX = "REST_SERVER_"


class Given(NamedTuple):
    """
    What was given for a flag.

    @ivar values: as on the command line, one for each time that the flag would stand there; of a switch C{"true"} or C{"false"}.
    @ivar source: the words for where it was given.
    """

    values: tuple[str, ...]
    source: str


class FlagNames(NamedTuple):
    """
    Which flags there are.

    @ivar switches: that are on or off.
    @ivar lists: that may be given several times.
    @ivar others: that have one value.
    """

    switches: frozenset[str]
    lists: frozenset[str]
    others: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """All of them."""
        return self.switches | self.lists | self.others


def from_environment(environment: Mapping[str, str], flags: FlagNames) -> dict[str, Given]:
    """
    What the environment says, by flag. Names of no flag are left alone: where a service is called C{rest-server}, Kubernetes
    sets C{REST_SERVER_PORT} and more in every container.

    @raise ValueError: a value makes no sense.
    """
    found = {}
    for flag in sorted(flags.all):
        name = variable(flag)
        value = environment.get(name)
        if value is None:
            continue
        if not value.strip():
            # Not as if it were unset: an empty name of a policy file must not mean that there is no policy.
            raise ValueError(f"{name} is empty: give it a value, or do not set it")
        try:
            values = tuple(shlex.split(value)) if flag in flags.lists else (value,)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        found[flag] = Given(values, name)
    return found


def variable(flag: str) -> str:
    """A flag's name in the environment."""
    return PREFIX + flag.upper().replace("-", "_")


def from_file(path: str, flags: FlagNames) -> dict[str, Given]:
    """
    What a file says, by flag.

    @raise OSError: it cannot be read.
    @raise ValueError: it is no TOML, has a key that is no flag or a value of the wrong type.
    """
    try:
        document = tomllib.loads(read_file(path)[0].decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is no UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deep") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    found = {}
    for key, value in document.items():
        if key not in flags.all:
            raise ValueError(
                f"{path}: {key}: no such key; keys are the flags that --help lists, without their dashes in front"
            )
        try:
            found[key] = Given(tuple(_values(key, value, flags)), f"{path}: {key}")
        except TypeError as error:
            raise ValueError(f"{path}: {key}: {error}") from None
    return found


def _values(key: str, value: Any, flags: FlagNames) -> Iterable[str]:
    """
    A value of the file as it would stand on the command line.

    @raise TypeError: it is of a type that makes no sense.
    """
    if key in flags.switches:
        if not isinstance(value, bool):
            raise TypeError("true or false is needed, without quotes")
        return ("true" if value else "false",)
    if isinstance(value, list):
        if key not in flags.lists:
            raise TypeError("one value is needed, and no list")
        return map(_text, value)
    return (_text(value),)


def _text(value: Any) -> str:
    if isinstance(value, str):
        if not value:
            raise TypeError("it is empty: give it a value, or leave it out")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a text in quotes or a number is needed")
    return str(value)
