"""Inbound: what a listener, or rules of one's own, ask of requests; from files and from a control plane."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import meshlib
from meshlib.errors import ConfigError, ConfigTimeout
from meshlib.identity.peer import Peer
from meshlib.identity.spiffe import SpiffeId
from meshlib.server.arrival import Arrival
from meshlib.server.inbound import Inbound
from meshlib.server.rbac_source import load_rbac
from meshlib.server.tls import UNKNOWN, Connection
from meshlib.testing import messages, serve, service
from tests.server.identities import CLIENT, OTHER, allow, identities

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
NETWORK_RBAC = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
NAME = "0.0.0.0:8080"

NOBODY_MAY: dict[str, Any] = {"rules": {"action": "ALLOW"}}
DENIED = (403, b"RBAC: access denied")


def chain(
    *rbac: dict[str, Any], network: dict[str, Any] | None = None, match: Any = None, **manager: Any
) -> dict[str, Any]:
    http = {
        "@type": HTTP,
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"]}]},
        "http_filters": [
            *(
                {"name": f"rbac{index}", "typed_config": {"@type": RBAC, **config}}
                for index, config in enumerate(rbac)
            ),
            {"name": "router", "typed_config": {"@type": ROUTER}},
        ],
        **manager,
    }
    filters: list[dict[str, Any]] = [{"name": "http", "typed_config": http}]
    if network is not None:
        config = {"@type": NETWORK_RBAC, "stat_prefix": "net", **network}
        filters.insert(0, {"name": "network", "typed_config": config})
    return {"filters": filters, **({} if match is None else {"filter_chain_match": match})}


def listener(*chains: dict[str, Any]) -> dict[str, Any]:
    address = {"socket_address": {"address": "0.0.0.0", "port_value": 8080}}
    return {"@type": LISTENER, "name": NAME, "address": address, "filter_chains": list(chains)}


def arrival(path: str = "/", *, connection: Connection = UNKNOWN, **more: Any) -> Arrival:
    given: dict[str, Any] = {
        "remote": "10.0.0.1",
        "local": "10.0.0.9",
        "local_port": 8080,
        "headers": [],
    } | more
    return Arrival("GET", "http", "svc.example", path, connection=connection, **given)


def certified(name: str) -> Connection:
    peer = Peer(
        spiffe_id=SpiffeId.parse(name),
        uri_sans=(name,),
        dns_sans=(),
        subject="CN=x",
        issuer="",
        serial="1",
        not_after=0,
        certificate_der=b"x",
        chain_der=(b"x",),
        sha256="00",
    )
    return Connection(tls=True, peer=peer)


@pytest.fixture
def files() -> Iterator[Callable[..., meshlib.Mesh]]:
    made: list[meshlib.Mesh] = []

    def mesh(*resources: dict[str, Any]) -> meshlib.Mesh:
        made.append(meshlib.Mesh(config=[{"resources": list(resources)}]))
        return made[-1]

    yield mesh
    for each in made:
        each.close()


def answer(inbound: Inbound, request: Arrival) -> tuple[int, bytes] | None:
    refusal = inbound.admit(request).refusal
    return None if refusal is None else (refusal.status, refusal.body)


# --- rules of one's own ----------------------------------------------------------------------------------------------


def test_without_rules_everybody_may() -> None:
    inbound = Inbound()
    assert inbound.mode == "DISABLE"
    assert inbound.context() is None
    assert answer(inbound, arrival()) is None


def test_rules_of_ones_own() -> None:
    inbound = Inbound(rbac=allow(CLIENT))
    assert answer(inbound, arrival()) == DENIED
    assert answer(inbound, arrival(connection=certified(OTHER))) == DENIED
    admission = inbound.admit(arrival(connection=certified(CLIENT)))
    assert admission.refusal is None
    assert str(admission.peer.spiffe_id) == CLIENT
    assert admission.peer.address == "10.0.0.1"


def test_the_details_name_the_policy() -> None:
    deny = {"rules": {**allow(CLIENT)["rules"], "action": "DENY"}}
    assert Inbound(rbac=deny).admit(arrival(connection=certified(CLIENT))).details == (
        "rbac_access_denied_matched_policy[callers]"
    )
    assert Inbound(rbac=NOBODY_MAY).admit(arrival()).details == "rbac_access_denied_matched_policy[none]"


def test_an_ipv4_address_in_ipv6_form_is_ipv4() -> None:
    rule = {"direct_remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}
    policy = {"permissions": [{"any": True}], "principals": [rule]}
    inbound = Inbound(rbac={"rules": {"policies": {"p": policy}}})
    assert answer(inbound, arrival(remote="::ffff:10.0.0.1")) is None
    assert answer(inbound, arrival(remote="::1")) == DENIED
    assert answer(inbound, arrival(remote="")) == DENIED
    assert answer(inbound, arrival(remote="no address")) == DENIED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rules: {action: PERHAPS}", r"rbac.yaml:1: rules.action: "),
        ("rules:\n  policies:\n    p: {}\n", r"rbac.yaml:3: rules.policies\[\"?p\"?\]"),
        ("ruler: {}", "ruler"),
        ("- rules", "must hold one RBAC configuration"),
        ("a: [", "rbac.yaml:1"),
        ("matcher: {}", "matcher"),
        ("'@type': type.googleapis.com/google.protobuf.Any", "@type"),
    ],
)
def test_a_file_with_a_mistake(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "rbac.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_rbac(path)


def test_what_would_be_left_out_of_ones_own_rules_is_a_mistake() -> None:
    rule = {"metadata": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}}
    policy = {"permissions": [rule], "principals": [{"any": True}]}
    with pytest.raises(ConfigError, match="is not implemented"):
        load_rbac({"rules": {"policies": {"p": policy}}})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rbac(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "arguments",
    [{"listener": NAME}, {"mode": "MUTUAL"}, {"address": "nowhere"}],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Inbound(**arguments)


def test_a_listener_and_rules_of_ones_own_do_not_go_together(files: Callable[..., meshlib.Mesh]) -> None:
    mesh = files(listener(chain()))
    for more in ({"rbac": NOBODY_MAY}, {"forward_client_cert": "SANITIZE"}):
        with pytest.raises(ConfigError, match="leave out the rest"):
            Inbound(mesh, listener=NAME, **more)


def test_tls_needs_a_mesh() -> None:
    with pytest.raises(ConfigError, match="needs a mesh"):
        Inbound(mode="STRICT").context()


def test_a_certificate_that_does_not_come() -> None:
    class Never:
        def start(self, on_update: object) -> None: ...
        def close(self) -> None: ...

    with meshlib.Mesh(config=[], identity=Never()) as mesh:
        with pytest.raises(ConfigTimeout, match="no certificate to show"):
            Inbound(mesh).wait_ready(0.01)


def test_ready() -> None:
    with identities() as known:
        Inbound(known.mesh).wait_ready(0.0)


# --- listeners -------------------------------------------------------------------------------------------------------


def test_all_filters_of_a_listener(files: Callable[..., meshlib.Mesh]) -> None:
    mesh = files(listener(chain(allow(CLIENT, OTHER), allow(CLIENT))))
    inbound = Inbound(mesh, listener=NAME)
    assert inbound.mode == "DISABLE"
    assert inbound.address == ("0.0.0.0", 8080)
    assert answer(inbound, arrival(connection=certified(CLIENT))) is None
    assert answer(inbound, arrival(connection=certified(OTHER))) == DENIED
    assert answer(inbound, arrival()) == DENIED
    counters = {metric.name: metric.value for metric in mesh.stats if ".rbac." in metric.name}  # type: ignore[union-attr]
    assert counters["http.in.rbac.allowed"] == 3
    assert counters["http.in.rbac.denied"] == 2


def test_network_filters(files: Callable[..., meshlib.Mesh]) -> None:
    mesh = files(listener(chain(network=allow(CLIENT))))
    inbound = Inbound(mesh, listener=NAME)
    assert answer(inbound, arrival(connection=certified(CLIENT))) is None
    assert answer(inbound, arrival()) == DENIED


def test_a_listener_that_does_not_exist_lets_nobody_in(files: Callable[..., meshlib.Mesh]) -> None:
    inbound = Inbound(files(), listener="other")
    assert answer(inbound, arrival()) == (503, b"no configuration for this listener")
    with pytest.raises(ConfigError, match="no Listener 'other'"):
        inbound.wait_ready()


def test_the_filter_chain_of_the_connection(files: Callable[..., meshlib.Mesh]) -> None:
    mesh = files(
        listener(
            chain(match={"source_prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}),
            chain(
                NOBODY_MAY, match={"source_prefix_ranges": [{"address_prefix": "11.0.0.0", "prefix_len": 8}]}
            ),
        )
    )
    inbound = Inbound(mesh, listener=NAME)
    assert answer(inbound, arrival()) is None
    assert answer(inbound, arrival(remote="11.0.0.1")) == DENIED
    assert answer(inbound, arrival(remote="12.0.0.1")) == (503, b"no filter chain matches")


ON_ROUTES = {
    "route_config": {
        "virtual_hosts": [
            {
                "name": "v",
                "domains": ["*"],
                "routes": [
                    {
                        "match": {"path": "/open"},
                        "non_forwarding_action": {},
                        "typed_per_filter_config": {"rbac0": {"@type": PER_ROUTE}},
                    },
                    {
                        "match": {"path": "/other"},
                        "non_forwarding_action": {},
                        "typed_per_filter_config": {"rbac0": {"@type": PER_ROUTE, "rbac": allow(OTHER)}},
                    },
                    {"match": {"prefix": "/"}, "non_forwarding_action": {}},
                ],
            }
        ]
    }
}


def test_rules_of_routes(files: Callable[..., meshlib.Mesh]) -> None:
    inbound = Inbound(files(listener(chain(allow(CLIENT), **ON_ROUTES))), listener=NAME)
    assert answer(inbound, arrival("/open")) is None
    for _ in range(2):
        assert answer(inbound, arrival("/other", connection=certified(CLIENT))) == DENIED
        assert answer(inbound, arrival("/other?x", connection=certified(OTHER))) is None
    assert answer(inbound, arrival("/any", connection=certified(CLIENT))) is None
    assert answer(inbound, arrival("/any", connection=certified(OTHER))) == DENIED


@pytest.mark.parametrize(
    ("manager", "values", "refused"),
    [
        ({}, [], False),
        ({}, ["192.0.2.7"], True),
        ({}, ["192.0.2.7, 10.0.0.2"], False),
        ({"use_remote_address": True}, ["192.0.2.7"], False),
        ({"use_remote_address": True, "xff_num_trusted_hops": 1}, ["192.0.2.7"], True),
        ({"xff_num_trusted_hops": 1}, ["192.0.2.7, 10.0.0.2"], True),
        ({"xff_num_trusted_hops": 1}, ["192.0.2.7"], False),
        ({}, ["not an address"], False),
    ],
)
def test_the_callers_address(
    files: Callable[..., meshlib.Mesh], manager: dict[str, Any], values: list[str], refused: bool
) -> None:
    rule = {"remote_ip": {"address_prefix": "192.0.2.0", "prefix_len": 24}}
    policy = {"permissions": [{"any": True}], "principals": [rule]}
    deny = {"rules": {"action": "DENY", "policies": {"p": policy}}}
    inbound = Inbound(files(listener(chain(deny, **manager))), listener=NAME)
    request = arrival(headers=[("x-forwarded-for", value) for value in values])
    assert answer(inbound, request) == (DENIED if refused else None)


def test_no_rules_count_before_their_routes_are_there(files: Callable[..., meshlib.Mesh]) -> None:
    rds = {"route_config_name": "inbound", "config_source": {"ads": {}, "resource_api_version": "V3"}}
    on_rds = chain(allow(CLIENT))
    manager = on_rds["filters"][0]["typed_config"]
    del manager["route_config"]
    manager["rds"] = rds
    inbound = Inbound(files(listener(on_rds)), listener=NAME)
    assert answer(inbound, arrival(connection=certified(CLIENT))) == (503, b"no route configuration")
    routes = {"@type": ROUTES, "name": "inbound", "virtual_hosts": ON_ROUTES["route_config"]["virtual_hosts"]}
    inbound = Inbound(files(listener(on_rds), routes), listener=NAME)
    assert answer(inbound, arrival("/open")) is None
    assert answer(inbound, arrival("/")) == DENIED


# --- from a control plane --------------------------------------------------------------------------------------------


def test_a_listener_that_comes_and_changes() -> None:
    with serve(service("reviews", "127.0.0.1:1")) as control_plane:
        bootstrap = json.loads(json.dumps(control_plane.bootstrap()))
        bootstrap["server_listener_resource_name_template"] = "inbound/%s"
        with meshlib.Mesh(bootstrap=bootstrap) as mesh:
            inbound = Inbound(mesh, listener=NAME)
            assert answer(inbound, arrival()) == (503, b"no configuration for this listener")
            with pytest.raises(ConfigTimeout, match="Listener 'inbound/"):
                inbound.wait_ready(0.05)
            control_plane.store.update(named(chain(allow(CLIENT), **ON_ROUTES)))
            inbound.wait_ready()
            assert answer(inbound, arrival(connection=certified(CLIENT))) is None
            assert answer(inbound, arrival(connection=certified(OTHER))) == DENIED
            before = mesh.snapshot
            control_plane.store.update(named(chain(allow(OTHER))))
            wait_for(lambda: mesh.snapshot is not before)
            assert answer(inbound, arrival(connection=certified(OTHER))) is None
            assert answer(inbound, arrival(connection=certified(CLIENT))) == DENIED


def named(*chains: dict[str, Any]) -> Any:
    return messages({**listener(*chains), "name": f"inbound/{NAME}"})[0]


def wait_for(condition: Callable[[], bool]) -> None:
    import threading

    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it has not happened in 5 s")


# --- what a server does not tell -------------------------------------------------------------------------------------


def deny(permission: dict[str, Any] | None = None, principal: dict[str, Any] | None = None) -> dict[str, Any]:
    policy = {"permissions": [permission or {"any": True}], "principals": [principal or {"any": True}]}
    return {"rules": {"action": "DENY", "policies": {"p": policy}}}


ELSEWHERE = {"address_prefix": "192.0.2.0", "prefix_len": 24}
UNTOLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "authority": (
        deny({"header": {"name": ":authority", "string_match": {"exact": "admin"}}}),
        {"authority": None},
    ),
    "destination address": (deny({"destination_ip": ELSEWHERE}), {"local": None}),
    "any destination address": (deny({"destination_ip": ELSEWHERE}), {"local": "0.0.0.0"}),
    "destination port": (deny({"destination_port": 1}), {"local_port": None}),
    "destination port 0": (deny({"destination_port": 1}), {"local_port": 0}),
    "caller's address": (deny(principal={"direct_remote_ip": ELSEWHERE}), {"remote": None}),
    "caller's name for an address": (deny(principal={"source_ip": ELSEWHERE}), {"remote": "client"}),
    "x-forwarded-for": (deny(principal={"remote_ip": ELSEWHERE}), {"remote": None}),
    "who it is": (
        deny(principal={"authenticated": {"principal_name": {"exact": CLIENT}}}),
        {"scheme": "https"},
    ),
    "whether it is TLS": (deny(principal={"authenticated": {}}), {"scheme": "https"}),
    "server name": (deny({"requested_server_name": {"exact": "admin"}}), {"scheme": "https"}),
    "a header": (
        deny({"header": {"name": "te", "present_match": True}}),
        {"unknown": frozenset(("the header te",))},
    ),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_a_deny_rule_on_what_is_not_told_denies(case: str, caplog: pytest.LogCaptureFixture) -> None:
    rbac, untold = UNTOLD[case]
    inbound = Inbound(rbac=rbac)
    assert answer(inbound, arrival()) is None
    request = replace(arrival(), **untold)
    for _ in range(2):
        assert answer(inbound, request) == DENIED
    assert inbound.admit(request).details == "rbac_access_denied_matched_policy[p]"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "does not tell" in warning


def test_a_unix_socket_has_no_address_and_that_is_known() -> None:
    for rbac in (
        deny({"destination_port": 1}),
        deny({"destination_ip": {"address_prefix": "0.0.0.0", "prefix_len": 0}}),
        deny(principal={"direct_remote_ip": {"address_prefix": "0.0.0.0", "prefix_len": 0}}),
    ):
        assert answer(Inbound(rbac=rbac), arrival(remote="", local="", local_port=0)) is None


def test_a_forwarded_address_is_known_where_the_callers_is_not(files: Callable[..., meshlib.Mesh]) -> None:
    inbound = Inbound(files(listener(chain(deny(principal={"remote_ip": ELSEWHERE})))), listener=NAME)
    assert answer(inbound, arrival(remote=None)) == DENIED
    assert answer(inbound, arrival(remote=None, headers=[("x-forwarded-for", "192.0.2.7")])) == DENIED
    assert answer(inbound, arrival(remote=None, headers=[("x-forwarded-for", "198.51.100.7")])) is None


@pytest.mark.parametrize(
    ("match", "untold"),
    [
        ({"destination_port": 8080}, {"local_port": None}),
        ({"prefix_ranges": [ELSEWHERE]}, {"local": None}),
        ({"source_prefix_ranges": [ELSEWHERE]}, {"remote": None}),
        ({"direct_source_prefix_ranges": [ELSEWHERE]}, {"remote": None}),
        ({"source_type": "EXTERNAL"}, {"local": "::"}),
        ({"source_ports": [7]}, {}),
    ],
)
def test_a_filter_chain_is_not_guessed(
    files: Callable[..., meshlib.Mesh], match: dict[str, Any], untold: dict[str, Any]
) -> None:
    """The one that would be left is open to everybody."""
    inbound = Inbound(files(listener(chain(NOBODY_MAY, match=match), chain())), listener=NAME)
    assert answer(inbound, arrival(**untold)) == (503, b"no filter chain can be chosen")


def test_a_filter_chain_is_not_guessed_where_something_else_ends_tls(
    files: Callable[..., meshlib.Mesh],
) -> None:
    for match in ({"transport_protocol": "tls"}, {"server_names": ["admin"]}):
        inbound = Inbound(files(listener(chain(NOBODY_MAY, match=match), chain())), listener=NAME)
        assert answer(inbound, arrival()) is None
        assert answer(inbound, replace(arrival(), scheme="https")) == (503, b"no filter chain can be chosen")


def by_domain(*hosts: tuple[str, dict[str, Any]], match: dict[str, Any] | None = None) -> dict[str, Any]:
    """A virtual host for each domain, whose route has this configuration of the filter."""
    return {
        "route_config": {
            "virtual_hosts": [
                {
                    "name": domain,
                    "domains": [domain],
                    "routes": [
                        {
                            "match": {"prefix": "/", **(match or {})},
                            "non_forwarding_action": {},
                            "typed_per_filter_config": {"rbac0": {"@type": PER_ROUTE, **config}},
                        }
                    ],
                }
                for domain, config in hosts
            ]
        }
    }


def test_a_route_is_not_guessed(files: Callable[..., meshlib.Mesh]) -> None:
    """Without the authority a request may pass when it may on every route."""
    everybody: dict[str, Any] = {"rbac": {"rules": {"action": "DENY"}}}
    routes = by_domain(("*", everybody), ("admin", {"rbac": allow(CLIENT)}))
    inbound = Inbound(files(listener(chain(allow(CLIENT, OTHER), **routes))), listener=NAME)
    told = arrival(connection=certified(OTHER))
    assert answer(inbound, told) is None
    told.authority = None
    assert answer(inbound, told) == DENIED
    client = arrival(connection=certified(CLIENT))
    client.authority = None
    assert answer(inbound, client) is None


def test_a_route_by_a_header_is_not_guessed(files: Callable[..., meshlib.Mesh]) -> None:
    match = {"headers": [{"name": "te", "present_match": False}]}
    routes = by_domain(("*", {}), match=match)
    inbound = Inbound(files(listener(chain(NOBODY_MAY, **routes))), listener=NAME)
    assert answer(inbound, arrival()) is None
    assert answer(inbound, arrival(unknown=frozenset(("the header te",)))) == DENIED


def test_one_virtual_host_needs_no_authority(files: Callable[..., meshlib.Mesh]) -> None:
    inbound = Inbound(files(listener(chain(allow(CLIENT), **ON_ROUTES))), listener=NAME)
    request = arrival("/open")
    request.authority = None
    assert answer(inbound, request) is None
