"""
The page of the server: its state, and the table of its repositories.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from ..names import is_folder_name
from ..sizes import format_size
from ..telemetry.concerns import Level, age, per_cent
from ..telemetry.growth import full_text, growth_text, signed
from ..telemetry.last_day import DAY_S, SLOT_S
from ..telemetry.status import RepositoryStatus, ServerStatus, UserStatus, printable
from .charts import bar, chart, small_curve
from .html import Content, Markup, element
from .status_parts import (
    NONE,
    cell,
    concerns_list,
    footer,
    instant,
    last_snapshot,
    last_write,
    locks,
    page,
    quota_bar,
    title_of,
)
from .status_view import ORDERS, RELOAD_S, Row, View, rows_of

#: The columns of the table, with the order that each sorts by.
_COLUMNS = (
    ("Repository", "name"),
    ("Last snapshot", "snapshot"),
    ("Snapshots", "snapshots"),
    ("Stored", "stored"),
    ("Growth", "growth"),
    ("Quota", "quota"),
    ("Last upload", "write"),
    ("Locks", "locks"),
)
_NUMBERS = ("Snapshots", "Stored")


def server_page(status: ServerStatus, view: View) -> Markup:
    """The page of the server."""
    rows = rows_of(status)
    users = status.users_by_need()
    return page(
        title_of(status),
        "",
        element(
            "header",
            element("h1", title_of(status)),
            element("p", _summary(status, rows, users), class_="lead"),
            _reloading(view),
        ),
        element(
            "main",
            concerns_list(status.concerns()),
            element("section", _figures(status), class_="figures"),
            _total(status),
            _repositories(status, rows, view),
            _users(status, users),
        ),
        footer(status),
        reload_s=RELOAD_S if view.reload else 0,
    )


def _summary(status: ServerStatus, rows: Sequence[Row], users: Sequence[UserStatus]) -> str:
    """How all of it is, in a line."""
    needy = sum(row.level >= Level.WARNING for row in rows)
    needy_users = sum(user.level(status.time_s, status.thresholds) >= Level.WARNING for user in users)
    found = [f"{needy} need{'s' if needy == 1 else ''} attention"] if needy else []
    if needy_users:
        found.append("1 user needs attention" if needy_users == 1 else f"{needy_users} users need attention")
    if any(level >= Level.WARNING for level, _ in status.concerns()):
        found.append("and so does the server" if found else "the server needs attention")
    well = "all is well" if status.counted else "still counting"
    return f"{_number(len(rows))}, {', '.join(found) or well}"


def _number(repositories: int) -> str:
    return f"{repositories:,} repositor{'y' if repositories == 1 else 'ies'}"


def _reloading(view: View) -> Markup:
    """Links that load the page again."""
    again = (
        element("a", "Stop reloading", href=view.link(reload=False))
        if view.reload
        else element("a", "Reload every minute", href=view.link(reload=True))
    )
    return element("nav", element("a", "Reload", href=view.link()), again, aria_label="Reload")


# --- figures


def _figure(name: str, value: str, *more: Content) -> Markup:
    return element("div", element("h2", name), element("p", value, class_="value"), more)


def _small(*content: Content) -> Markup:
    return element("small", content)


def _figures(status: ServerStatus) -> list[Markup | None]:
    quota = quota_bar(status.used_bytes, status.quota_bytes, status.thresholds)
    return [
        _figure("Stored", format_size(status.size_bytes), quota),
        _figure("Trash", format_size(status.trash_bytes)) if status.trash_bytes else None,
        _growth(status),
        _disk(status),
        *_last_day(status),
        _certificate(status),
        _scrub(status),
    ]


def _growth(status: ServerStatus) -> Markup | None:
    """The growth of all repositories; nothing for a user who may not see all."""
    if status.last_day is None:
        return None
    text = growth_text(status.history)
    rate = status.growth_bytes_per_day
    if not text:
        return _figure("Growth", NONE, _small("not known yet: sizes are noted once a day"))
    value, _, days = text.partition(" in ")
    return _figure("Growth", value, _small(f"in {days}"), _small(f"{signed(int(rate))} a day") if rate else None)


def _disk(status: ServerStatus) -> Markup | None:
    free, size = status.disk_free_bytes, status.disk_size_bytes
    if free is None or not size:
        return None
    used = size - free
    return _figure(
        "Free disk",
        format_size(free),
        bar(used, size, warn_from=status.thresholds.disk),
        _small(f"{per_cent(used, size)} of {format_size(size)} used"),
        _full(status),
    )


def _full(status: ServerStatus) -> list[Markup]:
    """When the disk will be full."""
    words = full_text(status.time_s, status.disk_full_s, status.growth_bytes_per_day)
    if status.disk_full_s is None:
        return [_small(words)]
    # The date must not be broken at its hyphens.
    about, left = words.split(", ")
    about, day = about.rsplit(" ", 1)
    return [_small(about, " ", element("time", day, datetime=day)), _small(left)]


def _last_day(status: ServerStatus) -> list[Markup]:
    """Traffic and what was refused."""
    last = status.last_day
    if last is None:
        return []
    span = _span(last.covered_s)
    return [
        _figure(
            "Received", format_size(last.received_bytes), _small(f"sent {format_size(last.sent_bytes)}"), _small(span)
        ),
        _figure(
            "Refused uploads",
            f"{last.uploads_refused:,}",
            _small(f"limits reached {last.limited:,} time{'s' if last.limited != 1 else ''}"),
            _small("in the last day"),
        ),
        _figure("Failed logins", f"{last.failed_logins:,}", _small(span)),
    ]


def _span(covered_s: float) -> str:
    """How much of the last day is known."""
    if covered_s >= DAY_S - SLOT_S:
        return "in the last day"
    return f"in the last {age(covered_s)}" if covered_s >= 60 else "since the start"


def _certificate(status: ServerStatus) -> Markup | None:
    if status.certificate_s is None:
        return None
    left_s = status.certificate_s - status.time_s
    return _figure(
        "Certificate",
        f"{age(left_s)} left" if left_s > 0 else "expired",
        _small("until ", instant(status.certificate_s)),
    )


def _scrub(status: ServerStatus) -> Markup | None:
    """When everything was verified last, and how far the present pass is."""
    scrub = status.scrub
    if scrub is None:
        return None
    last_s = scrub.last_complete_s
    value = "not yet complete" if last_s is None else f"{age(max(0.0, status.time_s - last_s))} ago"
    more: list[Content] = [] if last_s is None else [_small(instant(last_s))]
    if scrub.progress is not None:
        left = "" if scrub.left_s is None else f", {age(scrub.left_s)} left"
        done = int(scrub.progress * 1000)
        more += [bar(done, 1000, "good"), _small(f"{done // 10} % of the present pass done{left}")]
    return _figure("Verified", value, more)


def _total(status: ServerStatus) -> Markup | None:
    if len(status.history) < 2:
        return None
    return element(
        "section", element("h2", "Stored in all repositories"), chart(status.history, status.quota_bytes, "Limit")
    )


# --- tables


def _users(status: ServerStatus, users: Sequence[UserStatus]) -> Markup | None:
    if not users:
        return None
    now_s, thresholds = status.time_s, status.thresholds
    rows = [
        element(
            "tr",
            element("th", user.name, concerns_list(user.concerns(now_s, thresholds)), scope="row"),
            cell("Stored", format_size(user.size_bytes), kind="number"),
            cell("Quota", quota_bar(user.used_bytes, user.quota_bytes, thresholds) or NONE),
            class_=user.level(now_s, thresholds).name.lower(),
        )
        for user in users
    ]
    head = element(
        "tr",
        element("th", "User", scope="col"),
        element("th", "Stored", scope="col", class_="number"),
        element("th", "Quota", scope="col"),
    )
    return element("section", element("h2", "Users"), element("table", element("thead", head), element("tbody", rows)))


def _repositories(status: ServerStatus, rows: Sequence[Row], view: View) -> Markup:
    if not rows:
        return element("section", element("p", "No repository yet.", class_="empty"))
    chosen = view.chosen(rows)
    head = element("tr", [_column(name, order, view) for name, order in _COLUMNS])
    body = element("tbody", [_row(status, row) for row in chosen])
    found = f"{len(chosen):,} of {_number(len(rows))}" if view.is_filtered else _number(len(rows))
    return element(
        "section",
        element("h2", "Repositories"),
        _form(view),
        element(
            "p",
            found,
            [". ", element("a", "Show all", href=view.link(find="", attention=False))] if view.is_filtered else None,
            class_="found",
        ),
        element("table", element("thead", head), body)
        if chosen
        else element("p", "No repository matches.", class_="empty"),
    )


def _form(view: View) -> Markup:
    """The form that filters and sorts, also on a phone, where the head of the table is not shown."""
    orders = [
        element("option", order.title, value=name, selected="selected" if name == view.sort else None)
        for name, order in ORDERS.items()
    ]
    shown = [
        element("option", "all", value=""),
        element(
            "option", "only what needs attention", value="attention", selected="selected" if view.attention else None
        ),
    ]
    return element(
        "form",
        element(
            "label", "Name or owner ", element("input", type="search", name="find", value=view.find, maxlength="200")
        ),
        element("label", "Show ", element("select", shown, name="show")),
        element("label", "Order ", element("select", orders, name="sort")),
        element("input", type="hidden", name="reverse", value=view.sort) if view.reverse else None,
        element("input", type="hidden", name="reload", value="1") if view.reload else None,
        element("button", "Apply"),
        method="get",
        action="status",
        role="search",
    )


def _column(name: str, order: str, view: View) -> Markup:
    direction = None
    if order == view.sort:
        direction = "descending" if view.is_descending else "ascending"
    return element(
        "th",
        element("a", name, href=view.sorted_by(order)),
        scope="col",
        class_="number" if name in _NUMBERS else None,
        aria_sort=direction,
    )


def _row(status: ServerStatus, row: Row) -> Markup:
    repository, now_s = row.repository, status.time_s
    name = quote(repository.repository.encode("utf-8", "surrogateescape"), safe="/")
    owner = repository.owner if repository.owner != repository.repository else None
    value, _, days = growth_text(repository.history).partition(" in ")
    curve = (
        [
            small_curve(repository.history, repository.quota_bytes),
            [_small(value), " ", _small(f"in {days}")] if value else None,
        ]
        if len(repository.history) > 1
        else _small("not known yet")
    )
    trash = _small(f"+ {format_size(repository.trash_bytes)} trash ") if repository.trash_bytes else None
    quota = quota_bar(repository.used_bytes, repository.quota_bytes, status.thresholds)
    objects = f"{repository.objects:,} object{'s' if repository.objects != 1 else ''}"
    return element(
        "tr",
        element(
            "th",
            element("a", repository.name, href=f"status/{name}")
            if _can_be_asked_for(repository)
            else element("span", repository.name),
            _small(f"of {printable(owner)}") if owner else None,
            concerns_list(row.concerns),
            scope="row",
        ),
        cell("Last snapshot", last_snapshot(repository, now_s)),
        cell("Snapshots", f"{repository.snapshots:,}", kind="number"),
        cell("Stored", format_size(repository.size_bytes), " ", trash, _small(objects), kind="number"),
        cell("Growth", curve),
        cell("Quota", quota or NONE, kind=None if quota else "none"),
        cell("Last upload", last_write(repository, now_s), kind=None if repository.last_write_s else "none"),
        cell("Locks", locks(repository, now_s), kind=None if repository.locks else "none"),
        class_=row.level.name.lower(),
    )


def _can_be_asked_for(repository: RepositoryStatus) -> bool:
    """Whether a request can name it: folders on disk may be called what no path says."""
    try:
        repository.repository.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return not repository.repository or all(map(is_folder_name, repository.repository.split("/")))
