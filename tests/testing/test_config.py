from __future__ import annotations

from pathlib import Path

import pytest

from meshlib import proto
from meshlib.errors import ConfigError
from meshlib.testing import messages, serve, service

TEXT = f"""
    "@type": {proto.CLUSTER}
    name: a
    ---
    resources:
    - "@type": {proto.CLUSTER}
      name: b
"""


def test_text_files_and_dictionaries(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f'"@type": {proto.CLUSTER}\nname: c')
    found = messages(TEXT, tmp_path / "c.yaml", {"@type": proto.CLUSTER, "name": "d"})
    assert [message.name for message in found] == ["a", "b", "c", "d"]


def test_a_mistake_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nme: unknown field"):
        messages({"@type": proto.CLUSTER, "nme": "a"})


def test_a_served_service() -> None:
    with serve(service("reviews", "127.0.0.1:1", "[::1]:2"), TEXT) as control_plane:
        counts = {url: list(state.resources) for url, state in control_plane.store.types.items()}
        assert counts == {
            proto.LISTENER: ["reviews:80"],
            proto.ROUTE: ["reviews"],
            proto.CLUSTER: ["reviews", "a", "b"],
            proto.ENDPOINT: ["reviews"],
        }
        assert control_plane.bootstrap()["xds_servers"][0]["server_uri"] == control_plane.address
    (assignment,) = (m for m in messages(service("x", "[::1]:2")) if hasattr(m, "endpoints"))
    address = assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
    assert (address.address, address.port_value) == ("::1", 2)
