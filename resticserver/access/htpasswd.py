"""
Users and password hashes from an htpasswd file.

Reading and checking block (bcrypt takes some 75 ms at cost 10) and belong in a pool. bcrypt (C{$2y$ $2a$ $2b$}) and
C{{SHA}} are taken; an entry of another kind is named in the log and refuses everyone, without harm to the others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import bcrypt
from twisted.logger import Logger

from ..errors import StartError
from ..names import is_user_name

#: bcrypt looks at no more of a password than this; bcrypt 5 raises on longer ones.
_BCRYPT_BYTES = 72

_BCRYPT_PREFIXES = ("$2y$", "$2a$", "$2b$")
_SHA_PREFIX = "{SHA}"

_log = Logger()


def parse_htpasswd(text: str) -> tuple[dict[str, str], list[str]]:
    """
    The entries of an htpasswd file.

    @return: hashes by user (the last entry of a user holds, as in Apache), and one warning for each line that was left
        out; a bad line never breaks the others.
    """
    users: dict[str, str] = {}
    warnings = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        user, colon, hashed = line.partition(":")
        if not colon or not is_user_name(user):
            warnings.append(f"htpasswd line {number}: no valid user name, left out")
        elif not _is_known_hash(hashed):
            warnings.append(f"Invalid htpasswd entry for {user}. (line {number}: neither bcrypt nor {{SHA}})")
        else:
            users[user] = hashed
    return users, warnings


def _is_known_hash(hashed: str) -> bool:
    if hashed.startswith(_SHA_PREFIX):
        try:
            return len(base64.b64decode(hashed[len(_SHA_PREFIX) :], validate=True)) == hashlib.sha1().digest_size
        except ValueError:
            return False
    if not (hashed.startswith(_BCRYPT_PREFIXES) and len(hashed) == 60 and hashed.isascii()):
        return False
    return hashed[4:6].isdigit() and 4 <= int(hashed[4:6]) <= 31 and hashed[6] == "$"


def check_password(hashed: str, password: bytes) -> bool:
    """
    Whether a password has this hash; takes its time for bcrypt, with the GIL released.

    @param hashed: an entry that L{parse_htpasswd} let through.
    """
    if hashed.startswith(_SHA_PREFIX):
        digest = hashlib.sha1(password).digest()
        return hmac.compare_digest(base64.b64decode(hashed[len(_SHA_PREFIX) :]), digest)
    try:
        return bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed.encode("ascii"))
    except ValueError:
        return False


@dataclass(frozen=True)
class _Snapshot:
    """One reading of the file."""

    users: Mapping[str, str]
    stamp: tuple[int, ...]
    #: What an unknown user's password is checked against, so that both refusals cost the same.
    decoy: str


@dataclass
class Htpasswd:
    """
    The users of one htpasswd file, read again when it changes.

    Verified passwords are remembered for C{cache_s} seconds by a salted digest, together with the entry that they were
    verified against, so that a changed entry forgets them.

    @param clock: seconds that never go backwards.
    """

    path: str
    clock: Callable[[], float]
    cache_s: float = 60.0
    _snapshot: _Snapshot = field(init=False, repr=False)
    _verified: dict[bytes, float] = field(init=False, repr=False, default_factory=dict)
    _salt: bytes = field(init=False, repr=False, default_factory=lambda: secrets.token_bytes(32))
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def load(self) -> None:
        """
        Read the file for the first time.

        @raise StartError: it cannot be read.
        """
        try:
            self._snapshot = self._read()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise StartError(f"cannot load {self.path} (use --no-auth to disable authentication): {reason}") from error

    def reload_if_changed(self, force: bool = False) -> bool:
        """Read the file again if it changed; the old users stay if that fails. Whether it was read."""
        try:
            if not force and self._stamp_of(os.stat(self.path)) == self._snapshot.stamp:
                return False
            snapshot = self._read()
        except (OSError, UnicodeDecodeError) as error:
            _log.error("could not reload htpasswd file: {error}; the users known before stay", error=error)
            return False
        with self._lock:
            self._snapshot = snapshot
            self._verified.clear()
        _log.info("Reloaded htpasswd file")
        return True

    def _read(self) -> _Snapshot:
        with open(self.path, "rb") as file:
            stamp = self._stamp_of(os.fstat(file.fileno()))
            text = file.read().decode("utf-8")
        users, warnings = parse_htpasswd(text)
        for warning in warnings:
            _log.warn("{problem}", problem=ascii(warning)[1:-1])
        return _Snapshot(users, stamp, _decoy_like(users))

    @staticmethod
    def _stamp_of(status: os.stat_result) -> tuple[int, ...]:
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_cached(self, user: str, password: bytes) -> bool:
        """Whether this pair was verified within the last minute; quick, for the reactor's thread."""
        snapshot = self._snapshot
        hashed = snapshot.users.get(user)
        if hashed is None:
            return False
        until = self._verified.get(self._key(user, hashed, password))
        return until is not None and self.clock() < until

    def check(self, user: str, password: bytes) -> bool:
        """Whether user and password are right; blocks, and as long for an unknown user as for a wrong password."""
        snapshot = self._snapshot
        hashed = snapshot.users.get(user)
        if hashed is None:
            check_password(snapshot.decoy, password)
            return False
        if not check_password(hashed, password):
            return False
        with self._lock:
            now = self.clock()
            for key in [key for key, until in self._verified.items() if until <= now]:
                del self._verified[key]
            self._verified[self._key(user, hashed, password)] = now + self.cache_s
        return True

    def _key(self, user: str, hashed: str, password: bytes) -> bytes:
        parts = (user.encode(), hashed.encode(), password)
        return hmac.digest(self._salt, b"".join(b"%d:%s" % (len(part), part) for part in parts), "sha256")


def _decoy_like(users: Mapping[str, str]) -> str:
    """A hash that nobody has, of the kind and cost that most users have."""
    costs: dict[int, int] = {}
    for hashed in users.values():
        cost = int(hashed[4:6]) if hashed.startswith(_BCRYPT_PREFIXES) else 0
        costs[cost] = costs.get(cost, 0) + 1
    cost = max(costs, key=lambda c: costs[c], default=0)
    if cost == 0:
        return _SHA_PREFIX + base64.b64encode(secrets.token_bytes(20)).decode("ascii")
    salt = bcrypt.gensalt(cost).decode("ascii")
    # Making a real hash would cost as much as a login; any 31 letters of bcrypt's alphabet are as good.
    return salt + "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") for _ in range(31))
