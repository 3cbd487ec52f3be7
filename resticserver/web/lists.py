"""
Lists as answers: JSON of either version of the protocol, made and sent part by part.

What a part looks like as JSON is kept as long as the store gives out the same part again. So a list that is asked for
again is some looks at directories and memory that is copied to the socket.

A list is never compressed. restic would take it, but ids are random: gzip at its quickest halves a list and takes ten
times as long as sending it whole does on one machine (docs/decisions/lists.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..lru import BoundedCache
from ..storage.interface import Listing, Objects
from ..threads.interface import Pool
from ..threads.serial_jobs import SerialJobs
from .http1 import replies
from .http1.request import StreamingRequest
from .transfer.body import send_chunks, write_granted

LIST_V1 = b"application/vnd.x.restic.rest.v1"
LIST_V2 = b"application/vnd.x.restic.rest.v2"

#: Memory for JSON that may be sent again; some 700,000 objects of version 2.
BOUND_BYTES = 64 << 20
#: What Python takes for a piece of it beside the bytes.
_PIECE_BYTES = 300

#: The first chunk leaves when it has so many bytes, the next ones have more: the beginning comes soon, and a long list
#: needs few jobs.
FIRST_CHUNK_BYTES = 64 << 10
CHUNK_BYTES = 512 << 10
#: What there is leaves after this long.
CHUNK_S = 0.05


def wants_sizes(request: StreamingRequest) -> bool:
    """Whether a client asks for version 2 of lists, by naming it among the media types it accepts."""
    return any(LIST_V2 in accept for accept in request.fields.all(b"accept"))


class ListResponses:
    """
    Sends lists.

    @param pool: runs the store's blocking calls.
    @ivar pieces: JSON that may be sent again, by the C{cache_key} of its L{Objects} and whether it has sizes.
    """

    def __init__(self, pool: Pool, bound_bytes: int = BOUND_BYTES) -> None:
        self._pool = pool
        self.pieces: BoundedCache[tuple[int, bool], bytes] = BoundedCache(bound_bytes)

    async def send(self, request: StreamingRequest, listing: Listing, with_sizes: bool) -> None:
        """Answer with a list, in version 2 of the protocol if it is with sizes."""
        content_type = LIST_V2 if with_sizes else LIST_V1
        text = ListText(listing, with_sizes, self.pieces)
        jobs = SerialJobs(self._pool)
        try:
            first = await jobs.run(text.open)
            replies.begin(request, 200, len(first) if text.ended else None, content_type)
            if request.download_share is None:
                request.write(first)
            else:
                await write_granted(request, request.download_share, first)
            if text.ended:
                return
            await send_chunks(request, jobs, text.read)
        except BaseException:
            jobs.close(listing.close)
            raise


class ListText:
    """
    A list's JSON. All is called in the pool.

    @ivar ended: whether all of it has been read.
    """

    def __init__(self, listing: Listing, with_sizes: bool, pieces: BoundedCache[tuple[int, bool], bytes]) -> None:
        self._listing = listing
        self._with_sizes = with_sizes
        self._cache = pieces
        self._turn = 0
        self._parts: Iterator[Objects] = iter(())
        self._begun = False
        self._chunk_bytes = FIRST_CHUNK_BYTES
        self.ended = False

    def open(self) -> bytes:
        """Open the list and read its first chunk."""
        self._turn = self._cache.begin()
        self._listing.open()
        self._parts = iter(self._listing)
        return self.read()

    def read(self) -> bytes:
        """The next chunk; empty at the end."""
        if self.ended:
            return b""
        pieces: list[bytes] = []
        size_bytes = 0
        late = time.monotonic() + CHUNK_S
        for part in self._parts:
            if part:
                pieces.append(self._piece(part))
                size_bytes += len(pieces[-1])
                if size_bytes >= self._chunk_bytes or time.monotonic() > late:
                    break
        else:
            self.ended = True
        self._chunk_bytes = min(2 * self._chunk_bytes, CHUNK_BYTES)
        if pieces:
            pieces[0] = (b"," if self._begun else b"[") + pieces[0]
            self._begun = True
            if self.ended:
                pieces[-1] += b"]"
            return b",".join(pieces)
        return b"]" if self._begun else b"[]"

    def _piece(self, part: Objects) -> bytes:
        """A part as JSON, without brackets."""
        if part.cache_key is None:
            return _json(part, self._with_sizes)
        key = (part.cache_key, self._with_sizes)
        piece = self._cache.get(key)
        if piece is None:
            piece = _json(part, self._with_sizes)
            self._cache.put(key, piece, len(piece) + _PIECE_BYTES, self._turn)
        return piece


def _json(part: Objects, with_sizes: bool) -> bytes:
    if not with_sizes:
        text = '","'.join(part.names())
        return f'"{text}"'.encode("ascii")
    assert part.sizes is not None
    lines = [f'{{"name":"{name}","size":{size}}}' for name, size in zip(part.names(), part.sizes, strict=True)]
    return ",".join(lines).encode("ascii")
