"""
The parts that a server has once, however many processes serve: the state file, the store, users, rules, certificates,
events.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from twisted.internet.defer import Deferred

from ..access.policy import Policy
from ..access.policyfile import PolicyFile
from ..access.throttle import Throttle
from ..config.settings import Settings
from ..process.cores import usable_cores
from ..storage.local import LocalStore
from ..storage.scrub_survey import Survey
from ..telemetry.metrics import Family, Tally, gauge
from ..threads.pools import JobPool
from ..threads.reactor import IReactor
from .activity import Activity
from .event_effects import EventEffects
from .factories import (
    check_profile,
    load_users,
    make_certificates,
    make_deletions,
    make_policy,
    make_scrub_state,
    make_scrubbed,
    make_shared_limits,
    make_state,
    make_store,
)
from .frontend import PAGE_THREADS
from .hooks import Events
from .logins import CheckPools, PasswordChecker
from .monitoring import Monitoring, Sources
from .quota_keeper import QuotaKeeper, QuotaRules
from .readiness import Readiness
from .repository_counter import ClosesDirectories
from .scrub import Scrub, ScrubRules
from .trash_expiry import Clock, Parts, TrashExpiry, elapsed

#: How many password checks run concurrently; as many checks of guesses may run besides. Each check keeps a core busy.
#: Checks of guesses have the lowest priority: a flood of guesses gets at most half the cores, and of these only what
#: transfers leave.
PASSWORD_THREADS = max(1, usable_cores() // 2)
GUESSES_NICE = 19
#: Repositories are counted one at a time. The other threads are for the state file, and for counts that an upload
#: waits for.
COUNTING_THREADS = 4


class Core:
    """
    The parts, built from the settings. Opens no file for writing and starts no thread.

    @param reactor: the real reactor.
    @ivar policy: the rules: those of the policy file if there is one, else those of the flags.
    @ivar password_checker: C{None} without passwords.
    @ivar counting: the pool for the state file and for counting.
    @ivar pages: the pool in which pages are made.
    @ivar activity: what happened within the last day; a service.
    @raise StartError: a file named in the settings cannot be used.
    """

    def __init__(self, settings: Settings, reactor: IReactor) -> None:
        self.settings = settings
        self.reactor = reactor
        self.state = make_state(settings)
        self.store = make_store(settings, self.state)
        #: The same store, if it is one of files, for what only files have.
        self._files = self.store if isinstance(self.store, LocalStore) else None
        self.store.volume.expect(self.state.marker())
        self.htpasswd = load_users(settings, self.store.volume, reactor.seconds)
        flags, self.policy_file = make_policy(settings)
        if self.policy_file is not None:
            self.policy_file.load()
        self.policy: Policy | PolicyFile = self.policy_file or flags
        self.store.expect_kept(self.policy.longest_delete_delay())
        self.certificates = make_certificates(settings)
        self.events = Events(reactor, settings.on_event)
        self.passwords = JobPool(reactor, "passwords", PASSWORD_THREADS)
        self.guesses = JobPool(reactor, "guesses", PASSWORD_THREADS, GUESSES_NICE)
        self.password_checker = self._password_checker()
        self.counting = JobPool(reactor, "counting", COUNTING_THREADS)
        self.pages = JobPool(reactor, "pages", PAGE_THREADS)
        # One thread more than those that read: for the results.
        self._scrub_rules = rules = ScrubRules(
            settings.scrub_interval_s, settings.scrub_rate_bytes, is_remote=settings.location is not None
        )
        self.scrubbing = JobPool(reactor, "scrubbing", 1 + (rules.threads if rules.interval_s else 0))
        self.tally = Tally()
        self.activity = Activity(reactor, self.tally, self._failed_logins, self.state, self.counting)
        check_profile(settings.cpu_profile)

    @property
    def connection_creator(self) -> Any:
        """The connection creator for TLS listeners; C{None} without TLS."""
        return self.certificates.creator if self.certificates is not None else None

    def _password_checker(self) -> PasswordChecker | None:
        if self.htpasswd is None:
            return None
        throttle = Throttle(self.settings.auth_failures, self.reactor.seconds)
        tell = self.events.tell_now_and_then
        pools = CheckPools(self.passwords, self.guesses, PASSWORD_THREADS)
        return PasswordChecker(self.htpasswd, pools, throttle, self.reactor, tell)

    def make_quota_keeper(self, directory_locks: ClosesDirectories) -> QuotaKeeper:
        """Make the quotas of the whole server."""
        settings = self.settings
        shared = make_shared_limits(settings, self.store, self.reactor)
        rules = QuotaRules(settings.limit, self.policy, in_any_case=settings.metrics, shared=shared)
        return QuotaKeeper(self.reactor, rules, self.store.counting, self.state, self.counting, directory_locks)

    def make_scrub(self, requests_in_flight: Callable[[], int]) -> Scrub:
        """
        Make the scrub of the whole server.

        @param requests_in_flight: how many requests all processes are serving.
        """
        place, state = make_scrubbed(self.settings, self.store), make_scrub_state(self.settings)
        # Other front ends delete as well.
        deletions = None if place.is_remote else make_deletions(self.settings)
        scrub = Scrub(
            self.reactor,
            self._scrub_rules,
            lambda observer: Survey(place, state, deletions, observer),
            self.scrubbing,
            self.events.tell,
            requests_in_flight,
        )
        self.events.observe(scrub.take)
        return scrub

    def make_trash_expiry(self, quota_keeper: QuotaKeeper) -> TrashExpiry | None:
        """Make what removes from the trash of the whole server; C{None} for an object store."""
        if self._files is None:
            return None
        parts = Parts(self._files, self.policy, quota_keeper, self.counting)
        return TrashExpiry(self.reactor, parts, Clock(time.time, elapsed))

    def make_monitoring(
        self,
        quota_keeper: QuotaKeeper,
        readiness: Readiness,
        disk: JobPool,
        scrub: Scrub | None,
        gather: Callable[[], Coroutine[Deferred[Any], Any, object]],
        worker_pids: Callable[[], list[int]] | None = None,
        *families: Callable[[], Iterator[Family]],
    ) -> Monitoring:
        """Make the metrics and the status of the whole server. L{Sources} describes the last arguments."""
        certificates = self.certificates
        sources = Sources(
            self._files.path if self._files is not None else None,
            self.settings.limit,
            quota_keeper.quotas,
            self.tally,
            self.events.refusals,
            self.store.volume.check,
            readiness.look,
            lambda: certificates.not_after if certificates is not None else None,
            gather,
            worker_pids,
            (self._families, self.events.families, *families),
            scrub,
            socket.gethostname(),
            self.settings.thresholds,
            self.activity.counted,
        )
        monitoring = Monitoring(self.reactor, sources, quota_keeper, self.counting, self.pages)
        self.events.observe(EventEffects(monitoring, self.store, quota_keeper, disk).take)
        return monitoring

    def _failed_logins(self) -> int:
        return self.password_checker.failures if self.password_checker is not None else 0

    def _families(self) -> Iterator[Family]:
        if self.password_checker is not None:
            yield from self.password_checker.families()
        if self.certificates is not None:
            yield gauge(
                "certificate_expiry_timestamp_seconds",
                "Expiry time of the TLS certificate in seconds since 1970",
                self.certificates.not_after.timestamp(),
            )
