"""hypercorn with an identity that rotates, over HTTP/1.1 and HTTP/2.

config = MeshConfig(inbound)
config.bind = ["0.0.0.0:8443"]
asyncio.run(hypercorn.asyncio.serve(MeshMiddleware(app, inbound), config))
"""

from __future__ import annotations

import ssl

from hypercorn.config import Config

from meshlib.server.inbound import Inbound

__all__ = ["MeshConfig"]


class MeshConfig(Config):
    """A `hypercorn.config.Config` whose TLS is that of the Inbound; its certfile, keyfile, ca_certs and verify_mode do not count.

    Raises:
        ConfigError, ConfigTimeout: as Inbound.context.
    """

    def __init__(self, inbound: Inbound) -> None:
        super().__init__()
        self._context = inbound.context(tuple(self.alpn_protocols))

    @property
    def ssl_enabled(self) -> bool:
        return self._context is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._context
