"""
The user that a certificate names.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.client_certificates import user_of

KEY = ec.generate_private_key(ec.SECP256R1())


def builder_for(common_names: tuple[str, ...]) -> x509.CertificateBuilder:
    """A certificate in the making, with these names in its subject."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )


def signed(builder: x509.CertificateBuilder) -> x509.Certificate:
    """The certificate."""
    return builder.sign(KEY, hashes.SHA256())


def certificate(common_names: tuple[str, ...] = (), *names: x509.GeneralName) -> x509.Certificate:
    """A certificate with these names in its subject and its subjectAltName."""
    builder = builder_for(common_names)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return signed(builder)


EMAIL, DNS = x509.RFC822Name, x509.DNSName
ALICE = certificate(("alice",), EMAIL("carol@example.org"), DNS("dave.example.org"))

#: certificate, source -> user
USERS: tuple[tuple[x509.Certificate, str, str | None], ...] = (
    (ALICE, "cn", "alice"),
    (ALICE, "email", "carol@example.org"),
    (ALICE, "dns", "dave.example.org"),
    (certificate(("müller",)), "cn", "müller"),
    # none
    (certificate(), "cn", None),
    (certificate(("alice",)), "email", None),
    (certificate(("alice",)), "dns", None),
    (certificate(("alice",), DNS("x")), "email", None),
    # several: which one would be anybody's guess
    (certificate(("alice", "bob")), "cn", None),
    (certificate(("alice",), EMAIL("a@x"), EMAIL("b@x")), "email", None),
    (certificate((), DNS("a"), DNS("b")), "dns", None),
    # names that nobody may have
    (certificate(("alice smith",)), "cn", None),
    (certificate(("../bob",)), "cn", None),
    (certificate(("alice/bob",)), "cn", None),
    (certificate((".",)), "cn", None),
    (certificate(("data",)), "cn", None),
    (certificate(("alice\x00",)), "cn", None),
    (certificate(("alice\n",)), "cn", None),
    (certificate((), DNS("*.example.org")), "dns", None),
)


class UserTests(SynchronousTestCase):
    """L{user_of}."""

    def test_table(self) -> None:
        """One name that a user may have, or nobody."""
        for number, (shown, source, user) in enumerate(USERS):
            self.assertEqual(user, user_of(shown, source), f"row {number}")

    def test_odd_extensions(self) -> None:
        """An authority may sign anything; what cannot be read (no DER at all, an x400Address) names nobody."""
        for value in (b"\x01", b"\x30\x02\xa3\x00"):
            names = x509.UnrecognizedExtension(x509.oid.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value)
            odd = signed(builder_for(()).add_extension(names, critical=False))
            for source in ("dns", "email"):
                self.assertIsNone(user_of(odd, source), value)
