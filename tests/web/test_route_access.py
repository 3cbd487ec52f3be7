"""
L{resticserver.web.routes}: every route says who may use it, and is closed to everyone else.
"""

from __future__ import annotations

import base64
import inspect
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Policy
from resticserver.errors import Unauthorized
from resticserver.telemetry.status import ServerStatus
from resticserver.web.authentication import PasswordAuthentication
from resticserver.web.http1.site import RepositorySite
from resticserver.web.page import TEXT, Page
from resticserver.web.routes import METHODS, Access, Api
from resticserver.web.status_pages import ServerPages, StatusPages

from ..support.memory import Bench, Connection, InlinePool, request

NAME = "ab" * 32
#: For each path of the app, one of its requests.
EXAMPLES = {
    "/": "/alice/",
    "/config": "/alice/config",
    "/<object_type>/": "/alice/data/",
    "/<object_type>/<name>": f"/alice/data/{NAME}",
    "/metrics": "/metrics",
    "/-/health": "/-/health",
    "/-/ready": "/-/ready",
    "/-/status": "/-/status",
    "/-/status.json": "/-/status.json",
    "/-/status.css": "/-/status.css",
    "/-/status/<path:repository>": "/-/status/alice",
}
#: Those that ask for no password.
PUBLIC = {"/-/health", "/-/ready"}


class OnlyAlice:
    """Checks passwords: alice's and the metrics user's are their names."""

    def is_cached(self, login: Any) -> bool:
        """Nothing is."""
        return False

    async def check(self, login: Any) -> None:
        """Check one."""
        if login.user not in ("alice", "metrics") or login.user.encode() != login.password:
            raise Unauthorized()


class AccessTests(SynchronousTestCase):
    """Each route of the app."""

    def setUp(self) -> None:
        bench = Bench(self.mktemp())
        bench.store.create_repository(("alice",))
        authentication = PasswordAuthentication(OnlyAlice())

        async def metrics() -> Page:
            return Page(200, TEXT, b"secret figures\n")

        async def status() -> ServerStatus:
            return ServerStatus("1", 0.0, 0.0)

        async def ready() -> str:
            return ""

        policy = Policy(private_repos=True)
        pages = ServerPages(ready, metrics, status=StatusPages(status, policy, InlinePool()))
        api = Api(authentication, policy, bench.repositories, pages)
        self.site = RepositorySite(api.resource(), bench.clock, bench.records.append)

    def status(self, method: bytes, path: str, user: str | None = None) -> int:
        """The status of one request."""
        connection = Connection(self.site)
        headers = {}
        if user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{user}".encode()).decode()
        body = b"" if method == b"POST" else None
        connection.send(request(method.decode(), path, body, **headers))
        (status,) = connection.statuses()
        return status

    def test_every_route_has_its_rule(self) -> None:
        """A route without access and methods cannot be added unseen; and each is among the examples."""
        rules = list(Api.app.url_map.iter_rules())
        self.assertEqual(set(EXAMPLES), {rule.rule for rule in rules})
        for rule in rules:
            handler = inspect.unwrap(Api.app.endpoints[rule.endpoint])
            self.assertIsInstance(handler.access, Access, rule)
            self.assertTrue(set(handler.methods) <= set(METHODS), rule)
            self.assertEqual(handler.access is Access.EVERYONE, rule.rule in PUBLIC, rule)

    def test_strangers(self) -> None:
        """Without a user, and with one that is not known, every path is 401 by every method, but for the public ones."""
        for path in (*EXAMPLES.values(), "/-/nothing", "/alice/nothing/x/y", "/-/status/", "/%2d/health"):
            for method in (*METHODS, b"PUT", b"PATCH", b"OPTIONS"):
                for user in (None, "mallory"):
                    status = self.status(method, path, user)
                    if path in PUBLIC:
                        self.assertEqual(200 if method in (b"GET", b"HEAD") else 405, status, (method, path))
                    else:
                        self.assertEqual(401, status, (method, path, user))

    def test_other_users(self) -> None:
        """The policy's routes are closed to users that it grants nothing, and the metrics to all but their user."""
        for path in ("/", "/config", "/data/", f"/data/{NAME}"):
            for method in METHODS:
                status = self.status(method, f"/bob{path}", "alice")
                self.assertIn(status, (403, 405), (method, path))
        self.assertEqual(403, self.status(b"GET", "/metrics", "alice"))
        self.assertEqual(200, self.status(b"GET", "/metrics", "metrics"))
        self.assertEqual(200, self.status(b"GET", "/-/status", "alice"))
        self.assertEqual(404, self.status(b"GET", "/alice/config", "alice"))
