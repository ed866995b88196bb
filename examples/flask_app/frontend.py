"""The front end: an ordinary Flask app whose httpx client goes through the mesh.

Nothing here knows about clusters, weights or retries. The control plane is named by GRPC_XDS_BOOTSTRAP_CONFIG, as for gRPC.
"""

from __future__ import annotations

import os

import httpx
from flask import Flask

import meshlib
from meshlib.httpx import MeshTransport

app = Flask(__name__)
client = httpx.Client(
    transport=MeshTransport()
)  # connects to nothing before its first call, so it may be made before a fork


@app.get("/books/<int:book>")
def page(book: int) -> dict[str, object]:
    response = client.get(f"http://reviews/reviews/{book}")
    response.raise_for_status()
    info = response.extensions["meshlib"]
    return {
        "reviews": response.json(),
        "worker": os.getpid(),
        "cluster": info.cluster,
        "endpoints_tried": [attempt.endpoint for attempt in info.attempts],
    }


@app.errorhandler(meshlib.MeshError)
def unavailable(error: meshlib.MeshError) -> tuple[dict[str, object], int]:
    return {"error": str(error), "flags": error.flags, "details": error.details}, 503
