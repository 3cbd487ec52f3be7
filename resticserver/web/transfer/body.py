"""
Bodies between requests and pool jobs: a large one goes past the reactor's thread where the connection's socket can be had
(L{resticserver.web.transfer.plain}, and over TLS L{resticserver.web.transfer.tls}), every other one through it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet

from ...storage.interface import Chunks, Stored
from ...threads.serial_jobs import Pool, SerialJobs
from ..http1.gate import ReadGate
from ..http1.ranges import Part
from ..http1.request import StreamingRequest
from .plain import ReceiveTransfer, SendfileTransfer
from .producer import ChunkProducer, reader

T = TypeVar("T")

#: Whether this platform's mechanisms are the ones that are tested here.
DIRECT = sys.platform == "linux"

#: A body with less to come than this is not worth a transfer of its own.
_WORTH_BYTES = 256 << 10


def socket_reactor(request: StreamingRequest) -> IReactorFDSet | None:
    """The reactor for transfers on a request's connection; C{None} where its socket cannot be had."""
    if DIRECT and request.channel.writer is not None:
        return IReactorFDSet(request.site.reactor, None)
    return None


def duplicate_of(request: StreamingRequest) -> socket.socket | None:
    """A duplicate of a request's socket, for a transfer; C{None} where there is no descriptor for it."""
    writer = request.channel.writer
    assert writer is not None
    try:
        return socket.socket(fileno=os.dup(writer.socket_transport.fileno()))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return None
        raise


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
    reactor = socket_reactor(request)
    large = reactor is not None and (body.expected_bytes or 0) >= _WORTH_BYTES and channel.may_lend_input()
    duplicate = duplicate_of(request) if large else None
    if duplicate is None:
        channel.exchange.read_in_bulk()
        if body.expected_bytes is not None:
            await body.deliver(lambda chunks: jobs.run(write, chunks, pool=pool))
            return
        came_bytes = 0

        async def write_covered(chunks: Chunks) -> None:
            nonlocal came_bytes
            came_bytes += sum(map(len, chunks))
            await cover(came_bytes)
            await jobs.run(write, chunks, pool=pool)

        await body.deliver(lambda chunks: Deferred.fromCoroutine(write_covered(chunks)))
        return
    left = body.expected_bytes
    assert left is not None and reactor is not None
    kind: type[ReceiveTransfer] = ReceiveTransfer
    if channel.secure:
        from .tls import TlsReceiveTransfer as kind  # OpenSSL takes its time to import
    transfer = kind(request, duplicate, jobs, pool, reactor, body.take_waiting(), left, write)
    channel.exchange.lend(transfer)
    try:
        await transfer.start()
    except ConnectionLost:
        request.abort()
        raise
    finally:
        if request.channel_or_none() is not None and not request.aborted:
            channel.exchange.take_back(transfer.taken_bytes)


def send_transfer(
    request: StreamingRequest,
    duplicate: socket.socket,
    jobs: SerialJobs,
    reactor: IReactorFDSet,
    stored: Stored,
    part: Part,
) -> Deferred[None]:
    """Send an answer whose body is a part of an open file, in pool jobs; fires when all of it is with the kernel."""
    kind: type[SendfileTransfer] = SendfileTransfer
    if request.channel.secure:
        from .tls import TlsSendTransfer as kind
    transfer = kind(request, duplicate, jobs, reactor, request.take_head(), stored, part)
    gate = request.channel.gate
    if not request.channel.secure:
        return transfer.start()
    # OpenSSL's connection is for one thread at a time, so the reactor's side of it rests.
    gate.lend(transfer)
    return transfer.start().addBoth(_give_back, gate)


def _give_back(result: T, gate: ReadGate) -> T:
    gate.take_back()
    return result


def send_part(request: StreamingRequest, jobs: SerialJobs, stored: Stored, part: Part) -> Deferred[None]:
    """
    Send a part of an open object as the body of an answer whose headers are set.

    @return: fires when everything is on its way.
    """
    reactor = socket_reactor(request)
    if reactor is not None and stored.fileno() >= 0 and request.channel.may_lend():
        duplicate = duplicate_of(request)
        if duplicate is not None:
            return send_transfer(request, duplicate, jobs, reactor, stored, part)
    return ChunkProducer(request, jobs, reader(stored, part)).start()
