"""
Where the server listens: from an address as the user gives it to an endpoint.

rest-server's own forms come first (C{:8000}, C{host:port}, C{[::1]:port}, C{unix:/path}), then Twisted's endpoint strings
with a known prefix. Sockets are opened here and handed to the reactor, so that a port is never anything but what was asked
for: Twisted's own unix ports make their socket writable to everyone and remove sockets that are not theirs.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, execute, maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import StartError
from .proxy_protocol import ProxyProtocolEndpoint

if TYPE_CHECKING:
    from ..web.http1.site import RepositorySite

#: Endpoint strings are told from host:port by these; Twisted would take any word as a plugin's name.
ENDPOINT_PREFIXES = ("tcp", "tcp4", "tcp6", "ssl", "tls", "unix", "systemd", "haproxy", "fd")

#: Endpoints that bring TLS of their own, and what opts a listener out of --tls.
_OWN_TLS = ("ssl:", "tls:", "haproxy:ssl:", "haproxy:tls:")
_PLAIN_SUFFIX = ":plain=yes"

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]+)\Z")

_UNIX_MODE = 0o660
#: How many bytes the kernel takes for a unix socket's path.
_LONGEST_UNIX = 107 if sys.platform == "linux" else 103
#: Connections that may wait to be accepted, as far as the kernel lets them (net.core.somaxconn). With few places a flood of
#: connections fills them, and the kernel drops others' SYNs: they connect a second later, or three, or seven.
_BACKLOG = 4096

#: The system has no room for one connection more; how long none is taken then.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
REST_S = 1.0

#: The first descriptor of systemd's socket activation (sd_listen_fds(3)).
_FIRST_INHERITED = 3


_log = Logger()


class Listeners(Service):
    """
    All sockets that the server listens on, and the connections that came from them.

    @param addresses: the values of C{--listen}; inherited sockets take their place.
    @param make_site: makes the HTTP factory when the service starts.
    @param connection_creator: for TLS, or C{None}.
    @param shutdown_timeout_s: how long transfers may go on after the stop began.
    @param flag: the one that the addresses were given to.
    @param words: what is said of each address; these are listened on in any case then, whatever was inherited.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: tuple[str, ...],
        make_site: Callable[[], RepositorySite],
        connection_creator: Any,
        shutdown_timeout_s: float,
        words: str | None = None,
        flag: str = "--listen",
    ) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self._words = words
        self._flag = flag
        self._make_site = make_site
        self._connection_creator = connection_creator
        self._shutdown_timeout_s = shutdown_timeout_s
        self._ports: list[IListeningPort] = []
        self._activated = False
        self._site: RepositorySite | None = None
        #: Called when the next thing is that people are told where the server is.
        self.announcing: Callable[[], object] = _nothing
        self.setName(words or "listeners")

    def open(self) -> None:
        """
        Listen everywhere.

        @raise StartError: an address is none or cannot be had; then there is none.
        """
        try:
            self._open()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """After a start that failed: no file of a socket stays."""
        for port in self._ports:
            if isinstance(port, UnixPort):
                port.remove_file()

    def _open(self) -> None:
        inherited = inherited_sockets(process_environment(), os.getpid()) if self._words is None else []
        try:
            endpoints = [(address, parse_address(self._reactor, address)) for address in self._addresses]
        except StartError as error:
            # It is said with the flag that it was given to.
            raise StartError(str(error).replace("--listen", self._flag, 1)) from error
        site = self._site = self._make_site()
        self._activated = bool(inherited)
        if inherited:
            for listening in inherited:
                self._listen(SocketEndpoint(self._reactor, partial(_same, listening)), site, tls=True)
            return
        for address, endpoint in endpoints:
            self._listen(endpoint, site, tls=wants_tls(address))

    def startService(self) -> None:
        """
        Listen everywhere, if that was not done yet, and say where.

        @raise StartError: an address is none or cannot be had.
        """
        super().startService()
        if not self._ports:
            self.open()
        self.announcing()
        if self._activated:
            _log.info("systemd socket activation mode")
            return
        for port in self._ports:
            _log.info("{words} {address}", words=self._words or "start server on", address=bound_address(port))

    def _listen(self, endpoint: Any, factory: Any, tls: bool) -> IListeningPort:
        if tls:
            factory = tls_factory(factory, self._connection_creator)
        outcome: list[Any] = []
        endpoint.listen(factory).addBoth(outcome.append)
        # Every endpoint that parse_address lets through listens at once or fails at once.
        if isinstance(outcome[0], Failure):
            error: BaseException | None = outcome[0].value
            assert error is not None
            if not isinstance(error, Exception):
                raise error  # a signal that ends the start
            raise StartError(f"{self._flag}: {error if isinstance(error, StartError) else f'cannot listen: {error}'}")
        port: IListeningPort = outcome[0]
        self._ports.append(port)
        return port

    def stopService(self) -> Deferred[None]:
        """Accept no more, give transfers their time, then end them."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._site is not None:
            late = self._reactor.callLater(self._shutdown_timeout_s, self.abort)
            await self._site.drain()
            if late.active():
                late.cancel()

    def abort(self) -> None:
        """End all connections now."""
        if self._site is not None:
            self._site.abort_all()


class SocketEndpoint:
    """
    An endpoint over a socket that a function opens when asked.

    @ivar open_socket: returns a socket that listens.
    @ivar unlink: the path to remove when the port closes, for unix sockets that are ours.
    """

    def __init__(self, reactor: Any, open_socket: Callable[[], socket.socket], unlink: str | None = None) -> None:
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
    A socket that listens. Where the system has no room for one connection more, C{full} is called, and there is none to take:
    Twisted would close all that wait, or try again at once for ever.
    """

    full: Callable[[OSError], object]

    def accept(self) -> tuple[socket.socket, Any]:
        """Take a connection."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.full(error)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


class _RestingPort(tcp.Port):
    """
    A port that takes no connection for a while when there is no room for one; they wait in the socket's backlog.
    """

    reactor: Any
    _rest_call: Any = None
    #: Whether it was said that there is no room, and no connection was taken since.
    _said = False

    def _look_after(self, listening: socket.socket) -> socket.socket:
        """The socket as one that says when there is no room."""
        made = ListeningSocket(listening.family, listening.type, listening.proto, listening.detach())
        made.setblocking(False)
        made.full = self._rest
        return made

    def _rest(self, error: OSError) -> None:
        if not self._said:
            _log.error("cannot take a connection: {error}", error=error.strerror)
            self._said = True
        self.stopReading()
        if self._rest_call is None:
            self._rest_call = self.reactor.callLater(REST_S, self._rested)

    def _rested(self) -> None:
        self._rest_call = None
        if self.connected and not self.disconnecting:
            self.startReading()

    def doRead(self) -> None:
        """Twisted's call: somebody connects."""
        super().doRead()
        if self._rest_call is None:
            self._said = False

    def _rest_no_more(self) -> None:
        if self._rest_call is not None:
            self._rest_call.cancel()
            self._rest_call = None


class TcpPort(_RestingPort):
    """
    A TCP port over a socket that listens already, and that others may hold too.
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
    A unix port over a socket that listens already: leaves its mode alone, removes its file only if it is ours.
    """

    _shouldShutdown = False
    _unlink: str | None = None

    @classmethod
    def adopt(cls, reactor: Any, fd: int, factory: IProtocolFactory, unlink: str | None) -> UnixPort:
        """A port over a duplicate of C{fd}."""
        port = cls._fromListeningDescriptor(reactor, fd, factory)
        port._unlink = unlink
        assert isinstance(port, UnixPort)
        return port

    def startListening(self) -> None:
        """Accept connections; the parent's would chmod the socket to 0666."""
        assert self.factory is not None and self._preexistingSocket is not None
        self.factory.doStart()
        self.socket, self._preexistingSocket = self._look_after(self._preexistingSocket), None
        self.socket.listen(_BACKLOG)
        self.connected = True
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Any) -> None:
        """The port closes; the parent's would remove the file of an inherited socket."""
        self.remove_file()
        self._rest_no_more()
        tcp.Port.connectionLost(self, reason)

    def remove_file(self) -> None:
        """Remove the socket's file, if it is ours."""
        if self._unlink is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._unlink)


def _nothing() -> None:
    """Nobody wants to know."""


def _same(listening: socket.socket) -> socket.socket:
    return listening


def process_environment() -> dict[str, str]:
    """
    The environment that the process was started with, without systemd's variables left for a child.

    Twisted's endpoints module takes LISTEN_PID and LISTEN_FDS out of C{os.environ} when it is imported, and forgets the
    sockets where LISTEN_FDNAMES is missing; so the kernel's copy is read where there is one.
    """
    environment = dict(os.environ)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = (pair.partition(b"=") for pair in file.read().split(b"\0"))
            environment |= {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    except OSError:
        pass
    return environment


def inherited_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """
    The sockets that systemd handed over (sd_listen_fds(3)), with the family that the descriptor really has.

    The variables are removed, so that no child takes them for its own.
    """
    if environ.pop("LISTEN_PID", None) != str(pid):
        return []
    environ.pop("LISTEN_FDNAMES", None)
    count = environ.pop("LISTEN_FDS", "0")
    if not count.isdecimal():
        raise StartError(f"LISTEN_FDS={count} is no number of sockets")
    sockets = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            os.set_inheritable(fd, False)
            sockets.append(socket.socket(fileno=fd))
        except OSError as error:
            raise StartError(f"cannot use the inherited descriptor {fd}: {error.strerror}") from error
    return sockets


def parse_address(reactor: Any, address: str) -> IStreamServerEndpoint | SocketEndpoint | ProxyProtocolEndpoint:
    """
    The endpoint of a C{--listen} value.

    @raise StartError: it is none.
    """
    address = address.removesuffix(_PLAIN_SUFFIX)
    prefix, colon, rest = address.partition(":")
    if colon and prefix == "haproxy":
        # Twisted's would make unix sockets 0666, for all to be whom they say that they are.
        return ProxyProtocolEndpoint(parse_address(reactor, rest))
    if colon and prefix == "unix":
        return _unix_endpoint(reactor, address, rest)
    if colon and prefix in ENDPOINT_PREFIXES:
        try:
            endpoint: IStreamServerEndpoint = serverFromString(reactor, address)
        except Exception as error:
            raise StartError(f"--listen {address}: {' '.join(str(error).split())}") from error
        return _with_own_tls(reactor, endpoint)
    match = _HOST_PORT.match(address)
    if match is None:
        raise StartError(f"--listen {address}: neither host:port nor unix:/path nor an endpoint string")
    if len(match["port"]) > 5 or int(match["port"]) > 65535:
        raise StartError(f"--listen {address}: no such port")
    host, port = match["v6"] or match["host"], int(match["port"])
    return SocketEndpoint(reactor, lambda: tcp_socket(host, port))


def _with_own_tls(reactor: Any, endpoint: Any) -> IStreamServerEndpoint:
    """What Twisted's C{ssl:} and C{tls:} do, with TLS connections of ours; any other endpoint is as it was."""
    if isinstance(endpoint, SSL4ServerEndpoint):
        plain = TCP4ServerEndpoint(reactor, endpoint._port, endpoint._backlog, endpoint._interface)
        return TlsEndpoint(plain, partial(tls_factory, connection_creator=endpoint._sslContextFactory))
    creator = getattr(endpoint, "connectionCreator", None)  # Twisted's TLSServerEndpoint, which older ones do not have
    if creator is not None:
        return TlsEndpoint(endpoint.endpoint, partial(tls_factory, connection_creator=creator))
    return endpoint  # type: ignore[no-any-return]


@implementer(IStreamServerEndpoint)
class TlsEndpoint:
    """
    An endpoint with TLS of its own.

    @param endpoint: where its clients come in.
    @param wrap: puts its TLS before a factory.
    """

    def __init__(self, endpoint: Any, wrap: Callable[[IProtocolFactory], IProtocolFactory]) -> None:
        self._endpoint = endpoint
        self._wrap = wrap

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen there."""
        listening: Deferred[IListeningPort] = self._endpoint.listen(self._wrap(factory))
        return listening


def _unix_endpoint(reactor: Any, address: str, rest: str) -> SocketEndpoint:
    """C{unix:/path}, and the endpoint string's C{unix:/path:mode=660}, without Twisted's mode 0666 and lock file."""
    path, *options = rest.split(":")
    mode = _UNIX_MODE
    for option in options:
        key, _, value = option.partition("=")
        if key == "mode" and re.fullmatch("0?[0-7]{3}", value):
            mode = int(value, 8)
        elif (key, value) != ("lockfile", "0"):
            raise StartError(f"--listen {address}: {option} is not supported, only mode=660 and the like")
    if not path or path.startswith("@"):
        raise StartError(f"--listen {address}: a unix socket needs a path, as unix:/run/restic.sock")
    path = os.path.abspath(path)
    return SocketEndpoint(reactor, lambda: unix_socket(path, mode), unlink=path)


def wants_tls(address: str) -> bool:
    """Whether C{--tls} wraps this listener."""
    return not (address.startswith(_OWN_TLS) or address.endswith(_PLAIN_SUFFIX))


def tls_factory(factory: IProtocolFactory, connection_creator: Any) -> IProtocolFactory:
    """
    A factory behind TLS.

    @param connection_creator: for C{--tls}; C{None} without, and the factory is as it was.
    """
    if connection_creator is None:
        return factory
    from ..web.http1.tls_connection import behind_tls  # OpenSSL takes its time to import

    return behind_tls(connection_creator, factory)


def tcp_socket(host: str, port: int) -> socket.socket:
    """
    A listening TCP socket; without a host on both IP families, or on IPv4 alone where there is no IPv6. C{::} means both
    families too, as in Go.

    @raise StartError: the address cannot be had.
    """
    address = _ipv6(host)
    try:
        if address is not None and address == ipaddress.IPv6Address("::"):
            return _bound(socket.AF_INET6, ("::", port), dual=True)
        if address is not None and address.ipv4_mapped is not None:
            host = str(address.ipv4_mapped)
        if not host:
            try:
                return _bound(socket.AF_INET6, ("::", port), dual=True)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                return _bound(socket.AF_INET, ("0.0.0.0", port))
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return _bound(found[0][0], found[0][4])
    except UnicodeError as error:
        raise StartError(f"cannot listen on {joined_address(host, port)}: no host has this name") from error
    except OSError as error:
        raise StartError(f"cannot listen on {joined_address(host, port)}: {error.strerror}") from error


def _ipv6(host: str) -> ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(host)
    except ValueError:
        return None


def _bound(family: int, address: Any, dual: bool = False) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def unix_socket(path: str, mode: int = _UNIX_MODE) -> socket.socket:
    """
    A listening unix socket; one that a killed server left behind is replaced.

    @raise StartError: a live server answers there, something else than a socket is there, or it cannot be made.
    """
    name = _short(path)
    try:
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(name)
            # Before listen(2): nobody can connect as long as the mode is the umask's.
            os.chmod(path, mode)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening
    except OSError as error:
        raise StartError(f"cannot listen on unix:{path}: {error.strerror or error}") from error


def _short(path: str) -> str:
    """
    A path that the kernel takes for a unix socket: as it is, or from the current directory, as it may have been given.

    @raise StartError: it is too long for that.
    """
    for name in (path, os.path.relpath(path)):
        if len(os.fsencode(name)) <= _LONGEST_UNIX:
            return name
    length = len(os.fsencode(path))
    reason = f"the path has {length} bytes, and a unix socket's may have {_LONGEST_UNIX}"
    raise StartError(f"cannot listen on unix:{path}: {reason}")


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"cannot listen on unix:{path}: something that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_short(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise StartError(f"cannot listen on unix:{path}: a server answers there already")


def joined_address(host: str, port: int) -> str:
    """Host and port as one."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(port: IListeningPort) -> str:
    """Where a port really listens, as rest-server prints it: C{[::]:8000}, C{127.0.0.1:8000} or a socket's path."""
    address: Any = port.getHost()
    name = getattr(address, "name", None)
    if name is not None:
        return unix_address(name)
    return joined_address(address.host, address.port)


def unix_address(name: str | bytes) -> str:
    """A unix socket's own name as a path that holds from everywhere."""
    path = os.fsdecode(name)
    return path if not path or path.startswith(("\0", "/")) else os.path.abspath(path)
