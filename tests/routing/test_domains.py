from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.resources.listener import HttpConnectionManager, HttpFilter, RouterConfig
from meshlib.routing.authority import ascii_lower, compile_authority, without_port
from meshlib.routing.domains import DomainIndex

DOMAINS = (
    "exact.example.com",
    "*.example.com",
    "*.b.example.com",
    "*-suffix.example.com",
    "prefix.*",
    "prefix.long.*",
    "with.port:8080",
    "UPPER.example.org",
)


@pytest.mark.parametrize(
    ("authority", "domain"),
    [
        ("exact.example.com", "exact.example.com"),
        ("EXACT.example.COM", "exact.example.com"),
        ("a.example.com", "*.example.com"),
        ("a.b.example.com", "*.b.example.com"),
        ("x-suffix.example.com", "*-suffix.example.com"),
        (".example.com", None),
        ("example.com", None),
        ("prefix.x", "prefix.*"),
        ("prefix.long.x", "prefix.long.*"),
        ("prefix.long.", "prefix.*"),
        ("prefix.", None),
        ("prefix.example.com", "*.example.com"),
        ("exact.example.com:80", None),
        ("prefix.x:80", "prefix.*"),
        ("with.port:8080", "with.port:8080"),
        ("upper.EXAMPLE.org", "UPPER.example.org"),
        ("", None),
    ],
)
def test_order_and_wildcards(authority: str, domain: str | None) -> None:
    index = DomainIndex((name, name) for name in DOMAINS)
    assert index.find(authority) == domain
    catch_all = DomainIndex((name, name) for name in (*DOMAINS, "*"))
    assert catch_all.find(authority) == (domain or "*")


def test_ignored_port_is_cut_from_the_authority_only() -> None:
    index = DomainIndex(((name, name) for name in DOMAINS), ignore_port=True)
    assert index.find("exact.example.com:80") == "exact.example.com"
    assert index.find("with.port:8080") is None


@pytest.mark.parametrize(
    ("authority", "bare"),
    [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")],
)
def test_port_is_found_after_an_address_too(authority: str, bare: str) -> None:
    assert without_port(authority) == bare


LABELS = st.sampled_from(["a", "b", "ab", "a.b", ".a", "b.", "A", "é"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map("".join)


def slow_search(domains: list[str], authority: str) -> str | None:
    """The rules, one after the other, on every domain."""
    name = ascii_lower(authority)
    exact = [domain for domain in domains if ascii_lower(domain) == name and "*" not in domain]
    suffixes = [d for d in domains if d[0] == "*" and len(d) > 1 and len(name) >= len(d)]
    suffixes = [d for d in suffixes if name.endswith(ascii_lower(d[1:]))]
    prefixes = [d for d in domains if d[-1] == "*" and len(d) > 1 and len(name) >= len(d)]
    prefixes = [d for d in prefixes if name.startswith(ascii_lower(d[:-1]))]
    for found in (
        exact,
        sorted(suffixes, key=len)[-1:],
        sorted(prefixes, key=len)[-1:],
        ["*"] * ("*" in domains),
    ):
        if found:
            return found[0]
    return None


@given(
    domains=st.lists(
        st.one_of(
            NAMES, NAMES.map(lambda name: "*" + name), NAMES.map(lambda name: name + "*"), st.just("*")
        ),
        unique_by=ascii_lower,
        max_size=8,
    ),
    authority=NAMES,
)
def test_search_agrees_with_the_rules(domains: list[str], authority: str) -> None:
    assert DomainIndex((d, d) for d in domains).find(authority) == slow_search(domains, authority)


def connection_manager(**options: bool) -> HttpConnectionManager:
    router = HttpFilter(name="router", type_url="", config=RouterConfig())
    return HttpConnectionManager(route_config_name="rc", http_filters=(router,), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "authority", "expected"),
    [
        ({"strip_any_host_port": True}, "a.b:8080", "a.b"),
        ({"strip_any_host_port": True}, "[::1]:8080", "[::1]"),
        ({"strip_any_host_port": True}, "a.b:port", "a.b:port"),
        ({"strip_any_host_port": True}, "a.b.", "a.b."),
        ({"strip_trailing_host_dot": True}, "a.b.", "a.b"),
        ({"strip_trailing_host_dot": True}, "a.b.:80", "a.b:80"),
        ({"strip_trailing_host_dot": True}, "a.b..", "a.b."),
        ({"strip_trailing_host_dot": True, "strip_any_host_port": True}, "a.b.:80", "a.b"),
    ],
)
def test_connection_manager_changes_the_host(options: dict[str, bool], authority: str, expected: str) -> None:
    normalise = compile_authority(connection_manager(**options))
    assert normalise is not None
    assert normalise(authority) == expected


def test_connection_manager_leaves_the_host_alone_by_default() -> None:
    assert compile_authority(connection_manager()) is None
