"""What a real Envoy and meshlib log of connections: to endpoints over TLS, and of the callers of a server."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformance.envoy_process import EnvoyProcess
from meshlib.resources import operators
from tests.identity.ca import TestCA
from tests.observe.access_log.envoy import TYPES, both_logs, closed_port, file_log, lines_of
from tests.server.identities import CLIENT, SERVER, client_context
from tests.server.rbac_cases import Request
from tests.server.test_rbac_parity import OK, Lab, answer, serving
from tests.transport.http.secure import World

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

NUMBERS = re.compile(r"(?<=:)[1-9]\d*$|^\d+$")


def asked(names: set[str], **more: str) -> dict[str, Any]:
    shown = {name: f"%{name}%" for name in sorted(names)} | more
    return {"log_format": {"json_format": shown}}


def varying(members: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Of ports, numbers of connections and durations only whether there is one."""
    found = {key: "<us>" for key, value in members.items() if key in DURATIONS and value is not None}
    for key in names & members.keys():
        if members[key] not in (None, 0):
            found[key] = NUMBERS.sub("<n>", str(members[key]))
    return members | found


UPSTREAM = asked(
    {name for name in operators.OF_CONNECTIONS if not name.endswith("_DURATION")},
    days="%UPSTREAM_PEER_CERT_V_START(%b %e %Y)% to %UPSTREAM_PEER_CERT_V_END(%s)%",
    network="%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(8)% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(30)%",
    opening="%COMMON_DURATION(US_CX_BEG:US_CX_END:us)%",
    shaking="%COMMON_DURATION(US_CX_END:US_HS_END:us)%",
    since="%COMMON_DURATION(DS_RX_BEG:US_CX_BEG:us)%",
    until_sent="%COMMON_DURATION(US_CX_END:US_TX_BEG:us)%",
    remote="%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    protocol="%UPSTREAM_PROTOCOL%",
)
OWN_ENDS = {
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_PORT",
}
DURATIONS = {"opening", "shaking", "since", "until_sent"}


def cluster(name: str, port: int, world: World | None, version: str = "TLSv1_3") -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    found: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if world is not None:
        own = {
            "certificate_chain": {"inline_string": world.client.chain.decode()},
            "private_key": {"inline_string": world.client.key.decode()},
        }
        found["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": TYPES + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "srv.example",
                "common_tls_context": {
                    "tls_params": {"tls_maximum_protocol_version": version},
                    "tls_certificates": [own],
                    "validation_context": {"trusted_ca": {"inline_string": world.ca.pem.decode()}},
                },
            },
        }
    return found


def test_connections_to_endpoints(tmp_path: Path) -> None:
    world, stranger = World(), World()
    world.client = world.ca.issue(CLIENT, dns=["cli.example"], ips=["10.0.0.1", "::1"])
    world.server = world.ca.issue(SERVER, "https://second.example", dns=["srv.example", "b.example"])
    names = ("newer", "older", "plain", "refused", "stranger")
    routes = [{"match": {"prefix": f"/{name}"}, "route": {"cluster": name}} for name in names]
    with (
        world.serve() as newer,
        world.serve(maximum=ssl.TLSVersion.TLSv1_2) as older,
        stranger.serve() as other,
    ):
        clusters = [
            cluster("newer", newer.port, world),
            cluster("older", older.port, world, "TLSv1_2"),
            cluster("plain", older.port, None),
            cluster("refused", closed_port(), world),
            cluster("stranger", other.port, world),
        ]
        requests = [httpx.Request("GET", f"http://svc.example/{name}") for name in (*names, *names[:2])]
        theirs, ours = both_logs({"log": UPSTREAM}, routes, clusters, requests, tmp_path)
    found = [[json.loads(line) for line in each["log"]] for each in (theirs, ours)]
    assert len(found[0]) == len(found[1]) == len(requests)
    for envoys, own in zip(*found):
        if envoys["UPSTREAM_TLS_VERSION"] == "TLSv1.2":
            assert re.fullmatch("[0-9a-f]{64}", envoys.pop("UPSTREAM_TLS_SESSION_ID"))
            assert re.fullmatch("[0-9a-f]{64}", own.pop("UPSTREAM_TLS_SESSION_ID"))
        assert varying(own, OWN_ENDS) == varying(envoys, OWN_ENDS)
    assert found[1][0]["UPSTREAM_LOCAL_ADDRESS"].startswith("127.0.0.1:")
    assert found[1][0]["UPSTREAM_CONNECTION_ID"] == found[1][5]["UPSTREAM_CONNECTION_ID"]


DOWNSTREAM = {name for name in operators.LOGGED if name.startswith("DOWNSTREAM_")}
INBOUND = asked(
    DOWNSTREAM,
    sni="%REQUESTED_SERVER_NAME%",
    sni_first="%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%",
    host_first="%REQUESTED_SERVER_NAME(HOST_FIRST)%",
    days="%DOWNSTREAM_PEER_CERT_V_START(%b %e %Y)% to %DOWNSTREAM_PEER_CERT_V_END(%s)%",
    network="%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%",
    chain="%FILTER_CHAIN_NAME%",
)
PORTS = {name for name in DOWNSTREAM if name.endswith(("_ADDRESS", "_PORT"))}


@contextlib.contextmanager
def server_of(listener: dict[str, Any]) -> Iterator[tuple[EnvoyProcess, dict[str, int]]]:
    with EnvoyProcess() as envoy:
        envoy.launch({"static_resources": {"listeners": [listener]}})
        while not envoy.live:
            assert envoy.pause(), envoy.last_words()
        yield envoy, envoy.ports()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_callers_of_a_server(tmp_path: Path, version: ssl.TLSVersion) -> None:
    ca = TestCA("td.example")
    caller = ca.issue(CLIENT, dns=["cli.example"], ips=["10.0.0.1"], emails=["a@b.example"])
    contexts = {
        CLIENT: client_context(tmp_path, ca, caller),
        "none": client_context(tmp_path, ca, None),
    }
    for context in contexts.values():
        context.maximum_version = version
    lab = Lab(ca, ca.issue(SERVER, dns=["srv.example", "localhost"]), contexts, {CLIENT: caller})
    forwarded = (("x-forwarded-for", "192.0.2.7, 192.0.2.8"),)
    requests = (
        Request(caller=CLIENT, sni="srv.example"),
        Request(caller=CLIENT, headers=forwarded),
        Request(caller="none"),
        Request(caller="plain"),
    )
    logs = {}
    for who in ("theirs", "ours"):
        path = tmp_path / who
        listener = lab.listener("l", None, OK, access_log=[file_log(path, **INBOUND)], xff_num_trusted_hops=1)
        listener["filter_chains"][0]["name"] = "the one for TLS"
        with server_of(listener) if who == "theirs" else serving([listener]) as (_, ports):
            for request in requests:
                answer(ports["l"], request, lab)
            if who == "theirs":
                lines_of(path, len(requests))
        logs[who] = [json.loads(line) for line in lines_of(path, len(requests))]
    for theirs, ours in zip(logs["theirs"], logs["ours"], strict=True):
        # Envoy hands out tickets, and has no identifier for the session then.
        assert theirs.pop("DOWNSTREAM_TLS_SESSION_ID") is None
        identifier = ours.pop("DOWNSTREAM_TLS_SESSION_ID")
        if version is ssl.TLSVersion.TLSv1_2 and ours["DOWNSTREAM_TLS_VERSION"] is not None:
            assert re.fullmatch("[0-9a-f]{64}", identifier)
        else:
            assert identifier is None
        assert varying(ours, PORTS) == varying(theirs, PORTS)
    remote = [line["DOWNSTREAM_REMOTE_ADDRESS"] for line in logs["ours"]]
    assert remote[1] == "192.0.2.7:0"
    assert remote[0] == logs["ours"][0]["DOWNSTREAM_DIRECT_REMOTE_ADDRESS"]
