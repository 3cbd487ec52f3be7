"""
An engine that speaks S3: obstore for objects, signed requests of our own for lists and for large uploads, the same credentials
for all.
"""

from __future__ import annotations

from obstore.store import S3Store

from .answers import meaning
from .credentials import Credentials
from .engine import AccessRefused, Content, EngineError, EngineFull, Exists
from .location import Location
from .obstore_engine import NO_RETRIES, ObstoreEngine, client_options
from .s3 import S3Lists, open_s3
from .s3_requests import S3Requests, checksum_field
from .s3_settings import S3Settings
from .signed_requests import code_and_detail

#: From this size on, in bytes, an upload is a request of our own. obstore hashes it twice and copies it, though its hash is
#: known; but it takes less time than urllib3 for the request as such.
LARGE_BYTES = 256 << 10


class S3Engine(ObstoreEngine):
    """
    See L{resticserver.objects.engine.Engine}.

    @param location: the bucket.
    """

    def __init__(self, location: Location, settings: S3Settings, credentials: Credentials, lists: S3Lists) -> None:
        writer, reader = (_client(location, settings, credentials, writes) for writes in (True, False))
        super().__init__(str(location), settings.endpoint, writer, reader, lists, credentials.reload)
        self._requests = S3Requests(settings, credentials)

    def _put(self, key: str, content: Content, sha256: bytes | None, is_new: bool) -> None:
        """See L{ObstoreEngine}."""
        if sha256 is None or len(content) < LARGE_BYTES:
            super()._put(key, content, sha256, is_new)
            return
        fields = checksum_field(sha256)
        if is_new:
            fields["If-None-Match"] = "*"
        with memoryview(content) as view:
            status, headers, body = self._requests.put(key, view, sha256, fields)
        code, detail = code_and_detail(status, body)
        # Engines may notice a failure after they have begun to answer with 200.
        if status == 200 and not code and headers.get("ETag"):
            return
        meant = meaning(status, code, detail)
        if isinstance(meant, AccessRefused):
            self._refused()
        expected = (EngineError, EngineFull, Exists) if is_new else (EngineError, EngineFull)
        raise meant if isinstance(meant, expected) else EngineError("", detail)


def make_s3_engine(location: Location) -> S3Engine:
    """
    Make the engine of a bucket. Endpoint, region and credentials come from the environment and AWS's files; nothing is sent
    to the engine.

    @raise StartError: what is configured is missing or wrong.
    """
    return S3Engine(location, *open_s3(location))


def _client(location: Location, settings: S3Settings, credentials: Credentials, writes: bool) -> S3Store:
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
