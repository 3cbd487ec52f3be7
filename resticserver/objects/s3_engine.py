"""
An engine that speaks S3: obstore for objects, signed requests of our own for lists, the same credentials for both.
"""

from __future__ import annotations

from obstore.store import S3Store

from .location import Location
from .obstore_engine import NO_RETRIES, ObstoreEngine, client_options
from .s3 import open_s3


def make_s3_engine(location: Location) -> ObstoreEngine:
    """
    Make the engine of a bucket. Endpoint, region and credentials come from the environment and AWS's files; nothing is sent
    to the engine.

    @raise StartError: what is configured is missing or wrong.
    """
    settings, credentials, lists = open_s3(location)

    def client(writes: bool) -> S3Store:
        return S3Store(
            location.bucket,
            endpoint=settings.bucket_url if settings.virtual_hosted else settings.endpoint,
            region=settings.region,
            virtual_hosted_style_request=settings.virtual_hosted,
            credential_provider=credentials,  # type: ignore[arg-type]
            client_options=client_options(settings.endpoint, writes, settings.ca_file),
            retry_config=NO_RETRIES,
            # The engine verifies this, or the signed hash of the content; each of those tried verifies one of them.
            checksum_algorithm="sha256",
            # Nothing else in the environment may change what is sent.
            skip_signature=False,
            unsigned_payload=False,
            # An engine that ignores conditions is found at the start.
            conditional_put="etag",
        )

    return ObstoreEngine(str(location), settings.endpoint, client(True), client(False), lists, credentials.reload)
