"""Envoy as the client and as the server of every TLS case: two processes, a listener for each case in each.

A server answers 200 with the caller's identity in headers. A client listens in plaintext and sends on through the case's cluster.
What became of a request is in the client's access log, what became of a connection in the server's.
"""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.envoy_process import EnvoyError, EnvoyProcess
from conformance.resources import CLUSTER, HCM, ROUTER, TYPE
from conformance.tls.case import PLAINTEXT, SILENT, TlsCase
from conformance.tls.materials import Materials, downstream, upstream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LIMIT = 20.0
CONNECT_TIMEOUT, SOON = "10s", "1s"
"""Of clusters; soon where the server never says a word, and the timeout is what is measured."""
ANSWER_HEADERS = {
    "x-peer-uri-san": "%DOWNSTREAM_PEER_URI_SAN%",
    "x-seen-xfcc": "%REQ(X-FORWARDED-CLIENT-CERT)%",
}

_REQUEST_LOG = {
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "transport": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}
_CONNECTION_LOG = {"server_transport": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOutcome:
    """What became of one request: Envoy's words for it, and the server's when the server is an Envoy."""

    status: int = 0
    body: str = ""
    flags: str = "-"
    details: str = ""
    transport: str = ""
    server_transport: str = ""
    client_stats: tuple[str, ...] = ()
    server_stats: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri_san(self) -> str:
        """The client's URI SAN as the server saw it."""
        return self.headers.get("x-peer-uri-san", "")

    @property
    def xfcc(self) -> str:
        return self.headers.get("x-seen-xfcc", "")


class TlsEnvoy:
    """One Envoy with these listeners and clusters. A context manager."""

    def __init__(self, listeners: list[dict[str, Any]], clusters: Iterable[dict[str, Any]] = ()) -> None:
        self._listeners = listeners
        self._clusters = list(clusters)
        self._process = EnvoyProcess()
        self.log = self._process.folder / "access.log"
        self.ports: dict[str, int] = {}

    def __enter__(self) -> TlsEnvoy:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.__exit__()

    def stats(self) -> dict[str, int]:
        """Counters that are not 0."""
        lines = self._process.admin("/stats?usedonly&type=Counters").decode().splitlines()
        found = {name: int(value) for name, _, value in (line.rpartition(": ") for line in lines)}
        return {name: value for name, value in found.items() if value}

    def lines(self, wanted: Mapping[str, object]) -> list[dict[str, Any]]:
        """The lines of the access log that have these values, oldest first."""
        if not self.log.exists():
            return []
        found = [
            json.loads(line)
            for line in self.log.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]
        return [line for line in found if wanted.items() <= line.items()]

    def _start(self) -> None:
        envoy = self._process
        static = json.dumps({"listeners": self._listeners, "clusters": self._clusters})
        envoy.launch({"static_resources": json.loads(static.replace("${log}", str(self.log)))})
        while not envoy.live:
            if not envoy.pause():
                raise EnvoyError("\n".join(envoy.last_words()))
        self.ports = envoy.ports()


class EnvoyServers:
    """The servers of the cases, all in one Envoy. A context manager; `ports` by case."""

    def __init__(self, cases: Iterable[TlsCase], materials: Materials) -> None:
        self._envoy = TlsEnvoy(
            [server_listener(case, materials) for case in cases if not isinstance(case.server, str)]
        )

    def __enter__(self) -> EnvoyServers:
        self._envoy.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._envoy.__exit__()

    @property
    def ports(self) -> Mapping[str, int]:
        return self._envoy.ports

    def seen(self, case: TlsCase) -> dict[str, Any]:
        """What the server says about the connections of a case: texts and the names of the ssl counters that moved."""
        deadline = time.monotonic() + 2.0
        wanted = not case.connects
        while True:
            lines = self._envoy.lines({"case": case.name})
            if lines or not wanted or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        prefix = f"listener.{case.name}.ssl."
        stats = (name.removeprefix(prefix) for name in self._envoy.stats() if name.startswith(prefix))
        return {
            "server_transport": next((line["server_transport"] or "" for line in lines), ""),
            "server_stats": interesting(stats),
        }


class EnvoyClients:
    """The clients of the cases, all in one Envoy. A context manager. `ports`: where the server of each case listens."""

    def __init__(self, cases: Iterable[TlsCase], materials: Materials, ports: Mapping[str, int]) -> None:
        chosen = [case for case in cases if case.name in ports]
        self._envoy = TlsEnvoy(
            [client_listener(case.name) for case in chosen],
            [client_cluster(case, materials, ports[case.name]) for case in chosen],
        )

    def __enter__(self) -> EnvoyClients:
        self._envoy.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._envoy.__exit__()

    def send(self, case: TlsCase) -> TlsOutcome:
        """One request through the case's cluster."""
        connection = http.client.HTTPConnection("127.0.0.1", self._envoy.ports[case.name], timeout=LIMIT)
        try:
            connection.request("GET", "/", headers={"host": "srv.example"})
            response = connection.getresponse()
            body, headers = response.read(), {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()
        return TlsOutcome(status=response.status, body=body.decode(), headers=headers, **self.told(case))

    def told(self, case: TlsCase) -> dict[str, Any]:
        """What the client's Envoy says about the request of a case."""
        deadline = time.monotonic() + 5.0
        while not (lines := self._envoy.lines({"case": case.name})):
            if time.monotonic() > deadline:
                raise EnvoyError(f"{case.name}: no line in the access log")
            time.sleep(0.01)
        prefix = f"cluster.{case.name}.ssl."
        stats = (name.removeprefix(prefix) for name in self._envoy.stats() if name.startswith(prefix))
        line = lines[-1]
        return {
            "flags": line["flags"] or "-",
            "details": line["details"] or "",
            "transport": line["transport"] or "",
            "client_stats": interesting(stats),
        }


def server_listener(case: TlsCase, materials: Materials) -> dict[str, Any]:
    """A listener that answers 200, with the case's TLS context."""
    assert not isinstance(case.server, str)
    added = [{"header": {"key": name, "value": value}} for name, value in ANSWER_HEADERS.items()]
    answer = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "served"}},
    }
    manager = {
        "@type": HCM,
        "stat_prefix": "server",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [answer], "response_headers_to_add": added}
            ]
        },
    }
    listener = _listener(case.name, manager)
    listener["stat_prefix"] = case.name
    listener["filter_chains"][0]["transport_socket"] = downstream(case.server, materials)
    listener["access_log"] = [_log(case.name, _CONNECTION_LOG)]
    return listener


def client_listener(name: str) -> dict[str, Any]:
    """A plaintext listener whose requests go to the cluster of the same name."""
    manager = {
        "@type": HCM,
        "stat_prefix": "client",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "access_log": [_log(name, _REQUEST_LOG)],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}],
                }
            ]
        },
    }
    return _listener(name, manager)


def client_cluster(case: TlsCase, materials: Materials, port: int) -> dict[str, Any]:
    """A STATIC cluster of one endpoint with the case's TLS context."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    cluster: dict[str, Any] = {
        "name": case.name,
        "connect_timeout": SOON if case.server == SILENT else CONNECT_TIMEOUT,
        "load_assignment": {
            "cluster_name": case.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if case.client != PLAINTEXT:
        assert not isinstance(case.client, str)
        cluster["transport_socket"] = upstream(case.client, materials)
    return cluster


def cluster_resource(case: TlsCase, materials: Materials, port: int) -> dict[str, Any]:
    """The same cluster as a resource of a configuration file."""
    return {"@type": CLUSTER, "type": "STATIC", **client_cluster(case, materials, port)}


def _listener(name: str, manager: dict[str, Any]) -> dict[str, Any]:
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [chain],
    }


def _log(case: str, fields: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "${log}",
            "log_format": {"json_format": {**fields, "case": case}},
        },
    }


_STATS = ("connection_error", "fail_verify_error", "fail_verify_no_cert", "fail_verify_san", "no_certificate")


def interesting(names: Iterable[str]) -> tuple[str, ...]:
    """Of the names of ssl counters those that a case may expect."""
    return tuple(sorted(set(names) & set(_STATS)))
