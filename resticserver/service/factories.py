"""
The parts that both the server and its workers build from the settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.application.service import IService

from ..access.htpasswd import Htpasswd
from ..access.policy import Policy
from ..access.policyfile import PolicyFile
from ..config.settings import Settings
from ..errors import StartError
from ..storage.deletions import Deletions
from ..storage.directory_snapshots import Snapshots
from ..storage.interface import ServedStore
from ..storage.local import LocalStore
from ..storage.publish import Publisher
from ..storage.readonly import ReadOnlyStore
from ..storage.scrub_state import ScrubState
from ..storage.scrubbed import Scrubbed
from ..storage.scrubbed_files import ScrubbedFiles
from ..storage.state import StateFile
from ..storage.volume import Volume
from ..threads.reactor import IReactor
from .repeated import Repeated

if TYPE_CHECKING:
    from ..net.tls import ReloadingCertificates
    from ..threads.interface import Pool
    from .shared_limits import SharedLimits

#: How often to check whether the state file is idle.
STATE_INTERVAL_S = 10.0


def make_state(settings: Settings) -> StateFile:
    """Make the state file object; nothing is opened."""
    file_mode = 0o660 if settings.group_accessible_repos else 0o600
    return StateFile(settings.path, settings.state_dir, file_mode, may_be_frozen=settings.read_only)


def closes_idle_state_file(state: StateFile, pool: Pool, reactor: IReactor) -> IService:
    """A service that closes the state file when it is idle: a volume with an open file cannot be unmounted."""
    return Repeated("state file", reactor, STATE_INTERVAL_S, lambda: pool.run(state.close_if_idle), now=True)


def make_deletions(settings: Settings) -> Deletions:
    """Make the object that notes deletions for the scrub; nothing is opened."""
    return Deletions(settings.path, settings.state_dir, 0o660 if settings.group_accessible_repos else 0o600)


def make_scrub_state(settings: Settings) -> ScrubState:
    """Make the object for what the scrub knows; nothing is opened."""
    file_mode = 0o660 if settings.group_accessible_repos else 0o600
    return ScrubState(settings.path, settings.state_dir, file_mode, may_be_frozen=settings.read_only)


def make_scrubbed(settings: Settings, store: ServedStore) -> Scrubbed:
    """Make what the scrub sees of a store."""
    if isinstance(store, LocalStore):
        return ScrubbedFiles(store, store.counting)
    from .object_store import make_scrubbed_bucket

    return make_scrubbed_bucket(settings, store)


def make_shared_limits(settings: Settings, store: ServedStore, reactor: IReactor) -> SharedLimits | None:
    """Make what keeps the limits that other servers share; C{None} for a data directory, which no other server uses."""
    if settings.location is None:
        return None
    from . import object_store

    return object_store.make_shared_limits(settings, store, reactor)


def make_store(settings: Settings, state: StateFile) -> ServedStore:
    """
    Make the store; nothing is opened.

    @raise StartError: the object store cannot be used with these settings.
    """
    if settings.location is None:
        return make_local_store(settings, state)
    from .object_store import make_object_store  # its libraries are an extra, and take a while

    return make_object_store(settings, settings.location, state)


def make_local_store(settings: Settings, state: StateFile) -> LocalStore:
    """Make the store of the data directory; nothing is opened."""
    kind = ReadOnlyStore if settings.read_only else LocalStore
    store = kind(
        settings.path,
        verify=not settings.no_verify_upload,
        max_depth=settings.max_depth,
        min_free=settings.min_free,
        publisher=Publisher(0o660, 0o770) if settings.group_accessible_repos else Publisher(),
        snapshots=Snapshots(store=state),
    )
    store.volume.expect(None, remembered_in=state.marker_file)
    store.observe_removals(make_deletions(settings).add)
    return store


def load_users(settings: Settings, volume: Volume, seconds: Callable[[], float]) -> Htpasswd | None:
    """
    Read the htpasswd file; C{None} without passwords.

    @param seconds: the clock of its cache.
    @raise StartError: the file cannot be read.
    """
    if not settings.passwords:
        return None
    if settings.location is not None and settings.htpasswd_file is None:
        raise StartError("--htpasswd-file: name a file: with an object store there is no data directory for .htpasswd")
    htpasswd = Htpasswd(settings.htpasswd_path, seconds)

    def may_be_missing() -> bool:
        """
        Whether the file is on a data volume that is not mounted. It is read once the volume is back; until then logins are
        answered with 503.
        """
        if settings.location is not None or not settings.htpasswd_path.startswith(f"{settings.path}/"):
            return False
        try:
            return volume.is_missing()
        except OSError:
            return False

    htpasswd.load(may_be_missing)
    return htpasswd


def check_profile(path: str | None) -> None:
    """
    Check that the file of C{--cpu-profile} can be written.

    @raise StartError: it cannot.
    """
    if not path:
        return
    if os.path.isdir(path):
        raise StartError(f"--cpu-profile: cannot write {path}: it is a directory")
    if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise StartError(f"--cpu-profile: cannot write {path}: no such directory, or no permission to write to it")


def make_policy(settings: Settings) -> tuple[Policy, PolicyFile | None]:
    """Make the rules of the flags, and the policy file, which is not read yet."""
    flags = Policy(
        settings.append_only, settings.private_repos, settings.read_only, delete_delay_s=settings.delete_delay_s
    )
    return flags, None if settings.policy is None else PolicyFile(settings.policy, flags)


def make_certificates(settings: Settings) -> ReloadingCertificates | None:
    """
    Make the server's certificates; C{None} without TLS.

    @raise StartError: a file cannot be used.
    """
    if not settings.tls:
        return None
    if settings.location is not None and not (settings.tls_cert and settings.tls_key):
        raise StartError(
            "--tls: needs --tls-cert and --tls-key: with an object store there is no data directory for them"
        )
    from ..net.tls import ReloadingCertificates  # importing OpenSSL takes a while

    return ReloadingCertificates(
        settings.certificate_path,
        settings.key_path,
        settings.tls_min_ver,
        settings.tls_client_ca,
        settings.tls_client_required,
    )
