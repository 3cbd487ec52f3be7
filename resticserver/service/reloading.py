"""
Reloads files that have changed, and repeats other actions every few seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from twisted.application.service import IService
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..threads.interface import Pool
from .repeated import Repeated

#: How often the files with users and rules are checked, and how often those with certificates.
RULES_INTERVAL_S = 5.0
CERTIFICATES_INTERVAL_S = 2.0

_log = Logger()


class Reloads(Protocol):
    """A file that is loaded, and reloaded when it changes."""

    def reload_if_changed(self, force: bool = False) -> bool:
        """
        Read the file again if it has changed, or in any case with C{force}. Blocks.

        @return: whether the file was read.
        """

    def say_reloaded(self) -> None:
        """Log that the new content is in effect."""


class Reloading:
    """
    Reloads the files with users, rules and certificates when they change.

    @param read_in: the pool in which they are read.
    @param spread: passes a reloaded file to all processes.
    @param done: called after all files were read.
    """

    def __init__(
        self,
        read_in: Pool,
        rules: tuple[Reloads | None, ...],
        certificates: Reloads | None,
        spread: Callable[[Reloads], Awaitable[None]],
        done: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = read_in
        self._rules = rules
        self._certificates = certificates
        self._spread = spread
        self._done = done
        self._lock = DeferredLock()

    def watches(self, reactor: IReactorTime) -> list[IService]:
        """The services that check for changes."""
        return [
            Repeated("rules watch", reactor, RULES_INTERVAL_S, self.reload_rules),
            Repeated("certificates watch", reactor, CERTIFICATES_INTERVAL_S, self.reload_certificates),
        ]

    def reload_rules(self, force: bool = False) -> Deferred[None]:
        """Read the htpasswd and the policy file again if they have changed, or in any case with C{force}."""
        return self._reload(self._rules, force)

    def reload_certificates(self, force: bool = False) -> Deferred[None]:
        """
        Read the certificate, the key and the CA certificates again if they have changed, or in any case with C{force}.
        """
        return self._reload((self._certificates,), force)

    def _reload(self, files: tuple[Reloads | None, ...], force: bool) -> Deferred[None]:
        """Read files, pass them to all processes, then log it. Only one reload runs at a time."""

        def read() -> list[Reloads]:
            return [file for file in files if file is not None and file.reload_if_changed(force)]

        async def reload() -> None:
            for file in await self._pool.run(read):
                await self._spread(file)
                file.say_reloaded()
            await self._done()

        reloading: Deferred[None] = self._lock.run(lambda: Deferred.fromCoroutine(reload()))
        return reloading.addErrback(lambda failure: _log.failure("could not reload a file", failure))
