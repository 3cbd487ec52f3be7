"""
restic's REST protocol as Klein routes.

Every request takes the same way: who (401 before anything else), what (the canonical target), whether the method is one,
may they (one policy decision), then a verb on the store. The routes stand inside a repository: its folders have been taken
off the path by L{resticserver.names.parse_target}, so that no rule of werkzeug's decides what a path means.

Source: restic's REST backend document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.web.resource import IResource

from ..access.policy import ACTIONS, Action, Decides
from ..errors import BadRequest, Forbidden, MethodNotAllowed, NoSuchRepository, NotFound
from ..names import Kind, Target
from ..storage.interface import Entry, Listing, Outcome, RepositoryStore, Stored
from . import replies
from .authentication import Authentication
from .direct import receive_body
from .jobs import Jobs, Pool
from .ranges import Part, choose_part
from .request import StreamingRequest
from .streams import ChunkProducer, batches, send_part

LIST_V1 = b"application/vnd.x.restic.rest.v1"
LIST_V2 = b"application/vnd.x.restic.rest.v2"
OCTETS = b"application/octet-stream"

#: Objects and parts up to this size are read by the job that opens them and answered in one write.
SMALL_BYTES = 64 << 10
#: How much of a list goes out at a time.
LIST_CHUNK_BYTES = 64 << 10

Verb = Callable[[StreamingRequest, Target], Awaitable[None]]

_log = Logger()


class Api:
    """
    The routes of one server.

    @param pool: runs the store's blocking calls, but
    @param writers: hashes and writes the bytes of uploads.
    @param auto_create: whether an upload makes its repository where that is missing, if its user may.
    """

    app = Klein()

    def __init__(
        self,
        store: RepositoryStore,
        pool: Pool,
        writers: Pool,
        authentication: Authentication,
        policy: Decides,
        auto_create: bool = False,
    ) -> None:
        self._store = store
        self._pool = pool
        self._writers = writers
        self._authentication = authentication
        self._policy = policy
        self._auto_create = auto_create

    def resource(self) -> IResource:
        """What a site serves."""
        return self.app.resource()

    # --- routes: what there is, and which methods it takes

    @app.route("/")
    async def repository(self, request: StreamingRequest) -> None:
        """A repository; C{POST ?create=true} makes it, C{DELETE} is there where a policy grants it to anyone."""
        verbs: dict[bytes, Verb] = {b"POST": self._create}
        if self._policy.may_delete_repositories():
            verbs[b"DELETE"] = self._delete_repository
        await self._answer(request, verbs)

    @app.route("/<kind>/")
    async def objects(self, request: StreamingRequest, kind: str) -> None:
        """The list of one type."""
        await self._answer(request, {b"GET": self._list})

    @app.route("/config")
    @app.route("/<kind>/<name>")
    async def object(self, request: StreamingRequest, kind: str = "", name: str = "") -> None:
        """One object, or the config."""
        await self._answer(
            request,
            {
                b"GET": self._load,
                b"HEAD": self._stat,
                b"POST": self._save,
                b"DELETE": self._remove,
            },
        )

    @app.route("/<path:anything>")
    async def nothing(self, request: StreamingRequest, anything: str) -> None:
        """A path that names nothing: also here 401 comes first."""
        await self._answer(request, {})

    async def _answer(self, request: StreamingRequest, verbs: Mapping[bytes, Verb]) -> None:
        """The one way of every request."""
        try:
            request.user_name = await self._authentication.authenticate(request)
            request.authenticated = True
            target = request.target
            if target is None:
                raise NotFound()
            if request.method not in verbs:
                raise MethodNotAllowed(verbs)
            action = ACTIONS[target.kind][request.method]
            decision = self._policy.decide(request.user_name, action, target)
            if not decision.allowed:
                raise Forbidden(decision.reason)
            await verbs[request.method](request, target)
        except CancelledError:
            raise
        except ConnectionLost:
            request.abort()
        except Exception as error:
            replies.send_error(request, error)
        if request.aborted and request.channel_or_none() is not None:
            # Klein would finish the request now; the connection's end, which is on its way, cancels this instead.
            await request.notifyFinish()

    # --- verbs

    async def _create(self, request: StreamingRequest, target: Target) -> None:
        if request.args.get(b"create", [b""])[0] != b"true":
            raise BadRequest("to create a repository, POST with ?create=true")
        await self._pool.run(self._store.create_repository, target.repository)
        replies.send(request)

    async def _delete_repository(self, request: StreamingRequest, target: Target) -> None:
        await self._pool.run(self._store.delete_repository, target.repository)
        replies.send(request)

    async def _stat(self, request: StreamingRequest, target: Target) -> None:
        size = await self._pool.run(self._store.size_of, target.repository, target.type, target.name)
        replies.begin(request, 200, size, OCTETS)

    async def _load(self, request: StreamingRequest, target: Target) -> None:
        stored = self._store.stored(target.repository, target.type, target.name)
        # The config is always sent whole, as rest-server does.
        wanted = request.getHeader(b"Range") if target.type != "config" else None
        jobs = Jobs(self._pool)
        try:
            part, small = await jobs.run(_open_part, stored, wanted)
            replies.begin(request, 200 if part.whole else 206, part.length, OCTETS)
            if target.type != "config":
                request.setHeader(b"Accept-Ranges", b"bytes")
            if not part.whole:
                last = part.start + part.length - 1
                request.setHeader(b"Content-Range", b"bytes %d-%d/%d" % (part.start, last, stored.size_bytes))
            if small is not None:
                request.write(small)
                return
            await send_part(request, jobs, stored, part)
        except BaseException:
            jobs.close(stored.close)
            raise
        jobs.close(stored.close)

    async def _save(self, request: StreamingRequest, target: Target) -> None:
        upload = self._store.upload(target.repository, target.type, target.name)
        jobs = Jobs(self._pool)
        try:
            try:
                await jobs.run(upload.open)
            except NoSuchRepository:
                if not self._may_auto_create(request, target):
                    raise
                await jobs.run(self._store.create_repository, target.repository)
                await jobs.run(upload.open)
            request.send_continue()
            await receive_body(request, jobs, self._writers, upload.write)
            outcome = await jobs.run(upload.commit)
        except BaseException:
            jobs.close(upload.abort)
            raise
        if outcome is Outcome.HEALED:
            _log.info("healed {kind} {name}", kind=target.type, name=target.name)
        replies.send(request)

    def _may_auto_create(self, request: StreamingRequest, target: Target) -> bool:
        create = Target(target.repository, Kind.REPOSITORY)
        return self._auto_create and self._policy.decide(request.user_name, Action.CREATE, create).allowed

    async def _remove(self, request: StreamingRequest, target: Target) -> None:
        # One that is missing counts as removed: it is what a client that asks again after a lost answer needs.
        await self._pool.run(self._store.remove_object, target.repository, target.type, target.name)
        replies.send(request)

    async def _list(self, request: StreamingRequest, target: Target) -> None:
        second = any(LIST_V2 in accept for accept in request.requestHeaders.getRawHeaders(b"Accept", []))
        listing = self._store.list_objects(target.repository, target.type, with_sizes=second)
        read = batches(_list_json(listing, second), LIST_CHUNK_BYTES)
        content_type = LIST_V2 if second else LIST_V1
        jobs = Jobs(self._pool)
        try:
            first = await jobs.run(_open_list, listing, read)
            if len(first) < LIST_CHUNK_BYTES:
                replies.send(request, 200, first, content_type)
                return
            replies.begin(request, 200, None, content_type)
            request.write(first)
            await ChunkProducer(request, jobs, read).start()
        except BaseException:
            jobs.close(listing.close)
            raise


def _open_part(stored: Stored, wanted: bytes | None) -> tuple[Part, bytes | None]:
    """In the pool: open an object and see what is wanted of it; if that is little, read it and close."""
    stored.open()
    part = choose_part(wanted, stored.size_bytes)
    if part.length > SMALL_BYTES:
        return part, None
    small = stored.read(part.start, part.length)
    stored.close()
    if len(small) != part.length:
        raise OSError("the file became shorter while it was read")
    return part, small


def _open_list(listing: Listing, read: Callable[[], bytes]) -> bytes:
    """In the pool: open a list and read its first entries."""
    listing.open()
    return read()


def _list_json(listing: Listing, second: bool) -> Iterator[bytes]:
    """A list as JSON, in pieces."""
    separator = b"["
    for entry in listing:
        yield separator + (_entry_v2(entry) if second else b'"%s"' % entry.name.encode("ascii"))
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def _entry_v2(entry: Entry) -> bytes:
    return b'{"name":"%s","size":%d}' % (entry.name.encode("ascii"), entry.size_bytes)
