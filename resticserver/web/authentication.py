"""
From the C{Authorization} header to a user.

Source: RFC 7617 (Basic, UTF-8); what restic sends without credentials is PROTOCOL: C{Basic Og==} since 0.16.1.
"""

from __future__ import annotations

import base64
import binascii

from twisted.internet.defer import Deferred

from ..access.htpasswd import Htpasswd
from ..errors import Unauthorized
from .jobs import Pool
from .request import StreamingRequest


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


class NoAuthentication:
    """Lets everyone in; the header is not looked at."""

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """The user: none."""
        return None


class PasswordAuthentication:
    """
    Checks passwords in a pool of their own; several requests with the same credentials wait for one check.
    """

    def __init__(self, htpasswd: Htpasswd, pool: Pool) -> None:
        self._htpasswd = htpasswd
        self._pool = pool
        self._waiting: dict[tuple[str, bytes], list[Deferred[bool]]] = {}

    async def authenticate(self, request: StreamingRequest) -> str | None:
        """
        The user who sent a request.

        @raise Unauthorized: nobody that is known.
        """
        headers = request.requestHeaders.getRawHeaders(b"Authorization", [])
        credentials = basic_credentials(headers[0]) if len(headers) == 1 else None
        if credentials is None:
            raise Unauthorized()
        if not self._htpasswd.is_cached(*credentials) and not await self._check(credentials):
            raise Unauthorized()
        return credentials[0]

    def _check(self, credentials: tuple[str, bytes]) -> Deferred[bool]:
        waiting = self._waiting.get(credentials)
        if waiting is None:
            waiting = self._waiting[credentials] = []
            self._pool.run(self._htpasswd.check, *credentials).addBoth(self._checked, credentials)
        answer: Deferred[bool] = Deferred()
        waiting.append(answer)
        return answer

    def _checked(self, result: object, credentials: tuple[str, bytes]) -> None:
        for answer in self._waiting.pop(credentials):
            answer.callback(result)  # type: ignore[arg-type]
