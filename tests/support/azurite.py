"""
Azure Blob Storage on loopback for tests: Azurite, from npm (C{npm install azurite}).

It saves the names of what it has every few seconds only, so tests do not kill it.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import os
import secrets
import shutil
import sys
import urllib.parse
import xml.etree.ElementTree
from base64 import b64encode
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from pathlib import Path

from .client import Reply
from .engines import REQUEST_S, RealEngine

#: Of the protocol.
_VERSION = "2021-12-02"
#: The header fields that are signed by their values alone, in their order.
_SIGNED_FIELDS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
#: Where C{make objects-check} installs it.
_INSTALLED = Path(sys.executable).parent.parent / "azurite" / "node_modules" / ".bin" / "azurite-blob"


def _azurite() -> str | None:
    return str(_INSTALLED) if _INSTALLED.exists() else shutil.which("azurite-blob")


class Azurite(RealEngine):
    """
    Azurite with one storage account.

    @ivar account: its name.
    @ivar key: its key.
    """

    name = "Azurite"
    scheme = "az"
    _ports_needed = 1

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.account = f"account{secrets.token_hex(4)}"
        self.key = secrets.token_bytes(32)

    @classmethod
    def reason(cls) -> str | None:
        """See L{RealEngine.reason}."""
        return "azurite-blob is not installed (npm install azurite)" if _azurite() is None else None

    def _launch(self, ports: Sequence[int]) -> None:
        azurite = _azurite()
        assert azurite is not None, self.reason()
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        accounts = {"AZURITE_ACCOUNTS": f"{self.account}:{b64encode(self.key).decode()}"}
        place = ("--blobHost", "127.0.0.1", "--blobPort", str(ports[0]), "--location", str(data))
        self._run(azurite, *place, "--disableTelemetry", environment=accounts)

    @property
    def endpoint(self) -> str:
        """The URL of the account."""
        return f"{super().endpoint}/{self.account}"

    def environment(self) -> dict[str, str]:
        """See L{RealEngine.environment}."""
        return {
            "AZURE_STORAGE_ACCOUNT": self.account,
            "AZURE_STORAGE_KEY": b64encode(self.key).decode(),
            "AZURE_STORAGE_BLOB_ENDPOINT": self.endpoint,
        }

    def _is_usable(self, bucket: str) -> bool:
        """See L{RealEngine._is_usable}."""
        made = self.request("PUT", f"/{bucket}", "restype=container").status in (201, 409)
        return made and self.request("GET", f"/{bucket}", "comp=list&restype=container").status == 200

    def request(
        self,
        method: str,
        path: str,
        query: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Reply:
        """See L{RealEngine.request}. A PUT of a blob is answered 201."""
        path = f"/{self.account}{path}"
        signed = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        signed |= {name.lower(): value for name, value in (headers or {}).items()}
        if method == "PUT" and not query:
            signed["x-ms-blob-type"] = "BlockBlob"
        length = {"content-length": str(len(body))}
        signed["Authorization"] = self.authorization(method, path, query, {**signed, **length})
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=REQUEST_S)
        try:
            # Without this a body would get a Content-Type, which would have to be signed; an empty one needs its length.
            connection.putrequest(method, f"{path}?{query}" if query else path, skip_accept_encoding=True)
            for name, value in signed.items():
                connection.putheader(name, value)
            if method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Reply(response.status, response.reason, response.headers, response.read())
        finally:
            connection.close()

    def authorization(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
        """
        The header field that signs a request with the account's key. Source:
        U{https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key}

        @param path: percent-encoded, with the account.
        @param query: percent-encoded.
        @param headers: by name in lower case.
        """
        fields = {**headers, "content-length": headers.get("content-length", "").removeprefix("0")}
        lines = [method, *(fields.get(name, "") for name in _SIGNED_FIELDS)]
        lines += [f"{name}:{value}" for name, value in sorted(headers.items()) if name.startswith("x-ms-")]
        lines.append(f"/{self.account}{path}")
        parameters = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
        lines += [f"{name}:{value}" for name, value in parameters]
        signature = b64encode(hmac.digest(self.key, "\n".join(lines).encode(), hashlib.sha256)).decode()
        return f"SharedKey {self.account}:{signature}"

    def container_sas(self, container: str) -> str:
        """
        A shared access signature for a container, valid for an hour. Source:
        U{https://learn.microsoft.com/en-us/rest/api/storageservices/create-service-sas}
        """
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        expiry, rights, version = ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "racwdl", "2020-12-06"
        text = "\n".join(
            (
                rights,
                "",
                expiry,
                f"/blob/{self.account}/{container}",
                "",
                "",
                "",
                version,
                "c",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
            )
        )
        signature = b64encode(hmac.digest(self.key, text.encode(), hashlib.sha256)).decode()
        return urllib.parse.urlencode({"sp": rights, "se": expiry, "sv": version, "sr": "c", "sig": signature})

    def make_bucket(self, name: str) -> None:
        """See L{RealEngine.make_bucket}."""
        reply = self.request("PUT", f"/{name}", "restype=container")
        assert reply.status == 201, reply

    def remove_bucket(self, name: str) -> None:
        """See L{RealEngine.remove_bucket}."""
        reply = self.request("DELETE", f"/{name}", "restype=container")
        assert reply.status in (202, 404), reply

    def keys(self, bucket: str) -> list[str]:
        """See L{RealEngine.keys}."""
        found: list[str] = []
        marker = ""
        while True:
            query = "comp=list&restype=container" + (f"&marker={urllib.parse.quote(marker, safe='')}" if marker else "")
            reply = self.request("GET", f"/{bucket}", query)
            if reply.status == 404:
                return found
            assert reply.status == 200, reply
            root = xml.etree.ElementTree.fromstring(reply.body)
            found += [element.text or "" for element in root.findall("Blobs/Blob/Name")]
            marker = root.findtext("NextMarker") or ""
            if not marker:
                return found


def without_azure(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment without what names an account."""
    return {name: value for name, value in variables.items() if not name.startswith("AZURE_")}
