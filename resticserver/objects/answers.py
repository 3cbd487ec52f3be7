"""
What the answer of an engine to a request for an object stands for, by its status and its code.
"""

from __future__ import annotations

from .engine import Absent, AccessRefused, BeyondTheEnd, BucketMissing, EngineError, EngineFull, Exists

#: How engines say that they are full: Ceph, MinIO, Azure.
_FULL = frozenset(("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "AccountLimitExceeded"))
#: Codes of refused credentials that come with another status than 403 too: AWS's is 400 for those that were valid once, and a
#: removal is answered 200 with the error in it.
_REFUSED = frozenset(
    (
        "AccessDenied",
        "AccountIsDisabled",
        "AuthenticationFailed",
        "AuthorizationFailure",
        "AuthorizationPermissionMismatch",
        "ExpiredToken",
        "ExpiredTokenException",
        "InsufficientAccountPermissions",
        "InvalidAccessKeyId",
        "InvalidAuthenticationInfo",
        "InvalidToken",
        "KeyBasedAuthenticationNotPermitted",
        "NoAuthenticationInformation",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    )
)
_NO_BUCKET = frozenset(("NoSuchBucket", "ContainerNotFound"))


def meaning(status: int, code: str, detail: str) -> Exception:
    """
    The exception for an answer that does not say that all is well.

    @param status: of HTTP; 0 if it is not known.
    @param code: the engine's own word for the error; empty if it has none.
    @param detail: for the log.
    """
    if code in _FULL or status == 507:
        return EngineFull()
    if status in (409, 412):
        return Exists()
    if code in _NO_BUCKET:
        return BucketMissing("", detail)
    if code == "NoSuchKey" or status == 404:
        return Absent()
    if code in _REFUSED or status in (401, 403):
        return AccessRefused("", detail)
    if status == 416:
        return BeyondTheEnd()
    return EngineError("", detail)
