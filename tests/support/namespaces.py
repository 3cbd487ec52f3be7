"""
Mount and process namespaces of a test's own (Linux, util-linux): a root that cannot be written, a file that is a mount.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_MOUNTS = ("unshare", "--mount", "--propagation", "private")

#: All places that Python, C programs and people take for temporary files.
_TEMPORARY = ("/tmp", "/var/tmp", "/usr/tmp", "/dev/shm", "/run")


def no_namespaces(*kinds: str) -> str | None:
    """
    Why there are no such namespaces here, or C{None}.

    @param kinds: options of unshare(1).
    """
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    tried = subprocess.run(["unshare", *kinds, "true"], capture_output=True)
    return None if tried.returncode == 0 else "namespaces need more rights than the tests have"


def with_mounts(script: str) -> tuple[str, ...]:
    """
    A command line that ends by running what stands behind it, in a mount namespace of its own.

    @param script: what sh does in there before, with the tests' own mounts.
    """
    return (*_MOUNTS, "sh", "-e", "-c", f'{script}\nexec "$@"', "sh")


def with_read_only_root(*writable: Path) -> Sequence[str]:
    """
    The same where nothing can be written.

    @param writable: but for these directories.
    """
    lines = []
    for directory in ("/", *(path for path in _TEMPORARY if Path(path).is_dir())):
        lines += [f"mount --bind {directory} {directory}", f"mount -o remount,bind,ro {directory}"]
    for path in writable:
        lines += [f'mount --bind "{path}" "{path}"', f'mount -o remount,bind,rw "{path}"']
    return with_mounts("\n".join(lines))
