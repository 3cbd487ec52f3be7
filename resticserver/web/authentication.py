"""
Who sent a request: a trusted proxy's header, a client's certificate, or the C{Authorization} header.

Source: RFC 7617 (Basic, UTF-8); what restic sends without credentials is PROTOCOL: C{Basic Og==} since 0.16.1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Sequence
from typing import Protocol

from twisted.logger import Logger

from ..access.client_certificates import user_of
from ..access.throttle import Login
from ..errors import Unauthorized
from ..names import is_user_name
from .http1.request import StreamingRequest

#: What restic sends since 0.16.1 where it was given no user: nobody's guess.
NO_CREDENTIALS = ("", b"")

_log = Logger()


def basic_credentials(header: bytes | None) -> tuple[str, bytes] | None:
    """User and password of a C{Basic} header; C{None} if it is anything else."""
    if header is None:
        return None
    scheme, _, encoded = header.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode("utf-8"), password) if colon else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def credentials_of(request: StreamingRequest) -> tuple[str, bytes] | None:
    """What a request's one C{Authorization} header says; C{None} without one that can be understood."""
    headers = request.fields.all(b"authorization")
    return basic_credentials(headers[0]) if len(headers) == 1 else None


class Authentication(Protocol):
    """Says who sent a request."""

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user, or C{None} where there are none.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        """


class NoAuthentication:
    """Lets everyone in; the header is not looked at."""

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """The user: none."""
        return None


class ChecksPasswords(Protocol):
    """Says whether passwords are right."""

    def is_cached(self, login: Login) -> bool:
        """Whether a login is right without a check; quick, for it is asked with every request."""

    def check(self, login: Login) -> Awaitable[None]:
        """
        Check a login.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: not now.
        """


class PasswordAuthentication:
    """The user whose password is in the C{Authorization} header."""

    def __init__(self, check: ChecksPasswords) -> None:
        self._passwords = check

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user who sent a request.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: not now.
        """
        credentials = credentials_of(request)
        if credentials is None or credentials == NO_CREDENTIALS:
            raise Unauthorized()
        channel = request.channel_or_none()
        known = channel is not None and channel.credentials == credentials
        if channel is not None and not known:
            # A proxy may send many clients' requests on one connection: nobody guesses what the one before had.
            channel.credentials = None
        login = Login(*credentials, request.address, request.address_is_trusted, known)
        if not self._passwords.is_cached(login):
            await self._passwords.check(login)
            channel = request.channel_or_none()
        if channel is not None:
            channel.credentials = credentials
        return login.user


class CertificateAuthentication:
    """
    The user whom the client's TLS certificate names; passwords besides, if there are any.

    A request with a certificate and with credentials must name the same user in both. Without a certificate it is for the
    passwords to say.

    @param source: where in the certificate the name stands (L{user_of}).
    """

    def __init__(self, source: str, passwords: PasswordAuthentication | None) -> None:
        self._source = source
        self._passwords = passwords

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user who sent a request.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        """
        certificate = request.client_certificate()
        if certificate is None:
            if self._passwords is None:
                raise Unauthorized()
            return await self._passwords.authenticate(request)
        user = user_of(certificate, self._source)
        if user is None:
            raise Unauthorized()
        credentials = credentials_of(request)
        if self._passwords is not None and credentials not in (None, NO_CREDENTIALS):
            name = await self._passwords.authenticate(request)
            if name != user:
                _log.warn(
                    "{address} has the certificate of {user} and the password of {name}: refused",
                    address=request.address,
                    user=user,
                    name=name,
                )
                raise Unauthorized()
        return user


class ProxyAuthentication:
    """
    The user whom a trusted proxy names in a header; from everyone else the header is not looked at.

    @param passwords: for what comes from a trusted proxy without that header. (Never certificates: they name the proxy.)
    @param others: for what comes from elsewhere. C{None} refuses, here as there.
    """

    def __init__(self, header: str, passwords: Authentication | None, others: Authentication | None) -> None:
        self._header = header.lower().encode("ascii")
        self._passwords = passwords
        self._others = others

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user who sent a request.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        """
        otherwise = self._passwords if request.peer_is_trusted else self._others
        names = request.fields.all(self._header) if request.peer_is_trusted else []
        if names:
            return _named(names)
        if otherwise is None:
            raise Unauthorized()
        return await otherwise.authenticate(request)


def _named(names: Sequence[bytes]) -> str:
    """The one name of a proxy's header."""
    try:
        user = names[0].decode("utf-8")
    except UnicodeDecodeError:
        raise Unauthorized() from None
    if len(names) != 1 or not is_user_name(user):
        raise Unauthorized()
    return user
