"""
One upload, from the reservation of its quota to its end; and one removal. The events of both.

A commit that runs may still succeed after its client is gone. So each of them is an object that ends exactly once, whatever
happens: the end settles the quota, lets the directory be counted again, and completes the request's record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from ..errors import (
    CONTENT,
    DISK,
    MIN_FREE,
    QUOTA,
    RIGHTS,
    Forbidden,
    HashMismatch,
    InsufficientStorage,
    NoSuchRepository,
    NotPermitted,
    Unavailable,
    short_name,
)
from ..quota.admission import NOTHING, Admission, Admitted
from ..sizes import Amount
from ..storage.interface import Chunks, NotDurable, Outcome, RepositoryStore, Upload
from ..storage.trash import is_kept
from ..targets import Kind, Target
from ..telemetry.events import Event, EventKind
from ..telemetry.record import Effect, Operation
from ..threads.pools import Pools
from ..threads.serial_jobs import SerialJobs
from ..threads.steps import Steps, stepped, steps_of
from .http1.body import WAITING_BYTES
from .http1.request import StreamingRequest
from .transfer.body import receive_body

#: Events of refusals, by reason; all others are L{EventKind.UPLOAD_REFUSED}.
_REFUSALS = {QUOTA: EventKind.QUOTA_REACHED, MIN_FREE: EventKind.DISK_FULL, DISK: EventKind.DISK_FULL}


class UploadSession:
    """
    One upload that was admitted.

    @ivar outcome: how it ended; C{None} before that, and if it failed.
    """

    def __init__(
        self,
        request: StreamingRequest,
        target: Target,
        upload: Upload,
        admitted: Admitted,
        pools: Pools,
        admission: Admission,
    ) -> None:
        self._request = request
        self._target = target
        self._upload = upload
        self._admitted = admitted
        self._pools = pools
        self._admission = admission
        length = request.body.whole_bytes
        # By its whole length: reading may have paused with more of a large body still to come.
        self._small = length is not None and length <= WAITING_BYTES and not request.awaits_continue
        self._jobs = SerialJobs(pools.quick if self._small else pools.disk)
        self._ended = False
        self.outcome: Outcome | None = None
        request.hold_record()

    async def run(self, create: Callable[[], object] | None) -> Outcome:
        """
        Receive, verify and store the body, and end; if that fails, end as well.

        @param create: makes the repository where it is missing; blocks. C{None}: the upload fails then.
        @raise ServerError: the upload is refused; its quota has been given back by then.
        """
        try:
            self.outcome = await self._store(create)
        except (CancelledError, ConnectionLost, GeneratorExit):
            self._abort()
            raise
        except BaseException:
            # A client that hears of the refusal may try again at once.
            await self._abort()
            await self._admitted.settled()
            raise
        self.end()
        return self.outcome

    async def _store(self, create: Callable[[], object] | None) -> Outcome:
        body, run = self._request.body, self._jobs.run
        # A small body is there, or is a moment later: one job does everything then.
        content = body.take_waiting() if body.ended else await body.whole() if self._small else None
        if content is not None:
            # The length of a chunked body is known only now.
            await self._admitted.cover(body.received_bytes)
            if self._request.upload_share is not None:
                await self._request.upload_share.take_all(body.received_bytes)
            await self._enter()
        try:
            outcome = await run(_open, self._upload, content)
        except NoSuchRepository:
            if create is None:
                raise
            await run(create, pool=self._pools.disk)
            outcome = await run(_open, self._upload, content)
        if outcome is None:
            self._request.send_continue()
            await receive_body(self._request, self._jobs, self._pools.writers, self._upload.write, self._admitted.cover)
            await self._enter()
            outcome = await run(self._upload.commit)
        return outcome

    async def _enter(self) -> None:
        """Before the commit."""
        await self._admitted.enter()
        check = await self._admitted.fence()
        if check is not None:
            self._upload.fence(check)

    def _abort(self) -> Deferred[None]:
        """Remove what there is of it after the job that runs, then end; a commit that runs now may still succeed."""
        ended: Deferred[None] = Deferred()

        def end() -> None:
            self.end()
            ended.callback(None)

        self._jobs.close(self._upload.abort, end)
        return ended

    def end(self) -> None:
        """It has come to its end: settle the quota, and complete the record; idempotent."""
        if self._ended:
            return
        self._ended = True
        change = self._upload.change
        healed = self.outcome is Outcome.HEALED or (change != NOTHING and not change.objects)
        # The ledger never saw the damaged size, so an object that became smaller by healing is recounted and not booked.
        booked = NOTHING if healed and change.size_bytes < 0 else change
        self._admitted.end(booked, certain=not self._upload.is_uncertain)
        if healed or (self.outcome is None and self._upload.is_uncertain):
            self._admission.quota.recount(self._target.repository)
        written = healed or change != NOTHING
        self._request.release_record(Effect(Operation.WRITE, self._upload.size_bytes) if written else None)

    def event(self) -> Event | None:
        """What has happened by this upload, if that is worth an event."""
        request, target = self._request, self._target
        if self.outcome is Outcome.HEALED:
            words = f"a damaged file of {{repository}} was replaced: {target.type} {target.name}"
            return event_of(EventKind.CORRUPTION, words, request, target)
        if self.outcome is Outcome.STORED and target.type == "snapshots":
            event = event_of(EventKind.SNAPSHOT, f"new snapshot {target.name[:8]} in {{repository}}", request, target)
            return replace(event, message=event.message + _of_user(request))
        if self.outcome is Outcome.STORED and target.kind is Kind.CONFIG:
            return event_of(EventKind.REPOSITORY_CREATED, "{repository} was created", request, target)
        return None


@stepped
def _open(upload: Upload, content: Chunks | None) -> Steps[Outcome | None]:
    """In the pool: begin an upload; with its content, all of it."""
    upload.open()
    if content is None:
        return None
    upload.write(content)
    return (yield from steps_of(upload.commit))


async def remove_object(
    request: StreamingRequest,
    target: Target,
    store: RepositoryStore,
    pools: Pools,
    admission: Admission,
    keep_s: float = 0,
) -> None:
    """
    Remove an object. One that is missing counts as removed: a client that asks again after a lost answer needs that.

    @param keep_s: for how long it is kept in the trash, in seconds; 0 for not at all.
    """
    to_trash = bool(keep_s) and is_kept(target.type)
    admitted = admission.admit_removal(target, to_trash)
    await admitted.enter()
    request.hold_record()

    def ended(change: Amount | Failure) -> Amount | Failure:
        """Also if the client is gone by now."""
        if isinstance(change, Failure):
            done = change.value.change if isinstance(change.value, NotDurable) else NOTHING
            if done == NOTHING and (to_trash or change.check(Unavailable)):
                # A disk that failed in the middle of it may have left a copy in the trash, and an object store may have done it.
                admission.quota.recount(target.repository)
        else:
            done = change
        admitted.end(done, Amount(-done.size_bytes, -done.objects) if to_trash else NOTHING)
        request.release_record(Effect(Operation.DELETE, -done.size_bytes) if done != NOTHING else None)
        return change

    removed: Deferred[Amount] = Deferred()
    pools.quick.call(
        lambda change: removed.callback(ended(change)),
        store.remove_object,
        target.repository,
        target.type,
        target.name,
        keep_s,
    )
    await removed


def event_of(kind: EventKind, words: str, request: StreamingRequest, target: Target) -> Event:
    """
    An event about a request's target.

    @param words: the message, with C{{repository}} for the repository.
    """
    repository = "/".join(target.repository)
    message = words.format(repository=f"repository {ascii(repository or '/')[1:-1]}")
    details = {"type": target.type, "name": target.name} if target.name else {}
    return Event(kind, message, repository, request.user_name, details)


def _of_user(request: StreamingRequest) -> str:
    """The user, as a message ends with it."""
    return "" if request.user_name is None else f" (user {ascii(short_name(request.user_name))[1:-1]})"


def refusal_of(request: StreamingRequest, target: Target, error: BaseException) -> Event | None:
    """The event of an upload, or a new repository, that was refused with this error; C{None} for other errors."""
    limit_of = ""
    match error:
        case InsufficientStorage():
            reason, limit_of = error.cause, error.limit_of
        case NotPermitted():
            reason = RIGHTS
        case HashMismatch() | Forbidden():
            reason = CONTENT
        case _:
            return None
    repository = "/".join(target.repository)
    name = ascii(short_name(repository) or "/")[1:-1]
    why = ascii(error.message)[1:-1]
    if target.kind is Kind.REPOSITORY:
        message = f"refused to create repository {name}: {why}"
    else:
        message = f"refused an upload to repository {name}: {why}"
    message += _of_user(request)
    details = {"reason": reason, "why": why, "type": target.type, "name": target.name}
    if limit_of:
        details["limit_of"] = limit_of
    return Event(_REFUSALS.get(reason, EventKind.UPLOAD_REFUSED), message, repository, request.user_name, details)
