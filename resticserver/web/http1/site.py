"""
The HTTP server factory: its channels and requests, its limits, and the end of its connections.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Site

from ...telemetry.limited import DESCRIPTORS, HEADER_TIMEOUT, STALL_TIMEOUT, Limited
from ...telemetry.rate_limited_log import FewLines
from ...telemetry.record import Record, Recorder
from .channel import StreamingChannel
from .options import SiteOptions
from .request import StreamingRequest
from .turns import Turns

#: Between requests. restic keeps idle connections for 90 s, and the server must not close one that a client is about to use.
IDLE_TIMEOUT_S = 180.0
#: At a stop: how long an idle connection may still bring a request. A client that sends one at the moment of the close gets no
#: answer, and Go's repeats no upload by itself; a busy client hardly leaves a connection idle for so long.
LAST_REQUEST_S = 1.0
#: Between pool jobs for clients that send tiny TLS records. A job takes half of that, so all together take half a core at most.
POOL_REST_S = 0.01

_log = Logger()


def _warn(line: str) -> None:
    _log.warn("{line}", line=line)


class RepositorySite(Site):
    """
    Serves one resource over HTTP/1.1.

    @ivar options: as given.
    @ivar limited: receives what limits refuse.
    @ivar channels: all connections.
    @ivar retiring: whether each request that begins is the last of its connection.
    @ivar turns: of connections with more bytes than one slice decodes; C{pool_turns}: than one pool job decrypts.
    """

    noisy = False
    request_factory = StreamingRequest
    timeOut: float

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        recorder: Recorder,
        options: SiteOptions | None = None,
    ) -> None:
        super().__init__(
            resource,
            reactor=reactor,
            timeout=IDLE_TIMEOUT_S,
            parsePOSTFormSubmission=False,
        )
        self.options = options = options if options is not None else SiteOptions()
        # Those that each request needs.
        self.max_depth, self.prefix, self.proxies = options.max_depth, options.prefix, options.proxies
        self.limited = options.limited if options.limited is not None else Limited(reactor)
        self.channels: set[StreamingChannel] = set()
        self.turns = Turns(reactor)
        self.pool_turns = Turns(reactor, 1, POOL_REST_S)
        self._descriptor_lines = FewLines(reactor, _warn, "more such requests and connections")
        self._handshake_lines = FewLines(reactor, _warn, "more TLS handshakes failed")
        self._recorder = recorder
        self._stopping = False
        self._stop_idle: IDelayedCall | None = None
        self.retiring = False
        self._drained: list[Deferred[None]] = []

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 alone: restic's client accepts it by ALPN, and it is faster than HTTP/2 from most servers."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> StreamingChannel:  # type: ignore[override]
        """Twisted's call for a new connection; C{addr} is the socket's peer, also with the PROXY protocol."""
        return StreamingChannel(self, addr)

    def startFactory(self) -> None:
        """Twisted's call; the parent opens a log file and starts a timer for its dates, neither of which is needed."""

    def stopFactory(self) -> None:
        """Twisted's call."""

    def record(self, record: Record) -> None:
        """A request came to its end."""
        self._recorder(record)

    def handshake_failed(self, address: str, why: str) -> None:
        """
        A TLS handshake failed.

        @param address: the client's.
        @param why: in a few words.
        """
        self.options.count_handshake_failure()
        self._handshake_lines.say(f"TLS handshake with {address} failed: {why}")

    def head_timed_out(self, address: str) -> None:
        """The head of a request from this address did not end in time, and is answered so."""
        timeout_s = self.options.header_timeout_s
        line = f"a request from {address} was refused: its head did not end within {timeout_s:g} s"
        self.limited.limited(HEADER_TIMEOUT, line)

    def stalled(self, address: str) -> None:
        """A connection from this address is ended, because no byte of a body or an answer moved for too long."""
        timeout_s = self.options.stall_timeout_s
        line = f"a transfer with {address} was ended: no byte moved for {timeout_s:g} s"
        self.limited.limited(STALL_TIMEOUT, line)

    def out_of_descriptors(self, what: str) -> None:
        """Something was refused because the process, or the system, has no descriptor left."""
        self.limited.count(DESCRIPTORS)
        self._descriptor_lines.say(
            f"out of descriptors (the limit of open files is too low, or clients are too many): {what}"
        )

    def connection_made(self, channel: StreamingChannel) -> None:
        """A channel has its connection."""
        self.channels.add(channel)
        if self._stopping:
            channel.finish_and_close()

    def connection_lost(self, channel: StreamingChannel) -> None:
        """A channel lost its connection."""
        self.channels.discard(channel)
        if self._drained and not self.channels:
            if self._stop_idle is not None and self._stop_idle.active():
                self._stop_idle.cancel()
            all_drained, self._drained = self._drained, []
            for drained in all_drained:
                drained.callback(None)

    def drain(self) -> Deferred[None]:
        """
        Close each connection after its answer, or its next one, and idle ones within L{LAST_REQUEST_S}. Fires when none is left.
        """
        self.retiring = True
        for channel in self.channels:
            if channel.exchange.request is not None:
                channel.finish_and_close()
        if self.channels and self._stop_idle is None:
            self._stop_idle = self.reactor.callLater(LAST_REQUEST_S, self._close_idle)
        return self._when_drained()

    def _close_idle(self) -> None:
        self._stopping = True
        for channel in tuple(self.channels):
            channel.finish_and_close()

    def retire(self) -> Deferred[None]:
        """
        Let every connection go on until its next answer, which says that it is the last. Fires when none is left. So no client
        finds a connection closed that it was about to use. Other processes serve already, so this may take its time.
        """
        self.retiring = True
        return self._when_drained()

    def _when_drained(self) -> Deferred[None]:
        drained: Deferred[None] = Deferred()
        if self.channels:
            self._drained.append(drained)
        else:
            drained.callback(None)
        return drained

    def abort_all(self) -> None:
        """Abort every connection."""
        for channel in tuple(self.channels):
            channel.abort()
