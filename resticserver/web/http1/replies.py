"""
Answers: the table from errors to statuses, reason phrases, and how an answer is sent.

restic shows HTTP/1.1's reason phrase to its user, so the phrase says what happened. Twisted does not sanitise it.
"""

from __future__ import annotations

import errno
import time
from functools import lru_cache
from typing import Any, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

from ... import errors

#: RFC 9110's phrases for the statuses that this server sends.
PHRASES = {
    200: b"OK",
    206: b"Partial Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    416: b"Range Not Satisfiable",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    507: b"Insufficient Storage",
}

#: The most specific class comes first.
_STATUSES: tuple[tuple[type[errors.ServerError], int], ...] = (
    (errors.HeaderTooLarge, 431),
    (errors.BadRequest, 400),
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.MethodNotAllowed, 405),
    (errors.RequestTimeout, 408),
    (errors.TooLarge, 413),
    (errors.RangeNotSatisfiable, 416),
    (errors.InsufficientStorage, 507),
    (errors.Unavailable, 503),
)

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_MAX_REASON_BYTES = 200
_CHALLENGE = b'Basic realm="restic repository server", charset="UTF-8"'

_log = Logger()


class Answers(Protocol):
    """A request, as far as answering needs it."""

    site: Any
    method: bytes
    uri: bytes
    startedWriting: Any

    def start_answer(self, status: int, reason: bytes, fields: bytes, length: int | None) -> None:
        """Begin."""

    def write(self, data: bytes) -> None:
        """Send bytes of the body."""

    def abort(self) -> None:
        """End the connection."""


def date_now() -> bytes:
    """The value of C{Date}, formatted once a second."""
    return _date(int(time.time()))


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return bytes(datetimeToString(second))


def reason_phrase(text: str) -> bytes:
    """
    Any text as a reason phrase: one line of printable ASCII, everything else escaped, at most 200 bytes.
    """
    escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped.encode("ascii", "backslashreplace")[:_MAX_REASON_BYTES]


def status_of(error: BaseException) -> int:
    """The status for an error; 500 for all but L{errors.ServerError}."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return 500


def send(
    request: Answers,
    status: int = 200,
    body: bytes = b"",
    content_type: bytes | None = None,
    reason: bytes | None = None,
    fields: bytes = b"",
) -> None:
    """
    Answer in one write, always with a length. The caller (the route's end, or the request itself) finishes the request.
    """
    begin(request, status, len(body), content_type, reason, fields)
    request.write(body)


def begin(
    request: Answers,
    status: int,
    length: int | None,
    content_type: bytes | None,
    reason: bytes | None = None,
    fields: bytes = b"",
) -> None:
    """
    Begin an answer. Its head goes out with the first bytes of the body.

    @param length: of the body in bytes; C{None} if it is not known, so that the body goes out in chunks.
    @param fields: more header fields, each with its CRLF.
    """
    if content_type is not None:
        fields += b"Content-Type: %s\r\n" % content_type
    request.start_answer(status, reason if reason is not None else PHRASES[status], fields, length)


def send_error(request: Answers, error: BaseException) -> None:
    """
    Answer with an error, as one line of plain text and the same as reason phrase.

    An error that is no L{errors.ServerError} is a fault of the server: it is logged once with its cause, and the client gets
    no details. If an answer has begun, the connection is aborted instead.
    """
    method = request.method.decode("latin-1")
    uri = ascii(request.uri.decode("latin-1"))[1:-1]
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        request.site.out_of_descriptors(f"{method} {uri} was refused with 503")
        error = errors.Unavailable("the server has too many open files: try again later")
    status = status_of(error)
    if status == 500:
        if isinstance(error, OSError):
            _log.error("{method} {uri} failed: {error}", method=method, uri=uri, error=error)
        else:
            _log.failure("{method} {uri} failed", Failure(error), method=method, uri=uri)
    if request.startedWriting:
        request.abort()
        return
    message = error.message if isinstance(error, errors.ServerError) else PHRASES[500].decode("ascii")
    reason = reason_phrase(message)
    send(request, status, reason + b"\n", b"text/plain; charset=utf-8", reason, _error_fields(error))


def _error_fields(error: BaseException) -> bytes:
    """More header fields of an error's answer."""
    if isinstance(error, errors.MethodNotAllowed):
        return b"Allow: %s\r\n" % b", ".join(error.allowed)
    if isinstance(error, errors.Unauthorized):
        return b"WWW-Authenticate: %s\r\n" % _CHALLENGE
    if isinstance(error, errors.RangeNotSatisfiable):
        return b"Content-Range: bytes */%d\r\n" % error.size_bytes
    if isinstance(error, errors.Busy):
        return b"Retry-After: %d\r\n" % error.retry_after_s
    return b""
