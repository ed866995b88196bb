"""Where a secret comes from: SdsSecretConfig (extensions.transport_sockets.tls.v3) and core.v3.ConfigSource."""

from __future__ import annotations

from pathlib import Path

from meshlib.resources.decode_common import data_source
from meshlib.resources.reader import Reader
from meshlib.resources.tls import AdsSource, PathSource, SecretRef, SecretSource, ServerSource

__all__ = ["secret_ref"]

_GRPC = (2, 3)
"""ApiConfigSource.ApiType: GRPC and DELTA_GRPC. Both are asked in the state-of-the-world form."""
_V3 = 2


def secret_ref(reader: Reader) -> SecretRef:
    """SdsSecretConfig; without sds_config the secret is one of the configuration's own. Raises ResourceError."""
    name = reader.text("name")
    if not name:
        raise reader.fail("name", "must not be empty")
    config = reader.child("sds_config")
    if config is None:
        return SecretRef(name=name, source=AdsSource())
    timeout = config.duration("initial_fetch_timeout")
    return SecretRef(
        name=name, source=_source(config), initial_fetch_timeout=15.0 if timeout is None else timeout
    )


def _source(reader: Reader) -> SecretSource:
    kind = reader.which("config_source_specifier")
    if kind in ("ads", "self"):
        reader.leave(kind)
        return AdsSource()
    if kind == "path":
        return PathSource(path=_existing(reader, kind))
    if kind == "path_config_source":
        config = reader.required(kind)
        directory = config.child("watched_directory")
        return PathSource(
            path=_existing(config, "path"),
            watched_directory="" if directory is None else directory.text("path"),
        )
    if kind == "api_config_source":
        return _server(reader.required(kind))
    raise reader.fail(kind or "", "must say where from")


def _existing(reader: Reader, field: str) -> str:
    path = reader.text(field)
    if not path or "\0" in path or not Path(path).exists():
        raise reader.fail(field, f"there is no file {path!r}")
    return path


def _server(reader: Reader) -> ServerSource:
    if reader.number("api_type") not in _GRPC:
        raise reader.fail("api_type", "must be GRPC or DELTA_GRPC")
    if reader.number("transport_api_version") != _V3:
        raise reader.fail("transport_api_version", "must be V3")
    if reader.has("cluster_names"):
        raise reader.fail("cluster_names", "is for REST; give grpc_services")
    services = reader.items("grpc_services")
    if len(services) != 1:
        raise reader.fail("grpc_services", "must have exactly one entry")
    reader.leave("set_node_on_first_message_only", "request_timeout", "rate_limit_settings")
    service = services[0]
    service.leave("timeout")
    metadata = tuple((each.text("key"), each.text("value")) for each in service.items("initial_metadata"))
    kind = service.which("target_specifier")
    if kind == "envoy_grpc":
        cluster = service.required(kind)
        cluster.leave("authority", "max_receive_message_length", "skip_envoy_headers")
        return ServerSource(cluster=cluster.text("cluster_name"), metadata=metadata)
    return _google_grpc(service.required("google_grpc"), metadata)


def _google_grpc(reader: Reader, metadata: tuple[tuple[str, str], ...]) -> ServerSource:
    for field in ("call_credentials", "call_credentials_plugin", "channel_credentials_plugin"):
        if reader.has(field):
            raise reader.fail(field, "is not implemented")
    reader.leave("stat_prefix", "per_stream_buffer_limit_bytes", "credentials_factory_name", "config")
    target = reader.text("target_uri")
    credentials = reader.child("channel_credentials")
    kind = None if credentials is None else credentials.which("credential_specifier")
    if credentials is None or kind == "local_credentials":
        if credentials is not None:
            credentials.required("local_credentials")
        return ServerSource(target=target, metadata=metadata)
    if kind != "ssl_credentials":
        raise reader.fail("channel_credentials", f"{kind or 'nothing'} is not implemented")
    tls = credentials.required(kind)
    material = {
        field: None if child is None else data_source(child)
        for field in ("root_certs", "cert_chain", "private_key")
        for child in (tls.child(field),)
    }
    return ServerSource(
        target=target,
        tls=True,
        root_certificates=material["root_certs"],
        certificate_chain=material["cert_chain"],
        private_key=material["private_key"],
        metadata=metadata,
    )
