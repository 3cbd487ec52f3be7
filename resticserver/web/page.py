"""
An answer that is made whole: the status, type and body of one of the server's own pages.
"""

from __future__ import annotations

from typing import NamedTuple

#: The user who may see the metrics, as in rest-server.
METRICS_USER = "metrics"

TEXT = b"text/plain; charset=utf-8"


class Page(NamedTuple):
    """
    One answer.

    @ivar fields: further header fields, each with its CRLF.
    """

    status: int
    content_type: bytes
    body: bytes
    fields: bytes = b""
