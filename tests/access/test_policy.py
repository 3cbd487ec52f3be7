"""
Who may do what: the whole decision as a table that an administrator can read, and the rules that make it.

Each line of the table: user, method, path, and what comes of it: C{yes}, C{no}, C{404} (the path names nothing) or C{405}
(no such method there). C{ID} stands for an object's name, C{-} for nobody.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import ACTIONS, Action, Grants, Policy, RepositoryPattern, Right, Rule
from resticserver.access.policyfile import parse_policy
from resticserver.errors import NotFound
from resticserver.sizes import UNLIMITED, Limit
from resticserver.targets import parse_target

ID = "0123456789abcdef" * 4

OFFICE = """
[groups]
admins = ["root"]
office = ["bob", "carol"]

[[rule]]
users = ["@admins"]
repositories = ["**"]
rights = "full"
create = true
delete-repository = true

[[rule]]
users = ["*"]
repositories = ["{user}", "{user}/*"]
rights = "append"
create = true

[[rule]]
users = ["@office"]
repositories = ["shared/archive-*"]
rights = "read"

[[rule]]
users = ["@office"]
repositories = ["shared/*"]
rights = "full"

[[rule]]
users = ["carol"]
repositories = ["shared/hidden"]
rights = "append"

[[rule]]
users = ["auditor"]
repositories = ["/", "**"]
rights = "read"
"""

READ_ALL = """
default = "read"

[[rule]]
users = ["mallory"]
repositories = ["**"]
rights = "none"

[[rule]]
users = ["alice"]
repositories = ["alice"]
rights = "full"
"""

#: flags and policy -> the lines
TABLE: tuple[tuple[str, Policy, str], ...] = (
    (
        "no flags: whoever came in may do everything, but for deleting a repository",
        Policy(),
        """
        -      HEAD    /config              yes
        -      GET     /config              yes
        -      POST    /config              yes
        -      DELETE  /config              yes
        -      POST    /                    yes
        -      DELETE  /                    no
        -      GET     /                    405
        -      PUT     /                    405
        -      GET     /data/               yes
        -      HEAD    /data/               405
        -      POST    /data/ID             yes
        -      DELETE  /data/ID             yes
        -      PATCH   /data/ID             405
        -      GET     /data/foobar         404
        -      GET     /data                404
        -      GET     /../config           404
        -      GET     /a%2fb/config        404
        -      GET     /a//config           404
        alice  DELETE  /bob/data/ID         yes
        alice  GET     /a/b/data/           yes
        alice  GET     /a/b/c/data/         404
        """,
    ),
    (
        "--append-only: all but removing, and locks",
        Policy(append_only=True),
        """
        alice  GET     /data/ID             yes
        alice  HEAD    /data/ID             yes
        alice  POST    /data/ID             yes
        alice  POST    /config              yes
        alice  POST    /alice/              yes
        alice  POST    /locks/ID            yes
        alice  DELETE  /locks/ID            yes
        -      DELETE  /alice/locks/ID      yes
        alice  DELETE  /data/ID             no
        alice  DELETE  /index/ID            no
        alice  DELETE  /keys/ID             no
        alice  DELETE  /snapshots/ID        no
        alice  DELETE  /config              no
        -      DELETE  /data/ID             no
        alice  DELETE  /alice/              no
        """,
    ),
    (
        "--read-only: reading, and locks",
        Policy(read_only=True),
        """
        alice  GET     /config              yes
        alice  GET     /snapshots/          yes
        alice  HEAD    /data/ID             yes
        alice  GET     /data/ID             yes
        alice  POST    /locks/ID            yes
        alice  DELETE  /locks/ID            yes
        alice  POST    /data/ID             no
        alice  POST    /keys/ID             no
        alice  POST    /config              no
        alice  POST    /alice/              no
        alice  DELETE  /snapshots/ID        no
        alice  DELETE  /config              no
        """,
    ),
    (
        "--private-repos: below the folder of one's name, and nowhere else",
        Policy(private_repos=True),
        """
        alice   GET     /alice/config        yes
        alice   POST    /alice/              yes
        alice   POST    /alice/laptop/       yes
        alice   DELETE  /alice/laptop/data/ID  yes
        alice   POST    /                    no
        alice   GET     /config              no
        alice   GET     /data/               no
        alice   GET     /bob/config          no
        alice   POST    /bob/alice/data/ID   no
        alice   GET     /Alice/config        no
        alice   GET     /alice2/config       no
        alice2  GET     /alice/config        no
        alice   GET     /%61lice/config      yes
        alice   GET     /alice/../bob/config 404
        alice   GET     /alice/%2e%2e/config 404
        müller  GET     /müller/config       yes
        müller  GET     /m%C3%BCller/config  yes
        müller  GET     /mu%CC%88ller/config no
        -       GET     /config              no
        -       GET     /alice/config        no
        """,
    ),
    (
        "--private-repos --append-only",
        Policy(private_repos=True, append_only=True),
        """
        alice  POST    /alice/data/ID       yes
        alice  DELETE  /alice/locks/ID      yes
        alice  DELETE  /alice/data/ID       no
        alice  DELETE  /bob/locks/ID        no
        """,
    ),
    (
        "--append-only --read-only: the stricter wins",
        Policy(append_only=True, read_only=True),
        """
        alice  POST    /data/ID             no
        alice  POST    /locks/ID            yes
        alice  DELETE  /data/ID             no
        alice  GET     /data/ID             yes
        """,
    ),
    (
        "the office's policy",
        Policy(grants=parse_policy(OFFICE)),
        """
        root     GET     /config               yes
        root     POST    /                     yes
        root     DELETE  /                     yes
        root     DELETE  /bob/laptop/          yes
        root     DELETE  /bob/laptop/data/ID   yes
        root     POST    /new/                 yes
        alice    POST    /alice/               yes
        alice    POST    /alice/laptop/        yes
        alice    POST    /alice/laptop/data/ID yes
        alice    GET     /alice/laptop/data/   yes
        alice    DELETE  /alice/laptop/locks/ID  yes
        alice    DELETE  /alice/laptop/data/ID no
        alice    DELETE  /alice/laptop/config  no
        alice    DELETE  /alice/laptop/        no
        alice    GET     /config               no
        alice    POST    /                     no
        alice    GET     /bob/config           no
        alice    GET     /bob/laptop/config    no
        alice    GET     /shared/docs/config   no
        alice    POST    /shared/docs/locks/ID no
        alice    GET     /shared/config        no
        bob      GET     /shared/docs/config   yes
        bob      DELETE  /shared/docs/data/ID  yes
        bob      DELETE  /shared/docs/config   yes
        bob      POST    /shared/docs/         no
        bob      DELETE  /shared/docs/         no
        bob      GET     /shared/config        no
        bob      GET     /shared/archive-2020/data/ID  yes
        bob      POST    /shared/archive-2020/locks/ID  yes
        bob      DELETE  /shared/archive-2020/locks/ID  yes
        bob      POST    /shared/archive-2020/data/ID  no
        bob      DELETE  /shared/archive-2020/data/ID  no
        bob      POST    /shared/archive-2020/  no
        bob      GET     /shared/archive/config  yes
        bob      DELETE  /shared/archive/data/ID  yes
        carol    DELETE  /shared/hidden/data/ID  yes
        carol    POST    /carol/pc/            yes
        carol    GET     /bob/pc/config        no
        auditor  GET     /config               yes
        auditor  GET     /bob/pc/data/ID       yes
        auditor  POST    /bob/pc/locks/ID      yes
        auditor  POST    /bob/pc/data/ID       no
        auditor  DELETE  /bob/pc/data/ID       no
        auditor  POST    /bob/pc/              no
        auditor  POST    /auditor/own/         yes
        -        GET     /config               no
        -        GET     /alice/config         no
        -        POST    /alice/               no
        """,
    ),
    (
        "the office's policy, --append-only: root may not delete either",
        Policy(append_only=True, grants=parse_policy(OFFICE)),
        """
        root     DELETE  /bob/laptop/          no
        root     DELETE  /bob/laptop/data/ID   no
        root     DELETE  /bob/laptop/locks/ID  yes
        root     POST    /bob/laptop/data/ID   yes
        bob      DELETE  /shared/docs/data/ID  no
        alice    GET     /bob/config           no
        """,
    ),
    (
        "the office's policy, --private-repos: what is shared is closed",
        Policy(private_repos=True, grants=parse_policy(OFFICE)),
        """
        bob      GET     /shared/docs/config   no
        bob      POST    /bob/pc/data/ID       yes
        root     GET     /bob/pc/config        no
        root     DELETE  /root/pc/             yes
        auditor  GET     /bob/pc/config        no
        """,
    ),
    (
        "the office's policy, --read-only",
        Policy(read_only=True, grants=parse_policy(OFFICE)),
        """
        root     POST    /new/                 no
        root     DELETE  /old/                 no
        root     GET     /new/config           yes
        bob      POST    /shared/docs/data/ID  no
        bob      POST    /shared/docs/locks/ID yes
        alice    GET     /bob/config           no
        """,
    ),
    (
        "a default of read",
        Policy(grants=parse_policy(READ_ALL)),
        """
        bob      GET     /alice/data/ID        yes
        bob      POST    /alice/locks/ID       yes
        bob      POST    /alice/data/ID        no
        bob      POST    /bob/                 no
        alice    DELETE  /alice/data/ID        yes
        alice    POST    /alice/               no
        alice    DELETE  /alice/pc/data/ID     no
        alice    GET     /alice/pc/data/ID     yes
        mallory  GET     /alice/data/ID        no
        mallory  GET     /config               no
        """,
    ),
    (
        "an empty policy: nobody may do anything",
        Policy(grants=parse_policy("")),
        """
        alice    GET     /alice/config         no
        alice    POST    /alice/locks/ID       no
        alice    POST    /alice/               no
        """,
    ),
)


def rows() -> list[tuple[str, Policy, str | None, str, str, str]]:
    """The table's lines: what they are about, policy, user, method, path, outcome."""
    found = []
    for about, policy, lines in TABLE:
        for line in lines.strip().splitlines():
            user, method, path, outcome = line.split()
            found.append((about, policy, None if user == "-" else user, method, path, outcome))
    return found


def outcome_of(policy: Policy, user: str | None, method: str, path: str) -> str:
    """What comes of a request."""
    try:
        target = parse_target(path.replace("ID", ID).encode())
    except NotFound:
        return "404"
    action = ACTIONS[target.kind].get(method.encode())
    if action is None:
        return "405"
    return "yes" if policy.decide(user, action, target).allowed else "no"


class PolicyTests(SynchronousTestCase):
    """L{Policy.decide}."""

    def test_table(self) -> None:
        """Every line, of which there are many."""
        lines = rows()
        self.assertGreaterEqual(len(lines), 120)
        for about, policy, user, method, path, outcome in lines:
            self.assertEqual(outcome, outcome_of(policy, user, method, path), f"{about}: {user} {method} {path}")

    def test_refusals_say_why(self) -> None:
        """A refusal has a reason, which names nobody's repository; every decision names its rule."""
        for about, policy, user, method, path, outcome in rows():
            if outcome in ("yes", "no"):
                target = parse_target(path.replace("ID", ID).encode())
                decision = policy.decide(user, ACTIONS[target.kind][method.encode()], target)
                self.assertEqual(decision.allowed, decision.reason == "", about)
                self.assertTrue(decision.rule, about)
                for folder in target.repository:
                    self.assertNotIn(folder, decision.reason.split(), about)

    def test_who_may_delete_repositories(self) -> None:
        """Only a rule of a file grants it."""
        self.assertFalse(Policy().may_delete_repositories())
        self.assertFalse(Policy(grants=parse_policy(READ_ALL)).may_delete_repositories())
        self.assertTrue(Policy(grants=parse_policy(OFFICE)).may_delete_repositories())

    def test_flags_only_take_away(self) -> None:
        """Whatever a policy with a flag allows, it allows without."""
        paths = ["/", "/config", "/data/", f"/data/{ID}", f"/locks/{ID}"]
        targets = [
            parse_target(f"{folder}{path}".encode()) for folder in ("", "/bob", "/shared/docs") for path in paths
        ]
        for grants in (None, parse_policy(OFFICE), parse_policy(READ_ALL)):
            for user in (None, "root", "alice", "bob"):
                for target in targets:
                    for action in Action:
                        free = Policy(grants=grants).decide(user, action, target).allowed
                        for flags in ((True, False, False), (False, True, False), (False, False, True)):
                            strict = Policy(*flags, grants=grants).decide(user, action, target).allowed
                            self.assertTrue(free or not strict)


#: pattern, user, repository -> whether it matches
PATTERNS = (
    ("/", "a", "", True),
    ("/", "a", "x", False),
    ("*", "a", "", False),
    ("*", "a", "x", True),
    ("*", "a", "x/y", False),
    ("*/*", "a", "x/y", True),
    ("x/*", "a", "x", False),
    ("**", "a", "", True),
    ("**", "a", "x/y/z", True),
    ("x/**", "a", "x", True),
    ("x/**", "a", "x/y/z", True),
    ("x/**/z", "a", "x/z", True),
    ("x/**/z", "a", "x/y/q/z", True),
    ("x/**/z", "a", "x/y", False),
    ("lap?op", "a", "laptop", True),
    ("lap?op", "a", "lapop", False),
    ("lap*", "a", "lap", True),
    ("[ab]", "a", "a", False),
    ("[ab]", "a", "[ab]", True),
    ("a.c", "a", "abc", False),
    ("{user}", "alice", "alice", True),
    ("{user}", "alice", "bob", False),
    ("{user}", "a.c", "abc", False),
    ("{user}", "a*", "abc", False),
    ("{user}-*", "alice", "alice-pc", True),
    ("{user}-*", "alice", "alicepc", False),
    ("home-{user}", "alice", "home-alice", True),
    ("/{user}/", "alice", "alice", True),
    ("Straße", "a", "straße", False),
    ("x", "a", "x\n", False),
)


class RepositoryPatternTests(SynchronousTestCase):
    """L{RepositoryPattern}."""

    def test_table(self) -> None:
        """Every line."""
        for pattern, user, repository, matches in PATTERNS:
            folders = tuple(repository.split("/")) if repository else ()
            found = RepositoryPattern(pattern).matches(user, folders)
            self.assertEqual(matches, found, f"{pattern} {user} {repository!r}")

    def test_no_pattern(self) -> None:
        """What names no folders."""
        for text in ("", "//", "a//b", "..", "a/../b", "./a"):
            self.assertRaises(ValueError, RepositoryPattern, text)

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1))
    def test_a_user_is_never_a_wildcard(self, name: str) -> None:
        """C{{user}} matches that name and no other."""
        pattern = RepositoryPattern("{user}")
        self.assertTrue(pattern.matches(name, (name,)))
        self.assertFalse(pattern.matches(name, (name + "x",)))
        self.assertFalse(pattern.matches(name, ("x" + name,)))


class LimitsTests(SynchronousTestCase):
    """Quotas: which limit holds for what."""

    def rule(self, users: str, pattern: str, limit: Limit, number: int) -> Rule:
        """A rule with a limit."""
        return Rule(frozenset(users.split()), (RepositoryPattern(pattern),), Right.FULL, limit=limit, number=number)

    def policy(self, **user_limits: Limit) -> Policy:
        """A policy with three rules."""
        rules = (
            self.rule("root", "**", UNLIMITED, 1),
            self.rule("alice bob", "shared", Limit(500, 100), 2),
            self.rule("*", "{user}/**", Limit(100), 3),
        )
        return Policy(grants=Grants(rules, user_limits=user_limits))

    def test_has_limits(self) -> None:
        """Whether there are any: of a user, or in a rule."""
        for policy, has in (
            (Policy(), False),
            (Policy(read_only=True, append_only=True), False),
            (Policy(grants=Grants(())), False),
            (Policy(grants=Grants((self.rule("*", "**", UNLIMITED, 1),))), False),
            (Policy(grants=Grants((self.rule("*", "**", Limit(0), 1),))), True),
            (Policy(grants=Grants((self.rule("*", "**", Limit(objects=0), 1),))), True),
            (Policy(grants=Grants((), user_limits={"alice": Limit(0)})), True),
        ):
            self.assertEqual(has, policy.has_limits())

    def test_of_user(self) -> None:
        """A user's own entry, or everyone's; a user's own is not added to it and may be larger or nothing at all."""
        policy = self.policy(alice=Limit(0), carol=Limit(None, 5), **{"*": Limit(10)})
        for name, limit in (
            ("alice", Limit(0)),
            ("carol", Limit(None, 5)),
            ("bob", Limit(10)),
            ("Alice", Limit(10)),
        ):
            self.assertEqual(limit, policy.limit_of_user(name))
        for policy in (Policy(), self.policy(alice=Limit(1))):
            self.assertEqual(UNLIMITED, policy.limit_of_user("bob"))

    def test_of_repository(self) -> None:
        """That of the rule that decides for this user: the first that fits, and no other."""
        policy = self.policy()
        for user, path, limit in (
            ("root", "shared", UNLIMITED),
            ("root", "alice", UNLIMITED),
            ("alice", "shared", Limit(500, 100)),
            ("bob", "shared", Limit(500, 100)),
            ("carol", "shared", UNLIMITED),
            ("alice", "alice", Limit(100)),
            ("alice", "alice/laptop", Limit(100)),
            ("alice", "bob", UNLIMITED),
            ("alice", "", UNLIMITED),
            (None, "shared", UNLIMITED),
            (None, "alice", UNLIMITED),
        ):
            repository = tuple(path.split("/")) if path else ()
            self.assertEqual(limit, policy.limit_of_repository(user, repository), (user, path))
        self.assertEqual(UNLIMITED, Policy().limit_of_repository("alice", ("alice",)))
