"""Tracing of an HttpConnectionManager and of a route."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.listener import Listener
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.route import Route
from meshlib.resources.tracing import CustomTag, RouteTracing, TagSource, Tracing
from tests.resources.building import api_listener, decoded, refused
from tests.resources.test_decode_listener import API


def tracing(**fields: Any) -> Tracing | None:
    listener = decoded(proto.LISTENER, api_listener(tracing=fields)).resource
    assert isinstance(listener, Listener)
    return listener.http.tracing


def test_without_it() -> None:
    listener = decoded(proto.LISTENER, api_listener()).resource
    assert isinstance(listener, Listener)
    assert listener.http.tracing is None


def test_defaults_are_envoys() -> None:
    everything = tracing()
    every = FractionalPercent(numerator=10_000, denominator=10_000)
    assert everything == Tracing(random_sampling=every, overall_sampling=every)
    assert everything is not None
    assert everything.max_path_tag_length == 256


def test_shares() -> None:
    """Envoy draws client_sampling in whole hundredths, the other two in ten thousandths."""
    made = tracing(
        client_sampling={"value": 12.9}, random_sampling={"value": 0.126}, overall_sampling={"value": 50}
    )
    assert made is not None
    assert made.client_sampling == FractionalPercent(numerator=12, denominator=100)
    assert made.random_sampling == FractionalPercent(numerator=13, denominator=10_000)
    assert made.overall_sampling == FractionalPercent(numerator=5_000, denominator=10_000)


TAGS = [
    {"tag": "a", "literal": {"value": "x"}},
    {"tag": "b", "environment": {"name": "HOME", "default_value": "none"}},
    {"tag": "c", "request_header": {"name": "X-User", "default_value": "anon"}},
    {
        "tag": "d",
        "metadata": {
            "kind": {"route": {}},
            "metadata_key": {"key": "k", "path": [{"key": "p"}, {"key": "q"}]},
            "default_value": "z",
        },
    },
]


def test_tags() -> None:
    made = tracing(custom_tags=TAGS, verbose=True, max_path_tag_length=10, spawn_upstream_span=True)
    assert made is not None
    assert made.verbose
    assert made.max_path_tag_length == 10
    assert made.custom_tags == (
        CustomTag(tag="a", source=TagSource.LITERAL, name="x"),
        CustomTag(tag="b", source=TagSource.ENVIRONMENT, name="HOME", default="none"),
        CustomTag(tag="c", source=TagSource.REQUEST_HEADER, name="x-user", default="anon"),
        CustomTag(tag="d", source=TagSource.ROUTE_METADATA, name="k", path=("p", "q"), default="z"),
    )


@pytest.mark.parametrize("kind", ["request", "cluster", "host"])
def test_metadata_that_is_not_known_is_reported(kind: str) -> None:
    key = {"key": "k", "path": [{"key": "p"}]}
    tag = {"tag": "t", "metadata": {"kind": {kind: {}}, "metadata_key": key, "default_value": "z"}}
    result = decoded(proto.LISTENER, api_listener(tracing={"custom_tags": [tag]}))
    listener = result.resource
    assert isinstance(listener, Listener)
    assert listener.http.tracing is not None
    assert listener.http.tracing.custom_tags == (
        CustomTag(tag="t", source=TagSource.NOWHERE, name="k", path=("p",), default="z"),
    )
    assert [path for path in result.unsupported if path.endswith(f"custom_tags[0].metadata.kind.{kind}")]


def test_what_exports_the_spans_is_reported() -> None:
    provider = {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    }
    result = decoded(proto.LISTENER, api_listener(tracing={"provider": provider}))
    assert [path for path in result.unsupported if path.endswith("tracing.provider")]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"custom_tags": [{"tag": "", "literal": {"value": "x"}}]}, "custom_tags[0].tag"),
        ({"custom_tags": [{"tag": "t"}]}, "custom_tags[0]"),
        ({"random_sampling": {"value": 101}}, "random_sampling.value"),
    ],
)
def test_errors(fields: dict[str, Any], path: str) -> None:
    error: ResourceError = refused(proto.LISTENER, api_listener(tracing=fields))
    assert error.path == f"{API}.tracing.{path}"


def route(**fields: Any) -> Route:
    config = {
        "name": "r",
        "virtual_hosts": [
            {
                "name": "v",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}, **fields}],
            }
        ],
    }
    made: Any = decoded(proto.ROUTE, config)
    assert not made.unsupported
    only: Route = made.resource.virtual_hosts[0].routes[0]
    return only


def test_routes() -> None:
    plain = route()
    assert plain.tracing is None
    assert plain.operation == ""
    assert plain.metadata == {}
    made = route(
        decorator={"operation": "checkout", "propagate": False},
        tracing={
            "random_sampling": {"numerator": 5, "denominator": "TEN_THOUSAND"},
            "custom_tags": TAGS[:1],
        },
        metadata={"filter_metadata": {"k": {"p": {"q": [1, "two", None, True]}}}},
    )
    assert made.operation == "checkout"
    assert made.tracing == RouteTracing(
        random_sampling=FractionalPercent(numerator=5, denominator=10_000),
        custom_tags=(CustomTag(tag="a", source=TagSource.LITERAL, name="x"),),
    )
    assert made.metadata == {"k": {"p": {"q": [1.0, "two", None, True]}}}
