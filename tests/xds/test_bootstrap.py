from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import ConfigError
from meshlib.runtime.stream import ChannelCredentials
from meshlib.xds.bootstrap import load, parse

PLAIN = {"server_uri": "cp:1", "channel_creds": [{"type": "insecure"}]}


def boot(**fields: Any) -> dict[str, Any]:
    return {"xds_servers": [PLAIN], **fields}


def server(**fields: Any) -> dict[str, Any]:
    return {"xds_servers": [{**PLAIN, **fields}]}


def test_everything_that_is_read() -> None:
    found = parse(
        {
            "xds_servers": [
                {
                    "server_uri": "dns:///cp:1",
                    "channel_creds": [
                        {"type": "google_default"},
                        {
                            "type": "tls",
                            "config": {
                                "ca_certificate_file": "ca.pem",
                                "certificate_file": "me.pem",
                                "private_key_file": "me.key",
                                "refresh_interval": "600s",
                            },
                        },
                        {"type": "insecure"},
                    ],
                    "server_features": ["xds_v3", "ignore_resource_deletion"],
                }
            ],
            "node": {
                "id": "me",
                "cluster": "mine",
                "locality": {"region": "r", "zone": "z", "sub_zone": "s"},
                "metadata": {"a": [1, {"b": True}]},
            },
            "certificate_providers": {"default": {"plugin_name": "file_watcher"}},
            "client_default_listener_resource_name_template": "%s/listener",
            "something_new": 7,
        }
    )
    assert found.server.server_uri == "dns:///cp:1"
    assert found.server.credentials == ChannelCredentials(
        kind="tls",
        ca_certificate_file="ca.pem",
        certificate_file="me.pem",
        private_key_file="me.key",
    )
    assert found.server.ignore_resource_deletion
    assert (found.node.id, found.node.cluster) == ("me", "mine")
    assert (found.node.region, found.node.zone, found.node.sub_zone) == ("r", "z", "s")
    assert found.node.metadata["a"] == [1, {"b": True}]
    assert found.certificate_providers["default"]["plugin_name"] == "file_watcher"
    assert found.listener_name("web:80") == "web:80/listener"
    assert found.unsupported == ()


def test_the_least_that_is_needed() -> None:
    found = parse(boot())
    assert found.server.credentials.kind == "insecure"
    assert not found.server.ignore_resource_deletion
    assert found.node.id == ""
    assert found.listener_name("web:80") == "web:80"


def test_what_is_not_applied_is_said() -> None:
    found = parse(
        {
            "xds_servers": [
                {
                    **PLAIN,
                    "server_features": ["fail_on_data_errors", "xds_v3"],
                    "call_creds": [{"type": "jwt"}],
                },
                PLAIN,
            ],
            "authorities": {"a.example": {}},
        }
    )
    assert found.unsupported == (
        "xds_servers[0].server_features: fail_on_data_errors",
        "xds_servers[0].call_creds",
        "xds_servers[1]",
        'authorities["a.example"]',
    )
    assert len(found.servers) == 2


def test_an_xdstp_template_gets_the_target_percent_encoded() -> None:
    template = "xdstp://a/envoy.config.listener.v3.Listener/%s?x=1"
    found = parse(boot(client_default_listener_resource_name_template=template))
    assert found.listener_name("web:80/a b%") == (
        "xdstp://a/envoy.config.listener.v3.Listener/web:80/a%20b%25?x=1"
    )


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({}, "bootstrap: xds_servers: is missing or empty"),
        ({"xds_servers": []}, "bootstrap: xds_servers: is missing or empty"),
        ({"xds_servers": "cp:1"}, 'bootstrap: xds_servers: expected a list, got "cp:1"'),
        ({"xds_servers": ["cp:1"]}, 'bootstrap: xds_servers[0]: expected an object, got "cp:1"'),
        (server(server_uri=""), "bootstrap: xds_servers[0].server_uri: is missing"),
        (server(server_uri=7), "bootstrap: xds_servers[0].server_uri: expected a string, got 7"),
        (server(channel_creds=[]), "bootstrap: xds_servers[0].channel_creds: offers nothing; meshlib knows"),
        (
            server(channel_creds=[{"type": "google_default"}]),
            "bootstrap: xds_servers[0].channel_creds: offers 'google_default'; meshlib knows 'insecure' and 'tls'",
        ),
        (
            server(channel_creds=[{"type": "tls", "config": {"certificate_file": "a"}}]),
            "bootstrap: xds_servers[0].channel_creds[0].config: certificate_file and private_key_file belong together",
        ),
        (
            server(server_features=[1]),
            "bootstrap: xds_servers[0].server_features[0]: expected a string, got 1",
        ),
        (boot(node=[]), "bootstrap: node: expected an object, got []"),
        (boot(node={"id": 1}), "bootstrap: node.id: expected a string, got 1"),
        (boot(node={"locality": {"zone": 1}}), "bootstrap: node.locality.zone: expected a string, got 1"),
        (boot(node={"metadata": 1}), "bootstrap: node.metadata: expected an object, got 1"),
        (boot(authorities=1), "bootstrap: authorities: expected an object, got 1"),
        (
            boot(client_default_listener_resource_name_template="web"),
            "bootstrap: client_default_listener_resource_name_template: has no %s",
        ),
    ],
)
def test_an_error_names_the_field(value: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(value)
    assert str(caught.value).startswith(error)


def test_the_environment_is_read_as_grpc_does(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.json"
    file.write_text(json.dumps(boot(node={"id": "file"})))
    text = json.dumps(boot(node={"id": "text"}))
    both = {"GRPC_XDS_BOOTSTRAP": str(file), "GRPC_XDS_BOOTSTRAP_CONFIG": text}
    assert load(environ=both).node.id == "file"
    assert load(environ={"GRPC_XDS_BOOTSTRAP_CONFIG": text}).node.id == "text"
    with pytest.raises(ConfigError, match="no control plane is given: set GRPC_XDS_BOOTSTRAP"):
        load(environ={})


def test_dicts_files_and_keywords(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.json"
    file.write_text(json.dumps(boot()))
    assert load(boot(node={"id": "a", "cluster": "c"}), node_id="b").node.cluster == "c"
    assert load(boot(node={"id": "a"}), node_id="b").node.id == "b"
    assert load(file).server.server_uri == "cp:1"
    assert load(str(file)).server.server_uri == "cp:1"
    plain = load(server_uri="127.0.0.1:18000", node_id="me")
    assert (plain.server.server_uri, plain.node.id) == ("127.0.0.1:18000", "me")
    assert plain.server.credentials.kind == "insecure"
    with pytest.raises(ConfigError, match="not both"):
        load(boot(), server_uri="a:1")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bootstrap /nowhere/b.json can't be read: No such file"):
        load("/nowhere/b.json")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)
    bad = tmp_path / "bad.json"
    bad.write_text('{"xds_servers": [')
    with pytest.raises(ConfigError, match=r"bad.json: not JSON: .*line 1 column"):
        load(bad)
    bad.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(bad)
    with pytest.raises(ConfigError, match=r"not JSON: .*\(a file name\? then use GRPC_XDS_BOOTSTRAP\)"):
        load(environ={"GRPC_XDS_BOOTSTRAP_CONFIG": "/etc/xds.json"})
    with pytest.raises(ConfigError, match="expected an object with xds_servers and node, got list"):
        load(environ={"GRPC_XDS_BOOTSTRAP_CONFIG": "[]"})
    with pytest.raises(ConfigError, match="not JSON"):
        load(environ={"GRPC_XDS_BOOTSTRAP_CONFIG": "[" * 100_000})


def test_names_of_the_listeners_of_servers() -> None:
    assert parse(boot()).server_listener_name("0.0.0.0:8443") == "0.0.0.0:8443"
    found = parse(boot(server_listener_resource_name_template="grpc/server?address=%s"))
    assert found.server_listener_name("0.0.0.0:8443") == "grpc/server?address=0.0.0.0:8443"
    found = parse(boot(server_listener_resource_name_template="xdstp://a/%s"))
    assert found.server_listener_name("[::]:80") == "xdstp://a/%5B::%5D:80"


def test_sds_servers_by_the_names_of_their_clusters() -> None:
    agent = {"server_uri": "unix:/agent.sock", "channel_creds": [{"type": "insecure"}]}
    found = parse(boot(sds_clusters={"sds-grpc": agent})).sds_clusters
    assert found["sds-grpc"].server_uri == "unix:/agent.sock"
    with pytest.raises(
        ConfigError, match=r"sds_clusters\.x: server_uri: is missing|sds_clusters\.x\.server_uri"
    ):
        parse(boot(sds_clusters={"x": {}}))
