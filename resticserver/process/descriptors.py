"""
How many descriptors the process may have: the limit is raised at the start, and some of them are kept for files.
"""

from __future__ import annotations

import resource

#: The limit is not raised beyond this, which is the kernel's own default for what it allows (fs.nr_open). Some containers
#: have a hard limit of a thousand million, and there are programs that try to close each of them.
MOST = 1 << 20
#: Of the limit, a quarter is kept from connections, but no more than this.
MOST_KEPT = 1024


def raise_limit() -> tuple[int, int]:
    """
    Raise the soft limit to the hard one, or to L{MOST}.

    @return: the limits as they were, soft and hard. A command that the server runs should have them: one that uses
        C{select} cannot bear descriptors above 1023, and may take the soft limit for a promise.
    """
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            pass  # a sandbox: it goes on with what there is
    return before


def bounds() -> tuple[int, int]:
    """
    From which descriptor on a connection is one too many: its first request is answered with 503; and from which on there is
    not even room for that. A process gets the lowest number that is free, so the number says how many there are.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if soft == resource.RLIM_INFINITY else soft
    kept = min(limit // 4, MOST_KEPT)
    return limit - kept, limit - kept // 2
