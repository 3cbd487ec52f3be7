"""
The policy file: what is taken, what is refused with which words, and that a broken one changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import resticserver
from resticserver.access.policy import Action, Policy, Right
from resticserver.access.policyfile import PolicyError, PolicyFile, parse_policy
from resticserver.errors import StartError
from resticserver.sizes import Limit
from resticserver.targets import parse_target

#: what is wrong -> a part of what is said
WRONG = (
    ("default = 'sometimes'", "default: 'sometimes' is not a right; the rights are none, read, append, full"),
    ("default = 1", "default: 1 is not a right"),
    ("rights = 'full'", "rights: unknown key"),
    ("= 3", "line 1"),
    ("groups = 3", "groups: must be a table"),
    ("[groups]\noffice = 'alice'", "groups.office: must be a list of strings"),
    ("[groups]\noffice = ['a/b']", "groups.office: 'a/b' is not a user name"),
    ("[groups]\noffice = ['data']", "groups.office: 'data' is not a user name"),
    # a rule for a group of groups would be for nobody, and if it takes away that is a hole
    ("[groups]\noffice = ['@all']", "groups.office: '@all' is not a user name"),
    ("a = " + "[" * 5000, "nested too deeply"),
    ("rule = 3", "each written as [[rule]]"),
    ("[rule]\nusers = ['*']", "each written as [[rule]]"),
    ("[[rule]]\nrights = 'read'\nrepositories = ['*']", "rule 1: users is missing"),
    ("[[rule]]\nusers = ['*']\nrights = 'read'", "rule 1: repositories is missing"),
    ("[[rule]]\nusers = ['*']\nrepositories = ['*']", "rule 1: rights is missing"),
    ("[[rule]]\nusers = '*'\nrepositories = ['*']\nrights = 'read'", "rule 1: users: must be a list of strings"),
    ("[[rule]]\nusers = ['@x']\nrepositories = ['*']\nrights = 'read'", "rule 1: users: unknown group 'x'"),
    ("[[rule]]\nusers = ['a b']\nrepositories = ['*']\nrights = 'read'", "rule 1: users: 'a b' is not a user name"),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['../x']\nrights = 'read'",
        "rule 1: repositories: '../x' is not a repository pattern",
    ),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['{usr}']\nrights = 'read'",
        "{user} is the only placeholder",
    ),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['']\nrights = 'read'",
        "rule 1: repositories: '' is not a repository pattern",
    ),
    ("[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'write'", "rule 1: rights: 'write' is not a right"),
    ("[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\ncreate = true", "rule 1: create: needs rights"),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'full'\ncreate = 'yes'",
        "rule 1: create: must be true or",
    ),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'append'\ndelete-repository = true",
        'rule 1: delete-repository: needs rights = "full"',
    ),
    ("[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\ncolour = 'red'", "rule 1: colour: unknown key"),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\nquota = '5 bananas'",
        "rule 1: quota: '5 bananas'",
    ),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\nquota = true",
        "rule 1: quota: True is not a size, such as 500GiB",
    ),
    ("[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\nmax-objects = -1", "rule 1: max-objects: -1"),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\nbandwidth = 'fast'",
        "rule 1: bandwidth: 'fast' is not a size",
    ),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\nbandwidth = 1000",
        "rule 1: bandwidth: 1000: must be at least 64K (bytes a second)",
    ),
    (
        "[[rule]]\nusers = ['*']\nrepositories = ['*']\nrights = 'read'\nbandwidth = true",
        "rule 1: bandwidth: True is not a size",
    ),
    ("users = ['alice']", "users: must be a table"),
    ("[users]\nalice = 3", "users.alice: must be a table"),
    ("[users.'a b']\nquota = '1T'", "users.a b: not a user name"),
    ("[users.alice]\nquotas = '1T'", "users.alice.quotas: unknown key"),
    ("[users.alice]\nquota = '-1'", "users.alice.quota: '-1' is not a size, such as 500GiB"),
)

GOOD = """
[groups]
office = ["alice", "bob"]

[[rule]]
comment = "their own"
users = ["@office", "carol"]
repositories = ["{user}/*"]
rights = "append"
create = true
quota = "500GiB"
max-objects = 1000

[users.alice]
quota = 1000000

[users."*"]
quota = "1TB"
"""


class ParseTests(SynchronousTestCase):
    """L{parse_policy}."""

    def test_good(self) -> None:
        """Groups are resolved, sizes are bytes."""
        grants = parse_policy(GOOD)
        (rule,) = grants.rules
        self.assertEqual({"alice", "bob", "carol"}, rule.users)
        self.assertEqual((Right.APPEND, True, False), (rule.right, rule.create, rule.delete_repository))
        self.assertEqual(Limit(500 << 30, 1000), rule.limit)
        self.assertEqual({"alice": Limit(1_000_000), "*": Limit(10**12)}, grants.user_limits)
        self.assertIs(Right.NONE, grants.default)

    def test_bandwidth(self) -> None:
        """By the rule that decides, with its number; without any there is nothing to look up."""
        rule = "[[rule]]\nusers = ['%s']\nrepositories = ['**']\nrights = 'full'\n%s\n"
        text = rule % ("alice", "bandwidth = '10M'") + rule % ("bob", "") + rule % ("*", "bandwidth = 1000000")
        policy = Policy(grants=parse_policy(text))
        self.assertEqual((1, 10 << 20), policy.bandwidth_of("alice", ("x",)))
        self.assertIsNone(policy.bandwidth_of("bob", ("x",)))
        self.assertEqual((3, 1_000_000), policy.bandwidth_of("carol", ()))
        self.assertIsNone(policy.bandwidth_of(None, ()))
        self.assertFalse(parse_policy(rule % ("alice", "")).limits_bandwidth)

    def test_wrong(self) -> None:
        """Each is refused with the key that it is about."""
        for text, said in WRONG:
            with self.assertRaises(PolicyError) as raised:
                parse_policy(text)
            self.assertIn(said, str(raised.exception), text)
            self.assertNotIn("\n", str(raised.exception))

    def test_example(self) -> None:
        """The example that is shipped is a policy."""
        example = Path(resticserver.__file__).parent.parent / "etc" / "policy.toml"
        if not example.exists():
            self.skipTest("the package is installed without its checkout")
        self.assertTrue(parse_policy(example.read_text(encoding="utf-8")).rules)


class PolicyFileTests(SynchronousTestCase):
    """L{PolicyFile}."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.write("default = 'read'")

    def write(self, text: str | bytes) -> None:
        """Put a new file into its place, as editors do."""
        new = self.path.with_suffix(".new")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(new, self.path)

    def loaded(self, flags: Policy | None = None) -> PolicyFile:
        """A policy that was read."""
        policy = PolicyFile(str(self.path), flags or Policy())
        policy.load()
        return policy

    def may(self, policy: PolicyFile, action: Action) -> bool:
        """Whether alice may do this to a pack."""
        return policy.decide("alice", action, parse_target(b"/data/" + b"0" * 64)).allowed

    def test_reload(self) -> None:
        """A changed file holds at the next look, and only then is it read."""
        policy = self.loaded()
        self.assertFalse(policy.reload_if_changed())
        self.assertEqual((True, False), (self.may(policy, Action.READ), self.may(policy, Action.SAVE)))
        self.write("default = 'full'")
        self.assertTrue(policy.reload_if_changed())
        self.assertTrue(self.may(policy, Action.SAVE))
        self.assertTrue(policy.reload_if_changed(force=True))

    def test_flags_stay(self) -> None:
        """A reload does not forget the flags."""
        policy = self.loaded(Policy(append_only=True))
        self.write("default = 'full'")
        self.assertTrue(policy.reload_if_changed())
        self.assertFalse(self.may(policy, Action.REMOVE))

    def test_broken_keeps_the_old_one(self) -> None:
        """Broken, not UTF-8 or gone: what held before holds; said once for each state of the file."""
        policy = self.loaded()
        for text in ("default = 'nonsense'", "[", b"\xff"):
            self.write(text)
            self.assertFalse(policy.reload_if_changed())
            self.assertTrue(self.may(policy, Action.READ))
            self.assertFalse(policy.reload_if_changed())
        self.path.unlink()
        self.assertFalse(policy.reload_if_changed())
        self.assertTrue(self.may(policy, Action.READ))
        self.write("default = 'none'")
        self.assertTrue(policy.reload_if_changed())
        self.assertFalse(self.may(policy, Action.READ))

    def test_start(self) -> None:
        """At the start the same is an error, with the file's name."""
        for text in ("default = 'nonsense'", b"\xff"):
            self.write(text)
            with self.assertRaises(StartError) as raised:
                self.loaded()
            self.assertIn(str(self.path), str(raised.exception))
        self.path.unlink()
        self.assertRaises(StartError, self.loaded)
