"""
Authorization: the decision whether a user may do something, as a pure rule.

Deny by default. Every request goes through L{Policy.decide} once, with the canonical L{resticserver.targets.Target}. The policy
file grants rights, and the options of the command line (C{--append-only}, C{--read-only}, C{--private-repos}) take rights
away, so the stricter one always wins.

| right  | reads, lists | locks: make, remove | make objects | remove objects |
|--------|--------------|---------------------|--------------|----------------|
| none   | no           | no                  | no           | no             |
| read   | yes          | yes                 | no           | no             |
| append | yes          | yes                 | yes          | no             |
| full   | yes          | yes                 | yes          | yes            |

Making a repository needs C{create} besides C{append}, and deleting a whole one C{delete-repository} besides C{full}.
(The store never replaces an intact object by other bytes, whatever the rights.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import lru_cache
from typing import Protocol

from ..sizes import UNLIMITED, Limit
from ..targets import Kind, Target


class Action(Enum):
    """What a request asks for."""

    READ = "read"
    SAVE = "save"
    REMOVE = "remove"
    CREATE = "create"
    DELETE_REPOSITORY = "delete the repository"


#: What each method means, by what the path names; other methods are not allowed there.
ACTIONS: Mapping[Kind, Mapping[bytes, Action]] = {
    Kind.REPOSITORY: {b"POST": Action.CREATE, b"DELETE": Action.DELETE_REPOSITORY},
    Kind.LIST: {b"GET": Action.READ},
    Kind.OBJECT: {b"GET": Action.READ, b"HEAD": Action.READ, b"POST": Action.SAVE, b"DELETE": Action.REMOVE},
    Kind.CONFIG: {b"GET": Action.READ, b"HEAD": Action.READ, b"POST": Action.SAVE, b"DELETE": Action.REMOVE},
}


class Right(IntEnum):
    """What may be done in a repository; each right includes those before it."""

    NONE = 0
    READ = 1
    APPEND = 2
    FULL = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """
    Whether an action is allowed.

    @ivar reason: why it is not: a phrase for the client's user, which reveals nothing about repositories of others.
    @ivar rule: the rule that decided, for the administrator.
    """

    allowed: bool
    reason: str = ""
    rule: str = ""


class Decides(Protocol):
    """What the routes need of a policy."""

    def decide(self, user: str | None, action: Action, target: Target) -> Decision:
        """Whether a user (C{None} without authentication) may do this."""

    def may_delete_repositories(self) -> bool:
        """Whether any user may: otherwise the method does not exist."""

    def bandwidth_of(self, user: str | None, repository: tuple[str, ...]) -> tuple[int, int] | None:
        """
        The limit of a user's transfers with a repository: the number of the rule that has it, and the limit in bytes a
        second, for each direction; C{None} for no limit.
        """

    def delete_delay_of(self, user: str | None, repository: tuple[str, ...]) -> float:
        """How long what this user deletes in a repository is kept in the trash, in seconds; 0 for not at all."""


class RepositoryPattern:
    """
    Repositories by their folders, segment by segment: C{*} and C{?} never cross a slash, C{**} is any number of folders,
    C{{user}} is the name of the request's user. C{/} is the repository at the root.

    @raise ValueError: the text is no pattern.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        inner = text.removeprefix("/").removesuffix("/")
        self._segments: tuple[str, ...] = tuple(inner.split("/")) if inner else ()
        if not text or "//" in text or any(segment in ("", ".", "..") for segment in self._segments):
            raise ValueError(f"{text!r} is not a repository pattern")
        if set("{}") & set(inner.replace("{user}", "")):
            raise ValueError(f"{text!r}: {{user}} is the only placeholder")

    def matches(self, user: str, repository: tuple[str, ...]) -> bool:
        """Whether a repository is one of them."""
        return self._match(user, self._segments, repository)

    def _match(self, user: str, segments: tuple[str, ...], folders: tuple[str, ...]) -> bool:
        if not segments:
            return not folders
        if segments[0] == "**":
            return any(self._match(user, segments[1:], folders[rest:]) for rest in range(len(folders) + 1))
        return (
            bool(folders)
            and _segment_pattern(segments[0], user).match(folders[0]) is not None
            and self._match(user, segments[1:], folders[1:])
        )

    def __repr__(self) -> str:
        return f"RepositoryPattern({self.text!r})"


@lru_cache(maxsize=10_000)
def _segment_pattern(segment: str, user: str) -> re.Pattern[str]:
    # The name is inserted after the wildcards were translated, so it has none.
    pieces = (
        "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in piece)
        for piece in segment.split("{user}")
    )
    return re.compile(re.escape(user).join(pieces) + r"\Z", re.DOTALL)


#: The name for all authenticated users.
EVERYONE = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One rule: the first one with matching users and repositories decides.

    @ivar users: names, or L{EVERYONE}.
    @ivar number: its place in the file, from 1.
    @ivar limit: the quota of each repository that it matches.
    @ivar bandwidth: how many bytes a second each of its users may move in each direction; C{None} for no limit.
    @ivar delete_delay_s: how long deleted objects are kept in the trash, in seconds.
    @ivar trash_counts: whether the trash counts towards quotas.
    """

    users: frozenset[str]
    repositories: tuple[RepositoryPattern, ...]
    right: Right
    create: bool = False
    delete_repository: bool = False
    limit: Limit = UNLIMITED
    number: int = 0
    delete_delay_s: float = 0
    trash_counts: bool = True
    bandwidth: int | None = None

    def matches(self, user: str, repository: tuple[str, ...]) -> bool:
        """Whether the rule is for this user and this repository."""
        return (EVERYONE in self.users or user in self.users) and any(
            pattern.matches(user, repository) for pattern in self.repositories
        )


@dataclass(frozen=True, slots=True)
class Grants:
    """
    The content of a policy file, with groups resolved.

    @ivar limits_bandwidth: whether any rule has a bandwidth.
    """

    rules: tuple[Rule, ...]
    default: Right = Right.NONE
    user_limits: Mapping[str, Limit] = field(default_factory=dict)
    limits_bandwidth: bool = field(init=False)

    def __post_init__(self) -> None:
        # Asked in each request, so it is found out once.
        object.__setattr__(self, "limits_bandwidth", any(rule.bandwidth is not None for rule in self.rules))


_LOCKS = "locks"
_ALL_RIGHTS = Decision(True, rule="the default without a policy file")


@dataclass(frozen=True, slots=True)
class Policy:
    """
    The rules of one server.

    @ivar append_only: only locks may be removed.
    @ivar read_only: only locks may be made and removed.
    @ivar private_repos: users may use only repositories below the folder of their name.
    @ivar grants: of the policy file; C{None} without one: every user has every right except to delete repositories.
    @ivar delete_delay_s: how long deleted objects are kept in the trash at least, in seconds; 0 for not at all.
    """

    append_only: bool = False
    private_repos: bool = False
    read_only: bool = False
    grants: Grants | None = None
    delete_delay_s: float = 0

    def may_delete_repositories(self) -> bool:
        """Whether any user may delete a whole repository."""
        return self.grants is not None and any(rule.delete_repository for rule in self.grants.rules)

    def decide(self, user: str | None, action: Action, target: Target) -> Decision:
        """
        Whether a user (C{None} without authentication) may do this.
        """
        if self.private_repos and (user is None or target.repository[:1] != (user,)):
            reason = "private repositories: the path must start with your user name"
            return Decision(False, reason, "--private-repos")
        needed = _needed(action, target)
        if self.read_only and needed > Right.READ:
            return Decision(False, "read-only: only locks may be created or deleted", "--read-only")
        if self.append_only and needed > Right.APPEND:
            return Decision(False, "append-only: only locks may be deleted", "--append-only")
        return self._granted(user, action, target, needed)

    def _granted(self, user: str | None, action: Action, target: Target, needed: Right) -> Decision:
        """The decision of the policy file."""
        if self.grants is None:
            if action is Action.DELETE_REPOSITORY:
                return Decision(False, "no policy grants this", "the default without a policy file")
            return _ALL_RIGHTS
        rule = self.rule_for(user, target.repository)
        if rule is None:
            where, right, create, delete = "default", self.grants.default, False, False
        else:
            where, right, create, delete = f"rule {rule.number}", rule.right, rule.create, rule.delete_repository
        said = f"{where}: {right.name.lower()}"
        if right < needed:
            return Decision(False, _REFUSALS[right], said)
        if action is Action.CREATE and not create:
            return Decision(False, "you may not create this repository", f"{said}, without create")
        if action is Action.DELETE_REPOSITORY and not delete:
            return Decision(False, "you may not delete this repository", f"{said}, without delete-repository")
        return Decision(True, rule=said)

    def has_limits(self) -> bool:
        """Whether there are quotas."""
        grants = self.grants
        return grants is not None and (
            bool(grants.user_limits) or any(rule.limit != UNLIMITED for rule in grants.rules)
        )

    def limit_of_user(self, name: str) -> Limit:
        """The quota of a user, for all repositories below the folder of that name: the user's own, or everyone's."""
        limits = self.grants.user_limits if self.grants is not None else {}
        return limits.get(name) or limits.get(EVERYONE, UNLIMITED)

    def limit_of_repository(self, user: str | None, repository: tuple[str, ...]) -> Limit:
        """The quota of a repository for what this user adds to it: that of the rule that decides."""
        rule = self.rule_for(user, repository)
        return UNLIMITED if rule is None else rule.limit

    def bandwidth_of(self, user: str | None, repository: tuple[str, ...]) -> tuple[int, int] | None:
        """See L{Decides.bandwidth_of}."""
        if self.grants is None or not self.grants.limits_bandwidth:
            return None
        rule = self.rule_for(user, repository)
        return None if rule is None or rule.bandwidth is None else (rule.number, rule.bandwidth)

    def delete_delay_of(self, user: str | None, repository: tuple[str, ...]) -> float:
        """How long what this user deletes in a repository is kept in the trash, in seconds: the longer of flag and rule."""
        rule = self.rule_for(user, repository)
        return self.delete_delay_s if rule is None else max(self.delete_delay_s, rule.delete_delay_s)

    def shortest_delete_delay(self) -> float | None:
        """The shortest time, in seconds, after which something deleted from now on may end; C{None} if nothing is kept."""
        return min((delay_s for delay_s in self._delete_delays() if delay_s), default=None)

    def longest_delete_delay(self) -> float:
        """The longest time, in seconds, for which something deleted from now on is kept; 0 if nothing is."""
        return max(self._delete_delays())

    def _delete_delays(self) -> list[float]:
        rules = () if self.grants is None else self.grants.rules
        return [max(self.delete_delay_s, rule.delete_delay_s) for rule in rules] + [self.delete_delay_s]

    def trash_counts(self, user: str | None, repository: tuple[str, ...]) -> bool:
        """
        Whether the trash of a repository counts towards quotas.

        @param user: the repository's owner.
        """
        rule = self.rule_for(user, repository)
        return rule is None or rule.trash_counts

    def rule_for(self, user: str | None, repository: tuple[str, ...]) -> Rule | None:
        """The rule that decides; C{None} if none matches, or without authentication."""
        if self.grants is None or user is None:
            return None
        return next((rule for rule in self.grants.rules if rule.matches(user, repository)), None)


_REFUSALS = {
    Right.NONE: "you have no access to this repository",
    Right.READ: "you may only read this repository",
    Right.APPEND: "you may only add to this repository",
}


def _needed(action: Action, target: Target) -> Right:
    """The right that an action needs."""
    if action is Action.READ:
        return Right.READ
    if target.type == _LOCKS and action in (Action.SAVE, Action.REMOVE):
        return Right.READ
    if action in (Action.SAVE, Action.CREATE):
        return Right.APPEND
    return Right.FULL
