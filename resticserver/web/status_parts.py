"""
The parts that the page of the server and those of the repositories have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..dates import date_text, minute_text
from ..sizes import format_size
from ..telemetry.concerns import Concern, Thresholds, age, per_cent
from ..telemetry.status import RepositoryStatus, ServerStatus, printable
from .charts import bar
from .html import Content, Markup, element

NONE = "\N{EN DASH}"


def page(title: str, up: str, *content: Content, reload_s: int = 0) -> Markup:
    """
    A whole page.

    @param up: the way from it to C{/-/}: links are relative, so that they work behind a proxy's prefix.
    @param reload_s: how often the browser loads it again; 0 for never.
    """
    return element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", http_equiv="refresh", content=str(reload_s)) if reload_s else None,
            element("title", title),
            element("link", rel="stylesheet", href=f"{up}status.css"),
        ),
        element("body", content),
        lang="en",
    )


def title_of(status: ServerStatus) -> str:
    """What the pages are called."""
    return f"Backups on {printable(status.host)}" if status.host else "Backups"


def footer(status: ServerStatus) -> Markup:
    """When the page was made, and by what."""
    running = f"Running for {age(status.time_s - status.started_s)}, since "
    return element(
        "footer",
        element("p", f"As of {date_text(status.time_s)}."),
        element("p", running, instant(status.started_s), f". Version {status.version}."),
    )


def concerns_list(concerns: Sequence[Concern]) -> Markup | None:
    """What needs attention."""
    if not concerns:
        return None
    return element(
        "ul",
        [element("li", printable(words), class_=level.name.lower()) for level, words in concerns],
        class_="concerns",
    )


def cell(name: str, *content: Content, kind: str | None = None) -> Markup:
    """A cell; on a phone, where the head is not shown, it says its column."""
    return element("td", element("div", content), class_=kind, data_name=name)


def instant(seconds: float) -> Content:
    """A point in time, which may be one that no calendar has."""
    stamp = date_text(seconds)
    return element("time", minute_text(seconds), datetime=stamp) if stamp.endswith("Z") else stamp


def moment(seconds: float, now_s: float, words: str = "") -> Content:
    """
    A point in time: how long ago, and when.

    @param words: instead of how long ago.
    """
    words = words or f"{age(max(0.0, now_s - seconds))} ago"
    return [words, " ", element("small", instant(seconds))]


def last_snapshot(repository: RepositoryStatus, now_s: float) -> Content:
    """When the last snapshot was stored."""
    if repository.last_snapshot_s is None:
        return "never" if repository.counted else "not known yet"
    return moment(repository.last_snapshot_s, now_s)


def last_write(repository: RepositoryStatus, now_s: float) -> Content:
    """Who wrote last, and when."""
    if repository.last_write_s is None:
        return NONE
    return moment(repository.last_write_s, now_s, printable(repository.last_writer or ""))


def locks(repository: RepositoryStatus, now_s: float) -> Content:
    """How many locks there are, and how old the oldest is."""
    if not repository.locks:
        return "none"
    if repository.oldest_lock_s is None:
        return str(repository.locks)
    words = f"{repository.locks}, {age(max(0.0, now_s - repository.oldest_lock_s))} old"
    return moment(repository.oldest_lock_s, now_s, words)


def quota_bar(used: int, most: int | None, thresholds: Thresholds) -> Markup | None:
    """The used part of a quota in bytes."""
    if most is None:
        return None
    words = f"{per_cent(used, most)} of {format_size(most)}"
    return element("span", bar(used, most, warn_from=thresholds.quota), element("small", words), class_="quota")
