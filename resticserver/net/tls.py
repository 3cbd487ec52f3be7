"""
TLS for the server: a context from PEM files, the connection creator that Twisted calls for each connection, and reloading the
files while the server runs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from ..dates import date_text
from ..errors import StartError
from ..files import MadeOfFiles, WatchedFiles, read_file, reason_of

MINIMUM_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}

#: TLS 1.2: authenticated encryption with forward secrecy, nothing else. TLS 1.3 has only such suites.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"

# SSL_MODE_ENABLE_PARTIAL_WRITE of OpenSSL's ssl.h, which pyOpenSSL does not export.
_MODE_ENABLE_PARTIAL_WRITE = 1

#: The context of session tickets; OpenSSL requires one where clients have certificates.
_SESSION_CONTEXT = b"restic"

#: The groups and signatures of restic's TLS (Go's): the client of the trial handshake has these and no others.
_CLIENT_GROUPS = b"X25519:P-256:P-384:P-521"
_CLIENT_SIGNATURES = (
    b"rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512:"
    b"ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ecdsa_secp521r1_sha512:ed25519"
)
#: A handshake is complete after a few turns; more than these would be a fault.
_MOST_TURNS = 20
_MOST_REASON = 200

_log = Logger()


def server_context(
    certificate_path: str,
    key_path: str,
    minimum_version: str,
    client_ca_path: str | None = None,
    client_required: bool = True,
) -> SSL.Context:
    """
    A context that serves one certificate.

    @param certificate_path: PEM, the certificate first and then its chain.
    @param minimum_version: a key of L{MINIMUM_VERSIONS}.
    @param client_ca_path: PEM, the authorities whose certificates clients are asked for; C{None} for no client certificates.
    @param client_required: whether a client without a certificate is refused. One with a wrong certificate always is.
    @raise StartError: a file cannot be read or the key is not the certificate's.
    """
    certificates = _read("--tls-cert", "certificate", certificate_path)
    key = _read("--tls-key", "private key", key_path)
    context = _empty_context(minimum_version)
    try:
        context.use_certificate_chain_file(certificate_path)
    except SSL.Error as error:
        raise StartError(
            f"--tls-cert: {certificate_path} contains no usable PEM certificate: {_reason(error)}"
        ) from error
    private = _private_key(key_path, key)
    try:
        context.use_privatekey(private)
        context.check_privatekey()
    except (SSL.Error, TypeError, ValueError) as error:
        if _position_of(private, certificates) > 0:
            words = (
                "has its certificates in the wrong order: the server's own must come first, then those of its issuers"
            )
            raise StartError(f"--tls-cert: {certificate_path} {words}: {_reason(error)}") from error
        words = f"does not match the certificate {certificate_path}"
        raise StartError(f"--tls-key: {key_path} {words}: {_reason(error)}") from error
    try:
        # With another context: one that was used cannot be changed any more.
        trial = _empty_context(minimum_version)
        trial.use_certificate_chain_file(certificate_path)
        trial.use_privatekey(private)
        _try_handshake(trial)
    except SSL.Error as error:
        words = f"clients reject the certificate {certificate_path}, because it has {_kind_of(private)}"
        raise StartError(f"--tls-cert: {words}: {_reason(error)}") from error
    if client_ca_path is not None:
        _ask_for_certificates(context, client_ca_path, client_required)
    context.set_alpn_select_callback(_choose_protocol)
    # restic's connections are idle most of the time: without buffers for a record in each direction one takes half the memory.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if hasattr(context, "clear_mode"):  # pyOpenSSL 25.3
        # pyOpenSSL asks for partial writes: one record a call, each of which releases and takes the interpreter's lock.
        context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
    return context


def _private_key(path: str, content: bytes) -> Any:
    """
    The private key of a PEM file.

    @raise StartError: it has none, or one with a passphrase.
    """
    try:
        # Not by OpenSSL, which asks for a passphrase at a terminal, and a daemon has none.
        return serialization.load_pem_private_key(content, None)
    except TypeError as error:
        words = "is protected by a passphrase, which is not supported: remove the passphrase"
        raise StartError(f"--tls-key: {path} {words}: {_reason(error)}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise StartError(f"--tls-key: {path} contains no usable PEM private key: {_reason(error)}") from error


def _empty_context(minimum_version: str) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(MINIMUM_VERSIONS[minimum_version])
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    return context


def _reason(error: Exception) -> str:
    """OpenSSL's reason, in one line."""
    if isinstance(error, SSL.Error):
        found = error.args[0] if error.args and isinstance(error.args[0], list) else []
        reasons = [entry[2] for entry in found if entry[2]]
        return ", ".join(dict.fromkeys(reasons)) or "OpenSSL gives no reason"
    return " ".join(str(error).split())[:_MOST_REASON].rstrip(". ")


def _position_of(key: Any, certificates: bytes) -> int:
    """The index of the certificate of a key among those of a file; -1 if there is none."""
    try:
        public = key.public_key()
        return [found.public_key() == public for found in x509.load_pem_x509_certificates(certificates)].index(True)
    except (ValueError, UnsupportedAlgorithm):
        return -1


def _kind_of(key: Any) -> str:
    curve = getattr(getattr(key, "curve", None), "name", None)
    size = getattr(key, "key_size", None)
    return f"a key on the curve {curve}" if curve else f"a {size}-bit key" if size else "a key of an unknown type"


def _try_handshake(context: SSL.Context) -> None:
    """
    Let a client like restic connect, in memory. OpenSSL silently accepts certificates that no client accepts.

    @raise SSL.Error: it cannot connect.
    """
    for_client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    library, inner = getattr(SSL, "_lib", None), getattr(for_client, "_context", None)
    # pyOpenSSL does not export these; without them the client is like OpenSSL's own.
    for name, value in (
        ("SSL_CTX_set1_curves_list", _CLIENT_GROUPS),
        ("SSL_CTX_set1_sigalgs_list", _CLIENT_SIGNATURES),
    ):
        if inner is not None and hasattr(library, name):
            getattr(library, name)(inner, value)
    client, server = SSL.Connection(for_client, None), SSL.Connection(context, None)
    client.set_connect_state()
    server.set_accept_state()
    done = set()
    for _ in range(_MOST_TURNS):
        for one, other in ((client, server), (server, client)):
            with suppress(SSL.WantReadError):
                one.do_handshake()
                done.add(one)
            with suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(1 << 16))
        if len(done) == 2:
            return


def _ask_for_certificates(context: SSL.Context, ca_path: str, required: bool) -> None:
    _read("--tls-client-ca", "client CA", ca_path)
    try:
        context.load_verify_locations(ca_path)
        context.load_client_ca(os.fsencode(ca_path))
    except SSL.Error as error:
        raise StartError(f"--tls-client-ca: {ca_path} contains no usable PEM certificate: {_reason(error)}") from error
    context.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0))
    context.set_session_id(_SESSION_CONTEXT)


def _read(flag: str, what: str, path: str) -> bytes:
    try:
        return read_file(path)[0]
    except OSError as error:
        raise StartError(f"{flag}: cannot read the TLS {what} {path}: {reason_of(error)}") from error


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """HTTP/1.1 if the client offers it; a client that offers only others goes on without ALPN."""
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


@implementer(IOpenSSLServerConnectionCreator)
class ConnectionCreator:
    """
    Makes the TLS side of each new connection from the current context.

    @ivar context: may be replaced at any time; open connections keep theirs.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Twisted calls this for a new connection."""
        return SSL.Connection(self.context, None)


class ReloadingCertificates(MadeOfFiles):
    """
    A connection creator whose context is made again when its files change.

    @ivar creator: for the listeners.
    @ivar not_after: when the certificate ends.
    @raise StartError: a file cannot be used.
    """

    def __init__(
        self,
        certificate_path: str,
        key_path: str,
        minimum_version: str,
        client_ca_path: str | None = None,
        client_required: bool = True,
    ) -> None:
        self._certificate_path = certificate_path
        self._arguments = (certificate_path, key_path, minimum_version, client_ca_path, client_required)
        self._watched = WatchedFiles(
            *(path for path in (certificate_path, key_path, client_ca_path) if path is not None)
        )
        self._watched.note()
        self.creator = ConnectionCreator(server_context(*self._arguments))
        self.not_after = _not_after(certificate_path)

    def _read_again(self) -> None:
        self._watched.note()
        self.read()

    def _log_failure(self, error: Exception) -> None:
        reason = str(error).partition(": ")[2]  # without the flag
        _log.error(
            "could not reload the TLS certificate: {error}; the previous certificate is still served", error=reason
        )

    def read(self) -> None:
        """
        Serve the files as they are now. Blocks.

        @raise StartError: they cannot be used; what was served before stays in use.
        """
        context = server_context(*self._arguments)
        not_after = _not_after(self._certificate_path)
        self.creator.context = context
        self.not_after = not_after

    def say_reloaded(self) -> None:
        """Log that the files as they are now are in use, in all processes."""
        path = self._certificate_path
        _log.info(
            "Reloaded TLS certificate {path}, valid until {until}",
            path=path,
            until=date_text(self.not_after.timestamp()),
        )

    def look_again(self) -> None:
        """Make the next look find a change: a worker could not read what was read here."""
        self._watched.forget()


def _not_after(certificate_path: str) -> datetime:
    try:
        return x509.load_pem_x509_certificate(_read("--tls-cert", "certificate", certificate_path)).not_valid_after_utc
    except ValueError as error:
        raise StartError(
            f"--tls-cert: {certificate_path} contains no usable PEM certificate: {_reason(error)}"
        ) from error
