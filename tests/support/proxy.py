"""
A proxy from a TCP port to a unix socket, for clients such as restic 0.14 that cannot talk to unix sockets.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from .scratch import Cleans

_CHUNK_BYTES = 256 << 10


class UnixProxy:
    """
    Passes every connection on, byte for byte; closed after the test.

    @ivar port: where it listens on 127.0.0.1.
    """

    def __init__(self, test: Cleans, path: str) -> None:
        self._path = path
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        test.addCleanup(self.close)

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            # Closing alone does not wake the thread in accept().
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.connect(self._path)
            except OSError:
                client.close()
                server.close()
                continue
            threading.Thread(target=_join, args=(client, server), daemon=True).start()


def _join(client: socket.socket, server: socket.socket) -> None:
    upwards = threading.Thread(target=_copy, args=(client, server), daemon=True)
    upwards.start()
    _copy(server, client)
    upwards.join()
    client.close()
    server.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side broke, so the other has to learn it, in both directions.
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
