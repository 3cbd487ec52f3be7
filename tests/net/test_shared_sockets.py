"""
L{resticserver.net.shared_sockets}: sockets that one process has and others serve.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import succeed
from twisted.internet.protocol import Factory
from twisted.logger import capturedLogs
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.net import shared_sockets
from resticserver.net.proxy_protocol import ProxyProtocolFactory
from resticserver.net.shared_sockets import Acceptor, open_shared, shared_factory

from ..support.certificates import make_certificate
from ..support.wires import StepReactor, as_reactor


def short_directory(test: SynchronousTestCase) -> str:
    """A directory whose path leaves room for a socket's name."""
    path = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    return path


class OpenSharedTests(SynchronousTestCase):
    """L{open_shared}."""

    def opened(self, address: str) -> socket.socket:
        """The socket of an address."""
        listening, _ = open_shared(address)
        self.addCleanup(listening.close)
        return listening

    def test_forms(self) -> None:
        """Every form of an address gives the socket that it gives without workers."""
        certificate = make_certificate(Path(short_directory(self)))
        for address, host in (
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.1:0:plain=yes", "127.0.0.1"),
            ("tcp:0:interface=127.0.0.1", "127.0.0.1"),
            ("tcp:0", "0.0.0.0"),
            ("tcp6:0", "::"),
            (r"tcp6:0:interface=\:\:1", "::1"),
            ("haproxy:tcp:0:interface=127.0.0.1", "127.0.0.1"),
            (f"ssl:0:privateKey={certificate.key}:certKey={certificate.certificate}:interface=127.0.0.1", "127.0.0.1"),
            (f"tls:{certificate.certificate.parent}:0:interface=127.0.0.1", "127.0.0.1"),
        ):
            listening = self.opened(address)
            self.assertEqual(host, listening.getsockname()[0], address)
            self.assertEqual(1, listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), address)

    def test_unix(self) -> None:
        """A unix socket has its mode, and its path to be removed."""
        path = f"{short_directory(self)}/s"
        for address in (f"unix:{path}:mode=600", f"haproxy:unix:{path}:mode=600"):
            listening, unlink = open_shared(address)
            listening.close()
            self.assertEqual((path, 0o600), (unlink, stat.S_IMODE(os.stat(path).st_mode)))
            os.unlink(path)

    def test_in_use(self) -> None:
        """An address that somebody has is one line, from Twisted's strings too."""
        port = self.opened("127.0.0.1:0").getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"tcp:{port}:interface=127.0.0.1"):
            error = self.assertRaises(StartError, open_shared, address)
            self.assertEqual(f"--listen: cannot listen on 127.0.0.1:{port}: Address already in use", str(error))

    def test_no_address(self) -> None:
        """What is no address is one line."""
        for address in ("nonsense", "tcp:port=http", "ssl:8443:privateKey=missing.pem"):
            self.assertIn(f"--listen {address}: ", str(self.assertRaises(StartError, open_shared, address)))

    def test_cannot_be_shared(self) -> None:
        """An endpoint that wants something else of the reactor is refused, and says nothing of our insides."""

        class Odd:
            def __init__(self, reactor: Any) -> None:
                self._reactor = reactor

            def listen(self, factory: object) -> Any:
                return self._reactor.listenDatagrams(factory)

        class Idle(Odd):
            def listen(self, factory: object) -> Any:
                return succeed(None)

        for kind in (Odd, Idle):
            self.patch(shared_sockets, "parse_address", lambda reactor, address, kind=kind: kind(reactor))
            error = self.assertRaises(StartError, open_shared, "odd:1")
            self.assertEqual("--listen odd:1 cannot be shared among workers", str(error))


class SharedFactoryTests(SynchronousTestCase):
    """L{shared_factory}."""

    def chain(self, address: str, creator: object = None) -> list[type]:
        """What stands before HTTP, the outermost first."""
        site: Any = Factory()
        factory: Any = shared_factory(address, site, creator)
        kinds = []
        while factory is not site:
            kinds.append(type(factory))
            factory = factory.wrappedFactory
        return kinds

    def test_table(self) -> None:
        """address -> what stands before HTTP, with and without C{--tls}; the same as without workers."""
        certificate = make_certificate(Path(short_directory(self)))
        ssl = f"ssl:8443:privateKey={certificate.key}:certKey={certificate.certificate}"
        creator = object()
        proxy, tls = ProxyProtocolFactory, TLSMemoryBIOFactory
        self.patch(shared_sockets, "tls_factory", lambda site, creator: self.wrapped(site) if creator else site)
        for address, without, with_tls in (
            (":8000", [], [Wrapped]),
            (":8000:plain=yes", [], []),
            ("unix:/run/s", [], [Wrapped]),
            ("tcp:8000", [], [Wrapped]),
            ("tcp6:8000:plain=yes", [], []),
            ("haproxy:tcp:8000", [proxy], [proxy, Wrapped]),
            ("haproxy:unix:/run/s", [proxy], [proxy, Wrapped]),
            (ssl, [tls], [tls]),
            (f"haproxy:{ssl}", [tls, proxy], [tls, proxy]),
            (f"tls:{certificate.key.parent}:8443", [tls], [tls]),
        ):
            self.assertEqual(without, self.chain(address), address)
            self.assertEqual(with_tls, self.chain(address, creator), address)

    @staticmethod
    def wrapped(site: Any) -> Any:
        """In the place of TLS."""
        return Wrapped(site)

    def test_opens_nothing(self) -> None:
        """A worker opens no socket and makes no file."""
        path = f"{short_directory(self)}/s"
        shared_factory(f"unix:{path}", Factory(), None)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            shared_factory(f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1", Factory(), None)
        self.assertFalse(os.path.exists(path))


class Wrapped:
    """Stands for TLS."""

    def __init__(self, site: Any) -> None:
        self.wrappedFactory = site


class AcceptorTests(SynchronousTestCase):
    """L{Acceptor}."""

    def setUp(self) -> None:
        self.reactor = StepReactor()
        self.taken: list[socket.socket] = []
        self.addCleanup(self.close_taken)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.where = self.listening.getsockname()
        self.acceptor = Acceptor(as_reactor(self.reactor), self.listening, None, self.taken.append)
        self.addCleanup(self.acceptor.close)

    def close_taken(self) -> None:
        """Close the connections that were accepted."""
        for connection in self.taken:
            connection.close()

    def connect(self, count: int) -> None:
        """Clients."""
        for _ in range(count):
            self.addCleanup(socket.create_connection(self.where).close)

    def test_takes(self) -> None:
        """What comes in is handed on, each connection once; none before it is told to, and none while it pauses."""
        self.connect(2)
        self.reactor.pump()
        self.assertEqual([], self.taken)
        self.acceptor.resume()
        self.acceptor.resume()
        self.reactor.pump()
        self.assertEqual(2, len({connection.getpeername() for connection in self.taken}))
        self.acceptor.pause()
        self.connect(1)
        self.reactor.pump()
        self.assertEqual(2, len(self.taken))
        self.acceptor.resume()
        self.reactor.pump()
        self.assertEqual(3, len(self.taken))

    def test_pauses_in_mid_turn(self) -> None:
        """When one that it handed on makes it pause, no further one is accepted."""

        def take(connection: socket.socket) -> None:
            self.taken.append(connection)
            self.acceptor.pause()

        self.acceptor._take = take
        self.connect(3)
        self.acceptor.resume()
        self.reactor.pump()
        self.assertEqual(1, len(self.taken))

    def test_address(self) -> None:
        """Where it listens, in rest-server's form."""
        self.assertEqual(f"127.0.0.1:{self.where[1]}", self.acceptor.address)
        path = f"{short_directory(self)}/s"
        listening, unlink = open_shared(f"unix:{path}")
        acceptor = Acceptor(as_reactor(self.reactor), listening, unlink, self.taken.append)
        self.assertEqual(path, acceptor.address)
        acceptor.close()
        self.assertFalse(os.path.exists(path))
        listening, unlink = open_shared(f"unix:{path}")
        os.unlink(path)
        Acceptor(as_reactor(self.reactor), listening, unlink, self.taken.append).close()

    def broken(self, *codes: int) -> None:
        """Let the next accepts fail."""
        errors = list(codes)
        real = self.listening

        class Failing:
            def accept(self) -> Any:
                if errors:
                    code = errors.pop(0)
                    raise OSError(code, os.strerror(code))
                return real.accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        self.acceptor._socket = Failing()  # type: ignore[assignment]

    def test_gone_already(self) -> None:
        """A client that is gone before it was accepted costs nobody else anything."""
        self.broken(errno.ECONNABORTED, errno.EPERM)
        self.connect(1)
        self.acceptor.resume()
        self.reactor.pump()
        self.assertEqual(1, len(self.taken))

    def test_no_room(self) -> None:
        """When the system has no descriptor left it is tried again a second later, and not at once for ever."""
        self.broken(errno.EMFILE)
        self.connect(1)
        self.acceptor.resume()
        with capturedLogs() as events:
            self.reactor.pump()
        self.assertEqual((1, [], set()), (len(events), self.taken, self.reactor.readers))
        self.acceptor.resume()
        self.assertEqual(set(), self.reactor.readers)
        self.reactor.advance(1)
        self.reactor.pump()
        self.assertEqual(1, len(self.taken))

    def test_closed_while_it_rests(self) -> None:
        """A stop meanwhile leaves nothing."""
        self.broken(errno.ENFILE)
        self.connect(1)
        self.acceptor.resume()
        with capturedLogs():
            self.reactor.pump()
        self.acceptor.close()
        self.assertEqual([], self.reactor.getDelayedCalls())
