"""
L{resticserver.objects.counting}: which repositories a bucket has, and how much is in them.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.objects import counting
from resticserver.objects.spool import Spool
from resticserver.objects.store import ObjectStore
from resticserver.sizes import Amount
from resticserver.storage.layout import CELLS, cell_of

from ..contract.store import DEEP, ROOT, id_of, save
from ..support.memory_engine import MemoryEngine


class CountingTests(SynchronousTestCase):
    """With an engine in memory."""

    def setUp(self) -> None:
        self.engine = MemoryEngine(page_objects=20)
        self.store = ObjectStore(self.engine, "place/", Spool(self.mktemp(), 0))
        self.store.prepare()

    def test_repositories(self) -> None:
        """A repository has a config, an object, or was just made; the bucket's own folder is none."""
        counting_ = self.store.counting
        self.assertEqual([], counting_.repositories())
        self.store.create_repository(DEEP)
        self.assertEqual([DEEP], counting_.repositories())
        self.engine.put("place/restic/config", b"by restic itself")
        self.engine.put("place/bare/data/00/" + "0" * 64, b"without a config")
        self.engine.put("place/other/file", b"no repository")
        self.engine.put("place/a/b/c/config", b"too deep")
        self.engine.put("elsewhere/config", b"outside")
        self.assertEqual([("alice", "laptop"), ("bare",), ("restic",)], sorted(counting_.repositories()))
        self.store.create_repository(ROOT)
        self.assertIn(ROOT, counting_.repositories())

    def test_amounts(self) -> None:
        """The same amounts by one list and directory by directory; what is not restic's has none."""
        self.store.create_repository(DEEP)
        wanted = dict.fromkeys(range(CELLS), Amount())
        for kind in ("data", "index", "keys", "locks", "snapshots"):
            for number in range(5):
                content = b"%d of " % number + kind.encode()
                save(self.store, DEEP, kind, content)
                cell = cell_of(kind, id_of(content))
                wanted[cell] = Amount(wanted[cell].size_bytes + len(content), wanted[cell].objects + 1)
        save(self.store, DEEP, "config", b"a config", "config")
        wanted[cell_of("config", "config")] = Amount(8, 1)
        for key in ("data/x", "data/00/x", f"data/01/{'0' * 64}", "keys/x", f"configs/{'0' * 64}", "config.old"):
            self.engine.put(f"place/alice/laptop/{key}", b"not restic's")
        self.assertEqual(wanted, self.store.counting.known(DEEP))
        self.assertEqual(wanted, self.store.counting.count(DEEP, range(CELLS)))
        # A large repository is counted directory by directory.
        self.patch(counting, "_MOST_PAGES", 2)
        self.assertEqual({}, self.store.counting.known(DEEP))

    def test_times(self) -> None:
        """The newest snapshot, the oldest lock, and the config; nothing of what is not there."""
        self.store.create_repository(DEEP)
        counted = self.store.counting
        self.assertEqual(
            (None, None, None), (counted.last_snapshot_s(DEEP), counted.oldest_lock_s(DEEP), counted.created_s(DEEP))
        )
        for kind, seconds in (("snapshots", 50.0), ("snapshots", 70.0), ("locks", 30.0), ("locks", 90.0)):
            content = str(seconds).encode()
            save(self.store, DEEP, kind, content)
            self.engine.modified_s[f"place/alice/laptop/{kind}/{id_of(content)}"] = seconds
        save(self.store, DEEP, "config", b"x", "config")
        self.engine.modified_s["place/alice/laptop/config"] = 10.0
        self.assertEqual(
            (70.0, 30.0, 10.0), (counted.last_snapshot_s(DEEP), counted.oldest_lock_s(DEEP), counted.created_s(DEEP))
        )
