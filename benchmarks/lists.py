"""
Lists of a directory with very many objects: the first of a server that has just been started, again, and after an upload.

The objects are empty space of 16 MiB each, which takes no memory on tmpfs, and all servers list the same directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from figures import Need, Sample
from harness import Load, Measured, Server

#: A server may trust what it knows of a directory when nothing has changed there for some seconds.
SETTLED_S = 3.0
#: How often the list is read again.
AGAIN = 5
#: What restic has in a repository. What else a server leaves behind is what it remembers, and a first list must not know it.
KEPT = frozenset(("config", "data", "index", "keys", "locks", "snapshots"))


@dataclass(frozen=True)
class ListRow:
    """
    A row of the table.

    @ivar of: the list whose figures it shows.
    @ivar whole: until the last byte; else until the first.
    """

    name: str
    title: str
    of: str
    whole: bool = True
    need: Need | None = None

    def sample(self, measured: Measured) -> Sample | None:
        """What it shows of a list."""
        if measured.failed:
            return None
        if not self.whole:
            return Sample(measured.first_ms, None, None)
        return Sample(measured.median_ms, measured.cpu_s / measured.requests, measured.peak_mb)


ROWS = (
    ListRow("first-byte", "first: first byte", "first", whole=False, need=Need(most=50)),
    ListRow("first", "first: whole", "first"),
    ListRow("again", "again", "again", need=Need(1 / 0.6)),
    ListRow("after-upload", "after one upload", "after"),
)


class ListDirectory:
    """
    The directory that is listed.

    @ivar path: to be served.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settles = 0.0

    def make(self, entries: int) -> None:
        """Make the objects, unless they are there."""
        if self.path.exists():
            return
        for kind in KEPT - {"config", "data"}:
            (self.path / kind).mkdir(parents=True)
        for number in range(256):
            (self.path / "data" / f"{number:02x}").mkdir(parents=True)
        for number in range(entries):
            name = hashlib.sha256(b"%d" % number).hexdigest()
            descriptor = os.open(self.path / "data" / name[:2] / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            # Sizes differ, as they do in a repository.
            os.ftruncate(descriptor, 16 * 1024 * 1024 + number % 4096)
            os.close(descriptor)
        self.changed()

    def changed(self) -> None:
        """Something in it is about to change, or has."""
        self._settles = time.monotonic() + SETTLED_S

    def reset(self) -> None:
        """Forget what a server remembered in it, and wait until the last change is a while ago."""
        for entry in self.path.iterdir():
            if entry.name not in KEPT:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        time.sleep(max(0.0, self._settles - time.monotonic()))
        # The next server's round ends with an upload.
        self.changed()


def list_directory(path: Path, entries: int) -> ListDirectory:
    """The directory with its objects, made on first use."""
    directory = ListDirectory(path)
    directory.make(entries)
    return directory


def list_round(client: str, server: Server, entries: int, number: int, options: list[str]) -> dict[str, Measured]:
    """
    One server's lists: the first, some more, and one after an upload, which is taken back.

    @param server: that nobody has asked for anything yet.
    @param number: of the round.
    @return: by C{first}, C{again}, C{after}; and C{upload} and C{delete} where they failed.
    """
    with Load(client, server, ["-n", "1", "-size", "4096", "-seed", str(1000 + number), *options]) as load:
        got = {
            "first": load.measure(f"list c=1 entries={entries}"),
            "again": load.measure(f"list c=1 reps={AGAIN} entries={entries}"),
        }
        upload = load.measure("put c=1")
        got["after"] = load.measure(f"list c=1 entries={entries + 1}")
        delete = load.measure("delete c=1")
    return got | {name: what for name, what in (("upload", upload), ("delete", delete)) if what.failed}
