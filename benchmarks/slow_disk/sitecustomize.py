"""
Makes each fsync of a server take as long as on a spinning disk, in a server that knows nothing of it.

Python imports a module of this name when it starts, so this directory on C{PYTHONPATH} is all it takes, also for a server's
child processes. Without C{RESTICSERVER_FSYNC_MS} it does nothing. Several fsyncs at the same time take as long as one: a
disk's journal writes them together.
"""

from __future__ import annotations

import os

VARIABLE = "RESTICSERVER_FSYNC_MS"
_MODULE = "resticserver.storage.parallel_fsync"


def _install(delay_s: float) -> None:
    import importlib.abc
    import importlib.machinery
    import sys
    import time
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        time.sleep(delay_s)

    os.fsync = fsync

    class Loader(importlib.abc.Loader):
        """Loads the module as usual, and has its function wait."""

        def __init__(self, usual: Any) -> None:
            self._usual = usual

        def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
            return self._usual.create_module(spec)  # type: ignore[no-any-return]

        def exec_module(self, module: ModuleType) -> None:
            self._usual.exec_module(module)
            together = module.fsync_all  # type: ignore[attr-defined]

            def fsync_all(fds: Sequence[int]) -> list[OSError | None]:
                errors: list[OSError | None] = together(fds)
                time.sleep(delay_s)
                return errors

            module.fsync_all = fsync_all  # type: ignore[attr-defined]

    class Finder(importlib.abc.MetaPathFinder):
        """Finds that one module."""

        def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
            if name != _MODULE:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = Loader(spec.loader)
            return spec

    sys.meta_path.insert(0, Finder())


if os.environ.get(VARIABLE):
    _install(float(os.environ[VARIABLE]) / 1000)
