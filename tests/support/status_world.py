"""
Data directories for pictures of the status page: repositories whose objects are files with holes, so that they are as large
as real ones, and a state file with the sizes of earlier days.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from resticserver.storage.state import StateFile

DAY_S, HOUR_S = 86_400, 3600
GIB = 1 << 30

#: Rules for the repositories of L{make_some}.
POLICY = """
[[rule]]
users = ["guest"]
repositories = ["alice/laptop"]
rights = "read"

[[rule]]
users = ["alice", "bob", "carol", "dave", "erin", "frank", "metrics"]
repositories = ["**"]
rights = "full"
create = true
quota = "4GiB"

[users.alice]
quota = "20GiB"

[users.erin]
quota = "4GiB"
"""
#: A host's name, as some script makes it.
LONG = "carol/backup-of-the-second-file-server-in-the-cellar.branch-office.example.com-2026-11-27"


@dataclass(frozen=True)
class Planned:
    """
    A repository to make.

    @ivar ago_s: how long ago each snapshot was stored.
    @ivar created_s: how long ago it was created. C{lock_s}: its lock.
    @ivar writer: who wrote last.
    """

    size_bytes: int
    ago_s: tuple[float, ...] = ()
    created_s: float = 40 * DAY_S
    lock_s: float | None = None
    writer: str = ""
    objects: int = 3


#: One of each kind.
SOME = {
    "alice/laptop": Planned(
        int(2.49 * GIB), tuple(5 * HOUR_S + n * DAY_S for n in range(28)), writer="alice", objects=40
    ),
    "alice/nas": Planned(int(3.5 * GIB), (9.2 * DAY_S, 16 * DAY_S), writer="nas", objects=61),
    "bob/desktop": Planned(
        int(0.48 * GIB), tuple(HOUR_S + n * DAY_S / 2 for n in range(60)), lock_s=3 * HOUR_S, writer="bob"
    ),
    "bob/new": Planned(16 << 20, created_s=3 * HOUR_S, writer="bob"),
    "carol/forgotten": Planned(300, created_s=12 * DAY_S, objects=1),
    LONG: Planned(int(0.91 * GIB), (2 * HOUR_S,), writer="carol", objects=22),
    "dave": Planned(int(1.26 * GIB), tuple(300 + n * DAY_S for n in range(14)), lock_s=60, writer="dave", objects=30),
    "erin/photos": Planned(
        int(3.85 * GIB), tuple(n * 2 * DAY_S + DAY_S / 3 for n in range(12)), writer="erin", objects=99
    ),
}


def _write(path: Path, size_bytes: int, ago_s: float) -> None:
    """A file of some age that takes no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    os.utime(path, (time.time() - ago_s,) * 2)


def make_repository(path: Path, planned: Planned) -> None:
    """What looks like a repository."""
    _write(path / "config", 155, planned.created_s)
    for number in range(planned.objects):
        name = f"{number * 7919 % 256:02x}{number:062x}"
        _write(path / "data" / name[:2] / name, planned.size_bytes // planned.objects, planned.created_s)
    for number, ago_s in enumerate(planned.ago_s):
        _write(path / "snapshots" / f"{number:064x}", 300, ago_s)
    if planned.lock_s is not None:
        _write(path / "locks" / ("1" * 64), 150, planned.lock_s)


def make_all(data: Path, repositories: dict[str, Planned], days: int) -> None:
    """
    Repositories, and what a server would have kept of the time before.

    @param days: since the first size that is known. Each repository has grown to what it is, with a prune now and then.
    """
    (data / ".rest-server").mkdir(exist_ok=True)
    state = StateFile(str(data))
    now_s = time.time()
    today = int(now_s // DAY_S)
    for name, planned in repositories.items():
        make_repository(data / name, planned)
    for ago in range(days, 0, -1):
        sizes = {
            tuple(name.split("/")): int(
                planned.size_bytes * (1 - 0.45 * ago / days - 0.05 * ((ago + number) % 11) / 11)
            )
            for number, (name, planned) in enumerate(repositories.items())
            if planned.created_s > ago * DAY_S
        }
        state.put_history(today - ago, sizes)
    counted = [(now_s - hours * HOUR_S, 21 << 20, 2 << 20, int(hours % 8 == 0), 0) for hours in range(23, 0, -1)]
    written = [
        (name, planned.writer, now_s - min((*planned.ago_s, planned.created_s)))
        for name, planned in repositories.items()
        if planned.writer
    ]
    state.put_activity(counted, written)
    state.put_refusals(
        [("erin", "erin/photos", "quota", 3, now_s - 2 * HOUR_S, "erin has 4 GiB, of which 3.85 GiB are used")]
        if "erin/photos" in repositories
        else []
    )
    state.close()


def make_some(data: Path) -> None:
    """A server on which much has happened."""
    make_all(data, SOME, 40)


def make_many(data: Path, number: int = 400) -> None:
    """
    Hundreds of repositories of forty users. Of every hundred one has an old snapshot, one no snapshot, and one a stale
    lock.
    """
    repositories = {
        f"user{each % 40:02}/machine-{each:03}": Planned(
            GIB + each * 37 * (1 << 20),
            () if each % 100 == 50 else ((8 if each % 100 == 99 else 0) * DAY_S + each * 60.0, 9 * DAY_S),
            lock_s=2 * HOUR_S if each % 100 == 20 else None,
            writer=f"user{each % 40:02}",
        )
        for each in range(number)
    }
    make_all(data, repositories, 30)
