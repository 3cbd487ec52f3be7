"""
The user that a client's certificate names.

Source: RFC 5280 (subject and subjectAltName).
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from ..names import is_user_name


def user_of(certificate: x509.Certificate, source: str) -> str | None:
    """
    The user that a verified certificate names; C{None} if it has no name, several names, or one that no user can have.

    @param source: C{cn} (the subject's common name), C{email} or C{dns} (a subjectAltName of that kind).
    """
    try:
        names = _names(certificate, source)
    except (ValueError, x509.UnsupportedGeneralNameType, x509.DuplicateExtension):  # an authority may sign anything
        return None
    return names[0] if len(names) == 1 and is_user_name(names[0]) else None


def _names(certificate: x509.Certificate, source: str) -> Sequence[str]:
    if source == "cn":
        attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [value if isinstance(value := attribute.value, str) else "" for attribute in attributes]
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return []
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.RFC822Name if source == "email" else x509.DNSName)
