"""
F{etc/compose} by podman-compose, with the real server and the real Prometheus, and F{etc/kubernetes}.

The images of Prometheus and Grafana cannot be had here. An image with Debian's Prometheus stands in for one, and a file
server for the other: Grafana is not in Debian, so what is mounted for it is read back, and the queries of the dashboard are
asked of Prometheus.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..integration.test_packaging import CHECKOUT, succeed
from ..support.certificates import make_certificate
from ..support.scratch import scratch_directory
from ..support.waiting import wait_until
from .container_case import SLIM, ContainerCase, back_up_with, images
from .containers import LONGEST_S

PROMETHEUS = shutil.which("prometheus")
#: Files for the server's volume: each user and each repository has a quota.
POLICY = """
[[rule]]
users = ["*"]
repositories = ["**"]
rights = "full"
create = true
quota = "1GiB"

[users."*"]
quota = "2GiB"
"""
SETTINGS = """
IMAGE={image}
PROMETHEUS_IMAGE=localhost/prometheus:debian
GRAFANA_IMAGE=localhost/grafana:files
ADDRESS=127.0.0.1
PORT=8000
REST_SERVER_TLS=true
REST_SERVER_MAX_SIZE=1TiB
REST_SERVER_WORKERS=2
REST_SERVER_POLICY=/data/policy.toml
REST_SERVER_AUTH_FAILURES=2/minute
"""
PROMETHEUS_FILE = """
FROM {base}
COPY prometheus /usr/bin/prometheus
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
"""
GRAFANA_FILE = """
FROM {base}
CMD ["python3", "-m", "http.server", "3000", "--directory", "/"]
"""


@functools.cache
def tools() -> Path:
    """The programs of an environment with podman-compose, and PyYAML, which it needs."""
    directory = Path(tempfile.mkdtemp(prefix="restic-compose-"))
    atexit.register(shutil.rmtree, directory, True)
    succeed([sys.executable, "-m", "venv", directory / "tools"], directory)
    succeed([directory / "tools/bin/pip", "install", "--quiet", "podman-compose"], directory)
    return directory / "tools" / "bin"


def documents(text: str) -> list[Any]:
    """The documents of a YAML file."""
    program = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)"
    done = subprocess.run(
        [tools() / "python", "-c", program], input=text, text=True, check=True, capture_output=True, timeout=LONGEST_S
    )
    found: list[Any] = json.loads(done.stdout)
    return found


class ComposeTests(ContainerCase):
    """The compose file comes up, and what it mounts is right."""

    skip = ContainerCase.skip or (
        None if PROMETHEUS else "prometheus is not installed (Debian: apt-get install prometheus)"
    )

    def setUp(self) -> None:
        super().setUp()
        self.directory_of_compose = images().context / "etc" / "compose"

    def compose(self, *words: str, stdin: str = "") -> str:
        """Run podman-compose, which must succeed; its output."""
        return self.sandbox.succeed(tools() / "podman-compose", *words, stdin=stdin, cwd=self.directory_of_compose)

    def make_stand_ins(self) -> None:
        """The images instead of Prometheus's and Grafana's."""
        assert PROMETHEUS is not None
        directory = self.sandbox.directory / "stand-ins"
        self.sandbox.write("stand-ins/Dockerfile.prometheus", PROMETHEUS_FILE.format(base=images().base))
        self.sandbox.write("stand-ins/Dockerfile.grafana", GRAFANA_FILE.format(base=images().base))
        self.sandbox.succeed("cp", "--dereference", PROMETHEUS, directory / "prometheus")
        for name, tag in (("prometheus", "debian"), ("grafana", "files")):
            self.sandbox.succeed(
                "buildah", "bud", "--quiet", f"--tag=localhost/{name}:{tag}", "--file", directory / f"Dockerfile.{name}",
                directory,
            )  # fmt: skip

    def fill_volume(self, scratch: Path) -> Path:
        """A certificate and a policy in the volume, before the first start; the authority."""
        self.sandbox.podman("volume", "create", "resticserver_data")
        volume = Path(self.sandbox.podman("volume", "inspect", "--format", "{{.Mountpoint}}", "resticserver_data"))
        files = make_certificate(scratch)
        for source, name in ((files.certificate, "public_key"), (files.key, "private_key")):
            self.sandbox.succeed("install", "-o", "8000", "-m", "600", source, volume / name)
        (scratch / "policy.toml").write_text(POLICY)
        self.sandbox.succeed("install", "-o", "8000", "-m", "600", scratch / "policy.toml", volume / "policy.toml")
        self.sandbox.succeed("chown", "8000:0", volume)
        return files.authority

    def ask(self, address: str, path: str) -> Any:
        """Prometheus's HTTP API."""
        said = self.sandbox.run("curl", "--silent", "--max-time", "20", "--get", f"http://{address}:9090/api/v1/{path}")
        try:
            answer = json.loads(said.stdout)
        except ValueError:
            return None
        return answer["data"] if answer["status"] == "success" else None

    def query(self, address: str, expression: str) -> list[Any]:
        """What an expression is now."""
        said = self.sandbox.run(
            *("curl", "--silent", "--max-time", "20", "--get", f"http://{address}:9090/api/v1/query"),
            *("--data-urlencode", f"query={expression}"),
        )
        answer = json.loads(said.stdout)
        assert answer["status"] == "success", (expression, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def address_of(self, service: str) -> str:
        """The address of a service's container."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.sandbox.podman("inspect", "--format", form, f"resticserver_{service}_1")

    def test_compose(self) -> None:
        """
        It comes up by the steps in its own comment, Prometheus scrapes the server with the password of the secret file and
        has the alert rules, and every query of the dashboard returns data.
        """
        scratch = scratch_directory(self)
        self.make_stand_ins()
        authority = self.fill_volume(scratch)
        directory = self.directory_of_compose
        settings = (directory / "env.example").read_text() + SETTINGS.format(image=SLIM)
        (directory / ".env").write_text(settings)
        (directory / "metrics_password").write_text("the password of metrics\n")
        (directory / "grafana_password").write_text("the password of grafana\n")
        scrape = (directory / "prometheus.yml").read_text()
        self.assertIn("scrape_interval: 1m", scrape)
        (directory / "prometheus.yml").write_text(scrape.replace("scrape_interval: 1m", "scrape_interval: 2s"))
        self.addCleanup(self.sandbox.run, tools() / "podman-compose", "down", "--volumes", "--timeout=5", cwd=directory)
        self.compose("up", "--detach")
        server = "resticserver_rest-server_1"
        wait_until(lambda: self.sandbox.run("podman", "healthcheck", "run", server).returncode == 0, what="health")
        self.compose("exec", "-T", "rest-server", "create_user", "metrics", stdin="the password of metrics\n")
        self.compose("exec", "-T", "rest-server", "create_user", "alice", "secret")
        prometheus = self.address_of("prometheus")
        wait_until(lambda: self.ask(prometheus, "rules"), what="Prometheus")
        wait_until(
            lambda: [each["value"][1] for each in self.query(prometheus, 'up{job="rest-server"}')] == ["1"],
            what="the server to be scraped",
        )
        url = "https://alice:secret@127.0.0.1:8000/alice/laptop/"
        # The server looks for new users every five seconds.
        wait_until(lambda: self.get("/alice/", "alice:secret", 8000, "https")[0] != 401, what="the new user")
        back_up_with(self, url, "--cacert", str(authority), and_prune=True)
        for _ in range(4):
            self.get("/", "carol:guess", 8000, "https")
        self.check_queries(prometheus)
        [group] = self.ask(prometheus, "rules")["groups"]
        self.assertEqual("rest-server", group["name"])
        self.assertFalse([rule for rule in group["rules"] if rule["health"] == "err"])
        self.check_grafana()
        self.sandbox.podman("stop", "--time=45", server)
        self.assertEqual("0", self.sandbox.podman("inspect", "--format", "{{.State.ExitCode}}", server))

    def check_queries(self, prometheus: str) -> None:
        """Every query of the dashboard returns data."""
        dashboard = json.loads((CHECKOUT / "etc" / "grafana" / "dashboard.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
        self.assertGreater(len(queries), 30)
        for query in queries:
            for variable, value in (("$instance", ".*"), ("$group", "repo"), ("$__rate_interval", "1m")):
                query = query.replace(variable, value)
            wait_until(lambda: self.query(prometheus, query), what=query)
        print(f"\n{len(queries)} queries of the dashboard return data")

    def check_grafana(self) -> None:
        """What Grafana would find: a data source that is the Prometheus here, and the dashboard of F{etc/grafana}."""

        def mounted(path: str) -> str:
            return self.get(path, None, 3000)[1]

        [sources] = documents(mounted("/etc/grafana/provisioning/datasources/rest-server.yml"))
        self.assertEqual(1, sources["apiVersion"])
        [source] = sources["datasources"]
        self.assertEqual(
            ("prometheus", "proxy", "http://prometheus:9090", True),
            (source["type"], source["access"], source["url"], source["isDefault"]),
        )
        status = self.sandbox.podman(
            "exec", "resticserver_grafana_1", "python3", "-c",
            f"import urllib.request as u; print(u.urlopen('{source['url']}/-/ready').status)",
        )  # fmt: skip
        self.assertEqual("200", status)
        [dashboards] = documents(mounted("/etc/grafana/provisioning/dashboards/rest-server.yml"))
        self.assertEqual(1, dashboards["apiVersion"])
        [provider] = dashboards["providers"]
        self.assertEqual("file", provider["type"])
        dashboard = mounted(f"{provider['options']['path']}/rest-server.json")
        self.assertEqual((CHECKOUT / "etc" / "grafana" / "dashboard.json").read_text(), dashboard)
        [variable] = [each for each in json.loads(dashboard)["templating"]["list"] if each["type"] == "datasource"]
        self.assertEqual(source["type"], variable["query"])
        self.assertEqual("the password of grafana\n", mounted("/run/secrets/grafana_password"))


class KubernetesTests(ContainerCase):
    """The manifest."""

    def setUp(self) -> None:
        super().setUp()
        self.text = (CHECKOUT / "etc" / "kubernetes" / "rest-server.yaml").read_text()

    def test_fields(self) -> None:
        """Names that belong together are the same; probes, security contexts and the grace period are as the server wants."""
        by_kind = {each["kind"]: each for each in documents(self.text)}
        self.assertEqual({"Secret", "PersistentVolumeClaim", "Deployment", "Service"}, by_kind.keys())
        deployment, service = by_kind["Deployment"]["spec"], by_kind["Service"]["spec"]
        pod = deployment["template"]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        self.assertEqual([labels, labels], [deployment["selector"]["matchLabels"], service["selector"]])
        self.assertEqual((1, "Recreate"), (deployment["replicas"], deployment["strategy"]["type"]))
        [container] = pod["containers"]
        context = pod["securityContext"]
        self.assertIs(True, context["runAsNonRoot"])
        self.assertEqual([8000] * 3, [context[name] for name in ("runAsUser", "runAsGroup", "fsGroup")])
        self.assertEqual(
            {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
            container["securityContext"],
        )
        self.assertGreater(pod["terminationGracePeriodSeconds"], 30)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        environment = {each["name"]: each["value"] for each in container["env"]}
        self.assertEqual(f":{ports['metrics']}:plain=yes", environment["REST_SERVER_METRICS_LISTEN"])
        self.assertEqual(ports, {each["targetPort"]: each["port"] for each in service["ports"]})
        for probe, path in (("startupProbe", "health"), ("livenessProbe", "health"), ("readinessProbe", "ready")):
            self.assertEqual({"path": f"/-/{path}", "port": "metrics"}, container[probe]["httpGet"])
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        self.assertEqual("/data", mounts["data"])
        self.assertEqual(f"{mounts['htpasswd']}/htpasswd", environment["REST_SERVER_HTPASSWD_FILE"])
        volumes = {each["name"]: each for each in pod["volumes"]}
        self.assertEqual(
            by_kind["PersistentVolumeClaim"]["metadata"]["name"], volumes["data"]["persistentVolumeClaim"]["claimName"]
        )
        secret = by_kind["Secret"]
        self.assertEqual(secret["metadata"]["name"], volumes["htpasswd"]["secret"]["secretName"])
        self.assertEqual(["htpasswd"], list(secret["stringData"]))

    def test_the_same_way(self) -> None:
        """
        A container with the manifest's environment, user, mounts and restrictions is ready on the port of the probes, and
        says where its users are.
        """
        [deployment] = [each for each in documents(self.text) if each["kind"] == "Deployment"]
        [secret] = [each for each in documents(self.text) if each["kind"] == "Secret"]
        pod = deployment["spec"]["template"]["spec"]
        [container] = pod["containers"]
        directory = self.directory("0", "755")
        users = self.sandbox.write(f"{directory.name}/htpasswd", secret["stringData"]["htpasswd"], 0o440)
        # As fsGroup and defaultMode make it.
        self.sandbox.succeed("chgrp", str(pod["securityContext"]["fsGroup"]), users)
        server = self.run_server(
            *(f"--env={each['name']}={each['value']}" for each in container["env"]),
            f"--volume={directory}:/etc/rest-server:ro",
            f"--publish=127.0.0.1:{self.port + 1000}:9100",
            user=f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        )
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.assertEqual(200, self.get(container[probe]["httpGet"]["path"], None, self.port + 1000)[0], probe)
        self.assertIn("no users in /etc/rest-server/htpasswd", server.log())
        self.assertEqual((0, ""), server.health())
        self.sandbox.write(f"{directory.name}/htpasswd", "alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n", 0o440)
        wait_until(lambda: self.get("/alice/", "alice:secret")[0] == 405, what="a changed Secret to be read")
        self.assertEqual(0, server.stop(pod["terminationGracePeriodSeconds"]))
