"""
A connection with a long way: passes bytes on after a delay in each direction, as a network of that latency and any bandwidth.

A program of its own, so that it takes its time from neither server's process: C{python relay.py PORT MILLISECONDS}. It says on
stderr where it listens. The kernel accepts a connection at once, so the first bytes of the client wait for another round trip,
which the handshake of TCP would take.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque

#: What may be on the way in one direction; more waits in the sender's socket.
WINDOW_BYTES = 16 << 20


class Way(asyncio.Protocol):
    """
    One direction, from the connection that this is the protocol of to another one.

    @param delay_s: seconds.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._on_the_way: deque[tuple[float, bytes | None]] = deque()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._not_before_s = 0.0
        self._source: asyncio.Transport | None = None
        self._target: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's call."""
        assert isinstance(transport, asyncio.Transport)
        self._source = transport

    def lead_to(self, target: asyncio.Transport, handshake_s: float = 0.0) -> None:
        """
        Pass on to a connection.

        @param handshake_s: the first bytes arrive that much later than without it.
        """
        self._target = target
        self._not_before_s = self._loop.time() + handshake_s + self._delay_s if handshake_s else 0.0
        self._deliver()

    def data_received(self, data: bytes) -> None:
        """asyncio's call."""
        self._bytes += len(data)
        if self._bytes > WINDOW_BYTES and self._source is not None:
            self._source.pause_reading()
        self._send(data)

    def eof_received(self) -> bool:
        """asyncio's call."""
        self._send(None)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's call."""
        self._source = None
        self._send(None)

    def _send(self, data: bytes | None) -> None:
        self._on_the_way.append((self._loop.time() + self._delay_s, data))
        if self._timer is None:
            self._deliver()

    def _deliver(self) -> None:
        """Pass on what has arrived, and wait for the next."""
        self._timer = None
        if self._target is None:
            return
        now_s = self._loop.time()
        while self._on_the_way:
            due_s, data = self._on_the_way[0]
            due_s = max(due_s, self._not_before_s)
            if due_s > now_s:
                self._timer = self._loop.call_at(due_s, self._deliver)
                return
            self._on_the_way.popleft()
            if data is None:
                self._target.close()
                return
            self._target.write(data)
            self._bytes -= len(data)
            if self._source is not None and self._bytes <= WINDOW_BYTES:
                self._source.resume_reading()


class FromClient(Way):
    """
    The direction from a client that has connected.

    @param port: of the server, on 127.0.0.1.
    """

    def __init__(self, delay_s: float, port: int) -> None:
        super().__init__(delay_s)
        self._port = port
        self._back = Way(delay_s)
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's call."""
        super().connection_made(transport)
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        client = self._source
        assert client is not None
        try:
            server, _ = await self._loop.create_connection(lambda: self._back, "127.0.0.1", self._port)
        except OSError:
            client.abort()
            return
        self._back.lead_to(client)
        self.lead_to(server, 2 * self._delay_s)


async def relay(port: int, delay_s: float) -> None:
    """Relay to a port of 127.0.0.1, for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FromClient(delay_s, port), "127.0.0.1", 0, backlog=1024)
    print(f"relay on 127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), float(sys.argv[2]) / 1000))
