"""
Logs that requests to an engine fail, and that they succeed again. Clients are told few words, and an engine that is down fails
every request, so the log gets the first failure of each kind with the engine's own words, then one line a minute at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from twisted.logger import Logger

from ..errors import ServerError
from ..storage.interface import WantedPart
from .engine import WHOLE, Absent, BeyondTheEnd, Body, Content, Engine, EngineError, EngineFull, Exists, Found

#: What is done, as the lines have it. Each fails and succeeds for itself: credentials may allow one and not another.
STORE, READ, REMOVE = "store in", "read from", "remove from"

#: For how long no further line of the same kind is logged, in seconds.
PERIOD_S = 60.0

#: The most letters of what an engine said.
_MOST_DETAIL = 400

#: These are answers: the engine works.
_ANSWERS = (Absent, Exists, BeyondTheEnd)

_log = Logger()

_T = TypeVar("_T")


@dataclass
class _Kind:
    """
    Failures of one kind.

    @ivar logged_s: when the last line was logged, in seconds of the monotonic clock.
    @ivar unlogged: how many there were since.
    """

    logged_s: float = float("-inf")
    unlogged: int = 0


class FailureLog:
    """
    The lines about one engine. Safe from several threads.

    @param place: the bucket, for the lines.
    @param clock: seconds, monotonic.
    """

    def __init__(self, place: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, type[ServerError]], _Kind] = {}
        #: How many requests have failed since the last one that succeeded, and of which a line was logged.
        self._failed: dict[str, int] = {}
        self._logged: set[str] = set()
        self._silent = False

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Log nothing meanwhile: the caller reports the error."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def failed(self, action: str, error: EngineError | EngineFull) -> None:
        """
        A request has failed.

        @param action: L{STORE}, L{READ} or L{REMOVE}.
        """
        if self._silent:
            return
        with self._lock:
            self._failed[action] = self._failed.get(action, 0) + 1
            kind = self._kinds.setdefault((action, type(error)), _Kind())
            now_s = self._clock()
            if now_s - kind.logged_s < PERIOD_S:
                kind.unlogged += 1
                return
            kind.logged_s = now_s
            unlogged, kind.unlogged = kind.unlogged, 0
            self._logged.add(action)
        detail = error.detail if isinstance(error, EngineError) else ""
        words = f"{error.message} ({ascii(detail[:_MOST_DETAIL])[1:-1]})" if detail else error.message
        if unlogged:
            _log.error(
                "cannot {action} {place}: {error}; {number} more such failures since the last line",
                action=action,
                place=self._place,
                error=words,
                number=unlogged,
            )
        else:
            _log.error("cannot {action} {place}: {error}", action=action, place=self._place, error=words)

    def succeeded(self, action: str) -> None:
        """A request has succeeded."""
        # Nearly always there is nothing to do, and a failure that another thread notes at this moment may come after it.
        if not self._failed.get(action):
            return
        with self._lock:
            number = self._failed.pop(action, 0)
            was_logged = action in self._logged
            self._logged.discard(action)
        if was_logged:
            _log.info(
                "can {action} {place} again; failed requests: {number}",
                action=action,
                place=self._place,
                number=number,
            )

    def watch(self, action: str, call: Callable[[], _T]) -> _T:
        """Make a call, and note how it ends."""
        try:
            result = call()
        except (EngineError, EngineFull) as error:
            self.failed(action, error)
            raise
        except _ANSWERS:
            self.succeeded(action)
            raise
        self.succeeded(action)
        return result


class _LoggedBody:
    """See L{Body}."""

    def __init__(self, body: Body, log: FailureLog) -> None:
        self._body = body
        self._log = log
        self.size_bytes = body.size_bytes
        self.start, self.end = body.start, body.end
        self.close = body.close

    def read(self) -> bytes | memoryview:
        """See L{Body.read}."""
        try:
            return self._body.read()
        except EngineError as error:
            self._log.failed(READ, error)
            raise


class LoggedEngine:
    """An L{Engine} whose failures are logged. See there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.log = FailureLog(engine.name)
        self.name = engine.name
        self.endpoint = engine.endpoint

    def put_new(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{Engine.put_new}."""
        self.log.watch(STORE, lambda: self._engine.put_new(key, content, sha256))

    def put(self, key: str, content: Content, sha256: bytes | None = None) -> None:
        """See L{Engine.put}."""
        self.log.watch(STORE, lambda: self._engine.put(key, content, sha256))

    def size_of(self, key: str) -> int:
        """See L{Engine.size_of}."""
        return self.log.watch(READ, lambda: self._engine.size_of(key))

    def get(self, key: str, wanted: WantedPart = WHOLE) -> Body:
        """See L{Engine.get}."""
        return _LoggedBody(self.log.watch(READ, lambda: self._engine.get(key, wanted)), self.log)

    def remove(self, key: str) -> None:
        """See L{Engine.remove}."""
        self.log.watch(REMOVE, lambda: self._engine.remove(key))

    def list_pages(self, prefix: str, after: str = "") -> Iterator[list[Found]]:
        """See L{Engine.list_pages}."""
        pages = iter(self._engine.list_pages(prefix, after))
        while (page := self.log.watch(READ, lambda: next(pages, None))) is not None:
            yield page

    def list_folder(self, prefix: str) -> tuple[list[str], list[str]]:
        """See L{Engine.list_folder}."""
        return self.log.watch(READ, lambda: self._engine.list_folder(prefix))

    def check_bucket(self) -> None:
        """See L{Engine.check_bucket}."""
        self.log.watch(READ, self._engine.check_bucket)
