"""
All paths of the server as routes of one Klein app, and the one way of every request through it.

A route is registered by L{authorized_route}, with who may use it; there is no other way to add one. A request is authenticated
(401 comes before anything else), its path leads to a route, then the method is judged (405), then the policy decides about the
target (403), then the handler runs. Every error becomes an answer in L{Api.answer}.

Repository routes stand inside a repository: L{resticserver.targets.parse_target} has taken its folders off the path, so that no
rule of werkzeug's decides what a path means. Klein's own dispatch costs as much as the whole rest of a small request, so
L{PreparedRoutes} looks up once where each kind of path leads.

Source: restic's REST backend document.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException

from ..access.policy import ACTIONS, Action, Decides
from ..errors import BadRequest, Forbidden, MethodNotAllowed, NotFound, NotPermitted
from ..limits.bandwidth import BothDirections
from ..names import why_reserved
from ..quota.admission import Admission
from ..storage.interface import RepositoryStore
from ..targets import Kind, Target, path_below, why_no_repository
from ..telemetry.events import EventKind, Tells, ignore_event
from ..threads.interface import shielded
from ..threads.pools import Pools
from .authentication import Authentication
from .downloads import OCTETS, send_object
from .http1 import replies
from .http1.request import StreamingRequest
from .lists import ListResponses, wants_sizes
from .page import METRICS_USER, TEXT, Page
from .status_pages import ServerPages, StatusPages
from .uploads import UploadSession, event_of, refusal_of, remove_object

T = TypeVar("T")

#: The methods that mean something for any path, in the order of C{Allow}.
METHODS = (b"GET", b"HEAD", b"POST", b"DELETE")
_PAGE_METHODS = (b"GET", b"HEAD")

#: A handler answers itself, or returns the page that is the answer.
Handler = Callable[..., Awaitable[Page | None]]


class Access(Enum):
    """Who may use a route."""

    #: Everyone; no password is asked for.
    EVERYONE = "everyone"
    #: The user C{metrics}; everyone with C{--prometheus-no-auth}.
    METRICS = "metrics"
    #: Every user.
    USERS = "users"
    #: The policy decides, by user, method and target.
    POLICY = "policy"


#: Looking a member up in its class costs as much as the comparison, in each request.
_EVERYONE, _METRICS, _POLICY = Access.EVERYONE, Access.METRICS, Access.POLICY


def authorized_route(app: Klein, access: Access, *paths: str, methods: tuple[bytes, ...]) -> Callable[[T], T]:
    """Register the function below as a route of C{app}."""

    def register(handler: T) -> T:
        handler.access, handler.methods = access, methods  # type: ignore[attr-defined]
        for path in paths:
            app.route(path, methods=[method.decode("ascii") for method in methods])(handler)  # type: ignore[type-var]
        return handler

    return register


@dataclass(frozen=True)
class Repositories:
    """
    What repositories are served from.

    @ivar auto_create: whether an upload makes its repository where that is missing, if its user may.
    @ivar tell: takes events.
    @ivar bandwidth: the limits of transfers; C{None} if there can be none.
    """

    store: RepositoryStore
    pools: Pools
    admission: Admission
    auto_create: bool = False
    tell: Tells = ignore_event
    bandwidth: BothDirections | None = None


class Api:
    """
    The routes of one site.

    @param repositories: C{None} for a site that has the server's own pages only.
    @param pages: C{None} for a site without them.
    """

    app = Klein()

    def __init__(
        self,
        authentication: Authentication,
        policy: Decides,
        repositories: Repositories | None,
        pages: ServerPages | None = None,
    ) -> None:
        self._authentication = authentication
        self._policy = policy
        self._repositories = repositories
        self._pages = pages
        self._bandwidth = repositories.bandwidth if repositories is not None else None
        if repositories is not None:
            self._store = repositories.store
            self._pools = repositories.pools
            self._admission = repositories.admission
            self._tell = repositories.tell
            self._lists = ListResponses(repositories.pools.disk)

    def resource(self) -> IResource:
        """What a site serves."""
        return PreparedRoutes(self)

    def serves(self, access: Access) -> bool:
        """Whether this site has the routes with this access."""
        match access:
            case Access.POLICY:
                return self._repositories is not None
            case Access.EVERYONE:
                return self._pages is not None
            case Access.METRICS:
                return self._pages is not None and self._pages.metrics is not None
            case Access.USERS:
                return self._pages is not None and self._pages.status is not None

    # --- the one way of every request

    async def answer(self, request: StreamingRequest, route: Route) -> None:
        """Authenticate, authorize, handle, and turn errors into answers."""
        try:
            if route.access is not _EVERYONE:
                request.user_name = await self._authentication.authenticate(request)
                request.authenticated = True
                if route.access is _METRICS and request.user_name not in (None, METRICS_USER):
                    raise Forbidden(f"only for the user {METRICS_USER}")
            method = request.method
            handler = route.handlers.get(method)
            if handler is None:
                raise self._not_allowed(request, route)
            if route.access is _POLICY:
                target: Any = request.target
                if method == b"DELETE" and target.kind is Kind.REPOSITORY:
                    self._may_be_deleted(request, route)
                decision = self._policy.decide(request.user_name, ACTIONS[target.kind][method], target)
                if not decision.allowed:
                    raise NotPermitted(decision.reason)
                if self._bandwidth is not None:
                    shares = self._bandwidth.shares(request.user_name, request.address, target.repository)
                    request.upload_share, request.download_share = shares
                await handler(request, target)
                return
            page = await handler(request)
            assert page is not None
            fields = b"Cache-Control: no-store\r\n" + page.fields
            replies.send(request, page.status, page.body, page.content_type, fields=fields)
        except CancelledError:
            raise
        except ConnectionLost:
            request.abort()
        except Exception as error:
            if request.method == b"POST" and request.authenticated and request.target is not None:
                self._tell_of_refusal(request, request.target, error)
                await request.drop_body_of_proxy()
            replies.send_error(request, error)

    def _may_be_deleted(self, request: StreamingRequest, route: Route) -> None:
        """
        Whether repositories can be deleted at all.

        @raise MethodNotAllowed: no rule of the policy grants it to anyone.
        """
        if not self._policy.may_delete_repositories():
            raise self._not_allowed(request, route)

    def _not_allowed(self, request: StreamingRequest, route: Route) -> MethodNotAllowed | NotFound:
        if not route.handlers:
            return NotFound()
        methods = [method for method in METHODS if method in route.handlers]
        target = request.target
        if route.access is not Access.POLICY or target is None:
            return MethodNotAllowed(methods)
        if target.kind is Kind.REPOSITORY and not self._policy.may_delete_repositories():
            methods.remove(b"DELETE")
        # What restic init asks for where the repository's path ends in a type.
        is_list = request.method == b"POST" and target.kind is Kind.LIST
        return MethodNotAllowed(methods, why_reserved(target.type) if is_list else "")

    def _tell_of_refusal(self, request: StreamingRequest, target: Target, error: BaseException) -> None:
        """Every refused upload is an event; what takes events decides which of them are logged."""
        event = refusal_of(request, target, error) if self._repositories is not None else None
        if event is not None:
            self._tell(event)

    # --- repositories

    @authorized_route(app, Access.POLICY, "/", methods=(b"POST",))
    async def create_repository(self, request: StreamingRequest, target: Target) -> None:
        """C{POST ?create=true} makes a repository."""
        create = request.args.get(b"create", [b""])[0]
        if create != b"true":
            given = f", not ?create={ascii(create.decode('latin-1'))[1:-1]}" if create else ""
            raise BadRequest(f"nothing was created: to create a repository, POST with ?create=true{given}")
        await self._pools.disk.run(self._store.create_repository, target.repository)
        replies.send(request)

    @authorized_route(app, Access.POLICY, "/", methods=(b"DELETE",))
    async def delete_repository(self, request: StreamingRequest, target: Target) -> None:
        """Remove all that restic stores in a repository."""

        def recount(result: T) -> T:
            self._admission.quota.recount(target.repository)
            return result

        keep_s = self._policy.delete_delay_of(request.user_name, target.repository)
        deleting = self._pools.disk.run(self._store.delete_repository, target.repository, keep_s)
        await shielded(deleting.addBoth(recount))
        self._tell(event_of(EventKind.REPOSITORY_DELETED, "{repository} was deleted", request, target))
        replies.send(request)

    @authorized_route(app, Access.POLICY, "/<object_type>/", methods=(b"GET",))
    async def list_objects(self, request: StreamingRequest, target: Target) -> None:
        """The objects of one type."""
        with_sizes = wants_sizes(request)
        listing = self._store.list_objects(target.repository, target.type, with_sizes)
        await self._lists.send(request, listing, with_sizes)

    @authorized_route(app, Access.POLICY, "/config", "/<object_type>/<name>", methods=(b"HEAD",))
    async def stat(self, request: StreamingRequest, target: Target) -> None:
        """An object's size."""
        size = self._store.size_nowait(target.repository, target.type, target.name)
        if size is None:
            size = await self._pools.disk.run(self._store.size_of, target.repository, target.type, target.name)
        replies.begin(request, 200, size, OCTETS)

    @authorized_route(app, Access.POLICY, "/config", "/<object_type>/<name>", methods=(b"GET",))
    async def load(self, request: StreamingRequest, target: Target) -> None:
        """An object, or a part of it."""
        stored = self._store.stored(target.repository, target.type, target.name)
        await send_object(request, target, stored, self._pools.disk)

    @authorized_route(app, Access.POLICY, "/config", "/<object_type>/<name>", methods=(b"POST",))
    async def save(self, request: StreamingRequest, target: Target) -> None:
        """Store an object."""
        length = request.body.whole_bytes
        admitted = await self._admission.admit(request.user_name, target, length)
        upload = self._store.upload(target.repository, target.type, target.name, length)
        session = UploadSession(request, target, upload, admitted, self._pools, self._admission)
        create = partial(self._store.create_repository, target.repository)
        await session.run(create if self._may_auto_create(request, target) else None)
        if (event := session.event()) is not None:
            self._tell(event)
        replies.send(request)

    def _may_auto_create(self, request: StreamingRequest, target: Target) -> bool:
        assert self._repositories is not None
        if not self._repositories.auto_create:
            return False
        return self._policy.decide(request.user_name, Action.CREATE, Target(target.repository, Kind.REPOSITORY)).allowed

    @authorized_route(app, Access.POLICY, "/config", "/<object_type>/<name>", methods=(b"DELETE",))
    async def remove(self, request: StreamingRequest, target: Target) -> None:
        """Remove an object."""
        keep_s = self._policy.delete_delay_of(request.user_name, target.repository)
        await remove_object(request, target, self._store, self._pools, self._admission, keep_s)
        replies.send(request)

    # --- the server's own pages; no repository can have such a path

    @authorized_route(app, Access.METRICS, "/metrics", methods=_PAGE_METHODS)
    async def metrics(self, request: StreamingRequest) -> Page:
        """The metrics, for Prometheus."""
        assert self._pages is not None and self._pages.metrics is not None
        return await self._pages.metrics()

    @authorized_route(app, Access.EVERYONE, "/-/health", methods=_PAGE_METHODS)
    async def health(self, request: StreamingRequest) -> Page:
        """The process lives and its reactor turns."""
        return Page(200, TEXT, b"ok\n")

    @authorized_route(app, Access.EVERYONE, "/-/ready", methods=_PAGE_METHODS)
    async def ready(self, request: StreamingRequest) -> Page:
        """Whether the server can do its work now."""
        assert self._pages is not None
        why_not = await self._pages.not_ready()
        return Page(503, TEXT, why_not.encode("utf-8") + b"\n") if why_not else Page(200, TEXT, b"ready\n")

    @property
    def _status(self) -> StatusPages:
        assert self._pages is not None and self._pages.status is not None
        return self._pages.status

    @authorized_route(app, Access.USERS, "/-/status", methods=_PAGE_METHODS)
    async def status(self, request: StreamingRequest) -> Page:
        """The status page of the server."""
        return await self._status.server(request.user_name, request.args)

    @authorized_route(app, Access.USERS, "/-/status.json", methods=_PAGE_METHODS)
    async def status_json(self, request: StreamingRequest) -> Page:
        """The same for programs."""
        return await self._status.json(request.user_name)

    @authorized_route(app, Access.USERS, "/-/status.css", methods=_PAGE_METHODS)
    async def status_css(self, request: StreamingRequest) -> Page:
        """The pages' style sheet."""
        return self._status.style()

    @authorized_route(app, Access.USERS, "/-/status/<path:repository>", methods=_PAGE_METHODS)
    async def repository_status(self, request: StreamingRequest, repository: bytes) -> Page:
        """The status page of one repository."""
        return await self._status.repository(repository, request.user_name)

    async def nothing(self, request: StreamingRequest) -> Page:
        """A path that names nothing."""
        site = request.site
        if request.method == b"POST" and b"create" in request.args:
            # The client wants to make a repository there, and learns what is wrong with its name.
            raise NotFound(why_no_repository(request.path, site.max_depth, site.prefix))
        raise NotFound(request.why_nothing)

    def nowhere(self) -> Route:
        """Where every other path leads. Also there 401 comes first; on a site without repositories it is 404 by any method."""
        if self._repositories is None:
            return Route(Access.EVERYONE, {})
        return Route(Access.USERS, dict.fromkeys(METHODS, self.nothing))

    def route(self, handlers: Mapping[bytes, Handler], access: Access) -> Route:
        """Where a path leads on this site."""
        if access is Access.METRICS and self._pages is not None and self._pages.metrics_for_everyone:
            access = Access.EVERYONE
        return Route(access, {method: handler.__get__(self) for method, handler in handlers.items()})


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path leads: who may use it, and its handlers by method."""

    access: Access
    handlers: Mapping[bytes, Handler]


#: One target of each kind.
_EXAMPLES = (
    Target((), Kind.REPOSITORY),
    Target((), Kind.CONFIG),
    Target((), Kind.LIST, "data"),
    Target((), Kind.OBJECT, "data", "0" * 64),
)


def _handler_of(endpoint: str) -> Any:
    """A handler as it was written, without Klein's wrapper, which makes a Deferred of its result."""
    return inspect.unwrap(Api.app.endpoints[endpoint])


def _handlers_of(target: Target) -> dict[bytes, Handler]:
    """Where the app's rules lead for a kind of target, by method."""
    rules = Api.app.url_map.bind("localhost")
    found: dict[bytes, Handler] = {}
    for method in METHODS:
        with suppress(HTTPException):
            handler = _handler_of(rules.match(f"/{target.route}", method.decode("ascii"))[0])
            if method in handler.methods:  # werkzeug adds HEAD to GET
                found[method] = handler
    return found


class PreparedRoutes(Resource):
    """The routes of an L{Api}, each looked up once in the Klein app."""

    isLeaf = True

    def __init__(self, api: Api) -> None:
        super().__init__()
        self._api = api
        self._nowhere = api.nowhere()
        #: By kind of target.
        self._repository = dict.fromkeys(Kind, self._nowhere)
        if api.serves(Access.POLICY):
            for target in _EXAMPLES:
                self._repository[target.kind] = api.route(_handlers_of(target), Access.POLICY)
        #: By path; those that end in a variable, by the part before it.
        self._pages: dict[bytes, Route] = {}
        self._below: dict[bytes, Route] = {}
        for rule in Api.app.url_map.iter_rules():
            handler = _handler_of(rule.endpoint)
            if handler.access is not Access.POLICY and api.serves(handler.access):
                fixed, variable, _ = rule.rule.partition("<")
                route = api.route(dict.fromkeys(handler.methods, handler), handler.access)
                (self._below if variable else self._pages)[fixed.encode("ascii")] = route

    def render(self, request: Any) -> int:
        """Twisted's call: begin to answer."""
        target = request.target
        route = self._repository[target.kind] if target is not None else self._page(request)
        request.run(self._api.answer(request, route))
        return NOT_DONE_YET

    def _page(self, request: StreamingRequest) -> Route:
        """The page that a path names, with and without C{--proxy-prefix}."""
        for prefix in ((), request.site.prefix):
            path = path_below(request.path, prefix)
            if (route := self._pages.get(path)) is not None:
                return route
            for fixed, route in self._below.items():
                if path.startswith(fixed):
                    argument = path[len(fixed) :]
                    handlers = {method: partial(_with, handler, argument) for method, handler in route.handlers.items()}
                    return Route(route.access, handlers)
        return self._nowhere


async def _with(handler: Handler, argument: bytes, request: StreamingRequest) -> Page | None:
    return await handler(request, argument)
