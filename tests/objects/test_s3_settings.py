"""
Endpoint, region and certificates of S3, as the environment and the profile say.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import StartError
from resticserver.objects.credentials import new_session
from resticserver.objects.location import Location
from resticserver.objects.s3_settings import S3Settings, find_settings

from .environment import aws_environment

BUCKET = Location("s3", "bucket", "x/")


def settings(location: Location = BUCKET) -> S3Settings:
    """What is found now."""
    return find_settings(location, new_session())


class SettingsTests(SynchronousTestCase):
    """Where S3 is."""

    def setUp(self) -> None:
        self.home = aws_environment(self)

    def set(self, **variables: str) -> None:
        """Set these variables."""
        os.environ.update(variables)

    def assert_refused(self, *words: str) -> None:
        """It is wrong, in one line with these words."""
        message = str(self.assertRaises(StartError, settings))
        self.assertTrue(message.startswith("--path: s3://bucket/x: "), message)
        self.assertTrue(message.isprintable(), message)
        self.assertNotIn("geheim", message)
        for word in words:
            self.assertIn(word, message)

    def test_aws(self) -> None:
        """Without an endpoint it is AWS, and the bucket is part of the host; a bucket with a dot cannot be."""
        self.set(AWS_REGION="eu-west-1")
        host = "s3.eu-west-1.amazonaws.com"
        self.assertEqual(S3Settings(f"https://{host}", f"https://bucket.{host}", True, "eu-west-1", None), settings())
        dotted = settings(Location("s3", "my.bucket"))
        self.assertEqual((f"https://{host}/my.bucket", False), (dotted.bucket_url, dotted.virtual_hosted))

    def test_variants_of_aws(self) -> None:
        """China has another domain; what law or network demand is kept."""
        self.set(AWS_REGION="cn-north-1")
        self.assertEqual("https://s3.cn-north-1.amazonaws.com.cn", settings().endpoint)
        self.set(AWS_REGION="us-gov-east-1", AWS_USE_FIPS_ENDPOINT="true", AWS_USE_DUALSTACK_ENDPOINT="true")
        self.assertEqual("https://s3-fips.dualstack.us-gov-east-1.amazonaws.com", settings().endpoint)

    def test_region(self) -> None:
        """C{AWS_REGION}, C{AWS_DEFAULT_REGION}, the profile; AWS needs one, others do not."""
        self.assert_refused("no region", "AWS_REGION", "AWS_ENDPOINT_URL")
        (self.home / ".aws/config").write_text("[default]\nregion = from-file\n")
        self.assertEqual("from-file", settings().region)
        self.set(AWS_DEFAULT_REGION="from-default")
        self.assertEqual("from-default", settings().region)
        self.set(AWS_REGION="from-region")
        self.assertEqual("from-region", settings().region)
        self.set(AWS_REGION="x.evil.example/")
        self.assert_refused("is no region")
        aws_environment(self, AWS_ENDPOINT_URL="http://127.0.0.1:1")
        self.assertEqual("us-east-1", settings().region)

    def test_endpoints(self) -> None:
        """S3's variable wins over the general one, the environment over the profile, its service over the rest of it."""
        config = self.home / ".aws/config"
        config.write_text("[default]\nregion = x\nendpoint_url = http://profile\n")
        self.assertEqual("http://profile", settings().endpoint)
        config.write_text(
            "[default]\nendpoint_url = http://profile\nservices = s\n[services s]\ns3 =\n  endpoint_url = http://service\n"
        )
        self.assertEqual("http://service", settings().endpoint)
        self.set(AWS_ENDPOINT_URL="http://general")
        self.assertEqual("http://general", settings().endpoint)
        self.set(AWS_ENDPOINT_URL_S3="http://Of-S3:9000/")
        self.assertEqual(
            S3Settings("http://of-s3:9000", "http://of-s3:9000/bucket", False, "us-east-1", None), settings()
        )
        self.set(AWS_IGNORE_CONFIGURED_ENDPOINT_URLS="true", AWS_REGION="y")
        self.assertEqual("https://s3.y.amazonaws.com", settings().endpoint)

    def test_paths(self) -> None:
        """An endpoint may have a path; one of AWS's own is addressed as AWS wants it."""
        self.set(AWS_ENDPOINT_URL="https://host/storage/v1/s3/")
        self.assertEqual("https://host/storage/v1/s3/bucket", settings().bucket_url)
        self.set(AWS_ENDPOINT_URL="https://s3.eu-west-1.amazonaws.com")
        self.assertEqual("https://bucket.s3.eu-west-1.amazonaws.com", settings().bucket_url)
        self.set(AWS_ENDPOINT_URL="https://amazonaws.com.example")
        self.assertEqual("https://amazonaws.com.example/bucket", settings().bucket_url)

    def test_wrong_endpoints(self) -> None:
        """A wrong URL is refused, and not shown: it may contain a password."""
        for url in ("geheim", "ftp://geheim", "https://", "https://geheim:99999", "http://geheim:x", "http://[geheim"):
            self.set(AWS_ENDPOINT_URL=url)
            self.assert_refused("the endpoint (AWS_ENDPOINT_URL", "URL")
        for url in ("http://ge heim", "http://geheim/../x", "http://geheim/a//b", "http://geheim/%41", "http://gehéim"):
            self.set(AWS_ENDPOINT_URL=url)
            self.assert_refused("must be a URL such as https://host:port")
        self.set(AWS_ENDPOINT_URL="https://user:geheim@host")
        self.assert_refused("must not contain credentials")
        self.set(AWS_ENDPOINT_URL="https://host/?geheim")
        self.assert_refused("must not contain ? and #")

    def test_certificates(self) -> None:
        """C{AWS_CA_BUNDLE} names a file, which must be there."""
        self.set(AWS_REGION="x", AWS_CA_BUNDLE=str(self.home / "ca.pem"))
        self.assert_refused("AWS_CA_BUNDLE", "ca.pem")
        (self.home / "ca.pem").write_text("x")
        self.assertEqual(str(self.home / "ca.pem"), settings().ca_file)

    def test_faults_of_the_profile(self) -> None:
        """A profile that is missing, or a section that it names."""
        self.set(AWS_PROFILE="missing")
        self.assert_refused("missing", "could not be found")
