"""
One canonical path: however a request spells it, what the store is asked for is what the policy was asked about.

Bytes go to the real channel; policy and store note what they are asked. C{HYPOTHESIS_PROFILE=nightly} tries 10,000 spellings.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Action, Decision, Policy
from resticserver.access.policyfile import parse_policy
from resticserver.errors import NotFound
from resticserver.targets import Target

from ..support.memory import Bench

settings.register_profile("quick", max_examples=400)
settings.register_profile("nightly", max_examples=10_000)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
by_chance = settings(PROFILE, deadline=None, database=None, suppress_health_check=list(HealthCheck))

ID = b"0123456789abcdef" * 4

#: Pieces of which paths are made, good ones and tricks.
SEGMENTS = st.one_of(
    st.sampled_from(
        (
            *(b"alice", b"bob", b"data", b"config", b"locks", b"keys", ID, b"", b".", b"..", b"a b", b"-", b".tmp"),
            *(b".rest-server", b"\xff", b"\x00", b"..\\bob", b"a/b", b"%2e%2e", b";", b"?", b"#x", b"Alice", b"ALICE"),
            *(b"alice\x00", b"\xc0\xae\xc0\xae", b"alice.", b"alice "),
            *(text.encode() for text in ("m\u00fcller", "mu\u0308ller", "\uff0e\uff0e", "\u2215", "a\u2044b")),
        )
    ),
    st.binary(max_size=6),
)


@st.composite
def paths(draw: st.DrawFn) -> bytes:
    """A request target: segments in any spelling, with any slashes."""
    segments = draw(st.lists(SEGMENTS, max_size=6))
    spelled = []
    for segment in segments:
        how = draw(st.integers(0, 4))
        if how == 0:
            segment = b"".join(b"%%%02x" % byte for byte in segment)
        elif how == 1:
            segment = b"".join(b"%%%02X" % byte if draw(st.booleans()) else b"%c" % byte for byte in segment)
        elif how == 2:
            segment = quote_from_bytes(segment, safe="").encode()
        elif how == 3:
            segment = quote_from_bytes(quote_from_bytes(segment, safe="").encode(), safe="").encode()
        spelled.append(segment)
    start = draw(st.sampled_from([*[b"/"] * 4, b"//", b"", b"http://other/", b"/./", b"/../", b"\\"]))
    path = (
        start
        + draw(st.sampled_from([b"/", b"/", b"/", b"//", b"\\"])).join(spelled)
        + draw(st.sampled_from([b"", b"/", b"?create=true"]))
    )
    # What would end the request line or its fields is the parser's business, not the path's.
    return bytes(byte for byte in path if byte > 32 and byte != 127) or b"/"


class SpyPolicy:
    """Allows everything and notes it."""

    def __init__(self) -> None:
        self.asked: list[Target] = []

    def decide(self, user: str | None, action: Action, target: Target) -> Decision:
        """Yes."""
        self.asked.append(target)
        return Decision(True)

    def bandwidth_of(self, user: str | None, repository: tuple[str, ...]) -> None:
        """No limits."""

    def may_delete_repositories(self) -> bool:
        """Yes."""
        return True

    def delete_delay_of(self, user: str | None, repository: tuple[str, ...]) -> float:
        """Nothing is kept."""
        return 0


class SpyStore:
    """Has nothing, and notes which repository it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], str, str]] = []

    def __getattr__(self, verb: str) -> Any:
        def ask(repository: tuple[str, ...], kind: Any = "", name: Any = "", *rest: Any, **more: Any) -> Any:
            kind, name = (word if isinstance(word, str) else "" for word in (kind, name))
            self.asked.append((repository, kind, name))
            raise NotFound()

        return ask


class SpellingTests(SynchronousTestCase):
    """Every way of writing a path."""

    @by_chance
    @given(paths(), st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE"]))
    def test_store_and_policy_agree(self, path: bytes, method: bytes) -> None:
        """
        The store is asked once at most, for what the policy was asked about; and that is what the path says when
        it is decoded once, folder by folder: it neither climbs nor hides a slash.
        """
        bench = self.bench
        policy, store = SpyPolicy(), SpyStore()
        bench.api._policy, bench.api._store = policy, store
        connection = bench.connect()
        connection.send(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        connection.lose()
        self.assertLessEqual(len(store.asked), 1)
        self.assertLessEqual(len(policy.asked), 1)
        if not store.asked:
            return
        (target,) = policy.asked
        repository, kind, name = store.asked[0]
        self.assertEqual(target.repository, repository)
        self.assertEqual((target.type, target.name if name else name), (kind, name))
        raw = path.partition(b"?")[0]
        if not raw.startswith(b"/"):
            raw = b"/" + raw.partition(b"://")[2].partition(b"/")[2]
        folders = [unquote_to_bytes(segment).decode() for segment in raw[1:].split(b"/")]
        self.assertEqual(tuple(folders[: len(repository)]), repository)
        self.assertEqual(os.path.normpath(os.path.join("/data", *repository)), "/".join(["/data", *repository]))
        for folder in repository:
            self.assertNotIn("/", folder)
            self.assertNotIn(folder, ("", ".", ".."))

    @by_chance
    @given(paths(), st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE"]))
    def test_private(self, path: bytes, method: bytes) -> None:
        """With alice's own folder granted and nothing else, no spelling reaches a repository outside of it."""
        grants = parse_policy(
            "[[rule]]\nusers = ['alice']\nrepositories = ['alice', 'alice/**']\nrights = 'full'\ncreate = true"
        )
        for policy in (Policy(private_repos=True), Policy(grants=grants)):
            store = SpyStore()
            self.bench.api._policy, self.bench.api._store = policy, store
            self.bench.api._authentication = Alice()
            connection = self.bench.connect()
            connection.send(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            connection.lose()
            for repository, _, _ in store.asked:
                self.assertEqual("alice", repository[0])

    def setUp(self) -> None:
        self.bench = Bench(self.mktemp())


class Alice:
    """Everyone is alice."""

    async def authenticate(self, request: object) -> str:
        """Alice."""
        return "alice"
