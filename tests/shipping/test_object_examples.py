"""
The examples of F{etc} with two servers on one bucket. Neither Kubernetes nor the engine's image can be had here: HAProxy checks
its file, the server the settings, and the rest is compared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from resticserver.config.server_flags import settings_of

from ..integration.test_packaging import CHECKOUT
from ..support.skipping import skipped
from .test_compose import documents


def values_of(text: str) -> dict[str, str]:
    """The variables of an F{.env}."""
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.M))


class ObjectsTests(SynchronousTestCase):
    """The examples."""

    def setUp(self) -> None:
        self.directory = CHECKOUT / "etc" / "compose" / "objects"

    def test_compose(self) -> None:
        """Two servers alike, with what an object store needs; each is a server of HAProxy's."""
        [document] = documents((self.directory / "compose.yaml").read_text())
        services = document["services"]
        servers = sorted(name for name in services if name.startswith("rest-server"))
        self.assertEqual(2, len(servers))
        self.assertEqual(services[servers[0]], services[servers[1]])
        self.assertEqual({"EXTRAS": "objects"}, services[servers[0]]["build"]["args"])
        found = re.findall(r"^    server (\S+) (\S+):8000$", (self.directory / "haproxy.cfg").read_text(), re.M)
        self.assertEqual([(name, name) for name in servers], sorted(found))
        self.assert_starts(
            {
                **values_of((self.directory / "env.example").read_text()),
                **services[servers[0]]["environment"],
                "REST_SERVER_HTPASSWD_FILE": services[servers[0]]["environment"]["PASSWORD_FILE"],
            },
            services[servers[0]]["command"],
        )

    def test_kubernetes(self) -> None:
        """Names that belong together are the same."""
        found = documents((CHECKOUT / "etc" / "kubernetes" / "objects.yaml").read_text())
        by_name = {(each["kind"], each["metadata"]["name"]): each for each in found}
        deployment = by_name["Deployment", "rest-server-objects"]["spec"]
        pod = deployment["template"]["spec"]
        [container] = pod["containers"]
        labels = deployment["template"]["metadata"]["labels"]
        for kind, spec in (("Service", "selector"), ("PodDisruptionBudget", "selector")):
            selector = by_name[kind, "rest-server-objects"]["spec"][spec]
            self.assertEqual(labels, selector.get("matchLabels", selector), kind)
        self.assertEqual(2, deployment["replicas"])
        secrets = {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
        secrets |= {each["secretRef"]["name"] for each in container["envFrom"]}
        self.assertEqual({name for kind, name in by_name if kind == "Secret"}, secrets)
        environment = {each["name"]: each["value"] for each in container["env"]}
        [engine] = by_name["Service", "seaweedfs"]["spec"]["ports"]
        self.assertEqual(f"http://seaweedfs:{engine['port']}", environment["AWS_ENDPOINT_URL"])
        keys = by_name["Secret", "rest-server-objects"]["stringData"]
        self.assert_starts({**environment, **keys}, [])

    def assert_starts(self, variables: dict[str, str], flags: list[str]) -> None:
        """The settings are a server's for an object store; the engine is not asked."""
        values = {name: value for name, value in variables.items() if name.startswith("REST_SERVER_")}
        values["REST_SERVER_PATH"] = variables.get("DATA_DIRECTORY") or values["REST_SERVER_PATH"]
        self.patch(os, "environ", {**os.environ, **values})
        settings = settings_of(flags, "test")
        self.assertEqual("s3://restic", settings.path)
        self.assertEqual("/data", settings.state_dir)
        self.assertTrue(settings.private_repos)

    @skipped(None if shutil.which("haproxy") else "needs haproxy")
    def test_haproxy(self) -> None:
        """HAProxy takes the file."""
        # It looks the servers' names up, which only Compose's network has.
        done = subprocess.run(
            ["haproxy", "-c", "-f", str(self.directory / "haproxy.cfg")], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(0, done.returncode, done.stderr)
