"""
The limit on open file descriptors: raised at the start, with a part reserved for files.
"""

from __future__ import annotations

import resource

#: The limit is never raised above this value, the kernel's default maximum (fs.nr_open). Some containers have a hard
#: limit of a thousand million, and some programs try to close every possible descriptor.
MOST = 1 << 20
#: A quarter of the limit is reserved for files, but at most this many.
MOST_KEPT = 1024


def raise_limit() -> tuple[int, int]:
    """
    Raise the soft limit to the hard one, or to L{MOST}.

    @return: the former limits, soft and hard. Commands started by the server should get these: a program that uses
        C{select} cannot handle descriptors above 1023, and may rely on the soft limit to prevent them.
    """
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            pass  # in a sandbox: continue with the current limit
    return before


def bounds() -> tuple[int, int]:
    """
    Two descriptor numbers. A connection at or above the first one is too many, and its first request is answered with
    503. At or above the second one, there are not even enough descriptors left for that answer. A process always gets
    the lowest free number, so the number tells how many descriptors are in use.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if soft == resource.RLIM_INFINITY else soft
    kept = min(limit // 4, MOST_KEPT)
    return limit - kept, limit - kept // 2
