"""
Domain errors.

Every layer raises these. Only L{resticserver.web.http1.replies} maps them to HTTP statuses. A message is one line for
the user of the client: it says what was refused and why, and contains no server paths and no secrets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self


class ServerError(Exception):
    """Base class of all errors that are an answer to the client and not a fault of the server."""

    default = "request failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default)

    def __str__(self) -> str:
        """Return the message only. C{args} holds everything needed to build an equal error in another process."""
        return self.message

    @property
    def message(self) -> str:
        """One line that says what was refused and why."""
        return str(self.args[0])


class NotFound(ServerError):
    """The object, list or repository does not exist, or the path names none."""

    default = "not found"


class NoSuchRepository(NotFound):
    """The repository was never created."""

    default = "no such repository"


class BadRequest(ServerError):
    """The request is malformed, or its body does not match its header."""

    default = "bad request"


class HashMismatch(BadRequest):
    """The SHA-256 of the body does not match the object's name."""

    default = "the hash of the content does not match the name"


class Unauthorized(ServerError):
    """The credentials are missing or wrong."""

    default = "authentication required"


class Forbidden(ServerError):
    """The user is authenticated but not allowed to do this."""

    default = "not allowed"


class NotPermitted(Forbidden):
    """The policy refuses it to this user."""


class MethodNotAllowed(ServerError):
    """
    The path exists but does not support the method.

    @param message: the reason, if it is not obvious.

    @ivar allowed: the supported methods, in the order for the C{Allow} header.
    """

    default = "method not allowed"

    def __init__(self, allowed: Iterable[bytes], message: str = "") -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class RangeNotSatisfiable(ServerError):
    """
    A range that starts at or past the end.

    @ivar size_bytes: the size of the whole object.
    """

    default = "the range starts past the end of the object"

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.size_bytes = size_bytes


#: Reasons for refusing an upload: no space is left (the first three), its bytes do not match its name, or its user may
#: not upload.
QUOTA, MIN_FREE, DISK, CONTENT, RIGHTS = "quota", "min-free", "disk", "content", "rights"


class InsufficientStorage(ServerError):
    """
    The disk or a quota is full.

    @ivar cause: L{QUOTA}, L{MIN_FREE} or L{DISK}.
    @ivar limit_of: the name of the quota's owner; empty if no quota is involved.
    """

    default = "no space left on the server's disk"

    def __init__(self, message: str = "", cause: str = DISK, limit_of: str = "") -> None:
        super().__init__(message)
        self.args = (self.message, cause, limit_of)
        self.cause = cause
        self.limit_of = limit_of

    def with_words(self, words: str) -> Self:
        """The same error with more words at the end of its message."""
        self.args = (f"{self.message}{words}", *self.args[1:])
        return self


class Unavailable(ServerError):
    """The request cannot be served now: the volume is missing, or too many requests are waiting. Clients retry."""

    default = "not available now"


class Busy(Unavailable):
    """
    There is no room for a request now, and there will be soon.

    @ivar retry_after_s: when the client may try again, in whole seconds.
    """

    retry_after_s = 2


class TooManyUploads(Busy):
    """As many uploads are in flight as are allowed."""

    default = "too many uploads at once: try again later"


class SpoolFull(Busy):
    """There is no room for another upload on its way to an object store."""

    default = "no room for more uploads at once: try again later"


class TooLarge(ServerError):
    """An object is larger than the server takes."""

    default = "the object is too large"


class RequestTimeout(ServerError):
    """The client did not send its request in time."""

    default = "the request did not come in time"


class HeaderTooLarge(BadRequest):
    """The request line or the header fields exceed the limit."""

    default = "request header too large"


#: The longest name in a message that continues with numbers. A reason phrase is limited to 200 bytes.
_LONGEST_NAME = 80


def short_name(name: str) -> str:
    """Shorten a name so that the rest of the message still fits into a reason phrase."""
    if len(ascii(name)) - 2 <= _LONGEST_NAME:
        return name
    kept = ""
    for letter in name:
        if len(ascii(kept + letter)) + 1 > _LONGEST_NAME:
            break
        kept += letter
    return f"{kept}..."


class StartError(Exception):
    """
    The server cannot start: a setting is invalid, a file cannot be read, or an address cannot be bound.

    The message is the one line that the operator sees in the terminal. It begins with the flag at fault, such as
    C{--path:}. If the value was set in the environment or the configuration file, that source replaces the flag.
    """
