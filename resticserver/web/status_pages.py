"""
The status page: one for the server, one for each repository, and the same as JSON.

C{twisted.web.template} escapes whatever is put in. There is one style sheet, no script, and nothing from elsewhere; the
Content-Security-Policy says so. Bars and curves are inline SVG. Pages are put together in a pool, for hundreds of repositories
take their time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.template import Tag, flattenString, tags

from ..access.policy import Action, Decides
from ..dates import date_text
from ..errors import NotFound
from ..files import read_file
from ..names import is_folder_name
from ..sizes import format_size
from ..targets import Kind, Target, parse_target
from ..telemetry.status import Concern, Level, RepositoryStatus, ServerStatus, UserStatus, age, printable
from ..threads.interface import Pool
from .page import METRICS_USER, Page

_HTML = b"text/html; charset=utf-8"
#: Nothing but our own style sheet; the page may not be framed, and links from it tell nobody where they come from.
HEADERS = (
    b"Content-Security-Policy: default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
)


class StatusPages:
    """
    The pages of one site.

    @param status: what is so now.
    @param policy: who may see which repository.
    @param pool: where pages are put together.
    """

    def __init__(self, status: Callable[[], Awaitable[ServerStatus]], policy: Decides, pool: Pool) -> None:
        self._status = status
        self._policy = policy
        self._pool = pool
        # Once, while the server starts.
        self._style = read_file(os.path.join(os.path.dirname(__file__), "status.css"))[0]

    async def _for(self, user: str | None) -> ServerStatus:
        """What a user may see: the repositories that they may read, and whoever may see the metrics all."""
        status = await self._status()
        if user is None or user == METRICS_USER:
            return status
        return await self._pool.run(self._only_readable, status, user)

    def _only_readable(self, status: ServerStatus, user: str) -> ServerStatus:
        """In the pool."""
        may_read = []
        for repository in status.repositories:
            target = Target(
                tuple(repository.repository.split("/")) if repository.repository else (), Kind.LIST, "snapshots"
            )
            if self._policy.decide(user, Action.READ, target).allowed:
                may_read.append(repository)
        return status.only(user, may_read)

    async def server(self, user: str | None) -> Page:
        """
        The page of the server.

        @param user: the repositories that this user may read; all for the user C{metrics}, and for C{None}, without users.
        """
        status = await self._for(user)
        return Page(200, _HTML, await self._pool.run(_html, server_page(status)), HEADERS)

    async def repository(self, path: bytes, user: str | None) -> Page:
        """
        The page of one repository.

        @param path: of the repository, as in a request; empty for the one at the root.
        @raise NotFound: there is none that the user may read.
        """
        status = await self._for(user)
        if path.endswith(b"/"):
            raise NotFound()  # the page's relative links would be wrong
        # Deeper than any repository may be: what is stored decides.
        target = parse_target(b"/" + path + b"/" if path else b"/", 64)
        name = "/".join(target.repository)
        for repository in status.repositories:
            if repository.repository == name and target.kind is Kind.REPOSITORY:
                page = repository_page(status, repository)
                return Page(200, _HTML, await self._pool.run(_html, page), HEADERS)
        raise NotFound()

    async def json(self, user: str | None) -> Page:
        """The status as JSON."""
        status = await self._for(user)
        text = await self._pool.run(lambda: json.dumps(status.as_json(), separators=(",", ":")).encode("ascii"))
        return Page(200, b"application/json", text, HEADERS)

    def style(self) -> Page:
        """The style sheet."""
        return Page(200, b"text/css; charset=utf-8", self._style, HEADERS)


@dataclass(frozen=True)
class ServerPages:
    """
    What the server says of itself.

    @ivar not_ready: why the server cannot do its work now; empty if it can.
    @ivar metrics: makes C{/metrics}; C{None} where that is off. C{metrics_for_everyone}: without a password.
    @ivar status: makes the status pages; C{None} where they are off.
    """

    not_ready: Callable[[], Awaitable[str]]
    metrics: Callable[[], Awaitable[Page]] | None = None
    metrics_for_everyone: bool = False
    status: StatusPages | None = None


def _html(page: Tag) -> bytes:
    """In the pool: a page as bytes. Nothing in it waits for anything."""
    found: list[Any] = []
    flattened: Deferred[bytes] = flattenString(None, page)
    flattened.addBoth(found.append)
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return b"<!DOCTYPE html>\n" + bytes(found[0])


# --- what the pages are made of


def _page(title: str, up: str, *content: Any) -> Tag:
    """
    A whole page.

    @param up: the way from it to C{/-/}: links are relative, so that they work behind a proxy's prefix.
    """
    return tags.html(
        tags.head(
            tags.meta(charset="utf-8"),
            tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
            tags.meta(name="color-scheme", content="light dark"),
            tags.title(title),
            tags.link(rel="stylesheet", href=f"{up}status.css"),
        ),
        tags.body(*content),
        lang="en",
    )


def server_page(status: ServerStatus) -> Tag:
    """The page of the server."""
    now_s = status.time_s
    repositories = status.by_need()
    needy = sum(repository.level(now_s) >= Level.WARNING for repository in repositories)
    users = status.users_by_need()
    needy_users = sum(user.level(now_s) >= Level.WARNING for user in users)
    well = "all is well" if status.counted else "still counting"
    found = [f"{needy} need{'s' if needy == 1 else ''} attention"] if needy else []
    if needy_users:
        found.append("1 user needs attention" if needy_users == 1 else f"{needy_users} users need attention")
    if any(level >= Level.WARNING for level, _ in status.concerns()):
        found.append("and so does the server" if found else "the server needs attention")
    summary = ", ".join(found) or well
    return _page(
        "Backups",
        "",
        tags.header(
            tags.h1("Backups"),
            tags.p(
                f"{len(repositories)} repositor{'y' if len(repositories) == 1 else 'ies'}, {summary}", class_="lead"
            ),
        ),
        Tag("main")(
            _concerns(status.concerns()),
            tags.section(
                _figure("Stored", format_size(status.size_bytes), _quota_bar(status.used_bytes, status.quota_bytes)),
                _figure("Trash", format_size(status.trash_bytes)) if status.trash_bytes else "",
                _disk(status),
                _certificate(status),
                _scrub(status),
                _figure("Running", f"for {age(now_s - status.started_s)}", tags.small(f"version {status.version}")),
                class_="figures",
            ),
            _users(now_s, users),
            _table(status, repositories),
        ),
        tags.footer(tags.p(f"As of {date_text(now_s)}.")),
    )


def repository_page(status: ServerStatus, repository: RepositoryStatus) -> Tag:
    """The page of one repository."""
    now_s = status.time_s
    up = "../" * (1 + repository.repository.count("/"))
    rows = [
        ("Owner", repository.owner or "–"),
        ("Stored", format_size(repository.size_bytes)),
        ("Objects", f"{repository.objects:,}"),
        ("Last snapshot", _when(repository, now_s)),
        ("Locks", _locks(repository, now_s)),
        ("Damaged files found", str(repository.damaged)),
    ]
    if repository.quota_bytes is not None:
        rows.append(("Quota", _quota_bar(repository.used_bytes, repository.quota_bytes)))
    if repository.trash_objects:
        rows.append(("Trash", _trash(repository)))
    if repository.quota_objects is not None:
        rows.append(("Most objects", f"{repository.quota_objects:,}"))
    return _page(
        f"{repository.name} – Backups",
        up,
        tags.header(tags.p(tags.a("All repositories", href=f"{up}status")), tags.h1(repository.name)),
        Tag("main")(
            _concerns(repository.concerns(now_s)),
            tags.dl(*(piece for name, value in rows for piece in (tags.dt(name), tags.dd(value)))),
            _problems(repository),
            tags.h2("Size over time"),
            _history(repository),
        ),
        tags.footer(tags.p(f"As of {date_text(now_s)}.")),
    )


def _trash(repository: RepositoryStatus) -> str:
    words = f"{format_size(repository.trash_bytes)} in {repository.trash_objects:,} objects"
    if repository.trash_ends_s is not None:
        words += f", until {date_text(repository.trash_ends_s)[:10]} or later"
    return words if repository.trash_counts else f"{words}; does not count towards quotas"


def _concerns(concerns: Sequence[Concern]) -> Any:
    if not concerns:
        return ""
    items = (tags.li(words, class_=level.name.lower()) for level, words in concerns)
    return tags.ul(*items, class_="concerns")


def _figure(name: str, value: str, *more: Any) -> Tag:
    return tags.div(tags.h2(name), tags.p(value, class_="value"), *more)


def _disk(status: ServerStatus) -> Any:
    if status.disk_free_bytes is None or not status.disk_size_bytes:
        return ""
    used = status.disk_size_bytes - status.disk_free_bytes
    words = f"{used * 100 // status.disk_size_bytes} % of {format_size(status.disk_size_bytes)} used"
    return _figure(
        "Free disk", format_size(status.disk_free_bytes), _bar(used, status.disk_size_bytes), tags.small(words)
    )


def _certificate(status: ServerStatus) -> Any:
    if status.certificate_s is None:
        return ""
    left_s = status.certificate_s - status.time_s
    value = f"{age(left_s)} left" if left_s > 0 else "expired"
    return _figure("Certificate", value, tags.small(date_text(status.certificate_s)))


def _scrub(status: ServerStatus) -> Any:
    """When everything was verified last, and how far the present pass is."""
    scrub = status.scrub
    if scrub is None:
        return ""
    last_s = scrub.last_complete_s
    value = "not yet complete" if last_s is None else f"{age(max(0.0, status.time_s - last_s))} ago"
    more = [] if last_s is None else [tags.small(date_text(last_s))]
    if scrub.progress is not None:
        left = "" if scrub.left_s is None else f", {age(scrub.left_s)} left"
        done = int(scrub.progress * 1000)
        more += [_bar(done, 1000, "good"), tags.small(f"{done // 10} % of the present pass done{left}")]
    return _figure("Verified", value, *more)


def _problems(repository: RepositoryStatus) -> Any:
    """What the scrub has found in a repository."""
    if not repository.problems:
        return ""
    rows = (
        tags.tr(
            tags.th(f"{problem.type} {problem.name}", scope="row"),
            _cell("Problem", problem.kind),
            _cell("Found", date_text(problem.since_s)),
            _cell("Reason", printable(problem.reason)),
        )
        for problem in repository.problems
    )
    more = sum(repository.problem_counts.values()) - len(repository.problems)
    head = tags.tr(*(tags.th(name, scope="col") for name in ("Object", "Problem", "Found", "Reason")))
    return tags.section(
        tags.h2("Damaged, missing or unreadable objects"),
        tags.table(tags.thead(head), tags.tbody(*rows), class_="problems"),
        tags.p(f"And {more} more: rest-server scrub shows all.") if more > 0 else "",
    )


def _users(now_s: float, users: Sequence[UserStatus]) -> Any:
    if not users:
        return ""
    rows = (
        tags.tr(
            tags.th(user.name, _concerns(user.concerns(now_s)), scope="row"),
            _cell("Stored", format_size(user.size_bytes), "number"),
            _cell("Quota", _quota_bar(user.used_bytes, user.quota_bytes) or "–"),
            class_=user.level(now_s).name.lower(),
        )
        for user in users
    )
    head = tags.tr(
        tags.th("User", scope="col"), tags.th("Stored", scope="col", class_="number"), tags.th("Quota", scope="col")
    )
    return tags.section(tags.h2("Users"), tags.table(tags.thead(head), tags.tbody(*rows)))


def _table(status: ServerStatus, repositories: Iterable[RepositoryStatus]) -> Tag:
    columns = ("Repository", "Last snapshot", "Stored", "Over time", "Quota", "Objects", "Locks")
    head = tags.tr(
        *(tags.th(name, scope="col", class_="number" if name in ("Stored", "Objects") else "") for name in columns)
    )
    rows = [_row(status.time_s, repository) for repository in repositories]
    if not rows:
        return tags.section(tags.p("No repository yet.", class_="empty"))
    return tags.section(tags.h2("Repositories"), tags.table(tags.thead(head), tags.tbody(*rows)))


def _row(now_s: float, repository: RepositoryStatus) -> Tag:
    concerns = repository.concerns(now_s)
    name = quote(repository.repository.encode("utf-8", "surrogateescape"), safe="/")
    owner = f"of {repository.owner}" if repository.owner and repository.owner != repository.repository else ""
    return tags.tr(
        tags.th(
            tags.a(repository.name, href=f"status/{name}")
            if _can_be_asked_for(repository)
            else tags.span(repository.name),
            tags.small(owner) if owner else "",
            _concerns(concerns),
            scope="row",
        ),
        _cell("Last snapshot", _when(repository, now_s)),
        _cell(
            "Stored",
            [
                format_size(repository.size_bytes),
                tags.small(f" + {format_size(repository.trash_bytes)} trash") if repository.trash_bytes else "",
            ],
            "number",
        ),
        _cell("Over time", _curve(repository, 120, 28, "curve")),
        _cell("Quota", _quota_bar(repository.used_bytes, repository.quota_bytes) or "–"),
        _cell("Objects", f"{repository.objects:,}", "number"),
        _cell("Locks", _locks(repository, now_s), "locks"),
        class_=repository.level(now_s).name.lower(),
    )


def _can_be_asked_for(repository: RepositoryStatus) -> bool:
    """Whether a request can name it: folders on disk may be called what no path says."""
    try:
        repository.repository.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return not repository.repository or all(map(is_folder_name, repository.repository.split("/")))


def _cell(name: str, content: Any, kind: str = "") -> Tag:
    """A cell; on a phone, where the head is not shown, it says its column."""
    return tags.td(content, **{"class": kind, "data-name": name})


def _when(repository: RepositoryStatus, now_s: float) -> Any:
    seconds = repository.last_snapshot_s
    if seconds is None:
        return "never" if repository.counted else "not known yet"
    stamp = date_text(seconds)
    if not stamp.endswith("Z"):
        return stamp
    return Tag("time")(f"{age(max(0.0, now_s - seconds))} ago", title=stamp, datetime=stamp)


def _locks(repository: RepositoryStatus, now_s: float) -> str:
    if not repository.locks:
        return "none"
    if repository.oldest_lock_s is None:
        return str(repository.locks)
    return f"{repository.locks}, {age(max(0.0, now_s - repository.oldest_lock_s))} old"


def _quota_bar(used: int, most: int | None) -> Any:
    if most is None:
        return ""
    words = f"{used * 100 // most if most else 100} % of {format_size(most)}"
    return tags.span(_bar(used, most), tags.small(words), class_="quota")


def _bar(used: int, most: int, kind: str = "") -> Tag:
    """
    A bar.

    @param kind: its class; empty for one that warns when it is nearly full.
    """
    part = min(1.0, used / most) if most else 1.0
    kind = kind or ("bad" if part >= 1 else "warning" if part >= 0.9 else "good")
    return Tag("svg")(
        Tag("rect")(**{"class": "track", "width": "100", "height": "6"}),
        Tag("rect")(**{"class": kind, "width": f"{100 * part:.1f}", "height": "6"}),
        **{"class": "bar", "viewBox": "0 0 100 6", "preserveAspectRatio": "none", "aria-hidden": "true"},
    )


def _curve(repository: RepositoryStatus, width: int, height: int, kind: str) -> Any:
    """The size over time, from nothing to its most."""
    points = repository.history
    if len(points) < 2:
        return tags.small("not known yet")
    first, last = points[0][0], points[-1][0]
    most = max(size for _, size in points) or 1
    across, up = width / max(1, last - first), (height - 4) / most
    line = " ".join(f"{(day - first) * across:.1f},{height - 2 - size * up:.1f}" for day, size in points)
    return Tag("svg")(
        Tag("title")(_span(repository)),
        Tag("polygon")(points=f"0,{height} {line} {width},{height}"),
        Tag("polyline")(points=line),
        **{"class": kind, "viewBox": f"0 0 {width} {height}", "preserveAspectRatio": "none", "role": "img"},
    )


def _history(repository: RepositoryStatus) -> Tag:
    """The curve in large, with what it goes from and to."""
    points = repository.history
    if len(points) < 2:
        return tags.p(tags.small("not known yet"))
    most = max(size for _, size in points)
    first, last = (date_text(points[end][0] * 86_400)[:10] for end in (0, -1))
    return Tag("figure")(
        tags.p(tags.small(format_size(most))),
        _curve(repository, 640, 160, "large curve"),
        tags.p(tags.small(first), tags.small(last)),
        Tag("figcaption")(_span(repository)),
        class_="history",
    )


def _span(repository: RepositoryStatus) -> str:
    """What a curve says, in words."""
    points = repository.history
    if len(points) < 2:
        return ""
    days = points[-1][0] - points[0][0]
    return f"From {format_size(points[0][1])} to {format_size(points[-1][1])} in {days} day{'s' if days != 1 else ''}."
