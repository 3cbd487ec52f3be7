"""
The real site, request and channel, joined to a transport in memory: tests speak bytes, time is a Clock, threads are a
pool that runs jobs inline or holds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from resticserver.access.policy import Policy
from resticserver.limits.bandwidth import BothDirections
from resticserver.limits.uploads import UploadGate
from resticserver.quota.admission import Admission
from resticserver.storage.local import LocalStore
from resticserver.telemetry.record import Record
from resticserver.threads.interface import Pool
from resticserver.threads.pools import Pools
from resticserver.web.authentication import NoAuthentication
from resticserver.web.http1.channel import StreamingChannel
from resticserver.web.http1.options import SiteOptions
from resticserver.web.http1.site import RepositorySite
from resticserver.web.routes import Api, Repositories


class InlinePool(Pool):
    """Runs jobs at once, in the caller's thread."""

    def run(self, job: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run a job."""
        return maybeDeferred(job, *args)


class HeldPool(Pool):
    """Keeps jobs until C{release}."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, job: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Keep a job."""
        done: Deferred[Any] = Deferred()
        self.jobs.append((done, job, args))
        return done

    def release(self, rounds: int = 1) -> None:
        """Run what is there, C{rounds} times over (jobs bring new jobs)."""
        for _ in range(rounds):
            jobs, self.jobs = self.jobs, []
            for done, job, args in jobs:
                maybeDeferred(job, *args).chainDeferred(done)


class MemoryTransport(StringTransport):
    """A socket in memory that can be half-closed and aborted."""

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.7", 4711))
        self.half_closed = False
        self.aborted = False
        self.protocol: Any = None
        self.dataBuffer = b""
        self._tempDataBuffer: list[bytes] = []
        self.bufferSize = 65536

    def fileno(self) -> int:
        """It has no descriptor."""
        return -1

    def loseWriteConnection(self) -> None:
        """Half-close."""
        self.half_closed = True

    def resumeProducing(self) -> None:
        """Read on; the real one does nothing when it is being closed, and StringTransport fails."""
        if not self.disconnecting:
            super().resumeProducing()

    def abortConnection(self) -> None:
        """End it; the real one tells the protocol a little later."""
        if not self.aborted:
            self.aborted = True
            self.protocol.connectionLost(Failure(ConnectionAborted()))


class Connection:
    """One client's connection to a site."""

    def __init__(self, site: RepositorySite) -> None:
        channel = site.buildProtocol(None)
        assert isinstance(channel, StreamingChannel)
        self.channel = channel
        self.transport = MemoryTransport()
        self.transport.protocol = channel
        channel.makeConnection(self.transport)

    def send(self, *pieces: bytes) -> None:
        """Let bytes arrive."""
        for piece in pieces:
            self.channel.dataReceived(piece)

    def lose(self) -> None:
        """The client goes away."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def received(self) -> bytes:
        """What the client got."""
        received: bytes = self.transport.value()
        return received

    @property
    def closed(self) -> bool:
        """Whether the server closes the connection, in whatever way."""
        return bool(self.transport.disconnecting or self.transport.half_closed or self.transport.aborted)

    def statuses(self) -> list[int]:
        """The status of each answer so far (also 100)."""
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.received)]


class Bench:
    """A site over a local store, with its records and its time."""

    def __init__(
        self,
        path: str,
        *,
        pool: Any = None,
        policy: Policy | None = None,
        authentication: Any = None,
        options: SiteOptions | None = None,
        gate: UploadGate | None = None,
        bandwidth: Callable[[Clock], BothDirections] | None = None,
        **store_options: Any,
    ) -> None:
        self.clock = Clock()
        self.records: list[Record] = []
        self.store = LocalStore(path, **store_options)
        self.store.prepare()
        self.pool = pool if pool is not None else InlinePool()
        self.repositories = Repositories(self.store, Pools(self.pool, self.pool, self.pool), Admission(gate=gate))
        if bandwidth is not None:
            self.repositories = replace(self.repositories, bandwidth=bandwidth(self.clock))
        self.api = Api(authentication or NoAuthentication(), policy or Policy(), self.repositories)
        self.site = RepositorySite(self.api.resource(), self.clock, self.records.append, options)

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(self.site)

    def ask(self, request: bytes) -> Connection:
        """A new connection that has sent C{request}."""
        connection = self.connect()
        connection.send(request)
        return connection


def request(method: str, path: str, body: bytes | None = None, /, **headers: str) -> bytes:
    """A request's bytes; underscores in header names stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
