"""A back end that calls another one. VERSION is in the environment; both versions have the identity of `reviews`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import meshlib
from meshlib.httpx import MeshTransport
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware

VERSION = os.environ.get("VERSION", "v1")
CALLS = ("ratings:80",)

trace.set_tracer_provider(TracerProvider())
mesh = meshlib.Mesh(identity="workload-api")
inbound = Inbound(mesh, rbac=Path(__file__).with_name("reviews.rbac.yaml"))
client = httpx.Client(transport=MeshTransport(mesh))

app = Flask(__name__)
app.wsgi_app = MeshMiddleware(app.wsgi_app, inbound)  # type: ignore[method-assign]


@app.get("/reviews/<int:book>")
def reviews(book: int) -> dict[str, Any]:
    response = client.get(f"http://ratings/ratings/{book}")
    response.raise_for_status()
    stars = response.json()["stars"]
    return {
        "version": VERSION,
        "stars": "★" * stars if VERSION == "v2" else stars,
        "asked_by": str(meshlib.current_peer().spiffe_id),
        "attempts": len(response.extensions["meshlib"].attempts),
    }
