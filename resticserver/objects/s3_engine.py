"""temporary"""

import os

import obstore
from obstore.store import S3Store

from .engine import Found
from .obstore_engine import NO_RETRIES, ObstoreEngine, client_options


class L:
    def __init__(self, s):
        self.s = s

    def list_pages(self, prefix, after=""):
        for page in obstore.list(self.s, prefix=prefix.rpartition("/")[0] or None, chunk_size=1000):
            f = [
                Found(m["path"][len(prefix) :], m["size"], m["last_modified"].timestamp())
                for m in page
                if m["path"].startswith(prefix)
            ]
            if f:
                yield f

    def list_folder(self, prefix):
        r = obstore.list_with_delimiter(self.s, prefix or None)
        return [p[len(prefix) :].rstrip("/") for p in r["common_prefixes"]], [
            m["path"][len(prefix) :] for m in r["objects"]
        ]

    def check_bucket(self):
        list(obstore.list(self.s, prefix="nothing"))


def make_s3_engine(location):
    kw = dict(
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        virtual_hosted_style_request=False,
        retry_config=NO_RETRIES,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
    )
    w = S3Store(location.bucket, client_options=client_options("http:", True), checksum_algorithm="sha256", **kw)
    r = S3Store(location.bucket, client_options=client_options("http:", False), **kw)
    return ObstoreEngine(str(location), kw["endpoint"], w, r, L(r))
