"""
restic's REST protocol as Klein routes.

Every request takes the same way: who (401 before anything else), what (the canonical target), whether the method is one,
may they (one policy decision), then a verb on the store. The routes stand inside a repository: its folders have been taken
off the path by L{resticserver.names.parse_target}, so that no rule of werkzeug's decides what a path means.

Source: restic's REST backend document.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.routing import MapAdapter

from ..access.policy import ACTIONS, Action, Decides
from ..errors import (
    CONTENT,
    DISK,
    MIN_FREE,
    QUOTA,
    RIGHTS,
    BadRequest,
    Forbidden,
    HashMismatch,
    InsufficientStorage,
    MethodNotAllowed,
    NoSuchRepository,
    NotFound,
    ServerError,
    short_name,
)
from ..names import Kind, Target, why_no_repository, why_reserved
from ..quota.admission import NOTHING, Admission, Admitted
from ..sizes import Amount
from ..storage.interface import Chunks, NotDurable, Outcome, RepositoryStore, Stored, Upload
from ..telemetry.events import Event, EventKind, Tells, nobody
from ..telemetry.record import Effect, Operation
from ..threads.serial_jobs import Pool, SerialJobs, shielded
from .authentication import Authentication
from .http1 import replies
from .http1.body import WAITING_BYTES
from .http1.ranges import Part, choose_part
from .http1.request import StreamingRequest
from .lists import Lists, wants_sizes
from .transfer.body import receive_body, send_part

T = TypeVar("T")

#: Those that mean something for any path.
METHODS = (b"GET", b"HEAD", b"POST", b"DELETE")

OCTETS = b"application/octet-stream"

_READ = Effect(Operation.READ)

#: Refusals by their reasons; all others are L{EventKind.UPLOAD_REFUSED}.
_REFUSALS = {QUOTA: EventKind.QUOTA_REACHED, MIN_FREE: EventKind.DISK_FULL, DISK: EventKind.DISK_FULL}

#: Objects and parts up to this size are read by the job that opens them and answered in one write.
SMALL_BYTES = 64 << 10
#: Up to this size they are read in the reactor's thread if they are in the kernel's caches.
NOWAIT_BYTES = 256 << 10

Answer = Coroutine[Any, Any, None]
Verb = Callable[[StreamingRequest, Target], Awaitable[None]]

_log = Logger()


class Api:
    """
    The routes of one server.

    @param pool: runs the store's blocking calls, but
    @param writers: hashes and writes the bytes of large uploads.
    @param quick: runs what is short where the disk is quick: small uploads, removals.
    @param auto_create: whether an upload makes its repository where that is missing, if its user may.
    @param space: asked for room before an upload; without it there is always room.
    @param tell: told of events.
    """

    app = Klein()

    def __init__(
        self,
        store: RepositoryStore,
        pool: Pool,
        writers: Pool,
        quick: Pool,
        authentication: Authentication,
        policy: Decides,
        auto_create: bool = False,
        admission: Admission | None = None,
        tell: Tells = nobody,
    ) -> None:
        self._store = store
        self._pool = pool
        self._lists = Lists(pool)
        self._writers = writers
        self._quick = quick
        self._authentication = authentication
        self._policy = policy
        self._auto_create = auto_create
        self._tell = tell
        self._admission = admission if admission is not None else Admission()
        self._list_verbs: Mapping[bytes, Verb] = {b"GET": self._list}
        self._object_verbs: Mapping[bytes, Verb] = {
            b"GET": self._load,
            b"HEAD": self._stat,
            b"POST": self._save,
            b"DELETE": self._remove,
        }

    def resource(self) -> IResource:
        """What a site serves."""
        return RoutedResource(self, self.app)

    # --- routes: what there is, and which methods it takes

    @app.route("/")
    def repository(self, request: StreamingRequest) -> Answer:
        """A repository; C{POST ?create=true} makes it, C{DELETE} is there where a policy grants it to anyone."""
        methods: dict[bytes, Verb] = {b"POST": self._create}
        if self._policy.may_delete_repositories():
            methods[b"DELETE"] = self._delete_repository
        return self._answer(request, methods)

    @app.route("/<kind>/")
    def objects(self, request: StreamingRequest, kind: str) -> Answer:
        """The list of one type."""
        return self._answer(request, self._list_verbs)

    @app.route("/config")
    @app.route("/<kind>/<name>")
    def object(self, request: StreamingRequest, kind: str = "", name: str = "") -> Answer:
        """One object, or the config."""
        return self._answer(request, self._object_verbs)

    @app.route("/<path:anything>")
    def nothing(self, request: StreamingRequest, anything: str) -> Answer:
        """A path that names nothing: also here 401 comes first."""
        return self._answer(request, {})

    async def _answer(self, request: StreamingRequest, methods: Mapping[bytes, Verb]) -> None:
        """The one way of every request."""
        try:
            request.user_name = await self._authentication.authenticate(request)
            request.authenticated = True
            target = request.target
            if target is None:
                if request.method not in METHODS:
                    raise MethodNotAllowed(METHODS)
                raise NotFound(_why_nothing(request))
            if request.method not in methods:
                # What restic init asks for where the repository's path ends in a type.
                is_list = request.method == b"POST" and target.kind is Kind.LIST
                raise MethodNotAllowed(methods, why_reserved(target.type) if is_list else "")
            action = ACTIONS[target.kind][request.method]
            decision = self._policy.decide(request.user_name, action, target)
            if not decision.allowed:
                refusal = Forbidden(decision.reason)
                self._tell_of_refusal(request, target, refusal, RIGHTS)
                raise refusal
            try:
                await methods[request.method](request, target)
            except InsufficientStorage as error:
                self._tell_of_refusal(request, target, error, error.cause, error.limit_of)
                raise
            except (HashMismatch, Forbidden) as error:
                self._tell_of_refusal(request, target, error, CONTENT)
                raise
        except CancelledError:
            raise
        except ConnectionLost:
            request.abort()
        except Exception as error:
            replies.send_error(request, error)

    def _tell_of_refusal(
        self, request: StreamingRequest, target: Target, error: ServerError, reason: str, limit_of: str = ""
    ) -> None:
        """An upload, or a new repository, is refused: each is told of, and who is told decides what is worth a line."""
        if request.method != b"POST":
            return
        kind = _REFUSALS.get(reason, EventKind.UPLOAD_REFUSED)
        repository = "/".join(target.repository)
        name = ascii(short_name(repository) or "/")[1:-1]
        why = ascii(error.message)[1:-1]
        if target.kind is Kind.REPOSITORY:
            message = f"refused to create repository {name}: {why}"
        else:
            message = f"refused an upload to repository {name}: {why}"
        if request.user_name is not None:
            message += f" (user {ascii(short_name(request.user_name))[1:-1]})"
        details = {"reason": reason, "why": why, "type": target.type, "name": target.name}
        if limit_of:
            details["limit_of"] = limit_of
        self._tell(Event(kind, message, repository, request.user_name, details))

    # --- verbs

    async def _create(self, request: StreamingRequest, target: Target) -> None:
        create = request.args.get(b"create", [b""])[0]
        if create != b"true":
            given = f" and not ?create={ascii(create.decode('latin-1'))[1:-1]}" if create else ""
            raise BadRequest(f"nothing was created: to create a repository, POST with ?create=true{given}")
        await self._pool.run(self._store.create_repository, target.repository)
        replies.send(request)

    async def _delete_repository(self, request: StreamingRequest, target: Target) -> None:
        deleting = self._pool.run(self._store.delete_repository, target.repository)
        deleting.addBoth(self._deleted, target)
        await shielded(deleting)
        self._tell(_event(EventKind.REPOSITORY_DELETED, "{repository} was deleted", request, target))
        replies.send(request)

    def _deleted(self, result: T, target: Target) -> T:
        self._admission.quota.recount(target.repository)
        return result

    async def _stat(self, request: StreamingRequest, target: Target) -> None:
        size = self._store.size_nowait(target.repository, target.type, target.name)
        if size is None:
            size = await self._pool.run(self._store.size_of, target.repository, target.type, target.name)
        replies.begin(request, 200, size, OCTETS)

    async def _load(self, request: StreamingRequest, target: Target) -> None:
        stored = self._store.stored(target.repository, target.type, target.name)
        # The config is always sent whole, as rest-server does.
        # If-Range: objects have no validator here, so none that a client has can be right (RFC 9110 section 13.1.5).
        whole = target.type == "config" or request.fields.last(b"if-range") is not None
        wanted = None if whole else request.fields.last(b"range")
        if stored.open_nowait():
            try:
                part = choose_part(wanted, stored.size_bytes)
                content = stored.read_nowait(part.start, part.length) if part.length <= NOWAIT_BYTES else None
            finally:
                stored.close()
            if content is not None:
                _begin_load(request, target, part, stored.size_bytes)
                request.write(content)
                return
        jobs = SerialJobs(self._pool)
        try:
            part, content = await jobs.run(_open_part, stored, wanted)
            _begin_load(request, target, part, stored.size_bytes)
            if content is not None:
                request.write(content)
                return
            await send_part(request, jobs, stored, part)
        except BaseException:
            jobs.close(stored.close)
            raise
        jobs.close(stored.close)

    async def _save(self, request: StreamingRequest, target: Target) -> None:
        body = request.body
        length = body.whole_bytes
        admitted = await self._admission.admit(request.user_name, target, length)
        upload = self._store.upload(target.repository, target.type, target.name, length)
        # By its whole length: of more than that reading may have paused already, with the rest still to come.
        small = length is not None and length <= WAITING_BYTES and not request.awaits_continue
        jobs = SerialJobs(self._quick if small else self._pool)
        request.hold_record()
        try:
            # A small body comes in one piece, or a moment later: one job does it all then.
            content = body.take_waiting() if body.ended else await body.whole() if small else None
            if content is not None:
                # It may have come to its end while room was asked for, and then nobody knew how long it would be.
                await admitted.cover(body.received_bytes)
                await admitted.enter()
            try:
                outcome = await jobs.run(_open_upload, upload, content)
            except NoSuchRepository:
                if not self._may_auto_create(request, target):
                    raise
                await jobs.run(self._store.create_repository, target.repository, pool=self._pool)
                outcome = await jobs.run(_open_upload, upload, content)
            if outcome is None:
                request.send_continue()
                await receive_body(request, jobs, self._writers, upload.write, admitted.cover)
                await admitted.enter()
                outcome = await jobs.run(upload.commit)
        except BaseException:
            # A commit that runs now may still succeed.
            jobs.close(upload.abort, lambda: self._upload_ended(request, target, upload, admitted))
            raise
        self._upload_ended(request, target, upload, admitted, outcome)
        if outcome is Outcome.HEALED:
            words = f"a damaged file of {{repository}} was replaced: {target.type} {target.name}"
            self._tell(_event(EventKind.CORRUPTION, words, request, target))
        elif outcome is Outcome.STORED and target.type == "snapshots":
            self._tell(_event(EventKind.SNAPSHOT, f"new snapshot {target.name[:8]} in {{repository}}", request, target))
        elif outcome is Outcome.STORED and target.kind is Kind.CONFIG:
            self._tell(_event(EventKind.REPOSITORY_CREATED, "{repository} was created", request, target))
        replies.send(request)

    def _upload_ended(
        self,
        request: StreamingRequest,
        target: Target,
        upload: Upload,
        admitted: Admitted,
        outcome: Outcome | None = None,
    ) -> None:
        """An upload has come to its end, whoever still waits for that."""
        change = upload.change
        healed = outcome is Outcome.HEALED or (change != NOTHING and not change.objects)
        if healed and change.size_bytes < 0:
            # The damage was not booked, so neither can its end be: what is there is counted.
            admitted.end(NOTHING)
        else:
            admitted.end(change)
        if healed:
            self._admission.quota.recount(target.repository)
        written = healed or change != NOTHING
        request.release_record(Effect(Operation.WRITE, upload.size_bytes) if written else None)

    def _may_auto_create(self, request: StreamingRequest, target: Target) -> bool:
        create = Target(target.repository, Kind.REPOSITORY)
        return self._auto_create and self._policy.decide(request.user_name, Action.CREATE, create).allowed

    async def _remove(self, request: StreamingRequest, target: Target) -> None:
        # One that is missing counts as removed: it is what a client that asks again after a lost answer needs.
        admitted = self._admission.admitted(target)
        await admitted.enter()
        request.hold_record()
        removing = self._quick.run(self._store.remove_object, target.repository, target.type, target.name)
        removing.addBoth(_removed, request, admitted)
        await shielded(removing)
        replies.send(request)

    async def _list(self, request: StreamingRequest, target: Target) -> None:
        with_sizes = wants_sizes(request)
        listing = self._store.list_objects(target.repository, target.type, with_sizes)
        await self._lists.send(request, listing, with_sizes)


class RoutedResource(Resource):
    """
    Klein's routes by a shorter way: where a kind of target leads is looked up once, and not for every request.

    (Klein puts a path together from the request, has werkzeug take it apart, and guards each call by four Deferreds.)

    @param api: what the routes are bound to.
    """

    isLeaf = True

    def __init__(self, api: Api, app: Klein) -> None:
        super().__init__()
        self._api = api
        routes = app.url_map.bind("localhost")
        some_id = "0" * 64
        self._ways = {
            None: self._way(app, routes, "*/*/*"),
            Kind.REPOSITORY: self._way(app, routes, Target((), Kind.REPOSITORY).route),
            Kind.CONFIG: self._way(app, routes, Target((), Kind.CONFIG).route),
            Kind.LIST: self._way(app, routes, Target((), Kind.LIST, "data").route),
            Kind.OBJECT: self._way(app, routes, Target((), Kind.OBJECT, "data", some_id).route),
        }

    @staticmethod
    def _way(app: Klein, routes: MapAdapter, path: str) -> Callable[..., Answer]:
        endpoint, arguments = routes.match(f"/{path}")
        # As it was written, without Klein's wrapper, which makes a Deferred of it.
        return partial(inspect.unwrap(app.endpoints[endpoint]), **arguments)

    def render(self, request: Any) -> int:
        """Twisted's call: begin to answer."""
        target = request.target
        request.run(self._ways[target.kind if target is not None else None](self._api, request))
        return NOT_DONE_YET


def _removed(change: Amount | Failure, request: StreamingRequest, admitted: Admitted) -> Amount | Failure:
    """A removal has come to its end, whoever still waits for that."""
    if isinstance(change, Amount):
        done = change
    else:
        done = change.value.change if isinstance(change.value, NotDurable) else NOTHING
    admitted.end(done)
    request.release_record(Effect(Operation.DELETE, -done.size_bytes) if done != NOTHING else None)
    return change


def _why_nothing(request: StreamingRequest) -> str:
    """Why a path names nothing; whoever wants to make a repository there learns what is wrong with it."""
    if request.method == b"POST" and b"create" in request.args:
        site = request.site
        return why_no_repository(request.path, site.max_depth, site.prefix)
    return request.why_nothing


def _event(kind: EventKind, words: str, request: StreamingRequest, target: Target) -> Event:
    repository = "/".join(target.repository)
    message = words.format(repository=f"repository {ascii(repository or '/')[1:-1]}")
    details = {"type": target.type, "name": target.name} if target.name else {}
    return Event(kind, message, repository, request.user_name, details)


def _begin_load(request: StreamingRequest, target: Target, part: Part, size_bytes: int) -> None:
    """Say how the answer begins that sends a part of an object."""
    request.effect = _READ
    fields = b"Accept-Ranges: bytes\r\n" if target.type != "config" else b""
    if not part.whole:
        fields += b"Content-Range: bytes %d-%d/%d\r\n" % (part.start, part.start + part.length - 1, size_bytes)
    replies.begin(request, 200 if part.whole else 206, part.length, OCTETS, fields=fields)


def _open_upload(upload: Upload, content: Chunks | None) -> Outcome | None:
    """In the pool: begin an upload; with its content, all of it."""
    upload.open()
    if content is None:
        return None
    upload.write(content)
    return upload.commit()


def _open_part(stored: Stored, wanted: bytes | None) -> tuple[Part, bytes | None]:
    """In the pool: open an object and see what is wanted of it; if that is little, read it and close."""
    stored.open()
    part = choose_part(wanted, stored.size_bytes)
    if part.length > SMALL_BYTES:
        return part, None
    content = stored.read(part.start, part.length)
    stored.close()
    if len(content) != part.length:
        raise OSError("the file became shorter while it was read")
    return part, content
