"""A file with secrets, in the form of a file subscription (a DiscoveryResponse as YAML or JSON)."""

from __future__ import annotations

import os
from pathlib import Path

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.files import load

__all__ = ["read", "signature"]


def read(path: str, name: str) -> bytes:
    """The encoded Secret of this name. Raises ResourceError: the file can't be read, or has none."""
    config = load([Path(path)])
    for resource in config.resources:
        if resource.type_url == proto.SECRET and resource.name == name:
            encoded: bytes = resource.message.SerializeToString(deterministic=True)
            return encoded
    reason = str(config.problems[0]) if config.problems else f"{path} has no secret {name!r}"
    raise ResourceError("", reason)


def signature(path: str, watched_directory: str = "") -> object:
    """Changes when the file, or what its path leads to, is replaced or written to; with a watched directory, when that is."""
    watched = [path, watched_directory] if watched_directory else [path]
    return tuple(_look(each) for each in watched)


def _look(path: str) -> object:
    try:
        found = os.stat(path)  # noqa: PTH116 - follows symbolic links, of which a part may be swapped
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
