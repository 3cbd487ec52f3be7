"""
File systems that find a folder in other spellings: what a policy says of a name holds for every name of the folder.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import NoSuchRepository
from resticserver.storage.folding import Spelling

from ..support.client import Client, object_id
from ..support.htpasswd import sha_line
from ..support.mounts import EXFAT, EXT4_FOLDING, NTFS_EXACT, NTFS_FOLDING, FileSystem, Mount, mounted
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic, make_tree
from ..support.scratch import contents_below, scratch_directory
from ..support.server import ServerProcess, installed, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until

#: Everything is allowed but in /secret, and for one user.
POLICY = """
[[rule]]
users = ["root"]
repositories = ["**"]
rights = "full"
create = true
delete-repository = true

[[rule]]
users = ["*"]
repositories = ["secret", "secret/**"]
rights = "none"

[[rule]]
users = ["*"]
repositories = ["**"]
rights = "full"
create = true
delete-repository = true
"""

USERS = ("root", "alice", "ALICE", "mallory")

PACK = b"a pack"
PACK_ID = object_id(PACK)

#: Other spellings of the folder C{secret}: whether a file system takes them for it or not, they are not its name.
SECRET_SPELLINGS = (
    "SECRET",
    "Secret",
    "sEcReT",
    "\u017fecret",
    "secret.",
    "secret ",
    "secret::$DATA",
    "SECRET~1",
    "\uff33ecret",
)

#: Other spellings of reserved names.
RESERVED_SPELLINGS = (
    *(
        ".Rest-Server",
        ".REST-SERVER",
        ".TMP",
        ".TRASH",
        ".HtPasswd",
        ".rest-\u017ferver",
        ".tra\u017fh",
        ".tmp.",
        ".tmp ",
    ),
    *(
        "DATA",
        "Keys",
        "\u212aeys",
        "LOCKS",
        "loc\u212as",
        "Config",
        "CONFIG.",
        "SNAPSHOTS",
        "Index",
        "\u0131ndex",
        "data::$DATA",
    ),
    *("\uff44\uff41\uff54\uff41", "\uff0d", "TMP~1", "REST-S~1", ".tm\u200bp"),
)


def requests(repository: str) -> list[tuple[str, str, bytes | None]]:
    """Every kind of request for what is in a repository: method, path, body. The last ones remove things."""
    new = b"new"
    return [
        ("HEAD", f"{repository}config", None),
        ("GET", f"{repository}config", None),
        ("GET", f"{repository}data/", None),
        ("GET", f"{repository}locks/", None),
        ("GET", f"{repository}keys/", None),
        ("HEAD", f"{repository}data/{PACK_ID}", None),
        ("GET", f"{repository}data/{PACK_ID}", None),
        ("POST", f"{repository}data/{object_id(new)}", new),
        ("POST", f"{repository}locks/{object_id(new)}", new),
        ("POST", f"{repository}?create=true", b""),
        ("POST", f"{repository}below/?create=true", b""),
        ("DELETE", f"{repository}data/{PACK_ID}", None),
        ("DELETE", f"{repository}config", None),
        ("DELETE", repository, None),
    ]


if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as _Base
else:
    _Base = object


class RightsAndSpellings(_Base):
    """
    The table of who may do what in which spelling, for a data directory on a file system of its own. Users' passwords are
    their names.
    """

    kind: FileSystem
    #: Whether the test's file system folds case.
    folds = True
    flags: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.mount = self.make_mount()
        self.data = self.mount.path / "data"
        self.data.mkdir()
        self.prepare_data()
        self.directory = scratch_directory(self)
        self.users = self.directory / "users"
        self.users.write_text("".join(sha_line(user, user) for user in USERS))
        self.policy = self.directory / "policy.toml"
        self.policy.write_text(POLICY)

    def make_mount(self) -> Mount:
        """The file system."""
        return mounted(self, self.kind)

    def prepare_data(self) -> None:
        """The data directory has been made."""

    def start(self, *flags: str) -> ServerProcess:
        """A server with these users."""
        return start_server(self, self.data, "--htpasswd-file", str(self.users), *self.flags, *flags)

    def client(self, server: ServerProcess, user: str) -> Client:
        """A connection of a user's, closed after the test."""
        client = server.client(user, user)
        self.addCleanup(client.close)
        return client

    def fill(self, client: Client, repository: str) -> None:
        """Make a repository with a config and a pack."""
        client.create_repository(repository)
        self.assertEqual(200, client.post(f"{repository}config", b"config").status)
        client.save("data", PACK, repository)

    def names(self, folder: str = "") -> set[str]:
        """What is in a folder of the data directory."""
        return {name for name in os.listdir(self.data / folder) if name != ".rest-server"}

    def test_denied_folder(self) -> None:
        """Where a policy denies /secret, no other spelling reaches it, by no request."""
        server = self.start("--policy", str(self.policy), "--max-depth", "3")
        self.fill(self.client(server, "root"), "/secret/")
        before = contents_below(self.data)
        mallory = self.client(server, "mallory")
        for method, path, body in requests("/secret/"):
            self.assertEqual(403, mallory.request(method, path, body).status, (method, path))
        for spelling in ("SECRET", "Secret", "sEcReT") if self.folds else ():
            for method, path, body in requests(f"/{spelling}/"):
                self.assertEqual(404, mallory.request(method, path, body).status, (method, path))
        for spelling in SECRET_SPELLINGS:
            # Those that this file system takes for other folders may be made; secret is not touched by them.
            for method, path, body in requests(f"/{quote(spelling)}/"):
                mallory.request(method, path, body)
        after = contents_below(self.data)
        self.assertEqual(before, {name: digest for name, digest in after.items() if name.startswith("secret/")})
        self.assertEqual(
            [], [name for name in self.names() if name != "secret" and self.folds and name.lower() == "secret"]
        )
        if self.folds:
            self.assertIsNotNone(server.said("/SECRET is answered 404: its name on disk is secret"))

    def test_deeper(self) -> None:
        """Every folder of a path has to be spelled right."""
        server = self.start("--policy", str(self.policy), "--max-depth", "3")
        root = self.client(server, "root")
        self.fill(root, "/top/middle/low/")
        before = contents_below(self.data)
        for path in ("/TOP/middle/low/", "/top/Middle/low/", "/top/middle/LOW/", "/Top/Middle/Low/"):
            for method, url, body in requests(path) if self.folds else ():
                if "below" not in url:  # four folders
                    self.assertEqual(404, root.request(method, url, body).status, (method, url))
        if self.folds:
            self.assertEqual(404, root.post("/top/MIDDLE/new/?create=true").status)
            self.assertEqual(404, root.post("/top/MIDDLE/?create=true").status)
        self.assertEqual(before, contents_below(self.data))
        self.assertEqual({"low"}, self.names("top/middle"))
        self.assertEqual({PACK_ID: len(PACK)}, root.list("data", "/top/middle/low/"))

    def test_reserved(self) -> None:
        """Reserved names are reserved in every spelling where names fold, before they are there and after; nothing is left."""
        server = self.start("--policy", str(self.policy))
        root = self.client(server, "root")
        for made in (False, True):
            if made:
                self.fill(root, "/")
                self.fill(root, "/alice/")
                (self.data / ".tmp").mkdir(exist_ok=True)
            before = {folder: self.names(folder) for folder in ("", "alice") if (self.data / folder).is_dir()}
            for above in ("/", "/alice/")[: 1 + made]:
                for spelling in RESERVED_SPELLINGS if self.folds else ():
                    path = f"{above}{quote(spelling)}/"
                    for method, url in (("POST", f"{path}?create=true"), ("HEAD", f"{path}config"), ("DELETE", path)):
                        self.assertEqual(404, root.request(method, url).status, (method, url))
            self.assertEqual(before, {folder: self.names(folder) for folder in before})
        for path in ("/.rest-server/", "/.tmp/", "/alice/.trash/", "/-/"):
            self.assertEqual(404, root.post(f"{path}?create=true").status, path)

    def test_private(self) -> None:
        """Under --private-repos users whose names differ only in case do not get each other's folders."""
        server = self.start("--private-repos", "--auto-create")
        alice, other = self.client(server, "alice"), self.client(server, "ALICE")
        self.fill(alice, "/alice/")
        before = contents_below(self.data)
        for method, path, body in requests("/ALICE/") if self.folds else ():
            status = other.request(method, path, body).status
            self.assertEqual(405 if (method, path) == ("DELETE", "/ALICE/") else 404, status, (method, path))
        for method, path, body in requests("/alice/")[:-1]:
            self.assertEqual(403, other.request(method, path, body).status, (method, path))
        if not self.folds:
            self.fill(other, "/ALICE/")
        self.assertEqual(
            before, {n: digest for n, digest in contents_below(self.data).items() if n.startswith("alice/")}
        )

    def test_what_is_reported(self) -> None:
        """Quotas, metrics and the usage command know a repository by its name on disk, whatever was asked for."""
        server = self.start("--max-size", "1G", "--prometheus", "--prometheus-no-auth")
        root = self.client(server, "root")
        self.fill(root, "/secret/")
        for method, path, body in requests("/SECRET/")[:-1] if self.folds else ():
            root.request(method, path, body)

        def counted() -> bytes:
            page = root.get("/metrics").body
            return page if b'repo="secret"' in page else b""

        page = wait_until(counted, what="metrics of the repository")
        self.assertNotIn(b"SECRET", page)
        usage = subprocess.run(
            [installed("rest-server"), "usage", "--path", str(self.data)], capture_output=True, text=True, check=True
        ).stdout
        self.assertRegex(usage, r"(?m)^secret ")
        self.assertNotIn("SECRET", usage)
        size = len(b"config") + len(PACK)
        self.assertRegex(usage, rf"(?m)^all +{size} bytes")

    def test_other_names(self) -> None:
        """Names that the file system does not take, or would list in another way, are 404 and leave nothing."""
        server = self.start("--no-verify-upload")
        root = self.client(server, "root")
        for name in (
            'a"b',
            "a<b",
            "a:b",
            "what?",
            "x*",
            "tail.",
            "tail ",
            "\u00fcber",
            "u\u0308ber",
            "x" * 255,
            "\U0001f600",
        ):
            path = f"/{quote(name)}/"
            status = root.post(f"{path}?create=true").status
            self.assertIn(status, (200, 404), name)
            if status == 200:
                self.assertIn(name, self.names())
                self.assertEqual(200, root.post(f"{path}config", b"config").status)
                self.assertEqual(b"config", root.get(f"{path}config").body)
            else:
                self.assertNotIn(name, self.names())
        self.assertEqual([], [line for line in server.err if "Traceback" in line])

    def test_read_only(self) -> None:
        """Nothing has to be written to find out: the same answers on a file system that is mounted read-only."""
        server = self.start()
        root = self.client(server, "root")
        self.fill(root, "/secret/")
        server.stop()
        self.mount.unmount()
        self.assertEqual("", self.mount.mount(read_only=True))
        spelling = Spelling(str(self.data))
        self.assertTrue(spelling.look(("secret",)))
        if self.folds:
            self.assertRaises(NoSuchRepository, spelling.look, ("SECRET",))
        else:
            self.assertFalse(spelling.look(("SECRET",)))

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic(self) -> None:
        """restic backs up, prunes and checks a repository in the spelling that it has."""
        server = self.start("--private-repos")
        make_tree(self.directory / "tree", 1, 1 << 20)
        restic = Restic(self, f"http://alice:alice@127.0.0.1:{server.port}/alice/", self.directory)
        restic.create()
        restic.succeed("backup", "tree")
        restic.succeed("backup", "tree")
        restic.succeed("forget", "--keep-last", "1", "--prune")
        restic.succeed("check", "--read-data")


class ExfatTests(RightsAndSpellings, SynchronousTestCase):
    """exFAT through FUSE."""

    kind = EXFAT


class ExfatWorkersTests(RightsAndSpellings, SynchronousTestCase):
    """The same with several processes."""

    kind = EXFAT
    flags = ("--workers", "2")


class NtfsTests(RightsAndSpellings, SynchronousTestCase):
    """NTFS through FUSE, without case, as Windows has it; all is listed in lower case."""

    kind = NTFS_FOLDING


class ExactNtfsTests(RightsAndSpellings, SynchronousTestCase):
    """NTFS through FUSE as ntfs-3g mounts it unless it is told otherwise: names are exact."""

    kind = NTFS_EXACT
    folds = False


if Path("/sys/fs/ext4/features/casefold").exists():  # few kernels have it; tests.test_folding has a fake

    class FoldingExt4Tests(RightsAndSpellings, SynchronousTestCase):
        """A directory of ext4 that folds names."""

        kind = EXT4_FOLDING

        def prepare_data(self) -> None:
            """The data directory folds names, and so does what is made in it."""
            subprocess.run(["chattr", "+F", str(self.data)], check=True)


class UsualTests(RightsAndSpellings, SynchronousTestCase):
    """The file system of the tests' scratch directories: names are exact."""

    folds = False

    def make_mount(self) -> Mount:
        """Nothing is mounted."""
        return Mount(EXFAT, Path("/"), scratch_directory(self))

    def test_read_only(self) -> None:
        """There is nothing to mount."""
