"""Calls to clusters that balance by hash: what is hashed, retries, and the cookies that are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from meshlib.resources.cluster import MaglevConfig, RingHashConfig, RoundRobinConfig
from meshlib.resources.format import parse
from meshlib.resources.hash_policy import ChannelIdHash, CookieHash, HashPolicy, HeaderHash
from meshlib.resources.headers import AppendAction, HeaderEdits, HeaderValueOption
from meshlib.resources.route import WeightedCluster, WeightedClusters
from meshlib.routing.request import RequestView
from tests.engine.builders import NO_BACK_OFF, cluster, forward, listener, outlier, retry, route_config
from tests.engine.wire import FakeCall, FakeMesh, request

BY_HEADER = HashPolicy(by=HeaderHash(name="x-key"))
COOKIE = HashPolicy(by=CookieHash(name="c", ttl=60))
SET = re.compile(r'c="([0-9a-f]{16})"; Max-Age=60; HttpOnly')


def mesh(*entries: HashPolicy, hosts: int = 8, policy: Any = None, retries: int = 0, **host: Any) -> FakeMesh:
    action = forward(hash_policy=entries, retry_policy=retry("5xx", retries, back_off=NO_BACK_OFF))
    members = cluster("a", hosts, lb_policy=policy or RingHashConfig())
    return FakeMesh(members, listen=listener(route_config(action, **host)))


def keyed(value: str) -> RequestView:
    return request(headers=[("x-key", value)])


def endpoint(call: FakeCall) -> str:
    return call.starts[-1].endpoint.key


def cookies(headers: Sequence[tuple[str, str]] | None) -> list[str]:
    return [value for name, value in headers or () if name == "set-cookie"]


@pytest.mark.parametrize("policy", [RingHashConfig(), MaglevConfig(table_size=251)])
def test_a_key_has_its_endpoint(policy: Any) -> None:
    one, two = mesh(BY_HEADER, policy=policy), mesh(BY_HEADER, policy=policy)
    picked = {str(number): endpoint(one.call(keyed(str(number)))) for number in range(50)}
    assert len(set(picked.values())) == 8
    for key, expected in picked.items():
        assert endpoint(two.call(keyed(key))) == expected


def test_without_a_key_any_endpoint() -> None:
    made = mesh(BY_HEADER)
    assert len({endpoint(made.call()) for _ in range(100)}) == 8


def test_a_retry_goes_to_the_same_endpoint() -> None:
    made = mesh(BY_HEADER, retries=2)
    call = made.call(keyed("k"))
    for _ in range(2):
        call.answer(503)
        call.tick()
    call.answer(200)
    assert len({start.endpoint.key for start in call.starts}) == 1
    assert len(call.starts) == 3


def test_the_request_is_hashed_as_it_goes_upstream() -> None:
    added = HeaderValueOption(
        name="x-key", value=parse("%REQ(x-other)%"), action=AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    )
    edited = mesh(BY_HEADER, route_request_headers=HeaderEdits(add=(added,)))
    plain = mesh(BY_HEADER)
    for number in range(20):
        view = request(headers=[("x-key", "same"), ("x-other", str(number))])
        assert endpoint(edited.call(view)) == endpoint(plain.call(keyed(str(number))))


def test_the_channel_of_the_call() -> None:
    made = mesh(HashPolicy(by=ChannelIdHash()), include_request_attempt_count=True)

    def on(channel: int) -> str:
        view = request()
        view.channel_id = channel
        return endpoint(made.call(view))

    assert len({on(2**60 + 1) for _ in range(20)}) == 1
    assert len({on(number << 58) for number in range(64)}) > 4


def test_a_weighted_choice_by_hash() -> None:
    entries = WeightedClusters(
        clusters=(WeightedCluster(name="a", weight=1), WeightedCluster(name="b", weight=1)),
        use_hash_policy=True,
    )
    action = forward(None, weighted_clusters=entries, hash_policy=(BY_HEADER,))  # type: ignore[arg-type]
    made = FakeMesh(cluster("a"), cluster("b"), listen=listener(route_config(action)))
    chosen = {key: made.call(keyed(key)).core.info.cluster for key in "abcdefghij"}
    assert set(chosen.values()) == {"a", "b"}
    assert all(made.call(keyed(key)).core.info.cluster == name for key, name in chosen.items())


class TestCookies:
    def test_made_and_obeyed(self) -> None:
        made = mesh(COOKIE)
        call = made.call()
        first = endpoint(call)
        call.answer(200, [("set-cookie", "own=1")])
        own, new = cookies(call.headers)
        assert own == "own=1"
        match = SET.fullmatch(new)
        assert match is not None
        again = made.call(request(headers=[("cookie", f"c={match[1]}")]))
        assert endpoint(again) == first
        again.answer(200, [("a", "b")])
        assert cookies(again.headers) == []

    def test_each_call_has_its_own(self) -> None:
        made = mesh(COOKIE)
        values: set[str] = set()
        for _ in range(10):
            call = made.call()
            call.answer(200)
            values.add(*cookies(call.headers))
        assert len(values) == 10

    def test_a_retry_sets_it_again_with_the_same_value(self) -> None:
        call = mesh(COOKIE, retries=1).call()
        call.answer(503)
        call.tick()
        call.answer(200)
        one, two = cookies(call.headers)
        assert one == two
        assert len({start.endpoint.key for start in call.starts}) == 1

    def test_there_before_the_response_is_edited(self) -> None:
        removed = HeaderEdits(remove=("set-cookie",))
        call = mesh(COOKIE, response_headers=removed).call()
        call.answer(200)
        assert cookies(call.headers) == []

    def test_not_on_a_local_reply(self) -> None:
        call = mesh(COOKIE).call()
        call.fail()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert cookies(call.error.local_reply.headers) == []

    def test_not_where_nothing_hashes(self) -> None:
        call = mesh(COOKIE, policy=RoundRobinConfig()).call()
        call.answer(200)
        assert cookies(call.headers) == []


class TestPolicyOfTheCluster:
    def test_it_takes_the_place_of_the_routes(self) -> None:
        own = RingHashConfig(hash_policy=(HashPolicy(by=HeaderHash(name="x-own")),))
        made, plain = mesh(BY_HEADER, policy=own), mesh(BY_HEADER)
        for number in range(20):
            view = request(headers=[("x-key", "same"), ("x-own", str(number))])
            assert endpoint(made.call(view)) == endpoint(plain.call(keyed(str(number))))

    def test_its_last_cookie_is_set_after_the_edits_and_on_local_replies(self) -> None:
        other = HashPolicy(by=CookieHash(name="first", ttl=0))
        own = RingHashConfig(hash_policy=(other, COOKIE))
        made = mesh(policy=own, response_headers=HeaderEdits(remove=("set-cookie",)))
        call = made.call()
        call.answer(200)
        assert [bool(SET.fullmatch(value)) for value in cookies(call.headers)] == [True]
        call = made.call()
        call.fail()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert [bool(SET.fullmatch(value)) for value in cookies(call.error.local_reply.headers)] == [True]

    def test_a_response_that_nothing_edits(self) -> None:
        call = mesh(policy=RingHashConfig(hash_policy=(COOKIE,))).call()
        call.answer(200, [("a", "b")])
        assert call.headers is not None
        assert call.headers[0] == ("a", "b")
        assert len(cookies(call.headers)) == 1


def test_an_ejection_leaves_a_large_table_to_the_publishing_thread() -> None:
    made = mesh(BY_HEADER)
    tasks: list[Callable[[], None]] = []
    made.engine.defer = tasks.append
    made.publish(
        cluster("a", 8, lb_policy=MaglevConfig(), outlier_detection=outlier(consecutive_5xx=1, interval=1e6))
    )
    while tasks:
        tasks.pop()()
    call = made.call(keyed("k"))
    first = endpoint(call)
    call.answer(503)
    assert len(tasks) == 1
    assert endpoint(made.call(keyed("k"))) != first
    tasks.pop()()
    assert endpoint(made.call(keyed("k"))) != first
    assert not tasks
