"""
Relays, byte for byte: from a TCP port to a unix socket, for clients such as restic 0.14 that cannot talk to unix sockets; and to
another port from an address of 127.0.0.0/8, for clients that cannot choose the address that they connect from.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from .scratch import Cleans

_CHUNK_BYTES = 256 << 10


class _Relay:
    """
    Passes every connection on; closed after the test.

    @ivar port: where it listens on 127.0.0.1.
    """

    def __init__(self, test: Cleans) -> None:
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

    def _connect(self) -> socket.socket:
        """
        Connect to the server.

        @raise OSError: that is not possible.
        """
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            threading.Thread(target=_join, args=(client, server), daemon=True).start()


class UnixProxy(_Relay):
    """To a unix socket."""

    def __init__(self, test: Cleans, path: str) -> None:
        self._path = path
        super().__init__(test)

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.connect(self._path)
        except OSError:
            server.close()
            raise
        return server


class AddressRelay(_Relay):
    """To a port of 127.0.0.1, from an address of one's choice."""

    def __init__(self, test: Cleans, port: int, address: str) -> None:
        self._server = ("127.0.0.1", port)
        self._source = (address, 0)
        super().__init__(test)

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._server, source_address=self._source)


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
