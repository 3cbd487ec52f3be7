"""
The settings, rules and scripts in the documents: that the server and the shell take them.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policyfile import parse_policy
from resticserver.config.options import Options

from ..support.processes import process_test
from ..support.scratch import scratch_directory

CHECKOUT = Path(__file__).parent.parent.parent
PAGES = sorted([*(CHECKOUT / "docs").glob("*.md"), CHECKOUT / "README.md"])
#: Tables of a policy file; a file with other keys has the server's settings.
POLICY_TABLES = {"rule", "groups", "users", "default"}


def fences(page: Path, language: str) -> list[str]:
    """What is in the fences of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class TomlTests(SynchronousTestCase):
    """Every example in TOML, also those that a shell writes into a file."""

    def test_all(self) -> None:
        """They are rules or settings that the server takes as they are."""
        scratch = scratch_directory(self)
        seen = {"policy": 0, "settings": 0}
        for page in PAGES:
            written = [
                re.findall(r"^cat >\S+\.toml <<'EOT'\n(.*?)^EOT$", fence, re.M | re.S) for fence in fences(page, "sh")
            ]
            for text in [*fences(page, "toml"), *(text for texts in written for text in texts)]:
                if set(tomllib.loads(text)) <= POLICY_TABLES:
                    # A part of a file may name groups of another part.
                    groups = (
                        ""
                        if "[groups]" in text
                        else "".join(f'{name} = ["x"]\n' for name in sorted(set(re.findall(r'"@([\w-]+)"', text))))
                    )
                    parse_policy(text + (f"\n[groups]\n{groups}" if groups else ""))
                    seen["policy"] += 1
                    continue
                file = scratch / "rest-server.toml"
                file.write_text(text)
                options = Options()
                options.parseOptions(["--config", str(file), "--path", str(scratch)])
                seen["settings"] += 1
        self.assertGreater(min(seen.values()), 4, seen)


@process_test
class ScriptTests(SynchronousTestCase):
    """Scripts that a page tells to write."""

    def script(self, end_of_path: str) -> str:
        """The script in the recipes whose path ends so."""
        text = (CHECKOUT / "docs" / "recipes.md").read_text(encoding="utf-8")
        found = re.search(rf"^cat >\S+{end_of_path} <<'EOT'\n(.*?)^EOT$", text, re.MULTILINE | re.DOTALL)
        assert found is not None, end_of_path
        return found[1]

    def test_certificate_hook(self) -> None:
        """certbot's hook copies certificate and key, replaces old ones, and leaves the key to the group."""
        scratch = scratch_directory(self)
        lineage = scratch / "live"
        lineage.mkdir()
        script = self.script("restic-rest-certificate").replace("/etc/restic-tls", str(scratch / "tls"))
        # The group of the recipe does not exist here, and only root may give files away.
        script = script.replace("-o root -g restic-tls", "")
        for content in ("first", "second"):
            (lineage / "fullchain.pem").write_text(f"{content} certificate")
            (lineage / "privkey.pem").write_text(f"{content} key")
            environment = {**os.environ, "RENEWED_LINEAGE": str(lineage)}
            subprocess.run(["sh", "-c", script], env=environment, check=True)
            self.assertEqual(f"{content} key", (scratch / "tls" / "privkey.pem").read_text())
        self.assertEqual(["fullchain.pem", "privkey.pem"], sorted(os.listdir(scratch / "tls")))
        self.assertEqual(0o640, stat.S_IMODE((scratch / "tls" / "privkey.pem").stat().st_mode))

    def test_cron(self) -> None:
        """The daily script prints the status if something needs attention, and nothing otherwise."""
        program = scratch_directory(self) / "rest-server"
        script = self.script("restic-rest-status").replace("/opt/resticserver/bin/rest-server", str(program))
        for status, printed in ((0, ""), (1, "the report\n")):
            program.write_text(f"#!/bin/sh\necho the report\nexit {status}\n")
            program.chmod(0o755)
            done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
            self.assertEqual(printed, done.stdout)
