"""
Checks passwords: one L{PasswordChecker}, in the process that reads the htpasswd file, for all connections. Workers ask it
(L{resticserver.workers.logins}).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..access.htpasswd import Htpasswd
from ..access.loginqueue import LoginQueue, Waiting
from ..access.throttle import Login, Throttle
from ..errors import Forbidden, Unauthorized, Unavailable
from ..names import is_user_name
from ..storage.volume import GONE
from ..telemetry.events import Event, EventKind
from ..threads.serial_jobs import Pool

#: More password checks than this do not wait for a thread: a flood of logins must not make others wait for minutes.
MOST_CHECKS = 32
#: When more than so many wait, that is a flood: after a wrong password no guess is checked for twice as long as that took, and
#: those that cannot be told from each other are guesses.
FLOOD_CHECKS = 8

_log = Logger()


@dataclass(eq=False)
class _Check:
    """
    The check of one login, and who waits for it.

    @ivar verified: it was right lately, at the same place.
    @ivar answers: those that wait.
    @ivar later: while it is delayed.
    @ivar waiting: its place in the queue, since it came there.
    @ivar begun: a thread has it; nothing ends it any more.
    """

    login: Login
    verified: bool
    answers: list[Deferred[bool]] = field(default_factory=list)
    later: IDelayedCall | None = None
    waiting: Waiting[_Check] | None = None
    begun: bool = False


class PasswordChecker:
    """
    Checks passwords in a pool of their own; several logins with the same credentials wait for one check.

    Guessing is slowed down and then refused (L{Throttle}). What was right within the last minute is not checked again, and
    whoever was right lately from the same place is no guesser; but looking for that is guessing too, and bounded, except for
    credentials that were right on the same connection.

    Checks wait here and not in a pool: whose is next is decided when a thread is free (L{LoginQueue}).

    @param pool: checks the passwords of those who were right lately or have tried little.
    @param guesses: checks all others', and may take its time: a flood of guesses can keep all cores busy with its connections
        alone, and nobody else should wait for a thread that stands back for those.
    @param threads: of each of the pools; so many checks are given to it at once.
    @ivar failures: how many passwords were wrong; C{lockouts}: how often an address was refused from then on.
    """

    def __init__(
        self,
        htpasswd: Htpasswd,
        pool: Pool,
        guesses: Pool,
        throttle: Throttle,
        reactor: IReactorTime,
        tell: Callable[[Event, str], object] = lambda event, key: None,
        threads: int = 1,
    ) -> None:
        self._tell = tell
        self._htpasswd = htpasswd
        self._pools = (pool, guesses)
        self._throttle = throttle
        self._reactor = reactor
        self._threads = threads
        self._checks: dict[tuple[str, bytes, str], _Check] = {}
        self._queue: LoginQueue[_Check] = LoginQueue(MOST_CHECKS, reactor.seconds)
        #: Checks that were begun: of logins, and of guesses.
        self._running = [0, 0]
        #: Threads for guesses that have none to check for a while.
        self._resting = 0
        self.failures = 0
        self.lockouts = 0

    def is_cached(self, login: Login) -> bool:
        """Whether a login is right without a check; quick."""
        return self._may_look_up(login) and self._htpasswd.is_cached(login.user, login.password, login.place)

    async def check(self, login: Login) -> None:
        """
        Check a login.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: too many logins wait already, or the file with the users is on the volume that is missing.
        """
        if self._htpasswd.is_missing:
            raise Unavailable(GONE)
        if not await self._check(login):
            raise Unauthorized()

    async def believe(self, login: Login) -> tuple[float, int]:
        """
        Check a login, for another process that remembers what was right.

        @return: for how many seconds it may be remembered, and by which reading of the users.
        @raise ServerError: as L{check}.
        """
        if not self.is_cached(login):
            await self.check(login)
        return self._htpasswd.cached(login.user, login.password, login.place)

    def _may_look_up(self, login: Login) -> bool:
        return login.known or self._throttle.may_look_up(login.user, login.address, login.address_is_trusted)

    def _check(self, login: Login) -> Deferred[bool]:
        """Whether a login is right. To cancel it means that the client is gone."""
        key = (login.user, login.password, login.place)
        check = self._checks.get(key)
        begins = check is None
        if check is None:
            check, delay_s = self._admitted(login)
            self._checks[key] = check
        answer: Deferred[bool] = Deferred(partial(self._gone, check))
        check.answers.append(answer)
        if begins and delay_s:
            check.later = self._reactor.callLater(delay_s, self._wait, check)
        elif begins:
            self._wait(check)
        return answer

    def _admitted(self, login: Login) -> tuple[_Check, float]:
        """
        A new check, and how much later it may begin.

        @raise Forbidden: too many failures from this address.
        """
        user, address, exempt = login.user, login.address, login.address_is_trusted
        if self._may_look_up(login):
            if self._htpasswd.was_verified(user, login.password, login.place):
                return _Check(login, verified=True), 0.0
            self._throttle.missed(user, address, exempt)
        verdict = self._throttle.admit(user, address, exempt)
        if verdict.lockout_began:
            self.lockouts += 1
            message = f"{address} is refused for a while after too many failed logins"
            self._tell(Event(EventKind.LOCKOUT, message, details={"address": address}), address)
            _log.warn("too many auth failures from {address}: refused for a while", address=address)
        if verdict.refused:
            raise Forbidden("too many failed logins from your address, try again later")
        return _Check(login, verified=False), verdict.delay_s

    def _wait(self, check: _Check) -> None:
        """Let a check wait for a thread."""
        check.later = None
        check.waiting, given_up = self._queue.add(check.login, check.verified, check)
        if given_up is not None:
            self._drop(given_up.item)
            self._end(given_up.item, Failure(Unavailable("too many logins at once, try again")))
        self._begin()

    def _gone(self, check: _Check, answer: Deferred[bool]) -> None:
        """Whoever waited for this answer waits no longer; a check that nobody waits for is not made."""
        check.answers.remove(answer)
        if not check.answers and not check.begun:
            if check.later is not None:
                check.later.cancel()
            if check.waiting is not None:
                self._queue.remove(check.waiting)
            self._drop(check)

    def _drop(self, check: _Check) -> None:
        """A check is not made, so it was no failure."""
        login = check.login
        del self._checks[login.user, login.password, login.place]
        if not check.verified:
            self._throttle.give_back(login.user, login.address)

    def _begin(self) -> None:
        """Let as many checks begin as there are threads for."""
        while (waiting := self._queue.first()) is not None:
            guess = not self._queue.is_quiet(waiting, FLOOD_CHECKS)
            if self._running[guess] + (self._resting if guess else 0) >= self._threads:
                return
            self._queue.take(waiting)
            check, login = waiting.item, waiting.item.login
            check.begun = True
            self._running[guess] += 1
            running = self._pools[guess].run(self._look_at, login.user, login.password, login.place)
            running.addBoth(self._checked, check, waiting, guess)

    def _look_at(self, user: str, password: bytes, place: str) -> tuple[bool, float]:
        """In the pool: whether it is right, and how long that took."""
        started = time.perf_counter()
        return self._htpasswd.check(user, password, place), time.perf_counter() - started

    def _checked(
        self, result: Failure | tuple[bool, float], check: _Check, waiting: Waiting[_Check], guess: bool
    ) -> None:
        self._running[guess] -= 1
        login = check.login
        right: Failure | bool
        if isinstance(result, Failure):
            right = result
        else:
            right, took_s = result
            if right:
                self._queue.was_right(waiting)
                if not check.verified:
                    self._throttle.give_back(login.user, login.address)
            else:
                self._queue.was_wrong(waiting)
                self._was_wrong(check)
                # Those who guess wait for each other, and not transfers for them.
                if guess and len(self._queue) > FLOOD_CHECKS:
                    self._resting += 1
                    self._reactor.callLater(2 * took_s, self._rested)
        del self._checks[login.user, login.password, login.place]
        self._end(check, right)
        self._begin()

    def _was_wrong(self, check: _Check) -> None:
        if check.verified:
            return
        login = check.login
        self.failures += 1
        name = login.user if is_user_name(login.user) else "(not a user name)"
        _log.warn("auth failure from {address} for user {name}", address=login.address, name=name)

    def _rested(self) -> None:
        self._resting -= 1
        self._begin()

    @staticmethod
    def _end(check: _Check, right: Failure | bool) -> None:
        """Answer all who wait; an answer may take others with it."""
        while check.answers:
            check.answers.pop(0).callback(right)  # type: ignore[arg-type]
