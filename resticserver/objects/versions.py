"""
The versions of a bucket of S3: what is deleted there stays as an old version, which is the trash of an object store. Requests of
our own, since obstore knows no versions.

Sources: U{https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html},
U{https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from ..dates import zoned_seconds
from .engine import Absent, AccessRefused, EngineError
from .pages import BadPage, short, well_formed
from .s3_list import decoded_keys
from .s3_requests import S3Requests
from .signed_requests import Asked

_ROOT = "ListVersionsResult"
_PARTS = frozenset(
    "Name Prefix KeyMarker VersionIdMarker NextKeyMarker NextVersionIdMarker MaxKeys IsTruncated EncodingType Version "
    "DeleteMarker Delimiter CommonPrefixes".split()
)
_PAGE_VERSIONS = 1000

#: For how long it is trusted that versions are kept, in seconds.
SEEN_S = 60.0
DAY_S = 86_400


class Version(NamedTuple):
    """
    One version of an object, or the marker that says that it is deleted.

    @ivar key: without the prefix that was asked for.
    @ivar is_latest: whether it is what the key has now.
    @ivar modified_s: when it was stored, or the object deleted, in seconds since 1970 by the engine's clock.
    """

    key: str
    version_id: str
    is_marker: bool
    is_latest: bool
    size_bytes: int
    modified_s: float


class _Page(NamedTuple):
    """
    @ivar folders: without the prefix that was asked for, and without the slash; there are none unless they were asked for.
    @ivar following: the markers with which the next page is asked for; C{None} if this is the last one.
    """

    versions: list[Version]
    folders: list[str]
    following: dict[str, str] | None


class S3Versions:
    """
    The versions of one bucket. Blocking; safe from several threads. Each method may raise L{EngineError} and its subclasses.

    @param name: the bucket, for messages.
    """

    def __init__(self, name: str, requests: S3Requests) -> None:
        self.name = name
        self._requests = requests

    def are_kept(self) -> bool:
        """
        Whether what is deleted now stays as a version.

        @raise AccessRefused: the keys may not ask that.
        """
        return self._requests.get({"versioning": ""}, _is_enabled)

    def kept_days(self, prefix: str) -> int | None:
        """
        After how many days the bucket's own rules remove old versions below a prefix; C{None} if they do not.

        @raise AccessRefused: the keys may not ask that.
        """
        try:
            return self._requests.get({"lifecycle": ""}, lambda body: _shortest(body, prefix))
        except Absent:
            return None

    def pages(self, prefix: str) -> Iterator[list[Version]]:
        """All versions below a prefix, the keys in order, and of each key the newest first."""
        for page in self._pages({"prefix": prefix}):
            if page.versions:
                yield page.versions

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders right below a prefix in which something is, or was."""
        return [folder for page in self._pages({"prefix": prefix, "delimiter": "/"}) for folder in page.folders]

    def _pages(self, scope: Mapping[str, str]) -> Iterator[_Page]:
        asked = {"versions": "", "encoding-type": "url", "max-keys": str(_PAGE_VERSIONS), **scope}
        following: dict[str, str] = {}
        while True:
            page = self._requests.get(
                asked | following, lambda body: _page(body, scope["prefix"], "delimiter" in scope)
            )
            yield page
            if page.following is None:
                return
            if page.following == following:
                raise EngineError(detail="the list of versions does not come to an end")
            following = page.following

    def content(self, key: str, version_id: str) -> bytes:
        """
        The content of a small version.

        @raise Absent: it is gone.
        """
        return self._requests.request(Asked({"versionId": version_id}, key=key), bytes)

    def remove(self, key: str, version_id: str) -> None:
        """
        Remove a version for good, or a marker, so that what was deleted is back; one that is missing counts as removed.

        @raise AccessRefused: the keys may not do that, or the version is locked.
        """
        try:
            self._requests.request(Asked({"versionId": version_id}, "DELETE", key), bytes)
        except Absent:
            pass


class VersionsKept:
    """
    Makes sure that what is deleted stays for long enough, before it is deleted. What was seen is trusted for a minute.

    @param prefix: of all keys of the store.
    @param clock: seconds, monotonic.
    """

    def __init__(self, versions: S3Versions, prefix: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._versions = versions
        self._prefix = prefix
        self._clock = clock
        self._seen_s = float("-inf")
        self._problem = ""
        self._days: int | None = None

    def problem(self, keep_s: float) -> str:
        """
        Why the bucket does not keep what is deleted for so many seconds; empty if it does.

        @raise EngineError: the engine does not say.
        """
        if self._clock() - self._seen_s >= SEEN_S:
            self._problem, self._days = self._look()
            self._seen_s = self._clock()
        if self._problem or self._days is None or self._days * DAY_S >= keep_s:
            return self._problem
        return f"a lifecycle rule of {self._versions.name} removes old versions after {self._days} days"

    def _look(self) -> tuple[str, int | None]:
        """Why nothing is kept, and after how many days it is removed."""
        name = self._versions.name
        try:
            if not self._versions.are_kept():
                return f"{name} does not keep old versions: enable its versioning", None
        except AccessRefused:
            return f"the keys may not ask whether {name} keeps versions (s3:GetBucketVersioning)", None
        try:
            return "", self._versions.kept_days(self._prefix)
        except AccessRefused:
            return f"the keys may not ask when {name} removes old versions (s3:GetLifecycleConfiguration)", None


def _parsed(body: bytes, root_tag: str) -> ElementTree.Element:
    """An answer without its namespace."""
    well_formed(body)
    root = ElementTree.fromstring(body, ElementTree.XMLParser(encoding="utf-8"))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != root_tag:
        raise BadPage(f"the answer is {short(root.tag)}, not {root_tag}")
    return root


def _is_enabled(body: bytes) -> bool:
    return _parsed(body, "VersioningConfiguration").findtext("Status") == "Enabled"


def _shortest(body: bytes, prefix: str) -> int | None:
    """The fewest days of all rules that may apply to something below a prefix."""
    days = []
    for rule in _parsed(body, "LifecycleConfiguration").findall("Rule"):
        scope = (
            rule.findtext("Filter/Prefix") or rule.findtext("Filter/And/Prefix") or rule.findtext("Prefix") or ""
        ).strip()
        text = rule.findtext("NoncurrentVersionExpiration/NoncurrentDays")
        applies = scope.startswith(prefix) or prefix.startswith(scope)
        if text is not None and applies and rule.findtext("Status") == "Enabled":
            try:
                days.append(int(text))
            except ValueError:
                raise BadPage(f"a rule has {short(text)} days") from None
    return min(days, default=None)


def _page(body: bytes, prefix: str, by_folder: bool) -> _Page:
    """A page of versions."""
    root = _parsed(body, _ROOT)
    if not all(element.tag in _PARTS for element in root):
        raise BadPage("the answer has something that no list of versions has")
    entries = [element for element in root if element.tag in ("Version", "DeleteMarker")]
    folders = root.findall("CommonPrefixes")
    if folders and not by_folder:
        raise BadPage("keys are grouped, which was not asked for")
    is_encoded = root.findtext("EncodingType") == "url"
    keys = _below(prefix, [_text(entry, "Key") for entry in entries], is_encoded)
    names = _below(prefix, [_text(folder, "Prefix") for folder in folders], is_encoded)
    found = [_version(entry, key) for entry, key in zip(entries, keys, strict=True)]
    return _Page(found, [name.rstrip("/") for name in names], _following(root, is_encoded, by_folder))


def _below(prefix: str, keys: list[str], is_encoded: bool) -> list[str]:
    """Keys without the prefix that was asked for."""
    decoded = decoded_keys(keys, is_encoded)
    if not all(key.startswith(prefix) for key in decoded):
        raise BadPage("a key does not begin with the prefix that was asked for")
    return [key[len(prefix) :] for key in decoded]


def _following(root: ElementTree.Element, is_encoded: bool, by_folder: bool) -> dict[str, str] | None:
    """The markers with which the next page is asked for."""
    truncated = root.findtext("IsTruncated")
    if truncated == "false":
        return None
    key, version_id = root.findtext("NextKeyMarker"), root.findtext("NextVersionIdMarker")
    if truncated == "true" and key:
        markers = {"key-marker": decoded_keys([key], is_encoded)[0]}
        if version_id:
            return markers | {"version-id-marker": version_id}
        # A folder has no version.
        if by_folder:
            return markers
    raise BadPage("the list of versions goes on, and does not say where")


def _version(entry: ElementTree.Element, key: str) -> Version:
    is_marker = entry.tag == "DeleteMarker"
    version_id, latest, modified = (_text(entry, tag) for tag in ("VersionId", "IsLatest", "LastModified"))
    size = "0" if is_marker else _text(entry, "Size")
    try:
        is_latest = {"true": True, "false": False}[latest]
        return Version(key, version_id, is_marker, is_latest, int(size), zoned_seconds([modified])[0])
    except (ValueError, KeyError):
        raise BadPage(f"a version of {short(key)} is wrong") from None


def _text(entry: ElementTree.Element, tag: str) -> str:
    found = entry.findall(tag)
    if len(found) != 1 or not found[0].text:
        raise BadPage(f"an entry has no {tag}, or several")
    return found[0].text
