"""
An environment in which botocore finds only what a test puts there.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from ..support.scratch import Cleans, scratch_directory


def aws_environment(test: Cleans, **variables: str) -> Path:
    """
    An empty home directory and no variables of AWS's but these, until the end of the test.

    @return: the home directory.
    """
    home = scratch_directory(test)
    (home / ".aws").mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "BOTO")) and not name.lower().endswith("_proxy")
    }
    # Without this the first address that is asked for credentials is one of the network.
    given = {**kept, "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true", **variables}
    patched = mock.patch.dict(os.environ, given, clear=True)
    patched.start()
    test.addCleanup(patched.stop)
    return home
