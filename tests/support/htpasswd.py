"""
htpasswd lines for tests.
"""

from __future__ import annotations

import base64
import hashlib

import bcrypt


def bcrypt_line(user: str, password: str) -> str:
    """A line with the cheapest bcrypt hash there is, in the form that Apache's htpasswd writes."""
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4, prefix=b"2b")).decode("ascii")
    return f"{user}:$2y${hashed[4:]}\n"


def sha_line(user: str, password: str) -> str:
    """A line with an unsalted SHA-1 hash."""
    digest = base64.b64encode(hashlib.sha1(password.encode()).digest()).decode("ascii")
    return f"{user}:{{SHA}}{digest}\n"
