"""
Who judges a password: the server that has the users, for all connections, and for those of its workers too.

L{PasswordJudge} is in the process that reads the htpasswd file, one for the whole server. A worker has a L{DistantJudge}, which
asks that one, and may remember its word for as long as that one does.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from .access.htpasswd import Htpasswd, joined
from .access.throttle import Login, Throttle
from .errors import Forbidden, ServerError, Unauthorized, Unavailable
from .messages import Failed, Wire, WireLost
from .names import is_user_name
from .storage.volume import GONE
from .telemetry.events import Event, EventKind
from .web.jobs import Pool

#: More password checks than this do not wait for the pool: a flood of logins must not make others wait for minutes.
MOST_CHECKS = 32
#: When more than so many wait, that is a flood: after a wrong password the pool rests twice as long as the check took.
FLOOD_CHECKS = 8
#: Of these, from one network.
MOST_CHECKS_OF_A_PLACE = 16

#: Logins that a worker remembers; the oldest is forgotten first, and asked for again.
MOST_REMEMBERED = 10_000

#: The question of a worker.
ASK = "login"
_REFUSALS = {error.__name__: error for error in (Unauthorized, Forbidden, Unavailable)}

_log = Logger()


class PasswordJudge:
    """
    Checks passwords in a pool of their own; several logins with the same credentials wait for one check.

    Guessing is slowed down and then refused (L{Throttle}). What was right within the last minute is not checked again, and
    whoever was right lately from the same place is no guesser; but looking for that is guessing too, and bounded, except for
    credentials that were right on the same connection.

    @ivar failures: how many passwords were wrong; C{lockouts}: how often an address was refused from then on.
    """

    def __init__(
        self,
        htpasswd: Htpasswd,
        pool: Pool,
        throttle: Throttle,
        reactor: IReactorTime,
        tell: Callable[[Event, str], object] = lambda event, key: None,
    ) -> None:
        self._tell = tell
        self._htpasswd = htpasswd
        self._pool = pool
        self._throttle = throttle
        self._reactor = reactor
        self._waiting: dict[tuple[str, bytes, str], list[Deferred[bool]]] = {}
        self.failures = 0
        self.lockouts = 0
        self._checks = 0
        self._checks_by_place: Counter[str] = Counter()

    def knows(self, login: Login) -> bool:
        """Whether a login is right without a check; quick."""
        return self._may_look_up(login) and self._htpasswd.is_cached(login.user, login.password, login.place)

    async def judge(self, login: Login) -> None:
        """
        Check a login.

        @raise Unauthorized: nobody that is known.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: too many logins wait already, or the file with the users is on the volume that is missing.
        """
        if self._htpasswd.is_missing:
            raise Unavailable(GONE)
        if not await self._check(login):
            raise Unauthorized()

    async def answer(self, user: str, password: str, address: str, trusted: bool, known: bool) -> dict[str, Any]:
        """
        A worker's question, in the words of L{DistantJudge}.

        @param password: as C{latin-1}.
        """
        login = Login(user, password.encode("latin-1"), address, trusted, known)
        try:
            if not self.knows(login):
                await self.judge(login)
        except ServerError as error:
            return {"refused": type(error).__name__, "message": error.message}
        left_s, reading = self._htpasswd.cached(login.user, login.password, login.place)
        return {"left_s": left_s, "reading": reading}

    def _may_look_up(self, login: Login) -> bool:
        return login.known or self._throttle.may_look_up(login.user, login.address, login.address_is_trusted)

    def _check(self, login: Login) -> Deferred[bool]:
        key = (login.user, login.password, login.place)
        answer: Deferred[bool] = Deferred()
        waiting = self._waiting.get(key)
        if waiting is None:
            checking = self._begin(login)
            self._waiting[key] = [answer]
            checking.addBoth(self._checked, key)
        else:
            waiting.append(answer)
        return answer

    def _begin(self, login: Login) -> Deferred[bool]:
        user, address, exempt = login.user, login.address, login.address_is_trusted
        if self._may_look_up(login):
            if self._htpasswd.was_verified(user, login.password, login.place):
                return self._run(login)
            self._throttle.missed(user, address, exempt)
        verdict = self._throttle.admit(user, address, exempt)
        if verdict.lockout_began:
            self.lockouts += 1
            message = f"{address} is refused for a while after too many failed logins"
            self._tell(Event(EventKind.LOCKOUT, message, details={"address": address}), address)
            _log.warn("too many auth failures from {address}: refused for a while", address=address)
        if verdict.refused:
            raise Forbidden("too many failed logins from your address, try again later")

        def look() -> Deferred[bool]:
            crowded = not exempt and self._checks_by_place[login.place] >= MOST_CHECKS_OF_A_PLACE
            if self._checks >= MOST_CHECKS or crowded:
                self._throttle.give_back(user, address)
                raise Unavailable("too many logins at once, try again")
            return self._run(login).addCallback(judged)

        def judged(right: bool) -> bool:
            if right:
                self._throttle.give_back(user, address)
            else:
                self.failures += 1
                name = user if is_user_name(user) else "(not a user name)"
                _log.warn("auth failure from {address} for user {name}", address=address, name=name)
            return right

        if not verdict.delay_s:
            return look()
        later: Deferred[Any] = deferLater(self._reactor, verdict.delay_s, look)
        return later

    def _run(self, login: Login) -> Deferred[bool]:
        def ended(result: bool) -> bool:
            self._checks -= 1
            self._checks_by_place[login.place] -= 1
            if not self._checks_by_place[login.place]:
                del self._checks_by_place[login.place]
            return result

        self._checks += 1
        self._checks_by_place[login.place] += 1
        return self._pool.run(self._look_at, login.user, login.password, login.place).addBoth(ended)

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


class DistantJudge:
    """
    A worker's judge: the parent's, and what that one said of the same connection a moment ago.

    What is remembered ends when it ends there: after the rest of the parent's minute, or when the users were read again.

    @param reading: which reading of the users the parent has, L{Htpasswd.cached}.
    @param clock: seconds that never go backwards.
    """

    def __init__(self, wire: Wire, reading: int, clock: Callable[[], float]) -> None:
        self._wire = wire
        self._reading = reading
        self._clock = clock
        self._salt = secrets.token_bytes(32)
        #: Until when each login is right, and by which reading; the oldest first.
        self._right: dict[bytes, tuple[float, int]] = {}

    def users_changed(self, reading: int) -> None:
        """The parent has read the users again: nothing that was right before is right without asking."""
        self._reading = reading
        self._right = {digest: known for digest, known in self._right.items() if known[1] >= reading}

    def knows(self, login: Login) -> bool:
        """
        Whether a login is right without asking; quick. Only the connection that was right before need not ask: to look
        for what others had right is a guess, and the parent counts those.
        """
        if not login.known:
            return False
        until_s, reading = self._right.get(self._digest(login), (0.0, -1))
        return reading >= self._reading and self._clock() < until_s

    async def judge(self, login: Login) -> None:
        """
        Ask the parent.

        @raise Unauthorized: nobody that is known.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: too many logins wait already, or the parent is gone.
        """
        try:
            answer = await self._wire.ask(
                ASK,
                user=login.user,
                password=login.password.decode("latin-1"),
                address=login.address,
                trusted=login.address_is_trusted,
                known=login.known,
            )
        except (WireLost, Failed) as error:
            if isinstance(error, Failed):
                _log.error("could not check a password: {error}", error=error)
            raise Unavailable("passwords cannot be checked now, try again") from error
        if "refused" in answer:
            raise _REFUSALS[answer["refused"]](answer["message"])
        if answer["left_s"] > 0:
            digest = self._digest(login)
            self._right.pop(digest, None)  # it becomes the youngest
            self._right[digest] = (self._clock() + answer["left_s"], answer["reading"])
            if len(self._right) > MOST_REMEMBERED:
                del self._right[next(iter(self._right))]

    def _digest(self, login: Login) -> bytes:
        return hmac.digest(self._salt, joined(login.user.encode(), login.password, login.place.encode()), "sha256")
