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

from resticserver.access.certificates import user_of

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(common_names: tuple[str, ...] = (), *names: x509.GeneralName) -> x509.Certificate:
    """A certificate with these names in its subject and its subjectAltName."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


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

    def test_malformed_extension(self) -> None:
        """An authority may sign anything: what cannot be read names nobody."""
        now = datetime.now(UTC)
        odd = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.Name([]))
            .public_key(KEY.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.UnrecognizedExtension(x509.oid.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x01"), False)
            .sign(KEY, hashes.SHA256())
        )
        self.assertIsNone(user_of(odd, "dns"))

    def test_names_of_another_kind(self) -> None:
        """An x400Address, which the library does not read."""
        now = datetime.now(UTC)
        odd = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.Name([]))
            .public_key(KEY.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(
                x509.UnrecognizedExtension(x509.oid.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x02\xa3\x00"), False
            )
            .sign(KEY, hashes.SHA256())
        )
        for source in ("dns", "email"):
            self.assertIsNone(user_of(odd, source))
