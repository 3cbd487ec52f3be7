"""
What root does for the server is done with the rights of the server's user, so that nothing that it makes belongs to root.
"""

from __future__ import annotations

import os


def act_as_owner_of(path: str) -> None:
    """
    If this process runs as root, take the rights of the owner of a directory for all that follows.

    @raise OSError: the directory cannot be looked at, or the rights cannot be changed.
    """
    status = os.stat(path)
    if os.geteuid() != 0 or status.st_uid == 0:
        return
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
