"""
Signed requests to an object store, for what obstore cannot do or does not do strictly: lists above all, which have no effect,
so that L{SignedRequests.get} makes them again; and uploads whose hash is known, which are made once.

urllib3 is imported when the first of these objects is made, not before.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from xml.etree import ElementTree

from .engine import AccessRefused, EngineError
from .pages import MAX_PAGE_BYTES, BadPage
from .timeouts import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, READ_TIMEOUT_S, STORE_TIMEOUT_S

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, Timeout

#: The pauses before a request is made again, in seconds.
PAUSES_S = (0.2, 1.0, 4.0)

#: No further attempt begins later than this after the first one, in seconds.
ATTEMPTS_WITHIN_S = 30.0

_PIECE_BYTES = 256 << 10

#: The statuses below 500 that can pass by themselves: time-out, conflict, too many requests.
PASSING = frozenset((408, 409, 425, 429))

#: A removal has no content to answer with.
_FINE = frozenset((200, 204))

_T = TypeVar("_T")


class Passing(Exception):
    """A request failed in a way that may pass; the message says how, for the log."""


class Asked(NamedTuple):
    """
    A request.

    @ivar query: names and values, not encoded.
    @ivar method: C{GET}, or one that has no further effect when it is made again.
    @ivar key: of an object; empty for the bucket.
    """

    query: Mapping[str, str]
    method: str = "GET"
    key: str = ""


class Signed(NamedTuple):
    """
    A request that is ready to be sent.

    @ivar renew: looks for other credentials after these were refused; whether there are others.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    renew: Callable[[], bool]


class Answer(NamedTuple):
    """What an engine has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class SignedRequests(ABC):
    """
    Requests to one bucket, over connections that are kept open. Safe from several threads.

    @param endpoint: the URL of the service.
    @param ca_file: the certificates to trust instead of the system's; C{None} for those.
    @cvar ca_variable: what has named that file, for messages.
    @param pause: waits for a number of seconds.
    @param clock: seconds, monotonic.
    @raise StartError: the file with the authorities cannot be used.
    """

    ca_variable = ""

    def __init__(
        self,
        endpoint: str,
        ca_file: str | None,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        pause: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from urllib3 import Timeout

        from .connections import connections_to

        self._timeout = Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self._answer_timeout_s = answer_timeout_s
        self._pause = pause
        self._clock = clock
        self._connections = connections_to(endpoint, ca_file, self.ca_variable)

    @abstractmethod
    def _signed(self, asked: Asked) -> Signed:
        """
        Sign a request.

        @raise AccessRefused: there are no credentials any more.
        """

    @abstractmethod
    def _failure(self, asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        """The error for an answer that is not 200; L{Passing} if the next attempt may succeed."""

    def close(self) -> None:
        """Close all connections that are not in use; idempotent."""
        self._connections.clear()

    def get(self, query: Mapping[str, str], read: Callable[[bytes], _T]) -> _T:
        """Request something of the bucket; see L{request}."""
        return self.request(Asked(query), read)

    def request(self, asked: Asked, read: Callable[[bytes], _T]) -> _T:
        """
        Make a request until it succeeds, four times at most.

        @param read: makes the result of the answer's body; L{BadPage} means that the answer is wrong.
        @raise EngineError: it failed each time, or in a way that will not pass.
        @raise BucketMissing: there is no such bucket.
        @raise AccessRefused: the credentials are refused, and looking for them anew has found no others.
        """
        pauses = iter(PAUSES_S)
        no_later = self._clock() + ATTEMPTS_WITHIN_S
        renewed = False
        while True:
            request = self._signed(asked)
            try:
                return read(self._once(asked, request))
            except AccessRefused:
                if renewed or not request.renew():
                    raise
                renewed = True
            except (Passing, BadPage) as error:
                pause_s = next(pauses, None)
                if pause_s is None or self._clock() + pause_s > no_later:
                    raise EngineError(detail=str(error)) from None
                self._pause(pause_s)

    def _once(self, asked: Asked, request: Signed) -> bytes:
        """The body of an answer that says that all is well."""
        from urllib3.exceptions import HTTPError

        try:
            answer = self._answer(request.method, request.url, request.headers, None, self._timeout)
        except (HTTPError, OSError) as error:
            raise Passing(_description(error)) from None
        if answer.status in _FINE:
            return answer.body
        raise self._failure(asked, answer.status, answer.headers, answer.body)

    def _store(self, url: str, headers: Mapping[str, str], content: bytes | memoryview) -> Answer:
        """
        Store an object, by one attempt of L{STORE_TIMEOUT_S} at most.

        @param headers: with the signature.
        @raise EngineError: there was no answer; it is not known what the engine has done.
        """
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        timeout = Timeout(connect=self._timeout.connect_timeout, total=STORE_TIMEOUT_S)
        try:
            return self._answer("PUT", url, headers, content, timeout)
        except (HTTPError, OSError) as error:
            raise EngineError(detail=_description(error)) from None
        except Passing as error:
            raise EngineError(detail=str(error)) from None

    def _answer(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | memoryview | None, timeout: Timeout
    ) -> Answer:
        """
        What a request is answered.

        @raise HTTPError: urllib3's: there was no answer, or only a part of one.
        @raise OSError: so.
        @raise Passing: the answer is too large, or takes too long.
        """
        body: Any = content  # urllib3 sends whatever has a buffer; its types leave that out
        answer = self._connections.request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=timeout,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        return Answer(answer.status, answer.headers, self._body(answer))

    def _body(self, answer: BaseHTTPResponse) -> bytes:
        """The whole body. The connection is used again only if the body was read to its end."""
        no_later = self._clock() + self._answer_timeout_s
        body = bytearray()
        finished = False
        try:
            while piece := answer.read1(_PIECE_BYTES):
                body += piece
                if len(body) > MAX_PAGE_BYTES:
                    raise Passing(f"the answer is larger than {MAX_PAGE_BYTES} bytes")
                if self._clock() > no_later:
                    raise Passing(f"the answer takes longer than {self._answer_timeout_s:g} seconds")
            finished = True
        finally:
            if not finished:
                answer.close()
            answer.release_conn()
        return bytes(body)


def code_and_detail(status: int, body: bytes) -> tuple[str, str]:
    """
    What an answer says that is an error.

    @return: its code, which is empty if the body describes no error; and the status, the code and the message for the log. Other
        elements of the description repeat the request with its credentials.
    """
    code, message = _code_and_message(body)
    return code, f"{status} {code}: {message}" if message else f"{status} {code}".rstrip()


def _code_and_message(body: bytes) -> tuple[str, str]:
    try:
        if b"<!" in body:
            return "", ""
        root = ElementTree.fromstring(body, ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError:
        return "", ""
    found = {element.tag.rpartition("}")[2]: element.text or "" for element in root}
    return _one_line(found.get("Code", ""), 60), _one_line(found.get("Message", ""), 200)


def _one_line(text: str, most: int) -> str:
    return ascii(" ".join(text.split())[:most])[1:-1]


def _description(error: Exception) -> str:
    """
    A failed connection, without the URL: the library's own text names it with the query, and a proxy's with a password.
    """
    reason = error.__cause__ or error.__context__
    words = ""
    if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
        words = ": timed out"
    elif isinstance(reason, OSError) and reason.strerror:
        words = f": {reason.strerror}"
    return f"{type(error).__name__}{words}"
