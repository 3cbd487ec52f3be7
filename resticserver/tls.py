"""
TLS for the server: a context from two files, and the connection creator that Twisted asks for each connection.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from .errors import StartError

MINIMUM_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}

#: TLS 1.2: authenticated encryption with forward secrecy, nothing else. TLS 1.3 has only such suites.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


def server_context(certificate_path: str, key_path: str, minimum_version: str) -> SSL.Context:
    """
    A context that serves one certificate.

    @param certificate_path: PEM, the certificate first and then its chain.
    @param minimum_version: a key of L{MINIMUM_VERSIONS}.
    @raise StartError: a file cannot be read or the key is not the certificate's.
    """
    _read("certificate", certificate_path)
    key = _read("private key", key_path)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(MINIMUM_VERSIONS[minimum_version])
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    try:
        context.use_certificate_chain_file(certificate_path)
    except SSL.Error as error:
        raise StartError(f"{certificate_path} holds no usable PEM certificate") from error
    try:
        # With a passphrase that is no key's: OpenSSL would ask for one at a terminal that a daemon does not have.
        context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, key, b""))
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as error:
        raise StartError(f"{key_path} holds no PEM private key that fits the certificate {certificate_path}") from error
    context.set_alpn_select_callback(_choose_protocol)
    return context


def _read(what: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise StartError(f"cannot read the TLS {what} {path}: {error.strerror}") from error


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """HTTP/1.1 where the client offers it; a client that offers only others goes on without ALPN."""
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


@implementer(IOpenSSLServerConnectionCreator)
class ConnectionCreator:
    """
    Makes the TLS side of each new connection from the current context.

    @ivar context: may be replaced at any time; connections that are there keep theirs.
    """

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Twisted's call for a new connection."""
        return SSL.Connection(self.context, None)
