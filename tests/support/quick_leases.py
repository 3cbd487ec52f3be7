"""
C{rest-server} with short times for the quota leases of an object store, so that tests need not wait for three quarters of an
hour until those of a killed server are taken back. Run as a program, with the flags of the server.
"""

from __future__ import annotations

import sys
from functools import partial

from resticserver.cli import main
from resticserver.objects.front_ends import Times
from resticserver.objects.leases import Leases
from resticserver.service import object_store, shared_limits

#: What holds on loopback: a request of a killed process ends at once.
TIMES = Times(usable_s=6.0, suspect_s=8.0, grace_s=4.0)
RENEW_S = 1.0
TIDY_S = 2.0
#: After so many seconds what a killed server had leased is back.
BACK_S = TIMES.suspect_s + TIMES.dead_s + 2 * RENEW_S


def run() -> None:
    """The server."""
    vars(object_store)["Leases"] = partial(Leases, times=TIMES)
    shared_limits.RENEW_S, shared_limits.TIDY_S = RENEW_S, TIDY_S
    sys.exit(main())


if __name__ == "__main__":
    run()
