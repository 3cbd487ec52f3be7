"""
C{twisted.plugins} is a directory of Twisted's that we add one file to: it must never get an C{__init__.py} of ours, so it is
named here beside the packages that are found.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "resticserver/__init__.py").read_text(), re.M).group(1)

setup(
    name="resticserver",
    version=VERSION,
    description="A repository server for restic backups, on Twisted: a drop-in for rest-server",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    python_requires=">=3.11",
    package_dir={"": "."},
    packages=[*find_packages(include=["resticserver", "resticserver.*"]), "twisted.plugins"],
    package_data={"resticserver": ["py.typed"], "resticserver.web": ["status.css"]},
    install_requires=[
        "Twisted >= 25.5",
        "klein >= 24.8",
        "pyOpenSSL >= 24.3",
        "service-identity >= 23.1",
        "cryptography >= 42.0",
        "bcrypt >= 4.0",
        "httptools >= 0.6",
        "libpass >= 1.9.3",
        "prometheus-client >= 0.20",
    ],
    extras_require={
        "dev": [
            "build",
            "coverage",
            "hypothesis",
            "mypy",
            "mypy-zope",
            # Each release formats a little differently, and `make lint` checks the format.
            "ruff>=0.17,<0.18",
            "setuptools",
            "types-setuptools",
            "wheel",
        ],
        # What `make apidocs`, `make site` and `make release` need; a type checker needs none of it.
        "docs": ["furo", "myst-parser", "pydoctor", "sphinx"],
        "release": ["build", "setuptools", "towncrier", "twine", "wheel"],
    },
    entry_points={"console_scripts": ["rest-server = resticserver.cli:main"]},
    classifiers=[
        "Framework :: Twisted",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Archiving :: Backup",
    ],
    zip_safe=False,
)
