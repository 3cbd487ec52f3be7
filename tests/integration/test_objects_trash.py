"""
Deleted objects that a bucket keeps as old versions (C{--delete-delay}): with SeaweedFS and the real restic.
"""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from resticserver.commands import trash
from resticserver.objects import versions

from ..support.client import object_id
from ..support.htpasswd import bcrypt_line
from ..support.processes import process_test
from ..support.restic import change_tree, make_tree
from ..support.scratch import contents_below
from ..support.server import ServerProcess
from .test_objects import LIFE_BYTES, ObjectsCase, RefusedCase

_VERSIONING = b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>%s</Status></VersioningConfiguration>'
_RULE = b"""<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule><ID>old</ID>
<Filter><Prefix></Prefix></Filter><Status>Enabled</Status>
<NoncurrentVersionExpiration><NoncurrentDays>%d</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>"""
_LOCK = b"""<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ObjectLockEnabled>Enabled</ObjectLockEnabled>
<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"""
_RULES = """[[rule]]
users = ["*"]
repositories = ["{user}/*"]
rights = "full"
create = true
delete-repository = true
delete-delay = "30d"
"""
_DELAY = ("--delete-delay", "30d")


class VersionsCase(ObjectsCase):
    """
    A bucket that keeps versions.

    @cvar conditions: whether uploads to such a bucket can be conditional.
    """

    conditions = True

    def serve(self, *flags: str, **options: Any) -> ServerProcess:
        """See L{ObjectsCase.serve}."""
        return super().serve(*flags, *(() if self.conditions else ("--objects-unconditional",)), **options)

    def set_versioning(self, status: bytes = b"Enabled") -> None:
        """Switch it on or off."""
        self.assertEqual(200, self.engine.request("PUT", f"/{self.bucket}", "versioning=", _VERSIONING % status).status)

    def set_rule(self, days: int) -> None:
        """After how many days the bucket removes old versions."""
        self.assertEqual(200, self.engine.request("PUT", f"/{self.bucket}", "lifecycle=", _RULE % days).status)

    def run_trash(self, *arguments: str, status: int = 0) -> Any:
        """What C{rest-server trash} says, as JSON."""
        out, err = io.StringIO(), io.StringIO()
        where = ("--path", f"s3://{self.bucket}", "--state-dir", str(self.scratch / "state"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = trash.main([arguments[0], *where, "--json", *arguments[1:]])
        self.assertEqual(status, found, err.getvalue())
        self.said = err.getvalue()
        return json.loads(out.getvalue() or "null")


@process_test
class TrashTests(VersionsCase):
    """What was deleted is not lost."""

    def test_everything_deleted(self) -> None:
        """
        A client with all rights deletes everything; for restic it is gone. One command restores it, and the snapshots are the
        same.
        """
        self.set_versioning()
        self.set_rule(31)
        server = self.serve(*_DELAY)
        restic = self.restic(f"{server.url}/host/")
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES // 4)
        restic.succeed("init")
        restic.succeed("backup", str(self.tree))
        before, snapshots = restic.snapshots(), contents_below(self.tree)
        with server.client() as client:
            names = {kind: client.list(kind, "/host/") for kind in ("data", "index", "keys", "snapshots")}
            for kind, found in names.items():
                for name in found:
                    self.assertEqual(200, client.delete(f"/host/{kind}/{name}").status)
                self.assertEqual({}, client.list(kind, "/host/"))
            self.assertEqual(200, client.delete("/host/config").status)
            self.assertEqual(404, client.get("/host/config").status)
            for path in ("/host/.trash/", f"/host/data/{next(iter(names['data']))}?versionId=1"):
                self.assertNotEqual(200, client.get(path).status, path)
        number = 1 + sum(map(len, names.values()))
        listed = self.run_trash("list", "host")["objects"]
        self.assertEqual(number, len(listed))
        self.assertEqual(number, len(self.run_trash("restore", "host", "--dry-run")["would_restore"]))
        self.assertEqual(number, len(self.run_trash("restore", "host", "--since", "2 hours ago")["restored"]))
        self.assertEqual([], self.run_trash("restore", "host")["restored"])
        self.assert_whole(restic)
        self.assertEqual(before, restic.snapshots())
        self.assert_restores(restic, "latest", snapshots)

    def test_prune_undone(self) -> None:
        """After a forget and prune by mistake all snapshots are there again, and each can be restored."""
        self.set_versioning()
        server = self.serve(*_DELAY)
        restic = self.restic(f"{server.url}/alice/host/")
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES // 4)
        restic.succeed("init")
        restic.succeed("backup", str(self.tree))
        contents = contents_below(self.tree)
        change_tree(self.tree, seed=2)
        restic.succeed("backup", str(self.tree))
        before = restic.snapshots()
        restic.succeed("forget", "--keep-last", "1", "--prune")
        self.assertEqual(1, len(restic.snapshots()))
        # Small pages: of some objects there are versions on both sides of an end.
        self.patch(versions, "_PAGE_VERSIONS", 2)
        self.assertTrue(self.run_trash("restore", "alice/host", "--since", "2 hours ago")["restored"])
        self.assertEqual(before, restic.snapshots())
        self.assert_whole(restic)
        self.assert_restores(restic, str(before[0]["id"]), contents)

    def test_repository_deleted(self) -> None:
        """A repository that was deleted by one request is found and counted, and is restored whole; a rule has the delay."""
        self.set_versioning()
        users, rules = self.scratch / "htpasswd", self.scratch / "rules.toml"
        users.write_text(bcrypt_line("alice", "secret"))
        rules.write_text(_RULES)
        flags = ("--htpasswd-file", str(users), "--policy", str(rules))
        server = self.serve(*flags)
        url = f"http://alice:secret@127.0.0.1:{server.port}/alice/host/"
        restic = self.restic(url)
        make_tree(self.tree, seed=1, size_bytes=LIFE_BYTES // 8)
        restic.succeed("init")
        restic.succeed("backup", str(self.tree))
        before, keys = restic.snapshots(), self.restic_keys()
        with server.client("alice", "secret") as client:
            self.assertEqual(200, client.delete("/alice/host/").status)
            self.assertEqual(404, client.get("/alice/host/config").status)
        self.assertEqual([], self.restic_keys())
        server.stop()
        server = self.serve(*flags, "--max-size", "64KiB", state="other", listen=f"127.0.0.1:{server.port}")
        self.patch(versions, "_PAGE_VERSIONS", 1)
        found = self.run_trash("list")["objects"]
        self.assertEqual(({"alice/host"}, len(keys)), ({one["repository"] for one in found}, len(found)))
        with server.client("alice", "secret") as client:
            client.create_repository("/alice/other/")
            body = b"x" * 1024
            self.assertEqual(507, client.post(f"/alice/other/data/{object_id(body)}", body).status)
        self.assertEqual(len(keys), len(self.run_trash("restore", "alice/host")["restored"]))
        self.assertEqual(keys, self.restic_keys())
        server.stop()
        self.serve(*flags, listen=f"127.0.0.1:{server.port}")
        self.assertEqual(before, restic.snapshots())
        self.assert_whole(restic)

    def restic_keys(self) -> list[str]:
        """What of the repository is in the bucket, but locks."""
        keys = self.engine.keys(self.bucket)
        return [
            key for key in keys if key.startswith("alice/host/") and key.split("/")[2] not in (".rest-server", "locks")
        ]

    def test_counted(self) -> None:
        """The trash counts towards a limit, is shown apart, and can be emptied; an upload over a deleted object is possible."""
        self.set_versioning()
        server = self.serve(*_DELAY, "--max-size", "1MiB")
        with server.client() as client:
            client.create_repository("/host/")
            body = b"x" * 600_000
            path = f"/host/data/{object_id(body)}"
            self.assertEqual(200, client.post(path, body).status)
            self.assertEqual(200, client.delete(path).status)
        server.stop()
        server = self.serve(*_DELAY, "--max-size", "1MiB", state="other")
        with server.client() as client:
            self.assertEqual(507, client.post(path, body).status)
        self.assertEqual(1, self.run_trash("empty", "host", "--yes")["removed_objects"])
        server.stop()
        server = self.serve(*_DELAY, "--max-size", "1MiB", state="third")
        with server.client() as client:
            self.assertEqual(200, client.post(path, body).status)
            self.assertEqual(body, client.get(path).body)

    def test_never_replaced(self) -> None:
        """What is there again stays, and an object that was deleted twice is restored once."""
        self.set_versioning()
        server = self.serve(*_DELAY)
        with server.client() as client:
            client.create_repository("/host/")
            name = client.save("data", b"a pack", "/host/")
            self.assertEqual(200, client.delete(f"/host/data/{name}").status)
            client.save("data", b"a pack", "/host/")
            found = self.run_trash("restore", "host")
            self.assertEqual(([], 1), (found["restored"], len(found["present"])))
            self.assertEqual(200, client.delete(f"/host/data/{name}").status)
            self.assertEqual(2, len(self.run_trash("list", "host")["objects"]))
            self.assertEqual(1, len(self.run_trash("restore", "host", name[:8])["restored"]))
            self.assertEqual({name: 6}, client.list("data", "/host/"))

    def test_locked(self) -> None:
        """With Object Lock nothing can be removed for good; the command says so in one line."""
        self.bucket = f"locked-{self.bucket}"[:60]
        locked = {"x-amz-bucket-object-lock-enabled": "true"}
        self.assertEqual(200, self.engine.request("PUT", f"/{self.bucket}", headers=locked).status)
        self.assertEqual(200, self.engine.request("PUT", f"/{self.bucket}", "object-lock=", _LOCK).status)
        server = self.serve(*_DELAY)
        with server.client() as client:
            client.create_repository("/host/")
            name = client.save("data", b"a pack", "/host/")
            self.assertEqual(200, client.delete(f"/host/data/{name}").status)
            self.assertIsNone(self.run_trash("empty", "host", "--yes", status=1))
            self.assertRegex(self.said, r"^rest-server trash empty: the object store refuses .*403 AccessDenied.*\n$")
            self.assertEqual(1, len(self.run_trash("restore", "host")["restored"]))
            self.assertEqual({name: 6}, client.list("data", "/host/"))


@process_test
class RefusedTests(VersionsCase, RefusedCase):
    """Buckets that do not keep what is deleted for long enough."""

    def test_without_versions(self) -> None:
        """It is said what to do."""
        self.assert_refused(
            self.launch(*_DELAY, proven_at=self.engine.endpoint), "--delete-delay", "enable its versioning"
        )

    def test_switched_off(self) -> None:
        """Versioning that was on once, and is not any more."""
        self.set_versioning()
        self.set_versioning(b"Suspended")
        self.assert_refused(
            self.launch(*_DELAY, proven_at=self.engine.endpoint), "--delete-delay", "enable its versioning"
        )

    def test_rule_is_too_short(self) -> None:
        """A rule that removes old versions earlier."""
        self.set_versioning()
        self.set_rule(29)
        server = self.launch(*_DELAY, proven_at=self.engine.endpoint)
        self.assert_refused(server, "--delete-delay", "removes old versions after 29 days")
