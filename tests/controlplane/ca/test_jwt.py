"""JWT-SVIDs: what is made is taken, and nothing else."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.controlplane.ca import Authority, jwt
from meshlib.errors import IdentityError

WEB = "spiffe://example.org/web"
NOW = 1_700_000_000.0

ROOT = Authority("example.org").state.root
OTHER = Authority("example.org").state.root


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_a_token_is_taken() -> None:
    token = jwt.make(ROOT, WEB, ["a", "b"], now=NOW)
    spiffe_id, claims = jwt.validate(token, [OTHER, ROOT], "b", now=NOW + 299)
    assert str(spiffe_id) == claims["sub"] == WEB
    assert (claims["aud"], claims["iat"], claims["exp"]) == (["a", "b"], NOW, NOW + 300)


def test_a_token_is_refused_with_the_reason() -> None:
    token = jwt.make(ROOT, WEB, ["a"], now=NOW)
    header, claims, signature = token.split(".")
    none = part({"alg": "none", "kid": jwt.key_id(ROOT)})
    other = part({"sub": "spiffe://example.org/admin", "aud": ["a"], "exp": NOW + 300})
    for wrong, audience, at, reason in (
        (token, "b", NOW, "is for the audience"),
        (token, "a", NOW + 300, "has expired"),
        (jwt.make(OTHER, WEB, ["a"], now=NOW), "a", NOW, "no key"),
        (f"{none}.{claims}.{signature}", "a", NOW, "algorithm is 'none'"),
        (f"{header}.{other}.{signature}", "a", NOW, "signature is wrong"),
        (f"{header}.{claims}", "a", NOW, "not a JWT"),
        (f"{header}.{claims}.", "a", NOW, "not a JWT"),
        ("", "a", NOW, "not a JWT"),
        (f"{part([])}.{claims}.{signature}", "a", NOW, "not a JWT"),
    ):
        with pytest.raises(IdentityError, match=reason):
            jwt.validate(wrong, [ROOT], audience, now=at)


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda data: part(data.hex()) + ".e30.e30"))
def test_no_text_breaks_it(text: str) -> None:
    with pytest.raises(IdentityError):
        jwt.validate(text, [ROOT], "a", now=NOW)


def test_the_key_set_has_every_root() -> None:
    keys = json.loads(jwt.jwks([ROOT, OTHER]))["keys"]
    assert [key["kid"] for key in keys] == [jwt.key_id(ROOT), jwt.key_id(OTHER)]
    assert {(key["kty"], key["crv"], len(key["x"]), len(key["y"])) for key in keys} == {
        ("EC", "P-256", 43, 43)
    }
