"""
L{tests.support.faulty_engine} for Azure Blob Storage: the proxy in front of Azurite.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from .azurite import Azurite
from .faulty_engine import FaultyEngine, Request


@dataclass(frozen=True)
class AzureRequest(Request):
    """A request of Azure as it came; its path begins with the account."""

    ask_pages: ClassVar[tuple[str, ...]] = ("marker",)
    page_size: ClassVar[str] = "maxresults"
    next_token: ClassVar[re.Pattern[bytes]] = re.compile(rb"<NextMarker>([^<]+)</NextMarker>")

    @property
    def _parts(self) -> list[str]:
        return urllib.parse.unquote(self.path).split("/", 3)[2:]

    @property
    def bucket(self) -> str:
        """The container's name."""
        return self._parts[0] if self._parts else ""

    @property
    def key(self) -> str:
        """The object's name; empty, if this is about a container."""
        return self._parts[1] if len(self._parts) > 1 else ""

    @property
    def kind(self) -> str:
        """See L{Request.kind}."""
        return "LIST" if self.method == "GET" and self.query.get("comp") == "list" else self.method

    @property
    def removes(self) -> bool:
        """See L{Request.removes}; many are removed by a batch."""
        return self.method == "DELETE" or self.query.get("comp") == "batch"

    def error_headers(self, code: str) -> dict[str, str]:
        """The code is in the head too: the answer to a HEAD has no body."""
        return {"x-ms-request-id": "4442587FB7D0A2F9", "x-ms-error-code": code}


class FaultyAzurite(FaultyEngine):
    """See L{FaultyEngine}."""

    request_class = AzureRequest

    @property
    def _azurite(self) -> Azurite:
        assert isinstance(self.engine, Azurite)
        return self.engine

    @property
    def endpoint(self) -> str:
        """The URL of the account."""
        return f"{super().endpoint}/{self._azurite.account}"

    def environment(self) -> dict[str, str]:
        """See L{FaultyEngine.environment}."""
        return {**self._azurite.environment(), "AZURE_STORAGE_BLOB_ENDPOINT": self.endpoint}

    def sign(self, method: str, target: str, headers: Mapping[str, str]) -> dict[str, str]:
        """See L{FaultyEngine.sign}."""
        path, _, query = target.partition("?")
        return {**headers, "authorization": self._azurite.authorization(method, path, query, headers)}
