"""Under which name a request is counted."""

from __future__ import annotations

import pytest

from meshlib.resources.matching import HeaderMatch, StringKind, StringMatch
from meshlib.resources.route import VirtualCluster, VirtualHost
from meshlib.routing.virtual_clusters import virtual_cluster_of
from tests.routing.build import request


def header(name: str, value: str) -> HeaderMatch:
    return HeaderMatch(name=name, string=StringMatch(kind=StringKind.PREFIX, value=value))


HOST = VirtualHost(
    name="v",
    domains=("*",),
    virtual_clusters=(
        VirtualCluster(name="writes", headers=(header(":method", "POST"), header(":path", "/books"))),
        VirtualCluster(name="books", headers=(header(":path", "/books"),)),
    ),
)


@pytest.mark.parametrize(
    ("path", "method", "name"),
    [
        ("/books/1", "POST", "writes"),
        ("/books/1", "GET", "books"),
        ("/", "POST", "other"),
    ],
)
def test_the_first_whose_headers_all_match(path: str, method: str, name: str) -> None:
    view = request(path)
    view.method = method
    assert virtual_cluster_of(HOST)(view) == name


def test_one_without_headers_takes_all() -> None:
    host = VirtualHost(name="v", domains=("*",), virtual_clusters=(VirtualCluster(name="all"),))
    assert virtual_cluster_of(host)(request("/")) == "all"
