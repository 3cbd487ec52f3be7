"""
One download: a stored object, or a part of it.
"""

from __future__ import annotations

from ..storage.interface import Stored
from ..targets import Target
from ..telemetry.record import Effect, Operation
from ..threads.interface import Pool
from ..threads.serial_jobs import SerialJobs
from .http1 import replies
from .http1.ranges import Part, choose_part, wanted_part
from .http1.request import StreamingRequest
from .transfer.body import send_part, write_granted

OCTETS = b"application/octet-stream"

#: Objects and parts up to this size are read by the job that opens them and answered in one write.
SMALL_BYTES = 64 << 10
#: Up to this size they are read in the reactor's thread if they are in the kernel's caches, and by the job that opens them if
#: they are in an object store.
NOWAIT_BYTES = 256 << 10

_READ = Effect(Operation.READ)


async def send_object(request: StreamingRequest, target: Target, stored: Stored, pool: Pool) -> None:
    """Answer with an object, or with the part of it that the C{Range} header names."""
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
            _begin(request, target, part, stored.size_bytes)
            if request.download_share is None:
                request.write(content)
            else:
                await write_granted(request, request.download_share, content)
            return
    jobs = SerialJobs(pool)
    try:
        part, content = await jobs.run(_open, stored, wanted)
        _begin(request, target, part, stored.size_bytes)
        if content is not None:
            if request.download_share is None:
                request.write(content)
            else:
                await write_granted(request, request.download_share, content)
            return
        await send_part(request, jobs, stored, part)
    except BaseException:
        jobs.close(stored.close)
        raise
    jobs.close(stored.close)


def _begin(request: StreamingRequest, target: Target, part: Part, size_bytes: int) -> None:
    """Begin the answer with a part of an object."""
    request.effect = _READ
    fields = b"Accept-Ranges: bytes\r\n" if target.type != "config" else b""
    if not part.whole:
        fields += b"Content-Range: bytes %d-%d/%d\r\n" % (part.start, part.start + part.length - 1, size_bytes)
    replies.begin(request, 200 if part.whole else 206, part.length, OCTETS, fields=fields)


def _open(stored: Stored, wanted: bytes | None) -> tuple[Part, bytes | None]:
    """In the pool: open an object and choose the part; a small one is read, and the object closed."""
    stored.open(wanted_part(wanted))
    part = choose_part(wanted, stored.size_bytes)
    # What is no file has no sendfile, so that a second job would only cost time.
    if part.length > (SMALL_BYTES if stored.fileno() >= 0 else NOWAIT_BYTES):
        return part, None
    pieces = []
    offset, end = part.start, part.start + part.length
    while offset < end:
        piece = stored.read(offset, end - offset)
        if not piece:
            raise OSError("the file became shorter while it was read")
        pieces.append(piece)
        offset += len(piece)
    stored.close()
    return part, bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
