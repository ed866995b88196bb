"""Nothing secret leaves the process."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.admin.redaction import REDACTED, is_secret_header, redact, safe_path

KEY = "-----BEGIN PRIVATE KEY-----"


@pytest.mark.parametrize(
    "value",
    [
        {"tls_certificates": [{"private_key": {"inline_string": KEY}}]},
        {"tls_certificates": [{"privateKey": {"inlineString": KEY}}]},
        {"private_key": {"inline_bytes": base64.b64encode(KEY.encode()).decode()}},
        {"password": {"inline_string": KEY}},
        {"pkcs12": {"inline_string": KEY}},
        {"private_key_provider": {"provider_name": "x", "typed_config": {"@type": "a", "k": [{"v": KEY}]}}},
        {"session_ticket_keys": {"keys": [{"inline_string": KEY}]}},
        {"generic_secret": {"secret": {"inline_string": KEY}}},
        {"google_grpc": {"call_credentials": [{"access_token": KEY}]}},
        {"header": {"key": "Authorization", "value": KEY}},
        {"header": {"key": "x-api-key", "raw_value": KEY}},
        {"typed_config": {"@type": "Struct", "value": {"type_url": "unknown", "value": KEY}}},
    ],
)
def test_secrets_are_replaced(value: dict[str, Any]) -> None:
    shown = repr(redact(value))
    assert KEY not in shown
    assert base64.b64encode(KEY.encode()).decode() not in shown
    assert "redacted" in shown.lower() or "W3JlZGFjdGVkXQ==" in shown


def test_all_else_stays() -> None:
    value = {
        "name": "reviews",
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": {"ads": {}}}],
        "validation_context": {"trusted_ca": {"filename": "/ca.pem"}},
        "headers": [{"header": {"key": "x-user", "value": "bob"}}],
        "prefix": "/token",
    }
    assert redact(value) == value


def test_what_was_given_is_not_changed() -> None:
    value = {"password": {"inline_string": "x"}}
    redact(value)
    assert value == {"password": {"inline_string": "x"}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_keeps_its_shape(value: Any) -> None:
    shown = redact({"password": value})
    assert type(shown["password"]) is type(value)
    if isinstance(value, str):
        assert shown["password"] == REDACTED
    redact(value)


@pytest.mark.parametrize("name", ["authorization", "cookie", "set-cookie", "x-auth-token", "x-amz-signature"])
def test_secret_headers(name: str) -> None:
    assert is_secret_header(name)


@pytest.mark.parametrize("name", ["accept", "x-request-id", "user-agent", "x-user"])
def test_plain_headers(name: str) -> None:
    assert not is_secret_header(name)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/a/token", "/a/token"),
        ("/a?b=c", "/a?b=c"),
        ("/a?token=c&b=1", "/a?token=[redacted]&b=1"),
        ("/a?access%5Ftoken=c", "/a?access%5Ftoken=[redacted]"),
        ("/a?API_KEY=c&sig=1&b", "/a?API_KEY=[redacted]&sig=[redacted]&b"),
        ("/a?", "/a?"),
    ],
)
def test_paths(path: str, shown: str) -> None:
    assert safe_path(path) == shown
