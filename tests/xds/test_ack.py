"""The state machine of versions and nonces, against a model of what a control plane may see."""

from __future__ import annotations

from typing import Any

import hypothesis
from hypothesis import strategies as st

from meshlib.xds.ack import Request, Subscriptions

TYPES = ("a", "b")


def test_a_type_is_asked_for_with_the_names_and_nothing_else() -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    assert subscriptions.subscribe("a", ["x"]) == Request(type_url="a", names=("x",), first=True)
    assert subscriptions.subscribe("b", ["y"]) == Request(type_url="b", names=("y",))


def test_the_same_names_are_not_asked_for_again() -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    subscriptions.subscribe("a", ["x", "y"])
    assert subscriptions.subscribe("a", ["y", "x"]) is None


def test_an_empty_first_request_would_ask_for_everything() -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    assert subscriptions.subscribe("a", []) is None
    assert not subscriptions.expects("a")
    subscriptions.subscribe("a", ["x"])
    assert subscriptions.subscribe("a", []) == Request(type_url="a")


def test_ack_and_nack() -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    subscriptions.subscribe("a", ["x"])
    accepted = subscriptions.accept("a", "1", "n1", ["x"])
    assert accepted == Request(type_url="a", names=("x",), version="1", nonce="n1")
    rejected = subscriptions.reject("a", "n2", "bad", ["x"])
    assert rejected == Request(type_url="a", names=("x",), version="1", nonce="n2", error="bad")
    changed = subscriptions.subscribe("a", ["x", "z"])
    assert changed == Request(type_url="a", names=("x", "z"), version="1", nonce="n2")


def test_a_new_stream_starts_with_the_last_version_and_no_nonce() -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    subscriptions.subscribe("a", ["x"])
    subscriptions.accept("a", "7", "n1", ["x"])
    subscriptions.disconnected()
    assert subscriptions.subscribe("a", ["x"]) is None
    subscriptions.connected()
    again = subscriptions.subscribe("a", ["x"])
    assert again == Request(type_url="a", names=("x",), version="7", first=True)


def test_an_unknown_type_is_rejected_with_its_nonce() -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    assert not subscriptions.expects("c")
    rejected = subscriptions.reject("c", "n9", "not used")
    assert rejected == Request(type_url="c", nonce="n9", error="not used", first=True)


NAMES = st.sets(st.sampled_from("xyz"))
STEPS = st.one_of(
    st.tuples(st.just("names"), st.sampled_from(TYPES), NAMES),
    st.tuples(st.just("response"), st.sampled_from(TYPES), st.booleans()),
    st.tuples(st.just("restart")),
)


@hypothesis.given(st.lists(STEPS, max_size=50))
def test_what_a_control_plane_sees_follows_the_protocol(steps: list[tuple[Any, ...]]) -> None:
    subscriptions = Subscriptions(TYPES)
    subscriptions.connected()
    wanted: dict[str, set[str]] = {url: set() for url in TYPES}
    accepted = dict.fromkeys(TYPES, "")
    nonces: dict[str, str] = dict.fromkeys(TYPES, "")
    seen: dict[str, set[str]] = {}
    total, firsts = 0, 0

    def check(request: Request | None, url: str, error: str | None = None) -> None:
        nonlocal total, firsts
        if request is None:
            # Silence is right only when the control plane knows the names, or there never were any.
            assert seen.get(url, set()) == wanted[url]
            return
        if url not in seen:
            assert request.names, "an empty first request asks for everything"
        assert request.first == (total == 0)
        total, firsts = total + 1, firsts + request.first
        assert (request.type_url, request.version, request.nonce) == (url, accepted[url], nonces[url])
        assert set(request.names) == wanted[url]
        assert request.error == error
        assert set(subscriptions.subscribed(url)) == wanted[url]
        seen[url] = set(request.names)

    for number, step in enumerate(steps):
        match step:
            case ("names", url, names):
                wanted[url] = names
                check(subscriptions.subscribe(url, sorted(names)), url)
            case ("response", url, good):
                assert subscriptions.expects(url) == (url in seen)
                if url not in seen:
                    continue
                nonces[url] = f"n{number}"
                if good:
                    accepted[url] = f"v{number}"
                    check(subscriptions.accept(url, f"v{number}", nonces[url], sorted(wanted[url])), url)
                else:
                    check(subscriptions.reject(url, nonces[url], "bad", sorted(wanted[url])), url, "bad")
            case ("restart",):
                subscriptions.disconnected()
                assert subscriptions.subscribe("a", sorted(wanted["a"])) is None
                subscriptions.connected()
                nonces, seen, total = dict.fromkeys(TYPES, ""), {}, 0
                for url in TYPES:
                    check(subscriptions.subscribe(url, sorted(wanted[url])), url)
