"""Headers that are kept in the forms that are needed again and again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.transport.http.interned import CODING, HOST, LENGTH, forms


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_a_form_has_one_line_or_none(name: bytes, value: bytes) -> None:
    for _ in range(2):  # the first is made, the second is kept
        form = forms[name, value]
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
