"""Headers that are kept in the forms that are needed again and again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.transport.http.interned import CODING, HOST, LENGTH, blocks, forms


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_a_form_has_one_line_or_none(name: bytes, value: bytes) -> None:
    for _ in range(2):  # the first is made, the second is kept
        form = forms[name, value]
        value = value.strip(b" \t")
        assert (form.line is None) is bool(form.error)
        if form.line is not None:
            assert form.line == name + b": " + value + b"\r\n"
            assert form.line.count(b"\n") == form.line.count(b"\r") == 1
            assert b"\0" not in form.line
        assert form.decoded[0] == form.decoded[0].lower()
        assert form.decoded[1].encode("utf-8", "surrogateescape") == value


@pytest.mark.parametrize(
    ("name", "kind"),
    [(b"Content-Length", LENGTH), (b"TRANSFER-ENCODING", CODING), (b"host", HOST), (b"Hosts", 0)],
)
def test_kinds(name: bytes, kind: int) -> None:
    assert forms[name, b"1"].kind == kind


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        (b"Accept", b"text/x-kept", True),
        (b"Authorization", b"Bearer secret", False),
        (b"cookie", b"session=secret", False),
        (b"X-Long", b"v" * 300, False),
    ],
)
def test_secrets_and_long_values_are_not_kept(name: bytes, value: bytes, kept: bool) -> None:
    assert forms[name, value].decoded == (name.decode().lower(), value.decode())
    assert ((name, value) in forms) is kept


def test_values_that_never_come_again_do_not_add_up() -> None:
    for number in range(10_000):
        assert forms[b"X-Id", b"%d" % number].line == b"X-Id: %d\r\n" % number
    assert len(forms) < 5_000


def test_headers_that_come_together_again_are_one_look_up() -> None:
    headers = ((b"Host", b"a"), (b"X-Two", b"1"), (b"x-two", b"2"), (b"Content-Length", b"3"))
    block = blocks[headers]
    assert blocks[headers] is block
    assert (block.lines, block.kinds, block.error) == (
        b"X-Two: 1\r\nx-two: 2\r\nContent-Length: 3\r\n",
        LENGTH,
        "",
    )
    assert block.by_name() == {"x-two": ["1", "2"], "content-length": ["3"]}
    listed = block.listed()
    assert listed == [("x-two", "1"), ("x-two", "2"), ("content-length", "3")]
    listed.clear()
    assert block.listed(), "a caller that changes its list changes nothing else"


def test_a_block_with_a_secret_or_with_an_error_is_right_and_not_kept() -> None:
    secret = ((b"X-A", b"1"), (b"Authorization", b"Bearer x"))
    assert blocks[secret].lines == b"X-A: 1\r\nAuthorization: Bearer x\r\n"
    assert secret not in blocks
    assert "line break" in blocks[(b"X-A", b"1"), (b"X-B", b"1\r\n2")].error


def test_blocks_that_never_come_again_do_not_pile_up() -> None:
    for number in range(1_000):
        assert blocks[((b"X-Id", b"%d" % number),)].lines == b"X-Id: %d\r\n" % number
    assert len(blocks) <= 256
