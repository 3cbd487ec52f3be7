"""
Who may do what: the whole decision as a table.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Action, Policy
from resticserver.names import parse_target

ID = b"0123456789abcdef" * 4

OPEN = Policy()
APPEND_ONLY = Policy(append_only=True)
PRIVATE = Policy(private_repos=True)
BOTH = Policy(append_only=True, private_repos=True)

READ, SAVE, REMOVE, CREATE = Action.READ, Action.SAVE, Action.REMOVE, Action.CREATE

#: policy, user, action, path -> whether it is allowed
DECISIONS: tuple[tuple[Policy, str | None, Action, bytes, bool], ...] = (
    # no flags: everyone who came in may do everything
    (OPEN, None, READ, b"/config", True),
    (OPEN, None, SAVE, b"/config", True),
    (OPEN, None, REMOVE, b"/config", True),
    (OPEN, None, CREATE, b"/", True),
    (OPEN, "alice", REMOVE, b"/bob/data/" + ID, True),
    # --append-only: all but removing, and locks
    (APPEND_ONLY, "alice", READ, b"/data/" + ID, True),
    (APPEND_ONLY, "alice", SAVE, b"/data/" + ID, True),
    (APPEND_ONLY, "alice", CREATE, b"/alice/", True),
    (APPEND_ONLY, "alice", REMOVE, b"/locks/" + ID, True),
    (APPEND_ONLY, None, REMOVE, b"/alice/locks/" + ID, True),
    (APPEND_ONLY, "alice", REMOVE, b"/data/" + ID, False),
    (APPEND_ONLY, "alice", REMOVE, b"/index/" + ID, False),
    (APPEND_ONLY, "alice", REMOVE, b"/keys/" + ID, False),
    (APPEND_ONLY, "alice", REMOVE, b"/snapshots/" + ID, False),
    (APPEND_ONLY, "alice", REMOVE, b"/config", False),
    (APPEND_ONLY, None, REMOVE, b"/data/" + ID, False),
    # --private-repos: below the folder of one's name, and nowhere else
    (PRIVATE, "alice", READ, b"/alice/config", True),
    (PRIVATE, "alice", CREATE, b"/alice/", True),
    (PRIVATE, "alice", CREATE, b"/alice/laptop/", True),
    (PRIVATE, "alice", REMOVE, b"/alice/laptop/data/" + ID, True),
    (PRIVATE, "alice", CREATE, b"/", False),
    (PRIVATE, "alice", READ, b"/config", False),
    (PRIVATE, "alice", READ, b"/data/", False),
    (PRIVATE, "alice", READ, b"/bob/config", False),
    (PRIVATE, "alice", SAVE, b"/bob/alice/data/" + ID, False),
    (PRIVATE, "alice", READ, b"/Alice/config", False),
    (PRIVATE, "alice", READ, b"/alice2/config", False),
    (PRIVATE, "alice2", READ, b"/alice/config", False),
    (PRIVATE, "alice", READ, b"/%61lice/config", True),
    (PRIVATE, "müller", READ, "/müller/config".encode(), True),
    (PRIVATE, "müller", READ, b"/m%C3%BCller/config", True),
    (PRIVATE, "müller", READ, b"/mu%CC%88ller/config", False),
    (PRIVATE, None, READ, b"/config", False),
    (PRIVATE, None, READ, b"/alice/config", False),
    (PRIVATE, "", READ, b"/config", False),
    # both
    (BOTH, "alice", SAVE, b"/alice/data/" + ID, True),
    (BOTH, "alice", REMOVE, b"/alice/locks/" + ID, True),
    (BOTH, "alice", REMOVE, b"/alice/data/" + ID, False),
    (BOTH, "alice", REMOVE, b"/bob/locks/" + ID, False),
)


class PolicyTests(SynchronousTestCase):
    """L{Policy.decide}."""

    def test_table(self) -> None:
        """Each row is allowed or refused; a refusal has a reason, which names nobody's repository."""
        for policy, user, action, path, allowed in DECISIONS:
            decision = policy.decide(user, action, parse_target(path))
            self.assertEqual(allowed, decision.allowed, f"{policy} {user} {action} {path!r}")
            self.assertEqual(allowed, decision.reason == "")
            self.assertNotIn("bob", decision.reason)
