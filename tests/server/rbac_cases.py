"""RBAC configurations and requests that Envoy and meshlib are both given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "CASES",
    "CLIENT",
    "DNS_ONLY",
    "GRPC_CASES",
    "NETWORK_BY_ADDRESS",
    "NETWORK_CASES",
    "OTHER",
    "REQUESTS",
    "Request",
]

CLIENT = "spiffe://td.example/ns/a/sa/cli"
OTHER = "spiffe://td.example/ns/b/sa/other"
DNS_ONLY = "dns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """caller: a SPIFFE id, `dns` for a certificate without one, `none` for TLS without one, `plain` for no TLS at all."""

    caller: str
    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    sni: str | None = None


REQUESTS = (
    Request(caller=CLIENT),
    Request(caller=CLIENT, path="/admin?x=1", headers=(("x-a", "1"),), sni="srv.example"),
    Request(caller=OTHER, path="/admin/x", method="POST", headers=(("x-a", "1"), ("x-a", "2"))),
    Request(
        caller=OTHER,
        path="/%61dmin;v=1?a=/admin",
        headers=(("x-forwarded-for", "192.0.2.7"),),
        sni="SRV.example",
    ),
    Request(caller=DNS_ONLY, path="/v1/books/7", headers=(("x-a", ""), ("x-n", "15"))),
    Request(
        caller="none", path="/admin", headers=(("x-a", "12"), ("x-forwarded-for", "192.0.2.7, 198.51.100.1"))
    ),
    Request(caller="plain", path="/admin", headers=(("x-a", "1"),)),
    Request(caller="plain", path="//admin", method="DELETE", headers=(("x-n", "-3"),)),
)


def _principal(**identifier: Any) -> dict[str, Any]:
    return _rules([{"any": True}], [identifier])


def _permission(**rule: Any) -> dict[str, Any]:
    return _rules([rule], [{"any": True}])


def _rules(permissions: list[Any], principals: list[Any], action: str = "ALLOW") -> dict[str, Any]:
    policies = {"p": {"permissions": permissions, "principals": principals}}
    return {"rules": {"action": action, "policies": policies}}


def _deny(config: dict[str, Any]) -> dict[str, Any]:
    return {"rules": {**config["rules"], "action": "DENY"}}


def _named(**match: Any) -> dict[str, Any]:
    return _principal(authenticated={"principal_name": match})


def _cidr(address: str, length: int) -> dict[str, Any]:
    return {"address_prefix": address, "prefix_len": length}


def _header(name: str, **match: Any) -> dict[str, Any]:
    return {"header": {"name": name, **match}}


def _string(**match: Any) -> dict[str, Any]:
    return {"string_match": match}


def _path(**match: Any) -> dict[str, Any]:
    return {"url_path": {"path": match}}


_ANY_POLICY = {"permissions": [{"any": True}], "principals": [{"any": True}]}
_MTLS = "type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config"
_TEMPLATE = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"


def _mtls(**config: Any) -> dict[str, Any]:
    return _principal(
        custom={
            "name": "envoy.rbac.principals.mtls_authenticated",
            "typed_config": {"@type": _MTLS, **config},
        }
    )


def _template(text: str) -> dict[str, Any]:
    return _permission(
        uri_template={
            "name": "envoy.path.match.uri_template.uri_template_matcher",
            "typed_config": {"@type": _TEMPLATE, "path_template": text},
        }
    )


CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no_policy_allow": {"rules": {"action": "ALLOW"}},
    "no_policy_deny": {"rules": {"action": "DENY"}},
    "any": _permission(any=True),
    "any_deny": _deny(_permission(any=True)),
    "log": {"rules": {"action": "LOG", "policies": {"p": _ANY_POLICY}}},
    "id_exact": _named(exact=CLIENT),
    "id_exact_deny": _deny(_named(exact=CLIENT)),
    "id_prefix": _named(prefix="spiffe://td.example/ns/a/"),
    "id_suffix": _named(suffix="/other"),
    "id_contains": _named(contains="/ns/"),
    "id_regex": _named(safe_regex={"regex": "spiffe://td\\.example/ns/[ab]/sa/.*"}),
    "id_ignoring_case": _named(exact=CLIENT.upper(), ignore_case=True),
    "dns": _named(exact="cli.example"),
    "subject": _named(exact="CN=workload,O=lab"),
    "subject_beside_ids": _named(prefix="CN="),
    "empty_name": _named(exact=""),
    "authenticated": _principal(authenticated={}),
    "not_authenticated": _principal(not_id={"authenticated": {}}),
    "mtls_any": _mtls(any_validated_client_certificate=True),
    "mtls_uri": _mtls(san_matcher={"san_type": "URI", "matcher": {"prefix": "spiffe://td.example/ns/b/"}}),
    "mtls_dns": _mtls(san_matcher={"san_type": "DNS", "matcher": {"exact": "cli.example"}}),
    "direct_remote_ip": _principal(direct_remote_ip=_cidr("127.0.0.0", 8)),
    "direct_remote_ip_other": _principal(direct_remote_ip=_cidr("192.0.2.0", 24)),
    "remote_ip": _principal(remote_ip=_cidr("192.0.2.0", 24)),
    "remote_ip_last": _principal(remote_ip=_cidr("198.51.100.1", 32)),
    "source_ip": _principal(source_ip=_cidr("127.0.0.1", 32)),
    "principal_header": _principal(**_header("x-a", **_string(exact="1"))),
    "principal_path": _principal(**_path(prefix="/admin")),
    "principal_metadata": _principal(
        metadata={"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}
    ),
    "principal_metadata_inverted": _principal(
        metadata={"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}, "invert": True}
    ),
    "and_ids": _principal(
        and_ids={
            "ids": [{"authenticated": {"principal_name": {"prefix": "spiffe:"}}}, _path(prefix="/admin")]
        }
    ),
    "or_ids": _principal(
        or_ids={"ids": [{"authenticated": {"principal_name": {"exact": OTHER}}}, _path(exact="/admin")]}
    ),
    "path_exact": _permission(**_path(exact="/admin")),
    "path_exact_deny": _deny(_permission(**_path(exact="/admin"))),
    "path_prefix": _permission(**_path(prefix="/admin")),
    "path_encoded": _permission(**_path(prefix="/%61dmin")),
    "path_regex": _permission(**_path(safe_regex={"regex": "/+admin(/.*)?"})),
    "path_ignoring_case": _permission(**_path(exact="/ADMIN", ignore_case=True)),
    "template_one": _template("/v1/{kind}/*"),
    "template_rest": _template("/admin/**"),
    "method": _permission(**_header(":method", **_string(exact="POST"))),
    "path_header": _permission(**_header(":path", **_string(suffix="?x=1"))),
    "authority": _permission(**_header(":authority", **_string(exact="svc.example"))),
    "scheme": _permission(**_header(":scheme", **_string(exact="https"))),
    "header_exact": _permission(**_header("x-a", **_string(exact="1"))),
    "header_second": _permission(**_header("x-a", **_string(exact="2"))),
    "header_joined": _permission(**_header("x-a", **_string(exact="1,2"))),
    "header_present": _permission(**_header("x-a", present_match=True)),
    "header_absent": _permission(**_header("x-a", present_match=False)),
    "header_inverted": _permission(**_header("x-a", **_string(exact="1"), invert_match=True)),
    "header_missing_as_empty": _permission(
        **_header("x-a", **_string(exact=""), treat_missing_header_as_empty=True)
    ),
    "header_range": _permission(**_header("x-n", range_match={"start": -10, "end": 16})),
    "header_upper_case": _permission(**_header("X-A", **_string(exact="1"))),
    "destination_ip": _permission(destination_ip=_cidr("127.0.0.1", 32)),
    "destination_ip_other": _permission(destination_ip=_cidr("10.0.0.0", 8)),
    "destination_port_none": _permission(destination_port=1),
    "destination_port_range": _permission(destination_port_range={"start": 1024, "end": 65536}),
    "server_name": _permission(requested_server_name={"exact": "srv.example"}),
    "server_name_none": _permission(requested_server_name={"exact": ""}),
    "metadata": _permission(
        metadata={"filter": "f", "path": [{"key": "k"}], "value": {"string_match": {"exact": "v"}}}
    ),
    "sourced_metadata": _permission(
        sourced_metadata={
            "metadata_matcher": {
                "filter": "f",
                "path": [{"key": "k"}],
                "value": {"bool_match": True},
                "invert": True,
            }
        }
    ),
    "not_rule": _permission(not_rule=_path(prefix="/admin")),
    "and_rules": _permission(
        and_rules={"rules": [_path(prefix="/admin"), _header("x-a", **_string(exact="1"))]}
    ),
    "or_rules": _permission(or_rules={"rules": [_path(exact="/"), _header("x-a", present_match=True)]}),
    "nested": _permission(
        or_rules={
            "rules": [
                {
                    "and_rules": {
                        "rules": [
                            {"not_rule": _path(exact="/")},
                            {"not_rule": _header("x-n", present_match=True)},
                        ]
                    }
                },
                {
                    "not_rule": {
                        "or_rules": {"rules": [_header("x-a", present_match=True), _path(prefix="/a")]}
                    }
                },
            ]
        }
    ),
    "several_policies": {
        "rules": {
            "policies": {
                "b": {"permissions": [_path(prefix="/admin")], "principals": [{"any": True}]},
                "a": {
                    "permissions": [{"any": True}],
                    "principals": [{"authenticated": {"principal_name": {"exact": CLIENT}}}],
                },
            }
        },
        "track_per_rule_stats": True,
    },
    "a policy's name": {
        "rules": {"action": "DENY", "policies": {"with blanks": _ANY_POLICY}},
        "track_per_rule_stats": True,
    },
    "shadow": {
        "rules": {"action": "ALLOW", "policies": {"p": _ANY_POLICY}},
        "shadow_rules": {
            "action": "DENY",
            "policies": {"s": {"permissions": [_path(prefix="/admin")], "principals": [{"any": True}]}},
        },
        "shadow_rules_stat_prefix": "dry",
        "rules_stat_prefix": "wet",
        "track_per_rule_stats": True,
    },
    "shadow_only": {"shadow_rules": {"action": "ALLOW"}},
}
"""By name: envoy.extensions.filters.http.rbac.v3.RBAC."""

GRPC_CASES: dict[str, dict[str, Any]] = {
    "any": _permission(any=True),
    "no_policy_allow": {"rules": {"action": "ALLOW"}},
    "any_deny": _deny(_permission(any=True)),
    "method_path": _permission(**_path(exact="/tests.Server/unary_unary")),
    "method_path_deny": _deny(_permission(**_path(exact="/tests.Server/unary_unary"))),
    "service": _permission(**_path(prefix="/tests.Server/")),
    "post": _permission(**_header(":method", **_string(exact="POST"))),
    "content_type": _permission(**_header("content-type", **_string(exact="application/grpc"))),
    "metadata": _permission(**_header("x-a", **_string(exact="1"))),
    "metadata_second": _deny(_permission(**_header("x-a", **_string(exact="2")))),
    "binary_metadata": _permission(**_header("x-b-bin", **_string(exact="AQID/w"))),
    "id": _named(exact=CLIENT),
    "id_deny": _deny(_named(prefix="spiffe://td.example/")),
    "mtls": _mtls(any_validated_client_certificate=True),
    "direct_remote_ip": _principal(direct_remote_ip=_cidr("127.0.0.0", 8)),
    "remote_ip": _principal(remote_ip=_cidr("192.0.2.0", 24)),
    "server_name": _permission(requested_server_name={"exact": "localhost"}),
    "not_path": _permission(not_rule=_path(exact="/tests.Server/unary_unary")),
    "shadow": {
        "rules": {"action": "ALLOW", "policies": {"p": _ANY_POLICY}},
        "shadow_rules": {"action": "DENY", "policies": {"s": _ANY_POLICY}},
    },
}

NETWORK_CASES: dict[str, dict[str, Any]] = {
    "network_any": _permission(any=True),
    "network_any_deny": _deny(_permission(any=True)),
    "network_no_policy": {"rules": {"action": "ALLOW"}},
    "network_id": _named(exact=CLIENT),
    "network_id_deny": _deny(_named(exact=CLIENT)),
    "network_authenticated": _principal(authenticated={}),
    "network_not_authenticated": _principal(not_id={"authenticated": {}}),
    "network_mtls": _mtls(any_validated_client_certificate=True),
    "network_server_name": _permission(requested_server_name={"exact": "srv.example"}),
    "network_path": _permission(**_path(prefix="/")),
    "network_path_deny": _deny(_permission(**_path(prefix="/"))),
    "network_shadow": {
        "shadow_rules": _named(exact=CLIENT)["rules"],
        "shadow_rules_stat_prefix": "dry",
    },
}
"""By name: envoy.extensions.filters.network.rbac.v3.RBAC, without its stat_prefix."""

NETWORK_BY_ADDRESS = _deny(_principal(direct_remote_ip=_cidr("127.0.0.0", 8)))
