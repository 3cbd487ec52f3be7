"""
Ports of Twisted's over sockets that listen already, and that other processes may have too. When the process has no room for
one more connection a port pauses: Twisted would close all that wait, or try again at once, for ever.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from ..threads.reactor import IReactor
from .sockets import BACKLOG

#: Errors that mean that the system has no room for one more connection; how long none is accepted then.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
REST_S = 1.0

_log = Logger()


class SocketEndpoint:
    """
    An endpoint over a socket that is opened when C{listen} is called.

    @ivar open_socket: returns a socket that listens.
    @ivar unlink: the path to remove when the port closes, for unix sockets that the server has made.
    """

    def __init__(self, reactor: IReactor, open_socket: Callable[[], socket.socket], unlink: str | None = None) -> None:
        self._reactor = reactor
        self.open_socket = open_socket
        self.unlink = unlink

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Open the socket and accept connections from it; fails with L{StartError}."""
        return execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        listening = self.open_socket()
        listening.setblocking(False)
        with listening:
            if listening.family == socket.AF_UNIX:
                port: Any = UnixPort.adopt(self._reactor, listening.fileno(), factory, self.unlink)
            else:
                port = TcpPort._fromListeningDescriptor(self._reactor, listening.fileno(), listening.family, factory)
            port.startListening()
        return port  # type: ignore[no-any-return]


class ListeningSocket(socket.socket):
    """
    A socket that listens. When the system has no room for one more connection C{full} is called with the error, and there is
    none to accept.
    """

    def __init__(self, listening: socket.socket, full: Callable[[OSError], object]) -> None:
        super().__init__(listening.family, listening.type, listening.proto, listening.detach())
        self._full = full

    def accept(self) -> tuple[socket.socket, Any]:
        """As C{socket.accept}."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._full(error)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


class _RestingPort(tcp.Port):
    """
    A port that accepts no connection for a while when there is no room for one; they wait in the socket's backlog.
    """

    reactor: IReactor
    _rest_call: Any = None
    #: Whether it was logged that there is no room, and no connection was accepted since.
    _logged = False

    def _look_after(self, listening: socket.socket) -> socket.socket:
        """The same socket, which calls L{_rest} when there is no room."""
        made = ListeningSocket(listening, self._rest)
        made.setblocking(False)
        return made

    def _rest(self, error: OSError) -> None:
        if not self._logged:
            _log.error("cannot accept a connection: {error}", error=error.strerror)
            self._logged = True
        self.stopReading()
        if self._rest_call is None:
            self._rest_call = self.reactor.callLater(REST_S, self._rested)

    def _rested(self) -> None:
        self._rest_call = None
        if self.connected and not self.disconnecting:
            self.startReading()

    def doRead(self) -> None:
        """Twisted calls this when a client connects."""
        super().doRead()
        if self._rest_call is None:
            self._logged = False

    def _rest_no_more(self) -> None:
        if self._rest_call is not None:
            self._rest_call.cancel()
            self._rest_call = None


class TcpPort(_RestingPort):
    """
    A TCP port over a socket that listens already, and that other processes may have too.
    """

    # Twisted would call shutdown(2) when the port closes, which ends the socket for systemd and the next server as well.
    _shouldShutdown = False

    def startListening(self) -> None:
        """Accept connections."""
        assert self._preexistingSocket is not None
        self._preexistingSocket = self._look_after(self._preexistingSocket)
        super().startListening()

    def connectionLost(self, reason: Any) -> None:
        """The port closes."""
        self._rest_no_more()
        super().connectionLost(reason)


class UnixPort(_RestingPort, unix.Port):
    """
    A unix port over a socket that listens already. It does not change its mode, and removes only a file that the server made.
    """

    _shouldShutdown = False
    _unlink: str | None = None

    @classmethod
    def adopt(cls, reactor: IReactor, fd: int, factory: IProtocolFactory, unlink: str | None) -> UnixPort:
        """A port over a duplicate of C{fd}."""
        port = cls._fromListeningDescriptor(reactor, fd, factory)
        port._unlink = unlink
        assert isinstance(port, UnixPort)
        return port

    def startListening(self) -> None:
        """Accept connections. Twisted's own method would chmod the socket to 0666."""
        assert self.factory is not None and self._preexistingSocket is not None
        self.factory.doStart()
        self.socket, self._preexistingSocket = self._look_after(self._preexistingSocket), None
        self.socket.listen(BACKLOG)
        self.connected = True
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Any) -> None:
        """The port closes. Twisted's own method would remove the file of an inherited socket."""
        self.remove_file()
        self._rest_no_more()
        tcp.Port.connectionLost(self, reason)

    def remove_file(self) -> None:
        """Remove the socket's file, if the server made it."""
        if self._unlink is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._unlink)
