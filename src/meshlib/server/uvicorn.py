"""uvicorn with an identity that rotates.

    uvicorn.run(MeshMiddleware(app, inbound), host="0.0.0.0", port=8443, **options(inbound))

uvicorn takes this from Python only, not from its command line.
"""

from __future__ import annotations

import ssl
from typing import Any

from meshlib.server.inbound import Inbound

__all__ = ["options"]


def options(inbound: Inbound) -> dict[str, Any]:
    """Keyword arguments of `uvicorn.run` and `uvicorn.Config`.

    Besides TLS: `proxy_headers` is off, since uvicorn would take the caller's address from a header that any caller on this
    machine can send.

    Raises:
        ConfigError, ConfigTimeout: as Inbound.context.
    """
    context = inbound.context()
    found: dict[str, Any] = {"proxy_headers": False}
    if context is not None:

        def factory(config: object, default: object) -> ssl.SSLContext:
            return context

        found["ssl_context_factory"] = factory
    return found
