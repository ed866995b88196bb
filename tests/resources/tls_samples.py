"""Material and transport sockets as dictionaries, for the tests of what decodes them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from typing import Any

from tests.identity.ca import Issued, TestCA
from tests.resources.building import EXTENSIONS

TLS = EXTENSIONS + "transport_sockets.tls.v3."
SPIFFE_VALIDATOR = TLS + "SPIFFECertValidatorConfig"
RAW = {"name": "raw", "typed_config": {"@type": EXTENSIONS + "transport_sockets.raw_buffer.v3.RawBuffer"}}


@functools.cache
def ca() -> TestCA:
    return TestCA("td.example")


def issued(kind: str = "p256") -> Issued:
    return _issued(kind)


@functools.cache
def _issued(kind: str) -> Issued:
    return ca().issue("spiffe://td.example/web", kind=kind)


def inline(pem: bytes) -> dict[str, Any]:
    return {"inline_string": pem.decode()}


def certificate(kind: str = "p256", **fields: Any) -> dict[str, Any]:
    found = issued(kind)
    return {"certificate_chain": inline(found.chain), "private_key": inline(found.key), **fields}


def trusted(**fields: Any) -> dict[str, Any]:
    return {"trusted_ca": inline(ca().pem), **fields}


def spiffe(*domains: str, **fields: Any) -> dict[str, Any]:
    bundles = [{"name": domain, "trust_bundle": inline(ca().pem)} for domain in domains]
    config = {"@type": SPIFFE_VALIDATOR, "trust_domains": bundles, **fields}
    return {"custom_validator_config": {"name": "envoy.tls.cert_validator.spiffe", "typed_config": config}}


def bundle_map(**domains: Any) -> str:
    x5c = [base64.b64encode(ca().der).decode()]
    found = domains or {"td.example": {"keys": [{"kty": "EC", "use": "x509-svid", "x5c": x5c}]}}
    return json.dumps({"trust_domains": found})


def san(kind: str = "URI", *, oid: str = "", **matcher: Any) -> dict[str, Any]:
    return {"san_type": kind, "matcher": matcher or {"exact": "spiffe://td.example/web"}, "oid": oid}


def fingerprint() -> str:
    return hashlib.sha256(issued().der).hexdigest()


def common(validation: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {**({} if validation is None else {"validation_context": validation}), **fields}


def upstream(context: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"@type": TLS + "UpstreamTlsContext", **fields}
    if context is not None:
        config["common_tls_context"] = context
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def downstream(context: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"@type": TLS + "DownstreamTlsContext", **fields}
    if context is not None:
        config["common_tls_context"] = context
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def from_sds(name: str, **source: Any) -> dict[str, Any]:
    return {"name": name, "sds_config": {"resource_api_version": "V3", **(source or {"ads": {}})}}


def from_server(target: str = "unix:/run/x.sock", **service: Any) -> dict[str, Any]:
    grpc = service or {"google_grpc": {"target_uri": target, "stat_prefix": "sds"}}
    return {
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [grpc],
        }
    }
