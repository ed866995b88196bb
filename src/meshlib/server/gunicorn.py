"""gunicorn with an identity that rotates, for its sync, gthread, gevent and asyncio workers.

In gunicorn's configuration file:

    from meshlib.server.gunicorn import settings
    globals().update(settings(inbound))

gunicorn's other TLS settings do not count then.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from meshlib.server.inbound import Inbound

__all__ = ["settings"]


def settings(inbound: Inbound) -> dict[str, Any]:
    """The settings `ssl_context` and `certfile`. With mode DISABLE there are none.

    Nothing is started, so the master may make the Mesh and the Inbound before it forks its workers.

    Raises:
        ConfigError, ConfigTimeout: as Inbound.context; a mode that a listener decides needs that listener.
    """
    if inbound.mode == "DISABLE":
        return {}

    def ssl_context(config: object, default: object) -> ssl.SSLContext:
        context = inbound.context()
        assert context is not None
        return context

    # gunicorn takes a certfile as the sign that TLS is wanted; only its own factory, which is not called, would read it.
    return {"ssl_context": ssl_context, "certfile": os.devnull}
