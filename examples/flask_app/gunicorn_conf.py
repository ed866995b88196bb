"""gunicorn for each of the services; SERVICE in the environment is the module of its app.

The master loads the app, and its workers are forks of it. It makes the Mesh and starts nothing; each worker starts its own
copy. With `settings(inbound)` they speak TLS with the workload's identity, which rotates while they run.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from meshlib.server.gunicorn import settings

service = import_module(f"examples.flask_app.{os.environ['SERVICE']}")

preload_app = True
workers = 2
worker_class = "gthread"
threads = 8
loglevel = "warning"
control_socket_disable = True  # it would be one path for all five gunicorns
globals().update(settings(service.inbound))


def post_worker_init(worker: Any) -> None:
    """A worker takes no request before it has its configuration and its certificates."""
    service.mesh.wait_ready(*service.CALLS, timeout=60.0)
