"""
The frozen settings of a server: the values of the flags, checked and typed. Nothing is opened here. The
defaults of the flags stand in L{resticserver.config.options}; those here are for tests and programs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..objects.location import Location, is_location, parse_location
from ..sizes import FreeSpace, Limit
from ..telemetry.concerns import DEFAULT, Thresholds

#: rest-server's default port, on all addresses of the machine.
DEFAULT_LISTEN = ":8000"


def default_path() -> str:
    """
    The data directory without C{--path}, as in rest-server: C{restic} in the temporary directory. This does not use
    C{tempfile}, which would try to write there, because the path is also shown in the help.
    """
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", "restic")


@dataclass(frozen=True)
class Settings:
    """
    The settings of one server, named after the flags.

    @ivar listen: addresses as given, at least one.
    @ivar htpasswd_file: C{None} means C{.htpasswd} in the data directory.
    @ivar log: the path of the access log, C{"-"} for stdout, or C{None} for no access log.
    @ivar log_format: C{"combined"} or C{"json"}.
    @ivar tls_cert: PEM certificate chain; C{None} means C{public_key} in the data directory.
    @ivar tls_key: PEM key; C{None} means C{private_key} in the data directory.
    @ivar tls_min_ver: C{"1.2"} or C{"1.3"}.
    @ivar policy: TOML file with access rules, or C{None}.
    @ivar auto_create: whether an upload creates a missing repository.
    @ivar max_depth: how many folders deep a repository may be.
    @ivar proxy_prefix: the folders before every repository in the paths that a proxy forwards.
    @ivar proxy_auth_username: the header in which a trusted proxy names the user, or C{None}.
    @ivar trusted_proxies: networks; C{None} means the loopback ones.
    @ivar auth_failures: failed logins per minute, of a user and of an address, before further ones are slowed down; 0
        for no limit.
    @ivar tls_client_ca: PEM file of the CAs that sign client certificates, or C{None}.
    @ivar tls_client_required: whether a client must present a certificate.
    @ivar tls_client_user: which part of the certificate is the user's name: C{"cn"}, C{"email"}, C{"dns"}, C{"none"}.
    @ivar max_size_bytes: the limit for all repositories together; 0 for no limit.
    @ivar min_free_bytes: how much of the disk must stay free; C{min_free_percent} likewise.
    @ivar state_dir: the directory of the state file; C{None} means C{.rest-server} in the data directory.
    @ivar spool_dir: where uploads to an object store wait until they are whole; C{None} means the state directory.
    @ivar spool_size_bytes: of all that wait there; 0 for no limit.
    @ivar objects_unconditional: whether an object store is used that ignores conditions.
    @ivar scrub_interval_s: within how many seconds each stored object is read and verified again; 0 for never.
    @ivar scrub_rate_bytes: how many bytes a second this reads at most; 0 for no limit.
    @ivar prometheus: whether C{/metrics} is served.
    @ivar prometheus_no_auth: whether C{/metrics} needs no authentication.
    @ivar metrics_listen: a separate address for metrics and health, or C{None}.
    @ivar on_event: the command for events and its arguments, or empty.
    @ivar header_timeout_s: how long the head of a request may take.
    @ivar stall_timeout_s: how long a body or an answer may move no byte.
    @ivar max_connections: of the server; 0 for no limit. C{max_connections_per_address}: of one address.
    @ivar max_object_size_bytes: of one object; 0 for no limit.
    @ivar max_uploads: in flight; 0 for no limit.
    @ivar bandwidth_up: bytes a second of all uploads; 0 for no limit. C{bandwidth_down}: of all downloads.
    @ivar thresholds: from which values on the status page warns.
    @ivar workers: the number of serving processes; 1 means a single process for everything.
    @ivar shutdown_timeout_s: how long transfers in flight may continue after the stop began.
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
    delete_delay_s: float = 0
    state_dir: str | None = None
    scrub_interval_s: float = 0.0
    scrub_rate_bytes: int = 20 << 20
    spool_dir: str | None = None
    spool_size_bytes: int = 4 << 30
    objects_unconditional: bool = False
    prometheus: bool = False
    prometheus_no_auth: bool = False
    metrics_listen: str | None = None
    on_event: tuple[str, ...] = ()
    log: str | None = None
    log_format: str = "combined"
    debug: bool = False
    cpu_profile: str | None = None
    header_timeout_s: float = 60.0
    stall_timeout_s: float = 310.0
    max_connections: int = 0
    max_connections_per_address: int = 0
    max_object_size_bytes: int = 1 << 30
    max_uploads: int = 0
    bandwidth_up: int = 0
    bandwidth_down: int = 0
    workers: int = 1
    shutdown_timeout_s: float = 30.0
    thresholds: Thresholds = DEFAULT
    path_is_default: bool = False

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON types, for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of L{as_json}. Lists become tuples again, which JSON does not have."""
        typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        typed["thresholds"] = Thresholds(**typed["thresholds"])
        return cls(**typed)

    @property
    def location(self) -> Location | None:
        """The bucket that C{--path} names; C{None} for a directory."""
        return parse_location(self.path) if is_location(self.path) else None

    @property
    def passwords(self) -> bool:
        """
        Whether users have passwords. False without authentication, and if a proxy or certificates identify the users
        and no htpasswd file is given.
        """
        if self.no_auth:
            return False
        certificates = self.tls_client_ca is not None and self.tls_client_user != "none"
        return self.htpasswd_file is not None or not (self.proxy_auth_username or certificates)

    @property
    def limit(self) -> Limit:
        """The limit of the whole server."""
        return Limit(self.max_size_bytes or None)

    @property
    def min_free(self) -> FreeSpace | None:
        """The space that must stay free; C{None} without C{--min-free}."""
        wanted = self.min_free_bytes or self.min_free_percent
        return FreeSpace(self.min_free_bytes, self.min_free_percent) if wanted else None

    @property
    def metrics(self) -> bool:
        """Whether metrics are served."""
        return self.prometheus or self.metrics_listen is not None

    @property
    def htpasswd_path(self) -> str:
        """The path of the htpasswd file."""
        return self.htpasswd_file or os.path.join(self.path, ".htpasswd")

    @property
    def certificate_path(self) -> str:
        """The path of the TLS certificate chain."""
        return self.tls_cert or os.path.join(self.path, "public_key")

    @property
    def key_path(self) -> str:
        """The path of the TLS private key."""
        return self.tls_key or os.path.join(self.path, "private_key")
