"""
Who may do what: the one decision, as a pure rule.

Deny by default; the flags of the command line are the whole policy so far. Every request comes through L{Policy.decide}
with the canonical L{resticserver.names.Target}, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..names import Target


class Action(Enum):
    """What a request wants to do to what it names."""

    READ = "read"
    SAVE = "save"
    REMOVE = "remove"
    CREATE = "create"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it may be done, and if not, why: a phrase for the client's user."""

    allowed: bool
    reason: str = ""


ALLOWED = Decision(True)


@dataclass(frozen=True, slots=True)
class Policy:
    """
    The rules of one server.

    @ivar append_only: nothing is removed but locks. (That nothing stored is replaced holds always, in the store.)
    @ivar private_repos: a user's repositories lie below the folder of their name, and nowhere else.
    """

    append_only: bool = False
    private_repos: bool = False

    def decide(self, user: str | None, action: Action, target: Target) -> Decision:
        """
        Whether C{user} (C{None} without authentication) may do this.
        """
        if self.private_repos and (user is None or target.repository[:1] != (user,)):
            return Decision(False, "private repositories: the path must start with your user name")
        if self.append_only and action is Action.REMOVE and target.type != "locks":
            return Decision(False, "append-only: only locks may be removed")
        return ALLOWED
