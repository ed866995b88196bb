"""Who may ask: this machine, by a name of this machine, and no other site's page."""

from __future__ import annotations

import pytest

import meshlib
from meshlib.admin.http import Request
from meshlib.admin.server import is_loopback, listen_tcp, split_address
from meshlib.errors import ConfigError
from tests.admin.conftest import Get


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:15000", "[::1]:15000", "LOCALHOST"])
def test_names_of_this_machine(get: Get, host: str) -> None:
    assert get("/ready", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.test", "localhost.evil.test:15000", "127.0.0.1.nip.io", "", "10.0.0.1"]
)
def test_other_names_are_refused(get: Get, host: str) -> None:
    assert get("/ready", headers={"host": host}).status == 403


def test_other_machines_are_refused(get: Get) -> None:
    assert get("/ready", local=False).status == 403
    assert get("/ready", headers={"x-forwarded-for": "10.0.0.1"}).status == 403
    assert get("/ready", headers={"forwarded": "for=10.0.0.1"}).status == 403


def test_pages_of_other_sites_are_refused(get: Get) -> None:
    assert (
        get("/mesh.json", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status == 403
    )
    assert (
        get("/mesh.json", headers={"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}).status == 200
    )
    assert get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status == 200


def test_the_unix_socket_is_this_users_own(get: Get) -> None:
    assert get("/ready", headers={"host": ""}, trusted=True).status == 200
    assert get("/healthcheck/fail", "POST", trusted=True).status == 401


def test_others_may_be_let_in(mesh: meshlib.Mesh) -> None:
    request = Request(method="GET", path="/ready", headers={"host": "shop.test:80"}, local=False)
    assert mesh.admin(allow_remote=True).handle(request).status == 200
    assert mesh.admin(allow_remote=True, hosts=["Shop.test"]).handle(request).status == 200
    assert mesh.admin(allow_remote=True, hosts=["other.test"]).handle(request).status == 403
    assert mesh.admin(hosts=["shop.test"]).handle(request).status == 403


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%lo", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_what_is_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:15000", ("127.0.0.1", 15000)),
        ("localhost:1", ("127.0.0.1", 1)),
        (":0", ("127.0.0.1", 0)),
        ("0", ("127.0.0.1", 0)),
        ("[::1]:5", ("::1", 5)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:-1", "x:²"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        split_address(text)


def test_it_listens_on_loopback_only() -> None:
    with pytest.raises(ConfigError, match="allow_remote=True"):
        listen_tcp("0.0.0.0:0")
    listen_tcp("0.0.0.0:0", allow_remote=True).close()
