"""
C{rest-server usage}: the size, the quota and the last snapshot of each repository.

Counts on disk, whether a server runs or not. The server's state file speeds this up, and is not changed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from ..access.policy import Policy
from ..access.policyfile import parse_policy
from ..config.console import OneLineParser, write_line
from ..config.server_flags import add_server_flags, server_settings
from ..config.settings import Settings
from ..dates import date_text
from ..errors import ServerError, StartError
from ..files import read_file, reason_of
from ..quota.admission import NOTHING
from ..quota.ledger import owner_of
from ..service.factories import make_store
from ..sizes import Amount, Limit, format_size
from ..storage.directory_snapshots import Snapshots
from ..storage.interface import Counts, ServedStore
from ..storage.layout import CELLS, TRASH_CELL, Repository, repository_path
from ..storage.local import LocalStore
from ..storage.state import RepositoryState, StateFile
from ..telemetry.status import printable
from .table import text_table

#: The interval between updates of the progress line.
_PROGRESS_S = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """
    One repository.

    @ivar last_snapshot_s: when the newest snapshot was stored, in seconds since 1970; C{None} without snapshots.
    @ivar complete: whether all of it could be read.
    @ivar trash: what lies in its trash.
    """

    repository: Repository
    amount: Amount
    limit: Limit
    last_snapshot_s: float | None
    complete: bool = True
    trash: Amount = NOTHING

    @property
    def name(self) -> str:
        """The path of the repository."""
        return "/".join(self.repository) or "/"


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{usage}.
    @return: 0; 1 if nothing could be counted, or a repository only in part; 2 for invalid arguments.
    """
    parser = _parser()
    try:
        asked = parser.parse_args(arguments)
        settings = server_settings(asked, parser.prog)
        policy = _policy(settings.policy)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    except (OSError, ValueError) as error:
        why = reason_of(error) if isinstance(error, OSError) else str(error)
        print(f"{parser.prog}: {settings.policy}: {why}", file=sys.stderr)
        return 2
    progress = _Progress() if sys.stderr.isatty() else None
    try:
        lines, skipped = _lines(settings, policy, progress)
    except (ServerError, StartError, OSError) as error:
        what = (error.filename if isinstance(error, OSError) else None) or settings.path
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"{parser.prog}: cannot count {what}: {reason}", file=sys.stderr)
        return 1
    finally:
        if progress is not None:
            progress.clear()
    for path, reason in skipped.items():
        print(f"{parser.prog}: skipped {printable(path)}: {reason}", file=sys.stderr)
    incomplete = [printable(line.name) for line in lines if not line.complete]
    if incomplete:
        words = "incomplete size" if len(incomplete) == 1 else "incomplete sizes"
        print(f"{parser.prog}: {words}: {', '.join(incomplete)}", file=sys.stderr)
    total = settings.limit
    text = _json(lines, skipped, policy, total) if asked.json else _table(lines, policy, total)
    return 0 if write_line(text) and not incomplete else 1


def _parser() -> OneLineParser:
    parser = OneLineParser(
        "rest-server usage",
        description="Print the size of each repository. A directory that cannot be read is skipped and named on stderr. The "
        "exit status is 0 on success, 1 if a repository could not be read completely, and 2 if the arguments are invalid.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_server_flags(parser, "path", "policy", "max-size", "max-depth", "state-dir")
    return parser


def _policy(path: str | None) -> Policy:
    if path is None:
        return Policy()
    return replace(Policy(), grants=parse_policy(read_file(path)[0].decode("utf-8")))


def _lines(settings: Settings, policy: Policy, progress: _Progress | None) -> tuple[list[Line], dict[str, str]]:
    """
    Count all repositories.

    @return: the repositories, and the skipped directories with the reasons.
    @raise OSError: the data directory cannot be read.
    @raise ServerError: the object store cannot be read.
    """
    state = StateFile(settings.path, settings.state_dir, read_only=True)
    local: LocalStore | None = None
    store: ServedStore
    if settings.location is not None:
        store = make_store(settings, state)
        store.expect_kept(policy.longest_delete_delay())
    else:
        store = local = LocalStore(settings.path, max_depth=settings.max_depth, snapshots=Snapshots(store=state))
    # An empty mount point must not look like a server without repositories.
    store.volume.expect(state.marker())
    store.volume.check()
    if local is not None:
        os.listdir(settings.path)
    counting = store.counting
    lines = []
    found = set(counting.repositories())
    last_known = state.repositories()
    # Include repositories that the server has seen, but whose folders cannot be read now.
    skipped = local.counting.skipped.reasons if local is not None else {}
    repositories = sorted(found.union(one for one in last_known if _is_skipped(skipped, settings.path, one)))
    for number, repository in enumerate(repositories):
        say = partial(progress.say, number, len(repositories)) if progress is not None else None
        amount, trash, complete = _count(counting, repository, last_known.get(repository), say)
        lines.append(
            Line(
                repository,
                amount,
                policy.limit_of_repository(owner_of(repository), repository),
                counting.last_snapshot_s(repository),
                complete,
                trash,
            )
        )
    state.close()
    return lines, dict(sorted(skipped.items()))


def _is_skipped(skipped: Mapping[str, str], path: str, repository: Repository) -> bool:
    """Whether the folder of a repository, or one above it, cannot be read."""
    folders = (repository_path(path, repository[:length]) for length in range(1, len(repository) + 1))
    return any(folder in skipped for folder in folders)


def _count(
    counting: Counts, repository: Repository, last: RepositoryState | None, say: Callable[[int], object] | None
) -> tuple[Amount, Amount, bool]:
    """
    Count a repository.

    @param last: the server's last known counts, used for directories that cannot be read.
    @return: the amount, what lies in the trash, and whether everything could be read.
    """
    size_bytes = objects = 0
    trash = Amount()
    complete = True
    known = counting.known(repository)
    for cell in range(CELLS):
        amount = known[cell] if cell in known else counting.count(repository, (cell,)).get(cell)
        if amount is None:
            complete = False
            amount = Amount(last.sizes[cell], last.objects[cell]) if last is not None else Amount()
        if cell == TRASH_CELL:
            trash = amount
            continue
        size_bytes += amount.size_bytes
        objects += amount.objects
        if say is not None:
            say(objects)
    return Amount(size_bytes, objects), trash, complete


class _Progress:
    """A progress line on a terminal."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S
        self._shown = False

    def say(self, done: int, of: int, objects: int) -> None:
        """Show the progress: the number of counted repositories, and the objects counted so far in the current one."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_S
            self._shown = True
            print(
                f"\r\033[Kcounting: {done} of {of} repositories, {objects} objects", end="", file=sys.stderr, flush=True
            )

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _sum(amounts: Iterable[Amount]) -> Amount:
    amounts = list(amounts)
    return Amount(sum(amount.size_bytes for amount in amounts), sum(amount.objects for amount in amounts))


class _Sum(NamedTuple):
    """All repositories of a user, or of the server."""

    name: str
    amount: Amount
    trash: Amount
    limit: Limit


def _sum_of(name: str, lines: Sequence[Line], limit: Limit) -> _Sum:
    return _Sum(name, _sum(line.amount for line in lines), _sum(line.trash for line in lines), limit)


def _owners(lines: Sequence[Line], policy: Policy) -> list[_Sum]:
    """The users with a quota."""
    owners = sorted({owner for line in lines if (owner := owner_of(line.repository)) is not None})
    found = [
        _sum_of(owner, [line for line in lines if owner_of(line.repository) == owner], policy.limit_of_user(owner))
        for owner in owners
    ]
    return [one for one in found if one.limit != Limit()]


def _table(lines: Sequence[Line], policy: Policy, total: Limit) -> str:
    with_trash = any(line.trash.objects for line in lines)

    def row(name: str, owner: str, amount: Amount, trash: Amount, limit: Limit, last: str) -> tuple[str, ...]:
        kept = (format_size(trash.size_bytes),) if with_trash else ()
        return (name, owner, format_size(amount.size_bytes), *kept, _quota(limit), str(amount.objects), last)

    rows: list[Sequence[str]] = [
        ("REPOSITORY", "OWNER", "SIZE", *(("TRASH",) if with_trash else ()), "QUOTA", "OBJECTS", "LAST SNAPSHOT")
    ]
    for line in lines:
        last = "-" if line.last_snapshot_s is None else date_text(line.last_snapshot_s)
        owner = owner_of(line.repository) or "-"
        rows.append(row(printable(line.name), owner, line.amount, line.trash, line.limit, last))
    rows += [row("", one.name, one.amount, one.trash, one.limit, "") for one in _owners(lines, policy)]
    all_ = _sum_of("all", lines, total)
    rows.append(row("all", "", all_.amount, all_.trash, total, ""))
    return "\n".join(text_table(rows, (2, 3, 4, 5) if with_trash else (2, 3, 4)))


def _quota(limit: Limit) -> str:
    words = [] if limit.size_bytes is None else [format_size(limit.size_bytes)]
    return ", ".join(words + ([] if limit.objects is None else [f"{limit.objects} objects"])) or "-"


def _json(lines: Sequence[Line], skipped: Mapping[str, str], policy: Policy, total: Limit) -> str:
    def amounts(amount: Amount, trash: Amount, limit: Limit) -> dict[str, int | None]:
        return {
            "size_bytes": amount.size_bytes,
            "objects": amount.objects,
            "trash_bytes": trash.size_bytes,
            "trash_objects": trash.objects,
            "quota_bytes": limit.size_bytes,
            "quota_objects": limit.objects,
        }

    document = {
        "repositories": [
            {
                "repository": line.name,
                "owner": owner_of(line.repository),
                **amounts(line.amount, line.trash, line.limit),
                "last_snapshot": None if line.last_snapshot_s is None else date_text(line.last_snapshot_s),
                "complete": line.complete,
            }
            for line in lines
        ],
        "users": [{"user": one.name, **amounts(one.amount, one.trash, one.limit)} for one in _owners(lines, policy)],
        "total": amounts(*_sum_of("all", lines, total)[1:]),
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped.items()],
    }
    return json.dumps(document, indent=2)
