"""
The policy file: TOML to rules, checked whole before any of it holds, and read again when it changes::

    default = "none"

    [groups]
    office = ["alice", "bob"]

    [[rule]]
    users = ["@office"]
    repositories = ["{user}", "{user}/*"]
    rights = "append"
    create = true
    quota = "500GiB"

    [users.alice]
    quota = "1TiB"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.logger import Logger

from ..dates import parse_duration
from ..errors import StartError
from ..files import MadeOfFiles, WatchedFile, reason_of
from ..names import is_user_name
from ..sizes import Limit, parse_bandwidth, parse_size
from ..targets import Target
from .policy import EVERYONE, Action, Decision, Grants, Policy, RepositoryPattern, Right, Rule

_RIGHTS = {right.name.lower(): right for right in Right}
_KEYS = frozenset(("default", "groups", "rule", "users"))
_RULE_KEYS = frozenset(
    (
        "users",
        "repositories",
        "rights",
        "create",
        "delete-repository",
        "quota",
        "max-objects",
        "bandwidth",
        "delete-delay",
        "trash-counts",
        "comment",
    )
)
_USER_KEYS = frozenset(("quota", "max-objects"))

_log = Logger()


class PolicyError(ValueError):
    """Something in a policy is wrong; the message begins with its key."""


def parse_policy(text: str) -> Grants:
    """
    The grants of a policy file.

    @raise PolicyError: it is no TOML, a key is not known, or a value makes no sense.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(str(error)) from error
    except RecursionError:
        raise PolicyError("nested too deeply") from None
    except ValueError:
        # Python converts no decimal numbers of more than 4300 digits.
        raise PolicyError("a number has too many digits") from None
    _only(document, _KEYS, "")
    groups = _groups(document.get("groups", {}))
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError("rule: must be an array of tables, each written as [[rule]]")
    rules = tuple(_rule(number, table, groups) for number, table in enumerate(tables, 1))
    return Grants(rules, _right(document.get("default", "none"), "default"), _users(document.get("users", {})))


def _only(table: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise PolicyError(f"{where}{key}: unknown key; the keys are {', '.join(sorted(known))}")


def _groups(table: Any) -> dict[str, frozenset[str]]:
    if not isinstance(table, dict):
        raise PolicyError("groups: must be a table")
    groups = {}
    for name, members in table.items():
        if not is_user_name(name):
            raise PolicyError(f"groups.{name}: not a group name")
        for member in _strings(members, f"groups.{name}"):
            if not is_user_name(member) or member.startswith("@"):
                raise PolicyError(f"groups.{name}: {member!r} is not a user name")
        groups[name] = frozenset(members)
    return groups


def _rule(number: int, table: dict[str, Any], groups: dict[str, frozenset[str]]) -> Rule:
    where = f"rule {number}: "
    _only(table, _RULE_KEYS, where)
    for key in ("users", "repositories", "rights"):
        if key not in table:
            raise PolicyError(f"{where}{key} is missing")
    users: set[str] = set()
    for name in _strings(table["users"], f"{where}users"):
        if name.startswith("@"):
            if name[1:] not in groups:
                raise PolicyError(f"{where}users: unknown group {name[1:]!r}")
            users |= groups[name[1:]]
        elif name == EVERYONE or is_user_name(name):
            users.add(name)
        else:
            raise PolicyError(f"{where}users: {name!r} is not a user name")
    patterns = []
    for pattern in _strings(table["repositories"], f"{where}repositories"):
        try:
            patterns.append(RepositoryPattern(pattern))
        except ValueError as error:
            raise PolicyError(f"{where}repositories: {error}") from error
    right = _right(table["rights"], f"{where}rights")
    create = _boolean(table, "create", where)
    delete = _boolean(table, "delete-repository", where)
    if create and right < Right.APPEND:
        raise PolicyError(f'{where}create: needs rights = "append" or "full"')
    if delete and right < Right.FULL:
        raise PolicyError(f'{where}delete-repository: needs rights = "full"')
    bandwidth = _bandwidth(table, where)
    return Rule(
        frozenset(users),
        tuple(patterns),
        right,
        create,
        delete,
        _limit(table, where),
        number,
        _duration(table, "delete-delay", where),
        _boolean(table, "trash-counts", where, default=True),
        bandwidth,
    )


def _users(table: Any) -> dict[str, Limit]:
    if not isinstance(table, dict):
        raise PolicyError("users: must be a table")
    limits = {}
    for name, settings in table.items():
        if name != EVERYONE and not is_user_name(name):
            raise PolicyError(f"users.{name}: not a user name")
        if not isinstance(settings, dict):
            raise PolicyError(f"users.{name}: must be a table")
        _only(settings, _USER_KEYS, f"users.{name}.")
        limits[name] = _limit(settings, f"users.{name}.")
    return limits


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PolicyError(f"{where}: must be a list of strings")
    return value


def _duration(table: Mapping[str, Any], key: str, where: str) -> float:
    value = table.get(key, "0")
    try:
        return parse_duration(value)
    except (ValueError, TypeError, AttributeError):
        raise PolicyError(f'{where}{key}: {_shown(value)} is not a duration, such as "30d"') from None


def _boolean(table: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise PolicyError(f"{where}{key}: must be true or false")
    return value


def _right(value: Any, where: str) -> Right:
    if not isinstance(value, str) or value not in _RIGHTS:
        raise PolicyError(f"{where}: {_shown(value)} is not a right; the rights are {', '.join(_RIGHTS)}")
    return _RIGHTS[value]


def _bandwidth(table: Mapping[str, Any], where: str) -> int | None:
    value = table.get("bandwidth")
    if value is None:
        return None
    try:
        return parse_bandwidth(_shown(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    except (ValueError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, ValueError) else f"{_shown(value)} is not a size, such as 10M"
        raise PolicyError(f"{where}bandwidth: {reason}") from None


def _shown(value: Any) -> str:
    """A value, as an error shows it."""
    try:
        return repr(value)
    except ValueError:  # also hexadecimal numbers can be too long for that
        return "a number with too many digits"


def _limit(table: Mapping[str, Any], where: str) -> Limit:
    quota, objects = table.get("quota"), table.get("max-objects")
    size_bytes = None
    if quota is not None:
        try:
            size_bytes = parse_size(str(quota) if isinstance(quota, int) and not isinstance(quota, bool) else quota)
        except (ValueError, TypeError, AttributeError):
            raise PolicyError(f"{where}quota: {_shown(quota)} is not a size, such as 500GiB") from None
    if objects is not None and (not isinstance(objects, int) or isinstance(objects, bool) or objects < 0):
        raise PolicyError(f"{where}max-objects: {_shown(objects)} is not a number of objects")
    return Limit(size_bytes, objects)


@dataclass
class PolicyFile(MadeOfFiles):
    """
    The policy of a server with a policy file.

    @ivar flags: the policy of the command line, which the file's grants are put into.
    @ivar current: the policy in use.
    @ivar text: what it was made of.
    """

    path: str
    flags: Policy
    current: Policy = field(init=False)
    text: str = field(init=False, repr=False)
    _watched: WatchedFile = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._watched = WatchedFile(self.path)

    def load(self) -> None:
        """
        Read the file for the first time.

        @raise StartError: it cannot be read or is wrong.
        """
        try:
            self._read_again()
        except (OSError, ValueError) as error:
            raise StartError(f"--policy: cannot load the policy {self.path}: {_words(error)}") from error

    def say_reloaded(self) -> None:
        """Log that the file as it is now is in use, in all processes."""
        _log.info("Reloaded policy {path}", path=self.path)

    def take(self, text: str) -> None:
        """
        Use the text of a policy file.

        @raise PolicyError: it is wrong; the policy before stays in use.
        """
        self.current = replace(self.flags, grants=parse_policy(text))
        self.text = text

    def _read_again(self) -> None:
        self.take(self._watched.read().decode("utf-8"))

    def _log_failure(self, error: Exception) -> None:
        _log.error(
            "could not reload the policy {path}: {error}; the previous policy stays in effect",
            path=self.path,
            error=_words(error),
        )

    def decide(self, user: str | None, action: Action, target: Target) -> Decision:
        """The current policy's decision."""
        return self.current.decide(user, action, target)

    def may_delete_repositories(self) -> bool:
        """Whether any user may."""
        return self.current.may_delete_repositories()

    def bandwidth_of(self, user: str | None, repository: tuple[str, ...]) -> tuple[int, int] | None:
        """The limit of a user's transfers with a repository."""
        return self.current.bandwidth_of(user, repository)

    def has_limits(self) -> bool:
        """Whether there are quotas."""
        return self.current.has_limits()

    def limit_of_user(self, name: str) -> Limit:
        """The quota of a user, for all repositories below the folder of that name."""
        return self.current.limit_of_user(name)

    def delete_delay_of(self, user: str | None, repository: tuple[str, ...]) -> float:
        """How long what this user deletes in a repository is kept in the trash, in seconds."""
        return self.current.delete_delay_of(user, repository)

    def shortest_delete_delay(self) -> float | None:
        """The shortest time, in seconds, after which something deleted from now on may end."""
        return self.current.shortest_delete_delay()

    def longest_delete_delay(self) -> float:
        """The longest time, in seconds, for which something deleted from now on is kept; 0 if nothing is."""
        return self.current.longest_delete_delay()

    def trash_counts(self, user: str | None, repository: tuple[str, ...]) -> bool:
        """Whether the trash of a repository counts towards quotas."""
        return self.current.trash_counts(user, repository)

    def limit_of_repository(self, user: str | None, repository: tuple[str, ...]) -> Limit:
        """The quota of a repository for what this user adds to it."""
        return self.current.limit_of_repository(user, repository)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return reason_of(error)
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else " ".join(str(error).split("\n"))
