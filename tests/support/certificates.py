"""
A certificate authority of one test's own, and what it signs.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class ServerCertificate:
    """
    PEM files.

    @ivar authority: the CA's certificate, for clients.
    @ivar certificate: the server's, and C{key} its private key.
    """

    authority: Path
    certificate: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """What to tell a server."""
        return ("--tls", "--tls-cert", str(self.certificate), "--tls-key", str(self.key))

    def client_context(self) -> ssl.SSLContext:
        """For Python's clients: trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.authority))


class Authority:
    """
    Signs certificates.

    @ivar pem: its own certificate.
    """

    def __init__(self, name: str = "restic test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name: str, *names: x509.GeneralName) -> tuple[bytes, bytes]:
        """A certificate with these alternative names, and its key, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name), self._name, key.public_key())
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return certificate.public_bytes(pem), private

    def issue_to_file(self, path: Path, common_name: str, *names: x509.GeneralName) -> Path:
        """The same, certificate and key in one file, as restic wants a client's."""
        path.write_bytes(b"".join(self.issue(common_name, *names)))
        return path


def make_certificate(directory: Path, authority: Authority | None = None) -> ServerCertificate:
    """
    A certificate for localhost and 127.0.0.1 in files of this directory, of an authority of its own if none is given. Files
    that are there are replaced, one after the other, as a renewal does it.
    """
    authority = authority or Authority()
    files = ServerCertificate(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    certificate, key = authority.issue(
        "localhost", x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    )
    for path, content in ((files.authority, authority.pem), (files.key, key), (files.certificate, certificate)):
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)
    return files


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # From yesterday on: clocks differ.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
    )
