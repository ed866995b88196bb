"""A file for one moment: OpenSSL's loader takes paths only, and a private key must not touch a disk.

Linux keeps it in anonymous memory (memfd). Elsewhere the file holds the key encrypted with a password that only this process
knows, readable by nobody else, and is removed at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from meshlib.identity.material import PrivateKey

__all__ = ["certificate_file"]

FOLDER_OF_DESCRIPTORS = Path("/proc/self/fd")


@contextlib.contextmanager
def certificate_file(chain: bytes, key: PrivateKey) -> Iterator[tuple[str, str | None]]:
    """The path of a file with chain and key (PEM), and the key's password or None; gone when the block ends."""
    if hasattr(os, "memfd_create") and FOLDER_OF_DESCRIPTORS.is_dir():
        with _in_memory(chain + key.reveal()) as path:
            yield path, None
    else:
        with _encrypted(chain, key) as (path, password):
            yield path, password


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("meshlib", os.MFD_CLOEXEC)
    try:
        _write(descriptor, content)
        yield str(FOLDER_OF_DESCRIPTORS / str(descriptor))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _encrypted(chain: bytes, key: PrivateKey) -> Iterator[tuple[str, str]]:
    password = secrets.token_hex(32)
    private = load_pem_private_key(key.reveal(), None, unsafe_skip_rsa_key_validation=True)
    encrypted = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
    )
    descriptor, path = tempfile.mkstemp(prefix="meshlib-")
    try:
        try:
            _write(descriptor, chain + encrypted)
        finally:
            os.close(descriptor)
        yield path, password
    finally:
        Path(path).unlink()


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
