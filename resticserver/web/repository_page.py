"""
The page of one repository.
"""

from __future__ import annotations

from ..dates import date_text, day_text
from ..sizes import format_size
from ..telemetry.growth import growth_text
from ..telemetry.status import RepositoryStatus, ServerStatus, printable
from .charts import chart
from .html import Content, Markup, element
from .status_parts import (
    NONE,
    cell,
    concerns_list,
    footer,
    last_snapshot,
    last_write,
    locks,
    moment,
    page,
    quota_bar,
    title_of,
)


def repository_page(status: ServerStatus, repository: RepositoryStatus) -> Markup:
    """The page of one repository."""
    up = "../" * (1 + repository.repository.count("/"))
    rows = _rows(status, repository)
    return page(
        f"{repository.name} {NONE} {title_of(status)}",
        up,
        element(
            "header",
            element("p", element("a", "All repositories", href=f"{up}status")),
            element("h1", repository.name),
        ),
        element(
            "main",
            concerns_list(repository.concerns(status.time_s, status.thresholds)),
            element("dl", [(element("dt", name), element("dd", value)) for name, value in rows]),
            _problems(repository),
            element("h2", "Size over time"),
            chart(repository.history, repository.quota_bytes)
            if len(repository.history) > 1
            else element("p", element("small", "Not known yet: sizes are noted once a day.")),
        ),
        footer(status),
    )


def _rows(status: ServerStatus, repository: RepositoryStatus) -> list[tuple[str, Content]]:
    now_s, growth = status.time_s, growth_text(repository.history)
    rows: list[tuple[str, Content]] = [
        ("Owner", printable(repository.owner or NONE)),
        ("Created", NONE if repository.created_s is None else moment(repository.created_s, now_s)),
        ("Last snapshot", last_snapshot(repository, now_s)),
        ("Snapshots", f"{repository.snapshots:,}"),
        ("Last upload", last_write(repository, now_s)),
        ("Stored", [format_size(repository.size_bytes), " ", element("small", growth) if growth else None]),
        ("Objects", f"{repository.objects:,}"),
    ]
    if repository.quota_bytes is not None:
        rows.append(("Quota", quota_bar(repository.used_bytes, repository.quota_bytes, status.thresholds)))
    if repository.quota_objects is not None:
        rows.append(("Most objects", f"{repository.quota_objects:,}"))
    if repository.trash_objects:
        rows.append(("Trash", _trash(repository)))
    rows += [("Locks", locks(repository, now_s)), ("Damaged files found", str(repository.damaged))]
    return rows


def _trash(repository: RepositoryStatus) -> str:
    words = f"{format_size(repository.trash_bytes)} in {repository.trash_objects:,} objects"
    if repository.trash_ends_s is not None:
        words += f", until {day_text(repository.trash_ends_s)} or later"
    return words if repository.trash_counts else f"{words}; does not count towards quotas"


def _problems(repository: RepositoryStatus) -> Markup | None:
    """What the scrub has found."""
    if not repository.problems:
        return None
    rows = [
        element(
            "tr",
            element("th", f"{problem.type} {problem.name}", scope="row"),
            cell("Problem", problem.kind),
            cell("Found", date_text(problem.since_s)),
            cell("Reason", printable(problem.reason)),
        )
        for problem in repository.problems
    ]
    more = sum(repository.problem_counts.values()) - len(repository.problems)
    names = ("Object", "Problem", "Found", "Reason")
    head = element("tr", [element("th", name, scope="col") for name in names])
    return element(
        "section",
        element("h2", "Damaged, missing or unreadable objects"),
        element("table", element("thead", head), element("tbody", rows), class_="problems"),
        element("p", f"And {more} more: rest-server scrub shows all.") if more > 0 else None,
    )
