"""The mesh of the demo, as the file that it edits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["by_weight", "together", "write"]

_LISTENER = """\
# Everything that the demo's client knows about `reviews`. Edit it while `meshlib serve` runs.
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: reviews:80
  api_listener:
    api_listener:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: reviews
      rds: {{route_config_name: reviews, config_source: {{ads: {{}}}}}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: reviews
  virtual_hosts:
  - name: reviews
    domains: ["*"]
    routes:
    - match: {{prefix: /}}
      route:
        {action}
        timeout: 2s
        retry_policy:
          retry_on: 5xx,connect-failure,reset
          num_retries: 3
"""

_CLUSTER = """\
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: {name}
  type: EDS
  eds_cluster_config: {{eds_config: {{ads: {{}}}}}}
  connect_timeout: 1s
  outlier_detection: {{consecutive_5xx: 5, interval: 0.5s, base_ejection_time: 2s, max_ejection_percent: 70}}
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
{endpoints}"""

_ENDPOINT = "    - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}\n"


def by_weight(weights: Mapping[str, int], ports: Mapping[str, int]) -> str:
    """A cluster for each version, and the traffic shared by weight."""
    shares = ", ".join(
        f"{{name: reviews-{version}, weight: {weight}}}" for version, weight in weights.items()
    )
    action = f"weighted_clusters: {{clusters: [{shares}]}}"
    clusters = [_cluster(f"reviews-{version}", [ports[version]]) for version in weights]
    return _LISTENER.format(action=action) + "".join(clusters)


def together(ports: Mapping[str, int]) -> str:
    """One cluster with all versions as its endpoints, in turn."""
    return _LISTENER.format(action="cluster: reviews") + _cluster("reviews", list(ports.values()))


def write(path: Path, text: str) -> None:
    """Replace the file as an editor does: whole, or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _cluster(name: str, ports: list[int]) -> str:
    return _CLUSTER.format(name=name, endpoints="".join(_ENDPOINT.format(port=port) for port in ports))
