"""
The lines that the server logs when it starts: which features are on and off.
"""

from __future__ import annotations

from twisted.logger import Logger

from ..access.proxies import TrustedProxies
from ..config.settings import Settings

_log = Logger()


def warn(settings: Settings) -> None:
    """Log which flags are allowed but probably a mistake."""
    if settings.path_is_default:
        _log.warn(
            "WARNING: no --path given; backups are stored in {path}, which the system may empty at any time",
            path=settings.path,
        )
    if settings.prometheus_no_auth and not settings.metrics:
        # rest-server accepts this flag alone, so it is not an error.
        _log.warn("--prometheus-no-auth has no effect without --prometheus or --metrics-listen")


def announce(settings: Settings, users_loaded: bool) -> None:
    """
    Log which features are on and off, in rest-server's wording, because people and scripts look for it.

    @param users_loaded: whether the htpasswd file was read.
    """
    warn(settings)
    if settings.location is None:
        _log.info("Data directory: {path}", path=settings.path)
    else:
        _log.info("Object store: {path}", path=settings.path)
    if settings.no_auth:
        _log.info("Authentication disabled")
    elif settings.proxy_auth_username:
        _log.info("Proxy Authentication enabled.")
        trusted = TrustedProxies.parse(settings.trusted_proxies or ()).describe()
        header = settings.proxy_auth_username
        _log.info("The header {header} is trusted from {trusted}", header=header, trusted=trusted)
    else:
        _log.info("Authentication enabled")
    if settings.tls_client_ca:
        _log.info("Client certificates are verified with {path}", path=settings.tls_client_ca)
    if users_loaded:
        _log.info("Loaded htpasswd file {path}", path=settings.htpasswd_path)
    if settings.policy:
        _log.info("Loaded policy {path}", path=settings.policy)
    if settings.read_only:
        _log.info("Read only mode enabled")
    for what, on in (
        ("Append only mode", settings.append_only),
        ("Private repositories", settings.private_repos),
        ("Group accessible repos", settings.group_accessible_repos),
    ):
        # With a policy it is the policy that says so, and "disabled" would read as if everything were allowed.
        if on or not settings.policy or what == "Group accessible repos":
            _log.info("{what} {state}", what=what, state="enabled" if on else "disabled")
    if settings.tls:
        _log.info(
            "TLS enabled, private key {key}, pubkey {certificate}",
            key=settings.key_path,
            certificate=settings.certificate_path,
        )
