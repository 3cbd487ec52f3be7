"""
The frozen settings of a server: what the flags say, checked and typed, and nothing that was opened yet.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass

#: rest-server's default port, on every address of the machine.
DEFAULT_LISTEN = ":8000"


def default_path() -> str:
    """The data directory when no C{--path} is given, as rest-server has it: C{restic} below the temporary directory."""
    return os.path.join(tempfile.gettempdir(), "restic")


@dataclass(frozen=True)
class Settings:
    """
    One server's settings; the names are those of the flags.

    @ivar listen: addresses as given, at least one.
    @ivar htpasswd_file: C{None} means C{.htpasswd} in the data directory.
    @ivar log: a file's path, C{"-"} for stdout, or C{None} for no access log.
    @ivar tls_cert: PEM certificate chain; C{None} means C{public_key} in the data directory.
    @ivar tls_key: PEM key; C{None} means C{private_key} in the data directory.
    @ivar tls_min_ver: C{"1.2"} or C{"1.3"}.
    @ivar shutdown_timeout_s: how long transfers in flight may go on after the stop began.
    """

    path: str
    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    no_auth: bool = False
    htpasswd_file: str | None = None
    private_repos: bool = False
    append_only: bool = False
    no_verify_upload: bool = False
    group_accessible_repos: bool = False
    tls: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_min_ver: str = "1.2"
    log: str | None = None
    debug: bool = False
    cpu_profile: str | None = None
    shutdown_timeout_s: float = 30.0
    path_is_default: bool = False

    @property
    def htpasswd_path(self) -> str:
        """The htpasswd file to read."""
        return self.htpasswd_file or os.path.join(self.path, ".htpasswd")

    @property
    def certificate_path(self) -> str:
        """The TLS certificate chain to serve."""
        return self.tls_cert or os.path.join(self.path, "public_key")

    @property
    def key_path(self) -> str:
        """The private key of that certificate."""
        return self.tls_key or os.path.join(self.path, "private_key")
