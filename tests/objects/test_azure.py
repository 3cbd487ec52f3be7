"""
Azure Blob Storage: what it is reached with, what it answers to lists, and an engine over Azurite.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Mapping
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.objects.azure import AzureLists
from resticserver.objects.azure_engine import make_azure_engine
from resticserver.objects.azure_list import parse_azure_page
from resticserver.objects.azure_requests import AzureRequests
from resticserver.objects.azure_settings import find_azure_settings
from resticserver.objects.engine import (
    Absent,
    AccessRefused,
    BeyondTheEnd,
    BucketMissing,
    EngineError,
    Exists,
    Found,
)
from resticserver.objects.location import Location
from resticserver.objects.pages import BadPage
from resticserver.storage.interface import WantedPart

from ..support.azurite import Azurite, without_azure
from ..support.engines import shared_engine
from ..support.processes import process_test

PLACE = Location("az", "container", "pre/")
KEY = b64encode(b"a secret key").decode()
TIME = "Fri, 27 Nov 2026 18:41:30 GMT"


class SettingsTests(SynchronousTestCase):
    """What is in the environment."""

    def refused(self, **environ: str) -> str:
        """Why it is not enough."""
        error = self.assertRaises(StartError, find_azure_settings, PLACE, environ)
        self.assertNotIn(KEY, str(error))
        return str(error)

    def test_names(self) -> None:
        """Azure's own names, obstore's, and restic's."""
        for account, key in (
            ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
            ("AZURE_ACCOUNT_NAME", "AZURE_ACCOUNT_KEY"),
        ):
            found = find_azure_settings(PLACE, {account: "acc", key: KEY})
            self.assertEqual(
                ("acc", "https://acc.blob.core.windows.net", b"a secret key", "", None),
                (found.account, found.endpoint, found.key, found.sas, found.ca_file),
            )
            self.assertNotIn("secret", repr(found))

    def test_sas(self) -> None:
        """A signature instead of the key."""
        for name in ("AZURE_STORAGE_SAS_TOKEN", "AZURE_ACCOUNT_SAS"):
            found = find_azure_settings(PLACE, {"AZURE_STORAGE_ACCOUNT": "acc", name: "?sv=2021&sig=abc%3D"})
            self.assertEqual((b"", "sv=2021&sig=abc%3D"), (found.key, found.sas))
            self.assertNotIn("abc", repr(found))

    def test_connection_string(self) -> None:
        """It has everything, and counts before all else."""
        text = f"DefaultEndpointsProtocol=https;AccountName=other;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn"
        found = find_azure_settings(PLACE, {"AZURE_STORAGE_CONNECTION_STRING": text, "AZURE_STORAGE_ACCOUNT": "acc"})
        self.assertEqual(("other", "https://other.blob.core.chinacloudapi.cn"), (found.account, found.endpoint))
        text = f"AccountName=acc;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:10000/acc/;"
        found = find_azure_settings(PLACE, {"AZURE_STORAGE_CONNECTION_STRING": text})
        self.assertEqual("http://127.0.0.1:10000/acc", found.endpoint)
        text = f"DefaultEndpointsProtocol=http;AccountName=acc;AccountKey={KEY}"
        found = find_azure_settings(PLACE, {"AZURE_STORAGE_CONNECTION_STRING": text})
        self.assertEqual("http://acc.blob.core.windows.net", found.endpoint)

    def test_other_endpoint(self) -> None:
        """Another cloud, or an emulator."""
        environ = {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": KEY}
        found = find_azure_settings(PLACE, {**environ, "AZURE_ENDPOINT_SUFFIX": "core.usgovcloudapi.net"})
        self.assertEqual("https://acc.blob.core.usgovcloudapi.net", found.endpoint)
        found = find_azure_settings(PLACE, {**environ, "AZURE_STORAGE_BLOB_ENDPOINT": "http://127.0.0.1:1/acc"})
        self.assertEqual("http://127.0.0.1:1/acc", found.endpoint)

    def test_missing(self) -> None:
        """What is missing is said with what to set."""
        self.assertIn("set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT", self.refused())
        self.assertIn("AZURE_STORAGE_KEY", self.refused(AZURE_STORAGE_ACCOUNT="acc"))

    def test_wrong(self) -> None:
        """What is wrong is said without what is secret."""
        known = {"AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": KEY}
        self.assertIn("no name of a storage account", self.refused(**{**known, "AZURE_STORAGE_ACCOUNT": "A_b"}))
        self.assertIn("not in Base64", self.refused(**{**known, "AZURE_STORAGE_KEY": "geheim!"}))
        self.assertNotIn("geheim", self.refused(**{**known, "AZURE_STORAGE_KEY": "geheim!"}))
        self.assertIn("has no sig=", self.refused(**{**known, "AZURE_STORAGE_SAS_TOKEN": "geheim"}))
        self.assertIn("AZURE_ENDPOINT_SUFFIX", self.refused(**known, AZURE_ENDPOINT_SUFFIX="a/b"))
        self.assertIn("must be a URL", self.refused(**known, AZURE_STORAGE_BLOB_ENDPOINT="host"))
        self.assertIn("missing: /nowhere", self.refused(**known, REQUESTS_CA_BUNDLE="/nowhere"))
        self.assertIn("Name=value", self.refused(AZURE_STORAGE_CONNECTION_STRING=f"{KEY[:8]}"))


def blob(name: str, size: object = 5, modified: str = TIME, properties: str = "", encoded: str = "") -> str:
    """One object of a list."""
    attribute = f' Encoded="{encoded}"' if encoded else ""
    return (
        f"<Blob><Name{attribute}>{name}</Name><Properties><Last-Modified>{modified}</Last-Modified>"
        f"<Etag>x</Etag><Content-Length>{size}</Content-Length>{properties}</Properties></Blob>"
    )


def page_of(*blobs: str, marker: str = "<NextMarker/>", more: str = "") -> bytes:
    """A page."""
    return (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="x" ContainerName="c">'
        f"<Prefix>a/</Prefix><MaxResults>2</MaxResults><Blobs>{''.join(blobs)}</Blobs>{marker}{more}</EnumerationResults>"
    ).encode()


class PageTests(SynchronousTestCase):
    """What is a page of a list, and what is none."""

    def test_page(self) -> None:
        """Names are without the prefix; the token says that there is more."""
        page = parse_azure_page(
            page_of(blob("a/b"), blob("a/c &amp; d", 0), marker="<NextMarker>2!go on</NextMarker>"), "a/"
        )
        self.assertEqual([Found("b", 5, 1795804890.0), Found("c & d", 0, 1795804890.0)], page.found)
        self.assertEqual(("2!go on", []), (page.token, page.folders))

    def test_folders(self) -> None:
        """With a delimiter, what lies deeper is one folder."""
        body = page_of("<BlobPrefix><Name>a/data/</Name></BlobPrefix>", blob("a/config"))
        page = parse_azure_page(body, "a/", by_folder=True)
        self.assertEqual((["data/"], ["config"]), (page.folders, [one.key for one in page.found]))

    def test_encoded_name(self) -> None:
        """A name that XML cannot have."""
        page = parse_azure_page(page_of(blob("a/%01%C3%BC", encoded="true"), blob("a/%20")), "a/")
        self.assertEqual(["\x01ü", "%20"], [one.key for one in page.found])

    def test_empty(self) -> None:
        """Nothing is there."""
        self.assertEqual(([], None, []), parse_azure_page(page_of(), "a/"))

    def test_none(self) -> None:
        """Anything else is refused, because a list that is too short makes prune lose data."""
        for body, why in (
            (page_of(blob("a/b"))[:-5], "no XML"),
            (b"<Error><Code>InternalError</Code></Error>", "not EnumerationResults"),
            (page_of(blob("a/b"), marker=""), "NextMarker is missing"),
            (
                page_of(blob("a/b"), marker="<NextMarker/><NextMarker>x</NextMarker>"),
                "NextMarker is missing, or is there",
            ),
            (page_of(blob("a/b"), more="<Error><Code>x</Code></Error>"), "something that no list has"),
            (page_of(blob("a/b"), more="<Blobs/>"), "Blobs is missing, or is there twice"),
            (page_of(blob("b/b")), "does not begin with the prefix"),
            (page_of(blob("a/b", "-1")), "the size of an object is wrong"),
            (page_of(blob("a/b", "")), "the size of an object is wrong"),
            (page_of(blob("a/b", modified="yesterday")), "the time of an object is wrong"),
            (page_of(blob("a/b", properties="<Content-Length>6</Content-Length>")), "Content-Length is missing, or"),
            (page_of("<Blob><Name>a/b</Name></Blob>"), "Properties is missing"),
            (page_of(blob("")), "no name"),
            (page_of(blob("a/%zz", encoded="true")), "not encoded"),
            (page_of(blob("a/%FF", encoded="true")), "not encoded"),
            (page_of(blob("a/b", encoded="perhaps")), "or a wrong one"),
            (page_of("<BlobPrefix><Name>a/data/</Name></BlobPrefix>"), "BlobPrefix"),
            (page_of("<Error/>"), "Name is missing"),
            (b"<!DOCTYPE x>" + page_of(), "declaration"),
        ):
            error = self.assertRaises(BadPage, parse_azure_page, body, "a/")
            self.assertIn(why, str(error), body)

    def test_not_grouped(self) -> None:
        """With a delimiter nothing lies deeper."""
        for body in (page_of(blob("a/b/c")), page_of("<BlobPrefix><Name>a/b/c/</Name></BlobPrefix>")):
            self.assertRaises(BadPage, parse_azure_page, body, "a/", True)


@process_test
class AzuriteTests(SynchronousTestCase):
    """An engine over Azurite."""

    skip = Azurite.reason()

    def setUp(self) -> None:
        self.azurite = shared_engine(Azurite)
        self.bucket = self.azurite.new_bucket(self)

    def use(self, **changed: str) -> Mapping[str, str]:
        """An environment for this engine, with these changes."""
        environ = {**without_azure(), **self.azurite.environment(), **changed}
        patched = mock.patch.dict(os.environ, environ, clear=True)
        patched.start()
        self.addCleanup(patched.stop)
        return environ

    def test_objects(self) -> None:
        """All that an engine does, and what it says of what is not there."""
        self.use()
        engine = make_azure_engine(Location("az", self.bucket))
        engine.put_new("a b/ü", b"0123456789")
        self.assertRaises(Exists, engine.put_new, "a b/ü", b"other")
        engine.put("empty", b"")
        self.assertEqual(10, engine.size_of("a b/ü"))
        for wanted, expected in (
            (WantedPart(2, 5), b"234"),
            (WantedPart(7), b"789"),
            (WantedPart(suffix=4), b"6789"),
            (WantedPart(suffix=40), b"0123456789"),
            (WantedPart(), b"0123456789"),
        ):
            body = engine.get("a b/ü", wanted)
            self.assertEqual((10, expected), (body.size_bytes, body.read()), wanted)
            self.assertEqual(b"", body.read())
        self.assertEqual(b"", engine.get("empty").read())
        for key, wanted in (("a b/ü", WantedPart(10)), ("a b/ü", WantedPart(11, 12)), ("empty", WantedPart(suffix=3))):
            self.assertRaises(BeyondTheEnd, engine.get, key, wanted)
        self.assertRaises(Absent, engine.get, "nothing")
        self.assertRaises(Absent, engine.size_of, "nothing")
        engine.remove("a b/ü")
        engine.remove("a b/ü")
        self.assertEqual([["empty"]], [[one.key for one in page] for page in engine.list_pages("")])

    def test_lists(self) -> None:
        """Page by page, from a name on, and by folders."""
        environ = self.use()
        keys = [*sorted(f"{letter}/{number}" for letter in "ab" for number in range(5)), "c"]
        engine = make_azure_engine(Location("az", self.bucket))
        for key in keys:
            engine.put_new(key, key.encode())
        settings = find_azure_settings(PLACE, environ)
        lists = AzureLists(AzureRequests(settings, self.bucket), page_objects=3)
        self.addCleanup(lists.close)
        self.assertEqual(keys, [one.key for page in lists.list_pages("") for one in page])
        self.assertEqual(keys[7:], [one.key for page in lists.list_pages("", "b/1") for one in page])
        self.assertEqual(["0", "1", "2", "3", "4"], [one.key for page in lists.list_pages("b/") for one in page])
        self.assertEqual((["a", "b"], ["c"]), lists.list_folder(""))
        self.assertEqual(([], []), lists.list_folder("d/"))

    def test_missing_container(self) -> None:
        """It is no empty one."""
        self.use()
        engine = make_azure_engine(Location("az", "no-such-container"))
        for call in (
            engine.check_bucket,
            lambda: list(engine.list_pages("")),
            lambda: engine.put_new("a", b"b"),
            lambda: engine.get("a"),
            lambda: engine.remove("a"),
        ):
            self.assertRaises(BucketMissing, call)

    def test_wrong_key(self) -> None:
        """It is said so, for each request."""
        self.use(AZURE_STORAGE_KEY=KEY)
        engine = make_azure_engine(Location("az", self.bucket))
        for call in (
            engine.check_bucket,
            lambda: engine.put_new("a", b"b"),
            lambda: engine.get("a"),
            lambda: engine.size_of("a"),
            lambda: engine.remove("a"),
        ):
            self.assertRaises(AccessRefused, call)

    def test_shared_access_signature(self) -> None:
        """With a signature for the container instead of the key."""
        token = self.azurite.container_sas(self.bucket)
        self.use(AZURE_STORAGE_KEY="", AZURE_STORAGE_SAS_TOKEN=token)
        engine = make_azure_engine(Location("az", self.bucket))
        engine.put_new("a", b"content")
        self.assertEqual(b"content", engine.get("a").read())
        self.assertEqual([["a"]], [[one.key for one in page] for page in engine.list_pages("")])
        engine.remove("a")
        self.assertRaises(Absent, engine.size_of, "a")

    def test_silent(self) -> None:
        """An engine that does not listen is an error that names no secret."""
        self.use(AZURE_STORAGE_BLOB_ENDPOINT="http://127.0.0.1:9/acc")
        engine = make_azure_engine(Location("az", self.bucket))
        error = self.assertRaises(EngineError, engine.put_new, "a", b"b")
        self.assertNotIn(b64encode(self.azurite.key).decode(), error.detail)

    def test_large(self) -> None:
        """An object of some MiB arrives whole."""
        self.use()
        engine = make_azure_engine(Location("az", self.bucket))
        content = os.urandom(5 << 20)
        engine.put_new("large", content)
        body, digest = engine.get("large"), hashlib.sha256()
        while piece := body.read():
            digest.update(piece)
        self.assertEqual(hashlib.sha256(content).hexdigest(), digest.hexdigest())
