"""
Who sent a request: a trusted proxy's header, a client's certificate, or the C{Authorization} header.

Source: RFC 7617 (Basic, UTF-8); what restic sends without credentials is PROTOCOL: C{Basic Og==} since 0.16.1.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..access.certificates import user_of
from ..access.htpasswd import Htpasswd
from ..access.throttle import Throttle, network_of
from ..errors import Forbidden, Unauthorized, Unavailable
from ..names import is_user_name
from .jobs import Pool
from .request import StreamingRequest

#: More password checks than this do not wait for the pool: a flood of logins must not make others wait for minutes.
MOST_CHECKS = 32
#: When more than so many wait, that is a flood: after a wrong password the pool rests twice as long as the check took.
FLOOD_CHECKS = 8
#: Of these, from one network.
MOST_CHECKS_OF_A_PLACE = 16

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
    headers = request.requestHeaders.getRawHeaders(b"Authorization", [])
    return basic_credentials(headers[0]) if len(headers) == 1 else None


class Authentication(Protocol):
    """Says who sent a request."""

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user, or C{None} where there are none.

        @raise Unauthorized: nobody that is known.
        """


class NoAuthentication:
    """Lets everyone in; the header is not looked at."""

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """The user: none."""
        return None


class PasswordAuthentication:
    """
    Checks passwords in a pool of their own; several requests with the same credentials wait for one check.

    Guessing is slowed down and then refused (L{Throttle}). What was right within the last minute is not checked again, and
    whoever was right lately from the same place is no guesser; but looking for that is guessing too, and bounded, except for
    credentials that were right on the same connection.
    """

    def __init__(self, htpasswd: Htpasswd, pool: Pool, throttle: Throttle, reactor: IReactorTime) -> None:
        self._htpasswd = htpasswd
        self._pool = pool
        self._throttle = throttle
        self._reactor = reactor
        self._waiting: dict[tuple[str, bytes, str], list[Deferred[bool]]] = {}
        self._checks = 0
        self._checks_by_place: Counter[str] = Counter()

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user who sent a request.

        @raise Unauthorized: nobody that is known.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: too many logins wait already.
        """
        credentials = credentials_of(request)
        if credentials is None or credentials == NO_CREDENTIALS:
            raise Unauthorized()
        place = network_of(request.address) or request.address
        if not self._was_right_just_now(credentials, place, request):
            if not await self._check(credentials, place, request):
                raise Unauthorized()
        channel = request.channel_or_none()
        if channel is not None:
            channel.credentials = credentials
        return credentials[0]

    def _was_right_just_now(self, credentials: tuple[str, bytes], place: str, request: StreamingRequest) -> bool:
        return self._may_look_up(credentials, request) and self._htpasswd.is_cached(*credentials, place)

    def _may_look_up(self, credentials: tuple[str, bytes], request: StreamingRequest) -> bool:
        channel = request.channel_or_none()
        if channel is not None and channel.credentials == credentials:
            return True
        if channel is not None:
            # A proxy may send many clients' requests on one connection: nobody guesses what the one before had.
            channel.credentials = None
        return self._throttle.may_look_up(credentials[0], request.address, request.address_is_trusted)

    def _check(self, credentials: tuple[str, bytes], place: str, request: StreamingRequest) -> Deferred[bool]:
        key = (*credentials, place)
        waiting = self._waiting.get(key)
        if waiting is None:
            checking = self._begin(credentials, place, request)
            waiting = self._waiting[key] = []
            checking.addBoth(self._checked, key)
        answer: Deferred[bool] = Deferred()
        waiting.append(answer)
        return answer

    def _begin(self, credentials: tuple[str, bytes], place: str, request: StreamingRequest) -> Deferred[bool]:
        user, address, exempt = credentials[0], request.address, request.address_is_trusted
        if self._may_look_up(credentials, request):
            if self._htpasswd.was_verified(*credentials, place):
                return self._run(credentials, place)
            self._throttle.missed(user, address, exempt)
        verdict = self._throttle.admit(user, address, exempt)
        if verdict.lockout_began:
            _log.warn("too many auth failures from {address}: refused for a while", address=address)
        if verdict.refused:
            raise Forbidden("too many failed logins from your address, try again later")

        def look() -> Deferred[bool]:
            if self._checks >= MOST_CHECKS or (not exempt and self._checks_by_place[place] >= MOST_CHECKS_OF_A_PLACE):
                self._throttle.give_back(user, address)
                raise Unavailable("too many logins at once, try again")
            return self._run(credentials, place).addCallback(judged)

        def judged(right: bool) -> bool:
            if right:
                self._throttle.give_back(user, address)
            else:
                name = user if is_user_name(user) else "(not a user name)"
                _log.warn("auth failure from {address} for user {name}", address=address, name=name)
            return right

        if not verdict.delay_s:
            return look()
        later: Deferred[Any] = deferLater(self._reactor, verdict.delay_s, look)
        return later

    def _run(self, credentials: tuple[str, bytes], place: str) -> Deferred[bool]:
        def ended(result: bool) -> bool:
            self._checks -= 1
            self._checks_by_place[place] -= 1
            if not self._checks_by_place[place]:
                del self._checks_by_place[place]
            return result

        self._checks += 1
        self._checks_by_place[place] += 1
        return self._pool.run(self._look_at, *credentials, place).addBoth(ended)

    def _look_at(self, user: str, password: bytes, place: str) -> bool:
        """In the pool: whether it is right. Those who guess wait for each other, and not transfers for them."""
        started = time.perf_counter()
        right = self._htpasswd.check(user, password, place)
        if not right and self._checks > FLOOD_CHECKS:
            time.sleep(2 * (time.perf_counter() - started))
        return right

    def _checked(self, result: object, key: tuple[str, bytes, str]) -> None:
        for answer in self._waiting.pop(key):
            answer.callback(result)  # type: ignore[arg-type]


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

        @raise Unauthorized: nobody that is known.
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
        self._header = header.encode("ascii")
        self._passwords = passwords
        self._others = others

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user who sent a request.

        @raise Unauthorized: nobody that is known.
        """
        otherwise = self._passwords if request.peer_is_trusted else self._others
        names = request.requestHeaders.getRawHeaders(self._header, []) if request.peer_is_trusted else []
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
