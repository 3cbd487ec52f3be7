"""
How a repository lies on disk, as restic's own local backend has it: C{config}, C{keys/ID}, C{locks/ID}, C{snapshots/ID},
C{index/ID}, C{data/ab/ID}. The paths of its directories and objects, and the cells in which it is counted: one for each
directory that holds objects, one for the config, and one for the trash.
"""

from __future__ import annotations

from ..names import CONFIG

#: A repository's folders, from the data directory down.
Repository = tuple[str, ...]

#: The cells of a repository: its 256 directories of C{data} come first.
_OTHERS = ("index", "keys", "locks", "snapshots", CONFIG)
#: The folder of a repository's trash, and its cell: all that lies there (L{resticserver.storage.trash}).
TRASH = ".trash"
TRASH_CELL = 256 + len(_OTHERS)
CELLS = TRASH_CELL + 1

#: Types that may use a reserve above every limit: without a lock and a new index a full repository could not be pruned.
PRUNE_NEEDS = frozenset(("index", "locks"))


def repository_path(top: str, repository: Repository) -> str:
    """
    The path of a repository's directory.

    @param top: the data directory.
    """
    return "/".join((top, *repository))


def object_directory(top: str, repository: Repository, object_type: str, name: str) -> str:
    """The path of the directory that an object lies in."""
    path = "/".join((top, *repository))
    if object_type == "data":
        return f"{path}/data/{name[:2]}"
    return path if object_type == CONFIG else f"{path}/{object_type}"


def cell_of(object_type: str, name: str) -> int:
    """The cell of an object."""
    return int(name[:2], 16) if object_type == "data" else 256 + _OTHERS.index(object_type)


def cell_directory(cell: int) -> tuple[str, str]:
    """What a cell stands for: a type, and for C{data} the two digits that its objects begin with; or L{TRASH}."""
    return ("data", f"{cell:02x}") if cell < 256 else ((*_OTHERS, TRASH)[cell - 256], "")
