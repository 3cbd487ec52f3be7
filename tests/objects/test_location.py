"""
The addresses of object stores in C{--path}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.objects.location import MAX_PREFIX_BYTES, Location, is_location, parse_location


class IsLocationTests(SynchronousTestCase):
    """What is meant as an address."""

    def test_directories(self) -> None:
        """Directories are none, whatever is in their names."""
        for path in ("/srv/restic", "backups", "./s3:bucket", "/srv/s3://x", "s3", "s3bucket", "", "a/az:b", "C", "~"):
            self.assertFalse(is_location(path), path)

    def test_addresses(self) -> None:
        """Each URL is meant as one, and what restic takes for an object store."""
        for path in (
            *("s3://bucket", "S3://bucket/x", "az://container", "gs://b", "https://host/bucket", "file:///srv"),
            *("s3:https://host/bucket", "s3:host/bucket", "azure:container:/x", "gs:b:/x", "b2:b:x", "swift:c:/x"),
        ):
            self.assertTrue(is_location(path), path)


class ParseTests(SynchronousTestCase):
    """How addresses are read."""

    def assert_refused(self, path: str, *words: str) -> str:
        """It is refused in one line that begins with the flag and contains these words; that line."""
        message = str(self.assertRaises(StartError, parse_location, path))
        self.assertTrue(message.startswith("--path: "), message)
        self.assertTrue(message.isprintable(), message)
        for word in words:
            self.assertIn(word, message)
        return message

    def test_valid(self) -> None:
        """Scheme, bucket and the normal form of the prefix."""
        for path, location in (
            ("s3://bucket", Location("s3", "bucket")),
            ("s3://bucket/", Location("s3", "bucket")),
            ("S3://bucket/some/prefix", Location("s3", "bucket", "some/prefix/")),
            ("s3://bucket/some/prefix/", Location("s3", "bucket", "some/prefix/")),
            ("s3://My_Bucket.1/Größe 50%/a+b", Location("s3", "My_Bucket.1", "Größe 50%/a+b/")),
            ("s3://bucket/user@host:1/x", Location("s3", "bucket", "user@host:1/x/")),
            ("az://container/prefix", Location("az", "container", "prefix/")),
        ):
            self.assertEqual(location, parse_location(path))

    def test_text_form(self) -> None:
        """An address is shown as it is written."""
        for path in ("s3://bucket", "s3://bucket/some/prefix", "az://container/x"):
            self.assertEqual(path, str(parse_location(path)))
            self.assertEqual(path, str(parse_location(f"{path}/")))

    def test_buckets(self) -> None:
        """A bucket must be there and have a valid name."""
        for path in ("s3://", "s3:///prefix"):
            self.assert_refused(path, "the bucket is missing; write s3://bucket/prefix")
        self.assert_refused("az://", "the container is missing; write az://container/prefix")
        for bucket in ("ab", "a" * 64, "-abc", "abc-", "a..b", "büro", "a b", "a\nb", "a\\b"):
            self.assert_refused(f"s3://{bucket}/x", "is no name of a bucket")
        for container in ("ab", "Abc", "a_b", "a.b", "a--b", "abc-"):
            self.assert_refused(f"az://{container}", f"{container} is no name of a container")

    def test_prefixes(self) -> None:
        """A prefix must be one that every engine keeps as it is."""
        for prefix in ("/x", "a//b", "a//", "/"):
            self.assert_refused(f"s3://bucket/{prefix}", "empty folder")
        for prefix in (".", "..", "a/../b", "a/."):
            self.assert_refused(f"s3://bucket/{prefix}", "the folders . and ..")
        for prefix in ("a\nb", "a\x7f", "\x00", "a\\b", "\u2028", "a\n"):
            self.assert_refused(f"s3://bucket/{prefix}", "control characters")
        self.assert_refused("s3://bucket/\udcff", "not valid UTF-8")
        longest = "ä" * (MAX_PREFIX_BYTES // 2)
        self.assertEqual(f"{longest}/", parse_location(f"s3://bucket/{longest}").prefix)
        self.assert_refused(f"s3://bucket/{longest}x", f"longer than {MAX_PREFIX_BYTES} bytes")

    def test_query_and_fragment(self) -> None:
        """They are refused, and not shown: there may be a key in them."""
        for path in (
            "s3://bucket/x?key=geheim",
            "s3://bucket?key=geheim",
            "s3://bucket/x#geheim",
            "s3://bucket#geheim",
        ):
            self.assertNotIn("geheim", self.assert_refused(path, "? and # are not allowed"))

    def test_credentials(self) -> None:
        """Credentials are refused and not shown, with slashes in them too."""
        for path in (
            *("s3://AKIA:geheim@bucket/x", "s3://geheim@bucket", "s3://AKIA:ge/heim@bucket/x", "az://a:geheim@b"),
            *("s3:https://AKIA:geheim@host/bucket", "https://u:geheim@host", "s3:AKIA:geheim@host/bucket"),
            *("azure:c:geheim@x/", "gs://u:geheim@bucket", "s3://a:b:geheim@c", "S3://AKIA:geheim/@b"),
        ):
            message = self.assert_refused(path)
            self.assertNotIn("heim", message)
        self.assert_refused("s3://AKIA:x@bucket/x", "credentials do not belong here")
        self.assert_refused("s3://AKIA:x/y@bucket/x", "credentials do not belong here")

    def test_forms_of_restic(self) -> None:
        """The message says what to write instead of restic's address."""
        for path, words in (
            ("s3:https://host/bucket", "write s3://bucket and set AWS_ENDPOINT_URL=https://host"),
            ("s3:http://host:9000/bucket/a/b", "write s3://bucket/a/b and set AWS_ENDPOINT_URL=http://host:9000"),
            ("s3:host/bucket/", "write s3://bucket and set AWS_ENDPOINT_URL=https://host"),
            ("s3://host:9000/bucket/x", "write s3://bucket/x and set AWS_ENDPOINT_URL=https://host:9000"),
            ("s3:", "write s3://bucket/prefix"),
            ("azure:container:/x", "write az://container/x"),
            ("azure:container:/", "write az://container"),
        ):
            self.assert_refused(path, words)
        for path in ("s3:s3.eu-west-1.amazonaws.com/bucket/x", "s3://s3.amazonaws.com/bucket/x"):
            self.assertTrue(self.assert_refused(path).endswith("write s3://bucket/x"))

    def test_other_schemes(self) -> None:
        """What can be written is named."""
        for path in ("gs://bucket", "https://host/bucket", "b2:bucket:x", "file:///srv", "swift:c:/x"):
            self.assert_refused(path, "s3://bucket/prefix and az://container/prefix are allowed")

    @given(st.sampled_from(("s3://", "az://", "s3:", "s3://bucket/")), st.text(max_size=30))
    def test_any_text(self, start: str, rest: str) -> None:
        """Any text is either refused in one line, or an address with a prefix in normal form."""
        try:
            location = parse_location(start + rest)
        except StartError as error:
            self.assertTrue(str(error).isprintable(), repr(str(error)))
            return
        self.assertEqual(location, parse_location(str(location)))
        segments = location.prefix.split("/")
        self.assertEqual("", segments.pop())
        self.assertFalse({"", ".", ".."} & set(segments))
