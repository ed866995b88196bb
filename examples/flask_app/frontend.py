"""The front end: an ordinary Flask app whose httpx client goes through the mesh.

Nothing here knows about clusters, weights, retries, certificates or trace headers. Its control plane is named by
GRPC_XDS_BOOTSTRAP_CONFIG, as for gRPC, and its identity comes from SPIFFE_ENDPOINT_SOCKET.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import meshlib
from meshlib.httpx import MeshTransport
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware

CALLS = ("reviews:80",)

trace.set_tracer_provider(TracerProvider())  # with an exporter, traces go elsewhere too
mesh = meshlib.Mesh(identity="workload-api")
inbound = Inbound(mesh, mode="DISABLE")  # browsers have no certificate of this mesh
client = httpx.Client(transport=MeshTransport(mesh))  # may be made before a fork: it has connected to nothing

app = Flask(__name__)
app.wsgi_app = MeshMiddleware(app.wsgi_app, inbound)  # type: ignore[method-assign]


@app.get("/books/<int:book>")
def page(book: int) -> dict[str, Any]:
    response = client.get(f"http://reviews/reviews/{book}")
    response.raise_for_status()
    return {"book": book, "worker": os.getpid(), "reviews": response.json()}


@app.errorhandler(meshlib.MeshError)
def unavailable(error: meshlib.MeshError) -> tuple[dict[str, Any], int]:
    return {"error": str(error), "flags": error.flags, "details": error.details}, 503
