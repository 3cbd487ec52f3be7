"""
Where a container of Azure Blob Storage is and what it is reached with, from the environment, as Azure's own tools, obstore and
restic name it. Sources: U{https://learn.microsoft.com/en-us/azure/storage/common/storage-configure-connection-string},
U{https://learn.microsoft.com/en-us/cli/azure/azure-cli-configuration}
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from binascii import Error as NoBase64
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import StartError
from .location import Location, checked_endpoint

#: Names certificates to trust instead of the system's, as for the C{az} command.
CA_VARIABLE = "REQUESTS_CA_BUNDLE"

_CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
#: The names of what is set alone: Azure's own tools, obstore, restic. The first that is set counts.
_ACCOUNT = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME")
_KEY = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_ACCOUNT_KEY")
_SAS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_ACCOUNT_SAS")
_ENDPOINT = ("AZURE_STORAGE_BLOB_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_SUFFIX = ("AZURE_ENDPOINT_SUFFIX",)
_DEFAULT_SUFFIX = "core.windows.net"

#: https://learn.microsoft.com/en-us/azure/storage/common/storage-account-overview
_NAME = re.compile(r"[a-z0-9]{3,24}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]+)?")
#: A token is a query with a signature.
_TOKEN = re.compile(r"(?=.*\bsig=)[!-~]+")


@dataclass(frozen=True)
class AzureSettings:
    """
    How a container is reached. Nothing secret is shown by C{repr}.

    @ivar account: the name of the storage account.
    @ivar endpoint: the URL of its Blob service, without a slash at the end.
    @ivar key: of the account; empty if there is a token.
    @ivar sas: a shared access signature, as a query without the question mark; empty if there is a key.
    @ivar ca_file: the certificates to trust instead of the system's; C{None} for those.
    """

    account: str
    endpoint: str
    key: bytes = field(repr=False)
    sas: str = field(repr=False)
    ca_file: str | None


def find_azure_settings(location: Location, environ: Mapping[str, str] = os.environ) -> AzureSettings:
    """
    Find out how a container is reached.

    @raise StartError: what is configured is missing or wrong; the message shows nothing secret.
    """
    if text := environ.get(_CONNECTION_STRING):
        found, source = _from_connection_string(location, text), _CONNECTION_STRING
    else:
        names = {"account": _ACCOUNT, "key": _KEY, "sas": _SAS, "endpoint": _ENDPOINT, "suffix": _SUFFIX}
        found = {field: _first(environ, variables) for field, variables in names.items()}
        source = ", ".join(_ENDPOINT)
    account, key, sas = found["account"], found["key"], found["sas"].removeprefix("?")
    if not account:
        raise StartError(f"--path: {location}: no storage account; set {_CONNECTION_STRING}, or {_ACCOUNT[0]}")
    if _NAME.fullmatch(account) is None:
        raise StartError(f"--path: {location}: {account!a} is no name of a storage account")
    if not key and not sas:
        raise StartError(
            f"--path: {location}: no credentials; set {_CONNECTION_STRING}, {_KEY[0]} (the account's key) or {_SAS[0]}"
        )
    if sas and _TOKEN.fullmatch(sas) is None:
        raise StartError(f"--path: {location}: the shared access signature has no sig=, or characters that none has")
    ca_file = environ.get(CA_VARIABLE) or None
    if ca_file is not None and not os.path.isfile(ca_file):
        raise StartError(f"--path: {location}: the file of {CA_VARIABLE} is missing: {ca_file}")
    return AzureSettings(
        account,
        checked_endpoint(location, _endpoint(location, account, found), source),
        b"" if sas else _decoded(location, key),
        sas,
        ca_file,
    )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := environ.get(name))), "")


def _from_connection_string(location: Location, text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, value = part.partition("=")
        if not equals:
            raise StartError(f"--path: {location}: {_CONNECTION_STRING} is not Name=value;Name=value")
        parts[name.lower()] = value
    protocol = parts.get("defaultendpointsprotocol", "https")
    endpoint = parts.get("blobendpoint", "")
    suffix = parts.get("endpointsuffix", "")
    account = parts.get("accountname", "")
    if not endpoint and protocol == "http":
        endpoint = f"http://{account}.blob.{suffix or _DEFAULT_SUFFIX}"
    return {
        "account": account,
        "key": parts.get("accountkey", ""),
        "sas": parts.get("sharedaccesssignature", ""),
        "endpoint": endpoint,
        "suffix": suffix,
    }


def _endpoint(location: Location, account: str, found: Mapping[str, str]) -> str:
    if found["endpoint"]:
        return found["endpoint"]
    suffix = found["suffix"] or _DEFAULT_SUFFIX
    if _HOST.fullmatch(suffix) is None:
        raise StartError(f"--path: {location}: {suffix!a} is no end of a host name; correct {_SUFFIX[0]}")
    return f"https://{account}.blob.{suffix}"


def _decoded(location: Location, key: str) -> bytes:
    try:
        return b64decode(key, validate=True)
    except (NoBase64, ValueError):
        raise StartError(f"--path: {location}: the account's key is not in Base64") from None
