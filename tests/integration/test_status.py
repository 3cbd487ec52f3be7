"""
The status page of real servers in a real browser, while the real restic backs up to them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from ..support.browser import COLOURS, SKIP_WITHOUT_CHROMIUM, TOO_WIDE, Browser, contrast
from ..support.htpasswd import sha_line
from ..support.restic import SKIP_WITHOUT_RESTIC, Restic
from ..support.scratch import scratch_directory
from ..support.server import ServerProcess, installed, server_environment, start_server
from ..support.skipping import skipped
from ..support.waiting import PATIENCE_S, wait_until

HOSTILE = ("<script>alert(1)<", '"><img src=x onerror=alert(1)>')
#: How long ago something was that this test has done.
LATELY = r"a moment ago|\b\d minutes? ago"
#: A desktop's and a phone's.
WIDTHS = (1280, 390)

#: What a browser shows of the table: per row the name, and the cells by the names of their columns.
ROWS = """
return Array.from(document.querySelectorAll("tbody tr")).filter(row => row.querySelector("th a")).map(row => [
    row.querySelector("th a").textContent,
    Object.fromEntries(Array.from(row.querySelectorAll("td")).map(cell => [cell.dataset.name, cell.textContent])),
]);
"""


def make_repository(path: Path, size_bytes: int = 100) -> None:
    """What looks like one: a folder and an object."""
    (path / "data" / "00").mkdir(parents=True)
    (path / "data" / "00" / ("0" * 64)).write_bytes(b"x" * size_bytes)


class StatusPageTests(SynchronousTestCase):
    """L{resticserver.web.status_pages} as people see it."""

    skip = SKIP_WITHOUT_CHROMIUM
    timeout = 110

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.data.mkdir()

    def start(self, *flags: str) -> tuple[ServerProcess, Browser]:
        """A server and a browser."""
        return start_server(self, self.data, "--prometheus", *flags), Browser(self)

    def rows(self, browser: Browser, url: str) -> dict[str, dict[str, str]]:
        """The table as it is now."""
        browser.open(url)
        return dict(browser.run(ROWS))

    def watch_backup(self, *flags: str) -> None:
        """Of three repositories, that row changes which restic backs up to."""
        server, browser = self.start(*flags)
        status = f"{server.url}/-/status"
        names = ("alice/laptop", "alice/nas", "bob")
        restics = {name: Restic(self, f"{server.url}/{name}/", self.scratch) for name in names}
        for restic in restics.values():
            restic.create()

        def settled() -> dict[str, dict[str, str]] | None:
            rows = self.rows(browser, status)
            done = set(rows) == set(names) and all(row["Locks"] == "none" for row in rows.values())
            return rows if done else None

        before = wait_until(settled)
        assert before is not None
        self.assertEqual({"never"}, {row["Last snapshot"] for row in before.values()})
        tree = self.scratch / "tree"
        tree.mkdir()
        (tree / "file").write_bytes(os.urandom(3 << 20))
        restics["alice/nas"].succeed("backup", str(tree))

        def changed() -> dict[str, dict[str, str]] | None:
            rows = settled()
            return rows if rows is not None and rows["alice/nas"]["Last snapshot"] != "never" else None

        after = wait_until(changed)
        assert after is not None
        self.assertRegex(after["alice/nas"]["Last snapshot"], LATELY)
        self.assertRegex(after["alice/nas"]["Stored"], r"^3(\.\d+)? MiB \d+ objects$")
        objects = [int(rows["alice/nas"]["Stored"].split()[-2]) for rows in (before, after)]
        self.assertLess(objects[0], objects[1])
        snapshots = [rows["alice/nas"]["Snapshots"] for rows in (before, after)]
        self.assertEqual(["0", "1"], snapshots)
        for name in ("alice/laptop", "bob"):
            self.assertEqual(before[name], after[name])
        browser.open(f"{status}/alice/nas")
        self.assertEqual("alice/nas", browser.run("return document.querySelector('h1').textContent"))
        self.assertRegex(browser.run("return document.querySelector('dl').textContent"), LATELY)
        self.assertEqual([], browser.console())

    @skipped(SKIP_WITHOUT_CHROMIUM or SKIP_WITHOUT_RESTIC)
    def test_backup(self) -> None:
        """A row changes after a backup: last snapshot, size, objects."""
        self.watch_backup()

    @skipped(SKIP_WITHOUT_CHROMIUM or SKIP_WITHOUT_RESTIC)
    def test_backup_with_workers(self) -> None:
        """The same where the parent keeps account and a worker shows it."""
        self.watch_backup("--workers", "2")

    def test_many(self) -> None:
        """All of 300 repositories are there, with their sizes, and nothing is wider than the window."""
        for number in range(300):
            make_repository(self.data / f"user{number % 20}" / f"machine-{number}", 1000 + number)
        server, browser = self.start()
        url = f"{server.url}/-/status"
        wait_until(lambda: len(self.rows(browser, url)) == 300)
        rows = self.rows(browser, url)
        self.assertEqual({f"user{number % 20}/machine-{number}" for number in range(300)}, set(rows))
        self.assertEqual("1.26 KiB 1 object", rows["user19/machine-299"]["Stored"])
        self.assert_fits(browser)
        self.assertEqual([], browser.console())

    def test_hostile_names(self) -> None:
        """Names that are markup are text: nothing runs, is loaded or refused, and their links work."""
        for name in HOSTILE:
            make_repository(self.data / name)
            make_repository(self.data / "alice" / name)
        server, browser = self.start()
        names = {*HOSTILE, *(f"alice/{name}" for name in HOSTILE)}
        url = f"{server.url}/-/status"
        wait_until(lambda: set(self.rows(browser, url)) == names)
        self.assert_nothing_foreign(browser)
        for name in names:
            href = f"status/{quote(name)}"
            browser.open(url)
            browser.click(f"a[href='{href}']")
            self.assertEqual(f"{server.url}/-/{href}", browser.address())
            self.assertEqual(name, browser.run("return document.querySelector('h1').textContent"))
            self.assert_nothing_foreign(browser)
            browser.click("header a")
            self.assertEqual(url, browser.address())

    def assert_nothing_foreign(self, browser: Browser) -> None:
        """No script, no image; our sheet holds; the console is empty (an alert would fail the call)."""
        self.assertEqual([], browser.run("return Array.from(document.querySelectorAll('script, img, [onerror]'))"))
        self.assertEqual(1, browser.run("return document.styleSheets.length"))
        self.assertNotEqual("rgba(0, 0, 0, 0)", browser.run("return getComputedStyle(document.body).backgroundColor"))
        self.assertEqual([], browser.console())

    def assert_fits(self, browser: Browser) -> None:
        """Nothing is wider than a desktop's or a phone's window."""
        for width in WIDTHS:
            browser.resize(width)
            inner, scroll, wide = browser.run(TOO_WIDE)
            self.assertEqual((width, []), (inner, wide))
            self.assertLessEqual(scroll, width)

    def full(self) -> tuple[ServerProcess, Browser]:
        """A server that has all that a page can show: long names, quotas, locks, concerns."""
        policy = self.scratch / "policy.toml"
        policy.write_text(
            '[[rule]]\nusers = ["*"]\nrepositories = ["**"]\nrights = "full"\nquota = "1KiB"\n[users."*"]\nquota = "4KiB"\n'
        )
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text(sha_line("metrics", "secret") + sha_line("alice", "secret"))
        for name, size in (("alice/laptop", 100), ("bob", 1000), ("w" * 200, 2000), (f"{'x' * 100}/{'y y' * 60}", 950)):
            path = self.data / name
            make_repository(path, size)
            (path / "locks").mkdir()
            (path / "locks" / ("1" * 64)).write_bytes(b"")
            os.utime(path / "locks" / ("1" * 64), (1.7e9, 1.7e9))
        (self.data / "bob" / "snapshots").mkdir()
        (self.data / "bob" / "snapshots" / ("2" * 64)).write_bytes(b"x")
        os.utime(self.data / "bob" / "snapshots" / ("2" * 64), (1.7e9, 1.7e9))
        flags = ("--policy", str(policy), "--htpasswd-file", str(htpasswd), "--max-size", "5KiB")
        server, browser = self.start(*flags)
        url = f"http://metrics:secret@127.0.0.1:{server.port}/-/status"
        wait_until(lambda: len(self.rows(browser, url)) == 4)
        return server, browser

    def test_widths(self) -> None:
        """Nothing is wider than the window, however long names are, on the list and on each repository's page."""
        server, browser = self.full()
        self.assert_fits(browser)
        for name in ("bob", "w" * 200, f"{'x' * 100}/{'y y' * 60}"):
            browser.open(f"{server.url}/-/status/{quote(name)}")
            self.assertEqual(name, browser.run("return document.querySelector('h1').textContent"))
            self.assert_fits(browser)
        self.assertEqual([], browser.console())

    def test_phone(self) -> None:
        """On a phone a row is a card whose values have names; on a desktop it is a row."""
        _, browser = self.full()
        for width, display, label in ((1280, "table-row", "none"), (390, "block", '"Stored"')):
            browser.resize(width)
            self.assertEqual(
                display, browser.run("return getComputedStyle(document.querySelector('tbody tr')).display")
            )
            script = "return getComputedStyle(document.querySelector('td[data-name=Stored]'), '::before').content"
            self.assertEqual(label, browser.run(script))

    def test_contrast(self) -> None:
        """All text can be read, light and dark, by WCAG's measure for small text (4.5 to 1)."""
        _, browser = self.full()
        backgrounds = set()
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            texts = browser.run(COLOURS)
            self.assertGreater(len(texts), 30)
            for what, ink, paper in texts:
                self.assertGreaterEqual(contrast(ink, paper), 4.5, (scheme, what, ink, paper))
            backgrounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(2, len(backgrounds))


class LastDayTests(SynchronousTestCase):
    """Traffic, failed logins, refusals, last writers, of all processes and over a restart."""

    timeout = 110

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.data.mkdir()
        self.htpasswd = self.scratch / "htpasswd"
        self.htpasswd.write_text(sha_line("metrics", "secret") + sha_line("alice", "secret"))

    def start(self, *flags: str) -> ServerProcess:
        """A server with users."""
        return start_server(self, self.data, "--prometheus", "--htpasswd-file", str(self.htpasswd), *flags)

    def status(self, server: ServerProcess) -> dict[str, Any]:
        """What the page says."""
        with server.client("metrics", "secret") as client:
            found: dict[str, Any] = json.loads(client.get("/-/status.json").body)
            return found

    def wait_until_counted(self, server: ServerProcess) -> None:
        """Wait for the end of the first count."""
        wait_until(lambda: self.status(server)["counted"])

    def check(self, *flags: str) -> None:
        """Something happens on several connections, and the next run of the server knows it."""
        server = self.start("--max-size", "100KiB", *flags)
        sent = 0
        for number in range(6):
            with server.client("alice", "secret") as client:
                if not number:
                    client.create_repository("/alice/laptop/")
                    self.assertEqual(200, client.post("/alice/laptop/config", b"x" * 155).status)
                client.save("data", os.urandom(10_000), "/alice/laptop/")
                sent += 10_000
        with server.client("alice", "secret") as client:
            client.save("snapshots", os.urandom(300), "/alice/laptop/")
            sent += 455
            self.assertEqual(507, client.post(f"/alice/laptop/data/{'0' * 64}", b"x" * 90_000).status)
        for _ in range(3):
            with server.client("alice", "guess") as client:
                self.assertEqual(401, client.get("/alice/laptop/config").status)

        def is_complete() -> dict[str, Any] | None:
            found = self.status(server)
            return found if found["last_day"]["failed_logins"] == 3 and found["counted"] else None

        status = wait_until(is_complete)
        assert status is not None
        self.check_day(status, sent)
        server.stop()
        again = self.start("--max-size", "100KiB", *flags)

        def has_counted() -> dict[str, Any] | None:
            found = self.status(again)
            return found if found["counted"] and found["repositories"][0]["last_writer"] else None

        status = wait_until(has_counted)
        assert status is not None
        self.check_day(status, sent)

    def check_day(self, status: dict[str, Any], sent: int) -> None:
        """What L{check} has done."""
        day = status["last_day"]
        self.assertEqual((1, 3), (day["uploads_refused"], day["failed_logins"]))
        # How much of a refused upload was read is of no matter.
        self.assertTrue(sent <= day["received_bytes"] <= sent + 90_000, day)
        self.assertGreater(day["sent_bytes"], 0)
        (one,) = status["repositories"]
        self.assertEqual(("alice", 1), (one["last_writer"], one["snapshots"]))
        for key in ("last_write_s", "created_s"):
            self.assertLess(abs(status["time_s"] - one[key]), 2 * PATIENCE_S, key)
        self.assertEqual(os.uname().nodename, status["host"])

    def test_one_process(self) -> None:
        """Without workers."""
        self.check()

    def test_workers(self) -> None:
        """With workers, each of which has seen a part of it."""
        self.check("--workers", "2")

    def test_thresholds(self) -> None:
        """The flags decide what the page, the JSON and the exit status of C{rest-server status} say."""
        make_repository(self.data / "alice")
        (self.data / "alice" / "config").write_bytes(b"x")
        os.utime(self.data / "alice" / "config", (1.7e9, 1.7e9))
        for flags, expected, words in (
            ((), 1, "no snapshot yet, created "),
            (("--warn-first-snapshot", "0"), 0, "no snapshot yet"),
            (("--warn-first-snapshot=0", "--max-size=1KiB", "--warn-quota=5%"), 1, "quota 9 % used"),
        ):
            server = self.start(*flags)
            self.wait_until_counted(server)
            finished = subprocess.run(
                [installed("rest-server"), "status", server.url, "--user", "metrics"],
                cwd=self.scratch,
                env=server_environment({"no_proxy": "*"}),
                input="secret\n",
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            self.assertEqual((expected, ""), (finished.returncode, finished.stderr), finished.stdout)
            self.assertIn(words, finished.stdout)
            with server.client("metrics", "secret") as client:
                self.assertIn(words, client.get("/-/status").body.decode())
            server.stop()


class ServerTests(SynchronousTestCase):
    """The same without a browser."""

    def setUp(self) -> None:
        self.scratch = scratch_directory(self)
        self.data = self.scratch / "data"
        self.data.mkdir()

    def command(self, *arguments: str) -> tuple[int, str, str]:
        """C{rest-server status}: status, output, errors."""
        finished = subprocess.run(
            [installed("rest-server"), "status", *arguments],
            cwd=self.scratch,
            env=server_environment({"no_proxy": "*"}),
            input="secret\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return finished.returncode, finished.stdout, finished.stderr

    def test_command(self) -> None:
        """C{rest-server status} has what the page has, on the server's address and on that for metrics, with workers too."""
        htpasswd = self.scratch / "htpasswd"
        htpasswd.write_text(sha_line("metrics", "secret") + sha_line("alice", "secret"))
        for name in ("alice", "bob"):
            make_repository(self.data / name)
        for flags in ((), ("--workers", "2")):
            users = ("--htpasswd-file", str(htpasswd), "--private-repos", "--max-size", "210")
            server = start_server(self, self.data, "--prometheus", "--metrics-listen", "127.0.0.1:0", *users, *flags)
            metrics = "http://" + server.wait_for_line(r"metrics on (\S+)$")[1]
            for url in (server.url, metrics):
                wait_until(lambda: "counted" not in self.command(url, "--user", "metrics")[1])
                status, out, err = self.command(url, "--user", "metrics")
                self.assertEqual((1, ""), (status, err), out)
                self.assertIn("quota 95 % used", out)
                self.assertEqual(["alice", "bob"], [line.split()[0] for line in out.splitlines()[-2:]])
                status, out, err = self.command(url, "--user", "alice")
                self.assertEqual((0, ""), (status, err), out)
                self.assertNotIn("bob", out)
                status, out, err = self.command(url)
                self.assertEqual((2, ""), (status, out))
                self.assertIn("401", err)
            server.stop()

    def test_not_asked_for(self) -> None:
        """Without a flag there is no page."""
        server = start_server(self, self.data)
        for path in ("/-/status", "/-/status.json", "/-/status.css", "/-/status/"):
            with server.client() as client:
                self.assertEqual(404, client.get(path).status)
        self.assertEqual(2, self.command(server.url)[0])

    def test_folders_made_by_hand(self) -> None:
        """One folder whose name is no text costs nobody the page, the JSON, or the metrics."""
        make_repository(self.data / "alice")
        os.makedirs(os.fsencode(self.data) + b"/bad\xff/keys")
        with open(os.fsencode(self.data) + b"/bad\xff/config", "wb") as file:
            file.write(b"x")
        for flags in ((), ("--workers", "2")):
            server = start_server(self, self.data, "--prometheus", *flags)
            with server.client() as client:
                wait_until(lambda: len(json.loads(client.get("/-/status.json").body)["repositories"]) == 2)
                replies = [client.get(path) for path in ("/-/status", "/-/status.json", "/-/status/alice", "/metrics")]
            self.assertEqual([200, 200, 200, 200], [reply.status for reply in replies])
            server.stop()
