"""
What the server says of itself: C{/metrics}, C{/-/health}, C{/-/ready}. None of these paths can ever be a repository's.

A page is asked for before the API, by its exact path; it answers GET and HEAD alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import CancelledError
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from ..errors import Forbidden, MethodNotAllowed, NotFound
from ..names import path_below
from .authentication import Authentication
from .http1 import replies
from .http1.request import StreamingRequest

METRICS = b"/metrics"
HEALTH = b"/-/health"
READY = b"/-/ready"

#: Who may see the metrics, as rest-server has it.
METRICS_USER = "metrics"

_TEXT = b"text/plain; charset=utf-8"
_METHODS = (b"GET", b"HEAD")


class Answer(NamedTuple):
    """
    What a page says.

    @ivar fields: more header fields, each with its CRLF.
    """

    status: int
    content_type: bytes
    body: bytes
    fields: bytes = b""


class Page(NamedTuple):
    """
    One page.

    @ivar make: what it says.
    @ivar user: who may see it; C{None} for everyone, known or not.
    """

    make: Callable[[], Awaitable[Answer]]
    user: str | None = None


class UserPage(NamedTuple):
    """
    A page for everyone who is known, which says to each what they may know.

    @ivar make: what it says to a user; C{None} without authentication.
    """

    make: Callable[[str | None], Awaitable[Answer]]


class Finds(Protocol):
    """Has more pages."""

    def find(self, path: bytes) -> UserPage | None:
        """The page of a path, if there is one."""


class Pages(Resource):
    """
    The pages of a site, and behind them the rest of it.

    @param rest: what all other paths lead to; C{None} for a site that has nothing else.
    @param more: more pages.
    """

    isLeaf = True

    def __init__(
        self,
        pages: Mapping[bytes, Page],
        authentication: Authentication,
        rest: IResource | None,
        more: Finds | None = None,
    ) -> None:
        super().__init__()
        self._more = more
        self._pages = pages
        self._authentication = authentication
        self._rest = rest

    def render(self, request: Any) -> Any:
        """Twisted's call: begin to answer."""
        if self._rest is not None and request.target is not None:
            return self._rest.render(request)
        page = self._find(path_below(request.path, ())) or self._find(path_below(request.path, request.site.prefix))
        if page is None and self._rest is not None:
            return self._rest.render(request)
        request.run(self._answer(request, page))
        return NOT_DONE_YET

    def _find(self, path: bytes) -> Page | UserPage | None:
        return self._pages.get(path) or (self._more.find(path) if self._more is not None else None)

    async def _answer(self, request: StreamingRequest, page: Page | UserPage | None) -> None:
        try:
            if page is None:
                raise NotFound()
            if isinstance(page, UserPage) or page.user is not None:
                request.user_name = await self._authentication.authenticate(request)
                request.authenticated = True
                if isinstance(page, Page) and request.user_name not in (None, page.user):
                    raise Forbidden(f"only for the user {page.user}")
            if request.method not in _METHODS:
                raise MethodNotAllowed(_METHODS)
            answer = await (page.make() if isinstance(page, Page) else page.make(request.user_name))
            fields = b"Cache-Control: no-store\r\n" + answer.fields
            replies.send(request, answer.status, answer.body, answer.content_type, fields=fields)
        except CancelledError:
            raise
        except Exception as error:
            replies.send_error(request, error)


async def health() -> Answer:
    """The process lives and its reactor turns."""
    return Answer(200, _TEXT, b"ok\n")


def ready_page(reason: Callable[[], Awaitable[str]]) -> Page:
    """
    Whether the server can do its work now.

    @param reason: why not; empty if it can.
    """

    async def make() -> Answer:
        why_not = await reason()
        return Answer(503, _TEXT, why_not.encode("utf-8") + b"\n") if why_not else Answer(200, _TEXT, b"ready\n")

    return Page(make)
