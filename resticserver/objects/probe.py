"""
What an object store guarantees, found out by trying. Everything depends on one promise that not all of them keep: of several
uploads under one name that ask for it to be free (C{If-None-Match: *}), exactly one succeeds.

The probe writes below C{.rest-server/probe} and removes what it wrote.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..storage.interface import WantedPart
from ..storage.volume import FOLDER
from .engine import Absent, Engine, EngineError, Exists

#: How many uploads of one name begin at the same time, and how often.
RACERS, ROUNDS = 8, 5

_CONTENT = b"0123456789" * 100


class Finding(NamedTuple):
    """
    One promise of an engine.

    @ivar name: what was tried, for the report.
    @ivar problem: what is wrong with it; empty if it is kept.
    @ivar vital: whether the server cannot work without it.
    @ivar shared: whether only several servers on one bucket need it.
    """

    name: str
    problem: str = ""
    vital: bool = True
    shared: bool = False


class Probe:
    """
    Tries one bucket.

    @param prefix: of all keys of the store.
    """

    def __init__(self, engine: Engine, prefix: str) -> None:
        self._engine = engine
        self._folder = f"{prefix}{FOLDER}/probe/{secrets.token_hex(8)}/"
        self._keys: list[str] = []

    def quick(self) -> list[Finding]:
        """
        What takes a few requests.

        @raise EngineError: the engine does not answer as it should.
        """
        return self._tidied(self._condition, self._range, self._list)

    def race(self) -> list[Finding]:
        """
        Several uploads of one name at once. The losers of such a race wait for a second or more at some engines.

        @raise EngineError: the engine does not answer as it should.
        """
        return self._tidied(self._race)

    @contextmanager
    def timed_requests(self) -> Iterator[dict[str, Callable[[], object]]]:
        """Requests of one kind each, to be timed; with an object of 4 KiB that is removed afterwards."""
        key = self._key("timed")
        content = bytes(4096)
        self._engine.put(key, content)
        try:
            yield {
                "put": lambda: self._engine.put(key, content),
                "get": lambda: self._read(key),
                "head": lambda: self._engine.size_of(key),
            }
        finally:
            self._tidy()

    def _tidied(self, *tries: Callable[[], Finding]) -> list[Finding]:
        try:
            return [one() for one in tries]
        finally:
            self._tidy()

    def _tidy(self) -> None:
        for key in self._keys:
            self._engine.remove(key)
        self._keys.clear()

    def _key(self, name: str) -> str:
        key = f"{self._folder}{name}"
        self._keys.append(key)
        return key

    def _condition(self) -> Finding:
        name = "a second upload of a name is refused (If-None-Match: *)"
        key = self._key("condition")
        self._engine.put_new(key, _CONTENT)
        try:
            self._engine.put_new(key, b"other bytes")
        except Exists:
            found = self._read(key)
            problem = "" if found == _CONTENT else "it was refused, and has replaced the first one"
            return Finding(name, problem, shared=True)
        return Finding(name, "the condition is ignored: the second upload replaces the first one", shared=True)

    def _range(self) -> Finding:
        name = "a part of an object is answered with that part (206)"
        key = self._key("range")
        self._engine.put(key, _CONTENT)
        try:
            found = self._read(key, WantedPart(10, 25))
        except EngineError as error:
            return Finding(name, error.detail or error.message)
        return Finding(name, "" if found == _CONTENT[10:25] else "other bytes came")

    def _list(self) -> Finding:
        name = "an object is found and listed right after its upload, and not after its removal"
        key = self._key("list")
        for _ in range(3):
            self._engine.put(key, _CONTENT)
            if not self._is_listed("list"):
                return Finding(name, "it is not listed")
            if self._read(key) != _CONTENT:
                return Finding(name, "other bytes came")
            self._engine.remove(key)
            if self._is_listed("list"):
                return Finding(name, "it is listed after its removal")
            try:
                self._engine.size_of(key)
            except Absent:
                continue
            return Finding(name, "it is found after its removal")
        return Finding(name)

    def _race(self) -> Finding:
        name = f"of {RACERS} uploads of a name at once, one succeeds ({ROUNDS} rounds)"
        for number in range(ROUNDS):
            winners, errors = self._one_race(self._key(f"race-{number}"))
            if errors:
                raise errors[0]
            if winners != 1:
                return Finding(name, f"{winners} of them succeeded", shared=True)
        return Finding(name)

    def _one_race(self, key: str) -> tuple[int, list[Exception]]:
        start = threading.Barrier(RACERS)
        won: list[int] = []
        errors: list[Exception] = []

        def run(number: int) -> None:
            start.wait()
            try:
                self._engine.put_new(key, b"%d" % number)
                won.append(number)
            except Exists:
                pass
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(RACERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(won), errors

    def _is_listed(self, name: str) -> bool:
        return any(found.key == name for page in self._engine.list_pages(self._folder) for found in page)

    def _read(self, key: str, wanted: WantedPart | None = None) -> bytes:
        body = self._engine.get(key) if wanted is None else self._engine.get(key, wanted)
        try:
            content = b""
            while piece := body.read():
                content += piece
            return content
        finally:
            body.close()


class ProvenFile:
    """
    The local file that says for which bucket the race was run. Without it the race is run again.

    @param path: of the file; C{subject}: the bucket and its engine.
    """

    def __init__(self, path: str, subject: str) -> None:
        self._path = path
        self._subject = subject

    def is_proven(self) -> bool:
        """Whether the race was run for this bucket."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return file.read() == self._subject
        except (OSError, UnicodeError):
            return False

    def remember(self) -> None:
        """The race was run. Where that cannot be written it is run again at the next start."""
        with suppress(OSError), open(self._path, "w", encoding="utf-8") as file:
            file.write(self._subject)

    def forget(self) -> None:
        """The engine has broken a promise."""
        with suppress(OSError):
            os.unlink(self._path)
