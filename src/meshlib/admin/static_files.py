"""The files of the page, which came with the package."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources
from pathlib import PurePosixPath

from meshlib.admin.http import Reply, Request, text_reply

__all__ = ["static_file"]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".woff2": "font/woff2",
}


def static_file(name: str, request: Request) -> Reply:
    """A file that came with the package. Names are those of files in one folder, nothing else."""
    path = PurePosixPath(name)
    kind = _TYPES.get(path.suffix)
    if kind is None or len(path.parts) != 1 or name != path.name or name.startswith("."):
        return text_reply("there is no such file\n", 404)
    try:
        body, tag = _read(name)
    except OSError:
        return text_reply("there is no such file\n", 404)
    headers = (("etag", tag), ("cache-control", "no-cache"))
    if tag in request.headers.get("if-none-match", ""):
        return Reply(status=304, content_type=kind, headers=headers)
    return Reply(content_type=kind, body=body, headers=headers)


@lru_cache(64)
def _read(name: str) -> tuple[bytes, str]:
    """Its bytes and its ETag."""
    body = resources.files("meshlib.admin").joinpath("static", name).read_bytes()
    return body, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
