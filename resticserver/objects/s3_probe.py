"""
What is only known of engines that speak S3: what of an upload they verify, and what they do with old versions. Nothing of it is
needed to serve repositories.
"""

from __future__ import annotations

import hashlib
import secrets

from ..storage.volume import FOLDER
from .engine import AccessRefused, Engine
from .probe import Finding
from .s3_requests import S3Requests, checksum_field
from .signed_requests import Answer
from .versions import S3Versions

_CONTENT, _OTHER = b"0123456789" * 10, b"9876543210" * 10


def s3_findings(engine: Engine, requests: S3Requests, prefix: str) -> list[Finding]:
    """
    Try it; what is written is removed.

    @raise EngineError: the engine does not answer as it should.
    """
    key = f"{prefix}{FOLDER}/probe/{secrets.token_hex(8)}/hash"
    hash_, other = (hashlib.sha256(each).digest() for each in (_CONTENT, _OTHER))
    try:
        return [
            _verified(
                "the checksum of an upload is verified", requests.put(key, _CONTENT, hash_, checksum_field(other))
            ),
            _verified("the signed hash of an upload is verified", requests.put(key, _CONTENT, other, {})),
            _versions(S3Versions(engine.name, requests), prefix),
        ]
    finally:
        engine.remove(key)


def _verified(name: str, answer: Answer) -> Finding:
    problem = f"wrong bytes are answered {answer.status}" if answer.status < 300 else ""
    return Finding(name, problem, vital=False)


def _versions(versions: S3Versions, prefix: str) -> Finding:
    name = "deleted objects are kept as old versions (--delete-delay)"
    try:
        if not versions.are_kept():
            return Finding(name, "versioning is off", vital=False)
        days = versions.kept_days(prefix)
    except AccessRefused:
        return Finding(name, "the keys may not ask (s3:GetBucketVersioning, s3:GetLifecycleConfiguration)", vital=False)
    return Finding(name if days is None else f"{name} for {days} days, by a lifecycle rule", vital=False)
