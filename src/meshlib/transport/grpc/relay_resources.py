"""What the relay tells C-core about one endpoint, and what it refuses, since C-core can't verify it.

C-core's TLS takes an own certificate, roots and names of the peer. Everything else that an UpstreamTlsContext may ask for is
refused here rather than left out. Names that C-core compares do not know their type (`match_subject_alt_names`), so only those
are passed on that no name of another type can be taken for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meshlib import proto
from meshlib.errors import IdentityError
from meshlib.identity import chain as chains
from meshlib.identity.resolve import Resolved
from meshlib.identity.trust import Trust
from meshlib.resources.matching import StringKind
from meshlib.resources.tls import SanMatch, SanType, TlsVersion, UpstreamTls

__all__ = ["Peer", "peer_of", "refused", "resources"]

_SPIFFE = "spiffe://"
_TYPE = "type.googleapis.com/"
_MANAGER = _TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = _TYPE + "envoy.extensions.filters.http.router.v3.Router"
_TLS = _TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_PICK_FIRST = _TYPE + "envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst"

_NO_LIMIT = 2**32 - 1


class Peer:
    """Whom C-core is to accept. roots: DER. names: of StringMatcher, as JSON; one of them must match, empty: any name."""

    __slots__ = ("names", "roots")

    def __init__(self, roots: tuple[bytes, ...], names: tuple[Mapping[str, str], ...]) -> None:
        self.roots = roots
        self.names = names


def peer_of(tls: UpstreamTls, material: Resolved) -> Peer:
    """Raises IdentityError: C-core can't verify what the configuration asks for; the text names the field."""
    for field in _beyond(tls, material.trust):
        raise refused(field)
    trust = material.trust
    if trust.bundles is None:
        return Peer(trust.roots or (), tuple(map(_name, trust.match_sans)))
    matches = [match for match in trust.match_sans if match.san_type in (None, SanType.URI)]
    if trust.match_sans and not matches:
        raise refused("match_typed_subject_alt_names of a type other than URI, beside trust domains")
    names = tuple(map(_name, matches))
    if not names:
        if len(trust.bundles) != 1:
            raise refused("trust bundles of several trust domains")
        (domain,) = trust.bundles
        names = ({"prefix": f"{_SPIFFE}{domain}/"},)
    domains = {_domain(name) for name in names}
    if len(domains) != 1:
        raise refused("match_typed_subject_alt_names of several trust domains")
    (domain,) = domains
    if domain not in trust.bundles:
        raise IdentityError(
            f"the trust domain {domain!r} is not trusted here",
            expected=f"a bundle of {domain}",
            got=", ".join(sorted(trust.bundles)),
            trust_domain=domain,
        )
    roots = tuple(trust.bundles[domain].authorities)
    if any(root.issuer != root.subject for root in chains.load(roots)):
        raise refused("a trust bundle with an authority that is not self-signed")
    return Peer(roots, names)


def _beyond(tls: UpstreamTls, trust: Trust) -> Iterator[str]:
    """The fields that C-core does not know."""
    common = tls.common
    found = {
        "auto_sni_san_validation": tls.auto_sni_san_validation,
        "auto_san_validation": tls.auto_san_validation,
        "override_auto_sni_header": bool(tls.override_auto_sni_header),
        "tls_params.cipher_suites": bool(common.cipher_suites),
        "tls_params.ecdh_curves": bool(common.curves),
        "tls_params.tls_minimum_protocol_version": common.minimum > TlsVersion.TLSv1_2,
        "tls_params.tls_maximum_protocol_version": common.maximum
        not in (TlsVersion.TLS_AUTO, TlsVersion.TLSv1_3),
        "alpn_protocols": common.alpn not in ((), ("h2",)),
        "a validation context without a trusted CA": not trust.verifies_chain,
        "system_root_certs": trust.system_roots,
        "crl": bool(trust.crls),
        "verify_certificate_hash": bool(trust.certificate_hashes),
        "verify_certificate_spki": bool(trust.certificate_spkis),
        "allow_expired_certificate": trust.allow_expired,
        "trust_chain_verification": trust.accept_untrusted,
        "max_verify_depth": trust.max_verify_depth is not None,
    }
    return (field for field, asked_for in found.items() if asked_for)


def _name(match: SanMatch) -> Mapping[str, str]:
    kind, value, matcher = match.san_type, match.match.value, match.match
    exact = matcher.kind is StringKind.EXACT and not matcher.ignore_case
    prefix = matcher.kind is StringKind.PREFIX and not matcher.ignore_case
    if exact and (kind is None or (kind is SanType.URI and "://" in value)):
        return {"exact": value}
    if kind is SanType.URI and prefix and value.startswith(_SPIFFE) and value.count("/") >= 3:
        return {"prefix": value}
    if kind is SanType.DNS and exact and not _only_digits(value):
        return {"exact": value}
    what = "any type" if kind is None else kind.name
    raise refused(f"match_typed_subject_alt_names of {what} with {matcher.kind.value} {value!r}")


def _only_digits(value: str) -> bool:
    """It could be an address."""
    return not value.strip("0123456789.") or ":" in value


def _domain(name: Mapping[str, str]) -> str:
    (value,) = name.values()
    if not value.startswith(_SPIFFE):
        raise refused(f"match_typed_subject_alt_names with {value!r} beside trust domains")
    return value.removeprefix(_SPIFFE).partition("/")[0]


def refused(field: str) -> IdentityError:
    """What is raised where a configuration asks for something that only the tunnel can do."""
    return IdentityError(
        f'tls="relay" has C-core verify the endpoint, which can\'t do {field}: use tls="tunnel"',
        expected="what C-core can verify",
        got=field,
    )


def resources(
    name: str, address: tuple[str, int], peer: Peer, provider: str, *, shows: bool, sni: str
) -> dict[str, bytes]:
    """The encoded resources (Any) for a target of this name, by type URL. All of them are named alike.

    provider: the instance of the bootstrap that has the roots and, if `shows`, our own certificate. sni: empty for none.
    """
    instance = {"instance_name": provider}
    common: dict[str, Any] = {
        "validation_context": {
            "ca_certificate_provider_instance": instance,
            "match_subject_alt_names": list(peer.names),
        }
    }
    if shows:
        common["tls_certificate_provider_instance"] = instance
    host, port = address
    everything = {"match": {"prefix": ""}, "route": {"cluster": name}}
    manager = {
        "@type": _MANAGER,
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [everything]}],
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    first = {"name": "pick_first", "typed_config": {"@type": _PICK_FIRST}}
    cluster = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
        "load_balancing_policy": {"policies": [{"typed_extension_config": first}]},
        "circuit_breakers": {"thresholds": [{"max_requests": _NO_LIMIT}]},
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": _TLS, "sni": sni, "common_tls_context": common},
        },
    }
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    locality = {"locality": {"region": "relay"}, "load_balancing_weight": 1, "lb_endpoints": [endpoint]}
    return dict(
        _encoded(
            (proto.LISTENER, {"name": name, "api_listener": {"api_listener": manager}}),
            (proto.CLUSTER, cluster),
            (proto.ENDPOINT, {"cluster_name": name, "endpoints": [locality]}),
        )
    )


def _encoded(*found: tuple[str, Mapping[str, Any]]) -> Iterable[tuple[str, bytes]]:
    for url, value in found:
        yield url, proto.pack(proto.from_dict(proto.full_name(url), value)).SerializeToString()
