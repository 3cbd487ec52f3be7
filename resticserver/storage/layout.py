"""
How a repository lies on disk: its directories of objects, which are also the cells in which it is counted.
"""

from __future__ import annotations

from ..names import CONFIG

#: A repository's folders.
Repository = tuple[str, ...]

#: The cells of a repository: its 256 directories of C{data} come first.
_OTHERS = ("index", "keys", "locks", "snapshots", CONFIG)
CELLS = 256 + len(_OTHERS)

#: Types that may use a reserve above every limit: without a lock and a new index a full repository could not be pruned.
PRUNE_NEEDS = frozenset(("index", "locks"))


def cell_of(kind: str, name: str) -> int:
    """The cell of an object."""
    return int(name[:2], 16) if kind == "data" else 256 + _OTHERS.index(kind)


def cell_directory(cell: int) -> tuple[str, str]:
    """What a cell stands for: a type, and for C{data} the two digits that its objects begin with."""
    return ("data", f"{cell:02x}") if cell < 256 else (_OTHERS[cell - 256], "")
