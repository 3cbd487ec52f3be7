"""
Names and paths: every spelling of a path is one canonical target or names nothing.
"""

from __future__ import annotations

import os.path
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import NotFound
from resticserver.names import OWN_FOLDERS, RESERVED, TYPES, is_folder_name, is_object_id, is_user_name
from resticserver.targets import Kind, Target, parse_target

ID = "0123456789abcdef" * 4
ID_BYTES = ID.encode()

#: What is tried out by chance stays the same for everyone but for the cases; no case is judged by its time.
by_chance = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def repository(*folders: str) -> Target:
    """The repository in these folders."""
    return Target(folders, Kind.REPOSITORY)


def config(*folders: str) -> Target:
    """Its config."""
    return Target(folders, Kind.CONFIG, "config", "config")


def listed(kind: str, *folders: str) -> Target:
    """One of its lists."""
    return Target(folders, Kind.LIST, kind)


def an_object(kind: str, *folders: str) -> Target:
    """The object C{ID} in it."""
    return Target(folders, Kind.OBJECT, kind, ID)


#: path -> what it names; None: nothing.
PATHS: tuple[tuple[bytes, Target | None], ...] = (
    # repositories
    (b"/", repository()),
    (b"/alice/", repository("alice")),
    (b"/alice/laptop/", repository("alice", "laptop")),
    (b"/alice/laptop/system/", None),
    (b"/alice", None),
    (b"/alice/laptop", None),
    (b"/with%20space/", repository("with space")),
    (b"/with space/", repository("with space")),
    (b"/m%C3%BCller/", repository("müller")),
    ("/müller/".encode(), repository("müller")),
    (b"/a+b/", repository("a+b")),
    (b"/100%25/", repository("100%")),
    (b"/%2561/", repository("%61")),
    (b"/%zz/", repository("%zz")),
    (b"/%/", repository("%")),
    (b"/...//", None),
    (b"/.../", repository("...")),
    (b"/.hidden/", repository(".hidden")),
    (b"/DATA/", repository("DATA")),
    (b"/a/DATA/", repository("a", "DATA")),
    (b"/database/", repository("database")),
    (b"/a:b/", repository("a:b")),
    (b"/a;b=c/", repository("a;b=c")),
    (b"/C:/", repository("C:")),
    # the config
    (b"/config", config()),
    (b"/alice/config", config("alice")),
    (b"/alice/laptop/config", config("alice", "laptop")),
    (b"/a/b/c/config", None),
    (b"/config/", None),
    (b"/config/x", None),
    (b"/config/" + ID_BYTES, None),
    (b"/Config", None),
    (b"/%63onfig", config()),
    (b"/config%00", None),
    (b"//config", None),
    # lists
    (b"/data/", listed("data")),
    (b"/index/", listed("index")),
    (b"/keys/", listed("keys")),
    (b"/locks/", listed("locks")),
    (b"/snapshots/", listed("snapshots")),
    (b"/alice/locks/", listed("locks", "alice")),
    (b"/alice/laptop/locks/", listed("locks", "alice", "laptop")),
    (b"/a/b/c/locks/", None),
    (b"/data", None),
    (b"/data//", None),
    (b"//data/", None),
    (b"/alice//data/", None),
    (b"/%64%61%74%61/", listed("data")),
    (b"/data%2f", None),
    (b"/data/./", None),
    (b"/data/../", None),
    # objects
    (b"/data/" + ID_BYTES, an_object("data")),
    (b"/index/" + ID_BYTES, an_object("index")),
    (b"/keys/" + ID_BYTES, an_object("keys")),
    (b"/locks/" + ID_BYTES, an_object("locks")),
    (b"/snapshots/" + ID_BYTES, an_object("snapshots")),
    (b"/alice/data/" + ID_BYTES, an_object("data", "alice")),
    (b"/alice/laptop/data/" + ID_BYTES, an_object("data", "alice", "laptop")),
    (b"/%64ata/%30" + ID_BYTES[1:], an_object("data")),
    (b"/data/" + ID_BYTES + b"/", None),
    (b"/data/01/" + ID_BYTES, None),
    (b"/data/" + ID_BYTES.upper(), None),
    (b"/data/" + ID_BYTES[:-1], None),
    (b"/data/" + ID_BYTES + b"0", None),
    (b"/data/" + ID_BYTES[:-1] + b"g", None),
    (b"/data/" + ID_BYTES + b"%0a", None),
    (b"/data/" + ID_BYTES + b"\n", None),
    (b"/data/" + ID_BYTES + b"%00", None),
    (b"/data/" + "\N{FULLWIDTH DIGIT ZERO}".encode() + ID_BYTES[1:], None),
    (b"/data/foobar", None),
    (b"/data/config", None),
    (b"/other/" + ID_BYTES, None),
    (b"/" + ID_BYTES, None),
    (b"/data/data/" + ID_BYTES, None),
    (b"/data/alice/", None),
    # ways out of the directory, and into what is the server's own
    (b"/../", None),
    (b"/./", None),
    (b"/alice/../bob/", None),
    (b"/alice/./", None),
    (b"/../../etc/passwd", None),
    (b"/alice/../data/" + ID_BYTES, None),
    (b"/%2e%2e/", None),
    (b"/%2E/", None),
    (b"/.%2e/data/", None),
    (b"/data/..%2f" + ID_BYTES, None),
    (b"/alice%2flaptop/", None),
    (b"/alice%2Fdata/", None),
    (b"/%2fetc/", None),
    (b"/alice%5claptop/", None),
    (b"/alice\\laptop/", None),
    (b"/..\\..\\etc/", None),
    (b"/..%5c/", None),
    (b"/alice%00/", None),
    (b"/alice\x00/", None),
    (b"/%00/", None),
    (b"/a%0ab/", None),
    (b"/a%0d%0ab/", None),
    (b"/a%09b/", None),
    (b"/a%7fb/", None),
    (b"/a%1bb/", None),
    (b"/%ff/", None),
    (b"/\xff\xfe/", None),
    (b"/%c0%ae%c0%ae/", None),
    (b"/%c0%af/", None),
    (b"/%ed%a0%80/", None),
    (b"//", None),
    (b"///", None),
    (b"//alice/", None),
    (b"/alice//", None),
    (b"/-/", None),
    (b"/-/metrics", None),
    (b"/.trash/", None),
    (b"/.rest-server/", None),
    (b"/.tmp/", None),
    (b"/.tmp/data/", None),
    (b"/.htpasswd/", None),
    (b"/.htpasswd", None),
    (b"/%2ehtpasswd", None),
    (b"/alice/.trash/", None),
    (b"/alice/.tmp/config", None),
    (b"/alice/-/", None),
    (b"/" + b"n" * 255 + b"/", repository("n" * 255)),
    (b"/" + b"n" * 256 + b"/", None),
    (b"/" + "ü".encode() * 127 + b"/", repository("ü" * 127)),
    (b"/" + "ü".encode() * 128 + b"/", None),
    # forms of the request target
    (b"", None),
    (b"*", None),
    (b"alice/", None),
    (b"http://example.org/", repository()),
    (b"http://example.org", repository()),
    (b"HTTP://example.org:8000/alice/", repository("alice")),
    (b"https://user:password@[::1]:8000/alice/data/" + ID_BYTES, an_object("data", "alice")),
    (b"http://example.org//alice/", None),
    (b"http://../alice/", repository("alice")),
    (b"http://example.org/../", None),
    (b"ftp://example.org/alice/", None),
    (b"http:/alice/", None),
    (b"file:///etc/", None),
)

#: name -> whether it may be a user
USERS: tuple[tuple[str, bool], ...] = (
    ("alice", True),
    ("Alice", True),
    ("alice.smith", True),
    ("alice@example.org", True),
    ("alice_smith-2", True),
    ("müller", True),
    ("алиса", True),
    ("7", True),
    ("...", True),
    ("--", True),
    ("Config", True),
    ("", False),
    (".", False),
    ("..", False),
    ("-", False),
    ("config", False),
    ("data", False),
    ("index", False),
    ("keys", False),
    ("locks", False),
    ("snapshots", False),
    (".trash", False),
    (".tmp", False),
    (".rest-server", False),
    (".htpasswd", False),
    ("alice smith", False),
    ("alice\n", False),
    ("alice\x00", False),
    ("al:ice", False),
    ("al/ice", False),
    ("al\\ice", False),
    ('al"ice', False),
    ("al,ice", False),
    ("al%ice", False),
    ("al\N{NO-BREAK SPACE}ice", False),
    ("al\N{RIGHT-TO-LEFT OVERRIDE}ice", False),
    ("a" * 255, True),
    ("a" * 256, False),
    ("ü" * 128, False),
)


def target_or_none(path: bytes, max_depth: int = 2) -> Target | None:
    """What a path names."""
    try:
        return parse_target(path, max_depth)
    except NotFound:
        return None


class PathTests(SynchronousTestCase):
    """L{parse_target}, line by line."""

    def test_table(self) -> None:
        """Each path of the table names what stands beside it."""
        for path, wanted in PATHS:
            self.assertEqual(wanted, target_or_none(path), path)

    def test_max_depth(self) -> None:
        """Repositories lie as deep as is allowed and no deeper."""
        for depth in range(5):
            path = b"/" + b"folder/" * depth
            for max_depth in range(5):
                wanted = repository(*["folder"] * depth) if depth <= max_depth else None
                self.assertEqual(wanted, target_or_none(path, max_depth))
                found = target_or_none(path + b"data/" + ID_BYTES, max_depth)
                self.assertEqual(None if wanted is None else wanted.repository, found and found.repository)

    def test_too_deep_says_so(self) -> None:
        """Whoever gives a repository one folder too many is told of the option, and not just that nothing is there."""
        for path in (b"/a/b/c/", b"/a/b/c/data/" + ID_BYTES, b"/a/b/c/config"):
            with self.assertRaisesRegex(NotFound, r"at most 2 folders deep \(--max-depth\)"):
                parse_target(path)

    def test_reserved_and_own_folders(self) -> None:
        """No reserved word and no folder of the server's own is ever a repository's, at any depth."""
        for name in sorted(RESERVED | OWN_FOLDERS):
            for prefix in (b"/", b"/alice/"):
                for suffix in (b"/laptop/", b"/config", b"/data/" + ID_BYTES):
                    self.assertIsNone(target_or_none(prefix + name.encode() + suffix))

    def test_routes(self) -> None:
        """A target says its path inside the repository."""
        for path, route in (
            (b"/", ""),
            (b"/a/b/", ""),
            (b"/a/config", "config"),
            (b"/a/b/locks/", "locks/"),
            (b"/data/" + ID_BYTES, f"data/{ID}"),
        ):
            self.assertEqual(route, parse_target(path).route)


class NameTests(SynchronousTestCase):
    """What may be a name."""

    def test_users(self) -> None:
        """Each name of the table may be a user or not."""
        for name, wanted in USERS:
            self.assertEqual(wanted, is_user_name(name), repr(name))

    def test_object_ids(self) -> None:
        """An object's id is 64 lower-case hex digits and nothing around them."""
        self.assertTrue(is_object_id(ID))
        for name in ("", ID[:-1], ID + "0", ID.upper(), ID + "\n", "\n" + ID, " " + ID, "g" + ID[1:], "٠" + ID[1:]):
            self.assertFalse(is_object_id(name), repr(name))

    def test_lone_surrogate(self) -> None:
        """A name that is no Unicode text (it cannot come by a path) is judged without an error."""
        is_folder_name("\ud800")
        self.assertFalse(is_user_name("\ud800"))


PIECES = st.one_of(
    st.binary(max_size=6),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(max_size=4).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="").encode()),
    st.sampled_from(
        [b"", b".", b"..", b"%2e%2e", b"%2f", b"%5c", b"%00", b"\x00", b"config", b"-", b".tmp", b"alice", ID_BYTES]
    ),
    st.sampled_from([name.encode() for name in TYPES]),
)
PATHS_BY_CHANCE = st.lists(PIECES, max_size=6).map(lambda pieces: b"/" + b"/".join(pieces)) | st.binary(max_size=30)


class AnyPathTests(SynchronousTestCase):
    """L{parse_target}, for whatever bytes."""

    @by_chance
    @given(path=PATHS_BY_CHANCE, max_depth=st.integers(0, 4))
    def test_stays_below_the_root(self, path: bytes, max_depth: int) -> None:
        """
        A path names nothing, or a target below the root: normalising its path on disk changes nothing, and no folder is
        one that could mean something else.
        """
        target = target_or_none(path, max_depth)
        if target is None:
            return
        self.assertLessEqual(len(target.repository), max_depth)
        for folder in target.repository:
            self.assertNotIn(folder, {"", ".", ".."} | RESERVED | OWN_FOLDERS)
            self.assertFalse(set(folder) & set("/\\\x00\r\n\x7f"))
            self.assertLessEqual(len(folder.encode("utf-8")), 255)
        joined = "/".join(("/root", *target.repository, *filter(None, (target.type, target.name))))
        self.assertEqual(joined, os.path.normpath(joined))
        self.assertTrue(target.kind is not Kind.OBJECT or is_object_id(target.name))
        self.assertTrue(target.type in ("", "config", *TYPES))

    @by_chance
    @given(path=PATHS_BY_CHANCE)
    def test_one_canonical_form(self, path: bytes) -> None:
        """The canonical spelling of a target names the same target."""
        target = target_or_none(path)
        if target is not None:
            folders = "".join(quote(folder, safe="") + "/" for folder in target.repository)
            self.assertEqual(target, parse_target(f"/{folders}{target.route}".encode("ascii")))

    @by_chance
    @given(folders=st.lists(st.text(min_size=1, max_size=8), max_size=3))
    def test_folders_come_back(self, folders: list[str]) -> None:
        """Folders that may be ones come through any spelling as they are; others name nothing."""
        spelled = "".join(quote(f.encode("utf-8", "surrogatepass"), safe="") + "/" for f in folders)
        target = target_or_none(f"/{spelled}config".encode("ascii"), 3)
        if all(is_folder_name(f) and f.encode("utf-8", "ignore").decode() == f for f in folders):
            self.assertEqual(config(*folders), target)
        else:
            self.assertIsNone(target)

    @by_chance
    @given(name=st.text(max_size=8))
    def test_users_are_folders(self, name: str) -> None:
        """Whoever may be a user may have a folder of that name, and it is safe in a log line."""
        if is_user_name(name):
            self.assertTrue(is_folder_name(name))
            self.assertFalse(set(name) & set(' "\\:,\t\r\n'))
            self.assertTrue(name.isprintable())
