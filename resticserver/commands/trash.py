"""
C{rest-server trash}: lists, restores and removes what was deleted and is kept in the trash (C{--delete-delay}).

Works on the files or the bucket alone, whether a server runs or not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..config.console import OneLineParser, write_line
from ..config.server_flags import server_settings
from ..config.settings import Settings
from ..dates import date_text
from ..errors import NotFound, ServerError, StartError
from ..names import CONFIG
from ..objects.engine import EngineError
from ..sizes import Amount, format_size
from ..storage.layout import Repository
from ..storage.trash import KEPT_TYPES, Deleted, live_name
from ..storage.trash_restore import Damaged
from ..telemetry.status import printable
from .table import text_table
from .trash_arguments import Filter, command_parser, filter_of, overview
from .trash_place import D, TrashPlace, open_files_trash

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
    except (ServerError, StartError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        if isinstance(error, EngineError) and error.detail:
            reason += f" ({error.detail})"
        _complain(f"{parser.prog}: {reason}")
        return 1
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; run it again to go on", file=sys.stderr)
        return 1


def _parser() -> OneLineParser:
    return overview()


# --- what is there


def _place(settings: Settings) -> TrashPlace[Any]:
    """
    The trash of the server's repositories.

    @raise StartError: the place cannot be used.
    """
    if settings.location is None:
        return open_files_trash(settings)
    from ..service.object_store import make_bucket_trash  # its libraries are an extra, and take a while

    return make_bucket_trash(settings, settings.location)


def _chosen(place: TrashPlace[D], repository: Repository, wanted: Filter) -> list[D]:
    """
    The objects that are meant, in the order in which they are restored, the newest of each first. A repository has one config.
    """
    return _in_order(one for one in place.objects(repository) if wanted.takes(one))


def _in_order(objects: Iterable[D]) -> list[D]:
    return sorted(objects, key=lambda one: (KEPT_TYPES.index(one.object_type), live_name(one), -one.deleted_s))


def _of_one_repository(place: TrashPlace[D], asked: argparse.Namespace) -> list[D]:
    """
    The chosen objects of the repository that was named.

    @raise _Failed: there is no such repository, or nothing has an id that was named.
    """
    if not place.has_repository(asked.repository):
        raise _Failed(f"{_name(asked.repository)}: no such repository")
    chosen = _chosen(place, asked.repository, filter_of(asked))
    for prefix in asked.ids:
        names = {one.name for one in chosen if one.name.startswith(prefix)}
        if not names:
            raise _Failed(f"{prefix}: no such object is in the trash of {_name(asked.repository)}")
        if len(names) > 1:
            raise _Failed(f"{prefix}: {len(names)} objects have ids that begin so")
    return chosen


def _name(repository: Repository) -> str:
    return "/".join(repository) or "/"


def _amount(objects: Sequence[Deleted]) -> Amount:
    return Amount(sum(one.size_bytes for one in objects), len(objects))


def _words(amount: Amount) -> str:
    return f"{amount.objects} object{'s' if amount.objects != 1 else ''} ({format_size(amount.size_bytes)})"


def _document(trashed: Deleted, delay_s: float = 0) -> dict[str, Any]:
    ends_s = trashed.ends_s(delay_s)
    return {
        "repository": _name(trashed.repository),
        "type": trashed.object_type,
        "id": trashed.name,
        "size_bytes": trashed.size_bytes,
        "deleted": date_text(trashed.deleted_s),
        "until": None if ends_s is None else date_text(ends_s),
    }


# --- list


def _list(asked: argparse.Namespace, settings: Settings) -> int:
    place = _place(settings)
    delay_s = settings.delete_delay_s
    status = 0
    if asked.repository is not None:
        chosen = _of_one_repository(place, asked)
        text = _table(chosen, delay_s)
    else:
        found: dict[Repository, list[Any]] = {}
        for repository in sorted(place.repositories()):
            try:
                if its := list(place.objects(repository)):
                    found[repository] = _in_order(filter(filter_of(asked).takes, its))
            except OSError as error:
                status = 1
                _complain(
                    f"rest-server trash list: skipped the trash of {_name(repository)}: {error.strerror or error}"
                )
        chosen = [one for its in found.values() for one in its]
        text = _summary(found, delay_s)
    said = _said(asked, {"objects": [_document(one, delay_s) for one in chosen]}, text)
    return said or status


def _summary(found: Mapping[Repository, Sequence[Deleted]], delay_s: float) -> str:
    """One line for each repository."""
    rows: list[Sequence[str]] = [("REPOSITORY", "OBJECTS", "SIZE", "DELETED", "UNTIL")]
    for repository, its in found.items():
        if its:
            amount = _amount(its)
            first, last = min(one.deleted_s for one in its), max(one.deleted_s for one in its)
            ends = [ends_s for one in its if (ends_s := one.ends_s(delay_s)) is not None]
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


def _table(chosen: Sequence[Deleted], delay_s: float) -> str:
    """One line for each object."""
    if not chosen:
        return "nothing matches"
    rows: list[Sequence[str]] = [("TYPE", "ID", "SIZE", "DELETED", "UNTIL")]
    for one in chosen:
        ends_s = one.ends_s(delay_s)
        until = "not set" if ends_s is None else date_text(ends_s)
        rows.append((one.object_type, one.name, format_size(one.size_bytes), date_text(one.deleted_s), until))
    return "\n".join([*text_table(rows, (2,)), "", f"{_words(_amount(chosen))} in the trash"])


# --- restore


def _restore(asked: argparse.Namespace, settings: Settings) -> int:
    place = _place(settings)
    chosen = _of_one_repository(place, asked)
    _check_config(place, asked, chosen)
    newest: dict[tuple[str, str], list[Any]] = {}
    for one in chosen:
        newest.setdefault((one.object_type, live_name(one)), []).append(one)
    if asked.dry_run:
        words = [copies[0] for copies in newest.values()]
        return _said(
            asked, {"would_restore": [_document(one) for one in words]}, f"would restore {_words(_amount(words))}"
        )
    restored: list[Deleted] = []
    present: list[Deleted] = []
    failed: list[tuple[Deleted, str]] = []
    progress = _Progress("restoring", len(newest))
    with place.acting(asked.repository):
        for copies in newest.values():
            progress.say(len(restored) + len(present) + len(failed))
            why = ""
            for one in copies:
                try:
                    (restored if place.restore(one) else present).append(one)
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
        place.tidy(asked.repository)
    progress.clear()
    return _said_restored(asked, place, restored, present, failed)


def _check_config(place: TrashPlace[Any], asked: argparse.Namespace, chosen: Sequence[Deleted]) -> None:
    """
    Refuse to mix two repositories: if another config is in the trash than the one in use, or than the one that would be
    restored, what was deleted before that one was belongs to a repository that was at this path before.

    @raise _Failed: something chosen does.
    """
    if asked.force:
        return
    every_config = Filter(frozenset((CONFIG,)), (), None, None)
    configs = _chosen(place, asked.repository, every_config)
    own = place.config_hash(asked.repository)
    if own is None:
        own = next((one.name for one in (*chosen, *configs) if one.object_type == CONFIG), None)
    last_s = max((one.deleted_s for one in configs if one.name != own), default=None)
    # Its objects were deleted right after the config.
    if last_s is not None and any(one.deleted_s <= last_s + 60 for one in chosen):
        raise _Failed(
            f"another repository was at {_name(asked.repository)} until {date_text(last_s)}, and its objects are in the trash: "
            "choose what was deleted later with --since, or move its files away first; --force restores all the same"
        )


def _said_restored(
    asked: argparse.Namespace,
    place: TrashPlace[Any],
    restored: Sequence[Deleted],
    present: Sequence[Deleted],
    failed: Sequence[tuple[Deleted, str]],
) -> int:
    for one, why in failed:
        _complain(f"rest-server trash restore: {one.object_type} {one.name} was not restored: {why}")
    text = f"restored {_words(_amount(restored))}"
    if present:
        text += f"; {_words(_amount(present))} are there already"
    if failed:
        text += f"; {len(failed)} could not be restored"
    if restored and place.has_locks(asked.repository):
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


# --- empty


def _empty(asked: argparse.Namespace, settings: Settings) -> int:
    place = _place(settings)
    chosen = _of_one_repository(place, asked)
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
    with place.acting(asked.repository):
        for first in range(0, len(chosen), _STEP_OBJECTS):
            progress.say(first)
            step = place.remove(asked.repository, chosen[first : first + _STEP_OBJECTS])
            removed = Amount(removed.size_bytes + step.size_bytes, removed.objects + step.objects)
        place.tidy(asked.repository)
    progress.clear()
    document = {"removed_bytes": removed.size_bytes, "removed_objects": removed.objects}
    return _said(asked, document, f"removed {_words(removed)}")


# --- common


def _complain(words: str) -> None:
    print(printable(words), file=sys.stderr)


def _said(asked: argparse.Namespace, document: dict[str, Any], text: str) -> int:
    return 0 if write_line(json.dumps(document, indent=2) if asked.json else text) else 1


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
