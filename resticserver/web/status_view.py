"""
Which repositories the status page shows, and in which order: what its form and its links ask for in the query.

Pure; works for hundreds of repositories in a millisecond, so the page needs no script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

from ..telemetry.concerns import Concern, Level
from ..telemetry.growth import grown
from ..telemetry.status import RepositoryStatus, ServerStatus, worst_of

#: The longest text that is looked for.
MOST_CHARACTERS = 200
#: How often a page is loaded again, if that is wanted.
RELOAD_S = 60


class Row(NamedTuple):
    """
    A repository and what needs attention in it, which is determined once for each page.

    @ivar level: of the worst concern.
    """

    repository: RepositoryStatus
    concerns: list[Concern]
    level: Level


class Order(NamedTuple):
    """
    An order of the repositories.

    @ivar title: its name in the form.
    @ivar key: what is compared.
    @ivar descending: whether the largest comes first, unless it is reversed.
    """

    title: str
    key: Callable[[Row], Any]
    descending: bool = False


def _quota_part(row: Row) -> float:
    most = row.repository.quota_bytes
    if most is None:
        return -1.0
    return row.repository.used_bytes / most if most else 1.0


def _growth(row: Row) -> int:
    found = grown(row.repository.history)
    return found.size_bytes if found is not None else 0


#: By their names in the query. Without any the first holds.
ORDERS: Mapping[str, Order] = {
    "need": Order("needs attention first", lambda row: row.level, True),
    "name": Order("name", lambda row: row.repository.name.casefold()),
    "snapshot": Order("oldest last snapshot first", lambda row: row.repository.last_snapshot_s or 0.0),
    "snapshots": Order("most snapshots first", lambda row: row.repository.snapshots, True),
    "stored": Order("largest first", lambda row: row.repository.size_bytes, True),
    "growth": Order("fastest growing first", _growth, True),
    "quota": Order("most used quota first", _quota_part, True),
    "objects": Order("most objects first", lambda row: row.repository.objects, True),
    "write": Order("last upload first", lambda row: row.repository.last_write_s or 0.0, True),
    "locks": Order("most locks first", lambda row: row.repository.locks, True),
}
DEFAULT_ORDER = next(iter(ORDERS))


@dataclass(frozen=True)
class View:
    """
    What is asked for.

    @ivar find: a part of the name or the owner; empty for all.
    @ivar attention: only what needs attention.
    @ivar sort: one of L{ORDERS}. C{reverse}: the other way round.
    @ivar reload: whether the browser loads the page again at intervals.
    """

    find: str = ""
    attention: bool = False
    sort: str = DEFAULT_ORDER
    reverse: bool = False
    reload: bool = False

    @classmethod
    def of(cls, query: Mapping[bytes, list[bytes]]) -> View:
        """Read a query. What is unknown in it is ignored, for links may be old."""

        def last(name: bytes) -> str:
            return query.get(name, [b""])[-1].decode("utf-8", "replace")

        sort = last(b"sort")
        if sort not in ORDERS:
            sort = DEFAULT_ORDER
        return cls(
            last(b"find").strip()[:MOST_CHARACTERS],
            last(b"show") == "attention",
            sort,
            # It names the order, so that another one that is chosen in the form is not reversed.
            last(b"reverse") == sort,
            last(b"reload") == "1",
        )

    def link(self, **changes: Any) -> str:
        """A relative link to the page with some values changed."""
        view = replace(self, **changes)
        values = {
            "find": view.find,
            "show": "attention" if view.attention else "",
            "sort": view.sort if view.sort != DEFAULT_ORDER else "",
            "reverse": view.sort if view.reverse else "",
            "reload": "1" if view.reload else "",
        }
        query = urlencode({name: value for name, value in values.items() if value})
        return f"status?{query}" if query else "status"

    def sorted_by(self, sort: str) -> str:
        """A link to the page sorted by a column; a second time the other way round."""
        return self.link(sort=sort, reverse=sort == self.sort and not self.reverse)

    @property
    def is_descending(self) -> bool:
        """Whether the largest comes first."""
        return ORDERS[self.sort].descending != self.reverse

    @property
    def is_filtered(self) -> bool:
        """Whether repositories may be left out."""
        return bool(self.find or self.attention)

    def chosen(self, rows: Iterable[Row]) -> list[Row]:
        """The rows to show, in their order; equal ones by name."""
        wanted = self.find.casefold()
        found = [
            row
            for row in rows
            if (not self.attention or row.level >= Level.WARNING)
            and (
                not wanted
                or wanted in row.repository.name.casefold()
                or wanted in (row.repository.owner or "").casefold()
            )
        ]
        found.sort(key=lambda row: row.repository.repository)
        found.sort(key=ORDERS[self.sort].key, reverse=self.is_descending)
        return found


def rows_of(status: ServerStatus) -> list[Row]:
    """All rows."""
    found = []
    for one in status.repositories:
        concerns = one.concerns(status.time_s, status.thresholds)
        found.append(Row(one, concerns, worst_of(concerns)))
    return found
