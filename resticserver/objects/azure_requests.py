"""
Signed GET requests to a container of Azure Blob Storage.
"""

from __future__ import annotations

import hmac
import time
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlsplit

from ..dates import http_text
from .azure_settings import CA_VARIABLE, AzureSettings
from .engine import AccessRefused, BucketMissing, EngineError
from .signed_requests import PASSING, Asked, Passing, Signed, SignedRequests, code_and_detail

#: Of Azure's protocol. The first one that encodes names in lists which XML cannot have is 2021-02-12.
VERSION = "2021-12-02"

#: Statuses below 500 that say that the container is not there. The second one is answered while it is being removed.
_NO_CONTAINER = frozenset(((404, "ContainerNotFound"), (409, "ContainerBeingDeleted")))


class AzureRequests(SignedRequests):
    """
    See L{SignedRequests}.

    @param container: its name.
    @param options: see there.
    """

    ca_variable = CA_VARIABLE

    def __init__(self, settings: AzureSettings, container: str, **options: Any) -> None:
        super().__init__(settings.endpoint, settings.ca_file, **options)
        self._settings = settings
        self._url = f"{settings.endpoint}/{container}"

    def _signed(self, asked: Asked) -> Signed:
        query = {"restype": "container", **asked.query}
        encoded = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        url = f"{self._url}?{encoded}"
        headers = {"x-ms-date": http_text(time.time()), "x-ms-version": VERSION}
        if self._settings.sas:
            return Signed("GET", f"{url}&{self._settings.sas}", headers, _no_others)
        signed = b64encode(hmac.digest(self._settings.key, self._to_sign(query, headers), sha256)).decode("ascii")
        return Signed(
            "GET", url, {**headers, "Authorization": f"SharedKey {self._settings.account}:{signed}"}, _no_others
        )

    def _to_sign(self, query: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
        """
        What is signed with the account's key. Source:
        U{https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key}
        """
        standard = "\n" * 11  # these header fields are not sent
        fields = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
        resource = f"/{self._settings.account}{urlsplit(self._url).path}"
        parameters = "".join(f"\n{name}:{value}" for name, value in sorted(query.items()))
        return f"GET\n{standard}{fields}{resource}{parameters}".encode()

    def _failure(self, asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        code, detail = code_and_detail(status, body)
        if (status, code) in _NO_CONTAINER:
            return BucketMissing(detail=detail)
        if status in (401, 403):
            return AccessRefused(detail=detail)
        if status >= 500 or status in PASSING:
            return Passing(detail)
        return EngineError(detail=detail)


def _no_others() -> bool:
    """The environment of a process does not change."""
    return False
