from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.observe.access_log.inlined import compile_values
from meshlib.observe.access_log.operators import OPERATORS
from meshlib.resources import operators
from meshlib.resources.format import FormatError, Operator, parse
from meshlib.routing.format import compile_operator
from tests.observe.access_log.made import MadeFacts

NAMES = ["x-a", "x-b", ":path", ":method", ":authority", ":scheme", "host", "quote'\"", ""]
VARYING = {"UNIQUE_ID"}
ARGUMENTS = {"COMMON_DURATION": "DS_RX_BEG:DS_TX_END", "QUERY_PARAM": "q", "ENVIRONMENT": "HOME"}


def headers() -> st.SearchStrategy[Operator]:
    return st.builds(
        lambda name, main, other, length: Operator(
            name=name, argument=main, alternative=other, max_length=length
        ),
        st.sampled_from(["REQUEST_HEADER", "RESPONSE_HEADER"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.none() | st.integers(0, 5),
    )


def others() -> st.SearchStrategy[Operator]:
    names = sorted(
        set(OPERATORS)
        - VARYING
        - {"REQUEST_HEADER", "RESPONSE_HEADER", "RESPONSE_TRAILER", "REQ_WITHOUT_QUERY"}
    )
    return st.sampled_from(names).map(lambda name: Operator(name=name, argument=ARGUMENTS.get(name, "")))


@given(
    st.lists(headers() | others(), max_size=6),
    st.lists(st.tuples(st.sampled_from(["x-a", "x-b", "quote'\""]), st.text(max_size=3)), max_size=4),
    st.booleans(),
)
def test_the_same_as_each_operator_by_itself(
    chosen: list[Operator], pairs: list[tuple[str, str]], known: bool
) -> None:
    facts = MadeFacts(pairs, response_headers=pairs)
    if not known:
        facts.endpoint = facts.protocol = facts.route_name = facts.first_byte = None
    expected = [compile_operator(each, OPERATORS)(facts) for each in chosen]
    values = compile_values(chosen, "missing")(facts)
    assert values == tuple("missing" if value is None else value for value in expected)


def test_nothing_but_names_of_headers_gets_into_the_source() -> None:
    """What a name may hold is the parser's rule; it is quoted besides."""
    with pytest.raises(FormatError, match="header name"):
        parse("%REQ(a')+__import__('os')+(')%")
    operator = Operator(name="REQUEST_HEADER", argument="'+__import__('os')+'")
    assert compile_values([operator], "-")(MadeFacts()) == ("-",)
    assert all(re.fullmatch("[A-Z0-9_]+", name) for name in operators.LOGGED)
