"""
L{resticserver.web.status_pages} on the real channel: what the pages look like to a machine, where their links lead, and
who sees what.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from http.client import HTTPMessage
from io import BytesIO
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import parse_qs

from resticserver.access.policy import Policy
from resticserver.access.policyfile import parse_policy
from resticserver.sizes import format_size
from resticserver.telemetry.concerns import Thresholds
from resticserver.telemetry.status import (
    LastDayStatus,
    ObjectProblem,
    RepositoryStatus,
    ScrubStatus,
    ServerStatus,
    UserStatus,
)
from resticserver.web import charts, status_pages
from resticserver.web.authentication import NoAuthentication, PasswordAuthentication
from resticserver.web.charts import SMALL_POINTS
from resticserver.web.http1.options import SiteOptions
from resticserver.web.http1.site import RepositorySite
from resticserver.web.routes import Api
from resticserver.web.status_pages import ServerPages, StatusPages
from resticserver.web.status_view import ORDERS, View

from ..support.client import Reply
from ..support.memory import Bench, Connection, HeldPool, InlinePool, request
from .test_pages import ChecksPasswords, login

NOW_S = 1_800_000_000.0
DAY_S = 86_400
#: Names that mean something to HTML, to URLs or to those who put them together.
HOSTILE = (
    "<script>alert(1)<",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "&amp;",
    "&lt;script&gt;",
    "]]>",
    "<!--",
    "javascript:alert(1)",
    "{{7*7}}",
)
ODD = (
    "50%",
    "%2e%2e",
    "%41",
    "a#b",
    "a?b=c",
    "a b",
    " ",
    "+",
    "grün",
    "\N{SNOWMAN}",
    "a:b",
    "a;b",
    "a&b",
    "...",
    "@",
    "~x",
)
POLICY = """
[[rule]]
users = ["alice"]
repositories = ["alice/secret"]
rights = "none"

[[rule]]
users = ["*"]
repositories = ["{user}", "{user}/*"]
rights = "full"

[[rule]]
users = ["alice"]
repositories = ["bob/shared"]
rights = "read"
"""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def repository(name: str, **values: Any) -> RepositoryStatus:
    """One that is well."""
    known: dict[str, Any] = {
        "owner": name.partition("/")[0] or None,
        "size_bytes": 1536,
        "objects": 1234,
        "last_snapshot_s": NOW_S - 7200,
        "history": ((20_000, 512), (20_010, 1024), (20_011, 1536)),
    }
    return RepositoryStatus(name, **{**known, **values})


def server(*repositories: RepositoryStatus, **values: Any) -> ServerStatus:
    """One that is well and has these."""
    return ServerStatus("1.2.3", NOW_S, NOW_S - 3 * DAY_S, repositories=repositories, **values)


def tree_of(reply: Reply) -> ElementTree.Element:
    """A page as XML: it is well-formed, and there are no entities in it that only HTML has."""
    first, _, rest = reply.body.partition(b"\n")
    assert first == b"<!DOCTYPE html>", first
    return ElementTree.fromstring(rest)


def text_of(element: ElementTree.Element | None) -> str:
    """All text in an element."""
    assert element is not None
    return "".join(element.itertext())


async def is_ready() -> str:
    """The server is ready."""
    return ""


class StatusCase(SynchronousTestCase):
    """A site with status pages."""

    def setUp(self) -> None:
        self.status = server()
        self.asked = 0
        self.authentication: Any = NoAuthentication()
        self.policy: Any = Policy()
        self.pool: Any = InlinePool()
        self.prefix: tuple[str, ...] = ()

    async def now(self) -> ServerStatus:
        """What is so."""
        self.asked += 1
        return self.status

    def connection(self) -> Connection:
        """A connection to a new site."""
        bench = Bench(self.mktemp(), authentication=self.authentication)
        pages = StatusPages(self.now, self.policy, self.pool)
        api = Api(self.authentication, Policy(), bench.repositories, ServerPages(is_ready, status=pages))
        return Connection(
            RepositorySite(api.resource(), bench.clock, bench.records.append, SiteOptions(prefix=self.prefix))
        )

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, /, user: str | None = None, **headers: str
    ) -> Reply:
        """One request and its answer."""
        connection = self.connection()
        if user is not None:
            headers |= login(user)
        connection.send(request(method, path, body, **headers))
        return self.reply(connection)

    def reply(self, connection: Connection) -> Reply:
        """The answer that a connection got."""
        head, _, content = connection.received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = HTTPMessage()
        for line in lines:
            name, _, value = line.partition(": ")
            fields[name] = value
        return Reply(int(first.split()[1]), first, fields, content)

    def tree(self, path: str, user: str | None = None) -> ElementTree.Element:
        """A page that is there."""
        reply = self.ask(path, user=user)
        self.assertEqual((200, "text/html; charset=utf-8"), (reply.status, reply.headers["Content-Type"]), path)
        return tree_of(reply)

    def rows(self, tree: ElementTree.Element) -> dict[str, list[str]]:
        """The rows of the table of repositories by name."""
        found = {}
        for row in tree.iterfind(".//section[h2='Repositories']//tbody/tr"):
            found[text_of(row.find("th/*"))] = [text_of(cell) for cell in row.iterfind("td")]
        return found

    def links(self, tree: ElementTree.Element) -> dict[str, str]:
        """Where the links of the table lead, by their texts."""
        return {text_of(link): link.attrib["href"] for link in tree.iterfind(".//tbody//a")}

    def assert_harmless(self, tree: ElementTree.Element) -> None:
        """Nothing in a page runs, loads anything but our sheet, or needs what the policy forbids."""
        allowed = set(
            "html head meta title link body header h1 h2 p main section div small table thead tbody tr th td".split()
        )
        allowed |= set(
            "a ul ol li dl dt dd span svg rect line text polyline polygon time footer figure figcaption".split()
        )
        allowed |= set("nav form label input select option button".split())
        for element in tree.iter():
            self.assertIn(element.tag, allowed)
            for name, value in element.attrib.items():
                self.assertFalse(name.lower().startswith("on") or name.lower() in ("style", "src"), (element.tag, name))
                if name == "href":
                    self.assertEqual(("", ""), urlsplit(value)[:2], value)


class HtmlTests(StatusCase):
    """The pages as documents."""

    def test_escaped(self) -> None:
        """Whatever a repository or user is called, or whatever is said of them, is text and no markup."""
        for name in HOSTILE:
            one = repository(
                name, owner=name, quota_bytes=1600, locks=1, oldest_lock_s=NOW_S - 7200, damaged=1, quota_objects=1300
            )
            self.status = server(one, users=(UserStatus(name, 5, 7),), not_ready=name, quota_bytes=1600)
            page = self.tree("/-/status")
            self.assert_harmless(page)
            self.assertEqual([name], list(self.rows(page)))
            self.assertEqual(name, text_of(page.find(".//section[h2='Users']//tbody/tr/th")))
            self.assertEqual(f"not ready: {name}", text_of(page.find("body/main/ul/li")))
            page = self.tree("/-/status/" + quote(name, safe=""))
            self.assert_harmless(page)
            self.assertEqual(name, text_of(page.find("body/header/h1")))
            self.assertEqual(f"{name} \N{EN DASH} Backups", text_of(page.find("head/title")))
            self.assertEqual(name, text_of(page.find("body/main/dl/dd")))

    def test_no_raw_markup(self) -> None:
        """A name's angle brackets are nowhere in the bytes, in text or attribute."""
        self.status = server(repository("<script>alert(1)<"), repository('"><img src=x onerror=alert(1)>'))
        for path in ("/-/status", "/-/status/%3Cscript%3Ealert%281%29%3C"):
            body = self.ask(path).body.lower()
            for piece in (b"<script", b"<img", b'href=""'):
                self.assertNotIn(piece, body)

    def test_control_characters(self) -> None:
        """A folder made by hand may have any name; the page is well-formed all the same, and other rows are there."""
        for name in ("esc\x1b[2J", "nl\nx", "bell\x07", "nul\x7f", "c1\x9b"):
            self.status = server(repository(name), repository("alice"))
            reply = self.ask("/-/status")
            self.assertEqual(200, reply.status)
            try:
                tree = tree_of(reply)
            except ElementTree.ParseError as error:
                self.fail(f"{name!r}: {error}")
            self.assertIn("alice", self.rows(tree))

    def test_name_that_is_no_text(self) -> None:
        """A folder whose name is no UTF-8 (C{b"bad\\xff"}) is one row, and does not cost everyone the page."""
        self.status = server(repository("bad\udcff"), repository("alice"))
        reply = self.ask("/-/status")
        self.flushLoggedErrors()
        self.assertEqual(200, reply.status)
        self.assertIn("alice", self.rows(tree_of(reply)))

    def test_odd_times(self) -> None:
        """A snapshot file with an impossible time does not cost everyone the page."""
        self.status = server(repository("alice", last_snapshot_s=1e14), repository("bob"))
        reply = self.ask("/-/status")
        self.flushLoggedErrors()
        self.assertEqual(200, reply.status)

    def test_language_and_title(self) -> None:
        """It says what it is: language, encoding, title, width, and one heading."""
        self.status = server(repository("alice"))
        for path, title in (("/-/status", "Backups"), ("/-/status/alice", "alice \N{EN DASH} Backups")):
            tree = self.tree(path)
            self.assertEqual("en", tree.attrib["lang"])
            self.assertEqual("utf-8", tree.find("head")[0].attrib["charset"])  # type: ignore[index]
            self.assertEqual(title, text_of(tree.find("head/title")))
            self.assertEqual(1, len(list(tree.iter("h1"))))
            viewport = tree.find("head/meta[@name='viewport']")
            assert viewport is not None
            self.assertIn("width=device-width", viewport.attrib["content"])

    def test_rows(self) -> None:
        """A row says when and by whom it was last backed up to, its size, growth, part of the quota, snapshots and locks."""
        self.status = server(
            repository(
                "alice/laptop",
                quota_bytes=4096,
                locks=2,
                oldest_lock_s=NOW_S - 300,
                snapshots=12,
                last_writer="nas",
                last_write_s=NOW_S - 60,
            ),
            repository("bob", last_snapshot_s=None, history=((20_000, 7),)),
            repository("", owner=None),
        )
        rows = self.rows(self.tree("/-/status"))
        self.assertEqual({"alice/laptop", "bob", "/"}, set(rows))
        self.assertEqual(
            [
                "2 hours ago 2027-01-15 06:00 UTC",
                "12",
                "1.50 KiB 1,234 objects",
                "From 512 bytes to 1.50 KiB in 11 days. Quota: 4 KiB.+1 KiB in 11 days",
                "37 % of 4 KiB",
                "nas 2027-01-15 07:59 UTC",
                "2, 5 minutes old 2027-01-15 07:55 UTC",
            ],
            rows["alice/laptop"],
        )
        expected = ["never", "0", "1.50 KiB 1,234 objects", "not known yet", "\N{EN DASH}", "\N{EN DASH}", "none"]
        self.assertEqual(expected, rows["bob"])

    def test_scrub(self) -> None:
        """When everything was verified, how far the pass is, and what was found, by id."""
        problem = ObjectProblem("data", "ab" * 32, "damaged", NOW_S - 60, "<its bytes>")
        self.status = server(
            repository("alice", problem_counts={"damaged": 3}, problems=(problem,)),
            scrub=ScrubStatus(2_592_000, 0.256, 7200, NOW_S - 2 * DAY_S),
        )
        text = text_of(self.tree("/-/status"))
        self.assertIn("Verified2 days ago", text)
        self.assertIn("25 % of the present pass done, 2 hours left", text)
        self.assertIn("found by the scrub: 3 damaged", text)
        text = text_of(self.tree("/-/status/alice"))
        self.assertIn(f"data {'ab' * 32}damaged", text)
        self.assertIn("<its bytes>", text)
        self.assertIn("And 2 more", text)
        self.status = server(scrub=ScrubStatus(2_592_000))
        self.assertIn("Verifiednot yet complete", text_of(self.tree("/-/status")))

    def test_cells_are_named(self) -> None:
        """On a phone, where the table's head is not shown, each cell has its column's name."""
        self.status = server(repository("alice"))
        tree = self.tree("/-/status")
        head = [text_of(cell) for cell in tree.iterfind(".//thead/tr/th")]
        self.assertEqual(head[1:], [cell.attrib["data-name"] for cell in tree.iterfind(".//tbody/tr/td")])

    def test_worst_first(self) -> None:
        """Rows that need attention come first, and are counted on top."""
        well, old = repository("a"), repository("b", last_snapshot_s=NOW_S - 9 * DAY_S)
        for repositories, words in (
            ((), "0 repositories, all is well"),
            ((well,), "1 repository, all is well"),
            ((well, old), "2 repositories, 1 needs attention"),
            ((well, old, replace(old, repository="c", damaged=1)), "3 repositories, 2 need attention"),
        ):
            self.status = server(*repositories)
            tree = self.tree("/-/status")
            self.assertEqual(words, text_of(tree.find("body/header/p")))
        self.assertEqual(["c", "b", "a"], list(self.rows(tree)))
        self.assertEqual(["bad", "warning", "good"], [row.attrib["class"] for row in tree.iterfind(".//tbody/tr")])

    def test_all_is_not_well(self) -> None:
        """A server that is not ready, or whose certificate has ended, is not well, however its repositories are."""
        for changes in ({"not_ready": "the disk is full"}, {"certificate_s": NOW_S - 1}):
            self.status = server(repository("a"), **changes)
            self.assertNotIn("all is well", text_of(self.tree("/-/status").find("body/header/p")))

    def test_curve(self) -> None:
        """A curve stays in its frame, whatever the sizes and days; one point is none."""
        histories = (
            ((20_000, 0), (20_001, 0)),
            ((20_000, 5), (20_000, 5)),
            tuple((20_000 + day, (1 << 60) >> day % 60) for day in range(400)),
        )
        for history in histories:
            self.status = server(repository("a", history=history))
            for path in ("/-/status", "/-/status/a"):
                svg = next(one for one in self.tree(path).iter("svg") if "curve" in one.attrib["class"].split())
                _, _, width, height = map(float, svg.attrib["viewBox"].split())
                points = svg.find("polyline").attrib["points"].split()  # type: ignore[union-attr]
                # A small curve has fewer of them.
                most = SMALL_POINTS + 1 if path == "/-/status" else len(history)
                self.assertTrue(min(len(history), most // 2) <= len(points) <= most, (path, len(points)))
                for point in points:
                    x, y = map(float, point.split(","))
                    self.assertTrue(0 <= x <= width and 0 <= y <= height, (point, svg.attrib))
        for few in ((), ((20_000, 7),)):
            self.status = server(repository("a", history=few))
            self.assertEqual([], list(self.tree("/-/status/a").iter("polyline")))

    def test_bars(self) -> None:
        """A bar is as long as what is used, and never longer than its track."""
        for used, most, width, kind in (
            (0, 1000, "0.0", "good"),
            (500, 1000, "50.0", "good"),
            (950, 1000, "95.0", "warning"),
            (1000, 1000, "100.0", "bad"),
            (5000, 1000, "100.0", "bad"),
            (0, 0, "100.0", "bad"),
        ):
            self.status = server(repository("a", size_bytes=used, quota_bytes=most))
            bar = list(self.tree("/-/status/a").iter("rect"))[-1]
            self.assertEqual((width, kind), (bar.attrib["width"], bar.attrib["class"]))

    def test_many(self) -> None:
        """All of 300 repositories are on the page, each once."""
        self.status = server(*(repository(f"user{number}/pc") for number in range(300)))
        self.assertEqual({f"user{number}/pc" for number in range(300)}, set(self.rows(self.tree("/-/status"))))

    def test_no_repository(self) -> None:
        """An empty server says so, without a table."""
        tree = self.tree("/-/status")
        self.assertEqual([], list(tree.iter("table")))
        self.assertEqual("No repository yet.", text_of(tree.find(".//p[@class='empty']")))

    def test_put_together_in_the_pool(self) -> None:
        """A page is no work for the reactor's thread."""
        self.pool = pool = HeldPool()
        for path in ("/-/status", "/-/status.json", "/-/status/a"):
            self.status = server(repository("a"))
            connection = self.connection()
            connection.send(request("GET", path))
            self.assertEqual(b"", connection.received)
            self.assertEqual(1, len(pool.jobs))
            pool.release()
            self.assertEqual([200], connection.statuses())

    def test_figures(self) -> None:
        """The host, growth, when the disk is full, the traffic and the refusals of the last day."""
        day = LastDayStatus(float(DAY_S), 5 << 30, 3 << 20, 7, 1200, 1)
        self.status = server(
            repository("alice"),
            host="backup<1>",
            disk_free_bytes=1 << 30,
            disk_size_bytes=4 << 30,
            history=((20_000, 1 << 30), (20_030, 3 << 30)),
            growth_bytes_per_day=70 * 1024.0**2,
            disk_full_s=NOW_S + 14.6 * DAY_S,
            last_day=day,
        )
        tree = self.tree("/-/status")
        self.assertEqual("Backups on backup<1>", text_of(tree.find("body/header/h1")))
        self.assertEqual("Backups on backup<1>", text_of(tree.find("head/title")))
        figures = [text_of(one) for one in tree.iterfind(".//section[@class='figures']/div")]
        self.assertEqual(
            [
                "Stored1.50 KiB",
                "Growth+2 GiBin 30 days+70 MiB a day",
                "Free disk1 GiB75 % of 4 GiB usedfull about 2027-01-29in 14 days",
                "Received5 GiBsent 3 MiBin the last day",
                "Refused uploads7limits reached 1 timein the last day",
                "Failed logins1,200in the last day",
            ],
            figures,
        )
        self.status = replace(self.status, last_day=day._replace(covered_s=7200.0), history=((20_000, 5),))
        text = text_of(self.tree("/-/status"))
        self.assertIn("sent 3 MiBin the last 2 hours", text)
        self.assertIn("Growth\N{EN DASH}not known yet", text)
        self.assertNotIn("Stored in all", text)

    def test_charts(self) -> None:
        """A large curve has sizes and days at its axes, and its quota as a line with a name, where it is to scale."""
        history = ((20_000, 10 << 30), (20_010, 50 << 30))
        for quota, ticks, words, y in (
            (None, ["60 GiB", "45 GiB", "30 GiB", "15 GiB", "0"], [], None),
            (60 << 30, ["60 GiB", "45 GiB", "30 GiB", "15 GiB", "0"], ["Quota 60 GiB"], "0.00%"),
            (80 << 30, ["80 GiB", "60 GiB", "40 GiB", "20 GiB", "0"], ["Quota 80 GiB"], "0.00%"),
            (90 << 30, ["100 GiB", "75 GiB", "50 GiB", "25 GiB", "0"], ["Quota 90 GiB"], "10.00%"),
            (20 << 30, ["60 GiB", "45 GiB", "30 GiB", "15 GiB", "0"], ["Quota 20 GiB"], "66.67%"),
            # It would press the curve flat.
            (1 << 40, ["60 GiB", "45 GiB", "30 GiB", "15 GiB", "0"], [], None),
        ):
            self.status = server(repository("a", history=history, quota_bytes=quota))
            chart = self.tree("/-/status/a").find(".//figure")
            assert chart is not None
            self.assertEqual(ticks, [text_of(one) for one in chart.iterfind("ol[@class='y']/li")])
            days = [text_of(one) for one in chart.iterfind("ol[@class='x']/li")]
            self.assertEqual(["2024-10-04", "2024-10-09", "2024-10-14"], days)
            self.assertEqual(words, [text_of(one) for one in chart.iterfind("svg/text")])
            limits = [line.attrib for line in chart.iterfind("svg/line") if line.attrib["class"] == "limit"]
            self.assertEqual([] if y is None else [(y, y)], [(line["y1"], line["y2"]) for line in limits])
            caption = text_of(chart.find("figcaption"))
            self.assertEqual(quota is not None, "Quota: " in caption)
            self.assertEqual(caption, text_of(chart.find("svg/title")))
        self.status = server(history=history, quota_bytes=70 << 30)
        self.assertIn("Limit 70 GiB", text_of(self.tree("/-/status").find(".//figure/svg")))

    def test_axis_end(self) -> None:
        """An axis ends above the largest size, not far above it, and its quarters are short numbers."""
        for most in (0, 1, 3, 5, 1000, 1023, 1024, 1025, *(int(1.37**power) for power in range(20, 120))):
            end = charts.axis_end(most)
            self.assertTrue(most <= end <= max(8, 2.5 * most), (most, end))
            for part in (1, 2, 3, 4):
                self.assertLessEqual(len(format_size(end * part // 4)), 9, end)

    def test_thresholds(self) -> None:
        """Bars change their colour where the server warns."""
        for quota, disk, kinds in (
            (0.5, 0.9, ["good", "warning"]),
            (0.9, 0.4, ["warning", "good"]),
            (0, 0, ["good", "good"]),
        ):
            self.status = server(
                repository("a", size_bytes=600, quota_bytes=1000),
                disk_free_bytes=50,
                disk_size_bytes=100,
                thresholds=Thresholds(quota=quota, disk=disk),
            )
            bars = [bar for bar in self.tree("/-/status").iter("rect") if bar.attrib["class"] != "track"]
            self.assertEqual(kinds, [bar.attrib["class"] for bar in bars])


class ViewTests(StatusCase):
    """Filter, order and reload, by form and links."""

    def setUp(self) -> None:
        super().setUp()
        old = NOW_S - 9 * DAY_S
        self.status = server(
            repository("alice/laptop", size_bytes=300, snapshots=5, last_write_s=NOW_S - 5, quota_bytes=1000, locks=2),
            repository("Alice/nas", size_bytes=100, snapshots=7, last_snapshot_s=old, objects=5),
            repository("bob", size_bytes=200, snapshots=6, last_write_s=NOW_S - 9, quota_bytes=400, objects=9),
            repository("carol/x", owner="Bobby", size_bytes=400, last_snapshot_s=None, history=((1, 5), (2, 900))),
        )

    def names(self, query: str) -> list[str]:
        """Which repositories are shown."""
        return list(self.rows(self.tree(f"/-/status{query}")))

    def test_orders(self) -> None:
        """Each order, and the other way round; without one what needs attention comes first."""
        table = {
            "": ["Alice/nas", "carol/x", "alice/laptop", "bob"],
            "?sort=nonsense": ["Alice/nas", "carol/x", "alice/laptop", "bob"],
            "?sort=name": ["alice/laptop", "Alice/nas", "bob", "carol/x"],
            "?sort=name&reverse=name": ["carol/x", "bob", "Alice/nas", "alice/laptop"],
            "?sort=snapshot": ["carol/x", "Alice/nas", "alice/laptop", "bob"],
            "?sort=snapshots": ["Alice/nas", "bob", "alice/laptop", "carol/x"],
            "?sort=stored": ["carol/x", "alice/laptop", "bob", "Alice/nas"],
            "?sort=stored&reverse=stored": ["Alice/nas", "bob", "alice/laptop", "carol/x"],
            # Another order was chosen in the form of a page that was reversed.
            "?sort=name&reverse=stored": ["alice/laptop", "Alice/nas", "bob", "carol/x"],
            "?sort=growth": ["Alice/nas", "alice/laptop", "bob", "carol/x"],
            "?sort=quota": ["bob", "alice/laptop", "Alice/nas", "carol/x"],
            "?sort=objects": ["alice/laptop", "carol/x", "bob", "Alice/nas"],
            "?sort=write": ["alice/laptop", "bob", "Alice/nas", "carol/x"],
            "?sort=locks": ["alice/laptop", "Alice/nas", "bob", "carol/x"],
        }
        for query, expected in table.items():
            self.assertEqual(expected, self.names(query), query)
        tried = {View.of(parse_qs(query.removeprefix("?").encode())).sort for query in table}
        self.assertEqual(set(ORDERS), tried)

    def test_filter(self) -> None:
        """A part of the name or of the owner, in any case; or what needs attention; and how many of all that is."""
        for query, expected in (
            ("?find=ALICE", ["Alice/nas", "alice/laptop"]),
            ("?find=bob", ["carol/x", "bob"]),
            ("?find=%20bob+", ["carol/x", "bob"]),
            ("?show=attention", ["Alice/nas"]),
            ("?show=attention&find=bob", []),
            ("?show=everything&find=", ["Alice/nas", "carol/x", "alice/laptop", "bob"]),
            ("?find=nobody&find=laptop", ["alice/laptop"]),
            ("?find=%ff", []),
        ):
            tree = self.tree(f"/-/status{query}")
            self.assertEqual(expected, list(self.rows(tree)), query)
            found = text_of(tree.find(".//p[@class='found']"))
            self.assertEqual(
                f"{len(expected)} of 4 repositories. Show all" if len(expected) < 4 else "4 repositories", found
            )
            # The summary is about all of them.
            self.assertEqual("4 repositories, 1 needs attention", text_of(tree.find("body/header/p")))
        self.assertEqual(
            "No repository matches.", text_of(self.tree("/-/status?find=zzz").find(".//p[@class='empty']"))
        )

    def test_form(self) -> None:
        """The form has what was asked for; each control has a label; what was typed is text and no markup."""
        for name in (*HOSTILE, "a&b=c", "ä"):
            tree = self.tree(f"/-/status?find={quote(name, safe='')}&sort=stored&show=attention&reload=1")
            self.assert_harmless(tree)
            form = tree.find(".//form")
            assert form is not None
            self.assertEqual(("get", "status"), (form.attrib["method"], form.attrib["action"]))
            values = {one.attrib["name"]: one.attrib["value"] for one in form.iter("input")}
            self.assertEqual({"find": name, "reload": "1"}, values)
            chosen = [one.attrib["value"] for one in form.iter("option") if "selected" in one.attrib]
            self.assertEqual(["attention", "stored"], chosen)
            labelled = [
                control for label in form.iter("label") for control in (*label.iter("input"), *label.iter("select"))
            ]
            self.assertEqual(3, len(labelled))
        reversed_ = self.tree("/-/status?sort=stored&reverse=stored")
        hidden = {one.attrib["name"]: one.attrib["value"] for one in reversed_.iter("input")}
        self.assertEqual({"find": "", "reverse": "stored"}, hidden)
        (long,) = self.tree(f"/-/status?find={'x' * 5000}").iterfind(".//input")
        self.assertEqual("x" * 200, long.attrib["value"])

    def test_columns(self) -> None:
        """A column sorts by its link, a second time the other way round, and says which way; the filter is kept."""
        tree = self.tree("/-/status?find=a&sort=stored")
        links = {text_of(cell): cell for cell in tree.iterfind(".//section[h2='Repositories']//thead/tr/th")}
        self.assertEqual(
            ["descending"], [cell.attrib["aria-sort"] for cell in links.values() if "aria-sort" in cell.attrib]
        )
        for name, query in (
            ("Stored", "find=a&sort=stored&reverse=stored"),
            ("Repository", "find=a&sort=name"),
            ("Last upload", "find=a&sort=write"),
        ):
            link = links[name].find("a")
            assert link is not None
            self.assertEqual(f"status?{query}", link.attrib["href"])
            self.assertEqual("col", links[name].attrib["scope"])
        again = self.tree("/-/status?find=a&sort=stored&reverse=stored")
        self.assertEqual(
            ["ascending"], [cell.attrib["aria-sort"] for cell in again.iter("th") if "aria-sort" in cell.attrib]
        )

    def test_links_come_back(self) -> None:
        """A link is read as what it was made from, whatever is in it."""
        for find in ("", "a b", "a&b=c", "ä\N{SNOWMAN}", "50%+"):
            for sort in ORDERS:
                for flag in (False, True):
                    view = View(find, flag, sort, not flag, flag)
                    query = parse_qs(urlsplit(view.link()).query.encode(), keep_blank_values=True)
                    self.assertEqual(view, View.of(query))
        self.assertEqual("status", View().link())

    def test_reload(self) -> None:
        """The page loads itself again if that is wanted, and not otherwise."""
        for query, reloads, link in (("", False, "status?find=a&reload=1"), ("&reload=1", True, "status?find=a")):
            tree = self.tree(f"/-/status?find=a{query}")
            meta = [one.attrib["content"] for one in tree.iter("meta") if "http-equiv" in one.attrib]
            self.assertEqual(["60"] if reloads else [], meta)
            self.assertEqual(link, list(tree.iterfind("body/header/nav/a"))[-1].attrib["href"])


class ThreadTests(StatusCase):
    """What runs in the reactor's thread."""

    def test_nothing_is_made_there(self) -> None:
        """Neither a page nor what a user may see of it is determined before the pool's job runs."""
        calls: list[str] = []
        for name in ("server_page", "repository_page"):
            made = getattr(status_pages, name)

            def noted(*args: Any, name: str = name, made: Any = made) -> Any:
                calls.append(name)
                return made(*args)

            self.patch(status_pages, name, noted)
        self.policy = Policy(grants=parse_policy(POLICY))
        self.authentication = PasswordAuthentication(ChecksPasswords())
        self.status = server(repository("alice/pc"))
        self.pool = pool = HeldPool()
        for path, name in (("/-/status", "server_page"), ("/-/status/alice/pc", "repository_page")):
            connection = self.connection()
            connection.send(request("GET", path, **login("alice")))
            self.assertEqual(([], 1), (calls, len(pool.jobs)))
            pool.release()
            self.assertEqual([name], calls)
            calls.clear()


class LinkTests(StatusCase):
    """Where links lead."""

    names = (*HOSTILE, *ODD, *(f"alice/{name}" for name in (*HOSTILE, *ODD)), "a b/c d", "")

    def follow(self, at: str) -> None:
        """Every repository's page is where its link leads, and from there the sheet and the list are where theirs lead."""
        self.status = server(*(repository(name) for name in self.names))
        links = self.links(self.tree(at))
        self.assertEqual({name or "/" for name in self.names}, set(links))
        for name, href in links.items():
            where = urlsplit(urljoin(f"http://host{at}", href))
            self.assertEqual(("http", "host", "", ""), (where.scheme, where.netloc, where.query, where.fragment), href)
            self.assertEqual(f"{at}/{name.removeprefix('/')}", unquote(where.path))
            page = self.tree(where.path)
            self.assertEqual(name, text_of(page.find("body/header/h1")))
            sheet, back = page.find("head/link"), page.find("body/header/p/a")
            assert sheet is not None and back is not None
            self.assertEqual(f"http://host{at}.css", urljoin(where.geturl(), sheet.attrib["href"]))
            self.assertEqual(f"http://host{at}", urljoin(where.geturl(), back.attrib["href"]))
        sheet = self.tree(at).find("head/link")
        assert sheet is not None
        reply = self.ask(urlsplit(urljoin(f"http://host{at}", sheet.attrib["href"])).path)
        self.assertEqual((200, "text/css; charset=utf-8"), (reply.status, reply.headers["Content-Type"]))

    def test_links(self) -> None:
        """They are relative, and right for every name."""
        self.follow("/-/status")

    def test_behind_a_prefix(self) -> None:
        """The same with C{--proxy-prefix}, as many folders as that may have; without it the paths work as well."""
        for prefix in (("backup",), ("a", "b")):
            self.prefix = prefix
            self.follow("".join(f"/{one}" for one in prefix) + "/-/status")
        self.assertEqual(200, self.ask("/-/status").status)
        self.assertEqual(404, self.ask("/a/-/status").status)
        self.assertEqual(404, self.ask("/a/b-/status").status)

    def test_other_spellings(self) -> None:
        """A name may be written with more escapes than needed; a query is of no matter."""
        self.status = server(repository("alice/pc"))
        for path in ("/-/status/%61lice/pc", "/-/status/alice/pc?x=1", "/-/status/alice/pc?", "/-/status?x"):
            self.assertEqual(200, self.ask(path).status, path)

    def test_unknown(self) -> None:
        """404 for what is no repository, and for what has a slash too many: its links would lead astray."""
        self.status = server(repository("alice/pc"), repository("bob"))
        names = (
            "carol alice pc alice/pc/x alice/pc/ bob/ bob// /bob alice%2Fpc alice/../bob ./bob bob/config bob/data/ %ff"
        )
        for path in (
            *(f"/-/status/{name}" for name in names.split()),
            "/-/status/",
            "/-/statusx",
            "/-/status.html",
            "/-/",
            "/-",
        ):
            self.assertEqual(404, self.ask(path).status, path)

    def test_root_repository(self) -> None:
        """The repository at the root has its page, if there is one."""
        self.assertEqual(404, self.ask("/-/status/").status)
        self.status = server(repository("", owner=None))
        page = self.tree("/-/status/")
        self.assertEqual("/", text_of(page.find("body/header/h1")))
        self.assertEqual(404, self.ask("/-/status//").status)

    def test_names_no_request_has(self) -> None:
        """A folder that no request can name is shown without a link that leads nowhere."""
        for name in ("back\\slash", "bad\udcff", "esc\x1b"):
            self.status = server(repository(name))
            for href in self.links(tree_of(self.ask("/-/status"))).values() if "\x1b" not in name else self.raw_links():
                self.assertEqual(200, self.ask(urljoin("/-/status", href)).status, href)

    def raw_links(self) -> list[str]:
        """Links of a page that may not be XML."""
        body = self.ask("/-/status").body.decode("utf-8", "surrogateescape")
        return re.findall(r'href="(status/[^"]*)"', body)


class ProtocolTests(StatusCase):
    """The answers as HTTP."""

    paths = ("/-/status", "/-/status.json", "/-/status.css", "/-/status/alice")

    def setUp(self) -> None:
        super().setUp()
        self.status = server(repository("alice"))

    def test_headers(self) -> None:
        """Each answer forbids what it does not need, framing, sniffing and keeping."""
        for path in self.paths:
            headers = self.ask(path).headers
            for name, value in HEADERS.items():
                self.assertEqual([value], headers.get_all(name), (path, name))

    def test_head(self) -> None:
        """HEAD is what GET is, without the body."""
        for path in self.paths:
            got, head = self.ask(path), self.ask(path, "HEAD")
            self.assertEqual((200, b""), (head.status, head.body))
            self.assertEqual(got.headers["Content-Length"], head.headers["Content-Length"])
            self.assertEqual(str(len(got.body)), got.headers["Content-Length"])
            self.assertEqual(got.headers["Content-Type"], head.headers["Content-Type"])

    def test_methods(self) -> None:
        """Nothing can be changed here: 405, and nobody is asked how things are."""
        for path in self.paths:
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                reply = self.ask(path, method, b"")
                self.assertEqual((405, "GET, HEAD"), (reply.status, reply.headers["Allow"]), (method, path))
        self.assertEqual(0, self.asked)

    def test_json(self) -> None:
        """The JSON is what L{ServerStatus.as_json} has."""
        self.status = server(*(repository(name) for name in (*HOSTILE, *ODD, "")), users=(UserStatus("ä", 1, 2),))
        reply = self.ask("/-/status.json")
        self.assertEqual("application/json", reply.headers["Content-Type"])
        self.assertEqual(self.status, ServerStatus.from_json(json.load(BytesIO(reply.body))))

    def test_sheet(self) -> None:
        """The style sheet loads nothing from anywhere, and is asked of no account."""
        reply = self.ask("/-/status.css")
        self.assertNotRegex(reply.body.decode("utf-8"), r"@import|url\(")
        self.assertEqual(0, self.asked)
        classes = set(re.findall(r"\.([a-z]+)", re.sub(r"/\*.*?\*/", "", reply.body.decode("utf-8"))))
        self.assertTrue({"bar", "curve", "concerns", "bad", "warning", "good"} <= classes, classes)

    def test_unavailable(self) -> None:
        """503 while nobody can say (the parent of a worker is gone), never half a page."""
        from resticserver.errors import Unavailable

        async def unavailable() -> ServerStatus:
            raise Unavailable()

        self.now = unavailable  # type: ignore[method-assign]
        for path in ("/-/status", "/-/status.json", "/-/status/alice"):
            self.assertEqual(503, self.ask(path).status)


class WhoTests(StatusCase):
    """Who sees what."""

    def setUp(self) -> None:
        super().setUp()
        self.authentication = PasswordAuthentication(ChecksPasswords())
        names = ("alice", "alice/laptop", "alice/secret", "bob/shared", "bob/hidden", "carol", "")
        self.status = server(
            *(repository(name) for name in names),
            users=tuple(UserStatus(name, 1536, 10_000_000) for name in ("alice", "bob", "carol")),
            quota_bytes=100_000,
            disk_free_bytes=5_000,
            disk_size_bytes=100_000,
        )
        self.policy = Policy(grants=parse_policy(POLICY))

    visible: tuple[tuple[str, set[str]], ...] = (
        ("alice", {"alice", "alice/laptop", "bob/shared"}),
        ("bob", {"bob/shared", "bob/hidden"}),
        ("carol", {"carol"}),
        ("dave", set()),
        ("metrics", {"alice", "alice/laptop", "alice/secret", "bob/shared", "bob/hidden", "carol", ""}),
    )

    def test_nobody(self) -> None:
        """401 with a challenge for strangers and wrong passwords, whatever they ask for; no account is looked at."""
        for path in (
            "/-/status",
            "/-/status.json",
            "/-/status.css",
            "/-/status/alice",
            "/-/status/nobody",
            "/-/status/",
        ):
            for method in ("GET", "HEAD", "POST"):
                reply = self.ask(path, method)
                self.assertEqual(401, reply.status, path)
                self.assertIn("Basic realm=", reply.headers["WWW-Authenticate"])
            self.assertEqual(401, self.ask(path, **login("alice", "wrong")).status)
        self.assertEqual(0, self.asked)

    def test_lists(self) -> None:
        """The list and the JSON have the repositories that a user may read, and the sum is of these."""
        for user, names in self.visible:
            tree = self.tree("/-/status", user)
            self.assertEqual({name or "/" for name in names}, set(self.rows(tree)), user)
            document = json.loads(self.ask("/-/status.json", user=user).body)
            self.assertEqual(names, {one["repository"] for one in document["repositories"]}, user)

    def test_pages(self) -> None:
        """The page of a repository that somebody may not read is as unknown as one that is not there."""
        names = [one.repository for one in self.status.repositories]
        for user, visible in self.visible:
            unknown = self.ask("/-/status/nobody/nothing", user=user)
            for name in names:
                reply = self.ask(f"/-/status/{name}", user=user)
                self.assertEqual(200 if name in visible else 404, reply.status, (user, name))
                if name not in visible:
                    self.assertEqual((unknown.reason, unknown.body), (reply.reason, reply.body))

    def test_nothing_of_others(self) -> None:
        """Neither names of others nor how the server stands as a whole are anywhere in what a user gets."""
        for path in ("/-/status", "/-/status.json", "/-/status/carol"):
            body = self.ask(path, user="carol").body
            for word in (b"alice", b"bob", b"shared", b"laptop"):
                self.assertNotIn(word, body, path)
        document = json.loads(self.ask("/-/status.json", user="carol").body)
        for key in ("quota_bytes", "disk_free_bytes", "disk_size_bytes"):
            self.assertIsNone(document[key])
        self.assertEqual([], document["concerns"])
        self.assertEqual(["carol"], [user["user"] for user in document["users"]])
        self.assertNotIn("Free disk", text_of(self.tree("/-/status", "carol")))

    def test_metrics_sees_the_whole(self) -> None:
        """The user C{metrics} sees the disk, the quota and everyone's, whatever the rules say."""
        self.assertEqual(
            self.status, ServerStatus.from_json(json.loads(self.ask("/-/status.json", user="metrics").body))
        )
        self.assertIn("Free disk", text_of(self.tree("/-/status", "metrics")))

    def test_private_repositories(self) -> None:
        """Without a policy file C{--private-repos} decides."""
        self.policy = Policy(private_repos=True)
        self.assertEqual({"alice", "alice/laptop", "alice/secret"}, set(self.rows(self.tree("/-/status", "alice"))))
        self.policy = Policy()
        self.assertEqual(7, len(self.rows(self.tree("/-/status", "alice"))))

    def test_without_authentication(self) -> None:
        """With C{--no-auth} everyone sees everything."""
        self.authentication = NoAuthentication()
        self.assertEqual(7, len(self.rows(self.tree("/-/status"))))
        self.assertEqual(200, self.ask("/-/status/bob/hidden").status)
