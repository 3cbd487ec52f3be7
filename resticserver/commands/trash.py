"""
C{rest-server trash}: lists, restores and removes what was deleted and is kept in the trash (C{--delete-delay}).

Works on the files alone, whether a server runs or not. As root it acts with the rights of the repository's owner, so that
nothing it makes belongs to root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..config.console import OneLineParser, write_line
from ..config.server_flags import server_settings
from ..config.settings import Settings
from ..dates import date_text
from ..errors import NotFound, ServerError
from ..files import is_directory
from ..names import CONFIG
from ..sizes import Amount, format_size
from ..storage.layout import Repository, repository_path
from ..storage.local import LocalStore
from ..storage.publish import Publisher
from ..storage.reading import hash_of, opened
from ..storage.state import StateFile
from ..storage.trash import KEPT_TYPES, Trashed, has_trash, live_name, trash_days, trashed_objects
from ..storage.trash_restore import Damaged
from ..telemetry.status import printable
from .table import text_table
from .trash_arguments import Filter, command_parser, filter_of, overview

_PROGRESS_S = 0.2
#: How many objects are removed in one step.
_STEP_OBJECTS = 100


class _Failed(Exception):
    """The command cannot be run; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """
    Run the command.

    @param arguments: the arguments after C{trash}.
    @return: 0; 1 if something could not be read, restored or removed; 2 for invalid arguments.
    """
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "list": _list,
        "restore": _restore,
        "empty": _empty,
    }
    name = next((argument for argument in arguments if argument in commands), None)
    try:
        if name is None or arguments[0] != name:
            overview().parse_args(arguments)
            return 2
        parser = command_parser(name)
        asked = parser.parse_intermixed_args(list(arguments[1:]))
        settings = server_settings(asked, parser.prog)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 2
    try:
        return commands[name](asked, settings)
    except _Failed as error:
        _complain(f"{parser.prog}: {error}")
        return 1
    except (ServerError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        _complain(f"{parser.prog}: {reason}")
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; run it again to go on", file=sys.stderr)
        return 1


def _parser() -> OneLineParser:
    return overview()


# --- what is there


def _store(settings: Settings) -> LocalStore:
    """The server's store, for its trash; the volume must be there."""
    if settings.location is not None:
        raise _Failed(f"{settings.location}: an object store has no trash of this server's")
    path = os.path.abspath(settings.path)
    publisher = Publisher(0o660, 0o770) if settings.group_accessible_repos else Publisher()
    store = LocalStore(path, max_depth=settings.max_depth, publisher=publisher)
    store.volume.expect(StateFile(path, settings.state_dir, read_only=True).marker())
    store.volume.check()
    if not os.path.isdir(path):
        raise _Failed(f"there is no data directory {path}")
    return store


def _chosen(store: LocalStore, repository: Repository, wanted: Filter) -> list[Trashed]:
    """
    The objects that are meant, in the order in which they are restored, the newest of each first. A repository has one config.
    """
    found = [
        trashed
        for day in trash_days(store.path, repository)
        for trashed in trashed_objects(day)
        if wanted.takes(trashed)
    ]
    return sorted(found, key=lambda one: (KEPT_TYPES.index(one.object_type), live_name(one), -one.deleted_s, one.path))


def _of_one_repository(store: LocalStore, asked: argparse.Namespace) -> list[Trashed]:
    """
    The chosen objects of the repository that was named.

    @raise _Failed: there is no such repository, or nothing has an id that was named.
    """
    if not is_directory(repository_path(store.path, asked.repository)):
        raise _Failed(f"{_name(asked.repository)}: no such repository")
    chosen = _chosen(store, asked.repository, filter_of(asked))
    for prefix in asked.ids:
        names = {one.name for one in chosen if one.name.startswith(prefix)}
        if not names:
            raise _Failed(f"{prefix}: no such object is in the trash of {_name(asked.repository)}")
        if len(names) > 1:
            raise _Failed(f"{prefix}: {len(names)} objects have ids that begin so")
    return chosen


def _name(repository: Repository) -> str:
    return "/".join(repository) or "/"


def _amount(objects: Sequence[Trashed]) -> Amount:
    return Amount(sum(one.size_bytes for one in objects), len(objects))


def _words(amount: Amount) -> str:
    return f"{amount.objects} object{'s' if amount.objects != 1 else ''} ({format_size(amount.size_bytes)})"


def _document(trashed: Trashed, delay_s: float = 0) -> dict[str, Any]:
    ends_s = trashed.day.ends_s(trashed.deleted_s, delay_s)
    return {
        "repository": _name(trashed.day.repository),
        "type": trashed.object_type,
        "id": trashed.name,
        "size_bytes": trashed.size_bytes,
        "deleted": date_text(trashed.deleted_s),
        "until": None if ends_s is None else date_text(ends_s),
    }


# --- list


def _list(asked: argparse.Namespace, settings: Settings) -> int:
    store = _store(settings)
    delay_s = settings.delete_delay_s
    status = 0
    if asked.repository is not None:
        chosen = _of_one_repository(store, asked)
        text = _table(chosen, delay_s)
    else:
        found: dict[Repository, list[Trashed]] = {}
        for repository in sorted(store.counting.possible_repositories()):
            try:
                if has_trash(store.path, repository):
                    found[repository] = _chosen(store, repository, filter_of(asked))
            except OSError as error:
                status = 1
                _complain(
                    f"rest-server trash list: skipped the trash of {_name(repository)}: {error.strerror or error}"
                )
        chosen = [one for its in found.values() for one in its]
        text = _summary(found, delay_s)
    said = _said(asked, {"objects": [_document(one, delay_s) for one in chosen]}, text)
    return said or status


def _summary(found: Mapping[Repository, Sequence[Trashed]], delay_s: float) -> str:
    """One line for each repository."""
    rows: list[Sequence[str]] = [("REPOSITORY", "OBJECTS", "SIZE", "DELETED", "UNTIL")]
    for repository, its in found.items():
        if its:
            amount = _amount(its)
            first, last = min(one.deleted_s for one in its), max(one.deleted_s for one in its)
            ends = [ends_s for one in its if (ends_s := one.day.ends_s(one.deleted_s, delay_s)) is not None]
            rows.append(
                (
                    printable(_name(repository)),
                    str(amount.objects),
                    format_size(amount.size_bytes),
                    f"{date_text(first)[:16]} to {date_text(last)[:16]}",
                    date_text(min(ends))[:16] if ends else "not set",
                )
            )
    if len(rows) > 1:
        return "\n".join(text_table(rows, (1, 2)))
    return "nothing matches" if found else "the trash is empty"


def _table(chosen: Sequence[Trashed], delay_s: float) -> str:
    """One line for each object."""
    if not chosen:
        return "nothing matches"
    rows: list[Sequence[str]] = [("TYPE", "ID", "SIZE", "DELETED", "UNTIL")]
    for one in chosen:
        ends_s = one.day.ends_s(one.deleted_s, delay_s)
        until = "not set" if ends_s is None else date_text(ends_s)
        rows.append((one.object_type, one.name, format_size(one.size_bytes), date_text(one.deleted_s), until))
    return "\n".join([*text_table(rows, (2,)), "", f"{_words(_amount(chosen))} in the trash"])


# --- restore


def _restore(asked: argparse.Namespace, settings: Settings) -> int:
    store = _store(settings)
    chosen = _of_one_repository(store, asked)
    _check_config(store, asked, chosen)
    newest: dict[tuple[str, str], list[Trashed]] = {}
    for one in chosen:
        newest.setdefault((one.object_type, live_name(one)), []).append(one)
    if asked.dry_run:
        words = [copies[0] for copies in newest.values()]
        return _said(
            asked, {"would_restore": [_document(one) for one in words]}, f"would restore {_words(_amount(words))}"
        )
    restored: list[Trashed] = []
    present: list[Trashed] = []
    failed: list[tuple[Trashed, str]] = []
    progress = _Progress("restoring", len(newest))
    with _acting_as_owner(store, asked.repository):
        for copies in newest.values():
            progress.say(len(restored) + len(present) + len(failed))
            why = ""
            for one in copies:
                try:
                    (restored if store.trash.restore(one) else present).append(one)
                    break
                except Damaged:
                    why = "its content does not match its id"
                except FileExistsError:
                    why = f"another file is at {live_name(one)} now"
                except (FileNotFoundError, NotFound):
                    why = "it is not in the trash any more"
                except OSError as error:
                    why = error.strerror or str(error)
            else:
                failed.append((copies[0], why))
        for day in trash_days(store.path, asked.repository):
            store.trash.remove_if_empty(day)
    progress.clear()
    return _said_restored(asked, store, restored, present, failed)


def _check_config(store: LocalStore, asked: argparse.Namespace, chosen: Sequence[Trashed]) -> None:
    """
    Refuse to mix two repositories: if another config is in the trash than the one in use, or than the one that would be
    restored, what was deleted before that one was belongs to a repository that was at this path before.

    @raise _Failed: something chosen does.
    """
    if asked.force:
        return
    every_config = Filter(frozenset((CONFIG,)), (), None, None)
    configs = _chosen(store, asked.repository, every_config)
    own = _config_hash(f"{repository_path(store.path, asked.repository)}/{CONFIG}")
    if own is None:
        own = next((one.name for one in (*chosen, *configs) if one.object_type == CONFIG), None)
    last_s = max((one.deleted_s for one in configs if one.name != own), default=None)
    # Its objects were deleted right after the config.
    if last_s is not None and any(one.deleted_s <= last_s + 60 for one in chosen):
        raise _Failed(
            f"another repository was at {_name(asked.repository)} until {date_text(last_s)}, and its objects are in the trash: "
            "choose what was deleted later with --since, or move its files away first; --force restores all the same"
        )


def _config_hash(path: str) -> str | None:
    """The hash of a repository's config; C{None} if there is none."""
    try:
        with opened(path) as fd:
            return hash_of(fd)
    except (FileNotFoundError, NotFound):
        return None


def _said_restored(
    asked: argparse.Namespace,
    store: LocalStore,
    restored: Sequence[Trashed],
    present: Sequence[Trashed],
    failed: Sequence[tuple[Trashed, str]],
) -> int:
    for one, why in failed:
        _complain(f"rest-server trash restore: {one.object_type} {one.name} was not restored: {why}")
    text = f"restored {_words(_amount(restored))}"
    if present:
        text += f"; {_words(_amount(present))} are there already"
    if failed:
        text += f"; {len(failed)} could not be restored"
    if restored and _locks(store, asked.repository):
        print(
            "rest-server trash restore: the repository has locks: a prune that is running now may delete what was restored; "
            "run this command again when it has ended",
            file=sys.stderr,
        )
    document = {
        "restored": [_document(one) for one in restored],
        "present": [_document(one) for one in present],
        "failed": [{**_document(one), "reason": why} for one, why in failed],
    }
    said = _said(asked, document, text)
    return 1 if failed else said


def _locks(store: LocalStore, repository: Repository) -> bool:
    try:
        return bool(os.listdir(f"{repository_path(store.path, repository)}/locks"))
    except OSError:
        return False


# --- empty


def _empty(asked: argparse.Namespace, settings: Settings) -> int:
    store = _store(settings)
    chosen = _of_one_repository(store, asked)
    amount = _amount(chosen)
    if asked.dry_run:
        return _said(asked, {"would_remove": [_document(one) for one in chosen]}, f"would remove {_words(amount)}")
    if not asked.yes:
        if not sys.stdin.isatty():
            raise _Failed("this removes deleted objects for good: say --yes")
        print(
            f"Remove {_words(amount)} from the trash of {_name(asked.repository)} for good? [y/N] ",
            end="",
            file=sys.stderr,
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise _Failed("nothing was removed")
    removed = Amount()
    progress = _Progress("removing", len(chosen))
    with _acting_as_owner(store, asked.repository):
        for first in range(0, len(chosen), _STEP_OBJECTS):
            progress.say(first)
            step = store.trash.remove(asked.repository, chosen[first : first + _STEP_OBJECTS])
            removed = Amount(removed.size_bytes + step.size_bytes, removed.objects + step.objects)
        for day in trash_days(store.path, asked.repository):
            store.trash.remove_if_empty(day)
    progress.clear()
    document = {"removed_bytes": removed.size_bytes, "removed_objects": removed.objects}
    return _said(asked, document, f"removed {_words(removed)}")


# --- common


def _complain(words: str) -> None:
    print(printable(words), file=sys.stderr)


def _said(asked: argparse.Namespace, document: dict[str, Any], text: str) -> int:
    return 0 if write_line(json.dumps(document, indent=2) if asked.json else text) else 1


@contextmanager
def _acting_as_owner(store: LocalStore, repository: Repository) -> Iterator[None]:
    """As root, act with the rights of the repository's owner: what root makes, the server could not change."""
    status = os.stat(repository_path(store.path, repository))
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([status.st_gid])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


class _Progress:
    """A progress line on a terminal."""

    def __init__(self, verb: str, number: int) -> None:
        self._words = (verb, number)
        self._next_s = time.monotonic() + _PROGRESS_S
        self._shown = False
        self._on = sys.stderr.isatty()

    def say(self, done: int) -> None:
        """Show how many objects are done."""
        if self._on and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _PROGRESS_S
            self._shown = True
            verb, number = self._words
            print(f"\r\033[K{verb}: {done} of {number} objects", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
