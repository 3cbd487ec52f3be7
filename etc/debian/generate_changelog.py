"""
Prints C{debian/changelog} for one build: what CHANGELOG.md says of this version.

    generate_changelog.py PACKAGE VERSION DEBIAN_VERSION DISTRIBUTION MAINTAINER SECONDS_SINCE_1970
"""

from __future__ import annotations

import re
import sys
import textwrap
from email.utils import formatdate
from pathlib import Path

CHANGELOG = Path("CHANGELOG.md")
#: dpkg asks for this width.
WIDTH = 79


def items(version: str) -> list[str]:
    """The items of a version's section, one paragraph each; empty if the version was not released."""
    text = CHANGELOG.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(version)}\b.*?$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return []
    listed = re.findall(r"^[-*] (.*?)(?=^[-*] |^#|^$|\Z)", found[1], re.MULTILINE | re.DOTALL)
    return [" ".join(item.split()) for item in listed]


def main(package: str, version: str, debian_version: str, distribution: str, maintainer: str, seconds: str) -> None:
    """Print it."""
    print(f"{package} ({debian_version}) {distribution}; urgency=medium\n")
    for item in items(version) or [f"Built from a checkout of {version}."]:
        print(textwrap.fill(item, WIDTH, initial_indent="  * ", subsequent_indent="    "))
    print(f"\n -- {maintainer}  {formatdate(int(seconds)).replace('-0000', '+0000')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
