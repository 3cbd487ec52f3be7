"""
New password hashes, in the form that Apache's C{htpasswd -B} writes.
"""

from __future__ import annotations

import bcrypt

#: bcrypt ignores the bytes of a password after these.
BCRYPT_BYTES = 72

#: The range of htpasswd(1). 17 already takes some ten seconds per login.
COSTS = range(4, 18)

DEFAULT_COST = 12


def problem_of_password(password: bytes) -> str | None:
    """Why this cannot be a password; C{None} if it can."""
    if not password:
        return "the password is empty"
    if b"\0" in password:
        return "the password contains a NUL byte, which no client can send"
    return None


def hash_password(password: bytes, cost: int) -> bytes:
    """Hash a password; this takes a quarter of a second at cost 12. More than L{BCRYPT_BYTES} are ignored."""
    hashed = bcrypt.hashpw(password[:BCRYPT_BYTES], bcrypt.gensalt(cost))
    return b"$2y$" + hashed[4:]
