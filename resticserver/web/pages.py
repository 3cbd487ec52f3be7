"""
What the server says of itself: C{/metrics}, C{/-/health}, C{/-/ready}. None of these paths can ever be a repository's.

A page is asked for before the API, by its exact path; it answers GET and HEAD alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from ..errors import Forbidden, MethodNotAllowed, NotFound
from . import replies
from .authentication import Authentication
from .request import StreamingRequest

METRICS = b"/metrics"
HEALTH = b"/-/health"
READY = b"/-/ready"

#: Who may see the metrics, as rest-server has it.
METRICS_USER = "metrics"

_TEXT = b"text/plain; charset=utf-8"
_METHODS = (b"GET", b"HEAD")


class Answer(NamedTuple):
    """What a page says."""

    status: int
    content_type: bytes
    body: bytes


class Page(NamedTuple):
    """
    One page.

    @ivar make: what it says.
    @ivar user: who may see it; C{None} for everyone, known or not.
    """

    make: Callable[[], Awaitable[Answer]]
    user: str | None = None


class Pages(Resource):
    """
    The pages of a site, and behind them the rest of it.

    @param rest: what all other paths lead to; C{None} for a site that has nothing else.
    """

    isLeaf = True

    def __init__(self, pages: Mapping[bytes, Page], authentication: Authentication, rest: IResource | None) -> None:
        super().__init__()
        self._pages = pages
        self._authentication = authentication
        self._rest = rest

    def render(self, request: Any) -> Any:
        """Twisted's call: begin to answer."""
        if self._rest is not None and request.target is not None:
            return self._rest.render(request)
        prefix = b"".join(b"/" + folder.encode("utf-8") for folder in request.site.prefix)
        path = request.path
        page = self._pages.get(path)
        if page is None and prefix and path.startswith(prefix):
            page = self._pages.get(path[len(prefix) :])
        if page is None and self._rest is not None:
            return self._rest.render(request)
        request.run(self._answer(request, page))
        return NOT_DONE_YET

    async def _answer(self, request: StreamingRequest, page: Page | None) -> None:
        try:
            if page is None:
                raise NotFound()
            if page.user is not None:
                request.user_name = await self._authentication.authenticate(request)
                request.authenticated = True
                if request.user_name is not None and request.user_name != page.user:
                    raise Forbidden(f"only for the user {page.user}")
            if request.method not in _METHODS:
                raise MethodNotAllowed(_METHODS)
            answer = await page.make()
            replies.send(request, answer.status, answer.body, answer.content_type, fields=b"Cache-Control: no-store\r\n")
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
