"""A WSGI application whose module-level channel goes through the process's default mesh; gunicorn loads it before it forks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import meshlib.grpc
from tests.transport.grpc.processes.client import HOST, METHOD

say = meshlib.grpc.channel(HOST).unary_unary(METHOD)
if os.environ.get("CALL_BEFORE_FORK"):
    say(b"from the master", timeout=20.0)


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    answer = say(environ["PATH_INFO"].encode(), timeout=20.0)
    start_response("200 OK", [("content-type", "text/plain"), ("x-worker", str(os.getpid()))])
    return [answer]
