"""
System calls of running processes that fail, as on a disk that breaks: by C{strace}. For this process itself there is
L{tests.support.file_layer}.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .waiting import PATIENCE_S, wait_until


def why_no_faults() -> str | None:
    """Why calls cannot be made to fail here, or C{None}."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True)
    return None if tried.returncode == 0 else "processes may not be traced here"


@contextmanager
def traced(
    pids: Sequence[int], calls: str, fault: str = "", path: Path | None = None, kept: Path | None = None
) -> Iterator[Path]:
    """
    Note all calls of some processes, in all their threads; or let them fail.

    @param calls: which, in C{strace}'s words.
    @param fault: what becomes of them: C{error=EIO}, C{error=EPERM:when=1}.
    @param path: only calls that have to do with this file or directory.
    @param kept: where they are noted; otherwise that is removed at the end.
    @return: where they are noted, a line each with the paths of descriptors; whole when this has come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="restic-test-") as directory:
        log = kept if kept is not None else Path(directory) / "calls"
        command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}"]
        command += ["-e", f"inject={calls}:{fault}"] if fault else []
        command += ["-P", str(path)] if path is not None else []
        for pid in pids:
            command += ["-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        said: list[str] = []
        drain = threading.Thread(target=said.extend, args=(tracer.stderr,), daemon=True)
        drain.start()
        try:
            wait_until(lambda: _attached(said) == len(pids) or tracer.poll() is not None, what=said)
            if tracer.poll() is not None:
                raise AssertionError(f"strace ended: {said}")
            yield log
        finally:
            tracer.terminate()
            tracer.wait(PATIENCE_S)
            drain.join(PATIENCE_S)
            tracer.stderr.close()


def _attached(said: Sequence[str]) -> int:
    """To how many processes it has attached itself."""
    return sum(" attached" in line for line in list(said))
