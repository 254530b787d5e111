"""A small custom.metrics.k8s.io: asks the pods' own ``/metrics`` whenever an autoscaler asks it.

In a production cluster Prometheus and its adapter, or KEDA, stand here. ``metrics_adapter.py API TOKEN PORT CERT KEY``
listens on loopback. A metric's value for a pod is the sum of its samples there. A pod that does not answer is left
out, as it would be by Prometheus.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = "/apis/custom.metrics.k8s.io/v1beta1"
#: What is offered; the autoscaler asks for no other.
METRIC = "vits_backlog_seconds"
#: The container port that metrics are behind.
PORT_NAME = "http"


class Pods:
    """The pods of a cluster, as its API server tells."""

    def __init__(self, api: str, token: str) -> None:
        self._api = httpx.Client(
            base_url=api,
            headers={"Authorization": f"Bearer {token}"},
            verify=False,  # noqa: S501 - its certificate is its own, and it is on loopback
            trust_env=False,
        )
        self._direct = httpx.Client(timeout=2, trust_env=False)

    def values(self, namespace: str, metric: str, selector: str) -> Iterator[tuple[str, float]]:
        """The names of the pods that match and answer, and their values."""
        found = self._api.get(f"/api/v1/namespaces/{namespace}/pods", params={"labelSelector": selector})
        pods = found.raise_for_status().json()["items"]
        with ThreadPoolExecutor() as pool:
            for pod, value in zip(pods, pool.map(lambda pod: self._value(pod, metric), pods), strict=True):
                if value is not None:
                    yield pod["metadata"]["name"], value

    def _value(self, pod: dict[str, Any], metric: str) -> float | None:
        address = pod["status"].get("podIP")
        ports = (port for container in pod["spec"]["containers"] for port in container.get("ports", []))
        number = next((port["containerPort"] for port in ports if port.get("name") == PORT_NAME), None)
        if not address or number is None:
            return None
        try:
            answer = self._direct.get(f"http://{address}:{number}/metrics").raise_for_status()
        except httpx.HTTPError:
            return None
        families = text_string_to_metric_families(answer.text)
        samples = [sample.value for family in families for sample in family.samples if sample.name == metric]
        return sum(samples) if samples else None


def answer(pods: Pods, url: str) -> dict[str, Any] | None:
    """What is under a URL of the API; None where nothing is."""
    parts = urlsplit(url)
    if parts.path.rstrip("/") == ROOT:
        resource = {
            "name": f"pods/{METRIC}",
            "singularName": "",
            "namespaced": True,
            "kind": "MetricValueList",
            "verbs": ["get"],
        }
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": ROOT.removeprefix("/apis/"),
            "resources": [resource],
        }
    match unquote(parts.path).removeprefix(ROOT).strip("/").split("/"):
        case ["namespaces", namespace, "pods", "*", metric] if metric == METRIC:
            selector = parse_qs(parts.query).get("labelSelector", [""])[0]
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return {
                "kind": "MetricValueList",
                "apiVersion": ROOT.removeprefix("/apis/"),
                "metadata": {},
                "items": [
                    {
                        "describedObject": {
                            "kind": "Pod",
                            "namespace": namespace,
                            "name": name,
                            "apiVersion": "/v1",
                        },
                        "metricName": metric,
                        "timestamp": now,
                        "value": f"{round(value * 1000)}m",
                    }
                    for name, value in pods.values(namespace, metric, selector)
                ],
            }
    return None


def main() -> None:
    """Serve until ended."""
    api, token, port, certificate, key = sys.argv[1:]
    pods = Pods(api, token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                found = answer(pods, self.path)
            except httpx.HTTPError as error:
                self.send_error(503, str(error))
                return
            body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
