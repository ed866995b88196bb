"""The hash of a request, against xxHash64 itself and Envoy's rules for combining."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh64_intdigest as xxh64

from meshlib.resources.hash_policy import (
    ChannelIdHash,
    CookieHash,
    HashPolicy,
    HeaderHash,
    QueryParameterHash,
)
from meshlib.resources.matching import RegexRewrite
from meshlib.resources.route import RouteAction, WeightedCluster, WeightedClusters
from meshlib.routing.hash_policy import HashOf, compile_hash_policy, cookie_value, set_cookie
from meshlib.routing.request import RequestView
from meshlib.routing.table import RouteTable
from meshlib.routing.weighted import compile_choice
from meshlib.runtime import regex
from tests.routing.build import Pairs, config, host, request, route

HEADER = HeaderHash(name="x-key")


def policy(*entries: HashPolicy) -> HashOf:
    compiled = compile_hash_policy(entries)
    assert compiled is not None
    return compiled


def by(*parts: HeaderHash | CookieHash | QueryParameterHash | ChannelIdHash | None) -> HashOf:
    return policy(*(HashPolicy(by=part) for part in parts))


def hash_of(hashing: HashOf, path: str = "/", headers: Pairs = ()) -> int | None:
    return hashing(request(path, headers), None)


def rotated(value: int) -> int:
    return (value << 1 | value >> 63) % 2**64


class TestHeader:
    def test_its_value(self) -> None:
        assert hash_of(by(HEADER), headers=[("x-key", "a")]) == xxh64(b"a")
        assert hash_of(by(HEADER), headers=[("x-key", "")]) == xxh64(b"")
        assert hash_of(by(HEADER)) is None

    def test_several_values_are_sorted_and_chained(self) -> None:
        values = ["b", "a", "c"]
        expected = xxh64(b"c", xxh64(b"b", xxh64(b"a")))
        assert hash_of(by(HEADER), headers=[("x-key", value) for value in values]) == expected

    def test_bytes_as_on_the_wire(self) -> None:
        value = b"\xc3\xa9\xff".decode("utf-8", "surrogateescape")
        assert hash_of(by(HEADER), headers=[("x-key", value)]) == xxh64(b"\xc3\xa9\xff")

    def test_rewritten_before_sorting(self) -> None:
        rewrite = RegexRewrite(pattern=regex.compile("[0-9]+-", unanchored=True), substitution="")
        hashing = by(HeaderHash(name="x-key", regex_rewrite=rewrite))
        assert hash_of(hashing, headers=[("x-key", "12-a")]) == xxh64(b"a")
        expected = xxh64(b"b", xxh64(b"a"))
        assert hash_of(hashing, headers=[("x-key", "1-b"), ("x-key", "2-a")]) == expected

    def test_pseudo_headers(self) -> None:
        assert hash_of(by(HeaderHash(name=":path")), "/a?b") == xxh64(b"/a?b")
        assert hash_of(by(HeaderHash(name=":authority"))) == xxh64(b"svc")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/?k=a", b"a"),
        ("/?x=1&k=a&k=b", b"a"),
        ("/?k=%61", b"%61"),
        ("/?k", b""),
        ("/?k=", b""),
        ("/?K=a", None),
        ("/", None),
    ],
)
def test_query_parameter(path: str, value: bytes | None) -> None:
    found = hash_of(by(QueryParameterHash(name="k")), path)
    assert found == (None if value is None else xxh64(value))


class TestCookie:
    @pytest.mark.parametrize(
        ("headers", "value"),
        [
            ([("cookie", "c=a")], "a"),
            ([("cookie", "x=1; c=a; c=b")], "a"),
            ([("cookie", 'c="a"')], "a"),
            ([("cookie", 'c="')], '"'),
            ([("cookie", "c=a=b")], "a=b"),
            ([("cookie", "c")], ""),
            ([("cookie", "C=a")], ""),
            ([("cookie", "c =a")], ""),
            ([("cookie", "x=1"), ("cookie", "c=a")], "a"),
            ([("cookie", "c=; c=a")], ""),
            ([], ""),
        ],
    )
    def test_value(self, headers: Pairs, value: str) -> None:
        assert cookie_value(request(headers=headers), "c") == value
        expected = xxh64(value.encode()) if value else None
        assert hash_of(by(CookieHash(name="c")), headers=headers) == expected

    def test_a_new_one_is_made_only_where_it_has_a_time_to_live(self) -> None:
        made: list[CookieHash] = []

        def new(cookie: CookieHash) -> str:
            made.append(cookie)
            return "value"

        session, never = CookieHash(name="c", ttl=0), CookieHash(name="c")
        assert by(session)(request(), new) == xxh64(b"value")
        assert by(never)(request(), new) is None
        assert by(session)(request(headers=[("cookie", "c=a")]), new) == xxh64(b"a")
        assert by(session)(request(), None) is None
        assert made == [session]

    def test_set_cookie(self) -> None:
        assert set_cookie(CookieHash(name="c", ttl=0), "v") == 'c="v"; HttpOnly'
        whole = CookieHash(name="c", ttl=60, path="/p", attributes=(("SameSite", "Strict"), ("Secure", "")))
        assert set_cookie(whole, "v") == 'c="v"; Max-Age=60; Path=/p; SameSite=Strict; Secure; HttpOnly'


def test_channel_id() -> None:
    hashing = by(ChannelIdHash())
    assert hash_of(hashing) is None
    view = RequestView(method="POST", scheme="http", authority="a", path="/", headers=[], channel_id=12345)
    assert hashing(view, None) == 12345


class TestSeveral:
    ONE, TWO = HeaderHash(name="one"), HeaderHash(name="two")

    def test_nothing_to_hash_by(self) -> None:
        assert compile_hash_policy(()) is None
        assert hash_of(by(None)) is None

    def test_combined_in_order(self) -> None:
        both: Pairs = [("one", "a"), ("two", "b")]
        assert hash_of(by(self.ONE, self.TWO), headers=both) == rotated(xxh64(b"a")) ^ xxh64(b"b")
        assert hash_of(by(self.TWO, self.ONE), headers=both) == rotated(xxh64(b"b")) ^ xxh64(b"a")
        assert hash_of(by(self.ONE, self.TWO), headers=both[1:]) == xxh64(b"b")

    def test_equal_entries_do_not_cancel_out(self) -> None:
        assert hash_of(by(self.ONE, self.ONE), headers=[("one", "a")]) not in (0, xxh64(b"a"))

    def test_terminal_ends_the_list_once_there_is_a_hash(self) -> None:
        both: Pairs = [("one", "a"), ("two", "b")]
        first = HashPolicy(by=self.ONE, terminal=True)
        second = HashPolicy(by=self.TWO)
        assert hash_of(policy(first, second), headers=both) == xxh64(b"a")
        assert hash_of(policy(first, second), headers=both[1:]) == xxh64(b"b")
        nothing = HashPolicy(by=None, terminal=True)
        assert hash_of(policy(second, nothing, first), headers=both) == xxh64(b"b")

    @given(values=st.lists(st.one_of(st.none(), st.text(alphabet="abc", max_size=3)), max_size=6))
    def test_like_the_rule(self, values: list[str | None]) -> None:
        names = [HeaderHash(name=f"h{index}") for index in range(len(values))]
        headers = [(f"h{index}", value) for index, value in enumerate(values) if value is not None]
        expected: int | None = None
        for value in values:
            if value is not None:
                expected = (0 if expected is None else rotated(expected)) ^ xxh64(value.encode())
        compiled = compile_hash_policy([HashPolicy(by=name) for name in names])
        found = None if compiled is None else compiled(request(headers=headers), None)
        assert found == expected


class TestWeightedClusters:
    ENTRIES = WeightedClusters(
        clusters=(WeightedCluster(name="a", weight=30), WeightedCluster(name="b", weight=70)),
        use_hash_policy=True,
    )

    def test_by_hash(self) -> None:
        choice = compile_choice(self.ENTRIES, by(HEADER))
        for number in range(200):
            view = request(headers=[("x-key", str(number))])
            expected = 0 if xxh64(str(number).encode()) % 100 < 30 else 1
            assert choice(view, Random(number)) == expected

    @pytest.mark.parametrize("hashing", [None, by(HEADER)])
    def test_at_random_without_a_hash(self, hashing: HashOf | None) -> None:
        choice = compile_choice(self.ENTRIES, hashing)
        counts = Counter(choice(request(), Random(number)) for number in range(2_000))
        assert 480 < counts[0] < 720


def test_routes_carry_their_policy() -> None:
    entries = (HashPolicy(by=HEADER),)
    table = RouteTable(config(host(route(RouteAction(cluster="c", hash_policy=entries)))))
    found = table.find(request(), Random(1))
    assert found is not None
    plan = found.forward(request(), Random(1))
    assert plan is not None
    assert plan.hash_of is not None
    assert plan.hash_of(request(headers=[("x-key", "a")]), None) == xxh64(b"a")
