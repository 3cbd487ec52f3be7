"""
The real restic against real servers: what a person does with a backup server from the first day to the bad ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ..support.certificates import make_certificate
from ..support.htpasswd import bcrypt_line, sha_line
from ..support.proxy import UnixProxy
from ..support.restic import SKIP_WITHOUT_RESTIC, ImpatientRestic, Restic, change_tree, make_tree
from ..support.scratch import contents_below, files_below, hash_of_file, object_path, scratch_directory
from ..support.server import REST_SERVER, TWISTD, ServerProcess, start_server
from ..support.skipping import skipped
from ..support.waiting import wait_until

MIB = 1 << 20
#: What "a few hundred MB of mixed files" means here, and what is enough where size is not the point.
LARGE_BYTES = 240 * MIB
MEDIUM_BYTES = 80 * MIB
SMALL_BYTES = 16 * MIB


class LifeCycleTests(SynchronousTestCase):
    """From C{init} to C{prune}, with nothing lost on the way."""

    skip = SKIP_WITHOUT_RESTIC

    def setUp(self) -> None:
        self.scratch = scratch_directory(self, 6 * LARGE_BYTES)
        self.data = self.scratch / "data"
        self.tree = self.scratch / "tree"

    def live(self, restic: Restic, size_bytes: int) -> None:
        """The whole life of a repository (how restic itself makes one is in L{test_nested_repositories} and below)."""
        make_tree(self.tree, seed=1, size_bytes=size_bytes)
        first = contents_below(self.tree)
        restic.create()
        restic.succeed("backup", str(self.tree))
        change_tree(self.tree, seed=2)
        second = contents_below(self.tree)
        self.assertNotEqual(first, second)
        restic.succeed("backup", str(self.tree))
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        snapshots = restic.snapshots()
        self.assertEqual(len(snapshots), 2)
        self.assert_restores(restic, str(snapshots[0]["id"]), first)
        self.assert_restores(restic, str(snapshots[1]["id"]), second)
        before = files_below(self.data)
        restic.succeed("forget", "--keep-last", "1", "--prune")
        self.assertEqual([snapshot["id"] for snapshot in restic.snapshots()], [snapshots[1]["id"]])
        self.assertTrue(before - files_below(self.data), "pruning removed nothing")
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        self.assert_restores(restic, "latest", second)
        self.assert_sound_directory()

    def assert_restores(self, restic: Restic, snapshot: str, expected: dict[str, str]) -> None:
        """A restored snapshot has the same files with the same bytes."""
        target = self.scratch / "restored"
        restic.succeed("restore", snapshot, "--target", str(target))
        self.assertEqual(contents_below(target / self.tree.relative_to("/")), expected)
        shutil.rmtree(target)

    def assert_sound_directory(self) -> None:
        """Every file is one of restic's, has the hash of its name, and is for nobody else's eyes."""
        for name in files_below(self.data):
            path = self.data / name
            if name != "config":
                self.assertEqual(hash_of_file(path), path.name)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, name)
        self.assertFalse([name for name in files_below(self.data) if name.startswith("locks/")])

    def test_over_tcp(self) -> None:
        """A few hundred MB through C{twistd restic-rest} on a plain socket."""
        server = start_server(self, self.data, door=TWISTD)
        self.live(Restic(self, f"{server.url}/", self.scratch), LARGE_BYTES)

    def test_over_tls(self) -> None:
        """Many packs through C{rest-server} over TLS, with a certificate of an authority of our own."""
        certificate = make_certificate(self.scratch)
        server = start_server(self, self.data, *certificate.flags, door=REST_SERVER)
        url = f"https://127.0.0.1:{server.port}/"
        self.live(Restic(self, url, self.scratch, "--cacert", str(certificate.authority)), MEDIUM_BYTES)

    def test_over_a_unix_socket(self) -> None:
        """Through a unix socket; restic 0.14 cannot, so a proxy carries the bytes there."""
        path = self.scratch / "socket"
        server = start_server(self, self.data, "--listen", f"unix:{path}")
        self.assertEqual(server.address, str(path))
        proxy = UnixProxy(self, str(path))
        self.live(Restic(self, f"http://127.0.0.1:{proxy.port}/", self.scratch), SMALL_BYTES)

    def test_nested_repositories(self) -> None:
        """Repositories two folders deep, one beside the other, know nothing of each other."""
        server = start_server(self, self.data)
        make_tree(self.tree, seed=1, size_bytes=SMALL_BYTES // 8)
        for name in ("one", "two"):
            directory = self.scratch / name
            directory.mkdir()
            restic = Restic(self, f"{server.url}/host/{name}/", directory)
            if name == "one":
                restic.succeed("init")
            else:
                restic.create()
            restic.succeed("backup", str(self.tree))
            restic.succeed("check", "--read-data")
            self.assertEqual(len(restic.snapshots()), 1)


class AppendOnlyTests(SynchronousTestCase):
    """C{--append-only}: a client that was taken over can add to the backups, and cannot harm them."""

    skip = SKIP_WITHOUT_RESTIC

    def test_backup_works_and_nothing_can_be_removed(self) -> None:
        """
        Backups, restores and checks work; C{forget} fails with a message, and every file is as it was.

        (restic 0.14 repeats the refused DELETE for about 45 s: it is interrupted once it has said why.)
        """
        scratch = scratch_directory(self, 4 * SMALL_BYTES)
        data, tree = scratch / "data", scratch / "tree"
        server = start_server(self, data, "--append-only", door=TWISTD)
        restic = ImpatientRestic(self, f"{server.url}/", scratch)
        make_tree(tree, seed=1, size_bytes=SMALL_BYTES)
        restic.create()
        restic.succeed("backup", str(tree))
        change_tree(tree, seed=2)
        restic.succeed("backup", str(tree))
        stored = contents_below(data)
        self.assertEqual(len([name for name in stored if name.startswith("snapshots/")]), 2)

        oldest = str(restic.snapshots()[0]["id"])
        refused = restic.run_until("403 append-only: only locks may be deleted", "forget", oldest)

        self.assertNotEqual(refused.status, 0)
        self.assertIn("403 append-only: only locks may be deleted", refused.out)
        self.assertEqual(contents_below(data), stored, "something was lost, changed or left over")
        self.assertEqual(len(restic.snapshots()), 2)
        self.assertIn("no errors were found", restic.succeed("check", "--read-data"))
        (tree / "afterwards").write_bytes(b"still works")
        restic.succeed("backup", str(tree))
        target = scratch / "restored"
        restic.succeed("restore", "latest", "--target", str(target))
        self.assertEqual(contents_below(target / tree.relative_to("/")), contents_below(tree))


class UsersTests(SynchronousTestCase):
    """Users from an htpasswd file, each in the folder of their name."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.htpasswd = self.scratch / "htpasswd"
        self.htpasswd.write_text(bcrypt_line("alice", "secret of alice") + sha_line("bob", "secret of bob"))

    def start(self) -> ServerProcess:
        """A server with users and private repositories."""
        return start_server(self, self.data, "--htpasswd-file", str(self.htpasswd), "--private-repos")

    def status(self, server: ServerProcess, user: str | None, password: str, path: str) -> int:
        """What a user gets for a GET."""
        with server.client(user, password) as client:
            return client.get(path).status

    @skipped(SKIP_WITHOUT_RESTIC)
    def test_restic_with_users(self) -> None:
        """Users of both kinds of hash back up to their own folders; nobody gets into the other's, or in at all."""
        server = self.start()
        make_tree(self.scratch / "tree", seed=1, size_bytes=2 * MIB)
        for user in ("alice", "bob"):
            directory = self.scratch / user
            directory.mkdir()
            url = f"http://{user}:secret%20of%20{user}@127.0.0.1:{server.port}/{user}/"
            restic = Restic(self, url, directory)
            if user == "alice":
                restic.succeed("init")
            else:
                restic.create()
            restic.succeed("backup", str(self.scratch / "tree"))
            restic.succeed("check", "--read-data")
        self.assertEqual(sorted(os.listdir(self.data)), [".rest-server", "alice", "bob"])

        self.assertEqual(self.status(server, "alice", "secret of alice", "/alice/config"), 200)
        self.assertEqual(self.status(server, "alice", "secret of alice", "/bob/config"), 403)
        self.assertEqual(self.status(server, "alice", "secret of alice", "/bob/nothing/here"), 404)
        self.assertEqual(self.status(server, "alice", "secret of bob", "/alice/config"), 401)
        self.assertEqual(self.status(server, None, "", "/alice/config"), 401)

        before = contents_below(self.data)
        directory = self.scratch / "stranger"
        directory.mkdir()
        stranger = Restic(self, f"http://alice:guess@127.0.0.1:{server.port}/alice/", directory)
        refused = stranger.run("init")
        self.assertNotEqual(refused.status, 0)
        self.assertIn("401", refused.err)
        self.assertEqual(contents_below(self.data), before)

    def test_a_changed_file_is_noticed(self) -> None:
        """Without a signal, a new user gets in and a removed one stays out."""
        server = self.start()
        self.assertEqual(self.status(server, "carol", "secret of carol", "/carol/config"), 401)
        self.assertEqual(self.status(server, "bob", "secret of bob", "/bob/config"), 404)
        self.htpasswd.write_text(bcrypt_line("carol", "secret of carol"))
        wait_until(
            lambda: self.status(server, "carol", "secret of carol", "/carol/config") == 404,
            what="the new user",
        )
        self.assertEqual(self.status(server, "bob", "secret of bob", "/bob/config"), 401)

    def test_a_signal_makes_it_read_at_once(self) -> None:
        """
        SIGHUP reads the file, changed or not (so it is the signal and not the next regular look that is seen here).
        """
        server = self.start()
        self.reload(server)
        self.htpasswd.write_text(bcrypt_line("carol", "secret of carol"))
        self.reload(server)
        self.assertEqual(self.status(server, "carol", "secret of carol", "/carol/config"), 404)
        self.assertEqual(self.status(server, "alice", "secret of alice", "/alice/config"), 401)

    def reload(self, server: ServerProcess) -> None:
        """SIGHUP, and wait for what it does."""
        reloads = server.err.count("Reloaded htpasswd file")
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.err.count("Reloaded htpasswd file") > reloads, what="the reload")

    def test_a_bad_file_changes_nothing(self) -> None:
        """A file that cannot be read any more keeps the users that were known, and says so."""
        server = self.start()
        self.htpasswd.unlink()
        server.signal(signal.SIGHUP)
        server.wait_for_line("could not reload htpasswd file")
        self.assertEqual(self.status(server, "alice", "secret of alice", "/alice/config"), 404)


class DamageTests(SynchronousTestCase):
    """What happens behind the server's back is reported as what it is, and can be healed."""

    skip = SKIP_WITHOUT_RESTIC

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.server = start_server(self, self.data)
        self.restic = Restic(self, f"{self.server.url}/", self.scratch)
        make_tree(self.scratch / "tree", seed=1, size_bytes=4 * MIB)
        self.restic.create()
        self.restic.succeed("backup", str(self.scratch / "tree"))

    def a_pack(self) -> Path:
        """The largest pack: it is one of data and not of trees."""
        packs = [self.data / name for name in files_below(self.data) if name.startswith("data/")]
        return max(packs, key=lambda path: (path.stat().st_size, path.name))

    def test_a_deleted_pack(self) -> None:
        """restic reports it and fails; the server says 404 for it and goes on serving all the rest."""
        pack = self.a_pack()
        pack.unlink()
        checked = self.restic.run("check")
        self.assertNotEqual(checked.status, 0)
        self.assertIn(pack.name[:8], checked.out + checked.err)
        with self.server.client() as client:
            self.assertEqual(client.get(f"/data/{pack.name}").status, 404)
            self.assertEqual(client.head(f"/data/{pack.name}").status, 404)
            self.assertNotIn(pack.name, client.list("data"))
            for name, size in client.list("data").items():
                reply = client.get(f"/data/{name}")
                self.assertEqual((reply.status, len(reply.body)), (200, size))
        self.assertEqual(len(self.restic.snapshots()), 1)

    def test_a_deleted_directory(self) -> None:
        """A type's directory that is gone is 404 on its list; what is missing is made again for the next upload."""
        pack = self.a_pack()
        good = pack.read_bytes()
        shutil.rmtree(pack.parent)
        shutil.rmtree(self.data / "locks")
        with self.server.client() as client:
            self.assertNotIn(pack.name, client.list("data"))
            self.assertEqual(client.post(f"/data/{pack.name}", good).status, 200)
            self.assertIn(pack.name, client.list("data"))
            self.assertEqual(client.get("/locks/").status, 404)
            lock = client.save("locks", b"a lock")
            self.assertEqual(list(client.list("locks")), [lock])
            client.delete(f"/locks/{lock}")
        self.restic.succeed("check", "--read-data")

    def test_a_damaged_pack(self) -> None:
        """
        C{check --read-data} finds it; wrong bytes do not replace it; the right bytes, sent again, heal it.
        """
        pack = self.a_pack()
        good = pack.read_bytes()
        damaged = bytearray(good)
        damaged[len(damaged) // 2] ^= 0xFF
        pack.write_bytes(damaged)
        checked = self.restic.run("check", "--read-data")
        self.assertNotEqual(checked.status, 0)
        self.assertIn(pack.name[:8], checked.out + checked.err)
        with self.server.client() as client:
            self.assertEqual(client.post(f"/data/{pack.name}", b"something else").status, 403)
            self.assertEqual(pack.read_bytes(), damaged)
            self.assertEqual(client.post(f"/data/{pack.name}", good).status, 200)
        self.assertEqual(pack, object_path(self.data, "data", pack.name))
        self.assertEqual(pack.read_bytes(), good)
        self.assertEqual(stat.S_IMODE(pack.stat().st_mode), 0o600)
        self.assertIn("no errors were found", self.restic.succeed("check", "--read-data"))
        self.assertFalse([name for name in files_below(self.data) if name.startswith(".tmp/")])

    def test_a_cut_pack(self) -> None:
        """A pack that became shorter is sent as the shorter object that it is; the right bytes heal it."""
        pack = self.a_pack()
        good = pack.read_bytes()
        os.truncate(pack, len(good) // 2)
        with self.server.client() as client:
            self.assertEqual(client.list("data")[pack.name], len(good) // 2)
            reply = client.get(f"/data/{pack.name}", {"Range": f"bytes=0-{len(good) - 1}"})
            self.assertEqual((reply.status, reply.body), (206, good[: len(good) // 2]))
            self.assertEqual(client.get(f"/data/{pack.name}", {"Range": f"bytes={len(good) - 1}-"}).status, 416)
            self.assertEqual(client.post(f"/data/{pack.name}", good).status, 200)
        self.restic.succeed("check", "--read-data")
