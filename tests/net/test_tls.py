"""
TLS: what a client may speak with the server, and what is said about files that do not do.

Both sides run in memory, without a socket.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from resticserver.errors import StartError
from resticserver.net.tls import ConnectionCreator, ReloadingCertificates, server_context

from ..support.processes import process_test

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def name_of(common_name: str) -> x509.Name:
    """A certificate's subject."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def certificate_of(key: Key, common_name: str, issuer: tuple[x509.Name, Key] | None = None) -> bytes:
    """A PEM certificate for a key, signed by itself or by an issuer."""
    now = datetime.now(UTC)
    issuer_name, issuer_key = issuer or (name_of(common_name), key)
    return (
        x509.CertificateBuilder()
        .subject_name(name_of(common_name))
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer_key, None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def pem_of(key: Key, password: bytes | None = None) -> bytes:
    """A PEM private key."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )


def handshake(server: SSL.Connection, client: SSL.Connection) -> None:
    """
    Let the two sides talk until both are done.

    @raise SSL.Error: one of them refused the other.
    """
    server.set_accept_state()
    client.set_connect_state()
    done: set[SSL.Connection] = set()
    for _ in range(20):
        for side, other in ((client, server), (server, client)):
            failed: SSL.Error | None = None
            try:
                side.do_handshake()
                done.add(side)
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                failed = error
            try:
                other.bio_write(side.bio_read(1 << 20))
            except SSL.WantReadError:
                pass
            if failed is not None:
                raise failed
        if len(done) == 2:
            return
    raise AssertionError("the handshake does not end")


class TlsTests(SynchronousTestCase):
    """L{server_context} and L{ConnectionCreator}."""

    def setUp(self) -> None:
        """A certificate of each kind of key."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate_path = self.file(certificate_of(self.key, "backup.example.org"))
        self.key_path = self.file(pem_of(self.key))

    def file(self, content: bytes) -> str:
        """A file's path."""
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path)

    def server(self, minimum_version: str = "1.2", certificate: str = "", key: str = "") -> SSL.Context:
        """A server's context."""
        return server_context(certificate or self.certificate_path, key or self.key_path, minimum_version)

    def client(
        self,
        versions: tuple[int, int] = (0, 0),
        ciphers: bytes = b"ALL:@SECLEVEL=0",
        protocols: tuple[bytes, ...] = (),
    ) -> SSL.Connection:
        """A client that trusts everyone and speaks these versions and ciphers."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(versions[0])
        context.set_max_proto_version(versions[1])
        context.set_cipher_list(ciphers)
        if protocols:
            context.set_alpn_protos(list(protocols))
        return SSL.Connection(context, None)

    def connected(self, context: SSL.Context, client: SSL.Connection) -> SSL.Connection:
        """The client's side of a connection."""
        handshake(ConnectionCreator(context).serverConnectionForTLS(None), client)  # type: ignore[arg-type]
        return client

    def test_idle_connections_keep_no_buffers(self) -> None:
        """OpenSSL frees the buffers of a connection that is idle: that is half of its memory."""
        self.assertTrue(self.server().set_mode(0) & SSL.MODE_RELEASE_BUFFERS)

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3 are spoken, or 1.3 alone; nothing older ever."""
        old = (SSL.TLS1_VERSION, SSL.TLS1_1_VERSION)
        only_12 = (SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION)
        only_13 = (SSL.TLS1_3_VERSION, SSL.TLS1_3_VERSION)
        for minimum, versions, spoken in (
            ("1.2", (0, 0), "TLSv1.3"),
            ("1.2", only_13, "TLSv1.3"),
            ("1.2", only_12, "TLSv1.2"),
            ("1.2", old, None),
            ("1.3", (0, 0), "TLSv1.3"),
            ("1.3", only_13, "TLSv1.3"),
            ("1.3", only_12, None),
            ("1.3", old, None),
        ):
            if spoken is None:
                self.assertRaises(SSL.Error, self.connected, self.server(minimum), self.client(versions))
            else:
                client = self.connected(self.server(minimum), self.client(versions))
                self.assertEqual(spoken, client.get_protocol_version_name())

    def test_ciphers(self) -> None:
        """With TLS 1.2: authenticated encryption with forward secrecy, and neither CBC nor a plain RSA exchange."""
        key = rsa.generate_private_key(65537, 2048)
        by_rsa = self.server(certificate=self.file(certificate_of(key, "rsa")), key=self.file(pem_of(key)))
        by_ec = self.server()
        only_12 = (SSL.TLS1_2_VERSION, SSL.TLS1_2_VERSION)
        for server, cipher, taken in (
            (by_ec, b"ECDHE-ECDSA-AES128-GCM-SHA256", True),
            (by_ec, b"ECDHE-ECDSA-AES256-GCM-SHA384", True),
            (by_ec, b"ECDHE-ECDSA-CHACHA20-POLY1305", True),
            (by_ec, b"ECDHE-ECDSA-AES128-SHA256", False),
            (by_ec, b"ECDHE-ECDSA-AES256-SHA", False),
            (by_ec, b"AECDH-AES128-SHA", False),
            (by_rsa, b"ECDHE-RSA-AES128-GCM-SHA256", True),
            (by_rsa, b"ECDHE-RSA-CHACHA20-POLY1305", True),
            (by_rsa, b"ECDHE-RSA-AES128-SHA256", False),
            (by_rsa, b"ECDHE-RSA-AES128-SHA", False),
            (by_rsa, b"AES128-GCM-SHA256", False),
            (by_rsa, b"AES128-SHA", False),
        ):
            client = self.client(only_12, cipher + b":@SECLEVEL=0")
            if taken:
                self.assertEqual(cipher.decode(), self.connected(server, client).get_cipher_name())
            else:
                self.assertRaises(SSL.Error, self.connected, server, client)

    def test_alpn(self) -> None:
        """HTTP/1.1 is chosen wherever it is offered; who offers none of it is served all the same."""
        for offered, chosen in (
            ((), b""),
            ((b"http/1.1",), b"http/1.1"),
            ((b"h2", b"http/1.1"), b"http/1.1"),
            ((b"http/1.1", b"h2"), b"http/1.1"),
        ):
            client = self.connected(self.server(), self.client(protocols=offered))
            self.assertEqual(chosen, client.get_alpn_proto_negotiated())

    def test_alpn_without_overlap(self) -> None:
        """A client that offers only what is not spoken goes on without, or is refused; it never gets HTTP/2."""
        try:
            client = self.connected(self.server(), self.client(protocols=(b"h2",)))
        except SSL.Error:
            return
        self.assertEqual(b"", client.get_alpn_proto_negotiated())

    def test_chain(self) -> None:
        """The whole chain of the file is sent, the certificate first."""
        authority = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate_of(self.key, "leaf", (name_of("authority"), authority))
        path = self.file(leaf + certificate_of(authority, "authority"))
        client = self.connected(self.server(certificate=path), self.client())
        sent = client.get_peer_cert_chain()
        assert sent is not None
        self.assertEqual(["leaf", "authority"], [_subject(certificate) for certificate in sent])

    def test_new_certificate(self) -> None:
        """A new context holds for the connections after it; those that are there go on."""
        creator = ConnectionCreator(self.server())
        server, old = creator.serverConnectionForTLS(None), self.client()  # type: ignore[arg-type]
        handshake(server, old)
        creator.context = self.server(certificate=self.file(certificate_of(self.key, "renewed")))
        new = self.client()
        handshake(creator.serverConnectionForTLS(None), new)  # type: ignore[arg-type]
        names = [_subject(connection.get_peer_certificate()) for connection in (old, new)]
        self.assertEqual(["backup.example.org", "renewed"], names)
        old.send(b"still here")
        server.bio_write(old.bio_read(1 << 16))
        self.assertEqual(b"still here", server.recv(100))

    # --- clients' certificates

    def shown(self, context: SSL.Context, certificate: bytes | None, key: Key | None = None) -> x509.Certificate | None:
        """
        The certificate that a server has of a client which shows this one.

        @raise SSL.Error: one of the two refused the other.
        """
        client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if certificate is not None and key is not None:
            client_context.use_certificate(x509.load_pem_x509_certificate(certificate))
            client_context.use_privatekey(key)
        client = SSL.Connection(client_context, None)
        server = ConnectionCreator(context).serverConnectionForTLS(None)  # type: ignore[arg-type]
        handshake(server, client)
        found = server.get_peer_certificate(as_cryptography=True)
        return found

    def test_client_certificate(self) -> None:
        """One of the authority is taken; another, a forged one and, where one is required, none are refused."""
        authority, stranger, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        ca_path = self.file(certificate_of(authority, "authority"))
        good = certificate_of(key, "alice", (name_of("authority"), authority))
        forged = certificate_of(key, "alice", (name_of("authority"), stranger))
        other = certificate_of(key, "alice", (name_of("stranger"), stranger))
        own = certificate_of(key, "alice")
        for required in (True, False):
            context = server_context(self.certificate_path, self.key_path, "1.2", ca_path, required)
            for certificate in (forged, other, own):
                self.assertRaises(SSL.Error, self.shown, context, certificate, key)
            taken = self.shown(context, good, key)
            assert taken is not None
            self.assertEqual("CN=alice", taken.subject.rfc4514_string())
            if required:
                self.assertRaises(SSL.Error, self.shown, context, None)
            else:
                self.assertIsNone(self.shown(context, None))
        self.assertIsNone(self.shown(self.server(), good, key), "nobody is asked")

    def test_session_is_taken_up_again(self) -> None:
        """A client that comes again with its session is known again, by the same certificate."""
        authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_path = self.file(certificate_of(authority, "authority"))
        context = server_context(self.certificate_path, self.key_path, "1.2", ca_path, True)
        client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client_context.set_max_proto_version(SSL.TLS1_2_VERSION)
        good = certificate_of(key, "alice", (name_of("authority"), authority))
        client_context.use_certificate(x509.load_pem_x509_certificate(good))
        client_context.use_privatekey(key)
        first = SSL.Connection(client_context, None)
        handshake(ConnectionCreator(context).serverConnectionForTLS(None), first)  # type: ignore[arg-type]
        session = first.get_session()
        assert session is not None
        second, server = SSL.Connection(client_context, None), SSL.Connection(context, None)
        second.set_session(session)
        handshake(server, second)
        self.assertEqual(first.master_key(), second.master_key())
        self.assertIsNotNone(server.get_peer_certificate())

    def test_client_ca_files(self) -> None:
        """A file of authorities that cannot be used is one line."""
        missing, garbage = self.mktemp(), self.file(b"no PEM at all")
        for path, line in (
            (missing, f"--tls-client-ca: cannot read the TLS client CA {missing}: No such file or directory"),
            (garbage, f"--tls-client-ca: {garbage} contains no usable PEM certificate: no certificate or crl found"),
            (self.file(b""), "contains no usable PEM certificate: "),
        ):
            error = self.assertRaises(StartError, server_context, self.certificate_path, self.key_path, "1.2", path)
            self.assertIn(line, str(error))

    def test_interface(self) -> None:
        """It is what Twisted asks for connections."""
        verifyObject(IOpenSSLServerConnectionCreator, ConnectionCreator(self.server()))

    def test_bad_files(self) -> None:
        """A file that is missing, is something else or belongs to another is one line that names it and says why."""
        missing, folder = self.mktemp(), self.mktemp()
        os.mkdir(folder)
        garbage, empty = self.file(b"no PEM at all"), self.file(b"")
        certificate, key = self.certificate_path, self.key_path
        other_key = self.file(pem_of(ec.generate_private_key(ec.SECP256R1())))
        rsa_key = self.file(pem_of(rsa.generate_private_key(65537, 2048)))
        half = self.file(Path(certificate).read_bytes()[:200])
        no_key, no_fit = (
            "contains no usable PEM private key: ",
            f"does not match the certificate {certificate}: ",
        )
        for certificate_path, key_path, line in (
            (missing, key, f"--tls-cert: cannot read the TLS certificate {missing}: No such file or directory"),
            (certificate, missing, f"--tls-key: cannot read the TLS private key {missing}: No such file or directory"),
            (folder, key, f"--tls-cert: cannot read the TLS certificate {folder}: Is a directory"),
            (certificate, folder, f"--tls-key: cannot read the TLS private key {folder}: Is a directory"),
            (garbage, key, f"--tls-cert: {garbage} contains no usable PEM certificate: no start line, PEM lib"),
            (empty, key, f"--tls-cert: {empty} contains no usable PEM certificate: no start line, PEM lib"),
            (half, key, f"--tls-cert: {half} contains no usable PEM certificate: bad end line, PEM lib"),
            (key, key, f"--tls-cert: {key} contains no usable PEM certificate: no start line, PEM lib"),
            (certificate, garbage, f"--tls-key: {garbage} {no_key}"),
            (certificate, empty, f"--tls-key: {empty} {no_key}"),
            (certificate, certificate, f"--tls-key: {certificate} {no_key}"),
            (certificate, other_key, f"--tls-key: {other_key} {no_fit}key values mismatch"),
            (certificate, rsa_key, f"--tls-key: {rsa_key} {no_fit}"),
        ):
            error = self.assertRaises(StartError, server_context, certificate_path, key_path, "1.2")
            self.assertTrue(str(error).startswith(line), str(error))
            self.assertEqual(1, len(str(error).splitlines()))

    def test_weak_keys(self) -> None:
        """A key that OpenSSL finds too small, and those that restic's TLS (Go's) cannot use: OpenSSL's reason is said."""
        for key, reason in (
            (rsa.generate_private_key(65537, 1024), "contains no usable PEM certificate: ee key too small"),
            (ec.generate_private_key(ec.SECP256K1()), "because it has a key on the curve secp256k1: no s"),
            (ec.generate_private_key(ec.SECP224R1()), "because it has a key on the curve secp224r1: no s"),
            (ec.generate_private_key(ec.BrainpoolP256R1()), "because it has a key on the curve brainpoolP256r1: no s"),
        ):
            path = self.file(certificate_of(key, "weak"))
            error = self.assertRaises(StartError, server_context, path, self.file(pem_of(key)), "1.2")
            self.assertTrue(str(error).startswith("--tls-cert: "), str(error))
            self.assertIn(path, str(error))
            self.assertIn(reason, str(error))

    def test_usual_keys(self) -> None:
        """What certificate authorities give out is served, with each version of TLS."""
        for key in (
            rsa.generate_private_key(65537, 2048),
            rsa.generate_private_key(65537, 4096),
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP521R1()),
            ed25519.Ed25519PrivateKey.generate(),
        ):
            path, key_path = self.file(certificate_of(key, "usual")), self.file(pem_of(key))
            for version in ("1.2", "1.3"):
                server_context(path, key_path, version)

    def test_wrong_order(self) -> None:
        """The authority's certificate before the server's."""
        authority = certificate_of(ec.generate_private_key(ec.SECP256R1()), "authority")
        chain = self.file(authority + Path(self.certificate_path).read_bytes())
        error = self.assertRaises(StartError, server_context, chain, self.key_path, "1.2")
        self.assertRegex(
            str(error), f"^--tls-cert: {chain} has its certificates in the wrong order: .*: key values mismatch$"
        )
        server_context(self.file(Path(self.certificate_path).read_bytes() + authority), self.key_path, "1.2")

    @process_test
    def test_encrypted_key(self) -> None:
        """
        A key with a passphrase is refused too, at once: a daemon has nobody to ask.

        In a process of its own that could be asked, on a standard input that knows the answer, and without a terminal.
        """
        key_path = self.file(pem_of(self.key, b"secret"))
        program = (
            "import sys\n"
            "from resticserver.errors import StartError\n"
            "from resticserver.net.tls import server_context\n"
            "try:\n"
            "    server_context(sys.argv[1], sys.argv[2], '1.2')\n"
            "except StartError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, self.certificate_path, key_path],
            input=b"secret\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
        )
        self.assertEqual(
            f"--tls-key: {key_path} is protected by a passphrase, which is not supported: remove the passphrase: "
            "Password was not given but private key is encrypted\n",
            done.stdout.decode(),
        )


class ReloadTests(SynchronousTestCase):
    """L{ReloadingCertificates}."""

    def setUp(self) -> None:
        """A certificate, which clients trust, and its renewal, not yet there."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate_path, self.key_path = Path(self.mktemp()), Path(self.mktemp())
        self.certificate_path.write_bytes(certificate_of(self.key, "old"))
        self.key_path.write_bytes(pem_of(self.key))
        self.certificates = ReloadingCertificates(str(self.certificate_path), str(self.key_path), "1.2")

    def served(self) -> object:
        """The common name of what a new connection is shown."""
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        handshake(self.certificates.creator.serverConnectionForTLS(None), client)  # type: ignore[arg-type]
        return _subject(client.get_peer_certificate())

    def looked(self, force: bool = False) -> tuple[bool, list[str]]:
        """A look at the files: whether they are served now, and the errors that were logged."""
        with capturedLogs() as events:
            read = self.certificates.reload_if_changed(force)
        return read, [str(formatEvent(event)) for event in events if event["log_level"] is LogLevel.error]

    def test_unchanged(self) -> None:
        """Files that are as they were are not read, unless that is asked for."""
        context = self.certificates.creator.context
        self.assertEqual((False, []), self.looked())
        self.assertIs(context, self.certificates.creator.context)
        self.assertEqual((True, []), self.looked(force=True))
        self.assertIsNot(context, self.certificates.creator.context)

    def test_renewed(self) -> None:
        """A file that was replaced, as certbot's symlinks are, or rewritten in its place, is served to the next."""
        renewed = Path(self.mktemp())
        renewed.write_bytes(certificate_of(self.key, "renewed"))
        self.certificate_path.unlink()
        self.certificate_path.symlink_to(renewed.resolve())
        before = self.certificates.not_after
        self.assertEqual((True, []), self.looked())
        self.assertEqual("renewed", self.served())
        self.assertGreaterEqual(self.certificates.not_after, before)
        renewed.write_bytes(certificate_of(self.key, "again"))
        self.assertEqual((True, []), self.looked())
        self.assertEqual("again", self.served())

    def test_broken(self) -> None:
        """What cannot be used is logged once for each change, and the old one is served until it can."""
        other = ec.generate_private_key(ec.SECP256R1())
        new_key = pem_of(other)
        for breaking in (
            lambda: self.certificate_path.write_bytes(certificate_of(other, "new")),  # its key comes a moment later
            lambda: self.key_path.unlink(),
            lambda: self.certificate_path.write_bytes(b""),
            lambda: self.certificate_path.unlink(),
        ):
            breaking()
            read, errors = self.looked()
            self.assertEqual((False, 1), (read, len(errors)), errors)
            self.assertIn("the previous certificate is still served", errors[0])
            self.assertNotIn("Traceback", errors[0])
            self.assertNotIn("--tls", errors[0])
            self.assertEqual((False, []), self.looked())
            self.assertEqual("old", self.served())
        self.key_path.write_bytes(new_key)
        self.certificate_path.write_bytes(certificate_of(other, "new"))
        self.assertEqual((True, []), self.looked())
        self.assertEqual("new", self.served())

    def test_key_comes_later(self) -> None:
        """A renewal of certificate and key, seen half-way, is served when it is whole."""
        other = ec.generate_private_key(ec.SECP256R1())
        self.certificate_path.write_bytes(certificate_of(other, "new"))
        self.assertFalse(self.looked()[0])
        self.key_path.write_bytes(pem_of(other))
        self.assertTrue(self.looked()[0])
        self.assertEqual("new", self.served())

    def test_client_ca(self) -> None:
        """The authorities of the clients' certificates are read again too."""
        ca_path = Path(self.mktemp())
        ca_path.write_bytes(certificate_of(self.key, "first"))
        self.certificates = ReloadingCertificates(
            str(self.certificate_path), str(self.key_path), "1.2", str(ca_path), False
        )
        ca_path.write_bytes(certificate_of(self.key, "second"))
        self.assertEqual((True, []), self.looked())
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        handshake(self.certificates.creator.serverConnectionForTLS(None), client)  # type: ignore[arg-type]
        (named,) = client.get_client_ca_list()
        self.assertEqual("second", named.commonName)

    def test_start(self) -> None:
        """At the start there is no old one: an error."""
        self.certificate_path.unlink()
        self.assertRaises(StartError, ReloadingCertificates, str(self.certificate_path), str(self.key_path), "1.2")


def _subject(certificate: crypto.X509 | None) -> object:
    """A certificate's common name."""
    assert certificate is not None
    (name,) = certificate.to_cryptography().subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return name.value
