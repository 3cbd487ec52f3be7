"""
Signed requests to a bucket of S3.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .credentials import Credentials
from .engine import Absent, AccessRefused, BucketMissing, EngineError
from .s3_settings import S3Settings
from .signed_requests import PASSING, Answer, Asked, Passing, Signed, SignedRequests, code_and_detail

#: What was asked for is not there; for a lifecycle that means that there are no rules.
_ABSENT = frozenset(("NoSuchLifecycleConfiguration", "NoSuchVersion"))


class S3Requests(SignedRequests):
    """
    See L{SignedRequests}.

    @param options: see there.
    """

    ca_variable = "AWS_CA_BUNDLE"

    def __init__(self, settings: S3Settings, credentials: Credentials, **options: Any) -> None:
        super().__init__(settings.endpoint, settings.ca_file, **options)
        self._settings = settings
        self._credentials = credentials

    def put(self, key: str, content: bytes | memoryview, sha256: bytes, headers: Mapping[str, str]) -> Answer:
        """
        Store an object, by one attempt.

        @param sha256: of the content. The signature is for it, and not for the content itself, which is not read for that.
        @raise EngineError: there was no answer.
        """
        url = f"{self._settings.bucket_url}/{quote(key, safe='-_.~/')}"
        return self._store(
            url, self._credentials.sign("PUT", url, self._settings.region, None, sha256, headers), content
        )

    def _signed(self, asked: Asked) -> Signed:
        credential = self._credentials.current()
        # Sorted and encoded as the signature needs it.
        encoded = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(asked.query.items()))
        slash = "/" if self._settings.virtual_hosted or asked.key else ""
        url = f"{self._settings.bucket_url}{slash}{quote(asked.key, safe='-_.~/')}?{encoded}"
        headers = self._credentials.sign(asked.method, url, self._settings.region, credential)
        return Signed(asked.method, url, headers, lambda: self._credentials.reload(credential))

    def _failure(self, asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        code, detail = code_and_detail(status, body)
        if region := headers.get("x-amz-bucket-region"):
            detail += f" (the bucket is in the region {ascii(region[:40])[1:-1]}: see AWS_REGION)"
        if status == 404 and code == "NoSuchBucket":
            return BucketMissing(detail=detail)
        if status == 404 and (code in _ABSENT or (asked.key and code == "NoSuchKey")):
            return Absent()
        if status in (401, 403):
            return AccessRefused(detail=detail)
        if status >= 500 or status in PASSING:
            return Passing(detail)
        return EngineError(detail=detail)


def checksum_field(sha256: bytes) -> dict[str, str]:
    """The header field from which an engine knows what an object's SHA-256 must be, apart from the signature."""
    return {"x-amz-checksum-sha256": b64encode(sha256).decode("ascii")}
