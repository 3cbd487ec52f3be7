"""
Makes the store of repositories in a bucket from the settings.
"""

from __future__ import annotations

import os

from ..config.settings import Settings
from ..errors import StartError
from ..objects.engine import Engine
from ..objects.layout import Keys
from ..objects.leases import Leases
from ..objects.location import Location
from ..objects.probe import ProvenFile
from ..objects.scrubbed import BucketScrubbed
from ..objects.spool import Spool
from ..objects.store import ObjectStore
from ..objects.trash import BucketTrash
from ..objects.unconditional import Unconditional
from ..objects.versions import S3Versions
from ..storage.interface import ServedStore
from ..storage.state import StateFile
from ..storage.volume import FOLDER
from ..threads.pools import JobPool
from ..threads.reactor import IReactor
from .shared_limits import THREADS, SharedLimits

#: What must be installed, for messages.
EXTRA = "resticserver[objects]"
#: In the state directory: the bucket whose engine was tried.
PROVEN_FILE = "objects-proven"


def make_engine(location: Location) -> Engine:
    """
    Make the engine of a bucket; nothing is sent to it.

    @raise StartError: its libraries are not installed, or what is configured is wrong.
    """
    try:
        if location.scheme == "az":
            from ..objects.azure_engine import make_azure_engine

            return make_azure_engine(location)
        from ..objects.s3_engine import make_s3_engine

        return make_s3_engine(location)
    except ImportError as error:
        raise StartError(f"--path: {location}: needs the extra {EXTRA} ({error.name} is not installed)") from None


def make_versions(location: Location) -> S3Versions | None:
    """
    Make what knows the old versions of a bucket; C{None} if it cannot have any. Nothing is sent.

    @raise StartError: its libraries are not installed, or what is configured is wrong.
    """
    if location.scheme != "s3":
        return None
    from ..objects.s3 import open_s3_requests

    return S3Versions(str(location), open_s3_requests(location))


def make_object_store(settings: Settings, location: Location, state: StateFile) -> ObjectStore:
    """
    Make the store; nothing is opened.

    @raise StartError: its libraries are not installed, or there are no credentials.
    """
    assert settings.state_dir is not None
    engine = make_engine(location)
    proven = None
    if settings.objects_unconditional:
        engine = Unconditional(engine)
    else:
        subject = f"{location.scheme}://{location.bucket} at {engine.endpoint}"
        proven = ProvenFile(os.path.join(settings.state_dir, PROVEN_FILE), subject)
    store = ObjectStore(
        engine,
        location.prefix,
        Spool(settings.spool_dir or settings.state_dir, settings.spool_size_bytes),
        verify=not settings.no_verify_upload,
        max_depth=settings.max_depth,
        read_only=settings.read_only,
        proven=proven,
        versions=make_versions(location),
    )
    store.volume.expect(None, remembered_in=state.marker_file)
    return store


def make_bucket_trash(settings: Settings, location: Location) -> BucketTrash:
    """
    Make the trash of a bucket, for a command.

    @raise StartError: the bucket has none, or cannot be used.
    """
    versions = make_versions(location)
    if versions is None:
        raise StartError(f"{location}: there is no trash; old versions of deleted objects are only known of s3://")
    state = StateFile(settings.path, settings.state_dir, read_only=True)
    store = make_object_store(settings, location, state)
    store.volume.expect(state.marker())
    store.look()
    store.counting.versions = versions
    return BucketTrash(store.engine, versions, Keys(location.prefix), store.counting)


def make_shared_limits(settings: Settings, store: ServedStore, reactor: IReactor) -> SharedLimits:
    """Make what keeps the limits that all servers of a bucket share; nothing is sent before something is leased."""
    assert isinstance(store, ObjectStore) and settings.location is not None
    leases = Leases(store.engine, f"{settings.location.prefix}{FOLDER}/quota/")
    return SharedLimits(reactor, leases, store.counting, JobPool(reactor, "quota-leases", THREADS))


def make_scrubbed_bucket(settings: Settings, store: ServedStore) -> BucketScrubbed:
    """Make what the scrub sees of the store."""
    assert isinstance(store, ObjectStore) and settings.location is not None
    return BucketScrubbed(store.engine, Keys(settings.location.prefix), store.volume, settings.max_depth)
