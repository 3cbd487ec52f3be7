"""
Where S3 is and how it is reached: endpoint, region and certificates, from the environment and C{~/.aws/config} as other tools
read them. Source: U{https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html}
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import StartError
from .location import Location, checked_endpoint

if TYPE_CHECKING:
    from botocore.session import Session  # type: ignore[import-untyped,import-not-found]

#: What other engines than AWS's are content with.
DEFAULT_REGION = "us-east-1"

_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_AWS = re.compile(r"\.amazonaws\.com(\.cn)?\Z", re.IGNORECASE)


@dataclass(frozen=True)
class S3Settings:
    """
    How a bucket is reached.

    @ivar endpoint: the URL of the service, without a slash at the end.
    @ivar bucket_url: the URL of the bucket, without a slash at the end.
    @ivar virtual_hosted: whether the bucket is part of the host's name (AWS), and not the first folder of the path.
    @ivar ca_file: the certificates to trust instead of the system's; C{None} for those.
    """

    endpoint: str
    bucket_url: str
    virtual_hosted: bool
    region: str
    ca_file: str | None


def find_settings(location: Location, session: Session, environ: Mapping[str, str] = os.environ) -> S3Settings:
    """
    Find out how a bucket is reached.

    @param session: botocore's, which reads its part of the environment and the files itself.
    @raise StartError: what is configured is wrong, or the region is needed and missing.
    """
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped,import-not-found]

    try:
        # botocore knows only AWS_DEFAULT_REGION, all newer tools AWS_REGION.
        region = environ.get("AWS_REGION") or session.get_config_variable("region")
        ca_file = session.get_config_variable("ca_bundle")
        configured = _configured_endpoint(session, environ)
        variants = [name for name in ("fips", "dualstack") if session.get_config_variable(f"use_{name}_endpoint")]
    except (BotoCoreError, OSError, ValueError) as error:
        raise StartError(f"--path: {location}: {' '.join(str(error).split())}") from None
    if region is not None and _REGION.fullmatch(region) is None:
        raise StartError(f"--path: {location}: {region!a} is no region; correct AWS_REGION")
    if ca_file is not None and not os.path.isfile(ca_file):
        raise StartError(f"--path: {location}: the file of AWS_CA_BUNDLE is missing: {ca_file}")
    if configured is None and region is None:
        raise StartError(
            f"--path: {location}: no region; set AWS_REGION, or AWS_ENDPOINT_URL if the store is not AWS's"
        )
    region = region or DEFAULT_REGION
    endpoint = (
        _aws_endpoint(region, variants)
        if configured is None
        else checked_endpoint(location, configured, "AWS_ENDPOINT_URL, or endpoint_url in the profile")
    )
    parts = urlsplit(endpoint)
    # A dot in the bucket's name would not match the certificate.
    if _AWS.search(parts.hostname or "") and not parts.path and "." not in location.bucket:
        return S3Settings(endpoint, f"{parts.scheme}://{location.bucket}.{parts.netloc}", True, region, ca_file)
    return S3Settings(endpoint, f"{endpoint}/{location.bucket}", False, region, ca_file)


def _configured_endpoint(session: Session, environ: Mapping[str, str]) -> str | None:
    """The URL that is set in the environment or the profile; botocore has no public call for this."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    profile: dict[str, Any] = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    service = services.get("s3", {})
    return (
        environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or (service.get("endpoint_url") if isinstance(service, dict) else None)
        or profile.get("endpoint_url")
        or None
    )


def _aws_endpoint(region: str, variants: list[str]) -> str:
    """AWS's own endpoint for a region."""
    service = "s3-fips" if "fips" in variants else "s3"
    stack = ".dualstack" if "dualstack" in variants else ""
    return f"https://{service}{stack}.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
