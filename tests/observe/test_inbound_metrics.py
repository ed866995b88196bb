"""Requests that the middleware lets in are counted as Istio's proxies count them on the server's side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

import meshlib
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware
from tests.observe.counting import configuration


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    start_response(f"{environ['PATH_INFO'][1:]} X", [("content-type", "text/plain")])
    return [b"hello"]


def test_requests_that_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "web")
    with meshlib.Mesh(config=configuration(9)) as mesh:
        served = MeshMiddleware(app, Inbound(mesh))
        for status in ("200", "200", "404"):
            environ: dict[str, Any] = {"PATH_INFO": f"/{status}", "REMOTE_ADDR": "127.0.0.1"}
            setup_testing_defaults(environ)
            body = served(environ, lambda *_: None)
            assert b"".join(body) == b"hello"
            getattr(body, "close", lambda: None)()
        counted = {}
        for labels, metric in mesh.stats.natives("istio_requests_total"):
            found = dict(labels)
            key = (found["reporter"], found["destination_service"], found["response_code"])
            counted[key] = getattr(metric, "value", None)
        assert counted == {("destination", "web", "200"): 2, ("destination", "web", "404"): 1}
        sizes: list[float] = [
            getattr(metric, "total", 0.0) for _, metric in mesh.stats.natives("istio_response_bytes")
        ]
        assert sorted(sizes) == [5.0, 10.0]
