"""
Logins with a password: the cache of right ones, the throttle, the queue and the check, put together. One L{PasswordChecker},
in the process that reads the htpasswd file, serves all connections. Workers ask it (L{resticserver.workers.logins}).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

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
from ..telemetry.metrics import Family, MetricType, Sample
from ..threads.interface import Pool

#: The most password checks that wait for a thread: a flood of logins must not make others wait for minutes.
MOST_CHECKS = 32
#: More waiting checks than this are a flood. During a flood, a thread for guesses pauses after a wrong password for
#: twice as long as the check took, and logins that cannot be told from guesses are treated as guesses.
FLOOD_CHECKS = 8

_log = Logger()


@dataclass(eq=False)
class _Check:
    """
    The check of one login, and the callers that wait for it.

    @ivar verified: the same login was right recently, at the same place.
    @ivar answers: the waiting callers.
    @ivar later: the delayed call, while the check is delayed.
    @ivar waiting: its place in the queue, once it is there.
    @ivar begun: a thread runs it; it can no longer be cancelled.
    """

    login: Login
    verified: bool
    answers: list[Deferred[bool]] = field(default_factory=list)
    later: IDelayedCall | None = None
    waiting: Waiting[_Check] | None = None
    begun: bool = False


class CheckPools(NamedTuple):
    """
    Where passwords are checked.

    @ivar logins: checks passwords of clients that were right recently or have made few attempts.
    @ivar guesses: checks all other passwords, and may be slow. A flood of guesses can keep all cores busy with its
        connections alone, and other logins should not wait for a thread of low priority.
    @ivar threads: the size of each pool; at most this many checks are given to it at a time.
    """

    logins: Pool
    guesses: Pool
    threads: int = 1


class PasswordChecker:
    """
    Checks passwords in their own pools. Several logins with the same credentials wait for one check.

    Guessing is first slowed down and then refused (L{Throttle}). A login that was right within the last minute is not
    checked again, and a client that recently logged in from the same place is not treated as guessing. But such
    look-ups can be used for guessing as well, so they are limited, too. Credentials that were right on the same
    connection are exempt.

    Checks wait here and not in a pool, so that the next one is chosen when a thread becomes free (L{LoginQueue}).

    @ivar failures: the number of wrong passwords.
    @ivar lockouts: how often an address was locked out.
    """

    def __init__(
        self,
        htpasswd: Htpasswd,
        pools: CheckPools,
        throttle: Throttle,
        reactor: IReactorTime,
        tell: Callable[[Event, str], object] = lambda event, key: None,
    ) -> None:
        self._tell = tell
        self._htpasswd = htpasswd
        self._pools = pools
        self._throttle = throttle
        self._reactor = reactor
        self._checks: dict[tuple[str, bytes, str], _Check] = {}
        self._queue: LoginQueue[_Check] = LoginQueue(MOST_CHECKS, reactor.seconds)
        #: The numbers of running checks: of logins, and of guesses.
        self._running = [0, 0]
        #: The number of threads for guesses that pause.
        self._resting = 0
        self.failures = 0
        self.lockouts = 0

    def is_cached(self, login: Login) -> bool:
        """Whether a login is known to be right without a check; fast."""
        return self._may_look_up(login) and self._htpasswd.is_cached(login.user, login.password, login.place)

    async def check(self, login: Login) -> None:
        """
        Check a login.

        @raise Unauthorized: the user is unknown, or the password is wrong.
        @raise Forbidden: too many failures from this address.
        @raise Unavailable: too many logins are waiting, or the htpasswd file is on the missing volume.
        """
        if self._htpasswd.is_missing:
            raise Unavailable(GONE)
        if not await self._check(login):
            raise Unauthorized("wrong user or password")

    async def believe(self, login: Login) -> tuple[float, int]:
        """
        Check a login for another process that caches the result.

        @return: for how many seconds the result may be cached, and which reading of the htpasswd file it is based on.
        @raise ServerError: as L{check}.
        """
        if not self.is_cached(login):
            await self.check(login)
        return self._htpasswd.cached(login.user, login.password, login.place)

    def families(self) -> Iterator[Family]:
        """Metrics of failed logins."""
        for name, help_, value in (
            ("rest_server_auth_failures", "Logins with a wrong password or an unknown user", self.failures),
            (
                "rest_server_auth_lockouts",
                "Times that an address was blocked after too many failed logins",
                self.lockouts,
            ),
        ):
            yield Family(MetricType.COUNTER, name, help_, (), [Sample((), value)])

    def _may_look_up(self, login: Login) -> bool:
        return login.known or self._throttle.may_look_up(login.user, login.address, login.address_is_trusted)

    def _check(self, login: Login) -> Deferred[bool]:
        """Return whether a login is right. Cancelling the Deferred means that the client disconnected."""
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
        Make a new check.

        @return: the check, and the delay before it may begin, in seconds.
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
        """Queue a check until a thread is free."""
        check.later = None
        check.waiting, given_up = self._queue.add(check.login, check.verified, check)
        if given_up is not None:
            self._drop(given_up.item)
            self._end(given_up.item, Failure(Unavailable("too many logins at once, try again later")))
        self._begin()

    def _gone(self, check: _Check, answer: Deferred[bool]) -> None:
        """A caller no longer waits. Cancel the check if it was the last one."""
        check.answers.remove(answer)
        if not check.answers and not check.begun:
            if check.later is not None:
                check.later.cancel()
            if check.waiting is not None:
                self._queue.remove(check.waiting)
            self._drop(check)

    def _drop(self, check: _Check) -> None:
        """Remove a check that was not made, so that it does not count as a failure."""
        login = check.login
        del self._checks[login.user, login.password, login.place]
        if not check.verified:
            self._throttle.give_back(login.user, login.address)

    def _begin(self) -> None:
        """Begin as many checks as there are free threads."""
        while (waiting := self._queue.first()) is not None:
            guess = not self._queue.is_quiet(waiting, FLOOD_CHECKS)
            if self._running[guess] + (self._resting if guess else 0) >= self._pools.threads:
                return
            self._queue.take(waiting)
            check, login = waiting.item, waiting.item.login
            check.begun = True
            self._running[guess] += 1
            running = (self._pools.guesses if guess else self._pools.logins).run(
                self._look_at, login.user, login.password, login.place
            )
            running.addBoth(self._checked, check, waiting, guess)

    def _look_at(self, user: str, password: bytes, place: str) -> tuple[bool, float]:
        """
        Check a password. Called in the pool.

        @return: whether it is right, and how long the check took, in seconds.
        """
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
                # Guesses wait for each other, so that they do not slow down transfers.
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
        """Answer all waiting callers. A callback may cancel others."""
        while check.answers:
            check.answers.pop(0).callback(right)
