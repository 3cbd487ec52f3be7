"""
Bodies between requests and pool jobs. A large one goes past the reactor's thread if the connection's socket can be had
(L{resticserver.web.transfer.plain}, over TLS L{resticserver.web.transfer.tls}), every other one through it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet

from ...limits.bandwidth import Share
from ...storage.interface import Chunks, Stored
from ...threads.interface import Pool
from ...threads.reactor import IReactor
from ...threads.serial_jobs import SerialJobs
from ..http1.gate import ReadGate
from ..http1.ranges import Part
from ..http1.request import StreamingRequest
from .plain import LentSocket, ReceiveTransfer, SendfileTransfer
from .producer import ChunkProducer, Pace, reader

#: Whether this is the platform on which transfers are tested.
DIRECT = sys.platform == "linux"

#: A body with less to come than this is not worth a transfer of its own.
_WORTH_BYTES = 256 << 10

T = TypeVar("T")


def duplicate_of(request: StreamingRequest) -> socket.socket | None:
    """A duplicate of a request's socket, for a transfer; C{None} if there is no descriptor for it."""
    writer = request.channel.writer
    assert writer is not None
    try:
        return socket.socket(fileno=os.dup(writer.socket_transport.fileno()))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return None
        raise


def _lent_socket(request: StreamingRequest, share: Share | None) -> LentSocket | None:
    """
    A request's socket for a transfer; C{None} if the body must go through the reactor's thread.

    @param share: of the bandwidth in this direction.
    """
    site, writer = request.site, request.channel.writer
    if not DIRECT or writer is None or not IReactorFDSet.providedBy(site.reactor):
        return None
    duplicate = duplicate_of(request)
    if duplicate is None:
        return None
    return LentSocket(
        duplicate,
        cast(IReactor, site.reactor),
        request.abort,
        request.stall,
        site.options.stall_timeout_s,
        site.pool_turns,
        writer.records,
        share,
    )


async def receive_body(
    request: StreamingRequest,
    jobs: SerialJobs,
    pool: Pool,
    write: Callable[[Chunks], None],
    cover: Callable[[int], Coroutine[Deferred[Any], Any, None]],
) -> None:
    """
    Hand all of a request's body to a taker, in pool jobs.

    @param write: called in the pool with the next bytes, which are good only during the call.
    @param cover: for a body of unknown length: called with the length so far, and waited for, before they are written.
    @raise BadRequest: the body cannot be understood to its end.
    """
    channel, body = request.channel, request.body
    exchange = channel.exchange
    large = (body.expected_bytes or 0) >= _WORTH_BYTES and channel.may_lend_input()
    share = request.upload_share
    lent = _lent_socket(request, share) if large else None
    if lent is None:
        exchange.read_in_bulk()
        is_chunked = body.expected_bytes is None
        if not is_chunked and share is None:
            await body.deliver(lambda chunks: jobs.run(write, chunks, pool=pool))
            return
        came_bytes = 0

        async def write_covered(chunks: Chunks) -> None:
            nonlocal came_bytes
            size_bytes = sum(map(len, chunks))
            came_bytes += size_bytes
            if is_chunked:
                await cover(came_bytes)
            if share is not None:
                await share.take_all(size_bytes)
            await jobs.run(write, chunks, pool=pool)

        await body.deliver(lambda chunks: Deferred.fromCoroutine(write_covered(chunks)))
        return
    kind: type[ReceiveTransfer] = ReceiveTransfer
    if lent.records is not None:
        from .tls import TlsReceiveTransfer as kind  # OpenSSL takes its time to import
    assert body.expected_bytes is not None
    first = body.take_waiting()
    if share is not None:
        share.charge(sum(map(len, first)))
    transfer = kind(lent, partial(jobs.run, pool=pool), first, body.expected_bytes, write)
    exchange.lend(transfer)
    try:
        await transfer.start()
    except ConnectionLost:
        request.abort()
        raise
    finally:
        if request.channel_or_none() is not None and not request.aborted:
            exchange.take_back(transfer.taken_bytes)


def send_part(request: StreamingRequest, jobs: SerialJobs, stored: Stored, part: Part) -> Deferred[None]:
    """
    Send a part of an open object as the body of an answer whose headers are set, in pool jobs.

    @return: fires when everything is with the kernel, or with the transport.
    """
    channel = request.channel
    lent = _lent_socket(request, request.download_share) if channel.may_lend() else None
    if lent is None:
        return send_chunks(request, jobs, reader(stored, part))
    kind: type[SendfileTransfer] = SendfileTransfer
    if lent.records is not None:
        from .tls import TlsSendTransfer as kind
    transfer = kind(lent, jobs.run, request.set_sent, request.take_head(), stored, part)
    if lent.records is None:
        return transfer.start()
    # OpenSSL's connection is for one thread at a time, so the reactor's side of it rests.
    channel.gate.lend(transfer)
    return transfer.start().addBoth(_taken_back, channel.gate)


def _taken_back(result: T, gate: ReadGate) -> T:
    gate.take_back()
    return result


async def write_granted(request: StreamingRequest, share: Share, content: bytes) -> None:
    """
    Write the next bytes of an answer's body as they are granted, so that a client with little bandwidth is not kept waiting
    for all of them.
    """
    position = 0
    while position < len(content):
        size_bytes = await share.take(len(content) - position)
        request.write(content[position : position + size_bytes])
        position += size_bytes


def send_chunks(request: StreamingRequest, jobs: SerialJobs, read: Callable[[], bytes]) -> Deferred[None]:
    """
    Send chunks as the body of an answer that has begun, through the reactor's thread.

    @param read: called in the pool; the next chunk, empty at the end.
    @return: fires when everything is with the transport.
    """
    site = request.site
    pace = Pace(site.options.stall_timeout_s, request.stall, request.download_share)
    return ChunkProducer(request, site.reactor, pace, partial(jobs.run, read)).start()
