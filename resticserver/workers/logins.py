"""
Password checks with workers: they ask the parent's L{resticserver.service.logins.PasswordChecker}, and cache its
answers for as long as they are valid.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..access.htpasswd import joined
from ..access.throttle import Login
from ..errors import Unavailable
from ..service.logins import PasswordChecker
from .ipc import Failed, Handlers, IpcConnection, IpcConnectionLost
from .messages import CheckLogin, WithdrawLogin

#: The most logins that a worker caches. The oldest one is dropped first, and the parent is asked again.
MOST_REMEMBERED = 10_000

_log = Logger()


class RemotePasswordChecker:
    """
    A worker's password checker: asks the parent, and caches its answers for the same connection.

    A cached answer expires when it expires in the parent: at the end of the parent's minute, or when the htpasswd file
    was reloaded.

    @param reading: which reading of the htpasswd file the parent has, see L{Htpasswd.cached}.
    @param clock: seconds of a monotonic clock.
    """

    def __init__(self, ipc: IpcConnection, reading: int, clock: Callable[[], float]) -> None:
        self._ipc = ipc
        self._reading = reading
        self._clock = clock
        self._salt = secrets.token_bytes(32)
        self._numbers = (f"{os.getpid()}-{number}" for number in count(1))
        #: For each login, until when it is valid, and which reading it is based on; the oldest first.
        self._right: dict[bytes, tuple[float, int]] = {}

    def users_changed(self, reading: int) -> None:
        """The parent has reloaded the htpasswd file: drop answers that are based on earlier readings."""
        self._reading = reading
        self._right = {digest: known for digest, known in self._right.items() if known[1] >= reading}

    def is_cached(self, login: Login) -> bool:
        """
        Whether a login is known to be right without asking the parent; fast. This is limited to logins that were right
        on the same connection: looking up logins of other connections is a form of guessing, which only the parent can
        count.
        """
        if not login.known:
            return False
        until_s, reading = self._right.get(self._digest(login), (0.0, -1))
        return reading >= self._reading and self._clock() < until_s

    async def check(self, login: Login) -> None:
        """
        Ask the parent.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: too many logins are waiting, or the parent is gone.
        """
        number = next(self._numbers)
        question = CheckLogin(number, login.user, login.address, login.address_is_trusted, login.known, login.password)
        try:
            left_s, reading = await self._ipc.ask(question)
        except (IpcConnectionLost, Failed) as error:
            if isinstance(error, Failed):
                _log.error("could not check a password: {error}", error=error)
            raise Unavailable("passwords cannot be checked now, try again later") from error
        except CancelledError:
            self._ipc.tell(WithdrawLogin(number))
            raise
        if left_s > 0:
            digest = self._digest(login)
            self._right.pop(digest, None)  # reinserted below as the newest
            self._right[digest] = (self._clock() + left_s, reading)
            if len(self._right) > MOST_REMEMBERED:
                del self._right[next(iter(self._right))]

    def _digest(self, login: Login) -> bytes:
        return hmac.digest(self._salt, joined(login.user.encode(), login.password, login.place.encode()), "sha256")


class LoginRequests:
    """The parent's side of L{RemotePasswordChecker}."""

    def __init__(self, password_checker: PasswordChecker) -> None:
        self._password_checker = password_checker
        #: Unanswered questions by number.
        self._asked: dict[str, Deferred[tuple[float, int]]] = {}

    def handlers(self) -> Handlers:
        """The handlers of a worker's messages."""
        return {CheckLogin: self._check, WithdrawLogin: self._withdraw}

    def _check(
        self, number: str, user: str, address: str, trusted: bool, known: bool, password: bytes
    ) -> Deferred[tuple[float, int]]:
        login = Login(user, password, address, trusted, known)
        asked = self._asked[number] = Deferred.fromCoroutine(self._password_checker.believe(login))
        return asked.addBoth(self._answered, number)

    def _answered(self, result: object, number: str) -> Any:
        self._asked.pop(number, None)
        if isinstance(result, Failure) and result.check(CancelledError):
            raise Unavailable("withdrawn")
        return result

    def _withdraw(self, number: str) -> None:
        if (asked := self._asked.get(number)) is not None:
            asked.cancel()
