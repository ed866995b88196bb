"""Calls wait for a secret as long as it may come, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
import meshlib.httpx
from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from tests.resources.building import api_listener, assignment, endpoint, locality
from tests.resources.tls_samples import common, from_sds, upstream

TYPES = "type.googleapis.com/envoy.config."
CALL_LIMIT = 10.0
"""Seconds; calls that waited for the secret in vain would take 15."""


def resources(**source: Any) -> list[dict[str, Any]]:
    context = common(tls_certificate_sds_secret_configs=[from_sds("cert", **source)])
    return [
        {
            "@type": TYPES + "cluster.v3.Cluster",
            "name": "c",
            "type": "STATIC",
            "load_assignment": assignment(locality(endpoint())),
            "transport_socket": upstream(context),
        },
        {"@type": TYPES + "listener.v3.Listener", **api_listener(), "name": "web:80"},
    ]


def failure(mesh: meshlib.Mesh) -> meshlib.MeshError:
    with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh)) as client:
        with meshlib.call(timeout=CALL_LIMIT), pytest.raises(meshlib.MeshError) as caught:
            client.get("http://web/")
    return caught.value


def test_a_secret_that_the_files_do_not_have() -> None:
    with meshlib.Mesh(config={"resources": resources()}) as mesh:
        assert "Secret_is_not_supplied_by_SDS" in failure(mesh).details


def test_a_first_version_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("resources: []")
    with meshlib.Mesh(config={"resources": resources(path_config_source={"path": str(path)})}) as mesh:
        assert "Secret_is_not_supplied_by_SDS" in failure(mesh).details


def test_a_secret_that_the_control_plane_sends_wrong() -> None:
    messages = [
        proto.from_dict(proto.full_name(item["@type"]), {k: v for k, v in item.items() if k != "@type"})
        for item in resources()
    ]
    secret = {"name": "cert", "tls_certificate": {"certificate_chain": {"inline_string": "nonsense"}}}
    messages.append(proto.from_dict(proto.full_name(proto.SECRET), secret))
    with ControlPlane(ResourceStore(messages)) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap("me")) as mesh:
            assert "Secret_is_not_supplied_by_SDS" in failure(mesh).details
