"""The certificate providers of a gRPC bootstrap (gRFC A29, A87): `file_watcher` and its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshlib.errors import ConfigError
from meshlib.identity.files import FileIdentity
from meshlib.identity.source import IdentitySource
from meshlib.runtime.clock import Clock

__all__ = ["certificate_providers"]

PLUGIN = "file_watcher"

REFRESH = 600.0
"""Seconds between two looks, unless the bootstrap says otherwise."""

_FILES = (
    "certificate_file",
    "private_key_file",
    "ca_certificate_file",
    "spiffe_trust_bundle_map_file",
)


def certificate_providers(config: Mapping[str, Any], clock: Clock | None = None) -> dict[str, IdentitySource]:
    """Sources by instance name. config: the bootstrap's `certificate_providers`, as written.

    Raises:
        ConfigError: a provider is not a file_watcher, or its configuration is wrong; the text names the field.
    """
    return {name: _provider(f"certificate_providers.{name}", entry, clock) for name, entry in config.items()}


def _provider(path: str, entry: object, clock: Clock | None) -> IdentitySource:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"bootstrap: {path}: expected an object with plugin_name and config")
    plugin = entry.get("plugin_name")
    if plugin != PLUGIN:
        raise ConfigError(
            f"bootstrap: {path}.plugin_name: {plugin!r} is not known, {PLUGIN!r} is the only one"
        )
    config = entry.get("config") or {}
    if not isinstance(config, Mapping):
        raise ConfigError(f"bootstrap: {path}.config: expected an object")
    certificate, key, roots, bundles = (_text(path, config, name) for name in _FILES)
    if (certificate is None) != (key is None):
        raise ConfigError(f"bootstrap: {path}.config: certificate_file and private_key_file belong together")
    if certificate is None and roots is None and bundles is None:
        raise ConfigError(f"bootstrap: {path}.config: names neither a certificate nor a CA")
    return FileIdentity(
        certificate=certificate,
        private_key=key,
        bundle_map=bundles,
        # A bundle map takes the place of the CA file (gRFC A87).
        roots=None if bundles is not None else roots,
        interval=_seconds(f"{path}.config.refresh_interval", config.get("refresh_interval")),
        clock=clock,
    )


def _text(path: str, config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"bootstrap: {path}.config.{name}: expected a string")
    return value or None


def _seconds(path: str, value: object) -> float:
    """A Duration of proto3's JSON: `"600s"`."""
    if value is None:
        return REFRESH
    try:
        if not isinstance(value, str) or not value.endswith("s"):
            raise ValueError(value)
        seconds = float(value[:-1])
        if not 0 < seconds < float("inf"):
            raise ValueError(value)
    except ValueError:
        raise ConfigError(f'bootstrap: {path}: expected a duration above zero such as "600s"') from None
    return seconds
