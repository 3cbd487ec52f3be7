"""
Policy files and htpasswd files of any content: the result is rules or users, or an error that says what is wrong, never another
exception. C{HYPOTHESIS_PROFILE=nightly} tries much more.
"""

from __future__ import annotations

import os
import re

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.htpasswd import check_password, parse_htpasswd
from resticserver.access.policy import Action, Policy
from resticserver.access.policyfile import PolicyError, parse_policy
from resticserver.targets import Kind, Target

from ..support.htpasswd import bcrypt_line, sha_line

by_chance = settings(
    max_examples=20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 300,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

POLICY = """
default = "read"

[groups]
office = ["alice", "bob"]

[[rule]]
users = ["@office", "carol"]
repositories = ["{user}", "{user}/*", "**", "/"]
rights = "full"
create = true
delete-repository = true
quota = "500GiB"
max-objects = 100
delete-delay = "30d"
trash-counts = false
comment = "x"

[users.alice]
quota = 1000

[users."*"]
max-objects = 0
"""

#: Values of every type that TOML has, some of them right somewhere.
VALUES = st.sampled_from(
    (
        *(
            '"alice"',
            '"@office"',
            '"*"',
            '""',
            '"full"',
            '"none"',
            '"500GiB"',
            '"-1"',
            '"30d"',
            '"9999999999d"',
            "'{user}'",
        ),
        *(
            "true",
            "false",
            "0",
            "-1",
            "1e400",
            "nan",
            "-inf",
            "3.5",
            "2026-11-27",
            "2026-02-30",
            "07:32:00",
            "9" * 5000,
        ),
        *(f"0x{'f' * 5000}", f"0b{'1' * 20_000}", "[]", '["alice"]', '["**", "{user}/**/x"]', "[1]", '[["x"]]', "{}"),
        *('{quota = "1"}', '["{other}"]', '["a//b"]', '[".."]', '"\\u0000"', '"\\U00110000"', '"' + "x" * 3000 + '"'),
        *("[" * 2000 + "]" * 2000, "99999999999999999999999999", '"99999999999999999999999TiB"', '"1.5PiB"'),
    )
)
KEYS = st.sampled_from(
    (
        *(
            "default",
            "users",
            "repositories",
            "rights",
            "create",
            "delete-repository",
            "quota",
            "max-objects",
            "comment",
        ),
        *("delete-delay", "trash-counts", "unknown", "rule", "groups", '"*"', '""', "groups.a", "users.alice.quota"),
    )
)
LINES = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES),
    st.sampled_from(
        ("[[rule]]", "[groups]", "[users]", "[users.bob]", '[users."a b"]', "[rule]", "[default]", "", "[", "]]")
    ),
    st.text(max_size=20),
)

ACTIONS = [(action, kind) for action in Action for kind in Kind]


def mutated(draw: st.DrawFn, text: str, letters: st.SearchStrategy[str]) -> str:
    """A text with some changes."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 2, 10])))
        text = text[:start] + draw(letters) + text[end:]
    return text


@st.composite
def policies(draw: st.DrawFn) -> str:
    """Text that is nearly a policy, of lines that some policies have, or nothing of the sort."""
    match draw(st.integers(0, 4)):
        case 0:
            return draw(st.text(max_size=200))
        case 1:
            return "\n".join(draw(st.lists(LINES, max_size=12)))
        case 2:
            return mutated(draw, POLICY, st.text(max_size=3))
    # A right one with one value replaced.
    lines = POLICY.splitlines()
    place = draw(st.sampled_from([n for n, line in enumerate(lines) if " = " in line]))
    lines[place] = f"{lines[place].partition(' = ')[0]} = {draw(VALUES)}"
    return "\n".join(lines)


class PolicyFuzzTests(SynchronousTestCase):
    """L{parse_policy}."""

    @by_chance
    @given(policies())
    @example(POLICY)
    @example("default = 0x" + "f" * 5000)
    @example("default = " + "9" * 5000)
    def test_rules_or_an_error(self, text: str) -> None:
        """Whatever is in the file: rules that can be asked anything, or one error of one kind, in one line or some."""
        try:
            policy = Policy(grants=parse_policy(text))
        except PolicyError as error:
            self.assertTrue(str(error))
            return
        for user in ("alice", "bob", None):
            for repository in ((), ("alice",), ("alice", "laptop")):
                for action, kind in ACTIONS:
                    decision = policy.decide(user, action, Target(repository, kind, "data", "0" * 64))
                    self.assertIn(decision.allowed, (True, False))
                self.assertGreaterEqual(policy.delete_delay_of(user, repository), 0)
                policy.limit_of_repository(user, repository)
                policy.trash_counts(user, repository)
        policy.limit_of_user("alice")
        policy.shortest_delete_delay()
        policy.has_limits()


SALT = "abcdefgh"
ENTRIES = (
    bcrypt_line("alice", "secret").strip(),
    sha_line("bob", "secret").strip(),
    f"carol:$apr1${SALT}$" + "x" * 22,
    f"dave:$5$rounds=1000${SALT}$" + "x" * 43,
    f"eve:$6$rounds=1000${SALT}$" + "x" * 86,
    "# a comment",
    "frank:plain",
)
#: What is quick enough to be checked in a test.
_QUICK = re.compile(r"\{SHA\}|\$2[aby]\$04\$|\$apr1\$|\$[56]\$rounds=1\d{3}\$")


@st.composite
def htpasswd_files(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly an htpasswd file, or nothing of the sort."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    letters = st.text(alphabet="$./:{}SHA2aby01569=rounds,\n\r\t \x00é\ufeff\u2028", max_size=3) | st.text(max_size=2)
    lines = []
    for entry in draw(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=4)):
        lines.append(mutated(draw, entry, letters) if draw(st.booleans()) else entry)
    data = draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n"))).join(lines).encode("utf-8", "surrogatepass")
    return data if draw(st.booleans()) else data + draw(st.binary(max_size=5))


class HtpasswdFuzzTests(SynchronousTestCase):
    """L{parse_htpasswd}, and that what it takes can be checked."""

    @by_chance
    @given(htpasswd_files(), st.binary(max_size=80))
    @example("\n".join(ENTRIES).encode(), b"secret")
    def test_users_and_warnings(self, data: bytes, password: bytes) -> None:
        """Each line is a user, a warning or nothing; a password can be compared with each hash."""
        users, warnings = parse_htpasswd(data)
        self.assertLessEqual(len(users) + len(warnings), data.count(b"\n") + 1)
        for user, hashed in users.items():
            self.assertTrue(user and ":" not in user)
            if _QUICK.match(hashed):
                self.assertIn(check_password(hashed, password), (True, False))
        for warning in warnings:
            self.assert_no_hash(warning, data)

    def assert_no_hash(self, warning: str, data: bytes) -> None:
        """A warning names a line, and shows nothing of a hash."""
        self.assertIn("htpasswd", warning)
        said = warning.partition(": '")[0].partition(" entry for ")
        # The name of a user may look like a hash.
        self.assertNotIn("x" * 20, said[0] + said[2].partition(". (")[2])

    def test_right(self) -> None:
        """Unchanged entries are right, so that the test above is about something."""
        users, warnings = parse_htpasswd("\n".join(ENTRIES))
        self.assertLessEqual({"alice", "bob"}, set(users))
        self.assertTrue(check_password(users["alice"], b"secret"))
        self.assertTrue(check_password(users["bob"], b"secret"))
        self.assertEqual(1, len([warning for warning in warnings if "frank" in warning]))
