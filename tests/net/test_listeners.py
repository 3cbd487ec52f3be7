"""
Where the server listens: addresses, sockets that are its own, left behind, or inherited.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from resticserver.errors import StartError
from resticserver.net import endpoints as addresses
from resticserver.net import listeners
from resticserver.net import sockets as sockets_module
from resticserver.net.addresses import wants_tls
from resticserver.net.endpoints import parse_address
from resticserver.net.listeners import Listeners
from resticserver.net.ports import REST_S, SocketEndpoint, UnixPort
from resticserver.net.sockets import bound_address, inherited_sockets, tcp_socket, unix_socket
from resticserver.web.http1.options import SiteOptions

from ..support.descriptors import no_descriptors
from ..support.wires import StepReactor, as_reactor

#: address -> the host and port that are opened, as rest-server takes them
HOST_PORTS = (
    (":8000", ("", 8000)),
    (":0", ("", 0)),
    (":65535", ("", 65535)),
    ("127.0.0.1:8000", ("127.0.0.1", 8000)),
    ("0.0.0.0:80", ("0.0.0.0", 80)),
    ("localhost:8000", ("localhost", 8000)),
    ("backup.example.org:8000", ("backup.example.org", 8000)),
    ("[::1]:8000", ("::1", 8000)),
    ("[::]:8000", ("::", 8000)),
    ("[fe80::1%eth0]:8000", ("fe80::1%eth0", 8000)),
    (":8000:plain=yes", ("", 8000)),
    ("127.0.0.1:8000:plain=yes", ("127.0.0.1", 8000)),
)

#: address -> the socket's path and mode
UNIX_PATHS = (
    ("unix:/run/restic.sock", "/run/restic.sock", 0o660),
    ("unix:/run/a b/restic.sock", "/run/a b/restic.sock", 0o660),
    ("unix:/run/restic.sock:plain=yes", "/run/restic.sock", 0o660),
    ("unix:/run/restic.sock:mode=600", "/run/restic.sock", 0o600),
    ("unix:/run/restic.sock:mode=0666", "/run/restic.sock", 0o666),
    ("unix:/run/restic.sock:mode=666:lockfile=0", "/run/restic.sock", 0o666),
    ("unix:/run/restic.sock:mode=600:plain=yes", "/run/restic.sock", 0o600),
)

#: address -> Twisted's endpoint
ENDPOINTS = (
    ("tcp:8000", TCP4ServerEndpoint),
    ("tcp:8000:interface=127.0.0.1", TCP4ServerEndpoint),
    ("tcp:8000:interface=127.0.0.1:plain=yes", TCP4ServerEndpoint),
    ("tcp6:8000", TCP6ServerEndpoint),
    ("tcp6:8000:interface=\\:\\:1", TCP6ServerEndpoint),
)

NO_ADDRESSES = (
    "",
    ":",
    "8000",
    "localhost",
    "localhost:",
    "localhost:http",
    ":65536",
    ":999999999999",
    ":-1",
    ": 8000",
    "::1:8000",
    "[::1]",
    "[::1:8000",
    "::1]:8000",
    "[]:8000",
    "/run/restic.sock",
    "unix:",
    "unix:@restic",
    "unix::mode=600",
    "unix:/run/restic.sock:mode=888",
    "unix:/run/restic.sock:mode=",
    "unix:/run/restic.sock:backlog=1",
    "unix:/run/restic.sock:lockfile=1",
    "bogus:8000:interface=1",
    "http://localhost:8000",
    "tcp:",
    "tcp:port=http",
    "ssl:8443:privateKey=missing.pem",
)

#: address -> whether --tls wraps it
TLS = (
    (":8000", True),
    ("127.0.0.1:8000", True),
    ("unix:/run/restic.sock", True),
    ("tcp:8000", True),
    ("haproxy:tcp:8000", True),
    ("systemd:domain=INET:index=0", True),
    (":8000:plain=yes", False),
    ("unix:/run/restic.sock:plain=yes", False),
    ("tcp:8000:plain=yes", False),
    ("ssl:8443:privateKey=k.pem", False),
    ("tls:/certificates:tcp:8443", False),
    ("haproxy:ssl:8443:privateKey=k.pem", False),
    ("haproxy:tls:/certificates:tcp:8443", False),
)


class FakePort:
    """A port that listens somewhere."""

    def __init__(self, host: Any) -> None:
        self._host = host

    def getHost(self) -> Any:
        """Where."""
        return self._host


class Greeting(Protocol):
    """Says hello and hangs up."""

    def connectionMade(self) -> None:
        """A client is there."""
        assert self.transport is not None
        self.transport.write(b"hello")
        self.transport.loseConnection()


class Heard(Protocol):
    """What a client heard until the server hung up."""

    def __init__(self) -> None:
        self.data = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """More."""
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """All of it."""
        self.done.callback(self.data)


def greeter() -> Factory[Any]:
    """The server side of a test."""
    factory: Factory[Any] = Factory.forProtocol(Greeting)
    factory.noisy = False
    return factory


def mode_of(path: str) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.stat(path).st_mode)


def with_umask(test: SynchronousTestCase | TestCase, umask: int) -> None:
    """Set the umask until the end of the test."""
    test.addCleanup(os.umask, os.umask(umask))


class AddressTests(SynchronousTestCase):
    """L{parse_address} and L{wants_tls}: the values of C{--listen}."""

    def opened(self, address: str) -> list[tuple[Any, ...]]:
        """What the endpoint of an address opens, without opening it."""
        calls: list[tuple[Any, ...]] = []

        def noting(*arguments: Any) -> Any:
            calls.append(arguments)
            raise StartError("not opened")

        for name in ("tcp_socket", "unix_socket"):
            self.patch(addresses, name, noting)
        endpoint = parse_address(MemoryReactorClock(), address)
        self.assertIsInstance(endpoint, SocketEndpoint, address)
        self.failureResultOf(endpoint.listen(greeter()), StartError)
        return calls

    def test_host_and_port(self) -> None:
        """host:port in all its forms."""
        for address, wanted in HOST_PORTS:
            self.assertEqual([wanted], self.opened(address), address)

    def test_unix(self) -> None:
        """unix:/path."""
        for address, path, mode in UNIX_PATHS:
            self.assertEqual([(path, mode)], self.opened(address), address)

    def test_endpoint_strings(self) -> None:
        """Twisted's endpoint strings, the shortest among them, are not taken for a host of that name."""
        taken = [
            (address, type(parse_address(MemoryReactorClock(), address)))
            for address, kind in ENDPOINTS
            if type(parse_address(MemoryReactorClock(), address)) is not kind
        ]
        self.assertEqual([], taken)

    def test_no_addresses(self) -> None:
        """What is none of them is one line that repeats it."""
        for address in NO_ADDRESSES:
            error = self.assertRaises(StartError, parse_address, MemoryReactorClock(), address)
            self.assertTrue(str(error).startswith(f"--listen {address}: "), str(error))
            self.assertEqual(1, len(str(error).splitlines()))

    def test_nothing_is_opened(self) -> None:
        """To read an address opens nothing."""
        memory = MemoryReactorClock()
        path = self.mktemp()
        for address in ("127.0.0.1:0", f"unix:{os.path.abspath(path)}", "tcp:8000:interface=127.0.0.1"):
            parse_address(memory, address)
        self.assertEqual(([], [], False), (memory.tcpServers, memory.unixServers, os.path.exists(path)))

    def test_tls(self) -> None:
        """Every listener is wrapped by --tls, but those that bring their own and those that opt out."""
        for address, wanted in TLS:
            self.assertEqual(wanted, wants_tls(address), address)


class BoundAddressTests(SynchronousTestCase):
    """L{bound_address}: what stands behind "start server on"."""

    def test_table(self) -> None:
        """As rest-server prints them."""
        for host, text in (
            (IPv4Address("TCP", "0.0.0.0", 41233), "0.0.0.0:41233"),
            (IPv4Address("TCP", "127.0.0.1", 8000), "127.0.0.1:8000"),
            (IPv6Address("TCP", "::", 41233), "[::]:41233"),
            (IPv6Address("TCP", "::1", 8000), "[::1]:8000"),
            (UNIXAddress(b"/run/restic.sock"), "/run/restic.sock"),
        ):
            self.assertEqual(text, bound_address(FakePort(host)))  # type: ignore[arg-type]


class TcpSocketTests(SynchronousTestCase):
    """L{tcp_socket}."""

    def opened(self, host: str, port: int = 0) -> socket.socket:
        """A socket that is closed at the end of the test."""
        listening = tcp_socket(host, port)
        self.addCleanup(listening.close)
        return listening

    def test_one_host(self) -> None:
        """A host's own family and address, and any free port for 0."""
        listening = self.opened("127.0.0.1")
        host, port = listening.getsockname()
        self.assertEqual((socket.AF_INET, "127.0.0.1"), (listening.family, host))
        with socket.create_connection((host, port)):
            pass

    def test_ipv6_alone(self) -> None:
        """C{[::]} is IPv6 alone, as it was asked for."""
        listening = self.opened_ipv6("::1")
        self.assertEqual(1, listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))

    def opened_ipv6(self, host: str) -> socket.socket:
        """An IPv6 socket, or the test is skipped."""
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("this machine has no IPv6")
        return self.opened(host)

    def test_both_families(self) -> None:
        """Without a host both families are served, by one socket."""
        listening = self.opened_ipv6("")
        self.assertEqual("::", listening.getsockname()[0])
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, listening.getsockname()[1])):
                pass

    def without_ipv6(self, at: str, code: int) -> None:
        """A machine whose IPv6 is off in one of the ways there are."""
        real = socket.socket

        def fake(family: int = -1, *args: Any, **named: Any) -> Any:
            if family == socket.AF_INET6 and at == "socket":
                raise OSError(code, os.strerror(code))
            made = real(family, *args, **named)
            return Refusing(made, code) if family == socket.AF_INET6 else made

        self.patch(socket, "socket", fake)

    def test_ipv6_off(self) -> None:
        """Where IPv6 is off the server listens on IPv4 alone."""
        for at, code in (("socket", errno.EAFNOSUPPORT), ("bind", errno.EADDRNOTAVAIL), ("bind", errno.EAFNOSUPPORT)):
            self.without_ipv6(at, code)
            listening = self.opened("")
            self.assertEqual((socket.AF_INET, "0.0.0.0"), (listening.family, listening.getsockname()[0]))

    def test_ipv6_in_use(self) -> None:
        """Another error of IPv6 is no reason to serve half of the clients."""
        self.without_ipv6("bind", errno.EADDRINUSE)
        error = self.assertRaises(StartError, tcp_socket, "", 8000)
        self.assertEqual("cannot listen on :8000: Address already in use", str(error))

    def test_in_use(self) -> None:
        """A port that somebody has is one line with the address."""
        port = self.opened("127.0.0.1").getsockname()[1]
        error = self.assertRaises(StartError, tcp_socket, "127.0.0.1", port)
        self.assertEqual(f"cannot listen on 127.0.0.1:{port}: Address already in use", str(error))

    def test_not_ours(self) -> None:
        """So is an address that this machine does not have, and a name that is none."""
        for host in ("192.0.2.1", "host.invalid", "2001:db8::1"):
            error = self.assertRaises(StartError, tcp_socket, host, 8000)
            address = f"[{host}]:8000" if ":" in host else f"{host}:8000"
            self.assertTrue(str(error).startswith(f"cannot listen on {address}: "), str(error))
            self.assertFalse(str(error).endswith("None"), str(error))

    def test_again_at_once(self) -> None:
        """A server that was restarted gets its port although old connections linger on it."""
        listening = tcp_socket("127.0.0.1", 0)
        address = listening.getsockname()
        client = socket.create_connection(address)
        served, _ = listening.accept()
        served.close()
        listening.close()
        client.close()
        self.opened(*address)


class Refusing:
    """A socket that cannot be bound."""

    def __init__(self, real: socket.socket, code: int) -> None:
        self._real = real
        self._code = code

    def bind(self, address: object) -> None:
        """No."""
        raise OSError(self._code, os.strerror(self._code))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class UnixSocketTests(SynchronousTestCase):
    """L{unix_socket}."""

    def opened(self, path: str) -> socket.socket:
        """A socket that is closed at the end of the test."""
        listening = unix_socket(path)
        self.addCleanup(listening.close)
        return listening

    def test_mode(self) -> None:
        """Its mode is 0660 exactly, whatever the umask: the group may connect, others not."""
        for umask in (0o000, 0o022, 0o077):
            with_umask(self, umask)
            path = self.mktemp()
            self.opened(path)
            self.assertEqual(0o660, mode_of(path))

    def test_left_behind(self) -> None:
        """A socket that a killed server left is replaced."""
        path = self.mktemp()
        unix_socket(path).close()
        self.assertTrue(os.path.exists(path))
        self.opened(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    def test_live(self) -> None:
        """One that a server answers on stays its own, also when its backlog is full."""
        for backlog in (128, 0):
            path = self.mktemp()
            live = socket.socket(socket.AF_UNIX)
            self.addCleanup(live.close)
            live.bind(path)
            live.listen(backlog)
            for _ in range(3):
                if backlog == 0:
                    waiting = socket.socket(socket.AF_UNIX)
                    self.addCleanup(waiting.close)
                    waiting.setblocking(False)
                    waiting.connect_ex(path)
            inode = os.stat(path).st_ino
            error = self.assertRaises(StartError, unix_socket, path)
            self.assertEqual(f"cannot listen on unix:{path}: another server is listening there", str(error))
            self.assertEqual(inode, os.stat(path).st_ino)

    def test_something_else(self) -> None:
        """What is no socket is never removed."""
        file, directory, link = Path(self.mktemp()), Path(self.mktemp()), Path(self.mktemp())
        file.write_bytes(b"precious")
        directory.mkdir()
        link.symlink_to("nowhere")
        for path in (file, directory, link):
            error = self.assertRaises(StartError, unix_socket, str(path))
            self.assertIn("not a socket", str(error))
            self.assertTrue(os.path.lexists(path))
        self.assertEqual(b"precious", file.read_bytes())

    def test_impossible_paths(self) -> None:
        """A missing directory or a path that is too long is one line with a reason."""
        for path in (f"{self.mktemp()}/missing/restic.sock", "x" * 200):
            error = self.assertRaises(StartError, unix_socket, path)
            self.assertTrue(str(error).startswith(f"cannot listen on unix:{path}: "), str(error))
            self.assertFalse(str(error).endswith("None"), str(error))


class InheritedTests(SynchronousTestCase):
    """L{inherited_sockets}: systemd's socket activation."""

    #: Higher than what a test process has open.
    first = 800

    def handed_over(self, *sockets: socket.socket) -> dict[str, str]:
        """Put sockets where systemd would; the environment that it would set."""
        self.patch(sockets_module, "_FIRST_INHERITED", self.first)
        for number, given in enumerate(sockets):
            os.dup2(given.fileno(), self.first + number, inheritable=True)
            given.close()
        return {
            "LISTEN_PID": "42",
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(["restic.socket"] * len(sockets)),
            "OTHER": "stays",
        }

    def test_real_families(self) -> None:
        """Each socket has the family that its descriptor has, and no child inherits it."""
        given = [tcp_socket("127.0.0.1", 0), unix_socket(self.mktemp()), tcp_socket("", 0)]
        families = [one.family for one in given]
        environ = self.handed_over(*given)
        inherited = inherited_sockets(environ, 42)
        for one in inherited:
            self.addCleanup(one.close)
        self.assertEqual([self.first, self.first + 1, self.first + 2], [one.fileno() for one in inherited])
        self.assertEqual(families, [one.family for one in inherited])
        for one in inherited:
            self.assertTrue(fcntl.fcntl(one.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC)

    def test_environment(self) -> None:
        """The variables are taken away, and only they."""
        environ = self.handed_over()
        self.assertEqual([], inherited_sockets(environ, 42))
        self.assertEqual({"OTHER": "stays"}, environ)

    def test_none(self) -> None:
        """Without the variables, or with those of another process, there are none."""
        self.assertEqual([], inherited_sockets({}, 42))
        environ = self.handed_over()
        self.assertEqual([], inherited_sockets({**environ, "LISTEN_FDS": "3"}, 43))

    def test_garbage(self) -> None:
        """A number that is none, or descriptors that are no sockets, are one line at the start."""
        self.assertRaises(StartError, inherited_sockets, {"LISTEN_PID": "42", "LISTEN_FDS": "many"}, 42)
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), self.first)
        self.addCleanup(os.close, self.first)
        self.patch(sockets_module, "_FIRST_INHERITED", self.first)
        self.assertRaises(StartError, inherited_sockets, {"LISTEN_PID": "42", "LISTEN_FDS": "1"}, 42)


class PortTests(TestCase):
    """Ports on the real reactor: they serve, and leave alone what is not theirs."""

    async def listening(self, address: str) -> IListeningPort:
        """A port at an address."""
        port: IListeningPort = await parse_address(reactor, address).listen(greeter())
        self.addCleanup(port.stopListening)
        return port

    async def heard_from(self, endpoint: Any) -> bytes:
        """What a client hears at an endpoint."""
        heard = Heard()
        factory = Factory.forProtocol(lambda: heard)
        factory.noisy = False
        await endpoint.connect(factory)
        return await heard.done

    async def test_tcp(self) -> None:
        """A TCP port says where it really listens, and serves there."""
        port = await self.listening("127.0.0.1:0")
        host, _, number = bound_address(port).rpartition(":")
        self.assertEqual("127.0.0.1", host)
        self.assertEqual(b"hello", await self.heard_from(TCP4ClientEndpoint(reactor, host, int(number))))

    def test_no_room(self) -> None:
        """
        Without a descriptor for one connection more none is taken for a second, nor closed, and the reactor is not asked again at
        once for ever; then those that waited are served. It is said once.
        """
        path = f"{os.path.abspath(self.short_directory())}/s"
        for make in (lambda: tcp_socket("127.0.0.1", 0), lambda: unix_socket(path)):
            stepped = StepReactor()
            with make() as listening:
                outcome: list[Any] = []
                SocketEndpoint(as_reactor(stepped), lambda: listening).listen(greeter()).addBoth(outcome.append)
            (port,) = outcome
            self.assertEqual({port}, stepped.readers)
            client = socket.socket(port.socket.family, socket.SOCK_STREAM)
            self.addCleanup(client.close)
            client.connect(port.socket.getsockname())
            with capturedLogs() as events:
                for _ in range(3):
                    with no_descriptors():
                        port.doRead()
                    self.assertEqual(set(), stepped.readers)
                    stepped.advance(REST_S)
                    self.assertEqual({port}, stepped.readers)
            self.assertEqual(["cannot accept a connection: Too many open files"], [*map(formatEvent, events)])
            stepped.pump()
            self.assertEqual(b"hello", client.recv(10))
            client.close()
            stepped.pump()
            port.stopListening()
            stepped.advance(0)
            self.assertEqual(([], set()), (stepped.getDelayedCalls(), stepped.readers))

    async def test_any_address(self) -> None:
        """Without a host it says so in rest-server's form, and IPv4 clients are served."""
        port = await self.listening(":0")
        host, _, number = bound_address(port).rpartition(":")
        self.assertIn(host, ("[::]", "0.0.0.0"))
        self.assertEqual(b"hello", await self.heard_from(TCP4ClientEndpoint(reactor, "127.0.0.1", int(number))))

    async def test_unix(self) -> None:
        """A unix port says its path, serves with mode 0660, and its socket goes when it closes."""
        path = f"{os.path.abspath(self.short_directory())}/s"
        port = await self.listening(f"unix:{path}")
        self.assertEqual(path, bound_address(port))
        self.assertEqual(0o660, mode_of(path))
        self.assertEqual(b"hello", await self.heard_from(UNIXClientEndpoint(reactor, path)))
        await port.stopListening()  # type: ignore[misc]
        self.assertFalse(os.path.exists(path))

    def short_directory(self) -> str:
        """A directory whose absolute path leaves room: a socket's path may be 107 bytes long."""
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return path

    async def test_unix_relative(self) -> None:
        """A relative path is one from here, also where only that is short enough; it is said as an absolute one."""
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        deep = f"{self.short_directory()}/{'x' * 200}"
        for directory in (self.short_directory(), deep):
            os.makedirs(directory, exist_ok=True)
            os.chdir(directory)
            for _ in range(2):
                port = await self.listening("unix:./s")
                self.assertEqual(f"{directory}/s", bound_address(port))
                self.assertEqual(b"hello", await self.heard_from(UNIXClientEndpoint(reactor, "s")))
                await port.stopListening()  # type: ignore[misc]
                self.assertFalse(os.path.exists(f"{directory}/s"))
                unix_socket(f"{directory}/s").close()  # left behind
            os.chdir("/")
        error = self.assertRaises(StartError, unix_socket, f"{deep}/s")
        self.assertIn(f"the path has {len(deep) + 2} bytes, and the limit for a Unix socket is 107", str(error))

    async def test_unspecified(self) -> None:
        """C{[::]} takes IPv4 as well, as in Go, and C{[::1]} does not; an IPv4 address in IPv6's form is one of IPv4."""
        for host in ("[::]", "[0:0::0]", ""):
            port = await self.listening(f"{host}:0")
            number = port.getHost().port  # type: ignore[attr-defined]
            self.assertEqual(f"[::]:{number}", bound_address(port))
            for address in ("127.0.0.1", "::1"):
                with socket.create_connection((address, number)):
                    pass
        port = await self.listening("[::1]:0")
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.getHost().port))  # type: ignore[attr-defined]
        port = await self.listening("[::ffff:127.0.0.1]:0")
        self.assertTrue(bound_address(port).startswith("127.0.0.1:"))

    async def test_unix_vanished(self) -> None:
        """A socket that somebody removed is no error when the port closes."""
        path = f"{self.short_directory()}/s"
        port = await self.listening(f"unix:{path}")
        os.unlink(path)
        await port.stopListening()  # type: ignore[misc]

    async def test_adopted(self) -> None:
        """An inherited socket keeps its mode, and its file stays when the port closes."""
        path = self.mktemp()
        given = unix_socket(path)
        os.chmod(path, 0o604)
        port = await SocketEndpoint(as_reactor(reactor), lambda: given).listen(greeter())
        self.addCleanup(port.stopListening)
        self.assertIsInstance(port, UnixPort)
        self.assertEqual(0o604, mode_of(path))
        self.assertEqual(b"hello", await self.heard_from(UNIXClientEndpoint(reactor, path)))
        await port.stopListening()  # type: ignore[misc]
        self.assertEqual(0o604, mode_of(path))

    async def test_in_use(self) -> None:
        """An address that cannot be had is the endpoint's failure."""
        port = await self.listening("127.0.0.1:0")
        with self.assertRaises(StartError):
            await self.listening(bound_address(port))


class FakeSite(Factory):
    """What listeners need of a site."""

    noisy = False
    protocol = Greeting

    def __init__(self) -> None:
        self.options = SiteOptions()
        self.drained: Deferred[None] = Deferred()
        self.aborted = False

    def drain(self) -> Deferred[None]:
        """Close idle connections."""
        return self.drained

    def abort_all(self) -> None:
        """End all connections."""
        self.aborted = True
        self.drained.callback(None)


class ListenersTests(SynchronousTestCase):
    """L{Listeners}: all of them as one service, on a reactor in memory."""

    def setUp(self) -> None:
        """Nothing is inherited."""
        self.patch(listeners, "inherited_sockets", lambda environ, pid: [])
        self.memory = MemoryReactorClock()
        self.site = FakeSite()

    def listeners(self, *addresses: str) -> Listeners:
        """The service."""
        make_site: Callable[[], Any] = lambda: self.site  # noqa: E731
        return Listeners(as_reactor(self.memory), addresses, make_site, None, 30.0)

    def test_listens_everywhere(self) -> None:
        """Each address is opened, in order."""
        service = self.listeners("tcp:8001:interface=127.0.0.1", "tcp:8002:interface=127.0.0.1")
        service.startService()
        self.assertEqual([8001, 8002], [server[0] for server in self.memory.tcpServers])
        self.assertTrue(all(server[1] is self.site for server in self.memory.tcpServers))

    def test_bad_address_opens_nothing(self) -> None:
        """One address that is none, and none of the others is opened."""
        service = self.listeners("tcp:8001:interface=127.0.0.1", "bogus")
        self.assertRaises(StartError, service.startService)
        self.assertEqual([], self.memory.tcpServers)

    def test_cannot_listen(self) -> None:
        """What an endpoint of Twisted's says when it cannot listen is the start's error."""

        def refuse(*args: object, **named: object) -> Any:
            raise OSError(errno.EADDRINUSE, "Address already in use")

        self.memory.listenTCP = refuse  # type: ignore[method-assign]
        error = self.assertRaises(StartError, self.listeners("tcp:8001:interface=127.0.0.1").startService)
        self.assertIn("Address already in use", str(error))

    def test_impossible_names(self) -> None:
        """A host's name that cannot even be looked up is one line too."""
        for host in ("a..b", "x" * 64 + ".example.org", "a\x00b"):
            error = self.assertRaises(StartError, self.listeners(f"{host}:8000").startService)
            self.assertEqual(1, len(str(error).splitlines()))

    def test_stop(self) -> None:
        """Transfers in flight have their time; when they end sooner nothing is cut."""
        service = self.listeners("tcp:8001:interface=127.0.0.1")
        service.startService()
        stopped = service.stopService()
        self.assertNoResult(stopped)
        self.memory.advance(29.9)
        self.site.drained.callback(None)
        self.successResultOf(stopped)
        self.memory.advance(60)
        self.assertFalse(self.site.aborted)
        self.assertEqual([], self.memory.getDelayedCalls())

    def test_stop_late(self) -> None:
        """After the time-out what is left is cut."""
        service = self.listeners("tcp:8001:interface=127.0.0.1")
        service.startService()
        stopped = service.stopService()
        self.memory.advance(30)
        self.assertTrue(self.site.aborted)
        self.successResultOf(stopped)

    def test_stop_before_start(self) -> None:
        """A service that never opened anything stops at once."""
        self.successResultOf(self.listeners("tcp:8001:interface=127.0.0.1").stopService())
