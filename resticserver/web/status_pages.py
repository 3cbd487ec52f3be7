"""
The status pages of a site: one for the server, one for each repository, and the same as JSON.

There is one style sheet, no script, and nothing from elsewhere; the Content-Security-Policy says so. Pages are made in a
pool, because hundreds of repositories take their time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ..access.policy import Action, Decides
from ..errors import NotFound
from ..files import read_file
from ..targets import Kind, Target, parse_target
from ..telemetry.status import ServerStatus
from ..threads.interface import Pool
from .html import document
from .page import METRICS_USER, Page
from .repository_page import repository_page
from .server_page import server_page
from .status_view import View

_HTML = b"text/html; charset=utf-8"
#: Only our own style sheet and form are allowed. The page may not be framed, and links from it send no Referer.
HEADERS = (
    b"Content-Security-Policy: default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; "
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

    def _of(self, status: ServerStatus, user: str | None) -> ServerStatus:
        """The part of the status that a user may see: the repositories that they may read. In the pool."""
        if user is None or user == METRICS_USER:
            return status
        may_read = []
        for repository in status.repositories:
            target = Target(
                tuple(repository.repository.split("/")) if repository.repository else (), Kind.LIST, "snapshots"
            )
            if self._policy.decide(user, Action.READ, target).allowed:
                may_read.append(repository)
        return status.only(user, may_read)

    async def server(self, user: str | None, query: Mapping[bytes, list[bytes]]) -> Page:
        """
        The page of the server.

        @param user: the repositories that this user may read; all for the user C{metrics}, and for C{None}, without users.
        @param query: of the request (L{View}).
        """
        status = await self._status()
        return Page(200, _HTML, await self._pool.run(self._server, status, user, View.of(query)), HEADERS)

    def _server(self, status: ServerStatus, user: str | None, view: View) -> bytes:
        """In the pool."""
        return document(server_page(self._of(status, user), view))

    async def repository(self, path: bytes, user: str | None) -> Page:
        """
        The page of one repository.

        @param path: of the repository, as in a request; empty for the one at the root.
        @raise NotFound: there is none that the user may read.
        """
        status = await self._status()
        if path.endswith(b"/"):
            raise NotFound()  # the page's relative links would be wrong
        # Deeper than any repository may be: what is stored decides.
        target = parse_target(b"/" + path + b"/" if path else b"/", 64)
        if target.kind is not Kind.REPOSITORY:
            raise NotFound()
        return Page(200, _HTML, await self._pool.run(self._repository, status, user, target), HEADERS)

    def _repository(self, status: ServerStatus, user: str | None, target: Target) -> bytes:
        """In the pool."""
        name = "/".join(target.repository)
        status = self._of(status, user)
        for repository in status.repositories:
            if repository.repository == name:
                return document(repository_page(status, repository))
        raise NotFound()

    async def json(self, user: str | None) -> Page:
        """The status as JSON."""
        status = await self._status()
        return Page(200, b"application/json", await self._pool.run(self._json, status, user), HEADERS)

    def _json(self, status: ServerStatus, user: str | None) -> bytes:
        """In the pool."""
        return json.dumps(self._of(status, user).as_json(), separators=(",", ":")).encode("ascii")

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
