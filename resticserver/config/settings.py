"""
The frozen settings of a server: what the flags say, checked and typed, and nothing that was opened yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..sizes import FreeSpace, Limit

#: rest-server's default port, on every address of the machine.
DEFAULT_LISTEN = ":8000"


def default_path() -> str:
    """
    The data directory when no C{--path} is given, as rest-server has it: C{restic} below the temporary directory. Nothing is
    looked up (C{tempfile} would try to write there), because this is also a part of the help.
    """
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", "restic")


@dataclass(frozen=True)
class Settings:
    """
    One server's settings; the names are those of the flags.

    @ivar listen: addresses as given, at least one.
    @ivar htpasswd_file: C{None} means C{.htpasswd} in the data directory.
    @ivar log: a file's path, C{"-"} for stdout, or C{None} for no access log.
    @ivar log_format: C{"combined"} or C{"json"}.
    @ivar tls_cert: PEM certificate chain; C{None} means C{public_key} in the data directory.
    @ivar tls_key: PEM key; C{None} means C{private_key} in the data directory.
    @ivar tls_min_ver: C{"1.2"} or C{"1.3"}.
    @ivar policy: TOML file with the rules of who may do what, or C{None}.
    @ivar auto_create: whether an upload makes its repository where that is missing.
    @ivar max_depth: how many folders deep a repository may lie.
    @ivar proxy_prefix: folders before every repository, as a proxy passes them on.
    @ivar proxy_auth_username: the header in which a trusted proxy names the user, or C{None}.
    @ivar trusted_proxies: networks; C{None} means the loopback ones.
    @ivar auth_failures: failed logins a minute, for a user and for an address, before they are slowed; 0 for no limit.
    @ivar tls_client_ca: PEM file of the authorities that sign clients' certificates, or C{None}.
    @ivar tls_client_required: whether a client must show a certificate.
    @ivar tls_client_user: where the user's name stands in it: C{"cn"}, C{"email"}, C{"dns"}, C{"none"}.
    @ivar max_size_bytes: how much may be stored in all repositories together; 0 for no limit.
    @ivar min_free_bytes: how much of the disk must stay free, C{min_free_percent} likewise.
    @ivar state_dir: where the state file lies; C{None} means C{.rest-server} in the data directory.
    @ivar prometheus: whether C{/metrics} is there; C{prometheus_no_auth}: for everyone.
    @ivar metrics_listen: an address of its own for metrics and health, or C{None}.
    @ivar on_event: a command and its arguments that is told of events, or nothing.
    @ivar workers: how many processes serve; 1 is one process for everything.
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
    read_only: bool = False
    policy: str | None = None
    auto_create: bool = False
    max_depth: int = 2
    proxy_prefix: tuple[str, ...] = ()
    proxy_auth_username: str | None = None
    trusted_proxies: tuple[str, ...] | None = None
    auth_failures: int = 20
    tls_client_ca: str | None = None
    tls_client_required: bool = True
    tls_client_user: str = "cn"
    max_size_bytes: int = 0
    min_free_bytes: int = 0
    min_free_percent: float = 0.0
    state_dir: str | None = None
    prometheus: bool = False
    prometheus_no_auth: bool = False
    metrics_listen: str | None = None
    on_event: tuple[str, ...] = ()
    log: str | None = None
    log_format: str = "combined"
    debug: bool = False
    cpu_profile: str | None = None
    workers: int = 1
    shutdown_timeout_s: float = 30.0
    path_is_default: bool = False

    def as_json(self) -> dict[str, Any]:
        """The settings for another process, in what JSON has."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """What L{as_json} made, after its way through JSON, which has no tuples."""
        typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**typed)

    @property
    def passwords(self) -> bool:
        """Whether there are users with passwords: unless something else says who a user is, and nobody asked for them."""
        if self.no_auth:
            return False
        certificates = self.tls_client_ca is not None and self.tls_client_user != "none"
        return self.htpasswd_file is not None or not (self.proxy_auth_username or certificates)

    @property
    def limit(self) -> Limit:
        """That of the whole server."""
        return Limit(self.max_size_bytes or None)

    @property
    def min_free(self) -> FreeSpace | None:
        """What must stay free, if that was said."""
        wanted = self.min_free_bytes or self.min_free_percent
        return FreeSpace(self.min_free_bytes, self.min_free_percent) if wanted else None

    @property
    def metrics(self) -> bool:
        """Whether anyone can ask for metrics."""
        return self.prometheus or self.metrics_listen is not None

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
