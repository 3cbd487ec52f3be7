"""
The status page as people see it: pictures of it in a real browser (desktop, phone, dark, 400 repositories, first day), and
what can be said of them without eyes.

C{STATUS_SHOTS} names a directory that the pictures are kept in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..support.browser import COLOURS, SKIP_WITHOUT_CHROMIUM, TOO_WIDE, Browser, contrast
from ..support.client import Client
from ..support.htpasswd import sha_line
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, start_server
from ..support.status_world import LONG, POLICY, SOME, make_many, make_some
from ..support.waiting import wait_until

DESKTOP, PHONE = 1280, 390
#: The names in the table, in their order.
NAMES = 'return Array.from(document.querySelectorAll("tbody th > a")).map(link => link.textContent)'
CONCERNS = """
return Array.from(document.querySelectorAll("tbody .concerns li")).map(one => [one.className, one.textContent]);
"""
FOUND = 'return document.querySelector(".found").textContent'
HEADER = 'return document.querySelector(".lead").textContent'
#: Of each large chart: the names on both axes, the text in it, and how many lines mark a limit.
CHARTS = """
return Array.from(document.querySelectorAll(".chart")).map(chart => [
    Array.from(chart.querySelectorAll(".y li")).map(one => one.textContent),
    Array.from(chart.querySelectorAll(".x li")).map(one => one.textContent),
    Array.from(chart.querySelectorAll("text")).map(one => one.textContent),
    chart.querySelectorAll("line.limit").length,
]);
"""
#: Texts that do not fit into what they are in.
CUT_OFF = """
return Array.from(document.querySelectorAll("th, td, .figures div, .concerns li, .chart li, button")).filter(
    one => !one.closest("thead") && one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0
).map(one => one.outerHTML.slice(0, 200));
"""
#: Tables that are wider than what they are in.
BEYOND_MAIN = """
const right = document.querySelector("main").getBoundingClientRect().right;
return Array.from(document.querySelectorAll("table, figure, form")).filter(
    one => one.getBoundingClientRect().right > right + 0.5
).map(one => [one.tagName, one.getBoundingClientRect().right, right]);
"""
#: What a form is called by a screen reader, and by its label.
CONTROLS = """
return Array.from(document.querySelectorAll("input:not([type=hidden]), select")).map(one => one.labels.length);
"""


class ShotsTests(SynchronousTestCase):
    """The pictures."""

    skip = SKIP_WITHOUT_CHROMIUM
    timeout = 300

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.data.mkdir()
        self.shots = Path(os.environ.get("STATUS_SHOTS") or self.mktemp())
        self.shots.mkdir(parents=True, exist_ok=True)

    def start(self, *flags: str) -> tuple[ServerProcess, Browser, str]:
        """A server that has counted, a browser, and the address of its page."""
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text("".join(sha_line(user, "secret") for user in ("metrics", "guest", "frank")))
        policy = self.scratch / "policy.toml"
        policy.write_text(POLICY)
        users = ("--htpasswd-file", str(htpasswd), "--policy", str(policy))
        server = start_server(self, self.data, "--prometheus", *users, *flags)
        with Client(("127.0.0.1", server.port), "metrics", "secret") as client:
            wait_until(lambda: b'"counted":true,"quota_bytes"' in client.get("/-/status.json").body)
        return server, Browser(self), f"http://metrics:secret@127.0.0.1:{server.port}/-/status"

    def look(self, browser: Browser, url: str, name: str, width: int = DESKTOP, scheme: str = "light") -> None:
        """Load a page, take its picture, and check what holds for each of them."""
        browser.scheme(scheme)
        browser.resize(width)
        browser.open(url)
        browser.shoot(self.shots / f"{name}.png", 1700 if width == PHONE else 2400)
        inner, scroll, wide = browser.run(TOO_WIDE)
        self.assertEqual((width, []), (inner, wide))
        self.assertLessEqual(scroll, width)
        self.assertEqual([], browser.run(CUT_OFF))
        self.assertEqual([], browser.run(BEYOND_MAIN))
        self.assertEqual([], browser.console())
        self.assertEqual(
            ["/-/status.css"],
            [one.partition(f":{url.rpartition(':')[2].split('/')[0]}")[2] for one in browser.resources()],
        )
        self.assertEqual([], browser.run("return Array.from(document.querySelectorAll('script, style, [style], img'))"))

    def colours(self, browser: Browser) -> set[Any]:
        """Check the contrast of all text; the colours that are behind it."""
        texts = browser.run(COLOURS)
        self.assertGreater(len(texts), 30)
        for what, ink, paper in texts:
            self.assertGreaterEqual(contrast(ink, paper), 4.5, (what, ink, paper))
        return {tuple(paper) for _, _, paper in texts}

    def test_much(self) -> None:
        """A server on which much has happened, on a desktop, in the dark, and on a phone; and a repository's page."""
        make_some(self.data)
        _, browser, url = self.start("--max-size", "20GiB")
        self.look(browser, url, "desktop")
        light = self.colours(browser)
        self.assertEqual(set(SOME), set(browser.run(NAMES)))
        self.assertEqual("8 repositories, 4 need attention, 1 user needs attention", browser.run(HEADER))
        ((sizes, days, limit, lines),) = browser.run(CHARTS)
        self.assertEqual(["20 GiB", "15 GiB", "10 GiB", "5 GiB", "0"], sizes)
        self.assertEqual((3, ["Limit 20 GiB"], 1), (len(days), limit, lines))
        self.look(browser, url, "dark", scheme="dark")
        self.assertFalse(light & self.colours(browser))
        self.look(browser, url, "phone", PHONE)
        self.assertEqual([1, 1, 1], browser.run(CONTROLS))
        self.look(browser, f"{url}/alice/nas", "repository")
        ((sizes, days, limit, lines),) = browser.run(CHARTS)
        self.assertEqual((["4 GiB", "3 GiB", "2 GiB", "1 GiB", "0"], 3), (sizes, len(days)))
        self.assertEqual((["Quota 4 GiB"], 1), (limit, lines))
        self.look(browser, f"{url}/alice/nas", "repository-phone", PHONE)
        self.look(browser, f"{url}/{LONG}", "repository-long", PHONE, "dark")

    def test_others(self) -> None:
        """A user sees the repositories that they may read, and neither names nor figures of others."""
        make_some(self.data)
        server, browser, _ = self.start("--max-size", "20GiB")
        url = f"http://guest:secret@127.0.0.1:{server.port}/-/status"
        for query in ("", "?find=bob", "?show=attention", "?sort=stored"):
            browser.open(url + query)
            text = browser.run("return document.documentElement.outerHTML")
            for word in ("erin", "bob/", "carol", "Received", "Failed logins", "Growth</h2>", "Free disk"):
                self.assertNotIn(word, text)
        browser.open(url)
        self.assertIn("alice/laptop", browser.run(NAMES))

    def test_400(self) -> None:
        """400 repositories: filter, sort and reload work by keyboard, mouse and links, and keep what was chosen."""
        make_many(self.data)
        _, browser, url = self.start()
        self.look(browser, url, "rows400")
        self.assertEqual(400, len(browser.run(NAMES)))
        self.assertEqual("400 repositories, 12 need attention", browser.run(HEADER))
        browser.type("input[name=find]", "USER07")
        browser.click("form button")
        self.assertEqual([f"user07/machine-{each:03}" for each in range(7, 400, 40)], browser.run(NAMES))
        self.assertEqual("10 of 400 repositories. Show all", browser.run(FOUND))
        browser.click("thead th:nth-child(4) a")
        self.assertEqual("descending", browser.run("return document.querySelector('[aria-sort]').ariaSort"))
        by_size = [f"user07/machine-{each:03}" for each in range(7, 400, 40)]
        self.assertEqual(by_size[::-1], browser.run(NAMES))
        browser.click("thead th:nth-child(4) a")
        self.assertEqual(by_size, browser.run(NAMES))
        browser.click("nav a:last-child")
        self.assertIn("find=USER07", browser.address())
        self.assertEqual("60", browser.run("return document.querySelector('[http-equiv=refresh]').content"))
        browser.click("nav a:last-child")
        self.assertIsNone(browser.run("return document.querySelector('[http-equiv=refresh]')"))
        browser.click(".found a")
        browser.click("select[name=show] option:nth-child(2)")
        browser.click("form button")
        self.assertEqual(12, len(browser.run(NAMES)))
        self.look(browser, f"{url}?show=attention&sort=growth", "rows400-phone", PHONE)
        browser.open(f"{url}?find=%3Cb%3E%22")
        self.assertEqual('<b>"', browser.run("return document.querySelector('input[name=find]').value"))
        self.assertEqual("No repository matches.", browser.run("return document.querySelector('.empty').textContent"))
        self.assertEqual([], browser.console())

    def test_first_day(self) -> None:
        """An empty server, and one whose only repository has no snapshot yet: nothing looks broken or needs attention."""
        server, browser, url = self.start()
        self.look(browser, url, "firstday-empty")
        self.assertEqual("0 repositories, all is well", browser.run(HEADER))
        with Client(("127.0.0.1", server.port), "frank", "secret") as client:
            client.create_repository("/frank/laptop/")
            self.assertEqual(200, client.post("/frank/laptop/config", b"x" * 155).status)

        def listed() -> bool:
            browser.open(url)
            return bool(browser.run(NAMES) == ["frank/laptop"])

        wait_until(listed)
        self.look(browser, url, "firstday")
        self.assertEqual("1 repository, all is well", browser.run(HEADER))
        self.assertEqual([["notice", "no snapshot yet"]], browser.run(CONCERNS))
        self.look(browser, url, "firstday-phone", PHONE)
