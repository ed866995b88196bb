"""The last back end. FAILURES in the environment is the share of requests that this instance refuses, 0 to 1."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import meshlib
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware

FAILURES = float(os.environ.get("FAILURES", "0"))
CALLS = ()

trace.set_tracer_provider(TracerProvider())
mesh = meshlib.Mesh(config=[], identity="workload-api")  # it calls nobody: no control plane
inbound = Inbound(mesh, rbac=Path(__file__).with_name("ratings.rbac.yaml"))

app = Flask(__name__)
app.wsgi_app = MeshMiddleware(app.wsgi_app, inbound)  # type: ignore[method-assign]


@app.get("/ratings/<int:book>")
def ratings(book: int) -> tuple[dict[str, Any], int]:
    if random.random() < FAILURES:
        return {"error": "this instance is not well"}, 503
    return {"stars": 1 + book % 5}, 200
