"""Transport sockets, secrets, RBAC and filter chains: what Envoy refuses is refused, what it accepts is accepted."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance.envoy_process import envoy_binary
from meshlib import proto
from meshlib.errors import ResourceError
from tests.resources import test_decode_inbound, test_decode_rbac, test_decode_tls
from tests.resources.building import ROUTER, assignment, decoded, endpoint, locality, manager
from tests.resources.tls_samples import (
    RAW,
    bundle_map,
    certificate,
    common,
    fingerprint,
    from_sds,
    from_server,
    san,
    spiffe,
    trusted,
    upstream,
)

pytestmark = pytest.mark.envoy

ADDRESS = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
SIMPLE_CLUSTER = {"name": "c", "type": "STATIC", "load_assignment": assignment(locality(endpoint()))}


def accepted_by_envoy(
    directory: Path, *, clusters: list[dict[str, Any]] | None = None, listeners: Any = ()
) -> str | None:
    """None, or why not."""
    config = {
        "node": {"id": "n", "cluster": "c"},
        "static_resources": {
            "clusters": [{**SIMPLE_CLUSTER, "name": "c"}, *(clusters or [])],
            "listeners": list(listeners),
            "secrets": [{"name": "static", "tls_certificate": certificate()}],
        },
    }
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(path), "-l", "critical"]
    done = subprocess.run(command, capture_output=True, timeout=50, text=True)
    return None if done.returncode == 0 else done.stderr[-400:]


def refusal(type_url: str, value: dict[str, Any]) -> ResourceError | None:
    try:
        decoded(type_url, value)
    except ResourceError as error:
        return error
    return None


ACCEPTED: list[dict[str, Any]] = [
    upstream(),
    upstream(common(trusted()), sni="a", auto_host_sni=True, auto_sni_san_validation=True),
    *(upstream(common(tls_certificates=[certificate(kind)])) for kind in ("p256", "p384", "p521", "rsa2048")),
    upstream(common(tls_certificates=[{}])),
    upstream(common(trusted(match_typed_subject_alt_names=[san(), san("DNS", suffix="x")]))),
    upstream(common(trusted(match_subject_alt_names=[{"exact": "a"}]))),
    upstream(common({"verify_certificate_hash": [fingerprint()]})),
    upstream(common({"trust_chain_verification": "ACCEPT_UNTRUSTED"})),
    upstream(common(trusted(max_verify_depth=1, allow_expired_certificate=True))),
    upstream(common(spiffe("a", "b"))),
    upstream(common(spiffe())),
    upstream(common(spiffe(trust_bundles={"inline_string": bundle_map()}))),
    upstream(common(tls_certificate_sds_secret_configs=[{"name": "static"}])),
    upstream(
        common(
            tls_certificate_sds_secret_configs=[
                from_sds("s", **from_server(envoy_grpc={"cluster_name": "c"}))
            ]
        )
    ),
    upstream(common(alpn_protocols=["h2", "http/1.1"])),
    upstream(common(tls_params={"ecdh_curves": ["P-256"], "tls_maximum_protocol_version": "TLSv1_3"})),
    RAW,
]


def test_accepted_sockets(tmp_path: Path) -> None:
    clusters = [
        {**SIMPLE_CLUSTER, "name": f"c{number}", "transport_socket": socket}
        for number, socket in enumerate(ACCEPTED)
    ]
    for cluster in clusters:
        assert refusal(proto.CLUSTER, cluster) is None
    assert accepted_by_envoy(tmp_path, clusters=clusters) is None


@pytest.mark.parametrize("context", [context for context, _ in test_decode_tls.REFUSED])
def test_refused_contexts(tmp_path: Path, context: dict[str, Any]) -> None:
    cluster = {**SIMPLE_CLUSTER, "name": "x", "transport_socket": upstream(context)}
    assert refusal(proto.CLUSTER, cluster) is not None
    assert accepted_by_envoy(tmp_path, clusters=[cluster]) is not None


def with_rules(rbac: dict[str, Any]) -> dict[str, Any]:
    http = manager(http_filters=[{"name": "rbac", "typed_config": rbac}, copy.deepcopy(ROUTER)])
    return {
        "name": "l",
        "address": ADDRESS,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
    }


def test_accepted_rbac(tmp_path: Path) -> None:
    listeners = [{**with_rules(rbac), "name": f"l{n}"} for n, rbac in enumerate(test_decode_rbac.ACCEPTED)]
    for listener in listeners:
        assert refusal(proto.LISTENER, listener) is None
    assert accepted_by_envoy(tmp_path, listeners=listeners) is None


@pytest.mark.parametrize("rbac", test_decode_rbac.REFUSED)
def test_refused_rbac(tmp_path: Path, rbac: dict[str, Any]) -> None:
    assert refusal(proto.LISTENER, with_rules(rbac)) is not None
    assert accepted_by_envoy(tmp_path, listeners=[with_rules(rbac)]) is not None


def test_accepted_listeners(tmp_path: Path) -> None:
    listeners = [
        {
            **each,
            "name": f"l{n}",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1 + n}},
        }
        for n, each in enumerate(test_decode_inbound.ACCEPTED)
    ]
    for listener in listeners:
        assert refusal(proto.LISTENER, listener) is None
    assert accepted_by_envoy(tmp_path, listeners=listeners) is None


@pytest.mark.parametrize("listener", test_decode_inbound.REFUSED)
def test_refused_listeners(tmp_path: Path, listener: dict[str, Any]) -> None:
    assert refusal(proto.LISTENER, listener) is not None
    assert accepted_by_envoy(tmp_path, listeners=[listener]) is not None
