"""
Many wrong passwords at once: connections from several addresses that guess, and come again as soon as they are answered.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

from .client import authorization
from .waiting import PATIENCE_S, wait_until

#: How many guesses are begun in a second at most, by all connections together. A core checks twenty passwords of the
#: usual cost in a second, so all slots are full and most guesses find none: more of them would only be a test of how
#: fast connections are made.
MOST_A_SECOND = 600


class Flood:
    """
    A flood of guesses, from entering to leaving.

    @param port: the server's, on 127.0.0.1.
    @param sources: the addresses of this machine that it comes from.
    @param claimed: addresses that it claims in C{X-Forwarded-For} instead, as behind a proxy.
    @param connections: at once, from each address.
    @param leaves: every so many of them does not wait for its answer; 0 for none.
    @ivar guesses: how many were begun.
    @ivar statuses: the answers so far; C{left} counts those that were not waited for.
    """

    def __init__(
        self,
        port: int,
        sources: list[str],
        claimed: list[str] | None = None,
        connections: int = 17,
        leaves: int = 0,
    ) -> None:
        self._port = port
        self._leaves = leaves
        self._addresses = [
            (sources[number % len(sources)], claim) for number, claim in enumerate(claimed or [None] * len(sources))
        ] * connections
        self._pause_s = len(self._addresses) / MOST_A_SECOND
        self.statuses: Counter[str] = Counter()
        self.guesses = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._rage()), daemon=True)

    def __enter__(self) -> Flood:
        self._thread.start()
        # The slots are full, and some of the addresses have failed.
        wait_until(lambda: self.statuses["401"] >= 2 and self.guesses > len(self._addresses), 2 * PATIENCE_S, self)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2 * PATIENCE_S)

    def __repr__(self) -> str:
        return f"a flood with {self.guesses} guesses, {dict(self.statuses)}"

    async def _rage(self) -> None:
        tasks = [asyncio.create_task(self._go_on(*address)) for address in self._addresses]
        while not self._ended.is_set():
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _go_on(self, source: str, claimed: str | None) -> None:
        while True:
            try:
                await self._guess(source, claimed)
            except OSError:
                self.statuses["lost"] += 1
            await asyncio.sleep(self._pause_s)

    async def _guess(self, source: str, claimed: str | None) -> None:
        self.guesses += 1
        number = self.guesses
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
        try:
            claim = "" if claimed is None else f"X-Forwarded-For: {claimed}\r\n"
            writer.write(
                f"GET /repo/config HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{claim}"
                f"Authorization: {authorization(f'guess{number}', f'wrong{number}')}\r\n\r\n".encode()
            )
            if not self._leaves or number % self._leaves:
                line = await reader.readline()
                self.statuses[line[9:12].decode("ascii")] += 1
            else:
                await asyncio.sleep(0.1)
                self.statuses["left"] += 1
        finally:
            writer.close()
