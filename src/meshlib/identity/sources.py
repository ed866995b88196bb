"""What users may write for `Mesh(identity=...)`."""

from __future__ import annotations

import os
from pathlib import Path

from meshlib.errors import ConfigError
from meshlib.identity.source import IdentitySource
from meshlib.runtime.clock import Clock

__all__ = ["identity_source"]

WORKLOAD_API = "workload-api"


def identity_source(
    value: IdentitySource | str | os.PathLike[str] | None, clock: Clock | None = None
) -> IdentitySource | None:
    """The source that is meant; None stays None.

    `unix:///run/spire/agent.sock` or `tcp://IP:PORT`: a Workload API there. `workload-api`: the one that SPIFFE_ENDPOINT_SOCKET
    names. A folder: `tls.crt`, `tls.key`, and `bundles.json` or `ca.crt` in it.

    Raises:
        ConfigError: none of these.
    """
    if value is None or (not isinstance(value, (str, os.PathLike)) and isinstance(value, IdentitySource)):
        return value
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(f"identity={value!r} is no identity source: it needs start(on_update) and close()")
    text = os.fspath(value)
    if text == WORKLOAD_API or text.startswith(("unix:", "tcp:")):
        from meshlib.identity.workload import WorkloadApi

        return WorkloadApi(None if text == WORKLOAD_API else text, clock=clock)
    if Path(text).is_dir():
        from meshlib.identity.files import FileIdentity

        return FileIdentity.of_folder(text, clock=clock)
    raise ConfigError(
        f"identity={text!r} is neither a Workload API (unix:///..., {WORKLOAD_API!r}) nor a folder with tls.crt and tls.key"
    )
