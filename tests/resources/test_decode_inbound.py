"""Listeners of servers, and the choice of a filter chain."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.inbound import (
    ClientCertDetails,
    ClientCertForwarding,
    ConnectionInfo,
    DownstreamHttp,
    FilterChain,
    FilterChainMatch,
    InboundListener,
    SourceType,
    find_filter_chain,
)
from meshlib.resources.listener import Listener
from meshlib.resources.tls import CommonTls, SecretRef, TlsCertificate
from tests.resources.building import (
    EXTENSIONS,
    ROUTER,
    api_listener,
    decoded,
    manager,
    refused,
    socket_listener,
)
from tests.resources.tls_samples import RAW, certificate, common, downstream, from_sds, issued, trusted

HEADER = {"header": {"name": "x-a", "present_match": True}}
NETWORK_RBAC = EXTENSIONS + "filters.network.rbac.v3.RBAC"
INSPECTOR = EXTENSIONS + "filters.listener.tls_inspector.v3.TlsInspector"
PROXY_PROTOCOL = EXTENSIONS + "filters.listener.proxy_protocol.v3.ProxyProtocol"
ADDRESS = {"socket_address": {"address": "127.0.0.1", "port_value": 8443}}
SERVER = downstream(common(tls_certificates=[certificate()]))


def http(**fields: Any) -> dict[str, Any]:
    return {"name": "http", "typed_config": manager(**fields)}


def chain(socket: dict[str, Any] | None = SERVER, *filters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    found = {"filters": [*filters, http()], "transport_socket": socket, **fields}
    return {key: value for key, value in found.items() if value is not None}


def listener(*chains: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "l", "address": ADDRESS, "filter_chains": list(chains), **fields}


def match(name: str = "", **fields: Any) -> dict[str, Any]:
    return chain(filter_chain_match=fields, name=name)


def decode_inbound(value: dict[str, Any]) -> InboundListener:
    found = decoded(proto.LISTENER, value).resource
    assert isinstance(found, InboundListener)
    return found


def rbac_filter(**fields: Any) -> dict[str, Any]:
    policy = {"permissions": [{"any": True}], "principals": [{"any": True}]}
    rules = {"policies": {"p": policy}}
    return {
        "name": "rbac",
        "typed_config": {"@type": NETWORK_RBAC, "stat_prefix": "r", "rules": rules, **fields},
    }


def prefix(address: str, length: int) -> dict[str, Any]:
    return {"address_prefix": address, "prefix_len": length}


ACCEPTED: list[dict[str, Any]] = [
    listener(chain()),
    listener(chain(RAW)),
    listener(chain(downstream(common(trusted(), tls_certificates=[certificate(), certificate("rsa2048")])))),
    listener(chain(), default_filter_chain=chain(None)),
    listener(chain(SERVER, rbac_filter())),
    listener(
        match(transport_protocol="tls"),
        chain(None, filter_chain_match={"transport_protocol": "raw_buffer"}),
        listener_filters=[{"name": "tls", "typed_config": {"@type": INSPECTOR}}],
    ),
    listener(
        match(server_names=["a.example", "*.b.example"]),
        match(server_names=["c.example"], application_protocols=["h2"]),
        match(destination_port=443, prefix_ranges=[prefix("10.0.0.0", 8)]),
        match(source_type="EXTERNAL", source_prefix_ranges=[prefix("10.0.0.0", 8)], source_ports=[1, 2]),
    ),
]
REFUSED: list[dict[str, Any]] = [
    listener(chain(), chain()),
    listener(match(server_names=["a"]), match(server_names=["b", "a"])),
    listener(match(server_names=["a", "a"])),
    listener(match(server_names=["a*.example"])),
    listener(match(address_suffix="1")),
    listener(match(prefix_ranges=[prefix("x", 8)])),
    listener(match(source_ports=[65536])),
    listener(match(source_type=9)),
    listener(chain(downstream())),
    listener(chain(downstream(common(trusted())))),
    listener(
        chain(
            downstream(
                {
                    "tls_certificates": [certificate()],
                    "tls_certificate_sds_secret_configs": [{"name": "static"}],
                }
            )
        )
    ),
    listener(chain(downstream(common({"crl": {"inline_string": "x"}}, tls_certificates=[certificate()])))),
    listener({"filters": [rbac_filter()]}),
    listener({"filters": [http(), http()]}),
    listener(
        {
            "filters": [http()],
            "transport_socket": {
                "name": "x",
                "typed_config": {"@type": EXTENSIONS + "transport_sockets.tls.v3.UpstreamTlsContext"},
            },
        }
    ),
]
ONLY_HERE: list[tuple[dict[str, Any], str]] = [
    (listener(chain(use_proxy_proto=True)), "filter_chains[0].use_proxy_proto"),
    (
        listener(chain(), listener_filters=[{"name": "p", "typed_config": {"@type": PROXY_PROTOCOL}}]),
        "listener_filters[0]",
    ),
    (
        listener(
            chain(downstream(common(tls_certificates=[certificate()]), ocsp_staple_policy="MUST_STAPLE"))
        ),
        "filter_chains[0].transport_socket.typed_config.ocsp_staple_policy",
    ),
]


@pytest.mark.parametrize("value", ACCEPTED)
def test_accepted(value: dict[str, Any]) -> None:
    assert isinstance(decoded(proto.LISTENER, value).resource, InboundListener | Listener)


@pytest.mark.parametrize("value", REFUSED)
def test_refused(value: dict[str, Any]) -> None:
    refused(proto.LISTENER, value)


@pytest.mark.parametrize(("value", "path"), ONLY_HERE)
def test_not_implemented(value: dict[str, Any], path: str) -> None:
    assert refused(proto.LISTENER, value).path == path


def test_tls() -> None:
    found = decode_inbound(
        listener(
            chain(
                downstream(
                    common(trusted(), tls_certificates=[certificate()], alpn_protocols=["h2"]),
                    require_client_certificate=True,
                    session_timeout="60s",
                    disable_stateless_session_resumption=True,
                )
            )
        )
    )
    assert found.address == "127.0.0.1:8443"
    tls = found.filter_chains[0].tls
    assert tls is not None
    assert tls.require_client_certificate
    assert tls.common.certificates == (TlsCertificate(chain=issued().chain, private_key=issued().key),)
    assert tls.common.alpn == ("h2",)
    assert found.filter_chains[0].network_rbac == ()


def test_secrets() -> None:
    context = common(
        tls_certificate_sds_secret_configs=[from_sds("cert"), from_sds("other")],
        validation_context_sds_secret_config=from_sds("roots"),
    )
    found = decode_inbound(listener(chain(downstream(context))))
    assert [ref.name for ref in found.secrets] == ["cert", "other", "roots"]
    assert isinstance(found.secrets[0], SecretRef)


def test_filters_on_connections() -> None:
    found = decode_inbound(listener(chain(SERVER, rbac_filter(), rbac_filter(shadow_rules_stat_prefix="s"))))
    rbac = found.filter_chains[0].network_rbac
    assert [each.shadow_rules_stat_prefix for each in rbac] == ["", "s"]
    assert rbac[0].rules is not None
    assert rbac[0].stat_prefix


@pytest.mark.parametrize("field", ["rules", "shadow_rules"])
@pytest.mark.parametrize(
    "policy",
    [
        {"permissions": [HEADER], "principals": [{"any": True}]},
        {
            "permissions": [{"or_rules": {"rules": [{"any": True}, {"not_rule": HEADER}]}}],
            "principals": [HEADER],
        },
        {"permissions": [{"any": True}], "principals": [{"not_id": HEADER}]},
        {"permissions": [{"any": True}], "principals": [{"and_ids": {"ids": [HEADER]}}]},
    ],
)
def test_a_connection_has_no_headers(field: str, policy: dict[str, Any]) -> None:
    """Envoy refuses it, too."""
    rules = {"policies": {"p": policy}}
    with pytest.raises(ResourceError, match="'x-a' can't be looked at"):
        decode_inbound(listener(chain(SERVER, rbac_filter(**{field: rules}))))


def test_what_is_said_of_the_caller() -> None:
    details = {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True}
    manager = http(
        forward_client_cert_details="APPEND_FORWARD",
        set_current_client_cert_details=details,
        use_remote_address=True,
        xff_num_trusted_hops=2,
        skip_xff_append=True,
    )
    found = decode_inbound(listener({**chain(), "filters": [manager]})).filter_chains[0].downstream
    assert found == DownstreamHttp(
        forward_client_cert=ClientCertForwarding.APPEND_FORWARD,
        client_cert_details=ClientCertDetails(**details),
        use_remote_address=True,
        xff_num_trusted_hops=2,
        skip_xff_append=True,
    )
    assert decode_inbound(listener(chain())).filter_chains[0].downstream == DownstreamHttp()


def test_a_plain_listener_is_a_clients_and_a_servers() -> None:
    found = decoded(proto.LISTENER, socket_listener()).resource
    assert isinstance(found, Listener)
    assert found.inbound is not None
    assert found.inbound.chains[0].http is found.http
    assert found.inbound.chains[0].tls is None
    assert find_filter_chain(found.inbound, ConnectionInfo()) is found.inbound.chains[0]
    value = socket_listener()
    value["filter_chains"][0]["filter_chain_match"] = {"source_ports": [7]}
    matched = decoded(proto.LISTENER, value).resource
    assert isinstance(matched, Listener)
    assert matched.inbound is not None
    assert find_filter_chain(matched.inbound, ConnectionInfo(source_port=8)) is None
    assert find_filter_chain(matched.inbound, ConnectionInfo(source_port=7)) is not None
    default = {"name": "l", "default_filter_chain": socket_listener()["filter_chains"][0]}
    last = decoded(proto.LISTENER, default).resource
    assert isinstance(last, Listener)
    assert last.inbound is not None
    assert find_filter_chain(last.inbound, ConnectionInfo()) is last.inbound.default_filter_chain
    proxied = {"name": "p", "typed_config": {"@type": PROXY_PROTOCOL}}
    clients = decoded(proto.LISTENER, {**socket_listener(), "listener_filters": [proxied]}).resource
    assert isinstance(clients, Listener)
    assert clients.inbound is None
    api = decoded(proto.LISTENER, api_listener()).resource
    assert isinstance(api, Listener)
    assert api.inbound is None


def test_what_is_not_read_is_reported() -> None:
    value = listener(chain(), access_log=[{"name": "x"}])
    assert decoded(proto.LISTENER, value).unsupported == ("access_log",)


def chosen(value: dict[str, Any], **connection: Any) -> str | None:
    found = find_filter_chain(decode_inbound(value), ConnectionInfo(**connection))
    return None if found is None else found.name


def test_the_choice_by_server_name() -> None:
    value = listener(
        match("exact", server_names=["a.b.example"]),
        match("near", server_names=["*.b.example"]),
        match("far", server_names=["*.example"]),
        match("none"),
    )
    assert chosen(value, server_name="A.b.example") == "exact"
    assert chosen(value, server_name="c.b.example") == "near"
    assert chosen(value, server_name="x.c.b.example") == "near"
    assert chosen(value, server_name="b.example") == "far"
    assert chosen(value, server_name="example") == "none"
    assert chosen(value) == "none"


def test_the_choice_by_addresses() -> None:
    value = listener(
        match("wide", prefix_ranges=[prefix("10.0.0.0", 8)]),
        match("narrow", prefix_ranges=[prefix("10.1.0.0", 16), prefix("::1", 128)]),
        match("zero", prefix_ranges=[prefix("0.0.0.0", 0)]),
        default_filter_chain=chain(name="default"),
    )
    assert chosen(value, destination="10.2.0.1") == "wide"
    assert chosen(value, destination="10.1.0.1") == "narrow"
    assert chosen(value, destination="::1") == "narrow"
    assert chosen(value, destination="1.1.1.1") == "zero"
    assert chosen(value, destination="::2") == "default"
    assert chosen(value) == "default"


def test_the_choice_by_ports_and_protocols() -> None:
    value = listener(
        match("port", destination_port=443),
        match("tls", transport_protocol="tls"),
        match("h2", transport_protocol="tls", application_protocols=["h2", "x"]),
        match("http", transport_protocol="tls", application_protocols=["http/1.1"]),
        match("plain"),
    )
    assert chosen(value, destination_port=443, transport_protocol="tls") == "port"
    assert chosen(value, transport_protocol="tls") == "tls"
    assert chosen(value, transport_protocol="tls", application_protocols=("http/1.1", "h2")) == "http"
    assert chosen(value, transport_protocol="tls", application_protocols=("y", "h2")) == "h2"
    assert chosen(value) == "plain"


def test_the_choice_by_the_source() -> None:
    value = listener(
        match("local", source_type="SAME_IP_OR_LOOPBACK"),
        match("external", source_type="EXTERNAL", source_prefix_ranges=[prefix("10.0.0.0", 8)]),
        match("ports", source_type="EXTERNAL", source_ports=[7]),
        match("direct", direct_source_prefix_ranges=[prefix("192.168.0.0", 16)]),
    )
    assert chosen(value, source="127.0.0.1") == "local"
    assert chosen(value, source="1.1.1.1", destination="1.1.1.1") == "local"
    assert chosen(value, source="10.1.1.1", destination="1.1.1.1") == "external"
    assert chosen(value, source="2.1.1.1", source_port=7) == "ports"
    assert chosen(value, source="2.1.1.1", source_port=8) is None
    assert chosen(value, source="2.1.1.1", direct_source="192.168.1.1") == "direct"


def test_there_is_no_way_back() -> None:
    """A more specific server name wins, even where its chain does not fit a later criterion."""
    value = listener(
        match("name", server_names=["a"], application_protocols=["h2"]),
        match("any"),
        default_filter_chain=chain(name="default"),
    )
    assert chosen(value, server_name="a", application_protocols=("h2",)) == "name"
    assert chosen(value, server_name="a") == "default"
    assert chosen(value, server_name="b") == "any"


def test_names_of_the_match() -> None:
    found = decode_inbound(listener(match(server_names=["A.Example"], source_type="EXTERNAL")))
    assert found.filter_chains[0].match == FilterChainMatch(
        server_names=("a.example",), source_type=SourceType.EXTERNAL
    )
    assert isinstance(found.filter_chains[0], FilterChain)
    assert copy.copy(ROUTER)
    assert CommonTls().secrets == ()
