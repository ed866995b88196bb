"""Configuration files for the tests of the commands."""

from __future__ import annotations

LISTENER = """\
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: reviews:80
  api_listener:
    api_listener:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: reviews
      rds: {route_config_name: reviews, config_source: {ads: {}, resource_api_version: V3}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"""

ROUTES = """\
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: reviews
  request_headers_to_add: [{header: {key: x-from, value: "mesh"}}]
  virtual_hosts:
  - name: reviews
    domains: [reviews]
    routes:
    - match: {path: /old}
      redirect: {path_redirect: /new, response_code: FOUND}
    - name: teapot
      match: {prefix: /direct}
      direct_response: {status: 418, body: {inline_string: short and stout}}
    - name: bob
      match: {prefix: /api/, headers: [{name: x-user, string_match: {exact: bob}}]}
      route:
        cluster: api
        prefix_rewrite: /v2/
        host_rewrite_literal: api.internal
        timeout: 3s
        retry_policy: {retry_on: "5xx,reset", num_retries: 4, per_try_timeout: 0.5s}
    - match: {prefix: /share}
      route: {weighted_clusters: {clusters: [{name: api, weight: 1}, {name: elsewhere, weight: 3}]}}
    - match: {prefix: /post, headers: [{name: ":method", string_match: {exact: POST}}]}
      route: {cluster: elsewhere, timeout: 0s}
    - match: {prefix: /when}
      route: {cluster: api}
      request_headers_to_add: [{header: {key: x-at, value: "%START_TIME(%Y-%m-%d)%"}}]
    - match: {prefix: /mirror}
      route: {cluster: api, request_mirror_policies: [{cluster: shadow}]}
  - name: secure
    domains: [secure]
    require_tls: ALL
    routes: [{match: {prefix: /}, route: {cluster: api}}]
"""

CLUSTER = """\
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: api
  load_assignment:
    cluster_name: api
    endpoints:
    - lb_endpoints:
      - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8101}}}
"""
