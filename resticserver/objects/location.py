"""
Where repositories lie if it is not a local directory: C{--path s3://bucket/prefix} or C{--path az://container/prefix}.
Pure rules, no I/O. Endpoint, region and credentials are no part of it: they come from the environment and the provider's files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import StartError

#: What can be written, for messages.
FORMS = "s3://bucket/prefix and az://container/prefix"

#: A key has 1,024 bytes at most; the folders of repositories and the names of objects come after the prefix.
MAX_PREFIX_BYTES = 512

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)+//")
#: Addresses as restic writes them, also without slashes. A directory of such a name can be given as C{./s3:name}.
_RESTIC = re.compile(r"(s3|az|azure|gs|b2|swift):", re.IGNORECASE)
_FORM = re.compile(r"(s3|az)://([^/]*)(?:/(.*))?\Z", re.IGNORECASE | re.DOTALL)
_RESTIC_S3 = re.compile(r"s3:(?:(https?)://|//)?([^/]+)/+(.+)", re.IGNORECASE | re.DOTALL)
_RESTIC_AZURE = re.compile(r"azure:([^:/]+):/*(.*)", re.IGNORECASE | re.DOTALL)

#: AWS's rules allow less (no upper case, no underscore); other engines have buckets of such names.
_BUCKET = re.compile(r"(?=.{3,63}\Z)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
#: https://learn.microsoft.com/en-us/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")

#: A password with a slash in it ends the bucket early.
_CREDENTIALS = re.compile(r"[a-z0-9]+://(?:[^/@:]+:.*|[^/]*)@", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Location:
    """
    A place in an object store.

    @ivar scheme: C{s3} or C{az}.
    @ivar bucket: the bucket; Azure calls it container.
    @ivar prefix: what all keys begin with: empty, or folders that each end with a slash.
    """

    scheme: str
    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        """As it is written in C{--path}."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


def is_location(path: str) -> bool:
    """
    Whether the value of C{--path} is meant as an address, not as a directory: each URL is, and what restic takes for an
    object store. L{parse_location} says which of them are right.
    """
    return _URL.match(path) is not None or _RESTIC.match(path) is not None


def parse_location(path: str) -> Location:
    """
    Read the value of C{--path}.

    @raise StartError: it is no valid address; the message says why, and shows no password.
    """
    form = _FORM.match(path)
    if form is None:
        raise _refused(path, _other_form(path))
    scheme, bucket, rest = form[1].lower(), form[2], form[3] or ""
    if _CREDENTIALS.match(path):
        raise _refused(path, "credentials do not belong here; set them in the environment or in the provider's files")
    if "?" in path or "#" in path:
        raise _refused(path, "? and # are not allowed")
    if not bucket:
        raise _refused(path, f"the {_container(scheme)} is missing; write {scheme}://{_container(scheme)}/prefix")
    if scheme == "s3" and (":" in bucket or _is_host_of_aws(bucket)):
        raise _refused(path, _other_form(path))
    if (_BUCKET if scheme == "s3" else _CONTAINER).fullmatch(bucket) is None or ".." in bucket:
        raise _refused(path, f"{ascii(bucket)[1:-1]} is no name of a {_container(scheme)}")
    return Location(scheme, bucket, _prefix(path, rest))


def checked_endpoint(location: Location, endpoint: str, source: str) -> str:
    """
    The normal form of the URL of an object store.

    @param source: where it was configured, for messages.
    @raise StartError: it is none of a service; the message does not show it, since it may contain a password.
    """
    wrong = f"--path: {location}: the endpoint ({source})"
    try:
        parts = urlsplit(endpoint)
        # Raises if it is no number.
        port = parts.port
    except ValueError:
        raise StartError(f"{wrong} is not a valid URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not endpoint.isascii():
        raise StartError(f"{wrong} must be a URL such as https://host:port")
    if re.search(r"[\x00-\x20\x7f\\%]", endpoint) or "//" in parts.path or "/." in parts.path:
        raise StartError(f"{wrong} must be a URL such as https://host:port")
    if "@" in parts.netloc:
        raise StartError(f"{wrong} must not contain credentials")
    if "?" in endpoint or "#" in endpoint:
        raise StartError(f"{wrong} must not contain ? and #")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _prefix(path: str, rest: str) -> str:
    """The normal form of a prefix."""
    if not rest:
        return ""
    rest = rest.removesuffix("/")
    segments = rest.split("/")
    if "" in segments:
        raise _refused(path, "the prefix has an empty folder (two slashes)")
    if "." in segments or ".." in segments:
        raise _refused(path, "the prefix must not contain the folders . and ..")
    if _CONTROL.search(rest) or "\\" in rest:
        raise _refused(path, "the prefix must not contain control characters and backslashes")
    try:
        size_bytes = len(rest.encode("utf-8"))
    except UnicodeEncodeError:
        raise _refused(path, "the prefix is not valid UTF-8") from None
    if size_bytes > MAX_PREFIX_BYTES:
        raise _refused(path, f"the prefix is longer than {MAX_PREFIX_BYTES} bytes")
    return f"{rest}/"


def _container(scheme: str) -> str:
    """What a provider calls a bucket."""
    return "bucket" if scheme == "s3" else "container"


def _is_host_of_aws(name: str) -> bool:
    return name.lower().endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _other_form(path: str) -> str:
    """What to write instead of an address that is none of ours."""
    if "@" not in path and (s3 := _RESTIC_S3.match(path)) is not None:
        wanted = f"s3://{s3[3].rstrip('/')}"
        endpoint = f" and set AWS_ENDPOINT_URL={(s3[1] or 'https').lower()}://{s3[2]}"
        return _masked(f"restic's form of an address; write {wanted}{'' if _is_host_of_aws(s3[2]) else endpoint}")
    if (azure := _RESTIC_AZURE.match(path)) is not None:
        return _masked(f"restic's form of an address; write az://{azure[1]}/{azure[2]}".rstrip("/"))
    if path.lower().startswith("s3:"):
        return "write s3://bucket/prefix, and set AWS_ENDPOINT_URL if the store is not AWS's"
    return f"no directory, and no address of an object store: {FORMS} are allowed"


def _masked(path: str) -> str:
    """An address in one line, without what may be secret: all before the last at sign, all after a question mark or hash."""
    scheme = _URL.match(path) or _RESTIC.match(path)
    start = 0 if scheme is None else scheme.end()
    at = path.rfind("@", start)
    shown = _QUERY.sub("...", path if at < 0 else f"{path[:start]}...{path[at:]}")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


def _refused(path: str, reason: str) -> StartError:
    return StartError(f"--path: {_masked(path)}: {reason}")
