"""
The volume's marker: a disk that is not mounted must look neither empty nor writable.

A volume goes by renaming its directory and comes back by the same; the integration tests unmount real ones.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import Unavailable
from resticserver.storage import volume as volume_module
from resticserver.storage.local import LocalStore
from resticserver.storage.volume import LATELY_S

from ..contract.store import at_once, entries, id_of, load, save

NAME = id_of(b"x")


class VolumeTests(SynchronousTestCase):
    """L{resticserver.storage.volume.Volume}, by the store that asks it."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.store = self.started()

    def started(self) -> LocalStore:
        """A server's store after its start."""
        store = LocalStore(str(self.path))
        store.prepare()
        return store

    @property
    def marker(self) -> Path:
        """The marker's file."""
        return self.path / ".rest-server" / "id"

    def unmount(self, path: Path | None = None) -> None:
        """The volume goes, its empty mount point stays."""
        os.rename(self.path, self.path.with_suffix(".away"))
        self.path.mkdir()

    def mount(self) -> None:
        """It comes back."""
        self.path.rmdir()
        os.rename(self.path.with_suffix(".away"), self.path)

    def assert_gone(self) -> None:
        """Every verb says that the volume is gone, none writes."""
        repository = ("alice",)
        for verb in (
            lambda: self.store.create_repository(repository),
            lambda: self.store.delete_repository(repository),
            lambda: self.store.upload(repository, "data", NAME).open(),
            lambda: self.store.stored(repository, "data", NAME).open(),
            lambda: self.store.size_of(repository, "config", "config"),
            lambda: self.store.list_objects(repository, "data", True).open(),
            lambda: self.store.remove_object(repository, "data", NAME),
            lambda: self.store.remove_object(repository, "locks", NAME),
        ):
            self.assertRaises(Unavailable, verb)
        self.assertEqual([], os.listdir(self.path))

    def test_first_repository_marks(self) -> None:
        """No repository, no marker; the first one makes it, and it stays what it is."""
        self.assertFalse(self.marker.exists())
        self.store.create_repository(("alice",))
        first = self.marker.read_bytes()
        self.assertEqual(33, len(first))
        self.assertEqual(0o600, self.marker.stat().st_mode & 0o777)
        self.store.create_repository(("bob",))
        self.assertEqual(first, self.marker.read_bytes())
        self.started()
        self.assertEqual(first, self.marker.read_bytes())

    def test_learnt_while_somebody_looks(self) -> None:
        """
        Another thread, or another worker, makes the first repository between a look for the marker and what is made of it:
        it was not there yet, and nobody is told that the volume is gone.
        """
        looks = os.stat

        def look(path: object, **named: Any) -> os.stat_result:
            if str(path).endswith("/.rest-server/id"):
                self.store.volume.expect(b"learnt meanwhile")
            return looks(path, **named)  # type: ignore[arg-type]

        self.patch(os, "stat", look)
        self.store.volume.check()

    def test_first_repositories_at_once(self) -> None:
        """However many make the first repository at the same moment."""
        for attempt in range(20):
            store = LocalStore(str(self.path / str(attempt)))
            store.prepare()
            made = at_once([partial(store.create_repository, (f"r{number}",)) for number in range(6)])
            self.assertEqual([None] * 6, made)

    def test_start_marks_a_used_directory(self) -> None:
        """A directory from another server, with repositories and without a marker."""
        self.store.create_repository(("alice", "pc"))
        save(self.store, ("alice", "pc"), "config", b"x", "config")
        self.marker.unlink()
        self.started()
        self.assertTrue(self.marker.exists())

    def test_goes_and_comes(self) -> None:
        """Gone: nothing is served or written. Back: everything, without a restart."""
        self.store.create_repository(("alice",))
        save(self.store, ("alice",), "data", b"x")
        self.unmount()
        self.assert_gone()
        self.assert_gone()
        self.mount()
        self.assertEqual(b"x", load(self.store, ("alice",), "data", NAME))
        self.assertEqual([NAME], [entry.name for entry in entries(self.store, ("alice",), "data")])
        save(self.store, ("alice",), "data", b"y")

    def test_known_from_the_start(self) -> None:
        """A server that only ever read knows it as well."""
        self.store.create_repository(("alice",))
        self.store = self.started()
        self.unmount()
        self.assert_gone()

    def test_another_volume(self) -> None:
        """Another server's disk at this place is not this one's."""
        self.store.create_repository(("alice",))
        self.unmount()
        other = LocalStore(str(self.path))
        other.prepare()
        other.create_repository(("alice",))
        self.assertRaises(Unavailable, self.store.size_of, ("alice",), "config", "config")
        self.assertRaises(Unavailable, entries, self.store, ("alice",), "data")

    def test_mounted_after_the_start(self) -> None:
        """The server was there first: the volume is learnt when it is seen."""
        self.store.create_repository(("alice",))
        self.unmount()
        self.store = self.started()
        self.mount()
        self.assertEqual([], entries(self.store, ("alice",), "data"))
        self.unmount()
        self.assert_gone()

    def test_goes_in_the_middle_of_a_list(self) -> None:
        """It must not look like a shorter list: restic would prune what is not in it."""
        self.store.create_repository(("alice",))
        for number in range(20):
            save(self.store, ("alice",), "data", b"%d" % number)
        listing = self.store.list_objects(("alice",), "data", True)
        self.addCleanup(listing.close)
        listing.open()
        reading = iter(listing)
        next(reading)
        self.unmount()
        with self.assertRaises(Unavailable):
            list(reading)

    def test_only_the_marker_goes(self) -> None:
        """Everything else is there, as on a copy of the disk: objects are not read either, at once or in the pool."""
        self.patch(volume_module.Volume, "lately_s", 0.0)
        repository = ("alice",)
        self.store.create_repository(repository)
        save(self.store, repository, "data", b"x")
        marker = self.marker.read_bytes()
        for content in (None, b"another"):
            self.assertEqual(b"x", load(self.store, repository, "data", NAME))
            self.assertEqual(1, self.store.size_of(repository, "data", NAME))
            if content is None:
                self.marker.unlink()
            else:
                self.marker.write_bytes(content)
            self.assertRaises(Unavailable, self.store.size_of, repository, "data", NAME)
            self.assertRaises(Unavailable, self.store.stored(repository, "data", NAME).open)
            self.assertFalse(self.store.stored(repository, "data", NAME).open_nowait())
            self.assertIsNone(self.store.size_nowait(repository, "data", NAME))
            self.marker.write_bytes(marker)

    def test_looked_at_once_a_second(self) -> None:
        """
        Reading objects costs no look at the marker for a second after the last one, and that second ends as soon as anybody
        sees that the volume is gone.
        """
        now = 1000.0
        self.patch(time, "monotonic", lambda: now)
        repository = ("alice",)
        self.store.create_repository(repository)
        save(self.store, repository, "data", b"x")
        looked = []
        stat = os.stat

        def look(path: object, **named: Any) -> os.stat_result:
            if str(path) == str(self.marker.absolute()):
                looked.append(path)
            return stat(path, **named)  # type: ignore[arg-type]

        self.patch(os, "stat", look)
        for second in range(1, 4):
            now += LATELY_S
            for _ in range(10):
                self.store.size_of(repository, "data", NAME)
                load(self.store, repository, "data", NAME)
            self.assertEqual(second, len(looked))
        self.marker.unlink()
        self.assertEqual(1, self.store.size_of(repository, "data", NAME))
        self.assertRaises(Unavailable, self.store.list_objects(repository, "data", True).open)
        self.assertRaises(Unavailable, self.store.size_of, repository, "data", NAME)

    def test_marker_that_cannot_be_looked_at(self) -> None:
        """It is there, so what can be read is read."""
        self.patch(volume_module.Volume, "lately_s", 0.0)
        repository = ("alice",)
        self.store.create_repository(repository)
        save(self.store, repository, "data", b"x")
        stat = os.stat

        def look(path: object, **named: Any) -> os.stat_result:
            if str(path) == str(self.marker.absolute()):
                raise OSError(5, os.strerror(5))
            return stat(path, **named)  # type: ignore[arg-type]

        self.patch(os, "stat", look)
        self.assertEqual(b"x", load(self.store, repository, "data", NAME))
        self.assertRaises(OSError, self.store.list_objects(repository, "data", True).open)

    def test_known_before_the_start(self) -> None:
        """Of an earlier run: nothing is made where it should be, whatever is there."""
        self.store.create_repository(("alice",))
        known = self.store.volume.known
        self.unmount()
        for make in (lambda: None, self.path.rmdir):
            make()
            self.store = LocalStore(str(self.path))
            self.store.volume.expect(known, remembered_in="/var/lib/state/volume-id")
            with capturedLogs() as events:
                self.store.prepare()
            self.assertEqual(1, len(events))
            self.assertIn("remove /var/lib/state/volume-id and start it again", str(formatEvent(events[0])))
            self.assertEqual(make == self.path.rmdir, not self.path.exists())
            self.path.mkdir(exist_ok=True)
            self.assert_gone()
        self.mount()
        self.assertEqual([], entries(self.store, ("alice",), "data"))

    def test_marker_cannot_be_written(self) -> None:
        """Then a volume that goes is not noticed, and nothing else is wrong."""
        (self.path / ".rest-server").write_bytes(b"a file is in the way")
        self.store.create_repository(("alice",))
        save(self.store, ("alice",), "data", b"x")
        self.assertEqual(b"x", load(self.store, ("alice",), "data", NAME))
