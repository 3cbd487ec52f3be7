"""
Signed GET requests to a bucket of S3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .credentials import Credentials
from .engine import AccessRefused, BucketMissing, EngineError
from .s3_settings import S3Settings
from .signed_requests import PASSING, Passing, Signed, SignedRequests, code_and_message


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

    def _signed(self, query: Mapping[str, str]) -> Signed:
        credential = self._credentials.current()
        # Sorted and encoded as the signature needs it.
        encoded = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        url = f"{self._settings.bucket_url}{'/' if self._settings.virtual_hosted else ''}?{encoded}"
        headers = self._credentials.sign("GET", url, self._settings.region, credential)
        return Signed(url, headers, lambda: self._credentials.reload(credential))

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        code, message = code_and_message(body)
        detail = f"{status} {code}: {message}" if message else f"{status} {code}".rstrip()
        if region := headers.get("x-amz-bucket-region"):
            detail += f" (the bucket is in the region {ascii(region[:40])[1:-1]}: see AWS_REGION)"
        if status == 404 and code == "NoSuchBucket":
            return BucketMissing(detail=detail)
        if status in (401, 403):
            return AccessRefused(detail=detail)
        if status >= 500 or status in PASSING:
            return Passing(detail)
        return EngineError(detail=detail)
