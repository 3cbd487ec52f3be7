"""
C{/metrics}, C{/-/health} and C{/-/ready} on the real channel, byte for byte.
"""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Policy
from resticserver.errors import Unauthorized, Unavailable
from resticserver.telemetry.record import Ending
from resticserver.web.authentication import NoAuthentication, PasswordAuthentication
from resticserver.web.http1.options import SiteOptions
from resticserver.web.http1.site import RepositorySite
from resticserver.web.page import Page
from resticserver.web.routes import Api
from resticserver.web.status_pages import ServerPages

from ..support.memory import Bench, Connection, HeldPool, request

#: What the metrics are here.
TEXT = b"# HELP a \xc3\xa4\na 1.0\n"


class ChecksPasswords:
    """Whose password is their name is right."""

    def is_cached(self, login: Any) -> bool:
        """Nothing is remembered."""
        return False

    async def check(self, login: Any) -> None:
        """See."""
        if login.user.encode() != login.password:
            raise Unauthorized()


def login(user: str, password: str = "") -> dict[str, str]:
    """The header that says who."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password or user}".encode()).decode("ascii")}


class PagesCase(SynchronousTestCase):
    """A site with pages."""

    def setUp(self) -> None:
        self.why_not = ""
        self.made = 0
        self.authentication: Any = PasswordAuthentication(ChecksPasswords())

    async def metrics(self) -> Page:
        """The page."""
        self.made += 1
        return Page(200, b"text/plain; version=0.0.4; charset=utf-8", TEXT)

    async def reason(self) -> str:
        """Why it is not ready."""
        return self.why_not

    def pages(self, **changed: Any) -> ServerPages:
        """Metrics, health and readiness."""
        return ServerPages(**{"not_ready": self.reason, "metrics": self.metrics, **changed})

    def site(
        self, pages: ServerPages | None = None, prefix: tuple[str, ...] = (), alone: bool = False
    ) -> RepositorySite:
        """
        One that has them.

        @param alone: whether nothing else is there.
        """
        bench = self.bench = Bench(self.mktemp(), authentication=self.authentication)
        repositories = None if alone else bench.repositories
        api = Api(self.authentication, Policy(), repositories, pages or self.pages())
        return RepositorySite(api.resource(), bench.clock, bench.records.append, SiteOptions(prefix=prefix))

    def ask(
        self, site: RepositorySite, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> Connection:
        """One request on a connection of its own."""
        connection = Connection(site)
        connection.send(request(method, path, body, **headers))
        return connection

    def status(self, site: RepositorySite, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        """Its one answer's status."""
        (status,) = self.ask(site, method, path, body, **headers).statuses()
        return status


class AnswerTests(PagesCase):
    """What they say, to whom."""

    def test_health(self) -> None:
        """200 C{ok}, for everyone, not to be kept by any cache."""
        received = self.ask(self.site(), "GET", "/-/health").received
        head, _, body = received.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"), head)
        self.assertIn(b"\r\nContent-Length: 3", head)
        self.assertIn(b"\r\nCache-Control: no-store", head)
        self.assertIn(b"\r\nContent-Type: text/plain; charset=utf-8", head)
        self.assertEqual(b"ok\n", body)

    def test_ready(self) -> None:
        """200 C{ready}, or 503 with the reason, for everyone, as it is at that moment."""
        site = self.site()
        self.assertTrue(self.ask(site, "GET", "/-/ready").received.endswith(b"\r\n\r\nready\n"))
        self.why_not = "the volume is not there"
        received = self.ask(site, "GET", "/-/ready").received
        self.assertTrue(received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), received)
        self.assertTrue(received.endswith(b"\r\n\r\nthe volume is not there\n"), received)
        self.assertEqual(200, self.status(site, "GET", "/-/health"))
        self.why_not = ""
        self.assertEqual(200, self.status(site, "GET", "/-/ready"))

    def test_metrics(self) -> None:
        """The text as it is, with its type, for the user C{metrics}."""
        received = self.ask(self.site(), "GET", "/metrics", None, **login("metrics")).received
        head, _, body = received.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"), head)
        self.assertIn(b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8", head)
        self.assertEqual(TEXT, body)

    def test_metrics_are_for_one_user(self) -> None:
        """401 with a challenge for strangers, 403 for other users; nothing is made for either."""
        site = self.site()
        received = self.ask(site, "GET", "/metrics").received
        self.assertTrue(received.startswith(b"HTTP/1.1 401 "), received)
        self.assertIn(b"\r\nWWW-Authenticate: Basic realm=", received)
        self.assertEqual(401, self.status(site, "GET", "/metrics", None, **login("metrics", "wrong")))
        self.assertEqual(401, self.status(site, "HEAD", "/metrics"))
        self.assertEqual(401, self.status(site, "POST", "/metrics", b""))
        for user in ("alice", "Metrics", "metrics2", "METRICS"):
            received = self.ask(site, "GET", "/metrics", None, **login(user)).received
            self.assertTrue(received.startswith(b"HTTP/1.1 403 only for the user metrics\r\n"), received)
            self.assertNotIn(TEXT, received)
        self.assertEqual(0, self.made)

    def test_metrics_without_authentication(self) -> None:
        """With C{--no-auth} there is no user who could be the wrong one."""
        self.authentication = NoAuthentication()
        self.assertTrue(self.ask(self.site(), "GET", "/metrics").received.endswith(TEXT))

    def test_metrics_for_everyone(self) -> None:
        """A page that is for everyone asks for no password, and looks at none."""
        site = self.site(self.pages(metrics_for_everyone=True))
        self.assertTrue(self.ask(site, "GET", "/metrics").received.endswith(TEXT))
        self.assertEqual(200, self.status(site, "GET", "/metrics", None, **login("alice", "wrong")))

    def test_head(self) -> None:
        """HEAD is what GET is, without the body."""
        site = self.site()
        for path, headers in (("/-/health", {}), ("/-/ready", {}), ("/metrics", login("metrics"))):
            whole, _, body = self.ask(site, "GET", path, None, **headers).received.partition(b"\r\n\r\n")
            head = self.ask(site, "HEAD", path, None, **headers).received
            self.assertTrue(body)
            self.assertTrue(head.endswith(b"\r\n\r\n"), head)
            self.assertIn(b"\r\nContent-Length: %d\r\n" % len(body), head)
            self.assertEqual(whole.splitlines()[0], head.splitlines()[0])
        self.why_not = "no"
        self.assertEqual(503, self.status(site, "HEAD", "/-/ready"))

    def test_other_methods(self) -> None:
        """405 for all but GET and HEAD, and it says which there are; a body does no harm to the next request."""
        site = self.site()
        for path in ("/-/health", "/-/ready", "/metrics"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "X"):
                headers = login("metrics") if path == "/metrics" else {}
                received = self.ask(site, method, path, b"body", **headers).received
                self.assertTrue(received.startswith(b"HTTP/1.1 405 "), received)
                self.assertIn(b"\r\nAllow: GET, HEAD\r\n", received)
        connection = Connection(site)
        connection.send(request("POST", "/-/health", b"GET / HTTP/1.1\r\n\r\n"), request("GET", "/-/health"))
        self.assertEqual([405, 200], connection.statuses())
        self.assertEqual(0, self.made)

    def test_query(self) -> None:
        """Prometheus may send parameters."""
        self.assertEqual(200, self.status(self.site(), "GET", "/metrics?collect[]=a", None, **login("metrics")))
        self.assertEqual(200, self.status(self.site(), "GET", "/-/ready?"))

    def test_absolute_form(self) -> None:
        """The form that a proxy is sent (RFC 9112, 3.2.2) names the same."""
        site = self.site()
        self.assertEqual(200, self.status(site, "GET", "http://backup.example.org:8000/-/health"))
        self.assertEqual(200, self.status(site, "GET", "http://backup.example.org/metrics", None, **login("metrics")))

    def test_http_1_0(self) -> None:
        """Old health checks speak it."""
        connection = Connection(self.site())
        connection.send(b"GET /-/health HTTP/1.0\r\n\r\n")
        self.assertEqual([200], connection.statuses())
        self.assertTrue(connection.received.endswith(b"\r\n\r\nok\n"))
        self.assertTrue(connection.closed)

    def test_one_connection(self) -> None:
        """Pages and objects go over one connection, one behind the other."""
        site = self.site()
        connection = Connection(site)
        connection.send(
            request("GET", "/-/health")
            + request("GET", "/alice/config", None, **login("alice"))
            + request("GET", "/metrics", None, **login("metrics"))
            + request("GET", "/-/ready")
        )
        self.assertEqual([200, 404, 200, 200], connection.statuses())

    def test_after_a_refused_upload(self) -> None:
        """
        An upload whose body was here as a whole when it was refused, and that nobody has taken, leaves its connection open for
        what comes next.
        """
        pool = HeldPool()
        bench = Bench(self.mktemp(), pool=pool)
        site = RepositorySite(
            Api(NoAuthentication(), Policy(), bench.repositories, self.pages()).resource(),
            bench.clock,
            bench.records.append,
        )
        connection = Connection(site)
        whole = request("POST", f"/nobody/data/{'ab' * 32}", b"x" * 100_000)
        connection.send(whole[:60_000], whole[60_000:])
        pool.release(5)
        self.assertEqual([404], connection.statuses())
        self.assertEqual("producing", connection.transport.producerState)
        connection.send(request("GET", "/-/health"))
        self.assertEqual([404, 200], connection.statuses())

    def test_failure(self) -> None:
        """What cannot be made is an error as any other: 503 and its reason, or a 500 that says no more."""

        async def unavailable() -> Page:
            raise Unavailable("not now")

        async def broken() -> Page:
            raise RuntimeError("secret")

        received = self.ask(
            self.site(self.pages(metrics=unavailable, metrics_for_everyone=True)), "GET", "/metrics"
        ).received
        self.assertTrue(received.startswith(b"HTTP/1.1 503 not now\r\n"), received)
        received = self.ask(
            self.site(self.pages(metrics=broken, metrics_for_everyone=True)), "GET", "/metrics"
        ).received
        self.assertTrue(received.startswith(b"HTTP/1.1 500 "), received)
        self.assertNotIn(b"secret", received)
        self.assertEqual(1, len(self.flushLoggedErrors(RuntimeError)))

    def test_client_goes_away(self) -> None:
        """Whoever does not wait for the page is a lost request, and nothing else comes of it."""
        waiting: Deferred[str] = Deferred()

        async def reason() -> str:
            return await waiting

        site = self.site(self.pages(not_ready=reason))
        connection = self.ask(site, "GET", "/-/ready")
        self.assertEqual([], connection.statuses())
        connection.lose()
        self.assertEqual([Ending.LOST], [record.ending for record in self.bench.records])

    def test_recorded(self) -> None:
        """Each leaves one record, which names no repository and has no effect, with the user where one was asked for."""
        site = self.site()
        self.ask(site, "GET", "/-/health", None, **login("alice"))
        self.ask(site, "GET", "/metrics", None, **login("metrics"))
        self.ask(site, "GET", "/metrics", None, **login("alice"))
        records = self.bench.records
        self.assertEqual([(200, None), (200, "metrics"), (403, "alice")], [(one.status, one.user) for one in records])
        self.assertEqual({(None, None)}, {(one.target, one.effect) for one in records})


class PlaceTests(PagesCase):
    """Where they are, and where not."""

    def test_exact_paths(self) -> None:
        """What is only like them is the API's: 401 before anything else, 404 for whom it knows."""
        site = self.site()
        for path in (
            "/-/health/",
            "/-/healthz",
            "/-/",
            "/-",
            "/-/ready/x",
            "/-//ready",
            "/%2d/ready",
            "/-/Ready",
            "/metricsx",
            "/-/metrics",
            "/x/metrics",
            "/alice/-/ready",
        ):
            self.assertEqual(401, self.status(site, "GET", path), path)
            self.assertEqual(404, self.status(site, "GET", path, None, **login("alice")), path)

    def test_never_a_repository(self) -> None:
        """None of them can be made, written to or looked into as a repository."""
        site = self.site()
        for path in ("/-/", "/-/health/", "/-/ready/", "/-/x/"):
            self.assertEqual(404, self.status(site, "POST", f"{path}?create=true", b"", **login("alice")), path)
            self.assertEqual(404, self.status(site, "POST", f"{path}config", b"x", **login("alice")), path)
            self.assertEqual(404, self.status(site, "GET", f"{path}data/", None, **login("alice")), path)
        for path in ("/-/health", "/-/ready"):
            self.assertEqual(405, self.status(site, "POST", f"{path}?create=true", b""), path)
        self.assertEqual(200, self.status(site, "GET", "/-/health"))

    def test_a_repository_of_that_name(self) -> None:
        """The user C{metrics} may have a repository as everyone may: its path ends in a slash."""
        site = self.site()
        mine = login("metrics")
        self.assertEqual(200, self.status(site, "POST", "/metrics/?create=true", b"", **mine))
        self.assertEqual(200, self.status(site, "POST", "/metrics/config", b"x", **mine))
        self.assertTrue(self.ask(site, "GET", "/metrics/config", None, **mine).received.endswith(b"\r\n\r\nx"))
        self.assertTrue(self.ask(site, "GET", "/metrics", None, **mine).received.endswith(TEXT))

    def test_not_there(self) -> None:
        """Without the page its path is one that names nothing: 404, for strangers 401."""
        site = self.site(self.pages(metrics=None))
        self.assertEqual(404, self.status(site, "GET", "/metrics", None, **login("metrics")))
        self.assertEqual(401, self.status(site, "GET", "/metrics"))
        self.authentication = NoAuthentication()
        self.assertEqual(404, self.status(self.site(self.pages(metrics=None)), "GET", "/metrics"))

    def test_site_of_their_own(self) -> None:
        """Where nothing else is served all else is 404, for everyone and every method, whoever it is."""
        site = self.site(alone=True)
        for path in ("/", "/alice/", "/alice/config", "/alice/data/", "/-/", "/x", "/config", f"/data/{'ab' * 32}"):
            for method in ("GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "X"):
                body = b"" if method == "POST" else None
                self.assertEqual(404, self.status(site, method, path, body), path)
                self.assertEqual(404, self.status(site, method, path, body, **login("alice")), path)
        self.assertEqual(404, self.status(site, "POST", "/alice/?create=true", b"", **login("alice")))
        self.assertEqual(200, self.status(site, "GET", "/-/health"))
        self.assertEqual(200, self.status(site, "GET", "/-/ready"))
        self.assertEqual(401, self.status(site, "GET", "/metrics"))
        self.assertEqual(403, self.status(site, "GET", "/metrics", None, **login("alice")))
        self.assertEqual(200, self.status(site, "GET", "/metrics", None, **login("metrics")))

    def test_prefix(self) -> None:
        """With C{--proxy-prefix} they are there with it and without, on both kinds of site."""
        for alone in (False, True):
            site = self.site(prefix=("a", "backup"), alone=alone)
            for before in ("", "/a/backup"):
                self.assertEqual(200, self.status(site, "GET", f"{before}/-/health"))
                self.assertEqual(200, self.status(site, "GET", f"{before}/-/ready"))
                self.assertEqual(200, self.status(site, "GET", f"{before}/metrics", None, **login("metrics")))
            for before in ("/a", "/backup", "/a/backup/a/backup", "/a/backupx", "/a/backup/"):
                self.assertEqual(404, self.status(site, "GET", f"{before}/-/health", None, **login("alice")), before)
        self.assertEqual(
            200, self.status(self.site(prefix=("a",)), "POST", "/a/alice/?create=true", b"", **login("alice"))
        )

    def test_prefix_in_other_letters(self) -> None:
        """A prefix that must be percent-encoded on its way is the same one, as it is before a repository."""
        site = self.site(prefix=("büro",))
        self.assertEqual(200, self.status(site, "POST", "/b%C3%BCro/alice/?create=true", b"", **login("alice")))
        self.assertEqual(200, self.status(site, "GET", "/b%C3%BCro/-/health"))
        self.assertEqual(200, self.status(site, "GET", "/b%c3%bcro/metrics", None, **login("metrics")))

    def test_prefix_of_their_own_name(self) -> None:
        """A prefix that looks like a page does not hide it."""
        site = self.site(prefix=("metrics",))
        self.assertEqual(200, self.status(site, "GET", "/metrics", None, **login("metrics")))
        self.assertEqual(200, self.status(site, "GET", "/metrics/metrics", None, **login("metrics")))
        self.assertEqual(200, self.status(site, "POST", "/metrics/alice/?create=true", b"", **login("alice")))
        site = self.site(prefix=("-",))
        self.assertEqual(200, self.status(site, "GET", "/-/health"))
        self.assertEqual(200, self.status(site, "GET", "/-/-/health"))
