"""
What can go wrong, in words of the domain.

Every layer raises these; only L{resticserver.web.http1.replies} knows which HTTP status each one is.
A message is one line for the person who runs the client: what was refused and why, no paths of
the server and no secrets.
"""

from __future__ import annotations

from collections.abc import Iterable


class ServerError(Exception):
    """Base of everything that is an answer to the client and not a fault of the server."""

    default = "request failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default)

    def __str__(self) -> str:
        """The message alone; C{args} has all that makes an equal error in another process."""
        return self.message

    @property
    def message(self) -> str:
        """One line that says what was refused and why."""
        return str(self.args[0])


class NotFound(ServerError):
    """No such object, list or repository, or a path that names none."""

    default = "not found"


class NoSuchRepository(NotFound):
    """The repository was never made."""

    default = "no such repository"


class BadRequest(ServerError):
    """The request cannot be understood or its body is not what it says."""

    default = "bad request"


class HashMismatch(BadRequest):
    """The body's SHA-256 is not the name it was sent under."""

    default = "the hash of the content does not match the name"


class Unauthorized(ServerError):
    """No credentials, or credentials that are not known."""

    default = "authentication required"


class Forbidden(ServerError):
    """Known, but not allowed."""

    default = "not allowed"


class NotPermitted(Forbidden):
    """The policy refuses it to this user."""


class MethodNotAllowed(ServerError):
    """
    The path is there and does not take this method.

    @param message: why not, where that is not plain.

    @ivar allowed: the methods that it takes, in the order for the C{Allow} header.
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


#: Why an upload is refused: there is no room, its bytes are not what their name says, or its user may not.
QUOTA, MIN_FREE, DISK, CONTENT, RIGHTS = "quota", "min-free", "disk", "content", "rights"


class InsufficientStorage(ServerError):
    """
    The disk or a quota is full.

    @ivar cause: L{QUOTA}, L{MIN_FREE} or L{DISK}.
    @ivar limit_of: whose quota, in words; empty where it is none.
    """

    default = "no space left on the server's disk"

    def __init__(self, message: str = "", cause: str = DISK, limit_of: str = "") -> None:
        super().__init__(message)
        self.args = (self.message, cause, limit_of)
        self.cause = cause
        self.limit_of = limit_of


class Unavailable(ServerError):
    """Not now: the volume is gone, or too many wait already. Clients try again."""

    default = "not available now"


class HeaderTooLarge(BadRequest):
    """The request line or the header fields exceed the limit."""

    default = "request header too large"


#: The longest name in a message that has figures behind it: a reason phrase has 200 bytes for all of it.
_LONGEST_NAME = 80


def short_name(name: str) -> str:
    """A name for a message, cut off where it would leave no room for what stands behind it in a reason phrase."""
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
    The server cannot start: a bad setting, a file it cannot read, an address it cannot have.

    The message is the one line that the person at the terminal sees. It begins with the flag that it is about, as C{--path:};
    where the value was set elsewhere that is put in the flag's place.
    """
